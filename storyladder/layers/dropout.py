"""Dropout that costs next to nothing on a CPU: whether an element is kept is a hash of its position and a key.

torch draws the random numbers of a mask there one by one, in one thread. The hash also makes storing the mask
unnecessary: backward computes it again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyladder.layers.kernels import DropoutKey, kernels_for


class Dropout(nn.Module):
    """nn.Dropout with probability `p`. The key is drawn from torch's generator, so torch.manual_seed repeats it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, y: Tensor) -> Tensor:
        """dropout(y)."""
        if not self.training or self.p == 0:
            return y
        if y.device.type != "cpu":
            return F.dropout(y, self.p)
        return _Dropped.apply(y, _new_key(self.p))  # type: ignore[no-any-return,no-untyped-call]


class DropoutAdd(nn.Module):
    """A residual connection: the branch's output y gets dropout and is added to the stream x, on a CPU in one pass."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x + dropout(y); both have the same shape."""
        if not self.training or self.p == 0:
            return x + y
        if y.device.type != "cpu":
            return x + F.dropout(y, self.p)
        return _AddDropped.apply(x, y, _new_key(self.p))  # type: ignore[no-any-return,no-untyped-call]


def _new_key(p: float) -> DropoutKey:
    return DropoutKey.of(p, int(torch.randint(2**62, ())))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, key: DropoutKey) -> Tensor:
        ctx.key = key
        return _dropped(y, key, y.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _dropped(grads[0], ctx.key, grads[0].dtype), None


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, key: DropoutKey) -> Tensor:
        ctx.key, ctx.dtype = key, y.dtype
        kernels = kernels_for(y, "dropout")
        if kernels is not None and x.dtype == torch.float32:
            return kernels.add_dropped(x, y, key)
        return x + _dropped(y, key, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0], _dropped(grads[0], ctx.key, ctx.dtype), None


def _dropped(y: Tensor, key: DropoutKey, dtype: torch.dtype) -> Tensor:
    """dropout(y) as `dtype`."""
    kernels = kernels_for(y, "dropout")
    if kernels is not None and y.dtype == torch.float32 and dtype in (torch.float32, torch.bfloat16):
        return kernels.dropped(y, key, dtype)
    factor = torch.from_numpy(_kept(y.numel(), key)).view(y.shape)
    return y.to(dtype) * factor.to(dtype).mul_(key.scale)


def _kept(n: int, key: DropoutKey) -> npt.NDArray[np.bool_]:
    """Which of n elements are kept: the hash of kernels.c, one numpy operation at a time."""
    h = np.arange(n, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(key.first)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= np.uint32(key.second)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    kept: npt.NDArray[np.bool_] = h >= np.uint32(key.threshold)
    return kept
