"""One optimizer step: the gradients of a whole batch, micro-batch by micro-batch, then clipping and the optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
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
    """Loss and gradient norm of a step. If it was not `applied`, one of them was not finite and nothing changed."""

    train_loss: float  # nats per token, before the update
    grad_norm: float  # before clipping
    applied: bool


class Stepper:
    """A model with everything an update needs; makes one update at a time."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        stage: StageConfig,
        *,
        vocabulary: CompactVocabulary,
        precision: Precision,
        micro_batch_size: int,
        group: Group = ALONE,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.stage = stage
        self.vocabulary = vocabulary
        self.precision = precision
        self.micro_batch_size = micro_batch_size  # sequences per forward
        self.group = group
        self.scaler = scaler or precision.scaler()
        self.parallel: DataParallel | None = None  # in a group: averages gradients over all ranks

    def step(self, batch: tuple[Tensor, Tensor], number: int, lr: float) -> StepResult:
        """Make update `number` from inputs and targets, both (batch_size, T).

        In a group each rank passes its share of the batch, (batch_size / ranks, T), and all make the same update.
        """
        set_rate(self.optimizer, lr)
        if self.parallel is not None and self.parallel.rehearsed != self.micro_batch_size:
            # Later no rank may run out of memory alone: the others would wait for its gradients, or update without it.
            self.group.together(lambda: self.accumulate_gradients(batch, number, exchange=False))
            self.group.together(lambda: make_moments(self.optimizer))
            self.parallel.rehearsed = self.micro_batch_size
        self.optimizer.zero_grad(set_to_none=False)
        own_loss = self.accumulate_gradients(batch, number)
        loss = self.group.sum(own_loss.item()) / self.group.world_size
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model, self.stage.grad_clip, self.vocabulary).item()
        result = StepResult(loss, norm, applied=math.isfinite(loss + norm))
        if result.applied:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return result

    def accumulate_gradients(
        self,
        batch: tuple[Tensor, Tensor],
        number: int | None,
        *,
        hidden: Callable[[Tensor], Tensor] | None = None,
        entropy: Entropy = entropy_,
        exchange: bool = True,
        agree: bool = True,
    ) -> Tensor:
        """Add the gradients of the batch's mean loss to the model's; returns that loss, nats per token, a scalar.

        The mean is over all tokens of the batch, so the micro-batch size only affects memory. Dropout uses a generator
        seeded with (seed, step number, the micro-batch's first sequence in the whole batch): a resumed step draws the
        same numbers as the interrupted one, and no random state has to be saved. Without `number` the caller has
        seeded it. `hidden` and `entropy` may be compiled forms of model.hidden and entropy_.

        In a group the last backward exchanges gradients, which become the mean over all ranks; with `agree`, all ranks
        first agree that everything before it succeeded. Without `exchange` the gradients stay those of this rank.
        """
        idx_BT, targets_BT = (self.vocabulary.rows_of(part) for part in batch)
        parallel = self.parallel if exchange else None
        forward = parallel.hidden if parallel is not None else hidden or self.model.hidden
        total = loss = torch.zeros((), device=idx_BT.device)
        with self.group.agreement() if agree and parallel is not None else contextlib.nullcontext():
            for start in range(0, len(idx_BT), self.micro_batch_size):
                micro = slice(start, start + self.micro_batch_size)
                is_last = micro.stop >= len(idx_BT)
                if number is not None:
                    first_sequence = self.group.rank * len(idx_BT) + start
                    torch.manual_seed(seed_of_step(self.stage.seed, number, first_sequence))
                with contextlib.nullcontext() if is_last or parallel is None else parallel.no_sync():
                    with self.precision.autocast():
                        nats = next_token_loss(
                            forward(idx_BT[micro]),
                            self.model.head_weight,
                            targets_BT[micro],
                            log_unseen=self.vocabulary.log_unseen,
                            entropy=entropy,
                        )
                    loss = nats / targets_BT.numel()
                    total = total + loss.detach()
                    loss = self.scaler.scale(loss)
                    if not is_last:
                        _backward(loss)
        (_backward if parallel is None else parallel.backward)(loss)
        for name, parameter in self.model.named_parameters():
            if name == EMBEDDING and parameter.grad is not None:
                self.vocabulary.share_gradient(parameter.grad)
        return total


def _backward(loss: Any) -> None:
    loss.backward()  # Tensor.backward has no type annotations


def seed_of_step(seed: int, number: int, first_sequence: int = 0) -> int:
    """The 63-bit random seed of a micro-batch, a different one for every combination of the arguments."""
    digest = hashlib.blake2b(repr((seed, number, first_sequence)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
