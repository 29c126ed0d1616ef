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

from sdakd.commands.compare.matrix import Matrix
from sdakd.compat import Mistakes, UserError
from sdakd.files.images import write_png
from sdakd_arch.width import build
from sdakd_models import launch
from sdakd_models.options import Selective
from sdakd_models.rehearsal import untouched

STEPS = 3  # of each stage; the first warms up
OWN_KEYS = {'teacher:cache': 'teacher_cache'}  # a comparison's keys for those of training
START = 6.0  # seconds until a process trains: imports, checks, data


def parse(options: dict, name: str, folder: Path) -> dict:
    """What training makes of a row's options, after all of its checks.

    Raises:
        UserError: Some of them fail.
    """
    options = yaml.safe_load(yaml.safe_dump({**options, 'name': name}))  # as the row's process will read them
    try:
        launch.check_options(options, str(folder), f'{name}.yml')
    except UserError as error:
        with Mistakes() as mistakes:
            for each in error.mistakes:
                mistakes.add(f'methods:{name}: {OWN_KEYS.get(each.where, each.where)}', each.sentence)
    return options


def _pairs(folder: Path, crop: int, scale: int, number: int) -> tuple[Path, Path]:
    """Pairs of grey images that the data checks accept; a rehearsal needs no photographs."""
    for side, size in (('gt', crop), ('lq', crop // scale)):
        for index in range(number):
            write_png(folder / side / f'grey{index}.png', np.full((size, size, 3), 128, np.uint8))
    return folder / 'gt', folder / 'lq'


def _least(matrix: Matrix) -> int:
    """The training images that are enough for every row: one, or as many as one is held out of."""
    entries = [entry for row in matrix.rows for entry in (row.options.get('discriminators') or {}).values()]
    held_out = [(entry.get('selective') or {}).get('held_out') for entry in entries if entry.get('selective')]
    return max([number if isinstance(number, int) else Selective().held_out for number in held_out], default=1)


def _stand_in(options: dict, matrix: Matrix, folder: Path) -> None:
    """A file for the teacher's discriminator where it has yet to be trained."""
    trained = matrix.discriminator_run()
    for entry in (options.get('discriminators') or {}).values():
        if trained is not None and entry.get('weights') == str(trained.result) and not trained.result.is_file():
            entry['weights'] = str(folder / 'discriminator.pth')
            torch.save({'params': build(entry['network'], 'discriminators').state_dict()}, entry['weights'])


def check_rows(matrix: Matrix, folder: Path, real_data: bool) -> dict[tuple[str, Fraction], dict]:
    """Checks the options of every row and width, and of the first stages that rows share.

    Returns:
        What training makes of them, by row and width, and by ``first_stage...`` and width.

    Args:
        folder: A folder for what the checks need, empty and the caller's to remove.
        real_data: Whether the pairs are there; else grey images stand for them.

    Raises:
        UserError: The first mistake.
    """
    found = {}
    pairs = None if real_data else _pairs(folder, matrix.config.budget.crop, matrix.scale, _least(matrix))
    seed = matrix.config.seeds[0]
    for ratio in matrix.config.ratios():
        wanted = {row.name: matrix.options(row, ratio, seed, 1) for row in matrix.rows}
        wanted |= {run.name.partition('_w')[0]: deepcopy(run.options) for run in matrix.first_runs(ratio, seed)}
        for name, options in wanted.items():
            options['path']['pretrain_network_g'] = None
            _stand_in(options, matrix, folder)
            if pairs:
                options['datasets']['train'].update(dataroot_gt=str(pairs[0]), dataroot_lq=str(pairs[1]))
                if 'cache' in options['teacher']:
                    options['teacher']['cache'] = str(folder / 'cache')  # it has no answers to grey images
            found[name, ratio] = parse(options, name, folder)
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
            model = build_model(options)
            crop, batch = options['datasets']['train']['gt_size'], options['datasets']['train']['batch_size_per_gpu']
            gt = torch.rand(batch, 3, crop, crop)
            lq = torch.nn.functional.avg_pool2d(gt, options['scale'])
            seconds, first = START, 1
            for stage in options['train']['stages'].values():
                times = []
                last = first + stage['iters']  # a stage's first steps also calibrate shares
                for iteration in range(max(first, last - STEPS), last):
                    begun = clock()
                    model.update_learning_rate(iteration)
                    model.feed_data({'lq': lq, 'gt': gt})
                    model.optimize_parameters(iteration)
                    if torch.cuda.is_available():
                        torch.cuda.synchronize()
                    times.append(clock() - begun)
                seconds += stage['iters'] * min(times[1:] or times)  # the least: other programs only ever add
                first = last
            return seconds
    finally:
        torch.set_num_threads(before)
