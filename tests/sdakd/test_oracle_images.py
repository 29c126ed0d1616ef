"""Image files of all kinds, and what every way into this project makes of them.

They are written by hand from the formats' specifications, so what they show is known: that is what must be read,
exactly, or the file is refused for the true reason. What no specification of a few lines covers (LZW, JPEG, WebP) is
written by Pillow, which is then the judge, too.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass

import cv2
import imagecodecs
import numpy as np
import pytest
from basicsr.utils import imfrombytes
from PIL import Image, ImageCms

from sdakd import decoding
from sdakd.compat import UnusableError
from sdakd.files import images, pictures
from sdakd_data.decoded import Decoder

HEIGHT, WIDTH = 19, 23  # no multiples of 8: rows of few bits are padded


@dataclass
class File:
    """An image file; ``shows`` is RGB(A) or grey, uint8 or uint16, upright, or the reason why it is refused."""

    ending: str
    data: bytes
    shows: np.ndarray | str
    apart: float = 0  # levels by which decoders of a lossy format may differ


def photograph() -> np.ndarray:
    """Smooth colours and a sharp edge, RGB with 16 bits, all of which are used."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red, green = x / (WIDTH - 1), y / (HEIGHT - 1)
    blue = 0.5 + 0.5 * np.sin(x / 4) * np.cos(y / 5)
    rgb = np.stack([red, green, blue], -1)
    rgb[5:9, 10:16] = (0.9, 0.1, 0.2)
    return np.rint(rgb * 65535).astype(np.uint16)


