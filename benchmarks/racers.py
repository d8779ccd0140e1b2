"""The contenders of the training benchmark, each run in its own process: our step, the plain loop, bare matmuls."""

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

_MATMUL_SIZE = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # of the square matrices that measure the peak
_MATMUL_SECONDS = 0.25  # of matmuls in a turn, at least


def _without_chunks() -> None:
    loss._CHUNK_SCORES.update(cuda=1 << 62, cpu=1 << 62)


def _without_padding() -> None:
    loss._COLUMNS.clear()
    attention._WIDTHS.clear()


def _without_fixed_order() -> None:
    torch.use_deterministic_algorithms(False)


# Patches that switch off what our step always does on a GPU, to measure the gain. They last as long as the process.
WITHOUT = {"chunks": _without_chunks, "padding": _without_padding, "a fixed order of sums": _without_fixed_order}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of the training table."""

    name: str
    kind: str  # ours, plain, or matmuls
    precision: str | None = None  # fp32 or bf16; None: what Storyladder chooses on this machine
    compact: bool = False  # ours: compact vocabulary
    mode: StepMode | None = None  # ours, on a GPU: how steps run ahead; None: what Storyladder chooses
    one_by_one: bool = False  # ours: wait for each step before the next
    without: str | None = None  # ours: a key of WITHOUT
    kernels_off: tuple[Part, ...] = ()  # ours, on a CPU: parts of the step that use torch ops instead
    compiled: bool = False  # plain: torch.compile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What all contenders of a race share."""

    ladder: Ladder  # its folders hold the text; we train the first stage
    device: str
    steps_per_turn: int = 1
    weights: Path | None = None  # initial weights of the plain loop; None: transformers' random initialization


def entry_of(contender: Contender, workload: Workload) -> Entry:
    """The contender as an entry of a race."""
    return Entry(contender.name, build_racer, (contender, workload))


def build_racer(spec: tuple[Contender, Workload]) -> Racer:
    """Build the contender in the calling process."""
    contender, workload = spec
    builds: dict[str, Callable[[Contender, Workload], Racer]] = {"ours": Ours, "plain": Plain, "matmuls": Matmuls}
    return builds[contender.kind](contender, workload)


class _Trainer:
    """A turn is a few steps, timed with reading the batch and, on a GPU, waiting for the last step."""

    def __init__(self, workload: Workload) -> None:
        self._steps_per_turn = workload.steps_per_turn
        self.device = pick_device(workload.device)
        self.facts: dict[str, Any] = {}

    def steps(self, first: int, n: int) -> list[float | torch.Tensor]:
        """Take `n` updates; returns the loss before each."""
        return [self.step(number) for number in range(first, first + n)]

    def step(self, number: int) -> float | torch.Tensor:
        """Take one update; returns the loss before it."""
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
            raise ArithmeticError(f"the loss is not finite: {numbers}")
        return {"seconds": seconds, "losses": numbers}

    def final_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"peak_rss": peak_memory(torch.device("cpu"))}
        if self.device.type == "cuda":
            facts["peak_gpu"] = torch.cuda.max_memory_reserved(self.device)
        return facts


def started_stage(ladder: Ladder, device: str, *, compact: bool, precision: str = "auto") -> Stage:
    """Start the first stage as its script does, from random weights."""
    settings = dataclasses.replace(ladder.stages[0], compact_vocabulary=compact)
    run = StageRun(ladder=ladder, stage=settings, device=device, precision=precision, fresh=True)
    stage, start = set_up(run, GPT, StopRequest(), ALONE)
    load_start(stage.learner, start)
    return stage


def put_start_weights(ladder: Ladder, device: str, path: Path) -> None:
    """Save the initial weights of the first stage as a checkpoint."""
    stage = started_stage(ladder, device, compact=True)
    save_checkpoint(path, stage.learner.pack(optimizer=False), keep_previous=False)


class Ours(_Trainer):
    """Storyladder's own step, started as the stage script starts it."""

    def __init__(self, contender: Contender, workload: Workload) -> None:
        super().__init__(workload)
        precision = contender.precision or "auto"
        started = started_stage(workload.ladder, workload.device, compact=contender.compact, precision=precision)
        self._learner, self._batches = started.learner, started.batches
        if contender.without is not None:
            WITHOUT[contender.without]()
        self.facts = {
            "precision": self._learner.precision.name,
            "rows": self._learner.vocabulary.n_rows,
            "micro_batch": self._learner.micro_batch_size,
        }
        if contender.mode is not None:
            log: list[str] = []
            self._learner.report = log.append
            if self._learner.prepare_ahead(self._batches, self._batches.starts(0), [contender.mode]) != contender.mode:
                raise RuntimeError(next(line for line in log if line.startswith("continuing without")))
        self._one_by_one, self._kernels_off = contender.one_by_one, contender.kernels_off
        if self.device.type == "cuda":  # compile now, while the others do, not during a turn
            tick = time.perf_counter()
            self.steps(0, 2)
            self.facts["seconds_to_first_steps"] = round(time.perf_counter() - tick, 1)

    def turn(self, number: int) -> Reading:
        """A turn with this contender's kernels switched off."""
        with without_kernels(*self._kernels_off):
            return super().turn(number)

    def steps(self, first: int, n: int) -> list[float | torch.Tensor]:
        """Take `n` updates of Storyladder, on a GPU many at a time."""
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
            bf16=contender.precision == "bf16",
            compiled=contender.compiled,
            weights=None if workload.weights is None else read_checkpoint(workload.weights)["model"],
        )
        self.facts = {
            "precision": contender.precision,
            "rows": ladder.model.vocab_size,
            "micro_batch": stage.batch_size,
            "compiled": contender.compiled,
        }
        if contender.compiled and self.device.type == "cuda":
            self.steps(0, 2)

    def step(self, number: int) -> float | torch.Tensor:
        """Take one update; the turn reads the loss at its end, so that the GPU never waits for the host."""
        return self._loop.step(number)


class Matmuls:
    """Matmuls of large square matrices: the peak throughput of this machine during the race."""

    def __init__(self, contender: Contender, workload: Workload) -> None:
        self.device = pick_device(workload.device)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[contender.precision or "fp32"]
        self._size = _MATMUL_SIZE[self.device.type]
        self._a, self._b = (torch.randn(self._size, self._size, device=self.device).to(dtype) for _ in range(2))
        self._out = torch.empty_like(self._a)
        self.facts = {"precision": contender.precision}

    def turn(self, number: int) -> Reading:
        """Mean seconds of one matmul, over a quarter of a second."""
        count = 0
        _wait_for(self.device)
        tick = time.perf_counter()
        while not count or time.perf_counter() - tick < _MATMUL_SECONDS:
            torch.mm(self._a, self._b, out=self._out)
            _wait_for(self.device)
            count += 1
        seconds = (time.perf_counter() - tick) / count
        return {"seconds": seconds, "flops_per_s": 2 * self._size**3 / seconds}

    def final_facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def _wait_for(device: torch.device) -> None:
    """Block until the GPU has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def plain_memory(ladder: Ladder) -> float:
    """Bytes a plain loop needs, within 20 %: weights, AdamW state, several copies of the logits, all activations."""
    model = ladder.model
    per_token = 3.2 * model.vocab_size + model.n_layer * (40 * model.n_embd + 2.3 * model.n_head * model.context_length)
    return 0.5 * GB + 16 * model.n_params + 4 * ladder.tokens_per_step(ladder.stages[0]) * per_token
