"""The record of a stage: in order, cut back on resuming, and never a reason to stop training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storyladder.runtime.run_log import RunLog, read_records


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "runs" / "tiny.jsonl")


def events(log: RunLog) -> list[tuple[str, int]]:
    return [(record["event"], record["step"]) for record in read_records(log.path)]


def test_records_are_lines_of_json_in_the_order_of_writing(log: RunLog) -> None:
    log.write("start", step=0, words="na\u00efve\u2028\n")
    log.write("train", step=1, train_loss=2.5)
    lines = log.path.read_text(encoding="utf-8").split("\n")
    assert len(lines) == 3 and lines[-1] == ""
    first, second = (json.loads(line) for line in lines[:2])
    assert first.pop("time") <= second.pop("time")
    assert first == {"event": "start", "step": 0, "words": "na\u00efve\u2028\n"}
    assert second == {"event": "train", "step": 1, "train_loss": 2.5}
    assert [record["event"] for record in read_records(log.path)] == ["start", "train"]


def test_resuming_drops_what_was_recorded_after_the_resume_state(log: RunLog) -> None:
    for step in range(7):
        if step % 3 == 0:
            log.write("evaluation", step=step)
        log.write("train", step=step + 1)
        log.write("skipped", step=step + 1)
        log.write("save failed", step=step + 1)
    log.truncate_after(3, evaluated_at=3)
    expected = []
    for step in range(4):
        expected += [("evaluation", step)] if step % 3 == 0 else []
        expected += [(name, step + 1) for name in ("train", "skipped", "save failed") if step < 3]
    assert events(log) == expected
    log.write("train", step=4)
    assert events(log) == [*expected, ("train", 4)]


def test_an_evaluation_that_will_be_made_again_is_dropped(log: RunLog) -> None:
    log.write("evaluation", step=0)
    log.write("train", step=3)
    log.write("evaluation", step=3)
    log.truncate_after(3, evaluated_at=0)
    assert events(log) == [("evaluation", 0), ("train", 3)]
    log.write("row", step=3, at="epoch")
    log.write("row", step=3, at="evaluation")
    log.truncate_after(3, evaluated_at=-1)
    assert events(log) == [("train", 3), ("row", 3)]


def test_a_torn_or_foreign_line_is_left_out_and_the_next_one_stands_on_its_own(log: RunLog) -> None:
    log.write("train", step=1)
    with log.path.open("ab") as file:
        file.write(b'[1]\n3\n{"no": "event"}\n\n{"event": "train", "step": 2, "tr\xff')
    assert events(log) == [("train", 1)]
    log.truncate_after(5, evaluated_at=5)
    log.write("train", step=2)
    assert events(log) == [("train", 1), ("train", 2)]
    assert {path.name for path in log.path.parent.iterdir()} == {"tiny.jsonl"}


def test_records_without_a_step_stay(log: RunLog) -> None:
    log.write("start")
    log.truncate_after(0, evaluated_at=0)
    assert [record["event"] for record in read_records(log.path)] == ["start"]


def test_a_stage_that_starts_over_keeps_the_old_record_aside(log: RunLog) -> None:
    log.set_aside("1")
    log.truncate_after(3, evaluated_at=3)
    assert not log.path.parent.exists(), "nothing there, nothing to do"
    log.write("train", step=1)
    log.set_aside("1")
    log.write("train", step=2)
    log.set_aside("2")
    assert {path.name for path in log.path.parent.iterdir()} == {"tiny.before-1.jsonl", "tiny.before-2.jsonl"}


def test_a_record_that_cannot_be_written_is_said_once_and_raises_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    log = RunLog(tmp_path / "runs" / "tiny.jsonl")
    log.write("train", step=1)
    log.write("train", step=2)
    out, err = capsys.readouterr()
    assert out == "" and err == f"warning: cannot write the run log {log.path} (File exists); training continues\n"


def test_a_record_that_cannot_be_read_raises_nothing_either(log: RunLog, capsys: pytest.CaptureFixture[str]) -> None:
    log.path.mkdir(parents=True)
    log.truncate_after(3, evaluated_at=3)
    log.write("train", step=1)
    assert (
        capsys.readouterr().err
        == f"warning: cannot write the run log {log.path} (Is a directory); training continues\n"
    )


def test_a_record_that_cannot_be_set_aside_raises_nothing(log: RunLog, capsys: pytest.CaptureFixture[str]) -> None:
    log.write("train", step=1)
    (log.path.parent / "tiny.before-1.jsonl").mkdir()
    log.set_aside("1")
    assert "(Is a directory); training continues" in capsys.readouterr().err
