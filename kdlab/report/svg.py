"""Line charts and scatter plots as SVG text: no library, no address, the same bytes for the same data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 44
LINE, LONGEST = 17, 70  # of the legend: height of a line, letters in it
# Okabe and Ito 2008: told apart with any colour vision
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("", "6 3", "2 2", "9 3 2 3", "12 4", "1 3")


@dataclass(frozen=True)
class Point:
    """Where a mark is; `spread` is drawn as a bar of that length on both sides, `size` is the mark's area."""

    x: float
    y: float
    spread: float = 0.0
    size: float = 1.0
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points joined by a line (`joined`) or not; `marks`: whether each is a dot."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    dash: int = 0
    joined: bool = True
    marks: bool = True


def chart(x_title: str, y_title: str, series: Sequence[Series], *, log_x: bool = False) -> str:
    """A chart of all series with axes and a legend. Args: log_x: all x are above zero."""
    points = [point for one in series for point in one.points]
    xs = _Axis([p.x for p in points], LEFT, WIDTH - RIGHT, log_x)
    ends = [y for p in points for y in (p.y - p.spread, p.y + p.spread)]
    ys = _Axis(ends, HEIGHT - BOTTOM, TOP, False)
    legend = [one for one in series if one.name]
    height = HEIGHT + 6 + LINE * len(legend)
    body = [*_axes(xs, ys, x_title, y_title), *(text for one in series for text in _drawn(one, xs, ys))]
    body += [text for number, one in enumerate(legend) for text in _legend(one, HEIGHT + 6 + LINE * number)]
    told = escape(f"{y_title} against {x_title}", quote=True)
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{told}">'
    return "\n".join([head, *body, "</svg>"])


class _Axis:
    """From a value to its place; a margin on both sides, ticks at round values or, if few, at the data's own."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool):
        self.log, self.start, self.end = log, start, end
        low, high = self._scaled(min(values)), self._scaled(max(values))
        margin = 0.06 * (high - low) or 0.5
        self.low, self.high = low - margin, high + margin
        self.ticks = self._ticks(sorted(set(values)))

    def place(self, value: float) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def _ticks(self, values: list[float]) -> list[float]:
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            rounded = [
                m * 10.0**d for d in decades for m in (1, 2, 5) if self.low <= math.log10(m * 10.0**d) <= self.high
            ]
            return values if len(values) <= 6 else rounded if len(rounded) <= 8 else rounded[::3]
        raw = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
        first = math.ceil(self.low / step)
        return [step * n for n in range(first, math.floor(self.high / step) + 1)]


def _axes(xs: _Axis, ys: _Axis, x_title: str, y_title: str) -> list[str]:
    left, right, bottom, top = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP
    lines = []
    for tick in ys.ticks:
        y = ys.place(tick)
        lines.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        lines.append(_text(left - 6, y + 4, _number(tick), "end"))
    for tick in xs.ticks:
        x = xs.place(tick)
        lines.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        lines.append(_text(x, bottom + 17, _number(tick), "middle"))
    lines.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    lines.append(_text((left + right) / 2, bottom + 34, x_title, "middle"))
    middle = (top + bottom) / 2
    turned = f'transform="rotate(-90 14 {middle:.1f})"'
    lines.append(f'<text x="14" y="{middle:.1f}" text-anchor="middle" {turned}>{escape(y_title)}</text>')
    return lines


def _drawn(one: Series, xs: _Axis, ys: _Axis) -> list[str]:
    colour, lines = COLOURS[one.colour % len(COLOURS)], []
    places = [(xs.place(p.x), ys.place(p.y), p) for p in one.points]
    if one.joined and len(places) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
        lines.append(f'<path class="line" d="M{path}" stroke="{colour}"{_dashed(one.dash)}/>')
    for x, y, point in places if one.marks else []:
        if point.spread:
            low, high = ys.place(point.y - point.spread), ys.place(point.y + point.spread)
            lines.append(f'<path class="line" d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>')
        told = f"<title>{escape(point.label)}</title>" if point.label else ""
        radius = 3.5 * math.sqrt(point.size)
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}">{told}</circle>')
    return lines


def _legend(one: Series, y: float) -> list[str]:
    colour = COLOURS[one.colour % len(COLOURS)]
    mark = f'<circle cx="{LEFT + 14}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' if one.marks else ""
    line = f'<path class="line" d="M{LEFT} {y:.1f}h28" stroke="{colour}"{_dashed(one.dash)}/>' if one.joined else ""
    name = one.name if len(one.name) <= LONGEST else one.name[: LONGEST - 1] + "…"
    return [line + mark, _text(LEFT + 36, y + 4, name, "start")]


def _dashed(dash: int) -> str:
    pattern = DASHES[dash % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value / 1e3:.4g}k" if abs(value) >= 1e4 else f"{round(value, 10):.4g}"
