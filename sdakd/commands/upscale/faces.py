"""GCFSR's faces for `sdakd upscale`: any square size, at the factor that it says or that the user says."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch

from sdakd.compat import UserError
from sdakd.files.generators import SMALLEST_FACE, Opened
from sdakd.files.images import UnusableError
from sdakd.files.pictures import Bands, bands_of

GREY = (0.299, 0.587, 0.114)  # of R, G and B


def check_flags(opened: Opened, factor: float | None, whole_images: Mapping[str, int | None]) -> None:
    """Checks that a network for faces has a use for the flags of `sdakd upscale`.

    Args:
        factor: What the network is to be told.
        whole_images: Flag -> value, of what cuts images into tiles or pads them.

    Raises:
        UserError: Tiles or padding, a factor for a network that is not told one, or one that does not fit.
    """
    name = f'{opened.path} ({opened.network["type"]})'
    for flag, given in whole_images.items():
        if given:
            raise UserError(flag, f'{name} sees whole faces, without tiles and padding; leave the flag out.')
    largest = opened.module.out_size // SMALLEST_FACE
    if factor is not None and not opened.module.generator.takes_factor:
        raise UserError('--factor', f'{name} is not told a factor; leave the flag out.')
    if factor is not None and not 1 <= factor <= largest:
        raise UserError(
            '--factor',
            f'{factor:g} does not fit faces of {opened.module.out_size} pixels; give a number from 1 to {largest}.',
        )


class FaceUpscaler:
    """Enlarges faces, called as :class:`sdakd.commands.upscale.upscaler.Upscaler`; always in float32.

    Args:
        opened: Its module is a :class:`sdakd.files.generators.FaceNetwork`, which is moved to the device.
        factor: What the network is told; None: what the image's size says.
        device: Where to compute.
    """

    def __init__(self, opened: Opened, factor: float | None = None, device: str | torch.device = 'cpu') -> None:
        self.network, self.device = opened.module.to(device), torch.device(device)
        self.network.factor = factor
        self.out_size = self.network.out_size

    def size_of(self, height: int, width: int, outscale: float | None = None) -> tuple[int, int]:
        """Height and width of the result of an image of this size."""
        return (self.out_size if outscale is None else max(int(height * outscale), 1),) * 2

    def bands(self, img: np.ndarray, outscale: float | None = None, alpha_upsampler: str = 'bicubic') -> Bands:
        """:meth:`enhance`, as :meth:`sdakd.commands.upscale.upscaler.Upscaler.bands`."""
        return bands_of(self.enhance(img, outscale, alpha_upsampler)[0])

    @torch.no_grad()
    def enhance(
        self, img: np.ndarray, outscale: float | None = None, alpha_upsampler: str = 'bicubic'
    ) -> tuple[np.ndarray, str]:
        """Enlarges a face.

        Args:
            img: ``(h, h)`` grey, or ``(h, h, 3)`` or ``(h, h, 4)`` with BGR and alpha; uint8 or uint16.
            outscale: Factor between input and output, made by Lanczos interpolation; None: the size of the faces.
            alpha_upsampler: Not used: alpha is not a face, so bicubic interpolation enlarges it.

        Returns:
            The image, of the input's type and channels, and its kind: L, RGB or RGBA.

        Raises:
            UnusableError: A size that the network does not take, or the memory does not suffice.
        """
        height, width = img.shape[:2]
        if fault := self.network.fault(height, width):
            raise UnusableError('failed', fault)
        mode = 'L' if img.ndim == 2 else {3: 'RGB', 4: 'RGBA'}[img.shape[2]]
        top = int(np.iinfo(img.dtype).max)
        colour = np.dstack([img] * 3) if mode == 'L' else img[..., 2::-1]
        face = torch.from_numpy(colour.astype(np.float32) / top).permute(2, 0, 1)[None].to(self.device)
        try:
            face = self.network(face)[0].clamp(0, 1).cpu()
        except (RuntimeError, MemoryError) as error:
            if 'memory' not in str(error) and not isinstance(error, MemoryError):
                raise
            raise UnusableError('failed', 'needs more memory than there is; free some') from None
        if not torch.isfinite(face).all():
            raise UnusableError('failed', 'makes the network give values that are no numbers')
        if mode == 'L':
            face = (face * face.new_tensor(GREY).view(3, 1, 1)).sum(0, keepdim=True)
        output = (face.flip(0) * top).round().permute(1, 2, 0).numpy().astype(img.dtype)
        if mode == 'L':
            output = output[..., 0]
        if mode == 'RGBA':
            output = np.dstack([output, self._alpha(img[..., 3])])
        if outscale is not None:
            size = self.size_of(height, width, outscale)
            output = cv2.resize(np.ascontiguousarray(output), size, interpolation=cv2.INTER_LANCZOS4)
        return np.ascontiguousarray(output), mode

    def _alpha(self, alpha: np.ndarray) -> np.ndarray:
        size = self.out_size, self.out_size
        if alpha.min() == alpha.max():
            return np.full(size, alpha.flat[0], alpha.dtype)
        return cv2.resize(alpha, size, interpolation=cv2.INTER_CUBIC)
