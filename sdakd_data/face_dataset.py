"""Aligned faces with the degradation that GCFSR is trained on: downscaling by a random factor."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Mapping

import numpy as np
import torch
from basicsr.data.data_util import paths_from_folder
from basicsr.data.transforms import augment
from basicsr.utils import FileClient, imfrombytes, img2tensor
from basicsr.utils.matlab_functions import calculate_weights_indices
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset


@functools.lru_cache(maxsize=32)
def _resampling(length: int, size: int) -> np.ndarray:
    """``(size, length)``: what resizing does to a row of pixels, whose ends are continued by reflection."""
    weights, indices, before, _ = calculate_weights_indices(length, size, size / length, 'cubic', 4, antialiasing=True)
    place = indices.long() - before
    place = torch.where(place < 0, -1 - place, place)
    place = torch.where(place >= length, 2 * length - 1 - place, place)
    return torch.zeros(size, length).scatter_add_(1, place, weights).numpy()  # a tensor would know of inference_mode


@torch.compiler.disable
def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """MATLAB's bicubic ``imresize``, antialiased where it reduces, as two matrix products.

    BasicSR's makes every row and column by itself: for 1024 pixels, that is most of what loading a face costs.

    Args:
        images: float32 ``(..., h, h)``.
        size: The new side in pixels, at least 4, as is ``h``.

    Returns:
        float32 ``(..., size, size)``, not clipped.
    """
    if images.shape[-1] == size:
        return images
    matrix = torch.from_numpy(_resampling(images.shape[-1], size)).to(images.device)
    return matrix @ images @ matrix.T


def rounded(image: torch.Tensor) -> torch.Tensor:
    """The nearest 8-bit levels, in [0, 1]."""
    return (image.clamp(0, 1) * 255).round() / 255


def degrade(image: np.ndarray, factor: int, train: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """MATLAB's bicubic downscaling, and back to the size.

    As in GCFSR's code: the large image is rounded to 8 bits, and in validation, where the small one is a file, that one
    before it.

    Args:
        image: float32 ``(size, size, 3)`` in [0, 1].
        factor: Divides ``size``.
        train: Whether it is made for training: then the small image is neither rounded nor clipped.

    Returns:
        The small image and the same at the old size, float32; those that are rounded are in [0, 1].
    """
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    small = resize(planes, len(image) // factor)
    small = small if train else rounded(small)
    large = rounded(resize(small, len(image)))
    return tuple(np.ascontiguousarray(found.permute(1, 2, 0).numpy()) for found in (small, large))


@DATASET_REGISTRY.register()
class FaceDataset(Dataset):
    """Aligned faces of one size, degraded by bicubic downscaling and enlarged again (GCFSR, section 4).

    Args:
        opt: Options of the data set:

            - ``dataroot_gt``: folder of images, or LMDB data set that ends in ``.lmdb``.
            - ``io_backend``: ``{type: disk}`` or ``{type: lmdb}``.
            - ``out_size``: side of the images in pixels.
            - ``factors``: one is drawn for every image in training, more often the more often it stands there; in
              validation all images have the first.
            - ``use_hflip``: whether to mirror at random in training.

    An item holds ``gt`` and ``lq``, ``(3, out_size, out_size)``, RGB in [0, 1], and ``in_size``, ``(1,)``, the
    factor divided by ``out_size / 16``.

    Raises:
        ValueError: A factor that does not divide the size or leaves less than 4 pixels.
    """

    def __init__(self, opt: Mapping) -> None:
        super().__init__()
        self.opt = opt
        self.size, self.factors = opt['out_size'], opt['factors']
        self.train = opt['phase'] == 'train'
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 32 or self.size & self.size - 1:
            raise ValueError(f'out_size must be a power of two of at least 32, not {self.size!r}')
        if not isinstance(self.factors, list) or not self.factors:
            raise ValueError('factors must be a list such as [4, 8]')
        for factor in self.factors:
            if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
                raise ValueError(f'factors holds {factor!r}, which is no whole number of at least 2')
            if self.size % factor or self.size // factor < 4:
                raise ValueError(
                    f'the factor {factor} does not fit images of {self.size} pixels: it must divide the size and leave '
                    '4 pixels'
                )
        root, backend = opt['dataroot_gt'], opt['io_backend']
        if not isinstance(root, str):
            raise ValueError(f'dataroot_gt must name a folder, not {root!r}')
        if not isinstance(backend, Mapping) or backend.get('type') not in ('disk', 'lmdb'):
            raise ValueError(f'io_backend must be {{type: disk}} or {{type: lmdb}}, not {backend!r}')
        self.io_backend_opt = dict(backend)
        if self.io_backend_opt['type'] == 'lmdb':
            if not root.rstrip('/').endswith('.lmdb'):
                raise ValueError(f'dataroot_gt must end in .lmdb for this io_backend, not {root}')
            self.io_backend_opt |= {'db_paths': [root], 'client_keys': ['gt']}
            with open(os.path.join(root, 'meta_info.txt'), encoding='utf-8') as file:
                self.paths = [line.split('.')[0] for line in file if line.strip()]
        else:
            self.paths = sorted(paths_from_folder(root))
        self.client: FileClient | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | str]:
        if self.client is None:  # in the process that reads
            backend = dict(self.io_backend_opt)
            self.client = FileClient(backend.pop('type'), **backend)
        path = self.paths[index]
        image = imfrombytes(self.client.get(path, 'gt'), float32=True)
        if image.shape[:2] != (self.size, self.size):
            raise ValueError(f'{path} is {image.shape[1]}x{image.shape[0]}, not {self.size}x{self.size} pixels')
        factor = self.factors[0]
        if self.train:
            image = augment(image, hflip=self.opt.get('use_hflip', True), rotation=False)
            factor = random.choice(self.factors)
        _, enlarged = degrade(image, factor, self.train)
        gt, lq = img2tensor([np.ascontiguousarray(image), enlarged], bgr2rgb=True, float32=True)
        in_size = torch.tensor([16 * factor / self.size])
        return {'gt': gt, 'lq': lq, 'in_size': in_size, 'gt_path': path, 'lq_path': path}
