"""OMGD: structure, smoothness and channel means, from one or several teachers at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.adapter_arch import AdapterBank
from sdakd_arch.taps import FeatureTaps, default_taps
from sdakd_arch.width import example_inputs
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
        for name, layers in read_omgd(options).items():
            pairs, widths = tap_widths(model.bare_student, model.teachers[name], layers, name)
            model.watch('student', pairs)
            model.watch(name, pairs.values())
            self.pairs[name] = pairs
            channels |= {f'{name}/{own}': widths[own] for own in pairs}
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
        for name, layers in read_omgd(options).items():
            tap_widths(student, teachers[name], layers, name)

    @classmethod
    def teacher_taps(
        cls, options: Mapping, student: nn.Module, teachers: Mapping[str, nn.Module]
    ) -> dict[str, tuple[str, ...]]:
        found = {}
        for name, layers in read_omgd(options).items():
            pairs, _ = tap_widths(student, teachers[name], layers, name)
            found[name] = tuple(pairs.values())
        return found


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


def tap_widths(
    student: nn.Module,
    teacher: nn.Module,
    layers: list[str] | dict[str, str] | None,
    name: str,
) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Pairs the layers of a student with those of a teacher, which may be of another depth and architecture.

    Without ``layers``, both trunks are tapped at equally many, evenly spread depths and paired in order: the student's
    second of four with the teacher's second of four. Maps of unequal height and width may be paired: their means are
    compared.

    Args:
        student, teacher: Bare networks (on ``'meta'`` nothing is computed).
        layers: The pairs as in the options; empty for none.
        name: The teacher's, for errors.

    Returns:
        The teacher's tap for each tap of the student, and the channels ``(student, teacher)`` for each.

    Raises:
        UserError: A tap does not exist, is never run or is no feature map, or an architecture has no defaults.
    """
    where = f'{WHERE}:layers:{name}'
    if layers is None:
        count = min(len(default_taps(network, where=where)) for network in (student, teacher))
        pairs = dict(zip(*(default_taps(network, count, where) for network in (student, teacher)), strict=True))
    else:
        pairs = dict(layers) if isinstance(layers, Mapping) else {tap: tap for tap in layers}
    widths = []
    for network, names in ((student, list(pairs)), (teacher, sorted(set(pairs.values())))):
        taps = FeatureTaps(network, names, where)
        with torch.no_grad(), taps:
            network(*example_inputs(network, 32))
        maps = taps.pop()
        taps.close()
        for tap in names:
            if tap not in maps:
                raise UserError(f'{where}: {type(network).__name__} never runs the module {tap!r}, tap another one.')
            if maps[tap].dim() != 4:
                raise UserError(f'{where}: the tap {tap!r} of {type(network).__name__} is no feature map.')
        widths.append({tap: maps[tap].shape[1] for tap in names})
    return pairs, {own: (widths[0][own], widths[1][other]) for own, other in pairs.items()}
