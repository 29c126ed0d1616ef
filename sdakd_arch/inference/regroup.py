"""RRDBNet written otherwise, for runtimes that have no use for a few channels.

ONNX Runtime and OpenVINO compute blocks of 16 channels at once, and rearrange memory around a concatenation of anything
else. A student's convolutions to 4 or 8 channels leave most of a block empty. Three other ways to write the same dense
block fill it, and one the last layer. All are exact but for the order of additions and products with zeros:

* :class:`Shares`, for up to 4 channels: every feature goes through one convolution, to its shares of all later
  features at once, and shares are added up. No concatenation is left.
* :class:`Pairs`, for 8 channels: features come two at a time. The first one is computed alone, beside zeros, and again
  beside the second one, which needs it; all that is concatenated has 16 channels.
* :class:`Steps`, for 8 channels: the first feature of a pair is computed beside the second one's share, and a further
  convolution passes it on and adds what it gives to the second one. That is 8 products where :class:`Pairs` has 11, and
  half of its concatenations, but needs an activation with a slope for each channel: OpenVINO computes that with the
  convolution, ONNX Runtime by itself, and loses by it.
* :class:`Last`: the three colours of 2x2 pixels are 12 channels of one convolution.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

RESIDUAL = 0.2  # BasicSR's factor of RRDBNet's residuals
FEATURES = 4  # of a dense block, before its last convolution


def _convolution(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, 1, 1, bias=bias is not None)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer


def _last(block: nn.Module, scale: float, residual: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias with which a block's last convolution gives ``scale * y + residual * x``."""
    weight, bias = block.conv5.weight.detach() * scale, block.conv5.bias.detach() * scale
    channel = torch.arange(len(weight))
    weight[channel, channel, 1, 1] += residual  # the block's input comes first among the convolution's
    return weight, bias


class Shares(nn.Module):
    """A dense block as sums of shares; returns ``scale * y + residual * x``."""

    def __init__(self, block: nn.Module, scale: float, residual: float = 0.0) -> None:
        super().__init__()
        self.growth, self.slope = block.conv1.out_channels, block.lrelu.negative_slope
        grow = [getattr(block, f'conv{number}') for number in range(1, FEATURES + 1)]
        weight, bias = _last(block, scale, residual)
        weights, biases = [*(layer.weight.detach() for layer in grow), weight], [*(layer.bias for layer in grow), bias]
        width = block.conv1.in_channels
        first = torch.cat([weight[:, :width] for weight in weights])
        self.convolutions = nn.ModuleList([_convolution(first, torch.cat(biases))])
        for number in range(1, FEATURES + 1):
            part = slice(width + (number - 1) * self.growth, width + number * self.growth)
            later = torch.cat([weight[:, part] for weight in weights[number:]])
            self.convolutions.append(_convolution(later, None))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.convolutions
        shares = first(x)
        for convolution in others:
            feature = F.leaky_relu(shares[:, : self.growth], self.slope)
            shares = shares[:, self.growth :] + convolution(feature)
        return shares


class Pairs(nn.Module):
    """A dense block with features in pairs; returns ``scale * y + residual * x``."""

    def __init__(self, block: nn.Module, scale: float, residual: float = 0.0) -> None:
        super().__init__()
        self.slope = block.lrelu.negative_slope
        growth = block.conv1.out_channels
        self.convolutions = nn.ModuleList()
        for number in range(1, FEATURES + 1):
            first = (number - 1) // 2 * 2 + 1  # of the pair
            inputs = getattr(block, f'conv{first}').in_channels + (0 if number == first else 2 * growth)
            weight, bias = torch.zeros(2 * growth, inputs, 3, 3), torch.zeros(2 * growth)
            for row, known in enumerate(range(first, number + 1)):
                layer, rows = getattr(block, f'conv{known}'), slice(row * growth, (row + 1) * growth)
                weight[rows, : layer.in_channels], bias[rows] = layer.weight.detach(), layer.bias.detach()
            self.convolutions.append(_convolution(weight, bias))
        self.last = _convolution(*_last(block, scale, residual))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for first, second in zip(self.convolutions[::2], self.convolutions[1::2], strict=True):
            half = torch.cat((x, F.leaky_relu(first(x), self.slope)), 1)
            x = torch.cat((x, F.leaky_relu(second(half), self.slope)), 1)
        return self.last(x)


