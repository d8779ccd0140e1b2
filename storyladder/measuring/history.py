"""What the run log of a stage, runs/STAGE.jsonl, tells about its training; smoothing and thinning for curves.

Knows no picture: plots.py and charts.py draw what this module reads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from storyladder.results import StageFiles
from storyladder.runtime.run_log import read_records
from storyladder.settings import Ladder, StageConfig

Floats = npt.NDArray[np.float64]
_TRAIN = ("step", "train_loss", "grad_norm", "lr")
_FEW_RECORDS = 100


@dataclasses.dataclass(frozen=True)
class History:
    """The training of one stage so far. Losses are in nats per token."""

    stage: StageConfig
    tokens_per_step: int
    vocab_size: int
    steps: Floats  # (n,) of the records of training losses
    train_loss: Floats  # (n,) means over `log_interval` steps
    grad_norm: Floats  # (n,) before clipping
    lr: Floats  # (n,)
    evaluations: list[dict[str, Any]]  # the records, in order: step, val_loss, perplexity, bits_per_byte, tokens
    start: dict[str, Any]  # the last start record: settings, data, machine, precision; empty if there is none
    finished: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def eval_steps(self) -> Floats:
        """The steps of the evaluations, (m,)."""
        return np.array([record["step"] for record in self.evaluations], dtype=np.float64)

    @property
    def val_loss(self) -> Floats:
        """Validation losses, (m,)."""
        return np.array([record["val_loss"] for record in self.evaluations], dtype=np.float64)

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest loss, whose weights the stage keeps; the first one of several equal."""
        return min(self.evaluations, key=lambda record: float(record["val_loss"]), default=None)

    @property
    def last_step(self) -> int:
        """The last recorded step."""
        return int(max([0.0, *self.steps[-1:], *self.eval_steps[-1:]]))

    @property
    def tokens(self) -> int:
        """Tokens read until the last recorded step."""
        return self.last_step * self.tokens_per_step

    @property
    def seconds(self) -> float:
        """Time spent on training steps, without evaluations, until the last evaluation or the end."""
        records = [*self.evaluations, *([self.finished] if self.finished else [])]
        return max([float(record.get("train_seconds") or 0.0) for record in records], default=0.0)

    @property
    def settings(self) -> dict[str, Any]:
        """The stage's settings as it was trained, or else as they are now."""
        stages = self.start.get("settings", {}).get("stages") or [dataclasses.asdict(self.stage)]
        return dict(stages[-1])

    @property
    def ln_vocabulary(self) -> float:
        """The loss of a model that knows nothing yet: every token is equally likely."""
        return math.log(self.vocab_size)


def read_history(ladder: Ladder, stage: StageConfig) -> History | None:
    """The history of a stage, or None if it has neither a training loss nor an evaluation yet."""
    path = StageFiles.of(ladder, stage).record
    records = read_records(path) if path.exists() else []
    rows = _in_order([record for record in records if record["event"] == "train"], _TRAIN[:2])
    evaluations = _in_order([record for record in records if record["event"] == "evaluation"], ("step", "val_loss"))
    if not rows and not evaluations:
        return None
    start: dict[str, Any] = next((record for record in reversed(records) if record["event"] == "start"), {})
    model = start.get("settings", {}).get("model") or dataclasses.asdict(ladder.model)
    trained = (start.get("settings", {}).get("stages") or [dataclasses.asdict(stage)])[-1]
    columns = np.array([[_number(row, key) for key in _TRAIN] for row in rows], dtype=np.float64).reshape(-1, 4)
    marks = [record for record in records if record["event"] in ("start", "finished")]
    return History(
        stage=stage,
        tokens_per_step=int(trained["batch_size"] * model["context_length"]),
        vocab_size=int(model["vocab_size"]),
        steps=columns[:, 0],
        train_loss=columns[:, 1],
        grad_norm=columns[:, 2],
        lr=columns[:, 3],
        evaluations=evaluations,
        start=start,
        finished=marks[-1] if marks and marks[-1]["event"] == "finished" else None,
    )


def histories_of(ladder: Ladder) -> list[History]:
    """The history of every stage that has one, in the order of the ladder."""
    found = (read_history(ladder, stage) for stage in ladder.stages)
    return [history for history in found if history is not None]


def _in_order(records: list[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Records with finite numbers, by rising step; one that goes back, after a rollback, drops those it redoes."""
    kept: list[dict[str, Any]] = []
    for record in records:
        if not all(math.isfinite(_number(record, key)) for key in keys):
            continue
        while kept and kept[-1]["step"] >= record["step"]:
            kept.pop()
        kept.append(record)
    return kept


def _number(record: dict[str, Any], key: str) -> float:
    """A recorded number; NaN if it is missing or is text."""
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def half_life_for(steps: Floats) -> int | None:
    """A half-life for the EMA of a training loss, in steps: 100 of 200,000, at least two records, rounded.

    None for fewer than 100 records: they need no smoothing, and an average would lag behind them visibly.
    """
    if len(steps) < _FEW_RECORDS:
        return None
    wanted = max(2 * float(np.median(np.diff(steps))), float(steps[-1]) / 2_000)
    power = 10.0 ** math.floor(math.log10(wanted))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * 0.999))


def ema(steps: Floats, values: Floats, half_life: float) -> Floats:
    """Exponential moving average, (n,), debiased: the first values are not pulled towards zero (Adam, section 3).

    A value that is k steps old has half the weight of one that is k - `half_life` steps old, however far the steps lie
    apart.
    """
    averages = np.empty_like(values)
    total = weight = previous = 0.0
    for i, (step, value) in enumerate(zip(steps.tolist(), values.tolist(), strict=True)):
        keep = 0.5 ** (max(1.0, step - previous) / half_life)
        total, weight, previous = keep * total + (1 - keep) * value, keep * weight + (1 - keep), step
        averages[i] = total / weight
    return averages


def thin(places: Floats, values: Floats, buckets: int = 600) -> list[int]:
    """Which points to draw: at most two per bucket of `places`, its lowest and its highest value. No spike is lost.

    `places` (n,) rise; they are positions on the axis, thus logarithms where it is logarithmic.
    """
    if len(places) <= 2 * buckets:
        return list(range(len(places)))
    edges = np.linspace(places[0], places[-1], buckets + 1)
    firsts = np.unique(np.searchsorted(places, edges[:-1])).tolist()
    kept: list[int] = []
    for first, end in zip(firsts, [*firsts[1:], len(places)], strict=True):
        kept += sorted({first + int(np.argmin(values[first:end])), first + int(np.argmax(values[first:end]))})
    return kept


def short(number: float) -> str:
    """A count for an axis: 950, 12k, 1.6M, 1.64B."""
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from `low` to `high` for a logarithmic axis: 1, 2 and 5 times powers of ten, or fewer."""
    if not 0 < low < high:
        return []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def even_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, evenly spaced."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power * most >= high - low)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]
