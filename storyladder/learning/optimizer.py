"""AdamW or Muon over all parameters, their learning rates and weight decay, and gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from storyladder.learning.muon import Muon
from storyladder.learning.network import EMBEDDING, POSITIONS, LanguageModel
from storyladder.learning.schedule import weight_decay_of
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.settings import StageConfig

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "muon": ("momentum",)}  # optimizer state of a parameter


def build_optimizer(
    model: LanguageModel, stage: StageConfig, matmul_dtype: torch.dtype = torch.float32
) -> torch.optim.Optimizer:
    """AdamW for all parameters, or Muon for the hidden matrices and AdamW for the rest, as set in the stage.

    Matrices and embeddings decay, biases and layer norms do not. Muon's matmuls run in `matmul_dtype`.
    """
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2
        mover = stage.optimizer if matrix and name not in (EMBEDDING, POSITIONS) else "adamw"
        share = _peak_lr(name, parameter, stage) / stage.max_lr
        decay = weight_decay_of(stage) if matrix else 0.0
        group = groups.setdefault(
            (mover, share, decay),
            {"params": [], "lr_share": share, "weight_decay": decay, "moments": MOMENTS[mover]},
        )
        group["params"].append(parameter)
        if mover == "muon":  # queries, keys and values are three matrices in one parameter
            group.setdefault("parts", []).append(3 if name.endswith("attn.c_attn.weight") else 1)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    adamw: dict[str, Any] = {"lr": stage.max_lr, "betas": (stage.beta1, stage.beta2), "eps": stage.eps, "fused": fused}
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(list(groups.values()), **adamw)
    return Muon(groups.values(), momentum=stage.momentum, matmul_dtype=matmul_dtype, **adamw)


def _peak_lr(name: str, parameter: Tensor, stage: StageConfig) -> float:
    own = {EMBEDDING: stage.wte_lr, POSITIONS: stage.wpe_lr}.get(name) if parameter.dim() >= 2 else stage.vector_lr
    return stage.max_lr if own is None else own


def set_rate(optimizer: torch.optim.Optimizer, lr: float | Tensor) -> None:
    """Set every group's learning rate to its share of `lr`, the rate of the hidden matrices."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the missing optimizer state, and the memory of an update, as the first update would."""
    if isinstance(optimizer, Muon) and not optimizer.state:
        optimizer.make_room()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                state: dict[str, Tensor] = {name: torch.zeros_like(parameter) for name in group["moments"]}
                if "exp_avg" in state:
                    state["step"] = torch.zeros((), device=parameter.device)
                optimizer.state[parameter] = state


def reset_optimizer(
    optimizer: torch.optim.Optimizer, model: LanguageModel, stage: StageConfig, matmul_dtype: torch.dtype
) -> torch.optim.Optimizer:
    """An optimizer without updates: the same object, reset, if it fits the stage, since compiled steps refer to it."""
    fresh = build_optimizer(model, stage, matmul_dtype)
    decays = [[group["weight_decay"] for group in each.param_groups] for each in (optimizer, fresh)]
    if decays[0] != decays[1]:
        return fresh
    forget_moments(optimizer)
    return optimizer


def forget_moments(optimizer: torch.optim.Optimizer) -> None:
    """Reset the optimizer state in place: captured steps write to these tensors."""
    for state in optimizer.state.values():
        for tensor in state.values():
            tensor.zero_()


@torch.no_grad()
def clip_gradients(model: LanguageModel, max_norm: float, vocabulary: CompactVocabulary) -> Tensor:
    """Scale all gradients so that their common L2 norm is at most `max_norm`; returns the norm before, a scalar.

    The norm includes the rows that a compact vocabulary leaves out, so clipping is the same as in the whole model. If
    the norm is not finite, the gradients are not changed; the step checks it and skips the update.
    """
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    squares = torch.stack(torch._foreach_norm(list(grads.values()))).square().sum()
    norm = (squares + vocabulary.hidden_squares(grads[EMBEDDING])).sqrt()
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(list(grads.values()), torch.where(norm.isfinite(), scale, 1.0))
    return norm
