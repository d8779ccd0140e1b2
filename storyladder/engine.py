"""One stage from start, or interruption, to end: the only room that knows all the others.

The loop is: save -> evaluate -> leave? -> train one step. `step` is the number of updates done, so a state saved at
step k continues with batch k, learning rate k and the dropout of step k: interrupted and resumed is bit for bit the
same as uninterrupted.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time

import torch
from torch import Tensor

from storyladder.command_line import StageRun
from storyladder.corpus.token_file import TokenFile, TrainBatches, ValidationWindows, open_token_file
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.learning.network import EMBEDDING, BuildModel, LanguageModel
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.schedule import fitted_to, lr_at
from storyladder.learning.step import StepResult, train_step
from storyladder.learning.vocabulary import CompactVocabulary, start_rows_equal
from storyladder.measuring.evaluation import Evaluation, evaluate
from storyladder.planning import fitting_micro_batch, plan_lines
from storyladder.runtime.checkpoint import Payload, load_checkpoint, save_checkpoint
from storyladder.runtime.errors import CheckpointError, Interrupted, SaveFailed, TrainingFailed, UserError
from storyladder.runtime.lock import locked
from storyladder.runtime.machine import Precision, machine_line, peak_memory, pick_device, pick_precision
from storyladder.runtime.progress import Progress, duration_words, time_left
from storyladder.runtime.run_log import RunLog
from storyladder.runtime.signals import StopRequest, stop_on_signals
from storyladder.settings import StageConfig
from storyladder.stage_files import (
    StageFiles,
    TrainState,
    changes_since,
    check_shapes,
    load_result,
    pack_optimizer,
    pack_weights,
    plain_settings,
    script_of,
    unpack_optimizer,
    unpack_weights,
)

_FAILED_SAVES_TO_STOP = 3
_SKIPPED_STEPS_TO_STOP = 20
_MEASURE_SECONDS = 10.0  # at most, for --plan and --minutes


@dataclasses.dataclass(frozen=True)
class StageData:
    """The two verified token files of a stage."""

    train: TokenFile
    val: TokenFile

    @property
    def fingerprints(self) -> dict[str, str]:
        """What tells whether the data are the same as at the last save."""
        return {self.train.path.name: self.train.fingerprint, self.val.path.name: self.val.fingerprint}


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a stage starts: a payload to continue or to take the weights from, or nothing for random weights."""

    words: str
    payload: Payload | None
    state: TrainState


@dataclasses.dataclass
class Work:
    """Everything the loop needs. Only `stage` (when --minutes refits the schedule) and the counters change."""

    run: StageRun
    stage: StageConfig
    files: StageFiles
    data: StageData
    windows: ValidationWindows
    batches: TrainBatches
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    vocabulary: CompactVocabulary
    device: torch.device
    precision: Precision
    micro_batch_size: int
    log: RunLog
    stop: StopRequest
    failed_saves: int = 0
    saved_at: float = 0.0  # time.monotonic()
    evaluation_seconds: float = 0.0  # of the last one


def train_stage(run: StageRun, build_model: BuildModel) -> None:
    """Train one stage to its end, or plan it. Raises Interrupted when a signal asked to leave and all is saved."""
    files = StageFiles.of(run.ladder, run.stage)
    with stop_on_signals() as stop:
        if run.plan:
            _plan(run, files, build_model, stop)
            return
        with locked(files.resume.with_name(f".{run.stage.name}.lock")):
            if files.result.exists() and not run.fresh and _finished_words(run, files):
                return
            work, state = _set_up(run, files, build_model, stop)
            with Progress(run.stage.name, step=state.step, max_steps=work.stage.max_steps) as progress:
                _loop(work, state, progress)
            _finish(work, state)


