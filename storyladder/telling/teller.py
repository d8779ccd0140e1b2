"""Finding the newest result of the highest stage, and a model that is ready to tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from storyladder.learning.network import BuildModel, LanguageModel
from storyladder.results import StageFiles, broken_links, check_content, stage_command
from storyladder.runtime.checkpoint import Payload, read_checkpoint
from storyladder.runtime.errors import CheckpointError, SettingsError, say
from storyladder.settings import Ladder, ModelConfig, check_part

_STILL_GARBLED = 4.0  # nats per token; above it the words hardly make sentences


@dataclasses.dataclass(frozen=True)
class Teller:
    """A model that tells stories, the line that says which, and more lines about where it came from."""

    model: LanguageModel
    words: str
    notes: list[str]
    seen_V: list[bool] | None  # tokens that training saw, where the checkpoint says so


def load_teller(ladder: Ladder, checkpoint: Path | None, build_model: BuildModel, device: torch.device) -> Teller:
    """The model of a given checkpoint, else of the highest stage that has a result or, still training, best weights."""
    path, payload = (checkpoint, read_checkpoint(checkpoint)) if checkpoint is not None else _highest(ladder)
    config = model_config(payload, path)
    model = build_model(config)
    weights = payload["model"]
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise CheckpointError(f"{path}: its weights do not fit its settings; train the stage again")
    model.load_state_dict(weights)
    model.to(device)
    model.eval()
    seen_V = payload.get("seen_tokens")
    return Teller(
        model,
        _words(path, payload),
        notes=_origin(ladder, payload) if checkpoint is None else [],
        seen_V=seen_V.bool().flatten().tolist() if isinstance(seen_V, torch.Tensor) else None,
    )


def _origin(ladder: Ladder, payload: Payload) -> list[str]:
    """What to say where the ladder below this result was trained again since."""
    return [
        f"note: {words}; to train it again: {stage_command(ladder, name, '--fresh')}"
        for stage in ladder.stages
        if stage.name == payload.get("stage")
        for name, words in broken_links(ladder, stage, payload)
    ]


def _highest(ladder: Ladder) -> tuple[Path, Payload]:
    """Of the highest stage that has one: its result, else its best weights so far. What is damaged is said."""
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
                say(f"warning: {note}")
            return path, payload
    damaged = f" ({'; '.join(notes)})" if notes else ""
    first = stage_command(ladder, ladder.stages[0].name)
    raise CheckpointError(f"no stage has a result in {ladder.folder('checkpoints')}{damaged}; train one: {first}")


def model_config(payload: Payload, path: Path) -> ModelConfig:
    """The network's settings that a checkpoint carries, checked before anything is allocated."""
    try:
        config = check_part("model", ModelConfig(**payload["settings"]["model"]))
        stored = sum(tensor.numel() for tensor in payload["model"].values())
    except (KeyError, TypeError, AttributeError, SettingsError) as error:
        raise CheckpointError(f"{path} does not say what its model looks like: {error}") from None
    check_content(payload, path)
    if config.n_params != stored:
        raise CheckpointError(f"{path} promises {config.n_params:,} parameters and holds {stored:,}")
    return config


def _words(path: Path, payload: Payload) -> str:
    val_loss = payload.get("val_loss", float("nan"))
    words = f"{path.name}: stage {payload.get('stage')}, step {payload.get('step', 0):,}, val_loss {val_loss:.4f}"
    return words + (" (still garbled: train longer)" if val_loss > _STILL_GARBLED else "")
