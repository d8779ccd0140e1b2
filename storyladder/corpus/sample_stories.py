"""The bundled sample corpus: stories made up by a small, seeded grammar, so that the demo learns without any download.

A story is a plot (trouble, attempt, turn, ending, lesson) told by a hero, a friend and a few things that are chosen
once and then kept: what was lost is what is found. It knows nothing of tokens, files or training, and it is no
replacement for the real corpora: it shows that the ladder works, with stories one can read to a child.

To add a plot, add one `Plot(...)` to the table of a register: `sample_tiny.py`, `sample_children.py` or
`sample_simple.py`; names and creatures are in `sample_words.py`, where the template language is explained too. Then
run the tests: they read every plot, and say which digest to update, for a new plot changes the demo's stories.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from storyladder.corpus.corpora import CORPORA
from storyladder.corpus.sample_words import (
    ANIMAL_NAMES,
    BOY_NAMES,
    FAMILY,
    GIRL_NAMES,
    HANDS,
    HEROES,
    HOMES,
    OTHER_PRONOUN,
    PEOPLE,
    PRONOUNS,
    Case,
    Plot,
    Register,
)
from storyladder.runtime.errors import DataError
from storyladder.settings import nearest

T = TypeVar("T")
Draw = Callable[[], float]  # uniform in [0, 1)
Rules = dict[str, str | tuple[str, ...]]

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([^{}]+)\}")
_SAID_WITH_A_CONSONANT = ("uni", "use", "one", "eu")  # a unicorn, a useful map, a one-legged gull
_SAID_WITH_A_VOWEL = ("hour", "honest", "heir")


def sample_stories(corpus: str, count: int, *, seed: int = 0) -> Iterator[str]:
    """The first `count` sample stories of a corpus; story i depends on (seed, corpus, i) only.

    DataError where the corpus has no sample stories.
    """
    registers = {row.name: row.register for row in CORPORA}
    if (register := registers.get(corpus)) is None:
        raise DataError(f"corpus {corpus!r} has no sample stories{nearest(corpus, registers)}")
    return (_story(register, f"{seed}/{corpus}/{index}") for index in range(count))


def _story(register: Register, seed: str) -> str:
    # Python promises the stream of random() for a str seed, not that of choice() or shuffle(): only random() is used.
    draw = random.Random(seed).random
    plot = pick(draw, register.plots)
    return Telling(draw, story_rules(draw, register, plot)).expand("{story}")


def pick(draw: Draw, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(draw() * len(options))]


def story_rules(draw: Draw, register: Register, plot: Plot) -> Rules:
    """Everything that the slots of one story can become: the words of the register, the plot, its case and its cast."""
    start, case = pick(draw, register.starts), pick(draw, plot.cases)
    return {
        "story": register.shapes,
        "trouble": plot.trouble,
        "attempt": plot.attempt,
        "turn": plot.turn,
        "ending": plot.ending,
        "lesson": plot.lesson,
        **register.words,
        **start,
        **_cast(draw, register.names, plot, case),
        **plot.words,
        **case,
    }


def _cast(draw: Draw, names: int, plot: Plot, case: Case) -> Case:
    """The slots of the two who are in the story: `hero`, `he`, `home` ..., and `friend`, `friend.he` ..."""
    group = pick(draw, plot.heroes)
    others = _helpers(plot).union(plot.without)
    kind = pick(draw, [kind for kind in HEROES[group] if kind not in others])
    pronoun = {"girl": "she", "boy": "he"}.get(kind) or pick(draw, ("she", "he"))
    hero = pick(draw, _names(kind, pronoun)[:names])
    helper = pick(draw, _helpers_of(plot, case))
    if helper == "playmate":
        helper = _playmate(draw, group, kind, pronoun)
    friend_pronoun = OTHER_PRONOUN[pronoun]
    friend_name = pick(draw, [name for name in _names(helper, friend_pronoun)[:names] if name != hero])
    friend, first_mention = _friend(draw, helper, friend_pronoun)
    return {
        **PRONOUNS[pronoun],
        **{f"friend.{word}": form for word, form in PRONOUNS[friend_pronoun].items()},
        "hero": hero,
        "kind": kind,
        "home": HOMES[kind],
        "hands": HANDS[group],
        "friend.kind": helper,
        "friend": friend,
        "friend at first": first_mention,
        "friend_name": friend_name,
    }


def _names(kind: str, pronoun: str) -> tuple[str, ...]:
    """The names for this kind of being: people are called like people, animals like animals."""
    if kind in HEROES["child"] or kind in FAMILY:
        return GIRL_NAMES if pronoun == "she" else BOY_NAMES
    return ANIMAL_NAMES


def _helpers_of(plot: Plot, case: Case) -> list[str]:
    return {"helper": "playmate", **plot.words, **case}["helper"].strip("[]").split("|")


def _helpers(plot: Plot) -> set[str]:
    """All kinds that can help in this plot. A hero of such a kind needs no help: squirrels fetch kites themselves."""
    return {helper for case in plot.cases for helper in _helpers_of(plot, case)}


def _playmate(draw: Draw, group: str, kind: str, pronoun: str) -> str:
    """Somebody like the hero: a boy for a girl, another animal for an animal. A robot plays with children."""
    if group in ("child", "machine"):
        return "boy" if pronoun == "she" else "girl"
    return pick(draw, [other for other in HEROES[group] if other != kind])


def _friend(draw: Draw, helper: str, pronoun: str) -> tuple[str, str]:
    """How the friend is called, and how mentioned for the first time; both are templates."""
    if helper in FAMILY:
        return FAMILY[helper][pronoun], FAMILY[helper][pronoun]
    if helper not in PEOPLE and (helper in HEROES["child"] or draw() < 0.6):
        return "{friend_name}", "{a friend_trait} {friend.kind} named {friend_name}"
    return "the {friend.kind}", "{a friend_trait} {friend.kind}"


class Telling:
    """One story being told: the rules it may draw from, and the facts that are settled by now."""

    def __init__(self, draw: Draw, rules: Rules) -> None:
        self._draw = draw
        self._rules = rules
        self._facts: dict[str, str] = {}

    def expand(self, template: str) -> str:
        """The template with every [choice] made and every {slot} filled."""
        while "[" in template:  # innermost first
            template = _CHOICE.sub(lambda choice: pick(self._draw, choice[1].split("|")), template)
        return _SLOT.sub(lambda slot: self._fill(slot[1]), template)

    def settle(self, slot: str) -> str:
        """What the slot is in this story: chosen at its first use and kept, so that what was lost is what is found."""
        if slot == "friend" and "friend at first" not in self._facts:
            return self.settle("friend at first")
        if slot not in self._facts:
            rule = self._rules[slot]
            self._facts[slot] = self.expand(rule if isinstance(rule, str) else pick(self._draw, rule))
        return self._facts[slot]

    def _fill(self, slot: str) -> str:
        if slot in self._facts:  # the short way, which most slots take
            return self._facts[slot]
        words = slot.split(" ")
        text = self.settle(words[-1][0].lower() + words[-1][1:])
        if len(words) > 1:
            text = with_article(text)
        return capitalized(text) if slot[0].isupper() else text


def with_article(words: str) -> str:
    """The words with "a" or "an" before them, as they are spoken: an owl, a unicorn, an hour."""
    said = words.lower()
    vowel = said.startswith(_SAID_WITH_A_VOWEL) or (said[0] in "aeiou" and not said.startswith(_SAID_WITH_A_CONSONANT))
    return f"{'an' if vowel else 'a'} {words}"


def capitalized(text: str) -> str:
    """The text with its first letter, and only that, in upper case."""
    return text[0].upper() + text[1:]
