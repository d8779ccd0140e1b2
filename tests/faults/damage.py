"""Harm done to checkpoint files that lie on the disk: cut, flipped, emptied, mixed."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from judging import Reference, Verdict
from launcher import KILLED
from playground import Toy, content_digest

from storyladder.runtime.checkpoint import read_checkpoint
from storyladder.runtime.errors import CheckpointError

Harm = Callable[[Path], None]


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def _folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _text(path: Path) -> None:
    path.write_text("404: Not Found\n", encoding="utf-8")


EMPTY: dict[str, Harm] = {
    "0 bytes": _emptied,
    "missing": _missing,
    "an empty folder": _folder,
    "zeros": _zeros,
    "a web page": _text,
}


def cut_at(seed: int) -> Harm:
    """Truncate at a random length."""

    def harm(path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw[: random.Random(seed).randrange(len(raw))])

    return harm


def flip_at(seed: int) -> Harm:
    """Flip one bit of tensor data."""

    def harm(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        places = tensor_places(path)
        place = random.Random(seed).choice(places)
        raw[place] ^= 1 << seed % 8
        path.write_bytes(raw)

    return harm


def tensor_places(path: Path) -> list[int]:
    """Where in the file bytes of tensors lie."""
    places: list[int] = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for record in archive.infolist():
            if "/data/" not in record.filename:
                continue
            file.seek(record.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            begin = record.header_offset + 30 + name + extra
            places.extend(range(begin, begin + record.file_size))
    return places


def splice(part: str) -> Harm:
    """Newest file, but with a part of the generation before it and the newest's own digest: a stale mix."""

    def harm(path: Path) -> None:
        newest = torch.load(path, weights_only=True)
        older = torch.load(path.with_suffix(".prev.pt"), weights_only=True)
        name = {"weights": "model"}.get(part, part)
        torch.save({**newest, name: older[name]}, path)

    return harm


def _two_generations(toy: Toy) -> Path:
    assert toy.run("forward:20:kill").status == KILLED
    return toy.checkpoint("tiny_resume.pt")


def truncations(count: int) -> Callable[[Toy, Reference], Verdict]:
    """Cut the newest file at `count` lengths; every one is found."""

    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict(count=count)
        path = _two_generations(toy)
        raw = path.read_bytes()
        random_lengths = random.Random(8).sample(range(len(raw)), count - 20)
        for length in [*range(10), *(len(raw) - 1 - back for back in range(10)), *random_lengths]:
            path.write_bytes(raw[:length])
            _expect_error(verdict, path, f"cut to {length} bytes")
        return verdict

    return play


def flips(count: int, *, in_tensors: bool) -> Callable[[Toy, Reference], Verdict]:
    """Flip one bit at `count` random places: found, or (outside the tensors) the content read is the same."""

    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict(count=count)
        path = _two_generations(toy)
        sound = content_digest(path)
        raw = path.read_bytes()
        tensors = tensor_places(path)
        others = sorted(set(range(len(raw))) - set(tensors))
        choice = random.Random(9)
        harmless = 0
        for _ in range(count):
            place, bit = choice.choice(tensors if in_tensors else others), choice.randrange(8)
            flipped = bytearray(raw)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            harmless += _expect_error(verdict, path, f"bit {bit} of byte {place}", same=None if in_tensors else sound)
        if not in_tensors:
            verdict.notes.append(f"{count - harmless} found, {harmless} read as the same content")
        return verdict

    return play


def _expect_error(verdict: Verdict, path: Path, words: str, same: str | None = None) -> bool:
    """Demand that a file is refused, or that what it holds has the digest `same`; True in that case."""
    try:
        read_checkpoint(path)
    except CheckpointError:
        return False
    except Exception as error:
        verdict.failed += 1
        verdict.problems.append(f"{words}: {type(error).__name__}: {error}")
        return False
    if same is not None and content_digest(path) == same:
        return True
    verdict.failed += 1
    verdict.problems.append(f"{words} is not noticed")
    verdict.silent = True
    return False
