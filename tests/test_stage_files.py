"""What a stage keeps: the state's counters, packing with a compact vocabulary, what counts as a change."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BOTH_OPTIMIZERS

from model import GPT
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.vocabulary import CompactVocabulary, start_rows_equal
from storyladder.runtime.checkpoint import previous_of
from storyladder.runtime.errors import CheckpointError
from storyladder.settings import Ladder
from storyladder.stage_files import (
    StageFiles,
    TrainState,
    changes_since,
    check_shapes,
    pack_optimizer,
    pack_weights,
    plain_settings,
    unpack_optimizer,
    unpack_weights,
)


def test_early_stopping_counts_by_scripted_losses() -> None:
    """Improves, ties, worsens, recovers late, NaN: a tie is no improvement, recovery resets, NaN is never best."""
    state = TrainState()
    verdicts = []
    for step, loss in enumerate([3.0, 2.5, 2.5, 2.7, 2.4, float("nan"), 2.4, 2.3]):
        state.step = step
        verdicts.append((state.note_evaluation(loss), state.bad_evals, state.best_step))
    assert verdicts == [
        (True, 0, 0),
        (True, 0, 1),
        (False, 1, 1),
        (False, 2, 1),
        (True, 0, 4),
        (False, 1, 4),
        (False, 2, 4),
        (True, 0, 7),
    ]
    assert state.best_loss == 2.3 and state.evaluated_at == 7


def small_model(ladder: Ladder, vocabulary: CompactVocabulary) -> GPT:
    return GPT(replace(ladder.model, vocab_size=vocabulary.n_rows))


@BOTH_OPTIMIZERS
def test_weights_and_moments_survive_packing_into_the_whole_vocabulary(
    toy_ladder: Ladder, changes: dict[str, Any]
) -> None:
    seen = torch.zeros(toy_ladder.model.vocab_size, dtype=torch.bool)
    seen[[1, 5, 9, 50256]] = True
    vocabulary = CompactVocabulary(seen)
    model = small_model(toy_ladder, vocabulary)
    stage = replace(toy_ladder.stage("tiny"), **changes)
    optimizer = build_optimizer(model, stage)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randint(0, vocabulary.n_rows, (2, 8))).square().mean().backward()
        optimizer.step()
    weights, moments = pack_weights(model, vocabulary), pack_optimizer(model, optimizer, vocabulary)
    assert weights["transformer.wte.weight"].shape == (50257, 16) == moments["exp_avg"]["transformer.wte.weight"].shape
    assert moments["updates"] == 3
    other = small_model(toy_ladder, vocabulary)
    other_optimizer = build_optimizer(other, stage)
    unpack_weights(other, weights, vocabulary)
    unpack_optimizer(other, other_optimizer, moments, vocabulary)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert optimizer.state[a].keys() == other_optimizer.state[b].keys(), name
        assert all(torch.equal(value, other_optimizer.state[b][key]) for key, value in optimizer.state[a].items()), name


def test_a_smaller_compact_vocabulary_unfolds_the_tokens_that_a_later_stage_meets(toy_ladder: Ladder) -> None:
    few = torch.zeros(50257, dtype=torch.bool)
    few[:4] = True
    more = few.clone()
    more[100:110] = True
    weights = GPT(toy_ladder.model).state_dict()
    start_rows_equal(weights["transformer.wte.weight"], few)
    vocabulary = CompactVocabulary(more)
    model = small_model(toy_ladder, vocabulary)
    unpack_weights(model, weights, vocabulary)
    assert torch.equal(pack_weights(model, vocabulary)["transformer.wte.weight"], weights["transformer.wte.weight"])


def payload_of(ladder: Ladder) -> dict[str, object]:
    return {
        "stage": "children",
        "step": 3,
        "val_loss": 1.5,
        "seen_tokens": torch.ones(ladder.model.vocab_size, dtype=torch.uint8),
        "settings": plain_settings(ladder, ladder.stage("children"), []),
        "data": {"train_ch.bin": "a", "val_ch.bin": "b"},
        "model": {"transformer.wte.weight": torch.zeros(ladder.model.vocab_size, ladder.model.n_embd)},
    }


def test_changes_are_named_with_both_values_and_free_settings_are_not(toy_ladder: Ladder) -> None:
    stage = toy_ladder.stage("children")
    same = {"train_ch.bin": "a", "val_ch.bin": "b"}
    assert changes_since(payload_of(toy_ladder), toy_ladder, stage, same) == []
    changed = replace(stage, max_lr=0.5, eval_interval=99, save_interval=1, patience=77)
    assert changes_since(payload_of(toy_ladder), toy_ladder, changed, same | {"val_ch.bin": "c"}) == [
        "max_lr was 0.01 and is 0.5",
        "the content of val_ch.bin changed",
    ]
    calmer = replace(toy_ladder, model=replace(toy_ladder.model, dropout=0.0))
    assert changes_since(payload_of(toy_ladder), calmer, stage, same) == ["dropout was 0.1 and is 0.0"]


def test_what_an_older_version_did_not_save_is_what_it_had_in_effect(toy_ladder: Ladder) -> None:
    """Its stages had the corpus of their name, all of them GPT-2's tokens, and named token files themselves."""
    stage, payload = toy_ladder.stage("children"), payload_of(toy_ladder)
    del payload["settings"]["tokenizer"], payload["settings"]["stages"][-1]["corpus"]
    del payload["settings"]["stages"][-1]["script"]
    payload["settings"]["stages"][-1]["train_file"] = "train_ch.bin"
    same = {"train_ch.bin": "a", "val_ch.bin": "b"}
    assert changes_since(payload, toy_ladder, replace(stage, script="mine.py"), same) == []
    assert changes_since(payload, toy_ladder, replace(stage, corpus="fables"), {"train_fables.bin": "a"}) == [
        "corpus was children and is fables",
        "the content of train_fables.bin changed",
    ]
    other = replace(toy_ladder, tokenizer="bytes")
    assert changes_since(payload, other, stage, same) == ["tokenizer was gpt2 and is bytes"]


