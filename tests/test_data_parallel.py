"""torch's DistributedDataParallel around a model: gradients as without it, and what happens when one fails in it.

Here the group is this process alone; tests/test_distributed.py has real ones.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from steppers import some_batch, stepper_of

from model import GPT
from storyladder.learning.data_parallel import DataParallel
from storyladder.runtime.distributed import Group
from storyladder.runtime.errors import OutOfMemory, PeerLost

BuildGPT = Callable[..., GPT]


@pytest.fixture(autouse=True)
def _group_of_one() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def gradients(model: GPT, parallel: DataParallel | None, **changes: Any) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=False)
    stepper = stepper_of(model, **{"micro_batch_size": 1} | changes)
    stepper.parallel = parallel
    stepper.accumulate_gradients(some_batch(), 0)
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_gradients_are_those_without_it_also_after_a_pass_outside_it(small_gpt: BuildGPT, micro: int) -> None:
    model = small_gpt()
    expected = gradients(model, None, micro_batch_size=micro)
    parallel = DataParallel(model, torch.device("cpu"))
    for _ in range(2):
        gradients(model, None)  # the rehearsal
        for found, other in zip(gradients(model, parallel, micro_batch_size=micro), expected, strict=True):
            torch.testing.assert_close(found, other)


def test_gradients_travel_once_a_step_whatever_the_micro_batches(small_gpt: BuildGPT) -> None:
    model, sent = small_gpt(), list[int]()
    parallel = DataParallel(model, torch.device("cpu"))

    def count(_, bucket):  # torch reads annotations, which are texts here
        sent.append(bucket.buffer().numel())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    assert parallel._engine is not None
    parallel._engine.register_comm_hook(None, count)
    gradients(model, parallel, micro_batch_size=1)
    assert sum(sent) == sum(parameter.numel() for parameter in model.parameters())


def test_only_the_last_backward_lies_outside_the_agreement(small_gpt: BuildGPT) -> None:
    model, done = small_gpt(), list[str]()
    parallel = DataParallel(model, torch.device("cpu"))
    model.transformer["wpe"].weight.register_hook(lambda _: done.append("backward"))

    class Agreeing(Group):
        """A group that notes its agreements."""

        @contextlib.contextmanager
        def agreement(self) -> Iterator[None]:
            yield
            done.append("agreed")

    gradients(model, parallel, group=Agreeing())
    assert done == ["backward"] * 3 + ["agreed", "backward"]


def test_the_engine_is_gone_before_the_group_is(small_gpt: BuildGPT) -> None:
    parallel, group = DataParallel(small_gpt(), torch.device("cpu")), Group()
    assert parallel._engine is not None
    engine = weakref.ref(parallel._engine)
    group.before_leaving(parallel.close)
    assert engine() is not None
    group.leave()
    assert engine() is None


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (torch.OutOfMemoryError("no room"), OutOfMemory, "set a smaller micro_batch_size in config.py"),
        (RuntimeError("[gloo/pair.cc:1] Connection closed by peer"), PeerLost, "is gone .Connection closed by peer"),
    ],
)
def test_what_fails_while_gradients_travel_is_told_in_a_line(
    small_gpt: BuildGPT, error: Exception, expected: type[Exception], words: str
) -> None:
    model = small_gpt()
    parallel = DataParallel(model, torch.device("cpu"))

    def fail(_: torch.Tensor) -> None:
        raise error

    model.transformer["wpe"].weight.register_hook(fail)
    with pytest.raises(expected, match=words):
        gradients(model, parallel, micro_batch_size=4)
