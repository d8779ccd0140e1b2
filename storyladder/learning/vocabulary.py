"""Compact vocabulary: all token types that no stage has seen yet share one row while training.

The shared row stands for U rows that start equal. Such rows get equal gradients for ever (no input and no target ever
names them), so they stay equal, and one row with log(U) added to its score is the same model: same loss, same
gradients, same AdamW states. A TinyStories vocabulary shrinks to about a quarter, and with it the largest product of a
step. Files always hold the whole vocabulary; only the model that is being trained is compact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class CompactVocabulary:
    """Which row every token has. With everything seen (or with compact=False) it is the plain vocabulary."""

    def __init__(self, seen_V: Tensor, *, compact: bool = True) -> None:
        self.seen_V = seen_V.cpu()
        self.vocab_size = len(seen_V)
        self.n_unseen = int((~self.seen_V).sum()) if compact else 0
        self.n_rows = self.vocab_size - self.n_unseen + (1 if self.n_unseen else 0)
        self.row_V = torch.arange(self.vocab_size)
        if self.n_unseen:
            self.row_V = torch.where(self.seen_V, self.seen_V.cumsum(0) - 1, self.n_rows - 1)

    @property
    def log_unseen(self) -> float:
        """What is added to the score of the shared last row: log U, or 0 when there is none."""
        return math.log(self.n_unseen) if self.n_unseen else 0.0

    def to(self, device: torch.device) -> CompactVocabulary:
        """The same, with the row of every token kept on `device`."""
        self.row_V = self.row_V.to(device)
        return self

    def rows_of(self, idx_BT: Tensor) -> Tensor:
        """Token ids to rows of the model, same shape."""
        return self.row_V[idx_BT] if self.n_unseen else idx_BT

    def can_share(self, weight_VC: Tensor) -> bool:
        """Whether the rows of the unseen tokens are equal, so that one can stand for all without changing anything."""
        unseen = weight_VC[~self.seen_V]
        return bool((unseen == unseen[:1]).all())

    def compress(self, weight_VC: Tensor) -> Tensor:
        """One row per seen token and one for all others, (n_rows, C)."""
        if not self.n_unseen:
            return weight_VC
        assert self.can_share(weight_VC), "the rows to share differ"
        return torch.cat((weight_VC[self.seen_V], weight_VC[~self.seen_V][:1]))

    def expand(self, weight_RC: Tensor) -> Tensor:
        """The whole vocabulary's rows, (V, C)."""
        return weight_RC[self.row_V.to(weight_RC.device)] if self.n_unseen else weight_RC

    def share_gradient(self, grad_RC: Tensor) -> None:
        """Turn the shared row's gradient, the sum over its U tokens, into that of one of them, in place."""
        if self.n_unseen:
            grad_RC[-1] /= self.n_unseen

    def hidden_squares(self, grad_RC: Tensor) -> Tensor | float:
        """What the U - 1 rows that are not there would add to the square of the gradient's norm."""
        return (self.n_unseen - 1) * grad_RC[-1].square().sum() if self.n_unseen else 0.0


def start_rows_equal(weight_VC: Tensor, seen_V: Tensor) -> None:
    """Give all unseen tokens the same starting row, in place: zeros, the mean of GPT-2's initial distribution."""
    weight_VC[~seen_V] = 0.0
