r"""Text files in, stories out, one at a time: .txt, .json, .jsonl and .parquet at constant memory.

A story leaves here as it stands in its file, with "\n" as the only line end. What is wrong with a story, how it becomes
tokens and where the files came from is not known here. Nothing is guessed and nothing is mangled: a file that is not
what its name says is refused with the byte where it goes wrong and the command that mends it.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from storyladder.runtime.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MARKER = "<|endoftext|>"
BLOCK_BYTES = 1 << 20  # read at once; a story that is cut by the end of a block is completed by the next one
MAX_STORY_BYTES = 16 << 20  # all of Shakespeare is 5.5 MB, and the tokens of a story take ten times its memory
_BATCH_BYTES, _MOST_BATCH_ROWS = 4 << 20, 256  # of parquet, unpacked at once
_FETCH_AGAIN = "Delete it and fetch it again: python prepare_data.py"

_MARKER = re.compile(re.escape(MARKER.encode()))
# A line end, then a line of blanks. The second form, eight times as slow, knows the lone \r of old Macs too; \r(?!\n):
# the halves of a \r\n are not two line ends.
_BLANK_LINES = re.compile(rb"\n[ \t]*[\r\n]\s*")
_BLANK_LINES_MAC = re.compile(rb"(?:\n|\r(?!\n))[ \t]*[\r\n]\s*")
_JSON_SPACE = re.compile(r"[ \t\n\r]*")
# Numbers are of no interest here; float() takes any length, int() refuses more than 4,300 digits.
_JSON = json.JSONDecoder(parse_int=float)
_JSON_TOKEN_CHARS = 16  # \ud83d\ude00 is the longest piece whose cut end the decoder reports as a fault before the end
_JSON_FIELDS = ("text", "story")
_PARQUET_FIELDS = ("story", "text")
_NO_CP1252 = b"\x81\x8d\x8f\x90\x9d"  # bytes that mean nothing in Windows-1252
_CONVERT = "iconv -f {encoding} -t UTF-8 {name} > {name}.utf8 && mv {name}.utf8 {name}"
_FOREIGN = (
    (codecs.BOM_UTF32_LE, "is UTF-32", _CONVERT.replace("{encoding}", "UTF-32")),  # begins as UTF-16 does: asked first
    (codecs.BOM_UTF32_BE, "is UTF-32", _CONVERT.replace("{encoding}", "UTF-32")),
    (codecs.BOM_UTF16_LE, "is UTF-16", _CONVERT.replace("{encoding}", "UTF-16")),
    (codecs.BOM_UTF16_BE, "is UTF-16", _CONVERT.replace("{encoding}", "UTF-16")),
    (b"\x1f\x8b", "is compressed with gzip", "mv {name} {name}.gz && gunzip {name}.gz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "mv {name} {name}.zst && unzstd {name}.zst"),
    (b"PK\x03\x04", "is a zip archive", "unzip {name}"),
    (b"PAR1", "is a parquet file", "mv {name} {name}.parquet"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the text itself", "git lfs pull"),
)


class _RefusedRecord(ValueError):
    """Why a JSON value is no story. The caller adds where it stands."""


def story_files(folder: Path) -> list[Path]:
    """The files of a folder (not of its subfolders) that `read_stories` reads, sorted; no hidden ones, no sidecars."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Expected one with {_one_of(SUFFIXES)} files in it.")
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not path.name.endswith(".bin.json")  # the sidecar of a token file
        and path.is_file()
    )


def read_stories(path: Path, *, block_bytes: int = BLOCK_BYTES) -> Iterator[str]:
    """The stories of a file, in order; its suffix tells the format.

    .txt: stories are separated by `<|endoftext|>`, or by blank lines where the file has no such marker anywhere.
    .json: an array of objects, .jsonl: an object a line; field `text`, else `story`. Plain strings are stories too.
    .parquet: column `story`, else `text`. A null is an empty story.
    Raises DataError, here for a file that is not there, while iterating for one that goes wrong on the way.
    """
    _check_is_file(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}. Expected one of {_one_of(SUFFIXES)}.")
    return _with_clear_errors(path, reader(path, block_bytes))


