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
    """For every pair of tapped layers one connector of the student, which learns, and a fixed one of the teacher.

    DCD (arXiv 2212.14169) hands the teacher's connector to no optimiser for CycleGAN; for Pix2Pix it does, but the
    teacher's side of the loss is detached, so that its weights stay where they began there too. What differs is batch
    normalisation: ``normalised`` uses the statistics of the batch, as the student's does (Pix2Pix), ``fixed`` leaves it
    at its initial ones (CycleGAN). The default is this project's: generators for super-resolution have no
    normalisation, and features of realesr-general-x4v3 come out of a ``fixed`` connector up to 70 times larger than the
    student's. A teacher's connector that had a gradient could make the two sides equal by making both constant; that
    is not offered.

    Args:
        channels: For each student tap, by name, the numbers of channels ``(student, teacher)``.
        teacher: ``normalised`` or ``fixed``.
        mlp: The student's feature goes through a :class:`ChannelMLP` up to the teacher's channels and then through the
            teacher's connector, instead of its own. A reading by this project of SDAKD's "modified DCD".
        hidden_ratio: Of the MLPs; see :class:`ChannelMLP`.
        image_channels: Channels of the discriminator's input.
    """

    def __init__(
        self,
        channels: Mapping[str, tuple[int, int]],
        teacher: Literal['normalised', 'fixed'] = 'normalised',
        mlp: bool = False,
        hidden_ratio: float = 1.0,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        self.mlp = mlp
        self.student, self.teacher = nn.ModuleDict(), nn.ModuleDict()
        for name, (own, other) in channels.items():
            key = self._key(name)
            self.student[key] = ChannelMLP(own, other, hidden_ratio) if mlp else Connector(own, image_channels)
            self.teacher[key] = Connector(other, image_channels)
            if teacher == 'normalised':
                self.teacher[key][1] = nn.BatchNorm2d(image_channels, track_running_stats=False)
        self.teacher.requires_grad_(False)
        self.train()

    @staticmethod
    def _key(name: str) -> str:
        return name.replace('.', '/')  # a parameter's name may hold no dot, a module path does

    def train(self, mode: bool = True) -> ImageConnectors:
        """The student's side only: batch normalisation without running statistics uses the batch's in either mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Maps both sides' features, by the student's tap: ``(N, C, H, W)`` to ``(N, 3, H, W)``, not negative.

        Args:
            student: Feature maps of the student, by its tap.
            teacher: Those of the teacher, by the student's tap as well.

        Returns:
            The student's maps, with gradient, and the teacher's, without.
        """
        ours = {}
        for name, feature in student.items():
            mapped = self.student[self._key(name)](feature)
            ours[name] = self.teacher[self._key(name)](mapped) if self.mlp else mapped
        with torch.no_grad():
            theirs = {name: self.teacher[self._key(name)](feature) for name, feature in teacher.items()}
        return ours, theirs
