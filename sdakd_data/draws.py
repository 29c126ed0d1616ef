"""Which image a training sees when, and the random numbers of its crop: functions of seed and iteration alone.

BasicSR's sampler has the same order for every seed and begins an epoch anew when a run is resumed; its workers begin
every epoch with the same random numbers. Here the n-th sample of a run is the same however often the run was stopped,
and with any number of worker processes.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from basicsr.data import build_dataloader
from torch.utils.data import DataLoader, Dataset, Sampler

from sdakd import stops
from sdakd.compat import UserError
from sdakd_data.randomness import aside

IMAGES, SAMPLES, HELD_OUT = 0, 1, 2  # what a seed is for
AHEAD = 2  # batches that a process loads ahead, torch's default
_NUMBERED = re.compile(r'(.+)_([1-9]\d*)', re.ASCII | re.DOTALL)
TRIES = 50  # images that are skipped in a row before the data set is given up


class Draws(Sampler):
    """The samples of a run's iterations, by number of the image and of the draw.

    Every image is drawn once, in random order, before one is drawn again. All processes draw from one sequence: in an
    iteration, the first ``batch`` of them are the first process's.

    Args:
        images: How many there are.
        batch: Of one process.
        seed: Of the run.
        first, last: Iterations, from 1; nothing is drawn if ``last`` is smaller.
        rank, processes: Which process of how many.
    """

    def __init__(
        self, images: int, batch: int, seed: int, first: int, last: int, rank: int = 0, processes: int = 1
    ) -> None:
        self.images, self.batch, self.seed, self.first, self.last = images, batch, seed, first, last
        self.rank, self.processes = rank, processes
        self._order: tuple[int, np.ndarray] = -1, np.empty(0, int)

    def __len__(self) -> int:
        return max(0, self.last - self.first + 1) * self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for iteration in range(self.first, self.last + 1):
            begin = ((iteration - 1) * self.processes + self.rank) * self.batch
            for draw in range(begin, begin + self.batch):
                yield self.image(draw), draw

    def image(self, draw: int) -> int:
        """The image of a draw."""
        epoch, place = divmod(draw, self.images)
        if self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, IMAGES, epoch])
            self._order = epoch, generator.permutation(self.images)
        return int(self._order[1][place])

    def epoch(self, iteration: int) -> int:
        """How often every image has been drawn before an iteration."""
        return (iteration - 1) * self.processes * self.batch // self.images

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: BasicSR's loop finds one long epoch."""