def _check_is_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    if path.is_dir():
        raise DataError(f"{path} is a folder. Expected a file; to see what is in it: ls {_quoted(path)}")
    if not path.is_file():
        raise DataError(f"{path} is a device or pipe. Expected a regular file: it is read more than once.")
    if status.st_size == 0:
        raise DataError(f"{path} is empty (0 bytes). Expected stories. {_FETCH_AGAIN}")


def _with_clear_errors(path: Path, stories: Iterator[str]) -> Iterator[str]:
    try:
        yield from stories
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist. Expected a file of stories; to fetch them: python prepare_data.py")
    if isinstance(error, PermissionError):
        return DataError(f"{path} may not be read ({error.strerror}). Type: chmod u+r {_quoted(path)}")
    return DataError(f"{path} cannot be read: {error.strerror or error}. Check the path and the disk.")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _one_of(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]


# ---- bytes and characters


@contextlib.contextmanager
def _text_file(path: Path) -> Iterator[BinaryIO]:
    """The open file, standing behind its UTF-8 byte order mark, if it has one. Foreign formats are refused."""
    with path.open("rb") as file:
        head = file.read(32)
        for signature, what, remedy in _FOREIGN:
            if head.startswith(signature):
                command = remedy.format(name=_quoted(path))
                raise DataError(f"{path} {what} (from byte 0 on). Expected UTF-8 text. Type: {command}")
        file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
        yield file


def _check_no_nul(path: Path, data: bytes, offset: int) -> None:
    if (nul := data.find(0)) >= 0:
        raise DataError(
            f"{path}: byte {offset + nul} is zero, so this is a binary file or UTF-16. Expected UTF-8 text. "
            f"To see what it is: file {_quoted(path)}"
        )


def _decoded(path: Path, raw: bytes, offset: int) -> str:
    """The text of whole characters that begin at this byte of the file."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(path, raw[error.start], offset + error.start, offset + error.end) from None


def _not_utf8(path: Path, byte: int, offset: int, end: int) -> DataError:
    found = f"byte 0x{byte:02x} at offset {offset}"
    convert = _CONVERT.format(encoding="cp1252", name=_quoted(path))
    if byte >= 0xC2 and end >= path.stat().st_size:
        return DataError(
            f"{path} ends in the middle of a character ({found}): it is cut short, or not UTF-8. {_FETCH_AGAIN}; "
            f"or, if it is Windows-1252: {convert}"
        )
    if byte in _NO_CP1252:
        look = f"file -i {_quoted(path)}; then: {_CONVERT.format(encoding='ENCODING', name=_quoted(path))}"
        return DataError(
            f"{path}: {found} is neither UTF-8 nor Windows-1252. Expected UTF-8 text. To see what it is: {look}"
        )
    meaning = bytes([byte]).decode("cp1252")
    return DataError(
        f"{path}: {found} is not UTF-8 (in Windows-1252, cp1252, it would be {meaning!r}). Expected UTF-8 text. "
        f"Type: {convert}"
    )


def _check_size(path: Path, size: int, offset: int) -> None:
    if size > MAX_STORY_BYTES:
        raise _too_long(path, f"byte {offset}")


def _too_long(path: Path, where: str) -> DataError:
    return DataError(
        f"{path}: the story at {where} is longer than {MAX_STORY_BYTES >> 20} MiB. Expected stories that are separated "
        f"by {MARKER} or blank lines in .txt, an object each in .json, a line in .jsonl, a row in .parquet."
    )


def _with_unix_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


# ---- .txt


def _read_txt(path: Path, block_bytes: int) -> Iterator[str]:
    with _text_file(path) as file:
        start = file.tell()
        has_marker = _has_marker(file, block_bytes)
        file.seek(start)
        for offset, raw in _pieces(path, file, has_marker, block_bytes):
            story = _with_unix_line_ends(_decoded(path, raw, offset)).strip()
            # Two markers in a row are an empty story, which cleaning counts. Before the first one there is nothing yet.
            if story or (has_marker and offset > start):
                yield story


def _has_marker(file: BinaryIO, block_bytes: int) -> bool:
    """Whether a marker stands anywhere from here on: the whole file decides, and the search is as fast as the disk."""
    tail = b""
    while block := file.read(block_bytes):
        window = tail + block
        if MARKER.encode() in window:
            return True
        tail = window[-len(MARKER) + 1 :]
    return False


def _pieces(path: Path, file: BinaryIO, has_marker: bool, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The stretches between separators, each with the byte at which it begins. UTF-8 may be split as bytes."""
    pending, offset = b"", file.tell()
    # Reading as much as is pending keeps the search linear in a story that is longer than a block.
    while block := file.read(max(block_bytes, len(pending))):
        _check_no_nul(path, block, offset + len(pending))
        pending += block
        begin = 0
        for match in _separator(pending, has_marker).finditer(pending):
            _check_size(path, match.start() - begin, offset + begin)
            yield offset + begin, pending[begin : match.start()]
            begin = match.end()
        pending = pending[begin:]
        offset += begin
        _check_size(path, len(pending), offset)
    if pending.strip():
        yield offset, pending


