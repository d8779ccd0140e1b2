"""Learning rates as literal numbers, and schedules that end in time."""

from __future__ import annotations

import dataclasses
import random

import pytest

from storyladder.learning.schedule import fitted_to, lr_at, refitted_to, weight_decay_of
from storyladder.settings import StageConfig

STAGE = StageConfig(
    name="tiny",
    corpus="tiny",
    script="train_tiny.py",
    result_file="",
    max_steps=110,
    warmup_steps=10,
    max_lr=1e-3,
    min_lr=1e-4,
    eval_interval=20,
)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 1e-4),  # the first update already moves
        (4, 5e-4),
        (9, 1e-3),
        (10, 1e-3),
        (35, 8.681980515339464e-4),
        (60, 5.5e-4),
        (85, 2.318019484660536e-4),
        (109, 1.0022204e-4),
        (110, 1e-4),
        (111, 1e-4),
        (10_000, 1e-4),
    ],
)
def test_the_rate_rises_in_a_line_and_falls_as_a_cosine(step: int, lr: float) -> None:
    assert lr_at(step, STAGE) == pytest.approx(lr, rel=1e-7)


@pytest.mark.parametrize(
    ("step", "lr"), [(0, 1e-4), (9, 1e-3), (10, 1e-3), (35, 7.75e-4), (60, 5.5e-4), (109, 1.09e-4), (110, 1e-4)]
)
def test_a_linear_schedule_falls_in_a_line(step: int, lr: float) -> None:
    assert lr_at(step, dataclasses.replace(STAGE, schedule="linear")) == pytest.approx(lr, rel=1e-7)


