"""Fills the caches of teachers' answers before a training's first step."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from basicsr.utils import get_root_logger
from torch import nn

from sdakd.compat import UserError
from sdakd.progress import Progress
from sdakd_arch.families import family_of
from sdakd_arch.inference.tiling import mirror_to_multiple
from sdakd_arch.taps import FeatureTaps
from sdakd_data.cached_dataset import CachedPairedDataset
from sdakd_data.teacher_cache import TeacherCache, key_of

LARGEST = 512 * 512  # input pixels that are run in one piece: RRDBNet's last layers then hold 4 GiB
TILE, CONTEXT = 384, 64  # input pixels; with its context on both sides a tile is as large as the largest whole image


@torch.no_grad()
def answer(network: nn.Module, taps: FeatureTaps, image: torch.Tensor) -> dict[str, np.ndarray]:
    """A generator's image and feature maps for a whole input, in float32, in tiles if it is large.

    Args:
        network: The generator.
        taps: Of this network.
        image: ``(1, 3, h, w)`` in [0, 1], on the network's device; mirrored to the multiples that the network takes,
            and the result is cut back.

    Returns:
        The image under '' and the maps by tap, float16 ``(H, W, C)``.
    """
    height, width = image.shape[-2:]
    multiple = family_of(network).multiple(network)
    image = mirror_to_multiple(image, multiple)
    bottom, right = image.shape[-2:]
    side, context = (size + -size % multiple for size in (TILE, CONTEXT))
    side = side if height * width > LARGEST else max(bottom, right)
    found: dict[str, np.ndarray] = {}
    for top in range(0, bottom, side):
        for left in range(0, right, side):
            y, x = max(top - context, 0), max(left - context, 0)
            part = image[..., y : top + side + context, x : left + side + context]
            with taps:
                output = network(part)
            for name, values in {'': output, **taps.pop()}.items():
                k = values.shape[-1] // part.shape[-1]
                whole = found.setdefault(name, np.empty((height * k, width * k, values.shape[1]), np.float16))
                place = whole[top * k : (top + side) * k, left * k : (left + side) * k]
                inner = values[0, :, (top - y) * k :, (left - x) * k :][:, : place.shape[0], : place.shape[1]]
                place[:] = inner.permute(1, 2, 0).half().cpu().numpy()
    return found


def fill(
    options: Mapping, teachers: Mapping[str, nn.Module], fingerprints: Mapping[str, str], main: bool = True
) -> None:
    """Computes what the caches of a run lack; called once, when its teachers are there and no step has been made.

    Every process goes through the images in an order of its own and leaves out what another one has made since, be it
    of this run or of another run. They share the work and end at nearly the same time. What is there is kept: filling
    may be interrupted at any time.

    Raises:
        UserError: The folder cannot be written, or a value is beyond float16.
    """
    if not options.get('caches'):
        return
    pairs = CachedPairedDataset(options)
    numbers = random.SystemRandom().sample(range(len(pairs)), len(pairs))  # seeded generators are left alone
    keys = [key for _, _, key in pairs.inputs()]
    for name, cache in pairs.caches.items():
        network = teachers[name]
        cache.claim(fingerprints[name], options['scale'])
        wanted = [number for number in numbers if cache.missing(keys[number])]
        get_root_logger().info(
            f'{cache.where}: {len(pairs) - len(wanted):,d} of {len(pairs):,d} answers are in {cache.folder}'
            f'{", the others are computed now" if wanted else ""}.'
        )
        taps = FeatureTaps(network, cache.taps)
        # cuDNN's search for the fastest algorithm would begin anew with every size of image
        with torch.backends.cudnn.flags(benchmark=False):
            for number in Progress(f"{name}'s answers", len(wanted), 'images', shown=main).over(wanted):
                _fill_one(cache, pairs.read(number, 'lq'), network, taps)
        taps.close()


def _fill_one(cache: TeacherCache, image: np.ndarray, network: nn.Module, taps: FeatureTaps) -> None:
    key = key_of(image)
    missing = cache.missing(key)  # another process may have made it since
    if not missing:
        return
    rgb = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float() / 255
    found = answer(network, taps, rgb[None].to(next(network.parameters()).device))
    for tap in missing:
        if not np.isfinite(found[tap]).all():
            raise UserError(
                f'{cache.where}: the teacher has values beyond float16 ({tap or "its image"}); leave cache out.'
            )
        cache.write(key, tap, found[tap])