def _finished_words(run: StageRun, files: StageFiles) -> bool:
    """Say that the stage is finished; False if the result turns out to be no finished one."""
    loaded = load_result(run.ladder, run.stage)
    assert loaded is not None
    _say_all(loaded.notes)
    check_shapes(loaded.payload, files.result, run.ladder.model)
    print(
        f"stage {run.stage.name} is finished: {files.result.name} has validation loss "
        f"{loaded.payload['val_loss']:.4f} from step {loaded.payload['step']:,}. "
        f"Start it over with python {script_of(run.stage.name)} --fresh"
    )
    files.forget_resume_state()
    return True


# --- setting up -------------------------------------------------------------------------------------------------------


def _set_up(run: StageRun, files: StageFiles, build_model: BuildModel, stop: StopRequest) -> tuple[Work, TrainState]:
    """Everything checked, loaded and built; nothing on disk has changed if this raises."""
    start, work = _prepare(run, files, build_model, stop)
    state = start.state
    print(machine_line(work.device, work.precision))
    print(f"stage {run.stage.name}: {start.words}", flush=True)
    if run.minutes is not None:
        _fit_to_minutes(work, state, run.minutes)
        work.optimizer = build_optimizer(work.model, work.stage)
    _load_weights(work, start, build_model)
    if run.fresh:
        for path in files.set_aside():
            print(f"the old file is kept as {path.name}")
    if start.payload is None or state.step == 0:
        work.log = RunLog(files.record, start_over=run.fresh)
    work.log.keep_until(state.step, evaluated_at=state.evaluated_at)
    _record_start(work, start)
    return work, state


def _prepare(run: StageRun, files: StageFiles, build_model: BuildModel, stop: StopRequest) -> tuple[Start, Work]:
    """The parts of a stage with a model of the right shape, whose weights are not loaded yet."""
    device = pick_device(run.device)
    precision = pick_precision(device)
    data = _open_data(run)
    start = _starting_point(run, files, data)
    stage = dataclasses.replace(run.stage, **start.state.fitted)  # type: ignore[arg-type]
    vocabulary = _vocabulary(run, data, start.payload).to(device)
    model = build_model(dataclasses.replace(run.ladder.model, vocab_size=vocabulary.n_rows)).to(device)
    work = Work(
        run=run,
        stage=stage,
        files=files,
        data=data,
        windows=_windows(run, data, stage),
        batches=TrainBatches(
            data.train.ids,
            context_length=run.ladder.model.context_length,
            batch_size=stage.batch_size,
            seed=stage.seed,
        ),
        model=model,
        optimizer=build_optimizer(model, stage),
        scaler=precision.scaler(),
        vocabulary=vocabulary,
        device=device,
        precision=precision,
        micro_batch_size=fitting_micro_batch(run.ladder.model, stage, device, n_rows=vocabulary.n_rows),
        log=RunLog(files.record, start_over=False),
        stop=stop,
        saved_at=time.monotonic(),
    )
    return start, work


def _open_data(run: StageRun) -> StageData:
    folder, model = run.ladder.folder("data"), run.ladder.model
    tokenizer = gpt2_tokenizer()
    train, val = (
        open_token_file(
            folder / name,
            tokenizer=tokenizer.fingerprint,
            vocab_size=model.vocab_size,
            at_least=at_least,
        )
        for name, at_least in ((run.stage.train_file, model.context_length + 1), (run.stage.val_file, 2))
    )
    return StageData(train, val)


def _windows(run: StageRun, data: StageData, stage: StageConfig) -> ValidationWindows:
    return ValidationWindows(
        data.val.ids,
        context_length=run.ladder.model.context_length,
        limit=stage.val_windows,
        token_bytes_V=gpt2_tokenizer().token_bytes_V,
    )


