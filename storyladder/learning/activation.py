"""GELU, GPT-2's activation, with its slope taken on the way forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyladder.learning.kernels import kernels_for

_SMALLEST = 1 << 16  # elements from which on a call of a kernel pays


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as GPT-2 has it.

    On a CPU torch computes the tanh twice, forward and backward, slowly (a third of the time of a fp32 MLP's products,
    LOG.md); here value and slope come out of one pass.
    """
    if x.numel() < _SMALLEST or kernels_for(x) is None:
        return F.gelu(x, approximate="tanh")
    return _Gelu.apply(x)  # type: ignore[no-any-return,no-untyped-call]


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        kernels = kernels_for(x)
        assert kernels is not None
        y, slope = kernels.gelu(x)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope  # type: ignore[no-any-return]
