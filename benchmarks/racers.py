"""The contenders of training, each as it is in its own process: the product's step, the plain loop, bare products."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import PlainLoop
from benchmarks.turns import Entry, Racer, Reading
from model import GPT
from storyladder.command_line import StageRun
from storyladder.corpus.corpora import token_files
from storyladder.corpus.token_file import TrainBatches, open_token_file
from storyladder.corpus.tokenizer import gpt2_tokenizer
from storyladder.layers import attention
from storyladder.layers.kernels import Part, without_kernels
from storyladder.learning import loss
from storyladder.learning.device_steps import StepMode
from storyladder.learning.schedule import lr_at
from storyladder.runtime.checkpoint import read_checkpoint, save_checkpoint
from storyladder.runtime.distributed import ALONE
from storyladder.runtime.machine import GB, peak_memory, pick_device
from storyladder.runtime.signals import StopRequest
from storyladder.settings import Ladder
from storyladder.stage.setup import Stage, load_start, set_up

_PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # of the square matrices that measure the peak
_PRODUCT_SECONDS = 0.25  # of products in a turn, at least


def _without_chunks() -> None:
    loss._CHUNK_SCORES.update(cuda=1 << 62, cpu=1 << 62)


def _without_padding() -> None:
    loss._COLUMNS.clear()
    attention._WIDTHS.clear()


def _without_fixed_order() -> None:
    torch.use_deterministic_algorithms(False)


# What the product always does on a GPU, left out to see what it brings: for a process that does nothing else.
WITHOUT = {"chunks": _without_chunks, "padding": _without_padding, "a fixed order of sums": _without_fixed_order}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """One line of the table of training."""

    name: str
    kind: str  # ours, plain, or products
    number_format: str | None = None  # fp32 or bf16; None: what the product chooses for the machine
    compact: bool = False  # ours: compact vocabulary
    mode: StepMode | None = None  # ours, on a GPU: how steps run ahead; None: one by one, or as the product chooses
    one_by_one: bool = False  # ours: never ahead
    without: str | None = None  # ours: a key of WITHOUT
    kernels_off: tuple[Part, ...] = ()  # ours, on a CPU: parts of the step that use torch operations instead
    compiled: bool = False  # plain: torch.compile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What all contenders of a race share."""

    ladder: Ladder  # its folders hold the text; the first stage is trained
    device: str
    steps_per_turn: int = 1
    weights: Path | None = None  # where the plain loop starts from; None: from transformers' own random weights


def entry_of(contender: Contender, workload: Workload) -> Entry:
    """The contender as the race wants it."""
    return Entry(contender.name, build_racer, (contender, workload))


def build_racer(spec: tuple[Contender, Workload]) -> Racer:
    """The contender itself, in the process that this is called in."""
    contender, workload = spec
    builds: dict[str, Callable[[Contender, Workload], Racer]] = {"ours": Ours, "plain": Plain, "products": Products}
    return builds[contender.kind](contender, workload)


class _Trainer:
    """A turn is some steps; what they took includes the batch, and on a GPU the wait for its end."""

    def __init__(self, workload: Workload) -> None:
        self._steps_per_turn = workload.steps_per_turn
        self.device = pick_device(workload.device)
        self.facts: dict[str, Any] = {}

    def steps(self, first: int, n: int) -> list[float | torch.Tensor]:
        """Updates; the loss before each."""
        return [self.step(number) for number in range(first, first + n)]

    def step(self, number: int) -> float | torch.Tensor:
        """One update; the loss before it."""
        raise NotImplementedError

    def turn(self, number: int) -> Reading:
        first = number * self._steps_per_turn
        _wait_for(self.device)
        tick = time.perf_counter()
        losses = self.steps(first, self._steps_per_turn)
        _wait_for(self.device)
        seconds = (time.perf_counter() - tick) / self._steps_per_turn
        numbers = [float(loss) for loss in losses]
        if not all(abs(loss) < float("inf") for loss in numbers):
            raise ArithmeticError(f"the loss became {numbers}")
        return {"seconds": seconds, "losses": numbers}

    def last_words(self) -> dict[str, Any]:
        words: dict[str, Any] = {"peak_rss": peak_memory(torch.device("cpu"))}
        if self.device.type == "cuda":
            words["peak_gpu"] = torch.cuda.max_memory_reserved(self.device)
        return words


def started_stage(ladder: Ladder, device: str, *, compact: bool, precision: str = "auto") -> Stage:
    """The first stage as its script starts it, from random weights."""
    settings = dataclasses.replace(ladder.stages[0], compact_vocabulary=compact)
    run = StageRun(ladder=ladder, stage=settings, device=device, precision=precision, fresh=True)
    stage, start = set_up(run, GPT, StopRequest(), ALONE)
    load_start(stage.learner, start)
    return stage


