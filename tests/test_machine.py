"""Device and precision: chosen by what is there, refused when it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import PROJECT

from storyladder.runtime import control_groups, machine
from storyladder.runtime.errors import UserError
from storyladder.runtime.machine import (
    Precision,
    cpu_precision,
    free_memory,
    is_out_of_memory,
    peak_memory,
    pick_device,
    pick_precision,
)

CPU = torch.device("cpu")


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: int = 0, mps: bool = False) -> None:
    """Let torch find so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(1, False, "cuda"), (1, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_cuda_comes_before_mps_and_mps_before_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, chosen: str
) -> None:
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device("auto") == torch.device(chosen)


def test_a_device_asked_for_by_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=2, mps=True)
    current: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    for name in ("cpu", "cuda", "cuda:0", "cuda:1", "mps"):
        assert str(pick_device(name)) == name
    assert current == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_runs_out_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error) and not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "xpu", "meta", "cpu:1"])
def test_a_device_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch)
    with pytest.raises(UserError, match=f"--device {name}: .* finds no such device here; try --device auto"):
        pick_device(name)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:256", "cuda:257", "cuda:99999"])  # torch takes cuda:256 for cuda:0
def test_a_gpu_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, cuda=2)
    with pytest.raises(UserError, match="no such device"):
        pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "auto ", "CPU"])
