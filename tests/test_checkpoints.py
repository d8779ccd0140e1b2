"""What a stage must not lose: resume state, best weights and result on disks that refuse, cut and forget."""

from __future__ import annotations

import errno
import os
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

from model import GPT
from storyladder.learning import learner
from storyladder.runtime.checkpoint import previous_of, read_checkpoint
from storyladder.runtime.errors import CheckpointError, SaveFailed
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage


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


def test_no_resume_state_counts_on_best_weights_that_are_not_on_the_disk(toy_data: Ladder, tmp_path: Path) -> None:
    """Best weights cannot be written from step 1 on: it stops with 75, and goes on as if it had never been stopped."""
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


@pytest.mark.parametrize("harm", ["missing", "cut", "a folder"])
def test_best_weights_that_are_lost_are_told_at_once_and_the_best_counts_anew(
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


def test_a_save_for_which_there_is_no_memory_is_a_failed_save(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packing the second resume state takes more than there is."""
    real, packed = learner.pack_optimizer, 0

    def pack(*parts: Any) -> Any:
        nonlocal packed
        packed += 1
        if packed == 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes")
        return real(*parts)

    monkeypatch.setattr(learner, "pack_optimizer", pack)
    train_stage(run_of(with_stage(toy_data, save_interval=1)), GPT)
    assert "tiny_resume.pt could not be saved (out of memory); training continues" in capsys.readouterr().err
    events = [record["event"] for record in read_records(files_of(toy_data).record)]
    assert events.count("save failed") == 1 and events[-1] == "finished" and packed > 2


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
