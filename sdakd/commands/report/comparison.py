"""The page of a comparison: verdict, tables over seeds, quality against cost, and one student of every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from msgspec.structs import replace

from sdakd.commands.report import front, svg
from sdakd.commands.report.curves import Run, smooth, thin
from sdakd.commands.report.data import Cell as Training
from sdakd.commands.report.data import Comparison, Evaluate, Metric, OverSeeds, Picture
from sdakd.commands.report.text import GIGA, Cell, Table, heading, joined, milliseconds, set_caption, shown

GATES = {True: ('better', '✓ holds'), False: ('worse', '✗ fails'), None: ('open', '– not looked at')}
Column = tuple[str, Metric, str | None]  # a set, a metric and what it compares with
SIDE_BY_SIDE = 5  # images in the grid of crops before the others are folded away


@dataclass
class View:
    """One student of every method and width, that of its first seed that is done, under the method's name.

    Where this is another seed than that of the others, it stands beside the name.

    Args:
        evaluate: What was measured of these students, the teacher and bicubic interpolation.
        labels: Name of a model in ``results.json`` -> what the page calls it.
        runs: Their trainings, by label.
        students: Label of the student that is shown of a method and width.
        seed: The first one, of students whose name has none beside it.
        other_seeds: Whether some students are of another one.
    """

    evaluate: Evaluate
    labels: dict[str, str]
    runs: dict[str, Run]
    students: dict[tuple[str, str], str]
    seed: int
    other_seeds: bool


def label_of(comparison: Comparison, row: str, width: str) -> str:
    """A method's name, with the width where there are several."""
    several = len({cell.width for cell in comparison.final()}) > 1
    return f'{row} {width}' if several else row


def view_of(evaluate: Evaluate, comparison: Comparison, runs: Sequence[Run]) -> View:
    """What the page shows of single students."""
    first: dict[tuple[str, str], Training] = {}
    for cell in sorted(comparison.final(), key=lambda cell: cell.seed):
        first.setdefault((cell.row, cell.width), cell)
    seed = min((cell.seed for cell in first.values()), default=0)
    labels = {}
    for cell in first.values():
        own = '' if cell.seed == seed else f' (seed {cell.seed})'
        labels[cell.name] = label_of(comparison, cell.row, cell.width) + own
    students = {of: labels[cell.name] for of, cell in first.items()}
    others = {cell.name for cell in comparison.final()} - labels.keys()
    kept = {model.name: labels.get(model.name, model.name) for model in evaluate.models if model.name not in others}
    models = [replace(model, name=kept[model.name]) for model in evaluate.models if model.name in kept]
    scores = [replace(score, model=kept[score.model]) for score in evaluate.scores if score.model in kept]
    pictures = {
        of: {
            name: Picture(one.gt, one.lq, {kept[model]: path for model, path in one.models.items() if model in kept})
            for name, one in images.items()
        }
        for of, images in evaluate.pictures.items()
    }
    made = replace(evaluate, models=models, scores=scores, differences=[], pictures=pictures)
    of_runs = {labels[run.name]: run for run in runs if run.name in labels}
    return View(made, labels, of_runs, students, seed, any(cell.seed != seed for cell in first.values()))


def shown_as(student: str | None, view: View, comparison: Comparison) -> str | None:
    """The label under which the page shows a student: of the same method and width, if not of the same seed."""
    cell = next((cell for cell in comparison.final() if cell.name == student), None)
    return student if cell is None else view.students[cell.row, cell.width]


# ------------------------------------------------------- tables ------------------------------------------------------


def _spread(entry: OverSeeds, metric: Metric) -> str:
    """What stands beneath a mean: the deviation over seeds, or the value of each where they are too few for one."""
    if entry.sd is not None:
        return f'± {shown(entry.sd, metric)}'
    values = [shown(value, metric) for value in entry.values.values()]
    return f'({", ".join(values)})' if len(values) > 1 else ''


