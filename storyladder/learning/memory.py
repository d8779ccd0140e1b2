"""Memory and cores for a training step: the micro-batch that fits, and the number of threads that is fastest."""

from __future__ import annotations

import math

import torch

from storyladder.learning.loss import scores_at_once
from storyladder.settings import ModelConfig, StageConfig

_BYTES_PER_PARAMETER = 16  # float32 weight, gradient and AdamW's two moments
_FLOATS_PER_TOKEN_AND_LAYER = 24  # of width C, kept for backward: norms, q k v, attention, MLP, masks
_BASE_BYTES = 400e6  # Python, torch, the mapped token files
_SHARE = 0.6  # of the free memory that a step may use; the rest is for the system and for error in the prediction
_CPU_TOKENS = 2048  # per forward on a CPU: small pieces stay in the cache and are as fast as large ones (LOG.md)
# The cost of synchronizing one more thread, as FLOP of a micro-batch, forward and backward. With two threads instead
# of one, a micro-batch of 75 MFLOP took the same time, 260 MFLOP 13 % less, 3,300 MFLOP 32 % and 6,600 MFLOP 44 % less
# (2-core Xeon with AVX-512, fp32, threads that spin). More than two threads were not measured.
_FLOP_OF_A_WAIT = 60e6


def predicted_memory(model: ModelConfig, *, n_rows: int, micro_batch_size: int, device_type: str) -> float:
    """Bytes that training will take, within about 25 %: weights, gradients, optimizer, activations and scores."""
    parameters = model.n_params - (model.vocab_size - n_rows) * model.n_embd
    tokens = micro_batch_size * model.context_length
    activations = 4 * tokens * model.n_embd * (_FLOATS_PER_TOKEN_AND_LAYER * model.n_layer + 8)
    head = 6 * min(tokens * n_rows, scores_at_once(device_type)) + 2 * 4 * n_rows * model.n_embd
    return _BASE_BYTES + _BYTES_PER_PARAMETER * parameters + activations + head


def fitting_micro_batch(
    model: ModelConfig, stage: StageConfig, device: torch.device, *, n_rows: int, free_bytes: int | None
) -> int:
    """Sequences per forward: the size in config.py, else the largest divisor of the batch that fits in `free_bytes`."""
    if stage.micro_batch_size is not None:
        return stage.micro_batch_size
    divisors = [size for size in range(stage.batch_size, 0, -1) if stage.batch_size % size == 0]
    if device.type == "cpu":
        divisors = [size for size in divisors if size * model.context_length <= _CPU_TOKENS] or [1]
    for size in divisors:
        predicted = predicted_memory(model, n_rows=n_rows, micro_batch_size=size, device_type=device.type)
        if free_bytes is None or predicted <= _SHARE * free_bytes:
            return size
    return 1


def useful_threads(model: ModelConfig, *, n_rows: int, micro_batch_size: int, cores: int) -> int:
    """The fastest number of threads for a step on a CPU, at most `cores`: in small models they mostly wait.

    n threads share the work W, and each adds synchronization cost c: W / n + c n is smallest at n = sqrt(W / c).
    """
    parameters = model.n_params - (model.vocab_size - n_rows) * model.n_embd
    flop = 6 * parameters * micro_batch_size * model.context_length
    return max(1, min(cores, int(math.sqrt(flop / _FLOP_OF_A_WAIT))))
