"""Two processes on one CPU against one process on the same cores, and the cost of exchanging gradients.

    python benchmarks/group.py               print a table, update RESULTS.md; about six minutes
    python benchmarks/group.py --json        the same, with one JSON object as the last line

Both take turns, in new processes each time. The group also times every step without an exchange, and one all-reduce of
all gradients after backward, which is how it worked before DistributedDataParallel.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results import hardware_line, write_section
from storyladder.command_line import Parser, load_ladder
from storyladder.runtime.errors import user_errors
from storyladder.settings import PROJECT, Ladder

_WARMUPS = 2
_TIMEOUT = 1200  # seconds for one turn


def worker(ladder: Ladder, steps: int) -> None:
    """One process of a turn: time steps of the first stage, made as its script makes them; rank 0 prints JSON."""
    import torch

    from model import GPT
    from storyladder.command_line import StageRun
    from storyladder.learning.schedule import lr_at
    from storyladder.runtime.distributed import ALONE, joined_group
    from storyladder.runtime.signals import stop_on_signals
    from storyladder.stage.setup import load_start, set_up

    with stop_on_signals() as stop, joined_group(stop) as group:
        run = StageRun(ladder=ladder, stage=ladder.stages[0], device="cpu", fresh=True)
        stage, start = set_up(run, GPT, stop, group)
        load_start(stage.learner, start)
        learner = stage.learner

        def all_reduce_after_backward() -> None:
            gradients = [p.grad for p in learner.model.parameters() if p.grad is not None]
            buffer = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(buffer)
            parts = torch.split(buffer, [gradient.numel() for gradient in gradients])
            torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

        def without_exchange() -> None:
            parallel = learner.parallel
            batch = learner.read(stage.batches, 0)
            learner.parallel, learner.group = None, ALONE
            learner.step(batch, 0, lr_at(0, learner.stage))
            learner.parallel, learner.group = parallel, group

        actions: dict[str, Callable[[], object]] = {"step": lambda: learner.steps(stage.batches, 0, 1)}
        if not group.is_alone:
            actions |= {"without exchange": without_exchange, "all-reduce after backward": all_reduce_after_backward}
        seconds: dict[str, list[float]] = {name: [] for name in actions}
        for turn in range(_WARMUPS + steps):
            for name, action in actions.items():
                group.highest([0])  # barrier: all ranks start together
                tick = time.perf_counter()
                action()
                if turn >= _WARMUPS:
                    seconds[name].append(time.perf_counter() - tick)
        print(json.dumps({"seconds": seconds, "processes": group.world_size, "threads": torch.get_num_threads()}))


def turn(processes: int, steps: int, config: list[str]) -> dict[str, Any]:
    """Run one turn in new processes that share all cores of the machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    called = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    called = called if processes > 1 else [sys.executable]
    threads = max(1, len(_cores()) // processes)
    done = subprocess.run(
        [*called, __file__, *config, "--steps", str(steps), "--worker"],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _cores() -> list[int]:
    return list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def summary(alone: list[dict[str, Any]], group: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all turns, and the share of a step that each form of exchange takes."""

    def seconds(turns: list[dict[str, Any]], name: str) -> list[float]:
        return [value for each in turns for value in each["seconds"][name]]

    def median(turns: list[dict[str, Any]], name: str) -> float:
        return statistics.median(seconds(turns, name))

    bare, summed = median(group, "without exchange"), median(group, "all-reduce after backward")
    return {
        "alone_s": median(alone, "step"),
        "group_s": median(group, "step"),
        "without_exchange_s": bare,
        "ratio": median(alone, "step") / median(group, "step"),
        "ddp_share": max(0.0, 1 - bare / median(group, "step")),
        "sum_share": summed / (bare + summed),
        "processes": group[0]["processes"],
        "threads": group[0]["threads"],
        "n": len(seconds(group, "step")),
        "spread": {"alone": _spread(seconds(alone, "step")), "group": _spread(seconds(group, "step"))},
    }


def _spread(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


def table(found: dict[str, Any]) -> list[str]:
    """The summary as a Markdown table."""
    return [
        "| processes | s/step (min to max) | exchange, share of a step |",
        "| --- | --- | --- |",
        f"| one process, all cores | {found['alone_s']:.3g} ({found['spread']['alone']}) | |",
        f"| {found['processes']} processes x {found['threads']} threads, DistributedDataParallel | "
        f"{found['group_s']:.3g} ({found['spread']['group']}) | {found['ddp_share']:.1%} |",
        f"| ... one all-reduce after backward instead | | {found['sum_share']:.1%} |",
        "",
        f"n = {found['n']} steps. The group is {found['ratio']:.2f} times as fast as one process.",
    ]


def main(argv: list[str] | None = None) -> None:
    """Measure, print and record."""
    with user_errors():
        parser = Parser(__doc__)
        parser.add_argument("--turns", type=int, default=3, metavar="N", help="turns of both (3)")
        parser.add_argument("--steps", type=int, default=4, metavar="N", help="timed steps per turn (4)")
        parser.add_argument("--processes", type=int, default=2, metavar="N", help="size of the group (2)")
        parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
        parser.add_argument("--no-results", action="store_true", help="do not update benchmarks/RESULTS.md")
        parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
        flags = parser.parse(argv)
        ladder = load_ladder(flags.config, flags.preset)
        from benchmarks.workload import moved_to, put_text

        with tempfile.TemporaryDirectory(prefix="storyladder-") as folder:
            moved = moved_to(ladder, Path(folder))
            text = put_text(moved, None)
            if flags.worker:
                worker(moved, flags.steps)
                return
        config = ["--preset", flags.preset, *(["--config", str(flags.config.resolve())] if flags.config else [])]
        turns: dict[int, list[dict[str, Any]]] = {1: [], flags.processes: []}
        for _ in range(flags.turns):
            for processes, found in turns.items():
                found.append(turn(processes, flags.steps, config))
        result = summary(turns[1], turns[flags.processes])
        shape = (
            f"Preset {ladder.name}: {ladder.model.n_params:,} parameters, batch {ladder.stages[0].batch_size}. {text}."
        )
        lines = [hardware_line() + ".", "", "    python benchmarks/group.py", "", shape, "", *table(result)]
        print("\n".join(lines))
        if not flags.no_results:
            write_section("Two processes on one CPU", lines)
        if flags.json:
            print(json.dumps(result))


if __name__ == "__main__":
    main()
