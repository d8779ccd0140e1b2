"""GELU, GPT-2's activation. Its derivative is computed together with its value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyladder.layers.kernels import Kernels, kernels_for

_MIN_ELEMENTS = 1 << 16  # smaller tensors do not repay the call of a kernel


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as in GPT-2; same shape and dtype.

    On a CPU, torch computes the tanh in forward and again in backward, slowly: in fp32 this takes a third as long as
    the matmuls of the MLP (LOG.md). The kernel computes value and derivative in one pass.
    """
    kernels = kernels_for(x, "gelu")
    if kernels is None or x.numel() < _MIN_ELEMENTS:
        return F.gelu(x, approximate="tanh")
    return _Gelu.apply(x, kernels)  # type: ignore[no-any-return,no-untyped-call]


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernels: Kernels) -> Tensor:
        y, slope = kernels.gelu(x)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None
