"""The option file of a distillation, derived from the teacher's file, the data and the machine."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY

from sdakd.compat import UserError
from sdakd.files.generators import Opened
from sdakd.files.images import write
from sdakd.machine import cores
from sdakd.shipped import options_folder
from sdakd_arch.families import example_of, family_of
from sdakd_arch.families.discriminators import unet
from sdakd_arch.width import build, lookup, scale_of, student_of
from sdakd_data.pool import ROOM
from sdakd_models.costs import Costs
from sdakd_models.loaders import workers_for
from sdakd_models.reader import read_run

NAME = 'distill'  # of the run and of its option file
BASELINE = 'no_teacher'
SHARES = {'supervised': 0.5, 'distillation': 0.4, 'adversarial': 0.1}  # of the iterations
SMALL = 200_000  # parameters below which a student takes twice the learning rate
TEACHERS_TERMS = ('output', 'feature')


@dataclass(frozen=True)
class Sizes:
    """What depends on the machine.

    Args:
        batch: Crops in a batch.
        crop: Side of a crop in input pixels.
        margin: Input pixels around it that the teacher sees.
        reuse: Crops of every pair.
        pool: Pairs in the pool.
        workers: Processes that read images.
        precision: Of ``train:precision``.
    """

    batch: int
    crop: int
    margin: int
    reuse: int
    pool: int
    workers: int
    precision: str

    @property
    def pair(self) -> int:
        """Side in input pixels of a pair in the pool."""
        return self.crop + 2 * self.margin + ROOM


def first_sizes(precision: str) -> Sizes:
    """Where the search for a batch that the machine takes begins.

    Raises:
        UserError: The device cannot compute in this precision.
    """
    gpu = torch.cuda.is_available()
    if precision == 'bf16' and gpu and not torch.cuda.is_bf16_supported():
        raise UserError('--precision', 'this GPU cannot compute in bfloat16; write fp16 or tf32.')
    if gpu:
        return Sizes(16, 48, 8, 4, 192, 1, precision)
    return Sizes(2, 24, 8, 8, 96, 1, precision)


def with_workers(sizes: Sizes, costs: Costs, threads: int) -> Sizes:
    """The sizes with as many processes that load images as keep up with the steps (``num_worker_per_gpu: auto``).

    Args:
        sizes: What the costs are those of.
        costs: Of steps and of loading.
        threads: Cores that the training takes.
    """
    return replace(sizes, workers=workers_for(costs.load, min(costs.step.values()), max(1, cores() - threads)))


def student_network(teacher: Opened, width: Fraction, arch: str | None) -> dict:
    """The options of the student: the teacher, or another architecture at its usual size, narrowed.

    Raises:
        UserError: An unknown architecture, one without this scale, or a width that leaves a fraction of a channel.
    """
    if teacher.network is None and arch is None:
        raise UserError(
            '--arch',
            f'the teacher, {teacher.describe()}, cannot be narrowed; name the student: RRDBNet, SRVGGNetCompact.',
        )
    if teacher.network is not None and arch in (None, teacher.network['type']):
        full = dict(teacher.network)
    else:
        try:
            full = example_of(arch)
        except UserError as error:
            raise error.at('--arch') from None
        accepted = inspect.signature(lookup(ARCH_REGISTRY, full['type'], '--arch')).parameters
        full |= {key: teacher.scale for key in ('scale', 'upscale') if key in accepted}
    try:
        narrow = student_of(full, float(width))
    except UserError as error:
        raise error.at('-w') from None
    if scale_of(build(narrow, '--arch'), '--arch') != teacher.scale:
        raise UserError('--arch', f'{narrow["type"]} cannot enlarge {teacher.scale} times as the teacher does.')
    return narrow


def discriminator_network(teacher: Opened, width: Fraction) -> dict:
    """The options of the student's discriminator: the one that the teacher is published with, narrowed."""
    network = teacher.network or {}
    published = family_of(network).published_discriminator(network) if network else None
    return student_of(published or unet(network), float(width))


