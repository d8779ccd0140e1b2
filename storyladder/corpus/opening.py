"""Files as streams of bytes, decompressed: .gz, .bz2, .xz, .zst and the members of a .zip, at constant memory.

The first bytes of a file decide how it is compressed, not its name. Knows nothing about the content.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import lzma
import os
import shlex
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from storyladder.runtime.errors import DataError

FETCH_AGAIN = "Delete it and fetch it again: python prepare_data.py"


def _unzstd(file: BinaryIO) -> BinaryIO:
    """Python has a zstd module only since 3.14; pyarrow, which we need anyway, has one."""
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(file, "zstd"), 1 << 20)


_UNPACK: dict[str, tuple[bytes, Callable[[BinaryIO], BinaryIO]]] = {
    ".gz": (b"\x1f\x8b", lambda file: cast("BinaryIO", gzip.GzipFile(fileobj=file))),
    ".bz2": (b"BZh", lambda file: cast("BinaryIO", bz2.BZ2File(file))),
    ".xz": (b"\xfd7zXZ\x00", lambda file: cast("BinaryIO", lzma.LZMAFile(file))),  # noqa: SIM115 closed with its file
    ".zst": (b"\x28\xb5\x2f\xfd", _unzstd),
}
PACKED = (*_UNPACK, ".zip")
BAD_PACKING = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile)


def peek(file: BinaryIO) -> bytes:
    """The next bytes, which stay unread; at least 32 unless the file ends."""
    return cast("io.BufferedReader", file).peek(32)


def kind_of_file(name: str) -> str:
    """The suffix that names the format of a file, in lower case and without the suffix of its compression."""
    stem, suffix = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if suffix in _UNPACK else suffix


@dataclasses.dataclass(frozen=True)
class Source:
    """A file to read from, or one member of a .zip."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path} ({self.member})" if self.member else str(self.path)

    @property
    def quoted(self) -> str:
        """The file name, quoted for the shell; that of the unpacked file if it is packed."""
        path = self.path.with_suffix("") if self.path.suffix.lower() in _UNPACK else self.path
        return shlex.quote(self.member or str(path))

    @property
    def kind(self) -> str:
        """See `kind_of_file`."""
        return kind_of_file(self.member or self.path.name)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The unpacked bytes from the start. DataError if a packed file is damaged or cut short."""
        file: BinaryIO
        with self.path.open("rb") as raw:
            packing = "zip" if self.member else ""
            try:
                file = cast("BinaryIO", zipfile.ZipFile(raw).open(self.member)) if self.member else raw  # noqa: SIM115
                for suffix, (signature, unpack) in _UNPACK.items():
                    if peek(file).startswith(signature):
                        packing, file = suffix[1:], unpack(file)
                        break
                yield file
            except BAD_PACKING as error:
                raise DataError(f"{self} is damaged or cut short ({packing}: {error}). {FETCH_AGAIN}") from None
            except OSError as error:
                if packing and error.errno is None:
                    raise DataError(f"{self} is damaged or cut short ({packing}: {error}). {FETCH_AGAIN}") from None
                raise


def members(path: Path) -> list[Source]:
    """The files in a .zip, sorted, without hidden files and those that macOS adds."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is damaged or not a zip archive ({error}). {FETCH_AGAIN}") from None
    return [Source(path, name) for name in names if not name.startswith("__MACOSX") and "/." not in f"/{name}"]
