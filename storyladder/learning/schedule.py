"""The learning rate as a pure function of the step, and schedules that fit a time."""

from __future__ import annotations

import dataclasses
import math

from storyladder.settings import StageConfig

_EVALUATIONS_IN_FITTED_RUN = 8


def lr_at(step: int, stage: StageConfig) -> float:
    """Learning rate of the update after `step` updates: linear warm-up, then a cosine to min_lr at max_steps."""
    if step < stage.warmup_steps:
        return stage.max_lr * (step + 1) / stage.warmup_steps
    progress = min(1.0, (step - stage.warmup_steps) / max(1, stage.max_steps - stage.warmup_steps))
    return stage.min_lr + (stage.max_lr - stage.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def fitted_to(
    stage: StageConfig, *, step: int, seconds: float, step_seconds: float, window_seconds: float, n_windows: int
) -> StageConfig:
    """The stage with a schedule that ends `seconds` after `step`, with a warm-up in proportion.

    There are eight evaluations, which take at most a tenth of the time; `window_seconds` is the time of evaluating one
    of the `n_windows` validation windows, `step_seconds` that of one optimizer step.
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
    """The same schedule with the end moved to `seconds` after `step`, now that the speed is known better."""
    each = step_seconds + evaluation_seconds / stage.eval_interval
    steps = max(0, int((seconds - evaluation_seconds) / each))
    return dataclasses.replace(stage, max_steps=max(step + steps, stage.warmup_steps + 1))
