"""What a stage is set up with, and what a resumed one keeps: vocabulary, micro-batch, precision, threads, shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import running
import torch
from stages import files_of, interrupt_in_step, run_of, with_stage

from model import GPT
from storyladder.results import StageFiles
from storyladder.runtime.checkpoint import read_checkpoint, save_checkpoint
from storyladder.runtime.distributed import Group
from storyladder.runtime.errors import DataError, SettingsError, UserError
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage
from storyladder.stage.setup import check_shares


@pytest.mark.slow
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


def test_replayed_text_has_its_rows_and_must_not_change(
    toy_data: Ladder, write_toy_tokens: Callable[..., Path]
) -> None:
    """Without an earlier stage that has seen its tokens."""
    ladder = with_stage(toy_data, "children", init_from=None, replay={"simple": 0.3})
    interrupt_in_step(ladder, 2, "children")
    resume = read_checkpoint(files_of(ladder, "children").resume)
    assert int(resume["seen_tokens"].sum()) == 101, "the 100 of simple, and EOT"
    assert set(resume["data"]) == {"train_ch.bin", "val_ch.bin", "train_simp.bin"}
    write_toy_tokens(toy_data.folder("data") / "train_simp.bin", types=100, seed=5)
    with pytest.raises(UserError, match=r"the content of train_simp.bin changed"):
        train_stage(run_of(ladder, "children"), GPT)
    (toy_data.folder("data") / "train_simp.bin").unlink()
    with pytest.raises(DataError, match=r"replays simple, but .*train_simp.bin does not exist; .*set replay=None"):
        train_stage(run_of(ladder, "children"), GPT)


def test_a_resumed_stage_keeps_the_micro_batch_that_it_began_with(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the memory of the day would suggest: the draws of dropout follow the micro-batches."""
    ladder = with_stage(toy_data, micro_batch_size=None)
    interrupt_in_step(ladder, 1)
    resume = files_of(ladder).resume
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
    resume = files_of(toy_data).resume
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: other)
    interrupt_in_step(toy_data, 0, precision="auto")
    assert f"{began} because the stage began with it" in capsys.readouterr().out
    assert read_checkpoint(resume)["progress"]["precision"] == began
    records = read_records(files_of(toy_data).record)
    assert {record["precision"] for record in records if record["event"] == "start"} == {began}


def test_a_precision_that_this_machine_lacks_is_refused_or_replaced_by_flag(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    interrupt_in_step(toy_data, 1, precision="fp32")
    resume = files_of(toy_data).resume
    payload = read_checkpoint(resume)
    save_checkpoint(resume, {**payload, "progress": payload["progress"] | {"precision": "fp16"}}, keep_previous=False)
    with pytest.raises(UserError, match=r"began with fp16, but fp16 does .* try --precision fp32 --accept-changes$"):
        train_stage(run_of(toy_data, precision="auto"), GPT)
    interrupt_in_step(toy_data, 0, precision="auto", accept_changes=True)
    assert read_checkpoint(resume)["progress"]["precision"] == "fp32"


@pytest.mark.slow
def test_a_resumed_stage_takes_the_threads_that_it_began_with(
    toy_data: Ladder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the cores of the day: a sum's last digit depends on them. Only who asks for other threads gets them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    resume = files_of(toy_data).resume
    interrupt_in_step(toy_data, 0, threads=2)
    for flags, stage, expected in (({}, {}, 2), ({"threads": 3}, {}, 3), ({}, {"threads": 2}, 2)):
        torch.set_num_threads(1)
        capsys.readouterr()
        interrupt_in_step(with_stage(toy_data, **stage), 0, **flags)
        assert read_checkpoint(resume)["progress"]["threads"] == torch.get_num_threads() == expected
        said = capsys.readouterr()
        assert f"device cpu ({expected} threads)" in said.out
        assert ("the last digits of losses may differ" in said.err) == bool(flags or stage)


@pytest.mark.slow
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
        start = read_records(files_of(ladder).record)[0]
        assert start["threads"] == torch.get_num_threads() == expected


def test_numbers_of_processes_that_do_not_divide_the_batch_name_those_that_do(toy_data: Ladder) -> None:
    stage = replace(toy_data.stage("tiny"), batch_size=32, micro_batch_size=None)
    for n in (1, 2, 4, 32):
        check_shares(stage, Group(0, n))
    with pytest.raises(SettingsError, match=r"is 32, .* 6 processes.*start 4 \(possible are 1, 2, 4.*to 36"):
        check_shares(stage, Group(0, 6))
    with pytest.raises(SettingsError, match=r"start 32 .*to 64"):
        check_shares(stage, Group(0, 64))
