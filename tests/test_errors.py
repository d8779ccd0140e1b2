"""How a program ends: the user's mistake in one line, ours with its traceback, a closed pipe in silence."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import pytest
from running import ENVIRONMENT, PROJECT, command, run_script

from storyladder.runtime import errors
from storyladder.runtime.errors import Interrupted, UserError, user_errors

STATUS = {
    "UserError": 2,
    "SettingsError": 2,
    "DataError": 2,
    "DownloadError": 2,
    "CheckpointError": 2,
    "DamagedCheckpoint": 2,
    "OutputLost": 74,
    "SaveFailed": 75,
    "TrainingFailed": 70,
    "PeerLost": 75,
    "OutOfMemory": 75,
}
MANY_LINES = """
from storyladder.runtime.errors import user_errors
with user_errors():
    for number in range(1_000_000):
        print(number)
"""


def run(program: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    head = "from storyladder.runtime.errors import *\nimport signal\nwith user_errors():\n    "
    return subprocess.run(
        [sys.executable, "-c", head + program],
        cwd=PROJECT,
        env=ENVIRONMENT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", STATUS)
def test_a_mistake_of_the_user_is_one_line_on_stderr_and_its_status(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = getattr(errors, name)
    assert issubclass(error, UserError)
    with pytest.raises(SystemExit) as left, user_errors():
        raise error("max_lr is -1")
    assert left.value.code == STATUS[name]
    assert capsys.readouterr() == ("", "error: max_lr is -1\n")


def test_every_kind_of_mistake_has_its_status_here() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, UserError)}
    assert kinds == set(STATUS)


def test_a_mistake_shows_no_traceback() -> None:
    done = run("raise DataError('x')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: x\n")


def test_our_own_mistake_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), user_errors():
        raise ZeroDivisionError
    done = run("assert False, 'ours'")
    assert done.returncode == 1 and "Traceback" in done.stderr and done.stderr.endswith("AssertionError: ours\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_a_signal_ended_leaves_quietly_with_128_and_its_number(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, user_errors():
        raise Interrupted(number)
    assert left.value.code == 128 + number
    assert capsys.readouterr() == ("", "")
    assert str(Interrupted(number)) == f"stopped by {number.name}"


def test_ctrl_c_where_nobody_listens_leaves_quietly_with_130() -> None:
    done = run("raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_what_was_printed_before_a_mistake_is_still_shown() -> None:
    done = run("print('so far'); raise DataError('x')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "so far\n", "error: x\n")


@pytest.mark.parametrize(
    ("flag", "status", "words"),
    [("--plam", 2, "error: unknown argument '--plam'"), ("--help", 0, "usage: train_tiny.py")],
)
def test_of_processes_that_were_started_together_one_on_each_machine_speaks(flag: str, status: int, words: str) -> None:
    """Before there is a group; a second machine has a terminal of its own."""
    for rank, local_rank in ((2, 0), (3, 1)):
        names = {"TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "LOCAL_RANK": str(local_rank)}
        done = run_script("train_tiny.py", flag, environment=names)
        assert done.returncode == status
        assert (done.stdout + done.stderr).startswith(words) if local_rank == 0 else not done.stdout + done.stderr


def test_a_missing_package_is_told_by_one_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for local_rank, words in (("0", "error: the package tiktoken is not installed"), ("1", "")):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit) as left, user_errors():
            raise ModuleNotFoundError(name="tiktoken")
        assert left.value.code == 2
        assert capsys.readouterr().err[: len(words) or None] == words


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(MANY_LINES)} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("0\n141\n", "")


@pytest.mark.parametrize("flags", [(), ("--help",)])
def test_a_reader_that_was_never_there_is_no_error_for_a_script_or_its_help(flags: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command("config.py", *flags),
            env=ENVIRONMENT,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_caller_without_any_stdout_is_no_error() -> None:
    line = shlex.join(command("config.py")) + " >&-"
    done = subprocess.run(
        ["bash", "-c", line], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
