"""Between the frames of videos and pictures: YUV of any matrix, range and depth to BGR and back, by FFmpeg's swscale.

Numbers are those of ITU-T H.273, as FFmpeg counts them. The package av is imported by who opens a video.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sdakd.compat import UserError

BT709, FCC, BT470BG, SMPTE170M, SMPTE240M, BT2020 = 1, 4, 5, 6, 7, 9
RGB, UNTOLD = 0, 2
MATRICES = {BT709, FCC, BT470BG, SMPTE170M, SMPTE240M, BT2020}
LIMITED, FULL = 1, 2
PQ, HLG = 16, 18  # transfer functions of HDR
WHITE = 255 << 8  # of swscale, which takes 16 bits of RGB for 8 bits and a fraction of them
TALL = 720  # rows from which on an untagged video is taken for BT.709
# of swscale: bicubic, the whole of the chroma planes on both sides, rounded exactly
FLAGS = 0x4 | 0x2000 | 0x4000 | 0x40000


@dataclass(frozen=True)
class Colour:
    """What a video says of its colours, or what is taken for it.

    Args:
        matrix: Between RGB and YUV, one of :data:`MATRICES`.
        full: Whether samples take the whole range, as in JPEG files, instead of 16 to 235.
        primaries: As it is told; 2: not told.
        transfer: Likewise.
    """

    matrix: int
    full: bool
    primaries: int = UNTOLD
    transfer: int = UNTOLD

    @property
    def hdr(self) -> str:
        """``PQ``, ``HLG`` or nothing."""
        return {PQ: 'PQ', HLG: 'HLG'}.get(self.transfer, '')


@dataclass(frozen=True)
class Layout:
    """How a pixel format stores colours.

    Args:
        rgb: Whether it is RGB, or a palette of it.
        bits: Of a sample, at most.
        across: So many columns share a sample of chroma.
        down: So many rows likewise.
        alpha: Whether it has transparency.
    """

    rgb: bool
    bits: int
    across: int
    down: int
    alpha: bool

    def fitting(self, height: int, width: int) -> tuple[int, int]:
        """The largest size that is not larger and whose sides chroma divides."""
        return max(height - height % self.down, self.down), max(width - width % self.across, self.across)


def layout(name: str) -> Layout:
    """The layout of a pixel format of FFmpeg's, by its name.

    Raises:
        ValueError: There is no such format.
    """
    import av

    found = av.VideoFormat(name, 64, 64)
    grey = len(found.components) <= 2 and not found.has_palette  # written as the usual 4:2:0
    across, down = (2, 2) if grey else (64 // found.chroma_width(64), 64 // found.chroma_height(64))
    alpha = any(part.is_alpha for part in found.components)
    return Layout(found.is_rgb or found.has_palette, max(part.bits for part in found.components), across, down, alpha)


def colour_of(frame, where: str) -> Colour:
    """The colours of a decoded frame; what it does not tell is guessed as players do.

    Raises:
        UserError: Its matrix is none that swscale knows.
    """
    kind = layout(frame.format.name)
    full = frame.color_range == FULL or frame.format.name.startswith('yuvj')
    matrix = frame.colorspace
    if kind.rgb:
        matrix = BT709  # of what is made of it
        full = False
    elif matrix in (UNTOLD, RGB):
        matrix = BT709 if frame.height >= TALL else SMPTE170M
    elif matrix not in MATRICES:
        raise UserError(
            where, f'its colours are stored by matrix {matrix} of H.273, which is not known here; convert it to BT.709.'
        )
    return Colour(matrix, full, frame.color_primaries, frame.color_trc)


class Pixels:
    """Makes BGR arrays of frames, all of one size and kind."""

    def __init__(self, colour: Colour, deep: bool) -> None:
        from av.video.reformatter import VideoReformatter

        self.colour, self.format, self.scaler = colour, 'bgr48le' if deep else 'bgr24', VideoReformatter()

    def __call__(self, frame) -> np.ndarray:
        """uint8 or uint16 array (h, w, 3), BGR."""
        rgb = layout(frame.format.name).rgb
        if not rgb:
            frame.colorspace, frame.color_range = self.colour.matrix, FULL if self.colour.full else LIMITED
        pixels = self.scaler.reformat(frame, format=self.format, interpolation=FLAGS, threads=1).to_ndarray()
        if rgb or pixels.dtype == np.uint8:
            return pixels
        pixels = np.minimum(pixels, WHITE)
        return pixels + (pixels >> 8)


class Frames:
    """Makes frames of a pixel format of BGR arrays, all of one size and kind; the reverse of :class:`Pixels`."""

    def __init__(self, colour: Colour, name: str) -> None:
        from av.video.reformatter import VideoReformatter

        self.colour, self.name, self.scaler, self.layout = colour, name, VideoReformatter(), layout(name)
        # swscale rounds chroma of the full range down, which would tint the picture
        self.stretched = colour.full and not self.layout.rgb and self.layout.bits <= 16 and name.startswith('yuv4')

    def __call__(self, pixels: np.ndarray):
        """An ``av.VideoFrame`` of an array (h, w, 3), BGR, uint8 or uint16."""
        import av

        if pixels.dtype == np.uint16 and not self.layout.rgb:
            pixels = pixels - (pixels >> 8)
        elif self.stretched:
            pixels = pixels.astype(np.uint16) << 8
        kind = 'bgr48le' if pixels.dtype == np.uint16 else 'bgr24'
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), kind)
        frame.colorspace = self.colour.matrix
        frame.color_range = FULL if self.colour.full and not self.stretched else LIMITED
        frame.color_primaries, frame.color_trc = self.colour.primaries, self.colour.transfer
        name = f'{self.name[:7]}16le' if self.stretched else self.name
        frame = self.scaler.reformat(frame, format=name, interpolation=FLAGS, threads=1)
        return self._full(frame) if self.stretched else frame

    def _full(self, frame):
        """A frame of 16 bits and the limited range in the full range and the bits that are wanted."""
        import av

        result = av.VideoFrame(frame.width, frame.height, self.name)
        top, half = (1 << self.layout.bits) - 1, 1 << (self.layout.bits - 1)
        for number, (limited, plane) in enumerate(zip(frame.planes, result.planes, strict=True)):
            values = lines(limited, 2).astype(np.float32) / 256
            values = (values - 128) * (top / 224) + half if number else (values - 16) * (top / 219)
            lines(plane, 1 if self.layout.bits == 8 else 2)[:] = np.rint(values).clip(0, top)
        result.colorspace, result.color_range = self.colour.matrix, FULL
        result.color_primaries, result.color_trc = self.colour.primaries, self.colour.transfer
        return result


def lines(plane, size: int) -> np.ndarray:
    """The samples of a plane of a frame, of so many bytes each, without what pads its lines; a view."""
    samples = np.frombuffer(plane, np.dtype(f'<u{size}')).reshape(plane.height, -1)
    return samples[:, : plane.width]


def nearest_format(names: list[str], wanted: Layout) -> str:
    """The pixel format of an encoder that keeps the most: first RGB or YUV, then the bits, then the chroma.

    Args:
        names: All that the encoder takes.
        wanted: The layout to come near to; its alpha is left out.
    """

    def loss(name: str) -> tuple:
        have = layout(name)
        chroma = abs(math.log2(have.across / wanted.across)) + abs(math.log2(have.down / wanted.down))
        return have.rgb != wanted.rgb, have.bits < wanted.bits, abs(have.bits - wanted.bits), chroma, name[-2:] == 'be'

    plain = [
        name for name in names if name.startswith(('yuv4', 'gbrp', 'bgr0', 'bgr24', 'rgb24')) and not layout(name).alpha
    ]
    return min(plain, key=loss)
