"""What counts as a change between a save and a resume."""

from __future__ import annotations

from dataclasses import replace

from stages import payload_of

from storyladder.settings import Ladder
from storyladder.stage.changes import changes_since


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
