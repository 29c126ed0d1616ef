"""Feature-map distillation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.nn import functional as F

from sdakd_losses.running import RunningScale


@LOSS_REGISTRY.register()
class FeatureMapLoss(nn.Module):
    """Squared distance between adapted student features and teacher features, in units of the teacher's variance.

    For every tap ``t``, with the adapted student feature ``A(s_t)`` and the teacher feature ``f_t``::

        loss = loss_weight * mean over t of  mean((A(s_t) - f_t)^2) / (V_t + eps)

    ``V_t`` is the variance of ``f_t`` over images, channels and positions of the first ``batches`` batches, the present
    one included; it stays as it is from then on. The squared distance of MLP-adapted features is Liu et al., arXiv
    2303.13212. Dividing by the teacher's variance, taking it from running statistics and taking the mean over taps are
    choices of this project: predicting the teacher's mean costs about 1 at every tap of every width, so that one weight
    fits all. SDAKD publishes no formula.

    Args:
        loss_weight: Factor of the result.
        eps: Keeps a tap that the teacher leaves constant from dividing by zero.
        batches: How many batches measure the variance.
    """

    def __init__(self, loss_weight: float = 1.0, eps: float = 1e-8, batches: int = 100) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.eps = eps
        self.variance = RunningScale(batches)

    def forward(self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compares feature maps of equal shape ``(N, C, H, W)`` that stand under the same key in both mappings.

        The teacher's are detached. Returns a scalar.
        """
        self.variance.update(teacher)
        total = 0.0
        for name, feature in student.items():
            target = teacher[name].detach()
            # of one value for every pixel and channel, in whatever order; in that of the memory it takes a third
            if feature.stride(1) == target.stride(1) == 1:  # channels-last, also of crops
                feature, target = feature.movedim(1, -1), target.movedim(1, -1)
            total = total + F.mse_loss(feature, target) / (self.variance.scale(name) + self.eps)
        return self.loss_weight * total / len(student)
