"""Output head fused with cross-entropy, in chunks of rows: the scores (logits) of a whole batch never exist.

With 8,192 tokens and 50,257 scores each, the plain version keeps several arrays of 1.6 GB. Here the gradient overwrites
the scores of one chunk, the gradients of head and hidden state are computed from it, and the buffer is reused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from storyladder.layers.kernels import kernels_for

_CHUNK_SCORES = {"cpu": 1 << 25, "cuda": 1 << 28}  # scores per chunk: 128 MB in fp32; GPUs need large matmuls
_COLUMNS = {"cuda": 64}  # pad to a multiple for fast matmuls: nanoGPT gained 25 % from 50,304 columns instead of 50,257

Entropy = Callable[[Tensor, Tensor, float, bool], Tensor]


def scores_at_once(device_type: str) -> int:
    """How many scores, rows times vocabulary, one chunk has on a device."""
    return _CHUNK_SCORES.get(device_type, _CHUNK_SCORES["cpu"])


def next_token_loss(
    hidden_BTC: Tensor,
    weight_VC: Tensor,
    targets_BT: Tensor,
    *,
    log_unseen: float = 0.0,
    entropy: Entropy | None = None,
) -> Tensor:
    """Cross-entropy summed over all targets, in nats, a float32 scalar with gradients for hidden state and head.

    `log_unseen` is added to the last score (learning/vocabulary.py). If the last row is the target, it stands for one
    of the tokens that share it, and the loss is that single token's. `entropy` may be a compiled form of entropy_.
    """
    entropy = entropy or entropy_
    hidden_NC, targets_N = hidden_BTC.flatten(0, 1), targets_BT.flatten()
    with_gradient = torch.is_grad_enabled() and (hidden_BTC.requires_grad or weight_VC.requires_grad)
    if not with_gradient:
        return _chunks(hidden_NC, weight_VC, targets_N, log_unseen, entropy, None, None)
    loss: Tensor = _HeadLoss.apply(hidden_NC, weight_VC, targets_N, log_unseen, entropy)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    """Computes the gradients in forward, while the scores exist; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, log_unseen: float, entropy: Entropy
    ) -> Tensor:
        grad_hidden_NC = torch.empty_like(hidden_NC, dtype=torch.float32 if hidden_NC.dtype != torch.float64 else None)
        grad_weight_VC = torch.zeros_like(weight_VC)
        loss = _chunks(hidden_NC, weight_VC, targets_N, log_unseen, entropy, grad_hidden_NC, grad_weight_VC)
        ctx.hidden_dtype = hidden_NC.dtype
        ctx.save_for_backward(grad_hidden_NC, grad_weight_VC)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden_NC, grad_weight_VC = ctx.saved_tensors
        return grad_hidden_NC.mul_(grads[0]).to(ctx.hidden_dtype), grad_weight_VC.mul_(grads[0]), None, None, None


@torch.no_grad()
def _chunks(
    hidden_NC: Tensor,
    weight_VC: Tensor,
    targets_N: Tensor,
    log_unseen: float,
    entropy: Entropy,
    grad_hidden_NC: Tensor | None,
    grad_weight_VC: Tensor | None,
) -> Tensor:
    """The summed loss and, if buffers are given, its gradients, chunk by chunk. Matmuls run in autocast's dtype."""
    device = hidden_NC.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VC.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    hidden_NC, weight_VC = hidden_NC.to(dtype), weight_VC.to(dtype)
    padding = -len(weight_VC) % _COLUMNS.get(device, 1)
    if padding:  # rows of zeros have zero scores and zero gradients
        weight_VC = F.pad(weight_VC, (0, 0, 0, padding))
    N, V = len(hidden_NC), len(weight_VC)
    rows = max(1, min(N, scores_at_once(device) // V))
    if device != "cpu":
        rows = -(-N // -(-N // rows))  # chunks of equal size: torch.compile would compile kernels for each size
    scores = torch.empty(rows, V, dtype=dtype, device=hidden_NC.device)
    loss = torch.zeros((), dtype=wide, device=hidden_NC.device)
    with torch.autocast(device, enabled=False):
        for start in range(0, N, rows):
            hidden_RC, targets_R = hidden_NC[start : start + rows], targets_N[start : start + rows]
            scores_RV = torch.mm(hidden_RC, weight_VC.T, out=scores[: len(hidden_RC)])
            real_RV = scores_RV[:, : V - padding]
            loss += entropy(real_RV, targets_R, log_unseen, grad_weight_VC is not None)
            if grad_hidden_NC is None or grad_weight_VC is None:
                continue
            grad_hidden_NC[start : start + rows] = scores_RV @ weight_VC
            if dtype == grad_weight_VC.dtype and not padding:
                grad_weight_VC.addmm_(scores_RV.T, hidden_RC)
            else:
                grad_weight_VC += (scores_RV.T @ hidden_RC)[: V - padding]
    return loss


def entropy_(scores_RV: Tensor, targets_R: Tensor, log_unseen: float, gradient: bool) -> Tensor:
    """Summed cross-entropy of some rows. Overwrites the scores; with `gradient`, by the loss's gradient."""
    kernels = kernels_for(scores_RV, "loss")
    if kernels is not None and scores_RV.is_contiguous():  # with padded columns they are not
        losses_R = kernels.cross_entropy_(scores_RV, targets_R, last_offset=log_unseen, gradient=gradient)
        return losses_R.sum()
    wide_RV = scores_RV.to(torch.promote_types(scores_RV.dtype, torch.float32))
    targets_R1 = targets_R[:, None]
    wide_RV[:, -1] += log_unseen
    torch.log_softmax(wide_RV, dim=1, out=wide_RV)
    loss = log_unseen * (targets_R == scores_RV.size(1) - 1).sum(dtype=wide_RV.dtype)
    loss = loss - wide_RV.gather(1, targets_R1).sum()
    if gradient:
        rows_R = torch.arange(len(wide_RV), device=wide_RV.device)
        wide_RV.exp_()[rows_R, targets_R] -= 1.0  # scatter_add_ is not deterministic on a GPU
        if wide_RV is not scores_RV:
            scores_RV.copy_(wide_RV)
    return loss


def fused_entropy_(scores_RV: Tensor, targets_R: Tensor, log_unseen: float, gradient: bool) -> Tensor:
    """entropy_ in a form that torch.compile turns into few kernels: the scores are written only once."""
    wide = torch.promote_types(scores_RV.dtype, torch.float32)
    columns_V = torch.arange(scores_RV.size(1), device=scores_RV.device)
    is_last_V = columns_V == scores_RV.size(1) - 1
    wide_RV = scores_RV.to(wide) + log_unseen * is_last_V
    log_sums_R = wide_RV.logsumexp(dim=1)
    loss = (log_sums_R - scores_RV.gather(1, targets_R[:, None])[:, 0].to(wide)).sum()
    if gradient:
        scores_RV.copy_((wide_RV - log_sums_R[:, None]).exp() - (columns_V == targets_R[:, None]).to(wide))
    return loss
