"""Tables of measured quality, from the results.json files of `sdakd evaluate`: the FID tables and the ablation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from common import UserError, check_distinct, fraction, save_table
from msgspec import Meta, Struct, field

DIGITS = {'ssim': 4, 'lpips': 4, 'kid': 5, 'identity': 4}  # others: 2


class Column(Struct, forbid_unknown_fields=True):
    """A metric on a test set at an upscaling factor."""

    label: str
    set: str
    scale: Annotated[int, Meta(ge=1)] = 4
    metric: str = 'fid'
    reference: str | None = 'gt'  # or teacher; ~ for metrics without reference


class Row(Struct, forbid_unknown_fields=True):
    """A method at a width; ``model`` is its name in results.json."""

    method: str
    model: str
    width: str | int | float


class Config(Struct, forbid_unknown_fields=True):
    """The YAML."""

    generator: str
    results: list[str]  # folders with a results.json
    columns: list[Column]
    rows: list[Row]
    output: str = ''
    notes: list[str] = field(default_factory=list)


def read_scores(folders: list[str]) -> dict[tuple, dict]:
    """The scores of ``sdakd evaluate`` by factor, set, model, metric and reference.

    Raises:
        UserError: A file is missing or damaged, or two files measured the same and differ.
    """
    from sdakd.files.results import NAME, read_results

    found: dict[tuple, dict] = {}
    for folder in folders:
        path = Path(folder) / NAME
        content = read_results(folder, 'run `sdakd evaluate` again').get('evaluate')
        if content is None:
            raise UserError(f'results: {path} holds no results of evaluate; run `sdakd evaluate ... -o {folder}`.')
        try:
            scores = {
                (content['scale'], s['set'], s['model'], s['metric'], s['reference']): {
                    key: s[key] for key in ('mean', 'low', 'high', 'n')
                }
                for s in content['scores']
            }
        except (KeyError, TypeError) as error:
            raise UserError(f'results: {path} is damaged ({error!r}); run `sdakd evaluate` again.') from None
        for key, score in scores.items():
            if found.setdefault(key, score) != score:
                scale, testset, model, metric, _ = key
                raise UserError(
                    f'results: {path} and another file both have {metric} of {model} on {testset} x{scale}, and '
                    'differ; name the folder of one, or give the models other names (NAME=MODEL).'
                )
    return found


def written(score: dict | None, metric: str) -> str:
    """``28.43 [25.10, 31.76]``; empty where nothing was measured."""
    from sdakd.files.intervals import FEWEST

    if score is None or score['mean'] is None:
        return ''
    digits = DIGITS.get(metric, 2)
    interval = ''
    if score['low'] is not None and score['n'] >= FEWEST:
        interval = f' [{score["low"]:.{digits}f}, {score["high"]:.{digits}f}]'
    return f'{score["mean"]:.{digits}f}{interval}'


def make(config: Config, folder: Path, table: str) -> list[Path]:
    """Writes ``table_<table>`` as Markdown, CSV and LaTeX.

    The paper's metric is FID: beside every FID against the ground truth stands a column for the paper's.
    """
    from published import Published

    check_distinct([column.label for column in config.columns], 'columns')
    check_distinct([f'{row.method}, {row.width}' for row in config.rows], 'rows')
    widths = [fraction(row.width, f'rows[{number}]:width') for number, row in enumerate(config.rows)]
    scores, paper = read_scores(config.results), Published(table)
    header, rows, missing = ['Method' if table == 'fid' else 'Variant', 'Width'], [], []
    for column in config.columns:
        header.append(column.label)
        if (column.metric, column.reference) == ('fid', 'gt'):
            header.append(f'Paper: {column.label}')
    for row, width in zip(config.rows, widths, strict=True):
        cells = [row.method, str(width)]
        for column in config.columns:
            key = (column.scale, column.set, row.model, column.metric, column.reference)
            cells.append(written(scores.get(key), column.metric))
            if not cells[-1]:
                missing.append(f'{row.model}: {column.label}')
            if (column.metric, column.reference) == ('fid', 'gt'):
                cells.append(paper.cell('fid', config.generator, width, row.method, column.scale))
        rows.append(cells)
    if len(missing) == len(config.rows) * len(config.columns):
        known = sorted(
            {f'{model} ({metric} against {ref}, {name} x{scale})' for scale, name, model, metric, ref in scores}
        )
        some = '; '.join(known[:6]) + ('; ...' if len(known) > 6 else '')
        raise UserError(f'rows: results.json has no cell of this table; it holds {some or "no score"}.')
    if missing:
        sys.stderr.write('Not measured, cells left empty: ' + '; '.join(missing) + '.\n')
    notes = [f'{config.generator}.', *config.notes, *(paper.notes() if any('Paper' in name for name in header) else [])]
    return save_table(header, rows, notes, folder, f'table_{table}')
