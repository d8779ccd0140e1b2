"""The suite as it would run on other machines, one after the other, each in a fresh copy of the project.

python tests/variants.py                                  all of them; a line with counts and seconds for each
python tests/variants.py bf16 avx2                        some
python tests/variants.py poor -- tests/test_loop.py     some tests; what follows the two dashes goes to pytest
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
_LEFT_OUT = (".git", ".venv", "data", "checkpoints", "runs", "reports", "__pycache__", ".*_cache")
_COMPILERS = ("cc", "c89", "c99", "c++", "gcc", "g++", "clang", "tcc")


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs from this machine."""

    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    compiler: bool = True
    one_core: bool = False


_AVX2 = (("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ATEN_CPU_CAPABILITY", "avx2"))
VARIANTS = {
    "normal": Variant(),
    "bf16": Variant(flags=("--precision", "bf16")),
    "fp32": Variant(flags=("--precision", "fp32")),
    "amx": Variant(flags=("--pretend-amx",)),
    "avx2": Variant(environment=_AVX2),
    "no-compiler": Variant(compiler=False),
    "one-core": Variant(one_core=True),
    "poor": Variant(environment=_AVX2, compiler=False, one_core=True),
}


@contextlib.contextmanager
def path_without_compilers() -> Iterator[str]:
    """A PATH that leads to everything but C compilers."""
    with tempfile.TemporaryDirectory() as folder:
        for name in os.environ["PATH"].split(os.pathsep):
            for program in Path(name).glob("*") if name else ():
                parts = program.name.replace("-", " ").split()
                if not set(parts) & set(_COMPILERS) and not (Path(folder) / program.name).is_symlink():
                    (Path(folder) / program.name).symlink_to(program)
        assert not any(shutil.which(name, path=folder) for name in _COMPILERS)
        yield folder


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """What is started inside the `with` gets the first core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def play(variant: Variant, arguments: list[str]) -> tuple[int, str, float]:
    """Exit status of pytest, its last line, and seconds."""
    with contextlib.ExitStack() as stack:
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "project"
        shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        environment = {**os.environ, **dict(variant.environment)}
        if not variant.compiler:
            environment["PATH"] = stack.enter_context(path_without_compilers())
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *variant.flags, *arguments]
        if variant.one_core:
            stack.enter_context(one_core())
        tick, last = time.monotonic(), ""
        with subprocess.Popen(command, cwd=copy, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip() or last
                if line.startswith(("FAILED", "ERROR", "E   ")) or " FAILED " in line:
                    print(f"  {line.rstrip()}", flush=True)
        return process.returncode, last.strip("= "), time.monotonic() - tick


def main(argv: list[str]) -> int:
    """Play what is asked for; status 1 if a test failed anywhere."""
    names, _, rest = " ".join(argv).partition("-- ")
    failed = False
    for name in names.split() or VARIANTS:
        status, words, seconds = play(VARIANTS[name], rest.split() or ["-n", "2"])
        failed |= status != 0
        print(f"{name:12} {'passed' if status == 0 else 'FAILED'}  {words}  ({seconds:.0f} s)", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
