"""What tests of whole stages share: a toy stage run, interrupted, poisoned, moved and compared."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import running
import torch
from rounding import assert_same_losses, norm_tolerance

from model import GPT
from storyladder.command_line import StageRun
from storyladder.corpus.corpora import token_files
from storyladder.results import StageFiles, plain_settings
from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.errors import Interrupted
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder, ModelConfig
from storyladder.stage.loop import train_stage

MICROS = 2  # forwards in a step of the toy stages
BATCHES_OF_EVALUATION = 9  # 15 whole windows by twos, and the rest of the file


def run_of(ladder: Ladder, name: str = "tiny", **flags: Any) -> StageRun:
    flags.setdefault("precision", running.PRECISION)
    return StageRun(ladder=ladder, stage=ladder.stage(name), device="cpu", **flags)


def with_stage(ladder: Ladder, name: str = "tiny", **changes: Any) -> Ladder:
    stages = tuple(replace(stage, **changes) if stage.name == name else stage for stage in ladder.stages)
    return replace(ladder, stages=stages)


def files_of(ladder: Ladder, name: str = "tiny") -> StageFiles:
    return StageFiles.of(ladder, ladder.stage(name))


class SignalAt:
    """Builds models that send this process a real signal at the n-th forward of training, or of evaluation."""

    def __init__(self, n: int, *, training: bool = True, number: int = signal.SIGTERM) -> None:
        self.left = n
        self.training = training
        self.number = number

    def __call__(self, config: ModelConfig) -> GPT:
        outer = self

        class Counted(GPT):
            def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
                if self.training == outer.training:
                    outer.left -= 1
                    if outer.left == 0:
                        os.kill(os.getpid(), outer.number)
                return super().hidden(idx_BT, cache)

        return Counted(config)


def interrupt_in_step(ladder: Ladder, step: int, name: str = "tiny", **flags: Any) -> None:
    """Run the stage until a signal arrives in the middle of `step` (counted from where this run starts)."""
    with pytest.raises(Interrupted):
        train_stage(run_of(ladder, name, **flags), SignalAt(MICROS * step + 2))


class Poisoned(GPT):
    """A network whose loss is NaN in some forwards of training."""

    poisoned: ClassVar[set[int]] = set()
    count = 0

    def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
        x = super().hidden(idx_BT, cache)
        if self.training:
            type(self).count += 1
            if type(self).count in self.poisoned:
                return x * float("nan")
        return x


def poisoned(*forwards: int) -> type[GPT]:
    return type("PoisonedHere", (Poisoned,), {"poisoned": set(forwards), "count": 0})


def never_improving(ladder: Ladder, patience: int) -> Ladder:
    """A rate so small that float32 weights do not move: every evaluation ties with the first."""
    return with_stage(
        ladder, max_steps=60, max_lr=1e-12, min_lr=0.0, weight_decay=0.0, patience=patience, eval_interval=2
    )


def elsewhere(ladder: Ladder, tmp_path: Path, name: str) -> Ladder:
    """The same ladder and data under another root."""
    root = tmp_path / name
    (root / "data").mkdir(parents=True)
    for path in ladder.folder("data").iterdir():
        (root / "data" / path.name).write_bytes(path.read_bytes())
    return replace(ladder, paths=replace(ladder.paths, root=str(root)))


def payload_of(ladder: Ladder, name: str = "children") -> dict[str, Any]:
    """What a checkpoint of a stage must hold, with as little in it as there can be."""
    stage = ladder.stage(name)
    return {
        "stage": name,
        "step": 3,
        "val_loss": 1.5,
        "seen_tokens": torch.ones(ladder.model.vocab_size, dtype=torch.uint8),
        "settings": plain_settings(ladder, stage, []),
        "data": dict(zip((path.name for path in token_files(ladder, stage)), "ab", strict=True)),
        "model": {"transformer.wte.weight": torch.zeros(ladder.model.vocab_size, ladder.model.n_embd)},
    }


def plain_state(path: Path) -> dict[str, Any]:
    """A checkpoint without what the clock wrote into it."""
    payload = read_checkpoint(path)
    payload.get("progress", {}).pop("train_seconds", None)
    for key in ("train_seconds", "digest"):
        payload.pop(key, None)
    return payload


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, tensors and plain values."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    else:
        assert a == b, where


def plain_record(path: Path) -> list[dict[str, Any]]:
    """What was measured, without times and speeds."""
    clocked = {"time", "tokens_per_s", "train_seconds", "peak_memory", "minutes"}
    return [
        {key: value for key, value in record.items() if key not in clocked}
        for record in read_records(path)
        if record["event"] != "start"
    ]


def recorded(ladder: Ladder, stage: str, *records: dict[str, Any]) -> None:
    """Write a run log as a stage would."""
    path = files_of(ladder, stage).record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def losses_of(ladder: Ladder, event: str = "train", loss: str = "train_loss") -> list[float]:
    """Of stage 1, as recorded."""
    records = read_records(files_of(ladder).record)
    return [record[loss] for record in records if record["event"] == event]


def curve(ladder: Ladder) -> dict[str, list[float]]:
    """Every measured loss and gradient norm, in order."""
    records = read_records(files_of(ladder).record)
    trained = [record for record in records if record["event"] == "train"]
    evaluated = [record for record in records if record["event"] == "evaluation"]
    return {
        "steps": [record["step"] for record in (*trained, *evaluated)],
        "train_loss": [record["train_loss"] for record in trained],
        "val_loss": [record["val_loss"] for record in evaluated],
        "grad_norm": [record["grad_norm"] for record in trained],
    }


def assert_same_curve(one: Ladder, other: Ladder) -> None:
    """Equal but for rounding in the precision that is recorded."""
    (precision,) = {
        record["precision"]
        for ladder in (one, other)
        for record in read_records(files_of(ladder).record)
        if record["event"] == "start"
    }
    ours, theirs = curve(one), curve(other)
    assert ours["steps"] == theirs["steps"]
    for name in ("train_loss", "val_loss"):
        assert_same_losses(ours[name], theirs[name], precision)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=norm_tolerance(precision))
