"""The dry run: the cells, their time and room on the disk, and everything that is missing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from msgspec import structs

from sdakd.commands.compare import data, measuring, missing, rehearsal, room
from sdakd.commands.compare.config import Config
from sdakd.commands.compare.matrix import Matrix
from sdakd.commands.compare.progress import duration
from sdakd.commands.compare.rows import read_rows
from sdakd.commands.compare.search import factors_of
from sdakd.commands.compare.summary import budget_line
from sdakd.files import results
from sdakd.progress import Progress
from sdakd_metrics.distribution import INCEPTION
from sdakd_models.checks.disk import size

ALEXNET = 'alexnet-owt-7be5be79.pth'  # of LPIPS


def dry_run(config: Config, file: str, output: Path, jobs: int, threads: int) -> str:
    """The matrix for people, with the time of every cell as a few of its steps foretell it; writes nothing.

    Args:
        config: The comparison.
        file: Its option file.
        output: Its folder.
        jobs: Trainings at a time.
        threads: Of each.

    Raises:
        UserError: A mistake; what is merely missing is listed.
    """
    with missing.noted() as lacking, tempfile.TemporaryDirectory() as place:
        rows = read_rows(config, Path(file).parent)
        images = data.open_images(config)
        matrix = Matrix(config, rows, images, output)
        data.set_places(images, output)
        _check_measures(config, matrix)
        slow = rehearsal.too_slow(matrix)
        parsed = rehearsal.check_rows(matrix, Path(place), real_data=False, rehearses=not slow)
        text = _times(matrix, parsed, jobs, threads, slow)
        wanted, (free, there) = room.needed(matrix, parsed, jobs), room.free_for(output)
    short = ', which is TOO LITTLE' if wanted.total > free else ''
    unknown = ' (without the images that are missing)' if lacking else ''
    text += f'On the disk: {wanted}{unknown}; {there} has {size(free)} left{short}.\n'
    if lacking:
        text += '\nMissing:\n' + ''.join(f'- {where}: {sentence}\n' for sentence, where in lacking.items())
    return text + 'Nothing was written.\n'


def _check_measures(config: Config, matrix: Matrix) -> None:
    """The files of metrics, without fetching what a start would fetch; metrics that lack theirs are not opened."""
    hub = Path(torch.hub.get_dir(), 'checkpoints')
    backbone = measuring.fd_backbone(config)  # of fd, and of kid, which takes InceptionV3 without it
    files = {('fid',) if backbone else ('fid', 'kid'): INCEPTION, ('lpips',): (ALEXNET,)}
    kept = list(config.metrics)
    for metrics, names in files.items():
        wanted = [name for name in kept if name in metrics]
        if wanted and not any((hub / name).is_file() for name in names):
            missing.note(f'metrics ({", ".join(wanted)})', missing.how_to_get(hub / names[0]))
            kept = [name for name in kept if name not in metrics]
    if backbone and ':' in backbone and not Path(backbone.partition(':')[2]).is_file():
        kept, backbone = [name for name in kept if name not in ('fd', 'kid')], None
    kept = kept or ['psnr']  # the test sets are looked at in any case
    primary = config.primary if config.primary.metric in kept else structs.replace(config.primary, metric=kept[0])
    there = structs.replace(config, metrics=kept, primary=primary, fd_backbone=backbone)
    measuring.check_measures(there, matrix)


def _times(matrix: Matrix, parsed: dict, jobs: int, threads: int, slow: bool) -> str:
    config, discriminator = matrix.config, matrix.discriminator_run()
    rows, total, count = [], 0.0, 0
    for name, ratio in Progress('timing', len(parsed), 'runs').over(parsed):
        seconds = None if slow else rehearsal.time_row(parsed[name, ratio], threads)
        row = next((row for row in matrix.rows if row.name == name), None)
        searched = len(factors_of(config, row)) - 1 if row and ratio == config.ratios()[0] else 0
        cells = len(row.seeds if row else config.seeds) + searched
        total, count = total + cells * (seconds or 0), count + cells
        stages = parsed[name, ratio]['train']['stages'].values()
        times = ['-', '-'] if slow else [duration(seconds), duration(cells * seconds)]
        rows.append([name, str(ratio), str(cells), f'{sum(stage["iters"] for stage in stages):,d}', *times])
    text = results.table(['Method', 'Width', 'Cells', 'Iterations', 'One cell', 'All'], rows)
    text += f'{budget_line(config.budget)}\n'
    if discriminator is not None:
        text += f"The teacher's discriminator, trained before them, is not counted: {discriminator.iterations:,d}.\n"
    if slow:
        return text + (
            f'{count} cells. Their time is not told: a step of these networks takes minutes without a GPU; give this '
            'command where they are to be trained.\n'
        )
    return text + (
        f'{count} cells, about {duration(total / jobs)} with {jobs} at a time, {threads} thread{"s" * (threads > 1)} '
        'each, by a few steps of every stage; measuring comes on top.\n'
    )
