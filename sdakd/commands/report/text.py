"""What a report says: its sentences, its tables and the points of its plots, as plain values for the template."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from sdakd.commands.report.data import Bench, Difference, Evaluate, Interval, Metric, Model
from sdakd.commands.report.svg import Mark

DIGITS = {'psnr': 2, 'ssim': 4, 'niqe': 2, 'lpips': 4, 'fid': 2, 'kid': 5, 'identity': 4}
FIDELITY, PERCEPTION = ('psnr', 'ssim'), ('lpips', 'niqe')  # the first of each that was measured goes into the headline
MINUS = '\u2212'
GIGA = 1e9


def shown(value: float | None, metric: Metric, sign: bool = False) -> str:
    """A value with the digits that are usual for its metric and a real minus sign; a dash where there is none."""
    if value is None:
        return '\u2013'
    digits = DIGITS.get(metric.name)
    if digits is None:  # about four significant ones
        digits = 2 if abs(value) >= 10 else 4
    return f'{value:{"+" if sign else ""}.{digits}f}'.replace('-', MINUS)


def times(value: float) -> str:
    return f'{value:.1f}' if value < 100 else f'{value:.0f}'


def milliseconds(value: float | None) -> str:
    if value is None:
        return '\u2013'
    return f'{value:.2f}' if value < 10 else f'{value:,.1f}'


def joined(parts: Iterable[str]) -> str:
    *rest, last = parts
    return f'{", ".join(rest)} and {last}' if rest else last


def joined_network(network: dict | None) -> str:
    """A network's options in one line; a dash where they are not known."""
    if not network:
        return '\u2013'
    options = ', '.join(f'{key}={value}' for key, value in network.items() if key != 'type')
    return f'{network.get("type", "")}({options})'


# ------------------------------------------------------ headline ------------------------------------------------------


@dataclass
class Tile:
    """One large number, what it is, and where it comes from."""

    value: str
    label: str
    detail: str


@dataclass
class Card:
    """What there is to say of a student in one sentence, and its numbers."""

    name: str
    sentence: str
    tiles: list[Tile]


def verdict(entry: Interval, metric: Metric) -> str:
    """``better`` or ``worse`` where the interval leaves out 0, else ``open``."""
    if entry.mean is None or entry.low is None or entry.high is None or entry.low <= 0 <= entry.high:
        return 'open'
    return 'better' if (entry.mean > 0) == metric.higher_is_better else 'worse'


def difference(evaluate: Evaluate, a: str, b: str, of: str, metric: str, reference: str | None) -> Difference | None:
    """``a`` minus ``b``, whichever way round it was written down."""
    for entry in evaluate.differences:
        if (entry.set, entry.metric, entry.reference) != (of, metric, reference):
            continue
        if (entry.a, entry.b) == (a, b):
            return entry
        if (entry.a, entry.b) == (b, a) and entry.mean is not None:
            low, high = (None if end is None else -end for end in (entry.high, entry.low))
            return Difference(
                a=a, b=b, set=of, metric=metric, reference=reference, mean=-entry.mean, low=low, high=high, n=entry.n
            )
    return None


def _with_unit(text: str, metric: Metric) -> str:
    return f'{text} {metric.unit}' if metric.unit else text


def _quality_words(evaluate: Evaluate, student: str, metric: Metric) -> str:
    """The differences from the teacher on all sets as the end of a clause; empty where there are none."""
    sure, unsure, single = [], [], []
    for of in evaluate.sets:
        entry = _from_teacher(evaluate, student, of.name, metric)
        if entry is None or entry.mean is None:
            continue
        if entry.low is None or entry.high is None:
            single.append(f'{_with_unit(shown(entry.mean, metric, True), metric)} on {of.name}')
        elif verdict(entry, metric) == 'open':
            unsure.append(of.name)
        else:
            size = _with_unit(shown(abs(entry.mean), metric), metric)
            sure.append((verdict(entry, metric), f'by {size} on {of.name}'))
    words = []
    for word in ('worse', 'better'):
        parts = [part for judged, part in sure if judged == word]
        words += [f'{word} {joined(parts)}'] if parts else []
    words += [f'not measurably different on {joined(unsure)}'] if unsure else []
    words += [f'different by {joined(single)} (too few images for an interval)'] if single else []
    return joined(words) if words else ''


def _from_teacher(evaluate: Evaluate, student: str, of: str, metric: Metric) -> Difference | None:
    reference = 'gt' if evaluate.score(student, of, metric.name, 'gt') else None
    return difference(evaluate, student, evaluate.teacher, of, metric.name, reference)


def _headline_metrics(evaluate: Evaluate) -> list[Metric]:
    known = {metric.name: metric for metric in evaluate.metrics}
    names = [next((name for name in group if name in known), None) for group in (FIDELITY, PERCEPTION)]
    return [known[name] for name in names if name] or evaluate.metrics[:1]


