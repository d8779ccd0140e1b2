"""A group of processes that train one model together: their ranks, and the few things they must agree on.

torchrun starts the processes and sets each one's rank in its environment. All ranks have the same weights and make the
same decisions; only rank 0 reads and writes checkpoints and prints. A process that torchrun did not start is a group of
one, whose agreements cost nothing, so callers need no special case.

CPU values go through gloo, even on machines with GPUs: hosts agree without waiting for their GPUs.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

import torch
import torch.distributed
from torch import Tensor

from storyladder.runtime.errors import GRACE_SECONDS, Interrupted, OthersFailed, PeerLost, UserError
from storyladder.runtime.machine import is_out_of_memory
from storyladder.runtime.signals import StopRequest

T = TypeVar("T")

# Longer than a save to a slow network disk, during which the other ranks wait; also the time lost if a machine dies.
_TIMEOUT = datetime.timedelta(minutes=5)
_REPORT_TIMEOUT = datetime.timedelta(seconds=10)
_FINE, _OUT_OF_MEMORY, _INTERRUPTED, _USER_ERROR = range(4)  # how an action ended; the highest of all counts


class Group:
    """The processes that train together, as seen from one of them."""

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        stop: StopRequest | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank  # on this machine
        self.local_size = local_size
        self._stop = stop
        self._before_leaving: list[Callable[[], None]] = []

    def before_leaving(self, action: Callable[[], None]) -> None:
        """Run `action` before the connections to the other ranks close, however the run ends."""
        self._before_leaving.append(action)

    def leave(self) -> None:
        """Run the `before_leaving` actions, last one first."""
        while self._before_leaving:
            self._before_leaving.pop()()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints, reads and writes for all."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process."""
        return self.world_size == 1

    def share_of(self, n: int) -> slice:
        """This rank's share of n items; n must be a multiple of the world size."""
        assert n % self.world_size == 0
        each = n // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    @contextlib.contextmanager
    def agreement(self) -> Iterator[None]:
        """At the end of the `with`, wait until its body has succeeded on all ranks; all learn which signals any got.

        Where the body fails with a UserError, too little memory, or Interrupted, no rank continues: those that failed
        raise their own error, which is printed once, and the others OthersFailed, MemoryError or Interrupted.
        """
        if self.is_alone:
            yield
            return
        error, outcome = None, _FINE
        try:
            yield
        except (UserError, Interrupted, MemoryError, RuntimeError) as caught:
            if isinstance(caught, PeerLost):
                raise
            error, outcome = caught, _outcome(caught)
        worst, speaker, *signals = self.highest(
            [outcome, self.world_size - self.rank if outcome == _USER_ERROR else 0, *self._pending()]
        )
        if self._stop is not None:
            self._stop.settle(*signals)
        if worst == _INTERRUPTED:
            raise Interrupted(signals[0])
        if worst == _OUT_OF_MEMORY:
            raise error or MemoryError("another process of this run is out of memory")
        if worst == _USER_ERROR:
            if error is None or outcome != _USER_ERROR or speaker != self.world_size - self.rank:
                raise OthersFailed
            assert isinstance(error, UserError)
            error.print_here = True
            raise error

    def together(self, action: Callable[[], T]) -> T:
        """What `action` returns here, once it has succeeded on all ranks: see `agreement`."""
        with self.agreement():
            return action()

    def disband(self) -> None:
        """Act alone from now on, after an error that ended the other ranks or the connection to them."""
        self.world_size = 1

    def fail(self, error: Exception) -> NoReturn:
        """Raise an error of this rank, and make the others stop at their next agreement."""

        def action() -> None:
            raise error

        self.together(action)
        raise AssertionError("unreachable: `together` raises the error")

    def _pending(self) -> tuple[int, int]:
        return self._stop.pending() if self._stop is not None else (0, 0)

    def on_first(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0; returns its result, plain values and tensors, on all ranks. If it fails, all fail."""
        if self.is_alone:
            return action()
        result = self.together(lambda: action() if self.is_first else None)
        return self.from_rank_0(result)  # type: ignore[return-value]

    def first_then_others(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; the others start when rank 0 has finished."""
        if self.is_alone:
            return action()
        result = self.together(lambda: action() if self.is_first else None)
        mine = self.together(lambda: result if self.is_first else action())
        return mine  # type: ignore[return-value]

    def any(self, here: bool) -> bool:
        """Whether `here` is true on any rank."""
        return self.highest([int(here)]) == [1]

    def highest(self, numbers: Sequence[int]) -> list[int]:
        """The elementwise maximum over all ranks."""
        if self.is_alone:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.int64)
        with lost_peers():
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return tensor.tolist()

    def sum(self, number: float) -> float:
        """The sum over all ranks, bit for bit the same on each."""
        if self.is_alone:
            return number
        tensor = torch.tensor(number, dtype=torch.float64)
        with lost_peers():
            torch.distributed.all_reduce(tensor)
        return tensor.item()

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all ranks, on its device; the host does not wait for the GPU."""
        if self.is_alone:
            return tensor
        with lost_peers():
            torch.distributed.all_reduce(tensor)
        return tensor / self.world_size

    def from_rank_0(self, value: T) -> T:
        """Rank 0's value, plain values and tensors, on all ranks.

        It is sent in the format of a checkpoint, and like one it is loaded without executing code from it.
        """
        if self.is_alone:
            return value
        sent = io.BytesIO()
        if self.is_first:
            torch.save(value, sent)
        with lost_peers():
            length = torch.tensor(sent.getbuffer().nbytes)
            torch.distributed.broadcast(length, src=0)
            received = torch.empty(int(length), dtype=torch.uint8)
            if self.is_first:
                received.copy_(torch.frombuffer(sent.getbuffer(), dtype=torch.uint8))
            torch.distributed.broadcast(received, src=0)
        if self.is_first:
            return value
        return torch.load(io.BytesIO(received.numpy().tobytes()), weights_only=True)  # type: ignore[no-any-return]


ALONE = Group()


@contextlib.contextmanager
def joined_group(stop: StopRequest) -> Iterator[Group]:
    """The group that torchrun started this process in, inside the `with`; without torchrun a group of one.

    Ranks other than 0 print nothing inside, except errors.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    rank, world_size, local_rank, local_size = (int(os.environ[name]) for name in names)
    cuda = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    stop.share(prints=rank == 0)
    with lost_peers():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    group = Group(rank, world_size, local_rank, local_size, stop)
    try:
        with contextlib.nullcontext() if rank == 0 else _muted():
            yield group
    except UserError as error:
        if error.print_here is None:
            error.print_here = _is_first_to_report(rank)
        raise
    finally:
        group.leave()
        torch.distributed.destroy_process_group()


