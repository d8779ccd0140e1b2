"""Exiting and saving on signals: a handler sets a flag, and every long loop checks it where it is safe.

SIGINT (Ctrl-C), SIGTERM and SIGHUP mean: save and exit. A second one exits immediately, which damages no file because
files get their final names only when they are complete. SIGUSR1 means: save and continue. In a group a second signal
within two seconds is ignored: a signal to the whole job also reaches torchrun, which sends it to all ranks again.

The ranks of a group act on a signal together: they combine what each has received at their agreements
(distributed.py), and only then `requested` and `take_save_request` return True.
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

_EXIT = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_STDERR = 2
_ECHO_SECONDS = 2.0  # in which a second signal may be the first one, forwarded by torchrun
_SAVE = getattr(signal, "SIGUSR1", None)  # missing on Windows


class StopRequest:
    """What signals have requested since the last check."""

    def __init__(self) -> None:
        self.signal_number: int | None = None  # received by this process
        self._received_at = 0.0  # by time.monotonic
        self._save = False
        self._shared = False
        self._prints = True
        self._settled: int | None = None  # known to all ranks of a group
        self._settled_save = False
        self._exit_message: str | None = None

    def share(self, *, prints: bool) -> None:
        """From now on act only on what the group has agreed on; `prints` is whether this process prints messages."""
        self._shared, self._prints = True, prints

    def pending(self) -> tuple[int, int]:
        """What this process has received, for an agreement: the signal to exit on, or 0, and 1 if it should save."""
        return self.signal_number or 0, int(self._save)

    def settle(self, number: int, save: int) -> None:
        """Act on what any rank has received, in the form of `pending`."""
        if number:
            self._settled = number
        if save:
            self._settled_save, self._save = True, False

    @property
    def requested(self) -> bool:
        """Whether a signal asked to exit."""
        return (self._settled if self._shared else self.signal_number) is not None

    def check(self) -> None:
        """Raise Interrupted if a signal asked to exit."""
        number = self._settled if self._shared else self.signal_number
        if number is not None:
            raise Interrupted(number)

    def check_here(self) -> None:
        """Raise Interrupted if this process received a signal to exit; for work that ends in an agreement."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    @contextlib.contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Inside the `with` the first signal prints `message` and exits immediately. Use it where nothing can be lost.

        For library code that cannot check for signals. An exception raised by the handler could hit it anywhere, even
        between taking a lock and recording that it is held, and its exit handlers would then wait for that lock.
        """
        self._exit_message = message
        try:
            yield
        finally:
            self._exit_message = None

    def request_save(self) -> None:
        """Request a save, as SIGUSR1 does."""
        self._save = True

    def take_save_request(self) -> bool:
        """Whether a save was requested since the last call."""
        if self._shared:
            requested, self._settled_save = self._settled_save, False
        else:
            requested, self._save = self._save, False
        return requested

    def _on_exit_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._exit_message is not None:
            with contextlib.suppress(OSError):
                os.write(_STDERR, f"\n{self._exit_message}\n".encode())
            os._exit(128 + number)
        if self.signal_number is not None:
            if self._shared and time.monotonic() - self._received_at < _ECHO_SECONDS:
                return
            os._exit(128 + number)
        self.signal_number, self._received_at = number, time.monotonic()
        if not self._prints:
            return
        # Not print, which raises if the signal arrives during another print. After SIGHUP the terminal is gone, which
        # must not prevent saving.
        with contextlib.suppress(OSError):
            os.write(_STDERR, b"\nstopping once everything is saved (press Ctrl-C again to stop immediately)\n")

    def _on_save(self, _number: int, _frame: FrameType | None) -> None:
        self._save = True


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """A StopRequest that handles signals inside the `with`; the old handlers are restored afterwards.

    Ignored signals stay ignored: `nohup` ignores SIGHUP, and shell scripts ignore SIGINT for background jobs. Outside
    the main thread, as in a notebook's widget, Python does not allow signal handlers.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        number: stop._on_exit_signal for number in _EXIT if signal.getsignal(number) is not signal.SIG_IGN
    }
    if _SAVE is not None:
        handlers[_SAVE] = stop._on_save
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
