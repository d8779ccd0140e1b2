"""Start-up time: --help of every script, train_tiny.py to its first step, generate.py to its first token.

    python benchmarks/startup.py              five runs each; update RESULTS.md
    python benchmarks/startup.py --json       with one JSON object as the last line

The scripts run as a user runs them, in new processes, in turns with peers: the plain loop on transformers' GPT-2 to the
first step, and transformers' generate to the first token. Before its first step, train_tiny.py checks the text, saves,
and evaluates one window. Compiler caches are empty.
"""

from __future__ import annotations

import argparse
import json
import os
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
from storyladder.runtime.errors import UserError, user_errors
from storyladder.settings import PROJECT, Ladder

SCRIPTS = ("prepare_data.py", "train_tiny.py", "train_children.py", "train_simp.py", "generate.py")
_PROMPT = "Once upon a time"
_POLL = 0.01  # seconds
_LONGEST = 600.0  # seconds before giving up
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
FIRST_STEP, PEER_STEP = "train_tiny.py, first step", "plain loop, first step"
FIRST_TOKEN, PEER_TOKEN = "generate.py, first token", "transformers generate, first token"


def help_seconds(script: str) -> float:
    """Seconds that `python script --help` takes."""
    tick = time.perf_counter()
    done = subprocess.run([sys.executable, str(PROJECT / script), "--help"], capture_output=True, check=False)
    seconds = time.perf_counter() - tick
    if done.returncode:
        raise UserError(f"{script} --help exited with status {done.returncode}: {done.stderr.decode()[-300:]}")
    return seconds


def first_step_seconds(config: Path, preset: str, record: Path, device: str) -> float:
    """Seconds from the start of train_tiny.py to the record of its first update; then the script is killed."""
    record.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="storyladder-") as cache:
        command = ["train_tiny.py", "--fresh", "--config", config, "--preset", preset, "--device", device]
        tick = time.perf_counter()
        with _Started(command, {name: cache for name in _CACHES}) as process:
            while not (record.exists() and '"train"' in record.read_text(encoding="utf-8")):
                _must_run(process, tick, "train_tiny.py took no step")
                time.sleep(_POLL)
            return time.perf_counter() - tick


def first_token_seconds(config: Path, preset: str, checkpoint: Path, device: str) -> float:
    """Seconds from the start of generate.py to the first byte after the prompt; then the script is killed."""
    flags = ["--config", config, "--preset", preset, "--checkpoint", checkpoint, "--device", device]
    command = ["generate.py", "--prompt", _PROMPT, *flags]
    tick = time.perf_counter()
    with _Started(command, {}) as process:
        assert process.stdout is not None
        text = b""
        while len(text) <= len(_PROMPT):
            got = os.read(process.stdout.fileno(), 1 << 16)
            text += got
            if not got:
                process.wait()
                _must_run(process, tick, "generate.py printed nothing")
        return time.perf_counter() - tick


def peer_seconds(what: str, config: Path, preset: str, device: str) -> float:
    """Seconds from the start of Python to the end of the peer's first step or token, with the preset's model."""
    code = (
        f"import sys; sys.path[:0] = [{str(PROJECT)!r}]; from benchmarks.startup import {what}; {what}(*sys.argv[1:])"
    )
    tick = time.perf_counter()
    command = [sys.executable, "-c", code, str(config), preset, device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - tick
    if done.returncode:
        raise UserError(f"the peer exited with status {done.returncode}: {done.stderr[-300:]}")
    return seconds


def peer_first_step(config: str, preset: str, device: str) -> None:
    """Take the plain loop's first update, on random ids."""
    import numpy as np

    from benchmarks.peers import PlainLoop
    from storyladder.corpus.token_file import TrainBatches
    from storyladder.runtime.machine import pick_device

    ladder = load_ladder(Path(config), preset)
    stage, model = ladder.stages[0], ladder.model
    length = stage.batch_size * model.context_length + 1
    ids = np.random.default_rng(0).integers(0, model.vocab_size, length).astype(np.uint16)
    batches = TrainBatches(ids, context_length=model.context_length, batch_size=stage.batch_size, seed=0)
    PlainLoop(model, stage, batches, device=pick_device(device), bf16=False).step(0).item()


def peer_first_token(config: str, preset: str, device: str) -> None:
    """Generate the first token with transformers."""
    import torch

    from benchmarks.peers import gpt2_of
    from storyladder.corpus.tokenizer import gpt2_tokenizer
    from storyladder.runtime.machine import pick_device

    gpt2 = gpt2_of(load_ladder(Path(config), preset).model).to(pick_device(device)).eval()
    idx_BT = torch.tensor([gpt2_tokenizer().encode(_PROMPT)], device=gpt2.device)
    gpt2.generate(idx_BT, attention_mask=torch.ones_like(idx_BT), max_new_tokens=1, do_sample=True, pad_token_id=0)


class _Started:
    """Run one of our scripts inside the `with`, then kill it: its folder is temporary."""

    def __init__(self, command: list[Any], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROJECT / command[0]), *map(str, command[1:])],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _must_run(process: subprocess.Popen[bytes], began: float, failure: str) -> None:
    if process.poll() is not None:
        raise UserError(f"{failure}: it exited with status {process.returncode}; run it by hand to see why")
    if time.perf_counter() - began > _LONGEST:
        raise UserError(f"{failure} within {_LONGEST:.0f} s")


