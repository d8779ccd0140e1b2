"""CPU cores: how many this process may use, and threads that wait for each other without burning them.

Imports no torch: how OpenMP's threads wait is decided once, when torch loads it.
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
    """What to add to the environment before torch is imported; nothing where the user has decided how threads wait.

    After each parallel region OpenMP's threads spin until all have arrived. Where another process has taken a core, one
    of them is not running, and the others burn the time that it needs: a toy stage takes 30 to 80 times as long
    (benchmarks/sharing.py). A short spin keeps what spinning is for, since regions follow each other within
    microseconds; without any, toy models are a tenth slower on a quiet machine.
    """
    return {} if any(name in os.environ for name in _DECIDES) else dict(_SPIN)


def wait_passively() -> None:
    """Let threads that wait go to sleep soon. Without effect once torch is imported."""
    os.environ.update(waiting_policy())


def usable_cores() -> int:
    """Physical cores that this process may use: by its affinity and by the CPU quota of its container, rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = affinity(0) if affinity is not None else range(os.cpu_count() or 1)
    cores = len({_core_of(cpu) for cpu in cpus})
    quotas = [quota for group in control_groups("cpu") if (quota := _quota_of(group)) is not None]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas)]))


def _core_of(cpu: int) -> str:
    """The same text for all hardware threads of a physical core."""
    with contextlib.suppress(OSError):
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
    return str(cpu)


def _quota_of(group: Path) -> float | None:
    """CPUs that a control group leaves to its processes, or None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        if (group / "cpu.max").exists():  # version 2
            most, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            most, period = ((group / name).read_text(encoding="ascii") for name in names)
        if int(most) > 0:  # "max" is no number, and -1 no limit
            return int(most) / int(period)
    return None
