r"""Files in, stories out, one at a time, at constant memory: plain text, JSON, tables; compressed or not.

A story is returned as it is in its file, with "\n" as the only line end. Knows nothing of cleaning, tokens or
downloads. A file whose content does not match its name is refused; the message has the offset of the first wrong byte
and a command to fix it.
"""

from __future__ import annotations

import io
import re
import shlex
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from storyladder.corpus import text_bytes
from storyladder.corpus.fields import Reading, one_of, stories_of
from storyladder.corpus.json_records import json_records
from storyladder.corpus.opening import FETCH_AGAIN, PACKED, Source, kind_of_file, members
from storyladder.corpus.tables import arrow_records, csv_records, parquet_records
from storyladder.corpus.text_bytes import check_no_nul, decoded, text_file, too_long
from storyladder.runtime.errors import DataError

MARKER = "<|endoftext|>"
BLOCK_BYTES = 1 << 20  # read at a time; a story that continues after a block is completed from the next one

_MARKER = re.compile(re.escape(MARKER.encode()))
# A line end, then a blank line. The second form, eight times as slow, also accepts the lone \r of old Macs; \r(?!\n)
# keeps a \r\n from counting as two line ends.
_BLANK_LINES = re.compile(rb"\n[ \t]*[\r\n]\s*")
_BLANK_LINES_MAC = re.compile(rb"(?:\n|\r(?!\n))[ \t]*[\r\n]\s*")
_LINE_END = re.compile(rb"\s*[\r\n]\s*")
_NO_END = re.compile(rb"(?!)")

# How the separator of .txt files without markers is detected, from file sizes and the first bytes of some files.
_SAMPLED_FILES, _SAMPLED_BYTES = 200, 1 << 16
_FEWEST_FILES, _LARGEST_STORY_FILE = 10, 64_000  # at least so many files below so many bytes: one story per file
_FEWEST_LINES, _LINES_TO_A_BLANK = 10, 20  # lines that end like sentences, with hardly a blank line, are stories
_SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u2019\u201d\u00bb)\]*_]*$")
_ENDING_LINES = 0.9

_DESCRIPTIONS = {
    "endoftext": f"separated by {MARKER}",
    "blank-line": f"separated by blank lines (no {MARKER} found; to change: --story-separator line or file)",
    "line": "one story per line (few blank lines, and lines end like sentences; to change: --story-separator file)",
    "file": "one story per file (to change: --story-separator blank-line or line)",
}


def read_stories(path: Path, reading: Reading | None = None, *, block_bytes: int = BLOCK_BYTES) -> Iterator[str]:
    """The stories of a file, in order; its suffix, without that of its compression, decides the format.

    .txt: separated by `<|endoftext|>`, or without such a marker by what `separator_of` returns.
    .json .jsonl .ndjson, .csv .tsv, .parquet, .arrow .feather: one per record; fields.py finds the field.
    `reading` has the settings and collects what is detected. Raises DataError: at the call if the file is missing,
    during iteration if its content is wrong.
    """
    reading = reading or Reading()
    _check_is_file(path)
    if path.suffix.lower() != ".zip" and kind_of_file(path.name) not in _READERS:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}. Expected one of {one_of(SUFFIXES)}.")
    return _with_clear_errors(path, _stories(path, reading, block_bytes))


def read_plain_stories(path: Path, reading: Reading | None = None) -> Iterator[str]:
    """The stories of a file of plain text, as of a .txt, whatever its suffix."""
    _check_is_file(path)
    stories = _read_txt(Source(path), reading or Reading(), BLOCK_BYTES)
    return _with_clear_errors(path, map(_with_unix_line_ends, stories))


def is_readable(name: str) -> bool:
    """Whether the suffix of a file name is one that can be read."""
    return name.lower().endswith(".zip") or kind_of_file(name) in _READERS


def _stories(path: Path, reading: Reading, block_bytes: int) -> Iterator[str]:
    sources = [Source(path)]
    if path.suffix.lower() == ".zip":
        sources = [source for source in members(path) if source.kind in _READERS]
        if not sources:
            raise DataError(f"{path} holds none of {one_of(tuple(_READERS))}. To see what it holds: unzip -l {path}")
    for source in sources:
        yield from map(_with_unix_line_ends, _READERS[source.kind](source, reading, block_bytes))


def _check_is_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path} is a folder. Expected a file; to see what is in it: ls {shlex.quote(str(path))}")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is a device or pipe. Expected a regular file: it is read more than once.")
    if status.st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). Expected stories. {FETCH_AGAIN}")


def _with_clear_errors(path: Path, stories: Iterator[str]) -> Iterator[str]:
    try:
        yield from stories
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist. Expected a file of stories; to fetch them: python prepare_data.py")
    if isinstance(error, PermissionError):
        return DataError(f"{path} cannot be read ({error.strerror}). Type: chmod u+r {shlex.quote(str(path))}")
    return DataError(f"{path} cannot be read: {error.strerror or error}. Check the path and the disk.")


def _with_unix_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


# ---- .txt


