"""What a training run left behind: the curves, stages and versions in its logs, and its option file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Point = tuple[int, float]  # iteration, value

ITERATION = re.compile(r'\[epoch: *\d+, iter: *([\d,]+), lr:\([^)]*\)\](?: \[eta: [^\]]*\])?(.*)')
MARK = re.compile(r'stage: (\d+)/\d+ (.+?) ([\d,]+)/([\d,]+)(?= |$)')
VALUE = re.compile(r'(\w+): (-?\d\.\d+e[+-]\d+)')
BEGIN = re.compile(r'Start training from epoch: \d+, iter: (\d+)')
STAGE = re.compile(r'Stage (\d+) of \d+, (.+): ([\d,]+) iterations with (.+)\.$')
VALIDATION = re.compile(r'INFO: Validation (.+)')
METRIC = re.compile(r'\t # (\S+): (-?[\d.]+)(?:\tBest: (-?[\d.]+) @ (\d+) iter)?')
VERSION = re.compile(r'\t(BasicSR|PyTorch|TorchVision): (\S+)')


@dataclass
class Stage:
    """One stage of a run: it takes the iterations ``first`` to ``last``, counted from 1; 0 where that is unknown."""

    name: str
    iters: int
    terms: str = ''
    first: int = 0

    @property
    def last(self) -> int:
        return self.first + self.iters - 1


@dataclass
class Run:
    """A BasicSR experiment.

    Args:
        name: Its folder's name.
        folder: ``experiments/<name>``.
        series: Logged values by name (``l_g_pix``, ``l_d_real``, ``out_d_real``, ...), by ascending iteration.
        validation: The same for validation metrics, by data set and metric.
        stages: In order; empty for a run of BasicSR's own models, which have none.
        options: Name and text of the option file; None where there is none.
        versions: Of BasicSR, PyTorch and TorchVision, as the last log gives them.
    """

    name: str
    folder: Path
    series: dict[str, list[Point]] = field(default_factory=dict)
    validation: dict[tuple[str, str], list[Point]] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    options: tuple[str, str] | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The last iteration that a value is known of; 0 where nothing was logged."""
        logged = [*self.series.values(), *self.validation.values()]
        return max((points[-1][0] for points in logged), default=0)


def logs_of(folder: Path) -> list[Path]:
    """A run's logs, oldest first: every start and every resumption writes ``train_<name>_<date>_<time>.log``."""
    return sorted(folder.glob('train_*.log'), key=lambda path: (path.stem[-15:], path.name))


def is_run(folder: Path) -> bool:
    """Whether a folder is a BasicSR experiment: it holds a log, or models beside an option file."""
    return bool(logs_of(folder)) or ((folder / 'models').is_dir() and any(folder.glob('*.yml')))


def run_of(source: str, *bases: Path) -> Path | None:
    """The experiment that a checkpoint lies in (``<experiment>/models/net_g_1000.pth``), or None.

    Args:
        source: Path of the checkpoint, as it was given.
        bases: Folders that a relative path is looked for in, after the current one.
    """
    for base in (Path(), *bases):
        models = (base / source).parent
        if models.name == 'models' and is_run(models.parent):
            return models.parent
    return None


def _number(text: str) -> int:
    return int(text.replace(',', ''))


def _forget(series: Iterable[list[Point]], iteration: int) -> None:
    """Drops what lies after an iteration that a run was resumed from: it was trained again, or has been given up."""
    for points in series:
        while points and points[-1][0] > iteration:
            points.pop()


class _Reader:
    """Reads a run's logs line by line into a :class:`Run`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stages: dict[int, Stage] = {}
        self.iteration, self.set = 0, ''

    def line(self, text: str) -> None:
        if found := ITERATION.search(text):
            self._iteration(_number(found[1]), found[2])
        elif found := METRIC.match(text):
            value, best = float(found[2]), found[3]
            # validation does not say where it stands, unless it is the best one so far
            at = int(found[4]) if best is not None and float(best) == value else self.iteration
            points = self.run.validation.setdefault((self.set, found[1]), [])
            points.append((max(self.iteration, at), value))
        elif found := VALIDATION.search(text):
            self.set = found[1].strip()
        elif found := STAGE.search(text):
            stage = self._stage(int(found[1]), found[2], _number(found[3]))
            stage.terms = found[4]
        elif found := BEGIN.search(text):
            self.iteration = int(found[1])
            if self.iteration == 0:
                self.stages.clear()
            _forget(self.run.series.values(), self.iteration)
            _forget(self.run.validation.values(), self.iteration)
        elif found := VERSION.match(text):
            self.run.versions[found[1]] = found[2]

    def _stage(self, number: int, name: str, iters: int) -> Stage:
        known = self.stages.get(number)
        if known is None or (known.name, known.iters) != (name, iters):
            known = self.stages[number] = Stage(name, iters)
        return known

    def _iteration(self, iteration: int, text: str) -> None:
        self.iteration = iteration
        if mark := MARK.search(text):
            stage = self._stage(int(mark[1]), mark[2], _number(mark[4]))
            stage.first = iteration - _number(mark[3]) + 1
            text = text.replace(mark[0], '')
        for name, value in VALUE.findall(text):
            if math.isfinite(float(value)):
                self.run.series.setdefault(name, []).append((iteration, float(value)))

    def finish(self) -> None:
        following = 1
        for _, stage in sorted(self.stages.items()):
            stage.first = stage.first or following  # a stage too short for a line of its own
            following = stage.last + 1
            self.run.stages.append(stage)


def read_run(folder: Path) -> Run:
    """Reads an experiment's logs and option file.

    Where a run was resumed, the later log replaces what the earlier one says of the same iterations.

    Raises:
        OSError: A file cannot be read.
    """
    run = Run(folder.resolve().name, folder)
    reader = _Reader(run)
    for path in logs_of(folder):
        with path.open(encoding='utf-8', errors='replace') as lines:
            for text in lines:
                reader.line(text.rstrip('\n'))
    reader.finish()
    run.series = {name: points for name, points in run.series.items() if points}
    run.validation = {key: points for key, points in run.validation.items() if points}
    options = sorted(folder.glob('*.yml'), key=lambda path: (path.stem != run.name, path.name))
    if options:
        run.options = options[0].name, options[0].read_text(encoding='utf-8', errors='replace')
    return run


def smooth(points: Sequence[Point], stages: Sequence[Stage]) -> list[Point]:
    """Means over a centred window of a fifteenth of the points, at least 3, cut off at the ends of stages.

    What is minimised changes from stage to stage: a mean across would show a slope where there is a step.
    """
    if not points:
        return []
    half = max(1, len(points) // 30)
    iterations, values = np.array([at for at, _ in points]), np.array([value for _, value in points])
    parts = np.searchsorted([stage.first for stage in stages], iterations, side='right')
    index = np.arange(len(points))
    begin = np.maximum(index - half, np.searchsorted(parts, parts, side='left'))
    end = np.minimum(index + half + 1, np.searchsorted(parts, parts, side='right'))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means = (sums[end] - sums[begin]) / (end - begin)
    return [(at, mean) for (at, _), mean in zip(points, means.tolist(), strict=True)]


def thin(points: Sequence[Point], limit: int = 600) -> list[Point]:
    """At most ``limit`` points, the smallest and the largest of every bucket, so that no peak is lost."""
    size = math.ceil(2 * len(points) / limit)
    if size <= 2:
        return list(points)
    kept = []
    for begin in range(0, len(points), size):
        bucket = points[begin : begin + size]
        kept += sorted({min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])})
    return kept
