"""Gradients of several processes through torch's DistributedDataParallel: averaged in buckets while backward runs.

The engine does not expect that memory runs out in one process, which would leave the others waiting for its buckets. So
all but the last backward of a step come before an agreement (step.py), and the first step with micro-batches of a size
is rehearsed without an exchange.
"""

from __future__ import annotations

import contextlib
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from storyladder.learning.network import LanguageModel


class _Hidden(nn.Module):
    """A model whose forward pass ends before the head: the loss takes the head's weights itself."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, idx_BT: Tensor) -> Tensor:
        return self.model.hidden(idx_BT)


class DataParallel:
    """A model whose gradients become the mean over all processes in each backward. All processes must build it."""

    def __init__(self, model: LanguageModel, device: torch.device) -> None:
        # Gradients are views of buckets of 25 MB; those of the last layers travel while the first are computed.
        self._engine = DistributedDataParallel(
            _Hidden(model), device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
        self.rehearsed: int | None = None  # the micro-batch size, in sequences, that memory was found to suffice for

    def hidden(self, idx_BT: Tensor) -> Tensor:
        """What stands before the output head, (B, T, C); the backward through it exchanges gradients."""
        return cast(Tensor, self._engine(idx_BT))

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Inside, gradients are added up in this process only."""
        return cast("contextlib.AbstractContextManager[None]", self._engine.no_sync())