def options(
    teacher: Opened, student: Mapping, discriminator: Mapping, data: Path, degradation: str, sizes: Sizes, seed: int
) -> dict[str, Any]:
    """The complete options, with stages of one iteration each."""
    scale, online = teacher.scale, degradation == 'realesrgan'
    opt = read_run(options_folder() / ('distill_realesrgan.yml' if online else 'distill.yml'))
    opt |= {'name': NAME, 'scale': scale, 'manual_seed': seed, 'network_g': dict(student)}
    opt['teacher'] = {'weights': str(teacher.path.resolve())}
    if teacher.network is not None:
        opt['teacher']['network'] = dict(teacher.network)
    else:  # it gives its image and no feature maps
        del opt['train']['feature_opt']
        for stage in opt['train']['stages'].values():
            stage['terms'] = [term for term in stage['terms'] if term != 'feature']
    opt['discriminators'] = {'image': {'network': dict(discriminator), 'real': 'teacher', 'fake': ['student']}}
    opt |= {'gt_size': sizes.crop * scale, 'queue_size': sizes.pool}
    train = opt['datasets']['train']
    train |= {
        'dataroot_gt': str(data / 'train/gt'),
        'gt_size': (sizes.crop if online else sizes.pair) * scale,
        'num_worker_per_gpu': sizes.workers,
        'batch_size_per_gpu': sizes.batch,
    }
    if online:
        train['meta_info'] = str(data / 'train/meta_info.txt')
    else:
        train['dataroot_lq'] = str(data / 'train/lq')
    opt['datasets']['val'] = {
        'name': 'held-out', 'type': 'PairedImageDataset', 'dataroot_gt': str(data / 'held_out/gt'),
        'dataroot_lq': str(data / 'held_out/lq'), 'io_backend': {'type': 'disk'},
    }  # fmt: skip
    opt['val'] = {'val_freq': 1, 'save_img': False, 'metrics': {
        'psnr': {'type': 'calculate_psnr', 'crop_border': scale, 'test_y_channel': True}}}  # fmt: skip
    opt['train'] |= {'precision': sizes.precision, 'teacher_margin': sizes.margin, 'pool_reuse': sizes.reuse}
    faster = sum(p.numel() for p in build(student, 'network_g').parameters()) < SMALL
    for stage in opt['train']['stages'].values():
        stage['iters'] = 1
        stage['lr_g'] *= 1 if faster else 0.5
    return opt


def with_lengths(opt: Mapping, total: int, seconds: Mapping[str, float], threads: int) -> dict[str, Any]:
    """The options with stages that last ``total`` iterations together, and what is logged and saved how often.

    Args:
        opt: From :func:`options`.
        total: At least one for each stage.
        seconds: Of an iteration, by stage.
        threads: Of the training; 0 on a GPU.
    """
    opt = deepcopy(dict(opt))
    each = mean(seconds)
    for name, iters in lengths(total).items():
        opt['train']['stages'][name] |= {'iters': iters, 'seconds': round(seconds[name], 4)}
    opt['val']['val_freq'] = max(total // 5, 1)
    opt['logger'] |= {
        'print_freq': min(max(1, round(5 / each)), 100),
        'save_checkpoint_freq': min(max(1, round(300 / each)), max(total // 4, 1)),  # every five minutes
    }
    opt['train']['share_freq'] = max(100, min(1000, total // 20))
    if threads:
        opt['num_threads'] = threads
    return opt


def mean(seconds: Mapping[str, float]) -> float:
    """Seconds of an iteration of the whole run."""
    return sum(share * seconds[name] for name, share in SHARES.items())


def lengths(total: int) -> dict[str, int]:
    """Iterations by stage."""
    found = {name: max(1, round(total * share)) for name, share in SHARES.items()}
    found['supervised'] = max(1, total - found['distillation'] - found['adversarial'])
    return found


def without_teacher(opt: Mapping) -> dict[str, Any]:
    """The same student trained as long on the ground truth, with a discriminator that knows no teacher either."""
    opt = deepcopy(dict(opt))
    opt['name'] = BASELINE
    opt['discriminators']['image'] |= {'real': 'gt'}
    for stage in opt['train']['stages'].values():
        stage['terms'] = list(dict.fromkeys('pixel' if term in TEACHERS_TERMS else term for term in stage['terms']))
    opt['train']['pixel_opt'] = {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
    for term in TEACHERS_TERMS:
        opt['train'].pop(f'{term}_opt', None)
    del opt['teacher']
    return opt


def write_options(opt: Mapping, file: Path, command: str) -> None:
    """Writes an option file that needs no other."""
    text = yaml.safe_dump(dict(opt), sort_keys=False, allow_unicode=True, width=120)
    name = os.path.basename(file)
    use = f'python basicsr/train.py -opt {name}, or sdakd train -opt {name}'
    head = f'# Written by: {command}\n# To train on it: {use}\n\n'
    write(file, (head + text).encode())
