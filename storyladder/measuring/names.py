"""Words and names of a training text, and whether a story keeps its hero. Without a language model.

A name is a word that is nearly always capitalized, also in mid-sentence: "Lily" is, "Mom" is not ("her mom").
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable

from storyladder.measuring.story_text import Story, sentences, words

_CAPITALIZED_SHARE = 0.95  # of the uses of a name in mid-sentence
_MOST_USES_NEEDED, _FEWEST_USES_NEEDED = 50, 5
_WORDS_PER_USE = 20_000  # a text of a million words needs 50 uses, a smaller one fewer
# After a letter or a comma, and so never the first word of a sentence or of speech.
_MID_SENTENCE = re.compile(r"(?<=[a-z,;] )[^\W\d_]+(?:-[^\W\d_]+)*")
_CAPITALIZED = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_NO_NAMES = frozenset(
    "I Mr Mrs Ms Miss Dr St Sir Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April "
    "May June July August September October November December Christmas Easter Halloween Thanksgiving English French "
    "German Spanish Italian Chinese American Earth God TV OK".split()
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
        seen.update(words(text))
        inside.update(_MID_SENTENCE.findall(text))
    needed = min(_MOST_USES_NEEDED, max(_FEWEST_USES_NEEDED, sum(seen.values()) // _WORDS_PER_USE))
    names = frozenset(
        word
        for word, uses in inside.items()
        if uses >= needed
        and word[0].isupper()
        and word not in _NO_NAMES
        and uses >= _CAPITALIZED_SHARE * (uses + inside[word.lower()])
    )
    return CorpusWords(frozenset(seen), names)


def names_in(text: str, names: frozenset[str]) -> list[str]:
    """The names in a text, in order, with repetitions; "Lily's" is Lily."""
    return [word for word in _CAPITALIZED.findall(text) if word in names]


def hero(text: str, names: frozenset[str]) -> str | None:
    """The name that the first two sentences use most, the earlier of two; None without one."""
    first = names_in(" ".join(sentences(text)[:2]), names)
    return Counter(first).most_common(1)[0][0] if first else None


def _thirds(text: str) -> tuple[str, str]:
    """The first and the last third of a story, in whole sentences, at least one each."""
    parts = sentences(text)
    third = max(1, len(parts) // 3)
    return " ".join(parts[:third]), " ".join(parts[-third:])


def hero_kept(story: Story, names: frozenset[str]) -> bool | None:
    """Whether the hero's name returns in the last third; None without a hero or with fewer than three sentences."""
    name = hero(story.text, names)
    if name is None or len(sentences(story.text)) < 3:
        return None
    return name in names_in(_thirds(story.text)[1], names)


def hero_exchanged(story: Story, names: frozenset[str]) -> bool | None:
    """Whether another name replaces the hero's in the last third: it stands there more often than in the first."""
    kept = hero_kept(story, names)
    if kept is None:
        return None
    first, last = (Counter(names_in(part, names)) for part in _thirds(story.text))
    return not kept and any(uses > first[name] for name, uses in last.items())
