"""A finished stage is compared with what is asked now; a stage knows which weights it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stages import assert_equal, files_of, interrupt_in_step, plain_state, run_of, with_stage

from model import GPT
from storyladder.results import StageFiles, broken_links, load_result, model_digest
from storyladder.runtime.checkpoint import read_checkpoint, save_checkpoint
from storyladder.runtime.errors import SaveFailed, UserError
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage
from storyladder.telling.teller import load_teller

CPU = torch.device("cpu")
Heard = pytest.CaptureFixture[str]


def train(ladder: Ladder, *names: str, **flags: Any) -> None:
    for name in names:
        train_stage(run_of(ladder, name, **flags), GPT)


def result_of(ladder: Ladder, name: str) -> Path:
    return StageFiles.of(ladder, ladder.stage(name)).result


def as_an_older_version_left_it(path: Path) -> None:
    """Without digests, and of a time when a stage, its corpus and its script were one word."""
    payload = read_checkpoint(path)
    for key in ("parent_digest", "model_digest", "digest"):
        payload.pop(key, None)
    del payload["settings"]["tokenizer"]
    for stage in payload["settings"]["stages"]:
        del stage["corpus"], stage["script"]
        stage["train_file"] = "train.bin"
    save_checkpoint(path, payload, keep_previous=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"max_steps": 9}, {"max_steps": 4}, {"max_lr": 5e-3}, {"batch_size": 8}, {"seed": 8}, {"val_windows": 3}]
)
def test_what_is_asked_differently_now_is_refused_with_both_values_and_the_commands(
    toy_data: Ladder, change: dict[str, Any], capsys: Heard
) -> None:
    train(toy_data, "tiny")
    before = result_of(toy_data, "tiny").read_bytes()
    changed = replace(with_stage(toy_data, **change), config_flag="my config.py")
    ((name, value),) = change.items()
    with pytest.raises(UserError) as error:
        train(changed, "tiny")
    again = "python train_tiny.py --config 'my config.py' --device cpu"
    was = getattr(toy_data.stage("tiny"), name)
    assert str(error.value) == (
        f"stage tiny is finished, but was trained differently: {name} was {was} and is {value}. To train it again "
        f"and keep the old result under another name: {again} --fresh; to keep it as it is: {again} --accept-changes"
    )
    capsys.readouterr()
    train(changed, "tiny", accept_changes=True)
    heard = capsys.readouterr()
    assert "is finished" in heard.out
    assert heard.err == f"warning: stage tiny is kept as it was trained, although {name} was {was} and is {value}\n"
    assert result_of(toy_data, "tiny").read_bytes() == before


def test_settings_that_only_say_how_to_run_change_nothing_but_patience_is_told(toy_data: Ladder, capsys: Heard) -> None:
    train(toy_data, "tiny")
    capsys.readouterr()
    train(with_stage(toy_data, save_interval=3, log_interval=2, micro_batch_size=1), "tiny")
    assert capsys.readouterr().err == ""
    train(with_stage(toy_data, patience=9), "tiny")
    assert "although patience was None and is 9" in capsys.readouterr().err


def test_minutes_on_a_finished_stage_are_not_ignored_in_silence(toy_data: Ladder, capsys: Heard) -> None:
    train(toy_data, "tiny")
    capsys.readouterr()
    train(toy_data, "tiny", minutes=2.5)
    heard = capsys.readouterr()
    assert "is finished" in heard.out
    assert heard.err.startswith("--minutes 2.5 has no effect on a finished stage; to train it again in that time: ")
    assert heard.err.endswith("python train_tiny.py --device cpu --fresh --minutes 2.5\n")


def test_new_data_are_told_and_data_that_are_gone_are_not_missed(
    toy_data: Ladder, write_toy_tokens: Callable[..., Path], capsys: Heard
) -> None:
    train(toy_data, "tiny")
    write_toy_tokens(toy_data.folder("data") / "train.bin", seed=99)
    with pytest.raises(UserError, match=r"the content of train\.bin changed"):
        train(toy_data, "tiny")
    for path in toy_data.folder("data").iterdir():
        path.unlink()
    train(toy_data, "tiny")
    assert "is finished" in capsys.readouterr().out


def test_a_setting_that_came_with_a_newer_version_does_not_make_a_result_another_one(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, eps=1e-6)
    train(ladder, "tiny")
    path = result_of(ladder, "tiny")
    payload = read_checkpoint(path)
    del payload["settings"]["stages"][-1]["eps"]
    save_checkpoint(path, payload, keep_previous=False)
    train(ladder, "tiny")


# --- the chain --------------------------------------------------------------------------------------------------------


@pytest.fixture
def retrained(toy_data: Ladder) -> Ladder:
    """Stage 1 trained again, longer, after stage 2."""
    train(toy_data, "tiny", "children")
    longer = with_stage(toy_data, max_steps=9)
    train(longer, "tiny", fresh=True)
    return longer


STALE = "stage children was trained from another result of stage tiny than today's tinystories_28M_final.pt"


def test_stage_2_says_that_it_comes_from_another_stage_1(retrained: Ladder, capsys: Heard) -> None:
    with pytest.raises(UserError, match=rf"{STALE}\. To train .* python train_children\.py --device cpu --fresh"):
        train(retrained, "children")
    capsys.readouterr()
    train(retrained, "children", accept_changes=True)
    assert STALE in capsys.readouterr().err
    train(retrained, "children", fresh=True)
    train(retrained, "children")


@pytest.mark.slow
def test_who_tells_with_it_is_told_with_the_command(retrained: Ladder) -> None:
    assert load_teller(retrained, None, GPT, CPU).notes == [
        f"note: {STALE}; to train it again: python train_children.py --fresh"
    ]
    train(retrained, "children", fresh=True)
    assert load_teller(retrained, None, GPT, CPU).notes == []


@pytest.mark.slow
def test_stage_3_is_warned_of_a_break_two_stages_above(retrained: Ladder, capsys: Heard) -> None:
    train(retrained, "simple")
    assert f"warning: {STALE}; to train it again: python train_children.py --fresh" in capsys.readouterr().err
    assert [note for note in load_teller(retrained, None, GPT, CPU).notes if STALE in note]


@pytest.mark.slow
def test_an_unfinished_stage_2_is_not_continued_on_another_stage_1_unasked(toy_data: Ladder) -> None:
    train(toy_data, "tiny")
    interrupt_in_step(toy_data, 2, "children")
    longer = with_stage(toy_data, max_steps=9)
    train(longer, "tiny", fresh=True)
    with pytest.raises(UserError, match=STALE):
        train(longer, "children")
    train(longer, "children", accept_changes=True)
    result = load_result(longer, longer.stage("children"))
    assert result is not None and [name for name, _ in broken_links(longer, longer.stage("children"), result.payload)]


@pytest.mark.slow
def test_the_same_stage_1_trained_again_breaks_nothing(toy_data: Ladder) -> None:
    """Its weights are the same, bit for bit, though its times are others."""
    train(toy_data, "tiny", "children")
    train(toy_data, "tiny", fresh=True)
    train(toy_data, "children")
    assert load_teller(toy_data, None, GPT, CPU).notes == []


@pytest.mark.slow
def test_checkpoints_of_an_older_version_load_and_are_taken_for_whole(toy_data: Ladder, capsys: Heard) -> None:
    train(toy_data, "tiny", "children")
    recorded = model_digest(read_checkpoint(result_of(toy_data, "tiny")))
    for name in ("tiny", "children"):
        as_an_older_version_left_it(result_of(toy_data, name))
    train(toy_data, "tiny", "children")
    assert capsys.readouterr().out.count("is finished") == 2
    assert model_digest(read_checkpoint(result_of(toy_data, "tiny"))) == recorded
    train(toy_data, "simple")
    assert load_teller(toy_data, None, GPT, CPU).notes == []


def test_a_setting_that_came_into_being_after_a_result_is_no_difference(toy_data: Ladder, capsys: Heard) -> None:
    train(toy_data, "tiny")
    payload = read_checkpoint(result_of(toy_data, "tiny"))
    del payload["settings"]["stages"][-1]["momentum"]
    save_checkpoint(result_of(toy_data, "tiny"), payload, keep_previous=False)
    train(with_stage(toy_data, momentum=0.5), "tiny")
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_the_state_of_an_interrupted_stage_of_an_older_version_goes_on(toy_data: Ladder, capsys: Heard) -> None:
    train(toy_data, "tiny")
    interrupt_in_step(toy_data, 1, "children")
    as_an_older_version_left_it(StageFiles.of(toy_data, toy_data.stage("children")).resume)
    train(toy_data, "children")
    assert "continuing at step 2" in capsys.readouterr().out


def test_a_result_of_an_older_version_is_not_taken_for_one_of_another_corpus(toy_data: Ladder) -> None:
    train(toy_data, "tiny")
    as_an_older_version_left_it(result_of(toy_data, "tiny"))
    with pytest.raises(UserError, match=r"trained differently: corpus was tiny and is children; the content of"):
        train(with_stage(toy_data, corpus="children"), "tiny")


def test_a_stage_1_that_is_gone_or_damaged_leaves_stage_2_alone(toy_data: Ladder) -> None:
    train(toy_data, "tiny", "children")
    result_of(toy_data, "tiny").write_bytes(b"not a checkpoint")
    train(toy_data, "children")
    result_of(toy_data, "tiny").unlink()
    train(toy_data, "children")


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_finished_stage_says_so_and_changes_nothing(toy_data: Ladder, capsys: pytest.CaptureFixture[str]) -> None:
    train_stage(run_of(toy_data), GPT)
    result = files_of(toy_data).result
    before = result.read_bytes()
    capsys.readouterr()
    train_stage(run_of(toy_data), GPT)
    assert "is finished" in capsys.readouterr().out
    assert result.read_bytes() == before


def test_a_damaged_result_is_rewritten_from_the_best_weights(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told twice: the second call must not take the stage for one that never was."""
    train_stage(run_of(toy_data), GPT)
    files = files_of(toy_data)
    good, best = plain_state(files.result), files.best.read_bytes()
    files.result.write_bytes(files.result.read_bytes()[:-500])
    for said in ("was rewritten", "is finished"):
        train_stage(run_of(toy_data), GPT)
        heard = capsys.readouterr()
        assert said in heard.err + heard.out
    assert_equal(plain_state(files.result), good)
    assert files.best.read_bytes() == best


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_in_the_place_of_the_result_is_put_aside(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str], full: bool
) -> None:
    train_stage(run_of(toy_data), GPT)
    files = files_of(toy_data)
    good = plain_state(files.result)
    files.result.unlink()
    files.result.mkdir()
    if full:
        files.result.with_suffix(".partial").mkdir()
        with pytest.raises(SaveFailed, match=r"the weights are safe in .*tiny_best\.pt"):
            train_stage(run_of(toy_data), GPT)
        return
    train_stage(run_of(toy_data), GPT)
    assert "kept as tinystories_28M_final.pt.corrupt" in capsys.readouterr().err
    assert_equal(plain_state(files.result), good)
