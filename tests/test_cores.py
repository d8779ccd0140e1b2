"""Cores are counted as the system grants them; threads that wait sleep soon, in every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ENVIRONMENT, PROJECT

from storyladder.runtime import control_groups, cores
from storyladder.runtime.cores import usable_cores, waiting_policy

DECIDES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def machine(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    cpus: set[int],
    siblings: dict[int, str] | None = None,
    groups: dict[str, dict[str, str]] | None = None,
    path: str = "0::/\n",
) -> None:
    """What Linux shows: CPUs of this process, which of them share a core, and its control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus, raising=False)
    monkeypatch.setattr(cores, "_CPUS", folder / "cpus")
    monkeypatch.setattr(control_groups, "PROC", folder)
    monkeypatch.setattr(control_groups, "CGROUPS", folder / "groups")
    files = {f"cpus/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in (siblings or {}).items()}
    files |= {f"groups/{group}/{name}": text for group, two in (groups or {}).items() for name, text in two.items()}
    for name, text in {**files, "self/cgroup": path}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_core_with_two_hardware_threads_counts_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)}
    machine(monkeypatch, tmp_path, cpus=set(range(8)), siblings=siblings)
    assert usable_cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6})
    assert usable_cores() == 2, "of the three CPUs given to it two are one core"


def test_without_a_word_about_cores_every_cpu_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(monkeypatch, tmp_path, cpus={0, 1, 2})
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize(
    ("path", "groups", "expected"),
    [
        ("0::/a/b\n", {"a/b": {"cpu.max": "max 100000\n"}, "a": {"cpu.max": "250000 100000\n"}}, 3),
        ("0::/\n", {".": {"cpu.max": "50000 100000\n"}}, 1),
        ("0::/\n", {".": {"cpu.max": "max 100000\n"}}, 8),
        ("0::/\n", {".": {"cpu.max": "what\n"}}, 8),
        ("4:cpu,cpuacct:/x\n", {"cpu,cpuacct": {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"}}, 2),
        ("4:cpu:/\n", {"cpu": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}}, 8),
        ("4:cpuacct:/\n", {"cpuacct": {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}}, 8),
    ],
)
def test_the_quota_of_a_container_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str, groups: dict[str, dict[str, str]], expected: int
) -> None:
    machine(monkeypatch, tmp_path, cpus=set(range(8)), path=path, groups=groups)
    assert usable_cores() == expected


def test_how_threads_wait_is_left_to_the_user_who_has_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DECIDES:
        monkeypatch.delenv(name, raising=False)
    assert waiting_policy().keys() == {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    for name in DECIDES:
        with monkeypatch.context() as here:
            here.setenv(name, "active")
            assert waiting_policy() == {}


WHEN_TORCH_COMES = """
import os, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
COMMANDS = [f"{name}.py" for name in ("train_tiny", "train_children", "train_simp", "generate")]


@pytest.mark.parametrize("script", [*COMMANDS, "benchmarks/training.py", "benchmarks/generation.py"])
def test_it_is_decided_before_torch_is_imported(script: str) -> None:
    """In every command that imports it, and in benchmarks that stand for the product."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in DECIDES}
    for given, expected in (({}, "1000 1\n"), ({"OMP_WAIT_POLICY": "active"}, "None None\n")):
        done = subprocess.run(
            [sys.executable, "-c", WHEN_TORCH_COMES, str(PROJECT / script)],
            env={**environment, **given},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.stdout == expected, done.stderr
