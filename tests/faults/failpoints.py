"""Faults on purpose: runs a script of the project and makes the n-th call of a kind fail, flip, tear, wait or kill.

    STORYLADDER_FAULTS="write@tiny_resume:12:kill fsync:3:eio" STORYLADDER_FAULT_ROOT=/tmp/toy \\
        python tests/faults/failpoints.py train_tiny.py --config /tmp/toy/config.py

Test-only: it replaces functions of the standard library (and the network's forward pass) from outside, so nothing in
the product's path knows about it. Only files under the root are touched. A fault is
`point[@name]:calls:action[=value]`:

    point   open write flush close fsync fsync-folder rename unlink flock; forward, evaluate: one pass of the network
    name    a part of the file's name (of the new name, for rename)
    calls   3, 3-5, or 3+ (counted from 1, matching calls only)
    action  an error's name in lower case (enospc, eio, ...), a signal's (kill, term, int, hup, usr1), or one below;
            `after-` before it lets the call happen first
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import errno
import io
import os
import pathlib
import random
import runpy
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
BALLAST = "ballast"  # the file with which `fill` takes the free space of a small file system


@dataclasses.dataclass
class Fault:
    """One armed failpoint and how many calls it has seen."""

    point: str
    name: str
    first: int
    last: float
    action: str
    value: str
    after: bool
    seen: int = 0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """From `point[@name]:calls:action[=value]`."""
        where, calls, what = text.split(":", 2)
        point, _, name = where.partition("@")
        action, _, value = what.partition("=")
        first, last = calls, calls
        if "-" in calls:
            first, last = calls.split("-")
        elif calls.endswith("+"):
            first, last = calls[:-1], "inf"
        after = action.startswith("after-")
        return cls(point, name, int(first), float(last), action.removeprefix("after-"), value, after)

    def meets(self, point: str, name: str) -> bool:
        """Count a call of the kind this fault waits for; True if it is the one."""
        if point != self.point or self.name not in name:
            return False
        self.seen += 1
        return self.first <= self.seen <= self.last


class Armed:
    """The faults of one process, and the trace of all calls that could have met one."""

    def __init__(self, faults: list[Fault], root: Path, trace: Path | None) -> None:
        self.faults, self.root = faults, root
        self.clock_offset = 0.0
        self._trace = None if trace is None else os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def note(self, words: str) -> None:
        """A line in the trace, written immediately so that a kill cannot take it away."""
        if self._trace is not None:
            with contextlib.suppress(OSError):  # a limit on file sizes is also one on this file
                os.write(self._trace, f"{words}\n".encode())

    def call(self, point: str, name: str, do: Callable[[], Any], data: Any = None, write: Any = None) -> Any:
        """`do`, with the faults that wait for it before or after."""
        self.note(f"call {point} {name}")
        due = [fault for fault in self.faults if fault.meets(point, name)]
        result = None
        for fault in due:
            if not fault.after:
                self.note(f"fired {fault.point} {fault.action}")
                changed = self._act(fault, data, write)
                if changed is not None:
                    return changed
        result = do()
        self.note(f"done {point} {name}")
        for fault in due:
            if fault.after:
                self.note(f"fired {fault.point} after-{fault.action}")
                self._act(fault, data, write)
        return result

    def _act(self, fault: Fault, data: Any, write: Any) -> Any:
        """Do what a fault is for. Anything but None stands for the call's own result."""
        number = getattr(errno, fault.action.upper(), None)
        if number is not None:
            raise OSError(number, os.strerror(number))
        signal_number = getattr(signal, "SIG" + fault.action.upper(), None)
        if signal_number is not None:
            for _ in range(int(fault.value or 1)):
                os.kill(os.getpid(), signal_number)
            return None
        return getattr(self, "_do_" + fault.action.replace("-", "_"))(fault, data, write)

    # --- actions on a write ---

    def _do_short(self, _fault: Fault, data: Any, write: Any) -> None:
        """Half of it is written, then the disk is full."""
        half = data if isinstance(data, str) else bytes(data)
        write(half[: len(half) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _do_torn(self, _fault: Fault, data: Any, write: Any) -> None:
        """Half of it is written, reaches the disk, and the process is killed."""
        half = data if isinstance(data, str) else bytes(data)
        write(half[: len(half) // 2])
        write.__self__.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def _do_flip(self, fault: Fault, data: Any, write: Any) -> Any:
        """One bit of what is written is another one; nobody is told."""
        raw = bytearray(data.encode() if isinstance(data, str) else bytes(data))
        if not raw:
            return None
        place = random.Random(int(fault.value or 0)).randrange(8 * len(raw))
        raw[place // 8] ^= 1 << place % 8
        return write(raw.decode("latin-1") if isinstance(data, str) else bytes(raw)) or len(raw)

    def _do_lost(self, _fault: Fault, data: Any, _write: Any) -> int:
        """Nothing is written and success is claimed."""
        return len(data)

    # --- actions on the world ---

    def _do_sleep(self, fault: Fault, *_: Any) -> None:
        time.sleep(float(fault.value))

    def _do_timer(self, fault: Fault, *_: Any) -> None:
        """SIGKILL some seconds later, wherever the process is then."""
        threading.Timer(float(fault.value), os.kill, (os.getpid(), signal.SIGKILL)).start()

    def _do_clock(self, fault: Fault, *_: Any) -> None:
        self.clock_offset += float(fault.value)

    def _do_cut(self, fault: Fault, *_: Any) -> None:
        """Truncate a file under the root to half its size, as another program might."""
        path = self.root / fault.value
        os.truncate(path, path.stat().st_size // 2 & ~1)

    def _do_remove(self, fault: Fault, *_: Any) -> None:
        shutil.rmtree(self.root / fault.value)

    def _do_protect(self, fault: Fault, *_: Any) -> None:
        (self.root / fault.value).chmod(0o555)

    def _do_fill(self, fault: Fault, *_: Any) -> None:
        """Take all free space of the file system of a folder, as another program might."""
        descriptor = os.open(self.root / fault.value / BALLAST, os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(descriptor, bytes(4096))
        except OSError:
            os.close(descriptor)

    def _do_unfill(self, fault: Fault, *_: Any) -> None:
        (self.root / fault.value / BALLAST).unlink()

    def _do_tell(self, fault: Fault, *_: Any) -> None:
        """Write a byte into the pipe whose number is given: the parent waits for it, then kills."""
        os.write(int(fault.value), b".")

    def _do_oom(self, fault: Fault, *_: Any) -> None:
        import torch

        if fault.value == "cpu":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


class FaultyFile:
    """A file opened for writing, whose calls pass the failpoints."""

    def __init__(self, file: Any, armed: Armed, name: str) -> None:
        self._file, self._armed, self._name = file, armed, name

    def write(self, data: Any) -> Any:
        size = len(data) if isinstance(data, str) else memoryview(data).nbytes
        return self._armed.call(
            "write", f"{self._name} {size}", lambda: self._file.write(data), data=data, write=self._file.write
        )

    def flush(self) -> None:
        self._armed.call("flush", self._name, self._file.flush)

    def close(self) -> None:
        if not self._file.closed:
            self._armed.call("close", self._name, self._file.close)

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def arm(text: str, root: Path, trace: Path | None) -> Armed:
    """Put the failpoints into this process, for good."""
    armed = Armed([Fault.parse(part) for part in text.split()], root.resolve(), trace)
    _arm_opening(armed)
    _arm_os(armed)
    real_time = time.time
    time.time = lambda: real_time() + armed.clock_offset
    if "model" in sys.modules or any(fault.point in ("forward", "evaluate") for fault in armed.faults):
        _arm_network(armed)
    return armed


def _arm_opening(armed: Armed) -> None:
    real_open = io.open

    def faulty_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not _under(armed.root, file):
            return real_open(file, mode, *args, **kwargs)
        name = os.path.basename(os.fspath(file))
        opened = armed.call("open", name, lambda: real_open(file, mode, *args, **kwargs))
        return FaultyFile(opened, armed, name)

    io.open = builtins.open = faulty_open
    if hasattr(pathlib, "_NormalAccessor"):  # Python 3.10 keeps its own references
        pathlib._NormalAccessor.open = staticmethod(faulty_open)


def _under(root: Path, path: Any) -> bool:
    return os.path.abspath(os.fspath(path)).startswith(f"{root}{os.sep}")


def _arm_os(armed: Armed) -> None:
    """os.fsync, replace, rename, unlink, remove and flock."""
    real_fsync = os.fsync

    def faulty_fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        armed.call("fsync-folder" if folder else "fsync", name, lambda: real_fsync(descriptor))

    os.fsync = faulty_fsync
    for function, point in (("replace", "rename"), ("rename", "rename"), ("unlink", "unlink"), ("remove", "unlink")):
        setattr(os, function, _passing(armed, point, getattr(os, function)))
    if hasattr(pathlib, "_NormalAccessor"):
        for function in ("replace", "rename", "unlink"):
            setattr(pathlib._NormalAccessor, function, staticmethod(getattr(os, function)))
    import fcntl

    real_flock = fcntl.flock
    fcntl.flock = lambda file, how: armed.call("flock", "lock", lambda: real_flock(file, how))


def _passing(armed: Armed, point: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def faulty(*paths: Any, **kwargs: Any) -> Any:
        if not _under(armed.root, paths[-1]) or not os.path.lexists(paths[0]):
            return real(*paths, **kwargs)
        return armed.call(point, os.path.basename(os.fspath(paths[-1])), lambda: real(*paths, **kwargs))

    return faulty


def _arm_network(armed: Armed) -> None:
    """GPT.hidden: `nan`, `spike` and `infgrad` change what comes out of it; all other actions happen before it."""
    import torch

    from model import GPT

    class InfiniteGradient(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * float("inf")

    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "nan": lambda x: x * float("nan"),
        "spike": lambda x: x * 30.0,
        "infgrad": InfiniteGradient.apply,
    }
    real_hidden = GPT.hidden
    pending: list[str] = []
    for action in changes:
        setattr(Armed, f"_do_{action}", lambda _self, fault, *_: pending.append(fault.action))

    def poison(_self: Armed, _fault: Fault, *_: Any) -> None:
        list(models[-1].parameters())[-1].data[0] = float("nan")  # a bias: no gradient needs it, so the step is applied

    models: list[Any] = []
    Armed._do_poison = poison

    def faulty_hidden(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        models[:] = [self]
        x = armed.call(
            "forward" if self.training else "evaluate", "network", lambda: real_hidden(self, *args, **kwargs)
        )
        while pending:
            x = changes[pending.pop()](x)
        return x

    GPT.hidden = faulty_hidden


def run_script(script: str, arguments: list[str]) -> None:
    """Run a script of the project as `python SCRIPT ARGUMENTS` would."""
    if str(PROJECT) not in sys.path:
        sys.path.insert(0, str(PROJECT))
    sys.argv = [script, *arguments]
    runpy.run_path(str(PROJECT / script), run_name="__main__")


def main() -> None:
    """Arm what the environment asks for and run the script named on the command line."""
    sys.path.insert(0, str(PROJECT))
    trace = os.environ.get("STORYLADDER_FAULT_TRACE")
    arm(os.environ["STORYLADDER_FAULTS"], Path(os.environ["STORYLADDER_FAULT_ROOT"]), Path(trace) if trace else None)
    run_script(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    main()
