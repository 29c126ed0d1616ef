"""What OMGD's student pays: structure, smoothness and the mean response of every channel (Ren et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # the window of SSIM, in pixels
C1, C2 = 0.01**2, 0.03**2


def ssim(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Structural similarity of Wang et al. (2004), equations 13 to 16, as OMGD computes it; 1 for equal images::

        SSIM = mean of  (2 m n + C1) (2 c + C2) / ((m^2 + n^2 + C1) (v + w + C2)),   C1 = 0.01^2, C2 = 0.03^2

    with means m and n, variances v and w and covariance c of the two images under a Gaussian window of 11x11 pixels
    with standard deviation 1.5, centred at every pixel. Beyond the border both images are continued by zeros. The mean
    goes over pixels, channels and images.

    Args:
        one, other: ``(N, C, H, W)``; OMGD's are in [-1, 1], where 0 is grey. Its constants are nevertheless those of a
            range of values of 1.

    Returns:
        A scalar.
    """
    channels = one.shape[1]
    offsets = torch.arange(WINDOW, dtype=one.dtype, device=one.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(channels, 1, 1, WINDOW)

    def blur(image: torch.Tensor) -> torch.Tensor:  # a Gaussian is separable: rows, then columns
        rows = F.conv2d(image, weights, padding=(0, WINDOW // 2), groups=channels)
        return F.conv2d(rows, weights.transpose(2, 3), padding=(WINDOW // 2, 0), groups=channels)

    mean, other_mean = blur(one), blur(other)
    variance = blur(one * one) - mean * mean
    other_variance = blur(other * other) - other_mean * other_mean
    covariance = blur(one * other) - mean * other_mean
    luminance = (2 * mean * other_mean + C1) / (mean * mean + other_mean * other_mean + C1)
    structure = (2 * covariance + C2) / (variance + other_variance + C2)
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

    with the student's image ``S`` and the teacher's ``T``, both in [-1, 1], their feature maps ``s_t`` and ``f_t``, and
    the adapter ``A`` (1x1 convolution without bias, batch normalisation, ReLU). Weights as published (Ren et al.,
    "Online Multi-Granularity Distillation for GAN Compression", ICCV 2021); for ``channel_weight`` there are two, 10
    for U-Nets and 500 for residual generators. The style and feature parts, against the teacher's image too, are the
    term ``imitation``. With several teachers the objective is summed over them, total variation included; the channel
    part is published for the wider teacher only.

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

        Images are brought to OMGD's range here. What belongs to the teacher is detached. Returns weighted scalars:
        ``ssim``, ``tv`` and, where there are features, ``channel``.
        """
        student, teacher = 2 * student - 1, 2 * teacher.detach() - 1
        parts = {
            'ssim': self.ssim_weight * (1 - ssim(student, teacher)),
            'tv': self.tv_weight * total_variation(student),
        }
        if adapted:
            targets = {name: features[name].detach() for name in adapted}
            parts['channel'] = self.channel_weight * channel_distance(adapted, targets)
        return {name: self.loss_weight * part for name, part in parts.items()}
