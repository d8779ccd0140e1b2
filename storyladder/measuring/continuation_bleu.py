"""BLEU of told continuations against the real ones, by sacrebleu, with the signature that others need to repeat it."""

from __future__ import annotations

from collections.abc import Sequence

from storyladder.measuring.diversity import Score


def bleu(told: Sequence[str], real: Sequence[str], *, order: int = 4) -> Score:
    """Corpus BLEU (0 to 100) with runs of up to `order` words, one reference each, as a function of the places."""
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    # Counts of one story add up to those of many: each is counted once, however many subsets are scored.
    metric = BLEU(max_ngram_order=order, effective_order=True, force=True)
    one_by_one = [metric.sentence_score(text, [reference]) for text, reference in zip(told, real, strict=True)]
    counts = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in one_by_one])

    def score(places: Sequence[int]) -> float:
        *runs, told_length, real_length = counts[np.asarray(places)].sum(axis=0).tolist()
        whole = BLEU.compute_bleu(
            runs[:order], runs[order:], told_length, real_length, smooth_method="exp", max_ngram_order=order
        )
        return float(whole.score)

    return score


def bleu_signature(order: int = 4) -> str:
    """sacrebleu's description of what `bleu` measures; the order is ours, sacrebleu leaves it out."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(max_ngram_order=order, force=True)
    metric.corpus_score(["a"], [["a"]])
    return f"{metric.get_signature()}|order:{order}"
