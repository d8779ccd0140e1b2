"""The counters of a stage: early stopping, spikes, steps that were skipped, going back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storyladder.stage.state import TrainState


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


def test_a_loss_far_above_the_running_mean_is_a_spike_once_there_is_a_mean() -> None:
    """Losses 3 and 5 in turn: a mean near 4 with a deviation of 1."""
    state = TrainState()
    assert state.note_loss(3.0) is None and state.note_loss(1000.0) is None, "too early to tell"
    state = TrainState()
    for step in range(400):
        assert state.note_loss(3.0 + 2 * (step % 2)) is None
    assert (state.loss_mean, state.loss_variance) == pytest.approx((4.0, 1.0), abs=0.05)
    before = replace(state)
    assert state.note_loss(9.5) is None, "five and a half deviations"
    assert before.note_loss(12.0) == pytest.approx(8.0, abs=0.3)
    assert state.note_loss(float("nan")) is None


def test_a_spike_is_not_found_among_fifty_losses_and_is_after_them() -> None:
    for seen, found in ((49, False), (50, True)):
        state = TrainState()
        for step in range(seen):
            state.note_loss(3.0 + step % 2)
        assert (state.note_loss(1000.0) is not None) == found


def test_losses_are_kept_until_they_are_recorded_and_a_good_step_ends_a_row_of_skipped_ones() -> None:
    state = TrainState()
    for _ in range(3):
        state.note_skipped()
    assert (state.skipped_steps, state.skipped_in_a_row, state.recent_losses) == (3, 3, [])
    state.note_loss(2.0)
    state.note_loss(1.0)
    assert (state.skipped_steps, state.skipped_in_a_row, state.recent_losses) == (3, 0, [2.0, 1.0])


def test_going_back_takes_the_counters_of_then_and_keeps_what_cannot_be_undone() -> None:
    then = TrainState(step=40, best_loss=3.0, best_step=30, bad_evals=1, evaluated_at=40, skipped_steps=2)
    then = replace(then, train_seconds=9.0, batch_offset=5, micro_batch_size=8, precision="fp32", recent_losses=[3.5])
    now = TrainState(step=70, best_loss=2.5, best_step=60, bad_evals=0, evaluated_at=60, skipped_steps=22)
    now = replace(now, skipped_in_a_row=20, train_seconds=12.0, batch_offset=5, rollbacks=1, micro_batch_size=4)
    now = replace(now, precision="bf16", threads=2, losses_seen=50, loss_mean=float("inf"))
    same_object = now
    now.go_back_to(then)
    assert now is same_object
    assert now == replace(
        then,
        best_loss=2.5,
        best_step=60,
        skipped_steps=22,
        train_seconds=12.0,
        micro_batch_size=4,
        precision="bf16",
        threads=2,
        rollbacks=2,
        batch_offset=5 + 30,
    )
    assert then.rollbacks == 0 and then.batch_offset == 5, "what was loaded stays as it was"


def test_forgetting_the_best_makes_any_loss_the_best() -> None:
    state = TrainState(step=9, best_loss=1.0, best_step=3, bad_evals=2)
    state.forget_best()
    assert (state.best_step, state.bad_evals) == (-1, 0)
    assert state.note_evaluation(50.0) and state.best_step == 9
