"""Image files as they are meant to be seen: what their headers say, their pixels, and whether OpenCV sees the same.

BasicSR's data sets decode with OpenCV, which shows most files right and some wrong without a word; :func:`in_doubt`
says which may be. Pixels come from Pillow, from tifffile where the file is a TIFF, and from OpenCV where a PNG has 16
bits.
"""

from __future__ import annotations

import io
import logging
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, PngImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sdakd import tiff
from sdakd.compat import UnusableError, unreadable

PNG = b'\x89PNG\r\n\x1a\n'
# Pillow's own open() would hand PostScript to another program, and hides why a file is refused
READERS = {'PNG': PngImagePlugin.PngImageFile, 'JPEG': JpegImageFile, 'BMP': BmpImageFile, 'WebP': WebPImageFile}
# how other files begin that bear an image's name
STRANGERS = (
    (b'GIF8', 'a GIF file'),
    (b'\0\0\0\x0cjP  ', 'a JPEG 2000 file'),
    (b'\xff\x4f\xff\x51', 'a JPEG 2000 file'),
    (b'\0\0\0\x0cJXL ', 'a JPEG XL file'),
    (b'\xff\x0a', 'a JPEG XL file'),
    (b'8BPS', 'a Photoshop file'),
    (b'%PDF', 'a PDF file'),
    (b'%!PS', 'a PostScript file'),
    (b'v/1\x01', 'an OpenEXR file'),
    (b'#?RA', 'a Radiance HDR file'),
    (b'DDS ', 'a DDS texture'),
    (b'qoif', 'a QOI file'),
    (b'version https://git-lfs', 'a pointer of Git LFS, whose file was not fetched'),
    (b'<svg', 'an SVG drawing'),
    (b'<?xml', 'an XML document'),
    (b'<!doctype html', 'a web page'),
    (b'<html', 'a web page'),
    (b'PK\x03\x04', 'a ZIP archive'),
)
WANTED = (b'IHDR', b'acTL', b'eXIf', b'tRNS')  # chunks of a PNG
DAMAGED = 'is damaged or no image'
Image.MAX_IMAGE_PIXELS = None  # who decodes has a limit of its own, which users can raise
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24  # colour profiles, too, may be larger than Pillow's 1 MiB
logging.getLogger('PIL').setLevel(logging.WARNING)
logging.getLogger('tifffile').setLevel(logging.CRITICAL)  # what it cannot read is an exception as well

# EXIF orientation -> what turns the stored pixels upright (EXIF 2.32, tag 0x0112)
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
EXCHANGED = (5, 6, 7, 8)  # those that exchange width and height


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@dataclass
class Picture:
    """What a file shows: ``pixels`` (h, w), (h, w, 3) BGR or (h, w, 4) with alpha, uint8 or uint16; upright."""

    pixels: np.ndarray
    profile: bytes | None  # ICC profile, where it belongs to such pixels


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded.

    Args:
        kind: PNG, JPEG, BMP, WebP or TIFF.
        width: In pixels, upright.
        height: Likewise.
        orientation: EXIF's.
        frames: Frames of an animation, or pages.
        alpha: Whether pixels may be transparent.
        deep: Whether samples have more than 8 bits.
        inks: Whether colours are inks, cyan to black.
    """

    kind: str
    width: int
    height: int
    orientation: int = 1
    frames: int = 1
    alpha: bool = False
    deep: bool = False
    inks: bool = False


# --------------------------------------------------- headers ---------------------------------------------------------


def kind_of(start: bytes) -> str | None:
    """What the first bytes of a file tell: the kind of an image that is read here, or None."""
    if start.startswith(PNG):
        return 'PNG'
    if start.startswith(b'\xff\xd8'):
        return 'JPEG'
    if start.startswith(b'BM'):
        return 'BMP'
    if start.startswith(b'RIFF') and start[8:12] == b'WEBP':
        return 'WebP'
    return 'TIFF' if start[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+') else None


def _stranger(start: bytes) -> str:
    """Why a file is refused that is no image of these kinds."""
    if start[4:8] == b'ftyp':
        names = {b'avif': 'an AVIF file', b'avis': 'an AVIF file'}
        what = names.get(start[8:12], 'a HEIF file' if start[8:10] in (b'he', b'mi', b'ms') else 'a video')
    else:
        text = start.lstrip(b'\xef\xbb\xbf \r\n\t').lower()
        found = (what for mark, what in STRANGERS if start.startswith(mark) or text.startswith(mark))
        what = next(found, None)
    return f'is {what}, whatever its name says; convert it to PNG' if what else DAMAGED


def _chunks(file: BinaryIO) -> dict[bytes, bytes]:
    """The chunks of a PNG in front of its pixels (PNG specification, 5.3)."""
    found = {}
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack('>I4s', head)
        if name == b'IDAT':
            break
        if name in WANTED:
            found[name] = file.read(length)
        else:
            file.seek(length, io.SEEK_CUR)
        file.seek(4, io.SEEK_CUR)
    return found


def _turn(exif: bytes) -> int:
    """The orientation in an EXIF block."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        found = tags.get(0x0112, 1)
    except Exception:  # what is wrong with it does not concern the pixels
        return 1
    return found if found in TURNS else 1


