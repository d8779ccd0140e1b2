"""Stories out of the four kinds of files, whatever their quirks, and clear refusals with the right byte."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from storyladder.corpus import readers
from storyladder.corpus.readers import read_stories, story_files
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
    monkeypatch.setattr(readers, "MAX_STORY_BYTES", 1000)
    endless = "x" * 1001
    for block in (64, 1 << 20):
        path = written("t.txt", f"One.\n\n{endless}\n\nTwo.")
        assert "byte 6 " in refusal(path, block_bytes=block)
        assert "byte 17 " in refusal(written("t.txt", f"One.<|endoftext|>{endless}"), block_bytes=block)
        assert "byte 9 " in refusal(written("t.json", f'["One.", "{endless}"]'), block_bytes=block)
        assert "byte 7 " in refusal(written("t.jsonl", f'"One."\n"{endless}"'), block_bytes=block)
    assert "row 700 " in refusal(parquet(path.with_name("u.parquet"), text=["One."] * 700 + [endless]))


# ---- .json


def test_an_array_as_the_children_stories_have_it(written):
    records = [
        {"prompt": "p", "text": 'One.\n\n\u201cTwo\u201d \U0001f600\\"', "text_token_length": 10**5000 % 7},
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


def test_text_is_preferred_to_story_and_null_is_an_empty_story_and_strings_are_stories(written):
    text = '[{"story": "s", "text": "t"}, {"story": "s"}, {"text": null}, "plain\\r\\nstory"]'
    assert list(read_stories(written("c.json", text))) == ["t", "s", "", "plain\nstory"]
    lines = '{"story": "s", "text": "t"}\n\n{"story": "s"}\r\n{"text": null}\n"plain\\r\\nstory"'
    assert list(read_stories(written("c.jsonl", lines))) == ["t", "s", "", "plain\nstory"]


def test_an_empty_array_has_no_stories(written):
    assert list(read_stories(written("c.json", " [ ] \n"))) == []


def test_lone_surrogates_reach_the_cleaning(written):
    assert list(read_stories(written("c.json", '["a\\ud800b", "\\ud83d\\ude00"]'))) == ["a\ud800b", "\U0001f600"]


def test_a_record_without_a_story_is_refused_with_its_number_byte_and_fields(written):
    text = '[{"text": "caf\u00e9"},\n {"title": "x", "body": "y"}]'
    at = text.encode().index(b'{"title')
    for block in (3, 1 << 20):
        message = refusal(written("c.json", text), block_bytes=block)
        assert f"record 2, at byte {at}," in message and "'title', 'body'" in message and "text or story" in message
    message = refusal(written("c.jsonl", '{"text": "\u00e9"}\n{"title": "x"}'))
    assert "line 2, at byte 15," in message and "'title'" in message


@pytest.mark.parametrize(
    ("record", "kind"), [("[1]", "an array"), ("12", "a number"), ("true", "true or false"), ("null", "null")]
)
def test_a_record_that_is_neither_object_nor_text_is_refused(written, record, kind):
    assert f"record 1, at byte 1, is {kind}" in refusal(written("c.json", f"[{record}]"))
    assert f"line 1, at byte 0, is {kind}" in refusal(written("c.jsonl", record))
    if kind != "null":
        assert f"has {kind} in its field 'text'" in refusal(written("d.jsonl", f'{{"text": {record}}}'))


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
        assert f"byte {text.encode().rindex(b'{')}" in message and "python prepare_data.py" in message
    assert "cut short" in refusal(written("c.jsonl", '{"text": "a"}\n{"text": "b'))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ('[{"text": "\u00e9"} {"text": "b"}]', 16),
        ('[{"text": "\u00e9"}] x', 17),
        ('[{"text": "\u00e9"},]', 16),
        ('[{"text": "\u00e9" "n": 1}, {"text": "a long story follows"}]', 15),
        ('[{"text": "\u00e9\n"}, {"text": "a long story follows"}]', 13),
        ('[{"text": "\u00e9\\x"}, {"text": "a long story follows"}]', 13),
        ('[{\'text\': 1}, {"text": "a long story follows"}]', 2),
    ],
)
def test_faulty_json_is_refused_with_the_byte_of_the_fault(written, text, at):
    for block in BLOCKS:
        assert f"not valid JSON at byte {at}:" in refusal(written("c.json", text), block_bytes=block)


def test_a_faulty_line_is_refused_with_its_number_and_the_byte_of_the_fault(written):
    message = refusal(written("c.jsonl", '{"text": "\u00e9"}\n{"text": "\u00e9" "n": 1}\n{"text": "a"}\n'))
    assert "line 2 is not valid JSON at byte 29:" in message


@pytest.mark.parametrize("block", range(1, 20))
def test_the_offset_of_a_record_is_right_when_the_block_ends_within_a_later_character(written, block):
    assert "record 1, at byte 1," in refusal(written("c.json", '[{"n": 1}, "\U0001f600\U0001f600"]'), block_bytes=block)


@pytest.fixture
def reads(monkeypatch):
    """One entry for every block that is read."""
    blocks = []
    check = readers._check_no_nul
    monkeypatch.setattr(readers, "_check_no_nul", lambda *block: (blocks.append(block), check(*block)))
    return blocks


def test_a_fault_is_reported_without_reading_the_rest_of_the_file(written, reads):
    refusal(written("c.json", '[{"text": 1 2}' + " " * 100_000), block_bytes=64)
    assert len(reads) < 3


@pytest.mark.parametrize(("name", "start"), [("t.txt", ""), ("m.txt", "<|endoftext|>"), ("c.json", '["')])
def test_a_long_story_is_read_in_growing_blocks_so_that_its_cost_stays_linear(written, reads, name, start):
    story = "x" * 100_000
    path = written(name, start + story + ('"]' if start == '["' else ""))
    assert list(read_stories(path, block_bytes=16)) == [story]
    assert len(reads) < 20


@pytest.mark.parametrize(("name", "start"), [("t.txt", ""), ("c.json", '["'), ("c.jsonl", '"')])
def test_an_endless_story_is_refused_before_it_is_held(written, monkeypatch, name, start):
    monkeypatch.setattr(readers, "MAX_STORY_BYTES", 50_000)
    path = written(name, start + "x" * 4_000_000)
    tracemalloc.start()
    try:
        message = refusal(path, block_bytes=1000)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "longer than" in message
    assert most < 1_000_000


def test_arrays_and_lines_that_are_mixed_up_are_refused_with_the_new_name(written):
    path = written("c.json", '{"text": "a"}\n{"text": "b"}\n')
    assert f"mv {path} {path}l" in refusal(path)
    for text in ('[{"text": "a"}]', '[\n{"text": "a"}\n]'):
        path = written("d.jsonl", text)
        assert f"mv {path} {path.with_suffix('.json')}" in refusal(path)
    assert "begins with '<' at byte 0" in refusal(written("e.json", "<html>404</html>"))
    assert "begins with nothing" in refusal(written("f.json", " \n"))


def test_deep_nesting_and_endless_numbers_do_not_crash(written):
    assert "nested too deep" in refusal(written("c.json", "[" * 200_000))
    assert "nested too deep" in refusal(written("c.jsonl", '{"a":' * 200_000))
    assert list(read_stories(written("d.json", f'[{{"text": "a", "n": {"9" * 5000}}}]'))) == ["a"]


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
        (b"\x1f\x8b\x08\x00", "gunzip"),
        (b"PK\x03\x04\x00", "unzip"),
        (b"PAR1\x15", ".parquet"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_known_foreign_formats_are_named_with_the_command_that_opens_them(written, content, remedy):
    assert remedy in refusal(written("t.txt", content))


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
    assert "'title', 'n'" in message and "story or text" in message
    assert "int64" in refusal(parquet(tmp_path / "q.parquet", story=[1]))


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    binary = pa.array([b"fine", b"it\x92s"])
    text = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    assert "rows 0 to 1 of column 'story' is not UTF-8 (byte 0x92)" in refusal(
        parquet(tmp_path / "p.parquet", story=text)
    )


def test_damaged_parquet_is_refused(written, tmp_path):
    whole = parquet(tmp_path / "p.parquet", story=["Once."] * 100).read_bytes()
    for content in (
        b"no parquet",
        whole[:-9],
        whole[:50],
        b"PAR1" + whole[60:],
        whole[:30] + b"\xff" * 40 + whole[70:],
    ):
        assert "damaged or no parquet file" in refusal(written("d.parquet", content))


def test_without_pyarrow_parquet_says_what_to_install_and_the_rest_works(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refusal(written("p.parquet", "PAR1"))
    assert list(read_stories(written("t.txt", "One."))) == ["One."]


# ---- files and folders


def test_what_is_no_readable_file_is_refused_before_the_first_story(tmp_path, written):
    cases = {
        tmp_path / "none.txt": "does not exist",
        tmp_path: "is a folder",
        written("x.csv", "a"): ".txt, .json, .jsonl or .parquet",
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
    assert "may not be read (Permission denied). Type: chmod u+r" in refusal(path)


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


def test_story_files_are_sorted_and_nothing_else_of_the_folder_is_one(written, tmp_path):
    wanted = ["a.JSON", "b.txt", "c.jsonl", "d.parquet"]
    for name in [*reversed(wanted), ".hidden.txt", "e.txt.part", "train.bin", "train.bin.json", "README.md"]:
        written(name, "x")
    (tmp_path / "sub.txt").mkdir()
    assert [path.name for path in story_files(tmp_path)] == wanted
    with pytest.raises(DataError, match="not a folder"):
        story_files(tmp_path / "none")


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
