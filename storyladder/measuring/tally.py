"""Adding up what scored tokens cost: nats, bytes, end-of-text tokens; loss, perplexity and bits per byte from them.

Knows no model: it takes the nats of each target.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from storyladder.measuring.protocols import Batch


@dataclasses.dataclass
class Tally:
    """What has been scored so far."""

    story_nats: npt.NDArray[np.float64]  # of every story, EOT included
    eot_nats: float = 0.0
    tokens: int = 0  # targets scored
    eot_targets: int = 0
    text_bytes: int = 0  # UTF-8 bytes scored; EOT has none

    @classmethod
    def of(cls, n_stories: int) -> Tally:
        """Nothing scored yet of that many stories."""
        return cls(np.zeros(n_stories))

    def add(
        self, batch: Batch, nats_N: npt.NDArray[np.floating], *, eot: int | None, one_story: bool
    ) -> npt.NDArray[np.int64]:
        """Add the nats of a batch's scored targets, row by row; returns those targets, (N,).

        A row belongs to `one_story`, or else a new story begins after every EOT.
        """
        is_eot_BT = batch.targets_BT == (-1 if eot is None else eot)
        story_BT = np.broadcast_to(batch.story_B[:, None], is_eot_BT.shape)
        if not one_story:
            story_BT = story_BT + is_eot_BT.cumsum(axis=1) - is_eot_BT
        wide_N, is_eot_N, story_N = nats_N.astype(np.float64), is_eot_BT[batch.scored_BT], story_BT[batch.scored_BT]
        assert len(wide_N) == len(story_N)
        if len(story_N):
            first = int(story_N.min())
            sums = np.bincount(story_N - first, weights=wide_N)
            self.story_nats[first : first + len(sums)] += sums
        self.eot_nats += float(wide_N[is_eot_N].sum())
        self.tokens += len(wide_N)
        self.eot_targets += int(is_eot_N.sum())
        return batch.targets_BT[batch.scored_BT]

    @property
    def nats(self) -> float:
        """What all targets cost."""
        return math.fsum(self.story_nats)

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / max(1, self.tokens)

    def record(self) -> dict[str, float | int]:
        """Every number that follows, for a row of reports/evaluation.json."""
        bits = 1 / math.log(2) / max(1, self.text_bytes)
        return {
            "loss": self.loss,
            "nats": self.nats,
            "perplexity": math.exp(min(self.loss, 700.0)),
            "bits_per_byte": self.nats * bits,
            "bits_per_byte_text": (self.nats - self.eot_nats) * bits,
            "tokens": self.tokens,
            "bytes": self.text_bytes,
            "eot_targets": self.eot_targets,
            "stories": len(self.story_nats),
        }