def _starting_point(run: StageRun, files: StageFiles, data: StageData) -> Start:
    """This stage's own resume state; else the result of the stage before it; else random weights."""
    resume = None if run.fresh else load_checkpoint(files.resume)
    if resume is not None:
        _say_all(resume.notes)
        check_shapes(resume.payload, resume.path, run.ladder.model)
        changes = changes_since(resume.payload, run.ladder, run.stage, data.fingerprints)
        if changes and not run.accept_changes:
            raise UserError(
                f"since {resume.path.name} was saved, {'; '.join(changes)}. Set it back, or go on with --accept-changes, "
                "or start over with --fresh"
            )
        state = TrainState(**resume.payload["progress"])
        if resume.notes:
            print(f"going on from step {state.step:,} of {resume.path.name}", file=sys.stderr)
        return Start(f"continuing at step {state.step:,} from {resume.path.name}", resume.payload, state)
    if run.stage.init_from is None:
        return Start("starting from random weights", None, TrainState())
    parent_stage = run.ladder.stage(run.stage.init_from)
    parent_files = StageFiles.of(run.ladder, parent_stage)
    parent = load_result(run.ladder, parent_stage)
    if parent is None:
        begun = "is not finished" if parent_files.best.exists() else "has not been trained"
        raise CheckpointError(
            f"stage {run.stage.name} starts from {parent_files.result}, but stage {parent_stage.name} {begun}; "
            f"run python {script_of(parent_stage.name)} first (--minutes N ends it in N minutes)"
        )
    _say_all(parent.notes)
    check_shapes(parent.payload, parent.path, run.ladder.model)
    return Start(
        f"starting from {parent.path.name} (step {parent.payload['step']:,}, "
        f"validation loss {parent.payload['val_loss']:.4f} on {parent_stage.name})",
        parent.payload,
        TrainState(),
    )


def _vocabulary(run: StageRun, data: StageData, payload: Payload | None) -> CompactVocabulary:
    """All token types of this stage's text and of every stage before it."""
    seen_V = torch.from_numpy(data.train.seen(run.ladder.model.vocab_size))
    compact = run.stage.compact_vocabulary
    if payload is not None:
        seen_V |= payload["seen_tokens"].bool()
        compact = compact and CompactVocabulary(seen_V).can_share(payload["model"][EMBEDDING])
    return CompactVocabulary(seen_V, compact=compact)


def _load_weights(work: Work, start: Start, build_model: BuildModel) -> None:
    """Weights of the starting point and, when continuing, the optimizer's state."""
    if start.payload is None:
        unpack_weights(work.model, _random_weights(work, build_model), work.vocabulary)
        return
    unpack_weights(work.model, start.payload["model"], work.vocabulary)
    if "progress" in start.payload:
        unpack_optimizer(work.model, work.optimizer, start.payload["optimizer"], work.vocabulary)
        if work.scaler.is_enabled() and start.payload["scaler"]:
            work.scaler.load_state_dict(start.payload["scaler"])


def _random_weights(work: Work, build_model: BuildModel) -> dict[str, Tensor]:
    """The whole model's random start, the same on every device and with any vocabulary rows left out."""
    torch.manual_seed(work.stage.seed)
    weights = build_model(work.run.ladder.model).state_dict()
    start_rows_equal(weights[EMBEDDING], work.vocabulary.seen_V)
    return weights


def _record_start(work: Work, start: Start) -> None:
    work.log.write(
        "start",
        stage=work.stage.name,
        step=start.state.step,
        start=start.words,
        settings=plain_settings(work.run.ladder, work.stage),
        data=work.data.fingerprints,
        vocabulary_rows=work.vocabulary.n_rows,
        micro_batch_size=work.micro_batch_size,
        machine=machine_line(work.device, work.precision),
        cpus=os.cpu_count(),
    )


def _say_all(notes: list[str]) -> None:
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)


# --- planning ---------------------------------------------------------------------------------------------------------


