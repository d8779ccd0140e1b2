"""--plan and --minutes: what is printed, and a schedule that fits the time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from stages import MICROS, SignalAt, files_of, interrupt_in_step, run_of, with_stage

from model import GPT
from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.distributed import ALONE
from storyladder.runtime.errors import Interrupted
from storyladder.runtime.run_log import read_records
from storyladder.runtime.signals import StopRequest
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage
from storyladder.stage.pace import Pace
from storyladder.stage.plan import StepSeconds, fit_to_minutes, refit
from storyladder.stage.setup import Stage, set_up


@pytest.fixture
def stage(toy_data: Ladder) -> Stage:
    """A stage of a million steps that was given a minute, set up and not begun."""
    ladder = with_stage(toy_data, max_steps=10**6, eval_interval=10**5, warmup_steps=1000)
    return set_up(run_of(ladder, minutes=1.0), GPT, StopRequest(), ALONE)[0]


def test_a_schedule_is_fitted_to_what_was_measured_of_the_minutes_that_are_left(stage: Stage) -> None:
    schedules = []
    for gone, speed in (
        (0.0, StepSeconds(step=0.1, window=0.001)),
        (30.0, StepSeconds(0.1, 0.001)),
        (0.0, StepSeconds(0.2, 0.001)),
    ):
        stage.pace = Pace(began_at=time.monotonic() - gone)
        fit_to_minutes(stage, 1.0, speed)
        schedules.append(stage.learner.stage)
        assert stage.state.fitted == {name: getattr(schedules[-1], name) for name in stage.state.fitted}
        assert len(stage.state.fitted) == 4 and len(stage.windows) == stage.learner.stage.val_windows
        assert stage.pace.evaluation_seconds == 0.001 * len(stage.windows)
    whole, half, slow = (schedule.max_steps for schedule in schedules)
    assert 500 < whole < 600 and half == pytest.approx(whole / 2, rel=0.05) == slow
    assert schedules[0].warmup_steps < 100 < schedules[0].eval_interval * 10


def test_evaluations_that_were_made_keep_their_windows(stage: Stage) -> None:
    stage.state.evaluated_at, before = 0, stage.learner.stage.val_windows
    fit_to_minutes(stage, 1.0, StepSeconds(step=0.1, window=0.001))
    assert stage.state.fitted["val_windows"] == before


def test_the_end_moves_to_where_the_pace_will_take_it_in_time(stage: Stage) -> None:
    """Half a minute has gone for 100 steps: as many are left."""
    now = time.monotonic()
    stage.learner.stage = replace(stage.learner.stage, warmup_steps=10)
    stage.pace = Pace(began_at=now - 30, loop_began_at=now - 30)
    refit(stage)
    assert stage.learner.stage.max_steps == 10**6, "no step was taken yet"
    stage.pace.count(100, 29.0)
    stage.state.step = 100
    refit(stage)
    assert 180 < stage.learner.stage.max_steps <= 200 and stage.state.fitted["max_steps"] < 201
    stage.run = replace(stage.run, minutes=None)
    stage.learner.stage = replace(stage.learner.stage, max_steps=10**6)
    refit(stage)
    assert stage.learner.stage.max_steps == 10**6, "nobody asked for minutes"


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


@pytest.mark.slow
def test_minutes_fit_the_schedule_to_the_time_and_the_rate_comes_down_to_its_end(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=10**6, eval_interval=10**5, save_interval=10**5)
    train_stage(run_of(ladder, minutes=0.1), GPT)
    records = read_records(files_of(ladder).record)
    trained = [record for record in records if record["event"] == "train"]
    assert records[-1]["event"] == "finished"
    assert trained[-1]["step"] < 10**5
    assert trained[-1]["lr"] < 0.5 * ladder.stage("tiny").max_lr
    assert records[-1]["time"] - records[0]["time"] < 12  # 5 s were asked for, on a machine that may be busy


@pytest.mark.slow
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
