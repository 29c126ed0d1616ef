"""Frames for a pipe: YUV4MPEG2, which FFmpeg and most programs for videos read from their standard input."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from sdakd.files.colour import Colour, Frames, Layout, lines, nearest_format

# pixel format -> what a header calls it; more than 8 bits are little-endian
FORMATS = {'yuv420p': '420mpeg2', 'yuv422p': '422', 'yuv444p': '444'}
FORMATS |= {f'{name}{bits}le': f'{name[3:6]}p{bits}' for name in tuple(FORMATS) for bits in (10, 12)}


def choose_format(source: Layout) -> str:
    """The pixel format that keeps the most of a source; RGB becomes 4:4:4."""
    return nearest_format(list(FORMATS), Layout(False, source.bits, source.across, source.down, False))


class Writer:
    """Writes frames as they come, all of one size.

    Args:
        write: Takes bytes.
        size: Height and width.
        rate: Frames per second.
        aspect: Width of a pixel over its height; None: not told.
        colour: Of the pixels; a header tells the range of it and no more.
        pix_fmt: One of :data:`FORMATS`.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        size: tuple[int, int],
        rate: Fraction,
        aspect: Fraction | None,
        colour: Colour,
        pix_fmt: str,
    ) -> None:
        self.write, self.frames = write, Frames(colour, pix_fmt)
        self.bytes = 1 if pix_fmt in ('yuv420p', 'yuv422p', 'yuv444p') else 2
        aspect = aspect or Fraction(0)
        shape = f'{aspect.numerator}:{aspect.denominator if aspect else 0}'
        full = 'FULL' if colour.full else 'LIMITED'
        self.write(
            f'YUV4MPEG2 W{size[1]} H{size[0]} F{rate.numerator}:{rate.denominator} Ip A{shape} C{FORMATS[pix_fmt]} '
            f'XCOLORRANGE={full}\n'.encode()
        )

    def add(self, pixels: np.ndarray) -> None:
        """Writes a frame (h, w, 3), BGR, uint8 or uint16."""
        frame = self.frames(pixels)
        parts = [b'FRAME\n']
        for plane in frame.planes:
            parts.append(np.ascontiguousarray(lines(plane, self.bytes)).data)
        self.write(b''.join(parts))
