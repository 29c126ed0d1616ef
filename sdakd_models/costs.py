"""What the steps of a run cost on this machine: measured before it starts, to plan how long it can be."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY
from torch.utils.data import default_collate

from sdakd.progress import Progress
from sdakd_arch.width import lookup
from sdakd_models.measured import settle_precisions
from sdakd_models.rehearsal import untouched
from sdakd_models.sdakd_model import SDAKDModel

LONG = 1_000_000  # iterations of a stage, so that none of its special steps is timed
ROUNDS = 3  # steps, or times that every pair of the pool is drawn, of which the median counts


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of a run.

    Args:
        step: Seconds of a step by stage; of each pair that goes through the pool, its part.
        pool: Seconds until the pool is full, once; 0 without one.
        load: Seconds in which one process reads a batch, beside the training.
        memory: Bytes that the GPU held at most; None on a CPU.
    """

    step: dict[str, float]
    pool: float
    load: float
    memory: int | None

    def seconds(self, iters: Mapping[str, int], workers: int, threads: int, cores: int) -> dict[str, float]:
        """How long the stages last, by name.

        A batch is read while the one before is used: what takes longer counts, and both share the cores.

        Args:
            iters: Iterations by stage.
            workers: Processes that read.
            threads: Of the training; 0 where it runs on a GPU.
            cores: Of the processor.
        """
        return {stage: count * self.iteration(stage, workers, threads, cores) for stage, count in iters.items()}

    def iteration(self, stage: str, workers: int, threads: int, cores: int) -> float:
        """Seconds of an iteration of a stage; see :meth:`seconds`."""
        step, load = self.step[stage], self.load
        return step + load if workers == 0 else max(step, load / workers, (step * threads + load) / cores)


def measure(opt: Mapping) -> Costs:
    """Times the steps of every stage at the real sizes, on images of the training set. Nothing of the run changes.

    The pool is small while it is measured; shares are weights, because finding them takes few of a stage's steps.

    Args:
        opt: Options that :func:`sdakd_models.launch.check_options` completed.
    """
    small = _weighted(deepcopy(dict(opt))) | {'rehearsal': True, 'dist': False}
    small['logger']['print_freq'] = LONG
    batch, reuse = small['datasets']['train']['batch_size_per_gpu'], small['train'].get('pool_reuse', 1)
    pairs, small['queue_size'] = small.get('queue_size', 180), 2 * batch
    if reuse > 1:
        small['train']['pool_reuse'] = 2  # the pairs that come in are told from the others, so that any number will do
    for stage in small['train']['stages'].values():
        stage['iters'] = LONG
    with untouched(small['num_gpu'] > 0):
        options = small['datasets']['train']
        dataset = lookup(DATASET_REGISTRY, options['type'], 'datasets:train:type')(options)
        begun = time.perf_counter()
        batches = [default_collate([dataset[random.randrange(len(dataset))] for _ in range(batch)]) for _ in range(3)]
        load = (time.perf_counter() - begun) / len(batches)
        model = lookup(MODEL_REGISTRY, small['model_type'], 'model_type')(small)
        settle_precisions(small, model)
        steps, adding = {}, 0.0
        stages = list(zip(model.plan.names, model.plan.ends, model.plan.stages, strict=True))
        for name, end, stage in Progress('timing', len(stages), 'stages').over(stages):
            steps[name], adding = _stage(model, batches, end - stage.iters + 2, reuse, adding)
        memory = torch.cuda.max_memory_allocated() if small['num_gpu'] else None
        del model
    return Costs(steps, adding * pairs / batch if reuse > 1 else 0.0, load, memory)


def _stage(model: SDAKDModel, batches: list, iteration: int, reuse: int, adding: float) -> tuple[float, float]:
    """Seconds of a step of one stage, and what a batch that enters the pool costs more than one that does not."""
    with_pool: list[float] = []
    without: list[float] = []
    model.last_iter = iteration - 1
    number = 0
    while len(without) < ROUNDS or (reuse > 1 and len(with_pool) < 2):
        enters = model.pool is not None and model.pool.wants(len(batches[0]['gt']))
        begun = time.perf_counter()
        model.feed_data(batches[number % len(batches)])
        model.optimize_parameters(iteration + number)
        if model.device.type == 'cuda':
            torch.cuda.synchronize()
        spent = time.perf_counter() - begun
        number += 1
        if number > 1 and (model.pool is None or number > 4):  # the pool is full, and the caches are warm
            (with_pool if enters else without).append(spent)
    step = statistics.median(without)
    if not with_pool:
        return step, adding
    more = max(0.0, statistics.median(with_pool) - step)
    return step + more / reuse, max(adding, more)


def _weighted(value: object) -> object:
    """Options with weights in the place of shares."""
    if isinstance(value, list):
        return [_weighted(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {('loss_weight' if key == 'share' else key): 1.0 if key == 'share' else _weighted(inner)
            for key, inner in value.items()}  # fmt: skip
