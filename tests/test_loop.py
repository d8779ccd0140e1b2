"""The promises of the loop: exact resume, early stopping, numbers that go bad, memory that runs out."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import BOTH_OPTIMIZERS, MUON
from rounding import assert_same_losses
from stages import (
    BATCHES_OF_EVALUATION,
    MICROS,
    Poisoned,
    SignalAt,
    assert_equal,
    elsewhere,
    files_of,
    interrupt_in_step,
    losses_of,
    never_improving,
    plain_record,
    plain_state,
    poisoned,
    run_of,
    with_stage,
)
from torch.nn import functional as F

from model import GPT
from storyladder.corpus.token_file import TrainBatches
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.schedule import lr_at
from storyladder.learning.vocabulary import start_rows_equal
from storyladder.runtime.checkpoint import load_checkpoint, read_checkpoint
from storyladder.runtime.errors import Interrupted, OutOfMemory, TrainingFailed, UserError
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage


@pytest.mark.parametrize(
    ("interruptions", "changes"),
    [
        ([1], {}),
        *(pytest.param(steps, {}, marks=pytest.mark.slow) for steps in ([0], [2], [3], [1, 1, 1], [4])),
        *(pytest.param(steps, MUON, marks=pytest.mark.slow) for steps in ([0], [1, 1, 1])),
        pytest.param([1, 1, 1], {"replay": {"children": 0.3, "simple": 0.2}}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("each_precision")
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    toy_data: Ladder, tmp_path: Path, interruptions: list[int], changes: dict[str, Any]
) -> None:
    """Evaluations are at steps 0, 3, 6; an epoch has 10.75 batches here, so steps 9 to 12 cross its end."""
    ladder = with_stage(toy_data, max_steps=14, **changes)
    whole, parts = elsewhere(ladder, tmp_path, "whole"), elsewhere(ladder, tmp_path, "parts")
    interrupt_in_step(whole, 12)
    for step in interruptions:
        interrupt_in_step(parts, step)
    done = read_checkpoint(files_of(parts).resume)["progress"]["step"]
    interrupt_in_step(parts, 12 - done)
    files = [files_of(ladder) for ladder in (whole, parts)]
    assert plain_state(files[0].resume)["progress"]["step"] == 13
    assert_equal(plain_state(files[0].resume), plain_state(files[1].resume))
    for ladder in (whole, parts):
        train_stage(run_of(ladder), GPT)
    assert_equal(plain_state(files[0].result), plain_state(files[1].result))
    assert plain_record(files[0].record) == plain_record(files[1].record)


def test_a_crossed_epoch_is_really_crossed(toy_data: Ladder) -> None:
    stage, length = toy_data.stage("tiny"), toy_data.model.context_length
    assert 9 < (700 - 1) // length / stage.batch_size < 12


def test_a_signal_in_the_middle_of_an_evaluation_leaves_it_without_a_verdict(toy_data: Ladder, tmp_path: Path) -> None:
    whole, parts = elsewhere(toy_data, tmp_path, "whole"), elsewhere(toy_data, tmp_path, "parts")
    train_stage(run_of(whole), GPT)
    with pytest.raises(Interrupted):
        train_stage(run_of(parts), SignalAt(BATCHES_OF_EVALUATION + 1, training=False))
    resume = files_of(parts).resume
    assert read_checkpoint(resume)["progress"] | {"train_seconds": 0} == {
        **read_checkpoint(resume)["progress"],
        "step": 3,
        "evaluated_at": 0,
        "bad_evals": 0,
        "train_seconds": 0,
    }
    train_stage(run_of(parts), GPT)
    results = [files_of(ladder) for ladder in (whole, parts)]
    assert_equal(plain_state(results[0].result), plain_state(results[1].result))
    assert plain_record(results[0].record) == plain_record(results[1].record)


@pytest.mark.slow
@pytest.mark.usefixtures("each_precision")
@BOTH_OPTIMIZERS
def test_killed_between_saves_resumes_from_the_last_one_and_ends_the_same(
    toy_data: Ladder, tmp_path: Path, changes: dict[str, Any]
) -> None:
    ladder = with_stage(toy_data, **changes)
    whole, killed = elsewhere(ladder, tmp_path, "whole"), elsewhere(ladder, tmp_path, "killed")
    train_stage(run_of(whole), GPT)
    child = os.fork()
    if child == 0:  # SIGKILL in step 5: the last save was at step 4
        train_stage(run_of(killed), SignalAt(MICROS * 5 + 1, number=signal.SIGKILL))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    files = [files_of(ladder) for ladder in (whole, killed)]
    assert read_checkpoint(files[1].resume)["progress"]["step"] == 4
    train_stage(run_of(killed), GPT)
    assert_equal(plain_state(files[0].result), plain_state(files[1].result))
    assert plain_record(files[0].record) == plain_record(files[1].record)


@pytest.mark.slow
@pytest.mark.usefixtures("each_precision")
def test_a_stage_of_muon_that_is_killed_twenty_times_ends_the_same(toy_data: Ladder, tmp_path: Path) -> None:
    """Every life makes two steps, saves, and ends in the first or second forward of the step after the save."""
    ladder = with_stage(toy_data, max_steps=44, save_interval=2, **MUON)
    whole, killed = elsewhere(ladder, tmp_path, "whole"), elsewhere(ladder, tmp_path, "killed")
    train_stage(run_of(whole), GPT)
    files = [files_of(each) for each in (whole, killed)]
    for life in range(1, 21):
        child = os.fork()
        if child == 0:
            train_stage(run_of(killed), SignalAt(MICROS * 2 + 1 + life % 2, number=signal.SIGKILL))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert read_checkpoint(files[1].resume)["progress"]["step"] == 2 * life
    train_stage(run_of(killed), GPT)
    assert_equal(plain_state(files[0].result), plain_state(files[1].result))
    assert plain_record(files[0].record) == plain_record(files[1].record)


def test_it_stops_after_patience_evaluations_without_improvement_and_keeps_the_best(toy_data: Ladder) -> None:
    ladder = never_improving(toy_data, patience=3)
    train_stage(run_of(ladder), GPT)
    files = files_of(ladder)
    evaluations = [record for record in read_records(files.record) if record["event"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [0, 2, 4, 6]
    assert [record["best"] for record in evaluations] == [True, False, False, False]
    assert read_checkpoint(files.result)["step"] == 0


@pytest.mark.parametrize("step", [1, 3, 4])
def test_patience_survives_an_interruption_and_no_evaluation_counts_twice(toy_data: Ladder, step: int) -> None:
    """A signal in step 1 or 3 is obeyed before the evaluation that is due next, one in step 4 after one."""
    ladder = never_improving(toy_data, patience=3)
    interrupt_in_step(ladder, step)
    progress = read_checkpoint(files_of(ladder).resume)["progress"]
    assert progress["bad_evals"] == step // 2
    train_stage(run_of(ladder), GPT)
    record = read_records(files_of(ladder).record)
    assert [entry["step"] for entry in record if entry["event"] == "evaluation"] == [0, 2, 4, 6]


@pytest.mark.slow
def test_the_result_holds_the_best_weights_and_not_the_last(toy_data: Ladder) -> None:
    """A rate that wrecks the model late: the warm-up ends at a rate far too high."""
    ladder = with_stage(toy_data, max_steps=12, warmup_steps=11, max_lr=5.0, min_lr=5.0, eval_interval=1)
    train_stage(run_of(ladder), GPT)
    files = files_of(ladder)
    losses = {
        record["step"]: record["val_loss"] for record in read_records(files.record) if record["event"] == "evaluation"
    }
    result = read_checkpoint(files.result)
    assert result["val_loss"] == min(losses.values()) < losses[12]
    assert result["step"] == min(losses, key=losses.__getitem__)


def test_a_stage_trains_as_a_plain_loop_does(toy_data: Ladder, each_precision: str) -> None:
    """The slow oracle, in fp32: whole vocabulary, F.cross_entropy, batch k and rate k at step k."""
    ladder = replace(toy_data, model=replace(toy_data.model, dropout=0.0))
    stage = ladder.stage("tiny")
    train_stage(run_of(ladder), GPT)
    measured = losses_of(ladder)

    ids = torch.from_numpy(np.fromfile(ladder.folder("data") / "train.bin", dtype="<u2").astype(np.int64))
    batches = TrainBatches(
        ids.numpy().astype(np.uint16), context_length=16, batch_size=stage.batch_size, seed=stage.seed
    )
    torch.manual_seed(stage.seed)
    model = GPT(ladder.model)
    used = torch.zeros(ladder.model.vocab_size, dtype=torch.bool)
    used[ids.unique()] = True
    start_rows_equal(model.head_weight.data, used)
    optimizer = build_optimizer(model, stage)
    losses = []
    for step in range(stage.max_steps):
        idx_BT, targets_BT = (torch.from_numpy(part) for part in batches.batch(step))
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = lr_at(step, stage)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(idx_BT).flatten(0, 1), targets_BT.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    assert_same_losses(measured, losses, each_precision)
    assert losses[0] - losses[-1] > 0.5


@pytest.mark.slow
@BOTH_OPTIMIZERS
def test_compact_and_full_vocabulary_train_to_the_same_losses_and_weights(
    toy_data: Ladder, tmp_path: Path, each_precision: str, changes: dict[str, Any]
) -> None:
    """In bf16 weights may part, where a gradient is nothing but round-off: AdamW takes a whole step from its sign."""
    ladders = [
        with_stage(elsewhere(toy_data, tmp_path, str(compact)), compact_vocabulary=compact, **changes)
        for compact in (True, False)
    ]
    for ladder in ladders:
        train_stage(run_of(ladder), GPT)
    for event, loss in (("train", "train_loss"), ("evaluation", "val_loss")):
        assert_same_losses(*(losses_of(ladder, event, loss) for ladder in ladders), each_precision)
    a, b = (read_checkpoint(files_of(ladder).result)["model"] for ladder in ladders)
    if each_precision == "fp32":
        for name, tensor in a.items():
            torch.testing.assert_close(tensor, b[name], atol=2e-3, rtol=0)


def test_losses_on_other_validation_windows_are_not_compared(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_in_step(toy_data, 4)
    files = files_of(toy_data)
    fewer = with_stage(toy_data, val_windows=3)
    with pytest.raises(UserError, match="val_windows was None and is 3"):
        train_stage(run_of(fewer), GPT)
    old_best = files.best.read_bytes()
    train_stage(run_of(fewer, accept_changes=True), GPT)
    assert "the best loss was reset" in capsys.readouterr().err
    assert files.best.with_suffix(".other_windows.pt").read_bytes() == old_best
    assert read_checkpoint(files.result)["step"] == 6


def test_fresh_starts_over_and_keeps_the_old_result_aside(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), GPT)
    result = files_of(toy_data).result
    before = result.read_bytes()
    train_stage(run_of(toy_data, fresh=True), GPT)
    aside = list(result.parent.glob(f"{result.stem}.before-*.pt"))
    assert [path.read_bytes() for path in aside] == [before]
    assert_equal(plain_state(result), plain_state(aside[0]))


def test_fresh_with_bad_data_leaves_the_old_result_where_it_is(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), GPT)
    result = files_of(toy_data).result
    (toy_data.folder("data") / "train.bin").write_bytes(b"xx")
    with pytest.raises(UserError, match="prepare_data"):
        train_stage(run_of(toy_data, fresh=True), GPT)
    assert result.exists()


@pytest.mark.slow
def test_a_rollback_keeps_the_precision_and_threads_of_today(toy_data: Ladder) -> None:
    """The state that it goes back to was saved in another one."""
    ladder = with_stage(toy_data, max_steps=40, save_interval=100)
    interrupt_in_step(ladder, 4, precision="fp32", threads=1)

    class Leaving(Poisoned):
        poisoned: ClassVar[set[int]] = set(range(1, MICROS * 20 + 1))
        count = 0

        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            if self.training and type(self).count == MICROS * 21:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().hidden(idx_BT, cache)

    with pytest.raises(Interrupted):
        train_stage(run_of(ladder, precision="bf16", threads=2, accept_changes=True), Leaving)
    progress = read_checkpoint(files_of(ladder).resume)["progress"]
    assert (progress["rollbacks"], progress["precision"], progress["threads"]) == (1, "bf16", 2)


def test_a_step_that_is_not_finite_moves_nothing_is_counted_and_recorded_as_what_it_was(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), poisoned(MICROS * 2 + 1))
    files = files_of(toy_data)
    skipped = [record for record in read_records(files.record) if record["event"] == "skipped"]
    assert [(record["step"], record["train_loss"]) for record in skipped] == [(3, "nan")]
    result = read_checkpoint(files.result)
    assert all(tensor.isfinite().all() for tensor in result["model"].values())


@pytest.mark.slow
def test_many_bad_steps_in_a_row_go_back_to_the_last_good_state_and_leave_those_batches_out(toy_data: Ladder) -> None:
    """Steps 4 to 23 are bad; the state of step 4 is the last good one."""
    ladder = with_stage(toy_data, max_steps=30)
    train_stage(run_of(ladder), poisoned(*range(MICROS * 4 + 1, MICROS * 24 + 1)))
    records = read_records(files_of(ladder).record)
    (back,) = [record for record in records if record["event"] == "rollback"]
    assert (back["step"], back["from_step"], back["batches_left_out"]) == (4, 24, 20)
    assert [record["step"] for record in records if record["event"] == "train"] == list(range(1, 31))


@pytest.mark.slow
@BOTH_OPTIMIZERS
def test_a_rollback_to_the_very_start_leaves_no_moments_and_keeps_the_best_on_disk(
    toy_data: Ladder, changes: dict[str, Any]
) -> None:
    """The state of step 0 is the last good one; the evaluation at step 3 has left better weights than those."""
    ladder = with_stage(toy_data, max_steps=26, save_interval=100, **changes)
    files = files_of(ladder)
    seen: list[int] = []

    class Watched(Poisoned):
        poisoned: ClassVar[set[int]] = set(range(MICROS * 4 + 1, MICROS * 24 + 1))
        count = 0

    with pytest.raises(Interrupted):

        class Leaving(Watched):
            def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
                if self.training and type(self).count == MICROS * 24 + 1:
                    seen.append(1)
                    os.kill(os.getpid(), signal.SIGTERM)
                return super().hidden(idx_BT, cache)

        train_stage(run_of(ladder), Leaving)
    state = read_checkpoint(files.resume)
    assert seen and state["progress"]["rollbacks"] == 1 and state["progress"]["step"] == 1
    assert state["optimizer"]["updates"] == 1
    best = read_checkpoint(files.best)
    assert best["step"] > 0 and state["progress"]["best_loss"] == best["val_loss"]


@pytest.mark.slow
def test_a_third_rollback_is_the_last(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=500, eval_interval=500)
    with pytest.raises(TrainingFailed, match=r"for the 4th time.*tiny_best\.pt") as stop:
        train_stage(run_of(ladder), poisoned(*range(9, 900)))
    assert stop.value.exit_status == 70


def test_weights_that_are_not_finite_are_never_saved(toy_data: Ladder) -> None:
    """A weight is wrecked behind the loop's back right before the save at step 4."""
    ladder = with_stage(toy_data, max_steps=8)

    class Wrecked(GPT):
        forwards = 0

        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            if self.training:
                Wrecked.forwards += 1
            x = super().hidden(idx_BT, cache)
            if Wrecked.forwards == MICROS * 4:
                Wrecked.forwards += 1
                x.register_hook(self.wreck)
            return x

        def wreck(self, grad: torch.Tensor) -> None:
            self.transformer["wpe"].weight.data.fill_(float("inf"))

    train_stage(run_of(ladder), Wrecked)
    records = read_records(files_of(ladder).record)
    assert [record["why"] for record in records if record["event"] == "rollback"] == ["weights were not finite"]
    result = read_checkpoint(files_of(ladder).result)
    assert all(tensor.isfinite().all() for tensor in result["model"].values())


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch_and_the_mathematics_stays(
    toy_data: Ladder, tmp_path: Path, each_precision: str
) -> None:
    """Without dropout (whose draws follow the micro-batches) the losses are those of an undisturbed run."""
    calm = replace(toy_data, model=replace(toy_data.model, dropout=0.0))
    plain, short = elsewhere(calm, tmp_path, "plain"), elsewhere(calm, tmp_path, "short")

    class Small(GPT):
        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            if self.training and len(idx_BT) > 1:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes")
            return super().hidden(idx_BT, cache)

    train_stage(run_of(plain), GPT)
    train_stage(run_of(short), Small)
    assert_same_losses(losses_of(short), losses_of(plain), each_precision)
    records = read_records(files_of(short).record)
    assert [record["micro_batch_size"] for record in records if record["event"] == "out of memory"] == [1]


