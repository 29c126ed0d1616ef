"""Before the long work: every row's option file is checked as training would check it, and its steps can be timed."""

from __future__ import annotations

import time
from copy import deepcopy
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import yaml
from basicsr.models import build_model

from sdakd.commands.compare import missing, standins
from sdakd.commands.compare.matrix import Matrix
from sdakd.compat import Mistakes, UserError
from sdakd.files.images import write, write_png
from sdakd_arch.width import cost
from sdakd_models import launch
from sdakd_models.options import Selective
from sdakd_models.rehearsal import untouched
from sdakd_models.scenario import Scenario

STEPS = 3  # of each stage; the first warms up
OWN_KEYS = {  # a comparison's keys for those of training
    'teacher:cache': 'teacher_cache',
    'gt_size': 'budget:crop',
    'queue_size': 'data:photographs:queue_size',
    'train:pool_reuse': 'data:photographs:pool_reuse',
}
START = 6.0  # seconds until a process trains: imports, checks, data
SLOW = 20e9  # multiply-accumulates of the teacher for a crop from which on a CPU takes minutes for a few steps
WHOLE = 400  # side of what Real-ESRGAN's data set gives to degrade


def parse(options: dict, name: str, folder: Path, rehearses: bool = True) -> dict:
    """What training makes of a row's options, after all of its checks.

    Raises:
        UserError: Some of them fail.
    """
    options = yaml.safe_load(yaml.safe_dump({**options, 'name': name}))  # as the row's process will read them
    try:
        launch.check_options(options, str(folder), f'{name}.yml', rehearses=rehearses)
    except UserError as error:
        with Mistakes() as mistakes:
            for each in error.mistakes:
                mistakes.add(f'methods:{name}: {OWN_KEYS.get(each.where, each.where)}', each.sentence)
    return options


def _images(matrix: Matrix, folder: Path) -> dict[str, str]:
    """Grey images that the data checks accept, by the data set's keys; a rehearsal needs no photographs."""
    crop, scale = matrix.config.budget.crop or matrix.network['out_size'], matrix.scale or 1
    sides = {'dataroot_gt': crop} if matrix.kind.folders != ('dataroot_gt', 'dataroot_lq') else {
        'dataroot_gt': crop, 'dataroot_lq': crop // scale}  # fmt: skip
    names = [f'grey_{number}.png' for number in range(_least(matrix))]
    for side, size in sides.items():
        for name in names:
            write_png(folder / side / name, np.full((size, size, 3), 128, np.uint8))
    found = {side: str(folder / side) for side in sides}
    if 'meta_info' in matrix.kind.folders:
        write(folder / 'list.txt', ''.join(f'{name}\n' for name in names).encode())
        found['meta_info'] = str(folder / 'list.txt')
    return found


def _least(matrix: Matrix) -> int:
    """The training images that are enough for every row: one, or as many as one is held out of."""
    entries = [entry for row in matrix.rows for entry in (row.options.get('discriminators') or {}).values()]
    held_out = [entry['selective'].get('held_out') for entry in entries if isinstance(entry.get('selective'), dict)]
    return max([number if isinstance(number, int) else Selective().held_out for number in held_out], default=1)


def too_slow(matrix: Matrix) -> bool:
    """Whether a few steps would take minutes: large networks where there is no GPU."""
    if torch.cuda.is_available():
        return False
    side = matrix.config.budget.crop // matrix.scale if matrix.scale else 64  # a face has one size
    return cost(matrix.network, side)[1] > SLOW


def check_rows(
    matrix: Matrix, folder: Path, real_data: bool, rehearses: bool = True
) -> dict[tuple[str, Fraction], dict]:
    """Checks the options of every row and width, and of the first stages that rows share.

    Returns:
        What training makes of them, by row and width, and by ``first_stage...`` and width.

    Args:
        folder: A folder for what the checks need, empty and the caller's to remove.
        real_data: Whether the pairs are there; else grey images stand for them.
        rehearses: Whether the first steps are rehearsed.

    Raises:
        UserError: The first mistake.
    """
    found = {}
    images = None if real_data else _images(matrix, folder)
    seed = matrix.config.seeds[0]
    for ratio in matrix.config.ratios():
        wanted = {row.name: matrix.options(row, ratio, seed, 1) for row in matrix.rows}
        wanted |= {run.name.partition('_w')[0]: deepcopy(run.options) for run in matrix.first_runs(ratio, seed)}
        for name, options in wanted.items():
            options['path']['pretrain_network_g'] = None
            standins.put(options, matrix, folder)
            if images:
                options['datasets']['train'].update(images)
                if 'cache' in options['teacher']:
                    options['teacher']['cache'] = str(folder / 'cache')  # it has no answers to grey images
            found[name, ratio] = parse(options, name, folder, rehearses or not missing.noting())
    return found


def time_row(options: dict, threads: int) -> float:
    """Seconds that a run takes: a few steps of every stage on random images, times its iterations.

    Args:
        options: What :func:`check_rows` has made of a row.
        threads: Of the run.
    """
    # one thread's processor time is its time on an idle machine; of several threads it would be the sum
    clock = time.perf_counter if threads > 1 or torch.cuda.is_available() else time.process_time
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with untouched(torch.cuda.is_available()):  # every training warns of what it sees itself
            options = deepcopy(options) | {'rehearsal': True}  # no answers in advance
            options['datasets']['train'].pop('caches', None)
            scenario = Scenario.read(options)
            number, drawing = options['datasets']['train']['batch_size_per_gpu'], 0.0
            if scenario.degrades:
                drawing = _degrading(options, number, clock)
                options |= {'high_order_degradation': False}
                options['train']['pool_reuse'] = 1
            model = build_model(options)
            batch = model.noise_batch(scenario, number)
            if options.get('scale'):
                batch['lq'] = torch.nn.functional.avg_pool2d(batch['gt'], options['scale'])
            seconds, first = START, 1
            for stage in options['train']['stages'].values():
                times = []
                last = first + stage['iters']  # a stage's first steps also calibrate shares
                for iteration in range(max(first, last - STEPS), last):
                    begun = clock()
                    model.update_learning_rate(iteration)
                    model.feed_data(batch)
                    model.optimize_parameters(iteration)
                    if torch.cuda.is_available():
                        torch.cuda.synchronize()
                    times.append(clock() - begun)
                # the least: other programs only ever add
                seconds += stage['iters'] * (min(times[1:] or times) + drawing)
                first = last
            return seconds
    finally:
        torch.set_num_threads(before)


def _degrading(options: dict, number: int, clock) -> float:
    """Seconds that the degradation adds to a step on average."""
    reuse = options['train'].get('pool_reuse', 1)
    model = build_model(deepcopy(options))
    kernel = torch.zeros(number, 21, 21)
    kernel[:, 10, 10] = 1
    batch = {'gt': torch.rand(number, 3, WHOLE, WHOLE)} | dict.fromkeys(('kernel1', 'kernel2', 'sinc_kernel'), kernel)
    times = []
    for _ in range(STEPS):
        begun = clock()
        model.take(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - begun)
    return sum(times[1:]) / len(times[1:]) / reuse  # resized at random: the mean
