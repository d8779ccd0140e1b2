"""Leaving and saving on signals: a handler sets a flag, and every long loop asks for it where it is safe.

SIGINT (Ctrl-C), SIGTERM and SIGHUP ask to save and leave; a second one leaves at once, which harms no file because
files get their names only when they are whole. SIGUSR1 asks to save and go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from storyladder.runtime.errors import Interrupted

_LEAVE = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_STDERR = 2
_SAVE = getattr(signal, "SIGUSR1", None)  # absent on Windows


class StopRequest:
    """What signals have asked for since the last look."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._save = False

    @property
    def requested(self) -> bool:
        """Whether a signal asked to leave."""
        return self.signal_number is not None

    def check(self) -> None:
        """Raise Interrupted where a signal asked to leave."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    def take_save_request(self) -> bool:
        """Whether SIGUSR1 came since the last call."""
        asked, self._save = self._save, False
        return asked

    def _on_leave(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.signal_number = number
        # Not print: it raises where the signal came in the middle of another print. And SIGHUP says that the terminal
        # is gone, which must not keep anybody from saving.
        with contextlib.suppress(OSError):
            os.write(_STDERR, b"\nleaving as soon as everything is saved (once more: leave at once)\n")

    def _on_save(self, _number: int, _frame: FrameType | None) -> None:
        self._save = True


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A StopRequest that listens to signals inside the `with`; the old handlers come back afterwards.

    What is ignored stays ignored: `nohup` does so with SIGHUP, a shell script with SIGINT for what it puts into the
    background.
    """
    stop = StopRequest()
    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        number: stop._on_leave for number in _LEAVE if signal.getsignal(number) is not signal.SIG_IGN
    }
    if _SAVE is not None:
        handlers[_SAVE] = stop._on_save
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
