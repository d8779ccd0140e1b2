"""Everything a stage is trained with: text verified, start chosen, learner built. Files change only after that."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import socket

import torch

from storyladder.command_line import StageRun
from storyladder.corpus.token_file import TokenFile, TrainBatches, ValidationWindows, open_token_file
from storyladder.corpus.tokenizer import Tokenizer, gpt2_tokenizer
from storyladder.layers.kernels import why_no_kernels
from storyladder.learning.learner import Learner
from storyladder.learning.memory import fitting_micro_batch, useful_threads
from storyladder.learning.network import BuildModel
from storyladder.learning.packing import can_be_compact
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.results import StageFiles, plain_settings
from storyladder.runtime.checkpoint import Payload
from storyladder.runtime.distributed import Group, own_device
from storyladder.runtime.errors import SettingsError, UserError, say
from storyladder.runtime.machine import (
    Precision,
    compute_repeatably,
    free_memory,
    keep_freed_memory,
    machine_line,
    most_threads,
    pick_device,
    pick_precision,
)
from storyladder.runtime.run_log import RunLog
from storyladder.runtime.signals import StopRequest
from storyladder.settings import StageConfig
from storyladder.stage.checkpoints import Checkpoints
from storyladder.stage.pace import Pace
from storyladder.stage.start import Start, find_start
from storyladder.stage.state import TrainState

_SAME_FILES = "copy the project with config.py and data/ to every machine, or keep it on a shared disk"
# Compiling takes some 40 s and saves 5 ms or more a step (H200): shorter stages only lose by it.
_STEPS_TO_COMPILE_FOR = 8_000
_MINUTES_TO_COMPILE_FOR = 2.0


@dataclasses.dataclass(frozen=True)
class StageText:
    """The two verified token files of a stage, and how it reads them."""

    train: TokenFile
    val: TokenFile
    context_length: int  # tokens
    tokenizer: Tokenizer

    @property
    def fingerprints(self) -> dict[str, str]:
        """What tells whether the data are the same as at the last save."""
        return {self.train.path.name: self.train.fingerprint, self.val.path.name: self.val.fingerprint}

    def batches(self, stage: StageConfig) -> TrainBatches:
        """The training batches."""
        return TrainBatches(
            self.train.ids,
            context_length=self.context_length,
            batch_size=stage.batch_size,
            seed=stage.seed,
            check_size=self.train.check_size,
        )

    def windows(self, limit: int | None) -> ValidationWindows:
        """The windows that an evaluation reads; None: the whole file."""
        return ValidationWindows(
            self.val.ids,
            context_length=self.context_length,
            limit=limit,
            token_bytes_V=self.tokenizer.token_bytes_V,
            check_size=self.val.check_size,
        )


@dataclasses.dataclass
class Stage:
    """What the loop has in its hands."""

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


def set_up(run: StageRun, build_model: BuildModel, stop: StopRequest, group: Group) -> tuple[Stage, Start]:
    """All parts of a stage; weights are not loaded yet (`load_start`) and nothing on the disk has changed."""
    pace = Pace()
    check_shares(run.stage, group)
    device = group.together(lambda: pick_device(own_device(run.device, group)))
    if device.type == "cpu":
        keep_freed_memory()
        if why := why_no_kernels():
            say(f"{why}: a step takes torch's own operations, which are slower")
    files = StageFiles.of(run.ladder, run.stage)
    text = group.first_then_others(lambda: _open_text(run))
    _require_same_everywhere(_what_counts(run, text), group, _SAME_FILES)
    start = find_start(run, files, text.fingerprints, group)
    state = start.state
    precision = group.together(lambda: _precision_of(run, state, device))
    _require_same_everywhere({"precision": precision.name}, group, "start all of them with the same --precision")
    if precision.warning:
        say(f"warning: {precision.warning}")
    if device.type == "cuda" and not compute_repeatably(device, precision.dtype):
        say(f"attention in {precision.name} has no fixed order of sums on this GPU: a resumed run may differ a little")
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
    # What the stage is really trained with, and what a resume takes again.
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
    ), start


def load_start(learner: Learner, start: Start) -> None:
    """Give the learner the weights it starts from and, when a stage is resumed, the optimizer's state."""
    if start.payload is None:
        learner.start_randomly()
    else:
        learner.load(start.payload)


def check_shares(stage: StageConfig, group: Group) -> None:
    """SettingsError if a batch cannot be divided among the ranks."""
    n, size = group.world_size, stage.batch_size
    if size % n:
        fitting = [number for number in range(1, size + 1) if size % number == 0]
        below, above = max(k for k in fitting if k < n or k == 1), size - size % n + n
        raise SettingsError(
            f"batch_size of stage {stage.name} is {size}, which {n} processes cannot share; "
            f"start {below} of them (of {', '.join(map(str, fitting))}), or set batch_size in config.py to {above}"
        )


