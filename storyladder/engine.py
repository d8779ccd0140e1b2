"""One stage from start, or interruption, to end.

The loop is: save -> evaluate -> leave? -> train one step. `step` is the number of updates done, so a state saved at
step k continues with batch k, learning rate k and the dropout of step k: interrupted and resumed is bit for bit the
same as uninterrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import time
from collections.abc import Iterator

from storyladder.command_line import StageRun, as_typed_for
from storyladder.finished import say_finished
from storyladder.learning.network import BuildModel
from storyladder.learning.optimizer import reset_optimizer
from storyladder.learning.schedule import lr_at
from storyladder.learning.step import StepResult
from storyladder.planning import fit_to_minutes, measure_speed, plan_lines, refit, seconds_left
from storyladder.recovery import (
    evaluation_within_memory,
    note_skipped,
    note_spike,
    roll_back,
    steps_within_memory,
    weights_are_finite,
)
from storyladder.runtime.checkpoint import Loaded, digest_of, load_checkpoint
from storyladder.runtime.distributed import ALONE, Group, joined_group
from storyladder.runtime.errors import (
    CheckpointError,
    DamagedCheckpoint,
    DataError,
    Interrupted,
    OthersFailed,
    OutOfMemory,
    PeerLost,
    SaveFailed,
    TrainingFailed,
    say,
)
from storyladder.runtime.lock import locked
from storyladder.runtime.machine import machine_line, peak_memory
from storyladder.runtime.progress import Progress, duration_words
from storyladder.runtime.signals import StopRequest, stop_on_signals
from storyladder.saving import pack_result, save_best, save_file, save_state, what_is_left
from storyladder.stage_files import StageFiles, stage_command
from storyladder.starting import Work, load_weights, prepare_work, record_start
from storyladder.starting_point import load_for_all

_SECONDS_WITHOUT_LOOKING = 2.0  # for signals, on a GPU that takes many steps at a time


def train_stage(run: StageRun, build_model: BuildModel) -> None:
    """Train one stage to its end, or plan it. Raises Interrupted when a signal asked to leave and all is saved."""
    files = StageFiles.of(run.ladder, run.stage)
    with as_typed_for(run.ladder), stop_on_signals() as stop, joined_group(stop) as group:
        if run.plan:
            if group.first(files.result.exists) and not run.fresh:
                print(f"stage {run.stage.name} is finished; started over with --fresh it would need:")
                run = dataclasses.replace(run, fresh=True)
            print("\n".join(plan_lines(prepare_work(run, build_model, stop, group))))
            return
        with contextlib.ExitStack() as stack:
            group.first(lambda: stack.enter_context(locked(run.ladder.lock(run.stage.name))))
            if group.first(files.result.exists) and not run.fresh:
                group.first(lambda: say_finished(run, files))
                return
            work = _set_up(run, build_model, stop, group)
            with _saved_when_it_cannot_go_on(work):
                with Progress(run.stage.name, step=work.state.step, max_steps=work.stage.max_steps) as progress:
                    _loop(work, progress)
                _finish(work)


def _set_up(run: StageRun, build_model: BuildModel, stop: StopRequest, group: Group) -> Work:
    """Everything checked, loaded and built. Files change only after all that can be refused has been."""
    work = prepare_work(run, build_model, stop, group)
    print(machine_line(work.device, work.precision))
    if not group.is_alone:
        print(f"{group.world_size} processes share each batch of {work.stage.batch_size} sequences")
    print(f"stage {run.stage.name}: {work.start.words}", flush=True)
    if run.minutes is not None:
        fit_to_minutes(work, run.minutes, measure_speed(work))
        work.optimizer = reset_optimizer(work.optimizer, work.model, work.stage, work.precision.product_dtype)
        work.scaler = work.precision.scaler()
    load_weights(work, build_model)
    if run.fresh:
        group.first(lambda: _set_aside(work))
    work.state.micro_batch_size, work.state.precision = work.micro_batch_size, work.precision.name
    work.state.threads = work.threads if group.is_alone else None
    _check_windows(work)
    _check_best(work)
    work.log.keep_until(work.state.step, evaluated_at=work.state.evaluated_at)
    record_start(work)
    return work


def _set_aside(work: Work) -> None:
    """Keep what a former training of the stage left under other names."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    work.log.set_aside(stamp)
    for path in work.files.set_aside(stamp):
        print(f"the old file is kept as {path.name}")


