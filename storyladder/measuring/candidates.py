"""A model that can be scored: its network up to the head, the head's weights, context and prefix token.

Loads our own checkpoints and the untrained network; foreign.py loads other people's folders.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyladder.corpus.tokenizer import Tokenizer
from storyladder.learning.network import EMBEDDING, BuildModel
from storyladder.learning.packing import unpack_weights
from storyladder.learning.vocabulary import CompactVocabulary, start_rows_equal
from storyladder.results import StageFiles, load_result, stage_command
from storyladder.runtime.checkpoint import Payload, read_checkpoint
from storyladder.runtime.errors import CheckpointError
from storyladder.settings import Ladder, ModelConfig
from storyladder.telling.teller import model_config

UNTRAINED = "untrained"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of the table before it is scored."""

    name: str
    stage: str | None
    step: int | None
    context: int  # tokens
    vocab_size: int
    prefix: int  # stands before a story that is scored alone
    eot: int | None  # ends every story; None: this model has no such token
    hidden: Callable[[Tensor], Tensor]  # (B, T) ids to (B, T, C), the input of the head
    head_weight: Tensor  # (V, C), or a row per token of a compact vocabulary
    weights_sha256: str
    vocabulary: CompactVocabulary | None = None
    encode: Callable[[Sequence[str]], list[list[int]]] | None = None  # a tokenizer of its own; None: ours
    notes: tuple[str, ...] = ()

    def rows(self, idx: Tensor) -> Tensor:
        """Token ids as rows of the embedding, same shape."""
        return self.vocabulary.rows_of(idx) if self.vocabulary else idx

    @property
    def log_unseen(self) -> float:
        """See learning/vocabulary.py."""
        return self.vocabulary.log_unseen if self.vocabulary else 0.0


def stages_with_weights(ladder: Ladder) -> list[str]:
    """The stages with a result, or with best weights so far, lowest first. CheckpointError if there is none."""
    files = {stage.name: StageFiles.of(ladder, stage) for stage in ladder.stages}
    found = [name for name, own in files.items() if own.result.exists() or own.best.exists()]
    if not found:
        first = stage_command(ladder, ladder.stages[0].name)
        raise CheckpointError(f"no stage has a result in {ladder.folder('checkpoints')}; train one: {first}")
    return found


def of_stage(
    ladder: Ladder,
    name: str,
    build_model: BuildModel,
    tokenizer: Tokenizer,
    device: torch.device,
    log: Callable[[str], None],
) -> Candidate:
    """The result of a stage, or its best weights while it trains."""
    path, payload = _payload_of(ladder, name, log)
    return _own(name, path, payload, build_model, tokenizer, device)


def _payload_of(ladder: Ladder, name: str, log: Callable[[str], None]) -> tuple[Path, Payload]:
    stage = ladder.stage(name)
    loaded = load_result(ladder, stage)
    if loaded is not None:
        for note in loaded.notes:
            log(f"warning: {note}")
        return loaded.path, loaded.payload
    best = StageFiles.of(ladder, stage).best
    if not best.exists():
        raise CheckpointError(f"stage {name} has no result yet; train it: {stage_command(ladder, name)}")
    log(f"note: stage {name} is not finished; its best weights so far are scored ({best.name})")
    return best, read_checkpoint(best)


def of_file(path: Path, build_model: BuildModel, tokenizer: Tokenizer, device: torch.device) -> Candidate:
    """Any checkpoint of ours."""
    return _own(str(path), path, read_checkpoint(path), build_model, tokenizer, device)


def untrained(ladder: Ladder, build_model: BuildModel, tokenizer: Tokenizer, device: torch.device) -> Candidate:
    """The weights that the first stage starts from, before any update."""
    stage = ladder.stages[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        weights = build_model(ladder.model).state_dict()
    files = StageFiles.of(ladder, stage)
    seen_V = torch.ones(ladder.model.vocab_size, dtype=torch.bool)
    if files.result.exists() or files.best.exists():
        _, payload = _payload_of(ladder, stage.name, lambda _: None)
        seen_V = _seen(payload, ladder.model)
    start_rows_equal(weights[EMBEDDING], seen_V)  # as training does
    return _loaded(UNTRAINED, (UNTRAINED, 0), weights, seen_V, ladder.model, build_model, tokenizer, device)


def _own(
    name: str, path: Path, payload: Payload, build_model: BuildModel, tokenizer: Tokenizer, device: torch.device
) -> Candidate:
    config = model_config(payload, path)
    made_with = payload.get("tokenizer", tokenizer.fingerprint)
    if made_with != tokenizer.fingerprint:
        raise CheckpointError(
            f"{path} was trained with tokenizer {made_with}, but the text is encoded with {tokenizer.fingerprint}; "
            "use a checkpoint of this ladder, or another --config"
        )
    weights = payload["model"]
    embedding = weights.get(EMBEDDING)
    if embedding is None or tuple(embedding.shape) != (config.vocab_size, config.n_embd):
        raise CheckpointError(f"{path}: its weights do not match its settings; train the stage again")
    about = (payload["stage"], payload["step"])
    try:
        return _loaded(name, about, weights, _seen(payload, config), config, build_model, tokenizer, device)
    except RuntimeError as error:  # torch's, about names and shapes
        if "state_dict" not in str(error):
            raise
        raise CheckpointError(f"{path}: its weights do not match its settings; train the stage again") from None


def _seen(payload: Payload, config: ModelConfig) -> Tensor:
    """Which tokens training has seen, (V,); all of them where that is not recorded."""
    seen_V = payload.get("seen_tokens")
    if isinstance(seen_V, Tensor) and seen_V.shape == (config.vocab_size,):
        return seen_V.bool()
    return torch.ones(config.vocab_size, dtype=torch.bool)


def _loaded(
    name: str,
    about: tuple[str, int],
    weights: dict[str, Tensor],
    seen_V: Tensor,
    config: ModelConfig,
    build_model: BuildModel,
    tokenizer: Tokenizer,
    device: torch.device,
) -> Candidate:
    """The model in memory; tokens that it has never seen share one row, which makes the head smaller."""
    vocabulary = CompactVocabulary(seen_V)
    if not vocabulary.can_share(weights[EMBEDDING]):
        vocabulary = CompactVocabulary(seen_V, compact=False)
    model = build_model(dataclasses.replace(config, vocab_size=max(2, vocabulary.n_rows)))
    unpack_weights(model, weights, vocabulary)
    model.to(device)
    model.eval()
    return Candidate(
        name=name,
        stage=about[0],
        step=about[1],
        context=config.context_length,
        vocab_size=config.vocab_size,
        prefix=tokenizer.eot,
        eot=tokenizer.eot,
        hidden=model.hidden,
        head_weight=model.head_weight,
        weights_sha256=sha256_of_weights(weights),
        vocabulary=vocabulary.to(device),
    )


def sha256_of_weights(weights: dict[str, Any]) -> str:
    """SHA-256 of all weights: names, shapes and float32 bytes, in the order of their names."""
    digest = hashlib.sha256()
    for part in _parts(weights):
        digest.update(part)
    return digest.hexdigest()


def _parts(weights: dict[str, Any]) -> Iterator[bytes | memoryview]:
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().float().contiguous()
        yield f"{name} {tuple(tensor.shape)}\n".encode()
        yield memoryview(tensor.view(-1).view(torch.uint8).numpy())
