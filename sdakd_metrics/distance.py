"""The distance of two images in the features of a backbone that no training sees, for `sdakd evaluate --distance`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.backbones import LITE
from sdakd_metrics.distribution import PatchBackbone, open_backbone, read_backbone

# The last module of each resolution: VGG16's relu1_2 to relu5_3 (strides 1 to 16), SqueezeNet 1.1's at strides 2 to 16,
# EfficientNet-lite0's at strides 2 to 32.
DEPTHS = {'vgg16': (3, 8, 15, 22, 29), 'squeezenet': (1, 4, 7, 12), LITE: (1, 3, 5, 11, 16)}
SIDE = 32  # sides become multiples of it, at least two: the coarsest stride, and no layer meets less than its kernel
KEPT, PIXELS = 4, 1 << 19  # how many images' features are kept, if they are no larger: VGG16 makes 2 KB per pixel


class FeatureDistance(nn.Module):
    """Mean over depths of the mean absolute difference of two images' features, relative to the reference's.

    At each depth the unit is the root mean square of the reference image's features over channels and positions, so the
    value of an image does not depend on the other images of its set. A choice of this project; neither LPIPS, which
    normalises every position and weighs channels, nor FID, which compares sets.

    Args:
        backbone: The network, of a kind in :data:`DEPTHS`.
    """

    def __init__(self, backbone: PatchBackbone) -> None:
        super().__init__()
        self.backbone, self.depths = backbone, DEPTHS[backbone.kind]
        self.kept: list[tuple[np.ndarray, list[torch.Tensor]]] = []  # the latest last

    def maps(self, image: np.ndarray) -> list[torch.Tensor]:
        """The features of ``(H, W, 3)``, uint8 BGR, at every depth.

        The image is mirrored at its right and lower border to multiples of 32 pixels, as the strides want it. The
        features of the last few images are kept, because every result is compared with the same references; so an image
        must not change between calls.
        """
        for number, (own, found) in enumerate(self.kept):
            if own is image:
                self.kept.append(self.kept.pop(number))
                return found
        more = [(0, max(2, -(-side // SIDE)) * SIDE - side) for side in image.shape[:2]]
        padded = np.pad(image, (*more, (0, 0)), 'reflect')
        found = []
        with torch.no_grad():
            maps = self.backbone.normalised(padded.transpose(2, 0, 1)[None])
            for depth, layer in enumerate(self.backbone.features[: self.depths[-1] + 1]):
                maps = layer(maps)
                if depth in self.depths:
                    found.append(maps)
        if image.shape[0] * image.shape[1] <= PIXELS:
            self.kept = [*self.kept, (image, found)][-KEPT:]
        return found

    def forward(self, image: np.ndarray, reference: np.ndarray) -> float:
        """The distance of two images ``(H, W, 3)``, uint8 BGR; NaN where all of the reference's features are zero."""
        found = 0.0
        for own, other in zip(self.maps(image), self.maps(reference), strict=True):
            unit = other.square().mean().sqrt().item()
            found += (own - other).abs().mean().item() / unit if unit else math.nan
        return found / len(self.depths)


def open_distance(spec: object, where: str) -> FeatureDistance:
    """The distance that a user names as ``vgg16:FILE``.

    Raises:
        UserError: Another form, another kind, a missing or damaged file, or one that holds another network.
    """
    kind, _, _ = read_backbone(spec, where)
    if kind not in DEPTHS:
        raise UserError(where, f'no depths are known for {kind}; give {", ".join(DEPTHS)} or squeezenet-caffe.')
    return FeatureDistance(open_backbone(spec, where))
