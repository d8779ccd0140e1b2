"""The run log of a stage, runs/STAGE.jsonl: one JSON object per line with everything that was measured.

A resumed stage first drops the lines after its resume state, so that the log is that of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storyladder.runtime.errors import report


class RunLog:
    """Appends records. If one cannot be written it warns, once, and training continues."""

    def __init__(self, path: Path, *, mute: bool = False) -> None:
        self.path = path
        self._mute = mute  # on ranks other than 0, which writes for all
        self._silenced = False

    def set_aside(self, stamp: str) -> None:
        """Rename the log of earlier training, with `stamp` in its new name."""
        if self.path.exists():
            self._guarded(lambda: os.replace(self.path, self.path.with_suffix(f".before-{stamp}.jsonl")))

    def truncate_after(self, step: int, *, evaluated_at: int) -> None:
        """Drop records after `step`, those of evaluations after `evaluated_at`, and a last line that was cut off."""
        if not self.path.exists():
            return

        def is_kept(record: dict[str, Any]) -> bool:
            at_evaluation = record["event"] == "evaluation" or record.get("at") == "evaluation"
            return bool(record.get("step", 0) <= (evaluated_at if at_evaluation else step))

        partial = self.path.with_suffix(".partial")

        def rewrite() -> None:
            records = filter(is_kept, read_records(self.path))
            partial.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
            os.replace(partial, self.path)

        self._guarded(rewrite)

    def write(self, event: str, **values: Any) -> None:
        """Append one record, with the time in seconds since 1970."""

        def append() -> None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values, "time": round(time.time(), 1)}) + "\n")

        self._guarded(append)

    def _guarded(self, action: Callable[[], object]) -> None:
        if self._mute:
            return
        try:
            action()
        except OSError as error:
            if not self._silenced:
                report(f"warning: cannot write the run log {self.path} ({error.strerror}); training continues")
            self._silenced = True


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a stage, without a last line that was cut off."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            records.append(record)
    return records
