"""What the students of one run have in common: the teachers, and what these make of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sdakd_arch.taps import FeatureTaps
from sdakd_data.answers import Answer

if TYPE_CHECKING:
    from sdakd_models.context import Trainer


class Common:
    """Every teacher is there once, and is run once for a batch, for all taps of all students.

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
