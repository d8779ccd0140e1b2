"""Stories out of the four kinds of files, whatever their quirks, and clear refusals with the right byte."""

import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from storyladder.corpus import json_records, readers, text_bytes
from storyladder.corpus.fields import Reading
from storyladder.corpus.readers import read_stories
from storyladder.runtime.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = (1, 2, 3, 5, 7, 11, 64, 1 << 20)


@pytest.fixture
def written(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        list(read_stories(path, **options))
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def parquet(path, options=None, **columns):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options or {})
    return path


# ---- .txt


@pytest.mark.parametrize("block", BLOCKS)
def test_marker_lines_separate_stories_and_blank_lines_inside_stay(written, block):
    path = written("t.txt", "Once.\n\nThen.\n<|endoftext|>\n\nCaf\u00e9.\n<|endoftext|>\nEnd\n<|endoftext|>\n")
    assert list(read_stories(path, block_bytes=block)) == ["Once.\n\nThen.", "Caf\u00e9.", "End"]


@pytest.mark.parametrize("block", BLOCKS)
def test_markers_within_a_line_separate_too_and_the_last_story_needs_none(written, block):
    path = written("t.txt", "<|endoftext|>One.<|endoftext|> Two.<|endoftext|>\n<|endoftext|>Three.")
    assert list(read_stories(path, block_bytes=block)) == ["One.", "Two.", "", "Three."]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_without_a_marker_blank_lines_separate_stories_whatever_the_line_ends(written, line_end, block):
    text = "\n\nOne,\nstill one.\n\n\n\nTwo \u2013\n \t\nThree.\n"
    path = written("t.txt", text.replace("\n", line_end))
    assert list(read_stories(path, block_bytes=block)) == ["One,\nstill one.", "Two \u2013", "Three."]


def test_a_single_marker_far_into_the_file_decides_that_blank_lines_do_not_separate(written):
    path = written("t.txt", "One.\n\n" * 500 + "<|endoftext|>\nTwo.")
    assert len(list(read_stories(path, block_bytes=64))) == 2


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_inside_stories_become_newlines_even_when_a_block_splits_them(written, line_end, block):
    path = written("t.txt", f"One{line_end}and.{line_end}<|endoftext|>{line_end}Two{line_end}{line_end}and.")
    assert list(read_stories(path, block_bytes=block)) == ["One\nand.", "Two\n\nand."]


@pytest.mark.parametrize("name", ["t.txt", "t.json", "t.jsonl"])
def test_a_byte_order_mark_is_removed_and_does_not_shift_offsets(written, name):
    good = {"t.txt": "One.", "t.json": '["One."]', "t.jsonl": '"One."'}[name]
    assert list(read_stories(written(name, "\ufeff" + good))) == ["One."]
    assert "0xff at offset 3 " in refusal(written(name, b"\xef\xbb\xbf\xff" + good.encode()))


def test_a_story_too_long_to_hold_is_refused_with_the_byte_at_which_it_begins(written, monkeypatch):
    monkeypatch.setattr(text_bytes, "MAX_STORY_BYTES", 1000)
    endless = "x" * 1001
    for block in (64, 1 << 20):
        path = written("t.txt", f"One.\n\n{endless}\n\nTwo.")
        assert "byte 6 " in refusal(path, block_bytes=block)
        assert "byte 17 " in refusal(written("t.txt", f"One.<|endoftext|>{endless}"), block_bytes=block)
        assert "record 2 " in refusal(written("t.json", f'["One.", "{endless}"]'), block_bytes=block)
        assert "byte 7 " in refusal(written("t.jsonl", f'"One."\n"{endless}"'), block_bytes=block)
    assert "row 700 " in refusal(parquet(path.with_name("u.parquet"), text=["One."] * 700 + [endless]))


# ---- .json


def test_an_array_as_the_children_stories_have_it(written):
    records = [
        {"prompt": "p", "text": 'One.\n\n\u201cTwo\u201d \U0001f600\\"', "text_token_length": 2**80},
        {"text": "", "n": 1.5e3},
    ]
    for options in ({}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}):
        path = written("c.json", json.dumps(records, **options) + "\n")
        for block in BLOCKS:
            assert list(read_stories(path, block_bytes=block)) == [records[0]["text"], ""]


