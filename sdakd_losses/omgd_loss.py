"""What OMGD's student pays: structure, smoothness and the mean response of every channel (Ren et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # the window of SSIM, in pixels
K1, K2 = 0.01, 0.03


def ssim(one: torch.Tensor, other: torch.Tensor, peak: float = 1.0) -> torch.Tensor:
    """Structural similarity of Wang et al. (2004), equations 13 to 16, differentiable; 1 for equal images.

    Means, variances and covariance under a Gaussian window of 11x11 pixels with standard deviation 1.5, at every
    position where the window lies inside the image; the mean over positions, channels and images.

    Args:
        one, other: ``(N, C, H, W)``, at least 11 pixels high and wide.
        peak: The range of the values, from black to white.

    Returns:
        A scalar.
    """
    channels = one.shape[1]
    offsets = torch.arange(WINDOW, dtype=one.dtype, device=one.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(channels, 1, 1, WINDOW)

    def blur(image: torch.Tensor) -> torch.Tensor:  # a Gaussian is separable: rows, then columns
        return F.conv2d(F.conv2d(image, weights, groups=channels), weights.transpose(2, 3), groups=channels)

    mean, other_mean = blur(one), blur(other)
    variance = blur(one * one) - mean * mean
    other_variance = blur(other * other) - other_mean * other_mean
    covariance = blur(one * other) - mean * other_mean
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    luminance = (2 * mean * other_mean + c1) / (mean * mean + other_mean * other_mean + c1)
    structure = (2 * covariance + c2) / (variance + other_variance + c2)
    return (luminance * structure).mean()


def total_variation(image: torch.Tensor) -> torch.Tensor:
    """Sum of the absolute differences of neighbouring pixels, down and across, over an image of all channels.

    The mean over a batch ``(N, C, H, W)``: its size does not change what the weight means. Returns a scalar.
    """
    down = (image[:, :, 1:] - image[:, :, :-1]).abs().sum()
    across = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().sum()
    return (down + across) / len(image)


def channel_distance(student: Mapping[str, torch.Tensor], teacher: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean squared distance of the channels' spatial means, summed over taps.

    Args:
        student, teacher: Feature maps with equal numbers of channels under the same keys, ``(N, C, h, w)``. Height
            and width may differ: they are averaged away.

    Returns:
        A scalar.
    """
    return sum(F.mse_loss(maps.mean((2, 3)), teacher[name].mean((2, 3))) for name, maps in student.items())


@LOSS_REGISTRY.register()
class OMGDLoss(nn.Module):
    """The parts of OMGD's student objective that need no perceptual network, for one teacher::

        loss_weight * (ssim_weight * (1 - SSIM(S, T)) + tv_weight * TV(S) + channel_weight * sum over taps t of
                       mean over channels of (mean over positions of A(s_t) - mean over positions of f_t)^2)

    with the student's image ``S``, the teacher's ``T``, their feature maps ``s_t`` and ``f_t``, and the adapter ``A``
    (1x1 convolution without bias, batch normalisation, ReLU). Weights as published (Ren et al., "Online Multi-
    Granularity Distillation for GAN Compression", ICCV 2021); for ``channel_weight`` there are two, 10 for U-Nets and
    500 for residual generators. The style and feature parts, against the teacher's image too, are the term
    ``imitation``. With several teachers the whole objective is summed over them, total variation included.

    Args:
        ssim_weight, tv_weight, channel_weight: Factors of the parts.
        loss_weight: Factor of them all.
    """

    def __init__(
        self,
        ssim_weight: float = 10.0,
        tv_weight: float = 1e-5,
        channel_weight: float = 10.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.ssim_weight, self.tv_weight, self.channel_weight = ssim_weight, tv_weight, channel_weight
        self.loss_weight = loss_weight

    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        adapted: Mapping[str, torch.Tensor],
        features: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Compares images ``(N, C, H, W)`` in [0, 1], and adapted student features with a teacher's, by tap.

        What belongs to the teacher is detached. Returns weighted scalars: ``ssim``, ``tv`` and, where there are
        features, ``channel``.
        """
        parts = {
            'ssim': self.ssim_weight * (1 - ssim(student, teacher.detach())),
            'tv': self.tv_weight * total_variation(student),
        }
        if adapted:
            targets = {name: features[name].detach() for name in adapted}
            parts['channel'] = self.channel_weight * channel_distance(adapted, targets)
        return {name: self.loss_weight * part for name, part in parts.items()}
