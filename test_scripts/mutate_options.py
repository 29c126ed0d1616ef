"""Breaks option files in every way that a slip can, and counts what a start says to it.

    python test_scripts/mutate_options.py             # all cases: about half an hour on one core
    python test_scripts/mutate_options.py --every 20  # an evenly spaced part of them
    python test_scripts/mutate_options.py --only val:metrics --show

Three small runs (paired data, Real-ESRGAN's degradation, faces) hold together what option files hold. Every key and
list entry of each is deleted, misspelt, nulled, negated and replaced by values of other kinds, one at a time. What is
right is told by tables in this file, not by the code that is judged:

- *refused*: one sentence per mistake, before anything is created, and of a misspelt key with the right one in it;
- *runs*: the start accepts it, and BasicSR's loop then builds loaders and model, makes a step and validates.

The table at the end counts cases; every case that is neither, a traceback or what should have been the other one, is
printed with what happened. The exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import fnmatch
import logging
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

os.environ.setdefault('OMP_NUM_THREADS', '1')
if __name__ == '__main__':
    from common import ROOT, compat

    compat.import_basicsr()
    sys.path.append(ROOT)

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from basicsr.utils.registry import ARCH_REGISTRY  # noqa: E402
from tabulate import tabulate  # noqa: E402

import sdakd_models  # noqa: E402, F401
from sdakd.commands.prepare.synthesis import PUBLISHED  # noqa: E402
from sdakd.compat import UserError  # noqa: E402

Place = tuple[str | int, ...]
LOADER = {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'dataset_enlarge_ratio': 1, 'prefetch_mode': 'cpu',
          'num_prefetch_queue': 2, 'pin_memory': False, 'persistent_workers': False,
          'on_bad_sample': 'stop'}  # fmt: skip
LOGGER = {'print_freq': 100, 'save_checkpoint_freq': 100, 'use_tb_logger': False, 'keep_last': 3}
OPTIM = {'type': 'Adam', 'weight_decay': 0, 'betas': [0.9, 0.99]}


@ARCH_REGISTRY.register()
class SlipJudge(torch.nn.Module):
    """A discriminator that costs the many starts next to nothing."""

    def __init__(self, num_in_ch: int, num_feat: int = 4, skip_connection: bool = True) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(num_in_ch, num_feat, 3, 2)
        self.last = torch.nn.Conv2d(num_feat, 1, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(image).relu())


# ------------------------------------------------- the runs that are broken -------------------------------------------


def _images(folder: Path, side: int, number: int = 3) -> str:
    """Smooth noise; no two images are equal."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(side)
    for index in range(number):
        image = cv2.resize(random.uniform(0, 255, (6, 6, 3)).astype(np.float32), (side, side))
        cv2.imwrite(str(folder / f'{index}.png'), image.clip(0, 255).round().astype(np.uint8))
    return str(folder)


def _weights(file: Path, network: dict) -> str:
    from sdakd_arch.width import build

    if not file.exists():
        torch.manual_seed(0)
        torch.save({'params': build(network, '').state_dict()}, file)
    return str(file)


