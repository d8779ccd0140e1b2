"""Contenders take turns, each in its own process: one works while the others wait and use no CPU.

Separate processes, because allocator settings, thread pools and peak memory belong to a process. Turns, because the
speed of a shared machine varies by a factor of two within minutes, so only measurements close in time compare. This
module knows nothing about models or stories.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, Protocol

Report = Callable[[str], None]
Reading = dict[str, Any]  # measured in one turn; "seconds" is always there

_SLOW_TURN = 60.0  # seconds; if its first turn takes longer, a contender gets one warm-up and
_SLOW_TURNS = 3  # this many timed turns at most
_TIMEOUT = 10.0  # seconds for a process to exit by itself
_DAY = 24 * 3600.0
_MIN_TIMEOUT = 180.0  # seconds to wait for an answer even after the deadline; a busy machine can take a minute


class Racer(Protocol):
    """A contender in its own process."""

    facts: dict[str, Any]  # about itself, for the table

    def turn(self, number: int) -> Reading:
        """Do one unit of work; the reading has its seconds."""

    def final_facts(self) -> dict[str, Any]:
        """Facts known only at the end, such as peak memory."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender before its process starts. `build` must be a module-level function and `spec` picklable."""

    name: str
    build: Callable[[Any], Racer]
    spec: Any


class ContenderFailed(Exception):
    """A contender failed to build, raised an error, timed out or died."""


class Seat:
    """A contender's process, from start to `close`."""

    def __init__(self, entry: Entry) -> None:
        self.name = entry.name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, entry.build, entry.spec))
        self._process.start()
        theirs.close()

    def answer(self, timeout: float) -> dict[str, Any]:
        """Receive its facts first, then the answer to each `ask`; ContenderFailed on an error or after `timeout`."""
        try:
            if not self._pipe.poll(timeout):
                self._process.kill()  # or it would keep running next to the others
                raise ContenderFailed(f"no answer within {timeout:.0f} s; allow more time with --minutes")
            good, message = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(_TIMEOUT)
            code = self._process.exitcode
            raise ContenderFailed(f"its process died with status {code}{' (memory?)' if code == -9 else ''}") from None
        if not good:
            raise ContenderFailed(str(message))
        return dict(message)

    def ask(self, number: int | None) -> None:
        """Request turn `number`, or the last facts if None; `answer` returns the reply."""
        with contextlib.suppress(BrokenPipeError, ConnectionError):  # it died; `answer` reports how
            self._pipe.send(number)

    def close(self) -> None:
        """Wait for the process to exit; kill it if it does not."""
        self._pipe.close()
        self._process.join(_TIMEOUT)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, build: Callable[[Any], Racer], spec: Any) -> None:
    """Main function of a contender's process."""
    try:
        racer = build(spec)
        pipe.send((True, racer.facts))
        while (number := pipe.recv()) is not None:
            pipe.send((True, racer.turn(number)))
        pipe.send((True, racer.final_facts()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the benchmark is over
    except Exception as error:
        message = (str(error).strip() or "no message").splitlines()[0][:300]
        pipe.send((False, f"{type(error).__name__}: {message}"))


@dataclasses.dataclass
class Measured:
    """The outcome of one contender in a race."""

    facts: dict[str, Any]
    report: Report = lambda _: None
    readings: list[Reading] = dataclasses.field(default_factory=list)
    timeout: Callable[[], float] = lambda: _MIN_TIMEOUT  # seconds for the next answer
    slow: bool = False
    cold: bool = False  # there was no time for a warm-up
    failure: str | None = None

    def receive(self, seat: Seat) -> dict[str, Any] | None:
        """The contender's answer; if it failed, None, and `failure` has the reason."""
        try:
            return seat.answer(self.timeout())
        except ContenderFailed as error:
            self.failure = str(error)
            self.report(f"{seat.name}: {error}")
            return None

    def takes_part(self, number: int) -> bool:
        """Whether it has a turn in this timed round."""
        return self.failure is None and not (self.slow and number >= _SLOW_TURNS)

    @property
    def seconds(self) -> list[float]:
        """Seconds of each timed turn."""
        return [reading["seconds"] for reading in self.readings]

    @property
    def median(self) -> float | None:
        """Median seconds of one unit of work, or None if nothing was measured."""
        return statistics.median(self.seconds) if self.readings and self.failure is None else None


def race(entries: Iterable[Entry], *, warmups: int, turns: int, seconds: float, report: Report) -> dict[str, Measured]:
    """Let contenders take turns for about `seconds`: warm-ups first, then at most `turns` timed turns each.

    The clock starts when all contenders are ready: on a GPU they first compile for a minute.

    The race ends between two rounds, never before the first timed round is complete. If the warm-up uses up all the
    time, its last turn is the reading, marked as cold. A contender leaves the race if it fails, or if one answer takes
    half of the time.
    """
    deadline = time.monotonic() + seconds

    def timeout() -> float:
        return max(_MIN_TIMEOUT, min(seconds / 2, deadline - time.monotonic(), _DAY))

    measured: dict[str, Measured] = {}
    seats: list[Seat] = []
    try:
        seats += [Seat(entry) for entry in entries]
        for seat in seats:  # they all get ready in parallel
            measured[seat.name] = Measured({}, report, timeout=timeout)
            measured[seat.name].facts = measured[seat.name].receive(seat) or {}
        deadline = time.monotonic() + seconds
        _warm_up(seats, measured, warmups, deadline)
        _timed_rounds(seats, measured, warmups, turns, deadline, report)
        for seat in seats:
            if measured[seat.name].failure is None:
                seat.ask(None)
                measured[seat.name].facts.update(measured[seat.name].receive(seat) or {})
    finally:
        for seat in seats:
            seat.close()
    return measured


def _take_turn(seat: Seat, found: Measured, number: int) -> float:
    """Take one turn; returns its wall time in seconds, overhead included."""
    began = time.monotonic()
    seat.ask(number)
    if (reading := found.receive(seat)) is not None:
        found.readings.append(reading)
    return time.monotonic() - began


def _warm_up(seats: list[Seat], measured: dict[str, Measured], warmups: int, deadline: float) -> None:
    """Take turns that do not count: one for slow contenders, and for everyone once the time is up."""
    for number in range(warmups):
        for seat in seats:
            found = measured[seat.name]
            if found.failure is not None or (number and (found.slow or time.monotonic() > deadline)):
                continue
            took = _take_turn(seat, found, number)
            if not number and found.failure is None:
                found.slow = took > _SLOW_TURN and not found.facts.get("compiled")
                found.report(f"{seat.name}: first turn {took:.3g} s")


def _timed_rounds(
    seats: list[Seat], measured: dict[str, Measured], warmups: int, turns: int, deadline: float, report: Report
) -> None:
    """Run timed rounds, one turn per remaining contender, while there is time for a full round."""
    if time.monotonic() > deadline and warmups:
        for found in measured.values():
            found.readings, found.cold = found.readings[-1:], True
            if found.facts.get("compiled") and found.failure is None:
                found.failure = "compiling took all the time; allow more with --minutes"
        return
    for found in measured.values():
        found.readings = []
    took: dict[str, float] = {}
    for number in range(turns):
        racing = [seat for seat in seats if measured[seat.name].takes_part(number)]
        if number and time.monotonic() + sum(took[seat.name] for seat in racing) > deadline:
            report(f"time is up after {number} of {turns} rounds")
            return
        for seat in racing:
            took[seat.name] = _take_turn(seat, measured[seat.name], warmups + number)
