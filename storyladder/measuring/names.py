"""Words and names of a training text, and whether a story keeps its hero. Without a language model.

A name is a word that is nearly always capitalized, also in mid-sentence: "Lily" is, "Mom" is not ("her mom").
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable

from storyladder.measuring.story_text import WORD, Story, sentences, words

_CAPITALIZED_SHARE = 0.95  # of the uses of a name in mid-sentence
_MOST_USES_NEEDED, _FEWEST_USES_NEEDED = 50, 5
_WORDS_PER_USE = 20_000  # a text of a million words needs 50 uses, a smaller one fewer
# After a letter or a comma, and so never the first word of a sentence or of speech.
_CAPITALIZED_INSIDE = re.compile(r"(?<=[a-z,;] )[A-Z\u00c0-\u00de][^\W\d_]*(?:-[^\W\d_]+)*")
_CAPITALIZED = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_NO_NAMES = frozenset(
    (
        *("I", "Mr", "Mrs", "Ms", "Miss", "Dr", "St", "Sir", "God", "Earth", "TV", "OK"),
        *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
        *("January", "February", "March", "April", "May", "June", "July"),
        *("August", "September", "October", "November", "December"),
        *("Christmas", "Easter", "Halloween", "Thanksgiving"),
        *("English", "French", "German", "Spanish", "Italian", "Chinese", "American"),
    )
)


@dataclasses.dataclass(frozen=True)
class CorpusWords:
    """What a training text contains."""

    vocabulary: frozenset[str]  # in lower case
    names: frozenset[str]  # as they are written


def words_of(texts: Iterable[str]) -> CorpusWords:
    """Vocabulary and names of a text that comes in parts. Memory depends on the number of different words only."""
    seen: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for text in texts:
        seen.update(WORD.findall(text))
        inside.update(_CAPITALIZED_INSIDE.findall(text))
    needed = min(_MOST_USES_NEEDED, max(_FEWEST_USES_NEEDED, sum(seen.values()) // _WORDS_PER_USE))
    names = frozenset(
        word
        for word, uses in inside.items()
        if uses >= needed
        and word not in _NO_NAMES
        and uses >= _CAPITALIZED_SHARE * (uses + seen[word.lower()])  # written small, a word is in mid-sentence
    )
    return CorpusWords(frozenset(word for written in seen for word in words(written)), names)


def names_in(text: str, names: frozenset[str]) -> list[str]:
    """The names in a text, in order, with repetitions; "Lily's" is Lily."""
    return [word for word in _CAPITALIZED.findall(text) if word in names]


def hero(text: str, names: frozenset[str]) -> str | None:
    """The name that the first two sentences use most, the earlier of two; None without one."""
    first = _first_names(text, names)
    return first.most_common(1)[0][0] if first else None


def _first_names(text: str, names: frozenset[str]) -> Counter[str]:
    return Counter(names_in(" ".join(sentences(text)[:2]), names))


def _last_names(text: str, names: frozenset[str]) -> Counter[str]:
    """The names in the last third of a story, in whole sentences."""
    parts = sentences(text)
    return Counter(names_in(" ".join(parts[-(len(parts) // 3) :]), names))


def hero_kept(story: Story, names: frozenset[str]) -> bool | None:
    """Whether the hero's name returns in the last third; None without a hero or with fewer than three sentences."""
    name = hero(story.text, names)
    if name is None or len(sentences(story.text)) < 3:
        return None
    return name in _last_names(story.text, names)


def hero_exchanged(story: Story, names: frozenset[str]) -> bool | None:
    """Whether other names replace the hero's in the last third: there more often than where the hero is introduced."""
    kept = hero_kept(story, names)
    if kept is None:
        return None
    first = _first_names(story.text, names)
    return not kept and any(uses > first[name] for name, uses in _last_names(story.text, names).items())
