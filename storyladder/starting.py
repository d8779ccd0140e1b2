"""What a stage is trained with: data checked, starting point chosen, model built, weights loaded."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import time

import torch
from torch import Tensor

from storyladder.command_line import StageRun
from storyladder.corpus.corpora import token_files
from storyladder.corpus.token_file import TokenFile, TrainBatches, ValidationWindows, open_token_file
from storyladder.corpus.tokenizer import tokenizer_named
from storyladder.learning.data_parallel import DataParallel
from storyladder.learning.device_steps import DeviceSteps
from storyladder.learning.kernels import why_no_kernels
from storyladder.learning.memory import fitting_micro_batch, useful_threads
from storyladder.learning.network import EMBEDDING, BuildModel, LanguageModel
from storyladder.learning.optimizer import MOMENTS, build_optimizer
from storyladder.learning.vocabulary import CompactVocabulary, start_rows_equal
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
from storyladder.stage_files import (
    StageFiles,
    TrainState,
    plain_settings,
    unpack_optimizer,
    unpack_weights,
)
from storyladder.starting_point import Start, start_for_all, starting_point


@dataclasses.dataclass(frozen=True)
class StageData:
    """The two verified token files of a stage."""

    train: TokenFile
    val: TokenFile

    @property
    def fingerprints(self) -> dict[str, str]:
        """What tells whether the data are the same as at the last save."""
        return {self.train.path.name: self.train.fingerprint, self.val.path.name: self.val.fingerprint}


@dataclasses.dataclass
class Work:
    """Everything the loop needs. What changes: `state`, the counters at the end, `stage` when --minutes refits it."""

    run: StageRun
    start: Start
    state: TrainState
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
    threads: int | None  # on a CPU
    log: RunLog
    stop: StopRequest
    group: Group
    began_at: float = dataclasses.field(default_factory=time.monotonic)
    saved_at: float = dataclasses.field(default_factory=time.monotonic)
    steps_here: int = 0  # made by this process
    seconds_here: float = 0.0  # that they took
    seconds_between: float = 0.0  # taken by records and saves between them
    seconds_preparing: float = 0.0  # taken by compiling and capturing them
    evaluation_seconds: float = 0.0  # of the last one
    failed_saves: int = 0
    unsaved_best: Payload | None = None  # best weights that the disk has refused so far
    device_steps: DeviceSteps | None = None  # on a GPU
    parallel: DataParallel | None = None  # in a group


_SAME_FILES = "copy the project with config.py and data/ to every machine, or keep it on a shared disk"


def prepare_work(run: StageRun, build_model: BuildModel, stop: StopRequest, group: Group) -> Work:
    """All parts of a stage, with a model of the right shape whose weights are not loaded yet."""
    check_shares(run.stage, group)
    device = group.together(lambda: pick_device(own_device(run.device, group)))
    if device.type == "cpu":
        keep_freed_memory()
        if why := why_no_kernels():
            say(f"{why}: a step takes torch's own operations, which are slower")
    files = StageFiles.of(run.ladder, run.stage)
    data = group.first_then_others(lambda: _open_data(run))
    _require_same_everywhere(_what_counts(run, data), group, _SAME_FILES)
    start = start_for_all(group, lambda: starting_point(run, files, data.fingerprints))
    precision = group.together(lambda: _precision_of(run, start.state, device))
    _require_same_everywhere({"precision": precision.name}, group, "start all of them with the same --precision")
    if precision.warning:
        say(f"warning: {precision.warning}")
    if device.type == "cuda" and not compute_repeatably(device, precision.dtype):
        say(f"attention in {precision.name} has no fixed order of sums on this GPU: a resumed run may differ a little")
    stage = dataclasses.replace(run.stage, **start.state.fitted)  # type: ignore[arg-type]
    vocabulary = _vocabulary(run, data, start.payload).to(device)
    micro_batch_size = _micro_batch_of_group(run, start.state, device, vocabulary, group)
    threads = None
    if device.type == "cpu":
        threads = _set_threads(run, start.state.threads if group.is_alone else None, vocabulary, micro_batch_size)
    model = build_model(dataclasses.replace(run.ladder.model, vocab_size=vocabulary.n_rows)).to(device)
    return Work(
        run=run,
        start=start,
        state=start.state,
        stage=stage,
        files=files,
        data=data,
        windows=validation_windows(run, data, stage),
        batches=TrainBatches(
            data.train.ids,
            context_length=run.ladder.model.context_length,
            batch_size=stage.batch_size,
            seed=stage.seed,
        ),
        model=model,
        optimizer=build_optimizer(model, stage, precision.product_dtype),
        scaler=precision.scaler(),
        vocabulary=vocabulary,
        device=device,
        precision=precision,
        micro_batch_size=micro_batch_size,
        threads=threads,
        log=RunLog(files.record, mute=not group.is_first),
        stop=stop,
        group=group,
    )


def check_shares(stage: StageConfig, group: Group) -> None:
    """UserError if a batch cannot be divided among the processes."""
    n, size = group.world_size, stage.batch_size
    if size % n:
        fitting = [number for number in range(1, size + 1) if size % number == 0]
        below, above = max(k for k in fitting if k < n or k == 1), size - size % n + n
        raise SettingsError(
            f"batch_size of stage {stage.name} is {size}, which {n} processes cannot share; "
            f"start {below} of them (of {', '.join(map(str, fitting))}), or set batch_size in config.py to {above}"
        )


def _what_counts(run: StageRun, data: StageData) -> dict[str, str]:
    """What all processes of a group must agree on before anything is loaded."""
    settings = plain_settings(run.ladder, run.stage, [])
    flags = {name: getattr(run, name) for name in ("minutes", "plan", "fresh", "device", "precision")}
    return {"settings": repr({**settings, **flags}), **data.fingerprints}


def _require_same_everywhere(here: dict[str, str], group: Group, remedy: str) -> None:
    """UserError in a process where a value is not that of the first one."""
    theirs = group.first(lambda: here)

    def compare() -> None:
        different = [name for name, value in here.items() if theirs[name] != value]
        if different:
            raise UserError(
                f"process {group.rank} on {socket.gethostname()} differs from the first one in {', '.join(different)}; "
                f"{remedy}"
            )

    group.together(compare)


def _precision_of(run: StageRun, state: TrainState, device: torch.device) -> Precision:
    """What --precision says, else what the stage began in, else what is fastest here.

    A resumed stage must not choose anew by the machine of the day: its losses would not be those of one run.
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
    """The same in every process, what the one with the least memory can take, and a divisor of each one's share."""
    share = run.stage.batch_size // group.world_size
    size = _micro_batch_size(run, state, device, vocabulary, group)
    return math.gcd(-group.highest([-size])[0], share)


