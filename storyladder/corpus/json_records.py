r"""The records of JSON: lines, one array, or one object in any of the shapes that pandas and datasets write.

Arrays and objects of any size are parsed by ijson. Reading and cleaning the Children Stories is as fast as with our own
decoder before it: 84 and 82 MB/s on one core. This module adds what ijson lacks (tried with ijson 3.6.0 and yajl2_c):

    a limit for one record     a string without an end, or 200,000 times "[", fills all memory
    NaN and Infinity           refused, though Python's own json writes them
    lone surrogates            "\ude00" ends in an UnicodeDecodeError, "\ud800" becomes "?"
    long numbers               5,000 digits crash the process
    the offset of an error     not reported
"""

from __future__ import annotations

import codecs
import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, BinaryIO

import ijson

from storyladder.corpus import text_bytes
from storyladder.corpus.fields import NoStory, Reading, choose, is_chat, names_story
from storyladder.corpus.opening import FETCH_AGAIN, Source
from storyladder.corpus.text_bytes import check_no_nul, decoded, lines_of, not_utf8, text_file, too_long
from storyladder.runtime.errors import DataError

_BLOCK_BYTES = 1 << 16  # passed to ijson at a time
_FIRST_LINE = 1 << 18  # bytes of the first line that are examined
_OUTLINED = 1_000  # keys of an object, and elements of an array in it, that are examined to find its shape
_ID_KEYS = 20  # an object of so many strings is not a record but holds a story under each key
_JSON = json.JSONDecoder(parse_int=float)  # float() takes any length, int() refuses more than 4,300 digits
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# A quote; a surrogate pair; a lone surrogate; any other escape; Python's NaN and Infinity.
_PIECE = re.compile(rb"\"|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u[dD][89a-fA-F]..|\\.|-?\b(?:NaN|Infinity)\b", re.DOTALL)
_LONGEST_PIECE = 12
_REPLACED = rb"\ufffd"
_LONG = 4_300  # digits; more than that Python's int() refuses
_TWO_DIGITS, _LONG_NUMBER = re.compile(rb"[0-9]{2}"), re.compile(rb"[0-9]{%d}" % _LONG)

Records = Iterator[tuple[str, Any]]
Events = Iterator[tuple[str, Any]]