def test_a_record_many_times_longer_than_a_block_is_read_whole(written):
    stories = ["a\u00e9" * 5000, "b", "c\\u0041" * 5000]
    path = written("c.json", json.dumps([{"text": story} for story in stories], ensure_ascii=False))
    assert list(read_stories(path, block_bytes=16)) == stories


def test_null_is_an_empty_story_and_strings_are_stories_and_fields_may_change(written):
    text = '[{"text": "s"}, {"text": "x", "story": "t"}, {"story": "s"}, {"text": null}, "plain\\r\\nstory"]'
    assert list(read_stories(written("c.json", text))) == ["s", "t", "s", "", "plain\nstory"]
    lines = '{"text": "s"}\n\n{"story": "s"}\r\n{"text": null}\n"plain\\r\\nstory"'
    assert list(read_stories(written("c.jsonl", lines))) == ["s", "s", "", "plain\nstory"]


def test_an_empty_array_has_no_stories(written):
    assert list(read_stories(written("c.json", " [ ] \n"))) == []


def test_lone_surrogates_of_lines_reach_the_cleaning(written):
    assert list(read_stories(written("c.jsonl", '"a\\ud800b"\n"\\ud83d\\ude00"'))) == ["a\ud800b", "\U0001f600"]


def test_a_record_without_a_story_is_refused_with_its_place_and_fields(written):
    text = '[{"text": "caf\u00e9"},\n {"title": "x", "n": 1}]'
    for block in (3, 1 << 20):
        message = refusal(written("c.json", text), block_bytes=block)
        assert "record 2 has no field" in message and "'title' (a text), 'n' (a number)" in message
        assert "--story-field NAME" in message
    message = refusal(written("c.jsonl", '{"text": "\u00e9"}\n{"title": "x"}'))
    assert "line 2, at byte 15, has no field" in message and "'title'" in message


@pytest.mark.parametrize(
    ("record", "kind"), [("[]", "an array"), ("12", "a number"), ("true", "true or false"), ("null", "null")]
)
def test_a_record_that_is_neither_object_nor_text_is_refused(written, record, kind):
    assert f"record 1 is {kind}" in refusal(written("c.json", f"[{record}]"))
    assert f"line 1, at byte 0, is {kind}" in refusal(written("c.jsonl", f"{record}\n{record}"))
    if kind not in ("null", "an array"):
        assert f"its fields are 'text' ({kind})" in refusal(written("d.jsonl", f'{{"text": {record}}}'))


def test_a_file_cut_anywhere_is_refused_and_never_taken_for_a_shorter_one(written):
    whole = json.dumps([{"text": 'a\u00e9"\U0001f600', "n": -1.5e3}, {"b": [True, None], "text": "c"}], indent=1)
    for end in range(1, len(whole)):  # characters
        path = written("c.json", whole[:end])
        for block in (4, 1 << 20):
            message = refusal(path, block_bytes=block)
            size = path.stat().st_size
            assert f"is cut short: it ends at byte {size}," in message


def test_a_truncated_array_names_the_byte_where_it_ends_and_what_to_do(written):
    text = '[\n {"text": "caf\u00e9"},\n {"text": "Once upon'
    for block in (5, 1 << 20):
        message = refusal(written("c.json", text), block_bytes=block)
        assert f"ends at byte {len(text.encode())}" in message and "record 2" in message
        assert "python prepare_data.py" in message
    assert "cut short" in refusal(written("c.jsonl", '{"text": "a"}\n{"text": "b'))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ('[{"text": "\u00e9"} {"text": "b"}]', 16),
        ('[{"text": "\u00e9"}] x', 17),
        ('[{"text": "\u00e9"},]', 16),
        ('[{"text": "\u00e9" "n": 1}, {"text": "a long story follows"}]', 17),  # behind the word that was not expected
        ('[{"text": "\u00e9\n"}, {"text": "a long story follows"}]', 13),
        ('[{"text": "\u00e9\\x"}, {"text": "a long story follows"}]', 14),
        ('[{\'text\': 1}, {"text": "a long story follows"}]', 2),
    ],
)
def test_faulty_json_is_refused_with_the_byte_of_the_fault(written, text, at):
    for block in BLOCKS:
        assert f"not valid JSON at byte {at}:" in refusal(written("c.json", text), block_bytes=block)