def paired(folder: Path) -> dict:
    """Paired data with validation, metrics, two teachers, two discriminators and most blocks of terms."""
    generator = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_conv': 4,
                 'upscale': 4, 'act_type': 'prelu'}  # fmt: skip
    judge = {'type': 'SlipJudge', 'num_in_ch': 3, 'num_feat': 4, 'skip_connection': True}
    wide = {**generator, 'num_feat': 8}
    data = {
        'type': 'PairedImageDataset',
        'dataroot_gt': _images(folder / 'HR', 128),
        'dataroot_lq': _images(folder / 'LR', 32),
        'filename_tmpl': '{}',
        'io_backend': {'type': 'disk'},
    }
    # NIQE looks at blocks of 96 pixels, of which it needs two
    held_out = {'dataroot_gt': _images(folder / 'val/HR', 208, 1), 'dataroot_lq': _images(folder / 'val/LR', 52, 1)}
    teacher = {'weights': _weights(folder / 'teacher.pth', wide), 'param_key': 'params', 'network': wide}
    metric = {'crop_border': 4, 'test_y_channel': True, 'better': 'higher'}
    return {
        'name': 'old',
        'model_type': 'SDAKDModel',
        'scale': 4,
        'num_gpu': 0,
        'num_threads': 1,
        'manual_seed': 0,
        'find_unused_parameters': False,
        'datasets': {
            'train': {'name': 'pairs', **data, 'gt_size': 32, 'use_hflip': True, 'use_rot': True, **LOADER},
            'val': {'name': 'held_out', **data, **held_out},
        },
        'network_g': generator,
        'network_d': judge,
        'teacher': dict(teacher),
        'teachers': {'second': dict(teacher)},
        'discriminators': {
            'other': {
                'network': dict(judge),
                'weights': _weights(folder / 'judge.pth', judge),
                'param_key': 'params',
                'real': 'gt',
                'fake': ['student', 'teacher'],
                'learns': True,
                'trains_student': True,
                'gan_opt': {'type': 'GANLoss', 'gan_type': 'lsgan', 'loss_weight': 0.1},
                'selective': None,
            },
            'picked': {
                'network': dict(judge),
                'selective': {
                    'against': 'other',
                    'lr': 1e-3,
                    'threshold': 0.5,
                    'held_out': 2,
                    'layers': ['first', 'last'],
                },
            },
        },
        'path': {
            'pretrain_network_g': _weights(folder / 'student.pth', generator),
            'param_key_g': 'params',
            'strict_load_g': True,
            'pretrain_network_d': _weights(folder / 'judge.pth', judge),
            'param_key_d': 'params',
            'strict_load_d': True,
            'resume_state': None,
        },
        'train': {
            'ema_decay': 0.9,
            'optim_g': dict(OPTIM),
            'optim_d': dict(OPTIM),
            'r1_reg_weight': 0.1,
            'net_d_reg_every': 4,
            'teacher_margin': 0,
            'share_freq': 1000,
            'pool_reuse': 1,
            'pool_flips': True,
            'channels_last': True,
            'compile': False,
            'micro_batch_size': 1,
            'activation_checkpointing': False,
            'precision': 'fp32',
            'start_stage': 'first',
            'stages': {
                'first': {
                    'iters': 2,
                    'lr_g': 1e-3,
                    'warmup_iter': 1,
                    'scheduler': {'type': 'MultiStepLR', 'milestones': [1], 'gamma': 0.5},
                    'grad_clip': 1.0,
                    'reset_optimizers': True,
                    'terms': ['pixel', 'output'],
                },
                'last': {
                    'iters': 2,
                    'lr_g': 1e-3,
                    'lr_d': 1e-3,
                    'scheduler': {'type': 'CosineAnnealingLR', 'eta_min': 0.1},
                    'terms': ['pixel', 'output', 'feature', 'fakd', 'gan', 'gan:other', 'gan:picked'],
                },
            },
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
            'output_opt': {'type': 'L1Loss', 'share': 0.2},
            'fakd_opt': {'type': 'FeatureAffinityLoss', 'loss_weight': 0.1},
            'feature_opt': {
                'type': 'FeatureMapLoss',
                'loss_weight': 0.1,
                'layers': ['body.1', 'body.5'],
                'hidden_ratio': 1.0,
            },
            'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'real_label_val': 1.0, 'fake_label_val': 0.0,
                        'loss_weight': 0.1},
        },
        'val': {
            'val_freq': 100,
            'save_img': False,
            'suffix': None,
            'pbar': False,
            'tile': 16,
            'tile_pad': 4,
            'tb_images': 1,
            'metrics': {
                'psnr': {'type': 'calculate_psnr', **metric},
                'ssim': {'type': 'calculate_ssim', **metric},
                'niqe': {'type': 'calculate_niqe', 'crop_border': 4, 'better': 'lower'},
            },
        },
        'logger': {**LOGGER, 'keep_best': 'psnr', 'wandb': {'project': None, 'resume_id': None}},
        'dist_params': {'backend': 'nccl', 'port': 29500},
    }  # fmt: skip


