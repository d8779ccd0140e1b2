"""Compact vocabulary: all tokens that no stage has seen yet share one row while training.

The shared row represents U rows that start equal. Such rows always get equal gradients (they are never an input or a
target), so they stay equal, and one row with log(U) added to its score is the same model: same loss, same gradients,
same AdamW state. TinyStories uses about a quarter of the vocabulary, so the largest matmul of a step shrinks to that.
Files always contain the whole vocabulary; only the model that is being trained is compact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class CompactVocabulary:
    """Maps tokens to rows of the model. If all tokens are seen (or compact=False) it is the plain vocabulary."""

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
        """What is added to the score of the shared last row: log U, or 0 if there is none."""
        return math.log(self.n_unseen) if self.n_unseen else 0.0

    def to(self, device: torch.device) -> CompactVocabulary:
        """Move the row of every token to `device`; returns itself."""
        self.row_V = self.row_V.to(device)
        return self

    def rows_of(self, idx_BT: Tensor) -> Tensor:
        """Map token ids to rows of the model, same shape."""
        return self.row_V[idx_BT] if self.n_unseen else idx_BT

    def can_share(self, weight_VC: Tensor) -> bool:
        """Whether the rows of the unseen tokens are equal, so that one can represent all of them exactly."""
        unseen = weight_VC[~self.seen_V]
        return bool((unseen == unseen[:1]).all())

    def compress(self, weight_VC: Tensor) -> Tensor:
        """One row per seen token and one for all unseen ones, (n_rows, C)."""
        if not self.n_unseen:
            return weight_VC
        assert self.can_share(weight_VC), "the rows to share differ"
        return torch.cat((weight_VC[self.seen_V], weight_VC[~self.seen_V][:1]))

    def expand(self, weight_RC: Tensor) -> Tensor:
        """The rows of the whole vocabulary, (V, C)."""
        return weight_RC[self.row_V.to(weight_RC.device)] if self.n_unseen else weight_RC

    def share_gradient(self, grad_RC: Tensor) -> None:
        """Divide the shared row's gradient, which is a sum over its U tokens, by U, in place."""
        if self.n_unseen:
            grad_RC[-1] /= self.n_unseen

    def hidden_squares(self, grad_RC: Tensor) -> Tensor | float:
        """What the U - 1 rows that are left out would add to the squared gradient norm."""
        return (self.n_unseen - 1) * grad_RC[-1].square().sum() if self.n_unseen else 0.0


def start_rows_equal(weight_VC: Tensor, seen_V: Tensor) -> None:
    """Set the rows of all unseen tokens to zeros, the mean of GPT-2's initial distribution, in place."""
    weight_VC[~seen_V] = 0.0
