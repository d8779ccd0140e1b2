"""Several processes that train as one: who they are, and the few things that they must agree on.

torchrun starts the processes and says to each, in its environment, which one it is. All hold the same weights and take
the same decisions; the first one alone reads and writes checkpoints and talks to the user. A process that torchrun did
not start is a group of one, whose agreements cost nothing, so that no caller has to ask.

Numbers on the CPU travel through gloo, also on machines with GPUs: hosts agree without waiting for their GPUs.
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

from storyladder.runtime.errors import LAST_WORDS, Interrupted, OthersFailed, PeerLost, UserError
from storyladder.runtime.machine import is_out_of_memory
from storyladder.runtime.signals import StopRequest

T = TypeVar("T")

# Longer than a save on a slow network disk, while which the others wait; and what a machine that lost its power costs.
_TIMEOUT = datetime.timedelta(minutes=5)
_TIMEOUT_TO_TELL = datetime.timedelta(seconds=10)
_FINE, _OUT_OF_MEMORY, _INTERRUPTED, _USER_ERROR = range(4)  # how an action ended; the highest of all counts


class Group:
    """The processes that train together, seen from one of them."""

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
        """Do this while the connections to the other processes are still there, whatever ends the run."""
        self._before_leaving.append(action)

    def leave(self) -> None:
        """Do what is to be done before the connections end."""
        while self._before_leaving:
            self._before_leaving.pop()()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that talks, reads and writes for all."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to agree with."""
        return self.world_size == 1

    def share_of(self, n: int) -> slice:
        """The part of n things that is this process's; n must be a multiple of the number of processes."""
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
            error.tell = True
            raise error

    def together(self, action: Callable[[], T]) -> T:
        """What `action` returns here, once it has succeeded on all ranks: see `agreement`."""
        with self.agreement():
            return action()

    def disband(self) -> None:
        """Ask nobody from now on, as after an error that ended the others or the connection to them."""
        self.world_size = 1

    def fail(self, error: Exception) -> NoReturn:
        """Leave with an error that this process met while the others go on to their next agreement."""

        def action() -> None:
            raise error

        self.together(action)
        raise AssertionError("what fails here fails everywhere")

    def _pending(self) -> tuple[int, int]:
        return self._stop.pending() if self._stop is not None else (0, 0)

    def first(self, action: Callable[[], T]) -> T:
        """What `action` returns in the first process, to all: plain values and tensors. Its failure is everybody's."""
        if self.is_alone:
            return action()
        result = self.together(lambda: action() if self.is_first else None)
        return self.from_first(result)  # type: ignore[return-value]

    def first_then_others(self, action: Callable[[], T]) -> T:
        """What `action` returns here; the others begin when the first process is done."""
        if self.is_alone:
            return action()
        result = self.together(lambda: action() if self.is_first else None)
        mine = self.together(lambda: result if self.is_first else action())
        return mine  # type: ignore[return-value]

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return self.highest([int(here)]) == [1]

    def highest(self, numbers: Sequence[int]) -> list[int]:
        """Of each of the numbers the highest that any process gives."""
        if self.is_alone:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.int64)
        with lost_peers():
            torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return tensor.tolist()

    def sum(self, number: float) -> float:
        """The sum over all processes, the same bits in each."""
        if self.is_alone:
            return number
        tensor = torch.tensor(number, dtype=torch.float64)
        with lost_peers():
            torch.distributed.all_reduce(tensor)
        return tensor.item()

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes, on its device, for which the host of a GPU does not wait."""
        if self.is_alone:
            return tensor
        with lost_peers():
            torch.distributed.all_reduce(tensor)
        return tensor / self.world_size

    def from_first(self, value: T) -> T:
        """What the first process gives: plain values and tensors.

        They travel as a checkpoint does, and like one are read without running anything that stands in them.
        """
        if self.is_alone:
            return value
        sent = io.BytesIO()
        if self.is_first:
            torch.save(value, sent)
        with lost_peers():
            length = torch.tensor(sent.getbuffer().nbytes)
            torch.distributed.broadcast(length, src=0)
            letters = torch.empty(int(length), dtype=torch.uint8)
            if self.is_first:
                letters.copy_(torch.frombuffer(sent.getbuffer(), dtype=torch.uint8))
            torch.distributed.broadcast(letters, src=0)
        if self.is_first:
            return value
        return torch.load(io.BytesIO(letters.numpy().tobytes()), weights_only=True)  # type: ignore[no-any-return]


ALONE = Group()


@contextlib.contextmanager
def joined_group(stop: StopRequest) -> Iterator[Group]:
    """The group that torchrun started this process in, inside the `with`; without torchrun a group of one.

    All but the first process are mute meanwhile, except for errors.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    rank, world_size, local_rank, local_size = (int(os.environ[name]) for name in names)
    cuda = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    stop.share(speaks=rank == 0)
    with lost_peers():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    group = Group(rank, world_size, local_rank, local_size, stop)
    try:
        with contextlib.nullcontext() if rank == 0 else _muted():
            yield group
    except UserError as error:
        if error.tell is None:
            error.tell = _is_first_to_tell(rank)
        raise
    finally:
        group.leave()
        torch.distributed.destroy_process_group()


def _is_first_to_tell(rank: int) -> bool:
    """Whether no other process has told what has happened; the first process is asked first, if it still lives."""
    if rank > 0:
        time.sleep(LAST_WORDS)
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        client = torch.distributed.TCPStore  # type: ignore[attr-defined]
        store = client(address, port, is_master=False, timeout=_TIMEOUT_TO_TELL)
        return bool(store.add(f"told {os.environ['TORCHELASTIC_RESTART_COUNT']}", 1) == 1)
    except RuntimeError:  # gone with the machine that kept it
        return True


def own_device(name: str, group: Group) -> str:
    """The device of this process for what --device says: one GPU for each process of a machine, or the CPU for all."""
    if group.is_alone:
        return name
    if name not in ("auto", "cuda", "cpu"):
        raise UserError(
            f"--device {name} is one device, and torchrun started {group.world_size} processes; each takes its own GPU "
            "with --device cuda (CUDA_VISIBLE_DEVICES chooses among them), or all the CPU with --device cpu"
        )
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    n_gpus = torch.cuda.device_count()
    if group.local_size > n_gpus:
        raise UserError(
            f"torchrun started {group.local_size} processes on a machine with {n_gpus} GPUs, and each needs its own; "
            "start as many as there are GPUs, or train with --device cpu"
        )
    torch.cuda.set_device(group.local_rank)
    return f"cuda:{group.local_rank}"


def _outcome(error: BaseException) -> int:
    """Its number in an agreement; what is nobody's mistake but ours is raised on, and ends everything."""
    if isinstance(error, UserError):
        return _USER_ERROR
    if isinstance(error, Interrupted):
        return _INTERRUPTED
    if is_out_of_memory(error):
        return _OUT_OF_MEMORY
    raise error


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """A connection that breaks, or is silent for too long, as PeerLost."""
    try:
        yield
    except RuntimeError as error:  # gloo's errors have no type of their own
        if is_out_of_memory(error):
            raise
        line = (str(error).splitlines() or [type(error).__name__])[0]
        reason = re.sub(r"^\[\S*\] ", "", line).partition(". ")[0][:200]  # without gloo's source file and advice
        raise PeerLost(
            f"another process of this run is gone ({reason}); torchrun names it below. "
            "The same command goes on from what is saved"
        ) from None


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
