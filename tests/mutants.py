"""Does every injected fault turn a test red?  make mutants

tests/mutants.txt lists the faults, one a line: file ::: text there now ::: text instead ::: tests that must notice.
Each is put into a copy of the project, the tests run, and a fault that they do not notice is a survivor: status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
LIST = PROJECT / "tests" / "mutants.txt"
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "data", "checkpoints", "runs", "reports", "__pycache__", ".*_cache")


@dataclass(frozen=True)
class Mutant:
    """One fault: `old`, which stands exactly once in `file`, becomes `new`."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_mutants(path: Path = LIST) -> list[Mutant]:
    """The faults of the list; AssertionError for a line that no longer fits the code."""
    mutants = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        file, old, new, tests = (part.strip() for part in line.split(" ::: "))
        count = (PROJECT / file).read_text(encoding="utf-8").count(old)
        assert count == 1, f"{old!r} stands {count} times in {file}, expected once"
        mutants.append(Mutant(file, old, new, tuple(tests.split())))
    return mutants


def is_noticed(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests fail with the fault in the copy; the copy is as before afterwards."""
    path = copy / mutant.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return True  # a fault may well make a loop endless
    finally:
        path.write_text(sound, encoding="utf-8")
    assert done.returncode in (0, 1, 2), done.stdout + done.stderr
    return done.returncode != 0


def main() -> int:
    """Try all faults, or those whose file contains the word given, on all cores."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    mutants = [mutant for mutant in read_mutants() if wanted in mutant.file]
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        copies = [Path(folder) / str(number) for number in range(workers)]
        for copy in copies:
            shutil.copytree(PROJECT, copy, ignore=_LEFT_OUT)

        def try_all(number: int) -> list[Mutant]:
            survivors = []
            for mutant in mutants[number::workers]:
                noticed = is_noticed(mutant, copies[number])
                verdict = "red     " if noticed else "SURVIVED"
                print(f"{verdict} {mutant.file}: {mutant.old} -> {mutant.new}", flush=True)
                survivors += [] if noticed else [mutant]
            return survivors

        survivors = [mutant for part in pool.map(try_all, range(workers)) for mutant in part]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} faults turned a test red")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
