"""Terms of the student's objective: a loss plus where its inputs come from.

A method is a loss file, a term and an option file; the training step knows no term by name.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.adapter_arch import AdapterBank
from sdakd_arch.taps import FeatureTaps, default_taps
from sdakd_arch.width import lookup
from sdakd_models.options import Features, typed

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel


class Context:
    """What one iteration offers to the terms; what costs a forward pass is computed when first asked for.

    Args:
        model: The model in training; ``model.lq`` holds the input, ``(N, 3, h, w)`` in [0, 1].
        with_features: Whether the forward passes record activations.
    """

    def __init__(self, model: SDAKDModel, with_features: bool) -> None:
        self.model = model
        self.with_features = with_features

    def target(self, term: str) -> torch.Tensor:
        """The ground truth as ``term`` wants it (sharpened or not), ``(N, 3, H, W)`` in [0, 1]."""
        return self.model.target(term)

    @cached_property
    def student(self) -> torch.Tensor:
        """The student's image, with gradient."""
        return self._run(self.model.net_g, self.model.student_taps)

    @cached_property
    def teacher(self) -> torch.Tensor:
        """The teacher's image, without gradient."""
        with torch.no_grad():
            return self._run(self.model.teacher, self.model.teacher_taps)

    def _run(self, network: nn.Module, taps: FeatureTaps | None) -> torch.Tensor:
        if taps is None or not self.with_features:
            return network(self.model.lq)
        with taps:
            return network(self.model.lq)

    @cached_property
    def student_features(self) -> dict[str, torch.Tensor]:
        """The student's activations by tap, with gradient."""
        assert self.student is not None
        return self.model.student_taps.pop()

    @cached_property
    def teacher_features(self) -> dict[str, torch.Tensor]:
        """The teacher's activations by tap, without gradient."""
        assert self.teacher is not None
        return self.model.teacher_taps.pop()


class Term(ABC):
    """One term. Subclasses set the class attributes, and compute named, weighted scalars from a :class:`Context`.

    Args:
        options: The term's block under ``train:``.
        model: The model it belongs to.
    """

    option: ClassVar[str]
    needs_teacher: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    own: ClassVar[frozenset[str]] = frozenset()  # keys of the block that are not arguments of the loss

    def __init__(self, options: Mapping, model: SDAKDModel) -> None:
        self.loss = build_loss({k: v for k, v in options.items() if k not in self.own}).to(model.device)

    @abstractmethod
    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        """The term's contributions, by the name under which they are logged (without ``l_g_``)."""

    @classmethod
    def check(cls, options: Mapping, where: str) -> None:
        """Refuses a loss that is not registered or that does not take these arguments.

        Raises:
            UserError: With near names.
        """
        if not isinstance(options, Mapping) or 'type' not in options:
            raise UserError(f'{where}: write the loss as a mapping with its type, for example {{type: L1Loss}}.')
        loss = lookup(LOSS_REGISTRY, options['type'], f'{where}:type')
        known = {name for name in inspect.signature(loss.__init__).parameters if name != 'self'}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(loss.__init__).parameters.values())
        for key, value in options.items():
            if key not in known | cls.own | {'type'} and not takes_any:
                raise UserError(
                    f'{where}: {options["type"]} takes no {key!r}; {near(key, (known | cls.own) - {"self"})}.'
                )
            if key == 'loss_weight' and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise UserError(f'{where}:loss_weight: write a number (2.0e-4 needs its dot in YAML), not {value!r}.')


TERMS: dict[str, type[Term]] = {}


def register_term(name: str):
    """Makes a term known under the name that stages use; its options stand under ``train:<name>_opt``."""

    def register(cls: type[Term]) -> type[Term]:
        if name in TERMS:
            raise ValueError(f'the term {name!r} is registered twice, by {TERMS[name].__name__} and {cls.__name__}')
        cls.option = f'{name}_opt'
        TERMS[name] = cls
        return cls

    return register


def term_options() -> dict[str, str]:
    """Known blocks of terms' options under ``train:``, to the term's name."""
    return {cls.option: name for name, cls in TERMS.items()} | {'gan_opt': 'gan'}


@register_term('pixel')
class PixelTerm(Term):
    """The student's image against the ground truth."""

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        return {'pix': self.loss(context.student, context.target('pixel'))}


@register_term('perceptual')
class PerceptualTerm(Term):
    """BasicSR's perceptual and style loss against the ground truth."""

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        perceptual, style = self.loss(context.student, context.target('perceptual'))
        return {name: value for name, value in (('percep', perceptual), ('style', style)) if value is not None}


@register_term('feature')
class FeatureTerm(Term):
    """The student's feature maps, adapted by channel MLPs, against the teacher's: SDAKD's stages 2 and 3."""

    needs_teacher = True
    needs_features = True
    own = frozenset(Features.__struct_fields__)

    def __init__(self, options: Mapping, model: SDAKDModel) -> None:
        super().__init__(options, model)
        features = read_features(options)
        self.pairs, channels = tap_channels(model.bare_student, model.teacher, features, model.lq_size, model.device)
        model.student_taps = FeatureTaps(model.bare_student, list(self.pairs))
        model.teacher_taps = FeatureTaps(model.teacher, sorted(set(self.pairs.values())))
        bank = AdapterBank(channels, hidden_ratio=features.hidden_ratio)
        self.adapter = model.add_player('adapter', bank, side='g', terms=('feature',))

    def __call__(self, context: Context) -> dict[str, torch.Tensor]:
        adapted = self.adapter.net(context.student_features)
        teacher = {own: context.teacher_features[other] for own, other in self.pairs.items()}
        return {'feature': self.loss(adapted, teacher)}


def read_features(options: Mapping) -> Features:
    """The typed part of ``train:feature_opt`` that is not the loss's."""
    own = {key: value for key, value in options.items() if key in FeatureTerm.own}
    return typed(Features, own, 'train:feature_opt')


def tap_channels(
    student: nn.Module, teacher: nn.Module, features: Features, size: int, device: torch.device | str
) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Runs both networks once on zeros and pairs their tapped layers.

    Args:
        student, teacher: Bare networks on ``device`` (``'meta'`` computes nothing).
        features: Which layers; None stands for the architecture's defaults.
        size: Height and width of the input.
        device: Where to run.

    Returns:
        The teacher's tap for each tap of the student, and the channels ``(student, teacher)`` for each.

    Raises:
        UserError: A tap does not exist, or its maps differ in height and width.
    """
    where = 'train:feature_opt:layers'
    layers = features.layers if features.layers is not None else default_taps(student)
    pairs = dict(layers) if isinstance(layers, Mapping) else {name: name for name in layers}
    if not pairs:
        raise UserError(f'{where}: the list is empty, name at least one module.')
    maps = []
    for network, names in ((student, list(pairs)), (teacher, sorted(set(pairs.values())))):
        taps = FeatureTaps(network, names, where)
        with torch.no_grad(), taps:
            network(torch.zeros(1, 3, size, size, device=device))
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