def test_memory_that_is_out_for_good_saves_and_stops_with_status_75(toy_data: Ladder) -> None:
    class Smaller(GPT):
        forwards = 0

        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            Smaller.forwards += self.training
            if Smaller.forwards > MICROS * 3:
                raise MemoryError
            return super().hidden(idx_BT, cache)

    ladder = with_stage(toy_data, save_interval=100)
    with pytest.raises(OutOfMemory, match="one sequence at a time; close") as stop:
        train_stage(run_of(ladder), Smaller)
    assert stop.value.exit_status == 75
    assert read_checkpoint(files_of(ladder).resume)["progress"]["step"] == 3


def test_a_token_file_cut_while_in_use_ends_the_stage_with_a_clear_line_and_a_save(toy_data: Ladder) -> None:
    """Cut in step 3; reading behind the end of a mapped file would kill the process with SIGBUS."""
    train_file = toy_data.folder("data") / "train.bin"

    class Cutting(GPT):
        forwards = 0

        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            Cutting.forwards += self.training
            if Cutting.forwards == MICROS * 3 + 1:
                os.truncate(train_file, 10)
            return super().hidden(idx_BT, cache)

    with pytest.raises(UserError, match=r"train\.bin was cut .* while in use; rebuild"):
        train_stage(run_of(with_stage(toy_data, eval_interval=100, save_interval=100)), Cutting)
    resume = files_of(toy_data).resume
    assert read_checkpoint(resume)["progress"]["step"] == 4


