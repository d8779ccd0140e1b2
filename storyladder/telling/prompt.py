"""Prompts: checking them, and finding words in them that training never saw."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from storyladder.corpus.tokenizer import EOT_TEXT, Tokenizer
from storyladder.runtime.errors import UserError

_MAX_BYTES = 100_000
_MOST_WORDS = 5  # named in the note
_MOST_CHARS = 40  # shown of each
_WORD = re.compile(rb"\S+|\s+")


def checked_prompt(text: str) -> str:
    """The prompt without trailing blanks; a UserError if it is too long, not valid text, or has control characters.

    GPT-2's tokens include the blank before a word, so the model has never seen a word follow a blank of its own.
    """
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid UTF-8 at character {error.start}; type that part again") from None
    if size > _MAX_BYTES:
        raise UserError(f"the prompt has {size:,} bytes, but at most {_MAX_BYTES:,} are allowed; shorten it")
    strange = next((char for char in text if unicodedata.category(char) == "Cc" and char not in "\n\t"), None)
    if strange is not None:
        raise UserError(f"the prompt contains the control character {strange!r}; remove it")
    return text.rstrip(" \t\xa0\u3000")


def unseen_words(prompt: str, tokenizer: Tokenizer, seen_V: Sequence[bool]) -> list[str]:
    """The distinct words of a prompt that contain a token which training never saw."""
    unseen = bytearray()  # one flag for every byte of the prompt
    for token in tokenizer.encode(prompt):
        piece = tokenizer.decode_bytes(token)
        flag = not (token < len(seen_V) and seen_V[token])
        blanks = len(piece) - len(piece.lstrip()) if piece.strip() else 0  # blanks before a word do not count
        unseen += bytes(blanks) + bytes([flag]) * (len(piece) - blanks)
    words = (match for match in _WORD.finditer(prompt.encode("utf-8")) if any(unseen[match.start() : match.end()]))
    return list(dict.fromkeys(match[0].decode("utf-8", "replace") for match in words))


def notes_on(prompt: str, tokenizer: Tokenizer, seen_V: Sequence[bool] | None) -> list[str]:
    """Notes to print before the story, one line each; `seen_V` is None if the checkpoint does not record it."""
    notes = []
    if EOT_TEXT in prompt:
        notes.append(f"note: {EOT_TEXT} in a prompt is ordinary text and does not end the story")
    words = unseen_words(prompt, tokenizer, seen_V) if seen_V is not None else []
    if words:
        named = ", ".join(repr(word[:_MOST_CHARS]) for word in words[:_MOST_WORDS])
        named += ", ..." if len(words) > _MOST_WORDS else ""
        notes.append(f"note: training never saw {named}; the story may ignore it")
    return notes
