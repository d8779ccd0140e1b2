"""What the terminal shows while a stage trains: a bar with the time left for the stage, or plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType

from tqdm import tqdm

from storyladder.runtime.errors import say

_LINE_SECONDS = 30.0  # between lines where there is no terminal


def time_left(*, steps: int, step_seconds: float, evaluations: int, evaluation_seconds: float) -> float:
    """Seconds until the end of a stage, its evaluations included."""
    return steps * step_seconds + evaluations * evaluation_seconds


def duration_words(seconds: float) -> str:
    """45 s, 12 min 05 s, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


class Progress:
    """The bar of one stage."""

    def __init__(self, stage_name: str, *, step: int, max_steps: int) -> None:
        self._terminal = sys.stderr.isatty()
        self._name = stage_name
        self._next_line = 0.0
        self._bar = tqdm(
            total=max_steps,
            initial=step,
            desc=stage_name,
            disable=not self._terminal,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _whoever_listens():
            self._bar.close()

    def show(self, step: int, max_steps: int, words: str) -> None:
        """Move the bar to `step`, with words behind it; without a terminal, a line now and then."""
        if self._terminal:
            self._bar.total = max_steps
            self._bar.n = step
            with _whoever_listens():
                self._bar.set_postfix_str(words)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            self.say(f"{self._name} step {step:,} of {max_steps:,}: {words}")

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._terminal:
            with _whoever_listens():
                self._bar.write(line, file=sys.stderr)
        else:
            say(line)


def _whoever_listens() -> contextlib.AbstractContextManager[None]:
    """A terminal that was closed, or a log on a full disk, takes the words away and not the training."""
    return contextlib.suppress(OSError)
