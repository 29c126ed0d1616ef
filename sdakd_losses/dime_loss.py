"""DiME's distribution matching: the moments of embeddings of the student's images against those of the teacher's."""

from __future__ import annotations

from pathlib import Path

import torch
from basicsr.utils.registry import LOSS_REGISTRY

from sdakd_losses.imitation_loss import _BackboneLoss
from sdakd_losses.shared import mean_of_all


@LOSS_REGISTRY.register()
class DistributionMatchingLoss(_BackboneLoss):
    """First and second moments of embeddings over a batch, the student's images' against the teacher's.

    With the embedding ``e(x)`` of an image, the mean over positions of the deepest of the four maps of a backbone, and
    means over the images of the batch (of all processes)::

        first  = first_weight  * mean over channels of |mean e(student) - mean e(teacher)|
        second = second_weight * mean over channels of |mean e(student)^2 - mean e(teacher)^2|
        loss   = loss_weight * (first + second)

    Yeo et al., "Nickel and Diming Your GAN", ECCV 2024, by its public code, where both weights are 20 for embeddings of
    a DINO and 15 for those of a CLIP, both ResNet50s, and the teacher's moments are those of many images. The backbone,
    and the teacher's images of the same batch in their place, are choices of this project.

    Args:
        backbone, weights, input, units, shift: As in :class:`sdakd_losses.imitation_loss.ImitationLoss`.
        first_weight, second_weight: Of the two moments.
        loss_weight: Factor of both.

    Raises:
        UserError: See :class:`sdakd_losses.imitation_loss.ImitationLoss`.
    """

    def __init__(
        self,
        backbone: str,
        weights: str | Path,
        first_weight: float = 1.0,
        second_weight: float = 1.0,
        loss_weight: float = 1.0,
        input: str | None = None,
        units: str | None = None,
        shift: int = 0,
    ) -> None:
        super().__init__('train:imitation_opt', backbone, weights, input, units, shift)
        self.first_weight, self.second_weight, self.loss_weight = first_weight, second_weight, loss_weight
        if not (first_weight or second_weight):
            raise ValueError('first_weight, second_weight: both are 0, leave at least one on')

    def _parts(self, maps: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        own, other = (_moments(each) for each in maps[-1])
        weights = {'first': self.first_weight, 'second': self.second_weight}
        found = zip(weights.items(), (own - other).abs().mean(1), strict=True)
        return {name: self.loss_weight * weight * distance for (name, weight), distance in found if weight}


def _moments(maps: torch.Tensor) -> torch.Tensor:
    """``(N, C, H, W)`` to ``(2, C)``: means over the images of the embeddings and of their squares."""
    embeddings = maps.mean((2, 3))
    return mean_of_all(torch.stack([embeddings.mean(0), embeddings.square().mean(0)]))
