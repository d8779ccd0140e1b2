"""Every model on every text: the rows of the table, what changed against the best stage, and what was forgotten."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from storyladder.measuring.candidates import Candidate
from storyladder.measuring.forgetting import Forgetting, Nats, forgetting
from storyladder.measuring.protocols import stride_of
from storyladder.measuring.scoring import check_vocabulary, score
from storyladder.measuring.texts import Text
from storyladder.runtime.errors import CheckpointError
from storyladder.runtime.machine import Precision

MEASURED_ROW = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Rows for reports/evaluation.json, and forgetting."""

    rows: list[MEASURED_ROW]
    forgetting: list[Forgetting]

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {"rows": self.rows, "forgetting": [entry.record() for entry in self.forgetting]}


def measure_matrix(
    candidates: Sequence[Candidate],
    texts: Sequence[Text],
    protocol: str,
    *,
    stages: Sequence[str],
    device: torch.device,
    precision: Precision,
    check_stop: Callable[[], None] = lambda: None,
) -> Matrix:
    """Score every model on every text. `stages` are the ladder's, lowest first.

    DataError before anything is scored if a text and the vocabulary of a model do not fit; CheckpointError for
    weights that are not finite.
    """
    for candidate, text in itertools.product(candidates, texts):
        check_vocabulary(candidate, text)
    rows: list[MEASURED_ROW] = []
    nats: dict[tuple[str, str], Nats] = {}
    for candidate, text in itertools.product(candidates, texts):
        tally = score(candidate, text, protocol, device=device, precision=precision, check_stop=check_stop)
        if not math.isfinite(tally.nats):
            raise CheckpointError(
                f"{candidate.name} gives {tally.loss} nats per token on {text.name}: its weights are not finite; "
                "use another checkpoint"
            )
        rows.append({**_about(candidate, text, protocol, precision), **tally.record(), "change": None})
        if candidate.name in stages:
            nats[candidate.name, text.name] = tally.story_nats
    _add_changes(rows, stages)
    return Matrix(rows, forgetting(stages, [text.name for text in texts], nats))


def _about(candidate: Candidate, text: Text, protocol: str, precision: Precision) -> MEASURED_ROW:
    return {
        "checkpoint": candidate.name,
        "stage": candidate.stage,
        "step": candidate.step,
        "corpus": text.name,
        "protocol": protocol,
        "context": candidate.context,
        "stride": candidate.context if protocol == "windows" else stride_of(candidate.context),
        "precision": precision.name,
        "text_sha256": text.sha256,
        "weights_sha256": candidate.weights_sha256,
        "notes": list(candidate.notes),
    }


def _add_changes(rows: list[MEASURED_ROW], stages: Sequence[str]) -> None:
    """The relative change of bits per byte against the best stage on the same text, where a stage was scored."""
    for row in rows:
        same = [r["bits_per_byte"] for r in rows if r["corpus"] == row["corpus"] and r["checkpoint"] in stages]
        if same and min(same) > 0:
            row["change"] = row["bits_per_byte"] / min(same) - 1
