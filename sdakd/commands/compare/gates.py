"""Gates: what has to hold before a comparison says anything, and the verdict that they let through.

A table answers whether one method beats another only if the teacher is worth following, the method's own term was
heard, discriminators told real from fake, and the same method with a teacher that knows nothing does not gain as much.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdakd.commands.compare.config import Primary
from sdakd.commands.compare.measuring import without_short
from sdakd.commands.compare.rows import Row
from sdakd.commands.compare.summary import DIGITS, FEWEST_SEEDS, Cell
from sdakd.commands.report.curves import Run as Curves
from sdakd.commands.report.curves import Stage, read_run

HEARD = 0.1  # share of the student's gradient from which on a method's own term is heard


@dataclass
class Gate:
    """One condition.

    Args:
        name: ``teacher``, ``heard``, ``discriminator`` or ``placebo``.
        open: Whether it holds; None where it could not be looked at.
        text: What was found, with the numbers.
    """

    name: str
    open: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: 'holds', False: 'FAILS', None: 'not looked at'}[self.open]
        return f'Gate {self.name}: {mark}. {self.text}'


def share_of(curves: Curves, term: str) -> float | None:
    """The share of the student's gradient that a term had: the least over stages of the median over a stage.

    Of a stage, what was logged in its second half counts, where something was: weights are calibrated in the first.
    """
    points = curves.series.get(f'share_{term.replace(":", "_")}', [])
    medians = [
        statistics.median(values)
        for stage in curves.stages
        if term in stage.terms.split(', ') and (values := _late(points, stage))
    ]
    return min(medians, default=None)


def separation_of(curves: Curves) -> dict[str, float]:
    """How much higher each discriminator's output is on real than on fake images, at the end; by its log's ending.

    In the last stage in which it was on, the mean over the second half.
    """
    found = {}
    for name, points in curves.series.items():
        if not name.startswith('out_d_real'):
            continue
        ending = name.removeprefix('out_d_real')
        fake = dict(curves.series.get(f'out_d_fake{ending}', []))
        gaps = [(iteration, value - fake[iteration]) for iteration, value in points if iteration in fake]
        for stage in curves.stages:
            if values := _late(gaps, stage):
                found[ending.removeprefix('_') or 'student'] = statistics.fmean(values)
    return found


def _late(points: Sequence[tuple[int, float]], stage: Stage) -> list[float]:
    middle = stage.first + stage.iters // 2
    inside = [(iteration, value) for iteration, value in points if stage.first <= iteration <= stage.last]
    return [value for iteration, value in inside if iteration >= middle] or [value for _, value in inside]


def look(
    primary: Primary, reference: Row, cells: Sequence[Cell], section: Mapping, differences: Sequence[dict]
) -> list[Gate]:
    """Looks at all gates.

    Args:
        primary: The metric that the verdict is about.
        reference: The row that others are compared with: a student without what methods add.
        cells: The final cells that are done.
        section: The section ``evaluate`` of results.json; its models are named after the cells' runs.
        differences: See :func:`sdakd.commands.compare.summary.over_seeds`.
    """
    curves = {cell.run.name: read_run(cell.run.experiment) for cell in cells}
    return [
        _teacher(primary, reference, cells, section),
        _heard(reference, cells, curves),
        _discriminator(cells, curves),
        _placebo(primary, cells, section, differences),
    ]


def _higher(section: Mapping, primary: Primary) -> bool:
    return next(m['higher_is_better'] for m in section['metrics'] if m['name'] == primary.metric)


def _teacher(primary: Primary, reference: Row, cells: Sequence[Cell], section: Mapping) -> Gate:
    """The teacher beats the students of the reference on every test set."""
    if primary.against == 'teacher':
        return Gate('teacher', True, 'The primary metric is closeness to it.')
    sign, digits = (1 if _higher(section, primary) else -1), DIGITS[primary.metric]
    names = {cell.run.name for cell in cells if cell.row.name == reference.name}
    parts, holds = [], True
    for of in dict.fromkeys(s['set'] for s in section['scores']):
        values = {
            s['model']: s['mean']
            for s in section['scores']
            if (s['set'], s['metric']) == (of, primary.metric) and s['reference'] in ('gt', None)
        }
        students = [value for name, value in values.items() if name in names and value is not None]
        if values.get('teacher') is None or not students:
            continue
        mean = statistics.fmean(students)
        holds = holds and sign * (values['teacher'] - mean) > 0
        parts.append(f'{of} {values["teacher"]:.{digits}f} and {mean:.{digits}f}')
    if not parts:
        return Gate('teacher', None, 'It was not measured.')
    return Gate('teacher', holds, f'The teacher and students of {reference.name}: {"; ".join(parts)}.')


def _heard(reference: Row, cells: Sequence[Cell], curves: Mapping[str, Curves]) -> Gate:
    """Every row's own terms have a tenth of the student's gradient."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        for term in sorted(cell.row.own_terms(reference)):
            if (share := share_of(curves[cell.run.name], term)) is not None:
                found.setdefault(f'{term} of {cell.row.name}', []).append(share)
    if not found:
        return Gate('heard', None, f'No row has a term that {reference.name} has not.')
    least = {name: min(shares) for name, shares in found.items()}
    text = ', '.join(f'{name} {share:.0%}' for name, share in least.items())
    return Gate('heard', min(least.values()) >= HEARD, f"Least shares of the student's gradient: {text}.")


