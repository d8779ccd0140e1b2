r"""Cleaning of a story before it is encoded: repair, filter, lower-case or drop it; and counts of each change.

A story goes in; a story or None comes out. Knows no files, tokens or other stories. "\n" is the only line end (readers
convert the others). Counts are numbers of stories, not of characters; a dropped story also counts under every change
that was made before:

    replaced lone surrogates       half a UTF-16 pair, which UTF-8 cannot encode: always becomes U+FFFD
    repaired mojibake              UTF-8 that was decoded as Windows-1252 or Latin-1; stray Windows-1252 bytes
    stripped markup                known HTML tags, comments and entities
    removed invisible characters   control characters, soft hyphens, zero-width characters, text direction marks
    replaced exotic spaces         no-break spaces become spaces, line and paragraph separators become line ends
    composed accents               Unicode NFC
    made punctuation ASCII, lower-cased, stripped outer white space
    dropped empty, dropped fragment, dropped too short, dropped too long

A literal `<|endoftext|>` inside a story is ordinary text here, neither markup nor a separator.
"""

from __future__ import annotations

import functools
import html
import html.parser
import re
import unicodedata
from collections import Counter

from storyladder.settings import CleaningConfig

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# What ftfy may repair: a first character of a misread pair (Windows-1252, Latin-1 or Mac Roman) before a possible
# second one, or a C1 control character. Only words that match are passed to ftfy, each once. ftfy takes 50 to 110
# microseconds per word: 0.3 MB/s on a text full of mojibake, and 1.3 MB/s on one that merely contains a letter like the
# a of ch\u00e2teau, far below the 30 MB/s that preparation promises.
_SECONDS = "".join(map(chr, range(0x80, 0xC0))) + bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")
_SUSPECT = re.compile(f"[\u00c2-\u00f4][{re.escape(_SECONDS)}]|[\u0080-\u009f]|\u201a\u00c4|\u221a[^\x00-\x7f]")
_WORD = re.compile("[^ \t\n]+")
# What ftfy 6.3 misses: a closing quote that lost its last byte, which Windows-1252 lacks; the trade mark sign.
_LEFT_BY_FTFY = (
    (re.compile("\u00e2\u20ac(?=[\x00-\x7f]|\\Z)"), "\u201d"),
    (re.compile("\u00e2\u201e\u00a2"), "\u2122"),
)
# A capital that looks like mojibake, after another capital and before a quote: Portuguese A MANH\u00c3\u201d.
_CAPITALS = re.compile("[A-Z\u00c0-\u00de][\u00c2\u00c3\u00c5]\\W")

# Characters that need no repair: printable ASCII; common punctuation, and letters that do not begin mojibake.
_PLAIN_BYTES = bytes(range(0x20, 0x7F)) + b"\n\t"
_HARMLESS = frozenset(map(chr, (*range(0xA1, 0xAD), *range(0xAE, 0x180), *range(0x2010, 0x2027), 0x20AC, 0x2122)))
_HARMLESS -= frozenset("\u00c2\u00c3\u00c5\u00e2\u00ef\u00f0\u201a")  # these begin mojibake
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_EXOTIC_SPACE = re.compile("[\u00a0\u2007\u202f\u2028\u2029]")

