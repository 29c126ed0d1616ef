"""Widths: narrower versions of a network, and what a network costs."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sdakd.compat import UserError, near, one_line
from sdakd_arch.families import family_of
from sdakd_arch.weights import State, describe, tensors_only

LARGEST_GRAPH = (1 << 28, 20_000)  # values and tensors of a network that a graph tells


def student_of(network: Mapping, ratio: float) -> dict:
    """Narrows a generator or a discriminator: the same architecture and depth, ``ratio`` times the channels.

    Args:
        network: Options of the wide network, as BasicSR's ``build_network`` takes them, with ``type``.
        ratio: Between 0 (exclusive) and 1 (allowed): SDAKD uses 1/2, 1/4 and 1/8.

    Returns:
        The options of the narrow network.

    Raises:
        UserError: An architecture that this project cannot narrow, or a ratio that leaves a fraction of a channel.
    """
    kind = network.get('type')
    exact = Fraction(ratio).limit_denominator(1024) if math.isfinite(ratio) else Fraction(0)
    if not 0 < exact <= 1:
        raise UserError(f'the width ratio {ratio} of {kind} must be greater than 0 and at most 1.')
    return family_of(network).narrow(network, exact)


def fraction(text: object, where: str) -> Fraction:
    """A width as YAML writes it, ``1/4`` or ``0.25``.

    Raises:
        UserError: It is no number greater than 0 and at most 1.
    """
    try:
        value = Fraction(str(text))
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1:
        raise UserError(f"{where}: write a share of the teacher's channels such as 1/4, not {text!r}.")
    return value.limit_denominator(1024)


def discriminator_of(generator: Mapping) -> dict:
    """The discriminator that a generator of this architecture is published with, at its full width.

    Args:
        generator: Options of the teacher.

    Raises:
        UserError: An architecture without one.
    """
    found = family_of(generator).published_discriminator(generator)
    if found is None:
        kind = generator.get('type')
        raise UserError(
            f'no discriminator is known for the architecture {kind!r}; write its type and keys at full width.'
        )
    return found


def lookup(registry, name: str, where: str):
    """The class registered under ``name``, BasicSR's suffix rule included; unlike BasicSR it says what is near.

    Raises:
        UserError: Nothing of that name is registered.
    """
    known = dict(iter(registry))
    for key in (name, f'{name}_basicsr') if isinstance(name, str) else ():
        if key in known:
            return known[key]
    names = {key.removesuffix('_basicsr') for key in known}
    raise UserError(f'{where}: nothing called {name!r} is registered; {near(str(name), names)}.')


def build(network: Mapping, where: str) -> nn.Module:
    """Builds a network from BasicSR options, without logging.

    Raises:
        UserError: Unknown type or argument, or values the architecture refuses.
    """
    options = dict(network)
    if 'type' not in options:
        raise UserError(f'{where}: the key type is missing; name an architecture, for example RRDBNet.')
    cls = lookup(ARCH_REGISTRY, options.pop('type'), f'{where}:type')
    try:
        _refuse_slips(cls, options)
        with tensors_only(where):  # some networks load a part of theirs from a file that an option names
            return cls(**options)
    except (UserError, _BeyondError):
        raise
    except Exception as error:  # of whatever an architecture does with its arguments
        raise UserError(f'{where}: {cls.__name__} cannot be built from these options: {one_line(error)}.') from None


def _refuse_slips(cls: type, options: Mapping) -> None:
    """Says what is near an argument that a class does not take; Python's own error would not."""
    parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        for key in options.keys() - parameters.keys():
            raise TypeError(f'it takes no {key!r}; {near(str(key), parameters)}')


class _BeyondError(Exception):
    """A network becomes larger than it may."""