RGB16 = photograph()
RGB = (RGB16 >> 8).astype(np.uint8)
GREY16 = RGB16[..., 2].copy()
GREY = RGB[..., 2].copy()
ALPHA16 = np.rint(np.linspace(0, 65535, WIDTH)).astype(np.uint16)[None].repeat(HEIGHT, 0)
ALPHA = (ALPHA16 >> 8).astype(np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def pack(rows: np.ndarray, bits: int, order: str = '>') -> list[bytes]:
    """Rows of whole numbers, each row in full bytes, the first number in the highest bits (TIFF 6.0, PNG 7.2)."""
    if bits in (8, 16, 32, 64):
        kind = f'{order}{rows.dtype.kind}{bits // 8}'
        return [row.astype(kind).tobytes() for row in rows]
    shifts = np.arange(bits - 1, -1, -1)
    return [
        np.packbits((row[:, None].astype(np.uint32) >> shifts & 1).astype(np.uint8).ravel()).tobytes() for row in rows
    ]


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers of so many bits as the nearest ones of 8, or of 16 where there are more."""
    kind, top = (np.uint8, 255) if bits <= 8 else (np.uint16, 65535)
    return np.rint(values.astype(np.float64) * top / (2**bits - 1)).astype(kind)


# ----------------------------------------------------- PNG -----------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def _scanlines(values: np.ndarray, bits: int, kind: int) -> bytes:
    if not values.size:
        return b''
    rows = pack(values.reshape(len(values), -1), bits)
    step = max(values.shape[2] * bits // 8, 1)
    before, lines = bytes(len(rows[0])), []
    for row in rows:
        now, up = (np.frombuffer(each, np.uint8).astype(int) for each in (row, before))
        left, upleft = (np.concatenate([np.zeros(step, int), each])[: len(each)] for each in (now, up))
        p = left + up - upleft
        apart = np.stack([abs(p - left), abs(p - up), abs(p - upleft)])
        paeth = np.choose(apart.argmin(0), [left, up, upleft])
        base = (np.zeros_like(now), left, up, (left + up) // 2, paeth)[kind]
        lines.append(bytes([kind]) + ((now - base) & 255).astype(np.uint8).tobytes())
        before = row
    return b''.join(lines)


def png(values: np.ndarray, bits: int, kind: int, *chunks: tuple[bytes, bytes], woven: bool = False, lines: int = 0):
    """A PNG (2nd edition) of whole numbers ``(h, w)`` or ``(h, w, c)``; ``kind`` is its colour type."""
    values = values if values.ndim == 3 else values[..., None]
    passes = [(0, 0, 1, 1)]
    if woven:  # Adam7: first row and column, and the steps between them
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    body = b''.join(_scanlines(values[top::down, left::right], bits, lines) for top, left, down, right in passes)
    head = struct.pack('>IIBBBBB', values.shape[1], values.shape[0], bits, kind, 0, 0, woven)
    parts = [chunk(b'IHDR', head), *(chunk(*each) for each in chunks), chunk(b'IDAT', zlib.compress(body))]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts) + chunk(b'IEND', b'')


def exif(orientation: int) -> bytes:
    return b'MM\0*' + struct.pack('>IHHHIHHI', 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF 2.32 says of where the first row and the first column of the stored image are."""
    row, column = {
        1: ('top', 'left'), 2: ('top', 'right'), 3: ('bottom', 'right'), 4: ('bottom', 'left'),
        5: ('left', 'top'), 6: ('right', 'top'), 7: ('right', 'bottom'), 8: ('left', 'bottom'),
    }[orientation]  # fmt: skip
    if row in ('left', 'right'):
        image = image.swapaxes(0, 1)
        row, column = column, row
    return image[:: -1 if row == 'bottom' else 1, :: -1 if column == 'right' else 1]


def pngs() -> dict[str, File]:
    found = {}

    def add(name: str, shows: object, *arguments: object, **options: object) -> None:
        found[f'png-{name}'] = File('.png', png(*arguments, **options), shows)

    for bits in (1, 2, 4, 8, 16):
        values = GREY16 >> (16 - bits)
        plain = scaled(values, bits)
        wide = plain.dtype.type
        for woven in (False, True):
            add(f'grey{bits}{"-adam7" * woven}', plain, values, bits, 0, woven=woven)
        key = int(values[3, 3])
        opaque = np.where(values == key, 0, np.iinfo(wide).max).astype(wide)
        keyed = np.dstack([plain, plain, plain, opaque])
        add(f'grey{bits}-key', keyed, values, bits, 0, (b'tRNS', struct.pack('>H', key)))
    for bits, colours, alpha in ((8, RGB, ALPHA), (16, RGB16, ALPHA16)):
        grey, top, wide = colours[..., 2], 2**bits - 1, colours.dtype.type
        key = colours[6, 12]
        opaque = np.where((colours == key).all(-1), 0, top).astype(wide)
        add(
            f'rgb{bits}-key',
            np.dstack([colours, opaque]),
            colours,
            bits,
            2,
            (b'tRNS', struct.pack('>HHH', *map(int, key))),
        )
        for woven in (False, True):
            end = f'{bits}{"-adam7" * woven}'
            add(f'rgb{end}', colours, colours, bits, 2, woven=woven)
            add(f'rgba{end}', np.dstack([colours, alpha]), np.dstack([colours, alpha]), bits, 6, woven=woven)
            add(f'la{end}', np.dstack([grey, grey, grey, alpha]), np.dstack([grey, alpha]), bits, 4, woven=woven)
        for lines in range(1, 5):
            add(f'rgb{bits}-filter{lines}', colours, colours, bits, 2, lines=lines)
    for bits in (1, 2, 4, 8):
        index = GREY16 >> (16 - bits)
        table = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), dtype=np.uint8)
        ramp = np.linspace(0, 255, 2**bits).astype(np.uint8)
        for woven in (False, True):
            add(
                f'palette{bits}{"-adam7" * woven}',
                table[index],
                index,
                bits,
                3,
                (b'PLTE', table.tobytes()),
                woven=woven,
            )
        chunks = (b'PLTE', table.tobytes()), (b'tRNS', ramp[:-1].tobytes())  # entries that are left out are opaque
        add(f'palette{bits}-alpha', np.column_stack([table, ramp])[index], index, bits, 3, *chunks)
    profile = b'sRGB\0\0' + zlib.compress(PROFILE)
    add('gamma8', RGB, RGB, 8, 2, (b'gAMA', struct.pack('>I', 100_000)))
    add('gamma16', GREY16, GREY16, 16, 0, (b'gAMA', struct.pack('>I', 45_455)))
    add('profile8', RGB, RGB, 8, 2, (b'iCCP', profile))
    add('profile16', RGB16, RGB16, 16, 2, (b'iCCP', profile))
    add('bits-said', RGB, RGB, 8, 2, (b'sBIT', b'\5\6\5'))
    add('background', np.dstack([RGB, ALPHA]), np.dstack([RGB, ALPHA]), 8, 6, (b'bKGD', bytes(6)))
    add('long-text', RGB, RGB, 8, 2, (b'tEXt', b'workflow\0' + b'x' * 3_000_000))
    add('packed-text', RGB, RGB, 8, 2, (b'zTXt', b'workflow\0\0' + zlib.compress(b'x' * 3_000_000)))
    for turn in range(2, 9):
        add(f'turned{turn}', upright(RGB, turn), RGB, 8, 2, (b'eXIf', exif(turn)))
    add('deep-turned6', upright(RGB16, 6), RGB16, 16, 2, (b'eXIf', exif(6)))
    add('deep-turned7', upright(GREY16, 7), GREY16, 16, 0, (b'eXIf', exif(7)))
    add('exif-of-nonsense', RGB, RGB, 8, 2, (b'eXIf', b'nothing of the kind'))
    image = Image.fromarray(RGB)
    frames = saved(image, 'PNG', save_all=True, append_images=[image.rotate(180)])
    found['png-animated'] = File('.png', frames, 'is animated, with 2 frames; give each frame')
    control = struct.pack('>IIIIIHHBB', 0, WIDTH, HEIGHT, 0, 0, 1, 1, 0, 0)
    add('one-frame', RGB, RGB, 8, 2, (b'acTL', struct.pack('>II', 1, 0)), (b'fcTL', control))
    found['png-cut'] = File('.png', found['png-rgb8'].data[:-60], 'truncated')
    found['png-cut-16'] = File('.png', found['png-rgb16'].data[:-60], 'truncated')
    return found


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# ----------------------------------------------------- BMP -----------------------------------------------------------


