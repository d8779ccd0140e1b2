"""Muon for the hidden matrices and AdamW for everything else, as one optimizer.

Muon (Jordan and others, https://kellerjordan.github.io/posts/muon/) updates a matrix by the orthogonal matrix nearest
to its momentum: a step of equal length in all directions, even those with small gradients. It is computed by Polar
Express (Amsel and others, https://arxiv.org/abs/2505.16932), for all matrices of a shape in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Polynomials = Sequence[tuple[float, float, float]]

# a, b, c of every iteration X -> a X + (b A + c A A) X with A = X X^T: the paper's five, for singular values of at most
# 1 / 1.02, a margin for bf16 rounding.
POLAR_EXPRESS: Polynomials = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_LARGEST = 1.02


def orthogonalized(G: Tensor, dtype: torch.dtype, polynomials: Polynomials = POLAR_EXPRESS) -> Tensor:
    """Matrices with the singular vectors of G and singular values near 1, (n, rows, columns) with rows <= columns.

    Matmuls run in `dtype`. Zeros stay zeros.
    """
    norm: Tensor = torch.linalg.vector_norm(G, dim=(-2, -1), keepdim=True)
    X = (G / (_LARGEST * norm).clamp(min=1e-7)).to(dtype)
    for a, b, c in polynomials:
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.to(G.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for the parameter groups that have `parts`, AdamW with the keywords `adamw` for the others.

    `parts` is the number of matrices stacked in each parameter: 3 for queries, keys and values. The iteration's matmuls
    run in `matmul_dtype`, or in float64 if the gradients have that dtype.
    """

    found_inf: Tensor | None = None  # as in AdamW: if it is 1, neither weights nor momentum change

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        momentum: float,
        matmul_dtype: torch.dtype,
        polynomials: Polynomials = POLAR_EXPRESS,
        **adamw: Any,
    ) -> None:
        groups = list(groups)
        self._adamw = torch.optim.AdamW([group for group in groups if "parts" not in group], **adamw)
        super().__init__(groups, self._adamw.defaults)  # shares AdamW's groups
        self.state = self._adamw.state
        self._momentum, self._matmul_dtype, self._polynomials = momentum, matmul_dtype, polynomials

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._adamw.step(closure)
        self.step_matrices()

    def make_room(self) -> None:
        """Make an update that changes nothing, so that torch's allocator holds the memory for the next one."""
        self.found_inf, kept = torch.ones((), device=self.param_groups[0]["params"][0].device), self.found_inf
        self.step_matrices()
        self.found_inf = kept

    @torch.no_grad()
    def step_matrices(self) -> None:
        """Update the matrices, which is Muon's part of a step."""
        for group in (group for group in self.param_groups if "parts" in group):
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, ...]]] = {}
            for parameter, parts in zip(group["params"], group["parts"], strict=True):
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                tensors = (parameter, parameter.grad, state["momentum"])
                for matrices in zip(*(tensor.chunk(parts) for tensor in tensors), strict=True):
                    by_shape.setdefault(tuple(sorted(matrices[0].shape)), []).append(matrices)
            for same in by_shape.values():
                self._move(same, group["lr"], group["weight_decay"])

    def _move(self, same: list[tuple[Tensor, ...]], lr: float | Tensor, weight_decay: float) -> None:
        """Update matrices of one shape, each with gradient and momentum; tall ones are transposed meanwhile."""
        longer = [math.sqrt(max(1.0, weight.size(0) / weight.size(1))) for weight, *_ in same]
        weights, grads, momenta = (
            [tensor if tensor.size(0) <= tensor.size(1) else tensor.mT for tensor in part]
            for part in zip(*same, strict=True)
        )
        G, M, W = torch.stack(grads), torch.stack(momenta), torch.stack(weights)
        averaged = M.lerp(G, 1 - self._momentum)
        dtype = self._matmul_dtype if G.dtype == torch.float32 else G.dtype
        update = orthogonalized(G.lerp(averaged, self._momentum), dtype, self._polynomials)  # Nesterov's momentum
        torch._foreach_mul_(list(update.unbind()), longer)
        moved = W * (1 - lr * weight_decay) - lr * update
        if self.found_inf is not None:
            averaged, moved = (torch.where(self.found_inf > 0, old, new) for old, new in ((M, averaged), (W, moved)))
        torch._foreach_copy_(momenta, list(averaged.unbind()))
        torch._foreach_copy_(weights, list(moved.unbind()))
