"""Feature affinity (FAKD): which positions of an image have similar features, in student and teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.nn import functional as F


@LOSS_REGISTRY.register()
class FeatureAffinityLoss(nn.Module):
    """Distance of the spatial affinity matrices of feature maps; their numbers of channels may differ.

    With the feature ``f_i`` of position ``i``, a vector over the channels, and ``A_ij = <f_i, f_j> / (|f_i| |f_j|)``::

        loss = loss_weight * mean over taps of  mean over i, j of |A_ij(student) - A_ij(teacher)|

    He et al., "FAKD: Feature-Affinity Based Knowledge Distillation for Efficient Image Super-Resolution", ICIP 2020.
    A matrix has ``(H W)^2`` entries: 64 MiB an image for maps of 64 x 64, 16 GiB at 256 x 256. This project therefore
    pools larger maps, by means of areas, to at most ``side`` positions along each side.

    Args:
        loss_weight: Factor of the result.
        side: The limit; 32 makes 4 MiB an image and tap.
    """

    def __init__(self, loss_weight: float = 1.0, side: int = 32) -> None:
        super().__init__()
        self.loss_weight, self.side = loss_weight, side

    def forward(self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compares maps ``(N, C, H, W)`` of equal height and width under the same keys; the teacher's are detached."""
        pairs = [(self.affinity(maps), self.affinity(teacher[tap].detach())) for tap, maps in student.items()]
        return self.loss_weight * sum(F.l1_loss(one, other) for one, other in pairs) / len(pairs)

    def affinity(self, maps: torch.Tensor) -> torch.Tensor:
        """Cosines of the features of all positions: ``(N, C, H, W)`` to ``(N, H W, H W)``, pooled where it is large."""
        height, width = (min(length, self.side) for length in maps.shape[2:])
        features = F.normalize(F.adaptive_avg_pool2d(maps, (height, width)).flatten(2), dim=1)
        return features.mT @ features
