"""Representative faults, in forks of one process that starts once; all of them: python tests/faults/run.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).with_name("run.py")
CASES = {
    1: "a run killed in mid-save ends like one that nobody killed, forked or as a process of its own",
    2: "random kills, and kills while patience is running out, change nothing",
    3: "a kill in the first save ever leaves a clean start",
    4: "a kill while the best weights are replaced leaves the old ones",
    6: "a kill in prepare_data leaves no half token file",
    8: "a cut resume state is noticed and the one before it used",
    9: "a flipped bit in resume state or result is noticed and the spare used",
    10: "empty checkpoints are noticed",
    11: "all generations damaged is a clear stop, every time",
    13: "a full disk costs a save, not the training",
    14: "a file size limit stops with 75 and the last good file's name",
    15: "input and output errors cost a save, not the training",
    16: "a read-only folder is refused before any training",
    22: "a file system without locks is refused",
    24: "a cut token file is refused",
    26: "ids beyond the vocabulary are refused, whatever the sidecar says",
    28: "changed data are refused in the middle of a stage",
    29: "a token file cut while in use ends in a clear line",
    30: "odd bytes in a text are no traceback",
    34: "a NaN loss moves nothing",
    36: "an infinite gradient moves nothing",
    40: "another shape is refused",
    44: "a second process ends at once and names the first",
    45: "signals save and leave, or leave at once the second time",
    46: "a clock that jumps changes nothing",
    47: "a device that is not there is refused",
    48: "a stranger's file runs nothing",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What run.py --fast found, by case number."""
    file = tmp_path_factory.mktemp("faults") / "rows.json"
    command = [sys.executable, str(RUN), "--fast", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert file.exists(), done.stderr
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("case", CASES, ids=[title.replace(" ", "-") for title in CASES.values()])
def test_survives(case: int, rows: dict[str, dict[str, Any]]) -> None:
    row = rows[str(case)]
    assert row["problems"] == []
    assert row["survived"] == row["injections"] > 0


def test_every_fast_case_has_a_sentence(rows: dict[str, dict[str, Any]]) -> None:
    assert {int(case) for case in rows} == set(CASES)
