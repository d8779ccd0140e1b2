"""What cleaning repairs, drops and counts, and that clean text passes untouched."""

import unicodedata
from collections import Counter

import pytest

from storyladder.corpus import cleaning
from storyladder.corpus.cleaning import clean_story
from storyladder.settings import CleaningConfig

DEFAULT = CleaningConfig()


def cleaned(text, **settings):
    counts = Counter()
    return clean_story(text, CleaningConfig(**settings), counts), dict(counts)


def test_a_clean_story_comes_back_as_the_same_object_and_nothing_is_counted():
    for story in ("Once upon a time.\n\n\tThe end.", "\u201cCaf\u00e9 \u2013 na\u00efve\u2026\u201d he\u2019d say."):
        counts = Counter()
        assert clean_story(story, DEFAULT, counts) is story
        assert not counts


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize(
    "char", "\u2018\u2019\u201c\u2013\u2014\u2026\u20ac\u2122\u00e9\u00fc\u00e8\u00f1\u00c9\u00a3\u00b0\u00bd"
)
def test_utf8_that_was_read_in_another_encoding_is_repaired(char, encoding):
    broken = f"He said {char.encode().decode(encoding)}yes."
    assert cleaned(broken) == (f"He said {char}yes.", {"repaired mojibake": 1})


def test_the_best_known_mojibake_is_a_right_quote():
    assert cleaned("don\u00e2\u20ac\u2122t") == ("don\u2019t", {"repaired mojibake": 1})


def test_mojibake_is_repaired_before_the_characters_it_consists_of_are_removed_or_replaced():
    assert cleaned("voil\u00c3\u00a0!")[0] == "voil\u00e0!"  # its second half is a no-break space
    assert cleaned("r\u00c3\u00ado.") == ("r\u00edo.", {"repaired mojibake": 1})  # ... a soft hyphen
    assert cleaned("\u00e2\u20ac\u0153Hi\u00e2\u20ac\u009d")[0] == "\u201cHi\u201d"  # ... a control character


def test_a_closing_quote_whose_last_byte_was_lost_is_repaired():
    assert cleaned("\u00e2\u20ac\u0153Hi!\u00e2\u20ac said Tim.\n\u00e2\u20ac\u0153No.\u00e2\u20ac")[0] == (
        "\u201cHi!\u201d said Tim.\n\u201cNo.\u201d"
    )


def test_text_that_was_misread_twice_is_repaired():
    once = "\u201cIt\u2019s caf\u00e9\u201c".encode().decode("cp1252")
    assert cleaned(once.encode().decode("cp1252"))[0] == "\u201cIt\u2019s caf\u00e9\u201c"


@pytest.mark.parametrize("text", ["don\u2019t stop", "caf\u00e9", "\u201cHi,\u201d he said"])
def test_utf8_that_was_read_as_mac_roman_is_repaired(text):
    assert cleaned(text.encode().decode("mac-roman")) == (text, {"repaired mojibake": 1})


def test_a_word_of_mojibake_among_honest_ones_is_repaired_and_they_stay():
    assert cleaned("The ch\u00e2teau\u2019s caf\u00c3\u00a9 \u2013 \u201cna\u00efve\u201d") == (
        "The ch\u00e2teau\u2019s caf\u00e9 \u2013 \u201cna\u00efve\u201d",
        {"repaired mojibake": 1},
    )


@pytest.mark.parametrize("text", ["\ufb01sh \uff21", "\u201cit\u2019s\u201d \u2026", "&amp; \x1b[0m &lt;"])
def test_of_what_ftfy_can_do_only_mojibake_is_asked_for(text):
    story, counts = cleaned(f"\u00e2 {text} na\u00efve caf\u00c3\u00a9", ascii_punctuation=False)
    assert story == f"\u00e2 {text} na\u00efve caf\u00e9".replace("\x1b", "") and "repaired mojibake" in counts


def test_an_emoji_that_was_misread_is_repaired():
    assert cleaned("Hi \U0001f600.".encode().decode("latin-1"))[0] == "Hi \U0001f600."


