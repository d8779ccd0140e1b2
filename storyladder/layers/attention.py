"""Causal self-attention over a whole window, in the fastest form for the device and the precision.

Shapes: B sequences, T tokens, C width, H heads, D width of a head; N = B * H, one matrix per head and sequence.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyladder.layers.kernels import Kernels, kernels_for

_WIDTHS = {"cuda": 8}  # the fastest kernels (cuDNN's) need a head width that is a multiple of this
_MAX_TOKENS = 1024  # longer windows use torch's fused kernel, which never stores a whole (T, T) score matrix


def causal_attention(qkv_BTE: Tensor, n_head: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in every head; a token sees itself and earlier tokens. (B, T, 3 C) to (B, T, C).

    `qkv_BTE` holds queries, keys and values next to each other. The probabilities get no dropout (GPT-2's did): it
    would rule out the fast kernels on CPUs and in cuDNN. On a CPU in bf16, batched matmuls with whole score matrices
    were three to four times as fast as torch's fused kernel in a trial with AMX; in fp32 they are not (LOG.md).
    """
    T, kernels = qkv_BTE.size(1), kernels_for(qkv_BTE, "attention")
    if kernels is not None and qkv_BTE.dtype == torch.bfloat16 and 1 < T <= _MAX_TOKENS:
        return _Attention.apply(qkv_BTE, n_head, kernels)  # type: ignore[no-any-return,no-untyped-call]
    q_BHTD, k_BHTD, v_BHTD = split_heads(qkv_BTE, n_head)
    D = q_BHTD.size(-1)
    if padding := -D % _WIDTHS.get(qkv_BTE.device.type, 1):  # zeros do not change the scores
        q_BHTD, k_BHTD, v_BHTD = (F.pad(part, (0, padding)) for part in (q_BHTD, k_BHTD, v_BHTD))
    y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True, scale=1 / math.sqrt(D))
    return merge_heads(y_BHTD[..., :D])


def split_heads(qkv_BTE: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of queries, keys and values, (B, H, T, D) each."""
    B, T, E = qkv_BTE.shape
    q_BHTD, k_BHTD, v_BHTD = qkv_BTE.view(B, T, 3, n_head, E // 3 // n_head).permute(2, 0, 3, 1, 4)
    return q_BHTD, k_BHTD, v_BHTD


def merge_heads(y_BHTD: Tensor) -> Tensor:
    """(B, H, T, D) to (B, T, C)."""
    return y_BHTD.transpose(1, 2).flatten(2)


class _Attention(torch.autograd.Function):
    """Batched matmuls with a softmax between them. The probabilities are kept for backward."""

    @staticmethod
    def forward(ctx: Any, qkv_BTE: Tensor, n_head: int, kernels: Kernels) -> Tensor:
        D = qkv_BTE.size(-1) // 3 // n_head
        with torch.autocast("cpu", enabled=False):
            qkv_3NTD = kernels.split_heads(qkv_BTE, 3, n_head)
            q_NTD, k_NTD, v_NTD = qkv_3NTD
            probs_NTT = kernels.causal_softmax_(torch.bmm(q_NTD, k_NTD.mT), 1 / math.sqrt(D))
            y_NTD = torch.bmm(probs_NTT, v_NTD)
        ctx.n_head, ctx.kernels = n_head, kernels
        ctx.save_for_backward(qkv_3NTD, probs_NTT)
        return kernels.merge_heads(y_NTD[None], n_head)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        qkv_3NTD, probs_NTT = ctx.saved_tensors
        q_NTD, k_NTD, v_NTD = qkv_3NTD
        D, kernels = q_NTD.size(-1), ctx.kernels
        with torch.autocast("cpu", enabled=False):
            (grad_NTD,) = kernels.split_heads(grads[0], 1, ctx.n_head)
            grad_3NTD = torch.empty_like(qkv_3NTD)
            torch.bmm(probs_NTT.mT, grad_NTD, out=grad_3NTD[2])
            grad_NTT = kernels.causal_softmax_backward_(probs_NTT, torch.bmm(grad_NTD, v_NTD.mT), 1 / math.sqrt(D))
            torch.bmm(grad_NTT, k_NTD, out=grad_3NTD[0])
            torch.bmm(grad_NTT.mT, q_NTD, out=grad_3NTD[1])
        return kernels.merge_heads(grad_3NTD, ctx.n_head), None, None
