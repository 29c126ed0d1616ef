"""TIFF files, read by tifffile: what their samples mean (TIFF 6.0, and its supplements) becomes grey, BGR and alpha."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import tifffile
from PIL.TiffImagePlugin import TiffImageFile

from sdakd.compat import unreadable

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, INKS, YCBCR = 0, 1, 2, 3, 5, 6  # photometric interpretations
CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, INKS: 4, YCBCR: 3}
OTHERS = {
    4: 'is a mask of transparency, no image',
    8: 'has colours in CIE L*a*b*; convert it to RGB',
    9: 'has colours in CIE L*a*b*; convert it to RGB',
    10: 'has colours in CIE L*a*b*; convert it to RGB',
    32803: "holds a camera's raw data; develop it first",
    34892: "holds a camera's raw data; develop it first",
    32844: 'has logarithmic colours (LogL); store it with 8 or 16 bits',
    32845: 'has logarithmic colours (LogLuv); store it with 8 or 16 bits',
}
MOST_CHANNELS = 16
ASSOCIATED, UNASSOCIATED = 1, 2  # values of ExtraSamples
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # values of SampleFormat
FAXES = (2, 3, 4)  # values of Compression, which Pillow decodes
JPEGS = (6, 7)  # values of Compression: their decoder gives RGB where the file has YCbCr
LUMA = (0.299, 0.587, 0.114)  # YCbCrCoefficients where a file tells none


@dataclass(frozen=True)
class Facts:
    """What the header tells; ``size`` is width and height as stored."""

    size: tuple[int, int]
    pages: int
    orientation: int
    alpha: bool
    deep: bool
    inks: bool


def facts(source: BinaryIO) -> Facts:
    """Reads the header; raises what tifffile raises where it is damaged."""
    with tifffile.TiffFile(source) as file:
        pages = _full(file)
        page = pages[0]
        count = max(len(pages), (file.imagej_metadata or {}).get('images', 1) if file.is_imagej else 1)
        size = page.imagewidth, page.imagelength
        if not all(size):
            raise unreadable('is damaged (it tells no size)')
        deep = page.bitspersample > 8 and page.photometric != PALETTE
        return Facts(size, count, _tag(page, 274, 1), bool(_alpha(page)), deep, page.photometric == INKS)


def pixels(data: bytes) -> tuple[np.ndarray, bytes | None]:
    """The stored pixels, not turned, as :class:`sdakd.decoding.Picture` has them, and the colour profile.

    Raises:
        UnusableError: They are of a kind that has no place there, or damaged.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = _full(file)[0]
        samples = _samples(page, data)
        count = CHANNELS[page.photometric]
        kind, at = _alpha(page) or (None, None)
        colours, top = samples[..., :count], np.iinfo(samples.dtype).max
        if page.photometric == PALETTE:
            colours = _looked_up(page, colours[..., 0])
            top = 255
        elif page.photometric == WHITE_IS_ZERO:
            colours = top - colours
        elif page.photometric == INKS:
            white = (top - colours).astype(np.uint32)  # which holds the products of 16 bits
            colours = ((white[..., :3] * white[..., 3:] + top // 2) // top).astype(samples.dtype)
        elif page.photometric == YCBCR and page.compression not in JPEGS:
            colours = _from_ycbcr(page, colours)
        if kind is not None:
            alpha = samples[..., at : at + 1]
            if page.photometric == PALETTE:
                alpha = alpha.astype(np.uint8)
            if kind == ASSOCIATED:
                whole = (colours.astype(np.uint32) * top + alpha // 2) // np.maximum(alpha, 1)
                colours = np.minimum(whole, top).astype(colours.dtype)
            if colours.shape[2] == 1:
                colours = colours.repeat(3, 2)
            return np.concatenate([colours[..., ::-1], alpha], 2), _tag(page, 34675, None)
        return colours[..., 0] if colours.shape[2] == 1 else colours[..., ::-1], _tag(page, 34675, None)


def _full(file: tifffile.TiffFile) -> list:
    """The pages that are images: neither smaller copies of others nor masks (NewSubfileType)."""
    pages = list(file.pages)
    return [page for page in pages if not (page.is_reduced or page.is_mask)] or pages[:1]


def _tag(page: tifffile.TiffPage, code: int, otherwise: object) -> object:
    return page.tags.valueof(code, otherwise)


def _alpha(page: tifffile.TiffPage) -> tuple[int, int] | None:
    """The kind of alpha and its channel; None where there is none.

    A fourth sample beside red, green and blue that a file does not explain is alpha for Pillow and for OpenCV, which
    writes such files; one that it calls unspecified is not.
    """
    count = CHANNELS.get(page.photometric)
    if count is None:
        return None
    kinds = _tag(page, 338, None)
    if kinds is None:
        return (UNASSOCIATED, 3) if page.photometric == RGB and page.samplesperpixel == 4 else None
    kinds = (kinds,) if isinstance(kinds, int) else kinds
    return next(((kind, count + i) for i, kind in enumerate(kinds) if kind in (ASSOCIATED, UNASSOCIATED)), None)


def _samples(page: tifffile.TiffPage, data: bytes) -> np.ndarray:
    """``(h, w, channels)`` in uint8 or uint16, of the full range of these."""
    _check(page, len(data))
    if page.compression in FAXES:
        return _of_fax(page, data)
    try:
        found = page.asarray(maxworkers=1)
    except ValueError as error:
        text = str(error)
        if 'imagecodecs' in text:
            raise unreadable(
                f'is compressed by {_name(page.compression)}, for which the package imagecodecs is needed: pip install '
                'imagecodecs'
            ) from None
        if 'not supported' in text or 'not a known' in text:
            raise unreadable(
                f'is of a kind that is not read here ({text.splitlines()[0]}); convert it to PNG'
            ) from None
        raise
    except NotImplementedError as error:
        raise unreadable(f'is of a kind that is not read here ({error}); convert it to PNG') from None
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        found = np.moveaxis(found, 0, -1)
    found = found.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    if found.dtype == bool:
        found = found.astype(np.uint8)
    bits = page.bitspersample
    if page.photometric == PALETTE:
        return found
    if _format(page) == FLOAT:
        return _of_float(found)
    found = found.astype(found.dtype.newbyteorder('='), copy=False)
    if bits in (8, 16):
        return found
    wide = np.uint8 if bits < 8 else np.uint16
    top, most = np.iinfo(wide).max, 2**bits - 1
    return ((found.astype(np.uint32) * top + most // 2) // most).astype(wide)


def _format(page: tifffile.TiffPage) -> int:
    kinds = _tag(page, 339, UNSIGNED)
    return kinds if isinstance(kinds, int) else kinds[0]


def _check(page: tifffile.TiffPage, length: int) -> None:
    """Refuses what could only be shown wrong.

    Raises:
        UnusableError: It is said why.
    """
    photometric, bits = page.photometric, page.bitspersample
    if photometric in OTHERS:
        raise unreadable(OTHERS[photometric])
    if photometric not in CHANNELS:
        raise unreadable(f'has colours of a kind that is not read here (photometric interpretation {int(photometric)})')
    if page.imagedepth != 1:
        raise unreadable(f'is a volume of {page.imagedepth} slices; give each slice as a file of its own')
    if page.samplesperpixel > MOST_CHANNELS:  # a small file may claim any number
        raise unreadable(f'has {page.samplesperpixel} channels; store those that are colours as RGB')
    kind, count = _format(page), CHANNELS[photometric]
    if kind == SIGNED:
        raise unreadable('has signed samples, with numbers below 0; store it with unsigned ones')
    if kind not in (UNSIGNED, FLOAT, 4):  # 4: untyped data, which readers take for unsigned
        raise unreadable('has complex numbers as samples; store it with 8 or 16 bits')
    if bits > 16 and kind != FLOAT:
        raise unreadable(f'has whole numbers of {bits} bits as samples; store it with 8 or 16')
    if kind == FLOAT and photometric not in (BLACK_IS_ZERO, RGB):
        raise unreadable('has floating-point samples that are no grey and no RGB; store it with 8 or 16 bits')
    if photometric == INKS and _tag(page, 332, 1) != 1:
        raise unreadable('has inks other than cyan, magenta, yellow and black; convert it to RGB')
    if photometric == PALETTE and bits > 8:
        raise unreadable(f'has a palette of {bits} bits; convert it to RGB')
    if photometric == YCBCR and bits != 8:
        raise unreadable(f'has colours in YCbCr with {bits} bits; convert it to RGB')
    if page.samplesperpixel < count:
        raise unreadable(f'is damaged (it has {page.samplesperpixel} of {count} channels)')
    if count == 1 and page.samplesperpixel > 2 and not _alpha(page):
        raise unreadable(f'has {page.samplesperpixel} channels and does not say that they are colours; store it as RGB')
    ends = [offset + size for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if not ends or max(ends) > length or not all(page.databytecounts):
        raise unreadable('is cut off')


def _of_fax(page: tifffile.TiffPage, data: bytes) -> np.ndarray:
    content = bytearray(data)
    if tag := page.tags.get(274):  # Pillow would turn it here already
        content[tag.valueoffset : tag.valueoffset + 2] = struct.pack(f'{page.parent.byteorder}H', 1)
    with TiffImageFile(io.BytesIO(content)) as image:
        found = np.asarray(image.convert('L'))[..., None]
    if found.shape[:2] != (page.imagelength, page.imagewidth) or page.samplesperpixel != 1 or page.bitspersample != 1:
        raise unreadable('is a fax of a kind that is not read here; convert it to PNG')
    return 255 - found if page.photometric == WHITE_IS_ZERO else found  # Pillow knows what white is


def _of_float(found: np.ndarray) -> np.ndarray:
    """Floating-point samples from 0 to 1 as 16 bits."""
    least, most = float(found.min()), float(found.max())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise unreadable('has samples that are no numbers')
    if least < 0 or most > 1:
        raise unreadable(
            f'has floating-point samples from {least:.4g} to {most:.4g}; bring them to 0 to 1, or store it with 8 or '
            '16 bits'
        )
    result = np.empty(found.shape, np.uint16)
    for row, into in zip(found, result, strict=True):  # no float64 of the whole
        into[:] = np.rint(row.astype(np.float64) * 65535)
    return result


def _looked_up(page: tifffile.TiffPage, index: np.ndarray) -> np.ndarray:
    """Colours of a palette, RGB, 8 bits."""
    table = np.asarray(page.colormap).astype(np.uint32)
    if table.ndim != 2 or len(table) != 3:
        raise unreadable('is damaged (its palette has another size)')
    if table.max() > 255:  # as TIFF 6.0 wants it; old programs wrote 8 bits, or 8 bits and a zero behind them
        table = (table + 128) // 257 if (table & 255).any() else table >> 8
    return table.astype(np.uint8).T[index]


def _from_ycbcr(page: tifffile.TiffPage, colours: np.ndarray) -> np.ndarray:
    """RGB of YCbCr of full range (TIFF 6.0, section 21)."""
    white = tuple(
        float(np.divide(*pair))
        for pair in np.reshape(_tag(page, 532, (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)), (-1, 2))
    )
    if white != (0, 255, 128, 255, 128, 255):
        raise unreadable('has colours in YCbCr of a range that is not read here; convert it to RGB')
    given = np.reshape(_tag(page, 529, ()), (-1, 2))
    red, green, blue = (float(a) / float(b) for a, b in given) if len(given) == 3 else LUMA
    y, cb, cr = np.moveaxis(colours.astype(np.float32), -1, 0)
    r, b = y + (cr - 128) * (2 - 2 * red), y + (cb - 128) * (2 - 2 * blue)
    rgb = np.stack([r, (y - red * r - blue * b) / green, b], -1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _name(compression: int) -> str:
    return getattr(compression, 'name', str(int(compression)))