def degraded(folder: Path) -> dict:
    """Real-ESRGAN's degradation while training; no validation."""
    options = paired(folder)
    for key in ('network_d', 'teachers', 'discriminators', 'val', 'find_unused_parameters'):
        del options[key]
    at_top = {key: value for key, value in PUBLISHED.items() if key in AT_TOP}
    kernels = {key: value for key, value in PUBLISHED.items() if key not in AT_TOP}
    root = _images(folder / 'HR', 128)
    (folder / 'meta.txt').write_text('0.png\n1.png\n')
    return copy.deepcopy(
        {
            **options,
            'model_type': 'SDAKDRealESRGANModel',
            'high_order_degradation': True,
            **dict.fromkeys(('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm'), True),
            **at_top,
            'gt_size': 64,
            'queue_size': 2,
            'datasets': {
                'train': {
                    'name': 'photographs',
                    'type': 'RealESRGANDataset',
                    'dataroot_gt': root,
                    'meta_info': str(folder / 'meta.txt'),
                    'io_backend': {'type': 'disk'},
                    'blur_kernel_size': 21,
                    'blur_kernel_size2': 21,
                    **kernels,
                    'gt_size': 64,
                    'use_hflip': True,
                    'use_rot': False,
                    **LOADER,
                }
            },
            'path': {},
            'train': {
                'ema_decay': 0.9,
                'stages': {'only': {'iters': 2, 'lr_g': 1e-3, 'terms': ['pixel', 'output']}},
                'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
                'output_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
            },
            'logger': dict(LOGGER),
        }
    )


def faces(folder: Path) -> dict:
    """GCFSR on faces, with validation."""
    side = 32
    wide = {'type': 'GCFSR', 'out_size': side, 'num_style_feat': 16, 'narrow': 1 / 32}
    student = {'type': 'GCFSR', 'out_size': side, 'num_style_feat': 16, 'narrow': 1 / 64}
    data = {
        'type': 'FaceDataset',
        'dataroot_gt': _images(folder / 'faces', side),
        'io_backend': {'type': 'disk'},
        'out_size': side,
    }
    return {
        'name': 'old',
        'model_type': 'SDAKDGCFSRModel',
        'num_gpu': 0,
        'num_threads': 1,
        'manual_seed': 0,
        'datasets': {
            'train': {'name': 'faces', **data, 'factors': [2, 4], 'use_hflip': True, **LOADER},
            'val': {'name': 'x4', **data, 'factors': [4]},
        },
        'network_g': student,
        'network_d': {'type': 'GCFSRDiscriminator', 'out_size': side, 'narrow': 1 / 64},
        'teacher': {'weights': _weights(folder / 'wide.pth', wide)},
        'path': {'resume_state': None},
        'train': {
            'ema_decay': 0.9,
            'optim_g': {'type': 'Adam', 'betas': [0, 0.99]},
            'stages': {'only': {'iters': 2, 'lr_g': 1e-3, 'lr_d': 1e-3, 'terms': ['pixel', 'feature', 'gan']}},
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
            'feature_opt': {'type': 'FeatureMapLoss', 'loss_weight': 0.1},
            'gan_opt': {'type': 'GANLoss', 'gan_type': 'wgan_softplus', 'loss_weight': 0.01},
            'r1_reg_weight': 10,
            'net_d_reg_every': 2,
        },
        'val': {
            'val_freq': 100,
            'save_img': False,
            'noise': 'random',
            'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 0, 'test_y_channel': False}},
        },
        'logger': dict(LOGGER),
    }


AT_TOP = (
    'resize_prob', 'resize_range', 'gaussian_noise_prob', 'noise_range', 'poisson_scale_range', 'gray_noise_prob',
    'jpeg_range', 'second_blur_prob', 'resize_prob2', 'resize_range2', 'gaussian_noise_prob2', 'noise_range2',
    'poisson_scale_range2', 'gray_noise_prob2', 'jpeg_range2',
)  # fmt: skip
RUNS: dict[str, Callable[[Path], dict]] = {'paired': paired, 'degraded': degraded, 'faces': faces}


# --------------------------------------------------- what is right ---------------------------------------------------

