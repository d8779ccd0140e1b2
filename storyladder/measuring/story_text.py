"""Numbers of one story's text: its end, quotes, sentences, repetitions and words. Pure functions."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterator, Sequence

OPENING_WORDS = 12  # the longest prompt
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")  # don't and merry-go-round are one word each
_CLOSERS = "\"'\u201d\u2019)*_"  # what may follow the last sentence's end
_SENTENCE_END = re.compile(rf"[.!?\u2026]+[{re.escape(_CLOSERS)}]*(?=\s|$)")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St)\.$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Story:
    """A story by a model or a real one, and what it is compared to."""

    prompt: str  # the opening of a real story
    rest: str  # how it continues
    ended: bool  # whether the end of the story came before the limit of tokens
    reference: str = ""  # how the real story continues
    forced: str | None = None  # the model's choice at each token of the real story; None for a real story
    copied_words: int = 0  # in the longest passage of `rest` that is in the training text

    @property
    def text(self) -> str:
        """The whole story, prompt included."""
        return self.prompt + self.rest


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and numbers."""
    return [word.lower().replace("\u2019", "'") for word in WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """The sentences of a text that have a word in them; the end of a paragraph ends one too."""
    found = []
    for paragraph in _PARAGRAPH_END.split(text):
        start = 0
        for match in _SENTENCE_END.finditer(paragraph):
            if not _ABBREVIATION.search(paragraph[start : match.end()]):
                found.append(paragraph[start : match.end()])
                start = match.end()
        found.append(paragraph[start:])
    return [sentence.strip() for sentence in found if WORD.search(sentence)]


def opening(text: str) -> str:
    """The first sentence of a story, or its first 12 words if the sentence is longer."""
    ends = [match.end() for match in WORD.finditer(text)][:OPENING_WORDS]
    sentence = next((match.end() for match in _SENTENCE_END.finditer(text) if WORD.search(text[: match.end()])), None)
    return text[: min(sentence or len(text), ends[-1] if ends else 0)]


def is_finished(story: Story) -> bool:
    """Whether the story ended by itself, and with a whole sentence."""
    last = story.text.rstrip()
    return story.ended and last.rstrip(_CLOSERS)[-1:] in tuple(".!?\u2026")


def has_unclosed_quote(story: Story) -> bool | None:
    """Whether a double quote is never closed, or closed without being opened; None if no paragraph can be judged.

    Speech may continue in the next paragraph, which then opens with a quote again. The last paragraph of a story that
    was cut at the limit of tokens may break off in mid-speech.
    """
    paragraphs = _PARAGRAPH_END.split(story.text)
    following = [*(paragraph.lstrip()[:1] in ('"', "\u201c") for paragraph in paragraphs[1:]), False]
    judged = list(zip(paragraphs, following, strict=True))[: None if story.ended else -1]
    return any(_is_unbalanced(paragraph, continues) for paragraph, continues in judged) if judged else None


def _is_unbalanced(paragraph: str, continues: bool) -> bool:
    """Whether quotes do not match; the last may stay open if the speech continues in the next paragraph."""
    if paragraph.count('"') % 2 and not continues:
        return True
    depth = 0
    for mark in re.findall("[\u201c\u201d]", paragraph):
        depth += 1 if mark == "\u201c" else -1
        if depth not in (0, 1):
            return True
    return depth != 0 and not continues


def sentence_length(story: Story) -> float | None:
    """Words per sentence; None without a sentence."""
    lengths = [len(words(sentence)) for sentence in sentences(story.text)]
    return sum(lengths) / len(lengths) if lengths else None


def reading_grade(story: Story) -> float | None:
    """Automated Readability Index (Senter and Smith 1967), a US school grade; None without words.

    From letters per word and words per sentence. It counts no syllables: textstat fetches a dictionary for those. Its
    Coleman-Liau index needs none either, but has 0.058 where the paper has 0.0588 (textstat 0.7.13).
    """
    import textstat  # here, because it is an extra and takes a second

    return float(textstat.automated_readability_index(story.text)) if words(story.text) else None


def segments(text: str, length: int) -> Iterator[list[str]]:
    """The words of a text in pieces of `length` words; an incomplete last piece is left out.

    Equal lengths make the numbers of short and long stories comparable, and the end of a long story counts too.
    """
    all_words = words(text)
    return (all_words[start : start + length] for start in range(0, len(all_words) - length + 1, length))


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n items."""
    return [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]


def repeated_4grams(story: Story, length: int) -> float | None:
    """Share of the 4-word runs that stood earlier in the same segment; None for a story shorter than a segment."""
    shares = []
    for segment in segments(story.text, length):
        runs = ngrams(segment, 4)
        shares.append(1 - len(set(runs)) / len(runs))
    return sum(shares) / len(shares) if shares else None


def compression_ratio(story: Story, length: int) -> float | None:
    """Bytes of a segment divided by its bytes after zlib, mean over segments; a loop compresses well."""
    ratios = []
    for segment in segments(story.text, length):
        raw = " ".join(segment).encode("utf-8")
        ratios.append(len(raw) / len(zlib.compress(raw, 9)))
    return sum(ratios) / len(ratios) if ratios else None


def unknown_words(story: Story, vocabulary: frozenset[str]) -> float | None:
    """Share of the words after the prompt that the training text does not contain; None without words."""
    rest = words(story.rest)
    return sum(word not in vocabulary for word in rest) / len(rest) if rest else None


_INDEFINITE = re.compile(r"\b(?:an?|one|some)((?: [a-z'-]+){1,3})", re.IGNORECASE)
_DEFINITE = re.compile(r"\bthe ([a-z'-]{3,})", re.IGNORECASE)


def introduced_first(story: Story) -> float | None:
    """Of the things that are called both `a ...` and `the ...`, the share introduced with `a`; None if there are none.

    "A dog barked. The dog ran." introduces the dog first. In shuffled sentences half of the things are, by chance.
    """
    first_a: dict[str, int] = {}
    for match in _INDEFINITE.finditer(story.text):
        for word in match[1].lower().split():
            first_a.setdefault(word, match.start())
    first_the: dict[str, int] = {}
    for match in _DEFINITE.finditer(story.text):
        first_the.setdefault(match[1].lower(), match.start())
    both = first_a.keys() & first_the.keys()
    return sum(first_a[thing] < first_the[thing] for thing in both) / len(both) if both else None
