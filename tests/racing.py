"""Contenders that use only the standard library, for tests of the race itself."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Runner:
    """Writes its name and the turn number into a shared diary and reports the given seconds."""

    name: str
    diary: Path
    seconds: tuple[float, ...] = (1.0,)
    fails_at: int | None = None
    dies_at: int | None = None
    hangs_at: int | None = None
    sleeps: float = 0.0
    compiled: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        return {"name": self.name, **({"compiled": True} if self.compiled else {})}

    def turn(self, number: int) -> dict[str, Any]:
        if number == self.fails_at:
            raise ValueError("my leg\nhurts")
        if number == self.dies_at:
            os._exit(9)
        time.sleep(self.sleeps if number != self.hangs_at else 3600)
        with self.diary.open("a", encoding="utf-8") as file:
            file.write(f"{self.name}{number} ")
        return {"seconds": self.seconds[number % len(self.seconds)]}

    def final_facts(self) -> dict[str, Any]:
        return {"peak_rss": 1000}


def build(runner: Runner) -> Runner:
    return runner


def build_none(_: Runner) -> Runner:
    raise RuntimeError("no such track")