_ASCII_OF = (
    dict.fromkeys("\u00b4\u2018\u2019\u201a\u201b\u2032\u2039\u203a", "'")
    | dict.fromkeys("\u00ab\u00bb\u201c\u201d\u201e\u201f\u2033", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
    | dict.fromkeys("\u2014\u2015", "--")  # as on typewriters; one hyphen would join the neighbors
    | dict.fromkeys(map(chr, range(0x2000, 0x200B)), " ")
    | {"\u2026": "..."}
)
_TYPOGRAPHIC = re.compile("[" + "".join(_ASCII_OF) + "]")

# Only these are tags: <3, <Tom> and <|endoftext|> are text.
_LINE_TAGS = frozenset(
    ("p", "br", "div", "hr", "li", "ul", "ol", "tr", "table", "blockquote", "pre", "title", "head", "body", "html")
).union(("section", "article", "header", "footer", "h1", "h2", "h3", "h4", "h5", "h6"))
_INLINE_TAGS = frozenset(
    ("a", "b", "i", "u", "s", "em", "strong", "span", "font", "small", "big", "sub", "sup", "code", "center", "img")
).union(("td", "th", "thead", "tbody", "meta", "link", "strike", "del", "ins", "script", "style"))
_UNSEEN = ("script", "style")

_FIRST_OF_A_WORD = re.compile(r"[^\W_]")  # a story may begin with a number
_SENTENCE_ENDS = ".!?\u2026"
_AFTER_THE_END = " \t\n\"')]}*_\u2019\u201d\u00bb\u203a"  # may follow the last period


def clean_story(text: str, settings: CleaningConfig, counts: Counter[str]) -> str | None:
    """The cleaned story, or None if it is dropped. Every change is added to `counts`."""
    done: set[str] = set()
    text = _repaired(text, settings, done)
    if settings.strip_markup and ("<" in text or "&" in text):
        bare = _noted("stripped markup", text, _without_markup(text), done)
        text = text if bare == text else _repaired(bare, settings, done)  # entities may decode to no-break spaces
    if settings.ascii_punctuation and not text.isascii():
        plain = _TYPOGRAPHIC.sub(lambda match: _ASCII_OF[match[0]], text)
        text = _noted("made punctuation ASCII", text, plain, done)
    text = _noted("stripped outer white space", text, text.strip(), done)
    reason = _reason_to_drop(text, settings)  # before lower-casing, because fragments are found by capitals
    if reason:
        done.add(f"dropped {reason}")
    elif settings.lowercase:
        text = _noted("lower-cased", text, text.lower(), done)
    if done:
        counts.update(done)
    return None if reason else text


def _noted(action: str, before: str, after: str, done: set[str]) -> str:
    if after == before:
        return before
    done.add(action)
    return after


def _reason_to_drop(text: str, settings: CleaningConfig) -> str | None:
    if not text:
        return "empty"
    if settings.drop_fragments and _is_fragment(text):
        return "fragment"
    if len(text) < settings.min_chars:
        return "too short"
    if settings.max_chars is not None and len(text) > settings.max_chars:
        return "too long"
    return None


def _repaired(text: str, settings: CleaningConfig, done: set[str]) -> str:
    """Mojibake first, while soft hyphens and no-break spaces are still part of it."""
    if _is_harmless(text):
        return text
    text = _noted("replaced lone surrogates", text, _LONE_SURROGATE.sub("\ufffd", text), done)
    if settings.repair_text:
        text = _noted("repaired mojibake", text, _without_mojibake(text), done)
        text = _noted("removed invisible characters", text, _INVISIBLE.sub("", text), done)
        text = _noted("replaced exotic spaces", text, _EXOTIC_SPACE.sub(_plain_space, text), done)
        text = _noted("composed accents", text, unicodedata.normalize("NFC", text), done)
    return text


def _is_harmless(text: str) -> bool:
    """Whether a text needs no repair. Ten times as fast as trying every repair."""
    unusual = text.encode("utf-8", "surrogatepass").translate(None, _PLAIN_BYTES)
    return not unusual or _HARMLESS.issuperset(unusual.decode("utf-8", "surrogatepass"))


def _plain_space(match: re.Match[str]) -> str:
    return "\n" if match[0] in "\u2028\u2029" else " "


def _without_mojibake(text: str) -> str:
    return _WORD.sub(lambda match: match[0] if match[0].isascii() else _repaired_word(match[0]), text)


@functools.lru_cache(maxsize=1 << 16)
def _repaired_word(word: str) -> str:
    if not _SUSPECT.search(word) or _CAPITALS.search(word):
        return word
    import ftfy

    for pattern, meant in _LEFT_BY_FTFY:
        word = pattern.sub(meant, word)
    only_mojibake = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
    )
    return ftfy.fix_text(word, only_mojibake)


def _without_markup(text: str) -> str:
    """Uses Python's own parser: lexbor and lxml, 2.2 and 1.1 times as fast, treat <Tom> as a tag and drop it."""
    bare = _Bare()
    bare.feed(text)
    bare.handle_data(html.unescape(bare.rawdata))  # keep an incomplete tag at the end as text
    return "".join(bare.parts)


class _Bare(html.parser.HTMLParser):
    """Collects the text of HTML. Block tags become a line end, unknown tags stay as text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._tag(tag, self.get_starttag_text() or "")
        self._unseen = tag if tag in _UNSEEN else self._unseen

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self._tag(tag, self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        self._unseen = "" if tag == self._unseen else self._unseen
        self._tag(tag, f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(data)

    def _tag(self, tag: str, as_written: str) -> None:
        self.handle_data("\n" if tag in _LINE_TAGS else "" if tag in _INLINE_TAGS else as_written)


def _is_fragment(text: str) -> bool:
    """Whether a story begins with a lower-case letter or ends in the middle of a sentence."""
    first = _FIRST_OF_A_WORD.search(text)
    last = text.rstrip(_AFTER_THE_END)[-1:]
    return (first is not None and first[0].islower()) or not last or last not in _SENTENCE_ENDS
