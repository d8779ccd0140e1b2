"""What tests/test_distributed.py starts in several processes: agreements of a group, gradients; prints what it found.

Not a test itself. Usage: torchrun --nproc_per_node=2 tests/group_program.py FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from model import GPT  # noqa: E402
from storyladder.learning.data_parallel import DataParallel  # noqa: E402
from storyladder.learning.device_steps import DeviceSteps  # noqa: E402
from storyladder.learning.optimizer import build_optimizer  # noqa: E402
from storyladder.learning.step import Stepper  # noqa: E402
from storyladder.learning.vocabulary import CompactVocabulary  # noqa: E402
from storyladder.runtime.distributed import Group, joined_group  # noqa: E402
from storyladder.runtime.errors import DataError  # noqa: E402
from storyladder.runtime.machine import Precision  # noqa: E402
from storyladder.runtime.signals import StopRequest, stop_on_signals  # noqa: E402
from storyladder.settings import ModelConfig, StageConfig  # noqa: E402

MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=16, context_length=16, vocab_size=40, dropout=0.2)
STAGE = StageConfig(name="tiny", corpus="tiny", script="train_tiny.py", result_file="", seed=7, grad_clip=1e6)
MUON = dataclasses.replace(STAGE, optimizer="muon", max_lr=0.02, wte_lr=0.01, wpe_lr=0.01, vector_lr=0.01)


def stepper_of(model: GPT, stage: StageConfig, vocabulary: CompactVocabulary, group: Group) -> Stepper:
    """On micro-batches of one sequence, in torch's engine where there is a group."""
    stepper = Stepper(
        model,
        build_optimizer(model, stage),
        stage,
        vocabulary=vocabulary,
        precision=Precision(torch.float32, "a test wants it", "cpu"),
        micro_batch_size=1,
        group=group,
    )
    stepper.parallel = None if group.is_alone else DataParallel(model, torch.device("cpu"))
    return stepper


def gradients_of_a_step(group: Group) -> dict[str, torch.Tensor]:
    """Loss and gradients in fp64 of a step with four sequences, dropout, and 11 token types that share a row."""
    torch.manual_seed(1)
    vocabulary = CompactVocabulary(torch.arange(40) < 29)
    model = GPT(ModelConfig(**{**vars(MODEL), "vocab_size": vocabulary.n_rows})).double()
    ids = torch.randint(29, (4, 13), generator=torch.Generator().manual_seed(1))[group.share_of(4)]
    result = stepper_of(model, STAGE, vocabulary, group).step((ids[:, :-1], ids[:, 1:]), 5, 1e-3)
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**found, "loss": torch.tensor(result.train_loss), "norm": torch.tensor(result.grad_norm)}


def weights_moved_by_muon(group: Group) -> dict[str, torch.Tensor]:
    """Weights in fp64 after two steps of Muon with four sequences."""
    torch.manual_seed(2)
    model = GPT(dataclasses.replace(MODEL, dropout=0.0)).double()
    stepper = stepper_of(model, MUON, CompactVocabulary(torch.ones(40, dtype=torch.bool)), group)
    for step in range(2):
        ids = torch.randint(40, (4, 13), generator=torch.Generator().manual_seed(step))[group.share_of(4)]
        stepper.step((ids[:, :-1], ids[:, 1:]), step, 0.02)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def weights_of_steps_ahead(group: Group) -> dict[str, torch.Tensor]:
    """Weights after three steps ahead as on a GPU, with four sequences in micro-batches of one, and the losses."""
    torch.manual_seed(3)
    read = list[int]()

    class Watched(GPT):
        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            read.append(len(idx_BT))
            return super().hidden(idx_BT, cache)

    model = Watched(dataclasses.replace(MODEL, dropout=0.0))
    stage = dataclasses.replace(STAGE, batch_size=4)
    ids = np.random.default_rng(0).integers(0, 40, 400).astype(np.uint16)
    stepper = stepper_of(model, stage, CompactVocabulary(torch.ones(40, dtype=torch.bool)), group)
    steps = DeviceSteps(stepper, [ids], 12, torch.device("cpu"))
    starts = list(np.random.default_rng(1).integers(0, 380, (3, 4)))
    results = steps.take(0, starts, [1e-3] * 3)
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    numbers = [[result.train_loss, result.grad_norm] for result in results]
    return {**found, "loss and norm": torch.tensor(numbers), "sequences": torch.tensor(sum(read))}


def error_of(action: Callable[[], object]) -> str:
    """What it raises, in words."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def agreements(group: Group, stop: StopRequest) -> dict[str, object]:
    """What each process sees of what another one meets."""

    def only(rank: int, error: Exception) -> Callable[[], int]:
        def action() -> int:
            if group.rank == rank:
                raise error
            return group.rank

        return action

    full = torch.OutOfMemoryError("full")
    payload = {"a": [1, None, float("inf")], "t": torch.arange(3) if group.is_first else None, "path": "x"}
    received = group.on_first(lambda: payload)
    found: dict[str, object] = {
        "highest": group.highest([group.rank, -group.rank]),
        "sum": group.sum(0.5 + group.rank),
        "received": [received["a"], received["t"].tolist(), str(received["t"].dtype)],
        "own": group.together(lambda: 10 + group.rank),
        "share": list(range(6))[group.share_of(6)],
        "user": error_of(lambda: group.together(only(1, DataError("cut")))),
        "memory": error_of(lambda: group.together(only(0, full))),
        "fail": error_of(lambda: group.fail(full) if group.is_first else group.together(lambda: None)),
        "first": error_of(lambda: group.on_first(only(0, DataError("locked")))),
    }
    before = stop.requested
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
    alone = stop.requested
    group.together(lambda: None)
    found["stop"] = [before, alone, stop.requested, stop.take_save_request(), stop.take_save_request()]
    found["interrupted"] = error_of(lambda: group.together(stop.check_here))
    return found


def lose_the_other(group: Group) -> NoReturn:
    """The second process dies, and the first says what it sees."""
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    tick = time.monotonic()
    said = error_of(lambda: group.highest([1]))
    print(json.dumps({"lost": said, "seconds": time.monotonic() - tick}), flush=True)
    os._exit(0)


def main() -> None:
    """Write gradients and findings of this process into the folder."""
    folder = Path(sys.argv[1])
    with stop_on_signals() as stop, joined_group(stop) as group:
        torch.save(gradients_of_a_step(group), folder / f"gradients{group.rank}of{group.world_size}.pt")
        torch.save(weights_moved_by_muon(group), folder / f"muon{group.rank}.pt")
        torch.save(weights_of_steps_ahead(group), folder / f"ahead{group.rank}.pt")
        found = agreements(group, stop)
        (folder / f"agreements{group.rank}.json").write_text(json.dumps(found), encoding="utf-8")
        print("only the first is heard", flush=True)
        lose_the_other(group)


if __name__ == "__main__":
    main()
