"""Terms that compare with the ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from basicsr.utils import get_root_logger
from torch import nn

from sdakd_arch.backbones import check_backbone, ensure_backbone
from sdakd_losses.imitation_loss import BackbonePerceptualLoss
from sdakd_models.terms.base import Context, Term, register_term

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel


@register_term('pixel')
class PixelTerm(Term):
    """The student's image against the ground truth."""

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        return {'pix': self.loss(context.student, context.target('pixel'))}


@register_term('perceptual')
class PerceptualTerm(Term):
    """BasicSR's perceptual and style loss against the ground truth, or BackbonePerceptualLoss in its place."""

    def __init__(self, options: Mapping, model: SDAKDModel) -> None:
        super().__init__(options, model)
        self.suffix = ''  # BasicSR's names stay
        if isinstance(self.loss, BackbonePerceptualLoss):
            self.suffix = f'_{self.loss.kind}'
            get_root_logger().info(f'perceptual: {self.loss.description}')

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        values = zip(('percep', 'style'), self.loss(context.student, context.target('perceptual')), strict=True)
        return {f'{name}{self.suffix}': value for name, value in values if value is not None}

    @classmethod
    def check(cls, options: Mapping, where: str) -> None:
        super().check(options, where)
        if options['type'] != 'BackbonePerceptualLoss':
            return
        check_backbone(options, where)

    @classmethod
    def check_networks(
        cls,
        options: Mapping,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        discriminators: Mapping[str, nn.Module],
    ) -> None:
        if options['type'] == 'BackbonePerceptualLoss':
            ensure_backbone(options, 'train:perceptual_opt')
