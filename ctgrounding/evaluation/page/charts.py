"""Charts of the result page: inline SVG and bars of plain HTML that take their colours from the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 38


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        label: What it shows, with unit.
        low: Value at its start.
        high: Value at its end.
        is_log: Whether it is logarithmic; ``low`` is positive then.
    """

    label: str
    low: float
    high: float
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 to 1; values outside are moved to the end."""
        low, high, value = (math.log(max(v, 1e-9)) if self.is_log else v for v in (self.low, self.high, value))
        return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Round values inside the axis, about five."""
        if self.is_log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            return [float(step * 10**power) for power in powers for step in (1, 3) if step * 10**power <= self.high]
        if self.high <= self.low:
            return [self.low]
        rough = (self.high - self.low) / 4
        base = 10 ** math.floor(math.log10(rough))
        step = min((m * base for m in (1, 2, 2.5, 5, 10) if m * base >= rough), default=base)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Series:
    """Points of a chart.

    Attributes:
        name: In the legend; empty for none.
        x: Horizontal values.
        y: Vertical values.
        style: CSS class that gives colour and dash: ``one``, ``two``, ``three``, ``faint``.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "one"


def line_chart(title: str, horizontal: Axis, vertical: Axis, series: Sequence[Series]) -> str:
    """Lines over common axes."""
    lines = []
    for item in series:
        pairs = zip(item.x, item.y, strict=True)
        points = " ".join(f"{_x(horizontal, x):.1f},{_y(vertical, y):.1f}" for x, y in pairs)
        lines.append(f'<polyline class="line {item.style}" points="{points}"/>')
    return _figure(title, _frame(horizontal, vertical) + "".join(lines), series)


def scatter_chart(
    title: str, horizontal: Axis, vertical: Axis, points: Series, trend: Series | None = None, most: int = 1500
) -> str:
    """Dots, at most ``most`` of them, evenly taken, and a line through them."""
    step = max(1, -(-len(points.x) // most))
    pairs = list(zip(points.x, points.y, strict=True))[::step]
    dots = "".join(
        f'<circle class="dot {points.style}" r="2.2" cx="{_x(horizontal, x):.1f}" cy="{_y(vertical, y):.1f}"/>'
        for x, y in pairs
    )
    line = ""
    if trend is not None:
        path = " ".join(f"{_x(horizontal, x):.1f},{_y(vertical, y):.1f}" for x, y in zip(trend.x, trend.y, strict=True))
        line = f'<polyline class="line {trend.style}" points="{path}"/>'
    shown = [points] if trend is None else [points, trend]
    return _figure(title, _frame(horizontal, vertical) + dots + line, shown)


def histogram(title: str, label: str, values: Sequence[Series], edges: Sequence[float]) -> str:
    """Shares of values between edges; the last bin holds all that lies above. ``x`` of each series is used."""
    counts = []
    for item in values:
        clipped = np.clip(np.asarray(item.x, dtype=np.float64), edges[0], np.nextafter(edges[-1], edges[0]))
        counts.append(np.histogram(clipped, bins=np.asarray(edges))[0] / max(1, len(item.x)))
    horizontal = Axis(label, edges[0], edges[-1])
    vertical = Axis("share of snippets", 0.0, max((float(c.max()) for c in counts), default=1.0) * 1.08 or 1.0)
    marks = []
    for number, (item, shares) in enumerate(zip(values, counts, strict=True)):
        for left, right, share in zip(edges[:-1], edges[1:], shares.tolist(), strict=True):
            x0, x1, y = _x(horizontal, left), _x(horizontal, right), _y(vertical, share)
            if number == 0:
                box = f'x="{x0 + 0.5:.1f}" y="{y:.1f}" width="{x1 - x0 - 1:.1f}" height="{_y(vertical, 0) - y:.1f}"'
                marks.append(f'<rect class="fill {item.style}" {box}/>')
            else:
                marks.append(f'<path class="line {item.style}" d="M{x0:.1f} {y:.1f}H{x1:.1f}"/>')
    return _figure(title, _frame(horizontal, vertical) + "".join(marks), values)


def bars(rows: Sequence[tuple[str, float, str, str]], high: float) -> str:
    """Horizontal bars as plain HTML, so that their text keeps its size on a phone.

    Args:
        rows: Name, value, text of the value, and CSS class of each bar.
        high: Value at the full width.
    """
    cells = "".join(
        f'<div class="bar-name">{escape(name)}</div>'
        f'<div class="track"><div class="bar {style}" style="width:{_percent(value, high)}"></div></div>'
        f'<div class="bar-value">{escape(shown)}</div>'
        for name, value, shown, style in rows
    )
    return f'<div class="bars">{cells}</div>'


def intervals(rows: Sequence[Mapping[str, object]], low: float, high: float, reference: float) -> str:
    """Estimates with intervals, a second estimate beside each, and a line of reference, as plain HTML.

    Args:
        rows: ``name``, ``note``, ``value``, ``ci`` (low, high), ``other`` (or None) and ``shown`` of each line.
        low: Value at the left end.
        high: Value at the right end.
        reference: Value of the vertical line.
    """

    def left(value: object) -> str:
        number = float(value) if isinstance(value, (int, float)) else low
        return f"{100 * min(1.0, max(0.0, (number - low) / (high - low))):.2f}%"

    cells = []
    for row in rows:
        ci = row["ci"]
        bound = list(ci) if isinstance(ci, (list, tuple)) else [low, low]
        other = row.get("other")
        hollow = "" if other is None else f'<i class="hollow" style="left:{left(other)}"></i>'
        cells.append(
            f'<div class="bar-name">{escape(str(row["name"]))}<small>{escape(str(row["note"]))}</small></div>'
            f'<div class="track thin"><i class="reference" style="left:{left(reference)}"></i>'
            f'<i class="whisker" style="left:{left(bound[0])};right:calc(100% - {left(bound[1])})"></i>'
            f"{hollow}"
            f'<i class="point" style="left:{left(row["value"])}"></i></div>'
            f'<div class="bar-value">{escape(str(row["shown"]))}</div>'
        )
    marks = "".join(
        f'<i class="scale" style="left:{left(value)}">{value:g}</i>' for value in Axis("", low, high).ticks()
    )
    cells.append(f'<div class="bar-name"></div><div class="track scale">{marks}</div><div class="bar-value"></div>')
    return f'<div class="bars wide">{"".join(cells)}</div>'


def confusion(names: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    """A square of shares: rows are what it is, columns what it was taken for."""
    size, side = len(names), 14
    left, top = 150, 8
    marks = []
    for row, values in enumerate(shares):
        y = top + row * side
        marks.append(f'<text class="tick" x="{left - 6}" y="{y + 10}" text-anchor="end">{escape(names[row])}</text>')
        for column, share in enumerate(values):
            style = "cell right" if row == column else "cell wrong"
            what = f"{names[row]} taken for {names[column]}: {share:.0%}"
            if share > 0:
                marks.append(
                    f'<rect class="{style}" x="{left + column * side}" y="{y}" width="{side - 1}" height="{side - 1}" '
                    f'fill-opacity="{0.12 + 0.88 * share:.2f}"><title>{escape(what)}</title></rect>'
                )
    border = f'<rect class="grid" x="{left}" y="{top}" width="{size * side}" height="{size * side}" fill="none"/>'
    width, height = left + size * side + 8, top + size * side + 8
    sizes = f"min-width:{min(width, 640)}px;max-width:{width}px"
    return (
        f'<div class="scroll"><svg class="confusion" style="{sizes}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Confusion of organs">{border}{"".join(marks)}</svg></div>'
    )


def _frame(horizontal: Axis, vertical: Axis) -> str:
    marks = []
    for value in vertical.ticks():
        y = _y(vertical, value)
        marks.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        marks.append(f'<text class="tick" x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in horizontal.ticks():
        x = _x(horizontal, value)
        marks.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>')
        marks.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 14}" text-anchor="middle">{value:g}</text>'
        )
    middle_x, middle_y = (_LEFT + WIDTH - _RIGHT) / 2, (_TOP + HEIGHT - _BOTTOM) / 2
    marks.append(
        f'<text class="label" x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">{escape(horizontal.label)}</text>'
        f'<text class="label" transform="translate(11 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(vertical.label)}</text>"
    )
    return "".join(marks)


def _figure(title: str, marks: str, series: Sequence[Series]) -> str:
    named = [item for item in series if item.name]
    keys = "".join(f'<span><i class="key {item.style}"></i>{escape(item.name)}</span>' for item in named)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{marks}</svg><div class="legend">{keys}</div></figure>'
    )


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - axis.place(value) * (HEIGHT - _TOP - _BOTTOM)


def _percent(value: float, high: float) -> str:
    share = value / high if high > 0 and math.isfinite(value) else 0.0
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
