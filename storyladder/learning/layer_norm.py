"""LayerNorm that gives bf16 where a product in bf16 follows on a CPU: no array in float32 between the two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from storyladder.learning.kernels import kernels_for

_SMALLEST = 1 << 16  # elements from which on a call of a kernel pays


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm with the same parameters; under bf16 autocast on a CPU its result is what the next product reads."""

    def forward(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        wide = x.dtype == self.weight.dtype == torch.float32
        if not autocast or not wide or x.numel() < _SMALLEST or kernels_for(x) is None:
            return super().forward(x)
        return _LayerNorm.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-any-return,no-untyped-call]


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
        kernels = kernels_for(x)
        assert kernels is not None
        y, moments_N2 = kernels.layer_norm(x, weight_C, bias_C, eps, torch.bfloat16)
        ctx.save_for_backward(x, weight_C, moments_N2)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight_C, moments_N2 = ctx.saved_tensors
        kernels = kernels_for(x)
        assert kernels is not None
        return *kernels.layer_norm_back(grads[0], x, weight_C, moments_N2), None