def _upright(kind: str, size: tuple[int, int], turn: int, **facts: object) -> Header:
    return Header(kind, *(size[::-1] if turn in EXCHANGED else size), turn, **facts)


def header(source: bytes | BinaryIO) -> Header:
    """Reads the header of an image file, its bytes or the file itself; nothing is decoded.

    Raises:
        UnusableError: It is damaged, or no image of these kinds.
    """
    file = source if hasattr(source, 'read') else io.BytesIO(source)
    start = file.read(64)
    if not start:
        raise unreadable('is empty')
    kind = kind_of(start)
    if kind is None:
        raise unreadable(_stranger(start))
    file.seek(0)
    try:
        return _read_header(kind, file)
    except UnusableError:
        raise
    except Exception as error:  # readers of damaged headers raise almost anything
        told = kind == 'JPEG' and 'cannot handle' in str(error)  # such as 12 bits
        raise unreadable(f'cannot be read ({first_line(error)})' if told else DAMAGED) from None


def _read_header(kind: str, file: BinaryIO) -> Header:
    if kind == 'TIFF':
        told = tiff.facts(file)
        facts = {'frames': told.pages, 'alpha': told.alpha, 'deep': told.deep, 'inks': told.inks}
        return _upright(kind, told.size, told.orientation if told.orientation in TURNS else 1, **facts)
    if kind == 'PNG':  # Pillow would unpack texts, too, and refuse long ones
        chunks = _chunks(file)
        width, height, bits, colours = struct.unpack('>IIBB', chunks[b'IHDR'][:10])
        frames = struct.unpack('>I', chunks[b'acTL'][:4])[0] if b'acTL' in chunks else 1
        facts = {'frames': frames, 'alpha': colours in (4, 6) or b'tRNS' in chunks, 'deep': bits == 16}
        return _upright(kind, (width, height), _turn(chunks.get(b'eXIf', b'')), **facts)
    with READERS[kind](file) as image:
        frames = getattr(image, 'n_frames', 1) if kind == 'WebP' else 1  # further images of a JPEG are previews
        facts = {'frames': frames, 'alpha': image.has_transparency_data, 'inks': image.mode == 'CMYK'}
        return _upright(kind, image.size, _turn(image.info.get('exif', b'')), **facts)


def check_single(found: Header) -> None:
    """Checks that a file shows one image.

    Raises:
        UnusableError: It is animated, or has several pages.
    """
    if found.frames > 1:
        has = f'has {found.frames} pages' if found.kind == 'TIFF' else f'is animated, with {found.frames} frames'
        one = 'page' if found.kind == 'TIFF' else 'frame'
        raise unreadable(f'{has}; give each {one} as a file of its own')


# ---------------------------------------------------- pixels ---------------------------------------------------------


def picture(data: bytes, found: Header | None = None) -> Picture:
    """Decodes an image as it is meant to be seen: palettes and inks resolved, turned as EXIF says, 16 bits kept.

    Args:
        data: The bytes of a file.
        found: Its header, where that is known.

    Raises:
        UnusableError: It cannot be read, is cut off, is animated, or has samples of other kinds.
    """
    found = found or header(data)
    check_single(found)
    try:
        if found.kind == 'TIFF':
            pixels, profile = tiff.pixels(data)
        else:
            pixels, profile = _by_pillow(data, found.kind)
    except UnusableError:
        raise
    except MemoryError:
        raise unreadable('needs more memory than there is') from None
    except OSError as error:
        raise unreadable(f'cannot be read ({error.strerror or error})') from None
    except cv2.error as error:
        raise unreadable(_refused_by_opencv(error)) from None
    except Exception as error:  # decoders of damaged files raise almost anything
        raise unreadable(f'is damaged ({first_line(error)})') from None
    turned = TURNS.get(found.orientation, np.asarray)(pixels)
    profile = profile or b''
    fits = profile[16:20] == (b'GRAY' if pixels.ndim == 2 else b'RGB ')
    return Picture(np.ascontiguousarray(turned), profile if fits else None)


