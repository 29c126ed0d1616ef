"""Pictures as files hold them, for `sdakd upscale`: grey, colour or alpha, 8 or 16 bits, with their colour profile."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sdakd.files.images import UnusableError, encode_png, open_image, read_bytes

QUALITY = 95  # of JPEG and WebP, as Real-ESRGAN's script writes JPEG
FORMATS = {'.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP', '.bmp': 'BMP', '.tif': 'TIFF', '.tiff': 'TIFF'}

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


def first_line(error: Exception) -> str:
    """What an error says, in one line; its name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@dataclass
class Picture:
    """What a file shows: ``pixels`` (h, w), (h, w, 3) BGR or (h, w, 4) with alpha, uint8 or uint16; upright."""

    pixels: np.ndarray
    profile: bytes | None  # ICC profile, where it belongs to such pixels


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether the file has 16 bits per sample, most of which Pillow drops; byte 24 of a PNG is its bit depth."""
    if image.format == 'TIFF':
        return 16 in image.tag_v2.get(258, ())
    return image.format == 'PNG' and data[24] == 16


def read(path: str | os.PathLike) -> Picture:
    """Reads an image as it is meant to be seen: palettes resolved, turned as EXIF says, 16 bits kept.

    Raises:
        UnusableError: It cannot be read, is cut off, moves, or has samples of other kinds.
    """
    try:
        data = read_bytes(path)
        image = open_image(data)
        if getattr(image, 'n_frames', 1) > 1 and image.format != 'MPO':  # a camera's JPEG with a preview inside
            raise UnusableError('unreadable', f'has {image.n_frames} frames or pages; give each as a file of its own')
        image.load()  # all of it: OpenCV fills what is missing from a file with grey
        if image.mode in ('F', 'I'):
            raise UnusableError('unreadable', 'has samples of 32 bits; store it with 8 or 16')
        if _is_deep(image, data):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        elif image.has_transparency_data:
            pixels = cv2.cvtColor(np.asarray(image.convert('RGBA')), cv2.COLOR_RGBA2BGRA)
        elif image.mode in ('1', 'L'):
            pixels = np.asarray(image.convert('L'))
        else:
            pixels = np.asarray(image.convert('RGB'))[..., ::-1]
        # both libraries turn a TIFF by themselves, and Pillow then drops its tag
        turn = TURNS.get(image.getexif().get(0x0112), np.asarray)
    except UnusableError:
        raise
    except OSError as error:
        reason = error.strerror or ('is damaged or no image' if 'identify' in str(error) else str(error))
        raise UnusableError('unreadable', f'cannot be read ({reason})') from None
    except Exception as error:  # decoders of damaged files raise almost anything
        raise UnusableError('unreadable', f'is damaged ({first_line(error)})') from None
    profile = image.info.get('icc_profile') or b''
    fits = profile[16:20] == (b'GRAY' if pixels.ndim == 2 else b'RGB ')
    return Picture(np.ascontiguousarray(turn(pixels)), profile if fits else None)


def encode(picture: Picture, ending: str) -> bytes:
    """The file's bytes. What is no PNG gets eight bits; without alpha in JPEG and BMP."""
    pixels, profile = picture.pixels, picture.profile
    if ending == '.png':
        data = encode_png(pixels, 3)
        if profile:  # a chunk behind the header, which is always 33 bytes (PNG specification, 11.3.2.3)
            chunk = b'iCCPICC\0\0' + zlib.compress(profile)
            whole = struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
            data = data[:33] + whole + data[33:]
        return data
    if pixels.dtype == np.uint16:
        pixels = eight_bits(pixels)
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    buffer = io.BytesIO()
    if ending in ('.tif', '.tiff'):
        extra = {'compression': 'tiff_lzw'}
    else:
        extra = {} if ending == '.bmp' else {'quality': QUALITY}
    if profile and ending != '.bmp':
        extra['icc_profile'] = profile
    Image.fromarray(pixels).save(buffer, FORMATS[ending], **extra)
    return buffer.getvalue()


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 as uint8."""
    return (pixels / 257).round().astype(np.uint8)


def ending_of(path: Path, ext: str) -> str:
    """The ending of the result: as ``--ext`` says, or png for what the format cannot hold."""
    own = path.suffix.lower() if ext == 'auto' else f'.{ext}'
    if own in ('.png', '.webp') and ext != 'auto' or own == '.png':
        return own
    try:
        with open_image(path) as image, open(path, 'rb') as file:
            alpha, deep = image.has_transparency_data, _is_deep(image, file.read(32))
    except Exception:  # the run will name it
        return own
    holds_alpha = own in ('.webp', '.tif', '.tiff')
    if (alpha and not holds_alpha) or (deep and ext == 'auto'):
        return '.png'
    return own
