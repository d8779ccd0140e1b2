"""Real stories of a corpus: openings for prompts, their continuations, and training text for its words and names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from storyladder.corpus.token_file import Ids, TokenFile
from storyladder.corpus.tokenizer import EOT_TEXT, Tokenizer
from storyladder.measuring.story_text import opening, words

WORDS_TOKENS = 1 << 24  # read for the words and names of a larger file, evenly drawn; some 70 MB of text
_PART = 1 << 19  # tokens decoded at a time


@dataclasses.dataclass(frozen=True)
class RealStory:
    """A validation story, cut after its opening."""

    prompt: str
    prompt_ids: list[int]
    rest: str
    rest_ids: list[int]

    def cut(self, most_tokens: int, tokenizer: Tokenizer) -> tuple[str, list[int], bool]:
        """Text and tokens of the continuation up to `most_tokens`, and whether the story ends before."""
        if len(self.rest_ids) < most_tokens:
            return self.rest, self.rest_ids, True
        ids = self.rest_ids[:most_tokens]
        return tokenizer.decode(ids), ids, False


def choose_real_stories(
    file: TokenFile, tokenizer: Tokenizer, *, n: int, seed: int, longest_prompt: int
) -> list[RealStory]:
    """At most `n` different stories of a token file that have words after their opening; the seed decides which.

    Openings of more than `longest_prompt` tokens are passed over.
    """
    ends = np.flatnonzero(file.ids == tokenizer.eot)
    starts = np.concatenate([[0], ends[:-1] + 1])
    chosen: dict[str, RealStory] = {}
    for place in np.argsort(np.random.Philox(seed).random_raw(len(ends)), kind="stable"):
        text = tokenizer.decode(file.ids[starts[place] : ends[place]].tolist()).strip()
        prompt = opening(text)
        rest = text[len(prompt) :]
        prompt_ids = tokenizer.encode(prompt)
        if prompt and words(rest) and len(prompt_ids) <= longest_prompt:
            chosen.setdefault(text, RealStory(prompt, prompt_ids, rest, tokenizer.encode(rest)))
        if len(chosen) == n:
            break
    return list(chosen.values())


def training_text(
    file: TokenFile, tokenizer: Tokenizer, *, most_tokens: int = WORDS_TOKENS, check_stop: Callable[[], None]
) -> Iterator[str]:
    """The text of a token file in parts of whole stories; of a file above `most_tokens`, evenly spaced parts."""
    size = len(file.ids)
    parts = -(-min(size, most_tokens) // _PART)
    stride = max(_PART, size // parts)
    for start in range(0, size, stride):
        check_stop()
        file.check_size()
        ids = file.ids[
            _story_start(file.ids, start, tokenizer.eot) : _story_start(file.ids, start + _PART, tokenizer.eot)
        ]
        yield tokenizer.decode(ids.tolist()).replace(EOT_TEXT, "\n\n")


def _story_start(ids: Ids, place: int, eot: int) -> int:
    """The first start of a story at or after `place`; `place` itself if there is none within reach."""
    if place == 0 or place >= len(ids):
        return min(place, len(ids))
    near = np.flatnonzero(np.asarray(ids[place - 1 : place + _PART]) == eot)
    return place + int(near[0]) if len(near) else place
