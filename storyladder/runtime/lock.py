"""One writer per folder: a lock file that names its holder, released by the kernel when the holder dies."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from storyladder.runtime.errors import UserError


@contextlib.contextmanager
def locked(path: Path, what: object = None) -> Iterator[None]:
    """Hold the lock file `path` inside the `with`. UserError, naming the holder, if another process has it.

    `what` is what the message says is in use; by default the folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write in {path.parent}: {error.strerror}; check the folder and its permissions"
        ) from None
    with file:
        if not _try_lock(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(f"{what or path.parent} is in use by {holder}; wait for it, or stop it first")
        file.seek(0)
        file.truncate()
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with contextlib.suppress(OSError):  # on a full disk only the name is lost, not the lock
            file.write(f"{Path(sys.argv[0]).name}, process {os.getpid()} on {socket.gethostname()}, since {now}")
            file.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
    """Take the lock without waiting; False if another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            os.lseek(file.fileno(), 1 << 30, os.SEEK_SET)  # far past the name, which others must be able to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{file.name}: this file system cannot lock ({error.strerror}); put the project on a local disk"
        ) from None
    return True
