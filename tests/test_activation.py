"""GELU equals torch's, with its gradient, with and without the kernel; and the kernel is used where it pays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from storyladder.layers import gelu
from storyladder.layers.kernels import cpu_kernels, without_kernels

LARGE = (300, 300)  # elements for which the call of a kernel pays


def some(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("shape", [(3, 5), LARGE])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)]
)
def test_value_and_gradient_are_those_of_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    x = some(*shape, dtype=dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y = gelu(x)
    expected = exact / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (exact + 0.044715 * exact**3)))
    assert y.dtype == dtype and y.shape == x.shape
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    (ours,) = torch.autograd.grad(y.double().square().sum(), x)
    (theirs,) = torch.autograd.grad(expected.square().sum(), exact)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), theirs, rtol=4 * tolerance, atol=20 * tolerance)


@pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler here")
def test_large_tensors_use_the_kernel_and_small_ones_torch() -> None:
    large = some(*LARGE).requires_grad_()
    assert gelu(large).grad_fn.name() == "_GeluBackward"
    assert gelu(large[:3]).grad_fn.name() == "GeluBackward0"
    with without_kernels("gelu"):
        assert torch.equal(gelu(large), F.gelu(large, approximate="tanh"))
