"""What this project knows of architectures: one file each, and :class:`Generic` for all that has none.

Nothing outside of this package asks for an architecture's name; it asks :func:`family_of`.
"""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Mapping

from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.families import discriminators, gcfsr, rrdbnet, srvggnetcompact  # noqa: F401  they register themselves
from sdakd_arch.families.base import FAMILIES, DescribedState, Family, State, register_family
from sdakd_arch.families.generic import Generic

__all__ = [
    'FAMILIES',
    'DescribedState',
    'Family',
    'example_of',
    'check_told',
    'family_of',
    'infer_network',
    'modern_keys',
    'register_family',
    'registered',
    'untold',
]

GENERIC = Generic()
UNLIKE = (ArithmeticError, LookupError, ValueError)  # what families meet in a file that only looks like theirs at first
# BasicSR's generators of single images without a family: their options are numbers, they read no file
PLAIN = ('EDSR', 'MSRResNet', 'RCAN', 'RIDNet', 'SwinIR')
# packages that register more: video networks, extractors of features, parts that load files of their own
GENERAL = ('basicsr', 'facexlib', 'gfpgan', 'realesrgan')
LARGEST = 1024  # channels, blocks, pixels: of a number in options that a file tells
LONGEST = 64  # of a list or text there


def family_of(network: Mapping | nn.Module) -> Family:
    """The family of a network, given as its options with ``type``, as a module or as its state dict."""
    if isinstance(network, nn.Module):
        kind = type(network).__name__
    else:
        kind = network.get('type') if 'type' in network else (infer_network(network) or {}).get('type')
    return FAMILIES.get(str(kind).removesuffix('_basicsr'), GENERIC)


def _latest_first() -> list[Family]:
    """Every family once; a plug-in's before this project's, so that it may tell a variant from the original."""
    return list(dict.fromkeys(reversed(FAMILIES.values())))


def infer_network(state: State) -> dict | None:
    """The options of the generator or discriminator that a state dict belongs to, or None where they cannot be told."""
    if isinstance(state, DescribedState):
        return dict(state.network)
    for family in _latest_first():
        with contextlib.suppress(*UNLIKE):
            if found := family.infer(state):
                return found
    return None


def untold(state: State) -> str | None:
    """Why the network of a state dict cannot be told though its family is known, as a clause; None where it is not."""
    for family in _latest_first():
        if clause := family.untold(state):
            return clause
    return None


def registered(network: Mapping) -> type[nn.Module] | None:
    """The class of a network's options; None where its architecture is not registered here."""
    kind, known = str(network.get('type')).removesuffix('_basicsr'), dict(iter(ARCH_REGISTRY))
    return known.get(kind, known.get(f'{kind}_basicsr'))


def check_told(network: object, where: str) -> dict:
    """Checks options that a file tells of itself, or an option file beside it: nobody knows who wrote them.

    The architecture must be one of a family, one of :data:`PLAIN` or a plug-in's, and no number may be larger than
    :data:`LARGEST`. What is not registered at all passes: nothing can be built of it.

    Args:
        network: What the file says.
        where: The file and what of it, for an error.

    Returns:
        The options.

    Raises:
        UserError: They are no such options.
    """
    if not isinstance(network, Mapping) or not isinstance(network.get('type'), str):
        raise UserError(where, 'it is no network: write a mapping of its type and options, or take it out.')
    kind = network['type'].removesuffix('_basicsr')
    cls, known = registered(network), kind in FAMILIES or kind in PLAIN
    if cls is not None and not known and cls.__module__.partition('.')[0] in GENERAL:
        raise UserError(where, f'it names {kind[:LONGEST]}, which is no generator of images; {near(kind, FAMILIES)}.')
    for key, value in network.items():
        if not _is_modest(value):
            raise UserError(
                where,
                f'{reprlib.repr(key)} is {reprlib.repr(value)}, which no network here needs; numbers may be up to '
                f'{LARGEST}, texts and lists {LONGEST} long.',
            )
    return dict(network)


def _is_modest(value: object, depth: int = 0) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= LARGEST
    if isinstance(value, str):
        return len(value) <= LONGEST
    inner = list(value.values()) if isinstance(value, Mapping) else value
    return (
        isinstance(inner, list | tuple)
        and len(inner) <= LONGEST
        and depth < 3
        and all(_is_modest(entry, depth + 1) for entry in inner)
    )


def modern_keys(state: State) -> State:
    """A state dict with today's names of keys, whatever its family called them before."""
    for family in _latest_first():
        with contextlib.suppress(*UNLIKE):
            state = family.rename(state)
    return state


def example_of(name: str) -> dict:
    """Options of a generator that can be made without a file: an example of a family, or any registered architecture.

    Raises:
        UserError: There is none of this name, or its constructor wants to be told more than the channels of images.
    """
    known = {key: options for family in FAMILIES.values() for key, options in family.examples.items()}
    if name in known:
        return dict(known[name])
    if (found := GENERIC.example(name)) is None:
        raise UserError(f'no generator is called {name!r}; {near(name, known)}.')
    return found
