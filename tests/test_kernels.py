"""The compiled kernels equal torch's operations in float64; NaN stays visible; without them a step is the same."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from stages import run_of
from torch import Tensor, nn
from torch.nn import functional as F

from model import GPT
from storyladder.layers import DropoutAdd, LayerNorm, causal_attention, gelu
from storyladder.layers.dropout import _kept
from storyladder.layers.kernels import PARTS, DropoutKey, Kernels, Part, cpu_kernels, kernels_for, without_kernels
from storyladder.learning.loss import next_token_loss
from storyladder.settings import Ladder
from storyladder.stage import setup
from storyladder.stage.loop import train_stage

BOTH_TYPES = [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)]  # with the tolerance of each
pytestmark = pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler here")


@pytest.fixture
def compiled() -> Kernels:
    found = cpu_kernels()
    assert found is not None
    return found


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def some(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- GELU -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), BOTH_TYPES)
@pytest.mark.parametrize("n", [1, 15, 4096, 4097, 70_001])
def test_gelu_and_its_derivative(compiled: Kernels, n: int, dtype: torch.dtype, tolerance: float) -> None:
    x = some(n, scale=3).to(dtype)
    exact = x.double().requires_grad_()
    expected = F.gelu(exact, approximate="tanh")
    expected.sum().backward()
    y, slope = compiled.gelu(x)
    assert y.dtype == slope.dtype == dtype and y.shape == x.shape
    close(y, expected.detach(), tolerance)
    assert exact.grad is not None
    close(slope, exact.grad, tolerance)


def test_gelu_far_out(compiled: Kernels) -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 12.0, -12.0, 1e4, -1e4, 1e18, -1e18])
    y, slope = compiled.gelu(x)
    close(y, torch.tensor([0, 0, 0, 0, 12, 0, 1e4, 0, 1e18, 0]), 1e-6)
    close(slope, torch.tensor([0.5, 0.5, 0.5, 0.5, 1, 0, 1, 0, 1, 0]), 1e-6)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), BOTH_TYPES)
@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 33, 256])
def test_causal_softmax_and_its_backward(compiled: Kernels, T: int, dtype: torch.dtype, tolerance: float) -> None:
    scores, grad = some(3, T, T, scale=5).to(dtype), some(3, T, T, seed=1).to(dtype)
    exact = scores.double().requires_grad_()
    ahead = torch.ones(T, T, dtype=torch.bool).triu(1)
    expected = torch.softmax((0.3 * exact).masked_fill(ahead, -math.inf), dim=-1)
    expected.backward(grad.double())
    probs = compiled.causal_softmax_(scores.clone(), 0.3)
    close(probs, expected.detach(), tolerance)
    assert not probs[:, ahead].any()
    back = compiled.causal_softmax_backward_(probs, grad.clone(), 0.3)
    assert exact.grad is not None
    close(back, exact.grad, 3 * tolerance)
    assert not back[:, ahead].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "T", "H", "D"), [(1, 1, 1, 1), (2, 33, 3, 31), (3, 7, 2, 32), (2, 65, 8, 42)])
@pytest.mark.parametrize("parts", [1, 3])
def test_heads_are_split_and_merged_element_by_element(
    compiled: Kernels, parts: int, B: int, T: int, H: int, D: int, dtype: torch.dtype
) -> None:
    x_BTE = some(B, T, parts * H * D).to(dtype)
    split = compiled.split_heads(x_BTE, parts, H)
    assert torch.equal(split, x_BTE.view(B, T, parts, H, D).permute(2, 0, 3, 1, 4).reshape(parts, B * H, T, D))
    assert torch.equal(compiled.merge_heads(split, H), x_BTE)
    one = torch.randn(B, parts * H * D, T).to(dtype).mT
    assert torch.equal(compiled.merge_heads(compiled.split_heads(one, parts, H), H), one), "not contiguous"


def test_softmax_of_huge_scores_does_not_overflow(compiled: Kernels) -> None:
    probs = compiled.causal_softmax_(torch.tensor([[[5e4, 0.0], [-3e38, 3e38]]]), 1.0)
    close(probs, torch.eye(2)[None], 1e-30)


# --- LayerNorm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), BOTH_TYPES)
@pytest.mark.parametrize(("N", "C"), [(1, 2), (3, 17), (128, 16), (130, 336)])
def test_layer_norm_and_its_backward(compiled: Kernels, N: int, C: int, dtype: torch.dtype, tolerance: float) -> None:
    x, weight, bias, grad = some(N, C).float() + 3, some(C, seed=1).float(), some(C, seed=2).float(), some(N, C, seed=3)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = F.layer_norm(exact[0], (C,), *exact[1:], eps=1e-2)
    expected.backward(grad.to(dtype).double())
    y, moments_N2 = compiled.layer_norm(x, weight, bias, 1e-2, dtype)
    assert y.dtype == dtype and y.shape == x.shape
    close(y, expected.detach(), 4 * tolerance)
    for ours, theirs in zip(compiled.layer_norm_backward(grad.to(dtype), x, weight, moments_N2), exact, strict=True):
        assert theirs.grad is not None and ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs.grad, rtol=1e-4, atol=1e-4)


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 4096, 9001])
def test_kernel_and_numpy_drop_the_same_elements(compiled: Kernels, n: int, dtype: torch.dtype) -> None:
    key = DropoutKey.of(0.3, 0x123456789ABCDEF0)
    kept = torch.from_numpy(_kept(n, key))
    x, y = some(n).float(), some(n, seed=1).to(dtype)
    close(compiled.add_dropped(x, y, key), x + y.float() * kept * key.scale, 1e-6)
    alone = compiled.dropped(x, key, dtype)
    close(alone, (x * kept * key.scale).to(dtype), 1e-6)
    assert torch.equal(alone != 0, kept)


def test_a_tie_between_two_bf16_numbers_is_rounded_to_even(compiled: Kernels) -> None:
    between = torch.arange(257.0, 511.0, 2)  # there bf16 has every second number
    key = DropoutKey.of(0.5, 7)
    out = compiled.dropped(between / key.scale, key, torch.bfloat16)
    kept = out != 0
    assert 30 < kept.sum() < 100
    assert torch.equal(out[kept], between.to(torch.bfloat16)[kept])


# --- cross-entropy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), BOTH_TYPES)
@pytest.mark.parametrize(("V", "offset"), [(2, 0.0), (17, 0.0), (1000, 0.0), (1000, math.log(37_000))])
def test_cross_entropy_and_its_gradient(
    compiled: Kernels, V: int, offset: float, dtype: torch.dtype, tolerance: float
) -> None:
    scores = some(9, V, scale=4).to(dtype)
    targets = torch.arange(9) * 7 % V
    targets[-1] = V - 1
    exact = scores.double().requires_grad_()
    shifted = exact + torch.tensor([0.0] * (V - 1) + [offset], dtype=torch.float64)
    expected = F.cross_entropy(shifted, targets, reduction="none") + offset * (targets == V - 1)
    expected.sum().backward()
    for gradient in (False, True):
        used = scores.clone()
        losses = compiled.cross_entropy_(used, targets, last_offset=offset, gradient=gradient)
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        assert exact.grad is not None
        close(used, exact.grad if gradient else scores, tolerance)


@pytest.mark.parametrize(("bad", "place"), list(itertools.product([math.nan, math.inf], [0, 5, 40])))
def test_nan_and_infinity_stay_visible(compiled: Kernels, bad: float, place: int) -> None:
    x = torch.zeros(2, 41)
    x[0, place] = bad
    for row in (x, x.bfloat16()):
        used = row.clone()
        losses = compiled.cross_entropy_(used, torch.tensor([3, 3]), last_offset=1.0, gradient=True)
        assert not losses[0].isfinite() and losses[1].isfinite() and not used[0].isfinite().all()
    assert not compiled.layer_norm(x, torch.ones(41), torch.zeros(41), 1e-5, torch.bfloat16)[0][0].isfinite().any()
    scores = torch.zeros(1, 41, 41)
    scores[0, 40, place] = bad
    assert not compiled.causal_softmax_(scores, 1.0)[0, 40].isfinite().all()
    if math.isnan(bad):
        assert compiled.gelu(x)[0].isnan().sum() == compiled.gelu(x.bfloat16())[0].isnan().sum() == 1


# --- all of it, and without -------------------------------------------------------------------------------------------


def gradients_of_a_step() -> list[Tensor]:
    """Through every kernel: LayerNorm, GELU, dropout, attention in bf16, loss with a shared row."""
    torch.manual_seed(3)
    x = some(12, 64, 32).float().requires_grad_()
    project, norm, residual = nn.Linear(32, 96), LayerNorm(288), DropoutAdd(0.2)
    weight = some(96, 32, seed=1, scale=0.1).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = residual(x, causal_attention(project(x), 4))
        wide = norm(hidden.repeat(1, 1, 9))
        hidden = residual(x, gelu(F.linear(wide, weight.repeat(1, 9))).chunk(3, dim=-1)[0])
        loss = next_token_loss(hidden, weight, torch.arange(768).view(12, 64) % 96, log_unseen=2.0)
    return [loss.detach(), *torch.autograd.grad(loss / 768, (x, weight, *project.parameters(), *norm.parameters()))]


@pytest.mark.parametrize("off", [*((part,) for part in PARTS), PARTS])
def test_with_and_without_kernels_a_step_is_the_same(off: tuple[Part, ...]) -> None:
    ours = gradients_of_a_step()
    with without_kernels(*off):
        theirs = gradients_of_a_step()
    same = [torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)]
    assert not all(same), "the step does not use the kernel"
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() < 1e-2 * other.norm()


def test_one_thread_and_several_do_the_same(compiled: Kernels) -> None:
    x, targets, tall = some(40, 5000).float(), torch.arange(40), some(700, 50).float()
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            scores = x.clone()
            losses = compiled.cross_entropy_(scores, targets, last_offset=0.0, gradient=True)
            y, moments_N2 = compiled.layer_norm(tall, tall[0], tall[1], 1e-5, torch.bfloat16)
            back = compiled.layer_norm_backward(y, tall, tall[0], moments_N2)
            found.append((losses, scores, y, *back))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def test_a_stage_says_why_it_goes_without(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_stage(run_of(toy_data, plan=True), GPT)
    assert "operations" not in capsys.readouterr().err
    monkeypatch.setattr(setup, "why_no_kernels", lambda: "the moon is full")
    train_stage(run_of(toy_data, plan=True), GPT)
    assert capsys.readouterr().err.count("the moon is full: using torch's own operations") == 1


def test_other_dtypes_and_devices_go_without() -> None:
    assert kernels_for(torch.zeros(3), "gelu") is not None
    for x in (torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float16), torch.zeros(3, device="meta")):
        assert kernels_for(x, "gelu") is None


def test_kernels_are_switched_off_inside_the_with_only() -> None:
    x = torch.zeros(3)
    with without_kernels("gelu"), pytest.raises(ZeroDivisionError):
        assert kernels_for(x, "gelu") is None and kernels_for(x, "loss") is not None
        with without_kernels(*PARTS):
            assert not any(kernels_for(x, part) for part in PARTS)
        assert kernels_for(x, "gelu") is None and kernels_for(x, "loss") is not None
        raise ZeroDivisionError
    assert all(kernels_for(x, part) for part in PARTS)
    with pytest.raises(AssertionError, match="no part of a step"), without_kernels("GELU"):  # type: ignore[arg-type]
        pass
