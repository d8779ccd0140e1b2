"""All injections, the table, and RESULTS.md.

python tests/faults/run.py                       everything, about ten minutes on two cores
python tests/faults/run.py --case 9 --case 13    some cases
python tests/faults/run.py --words "best flipped"    some injections
python tests/faults/run.py --fast --json FILE    the representative ones of `make test`
python tests/faults/run.py --precision bf16      stages in another precision than the machine's own
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import importlib
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cases_baseline
import cases_data
import cases_files
import cases_numbers
import cases_processes
import playground
import torch
from judging import Injection, Reference, Verdict, judge, reference_of
from matrix import LEFT_OUT, PARTLY_LEFT_OUT, TITLES
from playground import VARIANTS, gpt2_tokenizer

RESULTS = Path(__file__).with_name("RESULTS.md")
_SHOWN_PROBLEMS = 3


@dataclasses.dataclass
class Row:
    """One line of the table."""

    injections: int = 0
    survived: int = 0
    lost: int = 0
    silent: int = 0
    seconds: float = 0.0
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, injection: Injection, verdict: Verdict) -> None:
        """Count one verdict."""
        self.injections += verdict.count
        self.survived += verdict.survived
        self.lost += len(verdict.lost)
        self.silent += verdict.silent
        self.seconds += verdict.seconds
        self.notes += verdict.notes
        if verdict.survived < verdict.count:
            lost = [f"LOST {name}" for name in verdict.lost]
            silent = ["SILENT"] if verdict.silent else []
            self.problems.append(f"{injection.words}: {'; '.join([*lost, *silent, *verdict.problems[:4]])}")


def _warm_up() -> None:
    """Import and load what every fork would otherwise import and load again. Nothing is trained in this process."""
    for name in ("model", "storyladder.corpus.prepare", "storyladder.stage.loop", "storyladder.telling.teller"):
        importlib.import_module(name)
    importlib.import_module("storyladder.telling.story")
    importlib.import_module("torch._dynamo")  # the first optimizer step would import it in every fork
    torch.set_num_threads(1)
    assert len(gpt2_tokenizer().token_bytes_V)


class Plan:
    """All injections with their references; forks of this process take them by number."""

    def __init__(self, folder: Path, *, fast: bool, only: list[int], words: str) -> None:
        self.folder = folder
        self.references = {"plain": reference_of(VARIANTS["plain"], folder)}
        pages = (cases_files, cases_data, cases_numbers, cases_processes)
        self.ours = [
            injection
            for page in pages
            for injection in page.cases(self.references)
            if (not only or injection.case in only) and (injection.fast or not fast) and words in injection.words
        ]
        for name in sorted({injection.variant.name for injection in self.ours} - {"plain"}):
            self.references[name] = reference_of(VARIANTS[name], folder)
        self.theirs: list[Injection] = []
        if not fast and not words:
            self.baseline = cases_baseline.baseline_reference(self.references["plain"], folder)
            self.theirs = [each for each in cases_baseline.cases(self.baseline) if not only or each.case in only]

    def judge(self, number: int) -> tuple[int, Verdict]:
        """Play injection `number`: ours first, then the plain loop's."""
        ours = number < len(self.ours)
        injection = self.ours[number] if ours else self.theirs[number - len(self.ours)]
        reference: Reference = self.references[injection.variant.name] if ours else self.baseline
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            return number, judge(injection, reference, Path(folder) / "toy")


_plans: list[Plan] = []  # filled before the workers are forked, so that they inherit it


def _judge(number: int) -> tuple[int, Verdict]:
    return _plans[-1].judge(number)


def play_all(plan: Plan, jobs: int) -> tuple[dict[int, Row], dict[int, Row]]:
    """Rows of our cases and of the plain loop's, by case number."""
    _plans.append(plan)
    ours: dict[int, Row] = collections.defaultdict(Row)
    theirs: dict[int, Row] = collections.defaultdict(Row)
    # The long plays first, so that no worker is left with one at the end.
    slow = ("50 random", "10 random")
    numbers = sorted(
        range(len(plan.ours) + len(plan.theirs)),
        key=lambda number: number >= len(plan.ours) or not any(word in plan.ours[number].words for word in slow),
    )
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for done, (number, verdict) in enumerate(pool.imap_unordered(_judge, numbers), 1):
            mine = number < len(plan.ours)
            injection = plan.ours[number] if mine else plan.theirs[number - len(plan.ours)]
            row = (ours if mine else theirs)[injection.case]
            row.add(injection, verdict)
            if mine and verdict.survived < verdict.count:
                print(f"case {injection.case}: {row.problems[-1][:600]}", file=sys.stderr, flush=True)
            if done % 100 == 0:
                print(f"{done} of {len(numbers)}", file=sys.stderr, flush=True)
    return ours, theirs


