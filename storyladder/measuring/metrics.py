"""The table of the scorecard's numbers. To add one, add a row to METRICS; everything else follows.

A number is a pure function of stories (`Story`) and of what their corpus contains (`Corpus`).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, Literal

from storyladder.measuring import story_text as text
from storyladder.measuring.continuation_bleu import bleu, bleu_signature
from storyladder.measuring.diversity import SELF_BLEU_SIGNATURE, Score, distinct, self_bleu
from storyladder.measuring.intervals import mean_interval, score_interval, share_interval
from storyladder.measuring.names import CorpusWords, hero_exchanged, hero_kept
from storyladder.measuring.story_text import Story

LONG_COPY = 20  # words
Better = Literal["higher", "lower", "closer"]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What the numbers of a corpus's stories refer to."""

    words: CorpusWords
    length: int  # words to which stories are cut before their diversity is compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A row of the scorecard; exactly one of the three functions is set."""

    name: str
    about: str  # one plain sentence
    better: Better  # closer: to the real stories
    share: Callable[[Story, Corpus], bool | None] | None = None  # of the stories for which it is True
    mean: Callable[[Story, Corpus], float | None] | None = None  # over stories
    score: Callable[[Sequence[Story], Corpus], Score | None] | None = None  # of all stories together
    equal_lengths: bool = False  # of stories with at least corpus.length words only
    signature: Callable[[], str] | None = None  # what others need to compute the same number


def _cut(stories: Sequence[Story], corpus: Corpus) -> list[list[str]]:
    """The first words of every story, all of which are long enough."""
    return [next(text.segments(story.text, corpus.length)) for story in stories]


def _is_long_enough(story: Story, corpus: Corpus) -> bool:
    return next(text.segments(story.text, corpus.length), None) is not None


def _bleu_forced(stories: Sequence[Story]) -> Score | None:
    forced = [story.forced for story in stories if story.forced is not None]
    return bleu(forced, [story.reference for story in stories]) if len(forced) == len(stories) else None


