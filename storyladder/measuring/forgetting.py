"""What later stages forgot: how much worse they are on a corpus than the best stage was, with an interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from storyladder.settings import Ladder

LIMIT = 0.05  # a stage that is worse by more than this, beyond the noise, gets a warning
_DRAWS = 2_000
_FEWEST_STORIES = 10  # fewer say nothing about the spread

Nats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Forgetting:
    """A later stage beside the best one on a corpus; changes are relative, +0.07 is 7 % worse."""

    stage: str
    corpus: str
    best_stage: str
    change: float  # of bits per byte
    low: float | None  # 95 % interval; None: too few stories
    high: float | None

    @property
    def is_beyond_noise(self) -> bool:
        """Whether it is worse by more than LIMIT, with the whole interval."""
        return self.low is not None and self.low > LIMIT

    @property
    def sentence(self) -> str:
        """In words."""
        how = "no interval: too few stories"
        if self.low is not None and self.high is not None:
            how = f"95 % interval {self.low:+.1%} to {self.high:+.1%}"
        return (
            f"stage {self.stage} is {self.change:.1%} worse on {self.corpus} than stage {self.best_stage} was ({how})"
        )

    def record(self) -> dict[str, str | float | None]:
        """An entry of reports/evaluation.json."""
        return {**dataclasses.asdict(self), "sentence": self.sentence}


def advice(ladder: Ladder, stage_name: str, corpus: str) -> str:
    """What would keep more of a corpus, for the end of a warning; empty if the stage has no earlier text of it."""
    stage = ladder.stage(stage_name)
    earlier = {other.corpus for other in ladder.stages[: ladder.stages.index(stage)]} - {stage.corpus}
    if corpus not in earlier:
        return ""
    replay = dict(stage.replay or {})
    replay[corpus] = round(min(0.5, max(0.1, 2 * replay.get(corpus, 0.0))), 3)
    return f"; replay={replay} for this stage in config.py would keep more of it"


def forgetting(stages: Sequence[str], corpora: Sequence[str], nats: Mapping[tuple[str, str], Nats]) -> list[Forgetting]:
    """Every stage above the best one on each corpus, from the nats of each story by (stage, corpus)."""
    found = []
    for corpus in corpora:
        there = [stage for stage in stages if (stage, corpus) in nats]
        if not there:
            continue
        best = min(there, key=lambda stage: nats[stage, corpus].sum())
        for stage in there[there.index(best) + 1 :]:
            mine, theirs = nats[stage, corpus], nats[best, corpus]
            low, high = paired_interval(mine, theirs)
            found.append(Forgetting(stage, corpus, best, float(mine.sum() / theirs.sum()) - 1, low, high))
    return found


def paired_interval(mine: Nats, theirs: Nats, *, seed: int = 0) -> tuple[float | None, float | None]:
    """95 % percentile interval of sum(mine) / sum(theirs) - 1: a bootstrap over stories, the same ones for both.

    The bytes are the same, so this is the relative change of bits per byte. None for fewer than ten stories.
    Source: paired differences as in Miller 2024, arXiv 2411.00640.
    """
    assert mine.shape == theirs.shape
    if len(mine) < _FEWEST_STORIES:
        return None, None
    generator = np.random.default_rng(seed)
    changes = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        drawn = generator.integers(0, len(mine), len(mine))
        changes[draw] = mine[drawn].sum() / theirs[drawn].sum() - 1
    low, high = np.percentile(changes, (2.5, 97.5))
    return float(low), float(high)
