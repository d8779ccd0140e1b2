"""Dropout: the right share, the right scale, masks that are independent and that a seed repeats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from storyladder.layers import Dropout, DropoutAdd
from storyladder.layers.kernels import cpu_kernels, without_kernels


def dropped(x: torch.Tensor, p: float, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(p)(x)


def test_nothing_is_dropped_in_eval_mode_or_at_zero() -> None:
    x = torch.randn(5, 7)
    state = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    for residual in (DropoutAdd(0.5).eval(), DropoutAdd(0.0)):
        assert torch.equal(residual(x, 3 * x), x + 3 * x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_p_and_the_rest_is_scaled_up_for_it(p: float) -> None:
    n = 200_000
    y = dropped(torch.ones(n), p)
    zeros = int((y == 0).sum())
    assert abs(zeros - n * p) < 5 * math.sqrt(n * p * (1 - p))  # a false alarm for one seed in 1.7 million
    assert y[y != 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-4)


def test_the_mean_is_kept() -> None:
    y = dropped(torch.ones(10, dtype=torch.float64), 0.1)
    assert y.max().item() == pytest.approx(1 / 0.9, rel=1e-7)


def test_kept_elements_have_the_scale_as_gradient_and_dropped_ones_none() -> None:
    x = torch.randn(50, 7, requires_grad=True)
    y = dropped(x, 0.3)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x, y)
    assert torch.equal(x.grad == 0, y == 0)


def test_a_seed_repeats_the_mask_and_every_call_draws_a_new_one() -> None:
    x = torch.ones(1000)
    assert torch.equal(dropped(x, 0.5, seed=3), dropped(x, 0.5, seed=3))
    assert not torch.equal(dropped(x, 0.5, seed=3), dropped(x, 0.5, seed=4))
    torch.manual_seed(3)
    dropout = Dropout(0.5)
    assert not torch.equal(dropout(x), dropout(x))


def test_numpys_random_numbers_are_left_alone() -> None:
    before = np.random.get_state()[1].tolist()
    dropped(torch.ones(100), 0.5)
    assert np.random.get_state()[1].tolist() == before


def test_elements_are_dropped_independently_of_their_neighbours() -> None:
    n = 200_000
    kept = (dropped(torch.ones(n), 0.5) > 0).double() - 0.5
    for lag in (1, 2, 3, 4, 8, 336):
        correlation = (kept[:-lag] * kept[lag:]).mean() * 4
        assert abs(correlation) < 5 / math.sqrt(n), lag


@pytest.mark.parametrize("shape", [(1,), (2, 3), (5,), (7,), (3, 3, 3), (0,), ()])
def test_any_shape_is_kept(shape: tuple[int, ...]) -> None:
    y = dropped(torch.ones(shape), 0.5)
    assert y.shape == shape
    assert set(y.flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    y = dropped(torch.ones(64, dtype=dtype), 0.5)
    assert y.dtype == dtype
    assert set(y.tolist()) == {0.0, 2.0}


def test_a_device_other_than_the_cpu_uses_torchs_own() -> None:
    x = torch.ones(3, 4, device="meta")
    assert dropped(x, 0.5).shape == DropoutAdd(0.5)(x, x).shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_residual_is_the_stream_plus_dropout_and_backward_drops_the_same(dtype: torch.dtype) -> None:
    x = torch.randn(50, 41, dtype=torch.float32 if dtype != torch.float64 else dtype, requires_grad=True)
    y = torch.ones(50, 41, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    out = DropoutAdd(0.4)(x, y)
    torch.testing.assert_close(out, x + dropped(y, 0.4), rtol=0, atol=5e-3)
    out.sum().backward()
    assert x.grad is not None and y.grad is not None
    assert (x.grad == 1).all() and y.grad.dtype == dtype
    assert torch.equal(y.grad == 0, out == x) and 0.3 < (out == x).float().mean() < 0.5
    torch.testing.assert_close(y.grad[y.grad != 0].double().unique().mean().item(), 1 / 0.6, rtol=5e-3, atol=0)


@pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler here")
@pytest.mark.parametrize("p", [0.1, 0.9])
def test_with_and_without_the_kernel_the_same_elements_are_dropped(p: float) -> None:
    x, y = torch.randn(2, 70_001)
    ours = dropped(y, p), DropoutAdd(p)(x, y)
    with without_kernels("dropout"):
        theirs = dropped(y, p), DropoutAdd(p)(x, y)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
