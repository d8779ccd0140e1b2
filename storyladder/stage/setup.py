"""Setting up a stage: verify the text, choose the start, build the learner. No file changes before that is done."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import socket

import torch

from storyladder.command_line import StageRun
from storyladder.corpus.corpora import corpus_files, training_files
from storyladder.corpus.token_file import TokenFile, TrainBatches, ValidationWindows, open_token_file
from storyladder.corpus.tokenizer import Tokenizer, tokenizer_named
from storyladder.layers.kernels import why_no_kernels
from storyladder.learning.learner import Learner
from storyladder.learning.memory import fitting_micro_batch, useful_threads
from storyladder.learning.network import BuildModel
from storyladder.learning.packing import can_be_compact
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.results import StageFiles, plain_settings
from storyladder.runtime.checkpoint import Payload
from storyladder.runtime.distributed import Group, device_of_rank
from storyladder.runtime.errors import DataError, SettingsError, UserError, report
from storyladder.runtime.machine import (
    Precision,
    free_memory,
    keep_freed_memory,
    machine_line,
    make_deterministic,
    most_threads,
    pick_device,
    pick_precision,
)
from storyladder.runtime.run_log import RunLog
from storyladder.runtime.signals import StopRequest
from storyladder.settings import StageConfig
from storyladder.stage.checkpoints import Checkpoints
from storyladder.stage.pace import Pace
from storyladder.stage.reports import Reports
from storyladder.stage.start import Start, find_start
from storyladder.stage.state import TrainState

_SAME_FILES = "copy the project with config.py and data/ to every machine, or keep it on a shared disk"
# Compiling takes about 40 s and saves 5 ms or more per step (H200): it makes shorter stages slower.
_STEPS_TO_COMPILE_FOR = 8_000
_MINUTES_TO_COMPILE_FOR = 2.0


@dataclasses.dataclass(frozen=True)
class StageText:
    """The verified token files of a stage, and how they are read."""

    train: TokenFile
    val: TokenFile
    replay: list[TokenFile]  # in the order of the settings
    context_length: int  # tokens
    tokenizer: Tokenizer

    @property
    def fingerprints(self) -> dict[str, str]:
        """A fingerprint per file, to check that the data are the same as at the last save."""
        return {file.path.name: file.fingerprint for file in (self.train, self.val, *self.replay)}

    def batches(self, stage: StageConfig) -> TrainBatches:
        """The training batches."""
        shares = (stage.replay or {}).values()

        def check_size() -> None:
            for file in (self.train, *self.replay):
                file.check_size()

        return TrainBatches(
            self.train.ids,
            context_length=self.context_length,
            batch_size=stage.batch_size,
            seed=stage.seed,
            replay=[(file.ids, share) for file, share in zip(self.replay, shares, strict=True)],
            check_size=check_size,
        )

    def windows(self, limit: int | None) -> ValidationWindows:
        """The first `limit` windows of the validation file, or all with None."""
        return ValidationWindows(
            self.val.ids,
            context_length=self.context_length,
            limit=limit,
            token_bytes_V=self.tokenizer.token_bytes_V,
            check_size=self.val.check_size,
        )


@dataclasses.dataclass
class Stage:
    """Everything the training loop works with."""

    run: StageRun
    text: StageText
    state: TrainState
    learner: Learner
    batches: TrainBatches
    windows: ValidationWindows
    checkpoints: Checkpoints
    log: RunLog
    pace: Pace
    stop: StopRequest
    reports: Reports


def set_up(run: StageRun, build_model: BuildModel, stop: StopRequest, group: Group) -> tuple[Stage, Start]:
    """Build all parts of a stage. Does not load weights (`load_start` does) or change any file."""
    pace = Pace()
    check_shares(run.stage, group)
    device = group.together(lambda: pick_device(device_of_rank(run.device, group)))
    if device.type == "cpu":
        keep_freed_memory()
        if why := why_no_kernels():
            report(f"{why}: using torch's own operations, which are slower")
    files = StageFiles.of(run.ladder, run.stage)
    text = group.first_then_others(lambda: _open_text(run))
    _require_same_everywhere(_what_counts(run, text), group, _SAME_FILES)
    start = find_start(run, files, text.fingerprints, group)
    state = start.state
    precision = group.together(lambda: _precision_of(run, state, device))
    _require_same_everywhere({"precision": precision.name}, group, "start all of them with the same --precision")
    if precision.warning:
        report(f"warning: {precision.warning}")
    if device.type == "cuda" and not make_deterministic(device, precision.dtype):
        report(f"attention in {precision.name} is not deterministic on this GPU: a resumed run may differ slightly")
    stage = dataclasses.replace(run.stage, **state.fitted)  # type: ignore[arg-type]
    vocabulary = _vocabulary(run, text, start.payload).to(device)
    micro_batch_size = _micro_batch_of_group(run, state, device, vocabulary, group)
    threads = None
    if device.type == "cpu":
        threads = _set_threads(run, state.threads if group.is_alone else None, vocabulary, micro_batch_size)
    learner = Learner(
        build_model,
        run.ladder.model,
        stage,
        vocabulary=vocabulary,
        device=device,
        precision=precision,
        micro_batch_size=micro_batch_size,
        group=group,
        may_compile=_is_worth_compiling(run, stage),
    )
    # What the stage is really trained with, and what a resumed run uses again.
    state.precision, state.threads = precision.name, threads if group.is_alone else None
    log = RunLog(files.record, mute=not group.is_first)
    about = _about(run, start, text, machine_line(device, precision))
    return Stage(
        run=run,
        text=text,
        state=state,
        learner=learner,
        batches=text.batches(stage),
        windows=text.windows(stage.val_windows),
        checkpoints=Checkpoints(files, about, group=group, log=log, again=run.again),
        log=log,
        pace=pace,
        stop=stop,
        reports=Reports(run, text.tokenizer, build_model, learner, log),
    ), start


def load_start(learner: Learner, start: Start) -> None:
    """Load the weights that the learner starts from and, when resuming, the optimizer state."""
    if start.payload is None:
        learner.start_randomly()
    else:
        learner.load(start.payload)


def check_shares(stage: StageConfig, group: Group) -> None:
    """Raise SettingsError if the batch size is not a multiple of the number of ranks."""
    n, size = group.world_size, stage.batch_size
    if size % n:
        fitting = [number for number in range(1, size + 1) if size % number == 0]
        below, above = max(k for k in fitting if k < n or k == 1), size - size % n + n
        raise SettingsError(
            f"batch_size of stage {stage.name} is {size}, which is not divisible by {n} processes; start {below} "
            f"(possible are {', '.join(map(str, fitting))}), or set batch_size in config.py to {above}"
        )


def _about(run: StageRun, start: Start, text: StageText, machine: str) -> Payload:
    """What every checkpoint of this run contains besides its state."""
    return {
        "stage": run.stage.name,
        "settings": plain_settings(run.ladder, run.stage, start.ancestors),
        "data": text.fingerprints,
        "parent_digest": start.parent_digest,
        "tokenizer": text.tokenizer.fingerprint,
        "machine": machine,
    }


def _what_counts(run: StageRun, text: StageText) -> dict[str, str]:
    """Settings, flags and data, which must be the same on all ranks."""
    settings = plain_settings(run.ladder, run.stage, [])
    flags = {name: getattr(run, name) for name in ("minutes", "plan", "fresh", "device", "precision")}
    return {"settings": repr({**settings, **flags}), **text.fingerprints}


def _require_same_everywhere(here: dict[str, str], group: Group, remedy: str) -> None:
    """Raise UserError on a rank where a value differs from rank 0's."""
    theirs = group.on_first(lambda: here)
    with group.agreement():
        different = [name for name, value in here.items() if theirs[name] != value]
        if different:
            raise UserError(
                f"rank {group.rank} on {socket.gethostname()} differs from rank 0 in {', '.join(different)}; {remedy}"
            )


