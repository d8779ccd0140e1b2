"""Everything that needs a GPU, in one command that takes about eight minutes and installs nothing: make gpu.

    python benchmarks/gpu.py                      run all sections, write gpu.json
    python benchmarks/gpu.py --out FILE           write another file
    python benchmarks/gpu.py --only tests,speed   run some sections
    python benchmarks/gpu.py --record FILE        copy its numbers into RESULTS.md; needs no GPU

Sections run in order of importance, each in its own process with a time limit, and the file is written after each, so
a failure loses nothing else. Without a GPU every section reports "no GPU" and the exit status is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import RESULTS, hardware_line, write_section
from storyladder.runtime.errors import UserError, user_errors
from storyladder.settings import PROJECT

_TAIL = 12_000  # characters kept of a section's output
_PROMPTS = (
    "Once upon a time, there was a little dog named Max.",
    "It was a dark and stormy night, and the wind howled through the trees.",
    'The queen looked at the boy and said, "',
)
_STAGE_SECONDS = {"train_tiny.py": 100, "train_children.py": 45, "train_simp.py": 35}  # three minutes in total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the run: a process with a limit of `seconds`; `command` gets the folder of the run."""

    name: str
    seconds: int
    command: Callable[[Path], list[str]]


@dataclasses.dataclass
class Found:
    """The outcome of a section."""

    status: int | str  # exit status, "no GPU" or "ran out of time"
    seconds: float
    output: str  # the end of what it printed
    json: dict[str, Any] | None  # its last line, if that is a JSON object


def _script(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: [sys.executable, *(each.replace("FOLDER", str(folder)) for each in arguments)]


_SELF = "benchmarks/gpu.py"
_RESULT = "FOLDER/checkpoints/simple_stories_ckpt.pt"
SECTIONS = (
    Section(name="tests", seconds=150, command=_script(_SELF, "--section", "tests", "FOLDER")),
    Section(
        name="speed",
        seconds=240,
        command=_script("benchmarks/training.py", "--json", "--no-results", "--device", "cuda", "--minutes", "1.5"),
    ),
    Section(name="profile", seconds=90, command=_script(_SELF, "--section", "profile", "FOLDER")),
    Section(name="stages", seconds=240, command=_script(_SELF, "--section", "stages", "FOLDER")),
    Section(
        name="generation",
        seconds=60,
        command=_script(
            *("benchmarks/generation.py", "--json", "--no-results", "--device", "cuda", "--minutes", "0.5"),
            *("--checkpoint", _RESULT),
        ),
    ),
    Section(name="loss", seconds=60, command=_script("benchmarks/head_loss.py", "--json", "--no-results")),
)


def gpu_name() -> str | None:
    """The GPU's name, or None without a GPU or torch. Runs in a subprocess, which frees the GPU again."""
    program = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
        return done.stdout.strip() or None if done.returncode == 0 else None
    return None


def run_section(section: Section, folder: Path, seconds: float) -> Found:
    """Run a section and log its output; after `seconds`, kill it and everything it started."""
    began, environment = time.monotonic(), {**os.environ, "PYTHONUNBUFFERED": "1"}
    log = folder / f"{section.name}.log"
    with log.open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            section.command(folder),
            cwd=PROJECT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status: int | str
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = "ran out of time"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    return Found(status, round(time.monotonic() - began, 1), text[-_TAIL:], _last_json(text))


def _last_json(text: str) -> dict[str, Any] | None:
    """The last line as a JSON object, or None."""
    with contextlib.suppress(ValueError, IndexError):
        value = json.loads(text.strip().splitlines()[-1])
        return value if isinstance(value, dict) else None
    return None


def run_all(sections: Sequence[Section], out: Path, gpu: str | None, seconds: float) -> dict[str, Any]:
    """Run the sections in order, `seconds` in total, and write the results to `out` after each one."""
    found: dict[str, Any] = {"gpu": gpu, "machine": hardware_line(), "sections": {}}
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="storyladder-gpu-") as folder:
        _write_config(Path(folder))
        for section in sections:
            left = deadline - time.monotonic()
            if gpu is None:
                result = Found("no GPU", 0.0, "", None)
            elif left < 1:
                result = Found("ran out of time", 0.0, "", None)
            else:
                result = run_section(section, Path(folder), min(section.seconds, left))
            print(f"=== {section.name}: {result.status}, {result.seconds:g} s\n{result.output}".rstrip(), flush=True)
            found["sections"][section.name] = dataclasses.asdict(result)
            partial = out.with_name(out.name + ".partial")
            partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
            os.replace(partial, out)
    return found


