"""Compiles a C file for this CPU at its first use and caches the library in a folder of this user for later runs.

The folder is private to the user: anyone who could write there could run code in every training run. It is
$XDG_CACHE_HOME or ~/.cache, ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows; else the folder for temporary files.
Its files may be deleted at any time.
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
    """There is no library; the message, for the user, is the reason."""


def load_compiled(source: Path, flag_sets: Sequence[Sequence[str]], *, also: str = "") -> ctypes.CDLL:
    """Load the library of a C file, compiled with the first set of flags that the compiler accepts; else NotCompiled.

    `also` is anything else it depends on: if it changes, the library is compiled again.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NotCompiled("no C compiler (cc, gcc or clang) was found")
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
    """A library was built, but the system refuses to load it: a noexec folder, another architecture."""


def _cache_folders() -> Iterator[Path]:
    """Folders for the library, the best one first."""
    given = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", "")
    with contextlib.suppress(RuntimeError, OSError, KeyError):  # a user without a home
        usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        yield (Path(given) if Path(given).is_absolute() else usual) / _NAME
    with contextlib.suppress(OSError, KeyError):  # a user without a name
        yield Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}"


def _make_private(folder: Path) -> None:
    """Create the folder if needed, readable by this user only. OSError if it belongs to someone else."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        if {folder.lstat().st_uid, folder.stat().st_uid} != {os.getuid()}:
            raise OSError(errno.EPERM, "it belongs to another user")
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)


def _load_or_compile(
    compiler: str, source: Path, flag_sets: Sequence[Sequence[str]], folder: Path, also: str
) -> ctypes.CDLL:
    failure = ""
    for flags in flag_sets:
        path = folder / f"{source.stem}-{_fingerprint(compiler, flags, source, also)}.so"
        if path.exists() and (not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()):
            with contextlib.suppress(OSError):  # damaged: compiled again
                return ctypes.CDLL(str(path))
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            failure = _compile(compiler, source, flags, built)
            if not failure:
                _load(built)  # while it is temporary: a library that does not load is not cached
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
    """Build the library; returns why that failed, or an empty string."""
    # Linked without -fopenmp: torch's OpenMP resolves the calls. A second OpenMP would start its own threads.
    steps = (
        [compiler, *flags, "-c", str(source), "-o", f"{built}.o"],
        [compiler, "-shared", f"{built}.o", "-o", str(built)],
    )
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, timeout=_COMPILE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"{compiler} had not finished after {_COMPILE_SECONDS} s"
        except OSError as error:
            return f"{compiler} cannot be run ({error.strerror})"
        if done.returncode:
            lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
            why = next((line for line in lines if "error" in line), lines[0] if lines else f"status {done.returncode}")
            return f"{compiler} failed: {why[:200]}"
    return "" if built.exists() else f"{compiler} produced no library"


def _fingerprint(compiler: str, flags: Sequence[str], source: Path, also: str) -> str:
    """Depends on the source, the compiler and the CPU: a home shared by several machines has a library for each."""
    cpu = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next(line for line in lines if line.startswith(("flags", "Features")))
    parts = (source.read_text(encoding="utf-8"), compiler, *flags, platform.platform(), cpu, also)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
