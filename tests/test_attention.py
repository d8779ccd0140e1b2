"""Attention by batched matmuls equals torch's; when it is used; heads split, merged and padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from storyladder.layers import attention, causal_attention, merge_heads, split_heads
from storyladder.layers.kernels import cpu_kernels, without_kernels

needs_kernels = pytest.mark.skipif(cpu_kernels() is None, reason="no C compiler here")


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_torch(qkv_BTE: Tensor, n_head: int) -> Tensor:
    return merge_heads(F.scaled_dot_product_attention(*split_heads(qkv_BTE, n_head), is_causal=True))


@needs_kernels
@pytest.mark.parametrize(("T", "n_head", "D"), [(7, 2, 3), (64, 8, 42), (256, 2, 16)])
def test_attention_by_matmuls_equals_torchs(T: int, n_head: int, D: int) -> None:
    qkv_BTE, grad_BTC = some(2, T, 3 * n_head * D).bfloat16(), some(2, T, n_head * D, seed=1).bfloat16()
    exact = qkv_BTE.double().requires_grad_()
    expected = by_torch(exact, n_head)
    expected.backward(grad_BTC.double())
    qkv_BTE.requires_grad_()
    ours = causal_attention(qkv_BTE, n_head)
    assert ours.grad_fn.name() == "_AttentionBackward" and ours.dtype == torch.bfloat16
    ours.backward(grad_BTC)
    assert exact.grad is not None and qkv_BTE.grad is not None
    assert (ours.double() - expected).norm() < 2e-2 * expected.norm()
    assert (qkv_BTE.grad.double() - exact.grad).norm() < 2e-2 * exact.grad.norm()


@needs_kernels
def test_matmuls_are_used_in_bf16_only_and_never_for_long_windows() -> None:
    def form(T: int, dtype: torch.dtype) -> str:
        return str(causal_attention(some(1, T, 12).to(dtype).requires_grad_(), 2).grad_fn)

    assert "_Attention" in form(8, torch.bfloat16)
    assert "_Attention" in form(1024, torch.bfloat16)
    assert "_Attention" not in form(8, torch.float32) + form(8, torch.float64) + form(1, torch.bfloat16)
    assert "_Attention" not in form(1025, torch.bfloat16)
    with without_kernels("attention"):
        assert "_Attention" not in form(8, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elsewhere_it_is_torchs_attention(dtype: torch.dtype) -> None:
    qkv_BTE = some(2, 9, 3 * 2 * 5).to(dtype)
    assert torch.equal(causal_attention(qkv_BTE, 2), by_torch(qkv_BTE, 2))


def test_heads_are_parts_of_the_width_in_order() -> None:
    qkv_BTE = torch.arange(2.0 * 3 * 12).view(2, 3, 12)
    q_BHTD, k_BHTD, v_BHTD = split_heads(qkv_BTE, 2)
    assert q_BHTD.shape == (2, 2, 3, 2)
    assert torch.equal(q_BHTD[1, 1, 2], qkv_BTE[1, 2, 2:4])
    assert torch.equal(k_BHTD[1, 0, 2], qkv_BTE[1, 2, 4:6]) and torch.equal(v_BHTD[0, 1, 1], qkv_BTE[0, 1, 10:])
    assert torch.equal(merge_heads(q_BHTD), qkv_BTE[..., :4])


def test_padded_heads_are_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = torch.randn(2, 9, 3 * 2 * 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = causal_attention(qkv, 2)
    widths: list[int] = []
    real = F.scaled_dot_product_attention

    def watched(q: Tensor, *rest: Any, **named: Any) -> Tensor:
        widths.append(q.size(-1))
        return real(q, *rest, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    monkeypatch.setitem(attention._WIDTHS, "cpu", 8)
    torch.testing.assert_close(causal_attention(qkv, 2), plain, rtol=0, atol=1e-12)
    assert widths == [8]
