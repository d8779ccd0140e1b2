"""What a stage must not lose: resume state, best weights and result on disks that refuse, cut and forget."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import (
    MICROS,
    assert_equal,
    elsewhere,
    files_of,
    interrupt_in_step,
    never_improving,
    plain_state,
    run_of,
    with_stage,
)
from steppers import batches_of, learner_of
from torch.utils._python_dispatch import TorchDispatchMode

from model import GPT
from storyladder.runtime.checkpoint import digest_of, previous_of, read_checkpoint
from storyladder.runtime.distributed import ALONE
from storyladder.runtime.errors import CheckpointError, SaveFailed, TrainingFailed
from storyladder.runtime.run_log import RunLog, read_records
from storyladder.settings import Ladder
from storyladder.stage.checkpoints import Checkpoints
from storyladder.stage.loop import train_stage
from storyladder.stage.state import TrainState

# --- alone: a learner, a state and a folder ---------------------------------------------------------------------------


@pytest.fixture
def checkpoints(toy_ladder: Ladder) -> Checkpoints:
    files = files_of(toy_ladder)

    def again(*flags: str) -> str:
        return " ".join(("python train_tiny.py", *flags))

    return Checkpoints(files, {"stage": "tiny"}, group=ALONE, log=RunLog(files.record), again=again)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files that the disk refuses to take from now on; a test adds and removes them."""
    names, real = set[str](), os.replace

    def replace_file(source: Path, target: Path) -> None:
        if Path(target).name in names:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_file)
    return names


