"""What one iteration offers to terms and discriminators."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn

from sdakd_arch.taps import FeatureTaps, recording
from sdakd_data.answers import Answer


class Trainer(Protocol):
    """What a context asks of the model in training (:class:`sdakd_models.sdakd_model.SDAKDModel`).

    Attributes:
        lq: The input, ``(N, 3, h, w)`` in [0, 1].
        border: Input pixels that comparisons with a teacher leave out on each side.
        micro_batch: Images that go through a network at once; None for all.
        net_g: The student.
        teachers: By name.
        taps: What forward passes record, by ``'student'`` or the teacher's name.
    """

    lq: torch.Tensor
    border: int
    micro_batch: int | None
    net_g: nn.Module
    teachers: Mapping[str, nn.Module]
    taps: Mapping[str, FeatureTaps]

    def target(self, term: str) -> torch.Tensor: ...

    def run(self, network: nn.Module, image: torch.Tensor, role: str) -> torch.Tensor: ...

    def as_input(self, image: torch.Tensor) -> torch.Tensor: ...

    def generate(self, network: nn.Module, role: str) -> torch.Tensor: ...

    def answer(self, who: str, with_features: bool, with_image: bool = True) -> Answer | None: ...

    def autocast(self, role: str) -> AbstractContextManager: ...


class Context:
    """What one iteration offers to the terms; what costs a forward pass is computed when first asked for.

    A teacher's answer near the border of a crop is an artefact of padding: what compares with a teacher takes
    :meth:`pair`, :meth:`inside` and :meth:`features`, which leave out ``train:teacher_margin`` input pixels where the
    answer has no context (:attr:`sdakd_models.scenario.Scenario.border`).

    Args:
        model: The model in training.
        with_features: Whether the forward passes record activations.
        shown: The teachers whose images something will take. Of the others, a pass ends at the deepest activation; who
            takes such an image all the same costs another pass.
        author: Who stands in the student's place: a teacher that learns; default the student itself.
    """

    def __init__(
        self,
        model: Trainer,
        with_features: bool,
        author: nn.Module | None = None,
        shown: Collection[str] | None = None,
    ) -> None:
        self.model = model
        self.with_features, self.shown = with_features, shown
        self.author = author
        self._images: dict[str, torch.Tensor] = {}
        self._features: dict[str, dict[str, torch.Tensor]] = {}

    def target(self, term: str) -> torch.Tensor:
        """The ground truth as ``term`` wants it (sharpened or not), ``(N, 3, H, W)`` in [0, 1]."""
        return self.model.target(term)

    def run(self, network: nn.Module, image: torch.Tensor) -> torch.Tensor:
        """A forward pass of a discriminator in the precision of the training; the result is float32."""
        return self.model.run(network, image, 'discriminator')

    @property
    def micro_batch(self) -> int | None:
        """How many images go through a network at once; None for all."""
        return self.model.micro_batch

    def autocast(self) -> AbstractContextManager:
        """The precision of the training, for the adapters of a term."""
        return self.model.autocast('student')

    def as_input(self, image: torch.Tensor) -> torch.Tensor:
        """What networks are given for an image in [0, 1]."""
        return self.model.as_input(image)

    def image(self, who: str) -> torch.Tensor:
        """The image of ``'student'``, with gradient unless that is off, or of a teacher, without; ``(N, 3, H, W)``."""
        if who not in self._images:
            self._look(who, with_image=True)
        return self._images[who]

    def _look(self, who: str, with_image: bool) -> None:
        """Runs a generator, or takes what is known of a teacher, for its activations and for its image, if wanted."""
        known = None if who == 'student' else self.model.answer(who, self.with_features, with_image)
        if known is not None:
            image, self._features[who] = known.image, known.features
        else:
            network = (self.author or self.model.net_g) if who == 'student' else self.model.teachers[who]
            taps, image = self.model.taps.get(who) if self.with_features else None, None
            around = recording(taps, with_image or self.micro_batch is not None)
            with torch.set_grad_enabled(who == 'student' and torch.is_grad_enabled()), around:
                image = self.model.generate(network, who)
            if taps is not None:
                self._features[who] = {name: feature.float() for name, feature in taps.pop().items()}
        if image is not None:
            self._images[who] = image

    def features(self, who: str) -> dict[str, torch.Tensor]:
        """Activations by tap without the border, of ``'student'`` with gradient or of a teacher without.

        See ``SDAKDModel.watch`` for what is recorded.
        """
        if who not in self._features:
            self._look(who, with_image=who == 'student' or self.shown is None or who in self.shown)
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

    def made(self, who: str) -> list[torch.Tensor]:
        """The image and the activations of ``'student'`` or of a teacher, where something has asked for them."""
        images = [self._images[who]] if who in self._images else []
        return [*images, *self._features.get(who, {}).values()]

    @property
    def student(self) -> torch.Tensor:
        """The student's image, with gradient."""
        return self.image('student')

    @property
    def teacher(self) -> torch.Tensor:
        """The image of the teacher of the block ``teacher:``, without gradient."""
        return self.image('teacher')