def test_a_faulty_line_is_refused_with_its_number_and_the_byte_of_the_fault(written):
    message = refusal(written("c.jsonl", '{"text": "\u00e9"}\n{"text": "\u00e9" "n": 1}\n{"text": "a"}\n'))
    assert "line 2 is not valid JSON at byte 29:" in message


@pytest.fixture
def reads(monkeypatch):
    """One entry for every block that is read."""
    blocks = []
    check = text_bytes.check_no_nul
    for module in (readers, json_records):
        monkeypatch.setattr(module, "check_no_nul", lambda *block: (blocks.append(block), check(*block)))
    return blocks


def test_a_fault_is_reported_without_reading_the_rest_of_the_file(written, reads):
    refusal(written("c.json", '[{"text": 1 2}' + " " * 100_000), block_bytes=64)
    assert len(reads) < 30, "one block, and its bytes up to the fault"


@pytest.mark.parametrize(("name", "start"), [("t.txt", ""), ("m.txt", "<|endoftext|>")])
def test_a_long_story_is_read_in_growing_blocks_so_that_its_cost_stays_linear(written, reads, name, start):
    story = "x" * 100_000
    path = written(name, start + story)
    assert list(read_stories(path, block_bytes=16)) == [story]
    assert len(reads) < 20


@pytest.mark.parametrize(("name", "start"), [("t.txt", ""), ("c.json", '["'), ("c.jsonl", '"')])
def test_an_endless_story_is_refused_before_it_is_held(written, monkeypatch, name, start):
    monkeypatch.setattr(text_bytes, "MAX_STORY_BYTES", 50_000)
    path = written(name, start + "x" * 4_000_000)
    tracemalloc.start()
    try:
        message = refusal(path, block_bytes=1000)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "longer than" in message
    assert most < 1_000_000


def test_arrays_and_lines_are_told_apart_whatever_the_suffix(written):
    for text in (
        '{"text": "a"}\n{"text": "b"}\n',
        '[{"text": "a"}, {"text": "b"}]',
        '[\n{"text": "a"},\n{"text": "b"}\n]',
    ):
        for name in ("c.json", "c.jsonl", "c.ndjson"):
            assert list(read_stories(written(name, text))) == ["a", "b"]
    pretty = '{\n "text": "a"\n}\n{\n "text": "b"\n}\n'
    assert list(read_stories(written("c.jsonl", pretty))) == ["a", "b"]
    assert "not valid JSON at byte 0" in refusal(written("e.json", "<html>404</html>"))
    assert "is cut short: it ends at byte 2" in refusal(written("f.json", " \n"))


def test_deep_nesting_and_endless_numbers_do_not_crash(written):
    for text in ("[" * 200_000, '{"a":' * 200_000):
        assert "nested too deep" in refusal(written("c.json", text))
        assert "nested too deep" in refusal(written("c.jsonl", '{"text": "a"}\n' + text + "\n"))
    assert "integer overflow" in refusal(written("d.json", f'[{{"text": "a", "n": {"9" * 5000}}}]'))
    assert list(read_stories(written("d.json", f'[{{"text": "a", "n": {2**64}, "m": 1e999}}]'))) == ["a"]


@pytest.mark.parametrize("block", BLOCKS)
def test_what_python_writes_for_numbers_that_are_none_is_read_and_text_about_it_stays(written, block):
    rows = [
        {"text": 'NaN "NaN" -Infinity\\', "x": float("nan"), "y": [float("-inf"), 1]},
        {"text": float("nan")},
        "Infinity",
    ]
    path = written("c.json", json.dumps(rows))
    assert list(read_stories(path, block_bytes=block)) == ['NaN "NaN" -Infinity\\', "", "Infinity"]


