"""What tests of single steps share: a toy model's stage, batch, stepper, and everything that moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import MUON
from torch import Tensor

from model import GPT
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.step import Stepper
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.runtime.machine import Precision
from storyladder.settings import StageConfig

BuildGPT = Callable[..., GPT]
Batch = tuple[Tensor, Tensor]
STAGE = StageConfig(name="tiny", train_file="", val_file="", result_file="", seed=7)
STAGES = pytest.mark.parametrize("stage", [STAGE, replace(STAGE, **MUON)], ids=["adamw", "muon"])
PLAIN = CompactVocabulary(torch.ones(40, dtype=torch.bool))
FP32 = Precision(torch.float32, "a test wants it", "cpu")


def some_batch(rows: int = 4, seed: int = 1) -> Batch:
    ids = torch.randint(40, (rows, 13), generator=torch.Generator().manual_seed(seed))
    return ids[:, :-1], ids[:, 1:]


def stepper_of(
    model: GPT, optimizer: torch.optim.Optimizer | None = None, stage: StageConfig = STAGE, **changes: Any
) -> Stepper:
    asked: dict[str, Any] = {"micro_batch_size": 2, "precision": FP32, "vocabulary": PLAIN}
    return Stepper(model, optimizer or build_optimizer(model, stage), stage, **asked | changes)


def everything(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer state, copied."""
    found = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found |= {f"{key} of {name}": tensor.clone() for key, tensor in optimizer.state[parameter].items()}
    return found
