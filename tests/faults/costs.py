"""What safety costs: seconds of a save of the default model against its interval, and of verified data at the start."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from storyladder.corpus.token_file import TokenWriter, open_token_file
from storyladder.runtime.checkpoint import Payload, save_checkpoint
from storyladder.settings import ModelConfig, StageConfig

_TOKENS = 20_000_000
_SAVES = 3
_GPU_STEP_SECONDS = 0.02


def _payload(model: ModelConfig) -> Payload:
    """As large as a resume state of the default model: weights and two moments, 334 MB."""
    part = {f"w{i}": torch.randn(model.n_params // 50) for i in range(50)}
    return {"step": 1, "model": part, "optimizer": {"exp_avg": part, "exp_avg_sq": {**part}}}


def lines() -> list[str]:
    """Sentences for RESULTS.md."""
    model, stage = ModelConfig(), StageConfig(name="tiny", train_file="a", val_file="b", result_file="c")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        payload, seconds = _payload(model), []
        for _ in range(_SAVES):
            tick = time.perf_counter()
            save_checkpoint(folder / "tiny_resume.pt", payload, keep_previous=True)
            seconds.append(time.perf_counter() - tick)
        save, size = sorted(seconds)[_SAVES // 2], (folder / "tiny_resume.pt").stat().st_size
        first, cached = _verification(folder)
    shares = {
        "every 10 minutes (a slow machine)": save / (60 * stage.save_minutes),
        f"every {stage.save_interval:,} steps of {_GPU_STEP_SECONDS} s (a GPU)": save
        / (stage.save_interval * _GPU_STEP_SECONDS),
    }
    return [
        f"- a resume state of the default model ({size / 1e6:,.0f} MB) is written, synced, read back and verified in "
        f"{save:.2f} s (median of {_SAVES}, one thread): "
        + ", ".join(f"{100 * share:.2f} % of the time {words}" for words, share in shares.items()),
        f"- a token file of {_TOKENS:,} tokens is verified in {first:.2f} s at first, in {1000 * cached:.1f} ms when "
        "its verdict is remembered (by size and time, whatever the size)",
    ]


def _verification(folder: Path) -> tuple[float, float]:
    """Seconds to open a token file for the first time and again."""
    path = folder / "train.bin"
    ids = np.random.default_rng(0).integers(0, 50257, _TOKENS).astype(np.uint16)
    with TokenWriter(path, "t") as writer:
        writer.add(ids, stories=1, text_bytes=1)
        writer.finish(sources=[], cleaning={})
    seconds = []
    for _ in range(2):
        tick = time.perf_counter()
        open_token_file(path, tokenizer="t", vocab_size=50257)
        seconds.append(time.perf_counter() - tick)
    return seconds[0], seconds[1]
