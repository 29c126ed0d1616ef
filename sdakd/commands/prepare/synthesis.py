"""LQ/GT pairs for `sdakd prepare pairs`: MATLAB's bicubic downscaling, or Real-ESRGAN's second-order degradation.

Both are BasicSR's own code, run on the CPU on whole images. BasicSR must be importable before this module is imported.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.data.transforms import mod_crop
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.utils.matlab_functions import imresize

from sdakd.compat import UserError
from sdakd.files.images import UnusableError, encode_png, is_made, read_image, stem, write_again, write_png
from sdakd_data.degradation import BatchJPEG, Sharpener
from sdakd_models.reader import read_merged

KERNELS = ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']

# Real-ESRGAN (arXiv 2107.10833), section 4.1 and its published training options for x4plus
PUBLISHED: dict[str, Any] = {
    'kernel_list': KERNELS,
    'kernel_prob': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob': 0.1,
    'blur_sigma': [0.2, 3],
    'betag_range': [0.5, 4],
    'betap_range': [1, 2],
    'resize_prob': [0.2, 0.7, 0.1],
    'resize_range': [0.15, 1.5],
    'gaussian_noise_prob': 0.5,
    'noise_range': [1, 30],
    'poisson_scale_range': [0.05, 3],
    'gray_noise_prob': 0.4,
    'jpeg_range': [30, 95],
    'second_blur_prob': 0.8,
    'kernel_list2': KERNELS,
    'kernel_prob2': [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    'sinc_prob2': 0.1,
    'blur_sigma2': [0.2, 1.5],
    'betag_range2': [0.5, 4],
    'betap_range2': [1, 2],
    'resize_prob2': [0.3, 0.4, 0.3],
    'resize_range2': [0.3, 1.2],
    'gaussian_noise_prob2': 0.5,
    'noise_range2': [1, 25],
    'poisson_scale_range2': [0.05, 2.5],
    'gray_noise_prob2': 0.4,
    'jpeg_range2': [30, 95],
    'final_sinc_prob': 0.8,
}
PADDED = 21  # side of every kernel, after padding


def _fault(key: str, value: Any) -> str | None:
    """What must be written for an option, or None if the value will do."""
    default = PUBLISHED[key]
    if isinstance(default, float):
        good = _are_numbers([value]) and 0 <= value <= 1
        return None if good else 'a probability between 0 and 1'
    if default is KERNELS:
        good = isinstance(value, list) and value and all(kernel in KERNELS for kernel in value)
        return None if good else f'a list of kernels among {", ".join(KERNELS)}'
    if 'prob' in key:
        good = isinstance(value, list) and _are_numbers(value) and min(value, default=-1) >= 0 and sum(value) > 0
        return None if good else f'a list of {len(default)} shares, as {default}'
    # resizing by nothing and JPEG quality 0 divide by zero; BasicSR asserts that blur widths differ
    least, most = {'resiz': (1e-3, 100), 'jpeg_': (1, 100)}.get(key[:5], (0, math.inf))
    good = isinstance(value, list) and len(value) == 2 and _are_numbers(value) and least <= value[0] <= value[1] <= most
    good = good and (value[0] < value[1] or not key.startswith('blur'))
    return None if good else f'a range [low, high], as {default}'


def _are_numbers(values: list) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _read_options(path: str) -> dict[str, Any]:
    """The top level of an option file and the block datasets: train:, in one mapping."""
    options = read_merged(path)
    datasets = options.get('datasets')
    train = datasets.get('train') if isinstance(datasets, dict) else None
    return {**(train if isinstance(train, dict) else {}), **options}


def read_settings(
    degradation: str, scale: int | None, opt: str | None, seed: int, per_image: int = 1, sharpen: bool = False
) -> dict[str, Any]:
    """All that decides what the pairs of an image look like; it can be written as JSON.

    Args:
        degradation: ``bicubic`` or ``realesrgan``.
        scale: GT size over LQ size; None for the option file's, or 4.
        opt: A training option file whose degradation replaces the published one, key by key.
        seed: Of the degradation.
        per_image: How many degradations every image gets.
        sharpen: Whether the ground truth is written sharpened by USM.

    Raises:
        UserError: The option file cannot be read, has no degradation, or has a value of the wrong kind.
    """
    if degradation == 'bicubic':
        if opt is not None:
            raise UserError('-opt', "it replaces Real-ESRGAN's degradation; leave it out with --degradation bicubic.")
        if scale == 1:
            raise UserError('--scale', 'bicubic pairs of scale 1 would be equal images; give 2 or more.')
        if per_image > 1:
            raise UserError(
                '--per_image',
                'bicubic downscaling draws nothing, all pairs of an image would be equal; '
                'leave it out, or take --degradation realesrgan.',
            )
        if sharpen:
            raise UserError(
                '--sharpen', "it belongs to Real-ESRGAN's targets; leave it out with --degradation bicubic."
            )
        return {'degradation': degradation, 'scale': scale or 4}
    given: dict[str, Any] = {}
    if opt is not None:
        options = _read_options(opt)
        given = {key: options[key] for key in PUBLISHED if key in options}
        if not given:
            raise UserError('-opt', f'{opt} holds no Real-ESRGAN degradation (resize_prob, kernel_list, ...).')
        for key, value in given.items():
            if fault := _fault(key, value):
                raise UserError('-opt', f'{key} in {opt} must be {fault}, not {value!r}.')
        in_file = scale if options.get('scale') is None else options['scale']
        if not isinstance(in_file, int | None) or (in_file is not None and in_file < 1):
            raise UserError('-opt', f'scale in {opt} must be a whole number of at least 1, not {in_file!r}.')
        if scale is not None and in_file != scale:
            raise UserError('--scale', f'{opt} says {in_file} and the flag {scale}; leave the flag out.')
        scale = in_file
    settings = {**PUBLISHED, **given}
    for shares, count in (
        *((key, 3) for key in ('resize_prob', 'resize_prob2')),
        *((f'kernel_prob{order}', len(settings[f'kernel_list{order}'])) for order in ('', '2')),
    ):
        if len(settings[shares]) != count:
            raise UserError('-opt', f'{shares} in {opt} must have {count} shares, not {settings[shares]!r}.')
    several = {'per_image': per_image} if per_image > 1 else {}
    several |= {'sharpen': True} if sharpen else {}
    return {'degradation': degradation, 'scale': scale or 4, 'seed': seed, **several, **settings}


class _Blank:
    """Stands where the dataset's file client would: a black image that needs neither padding nor cropping."""

    png = encode_png(np.zeros((400, 400, 3), np.uint8), 1)

    def get(self, path: str, client_key: str) -> bytes:
        return self.png


