"""Draw the losses of all stages of a trained ladder from runs/*.jsonl: the picture in README.md.

    python benchmarks/ladder_picture.py --preset demo      write docs/images/ladder-light.png and ladder-dark.png
    python benchmarks/ladder_picture.py --out DIR          the default ladder, in another folder

The same picture as reports/ladder.png (storyladder/measuring/plots.py), without a background. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storyladder.command_line import Parser, load_ladder
from storyladder.runtime.errors import DataError, UserError, report, user_errors
from storyladder.settings import PROJECT


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=PROJECT / "docs" / "images", metavar="DIR", help="(docs/images)")
    flags = parser.parse(argv)
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("pictures need matplotlib; run python -m pip install matplotlib")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Draw both pictures."""
    with user_errors():
        flags = arguments(argv)
        ladder = load_ladder(flags.config, flags.preset)
        from storyladder.measuring.history import histories_of
        from storyladder.measuring.plots import DARK, LIGHT, ladder_figure, save

        histories = histories_of(ladder)
        if not histories:
            first = ladder.command("train_tiny.py")
            raise DataError(f"no losses in {ladder.folder('runs')}; train a stage first: {first}")
        for name, theme in (("light", LIGHT), ("dark", DARK)):
            path = flags.out / f"ladder-{name}.png"
            save(ladder_figure(histories, dataclasses.replace(theme, paper="none")), path)
            report(f"wrote {path}")


if __name__ == "__main__":
    main()
