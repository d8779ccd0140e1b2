"""How much a set of stories repeats itself: distinct-n (Li et al. 2016) and self-BLEU (Zhu et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from storyladder.measuring.story_text import ngrams

Score = Callable[[Sequence[int]], float]  # of the stories at these places
Counts = npt.NDArray[np.int32]

_ORDERS = 4
SELF_BLEU_SIGNATURE = "nrefs:all others|case:lc|tok:words|smooth:exp"


def distinct(stories: Sequence[list[str]], n: int) -> Score:
    """Different runs of n words divided by all runs, over stories of equally many words."""
    runs = [ngrams(story, n) for story in stories]

    def score(places: Sequence[int]) -> float:
        chosen = [runs[place] for place in places]
        return len(set().union(*chosen)) / sum(map(len, chosen))

    return score


def self_bleu(stories: Sequence[list[str]]) -> Score:
    """Corpus BLEU (0 to 100) of each story with all others as references, over stories of equally many words.

    Only the counting is ours, because sacrebleu would read all references again for each story and each interval.
    """
    from sacrebleu.metrics.bleu import BLEU

    shared = [_shared_runs(stories, n) for n in range(1, _ORDERS + 1)]
    totals = [len(stories[0]) - n + 1 for n in range(1, _ORDERS + 1)]

    def score(places: Sequence[int]) -> float:
        chosen = np.asarray(places)
        correct = [_matches(counts[chosen]) for counts in shared]
        length = len(stories[0]) * len(chosen)
        result = BLEU.compute_bleu(
            correct, [total * len(chosen) for total in totals], length, length, smooth_method="exp"
        )
        return float(result.score)

    return score


def _shared_runs(stories: Sequence[list[str]], n: int) -> Counts:
    """How often each story has each run of n words that at least two of the stories have, (stories, runs)."""
    runs = [ngrams(story, n) for story in stories]
    owners: dict[tuple[str, ...], set[int]] = {}
    for place, own in enumerate(runs):
        for run in own:
            owners.setdefault(run, set()).add(place)
    column = {run: i for i, run in enumerate(run for run, places in owners.items() if len(places) > 1)}
    counts = np.zeros((len(stories), len(column)), dtype=np.int32)
    for place, own in enumerate(runs):
        for run in own:
            if run in column:
                counts[place, column[run]] += 1
    return counts


def _matches(counts_SR: Counts) -> int:
    """Runs of all stories that another story has too, each counted at most as often as the other has it."""
    if counts_SR.shape[1] == 0 or len(counts_SR) < 2:
        return 0
    top_2R = np.partition(counts_SR, -2, axis=0)[-2:]  # second largest and largest of each run
    most_of_others_SR = np.where(counts_SR == top_2R[1], top_2R[0], top_2R[1])
    return int(np.minimum(counts_SR, most_of_others_SR).sum())
