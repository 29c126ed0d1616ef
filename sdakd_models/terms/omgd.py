"""OMGD: structure, smoothness and channel means, from one or several teachers at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.adapter_arch import AdapterBank
from sdakd_arch.pairing import Pairing, pair_taps
from sdakd_models.options import OMGD, typed
from sdakd_models.terms.base import Context, Term, register_term

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel

WHERE = 'train:omgd_opt'


@register_term('omgd')
class OMGDTerm(Term):
    """SSIM and channel means against those of one or several teachers, and total variation: OMGD less `imitation`."""

    needs_teacher = True
    needs_features = True
    own = frozenset(OMGD.__struct_fields__)

    def __init__(self, options: Mapping, model: SDAKDModel) -> None:
        super().__init__(options, model)
        self.pairs, channels = {}, {}
        for name, pairing in pairings(options, model.bare_student, model.teachers).items():
            model.watch('student', pairing.pairs)
            model.watch(name, pairing.pairs.values())
            self.pairs[name] = pairing.pairs
            channels |= {f'{name}/{own}': widths for own, widths in pairing.channels.items()}
        self.adapter = None
        if channels:
            bank = AdapterBank(channels, hidden_ratio=None)
            self.adapter = model.add_player('omgd', bank, side='g', terms=('omgd',))

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        mine, adapted = context.features('student'), {}
        if self.adapter is not None:  # one pass for all teachers, as distributed training wants it
            maps = {f'{name}/{own}': mine[own] for name, pairs in self.pairs.items() for own in pairs}
            adapted = self.adapter.net(maps)
        found: dict[str, torch.Tensor] = {}
        for name, pairs in self.pairs.items():
            ours = {own: adapted[f'{name}/{own}'] for own in pairs}
            its = context.features(name)
            theirs = {own: its[other] for own, other in pairs.items()}
            for part, value in self.loss(*context.pair(name), ours, theirs).items():
                if part == 'tv':  # the same for every teacher
                    found[part] = found.get(part, 0) + value
                else:
                    found[part if name == 'teacher' else f'{part}_{name}'] = value
        return found

    @classmethod
    def teachers(cls, options: Mapping) -> tuple[str, ...]:
        return tuple(read_omgd(options))

    @classmethod
    def check(cls, options: Mapping, where: str) -> None:
        super().check(options, where)
        read_omgd(options)
        for key in ('ssim_weight', 'tv_weight', 'channel_weight'):
            value = options.get(key, 0)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f'{where}:{key}: write a number (1.0e-5 needs its dot in YAML), not {value!r}.')

    @classmethod
    def check_networks(
        cls,
        options: Mapping,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        discriminators: Mapping[str, nn.Module],
    ) -> None:
        pairings(options, student, teachers)

    @classmethod
    def teacher_taps(
        cls, options: Mapping, student: nn.Module, teachers: Mapping[str, nn.Module]
    ) -> dict[str, tuple[str, ...]]:
        found = pairings(options, student, teachers)
        return {name: tuple(pairing.pairs.values()) for name, pairing in found.items()}


def read_omgd(options: Mapping) -> dict[str, list[str] | dict[str, str] | None]:
    """The layers to compare by teacher; None stands for the architectures' defaults.

    Raises:
        UserError: A teacher stands twice, or layers are given for one that is not listed.
    """
    own = typed(OMGD, {key: value for key, value in options.items() if key in OMGDTerm.own}, WHERE)
    if len(set(own.teachers)) != len(own.teachers):
        raise UserError(f'{WHERE}:teachers: a teacher stands twice in {own.teachers}.')
    layers = own.layers or {}
    for name in layers:
        if name not in own.teachers:
            raise UserError(f'{WHERE}:layers:{name}: this teacher is not under teachers; {near(name, own.teachers)}.')
    return {name: layers.get(name) for name in own.teachers}


def pairings(options: Mapping, student: nn.Module, teachers: Mapping[str, nn.Module]) -> dict[str, Pairing]:
    """The layers of the student and of each teacher that are compared, by teacher; an empty list compares none."""
    return {
        name: Pairing({}, {})
        if layers is not None and not layers
        else pair_taps(student, teachers[name], layers, f'{WHERE}:layers:{name}')
        for name, layers in read_omgd(options).items()
    }