def _separator(data: bytes, has_marker: bool) -> re.Pattern[bytes]:
    if has_marker:
        return _MARKER
    return _BLANK_LINES if data.count(b"\r") == data.count(b"\r\n") else _BLANK_LINES_MAC


# ---- .json and .jsonl


class _JsonCursor:
    """A place in a JSON file that is too large to hold: the decoded text around it, read on as it moves."""

    def __init__(self, path: Path, file: BinaryIO, block_bytes: int) -> None:
        self.path = path
        self.file = file
        self.block_bytes = block_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.position = 0  # in text
        self.record = 0  # where in text the last value began

    def offset(self, position: int) -> int:
        """The byte of the file at which this character of the text begins."""
        undecoded = len(self.decoder.getstate()[0])  # the first bytes of a character that the last block cut
        return self.file.tell() - undecoded - len(self.text[position:].encode())

    def next_character(self) -> str:
        """The next one that is no white space, "" at the end of the file. The cursor then stands on it."""
        while True:
            space = _JSON_SPACE.match(self.text, self.position)
            assert space is not None
            self.position = space.end()
            if self.position < len(self.text) or not self.read_on():
                return self.text[self.position : self.position + 1]

    def next_value(self, number: int) -> object:
        """Record `number` of the array, whole. The cursor then stands behind it."""
        while True:
            self.record = self.position
            try:
                value, self.position = _JSON.raw_decode(self.text, self.position)
                return value
            except json.JSONDecodeError as error:
                fault, ahead = error.msg, error.pos - self.position
            except RecursionError:
                raise self.refused(number, "is nested too deep. Expected an object of plain fields.") from None
            is_open = fault.startswith("Unterminated")
            is_near_end = self.position + ahead > len(self.text) - _JSON_TOKEN_CHARS
            if is_open or is_near_end:  # perhaps only cut by the end of the block
                _check_size(self.path, len(self.text) - self.position, self.offset(self.position))
                if self.read_on():
                    continue
            held = self.text.rstrip()
            if is_open or self.position + ahead >= len(held) or (is_near_end and not held.endswith("]")):
                raise self.cut_short(number)
            raise _malformed(self.path, f"record {number}", fault + ".", self.offset(self.position + ahead))

    def read_on(self) -> bool:
        """Forget what lies behind, read as much as is still held, at least a block. False at the end of the file."""
        rest = self.text[self.position :]
        at = self.file.tell()
        data = self.file.read(max(self.block_bytes, len(rest)))
        _check_no_nul(self.path, data, at)
        at -= len(self.decoder.getstate()[0])
        try:
            self.text, self.position = rest + self.decoder.decode(data, final=not data), 0
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, error.object[error.start], at + error.start, at + error.end) from None
        return bool(data)

    def refused(self, number: int, reason: object) -> DataError:
        """The error for record `number`, the last value that was read."""
        return DataError(f"{self.path}: record {number}, at byte {self.offset(self.record)}, {reason}")

    def cut_short(self, number: int) -> DataError:
        """The error for a file that ends before its array does."""
        return DataError(
            f"{self.path} is cut short: it ends at byte {self.offset(len(self.text))}, without its closing ']', "
            f"where record {number} is missing or unfinished (from byte {self.offset(self.position)}). {_FETCH_AGAIN}"
        )


