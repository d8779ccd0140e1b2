"""Bytes of text files. Anything but UTF-8 is refused; the message has the offset of the byte and a fix."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator
from typing import BinaryIO

from storyladder.corpus.opening import FETCH_AGAIN, Source, peek
from storyladder.runtime.errors import DataError

MAX_STORY_BYTES = 16 << 20  # all of Shakespeare is 5.5 MB, and the tokens of a story take ten times its memory
_NO_CP1252 = b"\x81\x8d\x8f\x90\x9d"  # bytes that mean nothing in Windows-1252
_CONVERT = "iconv -f {encoding} -t UTF-8 {name} > {name}.utf8 && mv {name}.utf8 {name}"
_FOREIGN = (
    (codecs.BOM_UTF32_LE, "is UTF-32", _CONVERT.replace("{encoding}", "UTF-32")),  # begins as UTF-16 does: asked first
    (codecs.BOM_UTF32_BE, "is UTF-32", _CONVERT.replace("{encoding}", "UTF-32")),
    (codecs.BOM_UTF16_LE, "is UTF-16", _CONVERT.replace("{encoding}", "UTF-16")),
    (codecs.BOM_UTF16_BE, "is UTF-16", _CONVERT.replace("{encoding}", "UTF-16")),
    (b"PK\x03\x04", "is a zip archive", "mv {name} {name}.zip"),
    (b"PAR1", "is a parquet file", "mv {name} {name}.parquet"),
    (b"ARROW1", "is an Arrow file", "mv {name} {name}.arrow"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the text itself", "git lfs pull"),
)


@contextlib.contextmanager
def text_file(source: Source) -> Iterator[tuple[BinaryIO, int]]:
    """The open file, after a UTF-8 byte order mark, and the length of the mark. DataError for other file formats."""
    with source.open() as file:
        head = peek(file)
        for signature, what, remedy in _FOREIGN:
            if head.startswith(signature):
                command = remedy.format(name=source.quoted)
                raise DataError(f"{source} {what} (from byte 0). Expected UTF-8 text. Type: {command}")
        start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        file.read(start)
        yield file, start


def lines_of(source: Source) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file, each with the byte at which it begins."""
    with text_file(source) as (file, start):
        offset = start
        while line := file.readline(MAX_STORY_BYTES + 1):
            if len(line) > MAX_STORY_BYTES:
                raise too_long(source, f"the line at byte {offset}")
            check_no_nul(source, line, offset)
            yield offset, line
            offset += len(line)


def check_no_nul(source: Source, data: bytes, offset: int) -> None:
    """DataError if `data`, which begins at byte `offset` of the file, contains a zero byte."""
    if (nul := data.find(0)) >= 0:
        raise DataError(
            f"{source}: byte {offset + nul} is zero, so this is a binary file or UTF-16. Expected UTF-8 text. "
            f"To see what it is: file {source.quoted}"
        )


def decoded(source: Source, raw: bytes, offset: int) -> str:
    """Decode whole characters that begin at byte `offset` of the file."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        is_last = error.end == len(raw) and _ends_at(source, offset + error.end)
        raise not_utf8(source, raw[error.start], offset + error.start, is_last) from None


def _ends_at(source: Source, offset: int) -> bool:
    with source.open() as file:
        while offset > 0 and (block := file.read(min(offset, 1 << 20))):
            offset -= len(block)
        return not file.read(1)


def not_utf8(source: Source, byte: int, offset: int, is_last: bool) -> DataError:
    """The error for a byte that is not UTF-8; `is_last`: the file ends there, inside a character."""
    found = f"byte 0x{byte:02x} at offset {offset}"
    convert = _CONVERT.format(encoding="cp1252", name=source.quoted)
    if byte >= 0xC2 and is_last:
        return DataError(
            f"{source} ends in the middle of a character ({found}): it is cut short, or not UTF-8. {FETCH_AGAIN}; "
            f"or, if it is Windows-1252: {convert}"
        )
    if byte in _NO_CP1252:
        look = f"file -i {source.quoted}; then: {_CONVERT.format(encoding='ENCODING', name=source.quoted)}"
        return DataError(
            f"{source}: {found} is neither UTF-8 nor Windows-1252. Expected UTF-8 text. To see what it is: {look}"
        )
    meaning = bytes([byte]).decode("cp1252")
    return DataError(
        f"{source}: {found} is not UTF-8 (in Windows-1252, cp1252, it would be {meaning!r}). Expected UTF-8 text. "
        f"Type: {convert}"
    )


def too_long(source: Source, what: str) -> DataError:
    """The error for a story that is too long to keep in memory."""
    return DataError(
        f"{source}: {what} is longer than {MAX_STORY_BYTES >> 20} MiB. Expected stories separated by "
        "<|endoftext|> or blank lines in .txt, one object per story in .json, one line in .jsonl, one row in tables."
    )
