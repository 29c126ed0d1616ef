"""GCC's distillation: feature maps and their Gram matrices, by the root of the mean squared distance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.nn import functional as F

from sdakd_losses.imitation_loss import gram
from sdakd_losses.shared import mean_of_all


@LOSS_REGISTRY.register()
class FeatureGramLoss(nn.Module):
    """Root mean squared distances of feature maps and of their Gram matrices, summed over taps.

    With the maps ``s_t`` of the student, adapted to the teacher's channels, and ``f_t`` of the teacher, and the Gram
    matrix ``G(f) = f f' / (c h w)`` of every image::

        loss = loss_weight * sum over t of (content_weight * sqrt(mean (s_t - f_t)^2)
                                            + gram_weight * sqrt(mean (G(s_t) - G(f_t))^2))

    Li et al., "Revisiting Discriminator in GAN Compression: A Generator-discriminator Cooperative Compression Scheme",
    NeurIPS 2021, by its public code; the weights are those of SRGAN. The means run over the images, too: with several
    processes, over those of all of them. The root's gradient at a distance of 0, which is infinite, counts as 0.

    Args:
        loss_weight: Factor of the result.
        content_weight, gram_weight: Of maps and Gram matrices.
    """

    def __init__(self, loss_weight: float = 1.0, content_weight: float = 0.1, gram_weight: float = 0.1) -> None:
        super().__init__()
        self.loss_weight, self.content_weight, self.gram_weight = loss_weight, content_weight, gram_weight
        if not (content_weight or gram_weight):
            raise ValueError('content_weight, gram_weight: both are 0, leave at least one on')

    def forward(self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compares maps of equal shape ``(N, C, H, W)`` under the same keys; the teacher's are detached."""
        squares, weights = [], []
        for tap, maps in student.items():
            target = teacher[tap].detach()
            squares += [F.mse_loss(maps, target), F.mse_loss(gram(maps), gram(target))]
            weights += [self.content_weight, self.gram_weight]
        squares = mean_of_all(torch.stack(squares))
        equal = squares <= 0
        # the root of one instead, whose derivative is finite
        roots = torch.where(equal, 0.0, torch.where(equal, 1.0, squares).sqrt())
        return self.loss_weight * (roots * roots.new_tensor(weights)).sum()
