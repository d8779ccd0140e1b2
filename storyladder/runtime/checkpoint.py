"""Crash-safe files of tensors and plain values: written to a temporary file, verified, renamed; verified at every load.

A file under its final name is complete. The previous one is kept as NAME.prev.pt until the next save, and a load falls
back to it. This module knows no model, only dictionaries. It writes tensors and plain int, float, str, bool, None, list
and dict, and never unpickles anything else.
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

# What zipfile and torch.load raise for bytes that are not an archive of tensors.
_UNREADABLE = (
    *(RuntimeError, ValueError, KeyError, IndexError, EOFError, AttributeError, TypeError, OverflowError),
    *(AssertionError, ImportError, NotImplementedError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error),
)
_DISK_ERRORS = (errno.EIO, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quotas
_MAX_STRUCTURE = 2 << 20  # bytes of pickle around the tensors; ours has about 50 KB, and 2 MB take a second to read
_MAX_RECORDS = 100_000
_MAX_SHARED = 4  # how many tensors may contain the same byte of the file: tensors can share memory


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A verified checkpoint, the file it came from, and notes about files that were damaged."""

    payload: Payload
    path: Path
    notes: list[str]


def previous_of(path: Path) -> Path:
    """Where the generation before `path` is kept."""
    return path.with_suffix(".prev.pt")


def save_checkpoint(path: Path, payload: Payload, *, keep_previous: bool) -> None:
    """Write the file, read it back, and only then give it its final name.

    Raises OSError (full disk, read-only folder, data that read back differently) and leaves the old files untouched.
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
    """Write the file and flush it to disk: it is not only in the system's cache when this returns."""
    with partial.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's zip writer raises its own error when a write fails; the original one is its __context__.
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
    """Make the rename itself durable on systems that can sync a folder. OSError if the disk fails."""
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
    """The verified content of a checkpoint, on the CPU. CheckpointError if it is missing, damaged or not ours."""
    return {key: _unmapped(value) for key, value in _verified(path).items()}


def peek_checkpoint(path: Path) -> Payload | None:
    """The content of a checkpoint, not verified, with tensors mapped from the file; None if it cannot be read."""
    try:
        return _opened(path)
    except CheckpointError:
        return None


def _verified(path: Path) -> Payload:
    """The same as read_checkpoint, with tensors mapped from the file."""
    content = _opened(path)
    with _reading(path):
        digest = digest_of(content)
    if content.get("digest") != digest:
        raise DamagedCheckpoint(f"{path} is damaged: its content does not match its digest")
    return content


def _opened(path: Path) -> Payload:
    if path.is_dir():
        raise DamagedCheckpoint(f"{path} is a folder, not a checkpoint")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    with _reading(path):
        _require_plain_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _require_plain_tensors(content, path.stat().st_size)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a Storyladder checkpoint (its `format` is missing)")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('format_version')}, but this program reads {FORMAT_VERSION}"
        )
    return content


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of zipfile, torch and malformed content into a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except _UNREADABLE as error:
        if "can't allocate memory" in str(error):
            raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from None
        raise DamagedCheckpoint(f"{path} is damaged or not a checkpoint: {_first_line(error)}") from None


def _require_plain_archive(path: Path) -> None:
    """Refuse archives that torch.save never writes (compressed, oversized), before anything is allocated."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if len(records) > _MAX_RECORDS or sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("its records add up to more than the file")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("it contains compressed records")
    if any(record.filename.endswith(".pkl") and record.file_size > _MAX_STRUCTURE for record in records):
        raise ValueError("its pickle is larger than that of any checkpoint")


def _require_plain_tensors(content: object, file_size: int) -> None:
    """Refuse tensors that a stride of 0 makes larger than the file: copying one would exhaust memory."""
    if sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content)) > _MAX_SHARED * file_size:
        raise ValueError("its tensors are larger than the file")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def load_checkpoint(path: Path, *, set_aside: bool = True) -> Loaded | None:
    """The newest intact generation of `path`, or None if there has never been one.

    A damaged file is renamed to NAME.corrupt and the previous one is used; DamagedCheckpoint if both are damaged. Only
    the process that holds the lock may pass `set_aside`.
    """
    notes: list[str] = []
    for candidate in (path, previous_of(path)):
        if not candidate.exists():
            continue
        try:
            return Loaded(read_checkpoint(candidate), candidate, notes)
        except DamagedCheckpoint as error:
            aside = rename_damaged(candidate) if set_aside else candidate
            notes.append(f"{error}; it is kept as {aside.name}")
    if notes:
        raise DamagedCheckpoint("; ".join(notes))
    return None


def rename_damaged(path: Path) -> Path:
    """Rename a damaged file to NAME.corrupt, or NAME.corrupt-2 and so on. In a read-only folder it keeps its name."""
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
    """Bytes that represent a value, independent of the insertion order of dictionaries."""
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
        raise TypeError(f"a checkpoint can only contain tensors and plain values, not {type(value).__name__}")


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _unmapped(value: Any) -> Any:
    """Copy tensors out of the mapped file, which may be replaced while they are in use."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _unmapped(item) for key, item in value.items()}
    return [_unmapped(item) for item in value] if isinstance(value, list) else value
