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
from collections.abc import Callable
from pathlib import Path

import torch

from storyladder.command_line import StageRun
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.learning.network import BuildModel
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.schedule import lr_at
from storyladder.learning.step import StepResult
from storyladder.planning import fit_to_minutes, measure_speed, plan_lines, refit, seconds_left
from storyladder.recovery import note_skipped, note_spike, roll_back, steps_within_memory, weights_are_finite
from storyladder.runtime.checkpoint import (
    Loaded,
    Payload,
    load_checkpoint,
    previous_of,
    put_aside,
    save_checkpoint,
)
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
from storyladder.stage_files import (
    StageFiles,
    check_shapes,
    load_result,
    pack_optimizer,
    pack_weights,
    plain_settings,
    script_of,
)
from storyladder.starting import Work, evaluate_now, load_for_all, load_weights, prepare_work, record_start, say_all

_FAILED_SAVES_TO_STOP = 3
_SECONDS_WITHOUT_LOOKING = 2.0  # for signals, on a GPU that takes many steps at a time


def train_stage(run: StageRun, build_model: BuildModel) -> None:
    """Train one stage to its end, or plan it. Raises Interrupted when a signal asked to leave and all is saved."""
    files = StageFiles.of(run.ladder, run.stage)
    with stop_on_signals() as stop, joined_group(stop) as group:
        if run.plan:
            if group.first(files.result.exists) and not run.fresh:
                print(f"stage {run.stage.name} is finished; started over with --fresh it would need:")
                run = dataclasses.replace(run, fresh=True)
            print("\n".join(plan_lines(prepare_work(run, build_model, stop, group))))
            return
        with contextlib.ExitStack() as stack:
            group.first(lambda: stack.enter_context(locked(files.resume.with_name(f".{run.stage.name}.lock"))))
            if group.first(files.result.exists) and not run.fresh:
                group.first(lambda: _say_finished(run, files))
                return
            work = _set_up(run, build_model, stop, group)
            with Progress(run.stage.name, step=work.state.step, max_steps=work.stage.max_steps) as progress:
                _loop(work, progress)
            _finish(work)


def _say_finished(run: StageRun, files: StageFiles) -> None:
    loaded = load_result(run.ladder, run.stage)
    assert loaded is not None
    say_all(loaded.notes)
    check_shapes(loaded.payload, files.result, run.ladder.model)
    print(
        f"stage {run.stage.name} is finished: {loaded.path.name} has validation loss "
        f"{loaded.payload['val_loss']:.4f} from step {loaded.payload['step']:,}. "
        f"Start it over with {_command(run, run.stage.name)} --fresh"
    )
    if loaded.path != files.result:
        _write_result_anew(files, loaded)
    files.forget_resume_state()


def _write_result_anew(files: StageFiles, best: Loaded) -> None:
    """Put the best weights in the place of a damaged result, which is kept aside."""
    aside = put_aside(files.result)
    try:
        save_checkpoint(files.result, best.payload, keep_previous=False)
    except OSError as error:
        raise SaveFailed(
            f"{files.result} is damaged and could not be written anew ({error.strerror}); the weights are safe in "
            f"{best.path}. Make room, then run the same command again"
        ) from None
    say(f"{files.result.name} was written anew from {best.path.name}; the damaged one is kept as {aside.name}")


def _set_up(run: StageRun, build_model: BuildModel, stop: StopRequest, group: Group) -> Work:
    """Everything checked, loaded and built. Files change only after all that can be refused has been."""
    work = prepare_work(run, build_model, stop, group)
    print(machine_line(work.device, work.precision))
    if not group.is_alone:
        print(f"{group.world_size} processes share each batch of {work.stage.batch_size} sequences")
    print(f"stage {run.stage.name}: {work.start.words}", flush=True)
    if run.minutes is not None:
        fit_to_minutes(work, run.minutes, measure_speed(work))
        work.optimizer, work.scaler = build_optimizer(work.model, work.stage), work.precision.scaler()
    load_weights(work, build_model)
    if run.fresh:
        group.first(lambda: _set_aside(work))
    work.state.micro_batch_size = work.micro_batch_size
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
        tick = time.perf_counter()
        try:
            results = steps_within_memory(work, progress.say, step=state.step, n=_steps_until_a_pause(work))
        except (DataError, OutOfMemory, OthersFailed, PeerLost):  # nothing has moved yet
            first, work.group = work.group.is_first, ALONE
            if first and weights_are_finite(work):
                _save(work)
            raise
        seconds = time.perf_counter() - tick
        state.train_seconds += seconds
        work.steps_here += len(results)
        work.seconds_here += seconds
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
        measured = evaluate_now(work, work.windows)
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
            work.unsaved_best = {
                **_payload(work),
                "val_loss": state.best_loss,
                "train_seconds": state.train_seconds,
            }
        _save_best(work)
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


