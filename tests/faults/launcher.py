"""Starting a script of the project: in a fork of this process (milliseconds) or as a process of its own (seconds).

Both ways run the same file through `failpoints.run_script`; the fork saves importing torch. This process must never
train anything itself: a fork inherits neither threads nor a used autograd engine.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import failpoints

KILLED = -signal.SIGKILL
HUNG = "hung"
_MOST_MEMORY = 6 << 30  # of addresses: a hostile file must not take the machine down with it
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run of a script ended."""

    status: int | str  # exit status, minus the signal's number, or HUNG
    stdout: str
    stderr: str
    trace: list[str]
    seconds: float
    peak_bytes: int  # resident memory beyond what the fork began with; 0 for processes of their own
    cpu_seconds: float  # the same

    @property
    def fired(self) -> bool:
        """Whether an armed fault happened."""
        return any(line.startswith("fired") for line in self.trace)

    @property
    def said(self) -> bool:
        """Whether the user was told that something went wrong, in words or by the exit status."""
        return self.status != 0 or any(word in self.stderr.lower() for word in ("warning", "skipped", "back to step"))

    @property
    def has_traceback(self) -> bool:
        """Whether it ended in an error that nobody foresaw."""
        return "Traceback (most recent call last)" in self.stderr

    def last_error(self) -> str:
        """The last line on stderr."""
        lines = self.stderr.strip().splitlines()
        return lines[-1][:300] if lines else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """A script, its arguments and what surrounds it."""

    script: str
    arguments: tuple[str, ...]
    root: Path
    faults: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    file_limit: int | None = None  # RLIMIT_FSIZE, bytes
    obey_permissions: bool = False  # root ignores read-only folders unless it gives up that right
    umask: int | None = None
    ignored: tuple[int, ...] = ()  # signals that the parent ignores, as nohup does
    prepare: str = ""  # statement run in the child before the script, as the last preparation
    timeout: float = 240.0  # a busy machine is no reason to call a run hung


@dataclasses.dataclass
class Running:
    """A script that runs in a fork."""

    launch: Launch
    pid: int
    files: list[Path]
    told: int
    began: float

    def wait(self) -> Outcome:
        """How it ended; kills it where it hangs."""
        with contextlib.closing(os.fdopen(self.told, "rb", buffering=0)):
            status = _wait(self.pid, self.launch.timeout)
        texts = [file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in self.files]
        trace = texts[2].splitlines()
        peak, cpu = next((line.split()[1:] for line in trace if line.startswith("used ")), ("0", "0"))
        return Outcome(status, texts[0], texts[1], trace, time.monotonic() - self.began, int(peak), float(cpu))

    def wait_until_told(self) -> None:
        """Wait for the child's action `tell`, if it has one, or for its end."""
        if "tell" in self.launch.faults:
            select.select([self.told], [], [], self.launch.timeout)


def start(launch: Launch, *, place: str = "out") -> Running:
    """Start a script in a fork of this process. `place` names the folder next to the root that keeps its output."""
    kept = launch.root.with_name(f"{launch.root.name}.{place}")
    kept.mkdir(exist_ok=True)
    files = [kept / name for name in ("stdout", "stderr", "trace")]
    for file in files:
        file.unlink(missing_ok=True)
    told, tell = os.pipe()
    began = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_the_child(launch, files, tell)
    os.close(tell)
    return Running(launch, pid, files, told, began)


def run(launch: Launch) -> Outcome:
    """Run a script in a fork of this process."""
    return start(launch).wait()


def _wait(pid: int, timeout: float) -> int | str:
    """A child's exit status, or HUNG."""
    deadline = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return HUNG
        time.sleep(0.002)


def _be_the_child(launch: Launch, files: list[Path], tell: int) -> None:
    """Never returns: runs the script and ends the process with its exit status."""
    status = 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    armed = None
    try:
        for descriptor, path in ((1, files[0]), (2, files[1])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):  # this very run may have been started with nohup
            signal.signal(number, signal.SIG_DFL)
        for number in launch.ignored:
            signal.signal(number, signal.SIG_IGN)
        os.environ.update(dict(launch.environment))
        if launch.umask is not None:
            os.umask(launch.umask)
        armed = failpoints.arm(launch.faults.replace("tell", f"tell={tell}"), launch.root, files[2])
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
        if launch.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (launch.file_limit, launch.file_limit))
        if launch.obey_permissions:
            obey_permissions()
        exec(launch.prepare, {"armed": armed})
        failpoints.run_script(launch.script, list(launch.arguments))
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        if armed is not None:
            used = resource.getrusage(resource.RUSAGE_SELF)
            armed.note(f"used {1024 * (used.ru_maxrss - before)} {used.ru_utime + used.ru_stime}")
        os._exit(status)


def obey_permissions() -> None:
    """Give up root's right to write where nobody may: for this process, for good. Nothing to do for other users."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for word in range(3):  # effective, permitted, inheritable of capabilities 0 to 31
        sets[word] &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "cannot give up capabilities")


def run_process(launch: Launch, *, through: Callable[[list[str]], list[str]] = lambda command: command) -> Outcome:
    """Run a script as a process of its own, `python SCRIPT` exactly as a user would when no fault is armed."""
    command = [sys.executable, launch.script, *launch.arguments]
    environment = {**os.environ, **dict(launch.environment), "OMP_NUM_THREADS": "1"}
    trace = launch.root.with_name(launch.root.name + ".trace")
    trace.unlink(missing_ok=True)
    if launch.faults:
        command.insert(1, str(Path(failpoints.__file__)))
        environment |= {
            "STORYLADDER_FAULTS": launch.faults,
            "STORYLADDER_FAULT_ROOT": str(launch.root),
            "STORYLADDER_FAULT_TRACE": str(trace),
        }
    began = time.monotonic()
    done = subprocess.run(
        through(command),
        cwd=failpoints.PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=launch.timeout,
        check=False,
    )
    lines = trace.read_text(encoding="utf-8").splitlines() if trace.exists() else []
    return Outcome(done.returncode, done.stdout, done.stderr, lines, time.monotonic() - began, 0, 0.0)


@contextlib.contextmanager
def small_file_system(folder: Path, size: int) -> Iterator[bool]:
    """A tmpfs of `size` bytes at `folder` inside the `with`; False where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
