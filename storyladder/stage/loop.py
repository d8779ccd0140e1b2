"""The training loop: one stage from its start, or its last save, to its end.

The loop is: save -> evaluate -> exit? -> train. `step` is the number of updates done, so a state saved at step k
continues with batch k, learning rate k and the dropout of step k: an interrupted and resumed run is bit for bit the
same as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Iterator

from storyladder.command_line import StageRun, as_typed_for
from storyladder.learning.network import BuildModel
from storyladder.learning.schedule import lr_at
from storyladder.learning.step import StepResult
from storyladder.results import StageFiles, stage_command
from storyladder.runtime.distributed import Group, joined_group
from storyladder.runtime.errors import (
    DataError,
    Interrupted,
    OthersFailed,
    OutOfMemory,
    PeerLost,
    TrainingFailed,
    report,
)
from storyladder.runtime.lock import locked
from storyladder.runtime.machine import machine_line, peak_memory
from storyladder.runtime.progress import Progress, duration_text
from storyladder.runtime.signals import StopRequest, stop_on_signals
from storyladder.settings import Ladder, StageConfig
from storyladder.stage.finished import report_finished
from storyladder.stage.forgetting import report_forgetting
from storyladder.stage.pace import Pace
from storyladder.stage.plan import fit_to_minutes, measure_speed, plan_lines, refit
from storyladder.stage.reports import first_loss_explained
from storyladder.stage.setup import Stage, load_start, record_start, set_up
from storyladder.stage.state import TrainState

_SECONDS_BETWEEN_CHECKS = 2.0  # for signals, on a GPU that takes many steps at a time
_SKIPPED_IN_A_ROW = 20  # steps that lead to a rollback
_ROLLBACKS = 3  # in a stage, before it stops


def train_stage(run: StageRun, build_model: BuildModel) -> None:
    """Train one stage to its end, or plan it. Raises Interrupted if a signal asked to exit, after saving."""
    files = StageFiles.of(run.ladder, run.stage)
    with as_typed_for(run.ladder), stop_on_signals() as stop, joined_group(stop) as group:
        if run.plan:
            if group.on_first(files.result.exists) and not run.fresh:
                print(f"stage {run.stage.name} is finished; starting it over with --fresh would take:")
                run = dataclasses.replace(run, fresh=True)
            print("\n".join(plan_lines(*set_up(run, build_model, stop, group))))
            return
        with contextlib.ExitStack() as stack:
            group.on_first(lambda: stack.enter_context(locked(run.ladder.lock(run.stage.name))))
            if group.on_first(files.result.exists) and not run.fresh:
                group.on_first(lambda: report_finished(run, files))
                return
            stage = _begin(run, build_model, stop, group)
            with _save_on_failure(stage):
                with Progress(run.stage.name, step=stage.state.step, max_steps=stage.learner.stage.max_steps) as shown:
                    stage.learner.report = shown.report
                    _loop(stage, shown)
                _finish(stage)


def _begin(run: StageRun, build_model: BuildModel, stop: StopRequest, group: Group) -> Stage:
    """Check, build and load everything. No file changes until all checks have passed."""
    stage, start = set_up(run, build_model, stop, group)
    print(machine_line(stage.learner.device, stage.learner.precision))
    if not group.is_alone:
        print(f"{group.world_size} processes share each batch of {run.stage.batch_size} sequences")
    print(f"stage {run.stage.name}: {start.description}{_replay_text(run.stage)}", flush=True)
    if run.minutes is not None:
        fit_to_minutes(stage, run.minutes, measure_speed(stage))
    load_start(stage.learner, start)
    if run.fresh:
        group.on_first(lambda: _set_aside(stage))
    stage.state.micro_batch_size = stage.learner.micro_batch_size
    _check_windows(stage)
    if stage.state.best_step >= 0 and (lost := stage.checkpoints.lost_best()):
        stage.state.forget_best()
        report(f"warning: {lost}; the best loss is reset at step {stage.state.step:,}")
    stage.log.truncate_after(stage.state.step, evaluated_at=stage.state.evaluated_at)
    stage.reports.begin(stage.state)
    record_start(stage, start)
    return stage


def _replay_text(stage: StageConfig) -> str:
    shares = [f"{share:.3g} of {corpus}" for corpus, share in (stage.replay or {}).items()]
    return f"; replaying {' and '.join(shares)} in each batch" if shares else ""


def _set_aside(stage: Stage) -> None:
    """Rename the files of earlier training of this stage."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    stage.log.set_aside(stamp)
    stage.reports.scrapbook.set_aside(stamp)
    for path in stage.checkpoints.files.set_aside(stamp):
        print(f"the old file is kept as {path.name}")


