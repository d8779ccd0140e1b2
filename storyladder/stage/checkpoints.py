"""The checkpoints of a stage: resume state, best weights, result. Best weights that cannot be saved are kept in memory.

runtime/checkpoint.py writes one file safely; this module decides which file, and what to do if saving fails.
All ranks call these methods, and rank 0 acts.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

from storyladder.learning.learner import Learner
from storyladder.results import StageFiles
from storyladder.runtime.checkpoint import Loaded, Payload, digest_of, load_checkpoint, previous_of, save_checkpoint
from storyladder.runtime.distributed import Group
from storyladder.runtime.errors import CheckpointError, DamagedCheckpoint, SaveFailed, TrainingFailed, report
from storyladder.runtime.machine import is_out_of_memory
from storyladder.runtime.run_log import RunLog
from storyladder.stage.state import TrainState

_FAILED_SAVES_TO_STOP = 3


class Checkpoints:
    """The checkpoints of one stage. Each of them contains `about`: settings, data, parent, machine."""

    def __init__(
        self, files: StageFiles, about: Payload, *, group: Group, log: RunLog, again: Callable[..., str]
    ) -> None:
        self.files = files
        self.saved_at = time.monotonic()
        self.about = about
        self._group = group
        self._log = log
        self._again = again  # returns the command that continues this run, with more flags
        self._failures = 0  # in a row
        self._unsaved_best: Payload | None = None  # best weights that could not be saved yet

    def save(self, learner: Learner, state: TrainState) -> bool:
        """Write the resume state; False if saving failed, SaveFailed if it failed several times in a row."""
        self.saved_at = time.monotonic()
        if not self._save_best(state.step):
            return False  # a resume state that refers to unsaved best weights could not be resumed

        def payload() -> Payload:
            return {**self._pack(learner, state, optimizer=True), "progress": dataclasses.asdict(state)}

        return self._write(self.files.resume, payload, state.step, keep_previous=True)

    def keep_best(self, learner: Learner, state: TrainState) -> None:
        """Save these weights as the best so far. If saving fails, they are kept in memory for the next try."""
        self._unsaved_best = {}  # rank 0 packs them; on the others {} means that there are some
        if self._group.is_first:
            packed = self._pack(learner, state, optimizer=False)
            self._unsaved_best = {
                **packed,
                "model_digest": digest_of(packed["model"]),
                "val_loss": state.best_loss,
                "train_seconds": state.train_seconds,
            }
        self._save_best(state.step)

    def finish(self, state: TrainState) -> Payload:
        """Save the best weights as the result; returns it. Raises CheckpointError, SaveFailed or TrainingFailed."""
        if not self._save_best(state.step):
            raise SaveFailed(f"{self.files.best} could not be written; {self._what_is_left()}")
        best = self._best(state)
        if not self._write(self.files.result, lambda: best.payload, state.step, keep_previous=False):
            raise SaveFailed(
                f"{self.files.result} could not be written; the weights are safe in {self.files.best}. "
                f"Free some space, then run {self._again()} again"
            )
        if self._group.is_first:
            self.files.forget_resume_state()
        return best.payload

    def resume_state(self) -> Loaded | None:
        """Load the last resume state, on all ranks."""
        return load_for_all(self._group, self.files.resume)

    def lost_best(self) -> str:
        """What is wrong with the best weights on disk, or an empty string."""

        def check() -> str:
            try:
                return "" if load_checkpoint(self.files.best) else f"{self.files.best} is missing"
            except DamagedCheckpoint as error:
                return str(error)

        return self._group.on_first(check)

    def set_best_aside(self) -> Path:
        """Rename the best weights, because the ones to come cannot be compared with them; returns the new path."""
        aside = self.files.best.with_suffix(".other_windows.pt")
        if self._group.is_first and self.files.best.exists():
            os.replace(self.files.best, aside)
        return aside

    def _pack(self, learner: Learner, state: TrainState, *, optimizer: bool) -> Payload:
        return {**self.about, "step": state.step, "fitted": state.fitted, **learner.pack(optimizer=optimizer)}

    def _save_best(self, step: int) -> bool:
        """Save the best weights if they are not on disk yet; False if saving failed."""
        best = self._unsaved_best
        if best is not None and self._write(self.files.best, lambda: best, step, keep_previous=False):
            self._unsaved_best = None
        return self._unsaved_best is None

    def _write(self, path: Path, payload: Callable[[], Payload], step: int, *, keep_previous: bool) -> bool:
        """Save, or warn if disk or memory is full; after several failures in a row, raise SaveFailed."""

        def refusal() -> str | None:
            try:
                save_checkpoint(path, payload(), keep_previous=keep_previous)
            except (OSError, MemoryError, RuntimeError) as error:
                if not isinstance(error, OSError) and not is_out_of_memory(error):
                    raise
                self._log.write("save failed", step=step, file=path.name, error=str(error))
                return str(error.strerror) if isinstance(error, OSError) else "out of memory"
            return None

        why = self._group.on_first(refusal)
        if why is None:
            self._failures = 0
            return True
        self._failures += 1
        report(f"\nwarning: {path.name} could not be saved ({why}); training continues")
        if self._failures >= _FAILED_SAVES_TO_STOP:
            raise SaveFailed(f"{self._failures} saves in a row failed ({why}); {self._what_is_left()}")
        return False

    def _what_is_left(self) -> str:
        """The last good file, and what to type once there is free space."""
        states = [file for file in (self.files.resume, previous_of(self.files.resume)) if file.exists()]
        good = next((str(file) for file in (*states, self.files.best) if file.exists()), "none")
        # Without a resume state the stage can only start over, which needs --fresh if there are best weights.
        again = self._again(*(() if states or good == "none" else ("--fresh",)))
        return f"the last good file is {good}. Free some space, then run {again} again"

    def _best(self, state: TrainState) -> Loaded:
        """Load the best weights of a stage that has reached its end."""
        again = f"run {self._again()} again: it continues from the last save and looks for the best weights again"
        if state.best_step < 0:
            raise TrainingFailed(
                f"stage {self.about['stage']} ended at step {state.step:,} without best weights, because no validation "
                f"loss was finite; lower max_lr in config.py, then run {self._again('--fresh')}"
            )
        try:
            best = load_for_all(self._group, self.files.best)
        except DamagedCheckpoint as error:
            raise CheckpointError(f"{error}; {again}") from None
        if best is None:
            raise CheckpointError(f"{self.files.best} is missing; {again}")
        return best


def load_for_all(group: Group, path: Path) -> Loaded | None:
    """load_checkpoint on rank 0; all ranks get the result."""

    def plainly() -> Payload | None:
        loaded = load_checkpoint(path)
        return None if loaded is None else {**vars(loaded), "path": str(loaded.path)}

    plain = group.on_first(plainly)
    return None if plain is None else Loaded(plain["payload"], Path(plain["path"]), plain["notes"])
