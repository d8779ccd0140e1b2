"""The curves of the report as inline SVG, colored by the page's style sheet, so that they follow its dark scheme.

Draws what plots.py draws, without matplotlib: losses, gradient norm and learning rate of all stages on one time line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from html import escape

import numpy as np

from storyladder.measuring.history import (
    Floats,
    History,
    ema,
    even_ticks,
    half_life_for,
    log_ticks,
    short,
    thin,
)
from storyladder.measuring.plots import loss_range, panel_widths, perplexity_ticks

_LEFT, _RIGHT, _TOP, _GAP = 42, 48, 50, 10  # pixels
_LOSS, _STRIP, _BETWEEN, _BOTTOM = 270, 56, 22, 34
_WIDEST_TICK = 46
_LETTER, _LINE = 7, 14  # of a stage's name


@dataclasses.dataclass(frozen=True)
class _Panel:
    """Where a stage's part of the chart lies, in pixels, and the tokens read before it."""

    history: History
    left: float
    width: float
    read: int

    def x(self, tokens: Floats) -> Floats:
        """Pixels of tokens read in this stage."""
        return self.left + tokens / max(self.history.tokens, 1) * self.width


@dataclasses.dataclass(frozen=True)
class _Scale:
    """A vertical axis from `low` to `high`, logarithmic if so wanted."""

    top: float
    height: float
    low: float
    high: float
    logarithmic: bool

    def part(self, value: float) -> float:
        """0 at low and 1 at high."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    def y(self, values: Floats) -> Floats:
        """Pixels; values outside the axis are drawn at its end."""
        values = np.clip(values, self.low, self.high)
        low, high = (math.log(v) if self.logarithmic else v for v in (self.low, self.high))
        values = np.log(values) if self.logarithmic else values
        return self.top + self.height * (1 - (values - low) / (high - low))


def ladder_chart(histories: list[History], width: int) -> str:
    """One SVG of `width` pixels with the curves of all stages."""
    panels = _panels(histories, width)
    low, high = loss_range(histories)
    losses = _Scale(_TOP, _LOSS, 0.8 * low, 1.12 * high, True)
    strips = _strips(histories)
    height = _TOP + _LOSS + len(strips) * (_BETWEEN + _STRIP) + _BOTTOM
    parts = [_loss_axis(losses, width)]
    for number, panel in enumerate(panels, 1):
        parts += _stage_losses(panel, losses, number, height - _BOTTOM)
        for _, values_of, scale in strips:
            values = values_of(panel.history)
            parts.append(_line(panel, scale, panel.history.steps, values, "thin"))
        parts += _token_ticks(panel, height - _BOTTOM + 16)
    for name, _, scale in strips:
        parts += _strip_axis(name, scale, width)
    parts.append(_text(_LEFT, height - 2, "tokens read, all stages together", "tick"))
    label = "Losses, gradient norm and learning rate over tokens read, stage by stage"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _panels(histories: list[History], width: int) -> list[_Panel]:
    room = width - _LEFT - _RIGHT - _GAP * (len(histories) - 1)
    panels, left, read = [], float(_LEFT), 0
    for history, share in zip(histories, panel_widths(histories), strict=True):
        panels.append(_Panel(history, left, room * share, read))
        left, read = left + room * share + _GAP, read + history.tokens
    return panels


def _strips(histories: list[History]) -> list[tuple[str, Callable[[History], Floats], _Scale]]:
    """The panels below the losses: name, values, axis; none without a training record."""
    strips: list[tuple[str, Callable[[History], Floats], _Scale]] = []
    quantities: tuple[tuple[str, Callable[[History], Floats]], ...] = (
        ("gradient norm", lambda history: history.grad_norm),
        ("learning rate", lambda history: history.lr),
    )
    for name, values_of in quantities:
        values = np.concatenate([values_of(history) for history in histories])
        values = values[np.isfinite(values) & (values > 0)]
        if len(values):
            spiky = name == "gradient norm" and float(values.max()) > 20 * float(np.median(values))
            top = _TOP + _LOSS + len(strips) * (_STRIP + _BETWEEN) + _BETWEEN
            low = float(values.min()) if spiky else 0.0
            strips.append((name, values_of, _Scale(top, _STRIP, low, 1.02 * float(values.max()), spiky)))
    return strips


def _loss_axis(scale: _Scale, width: int) -> str:
    """Grid lines with losses on the left, perplexities on the right."""
    parts = [_text(0, 11, "loss, nats per token", "tick"), _text(width, 11, "perplexity", "tick end")]
    for tick in log_ticks(scale.low, scale.high):
        y = float(scale.y(np.array(tick)))
        parts += [_horizontal(y, width, "grid"), _text(_LEFT - 8, y + 4, f"{tick:g}", "tick end")]
    for tick in perplexity_ticks(scale.low, scale.high, scale.part):
        parts.append(_text(width - _RIGHT + 8, float(scale.y(np.array(math.log(tick)))) + 4, f"{tick:,}", "tick"))
    return "".join(parts)


def _strip_axis(name: str, scale: _Scale, width: int) -> list[str]:
    ticks = [scale.high / 1.02] if not scale.logarithmic else log_ticks(scale.low, scale.high, 2)
    parts = [_text(_LEFT + 5, scale.top - 5, name, "tick"), _horizontal(scale.top + _STRIP, width, "grid")]
    for tick in ticks:
        y = float(scale.y(np.array(tick)))
        parts.append(_text(_LEFT - 8, y + 6, f"{tick:.2g}", "tick end"))
    return parts


def _stage_losses(panel: _Panel, scale: _Scale, number: int, bottom: float) -> list[str]:
    """Border, name, recorded and averaged training losses, validation losses, the first and the best of them."""
    history = panel.history
    border = f"M{panel.left:.1f} {_TOP}V{bottom:.0f}"
    ln_v = float(scale.y(np.array(history.ln_vocabulary)))
    parts = [f'<path class="border" d="{border}"/>']
    parts.append(f'<path class="nothing" d="M{panel.left:.1f} {ln_v:.1f}h{panel.width:.1f}"/>')
    name = f"{number}. {history.name}"
    raised = _LINE if number % 2 == 0 and panel.width < _LETTER * len(name) else 0  # next to other names
    parts.append(_text(panel.left + panel.width / 2, _TOP - 12 - raised, name, "name"))
    life = half_life_for(history.steps)
    raw = "train" if life is None else "raw"
    parts.append(_line(panel, scale, history.steps, history.train_loss, raw))
    if life is not None:
        parts.append(_line(panel, scale, history.steps, ema(history.steps, history.train_loss, life), "train"))
    parts.append(_line(panel, scale, history.eval_steps, history.val_loss, "val"))
    places = panel.x(history.tokens_per_step * history.eval_steps)
    heights = scale.y(history.val_loss)
    radius = 3 if len(places) * 9 < panel.width else 1.4
    dots = (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in zip(places, heights, strict=True))
    parts.append(f'<g class="dots">{"".join(dots)}</g>')
    if history.best is not None:
        parts.append(_text(places[0] + 6, heights[0] - 4, f"{history.val_loss[0]:.2f}", "value"))
    if len(places) > 1:
        best = int(np.argmin(history.val_loss))
        parts.append(_text(places[best], heights[best] + 16, f"{history.val_loss[best]:.2f}", "value end"))
    return parts


def _line(panel: _Panel, scale: _Scale, steps: Floats, values: Floats, name: str) -> str:
    """A curve of finite values, at most two points per pixel."""
    known = np.isfinite(values) & (values > 0 if scale.logarithmic else True)
    x, y = panel.x(panel.history.tokens_per_step * steps[known]), scale.y(values[known])
    if len(x) < 2:
        return ""
    kept = thin(x, y, max(1, int(panel.width)))
    points = " ".join(f"{x[i]:.1f},{y[i]:.1f}" for i in kept)
    return f'<polyline class="{name}" points="{points}"/>'


def _token_ticks(panel: _Panel, y: float) -> list[str]:
    """Where the stage starts, and round numbers of tokens after that while there is room."""
    most = int(panel.width / _WIDEST_TICK)
    ticks = [tick for tick in even_ticks(0, max(panel.history.tokens, 1), most)] if most > 1 else [0.0]
    room = panel.left + panel.width - 0.6 * _WIDEST_TICK
    places = panel.x(np.array(ticks))
    return [
        _text(x, y, short(panel.read + tick), "tick" if tick == 0 else "tick middle")
        for x, tick in zip(places.tolist(), ticks, strict=True)
        if tick == 0 or x < room
    ]


def _horizontal(y: float, width: int, name: str) -> str:
    return f'<path class="{name}" d="M{_LEFT} {y:.1f}H{width - _RIGHT}"/>'


def _text(x: float, y: float, text: str, name: str) -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