@pytest.mark.parametrize("block", BLOCKS)
def test_lone_surrogates_of_an_array_become_what_cleaning_makes_of_them(written, block):
    text = r'["a\ud800b", "\ud83d\ude00", "\ude00\ude00", "\\ud800 \ud800\"\u00e9"]'
    path = written("c.json", text)
    assert list(read_stories(path, block_bytes=block)) == [
        "a\ufffdb",
        "\U0001f600",
        "\ufffd\ufffd",
        '\\ud800 \ufffd"\u00e9',
    ]


# ---- encodings


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["t.txt", "m.txt", "t.json", "t.jsonl"])
def test_the_offset_of_a_bad_byte_is_right_wherever_blocks_end(written, name, block):
    start, end = {"t.txt": ("", ""), "m.txt": ("a<|endoftext|>", ""), "t.json": ('["', '"]'), "t.jsonl": ('"', '"')}[
        name
    ]
    before = f"{start}caf\u00e9 \u201c\U0001f600".encode()
    message = refusal(written(name, before + b"it\x92s" + end.encode()), block_bytes=block)
    assert f"byte 0x92 at offset {len(before) + 2} is not UTF-8" in message
    assert "'\u2019'" in message and "iconv -f cp1252 -t UTF-8 " in message


@pytest.mark.parametrize("name", ["t.txt", "t.json", "t.jsonl"])
def test_a_file_that_ends_within_a_character_is_cut_short(written, name):
    content = ('["' + "a" * 20 + "\u201c").encode()[:-1]
    assert "ends in the middle of a character (byte 0xe2 at offset 22)" in refusal(
        written(name, content), block_bytes=8
    )


def test_a_byte_that_windows_1252_does_not_know_is_not_called_windows_1252(written):
    assert "0x81 at offset 1 is neither UTF-8 nor Windows-1252" in refusal(written("t.txt", b"a\x81"))