def test_a_name_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is unknown; there are auto"):
        pick_device(name)


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512": True, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_uses_bf16_only_if_it_has_instructions_for_it(
    capabilities: dict[str, object], dtype: torch.dtype
) -> None:
    precision = cpu_precision(capabilities)
    assert (precision.dtype, precision.device_type) == (dtype, "cpu")


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 1), torch.float32),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
    ],
)
def test_a_gpu_uses_the_best_format_of_its_generation(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    precision = pick_precision(torch.device("cuda"))
    assert (precision.dtype, precision.device_type) == (dtype, "cuda")
    assert f"sm{capability[0]}{capability[1]}" in precision.reason


def test_apples_gpu_uses_fp32() -> None:
    assert pick_precision(torch.device("mps")).dtype == torch.float32


@pytest.mark.parametrize(
    ("capability", "name", "refusal"),
    [
        ((9, 0), "fp32", None),
        ((9, 0), "fp16", None),
        ((7, 5), "fp32", None),
        ((7, 5), "bf16", r"bf16 does not work on cuda: sm75 has no bf16; try --precision fp16"),
        ((9, 0), "fp8", r"fp8 does not work on cuda: there are fp32, bf16, fp16; try --precision bf16"),
    ],
)
def test_a_precision_asked_for_is_taken_or_refused_by_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str, refusal: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if refusal is not None:
        with pytest.raises(UserError, match=refusal):
            pick_precision(torch.device("cuda"), name)
        return
    precision = pick_precision(torch.device("cuda"), name)
    assert (precision.name, precision.reason, precision.device_type) == (name, "--precision asks for it", "cuda")


def test_bf16_on_a_cpu_that_emulates_it_is_taken_with_a_warning_and_fp16_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for capabilities, warns in (({}, True), ({"amx_bf16": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        precision = pick_precision(CPU, "bf16")
        assert precision.name == "bf16" and precision.device_type == "cpu"
        assert ("is emulated" in precision.warning) == warns
        assert pick_precision(CPU, "fp32").name == "fp32" and not pick_precision(CPU, "fp32").warning
        fastest = pick_precision(CPU).name
        with pytest.raises(UserError, match=rf"fp16 does not work on cpu: .*; try --precision {fastest}$"):
            pick_precision(CPU, "fp16")


def test_what_apples_system_refuses_is_said() -> None:
    if torch.backends.mps.is_available():
        pytest.skip("it may well take it here")
    with pytest.raises(UserError, match=r"bf16 does not work on mps: .*; try --precision fp32"):
        pick_precision(torch.device("mps"), "bf16")


def test_threads_are_at_most_the_cores_unless_the_user_has_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.most_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert machine.most_threads() == 8


def test_only_fp16_scales_its_loss() -> None:
    for dtype, name, scales in (
        (torch.float16, "fp16", True),
        (torch.bfloat16, "bf16", False),
        (torch.float32, "fp32", False),
    ):
        precision = Precision(dtype, "", "cpu")
        assert (precision.name, precision.scaler().is_enabled()) == (name, scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_run_in_the_chosen_format(dtype: torch.dtype) -> None:
    with Precision(dtype, "", "cpu").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_memory_is_told_in_bytes() -> None:
    if not hasattr(os, "sysconf"):
        pytest.skip("nothing to compare with")
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free, peak = free_memory(CPU), peak_memory(CPU)
    assert free is not None and everything / 200 < free <= everything
    assert peak is not None and 50e6 < peak <= everything  # torch alone takes more


def container(tmp_path: Path, path: str, groups: dict[str, dict[str, str]]) -> None:
    """What Linux shows a process in control groups, under `tmp_path`: 24 GB in all, 20 of them free."""
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 24000000 kB\nMemAvailable: 20000000 kB\n")
    (tmp_path / "self" / "cgroup").write_text(path)
    for folder, files in groups.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text)


def limits(*, most: str, used: int, cache: int = 0, version: int = 2) -> dict[str, str]:
    """The files of one control group."""
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    else:
        names = ("memory.max", "memory.current", "inactive_file")
    return {names[0]: f"{most}\n", names[1]: f"{used}\n", "memory.stat": f"anon 1\n{names[2]} {cache}\n"}


UNLIMITED = 20_000_000 * 1024


@pytest.mark.parametrize(
    ("path", "groups", "free"),
    [
        ("0::/\n", {}, UNLIMITED),
        ("0::/\n", {".": limits(most="max", used=5)}, UNLIMITED),
        ("0::/\n", {".": limits(most="3000", used=1000, cache=200)}, 2200),
        ("0::/a/b\n", {"a/b": limits(most="9000", used=0), "a": limits(most="500", used=400)}, 100),
        ("0::/host/only\n", {".": limits(most="700", used=900)}, 0),
        ("5:cpu:/\n4:memory:/docker/x\n0::/\n", {"memory": limits(most="800", used=300, version=1)}, 500),
        ("4:cpu,memory:/\n", {"cpu,memory": limits(most="900", used=300, version=1)}, 600),
        ("4:memory:/\n", {"memory": limits(most="9223372036854771712", used=1, version=1)}, UNLIMITED),
        ("nonsense\n", {}, UNLIMITED),
        ("0::/\n", {".": limits(most="3000", used=1000) | {"memory.stat": "something else\n"}}, UNLIMITED),
    ],
)
def test_the_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, groups: dict[str, dict[str, str]], free: int
) -> None:
    monkeypatch.setattr(control_groups, "PROC", tmp_path)
    monkeypatch.setattr(control_groups, "CGROUPS", tmp_path / "groups")
    container(tmp_path, path, {f"groups/{folder}": files for folder, files in groups.items()})
    assert free_memory(CPU) == free


def test_the_line_names_device_format_reason_and_torch() -> None:
    line = machine.machine_line(CPU, cpu_precision({"amx_bf16": True}))
    assert line == f"device cpu (1 thread), bf16 because this CPU has amx_bf16, torch {torch.__version__}"


@pytest.mark.slow
def test_large_arrays_that_were_freed_are_taken_again_without_new_pages() -> None:
    """In a process of its own: the setting stays for good."""
    program = """
import resource, torch
from storyladder.runtime.machine import keep_freed_memory
if not keep_freed_memory():
    raise SystemExit("another C library")
for _ in range(20):
    torch.ones(25_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(25_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False)
    if "another C library" in done.stderr:
        pytest.skip("not glibc")
    assert int(done.stdout) < 25_000, "100 MB are about 25,000 pages"