def _malformed(path: Path, what: str, fault: str, offset: int) -> DataError:
    look = f"tail -c +{max(1, offset - 39)} {_quoted(path)} | head -c 80"
    return DataError(f"{path}: {what} is not valid JSON at byte {offset}: {fault} To look at the place: {look}")


def _read_json(path: Path, block_bytes: int) -> Iterator[str]:
    with _text_file(path) as file:
        cursor = _JsonCursor(path, file, block_bytes)
        first = cursor.next_character()
        if first != "[":
            found = repr(first) if first else "nothing"
            lines = f" If it holds an object a line: mv {_quoted(path)} {_quoted(path.with_suffix('.jsonl'))}"
            raise DataError(
                f"{path} begins with {found} at byte {cursor.offset(cursor.position)}. Expected '[', an array of "
                f"objects with a field {_one_of(_JSON_FIELDS)}.{lines if first == '{' else ''}"
            )
        cursor.position += 1
        yield from _array_stories(cursor)
        cursor.position += 1
        if cursor.next_character():
            raise _malformed(path, "what follows the array", "nothing may follow.", cursor.offset(cursor.position))


def _array_stories(cursor: _JsonCursor) -> Iterator[str]:
    """From behind the '[' to the ']', on which the cursor then stands."""
    number = 1
    if cursor.next_character() == "]":
        return
    while True:
        cursor.next_character()
        record = cursor.next_value(number)
        try:
            story = _story_of(record)
        except _RefusedRecord as reason:
            raise cursor.refused(number, reason) from None
        if len(story) > MAX_STORY_BYTES:
            raise _too_long(cursor.path, f"byte {cursor.offset(cursor.record)}")
        yield _with_unix_line_ends(story)
        separator = cursor.next_character()
        if separator == "]":
            return
        number += 1
        if not separator:
            raise cursor.cut_short(number)
        if separator != ",":
            raise _malformed(
                cursor.path, f"what follows record {number - 1}", "expected ',' or ']'.", cursor.offset(cursor.position)
            )
        cursor.position += 1


def _story_of(record: object) -> str:
    """The text of a JSON record; raises _RefusedRecord when there is none."""
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise _RefusedRecord(f"is {_json_kind(record)}. Expected an object with a field {_one_of(_JSON_FIELDS)}.")
    for field in _JSON_FIELDS:
        if field in record:
            story = record[field]
            if isinstance(story, str):
                return story
            if story is None:
                return ""
            raise _RefusedRecord(f"has {_json_kind(story)} in its field {field!r}. Expected a text.")
    found = ", ".join(repr(name[:40]) for name in list(record)[:10]) or "none at all"
    raise _RefusedRecord(
        f"has no field {_one_of(_JSON_FIELDS)}; its fields are {found}. Rename the one that holds the story to 'text'."
    )


def _json_kind(value: object) -> str:
    kinds = {bool: "true or false", float: "a number", list: "an array", dict: "an object", type(None): "null"}
    return kinds[type(value)]


