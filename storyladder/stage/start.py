"""What a stage starts from: its own resume state, else the result of the stage before it, else random weights.

From a result only the weights are used, with a new optimizer. No file changes here, except that a damaged resume state
is renamed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from storyladder.command_line import StageRun
from storyladder.results import StageFiles, broken_links, check_shapes, load_result, model_digest, stage_command
from storyladder.runtime.checkpoint import Loaded, Payload, load_checkpoint
from storyladder.runtime.distributed import Group
from storyladder.runtime.errors import CheckpointError, UserError, report
from storyladder.stage.changes import changes_since, check_optimizer
from storyladder.stage.state import TrainState


@dataclasses.dataclass(frozen=True)
class Start:
    """What a stage starts from: a payload to resume or to take the weights from, or nothing for random weights."""

    description: str
    payload: Payload | None
    state: TrainState
    ancestors: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # settings of the stages before
    parent_digest: str | None = None  # of the weights of the previous stage that this one started from


def find_start(run: StageRun, files: StageFiles, fingerprints: dict[str, str], group: Group) -> Start:
    """Choose what the stage starts from; `fingerprints` are its token files'. Rank 0 reads checkpoints for all."""

    def plainly() -> dict[str, Any]:
        start = _find_start(run, files, fingerprints)
        return {**vars(start), "state": vars(start.state)}

    plain = group.on_first(plainly)
    return Start(**{**plain, "state": TrainState(**plain["state"])})


def _find_start(run: StageRun, files: StageFiles, fingerprints: dict[str, str]) -> Start:
    resume = None if run.fresh else _own_resume_state(run, files)
    if resume is not None:
        return _continued(run, resume, fingerprints)
    if run.stage.init_from is None:
        return Start("starting from random weights", None, TrainState())
    return _from_the_stage_before(run, run.stage.init_from)


def _continued(run: StageRun, resume: Loaded, fingerprints: dict[str, str]) -> Start:
    """Continue from the stage's own resume state if it matches the current settings and data."""
    warn_all(resume.notes)
    if resume.payload.get("stage") != run.stage.name:
        raise CheckpointError(
            f"{resume.path} belongs to stage {resume.payload.get('stage')!r}, not to {run.stage.name}; restore the "
            f"right file, or start over with --fresh, which renames this one"
        )
    check_shapes(resume.payload, resume.path, run.ladder.model)
    check_optimizer(resume.payload, resume.path, run.stage)
    changes = changes_since(resume.payload, run.ladder, run.stage, fingerprints)
    links = broken_links(run.ladder, run.stage, resume.payload)
    changes += [change for name, change in links if name == run.stage.name]
    state = _state_in(resume)
    if run.precision != "auto" and state.precision not in (None, run.precision):
        changes.append(f"--precision was {state.precision} and is {run.precision}")
    if changes and not run.accept_changes:
        raise UserError(
            f"changed since {resume.path.name} was saved: {'; '.join(changes)}. Undo the change, or continue anyway "
            "with --accept-changes, or start over with --fresh"
        )
    if changes:
        state.fitted = {}  # the user now wants the schedule of config.py
    if resume.notes:
        report(f"resuming from step {state.step:,} of {resume.path.name}")
    fitted = f", with its schedule of {state.fitted['max_steps']:,} steps" if state.fitted else ""
    description = f"continuing at step {state.step:,} from {resume.path.name}{fitted}"
    ancestors = resume.payload["settings"]["stages"][:-1]
    return Start(description, resume.payload, state, ancestors, resume.payload.get("parent_digest"))


def _state_in(resume: Loaded) -> TrainState:
    """The progress that a resume state recorded."""
    try:
        return TrainState(**resume.payload["progress"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{resume.path} has no valid progress ({error}): another version wrote it, or it is not a resume state; "
            "restore the right file, or start over with --fresh, which renames this one"
        ) from None


def _from_the_stage_before(run: StageRun, parent_name: str) -> Start:
    """Start from the weights in the previous stage's result."""
    parent_stage = run.ladder.stage(parent_name)
    parent_files = StageFiles.of(run.ladder, parent_stage)
    parent = load_result(run.ladder, parent_stage)
    if parent is None:
        begun = "is not finished" if parent_files.best.exists() else "has not been trained"
        raise CheckpointError(
            f"stage {run.stage.name} starts from {parent_files.result}, but stage {parent_stage.name} {begun}; "
            f"run {stage_command(run.ladder, parent_stage.name)} first (--minutes N ends it in N minutes)"
        )
    warn_all(parent.notes)
    check_shapes(parent.payload, parent.path, run.ladder.model)
    for name, change in broken_links(run.ladder, parent_stage, parent.payload):
        report(f"warning: {change}; to train it again: {stage_command(run.ladder, name, '--fresh')}")
    return Start(
        f"starting from {parent.path.name} (step {parent.payload['step']:,}, "
        f"validation loss {parent.payload['val_loss']:.4f} on {parent_stage.name})",
        parent.payload,
        TrainState(),
        parent.payload["settings"]["stages"],
        model_digest(parent.payload),
    )


def _own_resume_state(run: StageRun, files: StageFiles) -> Loaded | None:
    """The stage's resume state, or None if the stage never began. Lost files never lead to a silent restart."""
    over = f"start the stage over with {run.again('--fresh')}, which renames the files that are left"
    try:
        resume = load_checkpoint(files.resume, set_aside=not run.plan)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; restore a copy, or {over}") from None
    if resume is None and not files.result.exists():
        corrupt = files.resume.parent.glob(f"{files.resume.stem}*.corrupt*")
        if remains := [path for path in (files.best, *corrupt) if path.exists()]:
            names = ", ".join(path.name for path in remains)
            raise CheckpointError(
                f"{names} in {files.resume.parent} show that the stage began, but {files.resume.name} is missing; "
                f"restore a copy, or {over}"
            )
    return resume


def warn_all(notes: list[str]) -> None:
    """Print each note as a warning."""
    for note in notes:
        report(f"warning: {note}")