class Steps(nn.Module):
    """A dense block with features in pairs, in two steps each; returns ``scale * y + residual * x``."""

    def __init__(self, block: nn.Module, scale: float, residual: float = 0.0) -> None:
        super().__init__()
        growth, slope = block.conv1.out_channels, block.lrelu.negative_slope
        channel = torch.arange(2 * growth)
        self.pairs = nn.ModuleList()
        for first, second in ((block.conv1, block.conv2), (block.conv3, block.conv4)):
            known = first.in_channels  # of the second one's inputs; the others are the first feature
            weights, biases = (first.weight, second.weight[:, :known]), (first.bias, second.bias)
            passing = torch.zeros(2 * growth, 2 * growth, 3, 3)
            passing[channel, channel, 1, 1] = 1
            passing[growth:, :growth] = second.weight.detach()[:, known:]
            steps = _convolution(torch.cat(weights).detach(), torch.cat(biases).detach()), _convolution(passing, None)
            slopes = nn.PReLU(2 * growth), nn.PReLU(2 * growth)
            for step, values in zip(slopes, ((slope, 1.0), (1.0, slope)), strict=True):
                step.weight.data = torch.tensor(values).repeat_interleave(growth)
            self.pairs.append(nn.Sequential(steps[0], slopes[0], steps[1], slopes[1]))
        self.last = _convolution(*_last(block, scale, residual))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for pair in self.pairs:
            x = torch.cat((x, pair(x)), 1)
        return self.last(x)


class Last(nn.Module):
    """A 3x3 convolution to few channels, for images with even sides: of 2x2 pixels at once, by 4x4 kernels."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.new_zeros(layer.out_channels, 2, 2, layer.in_channels, 4, 4)
        for row in (0, 1):
            for column in (0, 1):
                weight[:, row, column, :, row : row + 3, column : column + 3] = layer.weight.detach()
        self.convolution = nn.Conv2d(layer.in_channels, 4 * layer.out_channels, 4, 2, 1)
        self.convolution.weight.data = weight.flatten(0, 2)
        self.convolution.bias.data = layer.bias.detach().repeat_interleave(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.convolution(x), 2)


class Block(nn.Module):
    """RRDBNet's residual in residual dense block, of dense blocks of one of the kinds above.

    The factors of the residuals are in the weights. The sums with factor 1 stay sums, which a runtime may compute more
    precisely than convolutions; the one with factor 0.2 is in a convolution, for a product of its own would cost more.
    """

    def __init__(self, block: nn.Module, kind: type[nn.Module]) -> None:
        super().__init__()
        self.one, self.two = kind(block.rdb1, RESIDUAL), kind(block.rdb2, RESIDUAL)
        self.three = kind(block.rdb3, RESIDUAL**2, RESIDUAL)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x) + x
        y = self.two(y) + y
        return self.three(y) + x


def regroup(network: nn.Module, runtime: str = 'onnxruntime') -> nn.Module:
    """An RRDBNet that gives what ``network`` gives and is faster in ONNX Runtime or OpenVINO, to be exported.

    It is a copy of an RRDBNet with at most 8 growth channels, with its trunk and its last layer written otherwise:
    outputs differ by rounding, less than 1e-5 of the largest magnitude. Its weights are others, so it is no network to
    load a state into or to train. One of more channels is returned as it is: it fills the blocks by itself.

    Args:
        network: With its weights.
        runtime: ``onnxruntime`` or ``openvino``: for which of them to write it; the other one computes it, too.
    """
    growth = network.body[0].rdb1.conv1.out_channels
    paired = Steps if runtime == 'openvino' else Pairs
    kind = Shares if growth <= 4 else paired if growth == 8 else None
    if kind is None:
        return network
    rewritten = copy.deepcopy(network)
    with torch.no_grad():
        rewritten.body = nn.Sequential(*(Block(block, kind) for block in network.body))
        if hasattr(network, 'conv_up1'):  # else sides may be odd
            rewritten.conv_last = Last(network.conv_last)
    return rewritten.eval().requires_grad_(False)