METRICS = (
    Metric(
        name="finished",
        about="Share of stories that end by themselves, with a whole sentence, before the limit of tokens.",
        better="higher",
        share=lambda story, corpus: text.is_finished(story),
    ),
    Metric(
        name="distinct_1",
        about="Different words divided by all words, over all stories cut to the same number of words.",
        better="closer",
        score=lambda stories, corpus: distinct(_cut(stories, corpus), 1),
        equal_lengths=True,
    ),
    Metric(
        name="distinct_2",
        about="Different pairs of words divided by all pairs, over all stories cut to the same number of words.",
        better="closer",
        score=lambda stories, corpus: distinct(_cut(stories, corpus), 2),
        equal_lengths=True,
    ),
    Metric(
        name="repeated_4grams",
        about="Share of the runs of 4 words that stood earlier in the same story (per piece of equal length).",
        better="lower",
        mean=lambda story, corpus: text.repeated_4grams(story, corpus.length),
    ),
    Metric(
        name="compression_ratio",
        about="How many times smaller zlib makes a story (per piece of equal length): repetition compresses well.",
        better="closer",
        mean=lambda story, corpus: text.compression_ratio(story, corpus.length),
    ),
    Metric(
        name="self_bleu",
        about="BLEU of each story with all the others as references: how alike the stories are, 0 to 100.",
        better="closer",
        score=lambda stories, corpus: self_bleu(_cut(stories, corpus)),
        equal_lengths=True,
        signature=lambda: SELF_BLEU_SIGNATURE,
    ),
    Metric(
        name="bleu",
        about="BLEU of the continuation against the real one; in the row of real stories, against another story's.",
        better="higher",
        score=lambda stories, corpus: bleu([s.rest for s in stories], [s.reference for s in stories]),
        signature=bleu_signature,
    ),
    Metric(
        name="bleu_2",
        about="The same BLEU with single words and pairs only.",
        better="higher",
        score=lambda stories, corpus: bleu([s.rest for s in stories], [s.reference for s in stories], order=2),
        signature=lambda: bleu_signature(2),
    ),
    Metric(
        name="bleu_forced",
        about="BLEU of the likeliest next tokens, chosen with the real story in sight, against the real continuation.",
        better="higher",
        score=lambda stories, corpus: _bleu_forced(stories),
        signature=bleu_signature,
    ),
    Metric(
        name="bleu_with_prompt",
        about="BLEU of whole stories: the prompt, which both sides share, counts too and flatters.",
        better="higher",
        score=lambda stories, corpus: bleu([s.text for s in stories], [s.prompt + s.reference for s in stories]),
        signature=bleu_signature,
    ),
    Metric(
        name="unclosed_quotes",
        about="Share of stories with a double quote that is never closed or never opened; cut ends are not judged.",
        better="lower",
        share=lambda story, corpus: text.has_unclosed_quote(story),
    ),
    Metric(
        name="sentence_length",
        about="Words per sentence.",
        better="closer",
        mean=lambda story, corpus: text.sentence_length(story),
    ),
    Metric(
        name="reading_grade",
        about="Reading ease as a US school grade, from letters per word and words per sentence (ARI).",
        better="closer",
        mean=lambda story, corpus: text.reading_grade(story),
        signature=lambda: f"textstat {importlib.metadata.version('textstat')} automated_readability_index",
    ),
    Metric(
        name="unknown_words",
        about="Share of the words after the prompt that the training text does not contain.",
        better="lower",
        mean=lambda story, corpus: text.unknown_words(story, corpus.words.vocabulary),
    ),
    Metric(
        name="hero_kept",
        about="Share of the stories with a named hero whose name returns in the last third.",
        better="higher",
        share=lambda story, corpus: hero_kept(story, corpus.words.names),
    ),
    Metric(
        name="hero_exchanged",
        about="Share of the stories with a named hero in whose last third another name stands instead.",
        better="lower",
        share=lambda story, corpus: hero_exchanged(story, corpus.words.names),
    ),
    Metric(
        name="introduced_first",
        about="Of the things called both 'a ...' and 'the ...', the share introduced with 'a': order of sentences.",
        better="higher",
        mean=lambda story, corpus: text.introduced_first(story),
    ),
    Metric(
        name="longest_copy",
        about="Words of the longest passage after the prompt that is in the training text, word for word.",
        better="closer",
        mean=lambda story, corpus: float(story.copied_words),
    ),
    Metric(
        name="long_copies",
        about=f"Share of stories that copy more than {LONG_COPY} words in a row from the training text.",
        better="lower",
        share=lambda story, corpus: story.copied_words > LONG_COPY,
    ),
)


def measure(metric: Metric, stories: Sequence[Story], corpus: Corpus, seed: int = 0) -> dict[str, Any]:
    """Value and 95 % interval of one number; all three are None where fewer than two stories have it."""
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "n": 0}
    if metric.score is not None:
        if metric.equal_lengths:
            stories = [story for story in stories if _is_long_enough(story, corpus)]
        score = metric.score(stories, corpus) if len(stories) > 1 else None
        if score is not None:
            low, high = score_interval(score, len(stories))
            found = {"value": score(range(len(stories))), "low": low, "high": high, "n": len(stories)}
    else:
        one = metric.share or metric.mean
        assert one is not None
        values = [float(value) for story in stories if (value := one(story, corpus)) is not None]
        if len(values) > 1:
            share = metric.share is not None
            low, high = share_interval(int(sum(values)), len(values)) if share else mean_interval(values, seed)
            found = {"value": sum(values) / len(values), "low": low, "high": high, "n": len(values)}
    signature = {} if metric.signature is None else {"signature": metric.signature()}
    return {**found, "better": metric.better, "about": metric.about, **signature}
