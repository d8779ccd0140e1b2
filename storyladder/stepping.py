"""A step and an evaluation of a stage's work as it stands: one by one, or on a GPU many steps without waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from storyladder.corpus.token_file import ValidationWindows
from storyladder.learning.data_parallel import DataParallel
from storyladder.learning.device_steps import MOST_STEPS, WAYS, DeviceSteps, Way, quickest
from storyladder.learning.schedule import lr_at
from storyladder.learning.step import StepResult, train_step
from storyladder.measuring.evaluation import Evaluation, evaluate
from storyladder.runtime.errors import DataError, say
from storyladder.runtime.machine import free_memory
from storyladder.starting import Work

_SHARE_FOR_TOKENS = 0.25  # of a GPU's free memory that the token file may take
# What compiling takes, some 40 s, over what it saves a step, 5 ms or more (H200): shorter stages only lose by it.
_STEPS_TO_COMPILE_FOR = 8_000
_MINUTES_TO_COMPILE_FOR = 2.0


def step_now(work: Work, *, step: int) -> StepResult:
    """One update, as step number `step`. DataError if the token file was cut while it was in use."""
    rows = work.group.share_of(work.stage.batch_size)
    try:
        work.data.train.check_size()
        batch = work.batches.batch(step + work.state.batch_offset, rows)
        idx_BT, targets_BT = (torch.from_numpy(part).to(work.device) for part in batch)
    except (DataError, MemoryError, RuntimeError) as error:
        work.group.fail(error)
    return train_step(
        work.model,
        work.optimizer,
        (idx_BT, targets_BT),
        stage=work.stage,
        step=step,
        lr=lr_at(step, work.stage),
        micro_batch_size=work.micro_batch_size,
        precision=work.precision,
        scaler=work.scaler,
        vocabulary=work.vocabulary,
        group=work.group,
        parallel=_parallel(work),
    )


def _parallel(work: Work) -> DataParallel | None:
    """The model in torch's engine for several processes, in a group."""
    if work.parallel is None and not work.group.is_alone:
        # Building it all processes talk, so that none may find out only then that its gradients have no room.
        size = sum(parameter.numel() for parameter in work.model.parameters())
        work.group.together(lambda: torch.empty(size, device=work.device))
        work.parallel = DataParallel(work.model, work.device)
        work.group.before_leaving(work.parallel.close)
    return work.parallel


def steps_now(work: Work, *, step: int, n: int) -> list[StepResult]:
    """At most n updates from number `step` on: on GPUs many without waiting for them, elsewhere one."""
    # In a group the first step agrees that memory suffices; later ones could leave the others waiting.
    known = work.group.is_alone or (work.parallel is not None and work.parallel.rehearsed == work.micro_batch_size)
    if not known or not _may_run_ahead(work):
        return [step_now(work, step=step)]
    work.group.together(work.data.train.check_size)
    numbers = range(step, step + min(work.group.from_first(n), MOST_STEPS))  # clocks differ
    starts = [work.batches.starts(number + work.state.batch_offset) for number in numbers]
    if work.device_steps is None or not work.device_steps.is_for(work.optimizer, work.micro_batch_size):
        work.device_steps = None  # frees its memory before the next one takes its own
        tick = time.perf_counter()
        # Asked of the whole stage, so that a resumed one computes alike.
        long = work.stage.max_steps >= _STEPS_TO_COMPILE_FOR
        if work.run.minutes is not None:
            long = work.run.minutes >= _MINUTES_TO_COMPILE_FOR
        if long:
            print("compiling the steps, which may take a minute", flush=True)
        # Graphs of steps that exchange gradients have never been tried.
        ways = [way for way in WAYS if (long or not way.compiled) and (work.group.is_alone or not way.graph)]
        work.device_steps, way = device_steps(work, starts[0], ways)
        work.seconds_preparing += time.perf_counter() - tick
        print(f"steps run up to {MOST_STEPS} at a time on the GPU: {way.words}", flush=True)
    return work.device_steps.take(step, starts, [lr_at(number, work.stage) for number in numbers])


def _may_run_ahead(work: Work) -> bool:
    """GPUs, a precision whose scale needs no look at every step, and room for the tokens on each."""
    if work.device.type != "cuda" or work.scaler.is_enabled():
        return False
    if work.device_steps is not None:
        return True
    free = free_memory(work.device)
    return not work.group.any(free is None or work.data.train.ids.nbytes >= _SHARE_FOR_TOKENS * free)


def device_steps(
    work: Work, starts: npt.NDArray[np.int64], ways: Sequence[Way], tell: Callable[[str], None] = say
) -> tuple[DeviceSteps, Way]:
    """Steps that run ahead, and the first of the ways that works on this machine, tried on the batch that `starts`."""
    steps = DeviceSteps(
        work.model,
        work.optimizer,
        work.data.train.ids,
        stage=work.stage,
        context_length=work.run.ladder.model.context_length,
        micro_batch_size=work.micro_batch_size,
        precision=work.precision,
        vocabulary=work.vocabulary,
        device=work.device,
        group=work.group,
        parallel=_parallel(work),
    )
    return steps, quickest(steps, starts, ways, tell)


def evaluate_now(work: Work, windows: ValidationWindows) -> Evaluation:
    """The validation loss of the weights as they are; raises Interrupted when a signal asks to leave."""
    work.group.together(work.data.val.check_size)
    return evaluate(
        work.model,
        windows,
        batch_size=work.micro_batch_size,
        device=work.device,
        precision=work.precision,
        vocabulary=work.vocabulary,
        check_stop=work.stop.check_here,
        group=work.group,
    )