def _speed(bench: Bench, student: str, teacher: str) -> tuple[str, Tile] | None:
    plain, base, best = bench.plain(student), bench.plain(teacher), bench.fastest(student)
    if plain is None or base is None:
        return None
    ratio = base.median_ms / plain.median_ms
    words = (
        f'is {times(ratio)} times as fast as {teacher}' if ratio >= 1 else f'has {ratio:.2f} of the speed of {teacher}'
    )
    if best is not plain and best.median_ms < 0.95 * plain.median_ms:
        words += f' ({times(base.median_ms / best.median_ms)} times in {best.runtime})'
    detail = f'{milliseconds(plain.median_ms)} ms instead of {milliseconds(base.median_ms)} ms, {plain.runtime}'
    tile = Tile(f'{times(ratio)}\u00d7' if ratio >= 1 else f'{ratio:.2f}\u00d7', 'the speed', detail)
    return words, tile


def _model(name: str, *sections: Evaluate | Bench | None) -> Model | None:
    found = [m for section in sections if section for m in section.models if m.name == name]
    return next((m for m in found if m.parameters), found[0] if found else None)


def cards(evaluate: Evaluate | None, bench: Bench | None) -> list[Card]:
    """A card for every student that was measured beside a teacher."""
    source = evaluate or bench
    if source is None or source.teacher is None:
        return []
    teacher = source.teacher
    reference = _model(teacher, evaluate, bench)
    names = [m.name for m in (evaluate.students() if evaluate else bench.models) if m.name != teacher]
    result = []
    for name in names:
        clauses, tiles = [], []
        speed = _speed(bench, name, teacher) if bench else None
        student = _model(name, evaluate, bench)
        fewer = None
        if reference and reference.parameters and student.parameters:
            fewer = reference.parameters / student.parameters
        if speed:
            clauses.append(speed[0])
            tiles.append(speed[1])
        elif reference and reference.macs and student.macs:
            clauses.append(f'needs {times(reference.macs / student.macs)} times fewer operations than {teacher}')
        if fewer:
            detail = f'{student.parameters:,d} instead of {reference.parameters:,d}'
            small = f'1/{times(fewer).removesuffix(".0")}' if fewer >= 1 else f'{1 / fewer:.2f}\u00d7'
            tiles.append(Tile(small, 'the parameters', detail))
        for metric in _headline_metrics(evaluate) if evaluate else ():
            if words := _quality_words(evaluate, name, metric):
                clauses.append(f'its {metric.label} is {words}')
            tiles += _quality_tiles(evaluate, name, metric)
        if clauses:
            result.append(Card(name, f'{name} {"; ".join(clauses)}.', tiles))
    return result


def _quality_tiles(evaluate: Evaluate, student: str, metric: Metric) -> list[Tile]:
    """The difference from the teacher on the first set that has one."""
    for of in evaluate.sets:
        entry = _from_teacher(evaluate, student, of.name, metric)
        if entry is None or entry.mean is None:
            continue
        own = evaluate.score(student, of.name, metric.name, entry.reference)
        other = evaluate.score(evaluate.teacher, of.name, metric.name, entry.reference)
        details = [f'{shown(own.mean, metric)} instead of {shown(other.mean, metric)}'] if own and other else []
        if entry.low is not None and entry.high is not None:
            interval = f'{shown(entry.low, metric, True)} to {shown(entry.high, metric, True)}'
            details.append(f'95% interval of the difference {interval}')
        value = _with_unit(shown(entry.mean, metric, True), metric)
        return [Tile(value, f'{metric.label} on {of.name}', '; '.join(details))]
    return []


# ------------------------------------------------------- tables -------------------------------------------------------


@dataclass
class Cell:
    """A value, its interval beneath, and a class of the page: ``best``, ``better``, ``worse``, ``open`` or none."""

    text: str
    interval: str = ''
    kind: str = ''


@dataclass
class Table:
    """A header and rows, each with its own heading; ``caption`` says what the numbers are."""

    caption: str
    header: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]


def arrow(metric: Metric) -> str:
    return '\u2191' if metric.higher_is_better else '\u2193'


def _cell(entry: Interval | None, metric: Metric, sign: bool = False) -> Cell:
    if entry is None or entry.mean is None:
        return Cell('\u2013')
    interval = ''
    if entry.low is not None and entry.high is not None:
        interval = f'{shown(entry.low, metric, sign)} to {shown(entry.high, metric, sign)}'
    return Cell(shown(entry.mean, metric, sign), interval)


def _heading(metric: Metric, reference: str | None) -> str:
    """Metric and direction, and against what, where that is the teacher's picture."""
    return f'{metric.text}\u00a0{arrow(metric)}' + (' to the teacher' if reference == 'teacher' else '')


