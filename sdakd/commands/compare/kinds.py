"""What kind of training the cells of a comparison are: pairs, photographs that are degraded on line, or faces."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from sdakd.commands.compare.config import Config
from sdakd.option_files import read_merged
from sdakd.shipped import options_folder
from sdakd_models.basicsr_options import Degradation

ON_LINE, FACES = 'sdakd_realesrgan_x4.yml', 'sdakd_gcfsr_1024.yml'  # whose published settings cells have
METHODS = 'sdakd_realesr_general_x4v3.yml'  # what the methods' files extend
OPTIMIZER = {'type': 'Adam', 'weight_decay': 0, 'betas': [0.9, 0.99]}
REGULARISED = ('r1_reg_weight', 'net_d_reg_every')  # of the discriminators of faces


@dataclass
class Kind:
    """What option files of cells have besides a method's.

    Args:
        beside: Keys beside ``model_type``, itself among them.
        dataset: Of ``datasets: train``, without the folders.
        folders: The keys of the folders and files of ``Images.train``.
        optimizers: ``optim_g`` and ``optim_d``.
        train: Further keys of ``train``.
        judged: Those of them for discriminators that learn.
    """

    beside: dict
    dataset: dict
    folders: tuple[str, ...]
    optimizers: dict = field(default_factory=lambda: {side: dict(OPTIMIZER) for side in ('optim_g', 'optim_d')})
    train: dict = field(default_factory=dict)
    judged: dict = field(default_factory=dict)


@cache
def _published(name: str) -> dict:
    return read_merged(options_folder() / name)


def kind_of(config: Config, teacher: Mapping) -> Kind:
    """The kind of a comparison.

    Args:
        teacher: Options of the teacher's network.
    """
    budget = config.budget
    if config.data.faces is not None:
        train, wanted = _published(FACES)['train'], config.data.faces
        return Kind(
            {'model_type': 'SDAKDGCFSRModel'},
            {
                'type': 'FaceDataset',
                'out_size': teacher['out_size'],
                'factors': list(wanted.factors),
                'use_hflip': budget.flips,
            },
            ('dataroot_gt',),
            {side: deepcopy(train[side]) for side in ('optim_g', 'optim_d')},
            judged={key: train[key] for key in REGULARISED},
        )
    if not config.on_line:
        dataset = {'type': 'PairedImageDataset', 'gt_size': budget.crop}
        flips = {'use_hflip': budget.flips, 'use_rot': budget.flips}
        return Kind({'model_type': 'SDAKDModel'}, dataset | flips, ('dataroot_gt', 'dataroot_lq'))
    published, wanted = _published(ON_LINE), config.data.photographs
    usual = ('name', 'dataroot_gt', 'meta_info', 'io_backend', 'num_worker_per_gpu', 'batch_size_per_gpu')
    beside = {key: deepcopy(published[key]) for key in Degradation.__struct_fields__ if key in published}
    dataset = {key: deepcopy(value) for key, value in published['datasets']['train'].items() if key not in usual}
    return Kind(
        {'model_type': 'SDAKDRealESRGANModel', **beside, 'gt_size': budget.crop, 'queue_size': wanted.queue_size},
        dataset | {'gt_size': budget.crop, 'use_hflip': budget.flips},
        ('dataroot_gt', 'meta_info'),
        # flips of the pool depend on what a method compares; those of the data set are the same for all
        train={'pool_reuse': wanted.pool_reuse, 'pool_flips': False} if wanted.pool_reuse > 1 else {},
    )


def setting_of(config: Config) -> dict[Path, Path]:
    """What a method's file extends, where the comparison has another setting than the folder of methods."""
    folder = options_folder()
    return {folder / METHODS: folder / FACES} if config.data.faces else {}
