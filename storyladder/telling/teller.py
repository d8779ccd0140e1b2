"""Loading the model that tells stories: the newest result of the highest stage, or a given checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from storyladder.learning.network import BuildModel, LanguageModel
from storyladder.results import StageFiles, broken_links, check_content, stage_command
from storyladder.runtime.checkpoint import Payload, read_checkpoint
from storyladder.runtime.errors import CheckpointError, SettingsError, report
from storyladder.settings import Ladder, ModelConfig, check_part

_STILL_GARBLED = 4.0  # nats per token; above it the words hardly make sentences


@dataclasses.dataclass(frozen=True)
class Teller:
    """A model that tells stories, a line that describes it, and notes about where it came from."""

    model: LanguageModel
    description: str
    notes: list[str]
    seen_V: list[bool] | None  # which tokens training saw, if the checkpoint records it


def load_teller(ladder: Ladder, checkpoint: Path | None, build_model: BuildModel, device: torch.device) -> Teller:
    """Load the given checkpoint, else that of the highest stage with a result or, while it trains, best weights."""
    path, payload = (checkpoint, read_checkpoint(checkpoint)) if checkpoint is not None else _highest(ladder)
    config = model_config(payload, path)
    model = build_model(config)
    weights = payload["model"]
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise CheckpointError(f"{path}: its weights do not match its settings; train the stage again")
    model.load_state_dict(weights)
    model.to(device)
    model.eval()
    seen_V = payload.get("seen_tokens")
    return Teller(
        model,
        _description(path, payload),
        notes=_origin(ladder, payload) if checkpoint is None else [],
        seen_V=seen_V.bool().flatten().tolist() if isinstance(seen_V, torch.Tensor) else None,
    )


def _origin(ladder: Ladder, payload: Payload) -> list[str]:
    """Notes if a stage below this result has been trained again since."""
    return [
        f"note: {reason}; to train it again: {stage_command(ladder, name, '--fresh')}"
        for stage in ladder.stages
        if stage.name == payload.get("stage")
        for name, reason in broken_links(ladder, stage, payload)
    ]


def _highest(ladder: Ladder) -> tuple[Path, Payload]:
    """The highest stage's result, else its best weights so far, with a warning for every damaged file."""
    notes: list[str] = []
    for stage in reversed(ladder.stages):
        files = StageFiles.of(ladder, stage)
        for path in (files.result, files.best):
            if not path.exists():
                continue
            try:
                payload = read_checkpoint(path)
            except CheckpointError as error:
                notes.append(str(error))
                continue
            for note in notes:
                report(f"warning: {note}")
            return path, payload
    damaged = f" ({'; '.join(notes)})" if notes else ""
    first = stage_command(ladder, ladder.stages[0].name)
    raise CheckpointError(f"no stage has a result in {ladder.folder('checkpoints')}{damaged}; train one: {first}")


def model_config(payload: Payload, path: Path) -> ModelConfig:
    """The model settings in a checkpoint, checked before anything is allocated."""
    try:
        config = check_part("model", ModelConfig(**payload["settings"]["model"]))
        stored = sum(tensor.numel() for tensor in payload["model"].values())
    except (KeyError, TypeError, AttributeError, SettingsError) as error:
        raise CheckpointError(f"{path} has no valid model settings: {error}; use another checkpoint") from None
    check_content(payload, path)
    if config.n_params != stored:
        raise CheckpointError(
            f"{path} has {stored:,} parameters, but its settings give {config.n_params:,}; train the stage again"
        )
    return config


def _description(path: Path, payload: Payload) -> str:
    val_loss = payload.get("val_loss", float("nan"))
    text = f"{path.name}: stage {payload.get('stage')}, step {payload.get('step', 0):,}, val_loss {val_loss:.4f}"
    return text + (" (still garbled: train longer)" if val_loss > _STILL_GARBLED else "")
