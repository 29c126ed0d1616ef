"""SRVGGNetCompact (Real-ESRGAN's compact generator): 3x3 convolutions and activations at the input's resolution."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MethodType

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sdakd_arch.families.base import Family, State, register_family
from sdakd_arch.families.discriminators import unet
from sdakd_arch.inference.onednn import FastSRVGG
from sdakd_arch.ncnn_graph import Graph, NcnnError, Placed, close

SLOPE = 0.8  # of PReLU at the start; BasicSR's 0.25 loses the signal behind 16 to 32 layers


SLOPES = {'leakyrelu': 0.1}


def _forward_in_segments(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What the network gives for ``(N, C, h, w)``, in the same bits."""

    def run(maps: torch.Tensor, first: int) -> torch.Tensor:
        for layer in network.body[first : first + number]:
            maps = layer(maps)
        return maps

    number = 2 * math.isqrt(len(network.body) // 2)  # a convolution and its activation go together
    maps = image
    for first in range(0, len(network.body), number):
        maps = checkpoint(run, maps, first, use_reentrant=False)
    return network.upsampler(maps) + F.interpolate(image, scale_factor=network.upscale, mode='nearest')


@register_family
class SRVGGNetCompactFamily(Family):
    """See :class:`basicsr.archs.srvgg_arch.SRVGGNetCompact`."""

    types = ('SRVGGNetCompact',)
    channels = {'num_feat': 64}
    examples = {'SRVGGNetCompact': {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3}}

    def infer(self, state: State) -> dict | None:
        """With PReLU only: a network with ReLU and one with LeakyReLU look the same in a file."""
        # by number: a .safetensors file sorts its keys as text, body.10 before body.2
        numbers = sorted(int(found[1]) for key in state if (found := re.fullmatch(r'body\.(\d+)\.weight', key)))
        body = [state[f'body.{number}.weight'] for number in numbers]
        if numbers[:2] != [0, 1] or body[0].dim() != 4 or body[1].dim() != 1:
            return None
        convs = [tensor for tensor in body if tensor.dim() == 4]
        features, channels = convs[0].shape[:2]
        # of the last layer's channels, a pixel's are most likely those of the input, else RGB's, RGBA's or grey's
        last = convs[-1].shape[0]
        colours = next((each for each in (channels, 3, 4, 1) if last == each * math.isqrt(last // each) ** 2), None)
        if colours is None:
            return None
        return {
            'type': 'SRVGGNetCompact',
            'num_in_ch': channels,
            'num_out_ch': colours,
            'num_feat': features,
            'num_conv': len(convs) - 2,
            'upscale': math.isqrt(last // colours),
            'act_type': 'prelu',
        }

    def untold(self, state: State) -> str | None:
        layers = {key.rpartition('.')[0] for key in state}
        if len(layers) < 2 or layers != {f'body.{2 * number}' for number in range(len(layers))}:
            return None
        return 'it is SRVGGNetCompact, and whether its activation is ReLU or LeakyReLU leaves no trace in weights'

    def from_ncnn(self, graph: Graph) -> tuple[Placed, dict] | None:
        """SRVGGNetCompact shuffles pixels; its activation is what the graph says."""
        if 'PixelShuffle' not in graph.kinds:
            return None
        source = graph.source
        placed: Placed = []
        blob, channels, features, count, kinds = source, 3, 0, 0, set()
        while True:
            name = f'body.{2 * count}'
            layer, blob, activation = graph.convolution(blob, channels, name)
            placed.append((name, layer))
            channels = layer.whole(0)
            if activation is None:
                break
            features = features or channels
            kinds.add(activation)
            if channels != features:
                raise NcnnError(f'its convolutions have {features} and {channels} channels')
            if activation[0] == 'prelu':
                placed.append((f'body.{2 * count + 1}', graph.maker[blob]))
            count += 1
        layer = graph.take('PixelShuffle', blob, wanted='the shuffling of pixels')
        if len(kinds) != 1:
            raise NcnnError(f'its convolutions have {len(kinds)} kinds of activations where there is one')
        kind, slope = kinds.pop()
        if not close([slope], [SLOPES.get(kind, 0.0)]):
            raise NcnnError(f'its LeakyReLU has the slope {slope:g}, not {SLOPES[kind]:g}')
        scale = layer.whole(0)
        if layer.number(1) or channels != 3 * scale**2:
            raise NcnnError(f'its layer {layer} does not make 3 channels of {channels}')
        base = source if scale == 1 and not graph.find('Interp', source) else None
        blob = graph.add(
            layer.outputs[0], base or graph.enlarge(source, scale, 'the enlarged image'), 1.0, 'the sum with the image'
        )
        graph.end(blob)
        network = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': features}
        return placed, network | {'num_conv': count - 1, 'upscale': scale, 'act_type': kind}

    def published_discriminator(self, network: Mapping) -> dict:
        return unet(network)

    def trunk(self, network: nn.Module) -> list[str]:
        """The activations; convolution and activation alternate, and the first pair is the stem."""
        return [f'body.{2 * index + 3}' for index in range(network.num_conv)]

    def recompute(self, network: nn.Module) -> bool:
        """About the square root of its layers' number at a time: that many inputs stay, and that many layers' maps."""
        network.forward = MethodType(_forward_in_segments, network)
        return True

    def initialise(self, network: nn.Module) -> None:
        """Keeps the signal through all layers.

        BasicSR leaves the network to torch's default, which shrinks the signal about 2.4 times a layer: behind 17
        layers hardly any is left, and a narrow student stands still for more than 1,000 steps. Here the layers between
        the first and the last start delta-orthogonal (Xiao et al., arXiv 1806.05393, section 3): an orthogonal matrix
        over the channels in the kernel's centre, zero around it, times the gain that keeps the mean square behind the
        activation. Pixels stay distinguishable through any depth the more linear the activation is, so PReLU starts at
        :data:`SLOPE`. The last layer, a residual's, starts small. Slope and the last layer's size are choices of this
        project.
        """
        slope = 0.0
        for module in network.body:
            if isinstance(module, nn.PReLU):
                slope = SLOPE
                nn.init.constant_(module.weight, slope)
            elif isinstance(module, nn.LeakyReLU):
                slope = module.negative_slope
        first, *middle, last = (module for module in network.body if isinstance(module, nn.Conv2d))
        for convolution in (first, *middle, last):
            nn.init.kaiming_normal_(convolution.weight, a=slope)
            nn.init.zeros_(convolution.bias)
        for convolution in middle:
            nn.init.zeros_(convolution.weight)
            nn.init.orthogonal_(convolution.weight[:, :, 1, 1], gain=math.sqrt(2 / (1 + slope**2)))
        last.weight.mul_(0.1)

    def reach(self, network: Mapping) -> int:
        return network.get('num_conv', 16) + 2  # 3x3 convolutions at input resolution, one after another

    def widest(self, network: Mapping) -> int:
        return max(network.get('num_feat', 64), 3 * network.get('upscale', 4) ** 2)

    def common(self, network: Mapping, state: State) -> tuple[dict, State]:
        """With PReLU in the place of ReLU and LeakyReLU, of the slope that these have: others know PReLU alone."""
        slope = {'relu': 0.0, **SLOPES}.get(network.get('act_type', 'prelu'))
        if slope is None:
            return dict(network), state
        given = dict(state)
        for number in range(network.get('num_conv', 16) + 1):
            given[f'body.{2 * number + 1}.weight'] = state['body.0.bias'].new_full(state['body.0.bias'].shape, slope)
        return dict(network) | {'act_type': 'prelu'}, given

    def catalogue(self, network: Mapping) -> tuple[str, list[str]]:
        return 'compact', [f'{network.get("num_feat", 64)}nf', f'{network.get("num_conv", 16)}nc']

    def accelerated(self, network: nn.Module, dtype: torch.dtype) -> nn.Module:
        return FastSRVGG(network, dtype)
