"""The compiled kernels equal torch's operations in float64; NaN goes through; without a compiler all still works."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from stages import run_of
from torch import Tensor, nn
from torch.nn import functional as F

from model import GPT
from storyladder.learning import activation, attention, dropout, kernels, layer_norm, linear, loss
from storyladder.learning.activation import gelu
from storyladder.learning.attention import _Attention, causal_attention, merge_heads, split_heads
from storyladder.learning.dropout import Dropout
from storyladder.learning.kernels import DropoutKey, Kernels, cpu_kernels
from storyladder.learning.layer_norm import LayerNorm
from storyladder.learning.linear import Linear
from storyladder.learning.loss import next_token_loss
from storyladder.settings import Ladder
from storyladder.stage import setup
from storyladder.stage.loop import train_stage

MODULES = (activation, attention, dropout, layer_norm, linear, loss)
HALF = [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)]
pytestmark = pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler here")


@pytest.fixture
def compiled() -> Kernels:
    found = cpu_kernels()
    assert found is not None
    return found


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setattr(module, "kernels_for", lambda x: None)


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def some(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- GELU -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
@pytest.mark.parametrize("n", [1, 15, 4096, 4097, 70_001])
def test_gelu_and_its_slope(compiled: Kernels, n: int, dtype: torch.dtype, tolerance: float) -> None:
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


def test_gelu_of_the_model_takes_the_kernel_for_large_arrays_and_torch_for_small_ones() -> None:
    large = some(300, 300).float().requires_grad_()
    assert "Gelu" in type(gelu(large).grad_fn).__name__ and gelu(large).grad_fn.name() == "_GeluBackward"
    assert gelu(large[:3]).grad_fn.name() == "GeluBackward0"
    (ours,) = torch.autograd.grad(gelu(large).square().sum(), large)
    (theirs,) = torch.autograd.grad(F.gelu(large, approximate="tanh").square().sum(), large)
    close(ours, theirs, 1e-5)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 33, 256])
def test_causal_softmax_and_its_way_back(compiled: Kernels, T: int, dtype: torch.dtype, tolerance: float) -> None:
    scores, grad = some(3, T, T, scale=5).to(dtype), some(3, T, T, seed=1).to(dtype)
    exact = scores.double().requires_grad_()
    ahead = torch.ones(T, T, dtype=torch.bool).triu(1)
    expected = torch.softmax((0.3 * exact).masked_fill(ahead, -math.inf), dim=-1)
    expected.backward(grad.double())
    probs = compiled.causal_softmax_(scores.clone(), 0.3)
    close(probs, expected.detach(), tolerance)
    assert not probs[:, ahead].any()
    back = compiled.causal_softmax_back_(probs, grad.clone(), 0.3)
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("T", "n_head", "D"), [(7, 2, 3), (64, 8, 42), (256, 2, 16)])
def test_attention_by_products_equals_torchs(T: int, n_head: int, D: int, dtype: torch.dtype, tolerance: float) -> None:
    qkv_BTE, grad_BTC = some(2, T, 3 * n_head * D).to(dtype), some(2, T, n_head * D, seed=1).to(dtype)
    exact = qkv_BTE.double().requires_grad_()
    expected = merge_heads(F.scaled_dot_product_attention(*split_heads(exact, n_head), is_causal=True))
    expected.backward(grad_BTC.double())
    qkv_BTE.requires_grad_()
    ours = _Attention.apply(qkv_BTE, n_head)
    ours.backward(grad_BTC)
    assert ours.dtype == dtype and exact.grad is not None and qkv_BTE.grad is not None
    assert (ours.double() - expected).norm() < tolerance * expected.norm()
    assert (qkv_BTE.grad.double() - exact.grad).norm() < tolerance * exact.grad.norm()


def test_attention_goes_by_products_in_bf16_only_and_never_for_long_texts() -> None:
    def way(*shape: int, dtype: torch.dtype) -> str:
        return str(causal_attention(some(*shape).to(dtype).requires_grad_(), 2).grad_fn)

    assert "_Attention" in way(1, 8, 12, dtype=torch.bfloat16)
    assert "_Attention" not in way(1, 8, 12, dtype=torch.float32) + way(1, 8, 12, dtype=torch.float64)
    assert "_Attention" not in way(1, 1025, 12, dtype=torch.bfloat16)


# --- linear layers and LayerNorm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "C"), [(1, 1), (3, 17), (128, 16), (129, 40), (391, 336)])
def test_column_sums(compiled: Kernels, N: int, C: int, dtype: torch.dtype) -> None:
    x_NC = some(N, C).to(dtype)
    sums = compiled.column_sums(x_NC)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), x_NC.double().sum(0), rtol=1e-6, atol=1e-6 * N)


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
@pytest.mark.parametrize(("N", "C"), [(1, 2), (3, 17), (128, 16), (130, 336)])
def test_layer_norm_and_its_way_back(compiled: Kernels, N: int, C: int, dtype: torch.dtype, tolerance: float) -> None:
    x, weight, bias, grad = some(N, C).float() + 3, some(C, seed=1).float(), some(C, seed=2).float(), some(N, C, seed=3)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = F.layer_norm(exact[0], (C,), *exact[1:], eps=1e-2)
    expected.backward(grad.to(dtype).double())
    y, moments_N2 = compiled.layer_norm(x, weight, bias, 1e-2, dtype)
    assert y.dtype == dtype and y.shape == x.shape
    close(y, expected.detach(), 4 * tolerance)
    for ours, theirs in zip(compiled.layer_norm_back(grad.to(dtype), x, weight, moments_N2), exact, strict=True):
        assert theirs.grad is not None and ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs.grad, rtol=1e-4, atol=1e-4)


def layer(kind: str) -> nn.Module:
    torch.manual_seed(4)
    made = {"ours": Linear, "torch": nn.Linear, "our norm": LayerNorm, "torch's norm": nn.LayerNorm}[kind]
    module: nn.Module = made(96, 40) if "norm" not in kind else made(96)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize(("ours", "theirs"), [("ours", "torch"), ("our norm", "torch's norm")])
@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16, torch.float64])
def test_our_layers_equal_torchs(ours: str, theirs: str, wide: torch.dtype) -> None:
    """Under autocast within bf16's rounding, otherwise bit for bit; gradients have the parameters' types."""
    one, other = layer(ours), layer(theirs)
    assert {name: p.shape for name, p in one.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}
    found = []
    for module in (one, other):
        if wide == torch.float64:
            module.double()
        x = some(7, 128, 96).to(torch.float64 if wide == torch.float64 else torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=wide == torch.bfloat16):
            y = module(x)
        gradients = torch.autograd.grad(y, (x, *module.parameters()), some(*y.shape, seed=1).to(y.dtype))
        assert [g.dtype for g in gradients] == [x.dtype, *(p.dtype for p in module.parameters())]
        found.append((y.detach(), *gradients))
    for mine, torchs in zip(*found, strict=True):
        assert (mine - torchs).norm() <= (1e-2 if wide == torch.bfloat16 else 0) * torchs.norm()


def test_our_layers_go_their_own_way_in_bf16_and_with_gradients_only() -> None:
    x = some(7, 128, 96).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer("ours")(x).grad_fn.name() == "_LinearBackward"
        assert layer("our norm")(x).grad_fn.name() == "_LayerNormBackward"
        assert layer("our norm")(x).dtype == layer("ours")(x.bfloat16()).dtype == torch.bfloat16
        assert layer("our norm")(x[0, :2]).grad_fn.name() == "NativeLayerNormBackward0", "too small to pay"
        with torch.no_grad():
            assert torch.equal(layer("ours")(x), layer("torch")(x))
    with torch.autocast("cpu", dtype=torch.float16):
        assert layer("ours")(x).dtype == torch.float16 and layer("our norm")(x).dtype == torch.float32


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_linear_layer_computes_only_the_gradients_that_are_asked_for(frozen: str) -> None:
    module, x = layer("ours"), some(3, 96).float()
    getattr(module, frozen).requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x).float().sum().backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is None) == (name == frozen)


def test_the_gradient_of_a_linear_layers_bias_is_summed_in_float32() -> None:
    module, x = layer("ours"), torch.ones(513, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x).float().sum().backward()
    assert module.bias.grad is not None and (module.bias.grad == 513).all(), "513 is no bf16"


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 4096, 9001])
def test_kernel_and_numpy_drop_the_same_elements(compiled: Kernels, n: int, dtype: torch.dtype) -> None:
    key = DropoutKey.of(0.3, 0x123456789ABCDEF0)
    kept = torch.from_numpy(dropout._kept(n, key))
    x, y = some(n).float(), some(n, seed=1).to(dtype)
    close(compiled.add_dropped(x, y, key), x + y.float() * kept * key.scale, 1e-6)
    alone = compiled.dropped(x, key, dtype)
    close(alone, (x * kept * key.scale).to(dtype), 1e-6)
    assert torch.equal(alone != 0, kept)


def test_what_lies_between_two_bf16_goes_to_the_even_one(compiled: Kernels) -> None:
    between = torch.arange(257.0, 511.0, 2)  # there bf16 has every second number
    key = DropoutKey.of(0.5, 7)
    out = compiled.dropped(between / key.scale, key, torch.bfloat16)
    kept = out != 0
    assert 30 < kept.sum() < 100
    assert torch.equal(out[kept], between.to(torch.bfloat16)[kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_way_back_drops_what_the_way_forward_dropped(dtype: torch.dtype) -> None:
    x = torch.zeros(50, 41, dtype=torch.float32 if dtype != torch.float64 else dtype, requires_grad=True)
    y = torch.ones(50, 41, dtype=dtype, requires_grad=True)
    out = Dropout(0.4)(y, onto=x)
    out.sum().backward()
    assert x.grad is not None and y.grad is not None
    assert (x.grad == 1).all() and y.grad.dtype == dtype
    assert torch.equal(y.grad == 0, out == 0) and 0.3 < (out == 0).float().mean() < 0.5
    close(y.grad[y.grad != 0], torch.full((int((y.grad != 0).sum()),), 1 / 0.6), 5e-3)


# --- cross-entropy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), HALF)
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
def test_what_is_no_number_comes_out_as_none(compiled: Kernels, bad: float, place: int) -> None:
    x = torch.zeros(2, 41)
    x[0, place] = bad
    for row in (x, x.bfloat16()):
        used = row.clone()
        losses = compiled.cross_entropy_(used, torch.tensor([3, 3]), last_offset=1.0, gradient=True)
        assert not losses[0].isfinite() and losses[1].isfinite() and not used[0].isfinite().all()
    assert not compiled.layer_norm(x, torch.ones(41), torch.zeros(41), 1e-5, torch.bfloat16)[0][0].isfinite().any()
    assert not compiled.column_sums(x.bfloat16())[place].isfinite()
    scores = torch.zeros(1, 41, 41)
    scores[0, 40, place] = bad
    assert not compiled.causal_softmax_(scores, 1.0)[0, 40].isfinite().all()
    if math.isnan(bad):
        assert compiled.gelu(x)[0].isnan().sum() == compiled.gelu(x.bfloat16())[0].isnan().sum() == 1


# --- all of it, and without -------------------------------------------------------------------------------------------


def gradients_of_a_step() -> list[Tensor]:
    """Through every kernel: layers, GELU, dropout, attention in bf16, loss with a shared row."""
    torch.manual_seed(3)
    x = some(4, 64, 32).float().requires_grad_()
    project, norm = Linear(32, 96), LayerNorm(288)
    nn.init.constant_(project.bias, 0.1)
    weight = some(96, 32, seed=1, scale=0.1).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = Dropout(0.2)(causal_attention(project(x), 4), onto=x)
        wide = norm(hidden.repeat(1, 1, 9))
        hidden = Dropout(0.2)(gelu(F.linear(wide, weight.repeat(1, 9))).chunk(3, dim=-1)[0], onto=x)
        loss = next_token_loss(hidden, weight, torch.arange(256).view(4, 64) % 96, log_unseen=2.0)
    return [loss.detach(), *torch.autograd.grad(loss / 256, (x, weight, *project.parameters(), *norm.parameters()))]


def test_with_and_without_kernels_a_step_is_the_same(request: pytest.FixtureRequest) -> None:
    ours = gradients_of_a_step()
    request.getfixturevalue("without_kernels")
    for one, other in zip(ours, gradients_of_a_step(), strict=True):
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
            back = compiled.layer_norm_back(y, tall, tall[0], moments_N2)
            found.append((losses, scores, compiled.column_sums(tall), y, *back))
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


def test_other_machines_numbers_and_devices_go_without() -> None:
    assert kernels.kernels_for(torch.zeros(3)) is not None
    for x in (torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float16), torch.zeros(3, device="meta")):
        assert kernels.kernels_for(x) is None