def test_stray_windows_1252_bytes_become_what_they_mean_there():
    assert cleaned("It\x92s \x93big\x94.") == ("It\u2019s \u201cbig\u201d.", {"repaired mojibake": 1})
    assert cleaned("big\x81.") == ("big.", {"removed invisible characters": 1}), "which means nothing there"


@pytest.mark.parametrize(
    "text",
    [
        "A MANH\u00c3\u201d",  # Portuguese in capitals before a closing quote: its bytes would be a letter
        "ch\u00e2teau, \u00e2ge, gar\u00e7on, \u00c5ngstr\u00f6m",
        "Spa\u00df\u201c, \u00bb\u00c4pfel\u00ab, S\u00c3O",
        "it costs 5\u20ac",
        "\u2019\u201c\u201d\u2026",
    ],
)
def test_honest_text_is_not_taken_for_mojibake(text):
    assert cleaned(text) == (text, {})


def test_characters_nobody_sees_are_removed_but_line_ends_and_tabs_stay():
    assert cleaned("a\x00b\x1bc\x7f\n\td\x0c.") == ("abc\n\td.", {"removed invisible characters": 1})
    invisible = "\u00ad\u200b\u200c\u200d\u200e\u202a\u2060\u2066\ufeff"
    assert cleaned(f"el{invisible}e\u00e9.") == ("ele\u00e9.", {"removed invisible characters": 1})


def test_exotic_spaces_become_spaces_and_separators_become_line_ends():
    assert cleaned("a\u00a0b\u202fc\u2007d\u2028e\u2029f") == ("a b c d\ne\nf", {"replaced exotic spaces": 1})


def test_accents_are_composed():
    assert cleaned("cafe\u0301.") == ("caf\u00e9.", {"composed accents": 1})


def test_all_printable_ascii_with_line_ends_and_tabs_takes_the_fast_path():
    assert cleaning._is_harmless("".join(map(chr, range(0x20, 0x7F))) + "\n\t")


def test_no_character_of_the_fast_path_would_be_changed_by_a_repair():
    for char in sorted(cleaning._HARMLESS):
        slow = f"\u00e2 x{char} x"  # a letter that may begin mojibake leaves the fast path
        assert not cleaning._is_harmless(slow)
        assert cleaned(slow) == (slow, {})
        assert unicodedata.normalize("NFC", f"a{char}") == f"a{char}"
    assert not cleaning._HARMLESS & set("\u00c2\u00c3\u00c5\u00e2\u00ef\u00f0\u201a")


def test_lone_surrogates_are_replaced_even_when_repairs_are_off_because_they_cannot_be_encoded():
    for repair in (True, False):
        story, counts = cleaned("a\ud83d b\ude00.", repair_text=repair)
        assert (story, counts) == ("a\ufffd b\ufffd.", {"replaced lone surrogates": 1})
        story.encode()


def test_without_repairs_odd_text_stays_as_it_is():
    odd = "don\u00e2\u20ac\u2122t\u00a0\x07cafe\u0301"
    assert cleaned(odd, repair_text=False) == (odd, {})


def test_typographic_punctuation_becomes_ascii_when_asked():
    curly = "\u201cIt\u2019s \u2018so\u2019 \u2013 well\u2014odd\u2026\u201d \u00abOui\u00bb caf\u00e9"
    plain = '"It\'s \'so\' - well--odd..." "Oui" caf\u00e9'
    assert cleaned(curly, ascii_punctuation=True) == (plain, {"made punctuation ASCII": 1})
    assert cleaned(curly) == (curly, {})


def test_repaired_mojibake_becomes_ascii_too():
    story, counts = cleaned("don\u00e2\u20ac\u2122t", ascii_punctuation=True)
    assert story == "don't"
    assert counts == {"repaired mojibake": 1, "made punctuation ASCII": 1}


def test_lower_case_when_asked():
    assert cleaned("Once \u00c9mile.", lowercase=True) == ("once \u00e9mile.", {"lower-cased": 1})
    assert cleaned("once.", lowercase=True) == ("once.", {})