def _check_windows(work: Work) -> None:
    """Where evaluations read something else than before, the best so far counts anew; its weights are kept aside."""
    windows = f"{len(work.windows)} of {work.data.val.fingerprint}"
    if work.state.windows not in ("", windows):
        work.state.forget_best()
        work.state.evaluated_at = -1
        aside = work.files.best.with_suffix(".other_windows.pt")
        if work.group.is_first and work.files.best.exists():
            os.replace(work.files.best, aside)
        say(f"validation reads other text than before: the best loss counts anew, {aside.name} keeps the best weights")
    work.state.windows = windows


def _check_best(work: Work) -> None:
    """Best weights that were lost since the last save are told now and count anew, not missed at the end."""
    if work.state.best_step < 0:
        return

    def what_is_lost() -> str:
        try:
            return "" if load_checkpoint(work.files.best) else f"{work.files.best} is gone"
        except DamagedCheckpoint as error:
            return str(error)

    if lost := work.group.first(what_is_lost):
        work.state.forget_best()
        say(f"warning: {lost}; the best loss counts anew from step {work.state.step:,} on")


@contextlib.contextmanager
def _saved_when_it_cannot_go_on(work: Work) -> Iterator[None]:
    """What is done is saved, by the first process alone, where data, memory or the other processes fail.

    They fail in steps that have not moved anything yet, in evaluations, saves and agreements: the state is whole.
    """
    try:
        yield
    except (DataError, OutOfMemory, OthersFailed, PeerLost):
        first, work.group = work.group.is_first, ALONE
        if first and weights_are_finite(work):
            save_state(work)
        raise


def _loop(work: Work, progress: Progress) -> None:
    """Train until the last step, the end of patience, or a signal."""
    state = work.state
    while True:
        tick = time.perf_counter()
        if _save_is_due(work):
            _save_or_roll_back(work, progress)
        work.seconds_between += time.perf_counter() - tick
        if _evaluation_is_due(work):
            _note_evaluation(work, progress)
        if state.step >= work.stage.max_steps or _out_of_patience(work):
            return
        if work.stop.requested:
            _leave(work)
        if work.group.is_first and time.monotonic() - work.saved_at >= 60 * work.stage.save_minutes:
            work.stop.request_save()
        tick, preparing = time.perf_counter(), work.seconds_preparing
        results = steps_within_memory(work, progress.say, step=state.step, n=_steps_until_a_pause(work))
        seconds = time.perf_counter() - tick
        state.train_seconds += seconds
        work.steps_here += len(results)
        work.seconds_here += seconds - (work.seconds_preparing - preparing)
        _note_steps(work, results, progress)
        refit(work)
        work.seconds_between += time.perf_counter() - tick - seconds


def _steps_until_a_pause(work: Work) -> int:
    """How many steps may be taken before something else is due; of slow ones few, so that signals are soon heard."""
    step, stage = work.state.step, work.stage
    due = [stage.max_steps - step, *(every - step % every for every in (stage.eval_interval, stage.save_interval))]
    if not work.steps_here:
        return min(2, *due)  # how fast they are is not known yet
    return max(1, min(*due, int(_SECONDS_WITHOUT_LOOKING * work.steps_here / work.seconds_here)))


def _note_steps(work: Work, results: list[StepResult], progress: Progress) -> None:
    """Count steps in their order. What came after a rollback was learned by weights that are gone."""
    rollbacks = work.state.rollbacks
    for result in results:
        work.state.step += 1
        _note_step(work, result, progress)
        if work.state.rollbacks != rollbacks:
            return


def _note_step(work: Work, result: StepResult, progress: Progress) -> None:
    """Count a step, and record it where it is due."""
    state = work.state
    if not result.applied:
        note_skipped(work, result, progress)
        return
    state.skipped_in_a_row = 0
    note_spike(work, result.train_loss, progress)
    state.recent_losses.append(result.train_loss)
    if state.step % work.stage.log_interval and state.step < work.stage.max_steps:
        return
    train_loss = sum(state.recent_losses) / len(state.recent_losses)
    state.recent_losses = []
    tokens_per_s = work.run.ladder.tokens_per_step(work.stage) * work.steps_here / work.seconds_here
    work.log.write(
        "train",
        step=state.step,
        train_loss=train_loss,
        grad_norm=result.grad_norm,
        lr=lr_at(state.step - 1, work.stage),
        tokens_per_s=round(tokens_per_s),
    )
    words = f"loss {train_loss:.3f}, {tokens_per_s:,.0f} tokens/s, {duration_words(seconds_left(work))} left"
    progress.show(state.step, work.stage.max_steps, words)


def _evaluation_is_due(work: Work) -> bool:
    step, stage = work.state.step, work.stage
    return (step % stage.eval_interval == 0 or step >= stage.max_steps) and work.state.evaluated_at != step


def _out_of_patience(work: Work) -> bool:
    return work.stage.patience is not None and work.state.bad_evals >= work.stage.patience


