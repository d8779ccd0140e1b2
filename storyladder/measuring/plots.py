"""Pictures of training for people: reports/STAGE/train.png and reports/ladder.png, drawn with matplotlib.

Training losses are drawn as recorded, pale, with one moving average on top that names its half-life; validation losses
are never smoothed. matplotlib is imported only while drawing; a machine without it gets one line.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from storyladder.measuring.history import (
    Floats,
    History,
    ema,
    even_ticks,
    half_life_for,
    histories_of,
    log_ticks,
    read_history,
    short,
    thin,
)
from storyladder.runtime.errors import report
from storyladder.settings import Ladder, StageConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 160
_NARROWEST = 0.16  # of the picture's width, for the shortest stage of a ladder
_LOWEST_LOSS_RATIO = 0.8  # room below the lowest loss
_TICK_DISTANCE = 0.045  # of the height of an axis
_MANY_EVALUATIONS = 60  # in the whole width; more get smaller dots
_PERPLEXITIES = (1.1, 1.5, 2, 3, 5, 10, 20, 50, 100, 1_000, 10_000, 100_000)


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colors that are told apart also by the color-blind (Okabe and Ito, 2008)."""

    ink: str
    faint: str
    train: str
    val: str
    paper: str  # "none": transparent


LIGHT = Theme(ink="#1f2328", faint="#59636e", train="#0072b2", val="#d55e00", paper="white")
DARK = Theme(ink="#e6edf3", faint="#9198a1", train="#56b4e9", val="#e69f00", paper="none")


def draw_stage(ladder: Ladder, stage: StageConfig) -> Path | None:
    """Draw loss, perplexity, gradient norm and learning rate of a stage into reports/STAGE/train.png.

    Returns None, after one line on stderr, if there is nothing to draw, no matplotlib, or no room on the disk.
    """
    history = read_history(ladder, stage)
    if history is None:
        report(f"no picture of stage {stage.name}: it has no recorded loss yet; run {ladder.command(stage.script)}")
        return None
    return draw(ladder.folder("reports") / stage.name / "train.png", lambda: stage_figure(history))


def draw_ladder(ladder: Ladder) -> Path | None:
    """Draw the losses of all stages side by side into reports/ladder.png; returns None as draw_stage does."""
    histories = histories_of(ladder)
    if not histories:
        first = ladder.command(ladder.stages[0].script)
        report(f"no picture of the ladder: no stage has a recorded loss yet; run {first}")
        return None
    return draw(ladder.folder("reports") / "ladder.png", lambda: ladder_figure(histories, LIGHT))


def draw(path: Path, figure: Callable[[], Figure]) -> Path | None:
    """Save what `figure` draws; None, after one line, without matplotlib or if the file cannot be written."""
    try:
        save(figure(), path)
    except ImportError as error:
        report(f"no {path.name}: {error}; pictures need matplotlib: python -m pip install matplotlib")
        return None
    except OSError as error:
        report(f"warning: cannot write {path} ({error.strerror})")
        return None
    return path


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, format="png", dpi=_DPI)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def stage_figure(history: History, theme: Theme = LIGHT) -> Figure:
    """Loss over tokens, the latter logarithmic but for the first record; below, gradient norm and learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 6.6), facecolor=theme.paper, layout="constrained")
    heights = (3.4, 1, 0.7) if len(history.steps) else (1,)
    axes = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    for axis in axes:
        _plain(axis, theme)
    _draw_losses(axes[0], history, theme, logarithmic=True)
    _scale_tokens(axes[-1], history)
    if len(history.steps):
        _label_losses(axes[0], history, theme)
        _draw_below(axes[1], history, history.grad_norm, "gradient norm", theme)
        _draw_below(axes[2], history, history.lr, "learning rate", theme)
        axes[2].set_ylim(bottom=0)
    axes[-1].set_xlabel("tokens read", color=theme.faint)
    until = f"{history.last_step:,} steps, {short(history.tokens)} tokens"
    axes[0].set_title(
        f"{history.name}: {until}{'' if history.finished else ', unfinished'}",
        loc="left",
        color=theme.ink,
        weight="bold",
    )
    return figure


def ladder_figure(histories: list[History], theme: Theme) -> Figure:
    """The losses of all stages, one panel each, as wide as its share of the tokens if that is legible."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(8.4, 4), facecolor=theme.paper, layout=ConstrainedLayoutEngine(wspace=0.01))
    widths = panel_widths(histories)
    axes = figure.subplots(1, len(histories), sharey=True, gridspec_kw={"width_ratios": widths}, squeeze=False)[0]
    low, high = loss_range(histories)
    read = 0
    for number, (axis, history) in enumerate(zip(axes, histories, strict=True), 1):
        _plain(axis, theme)
        _draw_losses(axis, history, theme, logarithmic=False, width=widths[number - 1])
        axis.set_yscale("log")
        axis.set_ylim(_LOWEST_LOSS_RATIO * low, 1.12 * high)
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{number}. {history.name}", color=theme.ink, weight="bold", fontsize=11)
        end = max(history.tokens, 1)
        axis.set_xlim(-0.02 * end, 1.03 * end)
        ticks = [tick for tick in even_ticks(0, end, max(2, round(9 * widths[number - 1]))) if tick < 0.88 * end]
        axis.set_xticks(ticks, [short(read + tick) for tick in ticks])
        axis.axvline(-0.02 * end, color=theme.faint, linewidth=0.8, alpha=0.6)
        _label_ends(axis, history, theme)
        read += history.tokens
    ticks = log_ticks(_LOWEST_LOSS_RATIO * low, high)
    axes[0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].set_ylabel("loss (nats per token)", color=theme.faint)
    _perplexity_scale(axes[-1], theme)
    figure.supxlabel(_ladder_caption(histories), color=theme.faint, fontsize=9)
    return figure