def _plan(run: StageRun, files: StageFiles, build_model: BuildModel, stop: StopRequest) -> None:
    """Print what the stage would need. Writes nothing."""
    start, work = _prepare(run, files, build_model, stop)
    step_seconds, window_seconds = _measure_speed(work)
    if run.minutes is not None:
        work.stage = _fitted(work, start.state, run.minutes, step_seconds, window_seconds)
    n_windows = len(work.windows) if work.stage.val_windows is None else min(len(work.windows), work.stage.val_windows)
    lines = plan_lines(
        run.ladder.model,
        work.stage,
        machine=machine_line(work.device, work.precision),
        start=start.words,
        step=start.state.step,
        n_rows=work.vocabulary.n_rows,
        micro_batch_size=work.micro_batch_size,
        step_seconds=step_seconds,
        evaluation_seconds=window_seconds * n_windows,
        device=work.device,
        folder=files.resume.parent,
    )
    print("\n".join(lines))


def _measure_speed(work: Work) -> tuple[float, float]:
    """Seconds of one optimizer step and of one validation window, by doing some on weights that are thrown away."""
    seconds: list[float] = []
    began = time.monotonic()
    while len(seconds) < 2 or (len(seconds) < 6 and time.monotonic() - began < _MEASURE_SECONDS):
        work.stop.check()
        tick = time.perf_counter()
        _one_step(work, step=len(seconds), max_steps=work.stage.max_steps)
        seconds.append(time.perf_counter() - tick)
    idx_BT, targets_BT = next(work.windows.batches(work.micro_batch_size))
    sample = ValidationWindows(
        work.data.val.ids,
        context_length=idx_BT.shape[1],
        limit=len(idx_BT),
        token_bytes_V=gpt2_tokenizer().token_bytes_V,
    )
    tick = time.perf_counter()
    _evaluate(work, sample)
    return sorted(seconds[1:])[(len(seconds) - 1) // 2], (time.perf_counter() - tick) / max(1, len(sample))


def _fit_to_minutes(work: Work, state: TrainState, minutes: float) -> None:
    """Shorten the schedule so that it ends in `minutes`, and remember it in the state."""
    step_seconds, window_seconds = _measure_speed(work)
    work.stage = _fitted(work, state, minutes, step_seconds, window_seconds)
    state.fitted = {
        name: getattr(work.stage, name) for name in ("max_steps", "warmup_steps", "eval_interval", "val_windows")
    }
    work.windows = _windows(work.run, work.data, work.stage)
    print(f"fitted to {minutes:g} minutes: {work.stage.max_steps - state.step:,} steps of {step_seconds:.3g} s")


def _fitted(work: Work, state: TrainState, minutes: float, step_seconds: float, window_seconds: float) -> StageConfig:
    fitted = fitted_to(work.run.stage, seconds=60 * minutes, step_seconds=step_seconds, window_seconds=window_seconds)
    return dataclasses.replace(fitted, max_steps=state.step + fitted.max_steps)


# --- the loop ---------------------------------------------------------------------------------------------------------


def _loop(work: Work, state: TrainState, progress: Progress) -> None:
    """Train until the last step, the end of patience, or a signal."""
    while True:
        if _save_is_due(work, state):
            _save(work, state)
        if _evaluation_is_due(work, state):
            _note_evaluation(work, state, progress)
        if state.step >= work.stage.max_steps or _out_of_patience(work, state):
            return
        if work.stop.requested:
            _leave(work, state)
        tick = time.perf_counter()
        result = _one_step(work, step=state.step, max_steps=work.stage.max_steps)
        state.step += 1
        state.train_seconds += time.perf_counter() - tick
        _note_step(work, state, result, progress, time.perf_counter() - tick)


def _one_step(work: Work, *, step: int, max_steps: int) -> StepResult:
    idx_BT, targets_BT = (torch.from_numpy(part).to(work.device) for part in work.batches.batch(step))
    return train_step(
        work.model,
        work.optimizer,
        (idx_BT, targets_BT),
        stage=work.stage,
        step=step,
        lr=lr_at(step, work.stage, max_steps),
        micro_batch_size=work.micro_batch_size,
        precision=work.precision,
        scaler=work.scaler,
        vocabulary=work.vocabulary,
    )


def _note_step(work: Work, state: TrainState, result: StepResult, progress: Progress, seconds: float) -> None:
    """Count and record a step; stop a training whose numbers have gone bad for good."""
    if not result.applied:
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        work.log.write("skipped", step=state.step, train_loss=str(result.train_loss), grad_norm=str(result.grad_norm))
        progress.say(f"step {state.step:,} skipped: loss {result.train_loss}, gradient norm {result.grad_norm}")
        if state.skipped_in_a_row >= _SKIPPED_STEPS_TO_STOP:
            raise TrainingFailed(
                f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is not finite, up to step "
                f"{state.step:,}. The weights before them are in {work.files.best}; "
                f"lower max_lr in config.py and run python {script_of(work.stage.name)} --fresh"
            )
        return
    state.skipped_in_a_row = 0
    state.recent_losses.append(result.train_loss)
    if state.step % work.stage.log_interval and state.step < work.stage.max_steps:
        return
    train_loss = sum(state.recent_losses) / len(state.recent_losses)
    state.recent_losses = []
    lr = lr_at(state.step - 1, work.stage, work.stage.max_steps)
    tokens_per_s = work.run.ladder.tokens_per_step(work.stage) / seconds
    work.log.write(
        "train",
        step=state.step,
        train_loss=train_loss,
        grad_norm=result.grad_norm,
        lr=lr,
        tokens_per_s=round(tokens_per_s),
    )
    left = _seconds_left(work, state)
    progress.show(
        state.step,
        work.stage.max_steps,
        f"loss {train_loss:.3f}, {tokens_per_s:,.0f} tokens/s, {duration_words(left)} left",
    )


def _seconds_left(work: Work, state: TrainState) -> float:
    steps = work.stage.max_steps - state.step
    return time_left(
        steps=steps,
        step_seconds=state.train_seconds / max(1, state.step),
        evaluations=-(-steps // work.stage.eval_interval),
        evaluation_seconds=work.evaluation_seconds,
    )


def _evaluation_is_due(work: Work, state: TrainState) -> bool:
    on_time = state.step % work.stage.eval_interval == 0 or state.step >= work.stage.max_steps
    return on_time and state.evaluated_at != state.step


def _out_of_patience(work: Work, state: TrainState) -> bool:
    return work.stage.patience is not None and state.bad_evals >= work.stage.patience


def _evaluate(work: Work, windows: ValidationWindows) -> Evaluation:
    return evaluate(
        work.model,
        windows,
        batch_size=work.micro_batch_size,
        device=work.device,
        precision=work.precision,
        vocabulary=work.vocabulary,
        check_stop=work.stop.check,
    )


def _note_evaluation(work: Work, state: TrainState, progress: Progress) -> None:
    """Measure, count, record, and keep the weights if they are the best so far. A signal during it leaves at once."""
    tick = time.perf_counter()
    try:
        measured = _evaluate(work, work.windows)
    except Interrupted:
        _leave(work, state)
        raise
    work.evaluation_seconds = time.perf_counter() - tick
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
    patience = f", {state.bad_evals} of {work.stage.patience} without improvement" if work.stage.patience else ""
    progress.say(
        f"step {state.step:,}: val_loss {measured.val_loss:.4f}, perplexity {measured.perplexity:,.1f}, "
        f"bits/byte {measured.bits_per_byte:.3f}{' (best)' if best else patience}"
    )
    if best:
        _save_file(work, state, work.files.best, _best_payload(work, state), keep_previous=False)


# --- saving -----------------------------------------------------------------------------------------------------------


def _save_is_due(work: Work, state: TrainState) -> bool:
    if state.step == 0 or state.step >= work.stage.max_steps:
        return False
    by_time = time.monotonic() - work.saved_at >= 60 * work.stage.save_minutes
    return work.stop.take_save_request() or by_time or state.step % work.stage.save_interval == 0


def _payload(work: Work, state: TrainState) -> Payload:
    """What result and resume state have in common."""
    return {
        "stage": work.stage.name,
        "step": state.step,
        "settings": plain_settings(work.run.ladder, work.run.stage),
        "data": work.data.fingerprints,
        "tokenizer": gpt2_tokenizer().fingerprint,
        "seen_tokens": work.vocabulary.seen_V.to(torch.uint8),
        "machine": machine_line(work.device, work.precision),
        "model": pack_weights(work.model, work.vocabulary),
    }


def _best_payload(work: Work, state: TrainState) -> Payload:
    return {**_payload(work, state), "val_loss": state.best_loss, "train_seconds": state.train_seconds}


def _save(work: Work, state: TrainState) -> bool:
    """Write the resume state; False if the disk refused."""
    payload = {
        **_payload(work, state),
        "optimizer": pack_optimizer(work.model, work.optimizer, work.vocabulary),
        "scaler": work.scaler.state_dict(),
        "progress": dataclasses.asdict(state),
    }
    saved = _save_file(work, state, work.files.resume, payload, keep_previous=True)
    work.saved_at = time.monotonic()
    return saved


def _save_file(work: Work, state: TrainState, path: os.PathLike[str], payload: Payload, *, keep_previous: bool) -> bool:
    """Save, or warn and go on training; after several failures in a row, SaveFailed."""
    try:
        save_checkpoint(type(work.files.best)(path), payload, keep_previous=keep_previous)
    except OSError as error:
        work.failed_saves += 1
        work.log.write("save failed", step=state.step, file=os.fspath(path), error=str(error))
        print(f"\nwarning: {os.path.basename(path)} could not be saved: {error.strerror}; going on", file=sys.stderr)
        if work.failed_saves >= _FAILED_SAVES_TO_STOP:
            raise SaveFailed(
                f"{work.failed_saves} saves in a row failed ({error.strerror}); the last good file is "
                f"{_last_good(work)}. Make room, then run python {script_of(work.stage.name)} again"
            ) from None
        return False
    work.failed_saves = 0
    return True


def _last_good(work: Work) -> str:
    good = [path for path in (work.files.resume, work.files.best) if path.exists()]
    return str(good[0]) if good else "none: nothing was saved yet"


def _leave(work: Work, state: TrainState) -> None:
    """Save and leave, as a signal asked."""
    saved = state.step == 0 or _save(work, state)
    words = f"saved at step {state.step:,}" if saved else "NOT saved"
    print(f"{words}; python {script_of(work.stage.name)} goes on from there", file=sys.stderr)
    work.stop.check()


def _finish(work: Work, state: TrainState) -> None:
    """Give the best weights their final name and say what is next."""
    best = load_checkpoint(work.files.best)
    if best is None:
        raise TrainingFailed(
            f"stage {work.stage.name} ended at step {state.step:,} without a finite validation loss; "
            f"lower max_lr in config.py and run python {script_of(work.stage.name)} --fresh"
        )
    payload = {key: value for key, value in best.payload.items() if key != "digest"}
    save_checkpoint(work.files.result, payload, keep_previous=False)
    work.files.forget_resume_state()
    peak = peak_memory(work.device)
    work.log.write(
        "finished",
        step=state.step,
        best_step=state.best_step,
        best_loss=state.best_loss,
        train_seconds=round(state.train_seconds, 1),
        peak_memory=peak,
    )
    why = "patience ran out" if _out_of_patience(work, state) else "all steps done"
    print(
        f"stage {work.stage.name} finished ({why}) after {state.step:,} steps and "
        f"{duration_words(state.train_seconds)} of training: val_loss {state.best_loss:.4f} at step {state.best_step:,} "
        f"-> {work.files.result}"
    )
    print(f"next: {_next_command(work.run)}")


def _next_command(run: StageRun) -> str:
    names = [stage.name for stage in run.ladder.stages]
    following = names[names.index(run.stage.name) + 1 :]
    preset = "" if run.ladder.name == "default" else f" --preset {run.ladder.name}"
    if following:
        return f"python {script_of(following[0])}{preset}"
    return f'python generate.py{preset} --prompt "Once upon a time"'
