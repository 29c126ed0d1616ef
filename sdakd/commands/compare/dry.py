"""The dry run: the cells, their time and room on the disk, and everything that is missing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from msgspec import structs

from sdakd.commands.compare import data, measuring, missing, rehearsal, room, standins
from sdakd.commands.compare.config import Config, locate
from sdakd.commands.compare.matrix import Matrix
from sdakd.commands.compare.progress import duration
from sdakd.commands.compare.rows import Row, read_rows
from sdakd.commands.compare.search import factors_of
from sdakd.commands.compare.summary import budget_line
from sdakd.compat import UserError
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
        UserError: A mistake; what is merely missing is listed. Where the teacher is, its network is not known, and
            nothing else is told.
    """
    with missing.noted() as lacking, tempfile.TemporaryDirectory() as place:
        rows = read_rows(config, Path(file).parent)
        images = data.open_images(config)
        try:
            matrix = Matrix(config, rows, images, output)
        except UserError as error:
            if error.where != 'teacher' or 'does not exist' not in error.sentence:
                raise  # a mistake
            _note_files(config, rows)  # which cells would have named
            _there(config)
            unknown = (
                "Cells, their time and their room on the disk are told where the teacher's file is, or its network"
            )
            return f'{unknown} in an option file as `teacher`.\n{_missing(lacking)}Nothing was written.\n'
        data.set_places(images, output)
        measuring.check_measures(_there(config), matrix)
        slow = rehearsal.too_slow(matrix)
        parsed = rehearsal.check_rows(matrix, Path(place), real_data=False, rehearses=not slow)
        text = _times(matrix, parsed, jobs, threads, slow)
        wanted, (free, there) = room.needed(matrix, parsed, jobs), room.free_for(output)
    short = ', which is TOO LITTLE' if wanted.total > free else ''
    unknown = ' (without the images that are missing)' if lacking else ''
    text += f'On the disk: {wanted}{unknown}; {there} has {size(free)} left{short}.\n'
    return f'{text}{_missing(lacking)}Nothing was written.\n'


def _missing(lacking: Mapping[str, str]) -> str:
    lines = [f'- {where}: {sentence}\n' for sentence, where in lacking.items()]
    return '\nMissing:\n' + ''.join(lines) if lines else ''


def _note_files(config: Config, rows: Sequence[Row]) -> None:
    """Notes the files of discriminators, further teachers and backbones that methods name."""
    for row in rows:
        blocks = {f'train:{key}': block for key, block in row.options['train'].items()}
        for name in ('discriminators', 'teachers'):
            blocks |= {f'{name}:{key}': block for key, block in (row.options.get(name) or {}).items()}
        for key, block in blocks.items():
            later = key.startswith('discriminators:') and config.teacher_discriminator is not None
            if isinstance(block, Mapping) and isinstance(block.get('weights'), str) and not later:
                locate(block['weights'], f'methods:{row.method}: {key}:weights')
            standins.note_vgg(block)


def _there(config: Config) -> Config:
    """The comparison with those metrics whose files are there, as a dry run fetches none; notes the others."""
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
    return structs.replace(config, metrics=kept, primary=primary, fd_backbone=backbone)


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
