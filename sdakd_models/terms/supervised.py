"""Terms that compare with the ground truth."""

from __future__ import annotations

import torch

from sdakd_arch.backbones import check_backbone, ensure_backbone
from sdakd_losses.imitation_loss import BackbonePerceptualLoss
from sdakd_models.cast import Cast
from sdakd_models.checks.vgg import ensure_vgg
from sdakd_models.context import Context
from sdakd_models.registry import register_term
from sdakd_models.scenario import Scenario
from sdakd_models.terms.base import Term


@register_term('pixel')
class PixelTerm(Term):
    """The student's image against the ground truth."""

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        return {'pix': self.loss(context.student, context.target('pixel'))}


@register_term('perceptual')
class PerceptualTerm(Term):
    """BasicSR's perceptual and style loss against the ground truth, or BackbonePerceptualLoss in its place."""

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        # BasicSR's names stay
        suffix = f'_{self.loss.kind}' if isinstance(self.loss, BackbonePerceptualLoss) else ''
        values = zip(('percep', 'style'), self.loss(context.student, context.target('perceptual')), strict=True)
        return {f'{name}{suffix}': value for name, value in values if value is not None}

    def check(self, scenario: Scenario, cast: Cast) -> None:
        if self.block.loss['type'] == 'BackbonePerceptualLoss':
            check_backbone(self.block.loss, self.block.where)
            ensure_backbone(self.block.loss, self.block.where)
        elif self.block.loss['type'] == 'PerceptualLoss':
            ensure_vgg(self.block.loss, scenario.root)
