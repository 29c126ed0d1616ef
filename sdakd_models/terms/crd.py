"""CRD: relations between the rows, columns and patches of the student's image against those of the teacher's."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sdakd.compat import UserError
from sdakd_losses.crd_loss import ContentRelationLoss
from sdakd_models.terms.base import Context, Term, register_term


@register_term('crd')
class CRDTerm(Term):
    """Relations between rows, columns and patches of the student's image against the teacher's: CRD."""

    needs_teacher = True

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        return {'crd': self.loss(*context.pair())}

    @classmethod
    def check(cls, options: Mapping, where: str) -> None:
        super().check(options, where)
        if options['type'] == ContentRelationLoss.__name__:
            try:
                ContentRelationLoss(**{key: value for key, value in options.items() if key not in ('type', 'share')})
            except ValueError as error:
                raise UserError(f'{where}:{error}.') from None