def _payload(work: Work) -> Payload:
    """What result and resume state have in common."""
    return {
        "stage": work.stage.name,
        "step": work.state.step,
        "settings": plain_settings(work.run.ladder, work.run.stage, work.start.ancestors),
        "fitted": work.state.fitted,
        "data": work.data.fingerprints,
        "tokenizer": gpt2_tokenizer().fingerprint,
        "seen_tokens": work.vocabulary.seen_V.to(torch.uint8),
        "machine": machine_line(work.device, work.precision),
        "model": pack_weights(work.model, work.vocabulary),
    }


def _save_or_roll_back(work: Work, progress: Progress) -> None:
    """Weights that are not finite are never saved; the state before them is."""
    if weights_are_finite(work):
        _save(work)
    else:
        roll_back(work, progress, "weights were not finite")


def _save_best(work: Work) -> bool:
    """Write the best weights if they are not on the disk yet; False if it refused. They are kept for the next try."""
    best = work.unsaved_best
    if best is not None and _save_file(work, work.files.best, lambda: best, keep_previous=False):
        work.unsaved_best = None
    return work.unsaved_best is None


def _save(work: Work) -> bool:
    """Write the resume state; False if the disk refused."""
    work.saved_at = time.monotonic()
    if not _save_best(work):
        return False  # a state that counts on best weights which are not on the disk could not be gone on from

    def payload() -> Payload:
        return {
            **_payload(work),
            "optimizer": pack_optimizer(work.model, work.optimizer, work.vocabulary),
            "scaler": work.scaler.state_dict(),
            "progress": dataclasses.asdict(work.state),
        }

    return _save_file(work, work.files.resume, payload, keep_previous=True)


def _save_file(work: Work, path: Path, payload: Callable[[], Payload], *, keep_previous: bool) -> bool:
    """Save, or warn and go on training; after several failures in a row, SaveFailed.

    The first process of a group saves; all learn how it went.
    """

    def refusal() -> str | None:
        try:
            save_checkpoint(path, payload(), keep_previous=keep_previous)
        except OSError as error:
            work.log.write("save failed", step=work.state.step, file=path.name, error=str(error))
            return str(error.strerror)
        return None

    why = work.group.first(refusal)
    if why is None:
        work.failed_saves = 0
        return True
    work.failed_saves += 1
    say(f"\nwarning: {path.name} could not be saved ({why}); going on")
    if work.failed_saves >= _FAILED_SAVES_TO_STOP:
        raise SaveFailed(f"{work.failed_saves} saves in a row failed ({why}); {_what_is_left(work)}")
    return False


def _what_is_left(work: Work) -> str:
    """The last good file, and what to type once there is room again."""
    states = [file for file in (work.files.resume, previous_of(work.files.resume)) if file.exists()]
    good = next((str(file) for file in (*states, work.files.best) if file.exists()), "none")
    # Without any resume state the stage can only begin anew, and best weights are never trained over unasked.
    flag = "" if states or good == "none" else " --fresh"
    return f"the last good file is {good}. Make room, then run {_command(work.run, work.stage.name)}{flag} again"


def _leave(work: Work) -> None:
    """Save and leave, as a signal asked."""
    saved = weights_are_finite(work) and _save(work)
    words = f"saved at step {work.state.step:,}" if saved else f"NOT saved at step {work.state.step:,}"
    say(f"{words}; {_command(work.run, work.stage.name)} goes on from what is saved")
    work.stop.check()


def _finish(work: Work) -> None:
    """Give the best weights their final name and say what is next."""
    state = work.state
    if not _save_best(work):
        raise SaveFailed(f"{work.files.best} could not be written; {_what_is_left(work)}")
    best = _best_weights(work)
    if not _save_file(work, work.files.result, lambda: best.payload, keep_previous=False):
        raise SaveFailed(
            f"{work.files.result} could not be written; the weights are safe in {work.files.best}. "
            f"Make room, then run {_command(work.run, work.stage.name)} again"
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
    print(f"next: {_command(work.run, following[0]) if following else last}")


def _best_weights(work: Work) -> Loaded:
    """The best weights of a stage that is at its end."""
    again = _command(work.run, work.stage.name)
    if work.state.best_step < 0:
        raise TrainingFailed(
            f"stage {work.stage.name} ended at step {work.state.step:,} without best weights: no validation "
            f"loss was finite; run {again} --fresh, with a lower max_lr in config.py"
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


def _command(run: StageRun, stage_name: str) -> str:
    """What the user types to train a stage of this preset."""
    return run.ladder.command(script_of(stage_name))