def test_a_loss_far_above_its_mean_is_recorded_as_a_spike(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=60, eval_interval=100, save_interval=100, max_lr=1e-4)

    class Spiking(GPT):
        forwards = 0

        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            Spiking.forwards += self.training
            x = super().hidden(idx_BT, cache)
            return x * 400 if Spiking.forwards == MICROS * 55 + 1 else x

    train_stage(run_of(ladder), Spiking)
    records = read_records(files_of(ladder).record)
    spikes = [record for record in records if record["event"] == "spike"]
    assert [spike["step"] for spike in spikes] == [56] and spikes[0]["z"] > 6


def test_the_order_of_the_loop_is_save_evaluate_leave_train(toy_data: Ladder) -> None:
    """At step 6 of 8 a save and an evaluation are due; a kill inside that evaluation must find the save done."""
    ladder = with_stage(toy_data, max_steps=8, eval_interval=6, save_interval=6)
    child = os.fork()
    if child == 0:
        train_stage(run_of(ladder), SignalAt(BATCHES_OF_EVALUATION + 1, training=False, number=signal.SIGKILL))
        os._exit(0)
    os.waitpid(child, 0)
    loaded = load_checkpoint(files_of(ladder).resume)
    assert loaded is not None and loaded.payload["progress"]["step"] == 6
    assert loaded.payload["progress"]["evaluated_at"] == 0


def test_the_record_holds_everything_that_was_measured(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), GPT)
    record = files_of(toy_data).record
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    assert (lines[0]["event"], lines[-1]["event"]) == ("start", "finished")
    assert [line["step"] for line in lines if line["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["event"] == "evaluation"] == [0, 3, 6]
    assert set(lines[1]) >= {"val_loss", "perplexity", "bits_per_byte", "tokens"}
    assert lines[0]["settings"]["stages"][0]["max_lr"] == toy_data.stage("tiny").max_lr
