"""Cases 24 to 33 of the matrix: token files that are damaged or change, and text as it comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from judging import Injection, Reference, Verdict, check_outcome, compare, fault_then_again, recover, refuses
from playground import BIG_DATA, PLAIN, WHOLE, Toy, write_tokens

EOT = 50256


def _change_sidecar(**changes: Any) -> Callable[[Toy], None]:
    def change(toy: Toy) -> None:
        path = toy.data("train.bin.json")
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return change


def _cut_to(size: int, name: str = "train.bin") -> Callable[[Toy], None]:
    return lambda toy: toy.data(name).write_bytes(toy.data(name).read_bytes()[:size])


def _large_ids(*, forge: bool) -> Callable[[Toy], None]:
    """Ids beyond the vocabulary; with `forge` the sidecar says nothing of them and its hash is right."""

    def change(toy: Toy) -> None:
        write_tokens(toy.data("train.bin"), 700, seed=0, types=90)
        if forge:
            _change_sidecar(largest_id=59)(toy)

    return change


def _flip_bit(toy: Toy) -> None:
    raw = bytearray(toy.data("train.bin").read_bytes())
    raw[700] ^= 1
    toy.data("train.bin").write_bytes(raw)


def _short(n_tokens: int) -> Callable[[Toy], None]:
    return lambda toy: write_tokens(toy.data("train.bin"), n_tokens, seed=0)


def _no_tokens(toy: Toy) -> None:
    toy.data("train.bin").write_bytes(b"")
    _change_sidecar(tokens=0, largest_id=0, sha256=hashlib.sha256(b"").hexdigest())(toy)


def token_file_cases() -> Iterator[Injection]:
    """Cases 24 to 29."""
    for size in (0, 1, 699, 1399):
        play = refuses(before=_cut_to(size), words="prepare_data.py", unchanged="data/*")
        yield Injection(24, f"train.bin cut to {size} bytes", play, fast=size == 1399)
    yield Injection(24, "val.bin cut", refuses(before=_cut_to(101, "val.bin"), words="prepare_data.py"))
    for words, change in {
        "too many": _change_sidecar(tokens=10**12),
        "too few": _change_sidecar(tokens=699),
        "a text": _change_sidecar(tokens="700"),
        "negative": _change_sidecar(tokens=-1),
        "infinite": _change_sidecar(tokens=float("inf")),
    }.items():
        yield Injection(25, f"the sidecar's tokens: {words}", refuses(before=change, words="prepare_data.py"))
    for words, text in {"empty": "", "half": '{"format_version": 1, "dt', "a list": "[1]", "deep": "[" * 10**5}.items():
        before = lambda toy, text=text: toy.data("train.bin.json").write_text(text, encoding="utf-8")  # noqa: E731
        yield Injection(25, f"the sidecar is {words}", refuses(before=before, words="prepare_data.py"))
    play = refuses(before=lambda toy: toy.data("train.bin.json").unlink(), words="prepare_data.py")
    yield Injection(25, "no sidecar", play)
    for forge in (False, True):
        play = refuses(before=_large_ids(forge=forge), words="rebuild it")
        yield Injection(26, f"ids beyond the vocabulary{', forged sidecar' if forge else ''}", play, fast=forge)
    yield Injection(26, "a flipped bit", refuses(before=_flip_bit, words="its sidecar"))
    yield Injection(27, "no token", refuses(before=_no_tokens, words="too few"))
    for n_tokens in (1, 16):
        yield Injection(27, f"{n_tokens} tokens", refuses(before=_short(n_tokens), words="too few"))
    play = fault_then_again("", before=_short(17), equal="")
    yield Injection(27, "just one window", play)
    yield Injection(28, "train.bin replaced, then refused", _replaced("train.bin"), fast=True)
    yield Injection(28, "val.bin replaced, then refused", _replaced("val.bin"))
    for name in ("train.bin", "val.bin"):
        for number in (1, 9, 20):
            for variant in (PLAIN, BIG_DATA):
                words = f"{name} ({variant.name}) truncated while mapped, forward {number}"
                yield Injection(
                    29, words, _cut_while_mapped(name, number), variant, fast="train" in name and number == 9
                )


def _replaced(name: str) -> Callable[[Toy, Reference], Verdict]:
    """Other data since the last save: refused with --accept-changes named, which then continues."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        old = [(path, path.read_bytes()) for path in (toy.data(name), toy.data(f"{name}.json"))]
        toy.run("forward:20:kill")
        write_tokens(toy.data(name), 700, seed=99)
        for _ in range(2):
            refused = toy.run()
            verdict.demand(refused.status == 2, f"status {refused.status}")
            verdict.demand("--accept-changes" in refused.stderr and name in refused.stderr, refused.last_error())
        for path, content in old:
            path.write_bytes(content)
        recover(toy, verdict, reference)
        return verdict

    return play