# --- sections in this file --------------------------------------------------------------------------------------------


def run_tests(folder: Path) -> int:
    """Run the tests that need a GPU, in parallel if pytest-xdist is installed; the last line has the counts."""
    report = folder / "tests.xml"
    workers = ["-n", "4"] if _is_installed("xdist") else []
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-rfEs", "--tb=short", "-p", "no:cacheprovider"]
    tests += ["-p", "no:benchmark"]  # if installed, it prints a warning when xdist is on
    done = subprocess.run([*tests, *workers, f"--junitxml={report}", "tests/test_cuda.py"], cwd=PROJECT, check=False)
    if report.exists():
        from xml.etree import ElementTree

        cases = list(ElementTree.parse(report).iter("testcase"))
        outcomes = {
            f"{case.get('name')}": next((child.tag for child in case if child.tag != "properties"), "passed")
            for case in cases
        }
        passed = sum(outcome == "passed" for outcome in outcomes.values())
        print(json.dumps({"passed": passed, "of": len(outcomes), "tests": outcomes}))
    return done.returncode


def _is_installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def _write_config(folder: Path) -> None:
    """Write a config: the default preset on the user's data, with checkpoints and records under `folder`."""
    (folder / "config.py").write_text(
        "from dataclasses import replace\n\nfrom config import LADDER\nfrom storyladder.settings import Paths\n\n"
        f"PATHS = Paths(root={str(folder)!r}, data={str(PROJECT / 'data')!r})\n"
        "PRESETS = (replace(LADDER, paths=PATHS),)\n",
        encoding="utf-8",
    )


def run_stages(folder: Path) -> int:
    """Run the three stage scripts in three minutes, then generate stories; the last line has all losses."""
    flags = ["--config", str(folder / "config.py")]
    worst, seconds = 0, {}
    for script, allowed in _STAGE_SECONDS.items():
        tick = time.monotonic()
        called = [sys.executable, script, *flags, "--minutes", str(allowed / 60)]
        worst = max(worst, subprocess.run(called, cwd=PROJECT, check=False).returncode)
        seconds[script] = round(time.monotonic() - tick, 1)
    stories = []
    for prompt in _PROMPTS:
        called = [sys.executable, "generate.py", *flags, "--seed", "1", "--max-new-tokens", "200", "--prompt", prompt]
        done = subprocess.run(called, cwd=PROJECT, capture_output=True, text=True, check=False)
        worst = max(worst, done.returncode)
        stories.append(done.stdout or done.stderr)
        print("---\n" + stories[-1])
    records = {path.stem: list(_evaluations(path)) for path in sorted((folder / "runs").glob("*.jsonl"))}
    print(json.dumps({"evaluations": records, "seconds": seconds, "stories": stories}))
    return worst


def _evaluations(path: Path) -> Iterator[dict[str, Any]]:
    """The evaluations in a run log, each with the training speed logged before it."""
    speed = None
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["event"] == "train":
            speed = record["tokens_per_s"]
        if record["event"] == "evaluation":
            yield {name: record[name] for name in ("step", "val_loss", "bits_per_byte")} | {"tokens_per_s": speed}


