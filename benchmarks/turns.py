"""Contenders in processes of their own that take turns: one works, the others wait blocked and hold no core.

Own processes, because allocator settings, thread pools and peak memory belong to a process. Turns, because the speed of
a shared machine swings by a factor of two within minutes, and only neighbours in time can be compared. This module
knows neither models nor stories.
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

Say = Callable[[str], None]
Reading = dict[str, Any]  # what a turn measured; "seconds" is what counts

_SLOW_TURN = 60.0  # seconds; a contender whose first turn takes longer gets no second warm-up and
_SLOW_TURNS = 3  # this many timed turns
_PATIENCE = 10.0  # seconds for a process to end by itself
_DAY = 24 * 3600.0
_LEAST_PATIENCE = 180.0  # seconds for an answer, also where the time of the race is over; busy machines take a minute


class Racer(Protocol):
    """What a contender is in its own process, once it is built."""

    facts: dict[str, Any]  # about itself, for the table

    def turn(self, number: int) -> Reading:
        """Work once and say how many seconds it took."""

    def last_words(self) -> dict[str, Any]:
        """What is known at the end only, such as peak memory."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender before its process exists. `build` stands at the top of a module, and `spec` can be pickled."""

    name: str
    build: Callable[[Any], Racer]
    spec: Any


class ContenderFailed(Exception):
    """A contender that could not be built, raised an error, or died."""


class Seat:
    """A contender's process, from its start to `close`."""

    def __init__(self, entry: Entry) -> None:
        self.name = entry.name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, entry.build, entry.spec))
        self._process.start()
        theirs.close()

    def answer(self, patience: float) -> dict[str, Any]:
        """What it says next: its facts, then an answer to every `ask`. ContenderFailed if it could not in time."""
        try:
            if not self._pipe.poll(patience):
                self._process.kill()  # or it would work on beside the others
                raise ContenderFailed(f"no answer within {patience:.0f} s; give it more time with --minutes")
            good, said = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(_PATIENCE)
            code = self._process.exitcode
            raise ContenderFailed(f"its process died with status {code}{' (memory?)' if code == -9 else ''}") from None
        if not good:
            raise ContenderFailed(str(said))
        return dict(said)

    def ask(self, number: int | None) -> None:
        """Ask for turn `number`, or with None for the last words; `answer` has what comes back."""
        with contextlib.suppress(BrokenPipeError, ConnectionError):  # it is dead; `answer` tells how
            self._pipe.send(number)

    def close(self) -> None:
        """End the process if it has not ended by itself."""
        self._pipe.close()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, build: Callable[[Any], Racer], spec: Any) -> None:
    """The life of a contender's process."""
    try:
        racer = build(spec)
        pipe.send((True, racer.facts))
        while (number := pipe.recv()) is not None:
            pipe.send((True, racer.turn(number)))
        pipe.send((True, racer.last_words()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the benchmark is over
    except Exception as error:
        words = (str(error).strip() or "no message").splitlines()[0][:300]
        pipe.send((False, f"{type(error).__name__}: {words}"))


@dataclasses.dataclass
class Measured:
    """What became of one contender in a race."""

    facts: dict[str, Any]
    say: Say = lambda _: None
    readings: list[Reading] = dataclasses.field(default_factory=list)
    patience: Callable[[], float] = lambda: _LEAST_PATIENCE  # seconds for the next answer
    slow: bool = False
    cold: bool = False  # there was no time for a warm-up
    failure: str | None = None

    def hear(self, seat: Seat) -> dict[str, Any] | None:
        """What the contender answers, or None, with the reason noted, if it failed."""
        try:
            return seat.answer(self.patience())
        except ContenderFailed as error:
            self.failure = str(error)
            self.say(f"{seat.name}: {error}")
            return None

    def takes_part(self, number: int) -> bool:
        """Whether it has a turn in this timed round."""
        return self.failure is None and not (self.slow and number >= _SLOW_TURNS)

    @property
    def seconds(self) -> list[float]:
        """Of the timed turns."""
        return [reading["seconds"] for reading in self.readings]

    @property
    def median(self) -> float | None:
        """Median seconds of a turn's unit of work, or None if nothing could be measured."""
        return statistics.median(self.seconds) if self.readings and self.failure is None else None


def race(entries: Iterable[Entry], *, warmups: int, turns: int, seconds: float, say: Say) -> dict[str, Measured]:
    """Let contenders take turns for about `seconds`: first the warm-ups, then at most `turns` timed turns each.

    The clock starts when all are ready: a GPU's contenders compile for a minute before.

    The time ends the race between two rounds, never before the first timed one is complete, unless the warm-up has used
    it up: then the last turn of the warm-up is the reading, and said to be cold. Who fails leaves the race, and so does
    who takes half of its time for one answer.
    """
    deadline = time.monotonic() + seconds

    def patience() -> float:
        return max(_LEAST_PATIENCE, min(seconds / 2, deadline - time.monotonic(), _DAY))

    measured: dict[str, Measured] = {}
    seats: list[Seat] = []
    try:
        seats += [Seat(entry) for entry in entries]
        for seat in seats:  # which are getting ready all at once
            measured[seat.name] = Measured({}, say, patience=patience)
            measured[seat.name].facts = measured[seat.name].hear(seat) or {}
        deadline = time.monotonic() + seconds
        _warm_up(seats, measured, warmups, deadline)
        _timed_rounds(seats, measured, warmups, turns, deadline, say)
        for seat in seats:
            if measured[seat.name].failure is None:
                seat.ask(None)
                measured[seat.name].facts.update(measured[seat.name].hear(seat) or {})
    finally:
        for seat in seats:
            seat.close()
    return measured


def _take_turn(seat: Seat, found: Measured, number: int) -> float:
    """One turn; returns how long it took, with everything around what is measured."""
    began = time.monotonic()
    seat.ask(number)
    if (reading := found.hear(seat)) is not None:
        found.readings.append(reading)
    return time.monotonic() - began


def _warm_up(seats: list[Seat], measured: dict[str, Measured], warmups: int, deadline: float) -> None:
    """Turns that do not count. Those who are slow, and everybody when the time is over, have one only."""
    for number in range(warmups):
        for seat in seats:
            found = measured[seat.name]
            if found.failure is not None or (number and (found.slow or time.monotonic() > deadline)):
                continue
            took = _take_turn(seat, found, number)
            if not number and found.failure is None:
                found.slow = took > _SLOW_TURN and not found.facts.get("compiled")
                found.say(f"{seat.name}: first turn {took:.3g} s")


def _timed_rounds(
    seats: list[Seat], measured: dict[str, Measured], warmups: int, turns: int, deadline: float, say: Say
) -> None:
    """Rounds in which every contender that is left has one turn, as long as there is time for a whole one."""
    if time.monotonic() > deadline and warmups:
        for found in measured.values():
            found.readings, found.cold = found.readings[-1:], True
            if found.facts.get("compiled") and found.failure is None:
                found.failure = "compiling took all the time; give it more with --minutes"
        return
    for found in measured.values():
        found.readings = []
    took: dict[str, float] = {}
    for number in range(turns):
        racing = [seat for seat in seats if measured[seat.name].takes_part(number)]
        if number and time.monotonic() + sum(took[seat.name] for seat in racing) > deadline:
            say(f"the time is over after {number} of {turns} rounds")
            return
        for seat in racing:
            took[seat.name] = _take_turn(seat, measured[seat.name], warmups + number)
