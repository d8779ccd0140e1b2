"""The learning rate as a pure function of the step, and schedules that fit a given time."""

from __future__ import annotations

import dataclasses
import math

from storyladder.settings import StageConfig

_EVALUATIONS_IN_FITTED_RUN = 8
# The best learning rate falls with the number of tokens to this power: Bjorck and others,
# https://arxiv.org/abs/2409.19913.
_HORIZON_EXPONENT = 0.32


def lr_at(step: int, stage: StageConfig) -> float:
    """Learning rate of the update after `step` updates: linear warm-up, then cosine or linear decay to min_lr.

    It depends only on the step and the stage's settings. In a stage longer than lr_horizon all rates are smaller.
    """
    smaller: float = _horizons(stage) ** -_HORIZON_EXPONENT
    highest, lowest = smaller * stage.max_lr, smaller * stage.min_lr
    if step < stage.warmup_steps:
        return highest * (step + 1) / stage.warmup_steps
    progress = min(1.0, (step - stage.warmup_steps) / max(1, stage.max_steps - stage.warmup_steps))
    left = 1 - progress if stage.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return lowest + (highest - lowest) * left


def weight_decay_of(stage: StageConfig) -> float:
    """The stage's weight decay; in a stage longer than lr_horizon smaller, so that rate x decay x steps stays the same.

    That is how many times the weights decay by a factor of e during the stage (https://arxiv.org/abs/2405.13698).
    """
    smaller: float = _horizons(stage) ** (_HORIZON_EXPONENT - 1)
    return stage.weight_decay * smaller


def _horizons(stage: StageConfig) -> float:
    """The stage's length divided by lr_horizon, the length that the rates were chosen for; at least 1."""
    return 1.0 if stage.lr_horizon is None else max(1.0, stage.max_steps / stage.lr_horizon)


def fitted_to(
    stage: StageConfig, *, step: int, seconds: float, step_seconds: float, window_seconds: float, n_windows: int
) -> StageConfig:
    """The stage with a schedule that ends `seconds` after `step`, with a proportional warm-up.

    It has eight evaluations, which take at most a tenth of the time; `window_seconds` is the time to evaluate one of
    the `n_windows` validation windows, `step_seconds` that of one optimizer step.
    """
    affordable = int(seconds * 0.1 / (_EVALUATIONS_IN_FITTED_RUN + 1) / window_seconds)
    val_windows = max(1, min(affordable, n_windows))
    evaluation_seconds = val_windows * window_seconds
    steps = max(2, int((seconds - (_EVALUATIONS_IN_FITTED_RUN + 1) * evaluation_seconds) / step_seconds))
    return dataclasses.replace(
        stage,
        max_steps=step + steps,
        warmup_steps=min(stage.warmup_steps, (step + steps) // 10),
        eval_interval=max(1, -(-steps // _EVALUATIONS_IN_FITTED_RUN)),
        val_windows=val_windows,
    )


def refitted_to(
    stage: StageConfig, *, step: int, seconds: float, step_seconds: float, evaluation_seconds: float
) -> StageConfig:
    """The same schedule with its end moved to `seconds` after `step`, with the speed measured since."""
    each = step_seconds + evaluation_seconds / stage.eval_interval
    steps = max(0, int((seconds - evaluation_seconds) / each))
    return dataclasses.replace(stage, max_steps=max(step + steps, stage.warmup_steps + 1))