def run_profile(_: Path) -> int:
    """Profile the GPU kernels of ten steps, with compact and full vocabulary."""
    import torch

    from benchmarks.racers import started_stage
    from benchmarks.workload import moved_to, put_text
    from storyladder.command_line import load_ladder

    with tempfile.TemporaryDirectory() as folder:
        ladder = moved_to(load_ladder(None, "default"), Path(folder))
        put_text(ladder, None)
        for compact in (True, False):
            stage = started_stage(ladder, "cuda", compact=compact)
            while not stage.learner.steps(stage.batches, 0, 10):
                pass  # compile and capture first
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                stage.learner.steps(stage.batches, 10, 10)
                torch.cuda.synchronize()
            kernels = sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)
            total = sum(each.self_device_time_total for each in kernels)
            print(f"{'compact' if compact else 'full'} vocabulary: {total / 1e4:.3f} ms of kernels per step")
            for each in kernels[:28]:
                print(f"{each.self_device_time_total / 1e4:8.4f} ms  {each.count / 10:6.1f} x  {each.key[:110]}")
    return 0


PROGRAMS = {"tests": run_tests, "stages": run_stages, "profile": run_profile}


# --- recording --------------------------------------------------------------------------------------------------------


def record(path: Path, results: Path = RESULTS) -> None:
    """Copy the numbers of a gpu.json into RESULTS.md, one section per GPU."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        gpu, sections = found["gpu"], found["sections"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} was not written by benchmarks/gpu.py ({error}); write one with: make gpu") from None
    if gpu is None:
        raise UserError(f"{path} was written without a GPU; run make gpu on a machine that has one")
    lines = [f"{found['machine']}.", "", "    make gpu", ""]
    if tests := sections.get("tests", {}).get("json"):
        failed = [name for name, outcome in tests["tests"].items() if outcome not in ("passed", "skipped")]
        lines += [
            f"Tests: {tests['passed']} of {tests['of']} passed{'; failed: ' + ', '.join(failed) if failed else ''}.",
            "",
        ]
    for name in ("speed", "loss", "generation"):
        output = sections.get(name, {}).get("output", "")
        lines += [
            f"### {name}",
            "",
            *(_tables(output) or [f"Not measured: {sections.get(name, {}).get('status')}."]),
            "",
        ]
    if stages := sections.get("stages", {}).get("json"):
        lines += [
            "### stages",
            "",
            "| stage | steps | val_loss | bits per byte | tokens/s |",
            "| --- | --- | --- | --- | --- |",
        ]
        for stage in ("tiny", "children", "simple"):
            for each in stages["evaluations"].get(stage, [])[-1:]:
                speed = f"{each['tokens_per_s']:,}" if each["tokens_per_s"] else ""
                lines.append(
                    f"| {stage} | {each['step']:,} | {each['val_loss']:.4f} | {each['bits_per_byte']:.3f} | {speed} |"
                )
    write_section(f"GPU: {gpu}", lines, results)


def _tables(output: str) -> list[str]:
    """The Markdown tables in a benchmark's output, and its lines with peak throughput."""
    return [line for line in output.splitlines() if line.startswith("| ") or (line.endswith(".") and "TFLOP/s" in line)]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE", help="output file (gpu.json)")
    parser.add_argument("--only", metavar="NAMES", help=f"any of {', '.join(each.name for each in SECTIONS)}")
    parser.add_argument("--seconds", type=float, default=480.0, metavar="N", help="time limit for all sections (480)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="copy the numbers of such a file into RESULTS.md")
    parser.add_argument("--section", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run, or record."""
    with user_errors():
        flags = arguments(argv)
        if flags.section:
            sys.exit(PROGRAMS[flags.section[0]](Path(flags.section[1])))
        if flags.record:
            record(flags.record)
            return
        names = [each.name for each in SECTIONS] if flags.only is None else flags.only.split(",")
        if unknown := [name for name in names if name not in {each.name for each in SECTIONS}]:
            known = ", ".join(each.name for each in SECTIONS)
            raise UserError(f"--only: no section {', '.join(unknown)}; the sections are {known}")
        gpu = gpu_name()
        print(f"GPU: {gpu or 'none'}", flush=True)
        found = run_all([each for each in SECTIONS if each.name in names], flags.out, gpu, flags.seconds)
        statuses = {name: section["status"] for name, section in found["sections"].items()}
        print(", ".join(f"{name}: {status}" for name, status in statuses.items()) + f"; wrote {flags.out}")
        sys.exit(any(status not in (0, "no GPU") for status in statuses.values()))


if __name__ == "__main__":
    main()
