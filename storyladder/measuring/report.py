"""`python evaluate.py --report`: pictures, reports/index.html and reports/MODEL_CARD.md, views of a ladder's files."""

from __future__ import annotations

import os
from pathlib import Path

from storyladder.measuring.facts import read_facts
from storyladder.measuring.model_card import model_card
from storyladder.measuring.page import page
from storyladder.measuring.plots import draw_ladder, draw_stage
from storyladder.runtime.errors import UserError
from storyladder.settings import Ladder


def write_report(ladder: Ladder) -> list[Path]:
    """Write all views of what the ladder's files hold; returns the paths written.

    UserError if there is nothing to report or a file cannot be written; DataError if a file is damaged.
    """
    facts = read_facts(ladder)
    folder = ladder.folder("reports")
    if facts.is_empty:
        raise UserError(
            f"there is nothing to report: no record in {ladder.folder('runs')} and no evaluation in {folder}; "
            f"first run {ladder.command(ladder.stages[0].script)}, then {ladder.command('evaluate.py')}"
        )
    texts = {folder / "index.html": page(facts), folder / "MODEL_CARD.md": model_card(facts)}
    pictures = [draw_stage(ladder, history.stage) for history in facts.histories]
    pictures += [draw_ladder(ladder)] if facts.histories else []
    for path, text in texts.items():
        _write(path, text)
    return [*texts, *(path for path in pictures if path is not None)]


def _write(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); free some space or check the folder") from None
