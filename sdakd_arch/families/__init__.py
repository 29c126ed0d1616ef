"""What this project knows of architectures: one file each, and :class:`Generic` for all that has none.

Nothing outside of this package asks for an architecture's name; it asks :func:`family_of`.
"""

from __future__ import annotations

from collections.abc import Mapping

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
    'family_of',
    'infer_network',
    'modern_keys',
    'register_family',
]

GENERIC = Generic()


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
    return next((found for family in _latest_first() if (found := family.infer(state))), None)


def modern_keys(state: State) -> State:
    """A state dict with today's names of keys, whatever its family called them before."""
    for family in _latest_first():
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
