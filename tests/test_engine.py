"""The promises of the loop: exact resume, early stopping, hand-over, saves that fail, numbers that go bad."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import running
import torch
from conftest import BOTH_OPTIMIZERS, MUON
from rounding import assert_same_losses
from torch.nn import functional as F

from model import GPT
from storyladder.command_line import StageRun
from storyladder.corpus.token_file import TrainBatches
from storyladder.learning import learner
from storyladder.learning.optimizer import build_optimizer
from storyladder.learning.schedule import lr_at
from storyladder.learning.vocabulary import start_rows_equal
from storyladder.results import StageFiles
from storyladder.runtime.checkpoint import load_checkpoint, previous_of, read_checkpoint, save_checkpoint
from storyladder.runtime.errors import CheckpointError, Interrupted, OutOfMemory, SaveFailed, TrainingFailed, UserError
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder, ModelConfig
from storyladder.stage.loop import train_stage


def run_of(ladder: Ladder, name: str = "tiny", **flags: Any) -> StageRun:
    flags.setdefault("precision", running.PRECISION)
    return StageRun(ladder=ladder, stage=ladder.stage(name), device="cpu", **flags)


def with_stage(ladder: Ladder, name: str = "tiny", **changes: Any) -> Ladder:
    stages = tuple(replace(stage, **changes) if stage.name == name else stage for stage in ladder.stages)
    return replace(ladder, stages=stages)


class SignalAt:
    """Builds models that send this process a real signal at the n-th forward of training, or of evaluation."""

    def __init__(self, n: int, *, training: bool = True, number: int = signal.SIGTERM) -> None:
        self.left = n
        self.training = training
        self.number = number

    def __call__(self, config: ModelConfig) -> GPT:
        outer = self

        class Counted(GPT):
            def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
                if self.training == outer.training:
                    outer.left -= 1
                    if outer.left == 0:
                        os.kill(os.getpid(), outer.number)
                return super().hidden(idx_BT, cache)

        return Counted(config)


MICROS = 2  # forwards in a step of the toy stages
BATCHES_OF_EVALUATION = 9  # 15 whole windows by twos, and the rest of the file


def interrupt_in_step(ladder: Ladder, step: int, name: str = "tiny", **flags: Any) -> None:
    """Run the stage until a signal arrives in the middle of `step` (counted from where this run starts)."""
    with pytest.raises(Interrupted):
        train_stage(run_of(ladder, name, **flags), SignalAt(MICROS * step + 2))


def plain_state(path: Path) -> dict[str, Any]:
    """A checkpoint without what the clock wrote into it."""
    payload = read_checkpoint(path)
    payload.get("progress", {}).pop("train_seconds", None)
    for key in ("train_seconds", "digest"):
        payload.pop(key, None)
    return payload


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, tensors and plain values."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    else:
        assert a == b, where


def plain_record(path: Path) -> list[dict[str, Any]]:
    """What was measured, without times and speeds."""
    clocked = {"time", "tokens_per_s", "train_seconds", "peak_memory"}
    return [
        {key: value for key, value in record.items() if key not in clocked}
        for record in read_records(path)
        if record["event"] != "start"
    ]


def losses_of(ladder: Ladder, event: str = "train", loss: str = "train_loss") -> list[float]:
    """Of stage 1, as recorded."""
    records = read_records(StageFiles.of(ladder, ladder.stage("tiny")).record)
    return [record[loss] for record in records if record["event"] == event]


def elsewhere(ladder: Ladder, tmp_path: Path, name: str) -> Ladder:
    """The same ladder and data under another root."""
    root = tmp_path / name
    (root / "data").mkdir(parents=True)
    for path in ladder.folder("data").iterdir():
        (root / "data" / path.name).write_bytes(path.read_bytes())
    return replace(ladder, paths=replace(ladder.paths, root=str(root)))


# --- exact resume -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interruptions", "changes"),
    [([0], {}), ([1], {}), ([2], {}), ([3], {}), ([1, 1, 1], {}), ([4], {}), ([0], MUON), ([1, 1, 1], MUON)],
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
    done = read_checkpoint(StageFiles.of(parts, parts.stage("tiny")).resume)["progress"]["step"]
    interrupt_in_step(parts, 12 - done)
    files = [StageFiles.of(ladder, ladder.stage("tiny")) for ladder in (whole, parts)]
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
    resume = StageFiles.of(parts, parts.stage("tiny")).resume
    assert read_checkpoint(resume)["progress"] | {"train_seconds": 0} == {
        **read_checkpoint(resume)["progress"],
        "step": 3,
        "evaluated_at": 0,
        "bad_evals": 0,
        "train_seconds": 0,
    }
    train_stage(run_of(parts), GPT)
    results = [StageFiles.of(ladder, ladder.stage("tiny")) for ladder in (whole, parts)]
    assert_equal(plain_state(results[0].result), plain_state(results[1].result))
    assert plain_record(results[0].record) == plain_record(results[1].record)


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
    files = [StageFiles.of(ladder, ladder.stage("tiny")) for ladder in (whole, killed)]
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
    files = [StageFiles.of(each, each.stage("tiny")) for each in (whole, killed)]
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


def test_a_resumed_stage_goes_on_with_the_generation_before_when_the_newest_is_damaged(
    toy_data: Ladder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = elsewhere(toy_data, tmp_path, "whole"), elsewhere(toy_data, tmp_path, "damaged")
    train_stage(run_of(whole), GPT)
    interrupt_in_step(damaged, 4)
    files = [StageFiles.of(ladder, ladder.stage("tiny")) for ladder in (whole, damaged)]
    assert read_checkpoint(previous_of(files[1].resume))["progress"]["step"] == 4
    files[1].resume.write_bytes(files[1].resume.read_bytes()[:-1000])
    train_stage(run_of(damaged), GPT)
    said = capsys.readouterr().err
    assert "damaged" in said and ".corrupt" in said and "step 4" in said
    assert_equal(plain_state(files[0].result), plain_state(files[1].result))


def test_when_all_resume_states_are_damaged_it_stops_and_never_starts_over_silently(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 4)
    files = StageFiles.of(toy_data, toy_data.stage("tiny"))
    for path in (files.resume, previous_of(files.resume)):
        path.write_bytes(path.read_bytes()[:-1000])
    for said in ("damaged.*--fresh", "corrupt.*is gone.*--fresh"):
        with pytest.raises(CheckpointError, match=said):
            train_stage(run_of(toy_data), GPT)


# --- early stopping ---------------------------------------------------------------------------------------------------


def never_improving(ladder: Ladder, patience: int) -> Ladder:
    """A rate so small that float32 weights do not move: every evaluation ties with the first."""
    return with_stage(
        ladder, max_steps=60, max_lr=1e-12, min_lr=0.0, weight_decay=0.0, patience=patience, eval_interval=2
    )


def test_it_stops_after_patience_evaluations_without_improvement_and_keeps_the_best(toy_data: Ladder) -> None:
    ladder = never_improving(toy_data, patience=3)
    train_stage(run_of(ladder), GPT)
    files = StageFiles.of(ladder, ladder.stage("tiny"))
    evaluations = [record for record in read_records(files.record) if record["event"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [0, 2, 4, 6]
    assert [record["best"] for record in evaluations] == [True, False, False, False]
    assert read_checkpoint(files.result)["step"] == 0


@pytest.mark.parametrize("step", [1, 3, 4])
def test_patience_survives_an_interruption_and_no_evaluation_counts_twice(toy_data: Ladder, step: int) -> None:
    """A signal in step 1 or 3 is obeyed before the evaluation that is due next, one in step 4 after one."""
    ladder = never_improving(toy_data, patience=3)
    interrupt_in_step(ladder, step)
    progress = read_checkpoint(StageFiles.of(ladder, ladder.stage("tiny")).resume)["progress"]
    assert progress["bad_evals"] == step // 2
    train_stage(run_of(ladder), GPT)
    record = read_records(StageFiles.of(ladder, ladder.stage("tiny")).record)
    assert [entry["step"] for entry in record if entry["event"] == "evaluation"] == [0, 2, 4, 6]


def test_the_result_holds_the_best_weights_and_not_the_last(toy_data: Ladder) -> None:
    """A rate that wrecks the model late: the warm-up ends at a rate far too high."""
    ladder = with_stage(toy_data, max_steps=12, warmup_steps=11, max_lr=5.0, min_lr=5.0, eval_interval=1)
    train_stage(run_of(ladder), GPT)
    files = StageFiles.of(ladder, ladder.stage("tiny"))
    losses = {
        record["step"]: record["val_loss"] for record in read_records(files.record) if record["event"] == "evaluation"
    }
    result = read_checkpoint(files.result)
    assert result["val_loss"] == min(losses.values()) < losses[12]
    assert result["step"] == min(losses, key=losses.__getitem__)


# --- the ladder -------------------------------------------------------------------------------------------------------


def test_the_next_stage_starts_from_the_result_with_a_fresh_optimizer(toy_data: Ladder) -> None:
    """The result is marked first: in a short run the best weights are the last, and nobody would see a mix-up."""
    train_stage(run_of(toy_data, "tiny"), GPT)
    tiny = StageFiles.of(toy_data, toy_data.stage("tiny"))
    marked = read_checkpoint(tiny.result)
    marked["model"] = {name: tensor + 1.0 for name, tensor in marked["model"].items()}
    save_checkpoint(tiny.result, marked, keep_previous=False)
    ladder = with_stage(toy_data, "children", max_lr=1e-12, min_lr=0.0, weight_decay=0.0, max_steps=3)
    interrupt_in_step(ladder, 0, "children")
    state = read_checkpoint(StageFiles.of(ladder, ladder.stage("children")).resume)
    assert_equal(state["model"], marked["model"])
    assert state["optimizer"]["updates"] == 1
    assert [stage["name"] for stage in state["settings"]["stages"]] == ["tiny", "children"]


def test_tokens_seen_by_earlier_stages_keep_rows_of_their_own(toy_data: Ladder) -> None:
    for name in ("tiny", "children", "simple"):
        train_stage(run_of(toy_data, name), GPT)
    seen = [
        int(read_checkpoint(StageFiles.of(toy_data, stage).result)["seen_tokens"].sum()) for stage in toy_data.stages
    ]
    assert seen[0] < seen[1] < seen[2] < 200


def test_tokens_that_only_earlier_stages_saw_are_not_forgotten(
    toy_data: Ladder, write_toy_tokens: Callable[..., Path]
) -> None:
    """The text of stage 2 uses a third of the types of stage 1."""
    write_toy_tokens(toy_data.folder("data") / "train_ch.bin", types=20)
    write_toy_tokens(toy_data.folder("data") / "val_ch.bin", types=20, n_tokens=250)
    for name in ("tiny", "children"):
        train_stage(run_of(toy_data, name), GPT)
    tiny, children = (
        read_checkpoint(StageFiles.of(toy_data, toy_data.stage(name)).result)["seen_tokens"]
        for name in ("tiny", "children")
    )
    assert torch.equal(tiny, children) and int(tiny.sum()) == 61


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
    a, b = (read_checkpoint(StageFiles.of(ladder, ladder.stage("tiny")).result)["model"] for ladder in ladders)
    if each_precision == "fp32":
        for name, tensor in a.items():
            torch.testing.assert_close(tensor, b[name], atol=2e-3, rtol=0)


def test_a_stage_without_its_predecessor_names_the_command_to_run_first(toy_data: Ladder) -> None:
    with pytest.raises(CheckpointError, match=r"has not been trained; run python train_tiny\.py first"):
        train_stage(run_of(toy_data, "children"), GPT)
    interrupt_in_step(toy_data, 4)
    with pytest.raises(CheckpointError, match="is not finished"):
        train_stage(run_of(toy_data, "children"), GPT)


def test_a_finished_stage_says_so_and_changes_nothing(toy_data: Ladder, capsys: pytest.CaptureFixture[str]) -> None:
    train_stage(run_of(toy_data), GPT)
    result = StageFiles.of(toy_data, toy_data.stage("tiny")).result
    before = result.read_bytes()
    capsys.readouterr()
    train_stage(run_of(toy_data), GPT)
    assert "is finished" in capsys.readouterr().out
    assert result.read_bytes() == before


def test_fresh_starts_over_and_keeps_the_old_result_aside(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), GPT)
    result = StageFiles.of(toy_data, toy_data.stage("tiny")).result
    before = result.read_bytes()
    train_stage(run_of(toy_data, fresh=True), GPT)
    aside = list(result.parent.glob(f"{result.stem}.before-*.pt"))
    assert [path.read_bytes() for path in aside] == [before]
    assert_equal(plain_state(result), plain_state(aside[0]))


def test_fresh_with_bad_data_leaves_the_old_result_where_it_is(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), GPT)
    result = StageFiles.of(toy_data, toy_data.stage("tiny")).result
    (toy_data.folder("data") / "train.bin").write_bytes(b"xx")
    with pytest.raises(UserError, match="prepare_data"):
        train_stage(run_of(toy_data, fresh=True), GPT)
    assert result.exists()


# --- changes between save and resume ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("theirs", "ours"), [({}, MUON), (MUON, {})], ids=["to muon", "to adamw"])
def test_a_resume_state_of_another_optimizer_is_refused_and_a_result_is_not(
    toy_data: Ladder, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    before, now = with_stage(toy_data, **theirs), with_stage(toy_data, **ours)
    interrupt_in_step(before, 1)
    old, new = before.stage("tiny").optimizer, now.stage("tiny").optimizer
    words = rf"tiny_resume.pt holds the state of optimizer '{old}', which '{new}' cannot .* set optimizer='{old}'"
    for accept in (False, True):
        with pytest.raises(CheckpointError, match=words):
            train_stage(run_of(now, accept_changes=accept), GPT)
    train_stage(run_of(before), GPT)
    train_stage(run_of(with_stage(now, "children", **ours), "children"), GPT)


def test_a_checkpoint_from_before_there_was_a_choice_of_optimizers_goes_on(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_in_step(toy_data, 1)
    resume = StageFiles.of(toy_data, toy_data.stage("tiny")).resume
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


def test_a_resumed_stage_keeps_the_micro_batch_that_it_began_with(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the memory of the day would suggest: the draws of dropout follow the micro-batches."""
    ladder = with_stage(toy_data, micro_batch_size=None)
    interrupt_in_step(ladder, 1)
    resume = StageFiles.of(ladder, ladder.stage("tiny")).resume
    assert read_checkpoint(resume)["progress"]["micro_batch_size"] == 4
    monkeypatch.setattr("storyladder.learning.memory._CPU_TOKENS", 16)  # would choose 1 now
    interrupt_in_step(ladder, 0)
    assert read_checkpoint(resume)["progress"]["micro_batch_size"] == 4


