"""One optimizer step: gradients of a whole batch, micro-batch by micro-batch, then clipping and the optimizer."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
) -> StepResult:
    """One update from one batch of inputs and targets, both (batch_size, T).

    In a group of processes every one brings its share of the batch, (batch_size / processes, T), and all make the same
    update.
    """
    set_rate(optimizer, lr)
    optimizer.zero_grad(set_to_none=False)

    def own_part() -> list[Tensor]:
        loss = accumulate_gradients(
            model,
            batch,
            micro_batch_size=micro_batch_size,
            seed=(stage.seed, step),
            precision=precision,
            scaler=scaler,
            vocabulary=vocabulary,
            share=(group.rank, group.world_size),
        )
        parts = [loss, *(p.grad for p in model.parameters() if p.grad is not None)]
        if not group.is_alone:  # after the agreement nobody may run out of memory: the others would make the update
            group.make_room(parts)
            make_moments(optimizer)
        return parts

    parts = group.together(own_part)
    group.sum_in_place(parts)
    loss = parts[0]
    scaler.unscale_(optimizer)
    norm = clip_gradients(model, stage.grad_clip, vocabulary)
    result = StepResult(loss.item(), norm.item(), applied=bool((loss + norm).isfinite()))
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
    share: tuple[int, int] = (0, 1),
    hidden: Callable[[Tensor], Tensor] | None = None,
    entropy: Entropy = entropy_,
) -> Tensor:
    """Add the gradients of the batch's mean loss to the model's; returns that loss, nats per token, a scalar.

    With `share` (i, n) the batch is the i-th of n equal parts of a larger one: loss and gradients are its part of the
    larger batch's, so that adding up all parts gives the whole.

    The mean is over all tokens of the batch, whatever the micro-batches, so their size changes memory only. Dropout
    draws from a generator seeded with (seed, step, the micro-batch's first sequence in the whole batch): a resumed step
    draws what the interrupted one would have drawn, and no random state has to be saved. Without `seed` the caller has
    seeded it. `hidden` and `entropy` are compiled forms of model.hidden and entropy_.
    """
    idx_BT, targets_BT = (vocabulary.rows_of(part) for part in batch)
    total = torch.zeros((), device=idx_BT.device)
    for start in range(0, len(idx_BT), micro_batch_size):
        if seed is not None:
            torch.manual_seed(seed_of_step(*seed, share[0] * len(idx_BT) + start))
        micro = slice(start, start + micro_batch_size)
        with precision.autocast():
            nats = next_token_loss(
                (hidden or model.hidden)(idx_BT[micro]),
                model.head_weight,
                targets_BT[micro],
                log_unseen=vocabulary.log_unseen,
                entropy=entropy,
            )
        loss = nats / (share[1] * targets_BT.numel())
        _backward(scaler.scale(loss))
        total = total + loss.detach()
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
