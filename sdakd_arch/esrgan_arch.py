"""RRDBNet of any power of two, as ESRGAN's models come: BasicSR's has two enlargements, for scale 4, 2 and 1 alone."""

from __future__ import annotations

import math

import torch
from basicsr.archs.rrdbnet_arch import RRDB, ResidualDenseBlock
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F


class PlusBlock(ResidualDenseBlock):
    """A residual dense block of ESRGAN+ (Rakotonirina and Rasoanaivo, arXiv 2001.08073): two residuals more.

    The second growth gets the input through a 1x1 convolution, the fourth one gets the second.
    """

    def __init__(self, num_feat: int = 64, num_grow_ch: int = 32) -> None:
        super().__init__(num_feat, num_grow_ch)
        self.conv1x1 = nn.Conv2d(num_feat, num_grow_ch, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grown = [x]
        for number in (1, 2, 3, 4):
            growth = self.lrelu(getattr(self, f'conv{number}')(torch.cat(grown, 1)))
            if number == 2:
                growth = growth + self.conv1x1(x)
            elif number == 4:
                growth = growth + grown[2]
            grown.append(growth)
        return self.conv5(torch.cat(grown, 1)) * 0.2 + x


class PlusRRDB(RRDB):
    """Three of :class:`PlusBlock` with a residual around them."""

    def __init__(self, num_feat: int, num_grow_ch: int = 32) -> None:
        nn.Module.__init__(self)
        self.rdb1, self.rdb2, self.rdb3 = (PlusBlock(num_feat, num_grow_ch) for _ in range(3))


@ARCH_REGISTRY.register()
class ESRGAN(nn.Module):
    """RRDBNet with as many enlargements as its scale wants, and any unshuffling before them.

    Where BasicSR's RRDBNet can be the same network, it is: names of parameters are its, ``conv_up<number>`` for each
    enlargement.

    Args:
        num_in_ch: Channels of the input.
        num_out_ch: Channels of the output.
        upscale: Factor between input and output, a power of two.
        unshuffle: Side of the blocks of input pixels that become channels, a power of two; 1 for none.
        num_feat: Channels of the trunk.
        num_block: Residual in residual dense blocks.
        num_grow_ch: Growth channels of the dense blocks.
        plus: ESRGAN+'s dense blocks.

    Raises:
        ValueError: ``upscale`` or ``unshuffle`` is no power of two.
    """

    def __init__(
        self,
        num_in_ch: int,
        num_out_ch: int,
        upscale: int = 4,
        unshuffle: int = 1,
        num_feat: int = 64,
        num_block: int = 23,
        num_grow_ch: int = 32,
        plus: bool = False,
    ) -> None:
        super().__init__()
        ups = int(math.log2(upscale * unshuffle))
        if 2**ups != upscale * unshuffle or unshuffle & (unshuffle - 1):
            raise ValueError(f'upscale {upscale} and unshuffle {unshuffle} must be powers of two')
        self.upscale, self.unshuffle = upscale, unshuffle
        block = PlusRRDB if plus else RRDB
        self.conv_first = nn.Conv2d(num_in_ch * unshuffle**2, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*(block(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.ups = [f'conv_up{number + 1}' for number in range(ups)]
        for name in self.ups:
            self.add_module(name, nn.Conv2d(num_feat, num_feat, 3, 1, 1))
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, num_in_ch, h, w)``, sides multiples of ``unshuffle``, to ``(N, num_out_ch, h * upscale, ...)``."""
        x = F.pixel_unshuffle(x, self.unshuffle) if self.unshuffle > 1 else x
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for name in self.ups:
            x = self.lrelu(getattr(self, name)(F.interpolate(x, scale_factor=2, mode='nearest')))
        return self.conv_last(self.lrelu(self.conv_hr(x)))
