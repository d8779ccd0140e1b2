"""Head and cross-entropy in chunks: equal to the plain way in loss and gradients, and never holding all scores."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from storyladder.learning import loss as loss_module
from storyladder.learning.loss import next_token_loss

V, C, B, T = 11, 6, 2, 7  # 14 rows: no multiple of 4 or 5


def some_case(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden state (B, T, C), head (V, C), targets (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    hidden_BTC = torch.randn(B, T, C, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight_VC = torch.randn(V, C, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden_BTC, weight_VC, torch.randint(V, (B, T), generator=generator)


def plain_loss(hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor) -> Tensor:
    """What the chunked loss must equal: all scores in one tensor, through torch's own."""
    scores_BTV = F.linear(hidden_BTC, weight_VC)
    return F.cross_entropy(scores_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum")


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("chunk_rows", [1, 4, 5, 13, 14, 1000])
def test_it_equals_the_plain_cross_entropy_with_any_chunks(monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    monkeypatch.setitem(loss_module._CHUNK_SCORES, "cpu", chunk_rows * V)
    hidden, weight, targets = some_case()
    ours, theirs = next_token_loss(hidden, weight, targets), plain_loss(hidden, weight, targets)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    for our_grad, their_grad in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True):
        torch.testing.assert_close(our_grad, their_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_padded_columns_change_nothing(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setitem(loss_module._COLUMNS, "cpu", 16)
    hidden, weight, targets = some_case(dtype)
    assert V % 16
    ours, theirs = next_token_loss(hidden, weight, targets), plain_loss(hidden, weight, targets)
    torch.testing.assert_close(ours, theirs)
    for our_grad, their_grad in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True):
        torch.testing.assert_close(our_grad, their_grad)


def test_a_vocabulary_larger_than_a_chunk_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss_module._CHUNK_SCORES, "cpu", V - 1)
    case = some_case()
    torch.testing.assert_close(next_token_loss(*case), plain_loss(*case), rtol=0, atol=1e-10)


def test_the_way_back_scales_with_what_is_made_of_the_loss() -> None:
    hidden, weight, targets = some_case()
    plain = gradients(plain_loss(hidden, weight, targets), hidden, weight)
    scaled = gradients(next_token_loss(hidden, weight, targets) * -3 / 7, hidden, weight)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, one * -3 / 7, rtol=0, atol=1e-10)


def test_scores_far_from_zero_do_not_overflow() -> None:
    hidden, weight, targets = some_case(torch.float32)
    with torch.no_grad():
        hidden *= 1000
    ours, theirs = next_token_loss(hidden, weight, targets), plain_loss(hidden, weight, targets)
    torch.testing.assert_close(ours, theirs)
    assert all(grad.isfinite().all() for grad in gradients(ours, hidden, weight))


def test_a_second_way_back_is_refused_and_not_wrong() -> None:
    hidden, weight, targets = some_case()
    loss = next_token_loss(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_frozen_network_below_the_head_still_teaches_the_head() -> None:
    hidden, weight, targets = some_case()
    (grad,) = gradients(next_token_loss(hidden.detach(), weight, targets), weight)
    (expected,) = gradients(plain_loss(hidden, weight, targets), weight)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-10)


class Watch(TorchDispatchMode):
    """Every tensor that an operation makes, by its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.shapes.add(tuple(value.shape))
        return result


@pytest.mark.parametrize("learning", [True, False])
def test_only_a_chunk_of_scores_exists_at_any_time(monkeypatch: pytest.MonkeyPatch, learning: bool) -> None:
    monkeypatch.setitem(loss_module._CHUNK_SCORES, "cpu", 4 * V)
    hidden, weight, targets = some_case()
    with Watch() as watch, torch.set_grad_enabled(learning):
        loss = next_token_loss(hidden, weight, targets)
        if learning:
            loss.backward()
    score_rows = {math.prod(shape[:-1]) for shape in watch.shapes if shape[-1:] == (V,) and shape != (C, V)}
    assert score_rows == {4, 2}  # 14 rows are three fours and a two


def test_without_gradients_wanted_none_are_computed() -> None:
    hidden, weight, targets = some_case()
    with torch.no_grad(), Watch() as watch:
        loss = next_token_loss(hidden, weight, targets)
    assert not loss.requires_grad
    assert (V, C) not in watch.shapes
    torch.testing.assert_close(loss, plain_loss(hidden, weight, targets).detach())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.002)])
def test_half_precision_is_near_and_its_gradients_are_float32(dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets = some_case(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        ours = next_token_loss(hidden, weight, targets)
    theirs = plain_loss(hidden, weight, targets)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
    for grad, expected in zip(gradients(ours, hidden, weight), gradients(theirs, hidden, weight), strict=True):
        assert grad.dtype == torch.float32
        assert (grad - expected).norm() < tolerance * expected.norm()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        assert next_token_loss(hidden, weight, targets).item() == ours.item()


def test_a_hidden_state_of_half_precision_gets_its_gradient_in_kind() -> None:
    hidden, weight, targets = some_case(torch.float32)
    half = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        next_token_loss(half, weight, targets).backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    (expected,) = gradients(plain_loss(hidden, weight, targets), hidden)
    assert (half.grad - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("chunk_rows", [3, 1000])
def test_one_row_for_many_equal_ones_costs_what_they_cost(monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    monkeypatch.setitem(loss_module._CHUNK_SCORES, "cpu", chunk_rows * V)
    hidden, weight, targets = some_case()
    unseen = 5
    full_weight = torch.cat((weight, weight[-1:].expand(unseen - 1, C))).detach().requires_grad_()
    full_targets = torch.where(targets == V - 1, torch.arange(B * T).view(B, T) % unseen + V - 1, targets)
    assert 0 < (targets == V - 1).sum() < B * T
    ours = next_token_loss(hidden, weight, targets, log_unseen=math.log(unseen))
    theirs = plain_loss(hidden, full_weight, full_targets)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    our_hidden, our_weight = gradients(ours, hidden, weight)
    their_hidden, their_weight = gradients(theirs, hidden, full_weight)
    torch.testing.assert_close(our_hidden, their_hidden, rtol=0, atol=1e-10)
    torch.testing.assert_close(our_weight[:-1], their_weight[: V - 1], rtol=0, atol=1e-10)
    torch.testing.assert_close(our_weight[-1], their_weight[V - 1 :].sum(0), rtol=0, atol=1e-10)