def photographs(names: Sequence[str]) -> list[int]:
    """Which photograph an image is of, numbered in the order in which they come: several may be of one.

    `sdakd prepare pairs --per_image N` makes ``NAME_1`` to ``NAME_N`` of ``NAME``, `sdakd prepare subimages`
    ``NAME_s001`` and so on: of one photograph are names that differ in such an ending alone. Numbers that begin with 0,
    or that do not run from 1 to their number, are no such ending, but what a camera counts.

    Args:
        names: Paths without their ending.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        if found := _NUMBERED.fullmatch(name):
            numbers.setdefault(found[1], set()).add(int(found[2]))

    def stem(name: str) -> str:
        found = _NUMBERED.fullmatch(name)
        if found and 1 < len(numbers[found[1]]) == max(numbers[found[1]]):
            name = found[1]
        return re.sub(r'_s\d{3,}$', '', name)

    known: dict[str, int] = {}
    return [known.setdefault(stem(name), len(known)) for name in names]


class SampleError(UserError):
    """A sample that a data set cannot make.

    A worker process hands an exception over as its type and the text of its traceback, the last line of which is the
    sentence.
    """

    def __init__(self, where: str, sentence: str | None = None) -> None:
        if sentence is None and (said := re.findall(r'SampleError: (.*)', where)):
            where = said[-1]
        super().__init__(where, sentence)


class Drawn(Dataset):
    """A data set whose random numbers depend on nothing but the draw.

    Its samples are numbered by the names of their images: BasicSR lists a folder in the order in which the disk happens
    to hold it, which another computer does not share.

    Args:
        dataset: Any map-style data set that draws from Python's, NumPy's or torch's global generators.
        seed: Of the run.
        where: Its key in the option file.
        skip: Whether a sample that cannot be made is replaced by the next one; else it raises :class:`SampleError`.
        held_out: Of so many photographs (:func:`photographs`), by name, one is held out: its images are no samples, and
            every sample brings one of these along as ``held_out``, drawn at random. 0 holds none out.

    Raises:
        UserError: There are fewer photographs than that.
    """

    def __init__(self, dataset: Dataset, seed: int, where: str, skip: bool = False, held_out: int = 0) -> None:
        self.dataset, self.seed, self.where, self.skip = dataset, seed, where, skip
        options = getattr(dataset, 'opt', None)
        backend = options.get('io_backend') if isinstance(options, Mapping) else None
        # told now: data sets take the type out of their options when they read the first image
        self.on_disk = isinstance(backend, Mapping) and backend.get('type') == 'disk'
        order = sorted(range(len(dataset)), key=self._key)
        whose = photographs([self._truth(index) for index in order]) if held_out else []
        if len(set(whose)) < held_out:
            raise UserError(
                f'{where}: one of every {held_out} photographs is held out, of {len(set(whose))} in all (NAME_1 to '
                'NAME_N are one, and so are subimages); write a smaller held_out, or other names.'
            )
        held = {index for index, number in zip(order, whose, strict=False) if (number + 1) % held_out == 0}
        self.held = [index for index in order if index in held]
        self.order = [index for index in order if index not in held]

    def _key(self, index: int) -> list[list[str]]:
        return [os.path.splitext(path)[0].replace(os.sep, '/').split('/') for path in self._paths(index)]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, drawn: tuple[int, int]) -> Mapping:
        first, draw = drawn
        sample = self._sample(self.order, first, draw, SAMPLES)
        if self.held:
            chosen = int(np.random.default_rng([self.seed, HELD_OUT, draw]).integers(len(self.held)))
            sample = {**sample, 'held_out': self._sample(self.held, chosen, draw, HELD_OUT)}
        return sample

    def _sample(self, order: list[int], first: int, draw: int, purpose: int) -> Mapping:
        for number in range(min(TRIES, len(order)) if self.skip else 1):
            index = order[(first + number) % len(order)]
            with aside(self.seed, purpose, draw):
                try:
                    self._look(index)
                    return self.dataset[index]
                except Exception as error:  # of whatever a data set and its decoder do
                    reason = ' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__
                    sentence = f'{self._name(index)} cannot be used ({reason})'
            if self.skip:
                logging.getLogger('basicsr').warning(f'{self.where}: {sentence}; it is skipped.')
        if self.skip:
            raise SampleError(self.where, f'{sentence}, nor can those before it; look at the folder.')
        raise SampleError(self.where, f'{sentence}; repair or remove it, or write on_bad_sample: skip.')

    def _paths(self, index: int) -> list[str]:
        paths = getattr(self.dataset, 'paths', None)
        entry = paths[index] if paths else ''
        return [path for path in (entry.values() if isinstance(entry, Mapping) else [entry]) if path]

    def _truth(self, index: int) -> str:
        """What is known of the file of the ground truth, without its ending."""
        paths = getattr(self.dataset, 'paths', None)
        entry = paths[index] if paths else str(index)
        path = entry.get('gt_path') or self._paths(index)[0] if isinstance(entry, Mapping) else entry
        return os.path.splitext(path)[0].replace(os.sep, '/')

    def _name(self, index: int) -> str:
        return ' and '.join(self._paths(index)) or f'sample {index:,d}'

    def _look(self, index: int) -> None:
        """BasicSR's degrading data set takes any other image for a file that is gone, after seconds, in silence."""
        for path in self._paths(index) if self.on_disk else ():
            if not os.path.exists(path):
                raise FileNotFoundError('the file does not exist')


def _begin_worker(_number: int) -> None:
    """Ctrl-C and the end of a terminal reach all processes of a run; the main process stops its workers itself."""
    for number in set(stops.SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)


def training_loader(dataset: Drawn, draws: Draws, opt: Mapping) -> DataLoader:
    """BasicSR's loader of the training data; making an iterator of it draws nothing from the global generator.

    ``prefetch_mode: cpu`` is as none: BasicSR's thread would draw random numbers beside the training, and the run would
    wait for ever if it died. Worker processes load ahead anyway, ``num_prefetch_queue`` batches each.

    Args:
        dataset, draws: What it loads.
        opt: The completed options of the run.
    """
    options = dict(opt['datasets']['train'])
    if options.get('prefetch_mode') == 'cpu':
        options['prefetch_mode'] = None
    if options.get('num_worker_per_gpu') == 'auto':
        options['num_worker_per_gpu'] = 1
    loader = build_dataloader(dataset, options, num_gpu=opt['num_gpu'], dist=opt['dist'], sampler=draws, seed=None)
    loader.worker_init_fn, loader.generator = _begin_worker, torch.Generator()
    if loader.num_workers:
        loader.prefetch_factor = options.get('num_prefetch_queue') or AHEAD
    return loader
