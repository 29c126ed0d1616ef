"""DCD: feature maps of the generators, mapped to images, compared inside the teacher's discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import nn
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_arch.adapter_arch import match_size
from sdakd_arch.connector_arch import ImageConnectors
from sdakd_arch.taps import FeatureTaps
from sdakd_arch.width import example_inputs
from sdakd_models.cast import Cast
from sdakd_models.context import Context
from sdakd_models.options import TermBlock
from sdakd_models.registry import register_term
from sdakd_models.scenario import Scenario
from sdakd_models.terms.base import FeatureTerm


@register_term('dcd')
class DCDTerm(FeatureTerm):
    """Feature maps of student and teacher, mapped to images, compared inside a discriminator: DCD less `imitation`."""

    class Options(FeatureTerm.Options):
        """What the block holds besides the arguments of its loss."""

        discriminator: Annotated[str, Meta(description='Entry of `discriminators` that looks at the maps.')] = 'teacher'
        discriminator_layer: Annotated[str, Meta(description='Where the maps are compared in it, a tap.')] = (
            'conv9:input'
        )
        teacher_connector: Annotated[
            Literal['learning', 'fixed', 'normalised'],
            Meta(
                description="The teacher's connector: learns as the student's, stays at its start, or stays but for a "
                'normalisation by the batch.'
            ),
        ] = 'learning'
        mlp: Annotated[
            bool, Meta(description="An MLP and the teacher's connector in place of the student's: modified DCD.")
        ] = False
        hidden_ratio: Annotated[
            float, Meta(ge=0, description="Hidden width of the MLPs over the teacher's channels; 0: linear.")
        ] = 1.0

    adapter = 'connector'
    label = 'connectors'

    def __init__(self, block: TermBlock, cast: Cast) -> None:
        super().__init__(block, cast)
        self.layer = self.options.discriminator_layer
        self.discriminator = cast.discriminators[self.options.discriminator].bare
        self.taps = FeatureTaps(self.discriminator, [self.layer], self.options.key('discriminator_layer'))

    def build_adapter(self, channels: Mapping[str, tuple[int, int]]) -> nn.Module:
        options = self.options
        return ImageConnectors(channels, options.teacher_connector, options.mlp, options.hidden_ratio)

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        student, teacher = self.player.net(*self.maps(context)['teacher'])
        student = {tap: match_size(image, teacher[tap]) for tap, image in student.items()}
        # it only looks: no gradient of its own, and in evaluation mode the vectors of spectral norm stay
        self.discriminator.requires_grad_(False).eval()
        # a teacher's map has a gradient only where its connector learns
        seen = [{tap: self._seen(context, image) for tap, image in maps.items()} for maps in (student, teacher)]
        return {'dcd': self.loss(*seen)}

    def _seen(self, context: Context, image: torch.Tensor) -> torch.Tensor:
        with self.taps:
            context.run(self.discriminator, resized(image, self.discriminator))
        return self.taps.pop()[self.layer].float()

    def check(self, scenario: Scenario, cast: Cast) -> None:
        """The discriminator takes the teacher's maps, at whose size the student's are."""
        size, taps, teacher = scenario.inside, cast.taps['teacher'], cast.teachers['teacher']
        with torch.no_grad(), taps:
            teacher(*example_inputs(teacher, size))
        maps = taps.pop()
        for tap in self.pairs['teacher'].values():
            height, width = maps[tap].shape[2:]
            image = torch.zeros(1, 3, height, width, device=cast.device)
            try:
                with torch.no_grad(), self.taps:
                    self.discriminator(resized(image, self.discriminator))
            except (RuntimeError, AssertionError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f'{self.block.where}: the discriminator {self.options.discriminator!r} takes no {height}x{width} '
                    f'map, which the tap {tap!r} has for input crops of {size}x{size}, border left out ({reason}); '
                    'choose another gt_size or teacher_margin (UNetDiscriminatorSN wants maps whose sides 8 divides).'
                ) from None
            if self.layer not in self.taps.pop():
                raise self.options.error(
                    f'{type(self.discriminator).__name__} never runs the module {self.layer!r}, tap another one.',
                    'discriminator_layer',
                )


def resized(image: torch.Tensor, discriminator: nn.Module) -> torch.Tensor:
    """A connected map, interpolated to the size of a discriminator that takes one only: that of GCFSR."""
    size = getattr(discriminator, 'out_size', None)
    return image if size is None else F.interpolate(image, size=(size, size), mode='bilinear', align_corners=False)
