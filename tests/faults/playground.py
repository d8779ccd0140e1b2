"""Toy projects in a temporary folder, and what is compared between a run that met a fault and one that did not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from launcher import Launch, Outcome, run

from storyladder.corpus.token_file import TokenWriter
from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer
from storyladder.runtime.checkpoint import digest_of, read_checkpoint
from storyladder.runtime.errors import CheckpointError

CONFIG = '''"""Toy settings of the fault tests."""

from dataclasses import replace

import config
from storyladder.settings import CorpusConfig, Ladder, ModelConfig, Paths

MODEL = ModelConfig(**{model!r})
STAGE = dict(patience=None) | {stage!r}
STAGES = tuple(replace(stage, **STAGE) for stage in config.LADDER.stages)
CORPUS = CorpusConfig(sample_stories=120)
PRESETS = (Ladder(model=MODEL, stages=STAGES, corpus=CORPUS, paths=Paths(root={root!r})),)
'''
# 64 token types instead of 50,257 make a step and a save a matter of milliseconds; nothing else depends on them.
MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context_length": 16, "vocab_size": 64, "dropout": 0.1}
WHOLE_MODEL = {**MODEL, "n_embd": 8, "vocab_size": 50257}
STAGE = {
    "max_steps": 12,
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_lr": 1e-2,
    "min_lr": 1e-3,
    "warmup_steps": 2,
    "eval_interval": 4,
    "save_interval": 3,
    "log_interval": 1,
    "replay": None,
    "pictures": False,
    "seed": 7,
}
TYPES = 60
PRECISION = "auto"  # of all stages: run.py --precision
TRAIN = "train_tiny.py"
_TIMES = ("time", "tokens_per_s", "train_seconds", "seconds")
_RECORDED = ("train", "evaluation")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A toy project: its settings, changed from the plain ones, and which scripts make its data."""

    name: str
    model: tuple[tuple[str, Any], ...] = ()
    stage: tuple[tuple[str, Any], ...] = ()
    whole_vocabulary: bool = False
    train_tokens: int = 700
    val_tokens: int = 250
    prepare: str = ""  # Launch.prepare of every run


PLAIN = Variant("plain")
# A learning rate that soon overfits: the validation loss rises, and patience ends the stage early.
PATIENCE = Variant("patience", stage=(("patience", 3), ("max_steps", 80), ("eval_interval", 4), ("max_lr", 3e-2)))
NO_DROPOUT = Variant("no-dropout", model=(("dropout", 0.0),), stage=(("micro_batch_size", 4),))
LONG = Variant(
    "long",
    # Enough text and a rate so low that the validation loss falls to the end: the last weights are the best ones.
    stage=(("max_steps", 2000), ("save_interval", 10), ("eval_interval", 100), ("log_interval", 10), ("max_lr", 1e-3)),
    train_tokens=40_000,
    val_tokens=600,
)
STEADY = Variant("steady", stage=(("max_steps", 60), ("save_interval", 5), ("eval_interval", 20)))
WHOLE = Variant("whole", whole_vocabulary=True)
BIG_DATA = Variant("big-data", train_tokens=40_000, val_tokens=8_000, stage=(("val_windows", 8),))
FP16 = Variant(
    "fp16",
    stage=(("max_steps", 24),),
    prepare="""
import storyladder.stage.setup as setup, torch
from storyladder.runtime.machine import Precision
setup.pick_precision = lambda *_: Precision(torch.float16, "a test asks for it", "cpu")
""",
)
VARIANTS = {variant.name: variant for variant in (PLAIN, PATIENCE, NO_DROPOUT, LONG, STEADY, WHOLE, BIG_DATA, FP16)}


@dataclasses.dataclass(frozen=True)
class Toy:
    """A toy project under a root of its own."""

    root: Path
    variant: Variant

    @property
    def config(self) -> Path:
        return self.root / "config.py"

    def checkpoint(self, name: str) -> Path:
        return self.root / "checkpoints" / name

    def data(self, name: str) -> Path:
        return self.root / "data" / name

    def write_config(self, *, model: dict[str, Any] | None = None, stage: dict[str, Any] | None = None) -> None:
        """The variant's settings, with changes."""
        whole = WHOLE_MODEL if self.variant.whole_vocabulary else MODEL
        text = CONFIG.format(
            model={**whole, **dict(self.variant.model), **(model or {})},
            stage={**STAGE, **dict(self.variant.stage), **(stage or {})},
            root=str(self.root),
        )
        self.config.write_text(text, encoding="utf-8")

    def launch(self, faults: str = "", *arguments: str, script: str = TRAIN, **how: Any) -> Launch:
        """A run of a script on this toy."""
        how.setdefault("prepare", self.variant.prepare)
        flags = ("--config", str(self.config), *arguments)
        if script.startswith("train_") and PRECISION != "auto" and self.variant is not FP16:
            flags = (*flags, "--precision", PRECISION)
        return Launch(script=script, arguments=flags, root=self.root, faults=faults, **how)

    def run(self, faults: str = "", *arguments: str, script: str = TRAIN, **how: Any) -> Outcome:
        """Run a script in a fork."""
        return run(self.launch(faults, *arguments, script=script, **how))