def quality(evaluate: Evaluate, comparison: Comparison) -> list[Table]:
    """A table per set: bicubic interpolation, the teacher, and every method and width, as means over seeds."""
    tables = []
    for of in evaluate.sets:
        columns = [(m, r) for m, r in evaluate.columns(of.name) if _measured(comparison, of.name, m, r)]
        rows = []
        for model in ('bicubic', 'teacher'):
            scores = [evaluate.score(model, of.name, metric.name, reference) for metric, reference in columns]
            cells = [Cell(shown(s.mean if s else None, m)) for s, (m, _) in zip(scores, columns, strict=True)]
            rows.append((model, cells))
        found = {(s.row, s.width, s.metric, s.reference): s for s in comparison.scores if s.set == of.name}
        for row, width in dict.fromkeys(key[:2] for key in found):
            entries = [found.get((row, width, metric.name, reference)) for metric, reference in columns]
            cells = [
                Cell(shown(entry.mean, metric), _spread(entry, metric)) if entry else Cell('–')
                for entry, (metric, _) in zip(entries, columns, strict=True)
            ]
            rows.append((label_of(comparison, row, width), cells))
        if columns:
            tables.append(Table(set_caption(of), [heading(*column) for column in columns], rows, list(of.unreadable)))
    return tables


def _measured(comparison: Comparison, of: str, metric: Metric, reference: str | None) -> bool:
    key = (of, metric.name, reference)
    return any((s.set, s.metric, s.reference) == key for s in comparison.scores)


def differences(evaluate: Evaluate, comparison: Comparison) -> list[Table]:
    """A table per set: every method minus the reference; marked where the interval and all seeds say the same."""
    tables = []
    for of in evaluate.sets:
        entries = [d for d in comparison.differences if d.set == of.name]
        there = {(d.metric, d.reference) for d in entries}
        columns = [(m, r) for m, r in evaluate.columns(of.name) if (m.name, r) in there]
        rows = []
        for a, width in dict.fromkeys((d.a, d.width) for d in entries):
            cells = []
            for metric, reference in columns:
                key = (a, width, metric.name, reference)
                d = next((d for d in entries if (d.a, d.width, d.metric, d.reference) == key), None)
                if d is None:
                    cells.append(Cell('–'))
                    continue
                cell = Cell(shown(d.mean, metric, True), _spread(d, metric))
                if d.low is not None and d.high is not None:
                    cell.interval = f'{shown(d.low, metric, True)} to {shown(d.high, metric, True)}'
                    sides = {value > 0 for value in (d.low, d.high, *d.values.values())}
                    kind = 'better' if (True in sides) == metric.higher_is_better else 'worse'
                    cell.kind = kind if len(sides) == 1 else 'open'
                cells.append(cell)
            rows.append((label_of(comparison, a, width), cells))
        if rows and columns:
            tables.append(Table(set_caption(of), [heading(*column) for column in columns], rows, []))
    return tables


def costs(view: View, comparison: Comparison) -> Table:
    """Training and network of every method and width."""
    models = {model.name: model for model in view.evaluate.models}
    rows = []
    for cost in comparison.costs:
        label = label_of(comparison, cost.row, cost.width)
        model, timed = models.get(view.students.get((cost.row, cost.width))), comparison.latency.get(cost.width)
        spread = '' if cost.seconds_sd is None else f'± {cost.seconds_sd / 60:.1f}'
        texts = [f'×{cost.factor:g}', f'{cost.iterations:,d}', f'{cost.seconds / 60:.1f}']
        texts += [f'{model.parameters:,d}' if model and model.parameters else '–']
        texts += [f'{model.macs / GIGA:,.3f}' if model and model.macs else '–']
        texts += [milliseconds(timed.median_ms if timed else None)]
        rows.append((label, [Cell(text, spread if place == 2 else '') for place, text in enumerate(texts)]))
    header = ['weight', 'iterations', 'minutes', 'parameters', 'GMACs, 64×64', 'latency, ms']
    return Table('Training and network', header, rows, [])


# -------------------------------------------------------- plots ------------------------------------------------------


def _points(view: View, comparison: Comparison, column: Column) -> tuple[list[front.Point], dict[str, float]]:
    """A point for every method, and for what else has a cost; the quality of what has none, by name."""
    of, metric, reference = column
    timed = bool(comparison.latency)
    macs = {model.name: model.macs / GIGA for model in view.evaluate.models if model.macs}
    points, levels = [], {}

    def add(name: str, width: str, y: float, y_range: tuple[float, float] | None = None, model: str = '') -> None:
        time = comparison.latency.get(width)
        x = time.median_ms if time else None if timed else macs.get(model or name)
        if x:
            points.append(front.Point(name, x, y, (time.p10_ms, time.p90_ms) if time else None, y_range))
        else:
            levels[name] = y

    for s in comparison.scores:
        if (s.set, s.metric, s.reference) == (of, metric.name, reference):
            ends = [s.mean - s.sd, s.mean + s.sd] if s.sd is not None else s.values.values()
            label, student = label_of(comparison, s.row, s.width), view.students.get((s.row, s.width), '')
            add(label, s.width, s.mean, (min(ends), max(ends)), student)
    for model in ('teacher', 'bicubic') if points else ():
        score = view.evaluate.score(model, of, metric.name, reference)
        if score is not None and score.mean is not None:
            add(model, model, score.mean)
    for point in front.pareto(points, metric.higher_is_better):
        point.front = True
    return points, levels


