"""Choosing the next token: pure functions of scores, settings and a generator."""

from __future__ import annotations

import torch
from torch import Tensor


def next_token(scores_V: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """One id drawn from softmax(scores / temperature) among the `top_k` likeliest; temperature 0 takes the likeliest.

    `generator` lives on the CPU, so that a seed tells the same story on every device with equal scores.
    """
    scores_V = scores_V.float().cpu()
    if temperature == 0:
        return int(scores_V.argmax())
    if top_k is not None and top_k < len(scores_V):
        kept_K, ids_K = torch.topk(scores_V, top_k)
    else:
        kept_K, ids_K = scores_V, torch.arange(len(scores_V))
    # Shifted first, and divided in float64: a tiny temperature must neither overflow nor become zero.
    probabilities_K = torch.softmax((kept_K - kept_K.max()).double() / temperature, dim=0)
    return int(ids_K[torch.multinomial(probabilities_K, 1, generator=generator)])