def _discriminator(cells: Sequence[Cell], curves: Mapping[str, Curves]) -> Gate:
    """Every discriminator that learns puts real images above fake ones."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        for name, gap in separation_of(curves[cell.run.name]).items():
            found.setdefault(f'{name} of {cell.row.name}', []).append(gap)
    if not found:
        return Gate('discriminator', None, 'No row has one.')
    least = {name: min(gaps) for name, gaps in found.items()}
    text = ', '.join(f'{name} {gap:+.2f}' for name, gap in least.items())
    return Gate('discriminator', min(least.values()) > 0, f'Least outputs on real less those on fake images: {text}.')


def _placebo(primary: Primary, cells: Sequence[Cell], section: Mapping, differences: Sequence[dict]) -> Gate:
    """No row with a shuffled teacher is better than the reference."""
    rows = {cell.row.name for cell in cells if cell.row.placebo is not None}
    if not rows:
        return Gate('placebo', None, 'No row has a shuffled teacher (options: {teacher:shuffle: 0}).')
    sign = 1 if _higher(section, primary) else -1
    found = [d for d in differences if d['a'] in rows and _is_primary(d, primary)]
    text = '; '.join(f'{d["a"]} - {d["b"]} on {d["set"]}: {_value(d, primary)}' for d in found)
    return Gate('placebo', not any(_verdict(d, primary, sign) == 'better' for d in found), f'{text}.')


# ------------------------------------------------------ the verdict ---------------------------------------------------


def _is_primary(difference: Mapping, primary: Primary) -> bool:
    return difference['metric'] == primary.metric and difference['reference'] in (primary.against, None)


def _value(difference: Mapping, primary: Primary) -> str:
    digits = DIGITS[primary.metric]
    text = f'{difference["mean"]:+.{digits}f}'
    if difference['low'] is not None:
        text += f' [{difference["low"]:+.{digits}f}, {difference["high"]:+.{digits}f}]'
    return text


def _verdict(difference: Mapping, primary: Primary, sign: int) -> str:
    """``better`` or ``worse`` where all seeds say so and the interval, if there is one, agrees; ``equal`` where the
    interval, or without one every seed, lies within the margin; else ``undecided``.
    """
    values = [sign * value for value in difference['values'].values()]
    limits = [sign * difference[key] for key in ('low', 'high') if difference[key] is not None]
    around = limits or values
    if primary.margin is not None and all(abs(value) <= primary.margin for value in around):
        return 'equal'
    if all(value > 0 for value in values) and all(limit > 0 for limit in limits):
        return 'better'
    if all(value < 0 for value in values) and all(limit < 0 for limit in limits):
        return 'worse'
    return 'undecided'


def verdict(
    primary: Primary,
    label: str,
    gates: Sequence[Gate],
    edge: Sequence[str],
    section: Mapping,
    differences: Sequence[dict],
) -> str:
    """What the comparison says, in a sentence.

    Args:
        primary: The metric that it is about.
        label: The metric in words.
        gates: What :func:`look` has found.
        edge: Rows whose best weight lies at the edge of the search: nothing is said of them.
        section: The section ``evaluate`` of results.json.
        differences: See :func:`sdakd.commands.compare.summary.over_seeds`.
    """
    failed = [gate.name for gate in gates if gate.open is False]
    if failed:
        return f'Verdict: void, because the gate{"s" * (len(failed) > 1)} {", ".join(failed)} did not hold.'
    sign = 1 if _higher(section, primary) else -1
    kept = [d for d in differences if _is_primary(d, primary) and math.isfinite(d['mean'])]
    if not kept:
        return 'Verdict: none, there is nothing to compare.'
    reference, counted = kept[0]['b'], [d for d in kept if d['a'] not in edge]
    enough = any(d['n'] >= FEWEST_SEEDS for d in counted)
    said: dict[str, list[str]] = {}
    for d in counted:
        kind = _verdict(d, primary, sign)
        mark = '*' if enough and d['n'] < FEWEST_SEEDS else ''
        where = f'{d["a"]}{mark} ({d["set"]}, width {d["width"]}, {_value(d, primary)})'
        said.setdefault(kind, []).append(where)
    parts = {
        'better': f'better than {reference}',
        'worse': f'worse than {reference}',
        'equal': f'equal to {reference} within {primary.margin or 0:g}',
        'undecided': f'not told from {reference}',
    }
    text = '; '.join(f'{words}: {", ".join(said[kind])}' for kind, words in parts.items() if kind in said)
    if edge:
        text += ('; ' if text else '') + f'void, their best weight lies at the edge of the search: {", ".join(edge)}'
    if few := sorted({d['n'] for d in counted if d['n'] < FEWEST_SEEDS}):
        number = f'{" or ".join(map(str, few))} seed{"s" * (few != [1])}'
        text += f'; {"* " if enough else ""}of {number}, which is a tendency and no evidence'
    _, short = without_short({**section, 'scores': [s for s in section['scores'] if s['metric'] == primary.metric]})
    text += ''.join(f'; {remark.rstrip(".")}' for remark in short)
    return f'Verdict by {label}: {text}.'
