"""Discriminator-cooperated distillation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn


@LOSS_REGISTRY.register()
class DCDLoss(nn.Module):
    """What the teacher's discriminator sees in the student's feature maps against what it sees in the teacher's.

    For every tap ``i`` of the generators, with the features ``f_i`` mapped to three channels by the connectors ``c``
    and ``D`` the activations of one layer of the teacher's discriminator::

        loss = loss_weight * sum over i of  mean |D(c_teacher(f_teacher,i)) - D(c_student(f_student,i))|

    DCD: Hu et al., CVPR 2023, arXiv 2212.14169, with the weight 1. The passes through connectors and discriminator are
    the term's. Both sides may have a gradient: that of the teacher's side ends in its connector, where that learns.

    Args:
        loss_weight: Factor of the result.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compares activations of equal shape that stand under the same key in both mappings. Returns a scalar."""
        return self.loss_weight * sum((teacher[tap] - seen).abs().mean() for tap, seen in student.items())
