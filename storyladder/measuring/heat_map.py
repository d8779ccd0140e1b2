"""The matrix as a picture: a field for every model and text, darker where it is further from the best stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from storyladder.measuring.matrix import MEASURED_ROW
from storyladder.measuring.plots import draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DARKEST = 1.0  # a relative change of bits per byte; beyond it the color stays
_PER_FIELD = (1.7, 0.6)  # inches


def draw_heat_map(path: Path, rows: Sequence[MEASURED_ROW]) -> Path | None:
    """Write the picture; returns its path, or None, after one line, without matplotlib or room on the disk."""
    return draw(path, lambda: _figure(rows))


def _figure(rows: Sequence[MEASURED_ROW]) -> Figure:
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["checkpoint"] for row in rows))
    texts = list(dict.fromkeys(row["corpus"] for row in rows))
    of = {(row["checkpoint"], row["corpus"]): row for row in rows}
    shades = [[_shade(of[model, text]) for text in texts] for model in models]
    width = 2.6 + _PER_FIELD[0] * len(texts)
    figure = Figure(figsize=(width, 1.6 + _PER_FIELD[1] * len(models)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    axes.set_xticks(range(len(texts)), texts)
    axes.set_yticks(range(len(models)), [_short(model) for model in models])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, model in enumerate(models):
        for x, text in enumerate(texts):
            color = "white" if shades[y][x] > 0.6 else "black"
            axes.text(x, y, _label(of[model, text]), ha="center", va="center", color=color, fontsize=9)
    axes.set_xlabel(f"bits per byte ({rows[0]['protocol']}), and change against the best stage on that text")
    return figure


def _shade(row: MEASURED_ROW) -> float:
    """0 for the best stage, 1 for _DARKEST or worse."""
    return min(1.0, max(0.0, (row["change"] or 0.0) / _DARKEST))


def _label(row: MEASURED_ROW) -> str:
    change = row["change"]
    beside = "" if change is None else "\nbest" if change == 0 else f"\n{change:+.1%}"
    return f"{row['bits_per_byte']:.3f}{beside}"


def _short(model: str) -> str:
    return model if len(model) <= 24 else f"...{model[-22:]}"
