"""storyladder/measuring/history.py: run logs of all kinds, the moving average, and thinning out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from stages import recorded, run_of

from model import GPT
from storyladder.measuring.history import (
    ema,
    even_ticks,
    half_life_for,
    histories_of,
    log_ticks,
    read_history,
    short,
    thin,
)
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage


def train(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"event": "train", "step": step, "train_loss": loss, "grad_norm": 1.0, "lr": 1e-3, **more}


def evaluation(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"event": "evaluation", "step": step, "val_loss": loss, "train_seconds": 2.0 * step, **more}


def test_a_trained_stage_is_read_back_with_its_own_settings(toy_data: Ladder) -> None:
    train_stage(run_of(toy_data), GPT)
    (history,) = histories_of(toy_data)
    assert history.name == "tiny" and history.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in history.evaluations] == [0, 3, 6]
    assert (history.tokens_per_step, history.last_step, history.tokens) == (4 * 16, 6, 6 * 4 * 16)
    assert history.ln_vocabulary == math.log(50257) and history.settings["max_steps"] == 6
    assert history.finished is not None and history.seconds == history.finished["train_seconds"]
    assert history.start["settings"]["model"]["n_embd"] == 16


def test_a_stage_without_losses_has_no_history(toy_ladder: Ladder) -> None:
    assert read_history(toy_ladder, toy_ladder.stage("tiny")) is None
    recorded(toy_ladder, "tiny", {"event": "start", "step": 0})
    assert histories_of(toy_ladder) == []


def test_records_that_a_resume_or_rollback_redoes_count_once(toy_ladder: Ladder) -> None:
    recorded(
        toy_ladder,
        "tiny",
        *(train(k, 9.0 - k) for k in range(1, 6)),
        evaluation(3, 6.0),
        {"event": "rollback", "step": 2, "from_step": 5},
        *(train(k, 90.0 - k) for k in range(3, 5)),
        evaluation(3, 5.0),
    )
    history = read_history(toy_ladder, toy_ladder.stage("tiny"))
    assert history is not None
    assert history.steps.tolist() == [1, 2, 3, 4] and history.train_loss.tolist() == [8, 7, 87, 86]
    assert history.val_loss.tolist() == [5.0]
    assert history.finished is None


def test_losses_that_are_not_numbers_are_left_out(toy_ladder: Ladder) -> None:
    recorded(toy_ladder, "tiny", train(1, math.nan), train(2, 3.0), {"event": "train", "step": 3}, evaluation(0, 9.0))
    history = read_history(toy_ladder, toy_ladder.stage("tiny"))
    assert history is not None and history.steps.tolist() == [2]
    recorded(toy_ladder, "tiny", evaluation(0, 9.0))
    history = read_history(toy_ladder, toy_ladder.stage("tiny"))
    assert history is not None and history.last_step == 0 and len(history.steps) == 0
    assert history.best == evaluation(0, 9.0)


def test_the_average_is_debiased_and_halves_weights_after_a_half_life() -> None:
    steps = np.arange(1.0, 301)
    assert ema(steps, np.full(300, 7.0), 50) == pytest.approx(np.full(300, 7.0)), "not pulled towards zero"
    jump = np.where(steps <= 200, 1.0, 0.0)
    averages = ema(steps, jump, 10)
    assert averages[199] == pytest.approx(1.0, abs=1e-5)
    assert averages[209] == pytest.approx(0.5, abs=1e-3) and averages[219] == pytest.approx(0.25, abs=1e-3)
    every_tenth = ema(steps[9::10], jump[9::10], 10)
    assert every_tenth[20] == pytest.approx(0.5, abs=1e-3), "the half-life counts steps, not records"


def test_the_half_life_grows_with_the_stage_and_few_records_are_not_smoothed() -> None:
    assert half_life_for(np.arange(1.0, 100)) is None
    assert half_life_for(np.arange(10.0, 1_501, 10)) == 20
    assert half_life_for(np.arange(10.0, 200_001, 10)) == 100


def test_thinning_keeps_every_spike_and_little_else() -> None:
    places = np.arange(1.0, 200_001)
    values = np.sin(places)
    values[[777, 123_456]] = 50.0, -50.0
    kept = thin(places, values, 500)
    assert kept == sorted(set(kept)) and len(kept) <= 1_000
    assert {777, 123_456} <= set(kept)
    assert thin(places[:5], values[:5], 500) == [0, 1, 2, 3, 4]


def test_ticks_are_round_and_within_their_limits() -> None:
    assert log_ticks(0.7, 12) == [1.0, 2.0, 5.0, 10.0]
    assert log_ticks(8_192, 1.64e9) == [1e4, 1e5, 1e6, 1e7, 1e8, 1e9]
    assert even_ticks(0, 410, 4) == [0, 200, 400] and even_ticks(0, 0) == [0]
    assert [short(n) for n in (950, 12_000, 1_640_000_000)] == ["950", "12k", "1.64B"]
