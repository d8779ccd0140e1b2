"""Validation loss on fixed windows, with perplexity and bits per byte beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import torch

from storyladder.corpus.token_file import Indices, ValidationWindows
from storyladder.learning.loss import next_token_loss
from storyladder.learning.network import LanguageModel
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.runtime.distributed import ALONE, Group
from storyladder.runtime.machine import Precision


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a model predicts some text."""

    val_loss: float  # nats per token
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """exp(val_loss): among how many equally likely tokens the model would be as unsure."""
        return math.exp(min(self.val_loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits for each UTF-8 byte of text, comparable between tokenizers. EOT costs bits and has no bytes."""
        return self.val_loss * self.tokens / math.log(2) / max(1, self.text_bytes)


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    windows: ValidationWindows,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    vocabulary: CompactVocabulary,
    check_stop: Callable[[], None] = lambda: None,
    group: Group = ALONE,
) -> Evaluation:
    """Mean loss over every target of the windows, without dropout. The model's mode and random state are left alone.

    The processes of a group read a share of the windows each.
    """
    share = (group.rank, group.world_size)

    def nats_of_share() -> float:
        batches = windows.batches(batch_size, share)
        return _nats(model, batches, device=device, precision=precision, vocabulary=vocabulary, check_stop=check_stop)

    nats = group.sum(group.together(nats_of_share))
    return Evaluation(nats / windows.tokens, windows.tokens, windows.text_bytes)


def _nats(
    model: LanguageModel,
    batches: Iterable[tuple[Indices, Indices]],
    *,
    device: torch.device,
    precision: Precision,
    vocabulary: CompactVocabulary,
    check_stop: Callable[[], None],
) -> float:
    """The nats of all targets together."""
    was_training = model.training
    model.eval()
    nats = torch.zeros((), device=device, dtype=torch.float64 if device.type != "mps" else torch.float32)
    try:
        for batch in batches:
            idx_BT, targets_BT = (vocabulary.rows_of(torch.from_numpy(part).to(device)) for part in batch)
            with precision.autocast():
                hidden_BTC = model.hidden(idx_BT)
                nats += next_token_loss(hidden_BTC, model.head_weight, targets_BT, log_unseen=vocabulary.log_unseen)
            check_stop()
    finally:
        model.train(was_training)
    return nats.item()