def _is_worth_compiling(run: StageRun, stage: StageConfig) -> bool:
    """Whether the stage is long enough. The whole stage counts, so that a resumed run computes the same way."""
    if run.minutes is not None:
        return run.minutes >= _MINUTES_TO_COMPILE_FOR
    return stage.max_steps >= _STEPS_TO_COMPILE_FOR


def _precision_of(run: StageRun, state: TrainState, device: torch.device) -> Precision:
    """The precision of --precision, else the one the stage began with, else the fastest on this machine.

    A resumed stage must not choose again on another machine: its losses would differ from those of a single run.
    """
    if run.precision != "auto" or state.precision is None:
        return pick_precision(device, run.precision)
    try:
        return pick_precision(device, state.precision, "the stage began with it")
    except UserError as error:
        if run.accept_changes:
            return pick_precision(device)
        raise UserError(f"the stage began with {state.precision}, but {error} --accept-changes") from None


def _micro_batch_of_group(
    run: StageRun, state: TrainState, device: torch.device, vocabulary: CompactVocabulary, group: Group
) -> int:
    """The micro-batch size for all ranks: it fits the one with the least memory and divides each rank's share."""
    share = run.stage.batch_size // group.world_size
    size = _micro_batch_size(run, state, device, vocabulary, group)
    return math.gcd(-group.highest([-size])[0], share)


