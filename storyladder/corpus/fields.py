"""Which field or column of a record holds its story: one rule for JSON, parquet, Arrow and CSV.

A record is a dict of plain Python values, as JSON has them, or a story itself. The rule looks at the values of the
first records and not only at names, and says what it took and why, so that nobody trains on the prompts by mistake.
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

# By name, the first that holds text. What names nothing but stories comes before what names any text.
STORY_FIELDS = (
    *("story", "text", "content", "body", "completion", "output", "response", "answer", "generated_text", "generation"),
    *("article", "document", "passage", "tale", "prose", "full_text", "raw_content", "story_text", "stories", "texts"),
)
CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
# Text that is about a story; never taken unless it was asked for by name.
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
_TELLERS = ("assistant", "gpt", "model", "bot", "ai")
_BY_FAR = 0.75  # of all characters of the first records: the longest text of those without a known name
_SAMPLE, _DEEPEST = 20, 4  # records that are looked at first; levels of objects in objects

Path = tuple[str, ...]


@dataclasses.dataclass
class Reading:
    """How text is to be read, and, in `found`, what was found out on the way and in how many files."""

    separator: str = "auto"  # of .txt, one of settings.STORY_SEPARATORS
    field: str | None = None  # None: by the rule above
    unmarked: str | None = None  # the separator of a .txt without markers, where a whole folder decided it
    path: Path = ()  # the way to the story in the records of the file that is being read; (): not known yet
    found: Counter[str] = dataclasses.field(default_factory=Counter)
    files: int = 0
    stories: int = 0

    def restart(self) -> None:
        """Forget what was found out; all is read once more."""
        self.files = self.stories = 0
        self.found.clear()


class NoStory(ValueError):
    """Why a record holds no story. The caller adds where it stands."""


def stories_of(records: Iterable[tuple[str, Any]], shown: str, reading: Reading) -> Iterator[str]:
    """The stories of records, each of which comes with its place, for example "line 3, at byte 80,"."""
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
    """The story of a record while the way to it is not known, or where it is not that of the others."""
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
    """A row without names gets numbers for names; a story, or a chat without a frame, is a story."""
    if isinstance(record, dict):
        return record
    if isinstance(record, list) and record:
        return _text(record) if is_chat(record) else {str(number): value for number, value in enumerate(record)}
    if isinstance(record, str):
        return record
    raise NoStory(f"is {kind_of(record)}. Expected an object with a field {one_of(STORY_FIELDS[:3])}.")


def choose(sample: Sequence[dict[str, Any]], wanted: str | None) -> tuple[Path, str]:
    """The way to the story in records like these, and why it is that one; raises NoStory."""
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
        return path, f"the first that is there of {', '.join(STORY_FIELDS[:4])} and so on"
    unnamed = {path: size for path, size in sizes.items() if isinstance(values[path][0], str)}
    unnamed = {path: size for path, size in unnamed.items() if path[-1].lower() not in _NO_STORIES}
    longest = max(unnamed, key=lambda path: unnamed[path], default=())
    if longest and unnamed[longest] >= _BY_FAR * sum(unnamed.values()) > 0:
        return longest, "the only text" if len(unnamed) == 1 else "by far the longest text"
    if named:
        return min(named)[-1], "empty in the first records"
    raise NoStory(
        f"has no field {one_of(STORY_FIELDS[:3])} with a text in it; its fields are {_shown(values)}. "
        "Say which one holds the story: --story-field NAME"
    )


def _asked_for(wanted: str, values: dict[Path, list[Any]], sizes: dict[Path, int]) -> Path:
    for path, held in values.items():
        if wanted in (path[-1], ".".join(path)):
            if path in sizes:
                return path
            raise NoStory(f"has {kind_of(held[0])} in its field {wanted!r}. Expected a text.")
    raise NoStory(f"has no field {wanted!r}; its fields are {_shown(values)}. Mend story_field or --story-field.")


def _rank(path: Path) -> int | None:
    names = (*STORY_FIELDS, *CHATS)
    return names.index(path[-1].lower()) if path[-1].lower() in names else None


def names_story(record: Any, wanted: str | None = None) -> bool:
    """Whether a field of a record has a name that stories have, and holds a text."""
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
    """What stands at the end of the way, which is no story where the way ends before."""
    for name in path:
        if isinstance(record, list) and name.isdigit() and int(name) < len(record):
            record = record[int(name)]
        elif isinstance(record, dict) and name in record:
            record = record[name]
        else:
            return ...
    return record


def _text(value: Any) -> str | None:
    """The story that a value is: a text, lines in a list, the assistant's part of a chat. None: it is no story."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes so what is missing
        return ""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return _joined(value) if isinstance(value, list) else None


def _joined(value: list[Any]) -> str | None:
    if is_chat(value):
        told = [turn for turn in value if str(turn.get("role", turn.get("from"))).lower() in _TELLERS] or value
        return "\n\n".join(_text(turn.get("content", turn.get("value"))) or "" for turn in told)
    lines = [line.get("text") if isinstance(line, dict) else line for line in value]
    texts = [line for line in lines if isinstance(line, str)]
    return "\n".join(texts) if len(texts) == len(lines) else None


def is_chat(value: list[Any]) -> bool:
    """Whether a list holds the turns of a chat."""
    return bool(value) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    kinds = {
        bool: "true or false",
        bytes: "bytes that are no UTF-8",
        str: "a text",
        list: "an array",
        dict: "an object",
        type(None): "null",
    }
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")


def _shown(values: dict[Path, list[Any]]) -> str:
    named = [f"{'.'.join(path)[:40]!r} ({kind_of(held[0])})" for path, held in list(values.items())[:10]]
    return ", ".join(named) or "none at all"


def one_of(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b or c."""
    return ", ".join(names[:-1]) + " or " + names[-1]
