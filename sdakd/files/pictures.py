"""Pictures as files hold them, for `sdakd upscale`: grey, colour or alpha, 8 or 16 bits, with their colour profile.

They are read whole and written in bands of rows: a PNG or a TIFF grows while its picture is computed, so one that is
many times larger than what it is made of is never in memory as a whole.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import tifffile
from PIL import Image

from sdakd.compat import UnusableError, replacing
from sdakd.decoding import PNG, Picture, eight_bits, header, picture
from sdakd.files.images import check_size, read_bytes, read_header

QUALITY = 95  # of JPEG and WebP, as Real-ESRGAN's script writes JPEG
FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP', '.bmp': 'BMP'}  # those that are written whole
TIFF = ('.tif', '.tiff')
SIDES = {'JPEG': 65_500, 'WEBP': 16_383}  # libjpeg's and libwebp's largest
BMP_BYTES = TIFF_BYTES = (1 << 32) - (1 << 24)  # what their 32 bits tell, with room for headers; BigTIFF has 64
LEVEL = 3  # of Deflate: as OpenCV's PNG
REACH = 4  # rows that interpolation sees beyond a pixel's own, at most
BAND = 1 << 22  # bytes that are filtered and compressed at a time


def read(path: str | os.PathLike) -> Picture:
    """Reads an image as it is meant to be seen: palettes and inks resolved, turned as EXIF says, 16 bits kept.

    Raises:
        UnusableError: It cannot be read, is cut off, is animated, or has samples of other kinds.
    """
    data = read_bytes(path)
    found = header(data)
    check_size(found.width, found.height)
    return picture(data, found)


def ending_of(path: Path, ext: str) -> str:
    """The ending of the result: as ``--ext`` says, or png for what the format cannot hold."""
    own = path.suffix.lower() if ext == 'auto' else f'.{ext}'
    if own == '.png' or own in TIFF or (own == '.webp' and ext != 'auto'):
        return own
    try:
        found = read_header(path)
    except UnusableError:  # the run will name it
        return own
    return '.png' if (found.alpha and own != '.webp') or (found.deep and ext == 'auto') else own


def filled(pixels: np.ndarray) -> np.ndarray:
    """Gives transparent pixels the colour of the nearest one that is seen; alpha and all else stay as they are.

    What a file holds under them was never meant to be seen, and a network would carry it over the edge.
    """
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels
    hidden = pixels[..., 3] == 0
    if hidden.all() or not hidden.any():
        return pixels
    _, nearest = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    seen = ~hidden
    colours = np.empty((int(nearest.max()) + 1, 3), pixels.dtype)
    colours[nearest[seen]] = pixels[seen][:, :3]
    result = pixels.copy()
    result[hidden, :3] = colours[nearest[hidden]]
    return result


# -------------------------------------------------- writing ----------------------------------------------------------


@dataclass
class Bands:
    """A picture that is made from the top to the bottom.

    Args:
        shape: ``(h, w)``, ``(h, w, 3)`` BGR or ``(h, w, 4)`` with alpha.
        dtype: uint8 or uint16.
        rows: Its parts, each of some rows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Iterable[np.ndarray]

    def whole(self) -> np.ndarray:
        """All of it."""
        result, at = np.empty(self.shape, self.dtype), 0
        for part in self.rows:
            result[at : at + len(part)] = part
            at += len(part)
        return result

    def in_rows(self, count: int) -> Iterator[np.ndarray]:
        """Parts of so many rows, the last of what is left."""
        queue = Queue(self)
        while len(part := queue.take(count)):
            yield part


class Queue:
    """The rows of a picture, as many at a time as are wanted."""

    def __init__(self, made: Bands) -> None:
        self._rows, self._none = iter(made.rows), np.empty((0, *made.shape[1:]), made.dtype)
        self._held = self._none

    def take(self, count: int) -> np.ndarray:
        """The next rows, fewer at the end; a copy, so that what they were a part of need not stay."""
        parts = [self._none]
        while count:
            if not len(self._held):
                self._held = self._none  # an empty part of an array would keep it while the next is made
                self._held = next(self._rows, self._none)
                if not len(self._held):
                    break
            parts.append(self._held[:count].copy())
            self._held, count = self._held[count:], count - len(parts[-1])
        return parts[1] if len(parts) == 2 else np.concatenate(parts)


