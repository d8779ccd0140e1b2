"""What tests of steps and learners share: toy batches, steppers, learners, and everything that moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MUON
from torch import Tensor

from model import GPT
from storyladder.corpus.token_file import TrainBatches, ValidationWindows
from storyladder.learning.learner import Learner
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.step import Stepper
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.runtime.machine import Precision
from storyladder.settings import ModelConfig, StageConfig

BuildGPT = Callable[..., GPT]
Batch = tuple[Tensor, Tensor]
STAGE = StageConfig(name="tiny", corpus="tiny", script="train_tiny.py", result_file="", seed=7)
STAGES = pytest.mark.parametrize("stage", [STAGE, replace(STAGE, **MUON)], ids=["adamw", "muon"])
PLAIN = CompactVocabulary(torch.ones(40, dtype=torch.bool))
FP32 = Precision(torch.float32, "a test wants it", "cpu")
IDS = np.random.default_rng(0).integers(0, 30, 500).astype(np.uint16)  # of 40 token types
MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=12, vocab_size=40, dropout=0.1)
LEARNING = replace(STAGE, batch_size=4, max_steps=20, warmup_steps=3, max_lr=0.01, min_lr=0.001)


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


def batches_of(stage: StageConfig = LEARNING, **changes: Any) -> TrainBatches:
    asked: dict[str, Any] = {"context_length": 12, "batch_size": stage.batch_size, "seed": stage.seed}
    return TrainBatches(IDS, **asked | changes)


def windows_of(**changes: Any) -> ValidationWindows:
    asked: dict[str, Any] = {"context_length": 12, "limit": None, "token_bytes_V": np.ones(40, dtype=np.int64)}
    return ValidationWindows(IDS[:150], **asked | changes)


def learner_of(
    *,
    kind: type[Learner] = Learner,
    build: Callable[[ModelConfig], GPT] = GPT,
    stage: StageConfig = LEARNING,
    compact: bool = True,
    dropout: float = 0.1,
    **changes: Any,
) -> Learner:
    """A learner of a toy model on the CPU, with random weights; 10 of its 40 token types share a row if `compact`."""
    asked: dict[str, Any] = {"device": torch.device("cpu"), "precision": FP32, "micro_batch_size": 2}
    vocabulary = CompactVocabulary(torch.arange(40) < 30, compact=compact)
    learner = kind(build, replace(MODEL, dropout=dropout), stage, vocabulary=vocabulary, **asked | changes)
    learner.start_randomly()
    return learner