@pytest.mark.parametrize("name", ["t.txt", "t.json", "t.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_utf_16_and_utf_32_are_refused_with_the_command_that_converts_them(written, name, encoding):
    text = "\ufeffOnce" if encoding == "utf-16-be" else "Once"
    message = refusal(written(name, text.encode(encoding)))
    assert f"iconv -f {encoding[:6].upper()} -t UTF-8" in message


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_binary_files_are_refused_with_the_byte(written, block):
    for name in ("t.txt", "t.jsonl", "t.json"):
        content = ('["a"\n' if name.endswith("json") else '"a"\n\n').encode() + b"\x00\x01"
        assert "byte 5 is zero" in refusal(written(name, content), block_bytes=block)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"PK\x03\x04\x00", ".zip"),
        (b"PAR1\x15", ".parquet"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_known_foreign_formats_are_named_with_the_command_that_opens_them(written, content, remedy):
    assert remedy in refusal(written("t.txt", content))


# ---- JSON that is one object

STORIES = [f'Story {i}.\n\n"Oh," it said.' for i in range(3)]
SHAPES = {
    "a record": {"text": STORIES[0], "n": 1},
    "pandas columns": {"n": {"0": 1, "1": 2, "2": 3}, "text": {str(i): story for i, story in enumerate(STORIES)}},
    "pandas index": {str(i): {"n": i, "text": story} for i, story in enumerate(STORIES)},
    "pandas index of names": {f"tale {i}": {"n": i, "text": story} for i, story in enumerate(STORIES)},
    "pandas split": {"columns": ["n", "text"], "index": [0, 1, 2], "data": [[i, s] for i, s in enumerate(STORIES)]},
    "pandas table": {
        "schema": {"fields": [{"name": "text", "type": "string"}], "primaryKey": ["index"], "pandas_version": "1.4.0"},
        "data": [{"index": i, "text": story} for i, story in enumerate(STORIES)],
    },
    "pandas values": [[i, story] for i, story in enumerate(STORIES)],
    "pandas series": {str(i): story for i, story in enumerate(STORIES)},
    "columns of unknown names": {"n": {"0": 1, "1": 2, "2": 3}, "contes": {str(i): s for i, s in enumerate(STORIES)}},
    "lists": {"title": ["a", "b", "c"], "story": STORIES},
    "wrapped": {"version": "1.0", "data": [{"text": story} for story in STORIES]},
    "wrapped texts": {"info": {"year": 2020}, "stories": STORIES},
    "rows of a viewer": {
        "features": [{"feature_idx": 0, "name": "text", "type": {"dtype": "string", "_type": "Value"}}],
        "rows": [{"row_idx": i, "row": {"text": story}, "truncated_cells": []} for i, story in enumerate(STORIES)],
    },
    "one chat": {"messages": [{"role": "user", "content": "Tell."}, {"role": "assistant", "content": STORIES[0]}]},
    "chats": {
        "items": [{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": s}]} for s in STORIES]
    },
}


@pytest.mark.parametrize("block", [3, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_stories_of_one_object_are_found_whatever_its_shape(written, shape, indent, block):
    path = written("c.json", json.dumps(SHAPES[shape], indent=indent))
    expected = STORIES[:1] if shape in ("a record", "one chat") else STORIES
    assert list(read_stories(path, block_bytes=block)) == expected


def test_an_object_without_stories_is_refused_with_its_fields(written):
    info = {"features": {"text": {"dtype": "string", "_type": "Value"}}, "builder_name": "json"}
    message = refusal(written("c.json", json.dumps(info)))
    assert "record 1 has no field story, text or content" in message and "'builder_name' (a text)" in message


def test_a_large_object_is_read_at_constant_memory(written):
    columns = {"n": {str(i): i for i in range(2000)}, "text": {str(i): f"{i} {'x' * 5000}" for i in range(2000)}}
    path = written("c.json", json.dumps(columns))
    del columns
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_stories(path)) == 2000
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


# ---- which field


def field_taken(path, **options):
    reading = Reading(**options)
    return list(read_stories(path, reading)), [found.split(" (")[0] for found in reading.found]


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"text": "t", "story": "s"}, "story"),
        ({"prompt": "Write.", "completion": "c"}, "completion"),
        ({"instruction": "Write.", "input": "", "output": "o"}, "output"),
        ({"Text": "t", "title": "T"}, "Text"),
        ({"story": 7, "text": "t"}, "text"),  # a number of the story
        ({"story": None, "content": "c"}, "content"),
        ({"meta": {"text": "m"}, "body": "b"}, "body"),
        ({"text": None, "data": {"story": "s"}}, "data.story"),
        ({"data": {"attributes": {"story": "s"}}}, "data.attributes.story"),
        ({"title": "A very long title", "url": "x", "conte": "Il"}, "conte"),
        ({"a": "short", "b": "by far the longest text of all"}, "b"),
        ({"text": ["First line.", "Second."]}, "text"),
        ({"paragraphs": [{"text": "One."}], "text": "t"}, "text"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, "messages"),
        (
            {"prompt": "p", "conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
            "conversations",
        ),
    ],
)
def test_json_and_tables_take_the_same_field_of_a_record(tmp_path, record, field):
    pa = pytest.importorskip("pyarrow")
    for name in ("a.json", "a.jsonl", "a.parquet", "a.arrow"):
        path = tmp_path / name
        if name.endswith("parquet"):
            parquet(path, **{key: [value, value] for key, value in record.items()})
        elif name.endswith("arrow"):
            table = pa.Table.from_pylist([record, record])
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        else:
            records = [record, record]
            path.write_text(json.dumps(records) if name == "a.json" else "\n".join(map(json.dumps, records)))
        stories, fields = field_taken(path)
        assert fields == [f"in field {field!r}"], name
        value = record
        for part in field.split("."):
            value = value[part]
        if isinstance(value, list):
            value = "a" if isinstance(value[0], dict) else "First line.\nSecond."
        assert stories == [value, value], name


def test_a_field_that_was_asked_for_is_taken_or_missed(written):
    path = written("a.jsonl", '{"text": "t", "meta": {"blurb": "b"}, "n": 1}\n' * 2)
    assert field_taken(path, field="blurb") == (["b", "b"], ["in field 'meta.blurb'"])
    assert field_taken(path, field="meta.blurb")[0] == ["b", "b"]
    for field, words in (("tale", "line 1, at byte 0, has no field 'tale'"), ("n", "has a number in its field 'n'")):
        with pytest.raises(DataError, match=words):
            field_taken(path, field=field)


def test_two_texts_of_like_length_without_a_known_name_are_not_guessed(written):
    assert "--story-field NAME" in refusal(written("a.json", '[{"a": "five", "b": "fiver"}]'))


def test_a_chat_with_parts_and_several_replies_is_one_story(written):
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": [{"type": "text", "text": "Once."}]},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "The end."},
    ]
    assert list(read_stories(written("a.jsonl", json.dumps({"messages": turns})))) == ["Once.\n\nThe end."]
    assert list(read_stories(written("a.json", json.dumps([turns, turns])))) == ["Once.\n\nThe end."] * 2


# ---- tables


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "string_view", "binary", "large_binary", "dictionary", "list"]
)
def test_a_column_of_any_type_that_holds_text_is_read(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    texts = [f"Caf\u00e9 {i}." for i in range(700)] + [None]
    if kind == "list":
        column = pa.array([[text] if text else [] for text in texts])
    elif kind == "dictionary":
        column = pa.array(texts, pa.large_string()).dictionary_encode()
    elif "binary" in kind:
        column = pa.array([text and text.encode() for text in texts], getattr(pa, kind)())
    else:
        column = pa.array(texts, getattr(pa, kind)())
    path = parquet(tmp_path / "p.parquet", title=["T"] * 701, text=column)
    assert list(read_stories(path)) == [*texts[:-1], ""]


@pytest.mark.parametrize("name", ["stream.arrow", "file.arrow", "file.feather"])
def test_arrow_streams_and_files_are_read_and_cut_ones_refused(tmp_path, name):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"label": [1] * 600, "text": [f"Story {i}." for i in range(600)]})
    path = tmp_path / name
    make = pa.ipc.new_stream if name.startswith("stream") else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=250)
    assert list(read_stories(path)) == table["text"].to_pylist()
    path.write_bytes(path.read_bytes()[:-3000])
    assert "is damaged or no" in refusal(path)


