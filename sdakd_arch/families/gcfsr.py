"""GCFSR: faces of one size; all channels of generator and discriminator follow one factor, the option ``narrow``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from torch import nn

from sdakd.compat import UserError
from sdakd_arch.families.base import Family, State, register_family
from sdakd_arch.gcfsr.gcfsr_arch import channels_of


class _Narrowed(Family):
    """What generators and discriminator have in common."""

    def narrow(self, network: Mapping, ratio: Fraction) -> dict:
        """Another factor; a style's length, ``num_style_feat``, does not follow it."""
        wide = network.get('narrow', 1)
        try:
            narrow = Fraction(wide).limit_denominator(1024) * ratio
            channels_of(network.get('out_size'), network.get('channel_multiplier', 2), narrow)
        except (TypeError, ValueError) as error:
            raise UserError(
                f'narrow of {network["type"]} is {wide}, which {ratio} does not divide into channels: {error}.'
            ) from None
        return dict(network) | {'narrow': int(narrow) if narrow.denominator == 1 else float(narrow)}


@register_family
class GCFSRFamily(_Narrowed):
    """See :class:`sdakd_arch.gcfsr.gcfsr_arch.GCFSR` and its blind variant."""

    types = ('GCFSR', 'GCFSRBlind')
    faces = True
    examples = {
        f'{kind}{size}': {'type': kind, 'out_size': size}
        for kind in ('GCFSR', 'GCFSRBlind')
        for size in (128, 256, 512, 1024)
    }

    def infer(self, state: State) -> dict | None:
        """With the usual blur, which no file holds."""
        modulation = 'style_conv1.modulated_conv.modulation.weight'
        if not {'condition_scale1.0.weight', modulation, 'final_linear.weight'} <= state.keys():
            return None
        network = _sizes(state, 'conv_body_down', 'conv_body_first.0.weight', 4)
        if network is None:
            return None
        blind = state['final_linear.weight'].shape[1] == 16 * state['final_conv.0.weight'].shape[0]
        kind = 'GCFSRBlind' if blind else 'GCFSR'
        return {'type': kind, **network, 'num_style_feat': state[modulation].shape[1]}

    def published_discriminator(self, network: Mapping) -> dict:
        same = {'channel_multiplier': 2, 'narrow': 1} | dict(network)
        keys = [key for key in ('out_size', 'channel_multiplier', 'narrow') if key in same]
        return {'type': 'GCFSRDiscriminator'} | {key: same[key] for key in keys}

    def trunk(self, network: nn.Module) -> list[str]:
        """The decoder's style convolutions with feature modulation, the last one at every size from 32x32."""
        return [f'style_convs.{index}' for index in range(1, len(network.style_convs), 2)]  # the first of two enlarges

    def blocks(self, network: nn.Module) -> list[str]:
        """The layers of the encoder and the style convolutions."""
        down, styled = (range(len(layers)) for layers in (network.conv_body_down, network.style_convs))
        return [
            'conv_body_first',
            *(f'conv_body_down.{index}' for index in down),
            'style_conv1',
            *(f'style_convs.{index}' for index in styled),
        ]


@register_family
class GCFSRDiscriminatorFamily(_Narrowed):
    """See :class:`sdakd_arch.gcfsr.gcfsr_arch.GCFSRDiscriminator`."""

    types = ('GCFSRDiscriminator',)
    discriminator = True

    def blocks(self, network: nn.Module) -> list[str]:
        """The layers that halve the size."""
        return [f'conv_body.{index}' for index in range(len(network.conv_body))]

    def infer(self, state: State) -> dict | None:
        """With the usual blur; None for StyleGAN2's own discriminator, which joins batch statistics in."""
        if 'conv_body.1.conv1.0.weight' not in state:
            return None
        network = _sizes(state, 'conv_body', 'conv_body.0.0.weight', 1)
        return network and {'type': 'GCFSRDiscriminator', **network}


def _sizes(state: State, body: str, first: str, halvings: int) -> dict | None:
    """What generator and discriminator tell alike: faces' side and channels.

    Args:
        body: The list of modules that halve the size, one after the other.
        first: The first convolution's weight.
        halvings: How often the side is halved besides.
    """
    if not {first, 'final_conv.0.weight'} <= state.keys():
        return None
    shape = state['final_conv.0.weight'].shape
    if shape[0] != shape[1]:
        return None
    stages = {int(found[1]) for key in state if (found := re.match(rf'{body}\.(\d+)\.', key))}
    out_size = 1 << len(stages) + halvings
    narrow = shape[0] / 512
    network = {
        'out_size': out_size,
        'channel_multiplier': state[first].shape[0] * out_size / 16384 / narrow if out_size > 32 else 2,
        'narrow': narrow,
    }
    return {key: int(value) if value == int(value) else value for key, value in network.items()}
