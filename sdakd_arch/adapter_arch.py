"""Channel adapters: bring a narrow student's feature maps to the teacher's number of channels. Training only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F


def match_size(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Feature maps ``(N, C, H, W)`` at the height and width of others: by means of areas down, bilinearly up.

    A network that begins with pixel-unshuffling has maps of half or a quarter of the size of another's.
    """
    size = like.shape[2:]
    if maps.shape[2:] == size:
        return maps
    if size[0] <= maps.shape[2] and size[1] <= maps.shape[3]:
        return F.interpolate(maps, size=size, mode='area')
    return F.interpolate(maps, size=size, mode='bilinear', align_corners=False)


@ARCH_REGISTRY.register()
class ChannelMLP(nn.Sequential):
    """A multi-layer perceptron over channels, shared by all positions: 1x1 convolution, ReLU, 1x1 convolution.

    The channel-wise transformation of Liu et al., arXiv 2303.13212 (``W2 ReLU(W1 F)``, on the student's feature only),
    with unequal channel numbers. SDAKD (arXiv 2510.03870) uses "MLP-based feature-map distillation adapted to networks
    with reduced channels" without publishing its sizes: biases and the hidden width are choices of this project.

    Args:
        in_ch: Channels of the student's feature map.
        out_ch: Channels of the teacher's feature map.
        hidden_ratio: Hidden channels as a multiple of ``out_ch``; 0 leaves one linear 1x1 convolution, for ablations.
        bias: Whether convolutions have one.

    Shape: ``(N, in_ch, H, W)`` to ``(N, out_ch, H, W)``.
    """

    def __init__(self, in_ch: int, out_ch: int, hidden_ratio: float = 1.0, bias: bool = True) -> None:
        if hidden_ratio == 0:
            super().__init__(nn.Conv2d(in_ch, out_ch, 1, bias=bias))
            return
        hidden = max(1, round(out_ch * hidden_ratio))
        layers = nn.Conv2d(in_ch, hidden, 1, bias=bias), nn.ReLU(inplace=True), nn.Conv2d(hidden, out_ch, 1, bias=bias)
        super().__init__(*layers)


@ARCH_REGISTRY.register()
class Connector(nn.Sequential):
    """1x1 convolution without bias, batch normalisation, ReLU: how OMGD (ICCV 2021) and DCD (arXiv 2212.14169) adapt.

    It starts as published: the convolution from N(0, 0.02), the factors of the normalisation from N(1, 0.02), with the
    standard deviation as second number, and offsets of 0. (The public code first draws N(0, sqrt(2 / n)) and then
    overwrites it.)

    Args:
        in_ch: Channels of the feature map that comes in.
        out_ch: Channels that it is brought to.

    Shape: ``(N, in_ch, H, W)`` to ``(N, out_ch, H, W)``.
    """

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__(nn.Conv2d(in_ch, out_ch, 1, bias=False), nn.BatchNorm2d(out_ch), nn.ReLU())
        nn.init.normal_(self[0].weight, 0.0, 0.02)
        nn.init.normal_(self[1].weight, 1.0, 0.02)


@ARCH_REGISTRY.register()
class AdapterBank(nn.Module):
    """One adapter for every pair of tapped layers.

    Args:
        channels: For each student tap, by name, the numbers of channels ``(student, teacher)``.
        hidden_ratio, bias: See :class:`ChannelMLP`; None for the first makes every adapter a :class:`Connector`.
    """

    def __init__(
        self, channels: Mapping[str, tuple[int, int]], hidden_ratio: float | None = 1.0, bias: bool = True
    ) -> None:
        super().__init__()
        # a parameter's name may hold no dot, a module path does
        self.adapters = nn.ModuleDict(
            {
                self._key(name): Connector(*pair) if hidden_ratio is None else ChannelMLP(*pair, hidden_ratio, bias)
                for name, pair in channels.items()
            }
        )

    @staticmethod
    def _key(name: str) -> str:
        return name.replace('.', '/')

    def forward(self, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adapts every feature map: ``(N, C_student, H, W)`` to ``(N, C_teacher, H, W)``, by tap name."""
        return {name: self.adapters[self._key(name)](feature) for name, feature in features.items()}
