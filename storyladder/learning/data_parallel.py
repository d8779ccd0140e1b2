"""Gradients of several processes through torch's DistributedDataParallel: averaged in buckets while backward runs.

The engine does not expect that memory runs out in one process, which would leave the others waiting for its buckets. So
all but the last backward of a step come before an agreement (step.py), and the first step with micro-batches of a size
is rehearsed without an exchange.
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
    """A model whose forward pass ends before the head: the loss takes the head's weights itself."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.run: Callable[[Tensor], Tensor] = model.hidden  # or a compiled form of it

    def forward(self, idx_BT: Tensor) -> Tensor:
        return self.run(idx_BT)


class DataParallel:
    """A model whose gradients become the mean over all processes in each backward. All processes must build it."""

    def __init__(self, model: LanguageModel, device: torch.device) -> None:
        self._hidden = _Hidden(model)
        # Gradients are views of buckets of 25 MB; those of the last layers travel while the first are computed.
        with lost_peers():
            self._engine: DistributedDataParallel | None = DistributedDataParallel(
                self._hidden, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )
        self.rehearsed: int | None = None  # the micro-batch size, in sequences, that memory was found to suffice for

    def close(self) -> None:
        """Give the engine up before the group ends: its last owner waits for gloo's threads, holding Python's lock.

        These may be waiting for that lock (seen with torch 2.13: a process that hung after its last step).
        """
        self._engine = None

    def run(self, hidden: Callable[[Tensor], Tensor]) -> None:
        """Take this form of model.hidden from now on."""
        self._hidden.run = hidden

    def hidden(self, idx_BT: Tensor) -> Tensor:
        """What stands before the output head, (B, T, C); `backward` of what comes of it exchanges gradients."""
        assert self._engine is not None
        return cast(Tensor, self._engine(idx_BT))

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Inside, gradients are added up in this process only."""
        assert self._engine is not None
        return cast("contextlib.AbstractContextManager[None]", self._engine.no_sync())

    def backward(self, loss: Tensor) -> None:
        """Backward with the exchange. PeerLost if a process is gone, OutOfMemory if this one's memory runs out."""
        try:
            with lost_peers():
                torch.autograd.backward(loss)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                "out of memory while the other processes were waiting for gradients; set a smaller micro_batch_size in "
                "config.py and run the same command again: training continues from what is saved"
            ) from None
