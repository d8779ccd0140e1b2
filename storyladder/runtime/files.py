"""Small text files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from storyladder.runtime.errors import SaveFailed


def replace_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then give it its own, so that no reader ever meets a part of it.

    Creates its folder. SaveFailed if the disk refuses; the file is then as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="replace")
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise SaveFailed(
            f"cannot write {path} ({error.strerror}); free some space, or check the folder and its permissions"
        ) from None
