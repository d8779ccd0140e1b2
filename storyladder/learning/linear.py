"""GPT-2's linear layers, with a way back of their own on a CPU in bf16: there torch's sums for biases are slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyladder.learning.kernels import kernels_for


class Linear(nn.Linear):
    """nn.Linear with the same parameters and the same mathematics."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_EC: Tensor, bias_E: Tensor) -> Tensor:
    """x @ weight.T + bias, (..., C) to (..., E), in autocast's type.

    Without gradients torch's own way: autocast then casts a weight once for all its uses.
    """
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if autocast and torch.is_grad_enabled() and weight_EC.dtype == torch.float32 and kernels_for(x) is not None:
        return _Linear.apply(x, weight_EC, bias_E)  # type: ignore[no-any-return,no-untyped-call]
    return F.linear(x, weight_EC, bias_E)


class _Linear(torch.autograd.Function):
    """Products in bf16, gradients of weight and bias in float32; those of the bias are also summed there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_EC: Tensor, bias_E: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        with torch.autocast("cpu", enabled=False):
            x, weight_EC = x.bfloat16(), weight_EC.bfloat16()
            ctx.save_for_backward(x, weight_EC)
            return F.linear(x, weight_EC, bias_E.bfloat16())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_EC = ctx.saved_tensors
        x_NC, grad_NE = x.flatten(0, -2), grads[0].flatten(0, -2)
        kernels = kernels_for(grad_NE)
        assert kernels is not None
        for_x, for_weight, for_bias = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            grad_x = (grad_NE @ weight_EC).view(x.shape).to(ctx.dtype) if for_x else None
            grad_weight_EC = (grad_NE.T @ x_NC).float() if for_weight else None
            grad_bias_E = kernels.column_sums(grad_NE) if for_bias else None
        return grad_x, grad_weight_EC, grad_bias_E
