"""Preparation speed in MB of text per second: Storyladder against the plain loop found in other trainers' scripts.

python benchmarks/preparation.py               sample stories (simpler than real text)
python benchmarks/preparation.py --text FILE   real stories: .txt .json .jsonl .parquet
python benchmarks/preparation.py --mb 300      repeat the text until it has 300 MB; default 100
python benchmarks/preparation.py --json        end with one line of JSON

All three take turns on the same text, in a new process each time, and use Storyladder's readers. Storyladder reads,
cleans, splits, encodes and writes files with sidecars. The plain loop encodes story by story with tiktoken, appends the
end token and writes, in one thread or in one process per core. The time runs from the first byte read to the last byte
written and includes loading the tokenizer. The results go to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # late imports: each process loads what it uses

from benchmarks.results import RESULTS, hardware_line, write_section

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tiktoken

    from storyladder.corpus.prepare import CorpusText


_SAMPLE_STORIES = 3000  # per stage; 7 MB in total
_CHUNK = 1000  # stories per write in the plain loops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Which text to prepare, how many times over, and the output folder."""

    files: tuple[Path, ...]
    times: int
    folder: Path

    def text(self) -> CorpusText:
        """All stories, repeated `times` times."""
        from storyladder.corpus.prepare import text_of_files

        once = text_of_files(list(self.files))
        return dataclasses.replace(once, train=lambda: _repeated(once.train, self.times), bytes=None)


def _repeated(read: Callable[[], Iterable[str]], times: int) -> Iterator[str]:
    return itertools.chain.from_iterable(read() for _ in range(times))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One preparation: UTF-8 bytes of text, tokens, seconds, and peak memory of all its processes in bytes."""

    text_bytes: int
    tokens: int
    seconds: float
    cpu_seconds: float  # of all its processes; the least affected by other load on the machine
    peak_memory: int

    @property
    def mb_per_s(self) -> float:
        """MB of text per second."""
        return self.text_bytes / 1e6 / self.seconds

    @property
    def mb_per_cpu_s(self) -> float:
        """MB of text per second of CPU time."""
        return self.text_bytes / 1e6 / self.cpu_seconds


# ---- the contenders


def prepare_as_storyladder(job: Job) -> tuple[int, int]:
    """Run Storyladder's own preparation; returns bytes of text and tokens."""
    from storyladder.corpus.prepare import build_token_files
    from storyladder.corpus.tokenizer import gpt2_tokenizer
    from storyladder.settings import CorpusConfig

    built = build_token_files(
        job.text(),
        train_path=job.folder / "train.bin",
        val_path=job.folder / "val.bin",
        corpus=CorpusConfig(),
        tokenizer=gpt2_tokenizer(),
    )
    return sum(side.text_bytes for side in built.values()), sum(side.tokens for side in built.values())


def prepare_plainly(job: Job) -> tuple[int, int]:
    """Encode story by story in one thread."""
    return _write(job, map(_encoded, _chunks(job.text())))


def prepare_in_processes(job: Job) -> tuple[int, int]:
    """Run the same loop in one process per core."""
    with multiprocessing.Pool(os.cpu_count()) as pool:
        return _write(job, pool.imap(_encoded, _chunks(job.text())))


def _chunks(text: CorpusText) -> Iterator[list[str]]:
    for read in filter(None, (text.train, text.val)):
        stories = iter(read())
        while chunk := list(itertools.islice(stories, _CHUNK)):
            yield chunk


def _encoded(stories: list[str]) -> tuple[int, npt.NDArray[np.uint16]]:
    import numpy as np

    encoding = _tiktoken()
    ids: list[int] = []
    for story in stories:
        ids.extend(encoding.encode_ordinary(story))
        ids.append(encoding.eot_token)
    return sum(len(story.encode()) for story in stories), np.array(ids, dtype=np.uint16)


@functools.cache
def _tiktoken() -> tiktoken.Encoding:
    """tiktoken with the bundled ranks; get_encoding("gpt2") would download them."""
    from storyladder.corpus.tokenizer import gpt2_tokenizer

    return gpt2_tokenizer()._encoding


def _write(job: Job, encoded: Iterator[tuple[int, npt.NDArray[np.uint16]]]) -> tuple[int, int]:
    text_bytes = tokens = 0
    with (job.folder / "plain.bin").open("wb") as file:
        for n_bytes, ids in encoded:
            ids.tofile(file)
            text_bytes += n_bytes
            tokens += len(ids)
    return text_bytes, tokens


PREPARATIONS = {
    "storyladder": prepare_as_storyladder,
    "plain": prepare_plainly,
    "processes": prepare_in_processes,
}
NAMES = {
    "storyladder": "Storyladder",
    "plain": "plain loop, one thread",
    "processes": "plain loop, one process per core",
}


# ---- measuring


