"""CRD: relations between the rows, columns and patches of the student's image against those of the teacher's."""

from __future__ import annotations

import torch

from sdakd_models.context import Context
from sdakd_models.registry import register_term
from sdakd_models.terms.base import Term


@register_term('crd')
class CRDTerm(Term):
    """Relations between rows, columns and patches of the student's image against the teacher's: CRD."""

    needs_teacher = True

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        return {'crd': self.loss(*context.pair())}