def bands_of(pixels: np.ndarray) -> Bands:
    """A picture that is there already."""
    return Bands(pixels.shape, pixels.dtype, [pixels])


def beside(colours: Bands, alpha: Bands) -> Bands:
    """A picture with its alpha, whose parts may have other heights."""

    queue = Queue(alpha)
    rows = map(lambda part: np.dstack([part, queue.take(len(part))]), colours.rows)  # which holds no part
    return Bands((*colours.shape[:2], 4), colours.dtype, rows)


def resized(made: Bands, size: tuple[int, int], interpolation: int) -> Bands:
    """A picture of another height and width, as ``cv2.resize`` makes it of the whole.

    Where positions between pixels are exact in binary, such as at half the size, it is made in parts, which need no
    more than some rows around them; else it has to be there whole.
    """
    if size == made.shape[:2]:
        return made
    shape = (*size, *made.shape[2:])
    ratio = Fraction(made.shape[0], size[0])
    to, of = ratio.denominator, ratio.numerator  # so many rows of so many
    if ratio != Fraction(made.shape[1], size[1]) or to & (to - 1):
        return Bands(shape, made.dtype, _resized_whole(made, size, interpolation))
    return Bands(shape, made.dtype, _resized_parts(made, size, interpolation, of, to))


def _resized_whole(made: Bands, size: tuple[int, int], interpolation: int) -> Iterator[np.ndarray]:
    yield cv2.resize(made.whole(), size[::-1], interpolation=interpolation)


def _resized_parts(made: Bands, size: tuple[int, int], interpolation: int, of: int, to: int) -> Iterator[np.ndarray]:
    """In blocks of ``of`` rows, which become ``to`` rows."""
    blocks, edge = made.shape[0] // of, -(-REACH // of)  # the edge: blocks that are seen beyond a part
    count, queue = max(_rows_of(made) // of, edge), Queue(made)
    held, first, done = queue.take(0), 0, 0  # first: the block where what is held begins
    while done < blocks:
        end, start = min(done + count, blocks), max(done - edge, 0)
        due = min(end + edge, blocks)
        more = queue.take((due - first) * of - len(held))
        held, first = np.concatenate([held[(start - first) * of :], more]), start
        small = cv2.resize(held, (size[1], (due - first) * to), interpolation=interpolation)
        yield small[(done - first) * to : (end - first) * to]
        done = end


def check_format(shape: tuple[int, ...], ending: str) -> None:
    """Checks that a format holds a picture of this shape.

    Raises:
        UnusableError: It does not.
    """
    form, (height, width) = FORMATS.get(ending), shape[:2]
    most = SIDES.get(form, 0)
    has = f'would become {width}x{height} pixels, more than'
    if most and max(height, width) > most:
        raise UnusableError('failed', f'{has} the {most} on a side that {form} files hold; give --ext png')
    if form == 'BMP' and height * (width + 1) * (1 if len(shape) == 2 else 3) > BMP_BYTES:
        raise UnusableError('failed', f'{has} the 4 GiB that BMP files hold; give --ext png')


def write_picture(path: Path, made: Bands, profile: bytes | None = None) -> None:
    """Writes a picture while it is made; the file is either absent or complete.

    PNG and TIFF keep 16 bits, what else there is gets 8; JPEG and BMP are without alpha.

    Raises:
        UserError: It cannot be written.
    """
    ending = path.suffix.lower()
    with replacing(path) as file:
        if ending == '.png':
            _write_png(file, made, profile)
        elif ending in TIFF:
            _write_tiff(file, made, profile)
        else:
            _write_whole(file, made, profile, FORMATS[ending])


def _write_whole(file: BinaryIO, made: Bands, profile: bytes | None, form: str) -> None:
    rows = map(lambda part: _rgb(eight_bits(part)), made.rows)
    pixels = Bands(made.shape, np.dtype(np.uint8), rows).whole()
    extra = {} if form == 'BMP' else {'quality': QUALITY}
    if profile and form != 'BMP':
        extra['icc_profile'] = profile
    Image.fromarray(pixels).save(file, form, **extra)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels)
    order = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(np.ascontiguousarray(pixels), order)