def test_csv_is_read_with_its_quotes_line_ends_and_separators(written):
    assert list(read_stories(written("a.csv", 'id,text\r\n1,"One,\n\n""two""."\r\n2,Three.\r\n'))) == [
        'One,\n\n"two".',
        "Three.",
    ]
    assert list(read_stories(written("b.csv", '\ufeffn;story\n1;"a;b"\n'))) == ["a;b"]
    assert list(read_stories(written("c.tsv", "Title\tText\nT\tOne, two\n"))) == ["One, two"]
    assert list(read_stories(written("d.csv", f'"{"Once upon a time. " * 9}"\n"Two."\n'))) == [
        "Once upon a time. " * 9,
        "Two.",
    ]


def test_faulty_csv_is_refused_with_the_line(written):
    assert "row that ends in line 3 is not valid CSV" in refusal(written("a.csv", 'id,text\n1,"a"\n2,"b" c\n'))
    assert "0x92 at offset 12 is not UTF-8" in refusal(written("b.csv", b"id,text\n1,it\x92s\n"))
    assert "row that ends in line 2 has no field" in refusal(written("c.csv", "id,title\n1,a\n"))


# ---- packed files


def packings():
    import bz2
    import gzip
    import lzma

    pa = pytest.importorskip("pyarrow")
    return {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    }


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_packed_files_are_read_and_cut_ones_refused(written, suffix):
    pack = packings()[suffix]
    contents = {
        "a.txt": "One.\n<|endoftext|>\nTwo.",
        "b.txt": "One.\n\nTwo.",
        "a.json": '["One.", "Two."]',
        "a.jsonl": '{"text": "One."}\n{"text": "Two."}',
        "a.csv": "id,text\n1,One.\n2,Two.\n",
    }
    for name, content in contents.items():
        path = written(name + suffix, pack(content.encode()))
        assert list(read_stories(path)) == ["One.", "Two."], name
        assert list(read_stories(written(name, path.read_bytes()))) == ["One.", "Two."], "by its first bytes"
    lines = "".join(f'{{"text": "Story {i} {i * i}."}}\n' for i in range(5000))
    assert "is damaged or cut short" in refusal(written("c.jsonl" + suffix, pack(lines.encode())[:-40]))
    assert "0xff at offset 2" in refusal(written("d.txt" + suffix, pack(b"a \xff b")))


