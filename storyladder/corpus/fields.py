"""Which field or column of a record holds its story: one rule for JSON, parquet, Arrow and CSV.

A record is a dict of plain Python values, as in JSON, or a story itself. The rule looks at the values of the first
records, not only at names, and reports its choice and why, so that nobody trains on the prompts by mistake.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from storyladder.corpus import text_bytes
from storyladder.runtime.errors import DataError

# Names of story fields, best first: names for stories before names for any text.
STORY_FIELDS = (
    *("story", "text", "content", "body", "completion", "output", "response", "answer", "generated_text", "generation"),
    *("article", "document", "passage", "tale", "prose", "full_text", "raw_content", "story_text", "stories", "texts"),
)
CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
# Text about a story; used only if the user names the field.
_NO_STORIES = (
    *(
        "title",
        "name",
        "id",
        "url",
        "source",
        "author",
        "prompt",
        "instruction",
        "input",
        "question",
        "query",
        "system",
    ),
    *(
        "topic",
        "theme",
        "category",
        "genre",
        "label",
        "language",
        "lang",
        "date",
        "created",
        "file",
        "filename",
        "path",
    ),
    *("license", "model", "summary", "hash", "split", "__index_level_0__"),
)
_ASSISTANTS = ("assistant", "gpt", "model", "bot", "ai")
_BY_FAR = 0.75  # a field without a known name is the story if it has this share of all characters in the first records
_SAMPLE, _DEEPEST = 20, 4  # first records to examine; levels of nested objects

Path = tuple[str, ...]


@dataclasses.dataclass
class Reading:
    """How to read text, and, in `found`, what was detected in how many files."""

    separator: str = "auto"  # of .txt, one of settings.STORY_SEPARATORS
    field: str | None = None  # None: by the rule above
    unmarked: str | None = None  # the separator of .txt files without markers, if a whole folder decided it
    path: Path = ()  # where the story is in the records of the current file; (): not known yet
    found: Counter[str] = dataclasses.field(default_factory=Counter)
    files: int = 0
    stories: int = 0

    def restart(self) -> None:
        """Forget what was detected, before reading everything again."""
        self.files = self.stories = 0
        self.found.clear()


class NoStory(ValueError):
    """Why a record holds no story. The caller adds the position of the record."""


def stories_of(records: Iterable[tuple[str, Any]], shown: str, reading: Reading) -> Iterator[str]:
    """The stories of records; each record comes with its position, such as "line 3, at byte 80,"."""
    reading.path = ()
    records = iter(records)
    first = list(itertools.islice(records, _SAMPLE))
    for place, record in itertools.chain(first, records):
        try:
            story = _text(_inner(record, reading.path)) if reading.path else None
            if story is None:
                story = _found_story(record, [other for _, other in first], reading)
        except NoStory as reason:
            raise DataError(f"{shown}: {place} {reason}") from None
        if len(story) > text_bytes.MAX_STORY_BYTES:
            raise DataError(
                f"{shown}: {place} is longer than {text_bytes.MAX_STORY_BYTES >> 20} MiB. Expected a story."
            )
        yield story


def _found_story(record: Any, first: list[Any], reading: Reading) -> str:
    """The story of a record if its path is not known yet, or differs from that of the other records."""
    fields = _as_fields(record)
    if isinstance(fields, str):
        return fields
    if not reading.path:
        sample = [_as_fields(other) for other in first if isinstance(other, (dict, list))]
        reading.path, why = choose([fields, *(other for other in sample if isinstance(other, dict))], reading.field)
        reading.found[f"in field {'.'.join(reading.path)!r} ({why})"] += 1
        if (story := _text(_inner(record, reading.path))) is not None:
            return story
    path, _ = choose([fields], reading.field)
    return _text(_inner(record, path)) or ""


def _as_fields(record: Any) -> Any:
    """A row without names gets numbers as names; a string or a bare chat is a story itself."""
    if isinstance(record, dict):
        return record
    if isinstance(record, list) and record:
        return _text(record) if is_chat(record) else {str(number): value for number, value in enumerate(record)}
    if isinstance(record, str):
        return record
    raise NoStory(f"is {kind_of(record)}. Expected an object with a field {one_of(STORY_FIELDS[:3])}.")


def choose(sample: Sequence[dict[str, Any]], wanted: str | None) -> tuple[Path, str]:
    """The path of the story in records like these, and the reason for it; raises NoStory."""
    values: dict[Path, list[Any]] = {}
    for record in sample:
        for path, value in _flat(record):
            values.setdefault(path, []).append(value)
    texts = {path: [_text(value) for value in held] for path, held in values.items()}
    sizes = {path: sum(map(len, filter(None, held))) for path, held in texts.items() if None not in held}
    if wanted:
        return _asked_for(wanted, values, sizes), "as you asked"
    named = [(not sizes[path], len(path), rank, path) for path in sizes if (rank := _rank(path)) is not None]
    if named and (not min(named)[0] or len(named) == len(sizes)):
        path = min(named)[-1]
        if path[-1].lower() in CHATS:
            return path, "a chat, of which the assistant's part is the story"
        return path, f"the first found of {', '.join(STORY_FIELDS[:4])} and so on"
    unnamed = {path: size for path, size in sizes.items() if isinstance(values[path][0], str)}
    unnamed = {path: size for path, size in unnamed.items() if path[-1].lower() not in _NO_STORIES}
    longest = max(unnamed, key=lambda path: unnamed[path], default=())
    if longest and unnamed[longest] >= _BY_FAR * sum(unnamed.values()) > 0:
        return longest, "the only text" if len(unnamed) == 1 else "by far the longest text"
    if named:
        return min(named)[-1], "empty in the first records"
    raise NoStory(
        f"has no field {one_of(STORY_FIELDS[:3])} with a text in it; its fields are {_shown(values)}. "
        "Name the one that holds the story: --story-field NAME"
    )


def _asked_for(wanted: str, values: dict[Path, list[Any]], sizes: dict[Path, int]) -> Path:
    for path, held in values.items():
        if wanted in (path[-1], ".".join(path)):
            if path in sizes:
                return path
            raise NoStory(f"has {kind_of(held[0])} in its field {wanted!r}. Expected a text.")
    raise NoStory(f"has no field {wanted!r}; its fields are {_shown(values)}. Correct story_field or --story-field.")


def _rank(path: Path) -> int | None:
    names = (*STORY_FIELDS, *CHATS)
    return names.index(path[-1].lower()) if path[-1].lower() in names else None


def names_story(record: Any, wanted: str | None = None) -> bool:
    """Whether a field of a record has a name known for stories, and holds a text."""
    try:
        path, _ = choose([record], wanted)
    except NoStory:
        return False
    return bool(wanted) or _rank(path) is not None


def _flat(record: dict[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    for name, value in record.items():
        if isinstance(value, dict) and len(above) + 1 < _DEEPEST:
            yield from _flat(value, (*above, str(name)))
        else:
            yield (*above, str(name)), value


def _inner(record: Any, path: Path) -> Any:
    """The value at the end of a path; `...`, which is never a story, if the record does not have that path."""
    for name in path:
        if isinstance(record, list) and name.isdigit() and int(name) < len(record):
            record = record[int(name)]
        elif isinstance(record, dict) and name in record:
            record = record[name]
        else:
            return ...
    return record


def _text(value: Any) -> str | None:
    """The story that a value is: a text, lines in a list, the assistant's part of a chat. None: not a story."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas's missing value
        return ""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return _joined(value) if isinstance(value, list) else None


def _joined(value: list[Any]) -> str | None:
    if is_chat(value):
        turns = [turn for turn in value if str(turn.get("role", turn.get("from"))).lower() in _ASSISTANTS] or value
        return "\n\n".join(_text(turn.get("content", turn.get("value"))) or "" for turn in turns)
    lines = [line.get("text") if isinstance(line, dict) else line for line in value]
    texts = [line for line in lines if isinstance(line, str)]
    return "\n".join(texts) if len(texts) == len(lines) else None


def is_chat(value: list[Any]) -> bool:
    """Whether a list holds the turns of a chat."""
    return bool(value) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)


def kind_of(value: Any) -> str:
    """The type of a value, as JSON calls it."""
    kinds = {
        bool: "true or false",
        bytes: "bytes that are not UTF-8",
        str: "a text",
        list: "an array",
        dict: "an object",
        type(None): "null",
    }
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def _shown(values: dict[Path, list[Any]]) -> str:
    named = [f"{'.'.join(path)[:40]!r} ({kind_of(held[0])})" for path, held in list(values.items())[:10]]
    return ", ".join(named) or "none"


def one_of(names: Sequence[str]) -> str:
    """Names as in a sentence: a, b or c."""
    return ", ".join(names[:-1]) + " or " + names[-1]