def _about(run: StageRun, start: Start, text: StageText, machine: str) -> Payload:
    """What every checkpoint of this run says of itself."""
    return {
        "stage": run.stage.name,
        "settings": plain_settings(run.ladder, run.stage, start.ancestors),
        "data": text.fingerprints,
        "parent_digest": start.parent_digest,
        "tokenizer": text.tokenizer.fingerprint,
        "machine": machine,
    }


def _what_counts(run: StageRun, text: StageText) -> dict[str, str]:
    """What all ranks must agree on before anything is loaded."""
    settings = plain_settings(run.ladder, run.stage, [])
    flags = {name: getattr(run, name) for name in ("minutes", "plan", "fresh", "device", "precision")}
    return {"settings": repr({**settings, **flags}), **text.fingerprints}


def _require_same_everywhere(here: dict[str, str], group: Group, remedy: str) -> None:
    """UserError on a rank where a value differs from rank 0's."""
    theirs = group.first(lambda: here)
    with group.agreement():
        different = [name for name, value in here.items() if theirs[name] != value]
        if different:
            raise UserError(
                f"process {group.rank} on {socket.gethostname()} differs from the first one in {', '.join(different)}; "
                f"{remedy}"
            )


def _is_worth_compiling(run: StageRun, stage: StageConfig) -> bool:
    """Whether the whole stage is long enough; asked of all of it, so that a resumed one computes alike."""
    if run.minutes is not None:
        return run.minutes >= _MINUTES_TO_COMPILE_FOR
    return stage.max_steps >= _STEPS_TO_COMPILE_FOR


def _precision_of(run: StageRun, state: TrainState, device: torch.device) -> Precision:
    """What --precision asks for, else what the stage began in, else what is fastest here.

    A resumed stage must not choose again by today's machine: its losses would not be those of one run.
    """
    if run.precision != "auto" or state.precision is None:
        return pick_precision(device, run.precision)
    try:
        return pick_precision(device, state.precision, "the stage began in it")
    except UserError as error:
        if run.accept_changes:
            return pick_precision(device)
        raise UserError(f"the stage began in {state.precision}, but {error} --accept-changes") from None


def _micro_batch_of_group(
    run: StageRun, state: TrainState, device: torch.device, vocabulary: CompactVocabulary, group: Group
) -> int:
    """The same on every rank, what the one with the least memory can take, and a divisor of each one's share."""
    share = run.stage.batch_size // group.world_size
    size = _micro_batch_size(run, state, device, vocabulary, group)
    return math.gcd(-group.highest([-size])[0], share)


def _micro_batch_size(
    run: StageRun, state: TrainState, device: torch.device, vocabulary: CompactVocabulary, group: Group
) -> int:
    """What config.py says, but no more than there was memory for; else what the stage began with; else what fits.

    A resumed stage must not choose again by today's memory: dropout draws once for every micro-batch.
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
    """Set and return what --threads or config.py asks for, else what the stage had `before`, else what pays here.

    The order in which a sum is taken, and with it the last digit, depends on the number of threads.
    """
    asked, cores = run.threads or run.stage.threads, most_threads()
    if asked is not None:
        threads = asked
        if before not in (None, threads):
            say(f"--threads was {before} and is {threads}: the last digits of losses may differ from then on")
    elif before is not None:
        threads = before
        if threads > cores:
            say(f"{threads} threads, as the stage began, on {cores} cores; --threads {cores} may be faster")
    elif "OMP_NUM_THREADS" in os.environ:
        threads = cores
    else:
        model, rows = run.ladder.model, vocabulary.n_rows
        threads = useful_threads(model, n_rows=rows, micro_batch_size=micro_batch_size, cores=cores)
    torch.set_num_threads(threads)
    return threads


def _open_text(run: StageRun) -> StageText:
    model, tokenizer = run.ladder.model, gpt2_tokenizer()
    opened = functools.partial(open_token_file, tokenizer=tokenizer.fingerprint, vocab_size=model.vocab_size)
    folder = run.ladder.folder("data")
    train = opened(folder / run.stage.train_file, at_least=model.context_length + 1)
    val = opened(folder / run.stage.val_file, at_least=2)
    return StageText(train, val, model.context_length, tokenizer)


def _vocabulary(run: StageRun, text: StageText, payload: Payload | None) -> CompactVocabulary:
    """All token types of this stage's text and of every stage before it."""
    seen_V = torch.from_numpy(text.train.seen(run.ladder.model.vocab_size))
    compact = run.stage.compact_vocabulary
    if payload is not None:
        seen_V |= payload["seen_tokens"].bool()
        compact = compact and can_be_compact(payload, CompactVocabulary(seen_V))
    return CompactVocabulary(seen_V, compact=compact)


def record_start(stage: Stage, start: Start) -> None:
    """Write into the run log what is trained, from what, on what and where."""
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