def _check_windows(stage: Stage) -> None:
    """Reset the best loss if the validation data changed; the previous best weights are renamed."""
    windows = f"{len(stage.windows)} of {stage.text.val.fingerprint}"
    if stage.state.windows not in ("", windows):
        stage.state.forget_best()
        stage.state.evaluated_at = -1
        aside = stage.checkpoints.set_best_aside()
        report(f"the validation data changed, so the best loss was reset; the previous best weights are {aside.name}")
    stage.state.windows = windows


@contextlib.contextmanager
def _save_on_failure(stage: Stage) -> Iterator[None]:
    """Save on rank 0 if data, memory or another rank fails.

    These errors occur before a step's update, in evaluations, saves and agreements: the state is consistent.
    """
    try:
        yield
    except (DataError, OutOfMemory, OthersFailed, PeerLost):
        group = stage.learner.group
        group.disband()
        if group.is_first and stage.learner.is_finite():
            stage.checkpoints.save(stage.learner, stage.state)
        raise


def _loop(stage: Stage, shown: Progress) -> None:
    """Train until the last step, until patience runs out, or until a signal."""
    state, learner, pace = stage.state, stage.learner, stage.pace
    pace.begin()
    while True:
        if _save_is_due(stage):
            if learner.is_finite():
                stage.checkpoints.save(learner, state)
            else:
                _roll_back(stage, shown, "weights were not finite")
        if _evaluation_is_due(stage):
            _evaluate(stage, shown)
        if state.step >= learner.stage.max_steps or _is_out_of_patience(stage):
            return
        if stage.stop.requested:
            _leave(stage)
        if time.monotonic() - stage.checkpoints.saved_at >= 60 * learner.stage.save_minutes and learner.group.is_first:
            stage.stop.request_save()
        tick = time.perf_counter()
        n = steps_until_a_pause(state.step, learner.stage, pace)
        results = learner.steps(stage.batches, state.step, n, skip=state.batch_offset)
        seconds = time.perf_counter() - tick
        pace.count(len(results), seconds)
        state.train_seconds += seconds
        _note_steps(stage, results, shown)
        refit(stage)


def steps_until_a_pause(step: int, schedule: StageConfig, pace: Pace) -> int:
    """Number of steps until something else is due; fewer if they are slow, so that signals are noticed soon."""
    due = [schedule.max_steps - step]
    due += [interval - step % interval for interval in (schedule.eval_interval, schedule.save_interval)]
    if not pace.steps:
        return min(2, *due)  # their speed is not known yet
    return max(1, min(*due, int(_SECONDS_BETWEEN_CHECKS * pace.steps / pace.seconds)))


def _note_steps(stage: Stage, results: list[StepResult], shown: Progress) -> None:
    """Count steps in order. Those after a rollback do not count: their weights are gone."""
    state, rollbacks = stage.state, stage.state.rollbacks
    _note_memory(stage)
    for result in results:
        state.step += 1
        if result.applied:
            _note_loss(stage, result, shown)
        else:
            _note_skipped(stage, result, shown)
        if state.rollbacks != rollbacks:
            return
        if _ended_an_epoch(stage) and not _evaluation_is_due(stage):  # which writes a row itself
            stage.reports.write_row(state, epoch=_epochs(stage), at="epoch")


