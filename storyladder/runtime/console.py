"""stdout and stderr as they come: a terminal, a notebook, a StringIO, a code page, a full disk, a closed pipe, nothing.

Inside `console()` every print works, whoever makes it. This module does not know what is printed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


class Tolerant:
    r"""A text stream around another one, or around None. Characters that it cannot encode are written as \u escapes.

    Write and flush raise nothing but BrokenPipeError, for a stdout whose reader has left. Any other failure is kept
    in `failure`, and what is written from then on is dropped.
    """

    def __init__(self, stream: Any, *, tells_broken_pipe: bool) -> None:
        self.failure: OSError | None = None
        self._stream = stream
        self._tells_broken_pipe = tells_broken_pipe

    def write(self, text: str) -> int:
        """Write all of the text; its length, which print and tqdm expect."""

        def write() -> None:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # raised before anything is written; its `encoding` says "charmap" for cp1252
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

        self._tolerate(write)
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._tolerate(getattr(self._stream, "flush", lambda: None))

    def isatty(self) -> bool:
        """Whether it is a terminal; what has no `isatty`, or was closed, is none."""
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
            # Windows answers EINVAL where the reader of a pipe has left.
            if self._tells_broken_pipe and (error.errno == errno.EPIPE or (os.name, error.errno) == ("nt", 22)):
                raise BrokenPipeError(errno.EPIPE, "the reader has left") from None
            self.failure = error
        except ValueError:  # closed
            self._stream = None

    def _discard_buffer(self) -> None:
        """Python would try again at exit, and complain."""
        if self._stream in (sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def console() -> Iterator[Tolerant]:
    """Make sys.stdout and sys.stderr tolerant inside the `with`, and put back what was there. Gives stdout."""
    _fill_standard_descriptors()
    before = sys.stdout, sys.stderr
    stdout = Tolerant(sys.stdout, tells_broken_pipe=True)
    sys.stdout, sys.stderr = stdout, Tolerant(sys.stderr, tells_broken_pipe=False)
    try:
        yield stdout
    finally:
        with contextlib.suppress(BrokenPipeError):
            stdout.flush()
        sys.stdout, sys.stderr = before


def _fill_standard_descriptors() -> None:
    """Where the caller closed 0, 1 or 2, the next file opened would get that number, and what C code prints."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
