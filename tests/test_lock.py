"""The lock: one writer per folder, by name, and freed by the kernel when its holder dies."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import PROJECT

from storyladder.runtime.errors import UserError
from storyladder.runtime.lock import locked

HOLD = """
import sys
from pathlib import Path
from storyladder.runtime.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path/data/.lock."""
    arguments = [sys.executable, "-c", HOLD, str(tmp_path / "data" / ".lock")]
    with subprocess.Popen(arguments, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError) as error, locked(tmp_path / "data" / ".lock"):
        pass
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    who = rf"-c, process {holder.pid} on {re.escape(socket.gethostname())}, since {when}"
    folder = re.escape(str(tmp_path / "data"))
    assert re.fullmatch(rf"{folder} is in use by {who}; wait for it, or stop it first", str(error.value))


def test_a_holder_that_is_killed_leaves_nothing_locked(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "data" / ".lock"):
        note = (tmp_path / "data" / ".lock").read_text(encoding="utf-8")
    assert f"process {os.getpid()} on " in note and str(holder.pid) not in note


def test_a_holder_that_leaves_makes_room_also_by_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock"):
        raise ZeroDivisionError
    with locked(tmp_path / ".lock"), locked(tmp_path / ".other"):
        pass


def test_a_refused_holder_does_not_wipe_the_note_of_the_first(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock"):
        for _ in range(2):
            with pytest.raises(UserError, match=f"process {os.getpid()} on "), locked(tmp_path / ".lock"):
                pass


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"^cannot write in .*file: File exists; check"),
        locked(tmp_path / "file" / "x"),
    ):
        pass