def _read_jsonl(path: Path, _: int) -> Iterator[str]:
    with _text_file(path) as file:
        offset = file.tell()
        number = 0
        while line := file.readline(MAX_STORY_BYTES + 1):
            number += 1
            _check_size(path, len(line), offset)
            _check_no_nul(path, line, offset)
            if line.strip():
                yield _line_story(path, line, number, offset)
            offset += len(line)


def _line_story(path: Path, line: bytes, number: int, offset: int) -> str:
    text = _decoded(path, line, offset)
    what = f"line {number}"
    array = ""
    if text[0] == "[":
        array = f" If the file is one array: mv {_quoted(path)} {_quoted(path.with_suffix('.json'))}."
    try:
        return _with_unix_line_ends(_story_of(_JSON.decode(text)))
    except _RefusedRecord as reason:
        raise DataError(f"{path}: {what}, at byte {offset}, {reason}{array}") from None
    except RecursionError:
        raise DataError(f"{path}: {what}, at byte {offset}, is nested too deep. Expected an object a line.") from None
    except json.JSONDecodeError as error:
        if not line.endswith(b"\n") and not array:
            raise DataError(
                f"{path} is cut short: it ends at byte {offset + len(line)}, inside {what} (from byte {offset}, "
                f"{error.msg}). {_FETCH_AGAIN}"
            ) from None
        at = offset + len(text[: error.pos].encode())
        raise _malformed(path, what, f"{error.msg}.{array}", at) from None


# ---- .parquet


def _read_parquet(path: Path, block_bytes: int) -> Iterator[str]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{path} needs pyarrow to be read, which is not installed. Type: pip install pyarrow") from None
    try:
        # buffer_size: without it pyarrow holds the column of a whole row group, in the worst case of the whole file.
        with pq.ParquetFile(
            path, memory_map=False, pre_buffer=False, buffer_size=block_bytes, page_checksum_verification=True
        ) as parquet:
            field = _story_column(path, parquet.schema_arrow)
            yield from _column_stories(path, parquet, field)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk's fault, not the file's
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is damaged or no parquet file ({reason}). {_FETCH_AGAIN}") from None


def _story_column(path: Path, schema: pa.Schema) -> str:
    import pyarrow as pa

    field = next((name for name in _PARQUET_FIELDS if name in schema.names), None)
    if field is None:
        found = ", ".join(repr(name[:40]) for name in schema.names[:10]) or "none at all"
        raise DataError(
            f"{path} has no column {_one_of(_PARQUET_FIELDS)}; its columns are {found}. "
            f"Rename the one that holds the stories to 'story'."
        )
    kind = schema.field(field).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(values) or pa.types.is_large_string(values)):
        raise DataError(f"{path}: column {field!r} holds {kind}. Expected text (string).")
    return field


def _column_stories(path: Path, parquet: pq.ParquetFile, field: str) -> Iterator[str]:
    groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
    widest_row = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    rows = max(1, min(_MOST_BATCH_ROWS, int(_BATCH_BYTES / max(1, widest_row))))
    first = 0
    for batch in parquet.iter_batches(batch_size=rows, columns=[field], use_threads=False):
        try:
            stories = batch.column(0).to_pylist()
        except UnicodeDecodeError as error:
            byte, last = error.object[error.start], first + batch.num_rows - 1
            raise DataError(
                f"{path}: one of the rows {first} to {last} of column {field!r} is not UTF-8 (byte 0x{byte:02x}). "
                f"Expected UTF-8. {_FETCH_AGAIN}"
            ) from None
        for row, story in enumerate(stories, start=first):
            if story is not None and len(story) > MAX_STORY_BYTES:
                raise _too_long(path, f"row {row}")
            yield _with_unix_line_ends(story or "")
        first += batch.num_rows


_READERS: dict[str, Callable[[Path, int], Iterator[str]]] = {
    ".txt": _read_txt,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