def trade_offs(view: View, comparison: Comparison) -> list[dict]:
    """Quality against latency, or against operations where nothing was timed, with the Pareto front; primary first."""
    timed = bool(comparison.latency)
    cost, axis = ('latency', 'latency, ms') if timed else ('operations', 'GMACs for 64×64 pixels')
    bars = 'the standard deviation over seeds'
    if not any(s.sd is not None for s in comparison.scores):
        bars = 'from the lowest to the highest of the seeds'
    entries = []
    for of, reference in product(view.evaluate.sets, ('gt', None, 'teacher')):
        for metric in (m for m, r in view.evaluate.columns(of.name) if r == reference):
            points, levels = _points(view, comparison, (of.name, metric, reference))
            if not points:
                continue
            label = f'{metric.label} on {of.name}' + (', to the teacher' if reference == 'teacher' else '')
            better = f'{metric.text}, {"higher" if metric.higher_is_better else "lower"} is better'
            best = joined(point.name for point in sorted(points, key=lambda point: point.x) if point.front)
            title = f'{label} against {cost}; on the Pareto front: {best}'
            caption = (
                f'{label} against {cost}. Ringed, on the line: the Pareto front, which no other model beats in both: '
            )
            caption += f'{best}. Vertical bars: {bars}.'
            caption += f' Horizontal ones: 10% to 90% of the timings ({comparison.timed}).' if timed else ''
            plot = front.plot(points, levels, (axis, better), title)
            entry = {'label': label, 'plot': plot, 'legend': front.legend(points), 'caption': caption}
            wanted = metric.name == comparison.primary.metric and reference in (comparison.primary.against, None)
            entries.insert(0 if wanted and of is view.evaluate.sets[0] else len(entries), entry)
    return entries


def overview(view: View) -> list[dict]:
    """The trainings of all methods in one plot per value: the loss that all have, and the share of every other term."""
    runs = view.runs.values()
    stages = max((run.stages for run in runs), key=len, default=[])
    same = all([(s.name, s.iters) for s in run.stages] == [(s.name, s.iters) for s in stages] for run in runs)
    losses = {label: smooth(run.series.get('l_g_pix', []), run.stages) for label, run in view.runs.items()}
    shares = {
        f'{label}: {name.removeprefix("share_")}': points
        for label, run in view.runs.items()
        for name, points in run.series.items()
        if name.startswith('share_') and name != 'share_pixel'
    }
    groups = []
    for title, y_label, found in (
        ('Pixel loss of every method', 'loss', losses),
        ('Shares of the gradient: every term but the pixel loss', "part of the student's gradient", shares),
    ):
        lines = [svg.Curve(name, thin(points)) for name, points in found.items() if points]
        if lines:
            last = max(line.points[-1][0] for line in lines)
            plot = svg.curves(lines, stages if same else [], last, y_label, f'{title}, over iterations')
            groups.append({'title': title, 'names': [line.name for line in lines], 'plot': plot})
    return groups


def context(view: View, comparison: Comparison, evaluate: Evaluate) -> dict:
    """What the template shows of a comparison."""
    table = differences(evaluate, comparison)
    return {
        'verdict': comparison.verdict,
        'reference': comparison.reference,
        'gates': [(gate.name, *GATES[gate.open], gate.text) for gate in comparison.gates],
        'quality': quality(evaluate, comparison),
        'differences': table,
        'marked': any(cell.kind for each in table for _, row in each.rows for cell in row),
        'costs': costs(view, comparison),
        'notes': comparison.notes,
        'curves': overview(view),
        'seed': view.seed,
        'other_seeds': view.other_seeds,
        'few': SIDE_BY_SIDE,
    }