def json_records(source: Source, block_bytes: int, reading: Reading) -> Records:
    """Each record with its position. If the first line is a complete value and more follow, each line is a record."""
    with text_file(source) as (file, _):
        first = b""
        while not first.strip() and (line := file.readline(_FIRST_LINE)):
            first = line
        more = any(line.strip() for line in iter(lambda: file.readline(_BLOCK_BYTES), b""))
    try:
        _JSON.decode(first.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        more = False
    return _line_records(source) if more else _document_records(source, min(block_bytes, _BLOCK_BYTES), reading.field)


# ---- a record a line


def _line_records(source: Source) -> Records:
    for number, (offset, line) in enumerate(lines_of(source), start=1):
        if line.strip():
            yield f"line {number}, at byte {offset},", _line_value(source, line, number, offset)


def _line_value(source: Source, line: bytes, number: int, offset: int) -> Any:
    text = decoded(source, line, offset)
    try:
        return _JSON.decode(text)
    except RecursionError:
        raise _too_deep(source, f"line {number}, at byte {offset},") from None
    except json.JSONDecodeError as error:
        if not line.endswith(b"\n"):
            raise DataError(
                f"{source} is cut short: it ends at byte {offset + len(line)}, inside line {number} (from byte "
                f"{offset}, {error.msg}). {FETCH_AGAIN}"
            ) from None
        at = offset + len(text[: error.pos].encode())
        raise _malformed(source, f"line {number}", f"{error.msg}.", at) from None


def _too_deep(source: Source, place: str) -> DataError:
    return DataError(f"{source}: {place} is nested too deep. Expected an object of plain fields.")


def _malformed(source: Source, what: str, fault: str, offset: int) -> DataError:
    look = f"tail -c +{max(1, offset - 39)} {source.quoted} | head -c 80"
    return DataError(f"{source}: {what} is not valid JSON at byte {offset}: {fault} To see it, type: {look}")


# ---- one value, or several of more than a line


def _document_records(source: Source, block_bytes: int, field: str | None) -> Records:
    """The elements of an array, what `_selection` finds in an object, or each of several values."""
    with _Feed.of(source) as feed:
        events = _events(feed, block_bytes)
        kind, _ = first = next(events)
        try:
            if kind == "start_map" and (select := _selection(source, block_bytes, field)):
                values = select(events)
            else:
                values = _top_values(itertools.chain([first], events))
            for value in values:
                yield f"record {feed.record}", value
                feed.record, feed.began = feed.record + 1, feed.offset
        except RecursionError:
            raise _too_deep(source, f"record {feed.record}") from None


def _top_values(events: Events) -> Iterator[Any]:
    """The elements of top-level arrays, and other top-level values as they are."""
    for kind, value in events:
        if kind == "start_array":
            yield from _elements(events)
        else:
            yield _built(kind, value, events)


def _elements(events: Events) -> Iterator[Any]:
    for kind, value in events:
        if kind == "end_array":
            return
        yield _built(kind, value, events)


def _built(kind: str, value: Any, events: Events) -> Any:
    """The value that begins with this event."""
    if kind == "start_array":
        return list(_elements(events))
    if kind != "start_map":
        return float(value) if isinstance(value, Decimal) else value
    made = {}
    for inner, key in events:
        if inner == "end_map":
            break
        made[key] = _built(*next(events), events)
    return made


# ---- the shapes of one object


def _selection(source: Source, block_bytes: int, field: str | None) -> Callable[[Events], Iterator[Any]] | None:
    """How to find the records in a file that is one object; None: the object is itself a record, or one of several."""
    with _Feed.of(source) as feed:
        events = _events(feed, block_bytes)
        next(events)
        outline = _outline(events, feed)
        is_alone = next(events, None) is None
    texts = {name: held for name, held in outline.items() if isinstance(held, str)}
    chats = [name for name, held in outline.items() if isinstance(held, list) and is_chat(held)]
    if not is_alone or chats or names_story(texts, field):
        return None
    if len(texts) == len(outline):
        return _each_value if len(outline) >= _ID_KEYS or all(map(str.isdigit, outline)) else None
    columns, rows = outline.get("columns"), outline.get("data")
    if isinstance(columns, list) and isinstance(rows, list) and rows and isinstance(rows[0], list):  # pandas split
        return lambda events: (dict(zip(columns, row, strict=False)) for _, row in _inside(events, ["data"]))
    return _selection_by_first(outline, field)


def _selection_by_first(outline: dict[str, Any], field: str | None) -> Callable[[Events], Iterator[Any]] | None:
    """The same, decided by the first element of each array and object in it."""
    first = {name: next(iter(_values(held)), None) for name, held in outline.items() if isinstance(held, (dict, list))}
    lists = [name for name in first if isinstance(outline[name], list) and isinstance(first[name], dict)]
    if wrapped := [name for name in lists if names_story(first[name], field)] or lists:
        return lambda events: (row for _, row in _inside(events, wrapped))
    is_column = [all(map(str.isdigit, held)) for held in outline.values() if isinstance(held, dict)]
    by_row = len(is_column) == len(outline) and (not any(is_column) or all(map(str.isdigit, outline)))
    if by_row and not names_story(first, field):
        return _each_value  # pandas index
    try:
        (name, *_), _ = choose([first], field)
    except NoStory:
        return None
    return lambda events: ({name: story} for _, story in _inside(events, [name]))  # pandas columns, lists of values


def _values(held: dict[str, Any] | list[Any]) -> list[Any]:
    return list(held.values()) if isinstance(held, dict) else held


def _each_value(events: Events) -> Iterator[Any]:
    return (_built(*next(events), events) for kind, _ in events if kind == "map_key")


def _outline(events: Events, feed: _Feed) -> dict[str, Any]:
    """The current object of the events, read to its end, with only the first element of arrays and objects in it."""
    outline: dict[str, Any] = {}
    for kind, name in events:
        if kind == "end_map":
            break
        found: Any
        begin, found = next(events)
        if begin in ("start_map", "start_array"):
            found = {} if begin == "start_map" else []
            for inner, key in events:
                if inner in ("end_map", "end_array"):
                    break
                element = next(events) if begin == "start_map" else (inner, key)
                if found and not (name == "columns" and len(found) < _OUTLINED):
                    _skip(element[0], events)
                elif begin == "start_map":
                    found[key] = _built(*element, events)
                else:
                    found.append(_built(*element, events))
                feed.began = feed.offset
        if len(outline) < _OUTLINED:
            outline[name] = found
    return outline


def _inside(events: Events, wanted: list[str]) -> Iterator[tuple[str, Any]]:
    """The elements of the wanted arrays and objects in the current object, each with its parent's name."""
    for kind, name in events:
        if kind == "end_map":
            return
        begin, _ = next(events)
        if name not in wanted or begin not in ("start_map", "start_array"):
            _skip(begin, events)
            continue
        for inner, element in events:
            if inner in ("end_map", "end_array"):
                break
            yield name, _built(*(next(events) if begin == "start_map" else (inner, element)), events)


def _skip(kind: str, events: Events) -> None:
    depth = int(kind.startswith("start"))
    while depth:
        kind, _ = next(events)
        depth += kind.startswith("start") - kind.startswith("end")


# ---- what ijson is given


class _Feed:
    """The bytes of a file for ijson: checked, repaired, and limited in size per record."""

    def __init__(self, source: Source, file: BinaryIO, start: int) -> None:
        self.source, self.file = source, file
        self.offset = self.began = start  # bytes read in all, and at the start of the record
        self.last = 0  # bytes of the last read
        self.record = 1
        self.must_mend, self.with_floats = _needs(source)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._rest, self._in_text = b"", False

    @classmethod
    @contextlib.contextmanager
    def of(cls, source: Source) -> Iterator[_Feed]:
        """For the file from its beginning."""
        with text_file(source) as (file, start):
            yield cls(source, file, start)

    def read(self, size: int) -> bytes:
        """Like file.read; DataError for bytes that are not text, or a record that is too long."""
        if not size:
            return b""  # ijson reads 0 bytes to find the type
        if self.offset - self.began > text_bytes.MAX_STORY_BYTES:
            raise too_long(self.source, f"record {self.record}")
        data = self.file.read(size)
        check_no_nul(self.source, data, self.offset)
        try:
            self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = self.offset + len(data) - len(error.object)
            raise not_utf8(self.source, error.object[error.start], at + error.start, is_last=not data) from None
        self.offset, self.last = self.offset + len(data), len(data)
        mended = self._mended(data) if self.must_mend else data
        return mended if mended or not data else self.read(size)

    def _mended(self, data: bytes) -> bytes:
        """Replace NaN and Infinity by null, lone surrogates by U+FFFD; keep what may be cut at the end for later."""
        block = self._rest + data
        end = len(block) - (_LONGEST_PIECE if data else 0)
        done, mended = 0, []
        for match in _PIECE.finditer(block):
            if match.start() >= end:
                break
            mended += [block[done : match.start()], self._replacement(match[0])]
            done = match.end()
        done, begin = max(done, end, 0), done
        self._rest = block[done:]
        return b"".join([*mended, block[begin:done]])

    def _replacement(self, piece: bytes) -> bytes:
        if piece == b'"':
            self._in_text = not self._in_text
        elif not piece.startswith(b"\\"):
            return piece if self._in_text else b"null"
        elif len(piece) == len(_REPLACED):
            return _REPLACED
        return piece


def _needs(source: Source) -> tuple[bool, bool]:
    """Whether the file may need repairs, and whether it has numbers so long that they would crash ijson."""
    must_mend = long_numbers = False
    tail = b""
    with source.open() as file:
        while data := file.read(_BLOCK_BYTES * 2):
            block = tail + data
            must_mend |= b"NaN" in block or b"Infinity" in block or _SURROGATE.search(block) is not None
            # A long run of digits has two at a stride of 2,000 bytes; searching all bytes takes as long as parsing.
            long_numbers |= _TWO_DIGITS.search(block[::2000]) is not None and _LONG_NUMBER.search(block) is not None
            tail = block[-_LONG:]
    return must_mend, long_numbers


def _events(feed: _Feed, block_bytes: int) -> Events:
    """ijson's events; its errors become DataErrors with the offset."""
    try:
        yield from ijson.basic_parse(feed, multiple_values=True, buf_size=block_bytes, use_float=feed.with_floats)
    except ijson.JSONError as error:
        fault = str(error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else error)
        if not feed.last:
            raise DataError(
                f"{feed.source} is cut short: it ends at byte {feed.offset}, inside record {feed.record} or before the "
                f"closing bracket. {FETCH_AGAIN}"
            ) from None
        reason = fault.splitlines()[0].rstrip(".") + "."
        raise _malformed(feed.source, f"record {feed.record}", reason, _place_of_fault(feed)) from None


def _place_of_fault(failed: _Feed) -> int:
    """The offset of ijson's error: parse again, the last block byte by byte."""
    last_block = failed.offset - failed.last
    with _Feed.of(failed.source) as feed:
        parser = ijson.basic_parse_coro(ijson.sendable_list(), multiple_values=True, use_float=feed.with_floats)
        try:
            while data := feed.read(min(_BLOCK_BYTES, last_block - feed.offset) if feed.offset < last_block else 1):
                parser.send(data)
        except ijson.JSONError:
            pass
        return feed.offset - 1
