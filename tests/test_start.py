"""What a stage starts from, and what is refused: other settings, data, shapes, stages, versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MUON
from stages import assert_equal, files_of, interrupt_in_step, payload_of, run_of, with_stage

from model import GPT
from storyladder.runtime.checkpoint import digest_of, previous_of, read_checkpoint, save_checkpoint
from storyladder.runtime.distributed import ALONE
from storyladder.runtime.errors import CheckpointError, UserError
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage
from storyladder.stage.start import Start, find_start
from storyladder.stage.state import TrainState

# --- alone: files in a folder, and nothing trained --------------------------------------------------------------------

DATA = {"train.bin": "a", "val.bin": "b"}


def start_of(ladder: Ladder, name: str = "tiny", data: dict[str, str] | None = None, **flags: Any) -> Start:
    return find_start(run_of(ladder, name, **flags), files_of(ladder, name), data or DATA, ALONE)


def save_resume_state(ladder: Ladder, **progress: Any) -> None:
    state = TrainState(step=3, best_step=0, best_loss=4.0, **progress)
    payload = {**payload_of(ladder, "tiny"), "progress": vars(state), "parent_digest": None}
    save_checkpoint(files_of(ladder).resume, payload, keep_previous=False)


def test_a_stage_that_never_began_starts_from_random_weights(toy_ladder: Ladder) -> None:
    assert start_of(toy_ladder) == Start("starting from random weights", None, TrainState())


def test_a_resume_state_is_continued_unless_asked_to_start_over(toy_ladder: Ladder) -> None:
    save_resume_state(toy_ladder, skipped_steps=2)
    start = start_of(toy_ladder)
    assert start.description == "continuing at step 3 from tiny_resume.pt"
    assert start.payload is not None and start.state == TrainState(**start.payload["progress"])
    assert (start.state.step, start.state.skipped_steps, start.ancestors) == (3, 2, [])
    assert start_of(toy_ladder, fresh=True).payload is None


def test_a_fitted_schedule_is_kept_until_changes_are_accepted(toy_ladder: Ladder) -> None:
    save_resume_state(toy_ladder, fitted={"max_steps": 1234})
    start = start_of(toy_ladder)
    assert start.description.endswith(", with its schedule of 1,234 steps") and start.state.fitted["max_steps"] == 1234
    changed = with_stage(toy_ladder, max_lr=0.5)
    with pytest.raises(UserError, match=r"max_lr was 0.01 and is 0.5"):
        start_of(changed)
    assert start_of(changed, accept_changes=True).state.fitted == {}
    with pytest.raises(UserError, match=r"content of val.bin changed"):
        start_of(toy_ladder, data={**DATA, "val.bin": "c"})


def test_a_plan_leaves_a_damaged_resume_state_where_it_is(toy_ladder: Ladder) -> None:
    save_resume_state(toy_ladder)
    resume = files_of(toy_ladder).resume
    resume.write_bytes(resume.read_bytes()[:-500])
    for flags, left in (({"plan": True}, True), ({}, False)):
        with pytest.raises(CheckpointError, match=r"damaged.*python train_tiny\.py --device cpu --fresh, which"):
            start_of(toy_ladder, **flags)
        assert resume.exists() == left


def test_the_stage_before_gives_weights_settings_and_digest(toy_ladder: Ladder) -> None:
    payload = payload_of(toy_ladder, "tiny")
    save_checkpoint(files_of(toy_ladder).result, payload, keep_previous=False)
    start = start_of(toy_ladder, "children")
    assert start.description == "starting from tinystories_28M_final.pt (step 3, validation loss 1.5000 on tiny)"
    assert start.state == TrainState() and start.ancestors == payload["settings"]["stages"]
    assert start.parent_digest == digest_of(payload["model"])


# --- in a stage -------------------------------------------------------------------------------------------------------


def test_when_all_resume_states_are_damaged_it_stops_and_never_starts_over_silently(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 4)
    files = files_of(toy_data)
    for path in (files.resume, previous_of(files.resume)):
        path.write_bytes(path.read_bytes()[:-1000])
    for said in ("damaged.*--fresh", "corrupt.*is missing.*--fresh"):
        with pytest.raises(CheckpointError, match=said):
            train_stage(run_of(toy_data), GPT)


def test_the_next_stage_starts_from_the_result_with_a_fresh_optimizer(toy_data: Ladder) -> None:
    """The result is marked first: in a short run the best weights are the last, and nobody would see a mix-up."""
    train_stage(run_of(toy_data, "tiny"), GPT)
    tiny = files_of(toy_data)
    marked = read_checkpoint(tiny.result)
    marked["model"] = {name: tensor + 1.0 for name, tensor in marked["model"].items()}
    save_checkpoint(tiny.result, marked, keep_previous=False)
    ladder = with_stage(toy_data, "children", max_lr=1e-12, min_lr=0.0, weight_decay=0.0, max_steps=3)
    interrupt_in_step(ladder, 0, "children")
    state = read_checkpoint(files_of(ladder, "children").resume)
    assert_equal(state["model"], marked["model"])
    assert state["optimizer"]["updates"] == 1
    assert [stage["name"] for stage in state["settings"]["stages"]] == ["tiny", "children"]


def test_a_stage_without_its_predecessor_names_the_command_to_run_first(toy_data: Ladder) -> None:
    with pytest.raises(CheckpointError, match=r"has not been trained; run python train_tiny\.py first"):
        train_stage(run_of(toy_data, "children"), GPT)
    interrupt_in_step(toy_data, 4)
    with pytest.raises(CheckpointError, match="is not finished"):
        train_stage(run_of(toy_data, "children"), GPT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"max_lr": 5e-3}, {"batch_size": 8}, {"seed": 8}, {"max_steps": 9}, {"beta2": 0.9}, {"warmup_steps": 1}]
)
def test_a_changed_setting_is_refused_with_both_values_or_accepted_by_flag(
    toy_data: Ladder, change: dict[str, Any]
) -> None:
    interrupt_in_step(toy_data, 1)
    changed = with_stage(toy_data, **change)
    (name, value), *_ = change.items()
    with pytest.raises(UserError, match=rf"{name} was .* and is {value}"):
        train_stage(run_of(changed), GPT)
    train_stage(run_of(changed, accept_changes=True), GPT)


@pytest.mark.slow
@pytest.mark.parametrize(("theirs", "ours"), [({}, MUON), (MUON, {})], ids=["to muon", "to adamw"])
def test_a_resume_state_of_another_optimizer_is_refused_and_a_result_is_not(
    toy_data: Ladder, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    before, now = with_stage(toy_data, **theirs), with_stage(toy_data, **ours)
    interrupt_in_step(before, 1)
    old, new = before.stage("tiny").optimizer, now.stage("tiny").optimizer
    words = rf"resume.pt contains the state of optimizer '{old}', from which '{new}' cannot .* set optimizer='{old}'"
    for accept in (False, True):
        with pytest.raises(CheckpointError, match=words):
            train_stage(run_of(now, accept_changes=accept), GPT)
    train_stage(run_of(before), GPT)
    train_stage(run_of(with_stage(now, "children", **ours), "children"), GPT)


def test_a_checkpoint_from_before_there_was_a_choice_of_optimizers_goes_on(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_in_step(toy_data, 1)
    resume = files_of(toy_data).resume
    payload = read_checkpoint(resume)
    for name in ("optimizer", "schedule", "wte_lr", "wpe_lr", "vector_lr", "lr_horizon", "momentum"):
        del payload["settings"]["stages"][-1][name]
    save_checkpoint(resume, payload, keep_previous=False)
    train_stage(run_of(toy_data), GPT)
    assert "continuing at step 2" in capsys.readouterr().out


def test_settings_that_only_say_how_to_run_may_change(toy_data: Ladder, capsys: pytest.CaptureFixture[str]) -> None:
    interrupt_in_step(toy_data, 1)
    train_stage(run_of(with_stage(toy_data, save_interval=3, log_interval=2, micro_batch_size=1, patience=9)), GPT)
    assert "continuing at step 2" in capsys.readouterr().out


def test_another_precision_is_a_change_refused_or_accepted_by_flag(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 1, precision="fp32")
    with pytest.raises(
        UserError, match=r"--precision was fp32 and is bf16\. Undo the change, or continue anyway with --accept-"
    ):
        train_stage(run_of(toy_data, precision="bf16"), GPT)
    interrupt_in_step(toy_data, 1, precision="bf16", accept_changes=True)
    resume = files_of(toy_data).resume
    assert read_checkpoint(resume)["progress"]["precision"] == "bf16"


def test_best_weights_without_result_or_resume_state_are_never_trained_over(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), GPT)
    files = files_of(toy_data)
    files.result.unlink()
    best = files.best.read_bytes()
    with pytest.raises(CheckpointError, match=r"start the stage over with .*--fresh"):
        train_stage(run_of(toy_data), GPT)
    assert files.best.read_bytes() == best


def test_a_resume_state_of_another_stage_is_refused(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 1)
    resume = files_of(toy_data).resume
    save_checkpoint(resume, {**read_checkpoint(resume), "stage": "children"}, keep_previous=False)
    with pytest.raises(CheckpointError, match=r"belongs to stage 'children', not to tiny"):
        train_stage(run_of(toy_data, accept_changes=True), GPT)


def test_a_resume_state_of_another_version_is_refused(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 1)
    resume = files_of(toy_data).resume
    payload = read_checkpoint(resume)
    save_checkpoint(resume, {**payload, "progress": payload["progress"] | {"moon": 1}}, keep_previous=False)
    with pytest.raises(CheckpointError, match=r"has no valid progress .*moon"):
        train_stage(run_of(toy_data), GPT)


def test_changed_data_are_refused(toy_data: Ladder, write_toy_tokens: Callable[..., Path]) -> None:
    interrupt_in_step(toy_data, 1)
    write_toy_tokens(toy_data.folder("data") / "train.bin", seed=99)
    with pytest.raises(UserError, match=r"content of train.bin changed"):
        train_stage(run_of(toy_data), GPT)


def test_a_model_of_another_shape_is_refused_with_both_sizes(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 1)
    wider = replace(toy_data, model=replace(toy_data.model, n_embd=32))
    with pytest.raises(CheckpointError, match=r"n_embd is 16 in the file and 32 in config.py"):
        train_stage(run_of(wider), GPT)