def put_start_weights(ladder: Ladder, device: str, path: Path) -> None:
    """The weights that the first stage starts from, as a checkpoint."""
    stage = started_stage(ladder, device, compact=True)
    save_checkpoint(path, stage.learner.pack(optimizer=False), keep_previous=False)


class Ours(_Trainer):
    """The product's own step, started as the stage script starts it."""

    def __init__(self, contender: Contender, workload: Workload) -> None:
        super().__init__(workload)
        precision = contender.number_format or "auto"
        started = started_stage(workload.ladder, workload.device, compact=contender.compact, precision=precision)
        self._learner, self._batches = started.learner, started.batches
        if contender.without is not None:
            WITHOUT[contender.without]()
        self.facts = {
            "number_format": self._learner.precision.name,
            "rows": self._learner.vocabulary.n_rows,
            "micro_batch": self._learner.micro_batch_size,
        }
        if contender.mode is not None:
            said: list[str] = []
            self._learner.report = said.append
            if self._learner.prepare_ahead(self._batches, self._batches.starts(0), [contender.mode]) != contender.mode:
                raise RuntimeError(next(line for line in said if line.startswith("continuing without")))
        self._one_by_one, self._kernels_off = contender.one_by_one, contender.kernels_off
        if self.device.type == "cuda":  # compile while the others do, not in a turn
            tick = time.perf_counter()
            self.steps(0, 2)
            self.facts["seconds_to_first_steps"] = round(time.perf_counter() - tick, 1)

    def turn(self, number: int) -> Reading:
        """As for all who train, without the kernels that this contender does without."""
        with without_kernels(*self._kernels_off):
            return super().turn(number)

    def steps(self, first: int, n: int) -> list[float | torch.Tensor]:
        """Updates of the product, on a GPU many at a time."""
        learner, losses = self._learner, list[float | torch.Tensor]()
        while len(losses) < n:
            k = first + len(losses)
            if self._one_by_one:
                results = [learner.step(learner.read(self._batches, k), k, lr_at(k, learner.stage))]
            else:
                results = learner.steps(self._batches, k, n - len(losses))
            losses += [result.train_loss for result in results]
        return losses


class Plain(_Trainer):
    """The plain loop on the same batches."""

    def __init__(self, contender: Contender, workload: Workload) -> None:
        super().__init__(workload)
        ladder, stage = workload.ladder, workload.ladder.stages[0]
        text = open_token_file(
            token_files(ladder, stage)[0],
            tokenizer=gpt2_tokenizer().fingerprint,
            vocab_size=ladder.model.vocab_size,
        )
        batches = TrainBatches(
            text.ids,
            context_length=ladder.model.context_length,
            batch_size=stage.batch_size,
            seed=stage.seed,
        )
        self._loop = PlainLoop(
            ladder.model,
            stage,
            batches,
            device=self.device,
            bf16=contender.number_format == "bf16",
            compiled=contender.compiled,
            weights=None if workload.weights is None else read_checkpoint(workload.weights)["model"],
        )
        self.facts = {
            "number_format": contender.number_format,
            "rows": ladder.model.vocab_size,
            "micro_batch": stage.batch_size,
            "compiled": contender.compiled,
        }
        if contender.compiled and self.device.type == "cuda":
            self.steps(0, 2)

    def step(self, number: int) -> float | torch.Tensor:
        """One update of the plain loop; its loss is read at the end of the turn, so that a GPU need not wait."""
        return self._loop.step(number)


class Products:
    """Products of large square matrices: how fast this machine multiplies, in the minutes of the race."""

    def __init__(self, contender: Contender, workload: Workload) -> None:
        self.device = pick_device(workload.device)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[contender.number_format or "fp32"]
        self._size = _PRODUCT_SIZE[self.device.type]
        self._a, self._b = (torch.randn(self._size, self._size, device=self.device).to(dtype) for _ in range(2))
        self._out = torch.empty_like(self._a)
        self.facts = {"number_format": contender.number_format}

    def turn(self, number: int) -> Reading:
        """Seconds of one product, the mean over a quarter of a second of them."""
        count = 0
        _wait_for(self.device)
        tick = time.perf_counter()
        while not count or time.perf_counter() - tick < _PRODUCT_SECONDS:
            torch.mm(self._a, self._b, out=self._out)
            _wait_for(self.device)
            count += 1
        seconds = (time.perf_counter() - tick) / count
        return {"seconds": seconds, "flops_per_s": 2 * self._size**3 / seconds}

    def last_words(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def _wait_for(device: torch.device) -> None:
    """Until the GPU has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def plain_memory(ladder: Ladder) -> float:
    """Bytes that a plain loop takes, to about a fifth: weights, AdamW, all scores several times, all activations."""
    model = ladder.model
    per_token = 3.2 * model.vocab_size + model.n_layer * (40 * model.n_embd + 2.3 * model.n_head * model.context_length)
    return 0.5 * GB + 16 * model.n_params + 4 * ladder.tokens_per_step(ladder.stages[0]) * per_token
