"""Whatever stands in for stdout and stderr, printing works: a notebook, a code page, a full disk, a closed pipe."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ENVIRONMENT, PROJECT, command
from tqdm import tqdm

from storyladder.runtime.console import Tolerant, console
from storyladder.runtime.errors import report, user_errors

STRANGE = "Zoë said “hi” 漢字 to sp\udce9cial.py\n"


class Refuses(io.StringIO):
    """A stream whose writes fail with an error number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def encoded(name: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=name, errors="strict", newline="\n")


def test_a_stringio_gets_the_text_and_everything_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.StringIO()
    monkeypatch.setattr(sys, "stdout", buffer)
    err = sys.stderr
    with console():
        print(STRANGE, end="", flush=True)
    assert buffer.getvalue() == STRANGE
    assert sys.stdout is buffer and sys.stderr is err


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "Zoë said “hi” 漢字 to sp\\udce9cial.py\n"),
        ("cp1252", "Zoë said “hi” \\u6f22\\u5b57 to sp\\udce9cial.py\n"),
        ("ascii", "Zo\\xeb said \\u201chi\\u201d \\u6f22\\u5b57 to sp\\udce9cial.py\n"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str, expected: str) -> None:
    out, err = encoded(encoding), encoded(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with console():
        print(STRANGE, end="")
        report(STRANGE.strip())
    for stream in (out, err):
        stream.flush()
        assert stream.buffer.getvalue().decode(encoding) == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["none", "closed", "nothing but write"])
def test_without_a_stream_words_are_dropped_and_a_bar_does_no_harm(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        def write(self, text: str) -> None:
            pass

    for name in ("stdout", "stderr"):
        stream: Any = {"none": None, "closed": io.StringIO(), "nothing but write": Bare()}[kind]
        if kind == "closed":
            stream.close()
        monkeypatch.setattr(sys, name, stream)
    with user_errors():
        print("lost", flush=True)
        report("lost")
        assert not sys.stdout.isatty()
        with tqdm(total=3, desc="x", disable=None) as bar:
            bar.update()
            bar.write("lost", file=sys.stderr)


def test_a_disk_that_is_full_is_told_at_the_end_and_nothing_stops_before(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Refuses(28))
    monkeypatch.setattr(sys, "stderr", err)
    done = []
    with pytest.raises(SystemExit) as left, user_errors():
        print("one")
        print("two")
        done.append("everything")
    assert done and left.value.code == 74
    assert (
        err.getvalue() == "error: not all of the output could be written (No space left on device); the work is done\n"
    )


def test_a_reader_that_left_ends_the_program_where_it_reads_stdout_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Refuses(32))
    with user_errors():
        print("nobody reads this", file=sys.stderr)
    monkeypatch.setattr(sys, "stdout", Refuses(32))
    with pytest.raises(SystemExit) as left, user_errors():
        print("nor this")
        raise AssertionError("continues")
    assert left.value.code == 141


def test_one_failure_is_enough() -> None:
    refuses = Refuses(28)
    stream = Tolerant(refuses, raises_broken_pipe=True)
    assert stream.write("abc") == 3 and stream.failure is not None
    refuses.number = 32
    assert stream.write("abc") == 3


def test_files_do_not_take_the_numbers_of_streams_that_the_caller_closed(tmp_path: Path) -> None:
    """Else a checkpoint would be number 2, and hold what C code prints to stderr."""
    program = f"""
import os
from storyladder.runtime.errors import user_errors
with user_errors():
    file = open({str(tmp_path / "checkpoint")!r}, "w+")
    os.write(2, b"a warning of some library")
    assert file.fileno() > 2 and file.read() == "", file.fileno()
"""
    line = f"{shlex.join([sys.executable, '-c', program])} <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", line], cwd=PROJECT, env=ENVIRONMENT, check=False, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "| head -1", "2>&1 >/dev/null | head -0"])
def test_a_command_ends_well_however_it_is_redirected(redirect: str) -> None:
    line = f"{shlex.join(command('config.py'))} {redirect}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, 141) and done.stderr == ""
    assert "Traceback" not in done.stdout


def test_a_refusal_that_names_a_strange_file_is_one_line_in_every_encoding(tmp_path: Path) -> None:
    for encoding in ("ascii", "ascii:strict", "cp1252"):
        done = subprocess.run(
            command("config.py", "--config", "sp\udce9cial“.py"),
            env={**ENVIRONMENT, "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: there is no settings file sp\\udce9cial"), done.stderr
