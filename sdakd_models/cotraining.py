"""A teacher that learns along: one copy trains, the best that it has been is what the student sees."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, tensor2img
from torch import nn

from sdakd_models.players import Adversary, Player
from sdakd_models.terms import Context

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel


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
        self, context: Context, model: SDAKDModel, names: Iterable[str], adversaries: Iterable[Adversary]
    ) -> dict[str, torch.Tensor]:
        """Accumulates its gradients.

        Args:
            context: One whose images are its own.
            model: The model in training.
            names: The terms of the stage.
            adversaries: Its discriminators.
        """
        suffix = '' if self.name == 'teacher' else f'_{self.name}'
        losses: dict[str, torch.Tensor] = {}
        for name in names:
            if name in model.terms and not model.terms[name].needs_teacher:
                found = model.terms[name](context)
                losses |= {f'l_t_{key}{suffix}': model.weighted(name, value) for key, value in found.items()}
        for adversary in adversaries:
            if self.name in adversary.facts.fake:
                value = model.weighted(adversary.term, adversary.generator_loss(context, self.name))
                losses |= {f'l_t_gan_{adversary.name}{suffix}': value}
        if losses:
            sum(losses.values()).backward()
        return losses

    def consider(self, model: SDAKDModel, dataloader: Iterable[Mapping], current_iter: int) -> None:
        """Measures it on a validation set, and shows it to the student from now on if it has become better."""
        options = model.opt['val']['metrics'][self.metric]
        if self.score is None:
            self.score = measure(model, self.shown, dataloader, options)
        score = measure(model, self.player.bare.eval(), dataloader, options)
        self.player.bare.train()
        better = score < self.score if options.get('better', 'higher') == 'lower' else score > self.score
        what = f'{self.metric} {score:.4f}, before {self.score:.4f}'
        if better or math.isnan(self.score):
            self.score = score
            self.shown.load_state_dict(self.player.bare.state_dict())
        get_root_logger().info(
            f'Iteration {current_iter:,d}: {self.name}{"" if better else " not"} replaced by the one in training '
            f'({what}).'
        )


@torch.no_grad()
def measure(model: SDAKDModel, network: nn.Module, dataloader: Iterable[Mapping], options: Mapping) -> float:
    """A validation metric of a network on a set: what BasicSR's validation computes of the student."""
    total, count = 0.0, 0
    training, model.is_train = model.is_train, False  # no degradation of validation images
    for data in dataloader:
        model.feed_data(data)
        images = {'img': tensor2img([model.upscale(network).cpu()])}
        if 'gt' in data:
            images['img2'] = tensor2img([model.gt.cpu()])
        total = total + calculate_metric(images, options)
        count += 1
    model.is_train = training
    return float(total / count)
