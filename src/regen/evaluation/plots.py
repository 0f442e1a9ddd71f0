"""Line and scatter plots as SVG text, for reports that are one file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 46  # margins of the plot within the picture
COLOURS = ("#0b6fb8", "#d1495b", "#2a9d4a", "#8a4fbf", "#c77d00", "#1c9aa0", "#7a5c3e", "#666666")


@dataclass(frozen=True)
class Series:
    """A named line through points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def plot(
    title: str, x_label: str, y_label: str, series: list[Series], with_dots: bool = True
) -> str:
    """An SVG element: a line and dots for each; their names below, in their colours."""
    x_ticks, y_ticks = (
        ticks(min(values), max(values))
        for values in (
            [float(value) for one in series for value in getattr(one, axis)] for axis in ("x", "y")
        )
    )

    def x_at(value: float) -> float:
        part = (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def y_at(value: float) -> float:
        part = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)

    parts = [_text(WIDTH / 2, 16, title, weight="bold")]
    for tick in y_ticks:
        y = y_at(tick)
        parts.append(f"<path d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}' stroke='#e2e2e2'/>")
        parts.append(_text(LEFT - 6, y + 4, f"{tick:g}", anchor="end"))
    for tick in x_ticks:
        parts.append(f"<path d='M{x_at(tick):.1f} {HEIGHT - BOTTOM}v4' stroke='#888'/>")
        parts.append(_text(x_at(tick), HEIGHT - BOTTOM + 17, f"{tick:g}"))
    parts.append(f"<path d='M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}' stroke='#888'/>")
    parts.append(_text((WIDTH + LEFT) / 2, HEIGHT - 10, x_label))
    turned = f"transform='rotate(-90 14 {HEIGHT / 2})'"
    parts.append(_text(14, HEIGHT / 2, y_label, extra=turned))
    for index, one in enumerate(series):
        colour, top = COLOURS[index % len(COLOURS)], HEIGHT + 4 + 18 * index
        points = [(x_at(x), y_at(y)) for x, y in zip(one.x, one.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for x, y in points if with_dots else []:
            parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/>")
        parts.append(f"<rect x='{LEFT}' y='{top}' width='10' height='10' fill='{colour}'/>")
        parts.append(_text(LEFT + 16, top + 10, one.name, anchor="start"))
    height = HEIGHT + 18 * len(series)
    style = "font-family='system-ui, sans-serif' font-size='12' fill='#333'"
    size = f"viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {style}>{''.join(parts)}</svg>"


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers, the first not above `low`, the last not below `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * m for m in (1, 2, 5, 10) if (high - low) / (power * m) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _text(
    x: float, y: float, text: str, anchor: str = "middle", weight: str = "normal", extra: str = ""
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-weight='{weight}' {extra}>"
        f"{escape(text)}</text>"
    )
