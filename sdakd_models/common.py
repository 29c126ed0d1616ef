"""What the students of one run have in common: teachers and backbones, and what these make of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from sdakd_arch.taps import FeatureTaps, recording
from sdakd_data.answers import Answer
from sdakd_models.cast import Cast
from sdakd_models.context import Trainer
from sdakd_models.precision import Lowered
from sdakd_models.terms.base import Term

FACTORS = ('loss_weight', 'perceptual_weight', 'style_weight', 'feature_weight')  # of what a backbone has made


class Member(Trainer, Protocol):
    """What is asked of the model of a student (:class:`sdakd_models.sdakd_model.SDAKDModel`)."""

    cast: Cast
    terms: Mapping[str, Term]


class Common:
    """Every teacher is there once, and is run once for a batch, for all taps of all students; so is every backbone.

    Attributes:
        teachers: Those that stay as they are, frozen, with their fingerprints, by name.
        members: The models of the students, in their order.
        answers: What the teachers have made of the current batch, by name.
    """

    def __init__(self) -> None:
        self.teachers: dict[str, tuple[nn.Module, str]] = {}
        self.members: list[Member] = []
        self.answers: dict[str, Answer] = {}
        self._taps: dict[str, FeatureTaps] = {}
        self._backbones: list[Lowered] = []

    def forget(self) -> None:
        """Forgets the current batch: all have made their step."""
        self.answers.clear()
        for backbone in self._backbones:
            backbone.forget()

    def share_backbones(self) -> None:
        """Gives equal losses of the students one backbone, once all of them are there."""
        known: list[tuple[dict, str, Lowered]] = []
        for term in (term for member in self.members for term in member.terms.values()):
            facts = {key: value for key, value in term.block.loss.items() if key not in FACTORS}
            for name, network in [*term.loss.named_children()]:
                if isinstance(network, Lowered):
                    there = next((each for *key, each in known if key == [facts, name]), None)
                    if there is None:
                        there, network.keeps = network, True
                        known.append((facts, name, there))
                    setattr(term.loss, name, there)
        self._backbones = [each for *_, each in known]
        for member in self.members:
            member.cast.backbones.clear()  # else those in whose place another one stands would stay

    @torch.no_grad()
    def answer(self, model: Member, who: str, with_features: bool, with_image: bool) -> Answer:
        """What a teacher makes of the current batch.

        Args:
            model: The student's that asks first; all of them have the same batch.
            who: The teacher's name.
            with_features: Whether feature maps are wanted, those of all students then.
            with_image: Whether its image is wanted.
        """
        taps, known = self._tapped(who) if with_features else None, self.answers.get(who)
        lacks = known is None or (with_image and known.image is None) or (taps is not None and not known.features)
        if lacks:
            with recording(taps, whole=with_image or model.micro_batch is not None):
                image = model.generate(model.teachers[who], who)
            maps = {} if taps is None else {name: feature.float() for name, feature in taps.pop().items()}
            known = self.answers[who] = Answer(image if with_image else None, maps)
        return known

    def _tapped(self, who: str) -> FeatureTaps | None:
        """Everything that some student compares of a teacher's feature maps; None where nobody does."""
        if who not in self._taps:
            names = {name for member in self.members if who in member.taps for name in member.taps[who].names}
            if not names:
                return None
            self._taps[who] = FeatureTaps(self.teachers[who][0], sorted(names))
        return self._taps[who]
