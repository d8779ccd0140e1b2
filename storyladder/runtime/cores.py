"""CPU cores: how many this process may use, and how OpenMP threads wait for each other without wasting them.

Does not import torch, because OpenMP reads its wait policy only once, when torch loads it.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from storyladder.runtime.control_groups import control_groups

_CPUS = Path("/sys/devices/system/cpu")
_SPIN = {
    "GOMP_SPINCOUNT": "1000",  # GCC's OpenMP, in torch for Linux: some 50 microseconds instead of 10 milliseconds
    "KMP_BLOCKTIME": "1",  # LLVM's and Intel's, on macOS and Windows: milliseconds instead of 200
}
_DECIDES = ("OMP_WAIT_POLICY", *_SPIN)


def waiting_policy() -> dict[str, str]:
    """Environment variables to set before torch is imported; none if the user has set a wait policy.

    After each parallel region OpenMP's threads spin until all have arrived. If another process occupies a core, one of
    them cannot run while the others spin and use up its time: a toy stage takes 30 to 80 times as long
    (benchmarks/sharing.py). A short spin keeps the benefit of spinning, since regions follow each other within
    microseconds; without any spinning, toy models are a tenth slower on an idle machine.
    """
    return {} if any(name in os.environ for name in _DECIDES) else dict(_SPIN)


def wait_passively() -> None:
    """Make waiting threads sleep after a short spin. Has no effect once torch is imported."""
    os.environ.update(waiting_policy())


def usable_cores() -> int:
    """Physical cores that this process may use: limited by its affinity and its container's CPU quota, rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = affinity(0) if affinity is not None else range(os.cpu_count() or 1)
    cores = len({_core_of(cpu) for cpu in cpus})
    quotas = [quota for group in control_groups("cpu") if (quota := _quota_of(group)) is not None]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _core_of(cpu: int) -> str:
    """An identifier that all hardware threads of a physical core share."""
    with contextlib.suppress(OSError):
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
    return str(cpu)


def _quota_of(group: Path) -> float | None:
    """A control group's CPU limit, in CPUs, or None if it has no limit."""
    with contextlib.suppress(OSError, ValueError):
        if (group / "cpu.max").exists():  # version 2
            most, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            most, period = ((group / name).read_text(encoding="ascii") for name in names)
        if int(most) > 0:  # "max" is not a number, and -1 means no limit
            return int(most) / int(period)
    return None
