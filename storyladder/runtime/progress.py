"""Progress of a stage while it trains: a bar with the time left in a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType

from tqdm import tqdm

from storyladder.runtime.errors import report

_LINE_SECONDS = 30.0  # between lines when stderr is not a terminal


def time_left(*, steps: int, step_seconds: float, evaluations: int, evaluation_seconds: float) -> float:
    """Seconds until the end of a stage, its evaluations included."""
    return steps * step_seconds + evaluations * evaluation_seconds


def duration_text(seconds: float) -> str:
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
        with _ignoring_write_errors():
            self._bar.close()

    def show(self, step: int, max_steps: int, text: str) -> None:
        """Move the bar to `step` and show `text` after it; without a terminal, print a line every 30 s."""
        if self._terminal:
            self._bar.total = max_steps
            self._bar.n = step
            with _ignoring_write_errors():
                self._bar.set_postfix_str(text)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            self.report(f"{self._name} step {step:,} of {max_steps:,}: {text}")

    def report(self, line: str) -> None:
        """Print a line above the bar."""
        if self._terminal:
            with _ignoring_write_errors():
                self._bar.write(line, file=sys.stderr)
        else:
            report(line)


def _ignoring_write_errors() -> contextlib.AbstractContextManager[None]:
    """A closed terminal, or a log on a full disk, must not stop training."""
    return contextlib.suppress(OSError)
