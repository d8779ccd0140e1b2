"""The learning rate as a pure function of the step, and schedules that fit a time."""

from __future__ import annotations

import dataclasses
import math

from storyladder.settings import StageConfig

_EVALUATIONS_IN_FITTED_RUN = 8


def lr_at(step: int, stage: StageConfig, max_steps: int) -> float:
    """Learning rate of the update after `step` updates: linear warm-up, then a cosine that is at min_lr at max_steps."""
    if step < stage.warmup_steps:
        return stage.max_lr * (step + 1) / stage.warmup_steps
    progress = min(1.0, (step - stage.warmup_steps) / max(1, max_steps - stage.warmup_steps))
    return stage.min_lr + (stage.max_lr - stage.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def fitted_to(stage: StageConfig, *, seconds: float, step_seconds: float, window_seconds: float) -> StageConfig:
    """The stage, shortened to a time: max_steps, a warm-up in proportion, and evaluations that take a tenth of it.

    `step_seconds` is the time of one optimizer step, `window_seconds` that of evaluating one validation window.
    """
    max_steps = max(2, int(seconds * 0.9 / step_seconds))
    val_windows = max(1, int(seconds * 0.1 / (_EVALUATIONS_IN_FITTED_RUN + 1) / window_seconds))
    return dataclasses.replace(
        stage,
        max_steps=max_steps,
        warmup_steps=min(stage.warmup_steps, max_steps // 10),
        eval_interval=min(stage.eval_interval, -(-max_steps // _EVALUATIONS_IN_FITTED_RUN)),
        val_windows=val_windows if stage.val_windows is None else min(stage.val_windows, val_windows),
    )
