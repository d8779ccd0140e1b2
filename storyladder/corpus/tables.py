"""The records of tables: .parquet, .arrow and .feather through pyarrow, .csv and .tsv through Python's own reader.

pyarrow.csv is not used: it rejects stories longer than its block, and its errors have no line number.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from storyladder.corpus.fields import STORY_FIELDS, Reading
from storyladder.corpus.opening import FETCH_AGAIN, Source, peek
from storyladder.corpus.text_bytes import decoded, lines_of, text_file
from storyladder.runtime.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_BYTES, _MOST_BATCH_ROWS = 4 << 20, 256  # converted at a time
_FIRST_ROWS = 20  # read with all columns; then only the column of the story is read
_LONGEST_NAME = 60  # characters; a first row with more in a cell is no header

Records = Iterator[tuple[str, Any]]


def parquet_records(source: Source, block_bytes: int, reading: Reading) -> Records:
    """One record per row; only the column `reading.path` once it is known."""
    with _arrow_errors(source):
        import pyarrow.parquet as pq

        # buffer_size: without it pyarrow holds the column of a whole row group, in the worst case of the whole file.
        with (
            _seekable(source) as file,
            pq.ParquetFile(
                file, memory_map=False, pre_buffer=False, buffer_size=block_bytes, page_checksum_verification=True
            ) as parquet,
        ):
            groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
            widest_row = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
            rows = max(1, min(_MOST_BATCH_ROWS, int(_BATCH_BYTES / max(1, widest_row))))
            first = parquet.iter_batches(batch_size=_FIRST_ROWS, use_threads=False)
            yield from _rows(source, itertools.islice(first, 1), rows)
            columns = list(reading.path[:1])
            others = parquet.iter_batches(batch_size=rows, columns=columns, use_threads=False)
            yield from _rows(source, others, rows, skip=_FIRST_ROWS)


def arrow_records(source: Source, _: int, reading: Reading) -> Records:
    """One record per row, from a stream (as datasets.save_to_disk writes it) or a file (as Feather is)."""
    with _arrow_errors(source):
        import pyarrow as pa

        with _seekable(source) as file, contextlib.ExitStack() as stack:
            data = stack.enter_context(pa.memory_map(file)) if isinstance(file, str) else file
            is_file = data.read(6) == b"ARROW1"
            data.seek(0)
            batches: Iterable[pa.RecordBatch]
            if is_file:
                with pa.ipc.open_file(data) as opened:
                    batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
                    yield from _rows(source, batches, _MOST_BATCH_ROWS, reading=reading)
            else:
                with pa.ipc.open_stream(data) as batches:
                    yield from _rows(source, batches, _MOST_BATCH_ROWS, reading=reading)


def _rows(
    source: Source, batches: Iterable[pa.RecordBatch], rows: int, *, skip: int = 0, reading: Reading | None = None
) -> Records:
    """The rows of batches as dicts, from row `skip`, converted a few at a time."""
    row = 0
    for batch in batches:
        for begin in range(0, batch.num_rows, rows):
            part = batch.slice(begin, rows)
            if reading and reading.path:
                part = part.select(list(reading.path[:1]))
            try:
                records = part.to_pylist()
            except UnicodeDecodeError as error:
                last, byte = row + part.num_rows - 1, error.object[error.start]
                raise DataError(
                    f"{source}: one of the rows {row} to {last} of its text is not UTF-8 (byte 0x{byte:02x}). "
                    f"Expected UTF-8. {FETCH_AGAIN}"
                ) from None
            yield from (
                (f"row {row + number}", record) for number, record in enumerate(records) if row + number >= skip
            )
            row += len(records)


@contextlib.contextmanager
def _seekable(source: Source) -> Iterator[Any]:
    """What pyarrow reads: the path, or the open member of a .zip. Other compressed files cannot seek to their end."""
    with source.open() as file:
        if source.member is None and not hasattr(file, "raw"):
            raise DataError(
                f"{source} is compressed, but must be read from its end. Decompress it: gunzip, bunzip2, unxz or unzstd"
            )
        yield file if source.member else str(source.path)


@contextlib.contextmanager
def _arrow_errors(source: Source) -> Iterator[None]:
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError(f"reading {source} needs pyarrow, which is not installed. Type: pip install pyarrow") from None
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the disk's fault, not the file's
        reason = " ".join(str(error).split())[:200]
        kind = source.kind.removeprefix(".")
        raise DataError(f"{source} is damaged or not a {kind} file ({reason}). {FETCH_AGAIN}") from None


# ---- .csv and .tsv


def csv_records(source: Source, _: int, reading: Reading) -> Records:
    """One record per row, named by the header; a first row that looks like a story is not a header."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # of a C long; the length of a story is checked here
    with text_file(source) as (file, _):
        separator = (
            b"\t" if source.kind == ".tsv" else max((b",", b";", b"\t", b"|"), key=peek(file).split(b"\n")[0].count)
        )
    lines = (decoded(source, line, offset) for offset, line in lines_of(source))
    rows = csv.reader(lines, delimiter=separator.decode(), strict=True)
    names: list[str] | None = None
    try:
        for row in rows:
            if names is None and _is_header(row):
                names = row
            elif row:
                values = dict(zip(names or map(str, itertools.count()), row, strict=False))
                yield f"the row that ends in line {rows.line_num}", values
            names = names or []
    except csv.Error as error:
        raise DataError(
            f"{source}: the row that ends in line {rows.line_num} is not valid CSV: {error}. To see it, type: "
            f"sed -n {rows.line_num}p {source.quoted}"
        ) from None


def _is_header(row: list[str]) -> bool:
    return any(name.strip().lower() in STORY_FIELDS for name in row) or max(map(len, row), default=0) <= _LONGEST_NAME
