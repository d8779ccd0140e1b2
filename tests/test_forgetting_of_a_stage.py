"""What the trainer says about earlier corpora when a stage is finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from stages import files_of, run_of, with_stage

from model import GPT
from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder
from storyladder.stage.forgetting import earlier_results
from storyladder.stage.loop import train_stage

NEW = {"max_lr": 0.05, "min_lr": 0.05, "max_steps": 30, "eval_interval": 30, "patience": None}


@pytest.fixture
def climbing(toy_data: Ladder, write_toy_tokens: Callable[..., Path]) -> Ladder:
    """Two stages whose corpora have nothing in common, the second with a rate that forgets."""
    for kind, seed, n_tokens in (("train", 1, 700), ("val", 11, 250)):
        path = toy_data.folder("data") / f"{kind}_ch.bin"
        write_toy_tokens(path, types=7, seed=seed, n_tokens=n_tokens)
    ladder = with_stage(toy_data, "tiny", max_steps=30, eval_interval=30)
    train_stage(run_of(ladder), GPT)
    return with_stage(ladder, "children", **NEW)


def forgotten(ladder: Ladder, name: str = "children") -> list[dict[str, float]]:
    return [record for record in read_records(files_of(ladder, name).record) if record["event"] == "forgetting"]


def test_it_is_printed_warned_of_and_recorded(climbing: Ladder, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    train_stage(run_of(climbing, "children"), GPT)
    out, err = capsys.readouterr()
    (found,) = forgotten(climbing)
    before = read_checkpoint(files_of(climbing).result)["val_loss"]
    assert found["corpus"] == "tiny" and found["before"] == before < found["val_loss"]
    assert found["change"] == pytest.approx(found["val_loss"] / before - 1)
    assert found["change"] > 0.05, "or there is nothing to warn of here"
    assert f"on earlier corpora, since their own stages: tiny {before:.3f} -> {found['val_loss']:.3f} (+" in out
    assert "warning: stage children forgot: its loss on tiny is" in out + err
    assert "replay={'tiny': 0.1} for this stage in config.py" in out + err


def test_it_is_the_result_that_is_measured_and_replay_keeps_more(climbing: Ladder) -> None:
    train_stage(run_of(climbing, "children"), GPT)
    (without,) = forgotten(climbing)
    replaying = with_stage(climbing, "children", replay={"tiny": 0.5})
    train_stage(run_of(replaying, "children", fresh=True), GPT)
    (replayed,) = forgotten(replaying)
    assert replayed["val_loss"] < without["val_loss"] - 0.05
    assert replayed["step"] == read_checkpoint(files_of(replaying, "children").result)["step"]


def test_it_is_the_best_that_is_measured(climbing: Ladder) -> None:
    """A rate that spoils everything: the best weights are those that the stage starts from."""
    spoiled = with_stage(climbing, "children", max_lr=3.0, min_lr=3.0, warmup_steps=0)
    train_stage(run_of(spoiled, "children"), GPT)
    assert read_checkpoint(files_of(spoiled, "children").result)["step"] == 0
    (found,) = forgotten(spoiled)
    assert found["change"] == pytest.approx(0, abs=1e-6)


def test_changed_or_missing_text_of_an_earlier_stage_is_left_out(
    climbing: Ladder, write_toy_tokens: Callable[..., Path]
) -> None:
    children = climbing.stage("children")
    (known,) = earlier_results(climbing, children)
    assert (known.stage, known.corpus, known.val_path.name) == ("tiny", "tiny", "val.bin")
    path = climbing.folder("data") / "val.bin"
    write_toy_tokens(path, n_tokens=250, types=60, seed=99)
    assert list(earlier_results(climbing, children)) == []
    path.unlink()
    train_stage(run_of(climbing, "children"), GPT)
    assert forgotten(climbing) == []
    files_of(climbing).result.write_bytes(b"not a checkpoint")
    assert list(earlier_results(climbing, children)) == []
    files_of(climbing).result.unlink()
    assert list(earlier_results(climbing, children)) == []


def test_the_windows_are_those_that_minutes_chose_for_the_earlier_stage(climbing: Ladder) -> None:
    from storyladder.runtime.checkpoint import save_checkpoint

    path = files_of(climbing).result
    payload = read_checkpoint(path)
    save_checkpoint(path, {**payload, "fitted": {"val_windows": 3}}, keep_previous=False)
    (known,) = earlier_results(climbing, climbing.stage("children"))
    assert known.val_windows == 3


def test_a_corpus_is_compared_once_with_the_stage_nearest_to_this_one(climbing: Ladder) -> None:
    twice = with_stage(climbing, "children", corpus="tiny", max_steps=1)
    train_stage(run_of(twice, "children"), GPT)
    assert [known.stage for known in earlier_results(twice, twice.stage("simple"))] == ["children"]
    assert list(earlier_results(twice, replace(twice.stage("simple"), corpus="tiny"))) == [], "its own"
