"""The files that a stage writes, and reading them: the result, the best weights so far, the resume state.

checkpoints/STAGE_resume.pt     everything that an exact resume needs; the previous one is STAGE_resume.prev.pt
checkpoints/STAGE_best.pt       the weights with the lowest validation loss so far
checkpoints/<result_file>       those weights once the stage is finished; what the next stage and generate.py read
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from storyladder.learning.network import EMBEDDING
from storyladder.runtime.checkpoint import (
    Loaded,
    Payload,
    digest_of,
    peek_checkpoint,
    previous_of,
    read_checkpoint,
)
from storyladder.runtime.errors import CheckpointError, DamagedCheckpoint
from storyladder.settings import Ladder, ModelConfig, StageConfig


@dataclasses.dataclass(frozen=True)
class StageFiles:
    """The files of one stage of one preset."""

    result: Path
    best: Path
    resume: Path
    record: Path

    @classmethod
    def of(cls, ladder: Ladder, stage: StageConfig) -> StageFiles:
        """The paths for one stage."""
        folder = ladder.folder("checkpoints")
        return cls(
            result=folder / stage.result_file,
            best=folder / f"{stage.name}_best.pt",
            resume=folder / f"{stage.name}_resume.pt",
            record=ladder.folder("runs") / f"{stage.name}.jsonl",
        )

    def set_aside(self, stamp: str) -> list[Path]:
        """Rename all files of the stage, with `stamp` in their new names; returns the new paths."""
        kept = []
        # The result goes last: if we are killed halfway, the stage still counts as finished.
        for path in (previous_of(self.resume), self.resume, self.best, self.result):
            if path.exists():
                aside = path.with_name(f"{path.stem}.before-{stamp}.pt")
                os.replace(path, aside)
                kept.append(aside)
        return kept

    def forget_resume_state(self) -> None:
        """Delete the resume states of a finished stage; result and best weights stay."""
        for path in (self.resume, previous_of(self.resume)):
            with contextlib.suppress(OSError):  # harmless: the stage is finished
                path.unlink(missing_ok=True)


def load_result(ladder: Ladder, stage: StageConfig) -> Loaded | None:
    """The result of a finished stage, or its best weights if the result is damaged; None if it is not finished."""
    files = StageFiles.of(ladder, stage)
    if not files.result.exists():
        return None
    try:
        return Loaded(read_checkpoint(files.result), files.result, [])
    except DamagedCheckpoint as error:
        try:
            best = read_checkpoint(files.best)
        except CheckpointError as too:
            again = stage_command(ladder, stage.name, "--fresh")
            raise CheckpointError(f"{error}; {too}; restore a copy, or train the stage again: {again}") from None
        return Loaded(best, files.best, [f"{error}; using {files.best.name} instead"])


def stage_command(ladder: Ladder, stage_name: str, *flags: str) -> str:
    """The command that trains a stage of this ladder."""
    return ladder.command(ladder.stage(stage_name).script, *flags)


def model_digest(payload: Payload) -> str:
    """A digest of a checkpoint's weights; computed if the checkpoint is too old to contain it."""
    recorded = payload.get("model_digest")
    return recorded if isinstance(recorded, str) else digest_of(payload["model"])


def broken_links(ladder: Ladder, stage: StageConfig, payload: Payload) -> Iterator[tuple[str, str]]:
    """Stages, from this one down, that were trained from other weights than the previous stage's current result.

    Yields the stage that would have to be trained again, and a reason. Skips checkpoints too old to record it.
    """
    while stage.init_from is not None:
        above = ladder.stage(stage.init_from)
        path = StageFiles.of(ladder, above).result
        result = peek_checkpoint(path)
        if result is None or not isinstance(result.get("model"), dict):
            return
        if payload.get("parent_digest") not in (None, model_digest(result)):
            yield (
                stage.name,
                f"stage {stage.name} was trained from another result of stage {above.name} than today's {path.name}",
            )
        stage, payload = above, result


def plain_settings(ladder: Ladder, stage: StageConfig, ancestors: list[dict[str, Any]]) -> dict[str, Any]:
    """Model and stage settings as plain values; the previous stages' are those they were trained with."""
    return {
        "preset": ladder.name,
        "tokenizer": ladder.tokenizer,
        "model": dataclasses.asdict(ladder.model),
        "stages": [*ancestors, dataclasses.asdict(stage)],
    }


def check_content(payload: Payload, path: Path) -> None:
    """Raise CheckpointError if a field that is printed or used in arithmetic has the wrong type."""
    val_loss, weights = payload.get("val_loss"), payload.get("model")
    plain = {
        "stage": isinstance(payload.get("stage"), str) and payload["stage"].isidentifier(),
        "step": isinstance(payload.get("step"), int),
        "val_loss": isinstance(val_loss, (int, float)) or (val_loss is None and "progress" in payload),
        "model": isinstance(weights, dict)
        and all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in weights.values()),
    }
    if wrong := [name for name, right in plain.items() if not right]:
        raise CheckpointError(f"{path} is not a stage checkpoint: invalid {', '.join(wrong)}; use another file")


def _has_training_settings(payload: Payload) -> bool:
    settings = payload.get("settings")
    if not (isinstance(settings, dict) and isinstance(settings.get("model"), dict)):
        return False
    stages = settings.get("stages")
    known = isinstance(stages, list) and bool(stages) and all(isinstance(stage, dict) for stage in stages)
    return known and isinstance(payload.get("data"), dict) and isinstance(payload.get("seen_tokens"), Tensor)


def check_shapes(payload: Payload, path: Path, model: ModelConfig) -> None:
    """Raise CheckpointError if the weights do not match this model's settings, before anything is built."""
    check_content(payload, path)
    if not _has_training_settings(payload):
        raise CheckpointError(f"{path} does not contain the settings it was trained with; restore a copy of it")
    theirs = payload["settings"]["model"]
    ours = dataclasses.asdict(model)
    different = [
        f"{name} is {theirs.get(name)} in the file and {value} in config.py"
        for name, value in ours.items()
        if name != "dropout" and theirs.get(name) != value
    ]
    if different:
        raise CheckpointError(
            f"{path} contains a model of another shape: {'; '.join(different)}; "
            "undo the change in config.py, or start the ladder over with --fresh (or under a new preset name)"
        )
    embedding = payload["model"].get(EMBEDDING)
    if not isinstance(embedding, Tensor) or tuple(embedding.shape) != (model.vocab_size, model.n_embd):
        raise CheckpointError(
            f"{path} has no weights {EMBEDDING} of shape {model.vocab_size} x {model.n_embd}; restore a copy of it"
        )