def _cut_while_mapped(name: str, number: int) -> Callable[[Toy, Reference], Verdict]:
    """No SIGBUS and no training on zeros: a clear message, checkpoints intact; with the file back it continues."""

    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        content = toy.data(name).read_bytes()
        outcome = toy.run(f"forward:{number}:cut=data/{name}")
        check_outcome(verdict, outcome)
        verdict.demand(outcome.status in (0, 2, 74), f"status {outcome.status}: {outcome.last_error()}")
        if outcome.status == 2:
            verdict.demand(name in outcome.stderr, outcome.last_error())
        toy.data(name).write_bytes(content)
        recover(toy, verdict, reference)
        verdict.silent = outcome.status == 0 and bool(verdict.problems)
        return verdict

    return play


# --- text -------------------------------------------------------------------------------------------------------------

_STORY = "Once upon a time there was a small bear. He liked honey. One day he met a bee, and they became friends."
_MANY = "\n<|endoftext|>\n".join(f"{_STORY} The end of story {i}." for i in range(400))
_TEXTS: dict[str, tuple[str, bytes]] = {
    "latin-1 bytes": ("a.txt", _MANY.replace("honey", "h\xf6ney").encode("latin-1")),
    "UTF-16 with BOM": ("a.txt", _MANY.encode("utf-16")),
    "UTF-8 with BOM": ("a.txt", _MANY.encode("utf-8-sig")),
    "NUL characters": ("a.txt", _MANY.replace("honey", "ho\0ney").encode()),
    "CRLF": ("a.txt", _MANY.replace("\n", "\r\n").encode()),
    "lone surrogates in JSON": (
        "a.jsonl",
        "\n".join(json.dumps({"text": f"{_STORY} {i}"})[:-2] + ' \\ud800"}' for i in range(400)).encode(),
    ),
    "a torn last line of JSON": ("a.jsonl", b"\n".join([b'{"text": "%s %d"}' % (_STORY.encode(), 7)] * 400)[:-20]),
}
_ODD: dict[str, tuple[str, bytes]] = {
    "an empty file": ("a.txt", b""),
    "whitespace only": ("a.txt", b" \n\t\r\n" * 1000),
    "one story": ("a.txt", _STORY.encode()),
    "one story of 10 MB": ("a.txt", (_STORY.encode() + b" ") * 100_000),
    "stories longer than the context": ("a.txt", (f"{_STORY * 20}\n<|endoftext|>\n" * 400).encode()),
    "JSON nested a hundred thousand deep": ("a.json", b"[" * 100_000),
    "a binary file named .txt": ("a.txt", bytes(range(256)) * 4_000),
    "a parquet file that is none": ("a.parquet", b"PAR1" + bytes(1_000) + b"PAR1"),
}


def text_cases() -> Iterator[Injection]:
    """Cases 30 to 32: whole token files, or a clear message and no token file."""
    for case, texts in ((30, _TEXTS), (31, _ODD)):
        for words, (name, content) in texts.items():
            yield Injection(case, words, _text(name, content), WHOLE, fast=words == "NUL characters")
    for name in ("a.txt", "a.jsonl"):
        yield Injection(32, f"<|endoftext|> within a story of {name}", _end_marks(name), WHOLE)


def _prepare(toy: Toy, name: str, content: bytes) -> Any:
    folder = toy.root / "raw" / "tiny"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return toy.run("", "--from", str(folder.parent), "--stage", "tiny", script="prepare_data.py", timeout=120)


def _text(name: str, content: bytes) -> Callable[[Toy, Reference], Verdict]:
    def play(toy: Toy, reference: Reference) -> Verdict:
        verdict = Verdict()
        outcome = _prepare(toy, name, content)
        check_outcome(verdict, outcome, must_fire=False)
        if outcome.status == 0:
            trained = toy.run()
            verdict.demand(trained.status == 0 or "too few" in trained.stderr, trained.last_error())
        else:
            verdict.demand(outcome.status == 2 and "error:" in outcome.stderr, outcome.last_error())
            verdict.demand(toy.run().status == 0, "the old token files are gone")
            compare(toy, verdict, reference)
        return verdict

    return play


def _end_marks(name: str) -> Callable[[Toy, Reference], Verdict]:
    """As many marks as stories, whatever stands in them."""

    def play(toy: Toy, _reference: Reference) -> Verdict:
        verdict = Verdict()
        stories = [f"{_STORY} He said <|endoftext|> {i} times." for i in range(300)]
        if name == "a.jsonl":
            content = "\n".join(json.dumps({"text": story}) for story in stories)
        else:
            content = "\n<|endoftext|>\n".join(story.replace("<|endoftext|>", "<|endofprompt|>") for story in stories)
        outcome = _prepare(toy, name, content.encode())
        verdict.demand(outcome.status == 0, outcome.last_error())
        for file in ("train.bin", "val.bin"):
            ids = np.fromfile(toy.data(file), dtype="<u2")
            told = json.loads(toy.data(f"{file}.json").read_text(encoding="utf-8"))["stories"]
            verdict.demand(int((ids == EOT).sum()) == told, f"{file}: marks and stories differ")
        return verdict

    return play


def cases(references: dict[str, Reference]) -> Iterator[Injection]:
    """All of this page."""
    assert references
    yield from token_file_cases()
    yield from text_cases()
