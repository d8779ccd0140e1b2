"""Evaluation: validation loss on fixed windows, perplexity and bits per byte."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from storyladder.corpus.token_file import ValidationWindows
from storyladder.learning.loss import next_token_loss
from storyladder.learning.network import LanguageModel
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.runtime.distributed import ALONE, Group
from storyladder.runtime.machine import Precision


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text."""

    val_loss: float  # nats per token
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """exp(val_loss): the number of equally likely tokens that would leave the model as uncertain."""
        return math.exp(min(self.val_loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits for each UTF-8 byte of text, comparable between tokenizers. EOT costs bits and has no bytes."""
        return self.val_loss * self.tokens / math.log(2) / max(1, self.text_bytes)

    def record(self) -> dict[str, float]:
        """Everything measured, for the run log and the checkpoint."""
        return {
            "val_loss": self.val_loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
        }

    @property
    def description(self) -> str:
        """Everything measured, for the terminal."""
        return f"val_loss {self.val_loss:.4f}, perplexity {self.perplexity:,.1f}, bits/byte {self.bits_per_byte:.3f}"


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
    """Mean loss over every target of the windows, without dropout. Leaves the model's mode and random state unchanged.

    Each rank of a group evaluates its share of the windows. `check_stop` may raise after each batch.
    """
    was_training = model.training
    nats = torch.zeros((), device=device, dtype=torch.float64 if device.type != "mps" else torch.float32)
    with group.agreement():
        model.eval()
        try:
            for batch in windows.batches(batch_size, (group.rank, group.world_size)):
                idx_BT, targets_BT = (vocabulary.rows_of(torch.from_numpy(part).to(device)) for part in batch)
                with precision.autocast():
                    hidden_BTC = model.hidden(idx_BT)
                    nats += next_token_loss(hidden_BTC, model.head_weight, targets_BT, log_unseen=vocabulary.log_unseen)
                check_stop()
            own_nats = nats.item()
        finally:
            model.train(was_training)
    return Evaluation(group.sum(own_nats) / windows.tokens, windows.tokens, windows.text_bytes)
