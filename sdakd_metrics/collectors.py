"""What metrics of a set keep of its images, one after the other, and the distance of two of these."""

from __future__ import annotations

import functools

import numpy as np

from sdakd_metrics.distribution import (
    Moments,
    frechet_distance,
    image_kernels,
    kernel_distance,
    kernel_distance_of_images,
)

KID_IMAGES = 10_000  # KID keeps features of every image; of a larger set, it takes those of this many
KID_PATCHES = 2_048  # and of patches so many of a set, as many of each image


class FrechetCollector:
    """Mean and covariance of the features of a set, in memory that does not grow with it.

    Args:
        images: How many images the set has.
    """

    def __init__(self, images: int) -> None:
        self.moments = Moments()

    @property
    def samples(self) -> int:
        return self.moments.count

    def add(self, features: np.ndarray) -> None:
        self.moments.add(features)

    def distance(self, other: FrechetCollector) -> float:
        return frechet_distance(self.moments, other.moments)

    def pseudo_values(self, other: FrechetCollector) -> None:
        """None: with fewer images a Frechet distance grows, so images can neither be drawn anew nor be left out."""


class PatchKernelCollector:
    """The features of patches of a set, by image: of a fixed random choice of patches and images where there are more.

    The choice depends on the numbers of images and patches alone, so it is the same for all models and the ground
    truth.

    Args:
        images: How many images the set has.
    """

    def __init__(self, images: int) -> None:
        chosen = np.random.default_rng(0).choice(images, min(images, KID_IMAGES), replace=False)
        self.chosen, self.most = set(chosen.tolist()), max(1, KID_PATCHES // len(chosen))
        self.features: dict[int, np.ndarray] = {}  # by the number of the image
        self.seen = 0
        self.compared: tuple[PatchKernelCollector, tuple[float, np.ndarray | None]] | None = None  # with, and what came

    @property
    def samples(self) -> int:
        """How many images; that is what is independent."""
        return len(self.features)

    def add(self, features: np.ndarray) -> None:
        if self.seen in self.chosen and len(features):
            if len(features) > self.most:
                kept = np.random.default_rng(self.seen).choice(len(features), self.most, replace=False)
                features = features[np.sort(kept)]
            self.features[self.seen] = features.astype(np.float32)
        self.seen += 1

    @functools.cached_property
    def kernels(self) -> np.ndarray:
        return image_kernels(list(self.features.values()), list(self.features.values()))

    def _compare(self, other: PatchKernelCollector) -> tuple[float, np.ndarray | None]:
        if self.compared and self.compared[0] is other:
            return self.compared[1]
        cross = image_kernels(list(self.features.values()), list(other.features.values()))
        self.compared = other, kernel_distance_of_images(self.kernels, other.kernels, cross)
        return self.compared[1]

    def distance(self, other: PatchKernelCollector) -> float:
        return self._compare(other)[0]

    def pseudo_values(self, other: PatchKernelCollector) -> dict[int, float] | None:
        """What every image has to do with the distance, by its number; their mean is the distance."""
        values = self._compare(other)[1]
        return None if values is None else dict(zip(self.features, values.tolist(), strict=True))


class KernelCollector(PatchKernelCollector):
    """One vector for every image, compared as torch-fidelity does it, which is what the name KID stands for."""

    def distance(self, other: KernelCollector) -> float:
        return kernel_distance(
            *(np.concatenate(list(part.features.values())).astype(np.float64) for part in (self, other))
        )

    def pseudo_values(self, other: KernelCollector) -> dict[int, float] | None:
        """Those without pairs within an image, moved onto torch-fidelity's distance; None for many images."""
        if len(self.features) > KID_PATCHES:
            return None
        values = super().pseudo_values(other)
        away = self.distance(other) - float(np.mean(list(values.values()))) if values else 0.0
        return values and {number: value + away for number, value in values.items()}