def prepared(ladder: Ladder, source: Path, folder: Path) -> tuple[Path, Path, Path]:
    """Write what the scripts need under `folder`; returns a config file, the record and a checkpoint."""
    from benchmarks.workload import moved_to, put_random_weights, put_text

    moved = moved_to(ladder, folder)
    put_text(moved, None)
    checkpoint = folder / "random.pt"
    put_random_weights(moved, checkpoint)
    config = folder / "config_of_benchmark.py"
    quick = (
        f"PATHS = Paths(root={str(folder)!r})",
        "quick = lambda stage: replace(stage, log_interval=1, val_windows=1)",
        "quicker = lambda ladder: replace(ladder, paths=PATHS, stages=tuple(map(quick, ladder.stages)))",
        "PRESETS = tuple(map(quicker, PRESETS))",
    )
    config.write_text("\n".join([source.read_text(encoding="utf-8"), *quick, ""]), encoding="utf-8")
    return config, moved.folder("runs") / f"{moved.stages[0].name}.jsonl", checkpoint


def measure(ladder: Ladder, source: Path, *, n: int, device: str, peers: bool = True) -> dict[str, list[float]]:
    """Time everything `n` times in turns. `source` is the config file that the ladder comes from."""
    with tempfile.TemporaryDirectory(prefix="storyladder-") as folder:
        config, record, checkpoint = prepared(ladder, source, Path(folder))
        todo: dict[str, Callable[[], float]] = {
            f"{script} --help": lambda script=script: help_seconds(script)  # type: ignore[misc]
            for script in SCRIPTS
        }
        todo[FIRST_STEP] = lambda: first_step_seconds(config, ladder.name, record, device)
        todo[FIRST_TOKEN] = lambda: first_token_seconds(config, ladder.name, checkpoint, device)
        if peers:
            todo[PEER_STEP] = lambda: peer_seconds("peer_first_step", config, ladder.name, device)
            todo[PEER_TOKEN] = lambda: peer_seconds("peer_first_token", config, ladder.name, device)
        seconds: dict[str, list[float]] = {name: [] for name in todo}
        for _ in range(n):
            for name, take in todo.items():
                seconds[name].append(take())
        return seconds


def table(seconds: dict[str, list[float]]) -> list[str]:
    """The measurements as a Markdown table."""
    lines = ["| what | seconds, median (min to max) | n |", "| --- | --- | --- |"]
    for name, values in seconds.items():
        spread = f"{min(values):.3g} to {max(values):.3g}"
        lines.append(f"| {name} | {statistics.median(values):.3g} ({spread}) | {len(values)} |")
    return lines


def json_line(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The object that --json prints."""
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    return {
        "help_s": max(value for name, value in medians.items() if name.endswith("--help")),
        "first_step_s": medians[FIRST_STEP],
        "first_token_s": medians[FIRST_TOKEN],
        "peer_first_step_s": medians.get(PEER_STEP),
        "peer_first_token_s": medians.get(PEER_TOKEN),
        "n": min(len(values) for values in seconds.values()),
        "versions": hardware_line(),
    }


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto (the default), cuda, cuda:1, mps or cpu")
    parser.add_argument("--n", type=int, default=5, metavar="N", help="runs of each (5)")
    parser.add_argument("--json", action="store_true", help="end with one JSON object on one line")
    parser.add_argument("--no-results", action="store_true", help="do not update benchmarks/RESULTS.md")
    flags = parser.parse(argv)
    if flags.n < 1:
        parser.error(f"--n is {flags.n}; expected 1 or more")
    return flags


def main(argv: list[str] | None = None) -> None:
    """Measure, print and record."""
    with user_errors():
        flags = arguments(argv)
        ladder = load_ladder(flags.config, flags.preset)
        seconds = measure(ladder, flags.config or PROJECT / "config.py", n=flags.n, device=flags.device)
        typed = " ".join(sys.argv[1:] if argv is None else argv)
        lines = [hardware_line() + ".", "", f"    python benchmarks/startup.py {typed}".rstrip(), "", *table(seconds)]
        print("\n".join(lines))
        if not flags.no_results:
            write_section("Start-up", lines)
        if flags.json:
            print(json.dumps(json_line(seconds)))


if __name__ == "__main__":
    main()
