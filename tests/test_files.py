"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from storyladder.runtime.errors import SaveFailed
from storyladder.runtime.files import replace_text


def test_a_file_is_replaced_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.md"
    replace_text(path, "first\n")
    replace_text(path, "zweite Zeile: größer\n")
    assert path.read_text(encoding="utf-8") == "zweite Zeile: größer\n"
    assert [item.name for item in path.parent.iterdir()] == ["table.md"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    replace_text(path, "old")
    with pytest.raises(SaveFailed, match=r"cannot write .*below a file .*; free some space"):
        replace_text(path / "below a file", "new")
    (tmp_path / "table.md.partial").mkdir()
    with pytest.raises(SaveFailed, match=r"cannot write .*table\.md "):
        replace_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"


def test_what_is_no_text_is_replaced_and_stops_nothing(tmp_path: Path) -> None:
    replace_text(tmp_path / "story.md", "half a \ud800 pair")
    assert (tmp_path / "story.md").read_text(encoding="utf-8") == "half a ? pair"
