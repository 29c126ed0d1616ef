"""Training steps of a row: its model is built and its pool filled; steps are timed, and their memory is measured."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from sdakd import stops
from sdakd.compat import import_basicsr

import_basicsr()  # here, because a server process imports this module once for all measurements

from basicsr.archs import vgg_arch  # noqa: E402
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402

import sdakd_models  # noqa: E402, F401  it registers models
from sdakd.commands.bench.memory import restart_peak, status  # noqa: E402
from sdakd.commands.bench_train import rival  # noqa: E402
from sdakd.commands.bench_train.ledger import OTHER, Ledger, watch_basicsr, watch_sdakd  # noqa: E402
from sdakd.commands.bench_train.rows import BEGIN  # noqa: E402
from sdakd_arch.width import lookup  # noqa: E402
from sdakd_data.draws import Drawn, Draws  # noqa: E402
from sdakd_data.randomness import aside, seed_all  # noqa: E402
from sdakd_models.context import Context  # noqa: E402
from sdakd_models.reader import forget_states  # noqa: E402
from sdakd_models.rehearsal import untouched  # noqa: E402
from sdakd_models.sdakd_model import SDAKDModel  # noqa: E402

Batch = dict[str, torch.Tensor]


def load(options: Mapping, number: int) -> tuple[list[Batch], float]:
    """Batches as the loader of a run makes them, and the seconds in which this process makes one."""
    data = options['datasets']['train']
    data = {**data, 'type': data.get('plain', data['type'])}
    dataset = Drawn(lookup(DATASET_REGISTRY, data['type'], 'datasets:train:type')(deepcopy(data)), 0, 'datasets:train')
    size, batches, times = data['batch_size_per_gpu'], [], []
    order = list(Draws(len(dataset), size, 0, 1, number + 1))
    for first in range(0, len(order), size):
        begun = time.perf_counter()
        found = default_collate([dataset[draw] for draw in order[first : first + size]])
        times.append(time.perf_counter() - begun)
        # the loader's channels-last strides are none that BasicSR's filter2D takes on a CPU
        batches.append({key: value.contiguous() for key, value in found.items() if torch.is_tensor(value)})
    return batches[1:], statistics.median(times[1:])  # the first one opens files


def _build(options: Mapping) -> SDAKDModel:
    """The model of a run, without what a run does with files and other processes before its first step."""
    kind = lookup(MODEL_REGISTRY, options['model_type'], 'model_type')

    class Timed(kind):
        def _begin(self) -> None:
            self.cast.lower_teachers()
            forget_states()  # files that were read are held twice until then

        def drawing(self) -> AbstractContextManager:
            return nullcontext()  # every step is seeded by who makes it, as one of BasicSR's model is

    model = Timed(options)
    asked = {(options.get(block) or {}).get('precision') for block in ('train', 'teacher')}
    if 'auto' in asked and 'precisions' not in options:
        from sdakd_models.measured import settle_precisions

        settle_precisions(options, model)
        model = Timed(options)
    return model


class Stepper:
    """A model that makes steps of one stage.

    Args:
        options: Of the model, completed.
        stage: The stage; '' for BasicSR's model, which has none.
        cache: Whether the teachers' answers come with the batches.
        batches: Of the loader, ``gt`` and what belongs to it.
    """

    def __init__(self, options: Mapping, stage: str, cache: bool, batches: list[Batch]) -> None:
        self.basicsr = not stage
        with aside(0):  # all students begin with the same weights
            if self.basicsr:
                self.model, self.iteration = rival.build(options), BEGIN
            else:
                self.model = _build(options)
                plan = self.model.plan
                number = plan.names.index(stage)
                self.iteration = plan.ends[number] - plan.stages[number].iters + BEGIN
        self.device, self.batches, self.count = self.model.device, batches, 0
        self.every = 1 if self.basicsr else self.lazy_every()
        self.model.last_iter = self.iteration
        if cache:
            self.batches = [batch | self._answers(batch) for batch in batches]

    def lazy_every(self) -> int:
        """Iterations between two R1 penalties, which are passed over."""
        train = self.model.train_options
        return train.net_d_reg_every if train.r1_reg_weight else 1

    def _answers(self, batch: Batch) -> Batch:
        """What a cached data set would hand over beside a batch, in its float16."""
        found = {}
        self.model.lq, self.model.answers = batch['lq'].to(self.device), {}
        for name in self.model.teachers:
            context = Context(self.model, with_features=name in self.model.taps)
            maps = context.features(name) if name in self.model.taps else {}
            for tap, values in {'': context.image(name), **maps}.items():
                found[f'answer/{tap}/{name}'] = values.half().cpu()
        return found

    @property
    def pays(self) -> bool:
        """Whether the next step takes a batch of the loader in; without reuse, every step does."""
        pool = getattr(self.model, 'pool', None)
        return pool is None or pool.wants(len(self.batches[0]['gt']))

    def fill(self) -> None:
        """Fills the pool of pairs, and makes a step, in which memory is allocated and algorithms are chosen."""
        pool = getattr(self.model, 'pool', None)
        size = self.model.opt.get('queue_size', 0) if pool is None and hasattr(self.model, 'queue_size') else 0
        for _ in range(size // len(self.batches[0]['gt'])):
            self.feed()
        while pool is not None and self.pays:
            self.feed()
        for _ in range(1 if pool is None else 2):
            self.step()

    def feed(self) -> None:
        with rival.of_basicsr(self.device) if self.basicsr else nullcontext():
            self.model.feed_data(self.batches[self.count % len(self.batches)])

    def step(self) -> float:
        """Makes a step; returns its seconds. The n-th draws the same random numbers in every model."""
        seed_all(self.count, device=self.device)
        # what torch holds for the whole process: models take turns
        if self.basicsr:
            torch.backends.cudnn.allow_tf32 = self.model.opt.get('allow_tf32', True)
        else:
            self.model.cast.precisions.begin()
        self.iteration += 1
        if self.every > 1 and self.iteration % self.every == 0:
            self.iteration += 1
        begun = time.perf_counter()
        self.model.update_learning_rate(self.iteration)
        self.feed()
        self.model.optimize_parameters(self.iteration)
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        self.count += 1
        return time.perf_counter() - begun

    @contextmanager
    def watched(self) -> Iterator[Ledger]:
        """A ledger of the steps that are made inside."""
        ledger = Ledger(_waiting_clock if self.device.type == 'cuda' else time.perf_counter)
        try:
            (watch_basicsr if self.basicsr else watch_sdakd)(ledger, self.model)
            yield ledger
        finally:
            ledger.close()


def _waiting_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def quietly(cuda: bool) -> Iterator[None]:
    """Steps that leave random numbers, the log and warnings of schedulers alone."""
    with untouched(cuda), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*lr_scheduler.step.*')
        yield


def watched_step(stepper: Stepper) -> tuple[float, dict[str, float]]:
    """Seconds of a step, and of its parts."""
    with stepper.watched() as ledger:
        ledger.forget()
        spent = stepper.step()
        ledger.settle()
        parts = {part: seconds for part, seconds in ledger.seconds.items() if part != OTHER}
    return spent, parts | {OTHER: max(0.0, spent - sum(parts.values()))}


def _measure_growth(options: dict, stage: str, cache: bool, batches: str, threads: int, vgg: str) -> float | None:
    """In a process of its own: see :func:`peak_growth`."""
    os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '256')
    if not restart_peak():
        return None
    torch.set_num_threads(threads)
    vgg_arch.VGG_PRETRAIN_PATH = vgg  # where the checks of the options have found it
    loaded = torch.load(batches, weights_only=True)
    before = status('VmRSS')
    with quietly(False):
        stepper = Stepper(options, stage, cache, loaded)
        restart_peak()
        stepper.fill()
        stepper.step()
    return (status('VmHWM') - before) / 1024


def peak_growth(row: Any, batches: Path, threads: int) -> float | None:
    """The growth of a process's resident memory, in MiB, at its peak while a row's model makes steps.

    Measured in a process of its own, from before the model is built: weights, optimizers, a pool of two batches, and
    all that a step needs. None where it cannot be told: not Linux, or the process ends.
    """
    if not sys.platform.startswith('linux'):
        return None
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])  # imported once for all
    try:
        with ProcessPoolExecutor(1, mp_context=context, initializer=stops.leave_to_parent) as pool:
            with stops.held_back(deaf=True):  # what is started here hears of no Ctrl-C, which its parent does
                arguments = row.options, row.stage, row.cache, str(batches), threads, vgg_arch.VGG_PRETRAIN_PATH
                growth = pool.submit(_measure_growth, *arguments)
            return growth.result()
    except Exception:  # the same failure has been reported where it was timed
        return None
