"""Rows at every evaluation and epoch, sample stories, pictures: what a stage writes for people while it trains."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from stages import files_of, interrupt_in_step, run_of, with_stage

import config
from model import GPT
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder
from storyladder.stage.loop import train_stage
from storyladder.stage.reports import first_loss_explained


def rows(ladder: Ladder) -> list[dict[str, float]]:
    return [record for record in read_records(files_of(ladder).record) if record["event"] == "row"]


def test_rows_hold_the_means_since_the_last_one_beside_the_last_evaluation(toy_data: Ladder) -> None:
    """An epoch has 10.75 batches, and evaluations are at every fifth step."""
    ladder = with_stage(toy_data, max_steps=24, eval_interval=5)
    train_stage(run_of(ladder), GPT)
    found, records = rows(ladder), read_records(files_of(ladder).record)
    assert [(row["step"], row["at"]) for row in found] == [
        *((0, "evaluation"), (5, "evaluation"), (10, "evaluation"), (11, "epoch"), (15, "evaluation")),
        *((20, "evaluation"), (22, "epoch"), (24, "evaluation")),
    ]
    steps = {record["step"]: record for record in records if record["event"] == "train"}
    measured = {record["step"]: record for record in records if record["event"] == "evaluation"}
    for before, row in itertools.pairwise(found):
        since = [steps[step] for step in range(before["step"] + 1, row["step"] + 1)]
        assert row["train_loss"] == pytest.approx(sum(step["train_loss"] for step in since) / len(since))
        assert row["grad_norm"] == pytest.approx(sum(step["grad_norm"] for step in since) / len(since))
        last = measured[row["step"] - row["step"] % 5 if row["step"] < 24 else 24]
        assert [row[key] for key in ("val_loss", "perplexity", "bits_per_byte")] == [
            last[key] for key in ("val_loss", "perplexity", "bits_per_byte")
        ]
        assert row["tokens"] == row["step"] * 64 and row["lr"] == steps[row["step"]]["lr"]
        assert row["epoch"] == pytest.approx(row["step"] * 4 / 43, abs=1e-4)
    assert found[0]["train_loss"] is None and found[0]["val_loss"] > 10


def test_no_row_is_written_for_an_epoch_that_is_shorter_than_the_log_interval(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=24, eval_interval=12, log_interval=11)
    train_stage(run_of(ladder), GPT)
    assert [row["step"] for row in rows(ladder)] == [0, 12, 24]


def test_an_evaluation_at_the_end_of_an_epoch_makes_one_row(toy_data: Ladder) -> None:
    ladder = with_stage(toy_data, max_steps=22, eval_interval=11)
    train_stage(run_of(ladder), GPT)
    assert [(row["step"], row["at"]) for row in rows(ladder)] == [(step, "evaluation") for step in (0, 11, 22)]


def test_stories_are_told_at_every_evaluation_and_a_resumed_stage_tells_the_same(
    toy_data: Ladder, tmp_path: Path
) -> None:
    ladder = with_stage(toy_data, sample_tokens=4)
    samples = ladder.folder("reports") / "tiny" / "samples.json"
    train_stage(run_of(ladder), GPT)
    whole = json.loads(samples.read_text(encoding="utf-8"))
    assert whole["prompts"] == list(ladder.sample_prompts) and len(whole["prompts"]) == 5
    assert [(entry["step"], entry["tokens"]) for entry in whole["entries"]] == [(0, 0), (3, 192), (6, 384)]
    assert all(len(entry["stories"]) == 5 for entry in whole["entries"])
    interrupt_in_step(ladder, 3, fresh=True)
    train_stage(run_of(ladder), GPT)
    assert json.loads(samples.read_text(encoding="utf-8")) == whole
    assert len(list(samples.parent.glob("samples.before-*.json"))) == 1


def test_losses_are_the_same_with_stories_and_without(toy_data: Ladder) -> None:
    curves = []
    for tokens in (0, 4):
        ladder = with_stage(toy_data, sample_tokens=tokens)
        train_stage(run_of(ladder, fresh=True), GPT)
        records = read_records(files_of(ladder).record)
        curves.append([record["train_loss"] for record in records if record["event"] == "train"])
    assert curves[0] == curves[1] and len(curves[0]) == 6


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 10], ids=["evaluation", "epoch"])
def test_pictures_and_event_files_are_written_where_they_are_asked_for(toy_data: Ladder, step: int) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ladder = with_stage(toy_data, pictures=True, tensorboard=True, max_steps=14)
    interrupt_in_step(ladder, step)
    train_stage(run_of(ladder), GPT)
    reports = ladder.folder("reports")
    assert (reports / "tiny" / "train.png").stat().st_size > 10_000
    assert (reports / "ladder.png").stat().st_size > 10_000
    events = EventAccumulator(str(ladder.folder("runs") / "tiny.tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("val_loss")] == [
        (row["step"], pytest.approx(row["val_loss"])) for row in rows(ladder)
    ]


def test_a_first_loss_far_from_knowing_nothing_is_explained() -> None:
    tiny, children = config.LADDER.stage("tiny"), config.LADDER.stage("children")
    ln_v = math.log(50257)
    assert first_loss_explained(ln_v + 0.4, tiny, 50257) == first_loss_explained(ln_v - 0.4, tiny, 50257) == ""
    assert first_loss_explained(2.0, children, 50257) == "", "it has learned before"
    high, low = (first_loss_explained(loss, tiny, 50257) for loss in (14.0, 5.0))
    assert "the first loss is 14.00" in high and "ln 50,257 = 10.82" in high and "too large" in high
    assert "the first loss is 5.00" in low and "knows something already" in low