def _micro_batch_size(
    run: StageRun, state: TrainState, device: torch.device, vocabulary: CompactVocabulary, group: Group
) -> int:
    """The size in config.py, limited to what memory allowed before; else what the stage began with; else what fits.

    A resumed stage must not choose again by the memory free now: dropout draws once per micro-batch.
    """
    if state.micro_batch_size is None:
        free = free_memory(device)
        if free is not None and device.type == "cpu":
            free //= group.local_size
        stage = dataclasses.replace(run.stage, batch_size=run.stage.batch_size // group.world_size)
        return fitting_micro_batch(run.ladder.model, stage, device, n_rows=vocabulary.n_rows, free_bytes=free)
    if run.stage.micro_batch_size is not None:
        return min(run.stage.micro_batch_size, state.micro_batch_size)
    return state.micro_batch_size


def _set_threads(run: StageRun, before: int | None, vocabulary: CompactVocabulary, micro_batch_size: int) -> int:
    """Set and return the number of threads: --threads, else config.py's, else `before`, else what is fastest here.

    The order of summation, and so the last digits of a loss, depend on the number of threads.
    """
    asked, cores = run.threads or run.stage.threads, most_threads()
    if asked is not None:
        threads = asked
        if before not in (None, threads):
            report(f"--threads was {before} and is {threads}: the last digits of losses may differ from now on")
    elif before is not None:
        threads = before
        if threads > cores:
            report(
                f"the stage began with {threads} threads, and there are {cores} cores; --threads {cores} may be faster"
            )
    elif "OMP_NUM_THREADS" in os.environ:
        threads = cores
    else:
        model, rows = run.ladder.model, vocabulary.n_rows
        threads = useful_threads(model, n_rows=rows, micro_batch_size=micro_batch_size, cores=cores)
    torch.set_num_threads(threads)
    return threads


def _open_text(run: StageRun) -> StageText:
    model, tokenizer = run.ladder.model, tokenizer_named(run.ladder.tokenizer)
    opened = functools.partial(open_token_file, tokenizer=tokenizer.fingerprint, vocab_size=model.vocab_size)
    for name in run.stage.replay or ():
        if not (path := corpus_files(run.ladder, name)[0]).exists():
            raise DataError(
                f"stage {run.stage.name} replays {name}, but {path} does not exist; create it with python "
                f"prepare_data.py, or set replay=None for this stage in config.py: it will then forget more of {name}"
            )
    train, *replay = [opened(path, at_least=model.context_length + 1) for path in training_files(run.ladder, run.stage)]
    val = opened(corpus_files(run.ladder, run.stage.corpus)[1], at_least=2)
    return StageText(train, val, replay, model.context_length, tokenizer)


def _vocabulary(run: StageRun, text: StageText, payload: Payload | None) -> CompactVocabulary:
    """The vocabulary of all tokens in this stage's text and in that of the stages before it."""
    seen_V = torch.zeros(run.ladder.model.vocab_size, dtype=torch.bool)
    for file in (text.train, *text.replay):
        seen_V |= torch.from_numpy(file.seen(len(seen_V)))
    compact = run.stage.compact_vocabulary
    if payload is not None:
        seen_V |= payload["seen_tokens"].bool()
        compact = compact and can_be_compact(payload, CompactVocabulary(seen_V))
    return CompactVocabulary(seen_V, compact=compact)


def record_start(stage: Stage, start: Start) -> None:
    """Record in the run log what is trained, from what, on which data and machine."""
    learner, about = stage.learner, stage.checkpoints.about
    stage.log.write(
        "start",
        stage=about["stage"],
        step=stage.state.step,
        start=start.description,
        settings=plain_settings(stage.run.ladder, learner.stage, start.ancestors),
        data=about["data"],
        vocabulary_rows=learner.vocabulary.n_rows,
        micro_batch_size=learner.micro_batch_size,
        precision=learner.precision.name,
        threads=torch.get_num_threads() if learner.device.type == "cpu" else None,
        machine=about["machine"],
        cpus=os.cpu_count(),
        processes=learner.group.world_size,
    )
