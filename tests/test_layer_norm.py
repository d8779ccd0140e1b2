"""LayerNorm equals torch's: under bf16 autocast but for rounding, otherwise bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from storyladder.layers import LayerNorm
from storyladder.layers.kernels import cpu_kernels, without_kernels


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(norm: nn.LayerNorm) -> nn.LayerNorm:
    """The same weights for every norm."""
    torch.manual_seed(4)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float64])
def test_it_equals_torchs(precision: torch.dtype) -> None:
    ours, theirs = filled(LayerNorm(96)), filled(nn.LayerNorm(96))
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    dtype = torch.float64 if precision == torch.float64 else torch.float32
    found = []
    for norm in (ours.to(dtype), theirs.to(dtype)):
        x = some(7, 128, 96).to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            y = norm(x)
        gradients = torch.autograd.grad(y, (x, *norm.parameters()), some(*y.shape, seed=1).to(y.dtype))
        assert [gradient.dtype for gradient in gradients] == [dtype] * 3
        found.append((y.detach(), *gradients))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= (1e-2 if precision == torch.bfloat16 else 0) * other.norm()


@pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler here")
def test_its_output_is_bf16_for_a_large_float32_input_under_bf16_autocast_only() -> None:
    norm, x = filled(LayerNorm(96)), some(7, 128, 96).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x).grad_fn.name() == "_LayerNormBackward" and norm(x).dtype == torch.bfloat16
        assert norm(x[0, :2]).grad_fn.name() == "NativeLayerNormBackward0", "too small to pay"
        with without_kernels("layer_norm"):
            assert norm(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.float16):
        assert norm(x).dtype == torch.float32
    assert norm(x).dtype == torch.float32
