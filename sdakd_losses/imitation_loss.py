"""Perceptual comparisons through one convolutional backbone: VGG16, or a SqueezeNet that stands in for VGG offline."""

from __future__ import annotations

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from sdakd_arch.backbones import PerceptualBackbone

_FEATURE_DEPTH = 1  # relu2_2 of VGG16, the second of the four depths


class _BackboneLoss(nn.Module):
    """Four pairs of feature maps of two images; those of a stand-in for VGG in units of the target's."""

    def __init__(self, backbone: str, weights: str, where: str) -> None:
        super().__init__()
        self.backbone = PerceptualBackbone(backbone, weights, where)
        self.stand_in = backbone != 'vgg16'

    def maps(self, image: torch.Tensor, target: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        with torch.no_grad():
            targets = self.backbone(target)
        pairs = zip(self.backbone(image), targets, strict=True)
        if not self.stand_in:
            return list(pairs)
        units = [other.square().mean().sqrt() + 1e-8 for other in targets]
        return [(one / unit, other / unit) for (one, other), unit in zip(pairs, units, strict=True)]


def gram(feature: torch.Tensor) -> torch.Tensor:
    """Channel products over all positions, divided by ``C * H * W``: ``(N, C, H, W)`` to ``(N, C, C)``."""
    _, channels, height, width = feature.shape
    flat = feature.flatten(2)
    return flat @ flat.transpose(1, 2) / (channels * height * width)


@LOSS_REGISTRY.register()
class ImitationLoss(_BackboneLoss):
    """The student's image against the teacher's in a backbone: the perceptual part of OMGD, CRD and DCD.

    With the maps ``F_1 .. F_4`` of VGG16 (relu1_2, relu2_2, relu3_3, relu4_3) on images in [0, 1] and
    ``G(F) = F F' / (c h w)``::

        style   = style_weight * sum over j of  mean |G(F_j(student)) - G(F_j(teacher))|
        feature = feature_weight * mean |F_2(student) - F_2(teacher)|
        loss    = loss_weight * (style + feature)

    OMGD (Ren et al., arXiv 2108.06908), DCD (Hu et al., arXiv 2212.14169) and CRD share it; the weights are DCD's.
    A SqueezeNet 1.1 that stands in (``squeezenet``, ``squeezenet-caffe``) is a choice of this project: the last map of
    each of its four resolutions, every one divided by the root mean square of the teacher's: files whose activations
    are a hundred times larger (Caffe's) then weigh as much as others.

    Args:
        backbone: ``vgg16``, ``squeezenet`` or ``squeezenet-caffe``; see :mod:`sdakd_arch.backbones`.
        weights: Its file, with torchvision's key names.
        style_weight: Factor of the style part.
        feature_weight: Factor of the feature part.
        loss_weight: Factor of both.

    Raises:
        UserError: A missing or damaged file, or one that holds another network.
    """

    def __init__(
        self,
        backbone: str,
        weights: str,
        style_weight: float = 1e4,
        feature_weight: float = 1e1,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(backbone, weights, 'train:imitation_opt:weights')
        self.style_weight, self.feature_weight, self.loss_weight = style_weight, feature_weight, loss_weight

    def parts(self, student: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weighted parts ``style`` and ``feature``, without one whose weight is 0; the teacher's side is detached.

        Args:
            student, teacher: Images, ``(N, 3, H, W)`` in [0, 1].
        """
        maps, found = self.maps(student, teacher), {}
        if self.style_weight:
            style = sum((gram(one) - gram(other)).abs().mean() for one, other in maps)
            found['style'] = self.loss_weight * self.style_weight * style
        if self.feature_weight:
            one, other = maps[_FEATURE_DEPTH]
            found['feature'] = self.loss_weight * self.feature_weight * (one - other).abs().mean()
        return found

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The sum of :meth:`parts`, a scalar."""
        return sum(self.parts(student, teacher).values())


@LOSS_REGISTRY.register()
class BackbonePerceptualLoss(_BackboneLoss):
    """The perceptual loss against the ground truth in the same backbones, for ``train:perceptual_opt``.

    ``loss_weight * sum over j of layer_weights[j] * mean |F_j(student) - F_j(target)|``, the maps as in
    :class:`ImitationLoss`. It takes the place of BasicSR's VGG19 (``PerceptualLoss``) where only a SqueezeNet is at
    hand; it is a choice of this project, its values are not those of VGG19, and comparisons use one of them throughout.

    Args:
        backbone: ``vgg16``, ``squeezenet`` or ``squeezenet-caffe``.
        weights: Its file, with torchvision's key names.
        layer_weights: Four factors, shallow to deep. The default follows Real-ESRGAN's, which has 0.1 for VGG19's first
            two resolutions and 1 for the deeper ones.
        loss_weight: Factor of the result.

    Raises:
        UserError: A missing or damaged file, or one that holds another network.
    """

    def __init__(
        self,
        backbone: str,
        weights: str,
        layer_weights: tuple[float, float, float, float] = (0.1, 0.1, 1.0, 1.0),
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(backbone, weights, 'train:perceptual_opt:weights')
        self.layer_weights, self.loss_weight = tuple(layer_weights), loss_weight

    def forward(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The weighted distance of two images, ``(N, 3, H, W)`` in [0, 1], and None: it has no style part."""
        maps = zip(self.layer_weights, self.maps(image, target), strict=True)
        return self.loss_weight * sum(weight * (one - other).abs().mean() for weight, (one, other) in maps), None
