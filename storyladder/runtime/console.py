"""stdout and stderr of any kind: a terminal, a notebook, a StringIO, a code page, a full disk, a closed pipe, None.

Inside `console()` every print works, including those of other packages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


class Tolerant:
    r"""Wraps a text stream, or None. Characters that the stream cannot encode are written as \u escapes.

    write and flush only raise BrokenPipeError, and only for a stdout whose reader has exited. Any other error is kept
    in `failure`, and all later output is dropped.
    """

    def __init__(self, stream: Any, *, raises_broken_pipe: bool) -> None:
        self.failure: OSError | None = None
        self._stream = stream
        self._raises_broken_pipe = raises_broken_pipe

    def write(self, text: str) -> int:
        """Write the text; returns its length, as print and tqdm expect."""

        def write() -> None:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # raised before anything is written; its `encoding` says "charmap" for cp1252
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

        self._tolerate(write)
        return len(text)

    def flush(self) -> None:
        """Flush the wrapped stream."""
        self._tolerate(getattr(self._stream, "flush", lambda: None))

    def isatty(self) -> bool:
        """Whether it is a terminal; False for a stream that has no `isatty` or is closed."""
        try:
            return bool(self._stream.isatty())
        except (AttributeError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _tolerate(self, action: Callable[[], object]) -> None:
        if self._stream is None or self.failure is not None:
            return
        try:
            action()
        except OSError as error:
            self._discard_buffer()
            # Windows reports EINVAL when the reader of a pipe has exited.
            if self._raises_broken_pipe and (error.errno == errno.EPIPE or (os.name, error.errno) == ("nt", 22)):
                raise BrokenPipeError(errno.EPIPE, "the reader has exited") from None
            self.failure = error
        except ValueError:  # closed
            self._stream = None

    def _discard_buffer(self) -> None:
        """Keep Python from flushing again at exit, which would print a second error."""
        if self._stream in (sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def console() -> Iterator[Tolerant]:
    """Make sys.stdout and sys.stderr tolerant inside the `with`, then restore them. Yields the tolerant stdout."""
    _fill_standard_descriptors()
    before = sys.stdout, sys.stderr
    stdout = Tolerant(sys.stdout, raises_broken_pipe=True)
    sys.stdout, sys.stderr = stdout, Tolerant(sys.stderr, raises_broken_pipe=False)
    try:
        yield stdout
    finally:
        with contextlib.suppress(BrokenPipeError):
            stdout.flush()
        sys.stdout, sys.stderr = before


def _fill_standard_descriptors() -> None:
    """Open /dev/null for each of 0, 1 and 2 that is closed. Else the next file opened would receive C code's output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