def make_toy(root: Path, variant: Variant) -> Toy:
    """A toy project with its token files."""
    toy = Toy(root, variant)
    root.mkdir(parents=True)
    toy.write_config()
    for number, suffix in enumerate(("", "_ch", "_simp")):
        ends = variant.whole_vocabulary
        write_tokens(toy.data(f"train{suffix}.bin"), variant.train_tokens, seed=number, with_ends=ends)
        write_tokens(toy.data(f"val{suffix}.bin"), variant.val_tokens, seed=10 + number, with_ends=ends)
    return toy


def write_tokens(path: Path, n_tokens: int, *, seed: int, with_ends: bool = False, types: int = TYPES) -> None:
    """A token file of random ids that lean towards small numbers, so that there is something to learn."""
    ids = (np.random.default_rng(seed).random(n_tokens) ** 2 * types).astype(np.uint16)
    if with_ends:
        ids[19::20] = EOT
    with TokenWriter(path, gpt2_tokenizer().fingerprint) as writer:
        writer.add(ids, stories=n_tokens // 20, text_bytes=3 * n_tokens)
        writer.finish(sources=["toy"], cleaning={})


def copy_toy(original: Toy, root: Path) -> Toy:
    """The same project at another place."""
    shutil.copytree(original.root, root)
    toy = Toy(root, original.variant)
    toy.write_config()
    return toy


@dataclasses.dataclass(frozen=True)
class Ending:
    """What must be equal: the digest of the final weights, and that of the loss record."""

    weights: str | None
    record: str | None


def ending_of(toy: Toy, *, result: str = "tinystories_28M_final.pt", record: str = "tiny.jsonl") -> Ending:
    """What a stage left behind; None for what is missing or damaged."""
    try:
        weights = sha256_of_tensors(read_checkpoint(toy.checkpoint(result))["model"])
    except CheckpointError:
        weights = None
    return Ending(weights, record_digest(toy.root / "runs" / record))


def sha256_of_tensors(tensors: dict[str, Any]) -> str:
    """One digest of all names and bytes."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].contiguous().numpy().tobytes())
    return state.hexdigest()


def record_digest(path: Path) -> str | None:
    """One digest of all losses, without what depends on the time of day or on the speed."""
    if not path.is_file():
        return None
    state = hashlib.sha256()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # torn, as a kill in mid-write leaves it; a lost record would show in the digest
        if values["event"] in _RECORDED:
            kept = {name: value for name, value in values.items() if name not in _TIMES}
            state.update(json.dumps(kept, sort_keys=True).encode())
    return state.hexdigest()


def sound_steps(toy: Toy) -> dict[str, int]:
    """Every checkpoint under its own name that can be read and verified, with its step."""
    steps = {}
    for path in sorted(toy.root.glob("checkpoints/*.pt")):
        try:
            steps[path.name] = read_checkpoint(path)["step"]
        except CheckpointError:
            continue
    return steps


def lost_checkpoint(toy: Toy, outcome: Outcome) -> str | None:
    """What was once complete and has no sound generation any more, in words; None if nothing."""
    done = [line.split()[2] for line in outcome.trace if line.startswith("done rename")]
    gone = [line.split()[2] for line in outcome.trace if line.startswith(("done unlink", "call unlink"))]
    sound = sound_steps(toy)
    result = "tinystories_28M_final.pt"
    if "tiny_best.pt" in done and "tiny_best.pt" not in sound:
        return "tiny_best.pt"
    if result in done and result not in sound:
        return result
    if "tiny_resume.pt" in done and result not in done and "tiny_resume.pt" not in gone:
        steps = [step for name, step in sound.items() if name.startswith("tiny_resume")]
        went_back = any(
            line.startswith(("fired forward nan", "fired forward poison", "fired forward oom"))
            for line in outcome.trace
        )
        if not steps or (not went_back and max(steps) < _step_of_last_save(toy, outcome.trace)):
            return "tiny_resume.pt"
    return None


def _step_of_last_save(toy: Toy, trace: list[str]) -> int:
    """Updates done when the resume state last got its name, counted in passes of the network since the start."""
    last = max(number for number, line in enumerate(trace) if line == "done rename tiny_resume.pt")
    passes = sum(line == "call forward network" for line in trace[:last])
    stage = {**STAGE, **dict(toy.variant.stage)}
    return passes * stage["micro_batch_size"] // stage["batch_size"]


def content_digest(path: Path) -> str:
    """The digest of everything a checkpoint holds, recomputed from what was read."""
    return digest_of(read_checkpoint(path))
