"""Everything that changes while a model learns: model, optimizer, vocabulary, precision, micro-batch, schedule.

It knows nothing about files, stages or clocks. The loop (stage/loop.py) calls it for steps and evaluations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from storyladder.corpus.token_file import TrainBatches, ValidationWindows
from storyladder.learning.data_parallel import DataParallel
from storyladder.learning.device_steps import MODES, MOST_STEPS, DeviceSteps, StepMode, first_working
from storyladder.learning.evaluation import Evaluation, evaluate
from storyladder.learning.network import EMBEDDING, BuildModel
from storyladder.learning.optimizer import build_optimizer, reset_optimizer
from storyladder.learning.packing import pack_optimizer, pack_weights, unpack_optimizer, unpack_weights
from storyladder.learning.schedule import lr_at
from storyladder.learning.step import Stepper, StepResult
from storyladder.learning.vocabulary import CompactVocabulary, start_rows_equal
from storyladder.runtime.checkpoint import Payload
from storyladder.runtime.distributed import ALONE, Group
from storyladder.runtime.errors import DataError, OutOfMemory, report
from storyladder.runtime.machine import Precision, free_memory, is_out_of_memory
from storyladder.settings import ModelConfig, StageConfig

_SHARE_FOR_TOKENS = 0.25  # of a GPU's free memory that the token file may take


class Learner(Stepper):
    """A model that is trained and evaluated: one step at a time, or many ahead on a GPU, within the available memory.

    Until `load` or `start_randomly` it has the weights of the network's own initialization. In a group every rank must
    call the same methods in the same order.
    """

    def __init__(
        self,
        build_model: BuildModel,
        config: ModelConfig,
        stage: StageConfig,
        *,
        vocabulary: CompactVocabulary,
        device: torch.device,
        precision: Precision,
        micro_batch_size: int,
        group: Group = ALONE,
        may_compile: bool = False,
    ) -> None:
        model = build_model(dataclasses.replace(config, vocab_size=vocabulary.n_rows)).to(device)
        super().__init__(
            model,
            build_optimizer(model, stage, precision.matmul_dtype),
            stage,
            vocabulary=vocabulary,
            precision=precision,
            micro_batch_size=micro_batch_size,
            group=group,
        )
        self.device = device
        self.report: Callable[[str], None] = report
        self._build_model, self._config = build_model, config
        self._may_compile = may_compile  # whether steps on a GPU are worth the minute that compiling takes
        self._ahead: DeviceSteps | None = None

    def steps(self, batches: TrainBatches, first: int, n: int, *, skip: int = 0) -> list[StepResult]:
        """At most n updates from number `first` on, where update k reads batch k + skip: one, or many on a GPU.

        Returns an empty list if the call was spent on preparing steps. Halves the micro-batch if memory runs out;
        OutOfMemory if a single sequence does not fit, DataError if the token file was truncated.
        """
        while True:
            try:
                self._join_group()
                if not self._may_run_ahead(batches):
                    batch = self.read(batches, first + skip)
                    return [self.step(batch, first, lr_at(first, self.stage))]
                self.group.together(batches.check_size)
                # Rank 0 decides for all, since n may depend on a clock.
                numbers = range(first, first + min(self.group.from_rank_0(n), MOST_STEPS))
                starts = [batches.starts(number + skip) for number in numbers]
                if self._ahead is None:
                    modes = [mode for mode in MODES if self._may_compile or not mode.compiled]
                    self.prepare_ahead(batches, starts[0], modes)
                    return []
                return self._ahead.take(first, starts, [lr_at(number, self.stage) for number in numbers])
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve_micro_batch()  # out here, where the error no longer holds on to tensors

    def prepare_ahead(
        self, batches: TrainBatches, starts: npt.NDArray[np.int64], modes: Sequence[StepMode]
    ) -> StepMode:
        """Prepare steps that run ahead, in the first mode that works on the windows that begin at `starts`."""
        self._ahead = None  # frees its memory before the next one takes its own
        if any(mode.compiled for mode in modes):
            self.report("compiling the training step, which may take a minute")
        # CUDA graphs of steps that exchange gradients are untested.
        modes = [mode for mode in modes if self.group.is_alone or not mode.graph]
        ahead = DeviceSteps(self, batches.files, batches.context_length, self.device)
        mode = first_working(ahead, starts, modes, self.report)
        self._ahead = ahead
        self.report(f"running up to {MOST_STEPS} steps at a time on the GPU: {mode.description}")
        return mode

    def evaluate(self, windows: ValidationWindows, check_stop: Callable[[], None] = lambda: None) -> Evaluation:
        """The loss on all windows, without dropout. `check_stop` may raise between batches; memory as in `steps`."""
        while True:
            try:
                self.group.together(windows.check_size)
                return evaluate(
                    self.model,
                    windows,
                    batch_size=self.micro_batch_size,
                    device=self.device,
                    precision=self.precision,
                    vocabulary=self.vocabulary,
                    check_stop=check_stop,
                    group=self.group,
                )
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve_micro_batch()  # out here, where the error no longer holds on to tensors

    def read(self, batches: TrainBatches, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's share of batch k, on the device."""
        try:
            batches.check_size()
            idx_BT, targets_BT = batches.batch(k, self.group.share_of(self.stage.batch_size))
            return torch.from_numpy(idx_BT).to(self.device), torch.from_numpy(targets_BT).to(self.device)
        except (DataError, MemoryError, RuntimeError) as error:
            self.group.fail(error)

    def is_finite(self) -> bool:
        """Whether every weight is a finite number, on all ranks."""
        return not self.group.any(not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()))

    def pack(self, *, optimizer: bool) -> Payload:
        """Weights with the tokens they have seen and, for an exact resume, the optimizer's and scaler's state."""
        packed: Payload = {
            "seen_tokens": self.vocabulary.seen_V.to(torch.uint8),
            "model": pack_weights(self.model, self.vocabulary),
        }
        if optimizer:
            packed["optimizer"] = pack_optimizer(self.model, self.optimizer, self.vocabulary)
            packed["scaler"] = self.scaler.state_dict()
        return packed

    def load(self, payload: Payload) -> None:
        """Restore what was packed. If there is no optimizer state, the optimizer is reset."""
        unpack_weights(self.model, payload["model"], self.vocabulary)
        self._reset_optimizer()  # also where it is resumed: --minutes may have changed what the weight decay follows
        if "optimizer" not in payload:
            self.scaler = self.precision.scaler()
            return
        unpack_optimizer(self.model, self.optimizer, payload["optimizer"], self.vocabulary)
        if self.scaler.is_enabled() and payload["scaler"]:
            self.scaler.load_state_dict(payload["scaler"])

    def start_randomly(self) -> None:
        """Start from random weights, which are the same on every device and for any compact vocabulary."""
        torch.manual_seed(self.stage.seed)
        weights = self._build_model(self._config).state_dict()
        start_rows_equal(weights[EMBEDDING], self.vocabulary.seen_V)
        self.load({"model": weights})

    def _reset_optimizer(self) -> None:
        before = self.optimizer
        self.optimizer = reset_optimizer(before, self.model, self.stage, self.precision.matmul_dtype)
        if self.optimizer is not before:
            self._ahead = None  # its steps update the old optimizer

    def _join_group(self) -> None:
        """Wrap the model for data-parallel training, once."""
        if self.parallel is None and not self.group.is_alone:
            # All ranks communicate while it is built, so check first that each has memory for the gradients.
            size = sum(parameter.numel() for parameter in self.model.parameters())
            self.group.together(lambda: torch.empty(size, device=self.device))
            self.parallel = DataParallel(self.model, self.device)
            self.group.before_leaving(self.parallel.close)

    def _may_run_ahead(self, batches: TrainBatches) -> bool:
        """Whether steps can run ahead: on a GPU with memory for the tokens, in a precision without loss scaling."""
        if self.device.type != "cuda" or self.scaler.is_enabled():
            return False
        # In a group the first step checks that memory suffices on all ranks; steps that run ahead do not.
        if self.parallel is not None and self.parallel.rehearsed != self.micro_batch_size:
            return False
        if self._ahead is not None:
            return True
        free = free_memory(self.device)
        return not self.group.any(free is None or sum(ids.nbytes for ids in batches.files) >= _SHARE_FOR_TOKENS * free)

    def _halve_micro_batch(self) -> None:
        """Halve the micro-batch from now on; OutOfMemory if it is a single sequence."""
        if self.micro_batch_size == 1:
            raise OutOfMemory(
                "out of memory even with one sequence at a time; close other programs and run the same command again, "
                "or train a smaller model (config.py)"
            )
        share = self.stage.batch_size // self.group.world_size
        smaller = next(size for size in range(self.micro_batch_size // 2, 0, -1) if share % size == 0)
        self.report(f"out of memory with {self.micro_batch_size} sequences at a time; continuing with {smaller}")
        self.micro_batch_size = smaller
        if self.parallel is not None:  # it may be waiting for the rest of an interrupted backward
            self.parallel.close()
            self.parallel = None
        self._ahead = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()
