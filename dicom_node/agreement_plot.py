"""A pair's points and its limits of agreement -> a plot of Bland and Altman as SVG, in the page's own ink. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 480, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 76, 12, 36
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def bland_altman_svg(points: Sequence[Sequence[float]], spread: Mapping[str, Any]) -> str:
    """points: (mean, difference) in mm. spread: agreement.Spread as a dict. Empty where there is no point."""
    if not points:
        return ""
    lines = [(key, spread[key]) for key in ("low", "bias", "high") if spread[key] is not None]
    reach = 1.15 * max([0.5, *(abs(y) for _, y in points), *(abs(value) for _, value in lines)])
    right = 1.05 * max(float(x) for x, _ in points)

    def at_x(value: float) -> float:
        return float(round(_LEFT + (WIDTH - _LEFT - _RIGHT) * value / right, 1))

    def at_y(value: float) -> float:
        return float(round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (reach - value) / (2 * reach), 1))

    drawn = [_line(_LEFT, at_y(0.0), WIDTH - _RIGHT, at_y(0.0), "axis")]
    for value in _ticks(right):
        drawn.append(_text(at_x(value), HEIGHT - _BOTTOM + 16, f"{value:g}", "middle"))
    for value in _ticks(reach):
        drawn += [_text(_LEFT - 6, at_y(each) + 4, f"{each:+g}", "end") for each in sorted({value, -value})]
    drawn.append(_text(_LEFT - 6, at_y(0.0) + 4, "0", "end"))
    drawn.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 4, "mean of the two diameters, mm", "middle"))
    for key, value in lines:
        drawn.append(_line(_LEFT, at_y(value), WIDTH - _RIGHT, at_y(value), key))
        drawn.append(_text(WIDTH - _RIGHT + 5, at_y(value) + 4, f"{key} {value:+.1f}", "start"))
    drawn += [f'<circle cx="{at_x(x)}" cy="{at_y(y)}" r="3" fill="currentColor" opacity="0.5"/>' for x, y in points]
    said = f"Difference of longest diameters against their mean, {len(points)} findings of both models"
    return (
        f'<svg class="bland-altman" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-size="11" '
        f'role="img" aria-label="{escape(said)}">'
        f"{''.join(drawn)}</svg>"
    )


def _ticks(end: float) -> list[float]:
    """Round numbers above 0 and up to `end`, four or so."""
    step = next((step for step in _STEPS if end / step <= 5), _STEPS[-1])
    return [round(number * step, 6) for number in range(1, math.floor(end / step + 1e-9) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    # As attributes: a page whose policy allows no inline style shows it all the same.
    how = {"axis": ' opacity="0.3"', "bias": ' stroke-width="1.5"'}.get(kind, ' stroke-dasharray="5 4"')
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="currentColor"{how}/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return (
        f'<text x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}" fill="currentColor">{escape(words)}</text>'
    )