def _note_evaluation(work: Work, progress: Progress) -> None:
    """Measure, count, record, and keep the weights if they are the best so far. A signal ends it without a verdict."""
    state, tick = work.state, time.perf_counter()
    try:
        measured = evaluation_within_memory(work, progress.say, work.windows)
    except Interrupted:
        _leave(work)
        raise
    best = state.note_evaluation(measured.val_loss)
    work.log.write(
        "evaluation",
        step=state.step,
        val_loss=measured.val_loss,
        perplexity=measured.perplexity,
        bits_per_byte=measured.bits_per_byte,
        tokens=measured.tokens,
        best=best,
        train_seconds=round(state.train_seconds, 1),
    )
    patience = f" ({state.bad_evals} of {work.stage.patience} without improvement)" if work.stage.patience else ""
    progress.say(
        f"step {state.step:,}: val_loss {measured.val_loss:.4f}, perplexity {measured.perplexity:,.1f}, "
        f"bits/byte {measured.bits_per_byte:.3f}{' (best)' if best else patience}"
    )
    if best:
        # Only the first process of a group packs and writes them; the others know that there are some.
        work.unsaved_best = {}
        if work.group.is_first:
            packed = pack_result(work)
            work.unsaved_best = {
                **packed,
                "model_digest": digest_of(packed["model"]),
                "val_loss": state.best_loss,
                "train_seconds": state.train_seconds,
            }
        save_best(work)
    work.evaluation_seconds = time.perf_counter() - tick
    refit(work)


# --- saving -----------------------------------------------------------------------------------------------------------


def _save_is_due(work: Work) -> bool:
    step = work.state.step
    if not work.steps_here:
        return step == 0  # tries the disk before hours are spent; what was just loaded needs no saving
    if step >= work.stage.max_steps or work.state.skipped_in_a_row:
        return False  # about to be finished; or not known to be good
    return work.stop.take_save_request() or step % work.stage.save_interval == 0


def _save_or_roll_back(work: Work, progress: Progress) -> None:
    """Weights that are not finite are never saved; the state before them is."""
    if weights_are_finite(work):
        save_state(work)
    else:
        roll_back(work, progress, "weights were not finite")


def _leave(work: Work) -> None:
    """Save and leave, as a signal asked."""
    saved = weights_are_finite(work) and save_state(work)
    words = f"saved at step {work.state.step:,}" if saved else f"NOT saved at step {work.state.step:,}"
    say(f"{words}; {work.run.again()} goes on from what is saved")
    work.stop.check()


def _finish(work: Work) -> None:
    """Give the best weights their final name and say what is next."""
    state = work.state
    if not save_best(work):
        raise SaveFailed(f"{work.files.best} could not be written; {what_is_left(work)}")
    best = _best_weights(work)
    if not save_file(work, work.files.result, lambda: best.payload, keep_previous=False):
        raise SaveFailed(
            f"{work.files.result} could not be written; the weights are safe in {work.files.best}. "
            f"Make room, then run {work.run.again()} again"
        )
    if work.group.is_first:
        work.files.forget_resume_state()
    work.log.write(
        "finished",
        step=state.step,
        best_step=state.best_step,
        best_loss=state.best_loss,
        train_seconds=round(state.train_seconds, 1),
        peak_memory=peak_memory(work.device),
    )
    why = "patience ran out" if _out_of_patience(work) else "all steps done"
    print(
        f"stage {work.stage.name} finished ({why}) after {state.step:,} steps and "
        f"{duration_words(state.train_seconds)} of training: val_loss {best.payload['val_loss']:.4f} at step "
        f"{best.payload['step']:,} -> {work.files.result}"
    )
    names = [stage.name for stage in work.run.ladder.stages]
    following = names[names.index(work.stage.name) + 1 :]
    last = work.run.ladder.command("generate.py") + ' --prompt "Once upon a time"'
    print(f"next: {stage_command(work.run.ladder, following[0]) if following else last}")


def _best_weights(work: Work) -> Loaded:
    """The best weights of a stage that is at its end."""
    again = work.run.again()
    if work.state.best_step < 0:
        raise TrainingFailed(
            f"stage {work.stage.name} ended at step {work.state.step:,} without best weights: no validation "
            f"loss was finite; run {work.run.again('--fresh')}, with a lower max_lr in config.py"
        )
    try:
        best = load_for_all(work.group, work.files.best)
    except DamagedCheckpoint as error:
        raise CheckpointError(f"{error}; run {again} again, which counts the best anew from its last save on") from None
    if best is None:
        raise CheckpointError(
            f"{work.files.best} is gone; run {again} again, which counts the best anew from its last save on"
        )
    return best
