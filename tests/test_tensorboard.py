"""storyladder/measuring/tensorboard.py: event files that TensorBoard reads, also of a resumed stage."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from storyladder.measuring.tensorboard import TensorBoard


def scalars(folder: Path) -> list[tuple[int, float]]:
    """Steps and validation losses as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder))
    read.Reload()
    return [(event.step, round(event.value, 4)) for event in read.Scalars("val_loss")]


@pytest.mark.filterwarnings("default")
def test_a_resumed_stage_shows_no_step_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoard(tmp_path) as board:
        for step in (0, 10, 20):
            board.write(step, {"val_loss": 9.0 - step, "lr": 1e-3})
    assert scalars(tmp_path) == [(0, 9.0), (10, -1.0), (20, -11.0)]
    with TensorBoard(tmp_path, first_step=15) as board:
        board.write(20, {"val_loss": 5.0})
        board.write(30, {"val_loss": 4.0})
    assert scalars(tmp_path) == [(0, 9.0), (10, -1.0), (20, 5.0), (30, 4.0)]


def test_without_the_package_there_is_one_line_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with TensorBoard(tmp_path / "events") as board:
        board.write(0, {"val_loss": 9.0})
    assert not (tmp_path / "events").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "python -m pip install tensorboard" in line
