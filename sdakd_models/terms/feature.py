"""SDAKD's feature-map distillation: the student's activations, adapted by channel MLPs, against the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.adapter_arch import AdapterBank
from sdakd_arch.taps import FeatureTaps, default_taps
from sdakd_arch.width import example_inputs
from sdakd_models.options import Features, typed
from sdakd_models.terms.base import Context, Term, register_term

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel


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
        self.pairs, channels = tap_channels(model.bare_student, teacher, features, model.lq_size)
        model.watch('student', self.pairs)
        model.watch('teacher', self.pairs.values())
        bank = AdapterBank(channels, hidden_ratio=features.hidden_ratio)
        self.adapter = model.add_player('adapter', bank, side='g', terms=('feature',))

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        mine, its = context.features('student'), context.features('teacher')
        with context.model.autocast():
            adapted = self.adapter.net({own: mine[own] for own in self.pairs})
        adapted = {own: feature.float() for own, feature in adapted.items()}
        return {'feature': self.loss(adapted, {own: its[other] for own, other in self.pairs.items()})}

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
        tap_channels(student, teachers['teacher'], read_features(options), 32)

    @classmethod
    def teacher_taps(
        cls, options: Mapping, student: nn.Module, teachers: Mapping[str, nn.Module]
    ) -> dict[str, tuple[str, ...]]:
        pairs, _ = tap_channels(student, teachers['teacher'], read_features(options), 32)
        return {'teacher': tuple(pairs.values())}


def read_features(options: Mapping) -> Features:
    """The typed part of ``train:feature_opt`` that is not the loss's."""
    own = {key: value for key, value in options.items() if key in FeatureTerm.own}
    return typed(Features, own, 'train:feature_opt')


def tap_channels(
    student: nn.Module,
    teacher: nn.Module,
    features: Features,
    size: int,
    where: str = 'train:feature_opt:layers',
) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Runs both networks once on zeros and pairs their tapped layers.

    Args:
        student, teacher: Bare networks (on ``'meta'`` nothing is computed).
        features: Which layers; None stands for the architecture's defaults.
        size: Height and width of the input, for networks that take any.
        where: Key of the option file to name in an error.

    Returns:
        The teacher's tap for each tap of the student, and the channels ``(student, teacher)`` for each.

    Raises:
        UserError: A tap does not exist, or its maps differ in height and width.
    """
    layers = features.layers if features.layers is not None else default_taps(student)
    pairs = dict(layers) if isinstance(layers, Mapping) else {name: name for name in layers}
    if not pairs:
        raise UserError(f'{where}: the list is empty, name at least one module.')
    maps = []
    for network, names in ((student, list(pairs)), (teacher, sorted(set(pairs.values())))):
        taps = FeatureTaps(network, names, where)
        with torch.no_grad(), taps:
            network(*example_inputs(network, size))
        maps.append(taps.pop())
        taps.close()
        silent = [name for name in names if name not in maps[-1]]
        if silent:
            raise UserError(f'{where}: {type(network).__name__} never runs the module {silent[0]!r}, tap another one.')
    channels = {}
    for own, other in pairs.items():
        mine, its = maps[0][own], maps[1][other]
        if mine.dim() != 4 or its.dim() != 4 or mine.shape[2:] != its.shape[2:]:
            raise UserError(
                f'{where}: the tap {own!r} of the student is {tuple(mine.shape[1:])} and {other!r} of the teacher '
                f'{tuple(its.shape[1:])} for a {size}x{size} input; tap maps of equal height and width.'
            )
        channels[own] = (mine.shape[1], its.shape[1])
    return pairs, channels