def bmp(
    rows: list[bytes],
    bits: int,
    *,
    method: int = 0,
    table: np.ndarray | None = None,
    masks: tuple = (),
    down: bool = False,
    size: int = 40,
) -> bytes:
    """A BMP of packed rows from the top, or of one run-length code; masks go into the header of version 4."""
    colours = b'' if table is None else np.column_stack([table[..., ::-1], np.zeros(len(table), np.uint8)]).tobytes()
    body = rows[0] if method in (1, 2) else b''
    if not body:
        padded = [row + bytes(-len(row) % 4) for row in rows]
        body = b''.join(padded if down else padded[::-1])
    height = -HEIGHT if down else HEIGHT
    if size == 12:
        colours = b'' if table is None else np.ascontiguousarray(table[..., ::-1]).tobytes()
        head = struct.pack('<IHHHH', 12, WIDTH, HEIGHT, 1, bits)
    else:
        used = 0 if table is None else len(table)
        head = struct.pack('<IiiHHIIiiII', size, WIDTH, height, 1, bits, method, len(body), 2835, 2835, used, 0)
        if size > 40:
            head += struct.pack('<IIII', *masks) + bytes(size - 56)
        elif masks:
            colours = struct.pack('<III', *masks[:3])
    start = 14 + len(head) + len(colours)
    return b'BM' + struct.pack('<IHHI', start + len(body), 0, 0, start) + head + colours + body


def bmps() -> dict[str, File]:
    found = {}

    def add(name: str, shows: np.ndarray, rows: list[bytes], bits: int, **options: object) -> None:
        found[f'bmp-{name}'] = File('.bmp', bmp(rows, bits, **options), shows)

    bgr = RGB[..., ::-1].reshape(HEIGHT, -1)
    add('24', RGB, pack(bgr, 8), 24)
    add('24-down', RGB, pack(bgr, 8), 24, down=True)
    add('24-os2', RGB, pack(bgr, 8), 24, size=12)
    for bits in (1, 4, 8):
        index = GREY >> (8 - bits)
        table = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), dtype=np.uint8)
        add(f'palette{bits}', table[index], pack(index, bits), bits, table=table)
        add(f'palette{bits}-down', table[index], pack(index, bits), bits, table=table, down=True)
        if bits == 8:
            runs = b''.join(b''.join(bytes([1, v]) for v in row) + b'\0\0' for row in index[::-1]) + b'\0\1'
            add('rle8', table[index], [runs], 8, method=1, table=table)
            whole = b''
            for row in index[::-1]:
                whole += b'\0' + bytes([WIDTH]) + row.tobytes() + bytes(WIDTH % 2) + b'\0\0'
            add('rle8-as-it-is', table[index], [whole + b'\0\1'], 8, method=1, table=table)
    ramp = np.arange(256, dtype=np.uint8)
    add('grey', GREY, pack(GREY, 8), 8, table=np.column_stack([ramp] * 3))
    four = np.dstack([RGB[..., ::-1], ALPHA])
    add('32', RGB, pack(four.reshape(HEIGHT, -1), 8), 32)
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    add('32-alpha', np.dstack([RGB, ALPHA]), pack(four.reshape(HEIGHT, -1), 8), 32, method=3, masks=masks, size=108)
    five = RGB >> 3
    packed = five[..., 0].astype(np.uint16) << 10 | five[..., 1].astype(np.uint16) << 5 | five[..., 2]
    add('16-555', scaled(five, 5), pack(packed, 16, '<'), 16)
    six = RGB[..., 1].astype(np.uint16) >> 2
    packed = five[..., 0].astype(np.uint16) << 11 | six << 5 | five[..., 2]
    shown = np.dstack([scaled(five[..., 0], 5), scaled(six, 6), scaled(five[..., 2], 5)])
    add('16-565', shown, pack(packed, 16, '<'), 16, method=3, masks=(0xF800, 0x7E0, 0x1F, 0))
    found['bmp-16-555'].apart = found['bmp-16-565'].apart = 1  # Pillow rounds down
    found['bmp-cut'] = File('.bmp', found['bmp-24'].data[:-90], 'truncated')
    return found


# ----------------------------------------------------- TIFF ----------------------------------------------------------


def packed_bits(data: bytes) -> bytes:
    """PackBits (TIFF 6.0, section 9), literal runs only."""
    return b''.join(bytes([len(data[i : i + 128]) - 1]) + data[i : i + 128] for i in range(0, len(data), 128))


METHODS = {1: bytes, 8: zlib.compress, 32946: zlib.compress, 32773: packed_bits}


