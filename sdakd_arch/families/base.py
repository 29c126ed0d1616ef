"""What a family of architectures says of itself, and the registry of families."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import ClassVar

import torch
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.ncnn_graph import Graph, Placed
from sdakd_arch.recomputation import recompute

State = dict[str, torch.Tensor]


class DescribedState(State):
    """A state dict whose file says which network it is.

    Args:
        state: Names and tensors.
        network: The network's options as BasicSR's ``build_network`` takes them.
    """

    def __init__(self, state: State, network: dict) -> None:
        super().__init__(state)
        self.network = network


class Family:
    """What this project knows of an architecture; a subclass says what differs from this one, and nothing else does.

    Options are those that BasicSR's ``build_network`` takes, with ``type``; where a module is asked for, it is the
    bare network on any device.
    """

    types: ClassVar[tuple[str, ...]] = ()  # names under which the architecture is registered with BasicSR
    channels: ClassVar[Mapping[str, int]] = {}  # options that count channels, with their defaults; the width is first
    discriminator: ClassVar[bool] = False
    faces: ClassVar[bool] = False  # whether it makes whole faces of one size, whatever the size of the input
    examples: ClassVar[Mapping[str, dict]] = {}  # options of networks that `sdakd bench -m random:NAME` makes, by name

    # ------------------------------------------------------------------------------------------------ weights files

    def rename(self, state: State) -> State:
        """A state dict with today's names of keys; as it is, where they are or where it is of another family."""
        return state

    def infer(self, state: State) -> dict | None:
        """The options that a state dict tells; None where it is of another family or does not tell enough."""
        return None

    def untold(self, state: State) -> str | None:
        """What a state dict of this family does not tell of its network, as a clause; None where it is of another."""
        return None

    def from_ncnn(self, graph: Graph) -> tuple[Placed, dict] | None:
        """The layers by their names in a state dict, and the options, of ncnn's graph; None where it is not this one's.

        Raises:
            NcnnError: It deviates from the architecture.
        """
        return None

    # ------------------------------------------------------------------------------------------------------- widths

    def width(self, network: Mapping) -> int | None:
        """The number of channels that says how wide a network is; None where no option does."""
        return next((network.get(key, default) for key, default in self.channels.items()), None)

    def narrow(self, network: Mapping, ratio: Fraction) -> dict:
        """The options of a network with ``ratio`` times the channels.

        Raises:
            UserError: A fraction of a channel would be left.
        """
        return dict(network) | {key: narrowed(network, key, default, ratio) for key, default in self.channels.items()}

    def published_discriminator(self, network: Mapping) -> dict | None:
        """The discriminator that this generator is published with, at its full width; None where none is known."""
        return None

    # ----------------------------------------------------------------------------------------------------- training

    def trunk(self, network: nn.Module) -> list[str] | None:
        """The modules of the trunk, by name, whose outputs are compared: one for each step of the depth, in order."""
        return None

    def blocks(self, network: nn.Module) -> list[str]:
        """The modules in whose passes most of a training's memory goes, by name, each with maps between in and out."""
        return self.trunk(network) or []

    def recompute(self, network: nn.Module) -> bool:
        """Has a network, in training, keep less than all its activations; whether that can be done.

        See :mod:`sdakd_arch.recomputation`.
        """
        return recompute(map(network.get_submodule, self.blocks(network)))

    def initialise(self, network: nn.Module) -> None:
        """Gives a network that starts from nothing weights from which it learns at once; called without gradients."""

    # ---------------------------------------------------------------------------------------------------- inference

    def multiple(self, network: nn.Module) -> int:
        """Sides of the input must be multiples of this number of pixels."""
        return 1

    def reach(self, network: Mapping) -> int | None:
        """How many input pixels away an output pixel still depends on the input; None where that cannot be told."""
        return None

    def widest(self, network: Mapping) -> int:
        """Values of the largest tensor inside a network per input pixel."""
        scale = network.get('scale', network.get('upscale', 4))
        return (self.width(network) or 64) * scale**2  # the last layers run at output resolution

    def accelerated(self, network: nn.Module, dtype: torch.dtype) -> nn.Module | None:
        """A module for processors that gives what a network gives, faster; None where none is known.

        It copies the weights, has no parameters, and takes what the network takes. Whoever asks compares both.
        """
        return None

    # ------------------------------------------------------------------------------------------------------- export

    def portable(self, network: nn.Module) -> nn.Module:
        """A network in operators that exporters of graphs know, with shared weights."""
        return network

    def regrouped(self, network: nn.Module, runtime: str) -> nn.Module:
        """A network in operators that ``onnxruntime`` or ``openvino`` computes faster, with copied weights."""
        return network

    def common(self, network: Mapping, state: State) -> tuple[dict, State]:
        """Options and state dict, of the same output, by the names and layers that other programs know."""
        return dict(network), state

    def catalogue(self, network: Mapping) -> tuple[str, list[str]] | None:
        """OpenModelDB's identifier of the architecture, and the network's size in its words; None where it has none."""
        return None

    def is_padded(self, names: Iterable[str]) -> bool:
        """Whether a file holds what :meth:`padded` adds in tensors of its own, by the names of its tensors."""
        return False

    def padded(self, network: Mapping, state: State) -> tuple[dict, State]:
        """Options and state dict, of the same output, in sizes that programs built on spandrel take for granted.

        Raises:
            ValueError: There is nothing to pad; the text goes on after the file's name.
        """
        raise ValueError(
            f'holds {network["type"]}, which has no growth channels to pad; where its architecture is known, it opens '
            'in spandrel, chaiNNer and ComfyUI as it is, or with --to safetensors'
        )


def narrowed(network: Mapping, key: str, default: int | None, ratio: Fraction) -> int:
    """``ratio`` times the channels that an option counts.

    Raises:
        UserError: It is no whole number, or is not given and has no default.
    """
    wide = network.get(key, default)
    if isinstance(wide, bool) or not isinstance(wide, int) or (wide * ratio).denominator != 1:
        raise UserError(f'{key} of {network["type"]} is {wide!r}, which {ratio} does not divide into channels.')
    return int(wide * ratio)


FAMILIES: dict[str, Family] = {}  # by registered name of the architecture


def register_family(cls: type[Family]) -> type[Family]:
    """Makes a family known under the names of its architectures; for a plug-in as for this project."""
    family = cls()
    for name in cls.types:
        if name in FAMILIES:
            raise ValueError(f'{name} has two families, {type(FAMILIES[name]).__name__} and {cls.__name__}')
        FAMILIES[name] = family
    return cls