def test_markup_goes_and_entities_become_text_when_asked():
    html = "<p class='x'>Tom &amp; Ann<br/>ran.</p><!-- no --><script>var a;</script><b>Fast</b>&nbsp;&#8217;&eacute;"
    story, counts = cleaned(html, strip_markup=True)
    assert story == "Tom & Ann\nran.\nFast \u2019\u00e9"
    assert counts == {"stripped markup": 1, "replaced exotic spaces": 1, "stripped outer white space": 1}
    assert cleaned("<b>Hi</b> &amp;") == ("<b>Hi</b> &amp;", {})


def test_what_only_looks_like_markup_stays():
    text = "I <3 you, 1 < 2 > 0, Q&A, AT&T; &nosuch; <Tom> <|endoftext|> &lt;b&gt;"
    assert cleaned(text, strip_markup=True)[0] == text.replace("&lt;b&gt;", "<b>")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One</p><p>Two</p>", "One\n\nTwo"),
        ("<P CLASS=x>One<BR>Two <!-- a <b> --> end", "One\nTwo  end"),
        ("a <script>if (1 < 2) {}</script>b<style>p {}</style>c", "a bc"),
        ("<a href='x>y'>Tom</a> ran &mdash; far", "Tom ran \u2014 far"),
        ("I love you <b and then a long story", "I love you <b and then a long story"),
        ("a < b &amp; c > d <Tom says> x", "a < b & c > d <Tom says> x"),
    ],
)
def test_markup_is_read_as_a_browser_does_and_text_is_never_lost(html, text):
    assert cleaned(html, strip_markup=True)[0] == text


def test_the_separator_inside_a_story_stays_ordinary_text():
    assert cleaned("a<|endoftext|>b", strip_markup=True, ascii_punctuation=True) == ("a<|endoftext|>b", {})


@pytest.mark.parametrize("text", ["", " \n\t ", "\u200b\ufeff", "\u00a0", "\x00"])
def test_a_story_that_is_empty_in_the_end_is_dropped(text):
    story, counts = cleaned(text)
    assert story is None
    assert counts["dropped empty"] == 1


def test_outer_white_space_is_stripped_and_counted():
    assert cleaned("\n Once. \n") == ("Once.", {"stripped outer white space": 1})


def test_too_short_and_too_long_stories_are_dropped_by_their_characters_after_cleaning():
    assert cleaned(" ab\u00e9 ", min_chars=3, max_chars=3)[0] == "ab\u00e9"
    assert cleaned("abc", min_chars=4) == (None, {"dropped too short": 1})
    assert cleaned("abc", max_chars=2) == (None, {"dropped too long": 1})


@pytest.mark.parametrize(
    "text", ["once upon a time.", "\u201cand then\u201d, he said.", "Once upon a", "The end,", "Tim! x", "* * *"]
)
def test_fragments_are_dropped_when_asked(text):
    assert cleaned(text, drop_fragments=True) == (None, {"dropped fragment": 1})
    assert cleaned(text)[0] == text


@pytest.mark.parametrize(
    "text", ["Once.", "\u201cOnce!\u201d", '"Why?"', "3 cats sat.", "(Once\u2026)", "\u00c9mile ran.'"]
)
def test_whole_stories_are_no_fragments(text):
    assert cleaned(text, drop_fragments=True) == (text, {})


def test_fragments_are_told_by_their_capitals_before_these_are_gone():
    assert cleaned("Once.", drop_fragments=True, lowercase=True) == ("once.", {"lower-cased": 1})


def test_counts_are_numbers_of_stories_and_add_up():
    counts = Counter({"dropped empty": 2})
    for story in ("\u200ba\u200b\u200b", "\u200b", "b"):
        clean_story(story, DEFAULT, counts)
    assert counts == {"removed invisible characters": 2, "dropped empty": 3}


def test_cleaning_twice_changes_nothing_more():
    settings = CleaningConfig(ascii_punctuation=True, lowercase=True, drop_fragments=False)
    first = clean_story(" \u00e2\u20ac\u0153Caf\u00c3\u00a9\u00a0\x0cis\u00ad n\u0303ice\u2026 ", settings, Counter())
    counts = Counter()
    assert clean_story(first, settings, counts) == first == '"caf\u00e9 is \u00f1ice...'
    assert not counts
