"""What the terminal shows: durations as people say them, a bar or plain lines, and no harm when nobody listens."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest

from storyladder.runtime.progress import Progress, duration_text, time_left


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (45, "45 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (725, "12 min 05 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (12_000, "3 h 20 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d 0 h"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_are_said_in_words(seconds: float, words: str) -> None:
    assert duration_text(seconds) == words


def test_the_time_left_counts_steps_and_evaluations() -> None:
    assert time_left(steps=100, step_seconds=0.5, evaluations=3, evaluation_seconds=10) == 80
    assert time_left(steps=0, step_seconds=0.5, evaluations=0, evaluation_seconds=10) == 0


class Terminal(io.StringIO):
    """A stderr that says it is a terminal; with `gone`, one that was closed."""

    gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_without_a_terminal_there_are_plain_lines_and_not_one_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("tiny", step=0, max_steps=2000) as progress:
        for step in range(1, 500):
            progress.show(step, 2000, f"loss {step}")
        progress.report("step 500: val_loss 2.5")
    out, err = capsys.readouterr()
    assert out == "" and err == "tiny step 1 of 2,000: loss 1\nstep 500: val_loss 2.5\n"


def test_a_plain_line_comes_again_when_its_time_has_come(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Progress("tiny", step=0, max_steps=9) as progress:
        for step in range(1, 5):
            progress.show(step, 9, "x")
            now += 15.0
    assert capsys.readouterr().err == "tiny step 1 of 9: x\ntiny step 3 of 9: x\n"


def test_a_terminal_shows_a_bar_of_the_whole_stage_with_words_and_lines_above(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("tiny", step=40, max_steps=100) as progress:
        progress.show(50, 200, "loss 2.5, 3 min 00 s left")
        progress.report("val_loss 2.4")
    shown = terminal.getvalue()
    assert "tiny  40%|" in shown, "a resumed stage does not start at 0"
    assert "50/200" in shown and " 25%|" in shown and "loss 2.5, 3 min 00 s left" in shown
    assert "val_loss 2.4\n" in shown


def test_a_terminal_that_was_closed_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("tiny", step=0, max_steps=100) as progress:
        terminal.gone = True
        progress.show(50, 100, "loss 2.5")
        progress.report("val_loss 2.4")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_log_whose_disk_is_full_does_not_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)
    with Progress("tiny", step=0, max_steps=100) as progress:
        progress.show(50, 100, "loss 2.5")
        progress.report("val_loss 2.4")
    with contextlib.suppress(OSError):
        full.close()