def test_settings_stand_behind_those_that_the_ancestors_were_trained_with(toy_ladder: Ladder) -> None:
    settings = plain_settings(toy_ladder, toy_ladder.stage("simple"), [{"name": "tiny", "max_lr": 9.0}])
    assert [stage["name"] for stage in settings["stages"]] == ["tiny", "simple"]
    assert settings["stages"][0]["max_lr"] == 9.0


def test_another_shape_is_refused_with_both_numbers(toy_ladder: Ladder, tmp_path: Path) -> None:
    deeper = replace(toy_ladder.model, n_layer=3)
    with pytest.raises(CheckpointError, match=r"n_layer is 2 there and 3 in config.py"):
        check_shapes(payload_of(toy_ladder), tmp_path / "x.pt", deeper)
    without = {**payload_of(toy_ladder), "model": {}}
    with pytest.raises(CheckpointError, match="lacks the weights"):
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
    with pytest.raises(CheckpointError, match=r"x\.pt (is no checkpoint of a stage|does not say how)") as error:
        check_shapes({**payload_of(toy_ladder), **strange}, tmp_path / "x.pt", toy_ladder.model)
    assert str(error.value).isprintable()


def test_setting_aside_keeps_every_file_under_a_new_name(toy_ladder: Ladder) -> None:
    files = StageFiles.of(toy_ladder, toy_ladder.stage("tiny"))
    files.result.parent.mkdir(parents=True)
    for path in (files.result, files.best, files.resume):
        path.write_bytes(path.name.encode())
    aside = files.set_aside("then")
    assert len(aside) == 3 and not files.result.exists()
    assert {path.read_bytes().decode() for path in aside} == {files.result.name, files.best.name, files.resume.name}


def test_the_result_is_set_aside_last_so_that_a_kill_leaves_a_finished_stage(
    toy_ladder: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = StageFiles.of(toy_ladder, toy_ladder.stage("tiny"))
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
