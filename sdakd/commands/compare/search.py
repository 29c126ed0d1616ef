"""The search: every method is tried with the same factors on its own weights, and keeps the best one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sdakd.commands.compare.config import Config
from sdakd.commands.compare.matrix import Matrix
from sdakd.commands.compare.measuring import measure
from sdakd.commands.compare.rows import Row
from sdakd.commands.compare.summary import Cell

EDGES = 3  # factors from which on the best one may lie inside of them


@dataclass
class Search:
    """What a search found.

    Args:
        trials: Entries ``row, factor, value, state``; ``value`` is the primary metric on the validation split.
        best: The best factor of every row that has a finished trial.
        edge: Rows whose best factor is the smallest or the largest of three or more: a better one may lie beyond.
        lost: Rows without any trial that is finished and, where there is a search, has a value.
    """

    trials: list[dict]
    best: dict[str, float] = field(default_factory=dict)
    edge: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def factors_of(config: Config, row: Row) -> list[float]:
    """The factors that a row is tried with."""
    return list(config.search.factors) if row.weights else [1.0]


def _means(section: Mapping, against: str) -> dict[str, float | None]:
    """The primary metric of every model on the validation split: of faces, the mean over the factors."""
    values: dict[str, list] = {}
    for score in section['scores']:
        if score['reference'] in (against, None):
            values.setdefault(score['model'], []).append(score['mean'])
    return {model: None if None in of else statistics.fmean(of) for model, of in values.items()}


def choose(config: Config, matrix: Matrix, cells: Sequence[Cell]) -> Search:
    """Measures the trials that are done on the validation split, and finds every row's best factor."""
    done = [cell for cell in cells if cell.run.done]
    primary, scores = config.primary, {}
    found = Search(
        [{'row': cell.row.name, 'factor': cell.factor, 'value': None, 'state': cell.run.record.state} for cell in cells]
    )
    factors = config.search.factors
    if done and len(factors) > 1:
        source = ':'.join(map(str, matrix.images.validation))
        others = ['teacher'] if primary.against == 'teacher' else []
        section = measure(config, matrix, matrix.output / 'validation', done, {'validation': source},
                          [primary.metric], others, images=False)  # fmt: skip
        scores = _means(section, primary.against)
        sign = -1 if section['metrics'][0]['higher_is_better'] else 1
        for cell, trial in zip(cells, found.trials, strict=True):
            trial['value'] = scores.get(cell.run.name)
    for row in matrix.rows:
        tried = [c for c in done if c.row is row]
        if len(factors) > 1:
            tried = sorted((c for c in tried if scores.get(c.run.name) is not None),
                          key=lambda c: sign * scores[c.run.name])  # fmt: skip
        if not tried:
            found.lost.append(row.name)
            continue
        found.best[row.name] = tried[0].factor
        if row.weights and len(factors) >= EDGES and tried[0].factor in (min(factors), max(factors)):
            found.edge.append(row.name)
    return found
