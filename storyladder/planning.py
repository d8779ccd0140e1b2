"""Before a stage starts: how much memory, time and disk it will need, and the micro-batch that fits."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch

from storyladder.runtime.machine import GB, free_memory
from storyladder.runtime.progress import duration_words
from storyladder.settings import ModelConfig, StageConfig

_BYTES_PER_PARAMETER = 16  # float32 weight, gradient and AdamW's two moments
_FLOATS_PER_TOKEN_AND_LAYER = (
    20  # of width C, kept for the way back: norms, q k v, attention, four-wide MLP twice, masks
)
_BASE_BYTES = 400e6  # Python, torch, the mapped token files
_SHARE = 0.6  # of the free memory that a step may plan with; the rest is for the system and for surprises


def predicted_memory(model: ModelConfig, *, n_rows: int, micro_batch_size: int) -> float:
    """Bytes that training will take, to about a quarter: weights, gradients, optimizer, activations and scores."""
    parameters = model.n_params - (model.vocab_size - n_rows) * model.n_embd
    tokens = micro_batch_size * model.context_length
    activations = 4 * tokens * model.n_embd * (_FLOATS_PER_TOKEN_AND_LAYER * model.n_layer + 8)
    head = 4 * min(tokens * n_rows, 1 << 24) + 3 * 4 * n_rows * model.n_embd
    return _BASE_BYTES + _BYTES_PER_PARAMETER * parameters + activations + head


def fitting_micro_batch(model: ModelConfig, stage: StageConfig, device: torch.device, *, n_rows: int) -> int:
    """Sequences per forward: what config.py says, else the largest divisor of the batch that fits into memory."""
    if stage.micro_batch_size is not None:
        return stage.micro_batch_size
    free = free_memory(device)
    divisors = [size for size in range(stage.batch_size, 0, -1) if stage.batch_size % size == 0]
    if device.type == "cpu":  # small pieces stay in the cache: 8 x 256 tokens are as fast as 32 x 256 (LOG.md)
        divisors = [size for size in divisors if size * model.context_length <= 2048] or [1]
    for size in divisors:
        if free is None or predicted_memory(model, n_rows=n_rows, micro_batch_size=size) <= _SHARE * free:
            return size
    return 1


def disk_needed(model: ModelConfig) -> int:
    """Bytes a stage takes at most: two resume states and one being written, best weights and result likewise."""
    return 4 * model.n_params * (3 * 3 + 3)


def plan_lines(
    model: ModelConfig,
    stage: StageConfig,
    *,
    machine: str,
    start: str,
    step: int,
    n_rows: int,
    micro_batch_size: int,
    step_seconds: float,
    evaluation_seconds: float,
    device: torch.device,
    folder: Path,
) -> list[str]:
    """What --plan prints."""
    steps = stage.max_steps - step
    evaluations = -(-steps // stage.eval_interval) + 1
    seconds = steps * step_seconds + evaluations * evaluation_seconds
    memory = predicted_memory(model, n_rows=n_rows, micro_batch_size=micro_batch_size)
    free = free_memory(device)
    while not folder.exists():
        folder = folder.parent
    tokens = stage.batch_size * model.context_length
    compact = f", {n_rows:,} of {model.vocab_size:,} vocabulary rows in use" if n_rows < model.vocab_size else ""
    return [
        machine,
        f"start       {start}",
        f"model       {model.n_params:,} parameters{compact}",
        f"step        {tokens:,} tokens in micro-batches of {micro_batch_size} x {model.context_length}: "
        f"{step_seconds:.3g} s, {tokens / step_seconds:,.0f} tokens/s",
        f"evaluation  {duration_words(evaluation_seconds)}, {evaluations} times",
        f"stage       {steps:,} steps: {duration_words(seconds)}, until {_clock(seconds)}"
        + (f" at the latest (patience {stage.patience})" if stage.patience else ""),
        f"memory      about {memory / GB:.1f} GB" + (f" of {free / GB:.1f} GB free" if free is not None else ""),
        f"disk        up to {disk_needed(model) / GB:.1f} GB of {shutil.disk_usage(folder).free / GB:.1f} GB free",
    ]


def _clock(seconds: float) -> str:
    return time.strftime("%a %d %b %H:%M", time.localtime(time.time() + seconds))
