"""A library in the user's own cache folder, compiled once; and for every failure its cause."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import ENVIRONMENT, PROJECT

from storyladder.layers.compiling import NotCompiled, load_compiled

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="POSIX shells, owners and modes"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here"),
]
FLAGS = (["-O1", "-fPIC", "-fno-such-option-anywhere"], ["-O1", "-fPIC"])
Load = Callable[[], object]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, behind which there is an empty folder for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "cache" / "storyladder-kernels"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


def compiler_that(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """The only cc there is, as a shell script."""
    path = folder / "bin" / "cc"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(path) if name == "cc" else None)
    return path


def why_not(source: Path) -> str:
    with pytest.raises(NotCompiled) as error:
        load_compiled(source, FLAGS)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_it_is_compiled_once_whole_and_for_this_user_alone(caches: Path, source: Path) -> None:
    assert load_compiled(source, FLAGS).answer() == 42
    (library,) = caches.iterdir()
    assert library.suffix == ".so" and caches.stat().st_mode & 0o777 == 0o700
    before = library.stat().st_mtime_ns
    assert load_compiled(source, FLAGS).answer() == 42
    assert library.stat().st_mtime_ns == before


@pytest.mark.slow
def test_it_is_compiled_again_for_another_source_or_torch_or_if_damaged(caches: Path, source: Path) -> None:
    load_compiled(source, FLAGS, also="2.10")
    load_compiled(source, FLAGS, also="2.11")
    source.write_text("int answer(void) { return 43; }\n")
    assert load_compiled(source, FLAGS, also="2.11").answer() == 43
    assert len(list(caches.iterdir())) == 3
    program = "import ctypes, sys; from pathlib import Path; from storyladder.layers.compiling import load_compiled"
    for library in caches.iterdir():
        library.unlink()  # not written over: this process has it mapped
        library.write_bytes(b"cut")
    program += f"; print(load_compiled(Path({str(source)!r}), {FLAGS!r}, also='2.11').answer())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "43\n"


def test_it_is_compiled_again_by_another_version_of_the_compiler(
    tmp_path: Path, caches: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("cc")
    path = compiler_that(tmp_path, monkeypatch, f'exec {real} "$@"')
    for version in (1, 2, 2):
        os.utime(path, (version, version))
        load_compiled(source, FLAGS)
    assert len(list(caches.iterdir())) == 2


def test_a_folder_open_to_others_is_closed_and_what_was_in_it_is_not_loaded(caches: Path, source: Path) -> None:
    load_compiled(source, FLAGS)
    (library,) = caches.iterdir()
    shutil.copy(library, tmp := caches / "copy")
    library.unlink()  # another file: this process has the old one mapped
    tmp.rename(library)
    planted = library.stat().st_ino
    for mode, kept in ((0o755, True), (0o777, False)):
        caches.chmod(mode)
        load_compiled(source, FLAGS)
        assert caches.stat().st_mode & 0o777 == 0o700
        assert (library.stat().st_ino == planted) == kept


def test_the_folder_of_another_user_is_not_used(caches: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_compiled(source, FLAGS)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)  # for whom this folder is someone else's
    assert f"{caches} cannot be used (it belongs to another user)" in why_not(source)


@pytest.mark.slow
def test_several_processes_may_compile_at_once(tmp_path: Path, caches: Path, source: Path) -> None:
    program = "import sys, time; from pathlib import Path; from storyladder.layers.compiling import load_compiled\n"
    program += f"while not Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.001)\n"
    program += f"print(load_compiled(Path({str(source)!r}), {FLAGS!r}).answer())"
    command = [sys.executable, "-c", program]
    at_once = [subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    (tmp_path / "go").touch()
    assert [process.communicate(timeout=60)[0] for process in at_once] == ["42\n"] * 4
    assert [path.suffix for path in caches.iterdir()] == [".so"], "one library, and nothing unfinished"


def test_without_a_home_folder_the_cache_folder_of_the_environment_or_the_one_for_temporary_files_is_used(
    tmp_path: Path, caches: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    load_compiled(source, FLAGS)
    assert len(list(caches.iterdir())) == 1 and not list((tmp_path / "tmp").iterdir())
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/folders/do/not/count")
    load_compiled(source, FLAGS)
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == [f"storyladder-kernels-{os.getuid()}"]


def test_where_the_cache_cannot_be_written_the_folder_for_temporary_files_serves(
    tmp_path: Path, caches: Path, source: Path
) -> None:
    caches.parent.write_text("a file in its place")
    assert load_compiled(source, FLAGS).answer() == 42
    (folder,) = (tmp_path / "tmp").iterdir()
    assert folder.name == f"storyladder-kernels-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_not_writable_is_named_and_the_compiler_not_blamed(
    tmp_path: Path, caches: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (caches.parent, tmp_path / "none"):
        path.write_text("a file in its place")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    why = why_not(source)
    assert f"{caches} cannot be used (" in why and "none" in why and "compiler" not in why


def test_without_a_compiler_that_is_what_is_said(caches: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert why_not(source) == "no C compiler (cc, gcc or clang) found"
    assert not caches.exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo In file included from x >&2; echo 'x.c:1: fatal error: omp.h: No such file' >&2; exit 1",
            "failed: x.c:1:",
        ),
        ("exit 3", "failed: status 3"),
        ("exit 0", "wrote no library"),
        ('for x; do last=$x; done; echo junk > "$last"', "do not load from"),
    ],
)
def test_a_compiler_that_fails_is_quoted(
    tmp_path: Path, caches: Path, source: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    compiler_that(tmp_path, monkeypatch, script)
    why = why_not(source)
    assert words in why and "no C compiler" not in why
    assert not list(caches.iterdir()), "nothing unfinished is kept"


def test_a_compiler_that_cannot_be_run_is_said(
    tmp_path: Path, caches: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiler_that(tmp_path, monkeypatch, "")
    path.write_text("no program")
    assert why_not(source) == f"{path} cannot be run (Exec format error)"


@pytest.mark.slow
def test_the_kernels_lie_in_the_cache_folder_so_that_a_read_only_clone_has_them(tmp_path: Path) -> None:
    program = "from storyladder.layers.kernels import cpu_kernels; print(cpu_kernels())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PROJECT,
        env={**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "Kernels object" in done.stdout, done.stdout
    assert list(tmp_path.glob("storyladder-kernels/kernels-*.so"))