class NoMemoryForCopies(TorchDispatchMode):
    """Copies of tensors, which a save begins with, find no memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "clone" in str(func):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes")
        return func(*args, **(kwargs or {}))


def events(checkpoints: Checkpoints) -> list[tuple[int, str]]:
    records = read_records(checkpoints.files.record)
    return [(record["step"], record["file"]) for record in records if record["event"] == "save failed"]


def test_a_resume_state_is_learner_and_state_and_what_the_stage_says_of_itself(checkpoints: Checkpoints) -> None:
    learner, state = learner_of(micro_batch_size=4), TrainState(step=3, best_loss=2.5, fitted={"max_steps": 9})
    assert checkpoints.save(learner, state) and checkpoints.save(learner, replace(state, step=4))
    loaded = checkpoints.resume_state()
    assert loaded is not None and loaded.path == checkpoints.files.resume
    assert (loaded.payload["stage"], loaded.payload["step"], loaded.payload["fitted"]) == ("tiny", 4, {"max_steps": 9})
    assert TrainState(**loaded.payload["progress"]) == replace(state, step=4)
    other = learner_of()
    other.load(loaded.payload)
    assert_equal(other.pack(optimizer=True), learner.pack(optimizer=True))
    assert read_checkpoint(previous_of(checkpoints.files.resume))["step"] == 3


def test_a_disk_that_refuses_is_told_and_recorded_and_counts_in_a_row_only(
    checkpoints: Checkpoints, refusing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    learner, resume = learner_of(), checkpoints.files.resume.name
    saved = []
    for step, refuses in enumerate([0, 1, 1, 0, 1, 1]):
        (refusing.add if refuses else refusing.discard)(resume)
        saved.append(checkpoints.save(learner, TrainState(step=step)))
    assert saved == [True, False, False, True, False, False]
    told = "warning: tiny_resume.pt could not be saved (Input/output error); training continues"
    assert capsys.readouterr().err.count(told) == 4
    assert events(checkpoints) == [(step, resume) for step in (1, 2, 4, 5)]
    words = (
        r"3 saves in a row failed \(Input.*the last good file is .*tiny_resume.* then run python train_tiny.py again"
    )
    with pytest.raises(SaveFailed, match=words):
        checkpoints.save(learner, TrainState(step=6))
    assert checkpoints.resume_state().payload["step"] == 3  # type: ignore[union-attr]


def test_a_save_for_which_there_is_no_memory_is_a_failed_save_and_other_errors_are_not(
    checkpoints: Checkpoints, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of()
    with NoMemoryForCopies():
        assert not checkpoints.save(learner, TrainState())
    assert "tiny_resume.pt could not be saved (out of memory); training continues" in capsys.readouterr().err
    assert checkpoints.save(learner, TrainState())

    def wrong(*_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(torch.Tensor, "clone", wrong)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        checkpoints.save(learner, TrainState())


def test_best_weights_wait_as_they_were_and_the_resume_state_waits_with_them(
    checkpoints: Checkpoints, refusing: set[str]
) -> None:
    learner, state = learner_of(), TrainState(step=5, best_loss=2.0, best_step=5, train_seconds=7.0)
    then = learner.pack(optimizer=False)["model"]
    refusing.add(checkpoints.files.best.name)
    checkpoints.keep_best(learner, state)
    learner.steps(batches_of(), 5, 1)
    assert not checkpoints.save(learner, replace(state, step=6)) and checkpoints.resume_state() is None
    refusing.clear()
    checkpoints.finish(replace(state, step=7))
    for path in (checkpoints.files.best, checkpoints.files.result):
        best = read_checkpoint(path)
        assert_equal(best["model"], then)
        assert (best["step"], best["val_loss"], best["train_seconds"]) == (5, 2.0, 7.0)
        assert best["model_digest"] == digest_of(then) and "optimizer" not in best


def test_finishing_needs_best_weights_and_leaves_no_resume_state(checkpoints: Checkpoints, refusing: set[str]) -> None:
    learner, files = learner_of(), checkpoints.files
    checkpoints.save(learner, TrainState())
    with pytest.raises(TrainingFailed, match=r"without best weights.*python train_tiny.py --fresh"):
        checkpoints.finish(TrainState(step=9))
    state = TrainState(step=9, best_loss=2.0, best_step=9)
    with pytest.raises(CheckpointError, match=r"tiny_best\.pt is missing; run python train_tiny.py again"):
        checkpoints.finish(state)
    refusing.add(files.best.name)
    checkpoints.keep_best(learner, state)
    with pytest.raises(
        SaveFailed, match=r"tiny_best\.pt could not be written; the last good file is .*tiny_resume\.pt"
    ):
        checkpoints.finish(state)
    refusing.add(files.result.name)
    refusing.discard(files.best.name)
    with pytest.raises(SaveFailed, match=r"final\.pt could not be written; the weights are safe in .*tiny_best\.pt"):
        checkpoints.finish(state)
    assert files.resume.exists()
    refusing.clear()
    files.best.write_bytes(files.best.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"tiny_best\.pt.*; run python train_tiny.py again"):
        checkpoints.finish(state)
    checkpoints.keep_best(learner, state)
    checkpoints.finish(state)
    assert files.result.exists() and files.best.exists() and not files.resume.exists()


def test_best_weights_that_are_lost_are_noticed_and_those_of_other_windows_put_aside(checkpoints: Checkpoints) -> None:
    learner, files = learner_of(), checkpoints.files
    assert checkpoints.lost_best() == f"{files.best} is missing"
    checkpoints.keep_best(learner, TrainState(best_step=0, best_loss=1.0))
    assert checkpoints.lost_best() == ""
    content = files.best.read_bytes()
    aside = checkpoints.set_best_aside()
    assert aside.read_bytes() == content and not files.best.exists()
    assert checkpoints.set_best_aside() == aside and aside.exists(), "there is nothing to put aside"
    files.best.write_bytes(content[:-500])
    assert "tiny_best.pt is damaged" in checkpoints.lost_best()


# --- in a stage -------------------------------------------------------------------------------------------------------


def test_a_resumed_stage_goes_on_with_the_generation_before_when_the_newest_is_damaged(
    toy_data: Ladder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = elsewhere(toy_data, tmp_path, "whole"), elsewhere(toy_data, tmp_path, "damaged")
    train_stage(run_of(whole), GPT)
    interrupt_in_step(damaged, 4)
    files = [files_of(ladder) for ladder in (whole, damaged)]
    assert read_checkpoint(previous_of(files[1].resume))["progress"]["step"] == 4
    files[1].resume.write_bytes(files[1].resume.read_bytes()[:-1000])
    train_stage(run_of(damaged), GPT)
    said = capsys.readouterr().err
    assert "damaged" in said and ".corrupt" in said and "step 4" in said
    assert_equal(plain_state(files[0].result), plain_state(files[1].result))


@pytest.mark.parametrize("max_steps", [3, 4])
def test_best_weights_that_the_disk_refused_are_kept_and_saved_at_the_next_chance(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch, max_steps: int
) -> None:
    """The save at step 3 fails. Step 4 is worse than that; without step 4 the end of the stage is the next chance."""
    files = files_of(toy_data)
    real, saves = os.replace, 0

    def refuse_the_second(source: Path, target: Path) -> None:
        nonlocal saves
        saves += target == files.best
        if target == files.best and saves == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    class WorseAtTheEnd(GPT):
        forwards = 0

        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            WorseAtTheEnd.forwards += self.training
            end = WorseAtTheEnd.forwards == MICROS * 4 and not self.training
            return super().hidden(idx_BT, cache) * (0.5 if end else 1.0)

    monkeypatch.setattr(os, "replace", refuse_the_second)
    ladder = with_stage(toy_data, max_steps=max_steps, min_lr=0.0, eval_interval=3, max_lr=1e-2, save_interval=100)
    train_stage(run_of(ladder), WorseAtTheEnd)
    records = read_records(files.record)
    assert [record["file"] for record in records if record["event"] == "save failed"] == ["tiny_best.pt"]
    losses = {record["step"]: record["val_loss"] for record in records if record["event"] == "evaluation"}
    result = read_checkpoint(files.result)
    assert losses[3] == min(losses.values())
    assert result["step"] == 3 and result["val_loss"] == losses[3]
    assert records[-1]["best_step"] == 3


@pytest.mark.slow
def test_no_resume_state_counts_on_best_weights_that_are_not_on_the_disk(toy_data: Ladder, tmp_path: Path) -> None:
    """Best weights cannot be written from step 1 on: it stops with 75, and resumes as if it had never been stopped."""
    whole, full = elsewhere(toy_data, tmp_path, "whole"), elsewhere(toy_data, tmp_path, "full")
    ladders = [with_stage(ladder, save_interval=1, max_steps=8) for ladder in (whole, full)]
    files = [files_of(ladder) for ladder in ladders]
    train_stage(run_of(ladders[0]), GPT)

    class Blocking(GPT):
        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            if self.training:
                files[1].best.with_suffix(".partial").mkdir(exist_ok=True)
            return super().hidden(idx_BT, cache)

    with pytest.raises(
        SaveFailed, match=r"the last good file is .*tiny_resume\.pt.*run python train_tiny\.py --device cpu again"
    ):
        train_stage(run_of(ladders[1]), Blocking)
    assert read_checkpoint(files[1].resume)["progress"]["evaluated_at"] == 0
    files[1].best.with_suffix(".partial").rmdir()
    train_stage(run_of(ladders[1]), GPT)
    assert_equal(plain_state(files[0].result), plain_state(files[1].result))


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["missing", "cut", "a folder"])
def test_best_weights_that_are_lost_are_reported_and_the_best_loss_is_reset(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    """No evaluation ever beats the first, so the best weights are never written again by themselves."""
    ladder = never_improving(toy_data, patience=3)
    interrupt_in_step(ladder, 4)
    files = files_of(ladder)
    content = files.best.read_bytes()
    files.best.unlink()
    if harm == "cut":
        files.best.write_bytes(content[:-500])
    if harm == "a folder":
        files.best.mkdir()
    train_stage(run_of(ladder), GPT)
    assert "the best loss is reset at step 5" in capsys.readouterr().err
    assert files.best.with_name("tiny_best.pt.corrupt").exists() == (harm != "missing")
    evaluations = [record for record in read_records(files.record) if record["event"] == "evaluation"]
    assert [(record["step"], record["best"]) for record in evaluations] == [
        (0, True), (2, False), (4, False), (6, True), (8, False), (10, False), (12, False),
    ]  # fmt: skip
    assert read_checkpoint(files.result)["step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_best_weights_that_vanish_while_training_end_in_a_line_that_helps(toy_data: Ladder, harm: str) -> None:
    ladder = with_stage(never_improving(toy_data, patience=3), save_interval=3)
    files = files_of(ladder)

    class Vanishing(GPT):
        forwards = 0

        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            Vanishing.forwards += self.training
            if Vanishing.forwards == MICROS * 3 and self.training:
                files.best.write_bytes(b"") if harm == "cut" else files.best.unlink()
            return super().hidden(idx_BT, cache)

    with pytest.raises(CheckpointError, match=r"tiny_best\.pt.*run python train_tiny\.py --device cpu again"):
        train_stage(run_of(ladder), Vanishing)
    train_stage(run_of(ladder), GPT)
    assert files.result.exists()


def test_a_failed_save_is_said_and_training_goes_on(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full for the second save only."""
    files = files_of(toy_data)
    partial = files.resume.with_suffix(".partial")
    partial.parent.mkdir(parents=True)
    partial.mkdir()  # where the resume state is to be written: opening it fails
    train_stage(run_of(toy_data), GPT)
    assert "could not be saved" in capsys.readouterr().err
    assert files.result.exists()
    events = [record["event"] for record in read_records(files.record)]
    assert events.count("save failed") == 2 and events[-1] == "finished"


def test_three_failed_saves_in_a_row_stop_with_status_75_and_the_last_good_file(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, save_interval=1, eval_interval=100, max_steps=50)
    files = files_of(ladder)
    partial = files.resume.with_suffix(".partial")
    partial.mkdir(parents=True)
    with pytest.raises(
        SaveFailed, match=r"tiny_best\.pt.*run python train_tiny\.py --device cpu --fresh again"
    ) as stop:
        train_stage(run_of(ladder), GPT)
    assert stop.value.exit_status == 75
