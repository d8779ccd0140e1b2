"""Sampling the next token: a pure function of logits, settings and a generator."""

from __future__ import annotations

import torch
from torch import Tensor

from storyladder.settings import GenerateConfig


def next_token(scores_V: Tensor, settings: GenerateConfig, generator: torch.Generator) -> int:
    """Sample one id from softmax(scores / temperature) over the `top_k` highest scores; temperature 0 is greedy.

    `generator` is on the CPU, so that a seed tells the same story on every device with equal scores.
    """
    scores_V, temperature, top_k = scores_V.float().cpu(), settings.temperature, settings.top_k
    if temperature == 0:
        return int(scores_V.argmax())
    if top_k is not None and top_k < len(scores_V):
        kept_K, ids_K = torch.topk(scores_V, top_k)
    else:
        kept_K, ids_K = scores_V, torch.arange(len(scores_V))
    # Shift first, and divide in float64: a tiny temperature must neither overflow nor underflow to zero.
    probabilities_K = torch.softmax((kept_K - kept_K.max()).double() / temperature, dim=0)
    return int(ids_K[torch.multinomial(probabilities_K, 1, generator=generator)])