class Degrader(RealESRGANModel):
    """Real-ESRGAN's degradation of whole images on the CPU: BasicSR's training step, up to where it crops.

    Args:
        settings: From :func:`read_settings`.
    """

    def __init__(self, settings: Mapping[str, Any]):  # not the parent's: it builds networks and wants CUDA
        self.opt = {key: value for key, value in settings.items() if key != 'gt_size'}
        self.is_train = True
        self.device = torch.device('cpu')
        self.usm_sharpener = Sharpener()
        self.jpeger = BatchJPEG(differentiable=False)
        # only its kernels are wanted: it cuts images to 400 pixels
        unread = {'io_backend': {'type': 'disk'}, 'dataroot_gt': '', 'meta_info': os.devnull}
        sizes = {'blur_kernel_size': PADDED, 'blur_kernel_size2': PADDED}
        self.kernels = RealESRGANDataset({**settings, **unread, **sizes, 'use_hflip': False, 'use_rot': False})
        self.kernels.paths, self.kernels.file_client = [''], _Blank()

    def smallest(self) -> int:
        """Side in pixels below which an image cannot be degraded: reflecting padding needs more pixels than it adds."""
        reach = PADDED // 2 + 1
        after_sharpening = self.usm_sharpener.radius // 2 + 1
        after_first_resize = reach / min(1, *self.opt['resize_range'])
        after_second_resize = self.opt['scale'] / min(1, *self.opt['resize_range2'])
        return math.ceil(max(after_sharpening, after_first_resize, after_second_resize, reach * self.opt['scale']))

    def sharpened(self, image: np.ndarray) -> np.ndarray:
        """The target of Real-ESRGAN's pixel and perceptual losses; ``image`` and the result as in :meth:`degrade`."""
        rgb = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1), np.float32) / 255)
        sharp = (self.usm_sharpener(rgb[None])[0] * 255).round().byte().numpy()
        return np.ascontiguousarray(sharp.transpose(1, 2, 0)[..., ::-1])

    def degrade(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Makes the LQ image. Seeds the process's global generators, which BasicSR draws from.

        Args:
            image: uint8 array (H, W, 3), BGR; both sides multiples of the scale and at least :meth:`smallest`.
            seed: 0 to 2**32 - 1.

        Returns:
            uint8 array (H / scale, W / scale, 3), BGR.
        """
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        sample = self.kernels[0]
        data = {key: sample[key][None] for key in ('kernel1', 'kernel2', 'sinc_kernel')}
        rgb = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1), np.float32) / 255
        data['gt'] = torch.from_numpy(rgb)[None]
        self.lq = None
        try:
            self.feed_data(data)
        except KeyError as error:
            # gt_size is read only when the whole LQ image is there, to crop it; cropping and pooling are for batches
            if error.args != ('gt_size',) or self.lq is None:
                raise
        lq = (self.lq[0] * 255).round().byte().numpy()
        return np.ascontiguousarray(lq.transpose(1, 2, 0)[..., ::-1])


@functools.lru_cache(maxsize=1)
def _degrader(settings: str) -> Degrader:
    return Degrader(json.loads(settings))


def downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's antialiased bicubic ``imresize`` by a whole factor.

    Args:
        image: uint8 array (H, W, 3), both sides multiples of ``scale``.

    Returns:
        uint8 array (H / scale, W / scale, 3).
    """
    small = imresize(image.astype(np.float32) / 255, 1 / scale)
    return (small * 255).round().clip(0, 255).astype(np.uint8)


def make_pair(name: str, source: str, output: str, settings: str) -> bool:
    """Makes the pair of an image, or its pairs with ``per_image`` degradations, unless they are there.

    The ground truth of several is one file under several names, where the disk has hard links.

    Args:
        name: The image in ``source``.
        settings: Of :func:`read_settings`, as JSON.

    Returns:
        Whether anything was made.

    Raises:
        UnusableError: The image cannot be read or is too small.
    """
    path, chosen = os.path.join(source, name), json.loads(settings)
    count = chosen.get('per_image', 1)
    names = [stem(name)] if count == 1 else [f'{stem(name)}_{number}' for number in range(1, count + 1)]
    places = {called: [os.path.join(output, part, f'{called}.png') for part in ('gt', 'lq')] for called in names}
    wanted = [called for called in names if not all(is_made(place, path) for place in places[called])]
    if not wanted:
        return False
    scale, bicubic = chosen['scale'], chosen['degradation'] == 'bicubic'
    gt = mod_crop(read_image(path), scale)
    # below two pixels of LQ the reflected border of the bicubic kernel would be wider than the image
    smallest = 4 * scale if bicubic else _degrader(settings).smallest()
    if min(gt.shape[:2]) < smallest:
        raise UnusableError('too small', f'is smaller ({gt.shape[1]}x{gt.shape[0]}) than {smallest} pixels')
    first = places[names[0]][0]
    for called in wanted:
        gt_path, lq_path = places[called]
        if bicubic:
            lq = downscale(gt, scale)
        else:
            digest = hashlib.sha256(f'{chosen["seed"]}/{called}'.encode()).digest()
            lq = _degrader(settings).degrade(gt, int.from_bytes(digest[:4], 'big'))
        write_png(lq_path, lq)
        if gt_path == first:
            write_png(gt_path, _degrader(settings).sharpened(gt) if chosen.get('sharpen') else gt)
        else:  # where the first one was not good either, it was made before
            write_again(gt_path, first)
    return True
