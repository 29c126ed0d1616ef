"""Terms of the student's objective: a loss plus where its inputs come from.

A method is a loss file, a term and an option file; the training step knows no term by name. Every other module of this
package registers the terms of one method.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar

import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.width import lookup
from sdakd_losses.running import RunningScale
from sdakd_models.options import check_share

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel


class Context:
    """What one iteration offers to the terms; what costs a forward pass is computed when first asked for.

    A teacher's answer near the border of a crop is an artefact of padding: what compares with a teacher takes
    :meth:`pair`, :meth:`inside` and :meth:`features`, which leave out ``train:teacher_margin`` input pixels where the
    answer has no context (:func:`sdakd_models.wiring.border_of`).

    Args:
        model: The model in training; ``model.lq`` holds the input, ``(N, 3, h, w)`` in [0, 1].
        with_features: Whether the forward passes record activations.
        author: Who stands in the student's place: a teacher that learns; default the student itself.
    """

    def __init__(self, model: SDAKDModel, with_features: bool, author: nn.Module | None = None) -> None:
        self.model = model
        self.with_features = with_features
        self.author = author
        self._images: dict[str, torch.Tensor] = {}
        self._features: dict[str, dict[str, torch.Tensor]] = {}

    def target(self, term: str) -> torch.Tensor:
        """The ground truth as ``term`` wants it (sharpened or not), ``(N, 3, H, W)`` in [0, 1]."""
        return self.model.target(term)

    def run(self, network: nn.Module, image: torch.Tensor) -> torch.Tensor:
        """A forward pass of a discriminator in the precision of the training; the result is float32."""
        return self.model.run(network, image)

    def as_input(self, image: torch.Tensor) -> torch.Tensor:
        """What networks are given for an image in [0, 1]."""
        return self.model.as_input(image)

    def image(self, who: str) -> torch.Tensor:
        """The image of ``'student'``, with gradient, or of a teacher by name, without; ``(N, 3, H, W)``."""
        if who not in self._images and who != 'student':
            known = self.model.answer(who, self.with_features)
            if known is not None:
                self._images[who], self._features[who] = known.image, known.features
        if who not in self._images:
            network = (self.author or self.model.net_g) if who == 'student' else self.model.teachers[who]
            taps = self.model.taps.get(who) if self.with_features else None
            with torch.set_grad_enabled(who == 'student'), taps or nullcontext():
                self._images[who] = self.model.generate(network)
            if taps is not None:
                self._features[who] = {name: feature.float() for name, feature in taps.pop().items()}
        return self._images[who]

    def features(self, who: str) -> dict[str, torch.Tensor]:
        """Activations by tap without the border, of ``'student'`` with gradient or of a teacher without.

        See ``SDAKDModel.watch`` for what is recorded.
        """
        self.image(who)
        return {tap: self.inside(maps) for tap, maps in self._features[who].items()}

    def inside(self, maps: torch.Tensor) -> torch.Tensor:
        """Images or feature maps ``(N, C, H, W)`` of whatever size without the border that teachers' answers lack."""
        margin = self.model.border
        if not margin:
            return maps
        height, width = maps.shape[2:]
        top, left = (-(-margin * a // b) for a, b in zip((height, width), self.model.lq.shape[2:], strict=True))
        return maps[:, :, top : height - top, left : width - left]

    def pair(self, teacher: str = 'teacher') -> tuple[torch.Tensor, torch.Tensor]:
        """The student's image and a teacher's, both without the border."""
        return self.inside(self.student), self.inside(self.image(teacher))

    @property
    def student(self) -> torch.Tensor:
        """The student's image, with gradient."""
        return self.image('student')

    @property
    def teacher(self) -> torch.Tensor:
        """The image of the teacher of the block ``teacher:``, without gradient."""
        return self.image('teacher')


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

    @classmethod
    def teachers(cls, options: Mapping) -> tuple[str, ...]:
        """The teachers that it compares with, by name: ``teacher`` or keys of the block ``teachers:``."""
        return ('teacher',) if cls.needs_teacher else ()

    @classmethod
    def teacher_taps(
        cls, options: Mapping, student: nn.Module, teachers: Mapping[str, nn.Module]
    ) -> dict[str, tuple[str, ...]]:
        """The taps of teachers whose maps it compares, by teacher; networks are on ``'meta'``.

        These maps can be read from a teacher's cache. For a term that names none, the teacher is run in every step.
        """
        return {}

    @classmethod
    def discriminators(cls, options: Mapping) -> tuple[str, ...]:
        """The discriminators that it looks into, by name; a stage with this term must have them on."""
        return ()

    def __init__(self, options: Mapping, model: SDAKDModel) -> None:
        self.loss = build_loss({k: v for k, v in options.items() if k not in self.own | {'share'}}).to(model.device)

    def state(self) -> dict[str, dict]:
        """What the term has measured of this run (:class:`RunningScale`), for the training state."""
        return {name: scale.get_extra_state() for name, scale in self._scales().items()}

    def load_state(self, state: Mapping[str, Mapping]) -> None:
        """Brings :meth:`state` back."""
        for name, scale in self._scales().items():
            if name in state:
                scale.set_extra_state(state[name])

    def _scales(self) -> dict[str, RunningScale]:
        return {name: module for name, module in self.loss.named_modules() if isinstance(module, RunningScale)}

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
        check_share(options, where)
        known = {name for name in inspect.signature(loss.__init__).parameters if name != 'self'} | {'share'}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(loss.__init__).parameters.values())
        for key, value in options.items():
            if key not in known | cls.own | {'type'} and not takes_any:
                raise UserError(
                    f'{where}: {options["type"]} takes no {key!r}; {near(key, (known | cls.own) - {"self"})}.'
                )
            if key == 'loss_weight' and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise UserError(f'{where}:loss_weight: write a number (2.0e-4 needs its dot in YAML), not {value!r}.')

    @classmethod  # noqa: B027  most terms have nothing to refuse
    def check_networks(
        cls,
        options: Mapping,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        discriminators: Mapping[str, nn.Module],
    ) -> None:
        """Refuses layers that the networks do not have; they are on ``'meta'``, where running them costs nothing.

        Raises:
            UserError: With near names.
        """

    @classmethod  # noqa: B027  most terms work with any crop
    def check_crop(
        cls,
        options: Mapping,
        size: int,
        student: nn.Module,
        teachers: Mapping[str, nn.Module],
        discriminators: Mapping[str, nn.Module],
    ) -> None:
        """Refuses what cannot be done with input crops of ``size`` x ``size`` pixels; networks are on ``'meta'``.

        Raises:
            UserError: With the sizes.
        """


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
