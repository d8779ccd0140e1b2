"""What a stage leaves on the disk: its files set aside, and what a checkpoint must hold to be one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stages import files_of, payload_of

from storyladder.results import check_shapes, plain_settings
from storyladder.runtime.checkpoint import previous_of
from storyladder.runtime.errors import CheckpointError
from storyladder.settings import Ladder


def test_settings_stand_behind_those_that_the_ancestors_were_trained_with(toy_ladder: Ladder) -> None:
    settings = plain_settings(toy_ladder, toy_ladder.stage("simple"), [{"name": "tiny", "max_lr": 9.0}])
    assert [stage["name"] for stage in settings["stages"]] == ["tiny", "simple"]
    assert settings["stages"][0]["max_lr"] == 9.0


def test_another_shape_is_refused_with_both_numbers(toy_ladder: Ladder, tmp_path: Path) -> None:
    deeper = replace(toy_ladder.model, n_layer=3)
    with pytest.raises(CheckpointError, match=r"n_layer is 2 in the file and 3 in config.py"):
        check_shapes(payload_of(toy_ladder), tmp_path / "x.pt", deeper)
    without = {**payload_of(toy_ladder), "model": {}}
    with pytest.raises(CheckpointError, match="has no weights"):
        check_shapes(without, tmp_path / "x.pt", toy_ladder.model)


@pytest.mark.parametrize(
    "strange",
    [
        {"stage": "\x1b[2J"},
        {"stage": 3},
        {"step": "x"},
        {"val_loss": "y"},
        {"val_loss": None},
        {"model": [1, 2]},
        {"model": {"w": 3}},
        {"model": {"w": torch.zeros(2, dtype=torch.int64)}},
        {"settings": []},
        {"settings": {"model": {}}},
        {"settings": {"model": {}, "stages": [3]}},
        {"seen_tokens": None},
    ],
)
def test_a_checkpoint_whose_parts_cannot_be_meant_is_refused(
    toy_ladder: Ladder, tmp_path: Path, strange: dict[str, object]
) -> None:
    check_shapes(payload_of(toy_ladder), tmp_path / "x.pt", toy_ladder.model)
    with pytest.raises(CheckpointError, match=r"x\.pt (is not a stage checkpoint|does not contain the)") as error:
        check_shapes({**payload_of(toy_ladder), **strange}, tmp_path / "x.pt", toy_ladder.model)
    assert str(error.value).isprintable()


def test_setting_aside_keeps_every_file_under_a_new_name(toy_ladder: Ladder) -> None:
    files = files_of(toy_ladder)
    files.result.parent.mkdir(parents=True)
    for path in (files.result, files.best, files.resume):
        path.write_bytes(path.name.encode())
    aside = files.set_aside("then")
    assert len(aside) == 3 and not files.result.exists()
    assert {path.read_bytes().decode() for path in aside} == {files.result.name, files.best.name, files.resume.name}


def test_the_result_is_set_aside_last_so_that_a_kill_leaves_a_finished_stage(
    toy_ladder: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(toy_ladder)
    files.result.parent.mkdir(parents=True)
    paths = (files.result, files.best, files.resume, previous_of(files.resume))
    for path in paths:
        path.write_bytes(b"x")
    replace_file = os.replace
    moved = []

    def replace_until_killed(old: Path, new: Path) -> None:
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(old)
        replace_file(old, new)

    monkeypatch.setattr(os, "replace", replace_until_killed)
    with pytest.raises(KeyboardInterrupt):
        files.set_aside("then")
    assert [path for path in paths if path.exists()] == [files.result]
