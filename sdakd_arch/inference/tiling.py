"""Inference on images larger than the memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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
    if tile <= 0:
        return network(mirror_to_multiple(image, multiple))[..., : height * scale, : width * scale]
    result, at = None, 0
    for rows in tiled_rows(network, image, scale, tile, tile_pad, multiple, grid=grid):
        if result is None:
            result = rows.new_empty((*rows.shape[:2], height * scale, width * scale))
        result[..., at : at + rows.shape[2], :] = rows
        at += rows.shape[2]
    return result


def tiled_rows(
    network: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    scale: int,
    tile: int,
    tile_pad: int,
    multiple: int,
    start: int = 0,
    grid: int = 1,
) -> Iterator[torch.Tensor]:
    """The result of :func:`run_tiled` from the top to the bottom, by rows of tiles; see there for the arguments.

    Args:
        start: The row of the image to begin with, a multiple of ``multiple`` and ``grid``.

    Yields:
        ``(N, C, rows * scale, w * scale)``.
    """
    height, width = image.shape[-2:]
    image = mirror_to_multiple(image, multiple)
    padded_h, padded_w = image.shape[-2:]
    grid = math.lcm(grid, multiple)  # tiles begin where blocks of pixels begin
    tile, tile_pad = tile + -tile % grid, tile_pad + -tile_pad % grid
    for top in range(start, padded_h, tile):
        result = None
        bottom, y = min(top + tile, padded_h), max(top - tile_pad, 0)
        for left in range(0, padded_w, tile):
            right, x = min(left + tile, padded_w), max(left - tile_pad, 0)
            output = network(image[..., y : min(bottom + tile_pad, padded_h), x : min(right + tile_pad, padded_w)])
            if result is None:
                result = output.new_empty((*output.shape[:2], (bottom - top) * scale, padded_w * scale))
            result[..., left * scale : right * scale] = output[
                ..., (top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale
            ]
        yield result[..., : (height - top) * scale, : width * scale]
