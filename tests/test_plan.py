"""--plan and --minutes: what is printed, and a schedule that fits the time."""

from __future__ import annotations

from pathlib import Path

import pytest
from stages import MICROS, SignalAt, files_of, interrupt_in_step, run_of, with_stage

from model import GPT
from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.errors import Interrupted
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage


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
    records = read_records(files_of(ladder).record)
    trained = [record for record in records if record["event"] == "train"]
    assert records[-1]["event"] == "finished"
    assert trained[-1]["step"] < 10**5
    assert trained[-1]["lr"] < 0.5 * ladder.stage("tiny").max_lr
    assert records[-1]["time"] - records[0]["time"] < 12  # 5 s were asked for, on a machine that may be busy


def test_a_stage_that_was_fitted_to_minutes_keeps_its_schedule_when_it_is_resumed(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=10**6, eval_interval=10**5, save_interval=10**5)
    interrupt_in_step(ladder, 9, minutes=0.1)  # of which up to 8 measure the speed
    fitted = read_checkpoint(files_of(ladder).resume)["progress"]["fitted"]
    assert 2 <= fitted["max_steps"] < 10**5 and fitted["val_windows"] <= 16
    train_stage(run_of(ladder), GPT)
    records = read_records(files_of(ladder).record)
    assert records[-1]["event"] == "finished" and records[-1]["step"] == fitted["max_steps"]


def test_minutes_on_a_resumed_stage_keep_its_validation_windows(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=10**6, save_interval=10**5)
    interrupt_in_step(ladder, 1)
    with pytest.raises(Interrupted):
        train_stage(run_of(ladder, minutes=0.5), SignalAt(MICROS * 10 + 2))
    progress = read_checkpoint(files_of(ladder).resume)["progress"]
    assert progress["fitted"]["val_windows"] is None and progress["evaluated_at"] >= 0
