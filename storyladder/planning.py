"""Before a stage starts: how fast it will be, how long it will take, and a schedule that fits a time.

Speed is measured by doing some steps on weights that are thrown away.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

from storyladder.learning.memory import predicted_memory
from storyladder.learning.schedule import fitted_to, refitted_to
from storyladder.recovery import evaluation_within_memory, steps_within_memory
from storyladder.runtime.errors import say
from storyladder.runtime.machine import GB, free_memory, machine_line
from storyladder.runtime.progress import duration_words, time_left
from storyladder.settings import ModelConfig, StageConfig
from storyladder.starting import Work, validation_windows

_STEPS_AT_ONCE = 20  # that a GPU is timed by
_MEASURE_SECONDS = 10.0  # at most
_SCHEDULE = ("max_steps", "warmup_steps", "eval_interval", "val_windows")  # what --minutes decides


@dataclasses.dataclass(frozen=True)
class Speed:
    """What was measured, in seconds."""

    step: float  # one optimizer step
    window: float  # the evaluation of one validation window


def measure_speed(work: Work) -> Speed:
    """Time some steps and some windows. It wears out the model's weights and the optimizer: load them afterwards."""
    seconds: list[float] = []
    began = time.monotonic()
    while work.group.from_first(len(seconds) < 3 or (len(seconds) < 8 and time.monotonic() - began < _MEASURE_SECONDS)):
        work.stop.check()
        tick = time.perf_counter()
        taken = steps_within_memory(work, say, step=len(seconds), n=_STEPS_AT_ONCE)
        seconds.append((time.perf_counter() - tick) / len(taken))
    few = dataclasses.replace(work.stage, val_windows=work.micro_batch_size * work.group.world_size)
    windows = validation_windows(work.run, work.data, few)
    for _ in range(1 if work.device.type == "cpu" else 2):  # a GPU's first evaluation loads its kernels
        tick = time.perf_counter()
        evaluation_within_memory(work, say, windows)
        window = (time.perf_counter() - tick) / len(windows)
    steady = sorted(seconds[1:])  # the first step allocates and warms up
    return Speed(steady[len(steady) // 2], window)


def fit_to_minutes(work: Work, minutes: float, speed: Speed) -> None:
    """Shorten the schedule so that it ends in `minutes`, and remember it in the state."""
    before = work.stage.val_windows
    everything = validation_windows(work.run, work.data, work.run.stage)
    seconds = 60 * minutes - (time.monotonic() - work.began_at)
    _take_schedule(
        work,
        fitted_to(
            work.run.stage,
            step=work.state.step,
            seconds=max(seconds, 1.0),
            step_seconds=speed.step,
            window_seconds=speed.window,
            n_windows=len(everything),
        ),
    )
    if work.state.evaluated_at >= 0:  # losses on other windows could not be compared with the best so far
        work.stage = dataclasses.replace(work.stage, val_windows=before)
    work.windows = validation_windows(work.run, work.data, work.stage)
    work.evaluation_seconds = speed.window * len(work.windows)
    _remember(work)
    print(
        f"fitted to {minutes:g} minutes: about {work.stage.max_steps - work.state.step:,} steps of {speed.step:.3g} s, "
        f"evaluated on {len(work.windows):,} windows"
    )


def refit(work: Work) -> None:
    """Move the end of a stage that runs with --minutes to where the speed so far will take it in time."""
    if work.run.minutes is None or not work.steps_here or work.state.step >= work.stage.max_steps:
        return
    stage = refitted_to(
        work.stage,
        step=work.state.step,
        seconds=60 * work.run.minutes - (time.monotonic() - work.began_at),
        step_seconds=seconds_a_step(work),
        evaluation_seconds=work.evaluation_seconds,
    )
    _take_schedule(work, stage)
    _remember(work)


def _take_schedule(work: Work, stage: StageConfig) -> None:
    """The schedule that the first process's clock asks for, in every process."""
    numbers = work.group.from_first({name: getattr(stage, name) for name in _SCHEDULE})
    work.stage = dataclasses.replace(stage, **numbers)


def seconds_a_step(work: Work) -> float:
    """Of this process so far, with records and saves, without evaluations."""
    return (work.seconds_here + work.seconds_between) / max(1, work.steps_here)


def _remember(work: Work) -> None:
    work.state.fitted = {name: getattr(work.stage, name) for name in _SCHEDULE}


def seconds_left(work: Work) -> float:
    """Until the end of the stage, by the speed of this process so far."""
    steps = work.stage.max_steps - work.state.step
    return time_left(
        steps=steps,
        step_seconds=seconds_a_step(work),
        evaluations=-(-steps // work.stage.eval_interval),
        evaluation_seconds=work.evaluation_seconds,
    )


def disk_needed(model: ModelConfig) -> int:
    """Bytes a stage takes at most: two resume states and one being written, best weights and result likewise."""
    return 4 * model.n_params * (3 * 3 + 3)


def plan_lines(work: Work) -> list[str]:
    """What --plan prints, after measuring."""
    speed, stage, model = measure_speed(work), work.stage, work.run.ladder.model
    if work.run.minutes is not None:
        fit_to_minutes(work, work.run.minutes, speed)
        stage = work.stage
    steps = stage.max_steps - work.state.step
    evaluations = -(-steps // stage.eval_interval) + 1
    evaluation_seconds = speed.window * len(work.windows)
    seconds = time_left(
        steps=steps, step_seconds=speed.step, evaluations=evaluations, evaluation_seconds=evaluation_seconds
    )
    rows, tokens = work.vocabulary.n_rows, work.run.ladder.tokens_per_step(stage)
    memory = predicted_memory(model, n_rows=rows, micro_batch_size=work.micro_batch_size, device_type=work.device.type)
    compact = f", {rows:,} of {model.vocab_size:,} vocabulary rows in use" if rows < model.vocab_size else ""
    free = free_memory(work.device)
    patience = f" at the latest (patience {stage.patience})" if stage.patience else ""
    disk = shutil.disk_usage(_existing(work.files.resume.parent)).free
    return [
        machine_line(work.device, work.precision),
        f"start       {work.start.words}",
        f"model       {model.n_params:,} parameters{compact}",
        f"step        {tokens:,} tokens in micro-batches of {work.micro_batch_size} x {model.context_length}: "
        f"{speed.step:.3g} s, {tokens / speed.step:,.0f} tokens/s",
        f"evaluation  {len(work.windows):,} windows in {duration_words(evaluation_seconds)}, {evaluations} times",
        f"stage       {steps:,} steps: {duration_words(seconds)}, until {_clock(seconds)}{patience}",
        f"memory      about {memory / GB:.1f} GB" + (f" of {free / GB:.1f} GB free" if free is not None else ""),
        f"disk        up to {disk_needed(model) / GB:.1f} GB of {disk / GB:.1f} GB free",
    ]


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _clock(seconds: float) -> str:
    return time.strftime("%a %d %b %H:%M", time.localtime(time.time() + seconds))
