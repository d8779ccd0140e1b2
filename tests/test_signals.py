"""Signals: the first asks, the second exits immediately, and a lost terminal or nohup keeps nobody from saving."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from running import ENVIRONMENT, PROJECT

from storyladder.runtime.errors import Interrupted
from storyladder.runtime.signals import stop_on_signals

LEAVING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
# Says "ready", waits until a signal asks to leave, says which one, and continues until it is asked to end.
LISTEN = """
import signal, sys, time
from storyladder.runtime.errors import user_errors
from storyladder.runtime.signals import stop_on_signals
with user_errors(), stop_on_signals() as stop:
    if "group" in sys.argv:
        stop.share(prints=True)
    print("ready", flush=True)
    while stop.signal_number is None:
        time.sleep(0.01)
    print("asked by", stop.signal_number, flush=True)
    if "stay" in sys.argv:
        sys.stdin.read()
    stop.check()
"""


@contextmanager
def listening(*arguments: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN, *arguments],
        cwd=PROJECT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", LEAVING)
def test_a_signal_sets_a_flag_and_says_so_and_the_program_goes_on(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with stop_on_signals() as stop:
        stop.check()
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested and stop.signal_number == number
        with pytest.raises(Interrupted, match=f"stopped by {number.name}") as left:
            stop.check()
    assert left.value.exit_status == 128 + number
    assert capfd.readouterr() == ("", "\nstopping once everything is saved (press Ctrl-C again to stop immediately)\n")


def test_sigusr1_asks_to_save_once_and_not_to_leave() -> None:
    with stop_on_signals() as stop:
        assert not stop.take_save_request()
        signal.raise_signal(signal.SIGUSR1)
        assert not stop.requested
        assert [stop.take_save_request(), stop.take_save_request()] == [True, False]


def test_the_old_handlers_come_back_also_after_an_exception() -> None:
    numbers = [*LEAVING, signal.SIGUSR1]
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(ZeroDivisionError), stop_on_signals():
        assert all(signal.getsignal(number) is not old for number, old in zip(numbers, before, strict=True))
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("number", LEAVING)
def test_a_program_that_was_asked_leaves_with_128_and_the_number_of_the_signal(number: signal.Signals) -> None:
    with listening() as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (128 + number, f"asked by {int(number)}\n")
    assert err == "\nstopping once everything is saved (press Ctrl-C again to stop immediately)\n"


def test_a_second_signal_leaves_at_once_with_its_own_number() -> None:
    with listening("stay") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None and process.stdout.readline() == "asked by 2\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 143


def test_in_a_group_the_echo_of_a_signal_is_not_a_second_one_but_a_later_signal_is() -> None:
    """torchrun hands on what it gets, also to processes that were asked themselves, as service managers do with all."""
    with listening("group", "stay") as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked by 15\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130


def test_a_hangup_whose_terminal_is_gone_still_lets_the_program_save() -> None:
    reading, writing = os.pipe()
    with listening(stderr=writing) as process:
        os.close(reading)
        os.close(writing)
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (129, "asked by 1\n")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """nohup ignores SIGHUP; a shell script ignores SIGINT for what it puts into the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(number)
            assert not stop.requested
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_outside_the_main_thread_nobody_listens_and_the_work_is_done() -> None:
    done = []

    def work() -> None:
        with stop_on_signals() as stop:
            done.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [False]
