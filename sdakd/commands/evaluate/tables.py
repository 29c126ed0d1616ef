"""The tables of `sdakd evaluate`: header and rows of text, and how they are to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdakd.files.intervals import FEWEST

if TYPE_CHECKING:
    from sdakd.commands.evaluate.contenders import Contender
    from sdakd_metrics.metrics import Metric

Table = tuple[list[str], list[list[str]]]  # header and rows


def _cell(metric: Metric, entry: dict | None) -> str:
    """``28.43 [25.10, 31.76]``; a dash where nothing was measured."""
    if entry is None or entry['mean'] is None:
        return '-'
    limits = f' [{metric.write(entry["low"])}, {metric.write(entry["high"])}]' if entry['low'] is not None else ''
    return metric.write(entry['mean']) + limits


def quality_table(
    scores: Sequence[dict], contenders: Sequence[Contender], metrics: Sequence[Metric], references: tuple
) -> Table:
    """A row per set and model: means with their intervals against one of ``references``."""
    found = {(s['set'], s['model'], s['metric']): s for s in scores if s['reference'] in references}
    columns = [metric for metric in metrics if any(key[2] == metric.name for key in found)]
    rows = []
    for name in dict.fromkeys(s['set'] for s in scores):
        for row in contenders:
            cells = [_cell(metric, found.get((name, row.name, metric.name))) for metric in columns]
            if set(cells) - {'-'}:
                parameters = '-' if row.parameters is None else f'{row.parameters:,d}'
                macs = '-' if row.macs is None else f'{row.macs / 1e9:.3f}'
                rows.append([name, row.name, parameters, macs, *cells])
    return ['Set', 'Model', 'Parameters', 'GMACs', *(metric.label for metric in columns)], rows


def difference_table(differences: Sequence[dict], metrics: Sequence[Metric]) -> Table:
    """A row per set, pair of models and reference; blind metrics stand with the ground truth."""
    found = {(d['set'], d['a'], d['b'], d['reference'] or 'gt', d['metric']): d for d in differences}
    columns = [metric for metric in metrics if any(key[4] == metric.name for key in found)]
    rows = []
    for key in dict.fromkeys(key[:4] for key in found):
        cells = [_cell(metric, found.get((*key, metric.name))) for metric in columns]
        against = 'teacher' if key[3] == 'teacher' else 'ground truth'
        rows.append([key[0], f'{key[1]} - {key[2]}', against, *cells])
    return ['Set', 'Difference', 'Measured against', *(metric.label for metric in columns)], rows


def factor_table(
    contents: Sequence[dict], contenders: Sequence[Contender], metrics: Sequence[Metric]
) -> tuple[Metric, Table]:
    """A row per set and model, a column per factor, of FID where it was measured, else of the first metric.

    Args:
        contents: The section of every factor.
        contenders, metrics: The same at all factors.

    Returns:
        The metric, against the ground truth where it has a reference; header and rows.
    """
    metric = next((one for one in metrics if one.name == 'fid'), metrics[0])
    found = {
        (content['scale'], s['set'], s['model']): s
        for content in contents
        for s in content['scores']
        if s['metric'] == metric.name and s['reference'] in ('gt', None)
    }
    factors = [content['scale'] for content in contents]
    rows = []
    for name in (one['name'] for one in contents[0]['sets']):
        for row in contenders:
            rows.append([name, row.name, *(_cell(metric, found.get((factor, name, row.name))) for factor in factors)])
    return metric, (['Set', 'Model', *(f'{metric.label} x{factor}' for factor in factors)], rows)


def intervals_note(contents: Sequence[dict]) -> str:
    """What the brackets of tables are, and which sets have none because they have too few images."""
    entries = [
        s
        for content in contents
        for s in content['scores']
        if (s['per_image'] or s.get('pseudo_values')) and s['mean'] is not None
    ]
    entries += [difference for content in contents for difference in content['differences']]
    few = {s['set']: s['n'] for s in entries if s['n'] < FEWEST}
    text = 'In brackets: 95% intervals of the mean over images. ' if any(s['n'] >= FEWEST for s in entries) else ''
    if few:
        sets = ', '.join(f'{name} ({number})' for name, number in few.items())
        text += f'No interval for fewer than {FEWEST} images: {sets}. '
    return text.rstrip()


def explanation(contents: Sequence[dict], contenders: Sequence[Contender], metrics: Sequence[Metric]) -> str:
    """How the tables are to be read."""
    text = ''
    for better, names in (
        ('Higher is better', [metric.label for metric in metrics if metric.higher_is_better]),
        ('Lower is better', [metric.label for metric in metrics if not metric.higher_is_better]),
    ):
        if names:
            text += f'{better}: {", ".join(names)}. '
    if note := intervals_note(contents):
        text += f'{note} '
    faces = '; GCFSR: for one face' if any(getattr(row, 'faces', False) for row in contenders) else ''
    return text + f'GMACs: for 64x64 input pixels{faces}.\n'