def _is_first_to_report(rank: int) -> bool:
    """Whether no other rank has printed the error yet. Rank 0 goes first if it is still alive."""
    if rank > 0:
        time.sleep(GRACE_SECONDS)
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        client = torch.distributed.TCPStore  # type: ignore[attr-defined]
        store = client(address, port, is_master=False, timeout=_REPORT_TIMEOUT)
        return bool(store.add(f"reported {os.environ['TORCHELASTIC_RESTART_COUNT']}", 1) == 1)
    except RuntimeError:  # the store is gone, with the machine that hosted it
        return True


def device_of_rank(name: str, group: Group) -> str:
    """This rank's device for a value of --device: one GPU for each process of a machine, or the CPU for all."""
    if group.is_alone:
        return name
    if name not in ("auto", "cuda", "cpu"):
        raise UserError(
            f"--device {name} is one device, but torchrun started {group.world_size} processes; use --device cuda to "
            "give each its own GPU (CUDA_VISIBLE_DEVICES selects which), or --device cpu to share the CPU"
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    n_gpus = torch.cuda.device_count()
    if group.local_size > n_gpus:
        raise UserError(
            f"torchrun started {group.local_size} processes on a machine with {n_gpus} GPUs, but each needs its own; "
            "start at most one per GPU, or train with --device cpu"
        )
    torch.cuda.set_device(group.local_rank)
    return f"cuda:{group.local_rank}"


def _outcome(error: BaseException) -> int:
    """The error's code in an agreement. Bugs of ours are raised again, which ends all processes."""
    if isinstance(error, UserError):
        return _USER_ERROR
    if isinstance(error, Interrupted):
        return _INTERRUPTED
    if is_out_of_memory(error):
        return _OUT_OF_MEMORY
    raise error


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Turn a broken or timed-out connection into PeerLost."""
    try:
        yield
    except RuntimeError as error:  # gloo has no exception type
        if is_out_of_memory(error):
            raise
        line = (str(error).splitlines() or [type(error).__name__])[0]
        reason = re.sub(r"^\[\S*\] ", "", line).partition(". ")[0][:200]  # without gloo's source location and hints
        raise PeerLost(
            f"another process of this run is gone ({reason}); torchrun names it below. "
            "Run the same command again to continue from the last save"
        ) from None


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