@contextlib.contextmanager
def _budget(values: int, tensors: int) -> Iterator[None]:
    """While it lasts, a network with more values or tensors than this stops to be built."""
    left = [values, tensors]

    def count(module, name, tensor):
        if tensor is not None:
            left[0] -= tensor.numel()
            left[1] -= 1
            if min(left) < 0:
                raise _BeyondError

    hooks = [
        nn.modules.module.register_module_parameter_registration_hook(count),
        nn.modules.module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def budget_for(state: State | None) -> contextlib.AbstractContextManager:
    """While it lasts, a network that becomes much larger than what a file holds stops to be built."""
    if state is None:
        return _budget(*LARGEST_GRAPH)
    # normalisations register what they derive from a weight as well
    return _budget(2 * sum(tensor.numel() for tensor in state.values()) + (1 << 20), 4 * len(state) + 100)


def check_channels(network: Mapping, path: str | os.PathLike, where: str) -> None:
    """Checks that a network of a file is one of RGB images.

    Raises:
        UserError: It takes or gives another number of channels.
    """
    taken = network.get('num_in_ch', network.get('in_chans', 3))
    given = network.get('num_out_ch', taken)
    if isinstance(taken, int) and isinstance(given, int) and (taken, given) != (3, 3):
        raise UserError(
            where,
            f'{path} holds {describe(network)}, which maps {taken} channel{"s" * (taken != 1)} to {given}, where RGB '
            'images have 3; give a network for RGB.',
        )


def build_told(network: Mapping, state: State | None, where: str, path: str | os.PathLike) -> nn.Module:
    """:func:`build` of a network that a file tells of itself, which may say anything.

    It stops where the network becomes much larger than what the file holds, before that much memory is taken.

    Args:
        network: Options that the file told, or that were told from it.
        state: What the file holds; None for a graph, whose network is built without memory.
        where: Flag or key to name in an error.
        path: The file.

    Raises:
        UserError: As :func:`build`, or the network is too large.
    """
    try:
        with budget_for(state):
            on_meta = build_on_meta(network, where)
            return on_meta if state is None else build(network, where)
    except _BeyondError:
        raise UserError(
            where, f'{path} does not hold the network that it tells, {describe(network)}, which is larger.'
        ) from None
    except UserError:
        raise
    except Exception as error:  # options that nobody checked meet the code of an architecture
        reason = f'{type(error).__name__}: {error}'[:200]
        raise UserError(
            where, f'{path} tells a network that cannot be built, {describe(network)} ({reason}).'
        ) from None


def build_on_meta(network: Mapping, where: str) -> nn.Module:
    """:func:`build` without memory and computation, except for constructors that look at values, as SwinIR's does."""
    try:
        with torch.device('meta'):
            return build(network, where)
    except UserError:
        return build(network, where).to('meta')


def initialise(network: nn.Module) -> None:
    """Gives a generator that starts from nothing weights from which it learns at once, as its family knows."""
    with torch.no_grad():
        family_of(network).initialise(network)


def example_inputs(network: nn.Module, size: int = 64) -> tuple[torch.Tensor, ...]:
    """What to run a network on to find out its shapes: an image of ``size`` x ``size`` on the network's device.

    A network that takes more, or one size only, says so by a method ``example_inputs()``, which goes before ``size``;
    one that takes multiples of a number gets the next larger one.
    """
    own = getattr(network, 'example_inputs', None)
    if own:
        return own()
    size += -size % family_of(network).multiple(network)
    return (next(network.parameters()).new_zeros(1, 3, size, size),)


def scale_of(network: nn.Module, where: str) -> int:
    """The factor between a generator's input and output size, found by running it on meta tensors."""
    with torch.device('meta'):
        inputs = example_inputs(network.to('meta'))
        try:
            output = network(*inputs)
        except Exception as error:  # of whatever an architecture does
            sentence = f'{type(network).__name__} does not take an RGB image ({one_line(error)}).'
            raise UserError(where, sentence) from None
    size = inputs[0].shape[-1]
    if output.shape[-1] % size or output.shape[1] != 3:
        raise UserError(f'{where}: {type(network).__name__} maps 3x{size}x{size} to {tuple(output.shape[1:])}.')
    return output.shape[-1] // size


def cost(network: Mapping, size: int = 64) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a generator or discriminator for one RGB image of ``size`` x ``size``.

    A network for images of one size, such as GCFSR, is counted at that one (:func:`example_inputs`).
    A multiply-accumulate is half of what torch's own flop counter counts: convolutions and matrix products, no
    element-wise operations. Nothing is computed: the network runs on meta tensors.
    """
    net = build_on_meta(network, 'network')
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(*example_inputs(net, size))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2