def panel_widths(histories: list[History]) -> list[float]:
    """Shares of the picture's width: of the tokens, but at least _NARROWEST each; they add up to 1."""
    all_tokens = sum(history.tokens for history in histories) or 1
    floor = min(_NARROWEST, 1 / len(histories))
    shares = [max(floor, history.tokens / all_tokens) for history in histories]
    spare, over = 1 - floor * len(shares), sum(share - floor for share in shares)
    return [
        floor + (share - floor) * (spare / over if over else 0) + (0 if over else spare / len(shares))
        for share in shares
    ]


def loss_range(histories: list[History]) -> tuple[float, float]:
    """The lowest loss, and the highest one that is worth its room: a spike may leave the picture at the top."""
    losses = np.concatenate([part for history in histories for part in (history.train_loss, history.val_loss)])
    ceiling = max(1.5 * histories[0].ln_vocabulary, *(float(h.val_loss.max(initial=0)) for h in histories))
    highest = max(float(losses.max()), histories[0].ln_vocabulary)
    return max(1e-3, float(losses.min())), min(highest, ceiling)


def _ladder_caption(histories: list[History]) -> str:
    lives = sorted({life for history in histories if (life := half_life_for(history.steps))})
    smooth = f" (EMA, half-life {' or '.join(f'{life:,}' for life in lives)} steps)" if lives else ""
    curves = f"dots: validation loss; line: training loss{smooth}; dotted: knows nothing yet"
    return f"tokens read, all stages together\n{curves}"


def _plain(axis: Any, theme: Theme) -> None:
    """No frame, a faint grid."""
    axis.set_facecolor("none")
    axis.tick_params(which="both", colors=theme.faint, length=0, labelsize=9)
    axis.grid(axis="y", which="major", color=theme.faint, alpha=0.25, linewidth=0.7)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_losses(axis: Any, history: History, theme: Theme, *, logarithmic: bool, width: float = 1) -> None:
    """Recorded training losses, their average, validation losses, and the loss of a model that knows nothing."""
    life = half_life_for(history.steps)
    if life is None:
        axis.plot(*_curve(history, history.train_loss, logarithmic), color=theme.train, linewidth=1.4)
    else:
        axis.plot(*_curve(history, history.train_loss, logarithmic), color=theme.train, alpha=0.3, linewidth=0.8)
        average = ema(history.steps, history.train_loss, life)
        axis.plot(*_curve(history, average, logarithmic), color=theme.train, linewidth=1.6)
    axis.axhline(history.ln_vocabulary, color=theme.faint, linestyle=":", linewidth=1)
    places = history.tokens_per_step * history.eval_steps
    axis.plot(places, history.val_loss, color=theme.val, linewidth=1, alpha=0.7)
    size = 4.5 if len(places) <= _MANY_EVALUATIONS * width else 2
    axis.plot(places, history.val_loss, "o", color=theme.val, markersize=size, clip_on=False)


def _curve(history: History, values: Floats, logarithmic: bool) -> tuple[Floats, Floats]:
    """Tokens and values of the points to draw."""
    known = np.isfinite(values)
    tokens, values = history.tokens_per_step * history.steps[known], values[known]
    kept = thin(np.log(tokens) if logarithmic else tokens, values)
    return tokens[kept], values[kept]