def _by_pillow(data: bytes, kind: str) -> tuple[np.ndarray, bytes | None]:
    """The stored pixels of what is no TIFF, and the colour profile."""
    with READERS[kind](io.BytesIO(data)) as image:
        image.load()  # all of it: OpenCV fills what is missing from a file with grey
        profile = image.info.get('icc_profile')
        deep = kind == 'PNG' and data[24] == 16
        if kind == 'PNG' and 'transparency' in image.info and (data[25] == 0 or (deep and data[25] == 2)):
            return _keyed(_deep_png(data) if deep else np.asarray(image.convert('L')), data), profile
        if deep:  # Pillow drops most of the bits
            return _deep_png(data), profile
        if image.has_transparency_data:
            return cv2.cvtColor(np.asarray(image.convert('RGBA')), cv2.COLOR_RGBA2BGRA), profile
        if image.mode in ('1', 'L'):
            return np.asarray(image.convert('L')), profile
        return np.asarray(image.convert('RGB'))[..., ::-1], profile


def _deep_png(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise unreadable(DAMAGED)
    return pixels


def _keyed(pixels: np.ndarray, data: bytes) -> np.ndarray:
    """Grey or BGR of which a PNG calls one value transparent: no library sees that in all depths."""
    bits, top = data[24], np.iinfo(pixels.dtype).max
    stored = _chunks(io.BytesIO(data))[b'tRNS']
    if pixels.ndim == 2:
        pixels, key = np.dstack([pixels] * 3), struct.unpack('>H', stored[:2]) * 3
    else:
        pixels, key = pixels[..., :3], struct.unpack('>HHH', stored[:6])[::-1]
    hidden = (pixels == np.array(key) * (top // (2**bits - 1))).all(2)
    return np.dstack([pixels, np.where(hidden, 0, top).astype(pixels.dtype)])


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 as uint8; uint8 as it is."""
    if pixels.dtype == np.uint8:
        return pixels
    # (v + 128) // 257 is v / 257, rounded: no intermediate of eight bytes per sample
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def colour(pixels: np.ndarray) -> np.ndarray:
    """Pixels of :class:`Picture` as data sets want them: uint8 BGR, without alpha."""
    pixels = eight_bits(pixels)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(pixels[..., :3])


# --------------------------------------------------- OpenCV ----------------------------------------------------------

# what it decodes at most, and the variable that it reads when it is imported
MOST = {'PIXELS': 1 << 30, 'WIDTH': 1 << 20, 'HEIGHT': 1 << 20}


def opencv_most(what: str) -> int:
    """The most PIXELS, WIDTH or HEIGHT of an image that OpenCV decodes."""
    text = os.environ.get(f'OPENCV_IO_MAX_IMAGE_{what}', '')
    return int(text) if text.isdecimal() else MOST[what]


def too_large_for_opencv(width: int, height: int) -> str | None:
    """Why OpenCV does not decode an image of this size, as stored: the end of a sentence; None where it does."""
    for what, size in (('PIXELS', width * height), ('WIDTH', width), ('HEIGHT', height)):
        if size > opencv_most(what):
            unit = '' if what == 'PIXELS' else f' in {what.lower()}'
            return f'has {width}x{height} pixels, more than the {opencv_most(what):,d}{unit} that OpenCV decodes'
    return None


def _refused_by_opencv(error: cv2.error) -> str:
    remedy = '; set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS higher' if 'IO_MAX' in error.err else ''
    return f'cannot be decoded ({error.err}){remedy}'


def in_doubt(found: Header) -> bool:
    """Whether OpenCV may show something else than is meant, without a word."""
    return (
        found.kind in ('TIFF', 'BMP')
        or found.inks
        or found.frames > 1
        or (found.orientation != 1 and found.kind != 'JPEG')
    )


# levels by which OpenCV may differ: where it rounds 16 bits or converts inks in its own way, and on average where a
# JPEG is inside
APART, LOSSY_APART = 2, 3.0


def opencv_errs(data: bytes, found: Header, image: np.ndarray | None) -> str | None:
    """What is wrong with an image as OpenCV has decoded it: the end of a sentence, or None.

    Args:
        data: The bytes of the file.
        found: Its header; :func:`in_doubt` should say so.
        image: ``(h, w, 3)``, BGR, uint8; None where it has not.
    """
    try:
        meant = colour(picture(data, found).pixels)
    except UnusableError as error:
        return error.reason
    name = f'is a {found.kind} of a kind that OpenCV, with which BasicSR reads,'
    if image is None:
        return f'{name} does not know; convert it to PNG'
    if meant.shape == image.shape:
        apart = cv2.absdiff(meant, image)
        if apart.max() <= APART or (b'\xff\xd8\xff' in data and apart.mean() <= LOSSY_APART):
            return None
    return f'{name} shows wrong; convert it to PNG'
