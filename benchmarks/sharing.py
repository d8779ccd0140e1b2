"""How much slower training gets while another process keeps all cores busy, with spinning threads and with ours.

    python benchmarks/sharing.py              ten rounds, about 15 minutes; update RESULTS.md
    python benchmarks/sharing.py --json       with one JSON object as the last line
    python benchmarks/sharing.py --n 1        one quick round

Steps of the demo and of the default preset are timed alone and next to a process that keeps every core busy, once with
OpenMP's default waiting and one thread per core ("spinning"), once with Storyladder's settings. All take turns. A fair
share is half of the cores, so the best possible result is twice the time alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import hardware_line, write_section
from benchmarks.turns import Entry, Racer, Seat
from storyladder.command_line import Parser, load_ladder
from storyladder.runtime.cores import usable_cores, waiting_policy
from storyladder.runtime.errors import UserError, report, user_errors
from storyladder.settings import Ladder

PRESETS = ("demo", "default")
SPINNING, OURS = "spinning", "Storyladder"
ALONE, SHARED = "alone", "shared"
TARGETS = {"demo": 3.0, "default": 2.5}  # at most this many times as long as alone
_STEPS = {"demo": 40, "default": 1}  # per turn
_LONGEST_TURN = 20.0  # seconds after which a turn starts no further step: a spinning one can take a second
_TIMEOUT = 600.0  # seconds for an answer
_WARM_UP = 0.2  # seconds of load before a turn begins

Seconds = dict[tuple[str, str, str], list[float]]  # per step, by preset, kind of waiting, and ALONE or SHARED


@dataclasses.dataclass(frozen=True)
class Track:
    """What a contender's process needs to start."""

    ladder: Ladder  # its folders hold the text
    threads: int | None  # None: what Storyladder chooses
    steps: int


def build_stepper(track: Track) -> Racer:
    """Start Storyladder's step in the calling process."""
    import torch

    from benchmarks.racers import started_stage

    stage = dataclasses.replace(track.ladder.stages[0], threads=track.threads)
    ladder = dataclasses.replace(track.ladder, stages=(stage, *track.ladder.stages[1:]))
    started = started_stage(ladder, "cpu", compact=True)

    class Stepper:
        facts: dict[str, Any] = {"threads": torch.get_num_threads()}  # noqa: RUF012
        step = 0

        def turn(self, number: int) -> dict[str, Any]:
            """Mean seconds per step."""
            tick, first = time.perf_counter(), self.step
            while self.step < first + track.steps and time.perf_counter() - tick < _LONGEST_TURN:
                started.learner.steps(started.batches, self.step, 1)
                self.step += 1
            return {"seconds": (time.perf_counter() - tick) / (self.step - first)}

        def final_facts(self) -> dict[str, Any]:
            """Nothing."""
            return {}

    return Stepper()


def burn(n: int, ready: Connection) -> None:
    """Keep n cores busy until the benchmark exits; hashing large buffers releases the GIL."""
    parent = os.getppid()
    if hasattr(os, "setsid"):
        os.setsid()  # like a program in another terminal: Linux shares the cores among sessions

    def hash_forever(buffer: bytes) -> None:
        while True:
            hashlib.sha256(buffer)

    for _ in range(n):
        threading.Thread(target=hash_forever, args=(bytes(1 << 22),), daemon=True).start()
    ready.send(True)
    while os.getppid() == parent:
        time.sleep(0.2)


@contextlib.contextmanager
def busy_cores(n: int) -> Iterator[BaseProcess]:
    """Keep n cores busy with another process inside the `with`."""
    context = multiprocessing.get_context("spawn")
    ready, theirs = context.Pipe(duplex=False)
    burner = context.Process(target=burn, args=(n, theirs), daemon=True)
    burner.start()
    theirs.close()  # so that recv below fails if the process dies
    try:
        ready.recv()
        time.sleep(_WARM_UP)
        yield burner
    finally:
        burner.kill()
        burner.join()


def set_waiting(way: str, policy: dict[str, str]) -> None:
    """Set how OpenMP threads wait in processes started from now on: OpenMP's default, or Storyladder's policy."""
    for name in policy:
        os.environ.pop(name, None)
    if way == OURS:
        os.environ.update(policy)