def _micro_batch_size(
    run: StageRun, state: TrainState, device: torch.device, vocabulary: CompactVocabulary, group: Group
) -> int:
    """What config.py says, but no more than there was memory for; else what the stage began with; else what fits.

    A resumed stage must not choose anew by the memory of the day: dropout draws once for every micro-batch.
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
    """What --threads or config.py says, else what the stage had `before`, else OMP_NUM_THREADS, else what pays; set.

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


def _open_data(run: StageRun) -> StageData:
    model, (train_path, val_path) = run.ladder.model, token_files(run.ladder, run.stage)
    tokenizer = tokenizer_named(run.ladder.tokenizer)
    train, val = (
        open_token_file(
            path,
            tokenizer=tokenizer.fingerprint,
            vocab_size=model.vocab_size,
            at_least=at_least,
        )
        for path, at_least in ((train_path, model.context_length + 1), (val_path, 2))
    )
    return StageData(train, val)


def validation_windows(run: StageRun, data: StageData, stage: StageConfig) -> ValidationWindows:
    """The windows that an evaluation of this stage reads."""
    return ValidationWindows(
        data.val.ids,
        context_length=run.ladder.model.context_length,
        limit=stage.val_windows,
        token_bytes_V=tokenizer_named(run.ladder.tokenizer).token_bytes_V,
    )


def _vocabulary(run: StageRun, data: StageData, payload: Payload | None) -> CompactVocabulary:
    """All token types of this stage's text and of every stage before it."""
    seen_V = torch.from_numpy(data.train.seen(run.ladder.model.vocab_size))
    compact = run.stage.compact_vocabulary
    if payload is not None:
        seen_V |= payload["seen_tokens"].bool()
        moments = payload["optimizer"] if "progress" in payload else {}
        shared = [payload["model"], *(moments[name] for name in MOMENTS["adamw"] if moments.get("updates"))]
        plan = CompactVocabulary(seen_V)
        compact = compact and all(plan.can_share(tensors[EMBEDDING]) for tensors in shared)
    return CompactVocabulary(seen_V, compact=compact)


def load_weights(work: Work, build_model: BuildModel) -> None:
    """Weights of the starting point and, when continuing, the optimizer's state."""
    payload = work.start.payload
    if payload is None:
        unpack_weights(work.model, _random_weights(work, build_model), work.vocabulary)
    else:
        restore(work, payload)
    work.start = dataclasses.replace(work.start, payload=None)  # three times the model's size, no longer needed


def restore(work: Work, payload: Payload) -> None:
    """Weights of a checkpoint and, if it is a resume state, those of the optimizer and the scaler."""
    unpack_weights(work.model, payload["model"], work.vocabulary)
    if "progress" in payload:
        unpack_optimizer(work.model, work.optimizer, payload["optimizer"], work.vocabulary)
        if work.scaler.is_enabled() and payload["scaler"]:
            work.scaler.load_state_dict(payload["scaler"])


def _random_weights(work: Work, build_model: BuildModel) -> dict[str, Tensor]:
    """The whole model's random start, the same on every device and with any vocabulary rows left out."""
    torch.manual_seed(work.stage.seed)
    weights = build_model(work.run.ladder.model).state_dict()
    start_rows_equal(weights[EMBEDDING], work.vocabulary.seen_V)
    return weights


def record_start(work: Work) -> None:
    """Put into the record what is trained, from what, on what and where."""
    work.log.write(
        "start",
        stage=work.stage.name,
        step=work.state.step,
        start=work.start.words,
        settings=plain_settings(work.run.ladder, work.stage, work.start.ancestors),
        data=work.data.fingerprints,
        vocabulary_rows=work.vocabulary.n_rows,
        micro_batch_size=work.micro_batch_size,
        precision=work.precision.name,
        threads=work.threads,
        machine=machine_line(work.device, work.precision),
        cpus=os.cpu_count(),
        processes=work.group.world_size,
    )
