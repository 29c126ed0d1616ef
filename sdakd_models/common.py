"""What the students of one run have in common: teachers and backbones, and what these make of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from basicsr.archs.vgg_arch import VGGFeatureExtractor
from torch import nn

from sdakd_arch.backbones import PerceptualBackbone
from sdakd_arch.taps import FeatureTaps
from sdakd_data.answers import Answer

if TYPE_CHECKING:
    from sdakd_models.context import Trainer


FACTORS = ('loss_weight', 'perceptual_weight', 'style_weight', 'feature_weight')  # of what a backbone has made


class Remembered(nn.Module):
    """A frozen backbone that runs once on an image without gradient, such as the ground truth, while a batch lasts.

    Args:
        network: The backbone.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[torch.Tensor, int, object]] = []  # images, their versions, and what came of them

    def forward(self, image: torch.Tensor) -> object:
        """What the backbone makes of it."""
        if image.requires_grad:
            return self.network(image)
        for known, version, found in self.seen:
            if known.shape == image.shape and known._version == version and _same(known, image):
                return found
        found = self.network(image)
        self.seen.append((image, image._version, found))
        return found


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two images are one; equal values are looked for where nothing has to wait for that."""
    if (one.data_ptr(), one.stride(), one._version) == (other.data_ptr(), other.stride(), other._version):
        return True
    return one.device.type == 'cpu' == other.device.type and torch.equal(one, other)


class Common:
    """Every teacher is there once, and is run once for a batch, for all taps of all students; so is every backbone.

    Attributes:
        teachers: Those that stay as they are, frozen, with their fingerprints, by name.
        members: The models of the students, in their order.
        answers: What the teachers have made of the current batch, by name.
    """

    def __init__(self) -> None:
        self.teachers: dict[str, tuple[nn.Module, str]] = {}
        self.members: list[Trainer] = []
        self.answers: dict[str, Answer] = {}
        self._taps: dict[str, FeatureTaps] = {}
        self._backbones: list[Remembered] = []

    def forget(self) -> None:
        """Forgets the current batch: all have made their step."""
        self.answers.clear()
        for backbone in self._backbones:
            backbone.seen.clear()

    def share_backbones(self) -> None:
        """Gives equal losses of the students one backbone, once all of them are there."""
        known: list[tuple[dict, str, Remembered]] = []
        for term in (term for member in self.members for term in member.terms.values()):
            facts = {key: value for key, value in term.block.loss.items() if key not in FACTORS}
            for name, network in [*term.loss.named_children()]:
                if isinstance(network, PerceptualBackbone | VGGFeatureExtractor):
                    there = next((each for *key, each in known if key == [facts, name]), None)
                    if there is None:
                        there = Remembered(network)
                        known.append((facts, name, there))
                    setattr(term.loss, name, there)
        self._backbones = [each for *_, each in known]

    @torch.no_grad()
    def answer(self, model: Trainer, who: str, with_features: bool) -> Answer:
        """What a teacher makes of the current batch.

        Args:
            model: The student's that asks first; all of them have the same batch.
            who: The teacher's name.
            with_features: Whether feature maps are wanted, those of all students then.
        """
        taps = self._tapped(who) if with_features else None
        known = self.answers.get(who)
        if known is None or (taps is not None and not known.features):
            if taps is None:
                known = Answer(model.generate(model.teachers[who]))
            else:
                with taps:
                    image = model.generate(model.teachers[who])
                known = Answer(image, {name: feature.float() for name, feature in taps.pop().items()})
            self.answers[who] = known
        return known

    def _tapped(self, who: str) -> FeatureTaps | None:
        """Everything that some student compares of a teacher's feature maps; None where nobody does."""
        if who not in self._taps:
            names = {name for member in self.members if who in member.taps for name in member.taps[who].names}
            if not names:
                return None
            self._taps[who] = FeatureTaps(self.teachers[who][0], sorted(names))
        return self._taps[who]