def test_the_files_of_a_zip_are_read_one_after_the_other(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tales/b.jsonl", '{"text": "Two."}\n{"text": "Three."}')
        archive.writestr("tales/a.txt", "One.\n<|endoftext|>\n")
        archive.writestr("__MACOSX/tales/._a.txt", b"\x00\x05")
        archive.writestr("tales/cover.png", b"\x89PNG")
        archive.writestr("p.parquet", parquet(tmp_path / "p.parquet", text=["Zero."]).read_bytes())
    assert list(read_stories(tmp_path / "a.zip")) == ["Zero.", "One.", "Two.", "Three."]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("x.txt", b"a \xff b")
        archive.writestr("y.pdf", b"%PDF")
    assert "b.zip (x.txt): byte 0xff at offset 2" in refusal(tmp_path / "b.zip")
    (tmp_path / "c.zip").write_bytes(b"PK\x03\x04 cut")
    assert "is damaged or not a zip archive" in refusal(tmp_path / "c.zip")


# ---- what separates the stories of a .txt

SENTENCES = [f'Story {i} begins. "Is it yours?" asked a voice.' for i in range(40)]
WRAPPED = "Once there was a fox who lived\nin the deep dark wood and had\nneither friends nor a\nwarm coat.\n" * 10


@pytest.mark.parametrize(
    ("text", "stories", "said"),
    [
        ("\n".join(SENTENCES), 40, "one story per line"),
        ("\r\n".join(SENTENCES) + "\r\n\r\n", 40, "one story per line"),
        ("\n\n".join(SENTENCES), 40, "separated by blank lines"),
        ("\n".join(SENTENCES[:5]), 1, "separated by blank lines"),
        (WRAPPED, 1, "separated by blank lines"),
        ("\n\n".join([WRAPPED] * 3), 3, "separated by blank lines"),
        ("\n".join(SENTENCES) + "\n<|endoftext|>\nEnd.", 2, "separated by <|endoftext|>"),
    ],
)
def test_what_separates_stories_is_found_out_and_said(written, text, stories, said):
    reading = Reading()
    assert len(list(read_stories(written("t.txt", text), reading))) == stories
    assert [found.partition(" (")[0] for found in reading.found] == [said]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("separator", "stories"),
    [
        ("endoftext", ["A.\nB.\n\nC.", "D."]),
        ("blank-line", ["A.\nB.", "C.\n<|endoftext|>\nD."]),
        ("line", ["A.", "B.", "C.", "<|endoftext|>", "D."]),
        ("file", ["A.\nB.\n\nC.\n<|endoftext|>\nD."]),
    ],
)
def test_a_separator_that_was_asked_for_is_taken_whatever_there_is(written, separator, stories, block):
    path = written("t.txt", "A.\nB.\n\nC.\n<|endoftext|>\nD.\n")
    reading = Reading(separator=separator)
    assert list(read_stories(path, reading, block_bytes=block)) == stories
    assert "as you asked" in next(iter(reading.found))


# ---- .parquet


def test_parquet_stories_come_in_order_with_story_preferred(tmp_path):
    path = parquet(tmp_path / "p.parquet", text=["x", "y", "z"], story=["One.\r\n", None, "Caf\u00e9"], n=[1, 2, 3])
    assert list(read_stories(path)) == ["One.\n", "", "Caf\u00e9"]
    assert list(read_stories(parquet(tmp_path / "q.parquet", text=["t"] * 1000))) == ["t"] * 1000
    assert list(read_stories(parquet(tmp_path / "e.PARQUET", text=["u"]))) == ["u"]


def test_parquet_categories_are_stories_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = parquet(tmp_path / "p.parquet", story=pa.array(["a", "b", "a"]).dictionary_encode())
    assert list(read_stories(path)) == ["a", "b", "a"]


def test_parquet_without_a_column_of_stories_is_refused(tmp_path):
    message = refusal(parquet(tmp_path / "p.parquet", title=["a"], n=[1]))
    assert "'title' (a text), 'n' (a number)" in message and "story, text or content" in message
    assert "'story' (a number)" in refusal(parquet(tmp_path / "q.parquet", story=[1]))


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    binary = pa.array([b"fine", b"it\x92s"])
    text = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    assert "rows 0 to 1 of its text is not UTF-8 (byte 0x92)" in refusal(parquet(tmp_path / "p.parquet", story=text))


