"""What a report is made from: results of evaluate and bench, checked and typed, and training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from sdakd.commands.report.curves import Run, is_run, read_run, run_of
from sdakd.compat import UserError, near
from sdakd.files.intervals import FEWEST
from sdakd.files.results import NAME, read_results

T = TypeVar('T')


class Model(Struct):
    """A model of either section."""

    name: str
    source: str = ''
    kind: str = 'network'
    network: dict | None = None
    parameters: int | None = None
    macs: int | None = None
    sha256: str | None = None
    metadata: dict = {}


class TestSet(Struct):
    """A test set, with the number of images that were measured."""

    name: str
    source: str = ''
    images: int = 0
    unreadable: list[str] = []


class Metric(Struct):
    """A metric and the convention that it follows."""

    name: str
    label: str
    higher_is_better: bool
    unit: str | None = None
    convention: str = ''

    @property
    def text(self) -> str:
        return f'{self.label} ({self.unit})' if self.unit else self.label


class Interval(Struct):
    """A mean over images with its 95% interval; None where there is none, such as below :data:`FEWEST` images."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0

    def __post_init__(self) -> None:
        if self.n < FEWEST:  # older results have one for fewer
            self.low = self.high = None


class Score(Interval, kw_only=True):
    """A model's mean on a set, against the ground truth (``gt``), the teacher, or no reference (None)."""

    model: str
    set: str
    metric: str
    reference: str | None = None
    per_image: dict[str, float | None] | None = None


class Difference(Interval, kw_only=True):
    """The mean of ``a`` minus ``b`` over the same images."""

    a: str
    b: str
    set: str
    metric: str
    reference: str | None = None


class Picture(Struct):
    """Paths of the pictures of one image, relative to the results' folder or absolute."""

    gt: str | None = None
    lq: str | None = None
    models: dict[str, str] = {}


class Evaluate(Struct):
    """The section ``evaluate``."""

    models: list[Model]
    sets: list[TestSet]
    metrics: list[Metric]
    scores: list[Score]
    scale: int
    teacher: str | None = None
    differences: list[Difference] = []
    pictures: dict[str, dict[str, Picture]] = {}
    version: str = ''
    seed: int | None = None
    device: str = ''
    torch: str = ''
    date: str = ''

    def score(self, model: str, of: str, metric: str, reference: str | None) -> Score | None:
        key = (model, of, metric, reference)
        return next((s for s in self.scores if (s.model, s.set, s.metric, s.reference) == key), None)

    def columns(self, of: str) -> list[tuple[Metric, str | None]]:
        """Metric and reference of everything that was measured on a set, ground truth and no reference first."""
        there = {(s.metric, s.reference) for s in self.scores if s.set == of}
        order = [(metric, reference) for reference in ('gt', None, 'teacher') for metric in self.metrics]
        columns = [(metric, reference) for metric, reference in order if (metric.name, reference) in there]
        return sorted(columns, key=lambda column: (column[1] == 'teacher', self.metrics.index(column[0])))

    def students(self) -> list[Model]:
        """The models that are compared with the teacher: all others but bicubic interpolation."""
        return [m for m in self.models if m.kind != 'bicubic' and m.name != self.teacher]


class Timing(Struct):
    """One run of the section ``bench``; times are in milliseconds."""

    model: str
    backend: str
    precision: str
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    peak_memory_mib: float | None = None
    ratio: float | None = None
    psnr: float | None = None
    error: str | None = None

    @property
    def runtime(self) -> str:
        return f'{self.backend} {self.precision}'


class Bench(Struct):
    """The section ``bench``."""

    models: list[Model]
    runs: list[Timing]
    size: int
    teacher: str | None = None
    version: str = ''
    device: str = ''
    cpu: str = ''
    threads: int | None = None
    torch: str = ''
    rounds: int | None = None
    date: str = ''

    def plain(self, model: str) -> Timing | None:
        """The run that others are compared with: eager, float32."""
        found = (r for r in self.runs if (r.model, r.backend, r.precision) == (model, 'eager', 'fp32') and r.median_ms)
        return next(found, None)

    def fastest(self, model: str) -> Timing | None:
        return min((r for r in self.runs if r.model == model and r.median_ms), key=lambda r: r.median_ms, default=None)


class Gate(Struct):
    """A condition of a comparison; ``open`` is None where it could not be looked at."""

    name: str
    text: str
    open: bool | None = None


class Cell(Struct):
    """A training of a comparison: a method (row) at a width with a seed."""

    name: str
    row: str
    width: str
    seed: int
    factor: float = 1.0
    state: str = 'done'


class Cost(Struct):
    """What training a method at a width took."""

    row: str
    width: str
    iterations: int
    seconds: float
    factor: float = 1.0
    seconds_sd: float | None = None


class OverSeeds(Struct, kw_only=True):
    """A mean over seeds, with their standard deviation where there are enough, and the value of each."""

    width: str
    set: str
    metric: str
    mean: float
    reference: str | None = None
    sd: float | None = None
    values: dict[str, float] = {}


