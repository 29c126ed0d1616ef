"""A plot of quality against cost with the Pareto front: what no other model beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sdakd.commands.report.svg import CHARACTER, COLOURS, MARKERS, Axis, Canvas, number, span, twice

LINE, AWAY = 17, 30  # pixels from one label to the next, and from a mark to its label


@dataclass
class Point:
    """A model by its cost and quality.

    Args:
        name: Its label.
        x, y: Cost and quality.
        x_range, y_range: Ends of error bars.
        front: Whether it lies on the front; see :func:`pareto`.
    """

    name: str
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    front: bool = False


def pareto(points: Sequence[Point], higher: bool) -> list[Point]:
    """The points that no other one beats: none is at least as cheap and as good, and better in one of both.

    Args:
        points: Less ``x`` is better.
        higher: Whether more ``y`` is.

    Returns:
        By ascending cost.
    """

    def beats(a: Point, b: Point) -> bool:
        good, other = (a.y, b.y) if higher else (b.y, a.y)
        return a.x <= b.x and good >= other and (a.x < b.x or good > other)

    return sorted((p for p in points if not any(beats(q, p) for q in points)), key=lambda p: p.x)


def _dodge(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Places near ``wanted``, ascending, :data:`LINE` apart and between two bounds where there is room."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + LINE if places else low))
    over = max(0.0, places[-1] - high) if places else 0.0
    for index in range(len(places) - 1, -1, -1):
        end = high if index == len(places) - 1 else places[index + 1] - LINE
        places[index] = min(places[index], end) if over else places[index]
    return places


KEY = Markup(
    '<svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true"><path class="mark c{}" d="{}"/></svg>'
)


def _labels(points: Sequence[Point], x: Axis, y: Axis) -> list[tuple[Point, float]]:
    """The points that have room for a label to the right of them, with its height; those on the front come first.

    Points of about the same cost share a column of labels. One that would meet another label or a mark of another
    column is left out: the legend has it.
    """
    columns: dict[int, list[Point]] = {}
    for p in sorted(points, key=lambda p: y(p.y)):
        columns.setdefault(round(x(p.x) / 40), []).append(p)
    wanted = [
        (p, down)
        for column in columns.values()
        for p, down in zip(column, _dodge([y(p.y) for p in column], y.end + 8, y.start - 6), strict=True)
    ]
    taken, found = [(x(p.x) - 9, y(p.y) - 9, x(p.x) + 9, y(p.y) + 9) for p in points], []
    for p, down in sorted(wanted, key=lambda pair: not pair[0].front):
        left = x(p.x) + AWAY
        box = left, down - 7, left + len(p.name) * CHARACTER, down + 7
        if not any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken):
            taken.append(box)
            found.append((p, down))
    return found


def legend(points: Sequence[Point]) -> list[tuple[Markup, str, bool]]:
    """The mark, the name and whether it lies on the front, for each point."""
    marks = [KEY.format(index % COLOURS, MARKERS[index % len(MARKERS)]) for index in range(len(points))]
    return [(mark, point.name, point.front) for mark, point in zip(marks, points, strict=True)]


def plot(points: Sequence[Point], levels: dict[str, float], labels: tuple[str, str], title: str) -> Markup:
    """Marks with labels, the front as steps between its points, and dashed lines for models without cost.

    Args:
        points: With ``front`` set.
        levels: Quality by the name of a model whose cost is not known.
        labels: Of the two axes.
        title: The text alternative.
    """
    across = [value for p in points for value in (p.x, *(p.x_range or ()))]
    values = [value for p in points for value in (p.y, *(p.y_range or ()))] + [*levels.values()]
    log = max(across) > 4 * min(across) > 0
    low, high = span(values, False, 0.1)
    near, far = span(across, log, 0.12)
    front = sorted((p for p in points if p.front), key=lambda p: p.x)

    def draw(width: int, kind: str) -> Markup:
        height = max(400, LINE * len(points) + 100) if kind == 'wide' else 340
        x = Axis(near, far, 62, width - (190 if kind == 'wide' else 18), log, width // 100)
        y = Axis(low, high, height - 48, 26)
        canvas = Canvas(width, height, x, y, labels[0] + (' (log scale)' if log else ''), labels[1])
        canvas.axes()
        for name, level in levels.items():
            canvas.put('<path class="level c6" d="M{} {}H{}"/>', x.start, y(level), x.end)
            canvas.put('<text x="{}" y="{}">{}</text>', x.start + 6, y(level) - 6, name)
        steps = ''.join(f'H{x(p.x)}V{y(p.y)}' for p in front[1:])
        canvas.put('<path class="front" d="M{} {}{}H{}"/>', x(front[0].x), y(front[0].y), steps, x.end)
        for index, p in enumerate(points):
            colour, at = index % COLOURS, (x(p.x), y(p.y))
            if p.x_range:
                ends = x(p.x_range[0]), x(p.x_range[1])
                canvas.put('<path class="bar c{}" d="M{} {}H{}"/>', colour, ends[0], at[1], ends[1])
            if p.y_range:
                ends = y(p.y_range[0]), y(p.y_range[1])
                canvas.put('<path class="bar c{}" d="M{} {}V{}"/>', colour, at[0], ends[0], ends[1])
            if p.front:
                canvas.put('<circle class="ring" cx="{}" cy="{}" r="11"/>', *at)
            shape = MARKERS[index % len(MARKERS)]
            canvas.put('<path class="mark c{}" transform="translate({} {})" d="{}">', colour, *at, shape)
            canvas.put('<title>{}: {}, {}</title></path>', p.name, number(p.x), number(p.y))
        for p, down in _labels(points, x, y) if kind == 'wide' else ():
            at, style = (x(p.x), y(p.y)), 'label best' if p.front else 'label'
            canvas.put('<path class="leader" d="M{} {}L{} {}"/>', at[0] + 8, at[1], at[0] + AWAY - 4, round(down, 1))
            canvas.put('<text class="{}" x="{}" y="{}">{}</text>', style, at[0] + AWAY, round(down + 4, 1), p.name)
        return canvas.finish(title, kind)

    return twice(draw, 820)