# A pattern is a place with `*` for any key or entry; `run/` in front of it: of that run only.
# Keys without which no run begins; of every other key a deletion is legal.
NEEDED = """
name model_type datasets datasets:train network_g paired/network_d faces/network_d teacher teacher:weights
train train:stages paired/train:stages:first train:stages:only train:stages:*:iters train:stages:*:terms
train:stages:*:lr_g train:stages:*:lr_d train:stages:*:scheduler:type train:stages:*:scheduler:milestones
train:*_opt train:*_opt:type train:gan_opt:gan_type
discriminators discriminators:other discriminators:other:network discriminators:other:gan_opt:*type
discriminators:picked discriminators:picked:network discriminators:picked:selective:against
discriminators:picked:selective:held_out
datasets:*:name datasets:*:type datasets:*:dataroot_?? datasets:*:io_backend datasets:*:io_backend:type
datasets:*:out_size datasets:*:factors datasets:train:meta_info datasets:train:num_worker_per_gpu
datasets:train:batch_size_per_gpu paired/datasets:train:gt_size paired/datasets:train:use_????? datasets:train:use_rot
degraded/datasets:train:use_hflip datasets:train:blur_* datasets:train:*prob* datasets:train:kernel_list*
datasets:train:*_range*
paired/datasets:val paired/val paired/val:metrics paired/val:metrics:psnr val:val_freq
paired/logger:save_checkpoint_freq val:metrics:*:type
val:metrics:*:crop_border *prob *prob? *_range *_range? degraded/gt_size
""".split()
# Keys that may be null though a deletion would be legal, or that mean something by it
NULLABLE = """
manual_seed teachers path path:pretrain_network_? path:param_key_? path:resume_state faces/val faces/val:metrics
val:suffix val:noise logger logger:wandb logger:wandb:* logger:keep_last logger:keep_best dist_params dist_params:port
teacher:param_key teacher:network teachers:second:param_key teachers:second:network
discriminators:other:weights discriminators:other:param_key discriminators:other:gan_opt discriminators:other:selective
discriminators:picked:selective discriminators:picked:selective:layers
train:start_stage train:teacher_margin train:stages:*:scheduler train:stages:*:grad_clip train:output_opt:share
train:output_opt train:feature_opt train:fakd_opt degraded/train:pixel_opt faces/train:pixel_opt train:gan_opt
train:feature_opt:layers datasets:*:prefetch_mode
""".split()
# Numbers that may be negative
SIGNED = 'train:*gan_opt:*_label_val'.split()
# Entries of lists that may go, and lists that may be empty
SHORTER = """
train:stages:last:terms:* train:stages:only:terms:* train:stages:first:terms:1 train:stages:*:scheduler:milestones
train:stages:*:scheduler:milestones:* train:feature_opt:layers:* discriminators:other:fake:* datasets:train:factors:*
discriminators:picked:selective:layers:*
""".split()
# Names that a user chooses: another one is no slip
CHOSEN = 'train:stages:last train:stages:only val:metrics:ssim val:metrics:niqe faces/val:metrics:psnr'.split()
CHOSEN += ['teachers:second']
# What nobody but BasicSR's or torch's own classes can judge: no traceback, and nothing else is asked
OPEN = """
*network network_? *network_?:* teacher:network:* *:*:network:* *:*:network train:optim_?:*
*name datasets:*:name train:*_opt:* discriminators:other:gan_opt:*
""".split()


def matches(run: str, place: Place, patterns: list[str]) -> bool:
    """Whether a place is among patterns."""
    text = ':'.join(map(str, place))
    for pattern in patterns:
        only, _, wanted = pattern.rpartition('/')
        if only in ('', run) and wanted.count(':') == text.count(':') and fnmatch.fnmatchcase(text, wanted):
            return True
    return False


@dataclasses.dataclass
class Case:
    """One broken option file.

    Attributes:
        run: Which of :data:`RUNS`.
        place: The key, or the key and the number of an entry of its list.
        kind: What was done to it.
        options: The options then.
        right: ``refused``, ``runs``, or None where both will do.
    """

    run: str
    place: Place
    kind: str
    options: dict
    right: str | None

    def __str__(self) -> str:
        return f'{self.run} {":".join(map(str, self.place))} {self.kind}'


def _places(block: dict | list, above: Place = ()) -> Iterator[tuple[Place, object]]:
    """All keys, and of lists the first and the last entry."""
    ends = {0, len(block) - 1}
    entries = block.items() if isinstance(block, dict) else ((n, each) for n, each in enumerate(block) if n in ends)
    for key, value in entries:
        yield (*above, key), value
        if isinstance(value, dict | list):
            yield from _places(value, (*above, key))