def test_damaged_parquet_is_refused(written, tmp_path):
    whole = parquet(tmp_path / "p.parquet", story=["Once."] * 100).read_bytes()
    for content in (
        b"no parquet",
        whole[:-9],
        whole[:50],
        b"PAR1" + whole[60:],
        whole[:30] + b"\xff" * 40 + whole[70:],
    ):
        assert "damaged or not a parquet file" in refusal(written("d.parquet", content))


def test_without_pyarrow_parquet_says_what_to_install_and_the_rest_works(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refusal(written("p.parquet", "PAR1"))
    assert list(read_stories(written("t.txt", "One."))) == ["One."]


# ---- files and folders


def test_what_is_no_readable_file_is_refused_before_the_first_story(tmp_path, written):
    cases = {
        tmp_path / "none.txt": "does not exist",
        tmp_path: "is a folder",
        written("x.pdf", "a"): ".txt, .json, .jsonl",
        written("empty.json", ""): "is empty (0 bytes)",
        written("file.txt", "a") / "b.txt": "cannot be read: Not a directory",
        tmp_path / ("n" * 300 + ".txt"): "cannot be read: File name too long",
    }
    (tmp_path / "folder.txt").mkdir()
    cases[tmp_path / "folder.txt"] = "is a folder"
    os.mkfifo(tmp_path / "pipe.txt")
    cases[tmp_path / "pipe.txt"] = "is a device or pipe"
    for path, reason in cases.items():
        with pytest.raises(DataError) as caught:
            read_stories(path)
        assert str(path) in str(caught.value) and reason in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused_with_the_command(written):
    path = written("t.txt", "a")
    path.chmod(0)
    assert "chmod u+r" in refusal(path)


def test_a_read_error_on_the_way_is_one_clear_error(written, monkeypatch):
    path = written("t.txt", "a")

    def failing(*_):
        raise PermissionError(13, "Permission denied")
        yield

    monkeypatch.setitem(readers._READERS, ".txt", failing)
    assert "cannot be read (Permission denied). Type: chmod u+r" in refusal(path)


@pytest.mark.parametrize("name", ["t.txt", "t.json", "t.jsonl", "t.parquet"])
def test_a_file_that_vanishes_before_it_is_opened_is_one_clear_error(written, name):
    path = written(name, "a")
    stories = read_stories(path)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        next(stories)


def test_the_suffix_counts_in_any_case(written):
    assert list(read_stories(written("T.TXT", "One."))) == ["One."]
    assert list(read_stories(written("T.Json", '["One."]'))) == ["One."]


# ---- memory

MEASURE = """
import sys
import pyarrow.parquet
from pathlib import Path
from storyladder.corpus.readers import read_stories
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024
before = peak()
for name in sys.argv[1:]:
    print(sum(1 for _ in read_stories(Path(name))), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    story, number = "Once upon a time \u2013 " * 400, 3000
    line = json.dumps({"text": story}, ensure_ascii=False)
    contents = {
        "blank_lines.txt": f"{story}\n\n" * number,
        "marked.txt": f"{story}\n<|endoftext|>\n" * number,
        "c.json": "[" + line + f",\n{line}" * (number - 1) + "]",
        "c.jsonl": f"{line}\n" * number,
    }
    paths = [tmp_path / name for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_text(content, encoding="utf-8")
    rows = [f"{row} {story[:4000]}" for row in range(number * 4)]
    paths.append(parquet(tmp_path / "p.parquet", {"compression": "none", "use_dictionary": False}, story=rows))
    assert all(path.stat().st_size > 24e6 for path in paths)

    output = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    read = [tuple(map(int, row.split())) for row in output.splitlines()]
    assert [stories for stories, _ in read] == [number] * 4 + [number * 4]
    assert all(megabytes < 12 for _, megabytes in read[:4]), read
    assert read[4][1] < 40, read  # pyarrow's own threads and pages
