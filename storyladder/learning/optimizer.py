"""AdamW with decay on matrices only, and clipping of the whole gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from storyladder.learning.network import EMBEDDING, LanguageModel
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.settings import StageConfig


def build_optimizer(model: LanguageModel, stage: StageConfig) -> torch.optim.AdamW:
    """AdamW over all parameters; matrices and embeddings decay, biases and layer norms do not."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=stage.max_lr, betas=(stage.beta1, stage.beta2), eps=stage.eps, fused=fused)


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Take the memory of fused AdamW's state for every parameter that has none yet, as the first update would."""
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if not optimizer.state[parameter]:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}


@torch.no_grad()
def clip_gradients(model: LanguageModel, max_norm: float, vocabulary: CompactVocabulary) -> Tensor:
    """Scale all gradients so that their common L2 norm is at most `max_norm`; returns the norm before, a scalar.

    The norm counts the rows that a compact vocabulary leaves out, so clipping acts as in the whole model. A norm that
    is not finite leaves the gradients as they are; the step looks at it and skips the update.
    """
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    squares = torch.stack(torch._foreach_norm(list(grads.values()))).square().sum()
    norm = (squares + vocabulary.hidden_squares(grads[EMBEDDING])).sqrt()
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(list(grads.values()), torch.where(norm.isfinite(), scale, 1.0))
    return norm
