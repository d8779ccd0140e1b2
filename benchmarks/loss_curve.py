"""Compare the losses of our step with those of the plain loop, from the same weights, on the same batches.

Dropout is 0, because the two draw different masks, and the batch is smaller; everything else is from the preset. In
fp32 the curves must agree up to rounding, which grows with high learning rates and tiny batches. In bf16, the noise
level is the difference between the plain loop in bf16 and in fp32.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.racers import Contender, Workload, entry_of, put_start_weights
from benchmarks.turns import Measured, race
from storyladder.runtime.errors import report
from storyladder.runtime.machine import pick_device, pick_precision
from storyladder.settings import Ladder, check

_STEPS_PER_TURN = 10
_SHOWN_EVERY = 20
_NO_LIMIT = 1e9  # seconds

Difference = tuple[float, int]  # nats per token, and the step at which it occurs


def compare_curves(
    ladder: Ladder, *, steps: int, batch_size: int, device: str, precisions: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Both losses every 20 steps and their largest difference, by default in fp32 and what Storyladder chooses."""
    stage = dataclasses.replace(ladder.stages[0], batch_size=batch_size, micro_batch_size=None)
    model = dataclasses.replace(ladder.model, dropout=0.0)
    ladder = check(dataclasses.replace(ladder, model=model, stages=(stage, *ladder.stages[1:])))
    if precisions is None:
        chosen = pick_precision(pick_device(device)).name
        precisions = ("fp32", "bf16") if chosen == "bf16" else ("fp32",)
    curves: dict[str, list[float]] = {}
    failures: list[str] = []
    for precision in precisions:
        for name, measured in _race(ladder, precision, steps, device).items():
            losses = [loss for reading in measured.readings for loss in reading["losses"]]
            if measured.failure is not None:
                failures.append(f"{name}: {measured.failure}")
            curves[name] = losses[:steps]
    differences = {each: _largest_difference(curves[_ours(each)], curves[_plain(each)]) for each in precisions}
    if "bf16" in precisions:
        differences["plain bf16 and plain fp32"] = _largest_difference(curves[_plain("bf16")], curves[_plain("fp32")])
    lines = [*_lines(curves, differences), *failures]
    tokens = f"{batch_size} x {model.context_length} tokens"
    lines.insert(0, f"{steps} steps of {tokens}, dropout 0, same weights and batches.")
    numbers = {name.replace(" ", "_"): value and value[0] for name, value in differences.items()}
    return {"lines": lines, "json": {"steps": steps, "largest_difference": numbers, "failures": failures}}


def _race(ladder: Ladder, precision: str, steps: int, device: str) -> dict[str, Measured]:
    with tempfile.TemporaryDirectory(prefix="storyladder-") as folder:
        weights = Path(folder) / "start.pt"
        put_start_weights(ladder, device, weights)
        shared = Workload(ladder=ladder, device=device, steps_per_turn=_STEPS_PER_TURN, weights=weights)
        contenders = (
            Contender(name=_ours(precision), kind="ours", precision=precision, compact=True),
            Contender(name=_plain(precision), kind="plain", precision=precision),
        )
        entries = [entry_of(each, shared) for each in contenders]
        return race(entries, warmups=0, turns=-(-steps // _STEPS_PER_TURN), seconds=_NO_LIMIT, report=report)


def _ours(precision: str) -> str:
    return f"Storyladder {precision}"


def _plain(precision: str) -> str:
    return f"plain {precision}"


def _largest_difference(first: list[float], second: list[float]) -> Difference | None:
    """The largest difference over all steps; None if a curve is incomplete."""
    if not first or len(first) != len(second):
        return None
    return max((abs(a - b), step) for step, (a, b) in enumerate(zip(first, second, strict=True)))


def _lines(curves: dict[str, list[float]], differences: dict[str, Difference | None]) -> list[str]:
    lines = ["", f"| step | {' | '.join(curves)} |", f"|{' --- |' * (1 + len(curves))}"]
    length = max(len(curve) for curve in curves.values())
    for step in [*range(0, length, _SHOWN_EVERY), *([length - 1] if length and (length - 1) % _SHOWN_EVERY else [])]:
        cells = [f"{curve[step]:.6f}" if step < len(curve) else "" for curve in curves.values()]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    lines.append("")
    for name, value in differences.items():
        found = "not measured" if value is None else f"{value[0]:.2g} nats per token, at step {value[1]}"
        lines.append(f"Largest difference, {name}: {found}.")
    return lines
