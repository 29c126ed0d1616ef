"""What a report says: its sentences, its tables and the points of its plots, as plain values for the template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from sdakd.commands.report.data import Bench, Difference, Evaluate, Interval, Metric, Model, TestSet
from sdakd.commands.report.svg import Mark
from sdakd.files.intervals import FEWEST

DIGITS = {'psnr': 2, 'ssim': 4, 'niqe': 2, 'lpips': 4, 'fid': 2, 'kid': 4, 'identity': 4}
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


# ------------------------------------------------------- answer -------------------------------------------------------


HEADINGS = {
    'worse': 'Loses',
    'better': 'Gains',
    'open': 'No measurable difference',
    'none': 'Without an interval, so without a verdict',
    'teacher': 'How close it is to the images of {}',
}


@dataclass
class Row:
    """One number of teacher and student, how they differ, and the interval of that.

    Args:
        kind: Of :data:`HEADINGS`.
        what: The number, with its unit.
        teacher, student, change, interval: As the page shows them.
        words: What the sentence says of it, empty for nothing.
    """

    kind: str
    what: str
    teacher: str
    student: str
    change: str = ''
    interval: str = ''
    words: str = ''


@dataclass
class Answer:
    """What the student loses against its teacher and what it gains: in words, and in rows by group."""

    student: str
    teacher: str
    words: str
    caption: str
    groups: list[tuple[str, list[Row]]]
    others: list[str]


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


def _model(name: str, *sections: Evaluate | Bench | None) -> Model | None:
    found = [m for section in sections if section for m in section.models if m.name == name]
    return next((m for m in found if m.parameters), found[0] if found else None)


def _part(large: float, small: float) -> str:
    """``1/15.9``, or ``1.20\u00d7`` where it is more."""
    return f'1/{times(large / small).removesuffix(".0")}' if large >= small else f'{small / large:.2f}\u00d7'


def _speed_up(slow: float, fast: float) -> str:
    return f'{times(slow / fast) if slow >= fast else format(slow / fast, ".2f")} times as fast'


def _cost_rows(evaluate: Evaluate | None, bench: Bench | None, student: str, teacher: str) -> list[Row]:
    """Everything that is the better the smaller it is."""
    own, other = (_model(name, evaluate, bench) for name in (student, teacher))
    rows = []

    def add(what: str, large: float | None, small: float | None, style: str, words: str = '', change=_part) -> None:
        if large and small:
            kind = 'better' if small < large else 'worse' if small > large else 'open'
            text, values = change(large, small), (format(large, style), format(small, style))
            rows.append(Row(kind, what, *values, text, words=words.replace('{}', text, 1)))

    timed = bench and bench.plain(student) and bench.plain(teacher)
    if bench and (fast := bench.fastest(student)) and (slow := bench.fastest(teacher)):
        best, plain = (slow.median_ms, fast.median_ms), None
        said = f'{times(best[0] / best[1])} times in the fastest runtime of each'
        if timed:
            plain = bench.plain(teacher).median_ms, bench.plain(student).median_ms
            more = '' if best == plain else f', {said}'
            add('Time in eager fp32, ms', *plain, ',.1f', f'speed ({{}} as {teacher}{more})', _speed_up)
        if best != plain:
            words = '' if timed else f'speed ({said})'
            add('Time in the fastest runtime of each, ms', *best, ',.1f', words, _speed_up)
    if own and other:
        add('Parameters', other.parameters, own.parameters, ',d', 'a small size ({} of the parameters)')
        add('Weights in float32, MB', 4e-6 * (other.parameters or 0), 4e-6 * (own.parameters or 0), ',.2f')
        words = '' if bench else 'few operations ({} of them)'
        add('GMACs for 64\u00d764 pixels', (other.macs or 0) / GIGA, (own.macs or 0) / GIGA, ',.3f', words)
    if timed:
        memory = (bench.plain(name).peak_memory_mib for name in (teacher, student))
        add('Memory at the peak, MiB', *memory, ',.0f')
    return rows


def _quality_rows(evaluate: Evaluate, of: str, student: str, teacher: str) -> list[Row]:
    """Every metric on a set; of those against the images of the teacher only the student has a value."""
    rows = []
    for metric, reference in evaluate.columns(of):
        own, other = (evaluate.score(name, of, metric.name, reference) for name in (student, teacher))
        if own is None or own.mean is None:
            continue
        if reference == 'teacher':
            cell = _cell(own, metric)
            rows.append(Row('teacher', heading(metric, None), '', cell.text, '', cell.interval))
            continue
        entry = difference(evaluate, student, teacher, of, metric.name, reference)
        cell, kind, words = _cell(entry, metric, True), 'none', metric.label
        if entry and entry.low is not None:
            kind = verdict(entry, metric)
            size = _with_unit(shown(abs(entry.mean), metric), metric)
            words += '' if kind == 'open' else f' ({size} {kind} on {of})'
        elif entry and entry.mean is not None:
            words += f' {_with_unit(cell.text, metric)}'
        values = [shown(score.mean if score else None, metric) for score in (other, own)]
        rows.append(Row(kind, heading(metric, None), *values, cell.text, cell.interval, words))
    return rows


def _sentences(rows: Sequence[Row], student: str) -> str:
    """What the rows say: what the student loses, what it gains, and what they do not tell."""
    words = {kind: [row.words for row in rows if row.kind == kind and row.words] for kind in HEADINGS}
    judged = any(row.kind != 'none' and row.interval for row in rows)
    text = ''
    if words['worse']:
        text = f'{student} loses {joined(words["worse"])}. '
    elif judged:
        text = f'{student} loses nothing that these images tell. '
    if words['better']:
        text += f'{"It" if text else student} gains {joined(words["better"])}. '
    if words['open']:
        text += f'Not measurably different: {joined(words["open"])}. '
    if words['none']:
        text += f'Without a verdict: {joined(words["none"])}. '
    return text.rstrip()


def answer(evaluate: Evaluate | None, bench: Bench | None, student: str | None) -> Answer | None:
    """What the student loses against its teacher and what it gains; None where there is no pair to compare.

    Quality is that on the set with the most images, on which most can be said.
    """
    source = evaluate or bench
    if source is None or source.teacher is None or student is None:
        return None
    teacher, caption, of = source.teacher, '', None
    if evaluate and evaluate.sets:
        of = max(evaluate.sets, key=lambda one: one.images)
        caption = f'Quality on {set_caption(of)}' + ('' if of.images < FEWEST else '; small: 95% intervals')

    def rows_of(name: str) -> list[Row]:
        quality = _quality_rows(evaluate, of.name, name, teacher) if of else []
        return quality + _cost_rows(evaluate, bench, name, teacher)

    names = [m.name for m in (evaluate.students() if evaluate else bench.models) if m.name not in (teacher, student)]
    rows = rows_of(student)
    groups = [(text.format(teacher), [row for row in rows if row.kind == kind]) for kind, text in HEADINGS.items()]
    others = [text for text in (_sentences(rows_of(name), name) for name in names) if text]
    return Answer(student, teacher, _sentences(rows, student), caption, [one for one in groups if one[1]], others)


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


def heading(metric: Metric, reference: str | None) -> str:
    """Metric and direction, and against what, where that is the teacher's picture."""
    return f'{metric.text}\u00a0{arrow(metric)}' + (' to the teacher' if reference == 'teacher' else '')


def set_caption(of: TestSet) -> str:
    few = f': too few for intervals, which need {FEWEST}' if of.images < FEWEST else ''
    return f'{of.name}, {of.images} image{"" if of.images == 1 else "s"}{few}'


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
                if score and best is not None and score.mean == best and score.n >= FEWEST:
                    cell.kind = 'best'
                cells[name].append(cell)
        rows = [(name, row) for name, row in cells.items() if any(cell.text != '\u2013' for cell in row)]
        tables.append(Table(set_caption(of), [heading(*column) for column in columns], rows, list(of.unreadable)))
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
            tables.append(Table(set_caption(of), [heading(*column) for column in columns], rows, []))
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
