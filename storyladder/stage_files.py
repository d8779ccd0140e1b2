"""What a stage keeps on disk and how it is packed: the resume state, the best weights so far, and the result.

    checkpoints/STAGE_resume.pt     everything that continuing exactly needs, and the generation before it
    checkpoints/STAGE_best.pt       the weights with the lowest validation loss so far
    checkpoints/<result_file>       those weights when the stage is finished; what the next stage and generate.py read

Nothing here decides what is loaded; that is starting.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyladder.learning.network import EMBEDDING, LanguageModel
from storyladder.learning.optimizer import forget_moments
from storyladder.learning.vocabulary import CompactVocabulary
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


@dataclasses.dataclass
class TrainState:
    """Where a stage stands. Plain values only: it is saved as it is."""

    step: int = 0  # updates done
    best_loss: float = float("inf")  # lowest val_loss so far
    best_step: int = -1
    bad_evals: int = 0  # evaluations since then
    windows: str = ""  # what evaluations read; losses on other windows are not compared
    evaluated_at: int = -1  # step of the last evaluation, so that a resumed stage does not count it twice
    skipped_steps: int = 0  # updates that were not made because a number was not finite
    skipped_in_a_row: int = 0
    train_seconds: float = 0.0  # spent in steps, over all runs of the stage
    rollbacks: int = 0  # to an earlier state, because numbers stayed bad
    batch_offset: int = 0  # batches left out by rollbacks: step k reads batch k + batch_offset
    micro_batch_size: int | None = None  # sequences per forward, once memory has run out with more
    precision: str | None = None  # that the stage is trained in
    threads: int | None = None  # of one process on a CPU
    losses_seen: int = 0  # in the running mean and variance of the step's loss, for finding spikes
    loss_mean: float = 0.0
    loss_variance: float = 0.0
    recent_losses: list[float] = dataclasses.field(default_factory=list)  # since the last record
    fitted: dict[str, int | None] = dataclasses.field(default_factory=dict)  # what --minutes made of the schedule

    def note_evaluation(self, val_loss: float) -> bool:
        """Count an evaluation at the current step; True if it is the best so far. NaN never is."""
        self.evaluated_at = self.step
        if val_loss < self.best_loss:
            self.best_loss, self.best_step, self.bad_evals = val_loss, self.step, 0
            return True
        self.bad_evals += 1
        return False

    def forget_best(self) -> None:
        """Let the best loss count anew: what it was measured on, or the weights that had it, are gone."""
        self.best_loss, self.best_step, self.bad_evals = float("inf"), -1, 0


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


def pack_weights(model: LanguageModel, vocabulary: CompactVocabulary) -> dict[str, Tensor]:
    """All weights on the CPU under GPT-2's names, with the whole vocabulary."""
    return {
        name: (vocabulary.expand(tensor) if name == EMBEDDING else tensor).detach().cpu().clone()
        for name, tensor in model.state_dict().items()
    }


def unpack_weights(model: LanguageModel, weights: dict[str, Tensor], vocabulary: CompactVocabulary) -> None:
    """Load weights of the whole vocabulary into a model whose vocabulary may be compact."""
    model.load_state_dict(
        {name: vocabulary.compress(tensor) if name == EMBEDDING else tensor for name, tensor in weights.items()}
    )


def pack_optimizer(
    model: LanguageModel, optimizer: torch.optim.Optimizer, vocabulary: CompactVocabulary
) -> dict[str, Any]:
    """The optimizer's moments by parameter name, with the whole vocabulary, and how many updates it made."""
    moments_of = _moments_of(optimizer)
    updates = max((int(state.get("step", 0)) for state in optimizer.state.values()), default=0)  # Muon counts none
    packed: dict[str, Any] = {
        "updates": updates,
        **{moment: {} for moments in moments_of.values() for moment in moments},
    }
    for name, parameter in model.named_parameters():
        for moment in moments_of[parameter] if updates else ():
            tensor = optimizer.state[parameter][moment]
            packed[moment][name] = (vocabulary.expand(tensor) if name == EMBEDDING else tensor).detach().cpu().clone()
    return packed


def unpack_optimizer(
    model: LanguageModel, optimizer: torch.optim.Optimizer, packed: dict[str, Any], vocabulary: CompactVocabulary
) -> None:
    """Give the optimizer back what `pack_optimizer` took, in place where it has a state: steps ahead write to that."""
    if not packed["updates"]:
        forget_moments(optimizer)
        return
    moments_of = _moments_of(optimizer)
    for name, parameter in model.named_parameters():
        state = {moment: packed[moment][name] for moment in moments_of[parameter]}
        if name == EMBEDDING:
            state = {moment: vocabulary.compress(tensor) for moment, tensor in state.items()}
        state = {moment: tensor.to(parameter.device) for moment, tensor in state.items()}
        if "exp_avg" in state:
            counter = torch.tensor(float(packed["updates"]))
            # The fused one counts on the device, the plain one on the CPU.
            state["step"] = counter.to(parameter.device) if optimizer.defaults["fused"] else counter
        there = optimizer.state[parameter]
        if there.keys() == state.keys():
            torch._foreach_copy_(list(there.values()), [state[key] for key in there])
        else:
            optimizer.state[parameter] = state


def _moments_of(optimizer: torch.optim.Optimizer) -> dict[Tensor, tuple[str, ...]]:
    """The names of each parameter's moments."""
    return {parameter: group["moments"] for group in optimizer.param_groups for parameter in group["params"]}


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


def check_optimizer(payload: Payload, path: Path, stage: StageConfig) -> None:
    """CheckpointError if a resume state is that of another optimizer than the stage's."""
    theirs = _saved_settings(payload)["optimizer"]
    if theirs != stage.optimizer:
        raise CheckpointError(
            f"{path} holds the state of optimizer {theirs!r}, which {stage.optimizer!r} cannot go on from; "
            f"set optimizer={theirs!r} in config.py for stage {stage.name}, or start over with --fresh"
        )


def _saved_settings(payload: Payload) -> dict[str, Any]:
    """The stage's settings in a checkpoint; what it does not name yet had the default's effect."""
    saved = payload["settings"]["stages"][-1]
    later = {
        field.name: field.default
        for field in dataclasses.fields(StageConfig)
        if field.default is not dataclasses.MISSING
    }
    return {"corpus": saved.get("name"), **later, **saved}  # a corpus had the name of its stage


# Settings that say how to run, when to look and where to keep it: they change nothing of what is learned, except that
# the draws of dropout follow the micro-batches.
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
    "compact_vocabulary",
}


def changes_since(payload: Payload, ladder: Ladder, stage: StageConfig, data: dict[str, str]) -> list[str]:
    """What would make a resumed run differ from an uninterrupted one, a phrase each."""
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
