"""What `sdakd evaluate` measures on one test set, image by image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd.files.images import write_png
from sdakd.files.intervals import mean_interval

if TYPE_CHECKING:
    import numpy as np

    from sdakd.commands.evaluate.contenders import Contender
    from sdakd.files.testsets import Sample, TestSet
    from sdakd_metrics.metrics import Metric

Key = tuple[str, str, str | None]  # model, metric, and reference: 'gt', 'teacher' or None


class Measurement:
    """The values of one test set.

    Args:
        testset: The set.
        contenders: The rows.
        metrics: The columns.
        teacher: The row that the others are compared with, or None.
        output: Folder for images, None to keep none.
    """

    def __init__(
        self,
        testset: TestSet,
        contenders: list[Contender],
        metrics: list[Metric],
        teacher: Contender | None,
        output: Path | None,
    ) -> None:
        self.testset, self.contenders, self.metrics, self.teacher = testset, contenders, metrics, teacher
        self.output = output
        self.values: dict[Key, dict[str, float]] = {}
        self.measured = 0
        self.pseudo: dict[Key, dict[str, float]] = {}  # of metrics of a set, what each image has to do with the value
        self.taken: list[tuple[str, tuple[int, int]]] = []  # name and size of every image that was measured
        self.collectors: dict[tuple[str, str], object] = {}
        self.unreadable: list[str] = []
        self.pictures: dict[str, dict] = {}

    def references(self, metric: Metric, contender: Contender) -> Iterator[str | None]:
        """The references that a metric compares a row with."""
        if metric.blind:
            yield None
            return
        if self.testset.hr is not None:
            yield 'gt'
        if self.teacher is not None and contender is not self.teacher:
            yield 'teacher'

    def take(self, name: str) -> None:
        """Enlarges one image with every model and measures it.

        Raises:
            UnusableError: A file of it is damaged; then no model is measured on it, so that all see the same images.
        """
        sample = self.testset.read(name)
        large = {row.name: row.enlarge(self.testset, name, sample) for row in self.contenders}
        images = {'gt': sample.gt, **large}
        for metric in self.metrics:
            if metric.measure is None:
                continue
            for row in self.contenders:
                for reference in self.references(metric, row):
                    other = images[self.teacher.name if reference == 'teacher' else 'gt'] if reference else None
                    value = metric.measure(large[row.name], other)
                    if not math.isnan(value):
                        self.values.setdefault((row.name, metric.name, reference), {})[name] = value
        self._collect(images)
        self.measured += 1
        self.taken.append((name, large[self.contenders[0].name].shape[:2]))
        if self.output is not None:
            self._keep(name, sample, large)

    def _collect(self, images: dict[str, np.ndarray | None]) -> None:
        """Takes the features of one image and its enlarged versions; FID and KID share theirs."""
        collecting = [metric for metric in self.metrics if metric.collector is not None]
        for owner, image in images.items():
            found: dict[int, np.ndarray] = {}
            for metric in collecting if image is not None else ():
                if id(metric.features) not in found:
                    found[id(metric.features)] = metric.features(image)
                key = (metric.name, owner)
                if key not in self.collectors:
                    self.collectors[key] = metric.collector(len(self.testset.names))
                self.collectors[key].add(found[id(metric.features)])

    def _keep(self, name: str, sample: Sample, large: dict[str, np.ndarray]) -> None:
        """Saves enlarged images, and ground truth and input where no file holds just them."""

        def place(folder: str, image: np.ndarray) -> str:
            relative = Path('images', self.testset.name, folder, f'{name}.png')
            write_png(self.output / relative, image)
            return relative.as_posix()

        def original(path: Path | None, folder: str, image: np.ndarray) -> str:
            if path is None:
                return place(folder, image)
            path, root = path.resolve(), self.output.resolve()
            return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

        picture = {} if sample.gt is None else {'gt': original(sample.gt_file, 'gt', sample.gt)}
        picture['lq'] = original(sample.lq_file, 'lq', sample.lq)
        picture['models'] = {model: place(model, image) for model, image in large.items()}
        self.pictures[name] = picture

    def scores(self) -> list[dict]:
        """The set's entries of ``scores`` in ``results.json``; PSNR of equal images is infinite."""
        found = []
        for row, metric in itertools.product(self.contenders, self.metrics):
            for reference in self.references(metric, row):
                entry = {'model': row.name, 'set': self.testset.name, 'metric': metric.name, 'reference': reference}
                if metric.measure is None:
                    found.append(entry | self._of_set(metric, row, reference))
                    continue
                values = self.values.get((row.name, metric.name, reference), {})
                mean, low, high = mean_interval(list(values.values())) if values else (None, None, None)
                entry |= {'mean': mean, 'low': low, 'high': high, 'n': len(values), 'per_image': values}
                found.append(entry)
        return found

    def _of_set(self, metric: Metric, row: Contender, reference: str | None) -> dict:
        """Value and interval of a metric that belongs to the set; the interval is that of its pseudo-values."""
        own = self.collectors[(metric.name, row.name)]
        other = self.collectors[(metric.name, self.teacher.name if reference == 'teacher' else 'gt')]
        content = {'mean': None, 'low': None, 'high': None, 'n': self.measured, 'per_image': None}
        if metric.needed:
            content |= {'samples': self._samples(metric), 'needed': metric.needed}
        if min(own.samples, other.samples) < 2:
            return content
        content['mean'] = own.distance(other)
        if pseudo := own.pseudo_values(other):
            pseudo = {self.taken[number][0]: value for number, value in pseudo.items()}
            self.pseudo[row.name, metric.name, reference] = pseudo
            _, low, high = mean_interval(list(pseudo.values()))
            content |= {'low': low, 'high': high, 'n': len(pseudo), 'pseudo_values': pseudo}
        return content

    def _samples(self, metric: Metric) -> int:
        """How many independent samples a metric of the set stands on."""
        return sum(metric.features.independent(*size) for _, size in self.taken)

    def differences(self) -> list[dict]:
        """The set's entries of ``differences``: every model minus every earlier one, and each minus the teacher.

        Of metrics of a set, those that have pseudo-values; :meth:`scores` makes them.
        """
        rows = sorted(self.contenders, key=lambda row: row is not self.teacher)  # so that the teacher is subtracted
        found = []
        for metric in self.metrics:
            every = self.values if metric.measure is not None else self.pseudo
            for b, a in itertools.combinations(rows, 2):
                for reference in self.references(metric, b):
                    of_a, of_b = (every.get((row.name, metric.name, reference), {}) for row in (a, b))
                    pairs = [(of_a[name], of_b[name]) for name in of_a if name in of_b]
                    # two infinite values differ by nothing that could be averaged
                    values = [x - y for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
                    if values:
                        mean, low, high = mean_interval(values)
                        entry = {'a': a.name, 'b': b.name, 'set': self.testset.name, 'metric': metric.name}
                        entry |= {'reference': reference, 'mean': mean, 'low': low, 'high': high, 'n': len(values)}
                        found.append(entry)
        return found

    def notes(self) -> Iterator[str]:
        """One sentence for each number that rests on fewer images or samples than its name suggests."""
        first = self.contenders[0].name
        for metric in self.metrics:
            if metric.collector is None:
                kept = max((len(v) for (_, name, _), v in self.values.items() if name == metric.name), default=0)
                if kept < self.measured:
                    yield (
                        f'{self.testset.name}: {self.measured - kept} of {self.measured} images are too small or too '
                        f'flat for {metric.label} and left out of it.'
                    )
                continue
            samples = self.collectors[(metric.name, first)].samples if self.measured else 0
            if samples < 2:
                yield f'{self.testset.name}: too few samples ({samples}) for {metric.label}.'
            elif (found := self._samples(metric)) < metric.needed:
                yield (
                    f'{self.testset.name}: {metric.label} stands on {found:,d} {metric.features.unit} and needs '
                    f'{metric.needed:,d}, ten for each feature; it is too large, so compare it only with values on the '
                    'same images, or take kid, which few images do not bias.'
                )
