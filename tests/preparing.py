"""How tests prepare stories in this process, and what they find in the token files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from storyladder.corpus.prepare import CorpusText, build_token_files
from storyladder.corpus.repeats import StoryHasher
from storyladder.corpus.token_file import Sidecar, open_token_file
from storyladder.corpus.tokenizer import EOT, Tokenizer, gpt2_tokenizer
from storyladder.settings import CorpusConfig


def text_of(stories: list[str], val: list[str] | None = None) -> CorpusText:
    return CorpusText(train=lambda: stories, val=(lambda: val) if val is not None else None, names=["given"])


def build(
    folder: Path, text: CorpusText, *, corpus: CorpusConfig | None = None, **options: object
) -> tuple[Sidecar, Sidecar]:
    """The sidecars of training and validation."""
    built = build_token_files(
        text,
        train_path=folder / "train.bin",
        val_path=folder / "val.bin",
        corpus=corpus or CorpusConfig(),
        **{"tokenizer": gpt2_tokenizer(), **options},  # type: ignore[arg-type]
    )
    assert list(built) == [folder / "train.bin", folder / "val.bin"]
    train, val = built.values()
    return train, val


def stories_in(path: Path) -> list[str]:
    tokenizer = gpt2_tokenizer()
    ids = open_token_file(path, tokenizer=tokenizer.fingerprint, vocab_size=50257).ids
    assert ids[-1] == EOT, "every story is ended, also the last"
    return tokenizer.decode(ids[:-1].tolist()).split("<|endoftext|>")


@cache
def hasher() -> StoryHasher:
    return StoryHasher(gpt2_tokenizer())


def hashes_of(*stories: str) -> tuple[int, int]:
    """Both hashes of the last of some stories."""
    normal, exact = hasher().of_stories(stories, gpt2_tokenizer().encode_stories(stories))
    return int(normal[-1]), int(exact[-1])


def bytes_of(folder: Path, pattern: str = "*.bin*") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def numbered(count: int) -> list[str]:
    return [f"Story number {i}." for i in range(count)]


class ByteTokenizer(Tokenizer):
    """A token a byte: quick, for tests of everything but tokens."""

    vocab_size = 257
    eot = 256

    def __init__(self) -> None:
        pass

    def encode_stories(self, stories: Sequence[str]) -> np.ndarray:
        ids = np.frombuffer(b"".join(story.encode() + b"\xff" for story in stories), dtype=np.uint8).astype(np.uint16)
        ids[ids == 255] = 256
        return ids

    def decode_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""