class MethodScore(OverSeeds, kw_only=True):
    """A method's mean."""

    row: str


class MethodDifference(OverSeeds, kw_only=True):
    """Method ``a`` minus the reference ``b``, with the 95% interval over images where there is one."""

    a: str
    b: str
    low: float | None = None
    high: float | None = None


class Primary(Struct):
    """The metric that a comparison is decided by."""

    metric: str
    against: str = 'gt'


class Latency(Struct):
    """Milliseconds of a network: the median, and 10% and 90% of the timings."""

    median_ms: float
    p10_ms: float
    p90_ms: float


class Comparison(Struct):
    """The section ``compare``; ``latency`` is by width, and of the teacher."""

    verdict: str
    reference: str
    primary: Primary
    cells: list[Cell]
    scores: list[MethodScore]
    gates: list[Gate] = []
    differences: list[MethodDifference] = []
    costs: list[Cost] = []
    notes: list[str] = []
    latency: dict[str, Latency] = {}
    timed: str = ''

    def final(self) -> list[Cell]:
        """The cells of the tables: those done of every method and width, with the factor that the search chose."""
        chosen = {(cost.row, cost.width, cost.factor) for cost in self.costs}
        return [c for c in self.cells if c.state == 'done' and (c.row, c.width, c.factor) in chosen]


@dataclass
class Inputs:
    """Everything a report shows; ``folder`` is where the paths of ``evaluate.pictures`` are relative to."""

    evaluate: Evaluate | None = None
    comparison: Comparison | None = None
    bench: Bench | None = None
    folder: Path = Path()
    runs: list[Run] = field(default_factory=list)

    @property
    def teacher(self) -> str | None:
        return next((section.teacher for section in (self.evaluate, self.bench) if section), None)

    def student(self, name: str | None = None) -> str | None:
        """The student that the report is about: the last network that is not the teacher, unless it is named.

        Raises:
            UserError: No model but the teacher has this name.
        """
        models = next((section.models for section in (self.evaluate, self.bench) if section), [])
        others = [model for model in models if model.name != self.teacher]
        if name is not None:
            names = [model.name for model in others]
            if name not in names:
                raise UserError('--student', f'no row beside the teacher is called {name!r}; {near(name, names)}.')
            return name
        made = [model for model in others if model.kind != 'bicubic']
        networks = [model for model in made if model.kind != 'folder']
        return (networks or made)[-1].name if made else None


def _typed(kind: type[T], content: object, path: Path, section: str) -> T:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        reason = str(error).replace('`', '').replace('$', section)
        raise UserError(
            '-i', f'{path} is damaged or of another version ({reason}); make it again with sdakd {section}.'
        ) from None


def gather(folders: Sequence[Path]) -> Inputs:
    """Reads results and runs from folders, and the runs whose checkpoints were evaluated.

    Raises:
        UserError: A folder is missing or holds neither, results are damaged, or two folders hold the same section.
    """
    inputs = Inputs()
    sections: dict[str, tuple[Path, object]] = {}
    runs: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                '-i', f'{folder} is no folder; give one that evaluate or bench wrote, or experiments/<name>.'
            )
        results = read_results(folder, 'make it again with sdakd evaluate or sdakd bench')
        found = {name: results[name] for name in ('evaluate', 'bench') if results.get(name) is not None}
        for name, content in found.items():
            if name in sections and sections[name][0].resolve() != folder.resolve():
                raise UserError(
                    '-i',
                    f'{sections[name][0]} and {folder} both hold results of {name}; give one of them and make a '
                    'report of each, or measure all models in one run.',
                )
            sections[name] = folder, content
        if is_run(folder):
            runs[folder.resolve()] = folder
        elif not found:
            raise UserError(
                '-i',
                f'{folder} holds no {NAME} of sdakd evaluate or bench and no log train_*.log of a run; '
                'give a folder that one of them wrote with -o, or experiments/<name>.',
            )
    if 'evaluate' in sections:
        folder, content = sections['evaluate']
        inputs.folder = folder
        inputs.evaluate = _typed(Evaluate, content, folder / NAME, 'evaluate')
        if (compared := read_results(folder).get('compare')) is not None:
            inputs.comparison = _typed(Comparison, compared, folder / NAME, 'compare')
        for model in inputs.evaluate.models:
            source = model.source.removeprefix(f'{model.name}=')  # as it was given: a path, or NAME=path
            run = run_of(source, folder) if source else None
            if run is not None:
                runs.setdefault(run.resolve(), run)
    if 'bench' in sections:
        folder, content = sections['bench']
        inputs.bench = _typed(Bench, content, folder / NAME, 'bench')
    for folder in runs.values():
        try:
            inputs.runs.append(read_run(folder))
        except OSError as error:
            raise UserError('-i', f'{error.filename or folder} cannot be read ({error.strerror}).') from None
    return inputs