def quality(evaluate: Evaluate) -> list[Table]:
    """A table per set: the models' means with intervals; the best of a column is marked."""
    tables = []
    for of in evaluate.sets:
        columns = evaluate.columns(of.name)
        cells = {model.name: [] for model in evaluate.models}
        for metric, reference in columns:
            scores = {name: evaluate.score(name, of.name, metric.name, reference) for name in cells}
            means = [s.mean for s in scores.values() if s and s.mean is not None]
            best = (max if metric.higher_is_better else min)(means, default=None) if len(means) > 1 else None
            for name, score in scores.items():
                cell = _cell(score, metric)
                if score and best is not None and score.mean == best:
                    cell.kind = 'best'
                cells[name].append(cell)
        rows = [(name, row) for name, row in cells.items() if any(cell.text != '\u2013' for cell in row)]
        caption = f'{of.name}, {of.images} image{"" if of.images == 1 else "s"}'
        tables.append(Table(caption, [_heading(*column) for column in columns], rows, list(of.unreadable)))
    return [table for table in tables if table.rows]


def differences(evaluate: Evaluate) -> list[Table]:
    """A table per set: model minus model over the same images, with intervals, and which is better."""
    tables = []
    for of in evaluate.sets:
        entries = [d for d in evaluate.differences if d.set == of.name]
        there = {(d.metric, d.reference) for d in entries}
        columns = [(m, r) for m, r in evaluate.columns(of.name) if (m.name, r) in there]
        rows = []
        for a, b in dict.fromkeys((d.a, d.b) for d in entries):
            row = []
            for metric, reference in columns:
                found = difference(evaluate, a, b, of.name, metric.name, reference)
                cell = _cell(found, metric, True)
                cell.kind = verdict(found, metric) if found and found.low is not None else ''
                row.append(cell)
            rows.append((f'{a} {MINUS} {b}', row))
        if rows and columns:
            tables.append(Table(of.name, [_heading(*column) for column in columns], rows, []))
    return tables


def timings(bench: Bench) -> list[dict]:
    """Rows of the bench table by model: what was measured in every runtime."""
    largest = max((r.ratio for r in bench.runs if r.ratio), default=0)
    groups = []
    for model in bench.models:
        runs = [run for run in bench.runs if run.model == model.name]
        rows = []
        for run in (run for run in runs if run.median_ms):
            spread = (
                f'{milliseconds(run.p10_ms)} to {milliseconds(run.p90_ms)}' if run.p10_ms and run.p90_ms else '\u2013'
            )
            rows.append(
                {
                    'runtime': run.runtime,
                    'median': milliseconds(run.median_ms),
                    'spread': spread,
                    'memory': f'{run.peak_memory_mib:,.0f}' if run.peak_memory_mib is not None else '\u2013',
                    'ratio': f'{times(run.ratio)}\u00d7' if run.ratio else '\u2013',
                    'share': round(100 * run.ratio / largest, 1) if run.ratio and largest else 0,
                    'psnr': f'{run.psnr:.1f}' if run.psnr is not None else '\u2013',
                }
            )
        cost = [f'{model.parameters:,d} parameters'] if model.parameters else []
        cost += [f'{model.macs / GIGA:,.3f} GMACs'] if model.macs else []
        if rows:
            groups.append({'name': model.name, 'cost': ', '.join(cost), 'rows': rows})
    return groups


def left_out(bench: Bench) -> list[str]:
    """What was not timed and why, one sentence for all models that it is true of."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for run in bench.runs:
        if run.error:
            reasons.setdefault((run.runtime, run.error), []).append(run.model)
    return [f'{runtime} ({", ".join(names)}): {error}' for (runtime, error), names in reasons.items()]


# -------------------------------------------------------- plot --------------------------------------------------------


def trade_offs(evaluate: Evaluate, bench: Bench) -> list[tuple[str, Metric, list[Mark]]]:
    """Latency against quality: for every set, metric and reference a label and one mark per model.

    A model that was not timed, such as bicubic interpolation, has a mark without latency.
    """
    result = []
    for of, reference in product(evaluate.sets, ('gt', None, 'teacher')):
        for metric in (m for m, r in evaluate.columns(of.name) if r == reference):
            marks = []
            for index, model in enumerate(evaluate.models):
                score = evaluate.score(model.name, of.name, metric.name, reference)
                if score is None or score.mean is None:
                    continue
                run = bench.plain(model.name) or bench.fastest(model.name)
                y_range = (score.low, score.high) if score.low is not None and score.high is not None else None
                x_range = (run.p10_ms, run.p90_ms) if run and run.p10_ms and run.p90_ms else None
                x = run.median_ms if run else None
                marks.append(Mark(model.name, x, score.mean, x_range, y_range, index % 7))
            if any(mark.x for mark in marks):
                against = {'gt': '', None: '', 'teacher': ', to the teacher'}[reference]
                result.append((f'{metric.label} on {of.name}{against}', metric, marks))
    return result
