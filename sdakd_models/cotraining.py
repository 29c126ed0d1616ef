"""A teacher that learns along: one copy trains, the best that it has been is what the student sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from basicsr.utils import get_root_logger
from torch import nn

from sdakd_models.context import Context
from sdakd_models.players import Discriminator, Player


class CotrainedTeacher:
    """The online teacher of CRD and DCD: trained beside the student, and replaced when a better one is found.

    It learns by the terms of the stage that compare with no teacher, and against the discriminators that see its images
    as fakes. After a validation, on the first set, the copy that the student sees takes its weights if they are better
    by one of ``val:metrics``.

    Args:
        name: Of the teacher, ``teacher`` or a key of ``teachers:``.
        player: The copy that trains.
        shown: The copy that the student and the terms see; changed in place.
        metric: The key under ``val:metrics`` that decides.
    """

    def __init__(self, name: str, player: Player, shown: nn.Module, metric: str) -> None:
        self.name, self.player, self.shown, self.metric = name, player, shown, metric
        self.score: float | None = None  # of the copy that is shown

    def learn(
        self,
        context: Context,
        terms: Mapping[str, Callable[[Context], dict[str, torch.Tensor]]],
        discriminators: Iterable[Discriminator],
        weighted: Callable[[str, torch.Tensor], torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Accumulates its gradients.

        Args:
            context: One whose images are its own.
            terms: The terms of the stage that compare with no teacher.
            discriminators: The discriminators of the stage.
            weighted: Gives a term's scalar the weight of its share.
        """
        suffix = '' if self.name == 'teacher' else f'_{self.name}'
        losses: dict[str, torch.Tensor] = {}
        for name, term in terms.items():
            losses |= {f'l_t_{key}{suffix}': weighted(name, value) for key, value in term(context).items()}
        for discriminator in discriminators:
            if self.name in discriminator.facts.fake:
                value = weighted(discriminator.term, discriminator.generator_loss(context, self.name))
                losses |= {f'l_t_gan_{discriminator.name}{suffix}': value}
        if losses:
            self.player.derive(sum(losses.values()))
        return losses

    def consider(self, measure: Callable[[nn.Module], float], lower: bool, current_iter: int) -> None:
        """Shows the copy in training to the student from now on if it has become better.

        Args:
            measure: The metric of a generator on a validation set.
            lower: Whether a lower value is the better one.
            current_iter: The iteration, for the log.
        """
        if self.score is None:
            self.score = measure(self.shown)
        score = measure(self.player.bare.eval())
        self.player.bare.train()
        better = score < self.score if lower else score > self.score
        what = f'{self.metric} {score:.4f}, before {self.score:.4f}'
        if better or math.isnan(self.score):
            self.score = score
            self.shown.load_state_dict(self.player.bare.state_dict())
        get_root_logger().info(
            f'Iteration {current_iter:,d}: {self.name}{"" if better else " not"} replaced by the one in training '
            f'({what}).'
        )
