"""The speed of a stage: how fast this process takes steps, and how long the rest will take."""

from __future__ import annotations

import dataclasses
import time


@dataclasses.dataclass
class Pace:
    """Steps and seconds since this process started. Clocks differ between ranks."""

    began_at: float = dataclasses.field(default_factory=time.monotonic)
    loop_began_at: float = dataclasses.field(default_factory=time.monotonic)  # when training began
    steps: int = 0
    seconds: float = 0.0  # spent in those steps
    seconds_apart: float = 0.0  # since training began, outside steps: evaluations, compiling
    evaluation_seconds: float = 0.0  # of the last evaluation

    def begin(self) -> None:
        """Training begins now."""
        self.loop_began_at = time.monotonic()

    def count(self, steps: int, seconds: float) -> None:
        """Count steps and their time; with 0 steps, the time was spent on preparing them."""
        self.steps += steps
        if steps:
            self.seconds += seconds
        else:
            self.seconds_apart += seconds

    def count_evaluation(self, seconds: float) -> None:
        """Count the time of an evaluation."""
        self.evaluation_seconds = seconds
        self.seconds_apart += seconds

    @property
    def seconds_a_step(self) -> float:
        """Including the records and saves between steps, without evaluations."""
        return (time.monotonic() - self.loop_began_at - self.seconds_apart) / max(1, self.steps)

    def elapsed(self) -> float:
        """Seconds since this process started."""
        return time.monotonic() - self.began_at

    def seconds_left(self, steps: int, eval_interval: int) -> float:
        """Seconds until that many steps are done, including evaluations."""
        return steps * self.seconds_a_step + -(-steps // eval_interval) * self.evaluation_seconds
