"""The metrics of `sdakd evaluate`. Every number comes from a library that is the metric's reference implementation."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdakd.compat import UserError, near
from sdakd_metrics.collectors import KID_IMAGES, KID_PATCHES, FrechetCollector, KernelCollector, PatchKernelCollector

if TYPE_CHECKING:
    from sdakd_metrics.distribution import Inception, PatchBackbone

SAMPLES = 10  # independent ones for each feature that a Frechet distance needs, a choice of this project

Measure = Callable[[np.ndarray, np.ndarray | None], float]  # image and reference, uint8 (H, W, 3), BGR


@dataclass
class Metric:
    """One column of the table.

    Args:
        name: What ``--metrics`` and ``results.json`` call it.
        label: What tables call it.
        unit: For example dB.
        higher_is_better: Otherwise lower is.
        digits: Decimal places in tables.
        convention: How it is computed, in one sentence.
        measure: Value of one image; None where the metric belongs to a set.
        blind: Whether an image is judged without a reference.
        features: For a metric of a set: the network that makes features of an image, ``(samples, channels)``.
        collector: For a metric of a set: makes what collects them.
    """

    name: str
    label: str
    unit: str | None
    higher_is_better: bool
    digits: int
    convention: str
    measure: Measure | None = None
    blind: bool = False
    features: Inception | PatchBackbone | None = None
    collector: type[FrechetCollector] | type[PatchKernelCollector] | None = None

    @property
    def needed(self) -> int:
        """How many independent samples a Frechet distance takes; 0 for metrics that few samples do not bias."""
        return SAMPLES * self.features.channels if self.collector is FrechetCollector else 0

    def facts(self) -> dict:
        """Its entry in ``results.json``."""
        return {key: getattr(self, key) for key in ('name', 'label', 'unit', 'higher_is_better', 'convention')}

    def write(self, value: float) -> str:
        """A value as tables show it."""
        return f'{value:.{self.digits}f}'


@dataclass
class Settings:
    """What the flags say about metrics.

    Args:
        crop_border: Pixels that PSNR, SSIM and NIQE leave out at every edge.
        rgb: PSNR and SSIM on R, G and B instead of Y.
        backbone: ``KIND:FILE`` for the metrics fd and kid; kid takes InceptionV3 without it.
        device: Where networks run.
        face_model: File of the network for the metric identity, None for facexlib's own.
        distances: ``KIND:FILE`` of every backbone whose features are compared image by image.
    """

    crop_border: int
    rgb: bool = False
    backbone: str | None = None
    device: str = 'cpu'
    face_model: str | None = None
    distances: Sequence[str] = ()


def _fidelity(name: str, settings: Settings) -> Metric:
    """PSNR and SSIM, by BasicSR."""
    import basicsr.metrics

    function = getattr(basicsr.metrics, f'calculate_{name}')
    options = {'crop_border': settings.crop_border, 'test_y_channel': not settings.rgb}
    channel = 'the three RGB channels' if settings.rgb else "the Y channel of MATLAB's YCbCr"
    return Metric(
        name,
        f'{name.upper()}-{"RGB" if settings.rgb else "Y"}',
        'dB' if name == 'psnr' else None,
        True,
        2 if name == 'psnr' else 4,
        f"BasicSR's calculate_{name} on {channel} of 8-bit images without a border of {settings.crop_border} pixels.",
        lambda image, reference: float(function(image, reference, **options)),
    )


def _niqe(settings: Settings) -> Metric:
    from basicsr.metrics import calculate_niqe

    def measure(image: np.ndarray, reference: None) -> float:
        height, width = (side - 2 * settings.crop_border for side in image.shape[:2])
        if (height // 96) * (width // 96) < 2:
            return math.nan  # a single block has no covariance
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', RuntimeWarning)
                return float(calculate_niqe(image, settings.crop_border))
        except np.linalg.LinAlgError:
            return math.nan  # blocks of one colour have no statistics

    convention = (
        f"BasicSR's calculate_niqe on the Y channel without a border of {settings.crop_border} pixels; no reference; "
        'images of fewer than two blocks of 96x96 pixels, or of flat ones, are left out.'
    )
    return Metric('niqe', 'NIQE', None, False, 2, convention, measure, blind=True)


def _lpips(settings: Settings) -> Metric:
    from sdakd_metrics.distribution import open_lpips

    network = open_lpips('--metrics lpips', 'leave lpips out of the metrics')
    convention = 'LPIPS v0.1 with AlexNet of the package lpips, on whole RGB images in [-1, 1].'
    measure = lpips_measure(network.to(settings.device), settings.device)
    return Metric('lpips', 'LPIPS', None, False, 4, convention, measure)


def lpips_measure(network, device: str) -> Measure:
    """LPIPS of two images by a network of the package lpips."""
    import torch

    def tensor(image: np.ndarray):
        rgb = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())[None]
        return rgb.to(device, torch.float32) / 127.5 - 1

    def measure(image: np.ndarray, reference: np.ndarray) -> float:
        with torch.no_grad():
            return float(network(tensor(image), tensor(reference)))

    return measure


@functools.lru_cache(maxsize=1)
def _inception(where: str, otherwise: str, device: str):
    from sdakd_metrics.distribution import open_inception

    return open_inception(where, otherwise).to(device)


def _of_inception(name: str, names: Sequence[str], settings: Settings) -> Metric:
    both = [known for known in ('fid', 'kid') if known in names and not (known == 'kid' and settings.backbone)]
    where, otherwise = f'--metrics {" ".join(both)}', f'leave {" and ".join(both)} out of the metrics'
    if both == ['kid']:
        otherwise += ' or give kid a --backbone, such as efficientnet_lite0'
    network = _inception(where, otherwise, settings.device)
    on = "features of torch-fidelity's InceptionV3 with the standard weights (2015-12-05), one vector per whole image"
    if name == 'fid':
        convention = f'Frechet distance of {on}; depends on the number of images, below some thousands strongly.'
        return Metric('fid', 'FID', None, False, 2, convention, features=network, collector=FrechetCollector)
    convention = (
        f'Kernel distance (cubic polynomial, mean over 100 subsets of 1,000 images, or over all of fewer) of {on}; of '
        f'more than {KID_IMAGES:,d} images, a fixed random choice of {KID_IMAGES:,d} is used.'
    )
    return Metric('kid', 'KID', None, False, 5, convention, features=network, collector=KernelCollector)


def _open_patches(settings: Settings) -> PatchBackbone:
    from sdakd_metrics.distribution import open_backbone

    if settings.backbone is None:
        raise UserError(
            '--metrics fd',
            'name the backbone and its weights file with --backbone, for example squeezenet:FILE, or '
            'efficientnet_lite0 alone; or leave fd out of the metrics.',
        )
    return open_backbone(settings.backbone, '--backbone').to(settings.device)


def _of_patches(name: str, network: PatchBackbone, spec: str) -> Metric:
    """FD and KID of patches through a backbone, which may be one and see every image once for both."""
    on = (
        f'patches of {network.patch}x{network.patch} pixels, every {network.stride} pixels, on the pooled '
        f'convolutional features of {spec} ({network.taking})'
    )
    if name == 'fd':
        convention = f'Frechet distance over {on}; not FID.'
        return Metric(name, f'FD-{network.kind}', None, False, 1, convention, features=network,
                      collector=FrechetCollector)  # fmt: skip
    convention = (
        'Kernel distance (cubic polynomial, unbiased, over pairs of patches of different images, at most '
        f'{KID_PATCHES:,d} patches of a set or one of each image) over {on}; not the KID of InceptionV3.'
    )
    return Metric(name, f'KID-{network.kind}', None, False, 4, convention, features=network,
                  collector=PatchKernelCollector)  # fmt: skip


def _distance(spec: str, device: str) -> Metric:
    from sdakd_metrics.distance import open_distance

    network = open_distance(spec, '--distance').to(device)
    convention = (
        f'Mean over {len(network.depths)} depths of the mean absolute difference of features of result and reference, '
        f"in units of the root mean square of the reference's, on whole images mirrored to multiples of 32 pixels; "
        f'{spec} ({network.backbone.taking}); not LPIPS.'
    )
    name = f'dist-{spec.partition(":")[0]}'
    return Metric(name, name, None, False, 4, convention, network)


def _identity(settings: Settings) -> Metric:
    from sdakd_metrics.identity import CONVENTION, Likeness, open_face_model

    network = open_face_model(settings.face_model, settings.device)
    convention = f'Mean cosine of the embeddings of result and reference by {network.name}; {CONVENTION}'
    return Metric('identity', 'Identity', None, True, 4, convention, Likeness(network))


METRICS = ('psnr', 'ssim', 'niqe', 'lpips', 'fid', 'kid', 'fd', 'identity')


def open_metrics(names: Sequence[str], settings: Settings) -> list[Metric]:
    """Opens metrics with the files they need.

    Raises:
        UserError: An unknown metric, or one whose package or weights file is missing; the sentence says which file,
            where to put it, and how to go on without.
    """
    for name in names:
        if name not in METRICS:
            raise UserError('--metrics', f'there is no metric {name!r}; {near(name, METRICS)}.')
    if settings.backbone is not None and not {'fd', 'kid'} & set(names):
        raise UserError('--backbone', 'only the metrics fd and kid use it; add one of them to the metrics.')
    if settings.face_model is not None and 'identity' not in names:
        raise UserError('--face_model', 'only the metric identity uses it; add identity to the metrics.')
    makers = {'niqe': _niqe, 'lpips': _lpips, 'identity': _identity}
    metrics, network = [], None
    for name in dict.fromkeys(names):
        if name in ('psnr', 'ssim'):
            metrics.append(_fidelity(name, settings))
        elif name == 'fd' or name == 'kid' and settings.backbone is not None:
            network = network or _open_patches(settings)
            metrics.append(_of_patches(name, network, settings.backbone))
        elif name in ('fid', 'kid'):
            metrics.append(_of_inception(name, names, settings))
        else:
            metrics.append(makers[name](settings))
    for spec in settings.distances:
        metrics.append(_distance(spec, settings.device))
        if metrics[-1].name in [metric.name for metric in metrics[:-1]]:
            raise UserError('--distance', f'{metrics[-1].name} would stand for two columns; give each KIND once.')
    return metrics
