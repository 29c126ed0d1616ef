"""MCAD-KD: the student's image against the teacher's by contrast with the other images of the batch."""

from __future__ import annotations

import torch

from sdakd.compat import UserError
from sdakd_models.cast import Cast
from sdakd_models.context import Context
from sdakd_models.registry import register_term
from sdakd_models.scenario import Scenario
from sdakd_models.terms.base import Term


@register_term('mcad')
class MCADTerm(Term):
    """The student's image nearer to the teacher's than to those of other inputs, as a whole and in patches: MCAD-KD."""

    needs_teacher = True

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        return {'mcad': self.loss(*context.pair())}

    def check(self, scenario: Scenario, cast: Cast) -> None:
        images = scenario.datasets.get('train', {}).get('batch_size_per_gpu', 2) * scenario.file.get('world_size', 1)
        if self.block.loss.get('patch_weight', 0.7) and images * self.block.loss.get('patches', 8) < 2:
            raise UserError(
                f'{self.block.where}:patches', 'a batch has one patch, and no other to tell it from; write at least 2.'
            )
        if self.block.loss.get('image_weight', 0.3) and images < 2:
            raise UserError(
                'datasets:train:batch_size_per_gpu',
                f'{self.block.where} contrasts the images of a batch, and there is one alone; write at least 2, or '
                'image_weight: 0.',
            )