def test_a_resumed_stage_keeps_the_precision_that_it_began_in(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the machine of the day would choose: the losses would not be those of one run."""
    began, other = ("bf16", {}) if running.PRECISION == "bf16" else ("fp32", {"amx_bf16": True})
    interrupt_in_step(toy_data, 1, precision=began)
    resume = StageFiles.of(toy_data, toy_data.stage("tiny")).resume
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: other)
    interrupt_in_step(toy_data, 0, precision="auto")
    assert f"{began} because the stage began in it" in capsys.readouterr().out
    assert read_checkpoint(resume)["progress"]["precision"] == began
    records = read_records(StageFiles.of(toy_data, toy_data.stage("tiny")).record)
    assert {record["precision"] for record in records if record["event"] == "start"} == {began}


def test_another_precision_is_a_change_refused_or_accepted_by_flag(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 1, precision="fp32")
    with pytest.raises(
        UserError, match=r"--precision was fp32 and is bf16\. Undo that, or continue anyway with --accept-"
    ):
        train_stage(run_of(toy_data, precision="bf16"), GPT)
    interrupt_in_step(toy_data, 1, precision="bf16", accept_changes=True)
    resume = StageFiles.of(toy_data, toy_data.stage("tiny")).resume
    assert read_checkpoint(resume)["progress"]["precision"] == "bf16"


def test_a_precision_that_this_machine_lacks_is_refused_or_replaced_by_flag(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    interrupt_in_step(toy_data, 1, precision="fp32")
    resume = StageFiles.of(toy_data, toy_data.stage("tiny")).resume
    payload = read_checkpoint(resume)
    save_checkpoint(resume, {**payload, "progress": payload["progress"] | {"precision": "fp16"}}, keep_previous=False)
    with pytest.raises(UserError, match=r"began in fp16, but fp16 does not .* try --precision fp32 --accept-changes$"):
        train_stage(run_of(toy_data, precision="auto"), GPT)
    interrupt_in_step(toy_data, 0, precision="auto", accept_changes=True)
    assert read_checkpoint(resume)["progress"]["precision"] == "fp32"


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
    progress = read_checkpoint(StageFiles.of(ladder, ladder.stage("tiny")).resume)["progress"]
    assert (progress["rollbacks"], progress["precision"], progress["threads"]) == (1, "bf16", 2)


def test_a_resumed_stage_takes_the_threads_that_it_began_with(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the cores of the day: a sum's last digit depends on them. Only who asks for other threads gets them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    resume = StageFiles.of(toy_data, toy_data.stage("tiny")).resume
    interrupt_in_step(toy_data, 0, threads=2)
    for flags, stage, expected in (({}, {}, 2), ({"threads": 3}, {}, 3), ({}, {"threads": 2}, 2)):
        torch.set_num_threads(1)
        capsys.readouterr()
        interrupt_in_step(with_stage(toy_data, **stage), 0, **flags)
        assert read_checkpoint(resume)["progress"]["threads"] == torch.get_num_threads() == expected
        said = capsys.readouterr()
        assert f"device cpu ({expected} threads)" in said.out
        assert ("the last digits of losses may differ" in said.err) == bool(flags or stage)


def test_threads_follow_omp_num_threads_and_else_what_the_model_gains(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr("storyladder.runtime.machine.usable_cores", lambda: 2)
    for name, expected in (("OMP_NUM_THREADS", 2), (None, 1)):
        torch.set_num_threads(2)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if name:
            monkeypatch.setenv(name, "2")
        ladder = with_stage(toy_data, max_steps=3, warmup_steps=1)
        train_stage(run_of(ladder, fresh=True), GPT)
        start = read_records(StageFiles.of(ladder, ladder.stage("tiny")).record)[0]
        assert start["threads"] == torch.get_num_threads() == expected


def test_losses_on_other_validation_windows_are_not_compared(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_in_step(toy_data, 4)
    files = StageFiles.of(toy_data, toy_data.stage("tiny"))
    fewer = with_stage(toy_data, val_windows=3)
    with pytest.raises(UserError, match="val_windows was None and is 3"):
        train_stage(run_of(fewer), GPT)
    old_best = files.best.read_bytes()
    train_stage(run_of(fewer, accept_changes=True), GPT)
    assert "the best loss was reset" in capsys.readouterr().err
    assert files.best.with_suffix(".other_windows.pt").read_bytes() == old_best
    assert read_checkpoint(files.result)["step"] == 6


def test_minutes_on_a_resumed_stage_keep_its_validation_windows(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=10**6, save_interval=10**5)
    interrupt_in_step(ladder, 1)
    with pytest.raises(Interrupted):
        train_stage(run_of(ladder, minutes=0.5), SignalAt(MICROS * 10 + 2))
    progress = read_checkpoint(StageFiles.of(ladder, ladder.stage("tiny")).resume)["progress"]
    assert progress["fitted"]["val_windows"] is None and progress["evaluated_at"] >= 0


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_result_is_written_anew_from_the_best_weights(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told twice: the second call must not take the stage for one that never was."""
    train_stage(run_of(toy_data), GPT)
    files = StageFiles.of(toy_data, toy_data.stage("tiny"))
    good, best = plain_state(files.result), files.best.read_bytes()
    files.result.write_bytes(files.result.read_bytes()[:-500])
    for said in ("was rewritten", "is finished"):
        train_stage(run_of(toy_data), GPT)
        heard = capsys.readouterr()
        assert said in heard.err + heard.out
    assert_equal(plain_state(files.result), good)
    assert files.best.read_bytes() == best


def test_best_weights_without_result_or_resume_state_are_never_trained_over(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), GPT)
    files = StageFiles.of(toy_data, toy_data.stage("tiny"))
    files.result.unlink()
    best = files.best.read_bytes()
    with pytest.raises(CheckpointError, match="--fresh starts the stage over"):
        train_stage(run_of(toy_data), GPT)
    assert files.best.read_bytes() == best


