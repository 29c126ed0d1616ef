"""Connectors of DCD: bring feature maps of generators to the channels of an image. Training only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from sdakd_arch.adapter_arch import ChannelMLP, Connector


@ARCH_REGISTRY.register()
class ImageConnectors(nn.Module):
    """For every pair of tapped layers one connector of the student, which learns, and one of the teacher.

    The student's normalises by the statistics of the batch. What the teacher's does is published in two ways (DCD,
    arXiv 2212.14169), and this project adds a third:

    - ``learning`` (Pix2Pix): as the student's; only its input is detached, so that it learns from the loss as well.
    - ``fixed`` (CycleGAN): it stays as it started, and so does its normalisation, with mean 0 and variance 1.
    - ``normalised`` (ours): its weights stay as they started, but it normalises by the statistics of the batch.

    Where both sides learn, the loss has a trivial solution, two constant connectors; batch normalisation makes it hard
    to reach, and nothing rules it out.

    Args:
        channels: For each student tap, by name, the numbers of channels ``(student, teacher)``.
        teacher: ``learning``, ``fixed`` or ``normalised``.
        mlp: The student's feature goes through a :class:`ChannelMLP` up to the teacher's channels and then through the
            teacher's connector, instead of its own. A reading by this project of SDAKD's "modified DCD".
        hidden_ratio: Of the MLPs; see :class:`ChannelMLP`.
        image_channels: Channels of the discriminator's input.
    """

    def __init__(
        self,
        channels: Mapping[str, tuple[int, int]],
        teacher: Literal['learning', 'fixed', 'normalised'] = 'learning',
        mlp: bool = False,
        hidden_ratio: float = 1.0,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        self.mlp, self.learning = mlp, teacher == 'learning'
        self.student, self.teacher = nn.ModuleDict(), nn.ModuleDict()
        for name, (own, other) in channels.items():
            key = self._key(name)
            self.student[key] = ChannelMLP(own, other, hidden_ratio) if mlp else Connector(own, image_channels)
            self.teacher[key] = Connector(other, image_channels)
            if teacher == 'normalised':
                norm = nn.BatchNorm2d(image_channels, track_running_stats=False)
                norm.load_state_dict(self.teacher[key][1].state_dict(), strict=False)
                self.teacher[key][1] = norm
        self.teacher.requires_grad_(self.learning)
        self.train()

    @staticmethod
    def _key(name: str) -> str:
        return name.replace('.', '/')  # a parameter's name may hold no dot, a module path does

    def train(self, mode: bool = True) -> ImageConnectors:
        """The sides that learn: batch normalisation without running statistics uses the batch's in either mode."""
        super().train(mode)
        self.teacher.train(mode and self.learning)
        return self

    def forward(
        self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Maps both sides' features, by the student's tap: ``(N, C, H, W)`` to ``(N, 3, H, W)``, not negative.

        Args:
            student: Feature maps of the student, by its tap.
            teacher: Those of the teacher, by the student's tap as well.

        Returns:
            The student's maps, with gradient, and the teacher's, with a gradient for its connector where that learns.
        """
        ours = {}
        for name, feature in student.items():
            mapped = self.student[self._key(name)](feature)
            ours[name] = self.teacher[self._key(name)](mapped) if self.mlp else mapped
        theirs = {name: self.teacher[self._key(name)](feature.detach()) for name, feature in teacher.items()}
        return ours, theirs
