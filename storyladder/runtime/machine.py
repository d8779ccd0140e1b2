"""This machine's device, precision and memory, chosen once and printed in one line."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import platform
from pathlib import Path

import torch

from storyladder.runtime import control_groups
from storyladder.runtime.cores import usable_cores
from storyladder.runtime.errors import UserError

GB = 1e9
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtype of the large matmuls; weights, sums and the optimizer stay in float32."""

    dtype: torch.dtype
    reason: str
    device_type: str
    warning: str = ""  # printed before training starts

    @property
    def name(self) -> str:
        """bf16, fp16 or fp32."""
        return next((name for name, dtype in _DTYPES.items() if dtype == self.dtype), "fp32")

    @property
    def matmul_dtype(self) -> torch.dtype:
        """For matmuls whose values may overflow fp16: bf16 if training uses it, else float32."""
        return torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context for the forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16 gradients from underflowing; disabled for the other dtypes."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)


def pick_device(name: str) -> torch.device:
    """The named device, or a UserError if it does not exist. `auto` is CUDA if available, else MPS, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is unknown; there are auto, cuda, cuda:1, mps and cpu") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    # torch keeps only eight bits of the index: it would take cuda:256 for cuda:0.
    there = str(device) == name and (device.index or 0) < count.get(device.type, 0)
    if not there:
        raise UserError(f"--device {name}: torch {torch.__version__} finds no such device here; try --device auto")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams and graphs belong to the current device
    return device


def pick_precision(device: torch.device, name: str = "auto", reason: str = "--precision asks for it") -> Precision:
    """The named precision, with the reason to print; a UserError if this device cannot train in it.

    `auto` is bf16 where the hardware is fast at it, fp16 with a loss scaler on older CUDA cards, else fp32.
    """
    best = _fastest_precision(device)
    if name in ("auto", best.name):
        return best
    if (why_not := _why_not(device, name)) is not None:
        raise UserError(f"{name} does not work on {device}: {why_not}; try --precision {best.name}")
    warning = ""
    if device.type == "cpu" and name == "bf16":
        warning = f"{best.reason}: bf16 is emulated, and a step takes several times as long as with --precision fp32"
    return Precision(_DTYPES[name], reason, device.type, warning)


def _why_not(device: torch.device, name: str) -> str | None:
    """Why a device cannot train in a precision, or None if it can."""
    if name not in _DTYPES:
        return f"there are {', '.join(_DTYPES)}"
    if device.type == "cpu" and name == "fp16":
        return "CPUs have no fast fp16, and bf16 needs no loss scaling"
    if device.type == "cuda" and name == "bf16":
        major, minor = torch.cuda.get_device_capability(device)
        return None if major >= 8 else f"sm{major}{minor} has no bf16"
    if device.type == "mps" and name != "fp32":
        try:
            with torch.autocast("mps", dtype=_DTYPES[name]):
                torch.ones(2, 2, device=device) @ torch.ones(2, 2, device=device)
        except RuntimeError as error:  # older systems have no bf16
            return str(error).splitlines()[0]
    return None


def _fastest_precision(device: torch.device) -> Precision:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return Precision(torch.bfloat16, f"sm{major}{minor} has bf16 tensor cores", "cuda")
        if major >= 7:
            return Precision(torch.float16, f"sm{major}{minor} has fp16 tensor cores, but no bf16", "cuda")
        return Precision(torch.float32, f"sm{major}{minor} has no tensor cores", "cuda")
    if device.type == "mps":
        return Precision(torch.float32, "half precision on MPS has given NaN in similar projects", "mps")
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # missing in older versions of torch
    return cpu_precision(dict(capabilities()))


def cpu_precision(capabilities: dict[str, object]) -> Precision:
    """bf16 on CPUs with bf16 instructions. Without them bf16 autocast is slower than fp32."""
    for instruction in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(instruction):
            return Precision(torch.bfloat16, f"this CPU has {instruction}", "cpu")
    return Precision(torch.float32, "this CPU has no bf16 instructions", "cpu")


def keep_freed_memory() -> bool:
    """Make malloc keep freed arrays for the next step instead of returning them to the system; True if it does.

    glibc returns arrays of more than 32 MB to the system and gets them back page by page, each filled with zeros: on
    some machines that costs more than the arithmetic on them. Other C libraries are not changed.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version()  # only glibc has it
        settings = (_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 26)
        return all([libc.mallopt(which, value) == 1 for which, value in settings])
    return False


def make_deterministic(device: torch.device, dtype: torch.dtype) -> bool:
    """Make torch use deterministic GPU kernels, so that a resumed run ends in the same bits. Call before using the GPU.

    False if attention in this dtype has no deterministic kernel (fp32, cards older than sm80): torch then warns, and
    the last bits of a resumed run may differ. Source: torch's notes on reproducibility.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Filling costs time, and nothing here reads uninitialized memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    try:
        q_BHTD = torch.zeros(1, 1, 16, 8, device=device, dtype=dtype, requires_grad=True)
        y_BHTD = torch.nn.functional.scaled_dot_product_attention(q_BHTD, q_BHTD, q_BHTD, is_causal=True)
        torch.autograd.backward(y_BHTD.sum())
    except RuntimeError:  # "... does not have a deterministic implementation"
        torch.use_deterministic_algorithms(True, warn_only=True)
        return False
    return True


def most_threads() -> int:
    """The largest number of threads torch should use here: OMP_NUM_THREADS, else one per core of this process."""
    threads = torch.get_num_threads()
    return threads if "OMP_NUM_THREADS" in os.environ else min(threads, usable_cores())


def free_memory(device: torch.device) -> int | None:
    """Bytes that could be allocated now, or None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    known = [free for free in (_free_in_system(), _free_in_container()) if free is not None]
    return min(known, default=None)


def _free_in_system() -> int | None:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (control_groups.PROC / "meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _free_in_container() -> int | None:
    """Bytes left within the limits of Linux's control groups, which /proc/meminfo ignores; None without a limit.

    A process that exceeds them is killed without a message. Inactive page cache counts as free: it is dropped first.
    """
    left = [_left_in_group(group) for group in control_groups.control_groups("memory")]
    return min((room for room in left if room is not None), default=None)


def _left_in_group(group: Path) -> int | None:
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),  # version 2
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
    ):
        with contextlib.suppress(OSError, ValueError, KeyError):  # no such file; "max" is not a number
            most, taken = (int((group / name).read_text(encoding="ascii")) for name in (limit, used))
            counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            return max(0, most - taken + int(counts[cache]))
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. Only CUDA's allocator raises OutOfMemoryError; the others raise RuntimeError."""
    phrases = ("can't allocate memory", "backend out of memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(phrase in str(error) for phrase in phrases)


def peak_memory(device: torch.device) -> int | None:
    """Peak memory so far in bytes, of the GPU or, on a CPU, of this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return None


def device_text(device: torch.device) -> str:
    """The device with its name, for messages."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return "mps (Apple GPU)"
    n = torch.get_num_threads()
    return f"cpu ({n} thread{'s' if n > 1 else ''})"


def machine_line(device: torch.device, precision: Precision) -> str:
    """One line: device, precision and the reason for it."""
    return f"device {device_text(device)}, {precision.name} because {precision.reason}, torch {torch.__version__}"
