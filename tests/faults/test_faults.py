"""Representative faults, in forks of one process that starts once; all of them: python tests/faults/run.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import running

pytestmark = pytest.mark.slow
RUN = Path(__file__).with_name("run.py")
CASES = {1, 2, 3, 4, 6, 8, 9, 10, 11, 13, 14, 15, 16, 22, 24, 26, 28, 29, 30, 34, 36, 40, 44, 45, 46, 47, 48}


def test_representative_faults_of_the_matrix_are_survived(tmp_path: Path) -> None:
    """One test, so that several workers do not each play all of them."""
    file = tmp_path / "rows.json"
    command = [sys.executable, str(RUN), "--fast", "--json", str(file), "--precision", running.PRECISION]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert file.exists(), done.stderr
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert {case: row["problems"] for case, row in rows.items() if row["problems"]} == {}
    assert {int(case) for case, row in rows.items() if row["survived"] == row["injections"] > 0} == CASES
    assert done.stdout.endswith(" survived, 0 checkpoints lost\n")


def test_what_safety_costs_can_be_measured() -> None:
    command = [sys.executable, str(RUN.with_name("costs.py")), "--fast"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.stderr == ""
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["default", "saving", "a"]
