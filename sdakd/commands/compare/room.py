"""Room on the disk for what a comparison writes."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from sdakd.commands.compare.matrix import Matrix
from sdakd.commands.compare.rows import Row
from sdakd.commands.compare.search import factors_of
from sdakd.compat import UserError
from sdakd.files.images import UnusableError, read_header
from sdakd.files.testsets import open_sets
from sdakd_arch.width import build_on_meta
from sdakd_models.cast import Cast
from sdakd_models.checks.disk import FLOAT, most_of, number_of, size
from sdakd_models.scenario import Scenario

PIXEL = 3  # bytes; a PNG of a photograph takes less


@dataclass
class Room:
    """Bytes of what is still to be written.

    Args:
        students: Of cells that are not done, once they are: the students of all checkpoints.
        running: Of the trainings that run at once, with the checkpoints that go when they end.
        pairs: Of photographs.
        images: Of the test sets, enlarged by every student.
    """

    students: int
    running: int
    pairs: int
    images: int

    @property
    def total(self) -> int:
        return self.students + self.running + self.pairs + self.images

    def __str__(self) -> str:
        parts = {
            'students': self.students,
            'trainings that run': self.running,
            'pairs': self.pairs,
            'enlarged test images': self.images,
        }
        told = ', '.join(f'{name} {size(count)}' for name, count in parts.items() if count)
        return f'{size(self.total)} at most ({told})'


def needed(matrix: Matrix, parsed: Mapping[tuple[str, Fraction], dict], jobs: int) -> Room:
    """What a comparison has still to write.

    Args:
        matrix: It.
        parsed: From :func:`sdakd.commands.compare.rehearsal.check_rows`.
        jobs: Trainings at a time.
    """
    students, running = 0, []
    rows = {row.name: row for row in matrix.rows}
    for (name, ratio), options in parsed.items():
        scenario = Scenario.read(options)
        network = build_on_meta(scenario.network_g, 'network_g')
        values = sum(each.numel() for each in network.parameters())
        kept = 2 * FLOAT * values * (number_of(scenario) + 1)  # weights and their average; the latest once more
        left = _left(matrix, rows.get(name), name, ratio)
        students += left * kept
        running += [most_of(Cast(scenario, 'meta'))] * left if left else []
    return Room(students, sum(sorted(running)[-jobs:]), _pairs(matrix), _images(matrix))


def _left(matrix: Matrix, row: Row | None, name: str, ratio: Fraction) -> int:
    """How many cells of a row, or first stages, are not done at a width."""
    config, left = matrix.config, 0
    for seed in config.seeds:
        if row is None:
            runs = {run.name.partition('_w')[0]: run for run in matrix.first_runs(ratio, seed)}
            left += name in runs and not runs[name].done
            continue
        if seed not in row.seeds:
            continue
        done = [matrix.run(row, ratio, seed, factor).done for factor in factors_of(config, row)]
        searched = (ratio, seed) == (config.ratios()[0], config.seeds[0])
        left += done.count(False) if searched else not any(done)
    return left


def _pairs(matrix: Matrix) -> int:
    """Of photographs whose pairs are not made, by their first ones."""
    total = 0
    for part, split in matrix.images.splits.items():
        if matrix.config.on_line and part == 'train' or (matrix.output / 'data' / part).is_dir():
            continue
        sizes = []
        for name in split.names[:20]:
            with contextlib.suppress(UnusableError):  # who makes the pairs will say so
                header = read_header(split.folder / name)
                sizes.append(header.height * header.width)
        if sizes:
            mean = sum(sizes) / len(sizes)
            total += math.ceil(PIXEL * mean * len(split.names) * (1 + 1 / matrix.scale**2))
    return total


def _images(matrix: Matrix) -> int:
    """Of test images enlarged by the teacher, by bicubic interpolation and by all students."""
    config = matrix.config
    if not config.images or (matrix.output / 'images').is_dir():
        return 0
    models = 2 + sum(len(row.seeds) for row in matrix.rows) * len(config.ratios())
    scales, pixels = config.factors() or [matrix.scale], 0
    for name, source in matrix.images.test.items():
        for testset in open_sets([f'{name}={source}'], scales[0]):
            sides = [testset.size(each) or (0, 0) for each in testset.names]
            pixels += sum(height * width for height, width in sides)
    return PIXEL * pixels * models * len(scales)


def check(matrix: Matrix, parsed: Mapping[tuple[str, Fraction], dict], jobs: int) -> str:
    """Sees that there is room; says how much is needed.

    Raises:
        UserError: There is not.
    """
    wanted, free, place = needed(matrix, parsed, jobs), *free_for(matrix.output)
    if wanted.total > free:
        raise UserError(
            'output',
            f'what is still to be written takes {wanted}, and the disk of {place} has {size(free)} left; make room, or '
            'name a folder on another disk; `images: false` keeps no enlarged test images, and `budget: checkpoints` '
            'is how often a training saves.',
        )
    return str(wanted)


def free_for(folder: Path) -> tuple[int, Path]:
    """Bytes that are left on the disk of a folder that may not exist yet, and its part that does."""
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(there).free, there
