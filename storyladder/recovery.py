"""When numbers go bad or memory runs out: skip, go back, take smaller pieces; and say what was done.

A step whose loss or gradient is not finite moves nothing (learning/step.py). Many in a row lead back to the last good
resume state, and the batches that went wrong are left out. Out of memory halves the micro-batch, which changes no
mean and no gradient but for rounding and the draws of dropout.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TypeVar

import torch

from storyladder.corpus.token_file import ValidationWindows
from storyladder.learning.step import StepResult
from storyladder.measuring.evaluation import Evaluation
from storyladder.runtime.errors import OutOfMemory, TrainingFailed
from storyladder.runtime.machine import is_out_of_memory
from storyladder.runtime.progress import Progress
from storyladder.stage_files import TrainState
from storyladder.starting import Work, restore
from storyladder.starting_point import load_for_all
from storyladder.stepping import evaluate_now, steps_now

T = TypeVar("T")

_SKIPPED_IN_A_ROW = 20  # steps that lead to a rollback
_ROLLBACKS = 3  # in a stage, before it stops
_SPIKE = 6.0  # standard deviations above the running mean of the loss
_SPIKE_MEMORY = 0.98  # weight of the past in that mean: about the last fifty steps
_SPIKE_FROM = 50  # steps before there is a mean to speak of


def steps_within_memory(work: Work, tell: Callable[[str], None], *, step: int, n: int) -> list[StepResult]:
    """Train at most n steps; when memory runs out, again with half the micro-batch; OutOfMemory below one sequence."""
    return _within_memory(work, tell, lambda: steps_now(work, step=step, n=n))


def evaluation_within_memory(work: Work, tell: Callable[[str], None], windows: ValidationWindows) -> Evaluation:
    """Evaluate; when memory runs out, again with half the micro-batch; OutOfMemory below one sequence."""
    return _within_memory(work, tell, lambda: evaluate_now(work, windows))


def _within_memory(work: Work, tell: Callable[[str], None], action: Callable[[], T]) -> T:
    while True:
        try:
            return action()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if work.micro_batch_size == 1:
                raise OutOfMemory(
                    "out of memory with one sequence at once; close what else uses the memory and run the same command "
                    "again, or train a smaller model (config.py)"
                ) from None
        share = work.stage.batch_size // work.group.world_size
        smaller = next(n for n in range(work.micro_batch_size // 2, 0, -1) if share % n == 0)
        tell(f"out of memory with {work.micro_batch_size} sequences at once; going on with {smaller}")
        work.log.write("out of memory", step=work.state.step, micro_batch_size=smaller)
        work.micro_batch_size = work.state.micro_batch_size = smaller
        if work.parallel is not None:  # it may be waiting for the rest of a backward
            work.parallel.close()
            work.parallel = None
        if work.device.type == "cuda":
            work.device_steps = None
            torch.cuda.empty_cache()
        elif work.device.type == "mps":
            torch.mps.empty_cache()


def note_skipped(work: Work, result: StepResult, progress: Progress) -> None:
    """Count and record a step that moved nothing because its numbers were not finite."""
    state = work.state
    state.skipped_steps += 1
    state.skipped_in_a_row += 1
    work.log.write("skipped", step=state.step, train_loss=str(result.train_loss), grad_norm=str(result.grad_norm))
    progress.say(f"step {state.step:,} skipped: loss {result.train_loss}, gradient norm {result.grad_norm}")
    if state.skipped_in_a_row >= _SKIPPED_IN_A_ROW:
        roll_back(work, progress, f"{state.skipped_in_a_row} steps in a row were not finite")


def weights_are_finite(work: Work) -> bool:
    """Whether every weight is a number, in every process; others are never saved."""
    return not work.group.any(not all(bool(parameter.isfinite().all()) for parameter in work.model.parameters()))


def roll_back(work: Work, progress: Progress, why: str) -> None:
    """Go back to the last good resume state and leave out the batches read since; at most three times in a stage."""
    bad = dataclasses.replace(work.state)
    if bad.rollbacks >= _ROLLBACKS:
        raise TrainingFailed(
            f"{why}, for the {bad.rollbacks + 1}th time, at step {bad.step:,}. The best weights so far are in "
            f"{work.files.best}; lower max_lr in config.py, or look at the text, and start over with --fresh"
        )
    loaded = load_for_all(work.group, work.files.resume)
    if loaded is None:
        raise TrainingFailed(f"{why} at step {bad.step:,}, and there is no resume state to go back to")
    restore(work, loaded.payload)
    good = TrainState(**loaded.payload["progress"])
    good.rollbacks = bad.rollbacks + 1
    good.skipped_steps = bad.skipped_steps
    good.train_seconds = bad.train_seconds
    good.micro_batch_size, good.precision, good.threads = bad.micro_batch_size, bad.precision, bad.threads
    good.best_loss, good.best_step = bad.best_loss, bad.best_step  # of the weights that are kept
    good.batch_offset = bad.batch_offset + bad.step - good.step
    for field in dataclasses.fields(TrainState):  # the loop holds this very object
        setattr(work.state, field.name, getattr(good, field.name))
    work.log.keep_until(good.step, evaluated_at=good.evaluated_at)
    work.log.write("rollback", step=good.step, from_step=bad.step, why=why, batches_left_out=good.batch_offset)
    progress.say(
        f"{why}: back to step {good.step:,}, leaving out the batches in between ({good.rollbacks} of {_ROLLBACKS})"
    )


def note_spike(work: Work, step_loss: float, progress: Progress) -> None:
    """Record a loss far above its running mean. Nothing else is done about it."""
    state = work.state
    if state.losses_seen >= _SPIKE_FROM and state.loss_variance > 0:
        z = (step_loss - state.loss_mean) / math.sqrt(state.loss_variance)
        if z > _SPIKE:
            work.log.write("spike", step=state.step, train_loss=step_loss, z=round(z, 1))
            progress.say(f"step {state.step:,}: loss {step_loss:.3f} is {z:.0f} standard deviations above its mean")
    difference = step_loss - state.loss_mean if state.losses_seen else 0.0
    state.loss_mean = state.loss_mean + (1 - _SPIKE_MEMORY) * difference if state.losses_seen else step_loss
    state.loss_variance = _SPIKE_MEMORY * (state.loss_variance + (1 - _SPIKE_MEMORY) * difference**2)
    state.losses_seen += 1
