"""BasicSR validation metrics that belong to a whole set of images: ``calculate_fid`` and ``calculate_fd``.

BasicSR adds what a metric returns for each image, starting from 0, and divides by the number of images. What these
metrics return keeps the features of an image: adding two of them merges the sets, and the division gives the distance
of the two sets, once, at the end. So they work in every BasicSR model as soon as this package is imported.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, MutableMapping

import numpy as np
import torch
from basicsr.utils.registry import METRIC_REGISTRY

from sdakd.compat import UserError
from sdakd_metrics.distribution import Moments, frechet_distance, open_backbone, open_inception, read_backbone

_WITHOUT = 'take the metric out of val:metrics'


class SetDistance:
    """The features of results and ground truth of the images so far; a sum of these, divided by a number, is a float.

    Args:
        result: Features of one result, ``(samples, channels)``.
        truth: Features of its ground truth.
    """

    def __init__(self, result: np.ndarray, truth: np.ndarray) -> None:
        self.pending = [(result, truth)]
        self.moments = (Moments(), Moments())

    def _take(self, other: SetDistance) -> None:
        if other is not self:
            for moments, others in zip(self.moments, other.moments, strict=True):
                moments.merge(others)
        for result, truth in other.pending:
            self.moments[0].add(result)
            self.moments[1].add(truth)
        other.pending = []

    def __add__(self, other: SetDistance) -> SetDistance:
        self._take(self)
        self._take(other)
        return self

    def __radd__(self, zero: float) -> SetDistance:
        return self

    def __truediv__(self, images: int) -> float:
        self._take(self)
        if min(part.count for part in self.moments) < 2:
            raise UserError(
                'val:metrics', f'a Frechet distance needs two samples, the set has {self.moments[0].count}.'
            )
        return frechet_distance(*self.moments)


@functools.lru_cache(maxsize=2)
def _network(backbone: str | None):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if backbone is None:
        return open_inception('val:metrics', _WITHOUT).to(device)
    return open_backbone(backbone, 'val:metrics').to(device)


@METRIC_REGISTRY.register()
def calculate_fid(img: np.ndarray, img2: np.ndarray, **kwargs) -> SetDistance:
    """FID between the results and the ground truth of a validation set; whole images, standard InceptionV3 weights.

    Args:
        img: Result, uint8 (H, W, 3), BGR.
        img2: Ground truth, likewise.
    """
    network = _network(None)
    return SetDistance(network(img), network(img2))


@METRIC_REGISTRY.register()
def calculate_fd(img: np.ndarray, img2: np.ndarray, backbone: str, **kwargs) -> SetDistance:
    """Frechet distance over patches of 64 pixels, every 32 pixels, on the features of a named backbone.

    Args:
        img: Result, uint8 (H, W, 3), BGR.
        img2: Ground truth, likewise.
        backbone: ``squeezenet:FILE``; see :func:`sdakd_metrics.distribution.open_backbone`.
    """
    network = _network(backbone)
    return SetDistance(network(img), network(img2))


def check_set_metric(metric: MutableMapping, where: str) -> None:
    """Opens what ``calculate_fid`` or ``calculate_fd`` needs; lower is better unless the options say otherwise.

    Raises:
        UserError: A weights file is missing or another one.
    """
    if metric['type'] == 'calculate_fid':
        open_inception(where, _WITHOUT)
    elif metric['type'] == 'calculate_fd':
        kind, caffe, file = read_backbone(metric['backbone'], f'{where}:backbone')
        file = os.path.abspath(os.path.expanduser(file))
        metric['backbone'] = f'{kind}{"-caffe" if caffe else ""}:{file}'
        open_backbone(metric['backbone'], f'{where}:backbone')
    else:
        return
    metric.setdefault('better', 'lower')


def check_set_size(opt: Mapping, phase: str, images: int) -> None:
    """FID has one sample per image, and one sample has no covariance.

    Raises:
        UserError: A validation set of one image, and FID.
    """
    metrics = ((opt.get('val') or {}).get('metrics') or {}).values()
    if phase.startswith('val') and images < 2 and any(metric['type'] == 'calculate_fid' for metric in metrics):
        raise UserError(f'datasets:{phase}', f'FID needs at least two images, this set has {images}; {_WITHOUT}.')
