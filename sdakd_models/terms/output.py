"""Pixel distillation: the student's image against the teacher's."""

from __future__ import annotations

import torch

from sdakd_models.context import Context
from sdakd_models.registry import register_term
from sdakd_models.terms.base import Term


@register_term('output')
class OutputTerm(Term):
    """The student's image against the teacher's, pixel by pixel."""

    needs_teacher = True

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        return {'output': self.loss(*context.pair())}