def test_a_line_to_zero_still_moves_in_the_last_step() -> None:
    stage = dataclasses.replace(STAGE, schedule="linear", min_lr=0.0)
    assert [lr_at(step, stage) for step in (109, 110)] == pytest.approx([1e-5, 0.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_stage_longer_than_the_horizon_of_its_rates_has_smaller_ones(schedule: str) -> None:
    stage = dataclasses.replace(STAGE, schedule=schedule, max_steps=3200, weight_decay=0.5)
    known = [dataclasses.replace(stage, lr_horizon=horizon) for horizon in (None, 3200, 5000, 100)]
    for step in (0, 9, 10, 1600, 3199, 3200):
        plain, same, shorter, longer = (lr_at(step, each) for each in known)
        assert plain == same == shorter
        assert longer == pytest.approx(plain * 0.3298769777)  # 32^-0.32
    assert [weight_decay_of(each) for each in known] == [0.5, 0.5, 0.5, pytest.approx(0.5 * 0.0947322854)]
    # Rate x decay x steps is that of the horizon: how often the weights forget themselves.
    at_horizon = dataclasses.replace(stage, max_steps=100)
    products = [lr_at(10, each) * weight_decay_of(each) * each.max_steps for each in (at_horizon, known[-1])]
    assert products[0] == pytest.approx(products[1])


def test_the_default_first_stage_starts_at_a_thousandth_of_its_peak() -> None:
    stage = StageConfig(name="tiny", corpus="tiny", script="train_tiny.py", result_file="")
    rates = [lr_at(step, stage) for step in (0, 999, 1_000, 100_500, 200_000)]
    assert rates == pytest.approx([3e-7, 3e-4, 3e-4, 1.65e-4, 3e-5])


def test_without_warm_up_the_first_rate_is_the_peak() -> None:
    assert lr_at(0, dataclasses.replace(STAGE, warmup_steps=0)) == 1e-3


def test_the_shortest_schedules_have_rates_too() -> None:
    assert lr_at(0, dataclasses.replace(STAGE, warmup_steps=0, max_steps=1)) == 1e-3
    assert lr_at(1, dataclasses.replace(STAGE, warmup_steps=0, max_steps=1)) == 1e-4


def test_a_hundred_seconds_are_shared_out_as_written_down() -> None:
    # A tenth of the time for nine evaluations: 111 windows each, 1.11 s; 90.01 s are left for steps of 0.1 s.
    fitted = fitted_to(STAGE, step=0, seconds=100, step_seconds=0.1, window_seconds=0.01, n_windows=5000)
    expected = dataclasses.replace(STAGE, max_steps=900, warmup_steps=10, eval_interval=113, val_windows=111)
    assert fitted == expected
    few = fitted_to(STAGE, step=0, seconds=100, step_seconds=0.1, window_seconds=0.01, n_windows=50)
    assert (few.val_windows, few.max_steps) == (50, 955)
    later = fitted_to(STAGE, step=40, seconds=5, step_seconds=0.1, window_seconds=0.01, n_windows=5000)
    assert (later.max_steps, later.warmup_steps, later.eval_interval) == (85, 8, 6)


def seconds_of(
    stage: StageConfig, *, step: int, step_seconds: float, evaluation_seconds: float, evaluated_at: int = -1
) -> float:
    """How long the loop takes from `step` to the end: it evaluates at every interval and at the end."""
    seconds = 0.0
    while True:
        if (step % stage.eval_interval == 0 or step >= stage.max_steps) and step != evaluated_at:
            seconds += evaluation_seconds
        if step >= stage.max_steps:
            return seconds
        step += 1
        seconds += step_seconds


def test_a_fitted_schedule_ends_in_time_and_wastes_little_of_it() -> None:
    dice = random.Random(0)
    for _ in range(300):
        step, n_windows = dice.choice([0, dice.randrange(3000)]), dice.randrange(1, 5000)
        step_seconds, window_seconds = 10 ** dice.uniform(-3, 1), 10 ** dice.uniform(-4, -1)
        stage = dataclasses.replace(STAGE, warmup_steps=dice.choice([0, 10, 1000]), max_steps=200_000)
        seconds = 9 * window_seconds + step_seconds * dice.uniform(2.1, 2000)
        fitted = fitted_to(
            stage,
            step=step,
            seconds=seconds,
            step_seconds=step_seconds,
            window_seconds=window_seconds,
            n_windows=n_windows,
        )
        assert 1 <= fitted.val_windows <= n_windows
        evaluation_seconds = fitted.val_windows * window_seconds
        used = seconds_of(fitted, step=step, step_seconds=step_seconds, evaluation_seconds=evaluation_seconds)
        assert used <= seconds + 1e-6
        assert used > seconds - step_seconds - 8 * evaluation_seconds - 1e-6
        assert fitted.val_windows == 1 or 9 * evaluation_seconds <= 0.1 * seconds + 1e-6
        assert fitted.warmup_steps <= min(stage.warmup_steps, fitted.max_steps // 10)
        assert lr_at(fitted.max_steps, fitted) == stage.min_lr < lr_at(fitted.max_steps - 1, fitted)
        untouched = ("max_steps", "warmup_steps", "eval_interval", "val_windows")
        assert dataclasses.replace(fitted, **{name: getattr(stage, name) for name in untouched}) == stage


def test_a_time_too_short_for_anything_still_gives_two_steps() -> None:
    fitted = fitted_to(STAGE, step=7, seconds=1, step_seconds=10, window_seconds=10, n_windows=100)
    assert (fitted.max_steps, fitted.val_windows, fitted.eval_interval, fitted.warmup_steps) == (9, 1, 1, 0)


def test_a_schedule_refitted_to_ten_seconds_is_as_written_down() -> None:
    # 2 s for the last evaluation; a step of 0.1 s and a twentieth of an evaluation are 0.2 s: 40 steps.
    refitted = refitted_to(STAGE, step=60, seconds=10, step_seconds=0.1, evaluation_seconds=2)
    assert refitted == dataclasses.replace(STAGE, max_steps=100)


def test_a_refitted_schedule_ends_in_time_and_at_the_lowest_rate() -> None:
    dice = random.Random(1)
    for _ in range(300):
        stage = dataclasses.replace(STAGE, eval_interval=dice.randrange(1, 200), warmup_steps=dice.choice([0, 5, 50]))
        step = stage.eval_interval * dice.randrange(1, 20)
        step_seconds, evaluation_seconds = 10 ** dice.uniform(-3, 0), 10 ** dice.uniform(-3, 1)
        seconds = evaluation_seconds + step_seconds * dice.uniform(0, 2000)
        refitted = refitted_to(
            stage, step=step, seconds=seconds, step_seconds=step_seconds, evaluation_seconds=evaluation_seconds
        )
        assert lr_at(refitted.max_steps, refitted) == stage.min_lr
        assert refitted == dataclasses.replace(stage, max_steps=refitted.max_steps)
        speeds = {"step_seconds": step_seconds, "evaluation_seconds": evaluation_seconds}
        used = seconds_of(refitted, step=step, **speeds, evaluated_at=step)
        if step > stage.warmup_steps:
            assert refitted.max_steps >= step
            assert used <= seconds + 1e-6
            each = step_seconds + evaluation_seconds / stage.eval_interval
            assert used > seconds - evaluation_seconds - each - 1e-6
        else:
            assert refitted.max_steps > stage.warmup_steps


def test_a_stage_whose_time_is_up_ends_where_it_stands() -> None:
    assert refitted_to(STAGE, step=60, seconds=-5, step_seconds=0.1, evaluation_seconds=2).max_steps == 60
    assert refitted_to(STAGE, step=3, seconds=-5, step_seconds=0.1, evaluation_seconds=2).max_steps == 11
