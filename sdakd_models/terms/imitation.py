"""The perceptual part that OMGD, CRD and DCD share: the student's image against the teacher's in a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from basicsr.utils import get_root_logger
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.backbones import check_backbone, ensure_backbone, takes
from sdakd_arch.width import scale_of
from sdakd_models.options import Imitation, typed
from sdakd_models.terms.base import Context, Term, register_term

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel


@register_term('imitation')
class ImitationTerm(Term):
    """The student's image against the teacher's in a backbone, style and features: shared by OMGD, CRD and DCD."""

    needs_teacher = True
    own = frozenset(Imitation.__struct_fields__)

    @classmethod
    def teachers(cls, options: Mapping) -> tuple[str, ...]:
        return tuple(_own(options).teachers)

    def __init__(self, options: Mapping, model: SDAKDModel) -> None:
        super().__init__(options, model)
        self.names = self.teachers(options)
        get_root_logger().info(f'imitation: {self.loss.description}')

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        found = {}
        for name in self.names:
            suffix = '' if name == 'teacher' else f'_{name}'
            parts = self.loss.parts(*context.pair(name))
            found |= {f'imit_{part}_{self.loss.kind}{suffix}': value for part, value in parts.items()}
        return found

    @classmethod
    def check(cls, options: Mapping, where: str) -> None:
        super().check(options, where)
        _own(options)
        for key in ('style_weight', 'feature_weight'):
            value = options.get(key, 1.0)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f'{where}:{key}: write a number (1.0e+4 needs dot and sign in YAML), not {value!r}.')
        if not (options.get('style_weight', 1.0) or options.get('feature_weight', 1.0)):
            raise UserError(f'{where}: style_weight and feature_weight are both 0; write `imitation_opt: ~` instead.')
        check_backbone(options, where)

    @classmethod
    def check_networks(
        cls,
        options: Mapping,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        discriminators: Mapping[str, nn.Module],
    ) -> None:
        ensure_backbone(options, 'train:imitation_opt')

    @classmethod
    def check_crop(
        cls,
        options: Mapping,
        size: int,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        discriminators: Mapping[str, nn.Module],
    ) -> None:
        side = size * scale_of(student, 'network_g')
        if not takes(options['backbone'], side):
            raise UserError(
                f'datasets:train:gt_size: train:teacher_margin leaves {side}x{side} pixels, too few for '
                f'{options["backbone"]} in train:imitation_opt; raise the one or lower the other.'
            )


def _own(options: Mapping) -> Imitation:
    return typed(Imitation, {k: v for k, v in options.items() if k in ImitationTerm.own}, 'train:imitation_opt')
