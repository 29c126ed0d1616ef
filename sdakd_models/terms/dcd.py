"""DCD: feature maps of the generators, mapped to images, compared inside the teacher's discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_arch.adapter_arch import match_size
from sdakd_arch.connector_arch import ImageConnectors
from sdakd_arch.pairing import pair_taps
from sdakd_arch.taps import FeatureTaps
from sdakd_arch.width import example_inputs
from sdakd_models.options import DCD, typed
from sdakd_models.terms.base import Context, Term, register_term

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel

WHERE = 'train:dcd_opt'
LAYERS = f'{WHERE}:layers'


@register_term('dcd')
class DCDTerm(Term):
    """Feature maps of student and teacher, mapped to images, compared inside a discriminator: DCD less `imitation`."""

    needs_teacher = True
    needs_features = True
    own = frozenset(DCD.__struct_fields__)

    def __init__(self, options: Mapping, model: SDAKDModel) -> None:
        super().__init__(options, model)
        own = read_dcd(options)
        pairing = pair_taps(model.bare_student, model.teachers['teacher'], own.layers, LAYERS, model.lq_size)
        self.pairs = pairing.pairs
        model.watch('student', self.pairs)
        model.watch('teacher', self.pairs.values())
        self.judge, self.layer = model.adversaries[own.discriminator].bare, own.discriminator_layer
        self.taps = FeatureTaps(self.judge, [self.layer], f'{WHERE}:discriminator_layer')
        connectors = ImageConnectors(pairing.channels, own.teacher_connector, own.mlp, own.hidden_ratio)
        self.connectors = model.add_player('connectors', connectors, side='g', terms=('dcd',))

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        mine, its = context.features('student'), context.features('teacher')
        ours, theirs = self.connectors.net(
            {own: mine[own] for own in self.pairs}, {own: its[other] for own, other in self.pairs.items()}
        )
        ours = {own: match_size(image, theirs[own]) for own, image in ours.items()}
        # it only looks: no gradient of its own, and in evaluation mode the vectors of spectral norm stay
        self.judge.requires_grad_(False).eval()
        # a teacher's map has a gradient only where its connector learns
        seen = [{own: self._seen(context, image) for own, image in maps.items()} for maps in (ours, theirs)]
        return {'dcd': self.loss(*seen)}

    def _seen(self, context: Context, image: torch.Tensor) -> torch.Tensor:
        with self.taps:
            context.run(self.judge, resized(image, self.judge))
        return self.taps.pop()[self.layer].float()

    @classmethod
    def discriminators(cls, options: Mapping) -> tuple[str, ...]:
        return (read_dcd(options).discriminator,)

    @classmethod
    def check(cls, options: Mapping, where: str) -> None:
        super().check(options, where)
        read_dcd(options)

    @classmethod
    def check_crop(
        cls,
        options: Mapping,
        size: int,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        discriminators: Mapping[str, nn.Module],
    ) -> None:
        own = read_dcd(options)
        teacher = teachers['teacher']  # the student's maps are brought to the size of the teacher's
        pairs = pair_taps(student, teacher, own.layers, LAYERS, size).pairs
        maps = FeatureTaps(teacher, sorted(set(pairs.values())))
        with torch.no_grad(), maps:
            teacher(*example_inputs(teacher, size))
        judge = discriminators[own.discriminator]
        taps = FeatureTaps(judge, [own.discriminator_layer], f'{WHERE}:discriminator_layer')
        for tap, feature in maps.pop().items():
            height, width = feature.shape[2:]
            try:
                with torch.no_grad(), taps:
                    judge(resized(torch.zeros(1, 3, height, width, device='meta'), judge))
            except (RuntimeError, AssertionError) as error:
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f'{WHERE}: the discriminator {own.discriminator!r} takes no {height}x{width} map, which the tap '
                    f'{tap!r} has for input crops of {size}x{size}, border left out ({reason}); choose another gt_size '
                    'or teacher_margin (UNetDiscriminatorSN wants maps whose sides 8 divides).'
                ) from None
            if own.discriminator_layer not in taps.pop():
                raise UserError(
                    f'{WHERE}:discriminator_layer: {type(judge).__name__} never runs the module '
                    f'{own.discriminator_layer!r}, tap another one.'
                )
        maps.close()
        taps.close()

    @classmethod
    def teacher_taps(
        cls, options: Mapping, student: nn.Module, teachers: Mapping[str, nn.Module]
    ) -> dict[str, tuple[str, ...]]:
        pairing = pair_taps(student, teachers['teacher'], read_dcd(options).layers, LAYERS)
        return {'teacher': tuple(pairing.pairs.values())}


def resized(image: torch.Tensor, judge: nn.Module) -> torch.Tensor:
    """A connected map, interpolated to the size of a discriminator that takes one only: that of GCFSR."""
    size = getattr(judge, 'out_size', None)
    return image if size is None else F.interpolate(image, size=(size, size), mode='bilinear', align_corners=False)


def read_dcd(options: Mapping) -> DCD:
    """The typed part of ``train:dcd_opt`` that is not the loss's."""
    return typed(DCD, {key: value for key, value in options.items() if key in DCDTerm.own}, WHERE)
