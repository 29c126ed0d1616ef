"""SDAKD's feature-map distillation: the student's activations, adapted by channel MLPs, against the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdakd_arch.adapter_arch import AdapterBank, match_size
from sdakd_arch.pairing import pair_taps
from sdakd_models.options import Features, typed
from sdakd_models.terms.base import Context, Term, register_term

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel

LAYERS = 'train:feature_opt:layers'


@register_term('feature')
class FeatureTerm(Term):
    """The student's feature maps, adapted by channel MLPs, against the teacher's: SDAKD's stages 2 and 3."""

    needs_teacher = True
    needs_features = True
    own = frozenset(Features.__struct_fields__)

    def __init__(self, options: Mapping, model: SDAKDModel) -> None:
        super().__init__(options, model)
        features = read_features(options)
        teacher = model.teachers['teacher']
        pairing = pair_taps(model.bare_student, teacher, features.layers, LAYERS, model.lq_size)
        self.pairs = pairing.pairs
        model.watch('student', self.pairs)
        model.watch('teacher', self.pairs.values())
        bank = AdapterBank(pairing.channels, hidden_ratio=features.hidden_ratio)
        self.adapter = model.add_player('adapter', bank, side='g', terms=('feature',))

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        mine, its = context.features('student'), context.features('teacher')
        with context.model.autocast():
            adapted = self.adapter.net({own: mine[own] for own in self.pairs})
        wanted = {own: its[other] for own, other in self.pairs.items()}
        adapted = {own: match_size(maps.float(), wanted[own]) for own, maps in adapted.items()}
        return {'feature': self.loss(adapted, wanted)}

    @classmethod
    def check(cls, options: Mapping, where: str) -> None:
        super().check(options, where)
        read_features(options)

    @classmethod
    def check_networks(
        cls,
        options: Mapping,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        discriminators: Mapping[str, nn.Module],
    ) -> None:
        pair_taps(student, teachers['teacher'], read_features(options).layers, LAYERS)

    @classmethod
    def teacher_taps(
        cls, options: Mapping, student: nn.Module, teachers: Mapping[str, nn.Module]
    ) -> dict[str, tuple[str, ...]]:
        pairing = pair_taps(student, teachers['teacher'], read_features(options).layers, LAYERS)
        return {'teacher': tuple(pairing.pairs.values())}


def read_features(options: Mapping) -> Features:
    """The typed part of ``train:feature_opt`` that is not the loss's."""
    own = {key: value for key, value in options.items() if key in FeatureTerm.own}
    return typed(Features, own, 'train:feature_opt')