def _scale_tokens(axis: Any, history: History) -> None:
    """Logarithmic from the first record on, linear before, so that step 0 has a place."""
    later = [step for step in (*history.steps[:1], *history.eval_steps[:2]) if step > 0]
    end = max(history.tokens, 1)
    first = history.tokens_per_step * min(later, default=1)
    axis.set_xscale("symlog", linthresh=first, linscale=0.35)
    axis.set_xlim(0, 1.12 * max(end, first))
    ticks = [0.0, *(tick for tick in log_ticks(first, end) if tick > 1.2 * first or tick == first)]
    axis.set_xticks(ticks, [short(tick) for tick in ticks])
    axis.minorticks_off()


def _label_losses(axis: Any, history: History, theme: Theme) -> None:
    """Names written next to the curves, ln V, the best evaluation, and perplexity on the right."""
    low, high = loss_range([history])
    room = 0.06 * (high - low)
    axis.set_ylim(max(0, low - 2 * room), high + room)
    axis.set_ylabel("loss (nats per token)", color=theme.faint)
    _perplexity_scale(axis, theme)
    text = {"textcoords": "offset points", "fontsize": 9}
    axis.annotate(
        f"knows nothing yet: ln {history.vocab_size:,} = {history.ln_vocabulary:.2f}",
        (1, history.ln_vocabulary),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -4),
        ha="right",
        va="top",
        color=theme.faint,
        **text,
    )
    life = half_life_for(history.steps)
    label = "training loss" if life is None else f"training loss, EMA with a half-life of {life:,} steps"
    drawn = history.train_loss if life is None else ema(history.steps, history.train_loss, life)
    at = min(len(drawn) - 1, int(np.searchsorted(history.steps, (history.steps[0] * history.steps[-1]) ** 0.5)))
    place = (history.tokens_per_step * history.steps[at], drawn[at])
    axis.annotate(label, place, xytext=(8, 6), color=theme.train, va="bottom", **text)
    if best := history.best:
        label = (
            f"validation loss, lowest {best['val_loss']:.3f}\n(perplexity {math.exp(min(best['val_loss'], 50)):,.1f})"
        )
        place = (history.tokens_per_step * best["step"], best["val_loss"])
        axis.annotate(label, place, xytext=(-8, -8), ha="right", va="top", color=theme.val, **text)


def _label_ends(axis: Any, history: History, theme: Theme) -> None:
    """The first and the lowest validation loss of a stage, as numbers."""
    if not history.evaluations:
        return
    text = {"textcoords": "offset points", "color": theme.ink, "fontsize": 9}
    first, best = history.evaluations[0], history.best
    assert best is not None
    axis.annotate(
        f"{first['val_loss']:.2f}", (history.tokens_per_step * first["step"], first["val_loss"]), xytext=(6, 2), **text
    )
    if best is not first:
        place = (history.tokens_per_step * best["step"], best["val_loss"])
        axis.annotate(f"{best['val_loss']:.2f}", place, xytext=(0, -6), ha="right", va="top", **text)


def _perplexity_scale(axis: Any, theme: Theme) -> None:
    """Perplexity, exp(loss), on the right."""
    low, high = axis.get_ylim()
    right = axis.twinx()
    _plain(right, theme)
    right.grid(False)
    right.set_yscale(axis.get_yscale())
    right.set_ylim(low, high)
    shown = perplexity_ticks(
        low, high, lambda loss: float(axis.transLimits.transform(axis.transScale.transform((1, loss)))[1])
    )
    right.set_yticks([math.log(p) for p in shown], [f"{p:,}" for p in shown])
    right.minorticks_off()
    right.set_ylabel("perplexity", color=theme.faint)


def perplexity_ticks(low: float, high: float, place: Callable[[float], float]) -> list[float]:
    """Round perplexities whose losses lie from `low` to `high`, far enough apart: `place` is 0 at low and 1 at high."""
    ticks: list[float] = []
    for perplexity in reversed(_PERPLEXITIES):
        loss = math.log(perplexity)
        if low <= loss <= high and (not ticks or place(math.log(ticks[-1])) - place(loss) > _TICK_DISTANCE):
            ticks.append(perplexity)
    return ticks[::-1]


def _draw_below(axis: Any, history: History, values: Floats, name: str, theme: Theme) -> None:
    """A lower panel: one quantity as recorded."""
    axis.plot(*_curve(history, values, logarithmic=True), color=theme.train, linewidth=0.9)
    axis.set_ylabel(name, color=theme.faint, fontsize=9)
    known = values[np.isfinite(values) & (values > 0)]
    if name == "gradient norm" and len(known) and known.max() > 20 * np.median(known):
        axis.set_yscale("log")
