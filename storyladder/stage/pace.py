"""The clock of a stage: how fast this process takes steps, and how long the rest will take."""

from __future__ import annotations

import dataclasses
import time


@dataclasses.dataclass
class Pace:
    """Counts since this process began. Clocks differ between ranks."""

    began_at: float = dataclasses.field(default_factory=time.monotonic)
    loop_began_at: float = dataclasses.field(default_factory=time.monotonic)  # when training began
    steps: int = 0
    seconds: float = 0.0  # spent in those steps
    seconds_apart: float = 0.0  # since training began, in what steps do not pay for: evaluations, compiling
    evaluation_seconds: float = 0.0  # of one evaluation, the last

    def begin(self) -> None:
        """Training begins now."""
        self.loop_began_at = time.monotonic()

    def count(self, steps: int, seconds: float) -> None:
        """Some steps were taken, or with 0 the time went into getting them ready."""
        self.steps += steps
        if steps:
            self.seconds += seconds
        else:
            self.seconds_apart += seconds

    def count_evaluation(self, seconds: float) -> None:
        """An evaluation was made."""
        self.evaluation_seconds = seconds
        self.seconds_apart += seconds

    @property
    def seconds_a_step(self) -> float:
        """With the records and saves between them, without evaluations."""
        return (time.monotonic() - self.loop_began_at - self.seconds_apart) / max(1, self.steps)

    def elapsed(self) -> float:
        """Seconds since this process began."""
        return time.monotonic() - self.began_at

    def seconds_left(self, steps: int, eval_interval: int) -> float:
        """Until that many steps are done, evaluations included."""
        return steps * self.seconds_a_step + -(-steps // eval_interval) * self.evaluation_seconds