@pytest.mark.parametrize("max_steps", [3, 4])
def test_best_weights_that_the_disk_refused_are_kept_and_saved_at_the_next_chance(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch, max_steps: int
) -> None:
    """The save at step 3 fails. Step 4 is worse than that; without step 4 the end of the stage is the next chance."""
    files = StageFiles.of(toy_data, toy_data.stage("tiny"))
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
    files = [StageFiles.of(ladder, ladder.stage("tiny")) for ladder in ladders]
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
    files = StageFiles.of(ladder, ladder.stage("tiny"))
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
    files = StageFiles.of(ladder, ladder.stage("tiny"))

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


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_in_the_place_of_the_result_is_put_aside(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str], full: bool
) -> None:
    train_stage(run_of(toy_data), GPT)
    files = StageFiles.of(toy_data, toy_data.stage("tiny"))
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


def test_a_resume_state_of_another_stage_is_refused(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 1)
    resume = StageFiles.of(toy_data, toy_data.stage("tiny")).resume
    save_checkpoint(resume, {**read_checkpoint(resume), "stage": "children"}, keep_previous=False)
    with pytest.raises(CheckpointError, match=r"belongs to stage 'children', not to tiny"):
        train_stage(run_of(toy_data, accept_changes=True), GPT)


def test_a_resume_state_of_another_version_is_refused(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 1)
    resume = StageFiles.of(toy_data, toy_data.stage("tiny")).resume
    payload = read_checkpoint(resume)
    save_checkpoint(resume, {**payload, "progress": payload["progress"] | {"moon": 1}}, keep_previous=False)
    with pytest.raises(CheckpointError, match=r"does not tell the stage's progress .*moon"):
        train_stage(run_of(toy_data), GPT)