def _note_memory(stage: Stage) -> None:
    """Record that memory ran out, if the learner has made its micro-batches smaller."""
    if stage.state.micro_batch_size != stage.learner.micro_batch_size:
        stage.state.micro_batch_size = stage.learner.micro_batch_size
        stage.log.write("out of memory", step=stage.state.step, micro_batch_size=stage.state.micro_batch_size)


def _note_loss(stage: Stage, result: StepResult, shown: Progress) -> None:
    """Count an update, and record its loss if that is due."""
    state, schedule, pace = stage.state, stage.learner.stage, stage.pace
    state.add_to_row(result.train_loss, result.grad_norm)
    if z := state.note_loss(result.train_loss):
        stage.log.write("spike", step=state.step, train_loss=result.train_loss, z=round(z, 1))
        shown.report(f"step {state.step:,}: loss {result.train_loss:.3f} is {z:.0f} standard deviations above its mean")
    if state.step % schedule.log_interval and state.step < schedule.max_steps:
        return
    train_loss = sum(state.recent_losses) / len(state.recent_losses)
    state.recent_losses = []
    tokens_per_s = stage.run.ladder.tokens_per_step(schedule) * pace.steps / pace.seconds
    stage.log.write(
        "train",
        step=state.step,
        train_loss=train_loss,
        grad_norm=result.grad_norm,
        lr=lr_at(state.step - 1, schedule),
        tokens_per_s=round(tokens_per_s),
    )
    left = duration_text(pace.seconds_left(schedule.max_steps - state.step, schedule.eval_interval))
    shown.show(state.step, schedule.max_steps, f"loss {train_loss:.3f}, {tokens_per_s:,.0f} tokens/s, {left} left")


def _note_skipped(stage: Stage, result: StepResult, shown: Progress) -> None:
    """Count a step that changed nothing; roll back after many in a row."""
    state = stage.state
    state.note_skipped()
    stage.log.write("skipped", step=state.step, train_loss=str(result.train_loss), grad_norm=str(result.grad_norm))
    shown.report(f"step {state.step:,} skipped: loss {result.train_loss}, gradient norm {result.grad_norm}")
    if state.skipped_in_a_row >= _SKIPPED_IN_A_ROW:
        _roll_back(stage, shown, f"{state.skipped_in_a_row} steps in a row were not finite")


def _roll_back(stage: Stage, shown: Progress, why: str) -> None:
    """Go back to the last good resume state and leave out the batches read since; at most three times in a stage."""
    state, step = stage.state, stage.state.step
    if state.rollbacks >= _ROLLBACKS:
        raise TrainingFailed(
            f"{why}, for the {state.rollbacks + 1}th time, at step {step:,}. The best weights so far are in "
            f"{stage.checkpoints.files.best}; lower max_lr in config.py, or check the training text, then start over "
            "with --fresh"
        )
    loaded = stage.checkpoints.resume_state()
    if loaded is None:
        raise TrainingFailed(
            f"{why} at step {step:,}, and there is no resume state to roll back to; lower max_lr in config.py, then "
            "start over with --fresh"
        )
    stage.learner.load(loaded.payload)
    state.go_back_to(TrainState(**loaded.payload["progress"]))
    stage.log.truncate_after(state.step, evaluated_at=state.evaluated_at)
    stage.log.write("rollback", step=state.step, from_step=step, why=why, batches_left_out=state.batch_offset)
    shown.report(
        f"{why}: rolled back to step {state.step:,}, skipping the batches since ({state.rollbacks} of {_ROLLBACKS})"
    )


def _save_is_due(stage: Stage) -> bool:
    step, schedule = stage.state.step, stage.learner.stage
    if not stage.pace.steps:
        return step == 0  # tests the disk before hours of training; a state that was just loaded needs no save
    if step >= schedule.max_steps or stage.state.skipped_in_a_row:
        return False  # about to finish, or possibly bad
    return stage.stop.take_save_request() or step % schedule.save_interval == 0


