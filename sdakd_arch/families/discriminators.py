"""The discriminators of BasicSR: Real-ESRGAN's U-Net and ESRGAN's VGG style one."""

from __future__ import annotations

from collections.abc import Mapping

from sdakd_arch.families.base import Family, State, register_family


def unet(generator: Mapping) -> dict:
    """Real-ESRGAN's discriminator for the images of a generator: a U-Net of 64 features."""
    colours = generator.get('num_out_ch', 3)
    return {'type': 'UNetDiscriminatorSN', 'num_in_ch': colours, 'num_feat': 64, 'skip_connection': True}


@register_family
class UNetDiscriminatorSNFamily(Family):
    """See :class:`basicsr.archs.discriminator_arch.UNetDiscriminatorSN`."""

    types = ('UNetDiscriminatorSN',)
    channels = {'num_feat': 64}
    discriminator = True

    def infer(self, state: State) -> dict | None:
        if 'conv0.weight' not in state or 'conv8.weight_orig' not in state:
            return None
        features, colours = state['conv0.weight'].shape[:2]
        return {
            'type': 'UNetDiscriminatorSN',
            'num_in_ch': colours,
            'num_feat': features,
            'skip_connection': True,
        }


@register_family
class VGGStyleDiscriminatorFamily(Family):
    """See :class:`basicsr.archs.discriminator_arch.VGGStyleDiscriminator`."""

    types = ('VGGStyleDiscriminator',)
    channels = {'num_feat': 64}
    discriminator = True

    def infer(self, state: State) -> dict | None:
        if not {'conv0_0.weight', 'bn4_1.weight', 'linear1.weight'} <= state.keys():
            return None
        features, colours = state['conv0_0.weight'].shape[:2]
        return {
            'type': 'VGGStyleDiscriminator',
            'num_in_ch': colours,
            'num_feat': features,
            'input_size': 256 if 'conv5_0.weight' in state else 128,
        }
