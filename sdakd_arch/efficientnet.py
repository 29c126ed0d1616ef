"""EfficientNet-lite0, a classifier of photographs, without its last layer: for measuring only, never for training.

EfficientNet (Tan and Le, arXiv 1905.11946, table 1) at its smallest, without squeeze-and-excitation and with ReLU6, as
TensorFlow publishes its lite variants. It takes RGB in 0..255 as (value - 127) / 128, with TensorFlow's padding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

# expansion, kernel, stride of the first block, channels, blocks
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, HEAD = 32, 1280  # channels
INPUT = ((127,) * 3, (128,) * 3)  # shift and divisor of RGB in 0..255


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding SAME: ``ceil(size / stride)`` outputs, the odd zero right and below."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(image.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            zeros = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += (zeros // 2, zeros - zeros // 2)
        return super().forward(F.pad(image, padding))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted bottleneck: expanded by 1x1, filtered channel by channel, projected by 1x1 without an activation."""

    def __init__(self, before: int, after: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = before * expansion
        self.adds = stride == 1 and before == after
        if expansion > 1:
            self.expand_conv, self.bn0 = nn.Conv2d(before, wide, 1, bias=False), _norm(wide)
        self.depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn1 = _norm(wide)
        self.project_conv, self.bn2 = nn.Conv2d(wide, after, 1, bias=False), _norm(after)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = F.relu6(self.bn0(self.expand_conv(image))) if hasattr(self, 'bn0') else image
        maps = F.relu6(self.bn1(self.depthwise_conv(maps)))
        maps = self.bn2(self.project_conv(maps))
        return maps + image if self.adds else maps


def efficientnet_lite0() -> nn.Sequential:
    """Stem, 16 blocks and head, 18 modules; maps normalised ``(N, 3, H, W)`` to ``(N, 1280, H / 32, W / 32)``."""
    blocks, channels = [], STEM
    for expansion, kernel, first, after, repeats in STAGES:
        for number in range(repeats):
            blocks.append(Block(channels, after, expansion, kernel, 1 if number else first))
            channels = after
    stem = nn.Sequential(SameConv2d(3, STEM, 3, 2, bias=False), _norm(STEM), nn.ReLU6())
    head = nn.Sequential(nn.Conv2d(channels, HEAD, 1, bias=False), _norm(HEAD), nn.ReLU6())
    return nn.Sequential(stem, *blocks, head)


def own_keys(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the keys of published files (EfficientNet-PyTorch's, ``_blocks.3._bn0.weight``); drops the last layer."""
    names = {'_conv_stem': '0.0', '_bn0': '0.1', '_conv_head': '17.0', '_bn1': '17.1'}
    renamed = {}
    for key, tensor in state.items():
        if found := re.fullmatch(r'_blocks\.(\d+)\._(.+)', key):
            renamed[f'{int(found[1]) + 1}.{found[2]}'] = tensor
        elif not key.startswith('_fc.'):
            module, _, kind = key.partition('.')
            renamed[f'{names.get(module, module)}.{kind}'] = tensor
    return renamed