def _unshared(value: object) -> object:
    """A copy in which no list or mapping stands twice, as in a file without anchors."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list | tuple) else value


GONE = object()


def _changed(options: dict, place: Place, value: object = GONE, key: str | None = None) -> dict:
    """The options with another value at a place, without it, or with another key for it at the same place."""
    options = copy.deepcopy(options)
    block = options
    for step in place[:-1]:
        block = block[step]
    if key is not None:
        items = [(key if name == place[-1] else name, found) for name, found in block.items()]
        block.clear()
        block.update(items)
    elif value is GONE:
        del block[place[-1]]
    else:
        block[place[-1]] = value
    return options


def _others(value: object) -> dict[str, object]:
    """Values of other kinds that can never stand for one, by what they are."""
    lists = {'list': [value]} if not isinstance(value, list) else {'entries': [[1]]}
    if isinstance(value, bool):
        return {'text': 'perhaps', 'number': 3, **lists, 'mapping': {'a': 1}}
    if isinstance(value, int | float):
        odd = {'nan': math.nan, 'infinity': math.inf, 'text nan': 'nan', 'boolean': True}
        return {'text': 'many', **odd, **lists, 'mapping': {'a': 1}}
    if isinstance(value, str):
        return {'number': 3, 'boolean': True, **lists, 'mapping': {'a': 1}}
    if isinstance(value, dict):
        return {'text': 'perhaps', 'number': 3, 'list': [1]}
    if isinstance(value, list):
        return {'text': 'perhaps', 'number': 3, 'mapping': {'a': 1}, **lists}
    return {'mapping': {'a': 1}, 'list': [1]}  # of a null


def cases(run: str, options: dict) -> Iterator[Case]:
    """All cases of a run."""

    options = _unshared(options)

    def case(place: Place, kind: str, broken: dict, right: str | None) -> Case:
        if right == 'refused' and kind not in ('misspelt', 'deleted') and matches(run, place, OPEN):
            right = None
        return Case(run, place, kind, broken, right)

    for place, value in _places(options):
        entry, number = isinstance(place[-1], int), isinstance(value, int | float) and not isinstance(value, bool)
        inner = [':'.join(map(str, place[:depth])) for depth in range(len(place))]
        free = any(part.endswith('network') or part.startswith('network_') for part in inner) or 'optim' in str(place)
        needed = matches(run, place, NEEDED)
        legal = matches(run, place, SHORTER) if entry else not needed
        yield case(place, 'deleted', _changed(options, place), None if free else 'runs' if legal else 'refused')
        if not entry:
            chosen = matches(run, place, CHOSEN)
            right = 'runs' if chosen else 'refused'
            yield case(place, 'misspelt', _changed(options, place, key=f'{place[-1]}{place[-1][-1]}'), right)
        if value is not None:
            right = 'runs' if matches(run, place, NULLABLE) else 'refused'
            yield case(place, 'null', _changed(options, place, None), None if free and not entry else right)
        for kind, other in _others(value).items():
            yield case(place, kind, _changed(options, place, other), 'refused')
        if isinstance(value, list):
            right = 'runs' if matches(run, place, SHORTER) else 'refused'
            yield case(place, 'empty', _changed(options, place, []), right)
            if len(value) == 2 and value[0] != value[1] and ('range' in place[-1] or 'sigma' in place[-1]):
                yield case(place, 'reversed', _changed(options, place, value[::-1]), 'refused')
        if number:
            right = None if matches(run, place, SIGNED) else 'refused'
            yield case(place, 'negative', _changed(options, place, -value if value else -1), right)
            text = str(value) if isinstance(value, int) else f'{value:e}'
            right = None if matches(run, place, OPEN) or place[0] == 'val' and 'metrics' in place else 'runs'
            yield case(place, 'numeral', _changed(options, place, text), right)
        if isinstance(value, str) and entry:
            yield case(place, 'misspelt', _changed(options, place, value + value[-1]), 'refused')


# --------------------------------------------------- what happens ---------------------------------------------------


class Ground:
    """A folder with an old experiment in it, where trainings are started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / 'root'
        (folder / 'data').mkdir(parents=True)
        old = self.root / 'experiments/old/models'
        old.mkdir(parents=True)
        (old / 'net_g_7.pth').write_text('of an old run')
        self.before = self.state()

    def state(self) -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in self.folder.rglob('*')}

    def start(self, case: Case) -> tuple[str, str]:
        """Trains with the options of a case.

        Returns:
            ``runs``, ``refused`` or ``traceback``, and what was said.
        """
        import basicsr.train

        file = self.folder / 'broken.yml'
        file.write_text(yaml.safe_dump(case.options, sort_keys=False))
        before = self.state()
        hook = sys.excepthook
        try:
            with mock.patch.object(sys, 'argv', ['train.py', '-opt', str(file)]), silence(), patience(120):
                basicsr.train.train_pipeline(str(self.root))
            happened, said = 'runs', ''
        except UserError as error:
            happened, said = 'refused', str(error).replace(f'{file}: ', '')
            if self.state() != before:
                happened, said = 'traceback', f'refused after something was created: {said}'
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            happened, said = 'traceback', f'{type(error).__name__}: {error}; {where(error)}'
        finally:
            sys.excepthook = hook
            self.clear(before)
        return happened, said

    def clear(self, before: dict) -> None:
        for path in sorted(self.folder.rglob('*'), reverse=True):
            if path not in before:
                path.rmdir() if path.is_dir() else path.unlink()
        experiments = self.root / 'experiments'
        if not (experiments / 'old/models/net_g_7.pth').exists():
            shutil.rmtree(experiments / 'old', ignore_errors=True)
            (experiments / 'old/models').mkdir(parents=True)
            (experiments / 'old/models/net_g_7.pth').write_text('of an old run')