def measured(name: str, job: Job) -> Run:
    """Run one preparation in the calling process, which should be new."""
    start = time.perf_counter()
    text_bytes, tokens = PREPARATIONS[name](job)
    seconds = time.perf_counter() - start
    cpu_seconds = sum(os.times()[:4])  # user and system, of this process and finished children
    return Run(
        text_bytes=text_bytes, tokens=tokens, seconds=seconds, cpu_seconds=cpu_seconds, peak_memory=_peak_memory()
    )


def _peak_memory() -> int:
    """Peak bytes of this process plus that of its largest child once per core; 0 if the system reports none."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + children * (os.cpu_count() or 1)) * unit


def all_runs(job: Job, rounds: int) -> dict[str, list[Run]]:
    """Run all contenders in turns."""
    runs: dict[str, list[Run]] = {name: [] for name in PREPARATIONS}
    for number, name in itertools.product(range(rounds), PREPARATIONS):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            run = pool.submit(measured, name, job).result()
        runs[name].append(run)
        print(f"round {number + 1}, {NAMES[name]}: {run.mb_per_s:.1f} MB/s, {run.peak_memory / 1e6:.0f} MB", flush=True)
    return runs


def summary(runs: dict[str, list[Run]]) -> dict[str, float | int]:
    """The object that --json prints: medians, ratios of medians, highest peak memory, size of text, number of runs."""
    speed = {name: statistics.median(run.mb_per_s for run in mine) for name, mine in runs.items()}
    ours = runs["storyladder"]
    return {
        "mb_per_s": round(speed["storyladder"], 2),
        "peak_rss_gb": round(max(run.peak_memory for run in ours) / 1e9, 3),
        "ratio_plain": round(speed["storyladder"] / speed["plain"], 2),
        "ratio_processes": round(speed["storyladder"] / speed["processes"], 2),
        "mb_per_cpu_s": round(statistics.median(run.mb_per_cpu_s for run in ours), 2),
        "plain_mb_per_s": round(speed["plain"], 2),
        "processes_mb_per_s": round(speed["processes"], 2),
        "text_mb": round(ours[0].text_bytes / 1e6, 1),
        "tokens": ours[0].tokens,
        "plain_tokens": runs["plain"][0].tokens,
        "rounds": len(ours),
    }


def table(runs: dict[str, list[Run]]) -> list[str]:
    """The runs as a Markdown table: speed, Storyladder's ratio to it, highest peak memory."""
    lines = [
        "| preparation | MB/s | min to max | Storyladder is | MB per CPU second | peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ours = statistics.median(run.mb_per_s for run in runs["storyladder"])
    for name, mine in runs.items():
        speeds = [run.mb_per_s for run in mine]
        middle = statistics.median(speeds)
        ratio = "" if name == "storyladder" else f"{ours / middle:.2f}x as fast"
        peak = max(run.peak_memory for run in mine) / 1e6
        lines.append(
            f"| {NAMES[name]} | {middle:.1f} | {min(speeds):.1f} to {max(speeds):.1f} | {ratio} "
            f"| {statistics.median(run.mb_per_cpu_s for run in mine):.1f} | {peak:.0f} MB |"
        )
    return lines


def write_samples(folder: Path) -> Path:
    """Write the bundled stories of the three stages to one .txt file."""
    from storyladder.corpus.sample_stories import sample_stories

    path = folder / "samples.txt"
    with path.open("w", encoding="utf-8") as file:
        for stage in ("tiny", "children", "simple"):
            for story in sample_stories(stage, _SAMPLE_STORIES):
                file.write(f"{story}\n<|endoftext|>\n")
    return path


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    from storyladder.command_line import positive_number

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="stories; default the bundled samples")
    parser.add_argument("--mb", type=positive_number, default=100, metavar="N", help="minimum MB of text (100)")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=3, metavar="N", help="runs of each (3)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="where the section goes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write the section."""
    from storyladder.runtime.errors import DataError, user_errors

    with user_errors(), tempfile.TemporaryDirectory() as made:
        flags = arguments(argv)
        files = tuple(flags.text or [write_samples(Path(made))])
        for path in files:
            if not path.is_file():
                raise DataError(f"--text {path}: no such file; give files of stories")
        held = sum(len(path.read_bytes()) for path in files)  # reading warms the disk cache for the first run too
        job = Job(files=files, times=math.ceil(flags.mb * 1e6 / max(1, held)), folder=Path(made))
        runs = all_runs(job, flags.rounds)
        found = summary(runs)
        names = ", ".join(path.name for path in flags.text) if flags.text else "sample stories"
        lines = [
            f"{hardware_line()}.",
            "",
            f"`python benchmarks/preparation.py{f' --text {names}' if flags.text else ''} --mb {flags.mb:g}`: "
            f"{found['text_mb']:,.1f} MB of text ({names}, read {job.times} times), {found['tokens']:,} tokens, "
            f"median of {flags.rounds} {'run' if flags.rounds == 1 else 'runs'} each, taking turns"
            + ("." if flags.text else "; real text has more distinct words, so it is slower."),
            "",
            *table(runs),
        ]
        write_section(f"Preparation: {names}", lines, flags.results)
        print("", *lines, sep="\n")
        if flags.json:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
