"""Crash-safe files of tensors and plain values: written beside, verified, then renamed; verified again at every load.

A file under its final name is complete. The one before it is kept as NAME.prev.pt until the next save, and a load falls
back to it. This module knows no model: it moves dictionaries. Nothing but tensors and plain int, float, str, bool,
None, list and dict is written, and nothing else is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyladder.runtime.errors import CheckpointError, DamagedCheckpoint

FORMAT = "storyladder checkpoint"
FORMAT_VERSION = 1
Payload = dict[str, Any]

# What zipfile and torch.load raise for bytes that are no archive of tensors.
_UNREADABLE = (
    *(RuntimeError, ValueError, KeyError, IndexError, EOFError, AttributeError, TypeError, OverflowError),
    *(AssertionError, ImportError, NotImplementedError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error),
)
_DISK_ERRORS = (errno.EIO, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows knows no quotas
_MAX_STRUCTURE = 2 << 20  # bytes of pickle around the tensors; ours has about 50 KB, and 2 MB take a second to read
_MAX_RECORDS = 100_000
_MAX_SHARED = 4  # how often a byte of the file may stand in tensors, which may share memory


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A verified checkpoint, the file it came from, and what there is to say about files that were damaged."""

    payload: Payload
    path: Path
    notes: list[str]


def previous_of(path: Path) -> Path:
    """Where the generation before `path` is kept."""
    return path.with_suffix(".prev.pt")


def save_checkpoint(path: Path, payload: Payload, *, keep_previous: bool) -> None:
    """Write, read back, and only then give the file its name.

    Raises OSError (full disk, read-only folder, bytes that read back differently) and leaves the old files alone.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **payload}
    content["digest"] = digest_of(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    _require_space(path.parent, content)
    partial = path.with_suffix(".partial")
    try:
        _write(partial, content)
        if _verified(partial)["digest"] != content["digest"]:
            raise OSError(errno.EIO, "read back differently", str(partial))
        if keep_previous and path.exists():
            os.replace(path, previous_of(path))
        os.replace(partial, path)
    except CheckpointError as error:
        partial.unlink(missing_ok=True)
        raise OSError(errno.EIO, f"cannot be read back: {error}", str(partial)) from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


def _write(partial: Path, content: Payload) -> None:
    """The file, on the disk and not only in the system's memory, when this returns."""
    with partial.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's zip writer answers a refused write with an error of its own; the reason hides in its context.
            cause = error.__context__
            raise (cause if isinstance(cause, OSError) else OSError(errno.EIO, str(error), str(partial))) from None
        file.flush()
        os.fsync(file.fileno())


def _require_space(folder: Path, content: Payload) -> None:
    needed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content)) + (1 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB needed", str(folder))


def _fsync_folder(folder: Path) -> None:
    """Make the renaming itself durable, where the system knows such a call. OSError if the disk refuses it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise


def read_checkpoint(path: Path) -> Payload:
    """The content of a checkpoint, on the CPU, verified. CheckpointError if it is missing, damaged or not ours."""
    return {key: _unmapped(value) for key, value in _verified(path).items()}


def peek_checkpoint(path: Path) -> Payload | None:
    """What a checkpoint says of itself, unverified, with tensors that still lie in the file; None if it cannot."""
    try:
        return _opened(path)
    except CheckpointError:
        return None


def _verified(path: Path) -> Payload:
    """The same as read_checkpoint, with tensors that still lie in the file."""
    content = _opened(path)
    with _reading(path):
        digest = digest_of(content)
    if content.get("digest") != digest:
        raise DamagedCheckpoint(f"{path} is damaged: its content does not match its digest")
    return content


def _opened(path: Path) -> Payload:
    if path.is_dir():
        raise DamagedCheckpoint(f"{path} is a folder and no checkpoint")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    with _reading(path):
        _require_plain_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _require_plain_tensors(content, path.stat().st_size)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of Storyladder (its `format` is missing)")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('format_version')}, this program reads {FORMAT_VERSION}"
        )
    return content


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What zipfile, torch and strange content raise, as an error that says which file it is."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except _UNREADABLE as error:
        if "can't allocate memory" in str(error):
            raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from None
        raise DamagedCheckpoint(f"{path} is damaged or no checkpoint: {_first_line(error)}") from None


def _require_plain_archive(path: Path) -> None:
    """Refuse, before anything is allocated, archives that torch.save does not write: compressed, bloated, absurd."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if len(records) > _MAX_RECORDS or sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("its records are larger than the file")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("it holds compressed records")
    if any(record.filename.endswith(".pkl") and record.file_size > _MAX_STRUCTURE for record in records):
        raise ValueError("its structure is larger than any checkpoint's")


def _require_plain_tensors(content: object, file_size: int) -> None:
    """Refuse tensors that a stride of 0 makes larger than the file: a copy of one would fill the memory."""
    if sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content)) > _MAX_SHARED * file_size:
        raise ValueError("its tensors are larger than the file")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def load_checkpoint(path: Path, *, set_aside: bool = True) -> Loaded | None:
    """The newest sound generation of `path`, or None if there has never been one.

    A damaged file is set aside as NAME.corrupt and the one before it is used; if all are, DamagedCheckpoint. Only
    the process that holds the lock may set aside.
    """
    notes: list[str] = []
    for candidate in (path, previous_of(path)):
        if not candidate.exists():
            continue
        try:
            return Loaded(read_checkpoint(candidate), candidate, notes)
        except DamagedCheckpoint as error:
            aside = put_aside(candidate) if set_aside else candidate
            notes.append(f"{error}; it is kept as {aside.name}")
    if notes:
        raise DamagedCheckpoint("; ".join(notes))
    return None


def put_aside(path: Path) -> Path:
    """Rename a damaged file to NAME.corrupt, or NAME.corrupt-2 and so on; a folder that cannot be written keeps it."""
    number = 1
    while (aside := path.with_name(path.name + (".corrupt" if number == 1 else f".corrupt-{number}"))).exists():
        number += 1
    try:
        os.replace(path, aside)
    except OSError:
        return path
    return aside


def digest_of(content: Payload) -> str:
    """A hash of every tensor byte and plain value, except the digest itself; equal for equal content."""
    state = hashlib.blake2b(digest_size=32)
    for part in _canonical({key: value for key, value in content.items() if key != "digest"}):
        state.update(part)
    return state.hexdigest()


def _canonical(value: object) -> Iterator[bytes | memoryview]:
    """The bytes that stand for a value, in an order that does not depend on how a dictionary was filled."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}\n".encode()
        yield memoryview(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    elif isinstance(value, dict):
        yield f"dict {len(value)}\n".encode()
        for key in sorted(value, key=lambda key: (type(key).__name__, str(key))):
            yield f"{key!r}:".encode()
            yield from _canonical(value[key])
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}\n".encode()
        for item in value:
            yield from _canonical(item)
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield f"{type(value).__name__} {value!r}\n".encode()
    else:
        raise TypeError(f"a checkpoint holds tensors and plain values only, not {type(value).__name__}")


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _unmapped(value: Any) -> Any:
    """A copy in memory: the file may be replaced while its content is in use."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _unmapped(item) for key, item in value.items()}
    return [_unmapped(item) for item in value] if isinstance(value, list) else value