def test_changed_data_are_refused(toy_data: Ladder, write_toy_tokens: Callable[..., Path]) -> None:
    interrupt_in_step(toy_data, 1)
    write_toy_tokens(toy_data.folder("data") / "train.bin", seed=99)
    with pytest.raises(UserError, match=r"content of train.bin changed"):
        train_stage(run_of(toy_data), GPT)


def test_a_model_of_another_shape_is_refused_with_both_sizes(toy_data: Ladder) -> None:
    interrupt_in_step(toy_data, 1)
    wider = replace(toy_data, model=replace(toy_data.model, n_embd=32))
    with pytest.raises(CheckpointError, match=r"n_embd is 16 there and 32 in config.py"):
        train_stage(run_of(wider), GPT)


# --- saves that fail, numbers that go bad -----------------------------------------------------------------------------


def test_a_failed_save_is_said_and_training_goes_on(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full for the second save only."""
    files = StageFiles.of(toy_data, toy_data.stage("tiny"))
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
    events = [record["event"] for record in read_records(StageFiles.of(toy_data, toy_data.stage("tiny")).record)]
    assert events.count("save failed") == 1 and events[-1] == "finished" and packed > 2


def test_three_failed_saves_in_a_row_stop_with_status_75_and_the_last_good_file(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, save_interval=1, eval_interval=100, max_steps=50)
    files = StageFiles.of(ladder, ladder.stage("tiny"))
    partial = files.resume.with_suffix(".partial")
    partial.mkdir(parents=True)
    with pytest.raises(
        SaveFailed, match=r"tiny_best\.pt.*run python train_tiny\.py --device cpu --fresh again"
    ) as stop:
        train_stage(run_of(ladder), GPT)
    assert stop.value.exit_status == 75


class Poisoned(GPT):
    """A network whose loss is NaN in some forwards of training."""

    poisoned: ClassVar[set[int]] = set()
    count = 0

    def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
        x = super().hidden(idx_BT, cache)
        if self.training:
            type(self).count += 1
            if type(self).count in self.poisoned:
                return x * float("nan")
        return x


def poisoned(*forwards: int) -> type[GPT]:
    return type("PoisonedHere", (Poisoned,), {"poisoned": set(forwards), "count": 0})


def test_a_step_that_is_not_finite_moves_nothing_is_counted_and_recorded_as_what_it_was(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), poisoned(MICROS * 2 + 1))
    files = StageFiles.of(toy_data, toy_data.stage("tiny"))
    skipped = [record for record in read_records(files.record) if record["event"] == "skipped"]
    assert [(record["step"], record["train_loss"]) for record in skipped] == [(3, "nan")]
    result = read_checkpoint(files.result)
    assert all(tensor.isfinite().all() for tensor in result["model"].values())


def test_many_bad_steps_in_a_row_go_back_to_the_last_good_state_and_leave_those_batches_out(toy_data: Ladder) -> None:
    """Steps 4 to 23 are bad; the state of step 4 is the last good one."""
    ladder = with_stage(toy_data, max_steps=30)
    train_stage(run_of(ladder), poisoned(*range(MICROS * 4 + 1, MICROS * 24 + 1)))
    records = read_records(StageFiles.of(ladder, ladder.stage("tiny")).record)
    (back,) = [record for record in records if record["event"] == "rollback"]
    assert (back["step"], back["from_step"], back["batches_left_out"]) == (4, 24, 20)
    assert [record["step"] for record in records if record["event"] == "train"] == list(range(1, 31))


@BOTH_OPTIMIZERS
def test_a_rollback_to_the_very_start_leaves_no_moments_and_keeps_the_best_on_disk(
    toy_data: Ladder, changes: dict[str, Any]
) -> None:
    """The state of step 0 is the last good one; the evaluation at step 3 has left better weights than those."""
    ladder = with_stage(toy_data, max_steps=26, save_interval=100, **changes)
    files = StageFiles.of(ladder, ladder.stage("tiny"))
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
    records = read_records(StageFiles.of(ladder, ladder.stage("tiny")).record)
    assert [record["why"] for record in records if record["event"] == "rollback"] == ["weights were not finite"]
    result = read_checkpoint(StageFiles.of(ladder, ladder.stage("tiny")).result)
    assert all(tensor.isfinite().all() for tensor in result["model"].values())


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
    records = read_records(StageFiles.of(short, short.stage("tiny")).record)
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
    assert read_checkpoint(StageFiles.of(ladder, ladder.stage("tiny")).resume)["progress"]["step"] == 3


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
    resume = StageFiles.of(toy_data, toy_data.stage("tiny")).resume
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
    records = read_records(StageFiles.of(ladder, ladder.stage("tiny")).record)
    spikes = [record for record in records if record["event"] == "spike"]
    assert [spike["step"] for spike in spikes] == [56] and spikes[0]["z"] > 6


# --- planning and fitting ---------------------------------------------------------------------------------------------


def test_a_plan_names_what_is_needed_and_writes_nothing(
    toy_data: Ladder, capsys: pytest.CaptureFixture[str], each_precision: str
) -> None:
    root = Path(toy_data.paths.root)
    train_file = toy_data.folder("data") / "train.bin"
    before = {path for path in root.rglob("*") if not path.name.startswith(".")}
    train_stage(run_of(toy_data, plan=True), GPT)
    said = capsys.readouterr().out
    for word in ("device cpu", each_precision, "parameters", "tokens/s", "6 steps", "memory", "disk", "random weights"):
        assert word in said
    assert {path for path in root.rglob("*") if not path.name.startswith(".")} == before
    assert train_file.exists()


def test_minutes_fit_the_schedule_to_the_time_and_the_rate_comes_down_to_its_end(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=10**6, eval_interval=10**5, save_interval=10**5)
    train_stage(run_of(ladder, minutes=0.1), GPT)
    records = read_records(StageFiles.of(ladder, ladder.stage("tiny")).record)
    trained = [record for record in records if record["event"] == "train"]
    assert records[-1]["event"] == "finished"
    assert trained[-1]["step"] < 10**5
    assert trained[-1]["lr"] < 0.5 * ladder.stage("tiny").max_lr
    assert records[-1]["time"] - records[0]["time"] < 12  # 5 s were asked for, on a machine that may be busy


def test_a_stage_that_was_fitted_to_minutes_keeps_its_schedule_when_it_is_resumed(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=10**6, eval_interval=10**5, save_interval=10**5)
    interrupt_in_step(ladder, 9, minutes=0.1)  # of which up to 8 measure the speed
    fitted = read_checkpoint(StageFiles.of(ladder, ladder.stage("tiny")).resume)["progress"]["fitted"]
    assert 2 <= fitted["max_steps"] < 10**5 and fitted["val_windows"] <= 16
    train_stage(run_of(ladder), GPT)
    records = read_records(StageFiles.of(ladder, ladder.stage("tiny")).record)
    assert records[-1]["event"] == "finished" and records[-1]["step"] == fitted["max_steps"]


def test_the_order_of_the_loop_is_save_evaluate_leave_train(toy_data: Ladder) -> None:
    """At step 6 of 8 a save and an evaluation are due; a kill inside that evaluation must find the save done."""
    ladder = with_stage(toy_data, max_steps=8, eval_interval=6, save_interval=6)
    child = os.fork()
    if child == 0:
        train_stage(run_of(ladder), SignalAt(BATCHES_OF_EVALUATION + 1, training=False, number=signal.SIGKILL))
        os._exit(0)
    os.waitpid(child, 0)
    loaded = load_checkpoint(StageFiles.of(ladder, ladder.stage("tiny")).resume)
    assert loaded is not None and loaded.payload["progress"]["step"] == 6
    assert loaded.payload["progress"]["evaluated_at"] == 0


def test_the_record_holds_everything_that_was_measured(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), GPT)
    record = StageFiles.of(toy_data, toy_data.stage("tiny")).record
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    assert (lines[0]["event"], lines[-1]["event"]) == ("start", "finished")
    assert [line["step"] for line in lines if line["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["event"] == "evaluation"] == [0, 3, 6]
    assert set(lines[1]) >= {"val_loss", "perplexity", "bits_per_byte", "tokens"}
    assert lines[0]["settings"]["stages"][0]["max_lr"] == toy_data.stage("tiny").max_lr