def measure(
    presets: dict[str, Ladder], policy: dict[str, str], *, n: int
) -> tuple[Seconds, dict[tuple[str, str], int]]:
    """Seconds per step, n readings each; threads by preset and kind of waiting."""
    cores = usable_cores()
    seats: dict[tuple[str, str], Seat] = {}
    threads: dict[tuple[str, str], int] = {}
    seconds: Seconds = {}
    with contextlib.ExitStack() as stack:
        for preset, ladder in presets.items():
            for way in (SPINNING, OURS):
                track = Track(ladder, cores if way == SPINNING else None, _STEPS.get(preset, 1))
                set_waiting(way, policy)
                seats[preset, way] = Seat(Entry(f"{preset}, {way}", build_stepper, track))
                stack.callback(seats[preset, way].close)
        for key, seat in seats.items():
            threads[key] = seat.answer(_TIMEOUT)["threads"]
            _turn(seat, 0)  # the first step allocates and warms up
        for number in range(n):
            for where in (ALONE, SHARED):
                # Alternate the order, since speed drifts within a round.
                order = list(seats) if number % 2 == 0 else list(reversed(seats))
                with busy_cores(cores) if where == SHARED else contextlib.nullcontext():
                    for key in order:
                        taken = _turn(seats[key], number + 1)
                        seconds.setdefault((*key, where), []).append(taken)
                        report(f"{number + 1} of {n}: {key[0]}, {key[1]}, {where}: {taken:.3g} s/step")
    return seconds, threads


def _turn(seat: Seat, number: int) -> float:
    seat.ask(number)
    return float(seat.answer(_TIMEOUT)["seconds"])


def times_as_long(seconds: Seconds, preset: str, way: str) -> float:
    """Median next to the busy process, over median alone."""
    return statistics.median(seconds[preset, way, SHARED]) / statistics.median(seconds[preset, way, ALONE])


def table(seconds: Seconds, threads: dict[tuple[str, str], int], presets: dict[str, Ladder]) -> list[str]:
    """A Markdown table with one row per preset and kind of waiting."""
    lines = [
        "| preset | waiting | threads | s/step alone (min to max) | tokens/s | with a busy process | tokens/s "
        "| times as long |",
        "| --- | --- | ---: | --- | ---: | --- | ---: | ---: |",
    ]
    for (preset, way), count in threads.items():
        cells = []
        for where in (ALONE, SHARED):
            taken = seconds[preset, way, where]
            middle = statistics.median(taken)
            tokens = presets[preset].tokens_per_step(presets[preset].stages[0])
            cells += [f"{middle:.3g} ({min(taken):.3g} to {max(taken):.3g})", f"{tokens / middle:,.0f}"]
        ratio = times_as_long(seconds, preset, way)
        lines.append(f"| {preset} | {way} | {count} | {' | '.join(cells)} | {ratio:.2f} |")
    return lines


def json_line(seconds: Seconds) -> dict[str, Any]:
    """The object that --json prints: ratios to alone, targets, and the cost of our waiting on an idle machine."""
    presets = list(dict.fromkeys(key[0] for key in seconds))
    quiet = {
        preset: statistics.median(seconds[preset, OURS, ALONE]) / statistics.median(seconds[preset, SPINNING, ALONE])
        for preset in presets
    }
    return {
        "times_as_long": {
            way: {preset: round(times_as_long(seconds, preset, way), 3) for preset in presets}
            for way in (SPINNING, OURS)
        },
        "at_most": {preset: TARGETS[preset] for preset in presets},
        "alone_over_spinning": {preset: round(ratio, 3) for preset, ratio in quiet.items()},
        "n": min(len(taken) for taken in seconds.values()),
        "versions": hardware_line(),
    }


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("--n", type=int, default=10, metavar="N", help="rounds (10)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    parser.add_argument("--no-results", action="store_true", help="do not update benchmarks/RESULTS.md")
    flags = parser.parse(argv)
    if flags.n < 1:
        parser.error(f"--n is {flags.n}; expected 1 or more")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Measure, print and record."""
    with user_errors():
        policy = waiting_policy()
        if not policy:
            raise UserError("OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME is set; unset it to run this comparison")
        flags = arguments(argv)
        from benchmarks.workload import SAMPLE_TYPES, moved_to, put_synthetic_text, put_text

        with tempfile.TemporaryDirectory(prefix="storyladder-") as folder:
            presets = {name: moved_to(load_ladder(flags.config, name), Path(folder) / name) for name in PRESETS}
            text = put_synthetic_text(presets["demo"], SAMPLE_TYPES), put_text(presets["default"], None)
            seconds, threads = measure(presets, policy, n=flags.n)
        typed = " ".join(sys.argv[1:] if argv is None else argv)
        head = [hardware_line() + ".", "", f"    python benchmarks/sharing.py {typed}".rstrip(), ""]
        about = f"demo: {text[0]}; default: {text[1]}. n = {flags.n}; the other process uses {usable_cores()} cores."
        lines = [*head, about, "", *table(seconds, threads, presets)]
        print("\n".join(lines))
        if not flags.no_results:
            write_section("Sharing the machine", lines)
        if flags.json:
            print(json.dumps(json_line(seconds)))


if __name__ == "__main__":
    main()
