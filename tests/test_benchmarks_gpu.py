"""make gpu on a machine without a GPU, and with sections that fail, hang or run out of time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from running import PROJECT

from benchmarks import gpu
from benchmarks.gpu import Section, record, run_all, run_section
from storyladder.runtime.errors import UserError


def python(program: str) -> Callable[[Path], list[str]]:
    return lambda folder: [sys.executable, "-c", program, str(folder)]


def section(program: str, name: str = "some", seconds: int = 60) -> Section:
    return Section(name=name, seconds=seconds, command=python(program))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_every_section_reports_it_and_the_status_is_0(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    called = [sys.executable, str(PROJECT / "benchmarks" / "gpu.py"), "--out", str(out)]
    done = subprocess.run(called, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done
    found = json.loads(out.read_text())
    assert found["gpu"] is None and list(found["sections"]) == [each.name for each in gpu.SECTIONS]
    assert {each["status"] for each in found["sections"].values()} == {"no GPU"}
    assert done.stdout.count("no GPU") == 2 * len(gpu.SECTIONS)


def test_an_unknown_section_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--only", "tests,spead"])
    assert ended.value.code == 2
    assert "--only: no section spead; the sections are tests, speed" in capsys.readouterr().err


def test_a_section_that_fails_loses_nothing_of_the_others(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    sections = [
        section('print("said"); print({"a": 1})', "not json"),
        section("import sys; print('half'); sys.exit(3)", "broken"),
        section("print('{\"tokens_per_s\": 5}')", "good"),
    ]
    run_all(sections, out, "some card", 120.0)
    found = json.loads(out.read_text())
    assert found["gpu"] == "some card"
    assert [(name, each["status"], each["json"]) for name, each in found["sections"].items()] == [
        ("not json", 0, None),
        ("broken", 3, None),
        ("good", 0, {"tokens_per_s": 5}),
    ]
    assert found["sections"]["broken"]["output"].strip() == "half"


def test_the_file_is_complete_after_every_section(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    look = f"import json; print(json.dumps(list(json.load(open({str(out)!r}))['sections'])))"
    found = run_all([section("print(1)", "first"), section(look, "second")], out, "some card", 120.0)
    assert found["sections"]["second"]["output"].strip() == '["first"]'


@pytest.mark.slow
def test_a_section_that_hangs_is_killed_with_everything_it_started(tmp_path: Path) -> None:
    child = "import time; time.sleep(300)"
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(child.pid, flush=True)\ntime.sleep(300)"
    )
    tick = time.monotonic()
    found = run_section(section(program), tmp_path, 5.0)
    assert found.status == "ran out of time" and time.monotonic() - tick < 30
    pid = int(found.output)
    for _ in range(100):  # until its new parent has reaped it
        if not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("a process of a section outlived it")


def test_no_section_starts_when_time_is_up(tmp_path: Path) -> None:
    found = run_all([section("print(1)")], tmp_path / "gpu.json", "some card", 0.0)
    assert found["sections"]["some"]["status"] == "ran out of time"


def test_numbers_are_copied_into_the_results(tmp_path: Path) -> None:
    evaluations = [{"step": 20, "val_loss": 1.5, "bits_per_byte": 0.5, "tokens_per_s": 1000}]
    found = {
        "gpu": "some card",
        "machine": "a machine",
        "sections": {
            "tests": {"json": {"passed": 1, "of": 3, "tests": {"a": "passed", "b": "failure", "c": "skipped"}}},
            "speed": {
                "output": "noise\n| contender | s |\n| --- | --- |\n| ours | 1 |\nmatmuls, bf16: 600 TFLOP/s (n = 1)."
            },
            "stages": {"json": {"evaluations": {"tiny": evaluations}}},
            "loss": {"status": "ran out of time", "output": ""},
        },
    }
    path, results = tmp_path / "gpu.json", tmp_path / "RESULTS.md"
    path.write_text(json.dumps(found))
    record(path, results)
    text = results.read_text()
    assert "## GPU: some card" in text and "Tests: 1 of 3 passed; failed: b." in text
    assert "| ours | 1 |\nmatmuls, bf16: 600 TFLOP/s (n = 1)." in text and "noise" not in text
    assert "Not measured: ran out of time." in text
    assert "| tiny | 20 | 1.5000 | 0.500 | 1,000 |" in text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"gpu": null, "sections": {}}'])
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(UserError, match="make gpu"):
        record(path, tmp_path / "RESULTS.md")
    assert not (tmp_path / "RESULTS.md").exists()


def test_all_variants_of_the_head_agree_on_loss_and_gradient() -> None:
    from benchmarks.head_loss import forms

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator).requires_grad_() for n in (12, 30))
    targets = torch.arange(12)
    found = []
    for form in forms("cpu").values():
        hidden.grad = weight.grad = None
        loss = form(hidden, weight, targets)
        loss.backward()
        assert hidden.grad is not None and weight.grad is not None
        found.append((loss.item(), hidden.grad.norm().item(), weight.grad.norm().item()))
    assert len(found) >= 2
    for each in found[1:]:
        assert each == pytest.approx(found[0], rel=1e-5)
