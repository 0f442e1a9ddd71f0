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


class _Axes:
    """Data to pixels, with ticks at round numbers."""

    def __init__(self, title: str, x_label: str, y_label: str, xs: list[float], ys: list[float]):
        self.x_ticks, self.y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
        self.title, self.x_label, self.y_label = title, x_label, y_label

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def frame(self) -> list[str]:
        parts = [_text(WIDTH / 2, 16, self.title, weight="bold")]
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f"<path d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}' stroke='#e2e2e2'/>")
            parts.append(_text(LEFT - 6, y + 4, f"{tick:g}", anchor="end"))
        for tick in self.x_ticks:
            x = self.x(tick)
            parts.append(f"<path d='M{x:.1f} {HEIGHT - BOTTOM}v4' stroke='#888'/>")
            parts.append(_text(x, HEIGHT - BOTTOM + 17, f"{tick:g}"))
        parts.append(f"<path d='M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}' stroke='#888'/>")
        parts.append(_text((WIDTH + LEFT) / 2, HEIGHT - 10, self.x_label))
        turned = f"transform='rotate(-90 14 {HEIGHT / 2})'"
        parts.append(_text(14, HEIGHT / 2, self.y_label, extra=turned))
        return parts


def line_plot(
    title: str, x_label: str, y_label: str, series: list[Series], with_dots: bool = False
) -> str:
    """An SVG element; the names stand below the plot, in the lines' colours."""
    xs, ys = ([float(v) for one in series for v in getattr(one, axis)] for axis in ("x", "y"))
    axes = _Axes(title, x_label, y_label, xs, ys)
    parts = axes.frame()
    for index, one in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        points = [(axes.x(x), axes.y(y)) for x, y in zip(one.x, one.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        if with_dots:
            parts += [
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in points
            ]
        parts.append(_name(index, colour, one.name))
    return _svg(parts, HEIGHT + 18 * len(series))


def scatter_plot(
    title: str, x_label: str, y_label: str, points: list[tuple[str, float, float]]
) -> str:
    """An SVG element with a dot for each (name, x, y)."""
    axes = _Axes(title, x_label, y_label, [p[1] for p in points], [p[2] for p in points])
    parts = axes.frame()
    for index, (name, x, y) in enumerate(points):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f"<circle cx='{axes.x(x):.1f}' cy='{axes.y(y):.1f}' r='5' fill='{colour}'/>")
        parts.append(_name(index, colour, name))
    return _svg(parts, HEIGHT + 18 * len(points))


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers, the first not above `low`, the last not below `high`."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * m for m in (1, 2, 5, 10) if (high - low) / (power * m) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _name(index: int, colour: str, name: str) -> str:
    y = HEIGHT + 4 + 18 * index
    dot = f"<rect x='{LEFT}' y='{y}' width='10' height='10' fill='{colour}'/>"
    return dot + _text(LEFT + 16, y + 10, name, anchor="start")


def _text(
    x: float, y: float, text: str, anchor: str = "middle", weight: str = "normal", extra: str = ""
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-weight='{weight}' {extra}>"
        f"{escape(text)}</text>"
    )


def _svg(parts: list[str], height: int) -> str:
    style = "font-family='system-ui, sans-serif' font-size='12' fill='#333'"
    size = f"viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {style}>{''.join(parts)}</svg>"
