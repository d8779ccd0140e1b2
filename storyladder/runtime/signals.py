"""Leaving and saving on signals: a handler sets a flag, and every long loop asks for it where it is safe.

SIGINT (Ctrl-C), SIGTERM and SIGHUP ask to save and leave; a second one leaves at once, which harms no file because
files get their names only when they are whole. SIGUSR1 asks to save and go on. In a group the second one counts only
after a while: who asks all processes of a job to leave asks torchrun too, which hands it on to those that know already.

Processes that train as one act on a signal together: what each has heard is put together at their agreements
(distributed.py), and only then `requested` and `take_save_request` say so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from storyladder.runtime.errors import Interrupted

_LEAVE = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_STDERR = 2
_ECHO_SECONDS = 2.0  # in which a second signal may be the first one, handed on by torchrun
_SAVE = getattr(signal, "SIGUSR1", None)  # absent on Windows


class StopRequest:
    """What signals have asked for since the last look."""

    def __init__(self) -> None:
        self.signal_number: int | None = None  # heard by this process
        self._heard_at = 0.0  # by time.monotonic
        self._save = False
        self._shared = False
        self._speaks = True
        self._settled: int | None = None  # what all processes of a group know of
        self._settled_save = False
        self._farewell: str | None = None

    def share(self, *, speaks: bool) -> None:
        """From now on act on what a group has agreed on only; `speaks` says whether this process talks to the user."""
        self._shared, self._speaks = True, speaks

    def pending(self) -> tuple[int, int]:
        """What this process has heard, for an agreement: the signal that asked to leave, or 0; 1 if it is to save."""
        return self.signal_number or 0, int(self._save)

    def settle(self, number: int, save: int) -> None:
        """Take over what the group has heard, as `pending` gave it."""
        if number:
            self._settled = number
        if save:
            self._settled_save, self._save = True, False

    @property
    def requested(self) -> bool:
        """Whether a signal asked to leave."""
        return (self._settled if self._shared else self.signal_number) is not None

    def check(self) -> None:
        """Raise Interrupted where a signal asked to leave."""
        number = self._settled if self._shared else self.signal_number
        if number is not None:
            raise Interrupted(number)

    def check_here(self) -> None:
        """Raise Interrupted where this process was asked to leave, for work that ends in an agreement."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    @contextlib.contextmanager
    def at_once(self, farewell: str) -> Iterator[None]:
        """Inside the `with` already the first signal leaves at once, with these words: where nothing can be lost.

        For code of others that cannot be asked whether it may be broken off. An exception out of the handler would
        meet it anywhere, also between taking a lock and noting that it is held, and its exit handlers then wait for it.
        """
        self._farewell = farewell
        try:
            yield
        finally:
            self._farewell = None

    def request_save(self) -> None:
        """Ask to save and go on, as SIGUSR1 does."""
        self._save = True

    def take_save_request(self) -> bool:
        """Whether a save was asked for since the last call."""
        if self._shared:
            asked, self._settled_save = self._settled_save, False
        else:
            asked, self._save = self._save, False
        return asked

    def _on_leave(self, number: int, _frame: FrameType | None) -> None:
        if self._farewell is not None:
            with contextlib.suppress(OSError):
                os.write(_STDERR, f"\n{self._farewell}\n".encode())
            os._exit(128 + number)
        if self.signal_number is not None:
            if self._shared and time.monotonic() - self._heard_at < _ECHO_SECONDS:
                return
            os._exit(128 + number)
        self.signal_number, self._heard_at = number, time.monotonic()
        if not self._speaks:
            return
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
    background. Outside the main thread, as in a notebook's widget, Python lets nobody listen.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
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