def _rows_of(made: Bands) -> int:
    return max(BAND // (int(np.prod(made.shape[1:])) * made.dtype.itemsize), 1)


def _write_png(file: BinaryIO, made: Bands, profile: bytes | None) -> None:
    """A PNG (ISO/IEC 15948); of its filters None, Sub and Up, a row gets what leaves the smallest numbers (12.8)."""

    def chunk(name: bytes, data: bytes) -> None:
        file.write(struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(data, zlib.crc32(name))))

    channels = made.shape[2] if len(made.shape) == 3 else 1
    step, kind = channels * made.dtype.itemsize, {1: 0, 3: 2, 4: 6}[channels]
    file.write(PNG)
    chunk(b'IHDR', struct.pack('>IIBBBBB', made.shape[1], made.shape[0], 8 * made.dtype.itemsize, kind, 0, 0, 0))
    if profile:
        chunk(b'iCCP', b'ICC\0\0' + zlib.compress(profile))
    packer = zlib.compressobj(LEVEL)
    above = np.zeros(made.shape[1] * step, np.uint8)
    for part in made.in_rows(_rows_of(made)):
        lines = _rgb(part)
        lines = lines.astype(lines.dtype.newbyteorder('>'), copy=False).reshape(len(part), -1).view(np.uint8)
        sub, up = lines.copy(), lines.copy()
        sub[:, step:] -= lines[:, :-step]
        up[0] -= above
        up[1:] -= lines[:-1]
        above = lines[-1]
        candidates = lines, sub, up
        best = np.argmin([_weight(each) for each in candidates], 0)
        filtered = np.empty((len(lines), 1 + lines.shape[1]), np.uint8)
        filtered[:, 0] = best
        for number, each in enumerate(candidates):
            filtered[best == number, 1:] = each[best == number]
        if data := packer.compress(filtered):
            chunk(b'IDAT', data)
    chunk(b'IDAT', packer.flush())
    chunk(b'IEND', b'')


def _weight(lines: np.ndarray) -> np.ndarray:
    """The sum of differences, as numbers with a sign, in each line."""
    return np.abs(lines.view(np.int8)).sum(1, dtype=np.int64)


def _write_tiff(file: BinaryIO, made: Bands, profile: bytes | None) -> None:
    """A TIFF in strips of horizontal differences, by Deflate; a BigTIFF where it might not fit into 4 GiB."""
    rows = max(_rows_of(made) // 16, 1)  # a quarter of a MiB: readers hold a strip at a time

    def strips() -> Iterator[bytes]:
        for part in made.in_rows(rows):
            part = _rgb(part)
            lines = part.copy()
            lines[:, 1:] -= part[:, :-1]
            yield zlib.compress(lines.astype(lines.dtype.newbyteorder('<'), copy=False).data, LEVEL)

    channels = made.shape[2] if len(made.shape) == 3 else 1
    large = int(np.prod(made.shape)) * made.dtype.itemsize > TIFF_BYTES
    with tifffile.TiffWriter(file, bigtiff=large, byteorder='<') as writer:
        writer.write(
            strips(),
            shape=made.shape,
            dtype=made.dtype,
            photometric='minisblack' if channels == 1 else 'rgb',
            extrasamples=['unassalpha'] if channels == 4 else None,
            compression='adobe_deflate',
            predictor=2,
            rowsperstrip=rows,
            iccprofile=profile,
            metadata=None,
            software=False,
        )
