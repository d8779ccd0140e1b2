"""Many steps in a row on a GPU, without the host waiting in between.

The token file is on the device, and a step reads its windows there; learning rates and losses are tables on the device
too. So a whole step (windows, forward, backward, clipping, update) is the same sequence of kernels every time: it is
compiled and captured once as a CUDA graph, then only replayed. The host reads the losses after the last step. A step
whose loss or gradient is not finite changes nothing, as in step.py: the optimizer gets a flag to skip the update.

If something does not work on a machine (no compiler, no Triton, no graph), a line says so and it is not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storyladder.learning.loss import entropy_, fused_entropy_
from storyladder.learning.optimizer import clip_gradients, make_moments, set_rate
from storyladder.learning.step import Stepper, StepResult, seed_of_step
from storyladder.runtime.machine import is_out_of_memory

MOST_STEPS = 100  # between two reads of the losses
_PIECE = 1 << 25  # ids that are copied to the device at a time
_WARM_UP_STEPS = 3  # before a capture, as NVIDIA asks for
# Allowed relative differences between compiled and plain steps. Most come from dropout, whose random numbers differ in
# compiled code: over seeds, a trained model's loss had a deviation of 0.4 % and its gradient norm one of 2 % (LOG.md).
_NEAR = {"loss": 0.05, "norm": 0.25, "update": 0.1}


@dataclasses.dataclass(frozen=True)
class StepMode:
    """How the steps are run."""

    compiled: bool
    graph: bool

    @property
    def description(self) -> str:
        """For messages."""
        parts = [name for name, used in (("compiled", self.compiled), ("CUDA graph", self.graph)) if used]
        return " + ".join(parts) or "plain operations"


MODES = (  # best first; if CUDA graphs do not work, the first two fail and the third is tried
    StepMode(compiled=True, graph=True),
    StepMode(compiled=False, graph=True),
    StepMode(compiled=True, graph=False),
    StepMode(compiled=False, graph=False),
)


class DeviceSteps:
    """Runs steps of one Stepper ahead; valid as long as its optimizer and micro-batch size stay the same."""

    def __init__(
        self, stepper: Stepper, files: Sequence[npt.NDArray[np.uint16]], context_length: int, device: torch.device
    ) -> None:
        assert not stepper.scaler.is_enabled(), "fp16 needs the host to look at every step"
        self._stepper = stepper
        self._model, self._optimizer = stepper.model, stepper.optimizer
        batch_size = stepper.stage.batch_size
        self._share = stepper.group.share_of(batch_size)  # this rank's rows of a batch
        self._hidden: Callable[[Tensor], Tensor] = self._model.hidden
        self._entropy = entropy_
        self._graph: torch.cuda.CUDAGraph | None = None
        self._ids = _on_device(files, device)
        self._span = torch.arange(context_length + 1, device=device)
        self._starts = torch.zeros(MOST_STEPS, batch_size, dtype=torch.int64, device=device)
        self._lrs = torch.zeros(MOST_STEPS, device=device)
        self._results = torch.zeros(MOST_STEPS, 3, device=device)  # loss, gradient norm, 1 if skipped
        self._place = torch.zeros(1, dtype=torch.int64, device=device)  # the next step's row in these tables
        for parameters in self._optimizer.param_groups:
            parameters["capturable"] = device.type == "cuda"
        for parameter in self._model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        make_moments(self._optimizer)

    def take(self, first: int, starts: Sequence[npt.NDArray[np.int64]], lrs: Sequence[float]) -> list[StepResult]:
        """Make one update, from number `first` on, for each list of window starts, (batch_size,), and learning rate."""
        n = len(starts)
        assert n <= MOST_STEPS
        self._starts[:n] = torch.from_numpy(np.stack(starts))
        self._lrs[:n] = torch.tensor(lrs)
        self._results.fill_(math.nan)  # so that a step that does not run cannot return an earlier one's numbers
        self._place.zero_()
        try:
            for step in range(first, first + n):
                torch.manual_seed(seed_of_step(self._stepper.stage.seed, step, self._share.start))
                if self._graph is not None:
                    self._graph.replay()
                else:
                    self._step()
        finally:
            self._forget_skipped()
        rows = self._results[:n].tolist()  # here the host waits for the device
        return [StepResult(loss, norm, applied=not skipped) for loss, norm, skipped in rows]

    def speed_up(self, mode: StepMode, starts: npt.NDArray[np.int64]) -> None:
        """Compile and capture, and check on one batch that the numbers agree with those of the plain step.

        Weights and optimizer state are restored afterwards. Raises whatever the compiler or the driver raises, and
        ArithmeticError if the numbers differ; steps are then plain again.
        """
        if not (mode.compiled or mode.graph):
            return
        kept = [tensor.clone() for tensor in self._everything_that_moves()]
        try:
            expected = self._rehearse(starts, kept)
            if mode.compiled:
                self._run(torch.compile(self._model.hidden, dynamic=False))
                self._entropy = torch.compile(fused_entropy_, dynamic=False)
            if mode.graph:
                self._capture(starts)
            found = self._rehearse(starts, kept)
            near = [math.isclose(a, b, rel_tol=_NEAR[what]) for (what, a), (_, b) in zip(found, expected, strict=True)]
            if not all(near):
                raise ArithmeticError(f"the results were {_described(found)} instead of {_described(expected)}")
        except BaseException:
            self._run(self._model.hidden)
            self._entropy, self._graph = entropy_, None
            raise
        finally:
            self._forget_skipped()
            self._put_back(kept)

    def _step(self) -> None:
        """One update, reading and writing at `_place` in the tables."""
        windows = self._ids[self._starts[self._place].T[self._share] + self._span].to(torch.int64) & 0xFFFF
        set_rate(self._optimizer, self._lrs.index_select(0, self._place)[0])
        for parameter in self._model.parameters():
            parameter.grad = None  # so the first micro-batch's gradients are stored, not added to zeros
        loss = self._stepper.accumulate_gradients(
            (windows[:, :-1], windows[:, 1:]), None, hidden=self._hidden, entropy=self._entropy, agree=False
        )
        loss = self._stepper.group.mean(loss)
        norm = clip_gradients(self._model, self._stepper.stage.grad_clip, self._stepper.vocabulary)
        skipped = (~(loss + norm).isfinite()).to(torch.float32)
        self._optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self._optimizer.step()
        self._results.index_copy_(0, self._place, torch.stack((loss, norm, skipped))[None])
        self._place += 1

    def _run(self, hidden: Callable[[Tensor], Tensor]) -> None:
        """Use this form of model.hidden from now on."""
        self._hidden = hidden
        if self._stepper.parallel is not None:
            self._stepper.parallel.run(hidden)

    def _forget_skipped(self) -> None:
        """Clear the optimizer's flag: single steps may follow, and they decide themselves whether to skip."""
        self._optimizer.found_inf = None  # type: ignore[attr-defined]

    def _capture(self, starts: npt.NDArray[np.int64]) -> None:
        """Capture the kernels of a step, after warm-up steps on a side stream, as CUDA requires."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP_STEPS):
                self.take(0, [starts], [0.0])
        here.wait_stream(aside)
        self._place.zero_()
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # The outer context restores the stream, which a failed capture does not.
            with torch.cuda.stream(here), torch.cuda.graph(graph, pool=pool):
                self._step()
        except BaseException:
            _forget_broken_capture(here.device, pool)
            raise
        self._graph = graph

    def _rehearse(self, starts: npt.NDArray[np.int64], kept: list[Tensor]) -> list[tuple[str, float]]:
        """Losses and gradient norms of two steps from the kept weights, and the L2 norm of their update."""
        self._put_back(kept)
        one, two = self.take(0, [starts, starts], [self._stepper.stage.max_lr] * 2)
        weights = [parameter.detach() for parameter in self._model.parameters()]
        update = torch.stack(torch._foreach_norm(torch._foreach_sub(weights, kept[: len(weights)]))).norm().item()
        numbers = [("loss", one.train_loss), ("norm", one.grad_norm), ("loss", two.train_loss), ("norm", two.grad_norm)]
        return [*numbers, ("update", update)]

    def _state_tensors(self) -> list[Tensor]:
        return [tensor for state in self._optimizer.state.values() for tensor in state.values()]

    def _everything_that_moves(self) -> list[Tensor]:
        return [*(parameter.detach() for parameter in self._model.parameters()), *self._state_tensors()]

    def _put_back(self, kept: list[Tensor]) -> None:
        with torch.no_grad():
            for tensor, before in zip(self._everything_that_moves(), kept, strict=True):
                tensor.copy_(before)


def _on_device(files: Sequence[npt.NDArray[np.uint16]], device: torch.device) -> Tensor:
    """Copy the ids of all files to the device, as int16 with the same bits: torch has few operations on uint16."""
    there = torch.empty(sum(map(len, files)), dtype=torch.int16, device=device)
    pieces = (ids[start : start + _PIECE] for ids in files for start in range(0, len(ids), _PIECE))
    end = 0
    for piece in pieces:
        there[end : end + len(piece)] = torch.from_numpy(np.array(piece).view(np.int16))
        end += len(piece)
    return there


def _forget_broken_capture(device: torch.device, pool: tuple[int, int]) -> None:
    """End a failed capture for torch, which skips this cleanup after an error.

    Otherwise empty_cache() raises, and before torch 2.13 every later dropout: "Offset increment outside graph capture".
    """
    assert device.index is not None
    with contextlib.suppress(RuntimeError):  # if the capture did end, and the step itself failed
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(generator.clone_state())


def _described(numbers: list[tuple[str, float]]) -> str:
    return ", ".join(f"{what} {number:.5g}" for what, number in numbers)


def _first_line(error: Exception) -> str:
    """The first informative line of the message; "backend='inductor' raised:" is not."""
    lines = [line for line in str(error).strip().splitlines() if line and not line.endswith(":")]
    return (lines or [type(error).__name__])[0][:160]


def first_working(
    steps: DeviceSteps, starts: npt.NDArray[np.int64], modes: Sequence[StepMode], warn: Callable[[str], None]
) -> StepMode:
    """Switch to the first of the modes that works here, with a warning for each that does not; returns it."""
    for mode in modes:
        try:
            steps.speed_up(mode, starts)
            return mode
        except Exception as error:  # compilers and drivers raise errors of all kinds
            if is_out_of_memory(error):
                raise
            warn(f"continuing without {mode.description}: {_first_line(error)}")
    return StepMode(compiled=False, graph=False)
