"""A selectively activated discriminator: which of its channels are on is learned from images that are held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import nn

from sdakd_arch.channel_masks import ChannelMasks
from sdakd_losses.shared import mean_of_all
from sdakd_models.context import Context
from sdakd_models.players import Discriminator, Player
from sdakd_models.scenario import Scenario
from sdakd_models.stages import Moment


class Holder(Protocol):
    """What is asked of the model in training (:class:`sdakd_models.sdakd_model.SDAKDModel`)."""

    scenario: Scenario
    batch: tuple[str, ...]
    held_out: Mapping | None
    aside: bool

    def take(self, data: Mapping) -> None: ...

    def drawing(self) -> AbstractContextManager: ...


@contextmanager
def on_held_out(model: Holder) -> Iterator[None]:
    """Has a model work on the images that are held out for this iteration, in the place of its batch.

    Rehearsals and benchmarks hold none out: the batch itself stands in for them.
    """
    if model.held_out is None:
        yield
        return
    before = {name: getattr(model, name) for name in model.batch if hasattr(model, name)}
    model.aside = True
    try:
        with model.drawing():  # their degradation changes nothing of what others draw
            model.take(model.held_out)
        crop, side = model.scenario.crop, model.scenario.input_crop  # pairs for a pool are larger
        for name, length in (('lq', side), ('gt', crop), ('gt_usm', crop)):
            if hasattr(model, name):
                setattr(model, name, getattr(model, name)[..., :length, :length])
        yield
    finally:
        model.aside = False
        vars(model).update(before)


class Selection:
    """Trains the channel masks of a discriminator so that it keeps the balance that the teacher's has: GCC.

    With the discriminator's loss ``l`` of a verdict that should be real or fake, its gap and that of the teacher's
    discriminator on the teacher's images are compared, on images that are held out from all other training::

        gap(D, x) = |l(D(x), real) - l(D(x), fake)|
        loss = |gap(D, student's image) - average of gap(D', teacher's image)| + l(D(y), real)
               + l(D(student's image), fake)

    where ``y`` is what the discriminator takes for real: the ground truth, or the teacher's image.

    The average is exponential: ``b`` times the present value, ``b`` falling from 1 to 0 over the stage (Li et al.,
    NeurIPS 2021, and its public code). Nothing but the masks moves: the passes are those of evaluation mode.

    Args:
        discriminator: The one with masks.
        masks: Of it.
        player: Trains them.
        teacher: The teacher's discriminator.
    """

    def __init__(
        self, discriminator: Discriminator, masks: ChannelMasks, player: Player, teacher: Discriminator
    ) -> None:
        self.discriminator, self.masks, self.player, self.teacher = discriminator, masks, player, teacher

    def learn(self, context: Context, moment: Moment) -> dict[str, torch.Tensor]:
        """Trains the masks by one step on the context's images.

        Args:
            context: Of the images that are held out; its networks may have learned from others already.
            moment: Stage and step.
        """
        own, suffix = self.discriminator, self.discriminator.suffix
        own.bare.requires_grad_(False).eval()
        self.teacher.bare.eval()
        with torch.no_grad():
            verdict = self._verdict(self.teacher, context, context.teacher)
            gap = self._gap(self.teacher.loss, verdict)
            weight = 1 - (moment.step - 1) / moment.stage.iters
            known = self.masks.gap
            known.copy_(torch.where(known == 0, gap, weight * gap + (1 - weight) * known))
            image, real = context.student, own.real(context)
        self.masks.requires_grad_(True)
        fake, real = (self._verdict(own, context, each) for each in (image, real))
        distance = (self._gap(own.loss, fake) - self.masks.gap).abs()
        loss = distance + own.loss(real, True, is_disc=True) + own.loss(fake, False, is_disc=True)
        self.player.derive(loss)
        self.masks.requires_grad_(False)
        for alpha in self.masks.alphas.values():
            alpha.grad.copy_(mean_of_all(alpha.grad))
        self.player.step(None)
        self.masks.clip()
        return {f'l_d_gap{suffix}': distance, f'out_d_channels{suffix}': self.masks.share()}

    def _verdict(self, discriminator: Discriminator, context: Context, image: torch.Tensor) -> torch.Tensor:
        return context.run(discriminator.bare, discriminator.shown(context, image))

    def _gap(self, loss: nn.Module, verdict: torch.Tensor) -> torch.Tensor:
        return mean_of_all(loss(verdict, True, is_disc=True) - loss(verdict, False, is_disc=True)).abs()
