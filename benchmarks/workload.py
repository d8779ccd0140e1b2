"""What contenders run on: real settings in a temporary folder, text with a realistic vocabulary, weights."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch

from model import GPT
from storyladder.corpus.corpora import token_files
from storyladder.corpus.token_file import TokenFile, TokenWriter, open_token_file
from storyladder.corpus.tokenizer import EOT, gpt2_tokenizer
from storyladder.results import plain_settings
from storyladder.runtime.checkpoint import save_checkpoint
from storyladder.runtime.errors import DataError
from storyladder.settings import PROJECT, Ladder, Paths, check

SAMPLE_TYPES = 1_145  # distinct ids in the bundled stories, the training text of the demo
TINYSTORIES_TYPES = 13_312  # the first 8.6 million tokens of TinyStories use 13,232
_SYNTHETIC_TOKENS = 2_000_000
_VAL_TOKENS = 4_096
_ZIPF = 1.1  # exponent: frequent words get about the share they have in stories
_STORY = 200  # tokens


def moved_to(ladder: Ladder, folder: Path) -> Ladder:
    """The same settings, with data, checkpoints and records under `folder`."""
    return check(dataclasses.replace(ladder, paths=Paths(root=str(folder))))


def put_text(ladder: Ladder, data: Path | None) -> str:
    """Put the first stage's token files into a ladder's data folder; returns a description of the text.

    The text is the given token file, or the user's data/train.bin, or, if that is missing or holds sample stories,
    synthetic ids with as many types as TinyStories: the size of a compact vocabulary depends only on the number of
    types.
    """
    train, _ = token_files(ladder, ladder.stages[0])
    train.parent.mkdir(parents=True, exist_ok=True)
    real = data if data is not None else PROJECT / "data" / "train.bin"
    description = ""
    if data is not None or _is_real_text(real):
        _open(real, ladder)  # raises if it is damaged or was made with another tokenizer
        for source, target in ((real, train), (_sidecar(real), _sidecar(train))):
            os.symlink(source.resolve(), target)
        description = f"{real.name}: "
    else:
        _write(train, zipf_ids(_SYNTHETIC_TOKENS, min(TINYSTORIES_TYPES, ladder.model.vocab_size)), "synthetic ids")
        description = "synthetic ids, Zipf-like: "
    return description + _put_val_file(ladder)


def put_synthetic_text(ladder: Ladder, types: int) -> str:
    """Put synthetic token files with `types` distinct ids into a ladder's data folder; returns a description."""
    train, _ = token_files(ladder, ladder.stages[0])
    train.parent.mkdir(parents=True, exist_ok=True)
    _write(train, zipf_ids(_SYNTHETIC_TOKENS, types), "synthetic ids")
    return "synthetic ids, Zipf-like: " + _put_val_file(ladder)


def _put_val_file(ladder: Ladder) -> str:
    """Use the head of the training text as validation text; returns token and type counts of the training text."""
    train, val = token_files(ladder, ladder.stages[0])
    opened = _open(train, ladder)
    _write(val, np.array(opened.ids[:_VAL_TOKENS]), "head of the training text")
    types = int(opened.seen(ladder.model.vocab_size).sum())
    return f"{opened.sidecar.tokens:,} tokens of {types:,} types"


def zipf_ids(n_tokens: int, n_types: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Ids with a Zipf distribution: type k has a share of about 1 / k, every type occurs, every 200th id is EOT."""
    random = np.random.default_rng(0)
    words = random.permutation(EOT)[: n_types - 1]
    shares = 1.0 / np.arange(1, n_types) ** _ZIPF
    drawn = words[random.choice(len(words), n_tokens, p=shares / shares.sum())]
    ids = drawn.astype(np.uint16)
    ids[_STORY - 1 :: _STORY] = EOT
    places = random.permutation(np.flatnonzero(ids != EOT))
    ids[places[: len(words)]] = words
    return ids


def put_random_weights(ladder: Ladder, path: Path) -> None:
    """Save a checkpoint of the untrained model, in the format of a stage."""
    torch.manual_seed(ladder.stages[0].seed)
    weights = GPT(ladder.model).state_dict()
    settings = plain_settings(ladder, ladder.stages[0], [])
    save_checkpoint(
        path,
        {"stage": "tiny", "step": 0, "val_loss": float("nan"), "settings": settings, "model": weights},
        keep_previous=False,
    )


def _is_real_text(path: Path) -> bool:
    """Whether the user's token file exists, is valid and is not the sample stories, whose vocabulary is tiny."""
    try:
        sources = open_token_file(path, tokenizer=gpt2_tokenizer().fingerprint, vocab_size=1 << 16).sidecar.sources
    except DataError:
        return False
    return not any("sample" in source for source in sources)


def _open(path: Path, ladder: Ladder) -> TokenFile:
    return open_token_file(
        path,
        tokenizer=gpt2_tokenizer().fingerprint,
        vocab_size=ladder.model.vocab_size,
        at_least=ladder.model.context_length + 1,
    )


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _write(path: Path, ids: np.ndarray[tuple[int], np.dtype[np.uint16]], source: str) -> None:
    with TokenWriter(path, gpt2_tokenizer().fingerprint) as writer:
        writer.add(ids, stories=int((ids == EOT).sum()), text_bytes=4 * len(ids))
        writer.finish(sources=[source], cleaning={})
