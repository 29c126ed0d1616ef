"""Inference on images larger than the memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from sdakd_arch.families import family_of


def mirror_to_multiple(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Images ``(N, C, h, w)``, extended at the right and at the bottom to multiples of a number of pixels.

    By reflection, and where they are too small for it by their last pixels.
    """
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return image
    return F.pad(image, (0, right, 0, bottom), mode='reflect' if bottom < height and right < width else 'replicate')


def run_tiled(
    network: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    scale: int,
    tile: int = 0,
    tile_pad: int = 10,
    multiple: int | None = None,
    grid: int = 1,
) -> torch.Tensor:
    """Runs a super-resolution network over an image, in overlapping tiles where asked.

    Args:
        network: Maps ``(N, 3, h, w)`` to ``(N, C, h * scale, w * scale)``; it is called once for every tile.
        image: ``(N, 3, h, w)``; mirrored to the multiples that the network takes, and cut back.
        scale: The network's factor.
        tile: Side of a tile in input pixels; 0 runs the image whole.
        tile_pad: Context around every tile, in input pixels. With at least the network's receptive field the result
            equals the untiled one.
        multiple: What sides must be multiples of, in input pixels; None asks the family of the network, a module then.
        grid: What tiles must begin at multiples of beside that, where the network fills up its blocks of pixels itself.

    Returns:
        ``(N, C, h * scale, w * scale)``, on the network's device and of its type.
    """
    height, width = image.shape[-2:]
    multiple = family_of(network).multiple(network) if multiple is None else multiple
    image = mirror_to_multiple(image, multiple)
    if tile <= 0:
        return network(image)[..., : height * scale, : width * scale]
    padded_h, padded_w = image.shape[-2:]
    grid = math.lcm(grid, multiple)  # tiles begin where blocks of pixels begin
    tile, tile_pad = tile + -tile % grid, tile_pad + -tile_pad % grid
    result = None
    for top in range(0, padded_h, tile):
        for left in range(0, padded_w, tile):
            bottom, right = min(top + tile, padded_h), min(left + tile, padded_w)
            y, x = max(top - tile_pad, 0), max(left - tile_pad, 0)
            output = network(image[..., y : min(bottom + tile_pad, padded_h), x : min(right + tile_pad, padded_w)])
            if result is None:
                result = output.new_empty((*output.shape[:2], padded_h * scale, padded_w * scale))
            result[..., top * scale : bottom * scale, left * scale : right * scale] = output[
                ..., (top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale
            ]
    return result[..., : height * scale, : width * scale]
