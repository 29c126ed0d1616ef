"""Terms that compare with the ground truth."""

from __future__ import annotations

import torch

from sdakd_models.terms.base import Context, Term, register_term


@register_term('pixel')
class PixelTerm(Term):
    """The student's image against the ground truth."""

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        return {'pix': self.loss(context.student, context.target('pixel'))}


@register_term('perceptual')
class PerceptualTerm(Term):
    """BasicSR's perceptual and style loss against the ground truth."""

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        perceptual, style = self.loss(context.student, context.target('perceptual'))
        return {name: value for name, value in (('percep', perceptual), ('style', style)) if value is not None}
