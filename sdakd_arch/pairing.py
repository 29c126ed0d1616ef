"""Which of a student's feature taps is compared with which of a teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.taps import FeatureTaps, default_taps
from sdakd_arch.width import example_inputs


@dataclass(frozen=True)
class Pairing:
    """The taps of a student and a teacher that belong together.

    Args:
        pairs: The teacher's tap for each tap of the student.
        channels: For each tap of the student, the numbers of channels ``(student, teacher)``.
    """

    pairs: dict[str, str]
    channels: dict[str, tuple[int, int]]


def pair_taps(
    student: nn.Module,
    teacher: nn.Module,
    layers: Sequence[str] | Mapping[str, str] | None,
    where: str,
    size: int = 32,
) -> Pairing:
    """Pairs taps of a student and a teacher, which may be of another depth and architecture.

    Both networks are run once on zeros. The maps of a pair may differ in height and width
    (:func:`sdakd_arch.adapter_arch.match_size`).

    Args:
        student, teacher: Bare networks (on ``'meta'`` nothing is computed).
        layers: None taps both trunks at equally many, evenly spread depths and pairs them in order: the student's
            second of four with the teacher's second of four. A list names taps that both have, a mapping gives the
            teacher's tap for each of the student's.
        where: Key of the option file to name in an error.
        size: Height and width of the input, for networks that take any.

    Raises:
        UserError: No tap is given; one does not exist, is never run or is no feature map; or an architecture has no
            default taps.
    """
    if layers is None:
        count = min(len(default_taps(network, where=where)) for network in (student, teacher))
        pairs = dict(zip(*(default_taps(network, count, where) for network in (student, teacher)), strict=True))
    else:
        pairs = dict(layers) if isinstance(layers, Mapping) else {tap: tap for tap in layers}
    if not pairs:
        raise UserError(f'{where}: the list is empty, name at least one module.')
    own = _widths(student, list(pairs), where, size)
    other = _widths(teacher, sorted(set(pairs.values())), where, size)
    return Pairing(pairs, {tap: (own[tap], other[paired]) for tap, paired in pairs.items()})


def _widths(network: nn.Module, names: list[str], where: str, size: int) -> dict[str, int]:
    """The channels of a network's maps, by tap."""
    taps = FeatureTaps(network, names, where)
    with torch.no_grad(), taps:
        network(*example_inputs(network, size))
    maps = taps.pop()
    taps.close()
    for name in names:
        if name not in maps:
            raise UserError(f'{where}: {type(network).__name__} never runs the module {name!r}, tap another one.')
        if maps[name].dim() != 4:
            raise UserError(f'{where}: the tap {name!r} of {type(network).__name__} is no feature map.')
    return {name: maps[name].shape[1] for name in names}
