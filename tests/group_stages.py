"""What tests/test_group_faults.py starts in several processes: whole stages in which one process meets a fault.

Not a test itself. Usage, in an environment as of torchrun: tests/group_stages.py FOLDER PRECISION CASE=PORT ... FOLDER
holds the settings of each case, CASE.py; PORT leads to the case's store; findings are written to CASE.RANK.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from model import GPT  # noqa: E402
from storyladder.command_line import StageRun, load_ladder  # noqa: E402
from storyladder.runtime.errors import UserError  # noqa: E402
from storyladder.settings import DEFAULT_PRESET, ModelConfig  # noqa: E402
from storyladder.stage.loop import train_stage  # noqa: E402

RANK = int(os.environ["RANK"])
IsTooBig = Callable[[str, Sequence[Any]], bool]
Fault = Callable[[GPT, int, int], float]  # of the model, the number of the forward and its sequences; a factor


class NoMemoryFor(TorchDispatchMode):
    """This process runs out of memory once for each of the tests of an operation's name and arguments."""

    def __init__(self, too_big: list[IsTooBig]) -> None:
        super().__init__()
        self._too_big = list(too_big)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """torch's entry for every operation."""
        for is_too_big in self._too_big:
            if is_too_big(str(func), args):
                self._too_big.remove(is_too_big)
                raise torch.OutOfMemoryError("no room")
        return func(*args, **(kwargs or {}))


def only(rank: int, fault: Fault) -> Fault:
    """The fault in one process."""
    return lambda model, number, size: fault(model, number, size) if rank == RANK else 1.0


def too_big(model: GPT, number: int, size: int) -> float:
    """From the fourth step on only single sequences fit; the first took 80 forwards with its rehearsals, others 32."""
    if model.training and number > 150 and size > 1:
        raise torch.OutOfMemoryError("no room")
    return 1.0


def too_big_to_evaluate(model: GPT, _number: int, size: int) -> float:
    """Evaluations of more than sixteen sequences at a time do not fit."""
    if not model.training and size > 16:
        raise torch.OutOfMemoryError("no room")
    return 1.0


def nothing_fits(model: GPT, number: int, _size: int) -> float:
    """After three steps and the rehearsal of the first."""
    if model.training and number > 4:
        raise torch.OutOfMemoryError("no room")
    return 1.0


def bad_numbers(model: GPT, number: int, _size: int) -> float:
    """Twenty losses after the fifth step; and after the rollback to step 4 a weight, just before the save at step 8.

    The first forward is the rehearsal of the first step.
    """
    if model.training and number == 30:
        with torch.no_grad():
            model.transformer["wpe"].weight[0, 0] = float("nan")  # too late for the loss of this step
    return float("nan") if model.training and 6 < number <= 26 else 1.0


def fast_clock(_model: GPT, _number: int, _size: int) -> float:
    """From the first forward on every second counts for three."""
    if not hasattr(time, "unhurried"):
        time.unhurried = time.monotonic  # type: ignore[attr-defined]
        time.monotonic = lambda: 3 * time.unhurried()  # type: ignore[attr-defined]
    return 1.0


def dies_evaluating(model: GPT, number: int, _size: int) -> float:
    """In the first evaluation after five steps."""
    if not model.training and number >= 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


FAULTS: dict[str, list[Fault]] = {
    "memory": [only(0, too_big_to_evaluate), only(1, too_big)],
    "numbers": [only(1, bad_numbers)],
    "minutes": [only(1, fast_clock)],
    "nothing": [only(1, nothing_fits)],
    "death": [only(1, dies_evaluating)],
}
# The room for gradients, and AdamW's state.
NO_MEMORY: dict[str, list[IsTooBig]] = {
    "memory": [
        lambda name, args: name.startswith("aten.empty.") and len(args[0]) == 1 and args[0][0] > 5_000,
        lambda name, args: name.startswith("aten.zeros_like") and args[0].dim() == 1,  # of a bias: nothing else does so
    ]
}


def without_room_for(rows: int) -> Callable[[Any], torch.Tensor]:
    """torch.from_numpy that has no memory for the first array of so many rows."""
    from_numpy, left = torch.from_numpy, [rows]

    def failing(array: Any) -> torch.Tensor:
        if len(array) in left:
            left.clear()
            raise MemoryError
        return from_numpy(array)

    return failing


def play(folder: Path, case: str, precision: str) -> dict[str, object]:
    """Train the case's preset; what this process has seen of it."""
    ladder = load_ladder(folder / f"{case}.py", DEFAULT_PRESET)
    models: list[GPT] = []

    class Faulty(GPT):
        forwards = 0

        def hidden(self, idx_BT: torch.Tensor, cache: list[list[torch.Tensor]] | None = None) -> torch.Tensor:
            if self is models[0]:
                Faulty.forwards += self.training
            hidden_BTC = super().hidden(idx_BT, cache)
            return hidden_BTC * math.prod(fault(self, Faulty.forwards, len(idx_BT)) for fault in FAULTS[case])

    def build(config: ModelConfig) -> GPT:
        models.append(Faulty(config))
        return models[-1]

    if case == "memory" and RANK == 1:
        torch.from_numpy = without_room_for(64)  # this process's share of a batch
    minutes = 0.03 if case == "minutes" else None
    run = StageRun(ladder=ladder, stage=ladder.stage("tiny"), device="cpu", minutes=minutes, precision=precision)
    error: UserError | None = None
    try:
        with NoMemoryFor(NO_MEMORY.get(case, []) if RANK == 1 else []):
            train_stage(run, build)
    except UserError as caught:
        error = caught
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in models[0].parameters()))
    told = error.print_here if error else None
    return {"weights": digest.hexdigest(), "error": f"{type(error).__name__}: {error}", "told": told}


def main() -> None:
    """Play all cases and write what was found."""
    folder = Path(sys.argv[1])
    for case, port in (argument.split("=") for argument in sys.argv[3:]):
        os.environ["MASTER_PORT"] = port
        found = play(folder, case, sys.argv[2])
        (folder / f"{case}.{RANK}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
