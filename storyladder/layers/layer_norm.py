"""LayerNorm whose output under bf16 autocast on a CPU is bf16 already: torch's is float32, and autocast converts it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from storyladder.layers.kernels import Kernels, kernels_for

_MIN_ELEMENTS = 1 << 16  # smaller tensors do not repay the call of a kernel


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm, same parameters; under bf16 autocast on a CPU the output is bf16, which the next matmul reads."""

    def forward(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        is_fp32 = x.dtype == self.weight.dtype == torch.float32
        kernels = kernels_for(x, "layer_norm")
        if kernels is None or not autocast or not is_fp32 or x.numel() < _MIN_ELEMENTS:
            return super().forward(x)
        return _LayerNorm.apply(x, self.weight, self.bias, self.eps, kernels)  # type: ignore[no-any-return,no-untyped-call]


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, kernels: Kernels) -> Tensor:
        ctx.kernels = kernels
        y, moments_N2 = kernels.layer_norm(x, weight_C, bias_C, eps, torch.bfloat16)
        ctx.save_for_backward(x, weight_C, moments_N2)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight_C, moments_N2 = ctx.saved_tensors
        return *ctx.kernels.layer_norm_backward(grads[0], x, weight_C, moments_N2), None, None
