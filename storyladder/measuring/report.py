"""`python evaluate.py --report`: pictures, reports/index.html and reports/MODEL_CARD.md, views of a ladder's files."""

from __future__ import annotations

from pathlib import Path

from storyladder.measuring.facts import read_facts
from storyladder.measuring.model_card import model_card
from storyladder.measuring.page import page
from storyladder.measuring.plots import draw_ladder, draw_stage
from storyladder.runtime.errors import UserError
from storyladder.runtime.files import replace_text
from storyladder.settings import Ladder


def write_report(ladder: Ladder) -> list[Path]:
    """Write all views of what the ladder's files hold; returns the paths written.

    UserError if there is nothing to report; SaveFailed if a file cannot be written; DataError if a file is damaged.
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
        replace_text(path, text)
    return [*texts, *(path for path in pictures if path is not None)]
