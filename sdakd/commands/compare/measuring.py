"""Measures the students of a comparison: `sdakd evaluate`, once for the same files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd.commands.compare.config import Config, locate
from sdakd.commands.compare.factors import merge, names_of, source_of
from sdakd.commands.compare.matrix import Matrix
from sdakd.compat import UserError
from sdakd.files.runs import digest

if TYPE_CHECKING:
    from sdakd.commands.compare.summary import Cell


def check_measures(config: Config, matrix: Matrix) -> None:
    """Opens metrics and test sets before any training."""
    from sdakd.files.testsets import open_sets
    from sdakd_metrics.metrics import Settings, open_metrics

    check_judge(config)
    scales = config.factors() or [matrix.scale]
    try:
        open_metrics(config.metrics, Settings(scales[0], backbone=fd_backbone(config)))
    except UserError as error:
        raise error.at({'--backbone': 'fd_backbone'}.get(error.where, error.where.removeprefix('--'))) from None
    for name, source in matrix.images.test.items():
        try:
            for scale in scales:
                open_sets([f'{name}={source}'], scale)
        except UserError as error:
            raise error.at(f'data:test:{name}') from None


def check_judge(config: Config) -> None:
    """Checks that the backbone of FD is not the one of perceptual terms: students learn to please that one.

    Raises:
        UserError: They are the same file, or copies of one.
    """
    judge, trainer = (fd_backbone(config) or '').partition(':')[2], config.stand_in()
    if judge and trainer is not None:
        trains = locate(trainer.weights, 'perceptual')
        if trains.is_file() and Path(judge).is_file() and digest(judge) == digest(trains):
            raise UserError(
                'fd_backbone',
                f'{Path(judge).name} is also what trains students (perceptual), who learn to please it; judge them by '
                'another network.',
            )


def fd_backbone(config: Config) -> str | None:
    if config.fd_backbone is None or ':' not in config.fd_backbone:
        return config.fd_backbone
    kind, _, file = config.fd_backbone.partition(':')
    return f'{kind}:{locate(file, "fd_backbone")}'


def measure(
    config: Config, matrix: Matrix, folder: Path, cells: Sequence[Cell], sets: dict[str, str], metrics: Sequence[str],
    others: Sequence[str], images: bool,
) -> dict:  # fmt: skip
    """`sdakd evaluate` on the cells' students; kept where the same files were measured before.

    Returns:
        The section ``evaluate`` of the folder's results.json.
    """
    from sdakd.commands.evaluate import evaluate
    from sdakd.files.results import read_results

    plain = {'teacher': str(matrix.teacher), 'bicubic': 'bicubic'}
    models = {name: plain[name] for name in others} | {cell.run.name: str(cell.run.result) for cell in cells}
    sources = {name: f'{name}={source}' for name, source in sets.items()}
    known = read_results(folder).get('evaluate') or {}
    wanted = {name: None if path == 'bicubic' else digest(path) for name, path in models.items()}
    same = {model['name']: model['sha256'] for model in known.get('models', ())} == wanted
    factors = config.factors()
    same = same and [s['name'] for s in known['sets']] == names_of(list(sets), factors)
    same = same and all(s['source'] == source_of(s['name'], sources) for s in known['sets'])
    if same and [metric['name'] for metric in known['metrics']] == list(dict.fromkeys(metrics)):
        return known
    evaluate(
        [f'{name}={path}' for name, path in models.items()],
        list(sources.values()),
        folder,
        scale=factors or matrix.scale,
        metrics=metrics,
        backbone=fd_backbone(config) if 'fd' in metrics else None,
        teacher='teacher' if 'teacher' in others else None,
        images=images,
    ).check()
    return merge(folder, factors) if len(factors) > 1 else read_results(folder)['evaluate']
