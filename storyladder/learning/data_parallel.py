"""Data-parallel gradients with torch's DistributedDataParallel: averaged over ranks in buckets while backward runs.

DDP does not expect one rank to run out of memory, which would leave the others waiting for its buckets. So all but the
last backward of a step come before an agreement (step.py), and the first step with each micro-batch size is rehearsed
without exchanging gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from storyladder.learning.network import LanguageModel
from storyladder.runtime.distributed import lost_peers
from storyladder.runtime.errors import OutOfMemory
from storyladder.runtime.machine import is_out_of_memory


class _Hidden(nn.Module):
    """A model whose forward pass ends before the head: the loss uses the head's weights itself."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.run: Callable[[Tensor], Tensor] = model.hidden  # or a compiled form of it

    def forward(self, idx_BT: Tensor) -> Tensor:
        return self.run(idx_BT)


class DataParallel:
    """A model whose gradients are averaged over all ranks in each backward. All ranks must build it."""

    def __init__(self, model: LanguageModel, device: torch.device) -> None:
        self._hidden = _Hidden(model)
        # Gradients are views of buckets of 25 MB; the last layers' are sent while the first layers' are computed.
        with lost_peers():
            self._engine: DistributedDataParallel | None = DistributedDataParallel(
                self._hidden, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )
        self.rehearsed: int | None = None  # the micro-batch size, in sequences, that is known to fit in memory

    def close(self) -> None:
        """Free the DDP engine before the group ends: its destructor waits for gloo's threads while holding the GIL.

        These threads may be waiting for the GIL (seen with torch 2.13: a process hung after its last step).
        """
        self._engine = None

    def run(self, hidden: Callable[[Tensor], Tensor]) -> None:
        """Use this form of model.hidden from now on."""
        self._hidden.run = hidden

    def hidden(self, idx_BT: Tensor) -> Tensor:
        """The input of the output head, (B, T, C). A loss computed from it exchanges gradients in `backward`."""
        assert self._engine is not None
        return cast(Tensor, self._engine(idx_BT))

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Inside, gradients are accumulated on this rank only."""
        assert self._engine is not None
        return cast("contextlib.AbstractContextManager[None]", self._engine.no_sync())

    def backward(self, loss: Tensor) -> None:
        """Backward, exchanging gradients. PeerLost if a process is gone, OutOfMemory if this one runs out of memory."""
        try:
            with lost_peers():
                torch.autograd.backward(loss)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                "out of memory while the other processes were waiting for gradients; set a smaller micro_batch_size in "
                "config.py and run the same command again to continue from the last save"
            ) from None
