"""Parts of BasicSR's Real-ESRGAN degradation, made to run well on any device: nothing waits for a GPU."""

from __future__ import annotations

import cv2
import torch
from basicsr.data import degradations
from basicsr.utils import DiffJPEG
from torch.nn import functional as F


class BatchJPEG(DiffJPEG):
    """BasicSR's JPEG for a quality of every image, which BasicSR reads one by one to compare it with 50.

    Its output is contiguous, without which BasicSR's ``filter2D`` refuses it on a CPU.
    """

    def forward(self, x: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        """``(N, 3, H, W)`` in [0, 1] with qualities ``(N,)`` in (0, 100) to the same; qualities stay as they are."""
        factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % 16, 0, -height % 16))
        parts = self.compress(x, factor=factor)
        x = self.decompress(*parts, *x.shape[2:], factor=factor)
        return x[:, :, :height, :width].contiguous()


def _per_image(value: float | torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """A number or one for every image, ``(N,)``, as ``(N, 1, 1, 1)``."""
    return torch.as_tensor(value, dtype=images.dtype, device=images.device).expand(len(images)).view(-1, 1, 1, 1)


def _some(grey: torch.Tensor) -> bool:
    """Whether grey noise is to be drawn. It always is on a GPU, where to ask is to wait."""
    return grey.device.type != 'cpu' or bool(grey.any())


def gaussian_noise(
    img: torch.Tensor, sigma: float | torch.Tensor = 10, gray_noise: float | torch.Tensor = 0
) -> torch.Tensor:
    """Gaussian noise; on a CPU the values that BasicSR's ``generate_gaussian_noise_pt`` draws.

    Args:
        img: ``(N, C, H, W)`` in [0, 1].
        sigma: Standard deviation in levels of 255, of all or of every image.
        gray_noise: 1 where all channels get the same noise, 0 where each gets its own; of all or of every image.
    """
    sigma, grey = _per_image(sigma, img), _per_image(gray_noise, img)
    same = torch.randn(img.shape[2:], dtype=img.dtype, device=img.device) * sigma / 255 if _some(grey) else None
    own = torch.randn_like(img, memory_format=torch.contiguous_format) * sigma / 255
    return own if same is None else own * (1 - grey) + same * grey


def levels_up(img: torch.Tensor) -> torch.Tensor:
    """The number of different values of every image in 255ths, to the next power of 2; ``(N, 1, 1, 1)``.

    Args:
        img: ``(N, C, H, W)`` of multiples of 1 / 255 in [0, 1].
    """
    levels = (img * 255).round().to(torch.uint8).flatten(1).long()
    there = torch.zeros(len(img), 256, dtype=torch.long, device=img.device).scatter_(1, levels, 1)
    powers = 2 ** torch.arange(9, device=img.device)
    exponent = (there.sum(1, keepdim=True) > powers).sum(1)
    return powers[exponent].to(img.dtype).view(-1, 1, 1, 1)


def _shot(img: torch.Tensor) -> torch.Tensor:
    img = (img * 255).round().clamp(0, 255) / 255
    photons = levels_up(img)
    return torch.poisson(img * photons) / photons - img


def poisson_noise(
    img: torch.Tensor, scale: float | torch.Tensor = 1.0, gray_noise: float | torch.Tensor = 0
) -> torch.Tensor:
    """Shot noise; on a CPU the values that BasicSR's ``generate_poisson_noise_pt`` draws.

    Its strength depends on how many different values an image has, which BasicSR finds out image by image.

    Args:
        img: ``(N, 3, H, W)`` in [0, 1].
        scale: Factor of the noise, of all or of every image.
        gray_noise: See :func:`gaussian_noise`.
    """
    scale, grey = _per_image(scale, img), _per_image(gray_noise, img)
    same = _shot(degradations.rgb_to_grayscale(img, num_output_channels=1)) if _some(grey) else None
    own = _shot(img)
    return (own if same is None else own * (1 - grey) + same * grey) * scale


# by these names BasicSR's degradation calls them
OF_BASICSR = {name: getattr(degradations, name) for name in ('generate_gaussian_noise_pt', 'generate_poisson_noise_pt')}
degradations.generate_gaussian_noise_pt = gaussian_noise
degradations.generate_poisson_noise_pt = poisson_noise


class Sharpener(torch.nn.Module):
    """BasicSR's ``USMSharp`` with its Gaussian blur taken apart into rows and columns, 25 times faster on a CPU.

    ``sharp = I + (I - B) / 2`` where ``|I - B|`` exceeds 10 of 255, and a blurred transition from there to ``I``; ``B``
    is the blurred image. Images are float tensors (N, C, H, W) in [0, 1], both sides above 25.
    """

    radius = 51
    block = 32  # pixels that one product of matrices makes of those that it needs; a choice of this project

    def __init__(self):
        super().__init__()
        kernel = torch.from_numpy(cv2.getGaussianKernel(self.radius, 0, cv2.CV_32F)).flatten()
        band = torch.zeros(self.block, self.block + self.radius - 1)
        for pixel in range(self.block):
            band[pixel, pixel : pixel + self.radius] = kernel
        self.register_buffer('band', band)

    def blur(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[2:]
        image = F.pad(image, (self.radius // 2,) * 4, mode='reflect')
        image = F.pad(image, (0, -width % self.block, 0, -height % self.block))  # whole blocks, cut off again below
        size = self.band.shape[1]
        image = (image.unfold(3, size, self.block) @ self.band.mT).flatten(3)[..., :width]
        return (self.band @ image.unfold(2, size, self.block).mT).flatten(2, 3)[:, :, :height].contiguous()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        detail = image - self.blur(image)
        mask = self.blur((detail.abs() * 255 > 10).float())
        return torch.lerp(image, (image + detail / 2).clamp(0, 1), mask)
