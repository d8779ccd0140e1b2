"""What safety costs: saving the default model against the time between two saves, and verified data at the start.

python tests/faults/costs.py          prints it
python tests/faults/costs.py --fast   with a small model and few tokens, to see that it works
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project

from model import GPT
from storyladder.command_line import StageRun
from storyladder.corpus.token_file import TokenWriter, open_token_file
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.runtime.distributed import ALONE
from storyladder.runtime.signals import StopRequest
from storyladder.settings import Ladder, ModelConfig, Paths, StageConfig
from storyladder.stage.setup import load_start, set_up

_TRAIN_TOKENS = 250_000_000  # half of TinyStories
_VAL_TOKENS = 200_000
_TIMES = 3


def lines(*, fast: bool = False) -> list[str]:
    """Sentences for RESULTS.md."""
    n_tokens = _TRAIN_TOKENS // 1000 if fast else _TRAIN_TOKENS
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        ladder = _ladder(Path(name), fast=fast)
        _write_tokens(ladder.folder("data") / "train.bin", n_tokens)
        _write_tokens(ladder.folder("data") / "val.bin", _VAL_TOKENS)
        first, cached = (_median(lambda: _open(ladder), times) for times in (1, _TIMES))
        run = StageRun(ladder=ladder, stage=ladder.stages[0], device="cpu")
        stage, start = set_up(run, GPT, StopRequest(), ALONE)
        load_start(stage.learner, start)
        stage.learner.steps(stage.batches, 0, 1)  # allocates and warms up
        step = _median(lambda: stage.learner.steps(stage.batches, 0, 1), 2)
        state = _median(lambda: stage.checkpoints.save(stage.learner, stage.state), _TIMES)
        best = _median(lambda: stage.checkpoints.keep_best(stage.learner, stage.state), _TIMES)
        files = stage.checkpoints.files
        sizes = [path.stat().st_size / 1e6 for path in (files.resume, files.best)]
    return [
        *_saving(stage.learner.stage, step, state, best, sizes),
        f"- a token file of {n_tokens:,} tokens is verified in {first:.2f} s at first and in "
        f"{1000 * cached:.1f} ms when its verdict is remembered",
    ]


def _saving(stage: StageConfig, step: float, state: float, best: float, sizes: list[float]) -> list[str]:
    """What saves cost in this run, and how short a step may become before they cost 2 %."""
    seconds_between = min(stage.save_interval * step, 60 * stage.save_minutes)
    share = state / seconds_between + best / (stage.eval_interval * step)
    shortest = (state / stage.save_interval + best / stage.eval_interval) / 0.02
    return [
        f"- default model and settings: a step takes {step:.2f} s; a resume state of {sizes[0]:,.0f} MB is packed, "
        f"written, synced, read back and verified in {state:.2f} s (every {stage.save_interval:,} steps or "
        f"{stage.save_minutes:g} minutes), best weights of {sizes[1]:,.0f} MB in {best:.2f} s (at most every "
        f"{stage.eval_interval:,} steps); medians of {_TIMES}",
        f"- saving takes {100 * share:.2f} % of the time of such a run; were only the steps faster, it would take 2 % "
        f"with steps of {1000 * shortest:.0f} ms",
    ]


def _ladder(root: Path, *, fast: bool) -> Ladder:
    """One stage with the default model and settings, or with small ones."""
    stage = StageConfig(name="tiny", corpus="tiny", script="train_tiny.py", result_file="result.pt")
    model = ModelConfig()
    if fast:
        stage = dataclasses.replace(stage, batch_size=1)
        model = ModelConfig(n_layer=1, n_head=2, n_embd=16)
    return Ladder(model=model, stages=(stage,), paths=Paths(root=str(root)))


def _write_tokens(path: Path, n_tokens: int) -> None:
    """Random ids of the whole vocabulary."""
    ids = np.random.default_rng(0).integers(0, 50257, 1_000_000).astype(np.uint16)
    with TokenWriter(path, gpt2_tokenizer().fingerprint) as writer:
        for start in range(0, n_tokens, len(ids)):
            writer.add(ids[: n_tokens - start], stories=1, text_bytes=1)
        writer.finish(sources=[], cleaning={})


def _open(ladder: Ladder) -> None:
    path = ladder.folder("data") / "train.bin"
    open_token_file(path, tokenizer=gpt2_tokenizer().fingerprint, vocab_size=ladder.model.vocab_size)


def _median(action: Callable[[], object], times: int) -> float:
    """Seconds that an action takes."""
    seconds = []
    for _ in range(times):
        tick = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - tick)
    return statistics.median(seconds)


if __name__ == "__main__":
    print("\n".join(lines(fast="--fast" in sys.argv[1:])))
