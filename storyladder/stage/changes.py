"""Changes since a checkpoint was written that would make a resumed run differ from an uninterrupted one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from storyladder.runtime.checkpoint import Payload
from storyladder.runtime.errors import CheckpointError
from storyladder.settings import Ladder, StageConfig


def check_optimizer(payload: Payload, path: Path, stage: StageConfig) -> None:
    """Raise CheckpointError if a resume state has another optimizer than the stage."""
    theirs = _saved_settings(payload)["optimizer"]
    if theirs != stage.optimizer:
        raise CheckpointError(
            f"{path} contains the state of optimizer {theirs!r}, from which {stage.optimizer!r} cannot continue; "
            f"set optimizer={theirs!r} in config.py for stage {stage.name}, or start over with --fresh"
        )


def _saved_settings(payload: Payload) -> dict[str, Any]:
    """The stage's settings in a checkpoint. A field that did not exist yet gets its default, which changes nothing."""
    saved = payload["settings"]["stages"][-1]
    later = {
        field.name: field.default
        for field in dataclasses.fields(StageConfig)
        if field.default is not dataclasses.MISSING
    }
    return {"corpus": saved.get("name"), **later, **saved}  # a corpus had the name of its stage


# Settings for speed, evaluations and files: they do not change what the model learns, except that dropout's random
# numbers depend on the micro-batches.
_FREE_SETTINGS = {
    "script",
    "result_file",
    "micro_batch_size",
    "threads",
    "eval_interval",
    "patience",
    "save_interval",
    "save_minutes",
    "log_interval",
    "sample_tokens",
    "pictures",
    "tensorboard",
    "compact_vocabulary",
}


def changes_since(payload: Payload, ladder: Ladder, stage: StageConfig, data: dict[str, str]) -> list[str]:
    """Descriptions of the changes that would make a resumed run differ from an uninterrupted one."""
    saved = _saved_settings(payload)
    now = dataclasses.asdict(stage)
    changed = [
        f"{name} was {saved.get(name)} and is {value}"
        for name, value in now.items()
        if name not in _FREE_SETTINGS and saved.get(name) != value
    ]
    if (tokenizer := payload["settings"].get("tokenizer", "gpt2")) != ladder.tokenizer:
        changed.append(f"tokenizer was {tokenizer} and is {ladder.tokenizer}")
    if payload["settings"]["model"].get("dropout") != ladder.model.dropout:
        changed.append(f"dropout was {payload['settings']['model'].get('dropout')} and is {ladder.model.dropout}")
    changed += [f"the content of {name} changed" for name in data if payload["data"].get(name) != data[name]]
    return changed