def _read_txt(source: Source, reading: Reading, block_bytes: int) -> Iterator[str]:
    separator = reading.separator
    with text_file(source) as (file, start):
        head = file.read(block_bytes)
        if separator == "auto":
            marked = _has_marker(file, head, block_bytes)
            separator = "endoftext" if marked else reading.unmarked or separator_of([source])
    how = _DESCRIPTIONS[separator]
    reading.found[how if reading.separator == "auto" else how.partition(" (")[0] + " (as you asked)"] += 1
    if len(head) < block_bytes:  # the whole file
        yield from _txt_stories(source, io.BytesIO(head), start, separator, block_bytes)
    else:
        with text_file(source) as (file, _):
            yield from _txt_stories(source, file, start, separator, block_bytes)


def _txt_stories(source: Source, file: BinaryIO, start: int, separator: str, block_bytes: int) -> Iterator[str]:
    for offset, raw in _pieces(source, file, start, separator, block_bytes):
        story = decoded(source, raw, offset).strip()
        # Two markers in a row are an empty story, which cleaning counts. Nothing before the first marker is no story.
        if story or (separator == "endoftext" and offset > start):
            yield story


def _has_marker(file: BinaryIO, head: bytes, block_bytes: int) -> bool:
    """Whether the file contains a marker anywhere; the search is as fast as the disk."""
    window = head
    while MARKER.encode() not in window:
        block = file.read(block_bytes)
        if not block:
            return False
        window = window[-len(MARKER) + 1 :] + block
    return True


def separator_of(sources: Iterable[Source]) -> str:
    """What separates the stories of .txt files without markers: file, line or blank-line.

    Many small files hold one story each, as fairy tales often do. If there are many lines, hardly a blank line, and
    nearly all lines end like sentences, each line is a story; lines of wrapped text end anywhere.
    """
    unmarked = [source for source in sources if source.kind == ".txt"]
    seen: Counter[str] = Counter()
    sizes = []
    for source in unmarked[:: max(1, len(unmarked) // _SAMPLED_FILES)]:
        with source.open() as file:
            head = file.read(_SAMPLED_BYTES)
        if MARKER.encode() in head:
            continue
        sizes.append(len(head))
        # Skip the last line if it may be cut.
        lines = head.decode("utf-8", "replace").splitlines()[: -1 if len(head) == _SAMPLED_BYTES else None]
        seen["files"] += 1
        seen["lines"] += sum(map(bool, map(str.strip, lines)))
        seen["blank"] += sum(not line.strip() for line in "\n".join(lines).strip().split("\n"))
        seen["ends"] += sum(_SENTENCE_END.search(line.rstrip()) is not None for line in lines)
    small = sum(size < _LARGEST_STORY_FILE for size in sizes)
    if seen["files"] >= _FEWEST_FILES and small >= _ENDING_LINES * seen["files"]:
        return "file"
    are_stories = seen["ends"] >= _ENDING_LINES * seen["lines"] >= _ENDING_LINES * _FEWEST_LINES
    return "line" if are_stories and seen["blank"] * _LINES_TO_A_BLANK < seen["lines"] else "blank-line"


def _pieces(
    source: Source, file: BinaryIO, start: int, separator: str, block_bytes: int
) -> Iterator[tuple[int, bytes]]:
    """The bytes between separators, each piece with its offset. Splitting UTF-8 as bytes is safe."""
    pending, offset = b"", start
    # Reading as much as is pending keeps the search linear in a story that is longer than a block.
    while block := file.read(max(block_bytes, len(pending))):
        check_no_nul(source, block, offset + len(pending))
        pending += block
        begin = 0
        for match in _separator(pending, separator).finditer(pending):
            _check_size(source, match.start() - begin, offset + begin)
            yield offset + begin, pending[begin : match.start()]
            begin = match.end()
        pending = pending[begin:]
        offset += begin
        _check_size(source, len(pending), offset)
    if pending.strip():
        yield offset, pending


def _separator(data: bytes, separator: str) -> re.Pattern[bytes]:
    if separator != "blank-line":
        return {"endoftext": _MARKER, "line": _LINE_END, "file": _NO_END}[separator]
    return _BLANK_LINES if data.count(b"\r") == data.count(b"\r\n") else _BLANK_LINES_MAC


def _check_size(source: Source, size: int, offset: int) -> None:
    if size > text_bytes.MAX_STORY_BYTES:
        raise too_long(source, f"the story at byte {offset}")


# ---- records


Reader = Callable[[Source, Reading, int], Iterator[str]]


def _read_records(records: Callable[[Source, int, Reading], Iterator[tuple[str, object]]]) -> Reader:
    return lambda source, reading, block_bytes: stories_of(records(source, block_bytes, reading), str(source), reading)


_READERS: dict[str, Reader] = {
    ".txt": _read_txt,
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), _read_records(json_records)),
    **dict.fromkeys((".csv", ".tsv"), _read_records(csv_records)),
    ".parquet": _read_records(parquet_records),
    **dict.fromkeys((".arrow", ".feather"), _read_records(arrow_records)),
}
SUFFIXES = (*_READERS, *PACKED)
