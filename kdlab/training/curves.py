"""A picture of how a training went, drawn with Pillow alone: one panel a metric, over optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, PANEL = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 34, 26  # of a panel, around its frame
INK, GREY, LINE = "#202020", "#b8b8b8", "#1f5fa8"


def draw(series: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    """An image of PIL with a panel for each metric, given as (step, value) in order of steps; not empty."""
    image = Image.new("RGB", (WIDTH, PANEL * len(series)), "white")
    pen = ImageDraw.Draw(image)
    last = max(points[-1][0] for points in series.values())
    for row, (name, points) in enumerate(series.items()):
        _panel(pen, PANEL * row, name, points, last)
    return image


def _panel(pen: Any, top: int, name: str, points: Sequence[tuple[int, float]], last: int) -> None:
    font = ImageFont.load_default(13)
    frame = (LEFT, top + TOP, WIDTH - RIGHT, top + PANEL - BOTTOM)
    low, high = min(value for _, value in points), max(value for _, value in points)
    if low == high:
        low, high = low - 0.5, high + 0.5

    def place(step: float, value: float) -> tuple[float, float]:
        x = frame[0] + (frame[2] - frame[0]) * step / max(1, last)
        return x, frame[3] - (frame[3] - frame[1]) * (value - low) / (high - low)

    pen.text((LEFT, top + 9), f"{name}: {points[-1][1]:.4g} at step {points[-1][0]}", fill=INK, font=font)
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = low + (high - low) * share
        y = place(0, value)[1]
        pen.line([(frame[0], y), (frame[2], y)], fill=GREY)
        pen.text((frame[0] - 6, y), f"{value:.4g}", fill=INK, font=font, anchor="rm")
    for step, anchor in ((0, "lt"), (last, "rt")):
        pen.text((place(step, low)[0], frame[3] + 5), f"step {step}", fill=INK, font=font, anchor=anchor)
    line = [place(*point) for point in points]
    if len(line) > 1:
        pen.line(line, fill=LINE, width=2)
    if len(line) <= 50:
        for x, y in line:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=LINE)
