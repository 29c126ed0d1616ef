"""Terms of the student's objective: a loss plus where its inputs come from.

A method is a loss file, a term and an option file; the training step knows no term by name. Every other module of this
package registers the terms of one method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from msgspec import Meta
from torch import nn

from sdakd_arch.adapter_arch import AdapterBank, match_size
from sdakd_arch.pairing import Pairing, pair_taps
from sdakd_losses.running import RunningScale
from sdakd_models.cast import Cast
from sdakd_models.context import Context
from sdakd_models.options import Block, TermBlock
from sdakd_models.parts import with_backbone_in_parts
from sdakd_models.scenario import Scenario, teachers_of

Maps = dict[str, torch.Tensor]
Layers = list[str] | dict[str, str]
SIDE = 16  # of the input on which tapped networks show their maps: a run builds its terms several times


class Term(ABC):
    """One term: computes named, weighted scalars from a :class:`Context`.

    A subclass says what it needs as class attributes and options. A term is built for the checks as well, with networks
    on ``'meta'``: what its constructor asks of them is refused before anything is created.

    Args:
        block: The term's block of the option file.
        cast: The networks.

    Attributes:
        name: Its name in stages.
        option: Key of its block under ``train:``.
        Options: What the block holds besides the loss. An option ``teachers`` names the teachers that it compares with;
            the default is ``teacher``.
        needs_teacher: Whether it compares with a teacher.
        needs_features: Whether it takes feature maps.
        loss: The loss of the block, built when it is first asked for.
    """

    class Options(Block):
        """No options besides the loss."""

    name: ClassVar[str]
    option: ClassVar[str]
    needs_teacher: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False

    def __init__(self, block: TermBlock, cast: Cast) -> None:
        self.block, self.options, self.device = block, block.options, cast.device
        self.micro_batch = cast.scenario.train.micro_batch_size

    @cached_property
    def loss(self) -> nn.Module:
        loss = self.block.build(self.device)
        return loss if self.micro_batch is None else with_backbone_in_parts(loss, self.micro_batch)

    def check(self, scenario: Scenario, cast: Cast) -> None:  # noqa: B027  most terms work with all files and crops
        """Refuses what the run cannot do; fetches files that the loss reads.

        Args:
            scenario: The run, which knows the sizes of crops.
            cast: Its networks on ``'meta'``.

        Raises:
            UserError: With the key.
        """

    @abstractmethod
    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        """The term's contributions, by the name under which they are logged (without ``l_g_``)."""

    def state(self) -> dict[str, dict]:
        """What the term has measured of this run (:class:`RunningScale`), for the training state."""
        return {name: scale.get_extra_state() for name, scale in self._scales().items()}

    def load_state(self, state: dict[str, dict]) -> None:
        """Brings :meth:`state` back."""
        for name, scale in self._scales().items():
            if name in state:
                scale.set_extra_state(state[name])

    def _scales(self) -> dict[str, RunningScale]:
        return {name: module for name, module in self.loss.named_modules() if isinstance(module, RunningScale)}


class FeatureTerm(Term):
    """A term on feature maps: the student's, brought to the teacher's channels by an adapter, and the teacher's.

    A subclass chooses the adapter, and may be nothing else: the loss takes the adapted maps of the student and those of
    the teacher, mappings with the student's taps as keys, and returns a scalar, which is logged under the term's name.

    Attributes:
        adapter: ``mlp`` (:class:`~sdakd_arch.adapter_arch.ChannelMLP` of the option ``hidden_ratio``, if there is one),
            ``linear`` (a 1x1 convolution), ``connector`` (:class:`~sdakd_arch.adapter_arch.Connector`) or ``none``. It
            learns with the student, where the term is on.
        label: Of the adapters' checkpoint, ``net_<label>_<iteration>.pth``; default the term's name.
        same_size: Whether the student's maps are brought to the height and width of the teacher's.
        pairs: By teacher, its tap for each tap of the student.
        player: Trains the adapters; None where there are none.
    """

    class Options(Block):
        """What the block of a feature term holds besides the arguments of its loss."""

        layers: Annotated[Layers | None, Meta(description='Taps, or student tap: teacher tap.')] = None

    needs_teacher = True
    needs_features = True
    adapter: ClassVar[Literal['mlp', 'linear', 'connector', 'none']] = 'mlp'
    label: ClassVar[str] = ''
    same_size: ClassVar[bool] = True

    def __init__(self, block: TermBlock, cast: Cast) -> None:
        super().__init__(block, cast)
        self.pairs: dict[str, dict[str, str]] = {}
        channels: dict[str, tuple[int, int]] = {}
        for teacher in teachers_of(block):
            pairing = self.pair(cast, teacher)
            cast.watch('student', pairing.pairs)
            cast.watch(teacher, pairing.pairs.values())
            self.pairs[teacher] = pairing.pairs
            channels |= {self.key(teacher, tap): pair for tap, pair in pairing.channels.items()}
        network = self.build_adapter(channels) if channels else None
        self.player = network and cast.add_player(self.label or self.name, network, 'g', (self.name,))

    def pair(self, cast: Cast, teacher: str) -> Pairing:
        """The taps of the student and of a teacher that belong together."""
        return pair_taps(cast.student, cast.teachers[teacher], self.options.layers, self.options.key('layers'), SIDE)

    def key(self, teacher: str, tap: str) -> str:
        """The name of an adapter."""
        return tap if teacher == 'teacher' else f'{teacher}/{tap}'

    def build_adapter(self, channels: Mapping[str, tuple[int, int]]) -> nn.Module | None:
        """The adapters for numbers of channels ``(student, teacher)``, by name."""
        if self.adapter == 'none':
            return None
        ratio = {'mlp': getattr(self.options, 'hidden_ratio', 1.0), 'linear': 0, 'connector': None}[self.adapter]
        return AdapterBank(channels, hidden_ratio=ratio)

    def maps(self, context: Context) -> dict[str, tuple[Maps, Maps]]:
        """By teacher: maps of the student, with gradient, and of the teacher, by the student's tap, as they are."""
        student = context.features('student')
        found = {}
        for name, pairs in self.pairs.items():
            teacher = context.features(name) if pairs else {}
            found[name] = {tap: student[tap] for tap in pairs}, {tap: teacher[other] for tap, other in pairs.items()}
        return found

    def adapted(self, context: Context) -> dict[str, tuple[Maps, Maps]]:
        """The same with the student's maps at the teacher's channels, height and width."""
        found = self.maps(context)
        maps = {self.key(name, tap): each for name, (student, _) in found.items() for tap, each in student.items()}
        if self.player is not None:  # one pass for all teachers, as distributed training wants it
            with nullcontext() if self.adapter == 'connector' else context.autocast():  # batch norm stays in float32
                maps = self.player.net(maps)
        for name, (student, teacher) in found.items():
            for tap in student:
                adapted = maps[self.key(name, tap)].float()
                student[tap] = match_size(adapted, teacher[tap]) if self.same_size else adapted
        return found

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        return {
            self.name if name == 'teacher' else f'{self.name}_{name}': self.loss(student, teacher)
            for name, (student, teacher) in self.adapted(context).items()
        }