def tiff(
    values: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: str = '<',
    big: bool = False,
    planes: bool = False,
    method: int = 1,
    predictor: int = 1,
    rows: int = 7,
    tile: tuple[int, int] | None = None,
    extra: tuple[int, ...] | None = None,
    tags: dict[int, tuple[str, tuple]] | None = None,
    turned: bool = False,
    pages: int = 1,
    later: dict[int, tuple[str, tuple]] | None = None,
) -> bytes:
    """A TIFF (6.0) or BigTIFF of numbers ``(h, w)`` or ``(h, w, c)``.

    Args:
        tags: Further tags: code -> letter of :mod:`struct` and values.
        turned: Bits are stored from the lowest (FillOrder 2).
        pages: How often the image is in it.
        later: Tags of the pages behind the first.
    """
    values = values if values.ndim == 3 else values[..., None]
    height, width, count = values.shape
    if predictor == 2:
        apart = values.astype(np.int64)
        apart[:, 1:] -= values[:, :-1].astype(np.int64)
        if tile is None:
            values = (apart & (2**bits - 1)).astype(values.dtype)
    blocks = []
    for part in [values[..., i : i + 1] for i in range(count)] if planes else [values]:
        if tile:
            down, across = tile
            more = ((0, -height % down), (0, -width % across), (0, 0))
            whole = np.pad(part, more)
            for top in range(0, height, down):
                for left in range(0, width, across):
                    blocks.append(whole[top : top + down, left : left + across])
        else:
            blocks += [part[top : top + rows] for top in range(0, height, rows)]
    coded = []
    for block in blocks:
        data = b''.join(pack(block.reshape(len(block), -1), bits, order))
        if turned:
            data = bytes(int(f'{byte:08b}'[::-1], 2) for byte in data)
        coded.append(METHODS[method](data))
    head = 16 if big else 8
    starts, at = [], head
    for block in coded:
        starts.append(at)
        at += len(block)
    body = b''.join(coded)
    at += len(body) % 2
    body += bytes(len(body) % 2)
    word = 'Q' if big else 'I'
    known = {
        256: ('I', (width,)),
        257: ('I', (height,)),
        258: ('H', (bits,) * count),
        259: ('H', (method,)),
        262: ('H', (photometric,)),
        277: ('H', (count,)),
        284: ('H', (1 + planes,)),
    }
    if tile:
        known |= {322: ('I', tile[1:]), 323: ('I', tile[:1]), 324: (word, tuple(starts))}
        known |= {325: (word, tuple(map(len, coded)))}
    else:
        known |= {273: (word, tuple(starts)), 278: ('I', (rows,)), 279: (word, tuple(map(len, coded)))}
    if predictor != 1:
        known[317] = ('H', (predictor,))
    if extra is not None:
        known[338] = ('H', extra)
    if turned:
        known[266] = ('H', (2,))
    if values.dtype.kind != 'u':
        known[339] = ('H', ({'i': 2, 'f': 3}[values.dtype.kind],) * count)
    known |= tags or {}
    first, tables = at, b''
    for page in range(pages):
        entries = known | (later or {} if page else {})
        table = _directory(entries, at, order, big, last=page == pages - 1)
        tables += table
        at += len(table)
    mark = b'II' if order == '<' else b'MM'
    start = struct.pack(f'{order}HHHQ', 43, 8, 0, first) if big else struct.pack(f'{order}HI', 42, first)
    return mark + start + body + tables


def _directory(entries: dict, at: int, order: str, big: bool, last: bool) -> bytes:
    codes = {'B': 1, 'H': 3, 'I': 4, 'R': 5, 'Q': 16}
    room, word = (8, 'Q') if big else (4, 'I')
    size = (8 + 20 * len(entries) + 8) if big else (2 + 12 * len(entries) + 4)
    table, more = struct.pack(f'{order}{"Q" if big else "H"}', len(entries)), b''
    for code, (letter, values) in sorted(entries.items()):
        one = 'I' if letter == 'R' else letter
        data = struct.pack(f'{order}{len(values)}{one}', *values)
        count = len(values) // (2 if letter == 'R' else 1)
        table += struct.pack(f'{order}HH{word}', code, codes[letter], count)
        if len(data) <= room:
            table += data + bytes(room - len(data))
        else:
            table += struct.pack(f'{order}{word}', at + size + len(more))
            more += data + bytes(len(data) % 2)
    more += bytes((size + len(more)) % 2)
    return table + struct.pack(f'{order}{word}', 0 if last else at + size + len(more)) + more


