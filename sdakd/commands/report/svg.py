"""Plots as inline SVG, for pages that load nothing: curves over iterations, and points with error bars.

Colours are the classes ``c0`` to ``c6`` and text takes the page's own colours, so that one drawing serves a light and a
dark page. Every plot is drawn twice, for a wide and for a narrow screen, because the text of a scaled drawing would
become too small to read; the classes ``wide`` and ``narrow`` say which one is to be shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sdakd.commands.report.curves import Point, Stage

COLOURS = 7
CHARACTER = 8.4  # mean width of a character of 13 px, generously
MARKERS = (  # paths around the origin, told apart without colours
    'M-5-5H5V5H-5Z',
    'M0-5.5A5.5 5.5 0 1 1 0 5.5 5.5 5.5 0 1 1 0-5.5Z',
    'M0-7 7 0 0 7-7 0Z',
    'M0-6.5 6.5 5H-6.5Z',
    'M0 6.5 6.5-5H-6.5Z',
)


def number(value: float) -> str:
    """Four digits at most, a real minus sign, commas between thousands."""
    if value and abs(value) < 1e-3:
        mantissa, exponent = f'{value:.1e}'.split('e')
        text = f'{mantissa.removesuffix(".0")}e{int(exponent)}'
    else:
        text = f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return text.replace('-', '\u2212')


def labels(ticks: Sequence[float], log: bool) -> list[str]:
    """The labels of an axis; those of a linear one have the same number of decimals."""
    if log or len(ticks) < 2 or (step := ticks[1] - ticks[0]) < 1e-4:
        return [number(tick) for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step * 1.001)))
    return [f'{tick + 0.0:,.{decimals}f}'.replace('-', '\u2212') for tick in ticks]


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two bounds, about ``count`` of them."""
    if not high > low:
        return [low]
    most = (high - low) / (count + 1.5)
    power = 10 ** math.floor(math.log10(most))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= most)
    return [round(step * k, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """1, 2 and 5 times powers of ten between two bounds, or only the powers where that would be too many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**k for k in exponents for factor in (1, 2, 5)]
    fine = [tick for tick in fine if low <= tick * (1 + 1e-9) and tick <= high * (1 + 1e-9)]
    coarse = [tick for tick in fine if f'{tick:e}'.startswith('1.0')]
    every = math.ceil(len(coarse) / (count + 1)) or 1
    return fine if len(fine) <= count + 2 else coarse[::every]


@dataclass
class Axis:
    """Maps values to pixels.

    Args:
        low: Value at ``start``.
        high: Value at ``end``.
        start: Pixel.
        end: Pixel.
        log: Whether equal ratios have equal lengths; the bounds are positive then.
        count: About how many ticks there is room for.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    count: int = 5

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        return (log_ticks if self.log else linear_ticks)(self.low, self.high, self.count)


def span(values: Sequence[float], log: bool, margin: float) -> tuple[float, float]:
    """The values' bounds with a margin around them, as a share of their distance."""
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** margin if high > low else 1.5
        return low / factor, high * factor
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return low - room, high + room


class Canvas:
    """An SVG that is being drawn: axes with a grid, then whatever is put on them."""

    def __init__(self, width: int, height: int, x: Axis, y: Axis, x_label: str, y_label: str) -> None:
        self.width, self.height, self.x, self.y = width, height, x, y
        self.parts: list[Markup] = []
        self.x_label, self.y_label = x_label, y_label

    def put(self, text: str, *values: object) -> None:
        """Adds an element; the values are escaped."""
        self.parts.append(Markup(text).format(*values))

    def axes(self) -> None:
        x, y = self.x, self.y
        for tick, label in zip(y.ticks(), labels(y.ticks(), y.log), strict=True):
            self.put('<path class="grid" d="M{} {}H{}"/>', x.start, y(tick), x.end)
            self.put('<text x="{}" y="{}" text-anchor="end">{}</text>', x.start - 8, y(tick) + 4, label)
        for tick, label in zip(x.ticks(), labels(x.ticks(), x.log), strict=True):
            self.put('<path class="grid" d="M{} {}v5"/>', x(tick), y.start)
            at = min(x(tick), self.width - len(label) * CHARACTER / 2 - 1)  # the last one may stand at the very edge
            self.put('<text x="{}" y="{}" text-anchor="middle">{}</text>', at, y.start + 20, label)
        self.put('<path class="axis" d="M{} {}H{}"/>', x.start, y.start, x.end)
        middle = (x.start + x.end) / 2
        self.put('<text x="{}" y="{}" text-anchor="middle">{}</text>', middle, self.height - 5, self.x_label)
        self.put('<text x="2" y="13">{}</text>', self.y_label)

    def finish(self, title: str, kind: str) -> Markup:
        start = Markup('<svg class="plot {}" viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}">').format(
            kind, self.width, self.height, self.width, title
        )
        return start + Markup('').join(self.parts) + Markup('</svg>')


def twice(draw: Callable[[int, str], Markup], wide: int, narrow: int = 330) -> Markup:
    """A plot for both kinds of screen; ``draw`` takes the width and the class."""
    return draw(wide, 'wide') + draw(narrow, 'narrow')


# ------------------------------------------------------- curves -------------------------------------------------------


@dataclass
class Curve:
    """A line through ``points``, with ``raw`` ones behind it, faint."""

    name: str
    points: Sequence[Point]
    raw: Sequence[Point] = ()


def _path(points: Sequence[Point], x: Axis, y: Axis) -> str:
    return 'M' + ' '.join(f'{x(at):g} {y(value):g}' for at, value in points)


def curves(lines: Sequence[Curve], stages: Sequence[Stage], last: int, y_label: str, title: str) -> Markup:
    """Curves over the iterations up to ``last``, with the stages shaded.

    The scale of the values is logarithmic where all are positive and span more than a factor of 20.
    """
    every = [point for line in lines for point in (*line.points, *line.raw)]
    values = [value for _, value in every]
    log = min(values) > 0 and max(values) > 20 * min(values)
    low, high = span(values, log, 0.06)
    first = min(stage.first for stage in stages) if stages else min(at for at, _ in every)

    def draw(width: int, kind: str) -> Markup:
        height = 280
        x = Axis(first, max(last, first + 1), 52, width - 14, count=width // 130)
        y = Axis(low, high, height - 46, 44, log)
        canvas = Canvas(width, height, x, y, 'iteration', y_label + (' (log scale)' if log else ''))
        for index, stage in enumerate(stages):
            begin, end = x(min(stage.first, x.high)), x(min(stage.last, x.high))
            if stage.first > x.high:
                continue
            canvas.put(
                '<rect class="stage s{}" x="{}" y="26" width="{}" height="{}">',
                index % 2,
                begin,
                end - begin,
                y.start - 26,
            )
            canvas.put('<title>{}</title></rect>', f'stage {index + 1}, {stage.name}')
            label = next((t for t in (f'{index + 1} {stage.name}', str(index + 1)) if len(t) * 6.6 < end - begin), '')
            canvas.put('<text class="small" x="{}" y="39" text-anchor="middle">{}</text>', (begin + end) / 2, label)
        canvas.axes()
        for index, line in enumerate(lines):
            colour = index % COLOURS
            if line.raw:
                canvas.put('<path class="line raw c{}" d="{}"/>', colour, _path(line.raw, x, y))
            canvas.put('<path class="line c{} d{}" d="{}">', colour, index % 4, _path(line.points, x, y))
            canvas.put('<title>{}</title></path>', line.name)
            if len(line.points) < 12:
                for at, value in line.points:
                    canvas.put('<circle class="dot c{}" cx="{}" cy="{}" r="3"/>', colour, x(at), y(value))
        return canvas.finish(title, kind)

    return twice(draw, 500)


# ------------------------------------------------------- points -------------------------------------------------------


@dataclass
class Mark:
    """A labelled point with the ends of its error bars; without ``x`` it is a dashed line across the plot."""

    name: str
    x: float | None
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    colour: int = 0


def _place(name: str, at: tuple[float, float], taken: list[tuple[float, ...]], x: Axis, y: Axis) -> tuple[float, float]:
    """A place for a label beside a point, clear of other labels and points: left edge and baseline, in pixels."""
    length = len(name) * CHARACTER
    beside = [(9, -8), (9, 18), (-9 - length, -8), (-9 - length, 18), (12, 4), (-12 - length, 4)]
    beside += [(-length / 2, -16), (-length / 2, 26)]
    best = None
    for dx, dy in beside:
        left, base = at[0] + dx, at[1] + dy
        box = (left, base - 11, left + length, base + 3)
        outside = box[0] < x.start or box[2] > x.end + 10 or box[1] < y.end or box[3] > y.start
        meets = sum(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken)
        if best is None or (outside, meets) < best[0]:
            best = (outside, meets), (left, base), box
    taken.append(best[2])
    return best[1]


def points(marks: Sequence[Mark], x_label: str, y_label: str, title: str) -> Markup:
    """Labelled points with error bars; the horizontal scale is logarithmic where it spans more than a factor of 4."""
    across = [value for mark in marks if mark.x for value in (mark.x, *(mark.x_range or ()))]
    values = [value for mark in marks for value in (mark.y, *(mark.y_range or ()))]
    log = max(across) > 4 * min(across) > 0
    low, high = span(values, False, 0.08)
    near, far = span(across, log, 0.18)

    def draw(width: int, kind: str) -> Markup:
        height = 400 if kind == 'wide' else 340
        x = Axis(near, far, 54, width - 16, log, width // 100)
        y = Axis(low, high, height - 48, 26)
        canvas = Canvas(width, height, x, y, x_label + (' (log scale)' if log else ''), y_label)
        canvas.axes()
        taken = [(x(mark.x) - 6, y(mark.y) - 6, x(mark.x) + 6, y(mark.y) + 6) for mark in marks if mark.x]
        taken += [(x.start, y(mark.y) - 2, x.end, y(mark.y) + 2) for mark in marks if not mark.x]
        for index, mark in enumerate(marks):
            down = y(mark.y)
            if mark.x is None:
                canvas.put('<path class="level c{}" d="M{} {}H{}"/>', mark.colour, x.start, down, x.end)
                taken.append((x.end - len(mark.name) * CHARACTER, down - 17, x.end, down - 2))
                canvas.put('<text x="{}" y="{}" text-anchor="end">{}</text>', x.end, down - 6, mark.name)
                continue
            right = x(mark.x)
            if mark.x_range:
                canvas.put(
                    '<path class="bar c{}" d="M{} {}H{}"/>', mark.colour, x(mark.x_range[0]), down, x(mark.x_range[1])
                )
            if mark.y_range:
                canvas.put(
                    '<path class="bar c{}" d="M{} {}V{}"/>', mark.colour, right, y(mark.y_range[0]), y(mark.y_range[1])
                )
            canvas.put(
                '<path class="mark c{}" transform="translate({} {})" d="{}">',
                mark.colour,
                right,
                down,
                MARKERS[index % len(MARKERS)],
            )
            canvas.put('<title>{}: {}, {}</title></path>', mark.name, number(mark.x), number(mark.y))
        for mark in marks:
            if mark.x is not None:
                left, base = _place(mark.name, (x(mark.x), y(mark.y)), taken, x, y)
                canvas.put('<text class="label" x="{}" y="{}">{}</text>', round(left, 1), base, mark.name)
        return canvas.finish(title, kind)

    return twice(draw, 760)
