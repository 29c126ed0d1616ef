"""Loaders, tried on the first image of every data set, and metrics: what would fail after days fails before a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy

import numpy as np
import torch
from basicsr.data import build_dataloader
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset, default_collate

from sdakd.compat import Mistakes, UserError, one_line
from sdakd_arch.width import lookup
from sdakd_metrics.set_metrics import SetDistance
from sdakd_models.rehearsal import on_one_thread, untouched
from sdakd_models.scenario import Scenario

SIDE = 256  # of what metrics are tried on


def check(scenario: Scenario) -> None:
    """Builds the loader of every data set, loads its first image, and measures an image by all metrics of validation.

    Raises:
        UserError: Something of this fails, an image lacks what the model reads, or a metric is no number.
    """
    with Mistakes() as mistakes, untouched(scenario.file['num_gpu'] > 0), on_one_thread():
        for phase, options in scenario.datasets.items():
            with mistakes.collect():
                _load(scenario, phase, options)
        if any(phase != 'train' for phase in scenario.datasets):
            with mistakes.collect():
                _measure(scenario)


def _load(scenario: Scenario, phase: str, options: Mapping) -> None:
    """The first item of a data set, as a batch."""
    where = f'datasets:{phase}'
    options = {**options, 'type': options.get('plain', options['type'])}  # a cache may be empty
    if options.get('num_worker_per_gpu') == 'auto':
        options['num_worker_per_gpu'] = 1
    dataset: Dataset = lookup(DATASET_REGISTRY, options['type'], f'{where}:type')(deepcopy(options))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # such as of more processes than cores; the run says it
            build_dataloader(dataset, options, scenario.file['num_gpu'], scenario.file.get('dist', False), None, 0)
            batch = default_collate([dataset[0]])
    except Exception as error:  # of whatever a data set or torch's loader does
        raise UserError(
            where,
            f'its first image cannot be loaded with these options ({type(error).__name__}: {one_line(error)}); '
            'correct them, or the image.',
        ) from error
    wanted = {'lq', 'lq_path'}
    if phase == 'train':
        wanted = {'gt', 'kernel1', 'kernel2', 'sinc_kernel'} if scenario.degrades else {'gt', 'lq'}
    missing = sorted(wanted - (batch.keys() if isinstance(batch, Mapping) else set()))
    if missing:
        raise UserError(
            f'{where}:type', f'{options["type"]} gives no {", ".join(missing)}, which {scenario.model_type} reads.'
        )


def _measure(scenario: Scenario) -> None:
    """All metrics of noise with a little more noise; what images they cannot measure is told in validation."""
    image = torch.rand(1, 3, SIDE, SIDE)
    images = {'img': tensor2img([(image + torch.randn(image.shape) / 64).clamp(0, 1)]), 'img2': tensor2img([image])}
    with Mistakes() as mistakes:
        for name, metric in (scenario.val.get('metrics') or {}).items():
            try:
                with warnings.catch_warnings(), np.errstate(all='ignore'):
                    warnings.simplefilter('ignore')
                    found = calculate_metric(images, metric)
                    good = isinstance(found, SetDistance) or np.isfinite(float(found))
            except UserError:
                raise
            except Exception as error:  # of whatever a metric does
                found, good = f'{type(error).__name__}: {one_line(error)}', False
            if not good:
                mistakes.add(
                    f'val:metrics:{name}',
                    f'it cannot measure an image of {SIDE}x{SIDE} pixels ({found}); correct it, or take it out.',
                )
