"""A C file as a shared library: compiled for this CPU at first use, kept in the user's cache folder, loaded later.

The folder is in $XDG_CACHE_HOME or ~/.cache (~/Library/Caches on macOS, %LOCALAPPDATA% on Windows), or in the folder
for temporary files if that is not usable. So a read-only clone has its library too, and all clones of the same version
share it. The folder is private to the user, because anyone who can write to it can run code in every training.
It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import getpass
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_NAME = "storyladder-kernels"
_COMPILE_SECONDS = 60


class NotCompiled(Exception):
    """There is no library; the message tells the user why."""


def load_compiled(source: Path, flag_sets: Sequence[Sequence[str]], *, also: str = "") -> ctypes.CDLL:
    """Load the library of a C file, compiled with the first set of flags that the compiler accepts.

    `also` names what else the library depends on: another value means another library. NotCompiled if there is no
    compiler, if it fails, or if no folder can be used. Several processes may call this at the same time.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NotCompiled("no C compiler (cc, gcc or clang) found")
    reasons = []
    for folder in _cache_folders():
        try:
            _make_private(folder)
            return _load_or_compile(compiler, source, flag_sets, folder, also)
        except OSError as error:
            reasons.append(f"{folder} cannot be used ({error.strerror or error})")
        except _DoesNotLoad as error:
            reasons.append(f"the compiled kernels do not load from {folder} ({error})")
    raise NotCompiled("; ".join(reasons) or "there is no folder for compiled kernels")


class _DoesNotLoad(Exception):
    """The system refuses to load a library just built: a noexec folder, another architecture."""


def _cache_folders() -> Iterator[Path]:
    """Where a library may be kept, the best folder first."""
    given = Path(os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", ""))
    if given.is_absolute():
        yield given / _NAME
    else:
        with contextlib.suppress(RuntimeError, OSError, KeyError):  # a user without a home folder
            yield Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / _NAME
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        yield Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}"


def _make_private(folder: Path) -> None:
    """Create the folder for this user alone. OSError if it belongs to another user."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not hasattr(os, "getuid"):
        return
    if {folder.lstat().st_uid, folder.stat().st_uid} != {os.getuid()}:
        raise OSError(errno.EPERM, "it belongs to another user")
    mode = folder.stat().st_mode
    if mode & 0o077:
        folder.chmod(0o700)
    if mode & 0o022:  # others could have replaced what is in it
        for library in folder.glob("*.so"):
            library.unlink(missing_ok=True)


def _load_or_compile(
    compiler: str, source: Path, flag_sets: Sequence[Sequence[str]], folder: Path, also: str
) -> ctypes.CDLL:
    failure = ""
    for flags in flag_sets:
        path = folder / f"{source.stem}-{_fingerprint(compiler, flags, source, also)}.so"
        if path.exists() and (not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()):
            with contextlib.suppress(OSError):  # damaged: compile it again
                return ctypes.CDLL(str(path))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            failure = _compile(compiler, source, flags, built)
            if not failure:
                _load(built)  # before the rename, so that a library that does not load is not kept
                os.replace(built, path)
                return _load(path)
    raise NotCompiled(failure)


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        why = str(error).replace(f"{path}: ", "")
        raise _DoesNotLoad(why + (": is it mounted noexec?" if "map segment" in why else "")) from None


def _compile(compiler: str, source: Path, flags: Sequence[str], built: Path) -> str:
    """Write the library; returns why that failed, or an empty text."""
    # Linked without -fopenmp: torch's own OpenMP serves the calls. A second one would start threads of its own.
    steps = (
        [compiler, *flags, "-c", str(source), "-o", f"{built}.o"],
        [compiler, "-shared", f"{built}.o", "-o", str(built)],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, timeout=_COMPILE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"{compiler} did not finish within {_COMPILE_SECONDS} s"
        except OSError as error:
            return f"{compiler} cannot be run ({error.strerror})"
        if done.returncode:
            lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
            status = f"status {done.returncode}"
            fault = next((line for line in lines if "error" in line), lines[0] if lines else status)
            return f"{compiler} failed: {fault[:200]}"
    return "" if built.exists() else f"{compiler} wrote no library"


def _fingerprint(compiler: str, flags: Sequence[str], source: Path, also: str) -> str:
    """Changes with source, flags, compiler and CPU: a home folder on several machines has a library for each."""
    cpu = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next(line for line in lines if line.startswith(("flags", "Features")))
    program = os.stat(compiler)  # another version of it has another size or time
    version = f"{compiler} {program.st_size} {program.st_mtime_ns}"
    parts = (source.read_text(encoding="utf-8"), version, *flags, platform.platform(), cpu, also)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
