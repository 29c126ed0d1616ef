"""The perceptual part that OMGD, CRD and DCD share: the student's image against the teacher's in a backbone."""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta, field

from sdakd.compat import UserError
from sdakd_arch.backbones import check_backbone, ensure_backbone, takes
from sdakd_models.cast import Cast
from sdakd_models.context import Context
from sdakd_models.options import Block
from sdakd_models.registry import register_term
from sdakd_models.scenario import Scenario
from sdakd_models.terms.base import Term


@register_term('imitation')
class ImitationTerm(Term):
    """The student's image against the teacher's in a backbone, style and features: shared by OMGD, CRD and DCD."""

    class Options(Block):
        """What the block holds besides the arguments of its loss."""

        teachers: Annotated[
            list[str], Meta(min_length=1, description='Whose images count: `teacher`, entries of `teachers`.')
        ] = field(default_factory=lambda: ['teacher'])

    needs_teacher = True

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        names, found = self.options.teachers, {}
        images = [context.inside(context.image(name)) for name in names]
        for name, parts in zip(names, self.loss.parts(context.inside(context.student), *images), strict=True):
            suffix = '' if name == 'teacher' else f'_{name}'
            found |= {f'imit_{part}_{self.loss.kind}{suffix}': value for part, value in parts.items()}
        return found

    def check(self, scenario: Scenario, cast: Cast) -> None:
        loss, where = self.block.loss, self.block.where
        if not (loss.get('style_weight', 1.0) or loss.get('feature_weight', 1.0)):
            raise UserError(f'{where}: style_weight and feature_weight are both 0; write `imitation_opt: ~` instead.')
        check_backbone(loss, where)
        ensure_backbone(loss, where)
        side = scenario.inside * scenario.scale
        if not takes(loss['backbone'], side):
            raise UserError(
                f'datasets:train:gt_size: train:teacher_margin leaves {side}x{side} pixels, too few for '
                f'{loss["backbone"]} in {where}; raise the one or lower the other.'
            )
