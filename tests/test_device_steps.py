"""Steps that run ahead on a device equal single steps; what does not work on a machine is said and done without.

Here the device is the CPU: all but the CUDA graph itself runs as on a GPU.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages import MICROS, assert_same_curve, elsewhere, files_of, poisoned, run_of, with_stage
from steppers import FP32, PLAIN, STAGE, STAGES, everything
from torch import Tensor

from model import GPT
from storyladder.learning import device_steps, learner, loss
from storyladder.learning.device_steps import MODES, MOST_STEPS, DeviceSteps, StepMode, first_working
from storyladder.learning.learner import Learner
from storyladder.learning.loss import entropy_, fused_entropy_, next_token_loss
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.step import Stepper
from storyladder.learning.vocabulary import CompactVocabulary
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder, StageConfig
from storyladder.stage import loop
from storyladder.stage.loop import train_stage
from storyladder.stage.pace import Pace

BuildGPT = Callable[..., GPT]
IDS = np.random.default_rng(0).integers(0, 39, 400).astype(np.uint16)  # 39 is a mark that a test sets
T, ROWS = 12, 4
LRS = [2**-10, 2**-9, 2**-8, 2**-10, 2**-11]  # exact in float32, in which the device keeps them
COMPILED = StepMode(compiled=True, graph=False)


def some_starts(n: int = len(LRS)) -> list[Any]:
    return list(np.random.default_rng(1).integers(0, len(IDS) - T - 1, (n, ROWS)))


def stepper_of(model: GPT, optimizer: torch.optim.Optimizer, **changes: Any) -> Stepper:
    asked: dict[str, Any] = {"micro_batch_size": ROWS, "precision": FP32, "vocabulary": PLAIN}
    return Stepper(model, optimizer, replace(STAGE, batch_size=ROWS), **asked | changes)


def steps_of(model: GPT, optimizer: torch.optim.Optimizer, ids: Any = IDS, **changes: Any) -> DeviceSteps:
    return DeviceSteps(stepper_of(model, optimizer, **changes), [ids], T, torch.device("cpu"))


def windows(starts: Any, ids: Any = IDS) -> tuple[Tensor, Tensor]:
    cut = torch.from_numpy(ids[starts[:, None] + np.arange(T + 1)].astype(np.int64))
    return cut[:, :-1], cut[:, 1:]


def single_steps(
    model: GPT, first: int = 0, ids: Any = IDS, stage: StageConfig = STAGE, **changes: Any
) -> tuple[list[Any], dict[str, Tensor]]:
    """The same updates, one by one, from a copy of the model."""
    model = copy.deepcopy(model)
    optimizer = build_optimizer(model, stage)
    stepper = stepper_of(model, optimizer, **changes)
    results = [
        stepper.step(windows(starts, ids), first + k, lr)
        for k, (starts, lr) in enumerate(zip(some_starts(), LRS, strict=True))
    ]
    return results, everything(model, optimizer)


def assert_same(ours: tuple[list[Any], dict[str, Tensor]], theirs: tuple[list[Any], dict[str, Tensor]]) -> None:
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert (mine.train_loss, mine.grad_norm) == pytest.approx((other.train_loss, other.grad_norm), rel=1e-6)
        assert mine.applied == other.applied
    assert ours[1].keys() == theirs[1].keys()
    for name, tensor in ours[1].items():
        torch.testing.assert_close(tensor, theirs[1][name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(("dropout", "micro"), [(0.0, ROWS), (0.0, 1), (0.3, ROWS)])
@STAGES
def test_running_ahead_equals_single_steps(small_gpt: BuildGPT, dropout: float, micro: int, stage: StageConfig) -> None:
    model = small_gpt(dropout=dropout)
    expected = single_steps(model, first=7, micro_batch_size=micro, stage=stage)
    optimizer = build_optimizer(model, stage)
    steps = steps_of(model, optimizer, micro_batch_size=micro)
    results = steps.take(7, some_starts()[:2], LRS[:2]) + steps.take(9, some_starts()[2:], LRS[2:])
    assert_same((results, everything(model, optimizer)), expected)


def test_a_compact_vocabulary_runs_ahead_too(small_gpt: BuildGPT) -> None:
    seen = torch.arange(60) < 39
    vocabulary = CompactVocabulary(seen)
    model = small_gpt(vocab_size=vocabulary.n_rows)
    expected = single_steps(model, vocabulary=vocabulary)
    optimizer = build_optimizer(model, STAGE)
    results = steps_of(model, optimizer, vocabulary=vocabulary).take(0, some_starts(), LRS)
    assert_same((results, everything(model, optimizer)), expected)


def test_the_files_of_a_replay_lie_one_after_the_other(small_gpt: BuildGPT) -> None:
    model = small_gpt()
    expected = single_steps(model)
    optimizer = build_optimizer(model, STAGE)
    steps = DeviceSteps(stepper_of(model, optimizer), [IDS[:150], IDS[150:]], T, torch.device("cpu"))
    assert_same((steps.take(0, some_starts(), LRS), everything(model, optimizer)), expected)


def test_ids_above_32767_are_read_as_they_are_and_files_in_pieces(
    small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_steps, "_PIECE", 64)
    ids = np.random.default_rng(2).integers(32_000, 40_000, 400).astype(np.uint16)
    model = small_gpt(vocab_size=40_000, n_embd=4, n_layer=1)
    vocabulary = CompactVocabulary(torch.ones(40_000, dtype=torch.bool))
    expected = single_steps(model, ids=ids, vocabulary=vocabulary)
    optimizer = build_optimizer(model, STAGE)
    results = steps_of(model, optimizer, ids, vocabulary=vocabulary).take(0, some_starts(), LRS)
    assert_same((results, everything(model, optimizer)), expected)


@STAGES
def test_a_step_whose_loss_is_no_number_moves_nothing_and_the_next_goes_on(
    small_gpt: BuildGPT, stage: StageConfig
) -> None:
    ids = IDS.copy()
    starts = some_starts()
    ids[starts[2][1] + 3] = 39  # in a window of the third step
    bad = [bool((windows(places, ids)[0] == 39).any()) for places in starts]
    assert bad[2] and not all(bad)

    class Poisoned(GPT):
        def hidden(self, idx_BT: Tensor, cache: Any = None) -> Tensor:
            return super().hidden(idx_BT, cache) * torch.where((idx_BT == 39).any(), math.nan, 1.0)

    model = small_gpt()
    model.__class__ = Poisoned
    expected = single_steps(model, ids=ids, stage=stage)
    optimizer = build_optimizer(model, stage)
    results = steps_of(model, optimizer, ids).take(0, starts, LRS)
    assert [not result.applied for result in results] == bad
    for mine, other in zip(results, expected[0], strict=True):
        assert mine.applied == other.applied
    for name, tensor in everything(model, optimizer).items():
        torch.testing.assert_close(tensor, expected[1][name], rtol=1e-5, atol=1e-7, msg=name)


@STAGES
def test_single_steps_may_follow_and_go_on_from_there(small_gpt: BuildGPT, stage: StageConfig) -> None:
    model = small_gpt()
    expected = single_steps(model, stage=stage)
    optimizer = build_optimizer(model, stage)
    results = steps_of(model, optimizer).take(0, some_starts()[:3], LRS[:3])
    for k in (3, 4):
        results.append(stepper_of(model, optimizer).step(windows(some_starts()[k]), k, LRS[k]))
    assert_same((results, everything(model, optimizer)), expected)


# --- compiling, and machines where it does not work -------------------------------------------------------------------


@pytest.fixture
def no_code_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces as ever and leaves making machine code out, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_code_generator")
@STAGES
def test_speeding_up_leaves_weights_and_optimizer_and_the_numbers_as_they_were(
    small_gpt: BuildGPT, stage: StageConfig
) -> None:
    model = small_gpt()
    expected = single_steps(model, stage=stage)
    optimizer = build_optimizer(model, stage)
    steps = steps_of(model, optimizer)
    before = everything(model, optimizer)
    assert first_working(steps, some_starts()[0], [COMPILED], pytest.fail) == COMPILED
    assert steps._hidden is not model.hidden
    for name, tensor in everything(model, optimizer).items():
        assert torch.equal(tensor, before[name]), name
    assert_same((steps.take(0, some_starts(), LRS), {}), (expected[0], {}))  # weights drift apart by rounding


def test_wrong_numbers_of_a_compiler_are_noticed_and_done_without(
    small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *arguments: 1.1 * function(*arguments))
    model = small_gpt()
    expected = single_steps(model)
    optimizer = build_optimizer(model, STAGE)
    steps, said = steps_of(model, optimizer), list[str]()
    assert first_working(steps, some_starts()[0], [COMPILED], said.append) == MODES[-1]
    assert len(said) == 1 and said[0].startswith("continuing without compiled: the results were loss ")
    assert_same((steps.take(0, some_starts(), LRS), everything(model, optimizer)), expected)


def test_without_compiler_and_graphs_each_is_said_in_a_line_and_training_goes_on(
    small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no Triton here\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    model = small_gpt()
    expected = single_steps(model)
    optimizer = build_optimizer(model, STAGE)
    steps, said = steps_of(model, optimizer), list[str]()
    assert first_working(steps, some_starts()[0], MODES, said.append) == MODES[-1]
    assert said[0] == "continuing without compiled + CUDA graph: no Triton here"
    assert len(said) == 3 and said[1].startswith("continuing without CUDA graph: ")  # there is none on a CPU
    assert said[2] == "continuing without compiled: no Triton here"
    assert_same((steps.take(0, some_starts(), LRS), everything(model, optimizer)), expected)


def test_memory_that_runs_out_on_the_way_is_for_the_caller(
    small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", hungry)
    model = small_gpt()
    with pytest.raises(torch.OutOfMemoryError):
        first_working(steps_of(model, build_optimizer(model, STAGE)), some_starts()[0], MODES, pytest.fail)


# --- CUDA graphs, with a stand-in for the driver ----------------------------------------------------------------------


class Driver:
    """What torch.cuda has for graphs, as far as a capture asks for it; replaying calls what was captured."""

    def __init__(self, breaks: bool = False, empty: bool = False) -> None:
        self.breaks, self.empty = breaks, empty
        self.streams = ["default"]  # the current one is the last
        self.done: list[str] = []
        self.step: Callable[[], None] = lambda: None

    def install(self, monkeypatch: pytest.MonkeyPatch, steps: DeviceSteps) -> None:
        self.step = steps._step
        for name in ("Stream", "current_stream", "stream", "graph", "CUDAGraph", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "default_generators", (self,))
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(torch._C, name, functools.partial(self.note, name), raising=False)

    def note(self, *words: Any) -> None:
        self.done.append(" ".join(map(str, words)))

    def Stream(self, name: str = "aside") -> Any:
        note = self.note
        return type(
            "Stream", (), {"name": name, "device": torch.device("cuda:0"), "wait_stream": lambda *_: note("waited")}
        )

    def current_stream(self) -> Any:
        return self.Stream(self.streams[-1])

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before = list(self.streams)
        self.streams.append(stream.name)
        try:
            yield
        finally:
            self.streams = before

    @contextlib.contextmanager
    def graph(self, _: Any, pool: Any) -> Iterator[None]:
        self.streams.append("capture")  # and it stays there when the end of the capture raises, as torch's does
        yield
        if self.breaks:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.streams.pop()

    def CUDAGraph(self) -> Any:
        driver = self
        return type("Graph", (), {"replay": lambda _: driver.note("replayed") if driver.empty else driver.step()})()

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, 7)

    def clone_state(self) -> str:
        return "fresh"

    def graphsafe_set_state(self, state: str) -> None:
        self.note("generator", state)


GRAPH = StepMode(compiled=False, graph=True)


def test_a_captured_step_is_replayed_from_the_weights_that_were_there(
    small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, driver = small_gpt(), Driver()
    expected = single_steps(model)
    optimizer = build_optimizer(model, STAGE)
    steps = steps_of(model, optimizer)
    driver.install(monkeypatch, steps)
    assert first_working(steps, some_starts()[0], [GRAPH], pytest.fail) == GRAPH
    assert driver.streams == ["default"] and driver.done == ["waited", "waited"]
    assert_same((steps.take(0, some_starts(), LRS), everything(model, optimizer)), expected)


def test_a_graph_that_runs_nothing_is_noticed(small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    model, driver, said = small_gpt(), Driver(empty=True), list[str]()
    steps = steps_of(model, build_optimizer(model, STAGE))
    driver.install(monkeypatch, steps)
    assert first_working(steps, some_starts()[0], [GRAPH], said.append) == MODES[-1]
    assert said[0].startswith("continuing without CUDA graph: the results were loss nan, norm nan, ")


def test_a_step_that_learns_nothing_is_noticed_though_its_losses_are_right(
    small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, driver, said = small_gpt(), Driver(), list[str]()
    optimizer = build_optimizer(model, STAGE)
    steps = steps_of(model, optimizer)
    driver.install(monkeypatch, steps)

    def idle() -> None:
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        steps._step()
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), kept)

    driver.step = idle
    assert first_working(steps, some_starts()[0], [GRAPH], said.append) == MODES[-1]
    assert "update 0 instead of" in said[0]


def test_after_a_capture_that_breaks_torch_is_as_before(small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    model, driver, said = small_gpt(), Driver(breaks=True), list[str]()
    expected = single_steps(model)
    optimizer = build_optimizer(model, STAGE)
    steps = steps_of(model, optimizer)
    driver.install(monkeypatch, steps)
    assert first_working(steps, some_starts()[0], [GRAPH], said.append) == MODES[-1]
    assert said == ["continuing without CUDA graph: operation failed due to a previous error during capture"]
    ended = ["_cuda_endAllocateToPool 0 (0, 7)", "_cuda_releasePool 0 (0, 7)", "generator fresh"]
    assert driver.streams == ["default"] and driver.done[2:] == ended
    assert optimizer.found_inf is None  # type: ignore[attr-defined]
    assert_same((steps.take(0, some_starts(), LRS), everything(model, optimizer)), expected)


def test_compiling_is_kept_where_only_graphs_do_not_work(small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model, driver, said = small_gpt(), Driver(breaks=True), list[str]()
    steps = steps_of(model, build_optimizer(model, STAGE))
    driver.install(monkeypatch, steps)
    assert first_working(steps, some_starts()[0], MODES, said.append) == COMPILED and len(said) == 2


def test_what_a_compiler_says_first_is_not_what_it_says(small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("backend='inductor' raised:\nTritonMissing: no working triton\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", broken)
    model, said = small_gpt(), list[str]()
    first_working(steps_of(model, build_optimizer(model, STAGE)), some_starts()[0], [COMPILED], said.append)
    assert said == ["continuing without compiled: TritonMissing: no working triton"]


def test_other_draws_of_dropout_are_no_other_numbers(small_gpt: BuildGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model = small_gpt(dropout=0.02)
    steps = steps_of(model, build_optimizer(model, STAGE))
    real, other = torch.manual_seed, iter(range(1000))
    monkeypatch.setattr(torch, "manual_seed", lambda _: real(next(other)))  # as a compiler, which has draws of its own
    assert first_working(steps, some_starts()[0], [COMPILED], pytest.fail) == COMPILED


# --- what GPUs get: the fused form, padded widths ---------------------------------------------------------------------


@pytest.mark.parametrize("log_unseen", [0.0, 3.0])
@pytest.mark.parametrize("gradient", [True, False])
def test_the_form_for_the_compiler_is_the_plain_one(log_unseen: float, gradient: bool) -> None:
    scores = torch.randn(9, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(9) * 2
    one, other = scores.clone(), scores.clone()
    found, expected = (form(x, targets, log_unseen, gradient) for form, x in ((fused_entropy_, one), (entropy_, other)))
    torch.testing.assert_close(found, expected)
    if gradient:
        torch.testing.assert_close(one, other)


def test_a_padded_vocabulary_is_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        hidden, weight = (torch.randn(*shape, 6, dtype=torch.float64, generator=generator) for shape in ((2, 7), (11,)))
        hidden.requires_grad_(), weight.requires_grad_()
        loss = next_token_loss(hidden, weight, torch.arange(14).view(2, 7) % 11, log_unseen=1.5)
        return [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]

    plain = found()
    monkeypatch.setitem(loss._COLUMNS, "cpu", 8)
    for one, other in zip(found(), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


# --- whole stages -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, steps run ahead as far as nothing else is due."""
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_CHECKS", 1e9)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pauses")
def test_a_stage_whose_steps_run_ahead_is_the_same_stage(
    toy_data: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ladder = with_stage(toy_data, max_steps=12, eval_interval=6, save_interval=100)
    ladder = replace(ladder, model=replace(ladder.model, dropout=0.0))  # which draws once a step, not a micro-batch
    single, ahead = elsewhere(ladder, tmp_path, "single"), elsewhere(ladder, tmp_path, "ahead")
    train_stage(run_of(single), GPT)
    monkeypatch.setattr(Learner, "_may_run_ahead", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: time.sleep(2))  # of which there is no capture then
    blocks: list[int] = []
    take = DeviceSteps.take
    monkeypatch.setattr(DeviceSteps, "take", lambda self, *rest: [blocks.append(len(rest[1])), take(self, *rest)][1])
    train_stage(run_of(ahead), GPT)
    assert "at a time on the GPU: plain operations" in capsys.readouterr().err
    assert max(blocks) > 2 and max(blocks) <= MOST_STEPS

    assert_same_curve(single, ahead)
    records = read_records(files_of(ahead).record)
    *_, last = (record for record in records if record["event"] == "train")
    stage = ahead.stage("tiny")
    seconds = stage.max_steps * ahead.tokens_per_step(stage) / last["tokens_per_s"]
    assert seconds < records[-1]["train_seconds"] - 1.9, "getting ready does not count"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pauses")
def test_steps_that_ran_ahead_beyond_a_rollback_are_forgotten(
    toy_data: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 3 to 22 are bad, and one block has all that are left of 30."""
    ladder = with_stage(toy_data, max_steps=30, eval_interval=100, save_interval=100)
    ladder = replace(ladder, model=replace(ladder.model, dropout=0.0))
    single, ahead = elsewhere(ladder, tmp_path, "single"), elsewhere(ladder, tmp_path, "ahead")
    bad = range(MICROS * 3 + 1, MICROS * 23 + 1)
    train_stage(run_of(single), poisoned(*bad))
    monkeypatch.setattr(Learner, "_may_run_ahead", lambda *_: True)
    monkeypatch.setattr(learner, "MODES", MODES[-1:])  # which needs no rehearsal
    blocks: list[int] = []
    take = DeviceSteps.take
    monkeypatch.setattr(DeviceSteps, "take", lambda self, *rest: [blocks.append(len(rest[1])), take(self, *rest)][1])
    train_stage(run_of(ahead), poisoned(*bad))
    assert max(blocks) > 20
    assert_same_curve(single, ahead)


def test_slow_steps_are_taken_few_at_a_time() -> None:
    stage = STAGE.__class__(**{**vars(STAGE), "max_steps": 500, "eval_interval": 200})

    def ahead(step: int, steps: int, seconds: float) -> int:
        return loop.steps_until_a_pause(step, stage, Pace(steps=steps, seconds=seconds))

    assert ahead(0, 0, 0.0) == 2
    assert ahead(10, 10, 0.01) == 190 and ahead(199, 199, 0.1) == 1 and ahead(450, 450, 0.1) == 50
    assert ahead(10, 10, 1.0) == 20 and ahead(10, 10, 100.0) == 1
