r"""What is done to a story before it becomes tokens: repaired, filtered, lower-cased, dropped; and counts of all of it.

A story goes in and comes out, or nothing does. Files, tokens and other stories are not known here, and "\n" is the only
line end (the readers see to that). Every count is a number of stories, not of characters; a story that is dropped in
the end is counted under what was done to it before, too:

    replaced lone surrogates       half a UTF-16 pair cannot be written as UTF-8 at all: always U+FFFD
    repaired mojibake              UTF-8 that was once read as Windows-1252 or Latin-1; stray Windows-1252 bytes
    stripped markup                known HTML tags, comments and entities
    removed invisible characters   control characters, soft hyphens, zero-width characters, text direction marks
    replaced exotic spaces         no-break spaces become spaces, line and paragraph separators become line ends
    composed accents               Unicode NFC
    made punctuation ASCII, lower-cased, stripped outer white space
    dropped empty, dropped fragment, dropped too short, dropped too long

A literal `<|endoftext|>` inside a story is text like any other: it is neither markup nor a separator here.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter

from storyladder.settings import CleaningConfig

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# Windows-1252 as browsers read it: the five bytes that mean nothing there stand for themselves, as all do in Latin-1.
_CHAR_OF_BYTE = {byte: bytes([byte]).decode("cp1252", "replace") for byte in range(0x80, 0x100)}
_BYTE_OF_CHAR = {chr(byte): byte for byte in range(0x80, 0x100)}
_BYTE_OF_CHAR |= {char: byte for byte, char in _CHAR_OF_BYTE.items() if char != "\ufffd"}
_FOLLOWING = "[" + re.escape("".join(char for char, byte in _BYTE_OF_CHAR.items() if 0x80 <= byte <= 0xBF)) + "]"
# Only what nobody writes on purpose. A capital letter before the pair is a word in capitals (Portuguese, Swedish).
_MOJIBAKE = re.compile(
    "(?<![A-Z\u00c0-\u00de])"
    "(?:"
    "\u00c2[\u0080-\u009f\u00a0-\u00bf]"  # C2: no-break space, pound, degree, guillemets
    f"|\u00c3{_FOLLOWING}"  # C3: accented letters
    "|\u00c5[\u2019\u201c\u0092\u0093\u00a1\u00b8\u00bd\u00be]"  # C5: OE, S, Y and Z of Windows-1252
    ")"
    f"|\u00e2[\u20ac\u0080]{_FOLLOWING}"  # E2 80: curly quotes, dashes, ellipsis
    "|\u00e2\u20ac(?=[\x00-\x7f]|\\Z)"  # E2 80 9D whose 9D, which Windows-1252 does not have, was lost: closing quote
    "|\u00e2(?:[\u201a\u0082]\u00ac|[\u201e\u0084]\u00a2)"  # E2 82 AC: euro; E2 84 A2: trade mark
    "|\u00ef\u00bb\u00bf|\u00ef\u00bf\u00bd"  # EF BB BF: byte order mark; EF BF BD: replacement character
    f"|\u00f0[\u0178\u009f]{_FOLLOWING}{{2}}"  # F0 9F: emoji
)
_MOST_DECODINGS = 3  # text that was misread twice, and then once more
_STRAY_BYTE = re.compile("[\u0080-\u009f]")

# Characters no repair looks at: printable ASCII; the usual punctuation, and letters that do not begin mojibake.
_PLAIN_BYTES = bytes(range(0x20, 0x7F)) + b"\n\t"
_HARMLESS = frozenset(map(chr, (*range(0xA1, 0xAD), *range(0xAE, 0x180), *range(0x2010, 0x2027), 0x20AC, 0x2122)))
_HARMLESS -= frozenset("\u00c2\u00c3\u00c5\u00e2\u00ef\u00f0")
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_EXOTIC_SPACE = re.compile("[\u00a0\u2007\u202f\u2028\u2029]")

_ASCII_OF = (
    dict.fromkeys("\u00b4\u2018\u2019\u201a\u201b\u2032\u2039\u203a", "'")
    | dict.fromkeys("\u00ab\u00bb\u201c\u201d\u201e\u201f\u2033", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
    | dict.fromkeys("\u2014\u2015", "--")  # as typewriters do; a single hyphen would join two words
    | dict.fromkeys(map(chr, range(0x2000, 0x200B)), " ")
    | {"\u2026": "..."}
)
_TYPOGRAPHIC = re.compile("[" + "".join(_ASCII_OF) + "]")

# Names, not whatever stands in angle brackets: <3, <Tom> and <|endoftext|> are text.
_LINE_TAGS = "p|br|div|h[1-6]|hr|li|ul|ol|tr|table|blockquote|pre|title|head|body|html|section|article|header|footer"
_INLINE_TAGS = (
    "a|b|i|u|s|em|strong|span|font|small|big|sub|sup|code|center|img|td|th|thead|tbody|meta|link|strike|del|ins"
)
_UNSEEN = re.compile(r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>|<!doctype[^<>]*>", re.DOTALL | re.IGNORECASE)
_LINE_TAG = re.compile(rf"</?(?:{_LINE_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")

_FIRST_OF_A_WORD = re.compile(r"[^\W_]")  # a story may begin with a number
_SENTENCE_ENDS = ".!?\u2026"
_AFTER_THE_END = " \t\n\"')]}*_\u2019\u201d\u00bb\u203a"  # what may stand behind the last full stop


def clean_story(text: str, settings: CleaningConfig, counts: Counter[str]) -> str | None:
    """The story as it is to be learnt, or None when it is dropped. Whatever was done is added to `counts`."""
    done: set[str] = set()
    text = _repaired(text, settings, done)
    if settings.strip_markup and ("<" in text or "&" in text):
        bare = _noted("stripped markup", text, _without_markup(text), done)
        text = text if bare == text else _repaired(bare, settings, done)  # entities stand for no-break spaces and more
    if settings.ascii_punctuation and not text.isascii():
        plain = _TYPOGRAPHIC.sub(lambda match: _ASCII_OF[match[0]], text)
        text = _noted("made punctuation ASCII", text, plain, done)
    text = _noted("stripped outer white space", text, text.strip(), done)
    reason = _reason_to_drop(text, settings)  # asked while capitals are still there
    if reason:
        done.add(f"dropped {reason}")
    elif settings.lowercase:
        text = _noted("lower-cased", text, text.lower(), done)
    if done:
        counts.update(done)
    return None if reason else text


def _noted(action: str, before: str, after: str, done: set[str]) -> str:
    if after != before:
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
    """Mojibake goes first, while soft hyphens and no-break spaces are still part of it."""
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
    """Whether a repair has nothing to do here. Ten times as fast as looking for everything that it might do."""
    unusual = text.encode("utf-8", "surrogatepass").translate(None, _PLAIN_BYTES)
    return not unusual or _HARMLESS.issuperset(unusual.decode("utf-8", "surrogatepass"))


def _plain_space(match: re.Match[str]) -> str:
    return "\n" if match[0] in "\u2028\u2029" else " "


def _without_mojibake(text: str) -> str:
    for _ in range(_MOST_DECODINGS):
        before, text = text, _MOJIBAKE.sub(_decoded, text)
        if text == before:
            break
    return _STRAY_BYTE.sub(lambda match: _CHAR_OF_BYTE[ord(match[0])].replace("\ufffd", ""), text)


def _decoded(match: re.Match[str]) -> str:
    raw = bytes(_BYTE_OF_CHAR[char] for char in match[0])
    return "\u201d" if raw == b"\xe2\x80" else raw.decode()


def _without_markup(text: str) -> str:
    """Tags go before entities become text, so that an escaped tag stays what its author wanted to be seen."""
    text = _UNSEEN.sub("", text)
    text = _LINE_TAG.sub("\n", text)
    text = _INLINE_TAG.sub("", text)
    return _ENTITY.sub(lambda match: html.unescape(match[0]), text)


def _is_fragment(text: str) -> bool:
    """Whether a story begins with a small letter or does not end with a sentence."""
    first = _FIRST_OF_A_WORD.search(text)
    last = text.rstrip(_AFTER_THE_END)[-1:]
    return (first is not None and first[0].islower()) or not last or last not in _SENTENCE_ENDS
