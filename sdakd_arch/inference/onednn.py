"""Networks built anew from oneDNN's convolutions, as fast as a processor allows.

Narrow networks waste a wide processor. A convolution to 4 channels fills 4 of the 16 lanes of an AVX-512 register, and
in dense blocks the activation, the residual and the concatenation each move as much memory as the convolution. Three
things help, and none changes what is computed but for the order of additions:

* Pixels beside channels. In channels-last memory, s neighbouring pixels of c channels are one pixel of s * c channels.
  A 3x3 convolution to c channels is therefore one to s * c channels with a 3 x (s + 2) kernel and stride s in x, whose
  output is the same memory read otherwise. It multiplies (s + 2) / 3 times as much, zeros included, and fills s times
  as many lanes.
* oneDNN's convolutions with reordered weights that apply the activation before they write: the operators that
  torch.compile uses on processors, without its need for a compiler.
* RRDBNet's residuals, `0.2 * y + x`, are part of a block's last convolution: weights times 0.2, plus the identity in
  the kernel's centre.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

RESIDUAL = 0.2  # BasicSR's factor of RRDBNet's residuals
LANES = {'AVX512': 16, 'AVX2': 8}  # float32 values in a register


class Convolution:
    """A 3x3 convolution with padding 1 and, after it, leaky ReLU, by oneDNN.

    Args:
        weight: ``(out, in, 3, 3)``.
        bias: ``(out,)``.
        slope: Of the leaky ReLU for negative values; None for no activation.
        dtype: float32 or bfloat16, of input, weights and output.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, slope: float | None, dtype: torch.dtype) -> None:
        self.weight, self.bias, self.dtype = weight.detach().float(), bias.detach().float(), dtype
        self.activation = ('none', [], '') if slope is None else ('leaky_relu', [slope], '')
        lanes = LANES.get(torch.backends.cpu.get_cpu_capability().split(' ')[0], 1)
        # bfloat16 is bound by other things than lanes: measured, no gain
        self.group = max(1, min(4, lanes // len(weight))) if dtype == torch.float32 else 1
        self.packed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def pack(self, group: int, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and bias for ``group`` pixels at once, in the order that oneDNN likes for inputs of this shape."""
        channels, inputs = self.weight.shape[:2]
        weight = self.weight.new_zeros(group, channels, inputs, 3, group + 2)
        for pixel in range(group):
            weight[pixel, ..., pixel : pixel + 3] = self.weight
        weight = weight.flatten(0, 1).to(self.dtype).contiguous(memory_format=torch.channels_last)
        geometry = [1, 1], [1, group], [1, 1], 1  # padding, stride, dilation, groups
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *geometry, list(shape))
        return packed, self.bias.repeat(group).to(self.dtype)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, in, h, w)`` to ``(N, out, h, w)``, channels last."""
        count, _, height, width = image.shape
        group = self.group
        while width % group:
            group //= 2
        if group not in self.packed:
            self.packed[group] = self.pack(group, image.shape)
        operator = torch.ops.mkldnn._convolution_pointwise.default
        output = operator(image, *self.packed[group], [1, 1], [1, group], [1, 1], 1, *self.activation)
        if group == 1:
            return output
        size = (count, len(self.weight), height, width)
        if output.is_contiguous(memory_format=torch.channels_last):
            channels = size[1]
            return output.as_strided(size, (height * width * channels, 1, width * channels, channels))
        return output.permute(0, 2, 3, 1).reshape(count, height, width, -1).permute(0, 3, 1, 2)


def _convolution(layer: nn.Conv2d, slope: float | None, dtype: torch.dtype) -> Convolution:
    return Convolution(layer.weight, layer.bias, slope, dtype)


class DenseBlock:
    """A residual dense block of RRDBNet.

    In float32 it returns ``scale * y + residual * x``; in bfloat16 ``scale * y``, for the sum is kept in float32.
    """

    def __init__(self, block: nn.Module, scale: float, residual: float, dtype: torch.dtype) -> None:
        slope = block.lrelu.negative_slope
        self.grow = [_convolution(getattr(block, f'conv{number}'), slope, dtype) for number in (1, 2, 3, 4)]
        weight, bias = block.conv5.weight.detach() * scale, block.conv5.bias.detach() * scale
        if dtype == torch.float32:
            channel = torch.arange(len(weight))
            weight[channel, channel, 1, 1] += residual
        self.last = Convolution(weight, bias, None, dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in self.grow:
            x = torch.cat((x, convolution(x)), 1)
        return self.last(x)


class FastRRDBNet(nn.Module):
    """BasicSR's RRDBNet. In bfloat16, the trunk's sums and everything behind the trunk stay in float32.

    Args:
        network: One with any number of enlargements ``conv_up<number>``.
        dtype: float32 or bfloat16.
        unshuffle: Side of the blocks of input pixels that become channels.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, unshuffle: int = 1) -> None:
        super().__init__()
        self.dtype, self.unshuffle = dtype, unshuffle
        inner, outer = (RESIDUAL, 1.0), (RESIDUAL**2, RESIDUAL)
        self.blocks = [
            [DenseBlock(getattr(block, f'rdb{number}'), *factors, dtype) for number, factors in parts]
            for block in network.body
            for parts in [((1, inner), (2, inner), (3, outer))]
        ]
        slope = network.lrelu.negative_slope
        self.first = _convolution(network.conv_first, None, torch.float32)
        self.trunk = _convolution(network.conv_body, None, dtype)
        ups = [layer for name, layer in network.named_children() if name.startswith('conv_up')]
        self.up = [_convolution(layer, slope, torch.float32) for layer in ups]
        self.detail = _convolution(network.conv_hr, slope, torch.float32)
        self.last = _convolution(network.conv_last, None, torch.float32)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(image.float(), self.unshuffle) if self.unshuffle > 1 else image.float()
        first = x = self.first(x.contiguous(memory_format=torch.channels_last))
        for one, two, three in self.blocks:
            if self.dtype == torch.float32:
                x = three(two(one(x))).add_(x)
            else:
                y = x + one(x.to(self.dtype))
                y += two(y.to(self.dtype))
                x = torch.add(x, y, alpha=RESIDUAL).add_(three(y.to(self.dtype)))
        x = first + self.trunk(x.to(self.dtype))
        for convolution in self.up:
            x = convolution(F.interpolate(x, scale_factor=2, mode='nearest'))
        return self.last(self.detail(x)).to(image.dtype)


class FastSRVGG(nn.Module):
    """BasicSR's SRVGGNetCompact; in bfloat16, the last convolution and the sum with the input stay in float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.upscale = dtype, network.upscale
        *body, last = network.body
        self.layers = []
        for layer, activation in zip(body[::2], body[1::2], strict=True):
            slope = {nn.ReLU: 0.0, nn.LeakyReLU: getattr(activation, 'negative_slope', 0.0)}.get(type(activation))
            slopes = activation.weight.detach().to(dtype) if slope is None else None  # oneDNN knows one slope for all
            self.layers.append((_convolution(layer, slope, dtype), slopes))
        self.last = _convolution(last, None, torch.float32)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.to(self.dtype).contiguous(memory_format=torch.channels_last)
        for convolution, slopes in self.layers:
            x = convolution(x)
            x = x if slopes is None else F.prelu(x, slopes)
        output = F.pixel_shuffle(self.last(x.float()), self.upscale)
        return output.add_(F.interpolate(image.float(), scale_factor=self.upscale, mode='nearest')).to(image.dtype)


def computes_bf16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor: with AVX-512, AVX-NE-CONVERT or Arm's instructions for it.

    Elsewhere, torch computes it without oneDNN, which takes many times as long as float32.
    """
    supported = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', None)
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())