def table(ours: dict[int, Row], theirs: dict[int, Row]) -> list[str]:
    """Markdown, a line for every case; the last line is the sum."""
    lines = [
        "| case | | injections | survived | lost | silent | plain loop survived |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in sorted(TITLES):
        title = TITLES[case].replace("|", "\\|")
        if case in LEFT_OUT:
            lines.append(f"| {case} | {title} | left out: {LEFT_OUT[case]} | | | | |")
        if case not in ours:
            continue
        row, plain = ours[case], theirs.get(case)
        other = f"{plain.survived} of {plain.injections}, {plain.lost} lost" if plain else ""
        part = f" ({PARTLY_LEFT_OUT[case]})" if case in PARTLY_LEFT_OUT else ""
        lines.append(
            f"| {case} | {title}{part} | {row.injections:,} | {row.survived:,} | {row.lost} | {row.silent} | {other} |"
        )
    return lines


def sum_line(rows: dict[int, Row]) -> str:
    """`N of M survived, K checkpoints lost`."""
    survived, injections, lost = (
        sum(getattr(row, name) for row in rows.values()) for name in ("survived", "injections", "lost")
    )
    return f"{survived:,} of {injections:,} survived, {lost} checkpoints lost"


def problem_lines(rows: dict[int, Row], at_most: int) -> list[str]:
    """What did not survive, by case."""
    lines = []
    for case, row in sorted(rows.items()):
        lines += [f"- case {case}: {problem}" for problem in row.problems[:at_most]]
        if len(row.problems) > at_most:
            lines.append(f"- case {case}: and {len(row.problems) - at_most} more like these")
    return lines


def hardware() -> str:
    """The processor in words."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        flags = ", AVX-512" if any("avx512f" in line for line in lines) else ""
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()}-core {name}{flags}"


def report(ours: dict[int, Row], theirs: dict[int, Row], cost_lines: list[str], seconds: float) -> str:
    """RESULTS.md."""
    notes = [f"- case {case}: {note}" for case, row in sorted(ours.items()) for note in dict.fromkeys(row.notes)]
    silent = sum(row.silent for row in ours.values())
    parts = [
        "# Fault injection: what survives",
        "",
        f"{datetime.date.today().isoformat()}, {hardware()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}; {seconds:,.0f} s with `make faults` (`python tests/faults/run.py`), load average "
        f"{os.getloadavg()[1]:.1f} (the harness itself keeps {os.cpu_count()} busy).",
        "",
        "An injection survives when the script, run again without the fault, ends in final weights and a loss record "
        "whose SHA-256 equal those of an uninterrupted run (or, where a refusal is right, refuses in one clear line "
        "every time), nothing that was once saved is lost, and the user was told of whatever changed. The plain loop "
        "is `tests/faults/baseline.py`: `torch.save` over the only file; only its final weights are compared.",
        "",
        *table(ours, theirs),
        "",
        "## Cost",
        "",
        *cost_lines,
        "",
    ]
    if notes:
        parts += ["## Notes", "", *notes, ""]
    if problems := problem_lines(ours, at_most=20):
        parts += ["## Not survived", "", *problems, ""]
    if theirs:
        parts += [f"The plain loop: {sum_line(theirs)}.", ""]
    parts += [f"{silent} silent failures.", "", sum_line(ours), ""]
    return "\n".join(parts)


def _cost_lines() -> list[str]:
    """Measured by a process of its own, whose threads no fork inherits, with all cores."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, str(Path(__file__).with_name("costs.py"))]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def main(description: str | None) -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=int, action="append", default=[], help="only this case; may be repeated")
    parser.add_argument("--words", default="", help="only injections in whose name these words stand")
    parser.add_argument("--fast", action="store_true", help="only the representative injections of `make test`")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the stages")
    parser.add_argument("--json", type=Path, help="write the rows into this file")
    flags = parser.parse_args()
    playground.PRECISION = flags.precision
    everything = not (flags.case or flags.fast or flags.words or flags.precision != "auto")
    began = time.monotonic()
    cost_lines = _cost_lines() if everything else []  # before the cores are busy
    _warm_up()
    # Memory where there is some: a real fsync takes 40 ms on some disks and adds nothing to what a kill can show.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=memory))
    try:
        ours, theirs = play_all(Plan(folder, fast=flags.fast, only=flags.case, words=flags.words), flags.jobs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if flags.json:
        rows = {str(case): dataclasses.asdict(row) for case, row in ours.items()}
        flags.json.write_text(json.dumps(rows), encoding="utf-8")
    seconds = time.monotonic() - began
    if everything:
        RESULTS.write_text(report(ours, theirs, cost_lines, seconds), encoding="utf-8")
    print("\n".join(table(ours, theirs)))
    for line in [*problem_lines(ours, at_most=_SHOWN_PROBLEMS if everything else 99), *cost_lines]:
        print(line)
    if theirs:
        print(f"the plain loop: {sum_line(theirs)}")
    print(f"{seconds:,.0f} s, {sum(row.silent for row in ours.values())} silent failures")
    print(sum_line(ours))
    if any(row.survived < row.injections for row in ours.values()):
        raise SystemExit(1)
