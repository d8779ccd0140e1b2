"""The progress of a stage, and how steps and evaluations update it: only counters, no files or clocks."""

from __future__ import annotations

import dataclasses
import math

_SPIKE = 6.0  # standard deviations above the running mean of the loss
_SPIKE_MEMORY = 0.98  # decay of that mean: it averages about the last fifty steps
_SPIKE_FROM = 50  # steps before the mean is reliable


@dataclasses.dataclass
class TrainState:
    """Progress of a stage. Plain values only, saved as they are."""

    step: int = 0  # updates done
    best_loss: float = float("inf")  # lowest val_loss so far
    best_step: int = -1
    bad_evals: int = 0  # evaluations since then
    windows: str = ""  # the validation windows; losses on other windows cannot be compared
    evaluated_at: int = -1  # step of the last evaluation, so that a resumed stage does not count it twice
    skipped_steps: int = 0  # updates skipped because the loss or gradient was not finite
    skipped_in_a_row: int = 0
    train_seconds: float = 0.0  # spent in steps, over all runs of the stage
    rollbacks: int = 0  # to an earlier state, because losses stayed bad
    batch_offset: int = 0  # batches skipped by rollbacks: step k reads batch k + batch_offset
    micro_batch_size: int | None = None  # sequences per forward, the learner's latest
    precision: str | None = None  # the stage's
    threads: int | None = None  # on a CPU, with a single process
    losses_seen: int = 0  # in the running mean and variance of the train loss, for detecting spikes
    loss_mean: float = 0.0
    loss_variance: float = 0.0
    row_steps: int = 0  # since the last row (stage/reports.py)
    row_loss: float = 0.0  # the sum of their train losses
    row_norm: float = 0.0  # and of their gradient norms
    measured: dict[str, float] = dataclasses.field(default_factory=dict)  # by the last evaluation
    recent_losses: list[float] = dataclasses.field(default_factory=list)  # since the last record
    fitted: dict[str, int | None] = dataclasses.field(default_factory=dict)  # the schedule chosen by --minutes

    def note_evaluation(self, val_loss: float) -> bool:
        """Count an evaluation at the current step; True if it is the best so far. NaN never is."""
        self.evaluated_at = self.step
        if val_loss < self.best_loss:
            self.best_loss, self.best_step, self.bad_evals = val_loss, self.step, 0
            return True
        self.bad_evals += 1
        return False

    def note_loss(self, loss: float) -> float | None:
        """Count the loss of a step. If it is a spike, its distance from the running mean in standard deviations."""
        self.skipped_in_a_row = 0
        self.recent_losses.append(loss)
        z = None
        if self.losses_seen >= _SPIKE_FROM and self.loss_variance > 0:
            z = (loss - self.loss_mean) / math.sqrt(self.loss_variance)
        difference = loss - self.loss_mean if self.losses_seen else 0.0
        self.loss_mean = self.loss_mean + (1 - _SPIKE_MEMORY) * difference if self.losses_seen else loss
        self.loss_variance = _SPIKE_MEMORY * (self.loss_variance + (1 - _SPIKE_MEMORY) * difference**2)
        self.losses_seen += 1
        return z if z is not None and z > _SPIKE else None

    def add_to_row(self, loss: float, grad_norm: float) -> None:
        """Count a step for the next row."""
        self.row_steps += 1
        self.row_loss += loss
        self.row_norm += grad_norm

    def note_skipped(self) -> None:
        """Count a step that changed nothing because its loss or gradient was not finite."""
        self.skipped_steps += 1
        self.skipped_in_a_row += 1

    def forget_best(self) -> None:
        """Reset the best loss, because its data or its weights are gone."""
        self.best_loss, self.best_step, self.bad_evals = float("inf"), -1, 0

    def go_back_to(self, good: TrainState) -> None:
        """Go back to an earlier state of this stage, but continue with the batches not read yet."""
        kept = ("skipped_steps", "train_seconds", "micro_batch_size", "precision", "threads", "best_loss", "best_step")
        changes = {name: getattr(self, name) for name in kept}
        changes |= {
            "rollbacks": self.rollbacks + 1,
            "batch_offset": self.batch_offset + self.step - good.step,
        }
        self.__dict__.update(vars(dataclasses.replace(good, **changes)))
