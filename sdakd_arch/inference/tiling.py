"""Inference on images larger than the memory allows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def run_tiled(network: nn.Module, image: torch.Tensor, scale: int, tile: int = 0, tile_pad: int = 10) -> torch.Tensor:
    """Runs a super-resolution network over an image, in overlapping tiles where asked.

    Args:
        network: Maps ``(N, 3, h, w)`` to ``(N, C, h * scale, w * scale)``; it is called once for every tile.
        image: ``(N, 3, h, w)``; padded by reflection to the multiple of 4 that pixel-unshuffling needs, and cut back.
        scale: The network's factor.
        tile: Side of a tile in input pixels; 0 runs the image whole.
        tile_pad: Context around every tile, in input pixels. With at least the network's receptive field the result
            equals the untiled one.

    Returns:
        ``(N, C, h * scale, w * scale)``, on the network's device and of its type.
    """
    height, width = image.shape[-2:]
    if scale < 4:
        pad = (0, -width % 4, 0, -height % 4)
        image = F.pad(image, pad, mode='reflect' if min(height, width) > 3 else 'replicate')
    if tile <= 0:
        return network(image)[..., : height * scale, : width * scale]
    padded_h, padded_w = image.shape[-2:]
    if scale < 4:  # tiles must begin where pixel-unshuffling's blocks begin
        tile, tile_pad = tile + -tile % 4, tile_pad + -tile_pad % 4
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
