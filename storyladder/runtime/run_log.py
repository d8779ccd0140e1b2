"""The record of a stage: one JSON object a line in runs/STAGE.jsonl, everything that was measured.

A resumed stage takes the lines behind its resume state out first, so that the record is that of one uninterrupted run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storyladder.runtime.errors import say


class RunLog:
    """Appends records. A record that cannot be written is said once and never stops the training."""

    def __init__(self, path: Path, *, mute: bool = False) -> None:
        self.path = path
        self._mute = mute  # in a process whose records another one writes
        self._silenced = False

    def set_aside(self, stamp: str) -> None:
        """Keep the record of a former training under a name with `stamp` in it."""
        if self.path.exists():
            self._guarded(lambda: os.replace(self.path, self.path.with_suffix(f".before-{stamp}.jsonl")))

    def truncate_after(self, step: int, *, evaluated_at: int) -> None:
        """Drop what was recorded after `step`, evaluations after `evaluated_at`, and a line torn in writing."""
        if not self.path.exists():
            return
        last = {"train": step, "skipped": step, "evaluation": evaluated_at}
        partial = self.path.with_suffix(".partial")

        def rewrite() -> None:
            records = [
                record for record in read_records(self.path) if record.get("step", 0) <= last.get(record["event"], step)
            ]
            partial.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
            os.replace(partial, self.path)

        self._guarded(rewrite)

    def write(self, event: str, **values: Any) -> None:
        """Append one record with the time of day in seconds."""

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
                say(f"warning: cannot write the record {self.path} ({error.strerror}); going on")
            self._silenced = True


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a stage; a torn last line is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            records.append(record)
    return records
