"""The losses of the product's step beside those of the plain loop, from the same weights, on the same batches.

Dropout is 0, because the two draw their masks differently; everything else is the preset's, but for a smaller batch.
In fp32 the curves must be equal but for rounding, which grows where rates are high and batches tiny. In bf16, noise is
what lies between the plain loop in bf16 and the one in fp32.
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

Difference = tuple[float, int]  # nats per token, and the step where the curves are so far apart


def compare_curves(
    ladder: Ladder, *, steps: int, batch_size: int, device: str, number_formats: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Both losses every 20 steps and the largest difference, for fp32 and for what the product chooses."""
    stage = dataclasses.replace(ladder.stages[0], batch_size=batch_size, micro_batch_size=None)
    model = dataclasses.replace(ladder.model, dropout=0.0)
    ladder = check(dataclasses.replace(ladder, model=model, stages=(stage, *ladder.stages[1:])))
    if number_formats is None:
        chosen = pick_precision(pick_device(device)).name
        number_formats = ("fp32", "bf16") if chosen == "bf16" else ("fp32",)
    curves: dict[str, list[float]] = {}
    failures: list[str] = []
    for number_format in number_formats:
        for name, measured in _race(ladder, number_format, steps, device).items():
            losses = [loss for reading in measured.readings for loss in reading["losses"]]
            if measured.failure is not None:
                failures.append(f"{name}: {measured.failure}")
            curves[name] = losses[:steps]
    differences = {each: _largest_difference(curves[_ours(each)], curves[_plain(each)]) for each in number_formats}
    if "bf16" in number_formats:
        differences["plain bf16 and plain fp32"] = _largest_difference(curves[_plain("bf16")], curves[_plain("fp32")])
    lines = [*_lines(curves, differences), *failures]
    tokens = f"{batch_size} x {model.context_length} tokens"
    lines.insert(0, f"{steps} steps of {tokens}, dropout 0, same weights and batches.")
    numbers = {name.replace(" ", "_"): value and value[0] for name, value in differences.items()}
    return {"lines": lines, "json": {"steps": steps, "largest_difference": numbers, "failures": failures}}


def _race(ladder: Ladder, number_format: str, steps: int, device: str) -> dict[str, Measured]:
    with tempfile.TemporaryDirectory(prefix="storyladder-") as folder:
        weights = Path(folder) / "start.pt"
        put_start_weights(ladder, device, weights)
        shared = Workload(ladder=ladder, device=device, steps_per_turn=_STEPS_PER_TURN, weights=weights)
        contenders = (
            Contender(name=_ours(number_format), kind="ours", number_format=number_format, compact=True),
            Contender(name=_plain(number_format), kind="plain", number_format=number_format),
        )
        entries = [entry_of(each, shared) for each in contenders]
        return race(entries, warmups=0, turns=-(-steps // _STEPS_PER_TURN), seconds=_NO_LIMIT, say=report)


def _ours(number_format: str) -> str:
    return f"Storyladder {number_format}"


def _plain(number_format: str) -> str:
    return f"plain {number_format}"


def _largest_difference(first: list[float], second: list[float]) -> Difference | None:
    """Over all steps; None if one of the curves is not whole."""
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
        words = "not measured" if value is None else f"{value[0]:.2g} nats per token, at step {value[1]}"
        lines.append(f"Largest difference, {name}: {words}.")
    return lines
