"""The clock of a stage: what counts for the speed of a step, and what lies between steps."""

from __future__ import annotations

import time

import pytest

from storyladder.stage.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that time.monotonic says, for a test to set."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_setting_up_does_not_count_for_a_step_and_counts_for_the_process(clock: list[float]) -> None:
    pace = Pace(began_at=100.0, loop_began_at=100.0)
    clock[0] = 130.0
    pace.begin()
    pace.count(4, 6.0)
    clock[0] = 138.0  # 2 s for records and saves
    assert (pace.seconds_a_step, pace.elapsed()) == (2.0, 38.0)
    assert (pace.steps, pace.seconds) == (4, 6.0)


def test_evaluations_and_getting_steps_ready_do_not_count_for_a_step(clock: list[float]) -> None:
    pace = Pace(began_at=100.0, loop_began_at=100.0)
    pace.begin()
    clock[0] += 40.0
    pace.count(0, 40.0)  # compiling
    assert (pace.steps, pace.seconds, pace.seconds_apart) == (0, 0.0, 40.0)
    clock[0] += 10.0
    pace.count(5, 10.0)
    clock[0] += 3.0
    pace.count_evaluation(3.0)
    assert pace.seconds_a_step == pytest.approx(2.0) and pace.seconds == 10.0


def test_what_is_left_has_its_evaluations_each_as_long_as_the_last(clock: list[float]) -> None:
    pace = Pace(began_at=100.0, loop_began_at=100.0)
    for seconds in (50.0, 7.0):
        clock[0] += seconds
        pace.count_evaluation(seconds)
    clock[0] += 20.0
    pace.count(10, 20.0)
    assert pace.seconds_left(0, 5) == 0.0
    assert pace.seconds_left(10, 5) == 10 * 2.0 + 2 * 7.0
    assert pace.seconds_left(11, 5) == 11 * 2.0 + 3 * 7.0, "the last step is evaluated too"


def test_before_the_first_step_there_is_a_speed_too(clock: list[float]) -> None:
    pace = Pace(began_at=100.0, loop_began_at=100.0)
    clock[0] += 3.0
    assert pace.seconds_a_step == 3.0
