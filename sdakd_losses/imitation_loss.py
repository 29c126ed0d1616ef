"""Perceptual comparisons through one convolutional backbone: a VGG16, a VGG19 or a SqueezeNet."""

from __future__ import annotations

from pathlib import Path

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.nn import functional as F

from sdakd_arch.backbones import PERCEPTUAL, PerceptualBackbone, check_backbone, split_name
from sdakd_losses.running import RunningScale

_FEATURE_DEPTH = 1  # relu2_2, the second of the four depths
_MEASURED_BATCHES = 20


class _BackboneLoss(nn.Module):
    """Four pairs of feature maps of two images, in the backbone's own units or in measured ones.

    Args:
        block: Where the options stand in the option file, for errors.
        backbone, weights, input, units, shift: See :class:`ImitationLoss`.
    """

    def __init__(
        self, block: str, backbone: str, weights: str | Path, input: str | None, units: str | None, shift: int
    ) -> None:
        super().__init__()
        options = {'backbone': backbone, 'weights': weights, 'input': input, 'units': units, 'shift': shift}
        check_backbone(options, block)
        self.kind, _ = split_name(backbone, f'{block}:backbone')  # what logged values are called by
        usual_input, usual_units = PERCEPTUAL[backbone]
        input, units = input or usual_input, units or usual_units
        self.backbone = PerceptualBackbone(backbone, weights, input, f'{block}:weights')
        self.scales = RunningScale(_MEASURED_BATCHES, centred=False) if units == 'measured' else None
        self.shift = shift
        self.description = f'{self.kind} of {weights}, input {input}, units {units}, shift {shift}'

    def maps(self, image: torch.Tensor, *targets: torch.Tensor) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """For every target, the pairs of maps; those of the image are computed once."""
        if self.training and self.shift:
            # drawn on the CPU, so that a GPU is not waited for
            down, right = torch.randint(self.shift, (2,)).tolist()
            image, *targets = (_shifted(each, down, right) for each in (image, *targets))
        with torch.no_grad():
            known = [self.backbone(target) for target in targets]
        own = self.backbone(image)
        return [self._in_units(list(zip(own, maps, strict=True))) for maps in known]

    def _in_units(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if self.scales is None:
            return pairs
        self.scales.update({str(depth): other for depth, (_, other) in enumerate(pairs)})
        units = [self.scales.scale(str(depth)).sqrt() + 1e-8 for depth in range(len(pairs))]
        return [(one / unit, other / unit) for (one, other), unit in zip(pairs, units, strict=True)]

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Compares images ``(N, 3, H, W)`` in [0, 1]; the sum of the parts, a scalar."""
        return sum(self.parts(student, teacher)[0].values())

    def parts(self, student: torch.Tensor, *teachers: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """For every teacher's image, the weighted parts by name; the teachers' side is detached.

        Args:
            student: Image ``(N, 3, H, W)`` in [0, 1].
            teachers: One or several, of the same size.
        """
        return [self._parts(maps) for maps in self.maps(student, *teachers)]


def _shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """The content moved by some pixels, its reflection in the space; the size, which cuDNN tunes for, stays."""
    height, width = image.shape[-2:]
    return F.pad(image, (right, 0, down, 0), mode='reflect')[..., :height, :width]


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
    Everything else is a choice of this project: VGG19 and SqueezeNet 1.1 (four depths of each, see
    :mod:`sdakd_arch.backbones`), other inputs, ``units`` and ``shift``.

    Measured units: every map is divided by the root mean square that it has on the target, over the elements of the
    calls so far, and from the 20th call on by that fixed value. The target is the teacher's image here, and
    the ground truth in :class:`BackbonePerceptualLoss`. A weight then means about the same for every backbone, whose
    maps differ in magnitude by factors of ten and more.

    Args:
        backbone: ``vgg16``, ``vgg19``, ``squeezenet`` or ``squeezenet-caffe`` (the same as ``squeezenet`` with
            ``input: caffe``).
        weights: Its file, with torchvision's key names; layers behind the deepest map need not be in it.
        style_weight: Factor of the style part.
        feature_weight: Factor of the feature part.
        loss_weight: Factor of both.
        input: How the backbone takes an image, ``imagenet``, ``raw`` or ``caffe``; default ``raw`` for ``vgg16``,
            ``caffe`` for ``squeezenet-caffe``, ``imagenet`` for others. See
            :class:`~sdakd_arch.backbones.PerceptualBackbone`.
        units: ``given``, the activations as they are, or ``measured``; default ``measured`` for SqueezeNets, ``given``
            for others.
        shift: In training mode, both images are moved down and right before every comparison, by 0 to ``shift - 1``
            pixels each, drawn at random; the space is filled by reflection. Without it, the backbone's pooling, whose
            grid is always the same then, draws this grid at edges. At most 16; 0 for off.

    Raises:
        UserError: An argument is not one of these; a missing or damaged file, or one that holds another network.
    """

    def __init__(
        self,
        backbone: str,
        weights: str | Path,
        style_weight: float = 1e4,
        feature_weight: float = 1e1,
        loss_weight: float = 1.0,
        input: str | None = None,
        units: str | None = None,
        shift: int = 0,
    ) -> None:
        super().__init__('train:imitation_opt', backbone, weights, input, units, shift)
        self.style_weight, self.feature_weight, self.loss_weight = style_weight, feature_weight, loss_weight

    def _parts(self, maps: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """``style`` and ``feature``, without one whose weight is 0."""
        found = {}
        if self.style_weight:
            style = sum((gram(one) - gram(other)).abs().mean() for one, other in maps)
            found['style'] = self.loss_weight * self.style_weight * style
        if self.feature_weight:
            one, other = maps[_FEATURE_DEPTH]
            found['feature'] = self.loss_weight * self.feature_weight * (one - other).abs().mean()
        return found


@LOSS_REGISTRY.register()
class BackbonePerceptualLoss(_BackboneLoss):
    """The perceptual loss in the same backbones, for ``train:perceptual_opt`` and ``train:imitation_opt``.

    ``loss_weight * sum over j of layer_weights[j] * mean |F_j(student) - F_j(target)|``, the maps as in
    :class:`ImitationLoss`. It takes the place of BasicSR's VGG19 (``PerceptualLoss``, five maps before ReLU) where
    another backbone or input is wanted; it is a choice of this project, its values are not those of BasicSR's, and
    comparisons use one of them throughout.

    Args:
        backbone, weights: As in :class:`ImitationLoss`.
        layer_weights: Four factors, shallow to deep. The default follows Real-ESRGAN's, which has 0.1 for VGG19's first
            two resolutions and 1 for the deeper ones.
        loss_weight: Factor of the result.
        input, units, shift: As in :class:`ImitationLoss`.

    Raises:
        UserError: An argument is not one of these; a missing or damaged file, or one that holds another network.
    """

    def __init__(
        self,
        backbone: str,
        weights: str | Path,
        layer_weights: tuple[float, float, float, float] = (0.1, 0.1, 1.0, 1.0),
        loss_weight: float = 1.0,
        input: str | None = None,
        units: str | None = None,
        shift: int = 0,
    ) -> None:
        super().__init__('train:perceptual_opt', backbone, weights, input, units, shift)
        self.layer_weights, self.loss_weight = tuple(layer_weights), loss_weight

    def forward(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The weighted distance of two images, ``(N, 3, H, W)`` in [0, 1], and None: it has no style part."""
        return self.parts(image, target)[0]['percep'], None

    def _parts(self, maps: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        weighted = zip(self.layer_weights, maps, strict=True)
        return {
            'percep': self.loss_weight * sum(weight * (one - other).abs().mean() for weight, (one, other) in weighted)
        }
