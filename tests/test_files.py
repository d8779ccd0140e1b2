"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "new \ud800")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match=r"table\.md"):
        replace_text(path / "below a file", "new")