def _evaluation_is_due(stage: Stage) -> bool:
    step, schedule = stage.state.step, stage.learner.stage
    return (step % schedule.eval_interval == 0 or step >= schedule.max_steps) and stage.state.evaluated_at != step


def _is_out_of_patience(stage: Stage) -> bool:
    patience = stage.learner.stage.patience
    return patience is not None and stage.state.bad_evals >= patience


def _evaluate(stage: Stage, shown: Progress) -> None:
    """Evaluate, record, and keep the weights if they are the best so far. If a signal stops it, it does not count."""
    state, tick = stage.state, time.perf_counter()
    try:
        measured = stage.learner.evaluate(stage.windows, stage.stop.check_here)
    except Interrupted:
        _leave(stage)
        raise
    _note_memory(stage)
    is_best = state.note_evaluation(measured.val_loss)
    state.measured = measured.record()
    stage.log.write(
        "evaluation", step=state.step, **measured.record(), best=is_best, train_seconds=round(state.train_seconds, 1)
    )
    patience = stage.learner.stage.patience
    bad = f" ({state.bad_evals} of {patience} without improvement)" if patience else ""
    shown.report(f"step {state.step:,}: {measured.description}{' (best)' if is_best else bad}")
    if is_best:
        stage.checkpoints.keep_best(stage.learner, state)
    if state.step == 0 and (
        why := first_loss_explained(measured.val_loss, stage.run.stage, stage.run.ladder.model.vocab_size)
    ):
        shown.report(why)
    stage.reports.write_row(state, epoch=_epochs(stage), at="evaluation")
    stage.reports.tell(state, measured)
    stage.pace.count_evaluation(time.perf_counter() - tick)
    refit(stage)


def _epochs(stage: Stage, step: int | None = None) -> float:
    """How often the stage's own text has been read after that step, else by now."""
    step = stage.state.step if step is None else step
    return stage.batches.epoch(step + stage.state.batch_offset)


def _ended_an_epoch(stage: Stage) -> bool:
    """Whether the last step did; not if epochs are so short that rows would say no more than the log does."""
    step = stage.state.step
    is_short = _epochs(stage, stage.learner.stage.log_interval) - _epochs(stage, 0) > 1
    return not is_short and int(_epochs(stage)) > int(_epochs(stage, step - 1))


def _leave(stage: Stage) -> None:
    """Save and exit, as a signal asked."""
    saved = stage.learner.is_finite() and stage.checkpoints.save(stage.learner, stage.state)
    report(f"{'saved' if saved else 'NOT saved'} at step {stage.state.step:,}; to continue: {stage.run.again()}")
    stage.stop.check()


def _finish(stage: Stage) -> None:
    """Save the best weights as the result and print the next command."""
    state, ladder, name = stage.state, stage.run.ladder, stage.run.stage.name
    best = stage.checkpoints.finish(state)
    stage.log.write(
        "finished",
        step=state.step,
        best_step=state.best_step,
        best_loss=state.best_loss,
        train_seconds=round(state.train_seconds, 1),
        peak_memory=peak_memory(stage.learner.device),
    )
    why = "patience ran out" if _is_out_of_patience(stage) else "all steps done"
    print(
        f"stage {name} finished ({why}) after {state.step:,} steps and {duration_text(state.train_seconds)} of "
        f"training: val_loss {state.best_loss:.4f} at step {state.best_step:,} -> {stage.checkpoints.files.result}"
    )
    stage.learner.load(best)
    report_forgetting(stage)
    stage.reports.draw()
    print(f"next: {_next_command(ladder, name)}")


def _next_command(ladder: Ladder, name: str) -> str:
    names = [stage.name for stage in ladder.stages]
    following = names[names.index(name) + 1 :]
    if following:
        return stage_command(ladder, following[0])
    return ladder.command("generate.py") + ' --prompt "Once upon a time"'
