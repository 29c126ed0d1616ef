"""How a run loads its images: what is done where nothing is said, and how many processes ``auto`` means."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Mapping
from copy import deepcopy

import torch
from basicsr.utils.registry import DATASET_REGISTRY

from sdakd.machine import cores
from sdakd_arch.width import lookup
from sdakd_data.draws import Drawn
from sdakd_data.randomness import aside
from sdakd_models.scenario import Scenario
from sdakd_models.sdakd_model import SDAKDModel

MARGIN = 1.5  # times the processes that load as fast as steps are made: images differ, and other programs are at work
SAMPLES = 6  # that are timed; the first one, which opens files, does not count
SPEND = 2.0  # seconds after which no further sample is timed


def complete(opt: dict) -> None:
    """Fills in how the training data are loaded: on GPUs into pinned memory and copied ahead, by processes that stay.

    Args:
        opt: Options whose ``num_gpu`` is settled; ``datasets:train`` is changed.
    """
    train, gpu = opt['datasets'].get('train'), bool(opt['num_gpu'])
    if not isinstance(train, dict):
        return
    train.setdefault('num_worker_per_gpu', 'auto')
    train.setdefault('pin_memory', gpu)
    # BasicSR's loop makes an iterator, throws it away and makes another one
    train.setdefault('persistent_workers', train['num_worker_per_gpu'] != 0)
    if gpu and train['pin_memory']:
        train.setdefault('prefetch_mode', 'cuda')


def workers_for(load: float, step: float, most: int) -> int:
    """The processes that load batches as fast as steps are made, and half as many again; at least one.

    Args:
        load: Seconds in which one process loads a batch.
        step: Seconds of a step.
        most: How many there may be.
    """
    return max(1, min(most, math.ceil(MARGIN * load / step)))


def settle_workers(opt: dict, model: SDAKDModel) -> None:
    """Chooses what ``num_worker_per_gpu: auto`` stands for in a run that begins; what it says is ``opt['loading']``.

    A sample is timed in this process, and a step of the stage with the fewest terms, which is over first. The processes
    get no more than the cores that the training leaves, see :func:`workers_for`. Which samples a run sees, and in which
    order, does not depend on their number.

    Args:
        opt: The completed options.
        model: The model of a rehearsal, which is thrown away.
    """
    train = opt['datasets']['train']
    if train.get('num_worker_per_gpu') != 'auto':
        return
    batch, gpu = train['batch_size_per_gpu'], bool(opt['num_gpu'])
    here = max(1, cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))
    most = max(1, here - (1 if gpu else torch.get_num_threads()))
    sample, step = _sample_seconds(train), _step_seconds(opt, model, batch if gpu else 1, batch)
    sample *= 2 if model.scenario.held_out else 1  # every sample brings another one along
    train['num_worker_per_gpu'] = number = workers_for(batch * sample, step, most)
    processes = f'{number} process{"es" if number > 1 else ""}'
    opt['loading'] = (
        f'Loading: {processes}, as a batch takes one of them {1e3 * batch * sample:.0f} ms and a step '
        f'{1e3 * step:.0f} ms; there are cores for {most}.'
    )


def _sample_seconds(options: Mapping) -> float:
    """Seconds in which this process makes a sample, a median."""
    options = {**options, 'type': options.get('plain', options['type'])}
    dataset = Drawn(lookup(DATASET_REGISTRY, options['type'], 'datasets:train:type')(deepcopy(options)), 0, 'train')
    begun, times = time.perf_counter(), []
    for number in range(SAMPLES):
        since = time.perf_counter()
        dataset[number * len(dataset) // SAMPLES, number]
        times.append(time.perf_counter() - since)
        if time.perf_counter() - begun > SPEND:
            break
    return statistics.median(times[1:] or times)


def _step_seconds(opt: Mapping, model: SDAKDModel, number: int, batch: int) -> float:
    """Seconds of a step of the simplest stage at the run's size, from one of ``number`` images."""
    scenario, plan = Scenario.read(opt), model.plan
    which = min(range(len(plan.stages)), key=lambda index: len(scenario.active[plan.names[index]]))
    iteration, times = plan.ends[which] - plan.stages[which].iters + 1, []
    with aside():
        images = model.noise_batch(scenario, number)
        for _ in range(3):
            since = time.perf_counter()
            model.feed_data(images)
            model.optimize_parameters(iteration)
            if model.device.type == 'cuda':
                torch.cuda.synchronize()
            times.append(time.perf_counter() - since)
            if times[-1] > SPEND:
                break
    return min(times) * batch / number
