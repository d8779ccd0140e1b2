"""A learner without any stage: steps, evaluations, packing and loading, and memory that runs out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import MUON
from stages import assert_equal
from steppers import LEARNING, batches_of, everything, learner_of, stepper_of, windows_of
from torch import Tensor

from model import GPT
from storyladder.corpus.token_file import TrainBatches
from storyladder.learning.device_steps import MOST_STEPS
from storyladder.learning.evaluation import evaluate
from storyladder.learning.learner import Learner
from storyladder.learning.network import EMBEDDING
from storyladder.learning.schedule import lr_at
from storyladder.learning.step import StepResult
from storyladder.runtime.distributed import Group
from storyladder.runtime.errors import DataError, OutOfMemory
from storyladder.settings import ModelConfig, StageConfig

STAGES = pytest.mark.parametrize("stage", [LEARNING, replace(LEARNING, **MUON)], ids=["adamw", "muon"])


def trained(learner: Learner, steps: int, *, first: int = 0, skip: int = 0) -> list[StepResult]:
    results: list[StepResult] = []
    while len(results) < steps:
        results += learner.steps(batches_of(learner.stage), first + len(results), steps - len(results), skip=skip)
    return results


def evaluated(learner: Learner) -> float:
    return learner.evaluate(windows_of()).val_loss


# --- steps and evaluations --------------------------------------------------------------------------------------------


@STAGES
def test_a_step_takes_batch_rate_and_draws_of_its_number(stage: StageConfig) -> None:
    """With `skip`, batches are those after the ones that were left out; rates and draws are not."""
    learner, twin = learner_of(stage=stage), learner_of(stage=stage)
    results = trained(learner, 3, first=5, skip=7)
    stepper = stepper_of(twin.model, twin.optimizer, stage, vocabulary=twin.vocabulary)
    expected = []
    for number in (5, 6, 7):
        idx_BT, targets_BT = (torch.from_numpy(part) for part in batches_of().batch(number + 7))
        expected.append(stepper.step((idx_BT, targets_BT), number, lr_at(number, stage)))
    assert results == expected and all(result.applied for result in results)
    assert_equal(learner.pack(optimizer=True), twin.pack(optimizer=True))


def test_on_a_cpu_it_takes_one_step_however_many_may_be_taken() -> None:
    assert len(learner_of().steps(batches_of(), 0, 50)) == 1


def test_a_learner_learns() -> None:
    learner = learner_of(stage=replace(LEARNING, max_steps=40, max_lr=0.03))
    before = evaluated(learner)
    trained(learner, 40)
    assert evaluated(learner) < before - 0.2


def test_an_evaluation_is_that_of_its_model_by_micro_batches_and_can_be_stopped() -> None:
    sizes = list[int]()

    class Watched(GPT):
        def hidden(self, idx_BT: Tensor, cache: Any = None) -> Tensor:
            sizes.append(len(idx_BT))
            return super().hidden(idx_BT, cache)

    learner = learner_of(build=Watched, micro_batch_size=4)
    measured = learner.evaluate(windows_of())
    assert max(sizes) == 4
    asked: dict[str, Any] = {"device": learner.device, "precision": learner.precision}
    expected = evaluate(learner.model, windows_of(), batch_size=4, vocabulary=learner.vocabulary, **asked)
    assert measured == expected and measured.tokens == 149

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.evaluate(windows_of(), stop)


def test_each_rank_reads_its_share_of_a_batch() -> None:
    whole = learner_of().read(batches_of(), 9)
    parts = [learner_of(group=Group(rank, 2)).read(batches_of(), 9) for rank in (0, 1)]
    for place in (0, 1):
        assert torch.equal(torch.cat([part[place] for part in parts]), whole[place])


def test_a_file_that_was_cut_ends_steps_and_evaluations_before_anything_moves() -> None:
    def cut() -> None:
        raise DataError("train.bin was cut")

    learner = learner_of()
    before = everything(learner.model, learner.optimizer)
    with pytest.raises(DataError, match="was cut"):
        learner.steps(batches_of(check_size=cut), 0, 1)
    with pytest.raises(DataError, match="was cut"):
        learner.evaluate(windows_of(check_size=cut))
    assert all(torch.equal(before[name], now) for name, now in everything(learner.model, learner.optimizer).items())


def test_one_weight_that_is_no_number_is_found() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        learner = learner_of()
        assert learner.is_finite()
        with torch.no_grad():
            learner.model.get_parameter("transformer.h.1.mlp.c_proj.bias")[-1] = bad
        assert not learner.is_finite()


# --- packing and loading ----------------------------------------------------------------------------------------------


@STAGES
def test_what_was_packed_continues_as_if_nothing_had_been(stage: StageConfig) -> None:
    learner = learner_of(stage=stage)
    trained(learner, 3)
    packed = learner.pack(optimizer=True)
    other = learner_of(stage=stage)
    trained(other, 5)  # whatever it was before
    other.load(packed)
    assert evaluated(other) == evaluated(learner)
    assert trained(other, 3, first=3) == trained(learner, 3, first=3)
    assert_equal(other.pack(optimizer=True), learner.pack(optimizer=True))


def test_the_loss_scale_of_fp16_travels_too() -> None:
    learner, other = learner_of(), learner_of()
    learner.scaler, other.scaler = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (2.0, 8.0))
    trained(learner, 1)
    other.load(learner.pack(optimizer=True))
    assert other.scaler.get_scale() == 2.0


@STAGES
def test_a_pack_is_a_copy_that_later_steps_leave_alone(stage: StageConfig) -> None:
    learner = learner_of(stage=stage)
    trained(learner, 2)
    packed = learner.pack(optimizer=True)
    then = copy.deepcopy(packed)
    trained(learner, 2, first=2)
    assert_equal(packed, then)
    assert packed["model"][EMBEDDING].shape == (40, 16) and packed["seen_tokens"].sum() == 30


@STAGES
def test_weights_that_come_without_an_optimizer_get_a_fresh_one(stage: StageConfig) -> None:
    learner, fresh = learner_of(stage=stage), learner_of(stage=stage)
    trained(learner, 4)
    weights = learner.pack(optimizer=False)
    assert "optimizer" not in weights
    learner.load(weights)
    fresh.load(weights)
    assert learner.pack(optimizer=True)["optimizer"]["updates"] == 0
    assert trained(learner, 2) == trained(fresh, 2)
    assert_equal(learner.pack(optimizer=True), fresh.pack(optimizer=True))


@pytest.mark.parametrize("n_seen", [30, 39, 40])
def test_a_random_start_is_the_same_for_compact_and_whole_vocabularies(n_seen: int) -> None:
    packs = []
    for compact in (True, False):
        learner = learner_of(compact=compact)
        learner.vocabulary = type(learner.vocabulary)(torch.arange(40) < n_seen, compact=compact)
        learner.model = GPT(replace(learner._config, vocab_size=learner.vocabulary.n_rows))
        learner.start_randomly()
        packs.append(learner.pack(optimizer=False)["model"])
    assert_equal(*packs)
    assert not packs[0][EMBEDDING][n_seen:].any() and packs[0][EMBEDDING][:n_seen].all()


def test_a_random_start_follows_from_the_seed_and_forgets_what_was_learned() -> None:
    learner = learner_of()
    start = learner.pack(optimizer=True)
    trained(learner, 3)
    torch.manual_seed(99)
    learner.start_randomly()
    assert trained(learner, 2) == trained(learner_of(), 2)
    learner.start_randomly()
    assert_equal(learner.pack(optimizer=False)["model"], start["model"])
    other = learner_of(stage=replace(LEARNING, seed=8)).pack(optimizer=False)["model"]
    assert not torch.equal(other[EMBEDDING], start["model"][EMBEDDING])


# --- memory -----------------------------------------------------------------------------------------------------------


def with_room_for(training: int, evaluating: int) -> Callable[[ModelConfig], GPT]:
    """Builds models whose forward runs out of memory with more sequences than that."""

    class Large(GPT):
        def hidden(self, idx_BT: Tensor, cache: Any = None) -> Tensor:
            if len(idx_BT) > (training if self.training else evaluating):
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes")
            return super().hidden(idx_BT, cache)

    return Large


def test_short_memory_halves_the_micro_batch_of_a_step_down_to_divisors_of_the_batch() -> None:
    stage = replace(LEARNING, batch_size=18)
    plain = learner_of(stage=stage, dropout=0.0, micro_batch_size=18)
    short = learner_of(stage=stage, dropout=0.0, micro_batch_size=18, build=with_room_for(2, 18))
    said = list[str]()
    short.report = said.append
    for mine, other in zip(trained(short, 3), trained(plain, 3), strict=True):
        assert (mine.train_loss, mine.grad_norm) == pytest.approx((other.train_loss, other.grad_norm), rel=1e-5)
    assert short.micro_batch_size == 1
    assert said == [
        f"out of memory with {many} sequences at a time; continuing with {few}"
        for many, few in ((18, 9), (9, 3), (3, 1))
    ]


def test_short_memory_halves_the_micro_batch_of_an_evaluation_too() -> None:
    learner, plain = learner_of(micro_batch_size=4, build=with_room_for(4, 2)), learner_of(micro_batch_size=4)
    assert evaluated(learner) == pytest.approx(evaluated(plain), rel=1e-6)
    assert learner.micro_batch_size == 2 and plain.micro_batch_size == 4


@pytest.mark.parametrize("action", [lambda learner: trained(learner, 1), evaluated], ids=["step", "evaluation"])
def test_memory_that_lacks_for_one_sequence_ends_it_before_anything_moves(action: Callable[[Learner], object]) -> None:
    learner = learner_of(micro_batch_size=4, build=with_room_for(0, 0))
    before = learner.pack(optimizer=True)
    with pytest.raises(OutOfMemory, match="even with one sequence at a time"):
        action(learner)
    assert_equal(learner.pack(optimizer=True), before)


@pytest.mark.parametrize("action", [lambda learner: trained(learner, 1), evaluated], ids=["step", "evaluation"])
def test_other_errors_are_not_taken_for_short_memory(action: Callable[[Learner], object]) -> None:
    class Wrong(GPT):
        def hidden(self, idx_BT: Tensor, cache: Any = None) -> Tensor:
            raise RuntimeError("shapes do not match")

    learner = learner_of(build=Wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        action(learner)
    assert learner.micro_batch_size == 2


@pytest.mark.parametrize("optimizer", [False, True])
def test_a_load_takes_the_weight_decay_of_the_schedule_that_was_fitted(optimizer: bool) -> None:
    learner = learner_of()
    trained(learner, 2)
    packed = learner.pack(optimizer=True)
    learner.stage = replace(learner.stage, weight_decay=0.3)
    learner.load(packed if optimizer else {"model": packed["model"]})
    assert {group["weight_decay"] for group in learner.optimizer.param_groups} == {0.0, 0.3}
    assert learner.pack(optimizer=True)["optimizer"]["updates"] == (2 if optimizer else 0)


# --- ahead, as on a GPU -----------------------------------------------------------------------------------------------


class Ahead(Learner):
    """A learner that takes this CPU for a GPU with room for the tokens."""

    def _may_run_ahead(self, batches: TrainBatches) -> bool:
        return True


def test_getting_ready_returns_no_step_and_moves_nothing_then_many_are_taken() -> None:
    learner, single = learner_of(kind=Ahead, dropout=0.0, micro_batch_size=4), learner_of(dropout=0.0)
    said = list[str]()
    learner.report = said.append
    before = learner.pack(optimizer=True)
    assert learner.steps(batches_of(), 0, 5) == []
    assert said[-1] == f"running up to {MOST_STEPS} steps at a time on the GPU: plain operations"
    assert_equal(learner.pack(optimizer=True)["model"], before["model"])
    found = learner.steps(batches_of(), 0, 5) + learner.steps(batches_of(), 5, 2, skip=3)
    expected = trained(single, 5) + trained(single, 2, first=5, skip=3)
    assert len(found) == 7
    for mine, other in zip(found, expected, strict=True):
        assert (mine.train_loss, mine.grad_norm) == pytest.approx((other.train_loss, other.grad_norm), rel=1e-4)
    assert len(learner.steps(batches_of(), 7, 10**6)) == MOST_STEPS


def test_a_load_into_what_runs_ahead_is_in_place_and_another_optimizer_needs_getting_ready_again() -> None:
    learner = learner_of(kind=Ahead, dropout=0.0, micro_batch_size=4)
    learner.report = lambda _: None
    learner.steps(batches_of(), 0, 3)
    learner.steps(batches_of(), 0, 3)
    packed = learner.pack(optimizer=True)
    expected = learner.steps(batches_of(), 3, 3)
    learner.load(packed)
    assert learner.steps(batches_of(), 3, 3) == expected
    learner.stage = replace(learner.stage, weight_decay=0.3)  # with which a fresh optimizer cannot be the same
    learner.load(learner.pack(optimizer=False))
    assert learner.steps(batches_of(), 6, 3) == []
    assert len(learner.steps(batches_of(), 6, 3)) == 3
