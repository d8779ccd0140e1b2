"""What a stage leaves on the disk, and reading it: the result, the best weights so far, the resume state.

checkpoints/STAGE_resume.pt     everything that an exact resume needs, and the generation before it
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
        """Where they lie."""
        folder = ladder.folder("checkpoints")
        return cls(
            result=folder / stage.result_file,
            best=folder / f"{stage.name}_best.pt",
            resume=folder / f"{stage.name}_resume.pt",
            record=ladder.folder("runs") / f"{stage.name}.jsonl",
        )

    def set_aside(self, stamp: str) -> list[Path]:
        """Give all files of the stage a name with `stamp` in it; the new names."""
        kept = []
        # The result goes last: whoever is killed on the way finds a finished stage and not half of one.
        for path in (previous_of(self.resume), self.resume, self.best, self.result):
            if path.exists():
                aside = path.with_name(f"{path.stem}.before-{stamp}.pt")
                os.replace(path, aside)
                kept.append(aside)
        return kept

    def forget_resume_state(self) -> None:
        """Delete the resume states of a finished stage; result and best weights stay."""
        for path in (self.resume, previous_of(self.resume)):
            with contextlib.suppress(OSError):  # the stage is finished; what cannot be deleted does no harm
                path.unlink(missing_ok=True)


def load_result(ladder: Ladder, stage: StageConfig) -> Loaded | None:
    """The result of a finished stage, or its best weights if the result itself is damaged; None if unfinished."""
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
            raise CheckpointError(f"{error}; {too}; put a copy back, or train the stage again: {again}") from None
        return Loaded(best, files.best, [f"{error}; using {files.best.name} in its place"])


def stage_command(ladder: Ladder, stage_name: str, *flags: str) -> str:
    """What the user types to train a stage of this ladder."""
    return ladder.command(ladder.stage(stage_name).script, *flags)


def model_digest(payload: Payload) -> str:
    """What tells the weights of a checkpoint from others; computed for those that did not record it yet."""
    recorded = payload.get("model_digest")
    return recorded if isinstance(recorded, str) else digest_of(payload["model"])


def broken_links(ladder: Ladder, stage: StageConfig, payload: Payload) -> Iterator[tuple[str, str]]:
    """Where a checkpoint of `stage`, or of a stage it came from, came from other weights than now lie on the disk.

    The stage that would have to be trained again, and a phrase. Checkpoints that did not record it yet are passed over.
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
                f"stage {stage.name} came from another result of stage {above.name} than today's {path.name}",
            )
        stage, payload = above, result


def plain_settings(ladder: Ladder, stage: StageConfig, ancestors: list[dict[str, Any]]) -> dict[str, Any]:
    """Model and stage settings as plain values, behind those that the ancestors were really trained with."""
    return {
        "preset": ladder.name,
        "tokenizer": ladder.tokenizer,
        "model": dataclasses.asdict(ladder.model),
        "stages": [*ancestors, dataclasses.asdict(stage)],
    }


def check_content(payload: Payload, path: Path) -> None:
    """CheckpointError unless what is printed of a checkpoint, and computed with, is of its type, whoever wrote it."""
    val_loss, weights = payload.get("val_loss"), payload.get("model")
    plain = {
        "stage": isinstance(payload.get("stage"), str) and payload["stage"].isidentifier(),
        "step": isinstance(payload.get("step"), int),
        "val_loss": isinstance(val_loss, (int, float)) or (val_loss is None and "progress" in payload),
        "model": isinstance(weights, dict)
        and all(isinstance(tensor, Tensor) and tensor.is_floating_point() for tensor in weights.values()),
    }
    if wrong := [name for name, right in plain.items() if not right]:
        raise CheckpointError(f"{path} is no checkpoint of a stage: its {', '.join(wrong)} cannot be meant")


def _says_how_it_was_trained(payload: Payload) -> bool:
    settings = payload.get("settings")
    if not (isinstance(settings, dict) and isinstance(settings.get("model"), dict)):
        return False
    stages = settings.get("stages")
    known = isinstance(stages, list) and bool(stages) and all(isinstance(stage, dict) for stage in stages)
    return known and isinstance(payload.get("data"), dict) and isinstance(payload.get("seen_tokens"), Tensor)


def check_shapes(payload: Payload, path: Path, model: ModelConfig) -> None:
    """CheckpointError if the weights are not those of this model, before anything is built."""
    check_content(payload, path)
    if not _says_how_it_was_trained(payload):
        raise CheckpointError(f"{path} does not say how it was trained; put another copy in its place")
    theirs = payload["settings"]["model"]
    ours = dataclasses.asdict(model)
    different = [
        f"{name} is {theirs.get(name)} there and {value} in config.py"
        for name, value in ours.items()
        if name != "dropout" and theirs.get(name) != value
    ]
    if different:
        raise CheckpointError(
            f"{path} holds a model of another shape: {'; '.join(different)}; "
            "set config.py back, or start the ladder over with --fresh (or under a new preset name)"
        )
    embedding = payload["model"].get(EMBEDDING)
    if not isinstance(embedding, Tensor) or tuple(embedding.shape) != (model.vocab_size, model.n_embd):
        raise CheckpointError(f"{path} lacks the weights {EMBEDDING} of {model.vocab_size} x {model.n_embd}")