def where(error: BaseException) -> str:
    """The last lines of code of a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return ' < '.join(f'{Path(frame.filename).name}:{frame.lineno}' for frame in frames[:-4:-1])


@contextlib.contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Ends what hangs: BasicSR waits for ever for a loader whose thread has failed."""

    def end(*_: object) -> None:
        raise TimeoutError(f'nothing has happened for {seconds} seconds')

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing is logged or printed, and BasicSR's logger is as new."""
    from basicsr.utils import logger as module

    logger = logging.getLogger('basicsr')
    module.initialized_logger.clear()
    logger.handlers.clear()
    with (
        open(os.devnull, 'w', encoding='utf-8') as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers.clear()
    module.initialized_logger.clear()


def verdict(case: Case, happened: str, said: str) -> str | None:
    """What is wrong with what happened; None: nothing."""
    if happened == 'traceback':
        return 'traceback'
    if case.right is not None and happened != case.right:
        return 'accepted in silence' if happened == 'runs' else 'refused wrongly'
    if happened == 'refused':
        sentences = said.split('\n')
        if not all(each.endswith(('.', '?')) and len(each) < 600 for each in sentences):
            return 'no sentence'
        if len(set(sentences)) < len(sentences):
            return 'said twice'
        right = case.place[-1] if isinstance(case.place[-1], str) else ''
        if case.kind == 'misspelt' and right and not re.search(rf'\b{re.escape(right)}\b', said):
            return 'right key not named'
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--every', type=int, default=1, help='start with every n-th case only')
    parser.add_argument('--first', type=int, default=0, help='number of the first one')
    parser.add_argument('--only', default='', help='start with cases whose name contains this')
    parser.add_argument('--show', action='store_true', help='print what every case says')
    args = parser.parse_args()
    table: dict[str, Counter] = {}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        every = [case for run, make in RUNS.items() for case in cases(run, make(ground.folder / 'data'))]
        for case in [case for case in every if args.only in str(case)][args.first :: args.every]:
            happened, said = ground.start(case)
            wrong = verdict(case, happened, said)
            count = table.setdefault(case.run, Counter())
            count.update(['cases', happened, *([wrong] if wrong and wrong != happened else [])])
            count['mistakes'] += len(said.split('\n')) if happened == 'refused' else 0
            if wrong or args.show:
                print(f'{case}: {wrong or happened}: {said}', flush=True)
    columns = ['cases', 'runs', 'refused', 'mistakes', 'traceback', 'accepted in silence', 'refused wrongly',
               'right key not named', 'said twice', 'no sentence']  # fmt: skip
    total = sum(table.values(), Counter())
    rows = [[run, *(count[column] for column in columns)] for run, count in {**table, 'all': total}.items()]
    print(tabulate(rows, ['', *columns]))
    print(f'{time.perf_counter() - begun:.0f} s')
    return int(any(total[column] for column in columns[4:]))


if __name__ == '__main__':
    sys.exit(main())
