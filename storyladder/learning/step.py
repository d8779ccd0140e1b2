"""One optimizer step: gradients of a whole batch, micro-batch by micro-batch, then clipping and the optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from storyladder.learning.data_parallel import DataParallel
from storyladder.learning.loss import Entropy, entropy_, next_token_loss
from storyladder.learning.network import EMBEDDING, LanguageModel
from storyladder.learning.optimizer import clip_gradients, make_moments, set_rate
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.runtime.distributed import ALONE, Group
from storyladder.runtime.machine import Precision
from storyladder.settings import StageConfig


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one step was like. One that is not `applied` met a loss or gradient that was not finite: nothing moved."""

    train_loss: float  # nats per token, before the update
    grad_norm: float  # before clipping
    applied: bool


def train_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    *,
    stage: StageConfig,
    step: int,
    lr: float,
    micro_batch_size: int,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    vocabulary: CompactVocabulary,
    group: Group = ALONE,
    parallel: DataParallel | None = None,
) -> StepResult:
    """One update from one batch of inputs and targets, both (batch_size, T).

    In a group of processes every one brings its share of the batch, (batch_size / processes, T), and all make the same
    update; `parallel` is the model in torch's engine, which averages the gradients.
    """
    set_rate(optimizer, lr)
    part = functools.partial(
        accumulate_gradients,
        model,
        batch,
        micro_batch_size=micro_batch_size,
        seed=(stage.seed, step),
        first_sequence=group.rank * len(batch[0]),
        precision=precision,
        scaler=scaler,
        vocabulary=vocabulary,
    )
    if parallel is not None and parallel.rehearsed != micro_batch_size:
        # After an agreement nobody may run out of memory: the others would wait for its gradients, or make the update.
        group.together(part)
        group.together(lambda: make_moments(optimizer))
        parallel.rehearsed = micro_batch_size
    optimizer.zero_grad(set_to_none=False)
    own_loss = part(parallel=parallel, agree=group.together)
    loss = group.sum(own_loss.item()) / group.world_size
    scaler.unscale_(optimizer)
    norm = clip_gradients(model, stage.grad_clip, vocabulary).item()
    result = StepResult(loss, norm, applied=math.isfinite(loss + norm))
    if result.applied:
        scaler.step(optimizer)
    scaler.update()
    return result


def accumulate_gradients(
    model: LanguageModel,
    batch: tuple[Tensor, Tensor],
    *,
    micro_batch_size: int,
    seed: tuple[int, int] | None,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    vocabulary: CompactVocabulary,
    first_sequence: int = 0,
    hidden: Callable[[Tensor], Tensor] | None = None,
    entropy: Entropy = entropy_,
    parallel: DataParallel | None = None,
    agree: Callable[[Callable[[], Tensor]], Tensor] = lambda action: action(),
) -> Tensor:
    """Add the gradients of the batch's mean loss to the model's; returns that loss, nats per token, a scalar.

    The mean is over all tokens of the batch, whatever the micro-batches, so their size changes memory only. Dropout
    draws from a generator seeded with (seed, step, the micro-batch's first sequence in the whole batch): a resumed step
    draws what the interrupted one would have drawn, and no random state has to be saved. Without `seed` the caller has
    seeded it. `hidden` and `entropy` are compiled forms of model.hidden and entropy_; `parallel` knows its own.

    With `parallel` the gradients become the mean over all processes. Their batches are equal parts of a larger one, and
    this one's starts at its `first_sequence`. `agree` runs all but the last backward, which exchanges gradients.
    """
    idx_BT, targets_BT = (vocabulary.rows_of(part) for part in batch)
    total = torch.zeros((), device=idx_BT.device)
    forward, last_backward = hidden or model.hidden, _backward
    if parallel is not None:
        forward, last_backward = parallel.hidden, parallel.backward
    last = (len(idx_BT) - 1) // micro_batch_size * micro_batch_size

    def loss_of(start: int) -> Tensor:
        nonlocal total
        if seed is not None:
            torch.manual_seed(seed_of_step(*seed, first_sequence + start))
        micro = slice(start, start + micro_batch_size)
        with precision.autocast():
            nats = next_token_loss(
                forward(idx_BT[micro]),
                model.head_weight,
                targets_BT[micro],
                log_unseen=vocabulary.log_unseen,
                entropy=entropy,
            )
        loss = nats / targets_BT.numel()
        total = total + loss.detach()
        return scaler.scale(loss)

    def all_but_the_last_backward() -> Tensor:
        with contextlib.nullcontext() if parallel is None else parallel.no_sync():
            for start in range(0, last, micro_batch_size):
                _backward(loss_of(start))
        return loss_of(last)

    last_backward(agree(all_but_the_last_backward))
    for name, parameter in model.named_parameters():
        if name == EMBEDDING and parameter.grad is not None:
            vocabulary.share_gradient(parameter.grad)
    return total


def _backward(loss: Any) -> None:
    loss.backward()  # torch leaves Tensor.backward without types


def seed_of_step(seed: int, step: int, first_sequence: int = 0) -> int:
    """For the draws of a micro-batch, 63 bits: another one for every combination of numbers."""
    digest = hashlib.blake2b(repr((seed, step, first_sequence)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
