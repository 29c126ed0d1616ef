"""GCC: feature maps of the generators and of the teacher's discriminator on their images, with Gram matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from msgspec import Meta, field
from torch import nn

from sdakd.compat import UserError, one_line
from sdakd_arch.adapter_arch import AdapterBank
from sdakd_arch.taps import FeatureTaps
from sdakd_models.cast import Cast
from sdakd_models.context import Context
from sdakd_models.options import TermBlock
from sdakd_models.registry import register_term
from sdakd_models.scenario import Scenario
from sdakd_models.terms.base import FeatureTerm, Maps


@register_term('gcc')
class GCCTerm(FeatureTerm):
    """Feature maps of both generators, and what the teacher's discriminator sees in their images, with styles: GCC."""

    class Options(FeatureTerm.Options):
        """What the block holds besides the arguments of its loss."""

        discriminator: Annotated[str, Meta(description='Entry of `discriminators` that looks at the images.')] = (
            'teacher'
        )
        discriminator_layers: Annotated[
            list[str], Meta(min_length=1, description='Where the images are compared in it, taps.')
        ] = field(default_factory=lambda: ['conv2:input', 'conv3:input'])

    needs_image = True
    adapter = 'linear'

    def __init__(self, block: TermBlock, cast: Cast) -> None:
        super().__init__(block, cast)
        self.discriminator = cast.discriminators[self.options.discriminator].bare
        where = self.options.key('discriminator_layers')
        self.taps = FeatureTaps(self.discriminator, self.options.discriminator_layers, where)

    def build_adapter(self, channels: Mapping[str, tuple[int, int]]) -> nn.Module:
        return AdapterBank(channels, hidden_ratio=0, bias=False)

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        student, teacher = self.adapted(context)['teacher']
        # it only looks: no gradient of its own, and in evaluation mode the vectors of spectral norm stay
        self.discriminator.requires_grad_(False).eval()
        image, target = context.pair()
        with torch.no_grad():
            teacher = teacher | self._seen(context, target)
        return {'gcc': self.loss(student | self._seen(context, image), teacher)}

    def _seen(self, context: Context, image: torch.Tensor) -> Maps:
        with self.taps:
            context.run(self.discriminator, image)
        return {f'discriminator/{tap}': maps.float() for tap, maps in self.taps.pop().items()}

    def check(self, scenario: Scenario, cast: Cast) -> None:
        """The discriminator takes images without the border, and runs its layers."""
        side = scenario.inside * scenario.scale
        try:
            with torch.no_grad(), self.taps:
                self.discriminator(torch.zeros(1, 3, side, side, device=cast.device))
        except Exception as error:  # of whatever an architecture does
            raise UserError(
                self.block.where,
                f'the discriminator {self.options.discriminator!r} does not take images of {side}x{side} pixels, which '
                f'train:teacher_margin leaves of crops ({one_line(error)}); choose another gt_size or teacher_margin.',
            ) from None
        missing = set(self.taps.names) - set(self.taps.pop())
        if missing:
            raise self.options.error(
                f'{type(self.discriminator).__name__} never runs the module {min(missing)!r}, tap another one.',
                'discriminator_layers',
            )
