"""Weights and optimizer state as CPU tensors under GPT-2's names, always with the whole vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from storyladder.learning.network import EMBEDDING, LanguageModel
from storyladder.learning.optimizer import MOMENTS, forget_moments
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.runtime.checkpoint import Payload


def pack_weights(model: LanguageModel, vocabulary: CompactVocabulary) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: _packed(name, tensor, vocabulary) for name, tensor in model.state_dict().items()}


def unpack_weights(model: LanguageModel, weights: dict[str, Tensor], vocabulary: CompactVocabulary) -> None:
    """Load weights with the whole vocabulary into a model whose vocabulary may be compact."""
    model.load_state_dict(
        {name: vocabulary.compress(tensor) if name == EMBEDDING else tensor for name, tensor in weights.items()}
    )


def pack_optimizer(
    model: LanguageModel, optimizer: torch.optim.Optimizer, vocabulary: CompactVocabulary
) -> dict[str, Any]:
    """A copy of the optimizer's moments by parameter name, and the number of updates it has made."""
    moments_of = _moments_of(optimizer)
    updates = max((int(state.get("step", 0)) for state in optimizer.state.values()), default=0)  # Muon counts none
    packed: dict[str, Any] = {moment: {} for moments in moments_of.values() for moment in moments}
    for name, parameter in model.named_parameters():
        for moment in moments_of[parameter] if updates else ():
            packed[moment][name] = _packed(name, optimizer.state[parameter][moment], vocabulary)
    return {"updates": updates, **packed}


def unpack_optimizer(
    model: LanguageModel, optimizer: torch.optim.Optimizer, packed: dict[str, Any], vocabulary: CompactVocabulary
) -> None:
    """Restore what `pack_optimizer` took, in place where there is a state: captured steps write to those tensors."""
    if not packed["updates"]:
        forget_moments(optimizer)
        return
    moments_of = _moments_of(optimizer)
    for name, parameter in model.named_parameters():
        state = {moment: packed[moment][name] for moment in moments_of[parameter]}
        if name == EMBEDDING:
            state = {moment: vocabulary.compress(tensor) for moment, tensor in state.items()}
        state = {moment: tensor.to(parameter.device) for moment, tensor in state.items()}
        if "exp_avg" in state:
            counter = torch.tensor(float(packed["updates"]))
            # Fused AdamW keeps the counter on the device, plain AdamW on the CPU.
            state["step"] = counter.to(parameter.device) if optimizer.defaults["fused"] else counter
        current = optimizer.state[parameter]
        if current.keys() == state.keys():
            torch._foreach_copy_(list(current.values()), [state[key] for key in current])
        else:
            optimizer.state[parameter] = state


def can_be_compact(payload: Payload, vocabulary: CompactVocabulary) -> bool:
    """Whether one row can represent all unseen tokens, in the weights and in the moments of a checkpoint."""
    moments = payload.get("optimizer", {})
    shared = [payload["model"], *(moments[name] for name in MOMENTS["adamw"] if moments.get("updates"))]
    return all(vocabulary.can_share(tensors[EMBEDDING]) for tensors in shared)


def _packed(name: str, tensor: Tensor, vocabulary: CompactVocabulary) -> Tensor:
    return (vocabulary.expand(tensor) if name == EMBEDDING else tensor).detach().cpu().clone()


def _moments_of(optimizer: torch.optim.Optimizer) -> dict[Tensor, tuple[str, ...]]:
    """The names of each parameter's moments."""
    return {parameter: group["moments"] for group in optimizer.param_groups for parameter in group["params"]}
