"""--plan and --minutes: how fast a stage is, how long it will take, and a schedule that fits a given time.

Speed is measured by taking some steps with weights that are thrown away.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

from storyladder.learning.memory import predicted_memory
from storyladder.learning.schedule import fitted_to, refitted_to
from storyladder.runtime.machine import GB, free_memory, machine_line
from storyladder.runtime.progress import duration_text
from storyladder.settings import ModelConfig, StageConfig
from storyladder.stage.setup import Stage
from storyladder.stage.start import Start

_STEPS_AT_ONCE = 20  # per timing on a GPU
_MEASURE_SECONDS = 10.0  # at most
_SCHEDULE = ("max_steps", "warmup_steps", "eval_interval", "val_windows")  # what --minutes decides


@dataclasses.dataclass(frozen=True)
class StepSeconds:
    """Measured times, in seconds."""

    step: float  # one optimizer step
    window: float  # the evaluation of one validation window


def measure_speed(stage: Stage) -> StepSeconds:
    """Time some steps and windows. This changes weights and optimizer: call load_start afterwards."""
    learner, seconds = stage.learner, list[float]()
    began = time.monotonic()
    while learner.group.from_rank_0(
        len(seconds) < 3 or (len(seconds) < 8 and time.monotonic() - began < _MEASURE_SECONDS)
    ):
        stage.stop.check()
        tick = time.perf_counter()
        if taken := learner.steps(stage.batches, len(seconds), _STEPS_AT_ONCE):
            seconds.append((time.perf_counter() - tick) / len(taken))
    windows = stage.text.windows(learner.micro_batch_size * learner.group.world_size)
    for _ in range(1 if learner.device.type == "cpu" else 2):  # a GPU's first evaluation loads its kernels
        tick = time.perf_counter()
        learner.evaluate(windows)
        window = (time.perf_counter() - tick) / len(windows)
    steady = sorted(seconds[1:])  # the first step allocates and warms up
    return StepSeconds(steady[len(steady) // 2], window)


def fit_to_minutes(stage: Stage, minutes: float, speed: StepSeconds) -> None:
    """Fit the schedule to end `minutes` after the start of this process."""
    learner = stage.learner
    before = learner.stage.val_windows
    fitted = fitted_to(
        stage.run.stage,
        step=stage.state.step,
        seconds=max(60 * minutes - stage.pace.elapsed(), 1.0),
        step_seconds=speed.step,
        window_seconds=speed.window,
        n_windows=len(stage.text.windows(stage.run.stage.val_windows)),
    )
    if stage.state.evaluated_at >= 0:  # losses on other windows cannot be compared with the best so far
        fitted = dataclasses.replace(fitted, val_windows=before)
    _take_schedule(stage, fitted)
    stage.windows = stage.text.windows(learner.stage.val_windows)
    stage.pace.evaluation_seconds = speed.window * len(stage.windows)
    print(
        f"fitted to {minutes:g} minutes: about {learner.stage.max_steps - stage.state.step:,} steps of "
        f"{speed.step:.3g} s, evaluated on {len(stage.windows):,} windows"
    )


def refit(stage: Stage) -> None:
    """With --minutes, move the last step to where training will be in that time at its current speed."""
    schedule, state, pace = stage.learner.stage, stage.state, stage.pace
    if stage.run.minutes is None or not pace.steps or state.step >= schedule.max_steps:
        return
    refitted = refitted_to(
        schedule,
        step=state.step,
        seconds=60 * stage.run.minutes - pace.elapsed(),
        step_seconds=pace.seconds_a_step,
        evaluation_seconds=pace.evaluation_seconds,
    )
    _take_schedule(stage, refitted)


def _take_schedule(stage: Stage, fitted: StageConfig) -> None:
    """Use the schedule that rank 0's clock calls for, on all ranks, and keep it in the state for a resume."""
    numbers = stage.learner.group.from_rank_0({name: getattr(fitted, name) for name in _SCHEDULE})
    stage.learner.stage = dataclasses.replace(fitted, **numbers)
    stage.state.fitted = numbers


def disk_needed(model: ModelConfig) -> int:
    """Upper bound in bytes: three resume states (one being written), and three files of weights."""
    return 4 * model.n_params * (3 * 3 + 3)


def plan_lines(stage: Stage, start: Start) -> list[str]:
    """Measure, and return the lines that --plan prints."""
    speed = measure_speed(stage)
    if stage.run.minutes is not None:
        fit_to_minutes(stage, stage.run.minutes, speed)
    learner, model = stage.learner, stage.run.ladder.model
    schedule, device = learner.stage, learner.device
    steps = schedule.max_steps - stage.state.step
    evaluations = -(-steps // schedule.eval_interval) + 1
    evaluation_seconds = speed.window * len(stage.windows)
    seconds = steps * speed.step + evaluations * evaluation_seconds
    rows, tokens = learner.vocabulary.n_rows, stage.run.ladder.tokens_per_step(schedule)
    memory = predicted_memory(model, n_rows=rows, micro_batch_size=learner.micro_batch_size, device_type=device.type)
    compact = f", {rows:,} of {model.vocab_size:,} vocabulary rows in use" if rows < model.vocab_size else ""
    free = free_memory(device)
    patience = f" at the latest (patience {schedule.patience})" if schedule.patience else ""
    disk = shutil.disk_usage(_existing(stage.checkpoints.files.resume.parent)).free
    return [
        machine_line(device, learner.precision),
        f"start       {start.description}",
        f"model       {model.n_params:,} parameters{compact}",
        f"step        {tokens:,} tokens in micro-batches of {learner.micro_batch_size} x {model.context_length}: "
        f"{speed.step:.3g} s, {tokens / speed.step:,.0f} tokens/s",
        f"evaluation  {len(stage.windows):,} windows in {duration_text(evaluation_seconds)}, {evaluations} times",
        f"stage       {steps:,} steps: {duration_text(seconds)}, until {_clock(seconds)}{patience}",
        f"memory      about {memory / GB:.1f} GB" + (f" of {free / GB:.1f} GB free" if free is not None else ""),
        f"disk        up to {disk_needed(model) / GB:.1f} GB of {disk / GB:.1f} GB free",
    ]


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _clock(seconds: float) -> str:
    return time.strftime("%a %d %b %H:%M", time.localtime(time.time() + seconds))
