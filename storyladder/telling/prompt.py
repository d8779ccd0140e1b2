"""How a story begins: what is taken from a prompt, and which of its words training never saw."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from storyladder.corpus.tokenizer import EOT_TEXT, Tokenizer
from storyladder.runtime.errors import UserError

_MAX_BYTES = 100_000
_MOST_WORDS = 5  # that are named
_MOST_CHARS = 40  # of each
_WORD = re.compile(rb"\S+|\s+")


def checked_prompt(text: str) -> str:
    """The prompt without blanks at its end, or a UserError for what no story can begin with.

    A token of GPT-2 brings the blank before its word along: after a blank that stands alone no word was ever trained.
    """
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid text at character {error.start}; type it in UTF-8") from None
    if size > _MAX_BYTES:
        raise UserError(f"the prompt has {size:,} bytes; at most {_MAX_BYTES:,} are taken, so shorten it")
    strange = next((char for char in text if unicodedata.category(char) == "Cc" and char not in "\n\t"), None)
    if strange is not None:
        raise UserError(f"the prompt holds the control character {strange!r}; take it out")
    return text.rstrip(" \t\xa0\u3000")


def unseen_words(prompt: str, tokenizer: Tokenizer, seen_V: Sequence[bool]) -> list[str]:
    """The words of a prompt, each once, that hold a token which training never saw."""
    unseen = bytearray()  # one flag for every byte of the prompt
    for token in tokenizer.encode(prompt):
        piece = tokenizer.decode_bytes(token)
        flag = not (token < len(seen_V) and seen_V[token])
        blanks = len(piece) - len(piece.lstrip()) if piece.strip() else 0  # those before a word belong to no word
        unseen += bytes(blanks) + bytes([flag]) * (len(piece) - blanks)
    words = (match for match in _WORD.finditer(prompt.encode("utf-8")) if any(unseen[match.start() : match.end()]))
    return list(dict.fromkeys(match[0].decode("utf-8", "replace") for match in words))


def notes_on(prompt: str, tokenizer: Tokenizer, seen_V: Sequence[bool] | None) -> list[str]:
    """What to say of a prompt before its story, a line each; `seen_V` is None where a checkpoint does not say."""
    notes = []
    if EOT_TEXT in prompt:
        notes.append(f"note: {EOT_TEXT} in a prompt is ordinary text and ends no story")
    words = unseen_words(prompt, tokenizer, seen_V) if seen_V is not None else []
    if words:
        named = ", ".join(repr(word[:_MOST_CHARS]) for word in words[:_MOST_WORDS])
        named += ", ..." if len(words) > _MOST_WORDS else ""
        notes.append(f"note: training never saw {named}; the story may make little of it")
    return notes