def tiffs() -> dict[str, File]:
    found = {}

    def add(name: str, shows: object, *arguments: object, **options: object) -> None:
        found[f'tiff-{name}'] = File('.tif', tiff(*arguments, **options), shows)

    for bits in (1, 2, 4, 8, 12, 16):
        values = GREY16 >> (16 - bits)
        add(f'grey{bits}', scaled(values, bits), values, bits, 1)
        add(f'grey{bits}-white', np.iinfo(scaled(values, bits).dtype).max - scaled(values, bits), values, bits, 0)
    for bits, colours, alpha in ((8, RGB, ALPHA), (16, RGB16, ALPHA16)):
        top, wide, grey = 2**bits - 1, colours.dtype.type, colours[..., 2]
        for order, name in (('<', ''), ('>', '-motorola')):
            for planes in (False, True):
                add(f'rgb{bits}{"-planes" * planes}{name}', colours, colours, bits, 2, order=order, planes=planes)
        for method, name in ((8, 'deflate'), (32946, 'old-deflate'), (32773, 'packbits')):
            add(f'rgb{bits}-{name}', colours, colours, bits, 2, method=method)
        add(f'rgb{bits}-predicted', colours, colours, bits, 2, method=8, predictor=2)
        add(f'rgb{bits}-predicted-motorola', colours, colours, bits, 2, method=8, predictor=2, order='>')
        add(f'rgb{bits}-big', colours, colours, bits, 2, big=True)
        for planes in (False, True):
            name = '-planes' * planes
            add(f'rgb{bits}-tiles{name}', colours, colours, bits, 2, tile=(16, 16), planes=planes)
            inks = np.dstack([top - colours, grey // 3]).astype(wide)
            shown = np.rint((top - inks[..., :3].astype(float)) * (top - inks[..., 3:].astype(float)) / top).astype(
                wide
            )
            add(f'cmyk{bits}{name}', shown, inks, bits, 5, planes=planes)
        five = np.dstack([inks, alpha])
        add(f'cmyk{bits}-alpha', np.dstack([shown, alpha]), five, bits, 5, extra=(2,))
        straight = np.dstack([colours, alpha])
        add(f'rgba{bits}', straight, straight, bits, 2, extra=(2,))
        add(f'rgba{bits}-planes', straight, straight, bits, 2, extra=(2,), planes=True)
        add(f'rgba{bits}-unsaid', straight, straight, bits, 2)
        add(f'rgbx{bits}', colours, straight, bits, 2, extra=(0,))
        add(f'rgbxa{bits}', straight, np.dstack([colours, grey, alpha]), bits, 2, extra=(0, 2))
        share = alpha[..., None].astype(float) / top
        mixed = np.rint(colours * share).astype(wide)
        part, whole = np.maximum(alpha[..., None].astype(int), 1), mixed.astype(int) * top
        back = np.minimum((2 * whole + part) // (2 * part), top).astype(wide)  # whole / part, rounded
        add(f'rgba{bits}-premultiplied', np.dstack([back, alpha]), np.dstack([mixed, alpha]), bits, 2, extra=(1,))
        both = np.dstack([grey, grey, grey, alpha])
        add(f'la{bits}', both, np.dstack([grey, alpha]), bits, 1, extra=(2,))
        both = np.dstack([back[..., 2:], back[..., 2:], back[..., 2:], alpha])
        add(f'la{bits}-premultiplied', both, np.dstack([mixed[..., 2], alpha]), bits, 1, extra=(1,))
        for turn in range(2, 9):
            add(f'rgb{bits}-turned{turn}', upright(colours, turn), colours, bits, 2, tags={274: ('H', (turn,))})
    add('rgb12', scaled(RGB16 >> 4, 12), RGB16 >> 4, 12, 2)
    add('rgb4', scaled(RGB >> 4, 4), RGB >> 4, 4, 2)
    add('grey1-filled-from-below', scaled(GREY >> 7, 1), GREY >> 7, 1, 1, turned=True)
    for bits in (1, 4, 8):
        table = np.random.default_rng(bits).integers(0, 256, (2**bits, 3)).astype(np.uint16)
        index = GREY >> (8 - bits)
        for factor, name in ((257, ''), (256, '-shifted'), (1, '-of-bytes')):
            tags = {320: ('H', tuple((table.T.ravel() * factor).tolist()))}
            add(f'palette{bits}{name}', table.astype(np.uint8)[index], index, bits, 3, tags=tags)
    unit, deep = RGB16 / 65535, {'f4': RGB16}
    deep['f2'] = np.rint(unit.astype(np.float16).astype(float) * 65535).astype(np.uint16)
    deep['f8'] = RGB16
    for kind, shown in deep.items():
        add(f'float{kind[1:]}', shown, unit.astype(kind), 8 * int(kind[1:]), 2)
    add('float4-grey', GREY16, (GREY16 / 65535).astype('f4'), 32, 1)
    add('float4-planes', RGB16, unit.astype('f4'), 32, 2, planes=True, method=8)
    add('float4-motorola', RGB16, unit.astype('f4'), 32, 2, order='>')
    add('float4-bright', 'has floating-point samples from 0 to 3; bring them', (unit * 3).astype('f4'), 32, 2)
    add('float4-below-zero', 'samples from -0.5 to 0.5', (unit - 0.5).astype('f4'), 32, 2)
    unknown = unit.astype('f4')
    unknown[3, 3] = np.nan
    add('float4-nan', 'samples that are no numbers', unknown, 32, 2)
    add('whole32', 'whole numbers of 32 bits', RGB16.astype(np.uint32) * 65537, 32, 2)
    add('signed8', 'signed samples', (GREY.astype(int) - 128).astype(np.int8), 8, 1)
    add('signed16', 'signed samples', (GREY16.astype(int) - 32768).astype(np.int16), 16, 1)
    y, b, r = 0.299 * RGB[..., 0] + 0.587 * RGB[..., 1] + 0.114 * RGB[..., 2], RGB[..., 2], RGB[..., 0]
    ycc = np.rint(np.dstack([y, (b - y) / 1.772 + 128, (r - y) / 1.402 + 128])).clip(0, 255).astype(np.uint8)
    luma, cb, cr = (ycc[..., i].astype(float) for i in range(3))
    blue, red = luma + 1.772 * (cb - 128), luma + 1.402 * (cr - 128)
    back = np.rint(np.dstack([red, (luma - 0.299 * red - 0.114 * blue) / 0.587, blue])).clip(0, 255).astype(np.uint8)
    whole = {530: ('H', (1, 1)), 532: ('R', (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1))}
    add('ycbcr', back, ycc, 8, 6, tags=whole)
    found['tiff-ycbcr'].apart = 1  # a half is rounded either way
    halved = {530: ('H', (2, 2))}
    add('ycbcr-halved', 'is of a kind that is not read here', ycc, 8, 6, tags=halved)
    studio = {530: ('H', (1, 1)), 532: ('R', (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1))}
    add('ycbcr-studio', 'YCbCr of a range that is not read', ycc, 8, 6, tags=studio)
    add('lab', r'CIE L\*a\*b\*', RGB, 8, 8)
    add('icclab', r'CIE L\*a\*b\*', RGB, 8, 9)
    add('raw', "camera's raw data", GREY16, 16, 32803)
    add('bands', 'has 5 channels and does not say', np.dstack([RGB, RGB[..., :2]]), 8, 1, extra=(0,) * 4)
    add('spectrum', 'has 20 channels', GREY[..., None].repeat(20, 2), 8, 2, extra=(0,) * 17)
    add('inks', 'has inks other than cyan', np.dstack([RGB, GREY]), 8, 5, tags={332: ('H', (2,))})
    add('volume', 'is a volume of 3 slices', GREY, 8, 1, tags={32997: ('I', (3,))})
    add('pages', 'has 3 pages; give each page', RGB, 8, 2, pages=3)
    add('with-a-preview', RGB, RGB, 8, 2, pages=2, later={254: ('I', (1,))})
    add('with-a-mask', RGB, RGB, 8, 2, pages=2, later={254: ('I', (4,))})
    add('profile', RGB, RGB, 8, 2, tags={34675: ('B', tuple(PROFILE))})
    add('unknown-method', 'is of a kind that is not read here', RGB, 8, 2, tags={259: ('H', (4711,))})
    whole = tiff(RGB, 8, 2)
    found['tiff-cut'] = File('.tif', whole[:600], 'damaged|cut off')
    far = tiff(RGB, 8, 2, tags={273: ('I', (8, 9_999, 900))})
    found['tiff-pixels-missing'] = File('.tif', far, 'is cut off')
    image = Image.fromarray(RGB)
    for method in ('tiff_lzw', 'tiff_adobe_deflate', 'zstd', 'lzma'):
        kind = method.removeprefix('tiff_')
        found[f'tiff-pillow-{kind}'] = File('.tif', saved(image, 'TIFF', compression=method), RGB)
    predicted = saved(image, 'TIFF', compression='tiff_lzw', tiffinfo={317: 2})
    found['tiff-pillow-lzw-predicted'] = File('.tif', predicted, RGB)
    found['tiff-pillow-lzw-16'] = File('.tif', saved(Image.fromarray(GREY16), 'TIFF', compression='tiff_lzw'), GREY16)
    bits = Image.fromarray(GREY).convert('1', dither=Image.Dither.NONE)
    for method in ('group3', 'group4'):
        data = saved(bits, 'TIFF', compression=method)
        found[f'tiff-pillow-{method}'] = File('.tif', data, np.asarray(bits.convert('L')))
        data = saved(bits, 'TIFF', compression=method, tiffinfo={262: 0, 274: 6})
        found[f'tiff-pillow-{method}-turned6'] = File('.tif', data, upright(np.asarray(bits.convert('L')), 6))
    for mode, name in (('RGB', 'rgb'), ('YCbCr', 'ycbcr'), ('L', 'grey'), ('CMYK', 'cmyk')):
        data = saved(image.convert(mode), 'TIFF', compression='jpeg', quality=95)
        judge = Image.open(io.BytesIO(data))
        shown = np.asarray(judge.convert('L' if mode == 'L' else 'RGB'))
        found[f'tiff-jpeg-{name}'] = File('.tif', data, shown, apart=3)
    return found


# ------------------------------------------------- JPEG and WebP -----------------------------------------------------


def lossy() -> dict[str, File]:
    found = {}
    image = Image.fromarray(RGB)

    def add(name: str, data: bytes, turn: int = 1, mode: str = 'RGB', apart: float = 0) -> None:
        """Pillow is the judge of the pixels, EXIF's specification of where they are."""
        stored = np.asarray(Image.open(io.BytesIO(data)).convert(mode))
        found[name] = File('.webp' if name.startswith('webp') else '.jpg', data, upright(stored, turn), apart)

    add('jpeg-rgb', saved(image, 'JPEG', quality=95, subsampling=0))
    add('jpeg-420', saved(image, 'JPEG', quality=90, subsampling=2))
    add('jpeg-progressive', saved(image, 'JPEG', quality=90, progressive=True))
    add('jpeg-grey', saved(Image.fromarray(GREY), 'JPEG', quality=90), mode='L')
    add('jpeg-grey-progressive', saved(Image.fromarray(GREY), 'JPEG', progressive=True), mode='L')
    add('jpeg-restarts', saved(image, 'JPEG', quality=90, restart_marker_rows=1))
    add('jpeg-profile', saved(image, 'JPEG', quality=90, icc_profile=PROFILE))
    inks = image.convert('CMYK')
    marked = saved(inks, 'JPEG', quality=95)
    add('jpeg-cmyk', marked)
    mark = marked.index(b'\xff\xee')  # Adobe's, which says that inks are stored upside down
    end = mark + 2 + int.from_bytes(marked[mark + 2 : mark + 4], 'big')
    add('jpeg-cmyk-unmarked', marked[:mark] + marked[end:])
    options = {'level': 95, 'colorspace': 'CMYK', 'outcolorspace': 'YCCK'}
    add('jpeg-ycck', imagecodecs.jpeg8_encode(255 - np.asarray(inks), **options))
    add('jpeg-mpo', saved(image, 'MPO', save_all=True, append_images=[image.rotate(180)]))
    for turn in range(1, 9):
        add(f'jpeg-turned{turn}', saved(image, 'JPEG', quality=95, exif=b'Exif\0\0' + exif(turn)), turn)
        add(f'webp-turned{turn}', saved(image, 'WEBP', lossless=True, exif=b'Exif\0\0' + exif(turn)), turn)
    add('webp-lossless', saved(image, 'WEBP', lossless=True))
    add('webp-lossy', saved(image, 'WEBP', quality=90))
    see_through = Image.fromarray(np.dstack([RGB, ALPHA]))
    add('webp-lossless-alpha', saved(see_through, 'WEBP', lossless=True, exact=True), mode='RGBA')
    add('webp-lossy-alpha', saved(see_through, 'WEBP', quality=90), mode='RGBA')
    add('webp-one-frame', saved(image, 'WEBP', lossless=True, save_all=True))
    frames = saved(image, 'WEBP', save_all=True, append_images=[image.rotate(180)])
    found['webp-animated'] = File('.webp', frames, 'is animated, with 2 frames')
    for name in ('jpeg-rgb', 'webp-lossy'):
        data = found[name].data
        found[f'{name}-cut'] = File(found[name].ending, data[: len(data) * 2 // 3], 'damaged|cannot be read|truncated')
    deep = bytearray(found['jpeg-rgb'].data)
    deep[deep.index(b'\xff\xc0') + 4] = 12  # bits per sample in the frame's header
    found['jpeg-12-bits'] = File('.jpg', bytes(deep), '12-bit')
    return found


def strangers() -> dict[str, File]:
    image = Image.fromarray(RGB)
    return {
        'not-gif': File('.png', saved(image, 'GIF'), 'is a GIF file'),
        'not-jp2': File('.jpg', saved(image, 'JPEG2000'), 'is a JPEG 2000 file'),
        'not-heif': File('.jpg', b'\0\0\0\x18ftypheic' + bytes(40), 'is a HEIF file'),
        'not-avif': File('.jpg', b'\0\0\0\x18ftypavif' + bytes(40), 'is an AVIF file'),
        'not-pdf': File('.tif', b'%PDF-1.7\n' + bytes(40), 'is a PDF file'),
        'not-html': File('.png', b'<!DOCTYPE html>\n<html>', 'is a web page'),
        'not-svg': File('.png', b'<svg xmlns="http://www.w3.org/2000/svg">', 'is an SVG drawing'),
        'not-psd': File('.tif', b'8BPS\0\1' + bytes(40), 'is a Photoshop file'),
        'not-exr': File('.tif', b'v/1\1' + bytes(40), 'is an OpenEXR file'),
        'not-lfs': File('.png', b'version https://git-lfs.github.com/spec/v1\noid', 'is a pointer of Git LFS'),
        'not-anything': File('.png', b'no image at all', 'is damaged or no image'),
        'empty': File('.png', b'', 'is empty'),
    }


FILES = {**pngs(), **bmps(), **tiffs(), **lossy(), **strangers()}
SHOWN = [name for name, file in FILES.items() if not isinstance(file.shows, str)]


def rgb(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def as_data_sets_see_it(shows: np.ndarray) -> np.ndarray:
    """RGB, 8 bits, without alpha."""
    shows = np.rint(shows / 257).astype(np.uint8) if shows.dtype == np.uint16 else shows
    return np.dstack([shows] * 3) if shows.ndim == 2 else shows[..., :3]


def apart(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape and a.dtype == b.dtype
    return np.abs(a.astype(int) - b.astype(int)).max()


def rounding(name: str) -> float:
    """Levels by which OpenCV may differ: it drops bits of 16 or rounds them, and decodes JPEG and WebP itself."""
    file = FILES[name]
    lossy = name.startswith(('jpeg', 'webp'))
    return max(file.apart, 2 if lossy else 1 if file.shows.dtype == np.uint16 else 0)


@pytest.mark.parametrize('name', FILES)
def test_upscale_reads_what_is_shown(name, tmp_path):
    file = FILES[name]
    path = tmp_path / f'a{file.ending}'
    path.write_bytes(file.data)
    if isinstance(file.shows, str):
        with pytest.raises(UnusableError) as error:
            pictures.read(path)
        assert re.search(file.shows, error.value.reason)
    else:
        assert apart(rgb(pictures.read(path).pixels), file.shows) <= file.apart


@pytest.mark.parametrize('name', FILES)
def test_prepare_and_evaluate_read_what_is_shown(name):
    file = FILES[name]
    if isinstance(file.shows, str):
        with pytest.raises(UnusableError) as error:
            images.decode(file.data)
        assert re.search(f'{file.shows}|is damaged or no image', error.value.reason)
    else:
        assert apart(rgb(images.decode(file.data)), as_data_sets_see_it(file.shows)) <= rounding(name)


@pytest.mark.parametrize('name', FILES)
def test_trainings_read_what_is_shown_or_do_not_start(name, tmp_path):
    """BasicSR's data sets decode with OpenCV; what it gets wrong is refused."""
    file = FILES[name]
    path = tmp_path / f'a{file.ending}'
    path.write_bytes(file.data)
    decoder = Decoder({'type': 'disk'}, {'gt': str(tmp_path)}, 'datasets:train')
    found, _ = decoder.decode('gt', str(path))
    if isinstance(found, str):
        plain = name.startswith(('png', 'jpeg', 'webp')) and name in SHOWN
        assert not plain and re.match('is |has |holds |cannot be ', found)
    elif not name.startswith('not-'):  # OpenCV knows further formats
        assert not isinstance(file.shows, str)
        assert apart(rgb(imfrombytes(file.data)), as_data_sets_see_it(file.shows)) <= max(rounding(name), 2)


def test_a_refusal_of_a_training_says_whose_fault_it_is(tmp_path):
    reasons = {
        'tiff-rgba8-premultiplied': r'a TIFF of a kind that OpenCV, with which BasicSR reads, shows wrong; convert it',
        'tiff-float4': 'a TIFF of a kind that OpenCV, with which BasicSR reads, does not know; convert it to PNG',
        'bmp-16-555': 'a BMP of a kind that OpenCV, with which BasicSR reads, shows wrong; convert it to PNG',
        'tiff-lab': r'CIE L\*a\*b\*; convert it to RGB',
        'png-animated': 'is animated, with 2 frames; give each frame as a file of its own',
        'tiff-pages': 'has 3 pages; give each page as a file of its own',
    }
    decoder = Decoder({'type': 'disk'}, {'gt': str(tmp_path)}, 'datasets:train')
    for name, reason in reasons.items():
        (tmp_path / name).write_bytes(FILES[name].data)
        assert re.search(reason, decoder.decode('gt', str(tmp_path / name))[0]), name


@pytest.mark.parametrize('name', SHOWN)
def test_headers_tell_size_alpha_and_depth(name):
    shows, found = FILES[name].shows, decoding.header(FILES[name].data)
    assert (found.height, found.width) == shows.shape[:2] and found.frames == 1
    assert found.alpha == (shows.ndim == 3 and shows.shape[2] == 4)
    assert found.deep == (shows.dtype == np.uint16)


@pytest.mark.parametrize('name', ['png-rgb8', 'png-rgba16', 'png-grey16', 'tiff-grey8', 'tiff-rgba8', 'tiff-cmyk16'])
@pytest.mark.parametrize('ending', ['.png', '.tif'])
def test_what_is_written_is_what_was_read(name, ending, tmp_path):
    """By two others than the writer: Pillow and OpenCV, which keeps 16 bits; and in parts of any height."""
    shows = FILES[name].shows
    pixels = rgb(shows)
    parts = [pixels[:3], pixels[3:4], pixels[4:17], pixels[17:]]
    path = tmp_path / f'a{ending}'
    pictures.write_picture(path, pictures.Bands(pixels.shape, pixels.dtype, iter(parts)))
    if (name, ending) != ('tiff-rgba8', '.tif'):  # OpenCV darkens colours of these by their alpha
        assert apart(rgb(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)), shows) == 0
    assert apart(rgb(pictures.read(path).pixels), shows) == 0
    if shows.dtype == np.uint8:
        assert apart(np.asarray(Image.open(path)), shows) == 0
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_profiles_are_read(tmp_path):
    for name in ('png-profile8', 'png-profile16', 'tiff-profile', 'jpeg-profile'):
        assert decoding.picture(FILES[name].data).profile == PROFILE, name


def test_without_imagecodecs_its_name_is_told(monkeypatch):
    """As tifffile says it; what needs none is read."""
    import tifffile

    def missing(self, *arguments, **options):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, 'asarray', missing)
    with pytest.raises(UnusableError, match='is compressed by LZW, for which the package imagecodecs is needed'):
        decoding.picture(FILES['tiff-pillow-lzw'].data)
