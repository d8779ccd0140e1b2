"""Draw the losses of all stages of a trained ladder from runs/*.jsonl: the picture in README.md.

    python benchmarks/ladder_picture.py --preset demo      write docs/images/ladder-light.png and ladder-dark.png
    python benchmarks/ladder_picture.py --out DIR          the default ladder, in another folder

Lines are training losses, averaged over `log_interval` steps; dots are validation losses. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storyladder.command_line import Parser, load_ladder
from storyladder.runtime.errors import DataError, UserError, report, user_errors
from storyladder.settings import PROJECT, Ladder

_STAGES = ("#e8833a", "#2f9e6e", "#4b83e0")  # readable on both backgrounds; more stages reuse them
_INK = {"light": "#1f2328", "dark": "#e6edf3"}
_FAINT = {"light": "#59636e", "dark": "#9198a1"}
_DPI = 160


@dataclasses.dataclass(frozen=True)
class StageCurve:
    """The losses of one stage in nats per token, with their steps."""

    name: str
    train: list[tuple[int, float]]
    val: list[tuple[int, float]]

    @property
    def steps(self) -> int:
        """The last recorded step."""
        return max(step for step, _ in [*self.train, *self.val])


def curves_of(ladder: Ladder) -> list[StageCurve]:
    """One curve per stage that has an evaluation; DataError if none has."""
    from storyladder.runtime.run_log import read_records

    curves = []
    for stage in ladder.stages:
        path = ladder.folder("runs") / f"{stage.name}.jsonl"
        records = read_records(path) if path.exists() else []
        train = [(r["step"], r["train_loss"]) for r in records if r["event"] == "train"]
        val = [(r["step"], r["val_loss"]) for r in records if r["event"] == "evaluation"]
        if val:
            curves.append(StageCurve(stage.name, train, val))
    if not curves:
        raise DataError(f"no losses in {ladder.folder('runs')}; train a stage first: {ladder.command('train_tiny.py')}")
    return curves


def draw(curves: list[StageCurve], path: Path, theme: str) -> None:
    """Write one transparent PNG, with text colors for a light or dark page."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    figure, axis = pyplot.subplots(figsize=(8.4, 3.5))
    start = 0
    for number, curve in enumerate(curves):
        _draw_stage(axis, curve, start, number, theme)
        start += curve.steps
    lowest = min(loss for curve in curves for _, loss in [*curve.train, *curve.val])
    axis.set_yscale("log")
    axis.set(xlim=(-0.012 * start, 1.03 * start), ylim=(0.72 * lowest, 24))
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if tick > 0.72 * lowest]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("optimizer steps", color=_FAINT[theme])
    axis.set_ylabel("loss (nats per token)", color=_FAINT[theme])
    axis.tick_params(which="both", colors=_FAINT[theme], length=0)
    axis.grid(axis="y", which="major", color=_FAINT[theme], alpha=0.25, linewidth=0.7)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    for spine in axis.spines.values():
        spine.set_visible(False)
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=_DPI, transparent=True)
    pyplot.close(figure)


def _draw_stage(axis: Any, curve: StageCurve, start: int, number: int, theme: str) -> None:
    """Draw a band, a line, dots, and the first and last validation loss as numbers."""
    color = _STAGES[number % len(_STAGES)]
    axis.axvspan(start, start + curve.steps, color=color, alpha=0.07, linewidth=0)
    axis.plot([start + step for step, _ in curve.train], [loss for _, loss in curve.train], color=color, linewidth=1.3)
    steps, losses = zip(*curve.val, strict=True)
    axis.plot(
        [start + step for step in steps], losses, "o", color=color, markersize=5, markeredgecolor=_INK[theme], mew=0.8
    )
    axis.text(start + curve.steps / 2, 17, f"{number + 1}. {curve.name}", color=_INK[theme], ha="center", weight="bold")
    gap = {"textcoords": "offset points", "color": _INK[theme], "fontsize": 9}
    axis.annotate(f"{losses[0]:.2f}", (start + steps[0], losses[0]), xytext=(8, 1), **gap)
    axis.annotate(f"{losses[-1]:.2f}", (start + steps[-1], losses[-1]), xytext=(-5, -14), ha="right", **gap)


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
        curves = curves_of(load_ladder(flags.config, flags.preset))
        flags.out.mkdir(parents=True, exist_ok=True)
        for theme in _INK:
            draw(curves, flags.out / f"ladder-{theme}.png", theme)
            report(f"wrote {flags.out / f'ladder-{theme}.png'}")


if __name__ == "__main__":
    main()
