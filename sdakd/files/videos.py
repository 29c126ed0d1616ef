"""Videos to be enlarged, read by PyAV: frames upright, as BGR arrays, with the times at which they are shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from sdakd.compat import UnusableError, UserError, no_file
from sdakd.decoding import eight_bits, first_line
from sdakd.files.colour import BT709, Colour, Layout, Pixels, colour_of, layout
from sdakd.files.images import ENDINGS as PICTURES
from sdakd.files.images import check_size
from sdakd.files.pictures import read

# by which a folder is searched; a single file may have any other
ENDINGS = ('.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi', '.ts', '.m2ts', '.mts', '.mpg', '.mpeg', '.wmv', '.flv',
           '.ogv', '.3gp', '.vob', '.mxf', '.y4m')  # fmt: skip
STREAMED = ('mpegts', 'mpeg')  # their clocks begin anywhere
# What a file may be. Play lists are not among them: they name other files and addresses, which would be opened.
READ = ('mov,mp4,m4a,3gp,3g2,mj2', 'matroska,webm', 'avi', 'mpegts', 'mpeg', 'mpegvideo', 'asf', 'flv', 'ogg',
        'mxf', 'yuv4mpegpipe', 'nut', 'h264', 'hevc', 'obu', 'ivf', 'm4v', 'vc1', 'gif', 'dv', 'rm', 'wtv',
        'dnxhd', 'vvc')  # fmt: skip
SLACK = 1.0  # seconds by which a file may tell a longer duration than it has frames


@dataclass
class Frame:
    """A frame of a video.

    Args:
        pts: When it is shown, in units of the video's ``time_base``.
        duration: How long, likewise; 0: unknown.
        pixels: (h, w, 3) BGR, uint8 or uint16.
        same: Whether it equals the frame before in every bit.
    """

    pts: int
    duration: int
    pixels: np.ndarray
    same: bool = False


def has_av(where: str) -> None:
    """Checks that PyAV is there.

    Raises:
        UserError: It is not.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise UserError(
            where, f'videos need the package av, which cannot be imported ({first_line(error)}): pip install av.'
        ) from None


def opened(source: str | BinaryIO):
    """PyAV's container for reading a file, given as ``file:PATH``, or a stream of bytes."""
    import av

    safe = {'format_whitelist': ','.join(READ), 'protocol_whitelist': 'file'}
    return av.open(source, container_options=safe)


class Video:
    """A video that is being read.

    Args:
        source: A file, or a stream of bytes.
        where: The flag that names it.
        name: What sentences call it.

    Attributes:
        height, width: Of the upright frames.
        layout: How its pixels are stored; ``deep`` where in more than 8 bits.
        colour: What it says of its colours, or what is guessed.
        time_base: Unit of times, in seconds.
        rate: Frames per second on average.
        count: How many frames its header tells; None: none.
        expected: About how many there are; None: unknown.
        aspect: Width of a pixel over its height; None: not told.
        shift: Units of ``time_base`` that are taken off all times.
        notes: What users should know, in sentences.
        fault: What is damaged, as the end of a sentence; known once all frames were read.
        again: How it is opened once more for its other tracks; None where it has none or cannot be.

    Raises:
        UserError: No such file, no video, or one of a kind that is not enlarged.
    """

    def __init__(self, source: str | os.PathLike | BinaryIO, where: str, name: str) -> None:
        import av

        self.where, self.name, self.notes, self.fault = where, name, [], ''
        self.damaged = self.packets = self.read = self.widest = 0
        self.again = None if hasattr(source, 'read') else f'file:{os.fspath(source)}'
        try:
            self.container = opened(self.again or source)
        except (av.error.FFmpegError, ValueError) as error:
            known = not self.again or Path(name).suffix.lower() in ENDINGS
            kind = 'no video' if known else f'no image ({", ".join(PICTURES)}) and no video'
            raise UserError(where, f'{name} is {kind} that can be read ({_reason(error)}).') from None
        streams = [each for each in self.container.streams.video if not each.disposition & _PICTURE]
        if not streams:
            raise UserError(where, f'{name} has no video stream; give a video, or an image under its own ending.')
        self.stream = streams[0]
        if len(streams) > 1:
            self.notes.append(
                f'{name} has {len(streams)} video streams; the first is enlarged, the others are left out'
            )
        if self.stream.codec_context is None:
            raise UserError(where, f'{name} is coded by a codec that the installed av cannot read; convert it.')
        self.stream.thread_type = 'AUTO'
        self.time_base = self.stream.time_base
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self.count = self.stream.frames or None
        length = Fraction(self.container.duration or 0, 1_000_000)
        self.expected = self.count or round(length * self.rate) or None
        self.shift = 0
        if self.container.format.name in STREAMED and self.container.start_time:
            self.shift = round(self.container.start_time / (1_000_000 * self.time_base))
        self._frames = self._decoded()
        self._first = next((frame for frame in self._frames if frame is not None), None)
        if self._first is None:
            raise UserError(where, f'{name} has no frame that can be decoded; it is damaged or of another kind.')
        self._look(self._first)

    def _look(self, frame) -> None:
        if frame.interlaced_frame:
            raise UserError(
                self.where,
                f'{self.name} is interlaced, and a network would enlarge its comb; deinterlace it first, for example '
                'by ffmpeg -i INPUT -vf bwdif OUTPUT.',
            )
        self.layout, self.colour = layout(frame.format.name), colour_of(frame, self.where)
        self._size = frame.height, frame.width
        self._turn, turned = _turn(frame)
        self.height, self.width = self._size[::-1] if turned else self._size
        try:
            check_size(self.width, self.height)
        except UnusableError as error:
            raise UserError(self.where, f'{self.name} {error.reason}.') from None
        aspect = self.stream.sample_aspect_ratio
        self.aspect = (1 / aspect if turned else aspect) if aspect else None
        self._pixels = Pixels(self.colour, self.deep)
        if self.layout.alpha:
            self.notes.append(f'{self.name} has transparency, which is left out')
        if self.colour.hdr:
            self.notes.append(
                f'{self.name} is HDR ({self.colour.hdr}): the network sees its values as they are, and the result is '
                'marked likewise'
            )

    @property
    def deep(self) -> bool:
        """Whether samples have more than 8 bits."""
        return self.layout.bits > 8

    def _decoded(self) -> Iterator:
        """Frames of PyAV, as far as the file can be read, and None for a packet that gives none; damage is counted."""
        import av

        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                self.fault = f'cannot be read further ({_reason(error)})'
                packet = None
            if packet is None:
                break
            self.packets += packet.size > 0
            self.damaged += packet.is_corrupt
            try:
                frames = packet.decode()
            except av.error.EOFError:
                frames = ()
            except av.error.FFmpegError:
                self.damaged += not packet.is_corrupt
                frames = ()
            yield from frames or (None,)

    def frames(self, start: int = 0) -> Iterator[Frame | None]:
        """All frames from number ``start`` on, once; earlier ones are decoded and passed over.

        None stands for each that is passed over and for what gives no frame, so that who iterates can stop meanwhile.

        Raises:
            UserError: Its frames change their size on the way.
        """
        self._frames = self._timed(chain([self._first], self._frames), start)
        self._first = None
        return self._frames

    def _timed(self, frames: Iterator, start: int) -> Iterator[Frame | None]:
        before, last, number, ended = None, None, 0, 0
        for frame in frames:
            if frame is None:
                yield None
                continue
            if (frame.height, frame.width) != self._size:
                raise UserError(self.where, f'{self.name} changes its size at frame {number}; cut it there first.')
            pts = frame.pts - self.shift if frame.pts is not None else ended
            if last is not None and pts <= last:
                pts = last + 1  # two frames cannot be shown at once
            duration = frame.duration or 0
            self.widest = max(self.widest, pts - last if last is not None else 0)
            last, ended = pts, pts + (duration or max(round(1 / (self.rate * self.time_base)), 1))
            self.read = number = number + 1
            if number <= start:
                yield None
                continue
            pixels = self._turn(self._pixels(frame))
            same = before is not None and np.array_equal(pixels, before)
            before = pixels
            yield Frame(pts, duration, pixels, same)
        self._judge(ended)

    def _judge(self, ended: int) -> None:
        """Sets :attr:`fault` where frames were damaged or are missing at the end."""
        start = (self.stream.start_time or 0) - self.shift
        told, own = _seconds(self.stream.metadata.get('DURATION', '')), False
        if told is None and self.stream.duration:
            told, own = self.stream.duration * self.time_base, True
        if told is None and len(self.container.streams) == 1 and self.container.duration:
            told = Fraction(self.container.duration, 1_000_000)
        start = start if own else min(start, 0)  # what others tell may count from 0, as Matroska does
        # AVI counts frames that are empty and only keep the time, too
        missing = (self.count or 0) - self.packets if self.container.format.name != 'avi' else 0
        slack = max(SLACK, 2 * self.widest * self.time_base)  # Matroska does not tell how long the last frame is shown
        if self.damaged:
            self.fault = f'has {self.damaged} damaged frame{"s" * (self.damaged > 1)} of {self.read}'
        elif self.fault or missing > 0 or (told and told - (ended - start) * self.time_base > slack):
            total = f' of {self.count}' if self.count and self.count > self.read else ''
            self.fault = f'{self.fault or "ends early"}: {self.read}{total} frames are good'

    def close(self) -> None:
        """Closes the file; what a thread still reads, as it may a stream, is left to the process's end."""
        if not self.again:
            return
        try:
            self._frames.close()
        except ValueError:  # a thread is in it
            return
        self.container.close()


_PICTURE = 1 << 10  # of FFmpeg: a stream that is a picture of the cover


def _reason(error: BaseException) -> str:
    return getattr(error, 'strerror', None) or first_line(error)


def _seconds(text: str) -> Fraction | None:
    """Of ``00:01:02.500000000``, as Matroska's tags tell durations."""
    found = re.fullmatch(r'(\d+):(\d\d):(\d\d(?:\.\d+)?)', text)
    return 3600 * int(found[1]) + 60 * int(found[2]) + Fraction(found[3]) if found else None


def _turn(frame) -> tuple:
    """What turns a frame upright as its display matrix says, and whether its sides change places.

    The matrix maps (x, y) to (a x + c y, b x + d y) with x to the right and y down; what is no quarter turn or mirror
    image is left as it is.
    """
    raw = frame.side_data.get('DISPLAYMATRIX') if frame.side_data else None
    a, b, _, c, d = np.frombuffer(bytes(raw), np.int32)[:5].tolist() if raw is not None else (1, 0, 0, 0, 1)

    def turn(pixels: np.ndarray) -> np.ndarray:
        across, down = (c, b) if turned else (a, d)
        pixels = pixels.transpose(1, 0, 2) if turned else pixels
        pixels = pixels[:, ::-1] if across < 0 else pixels
        return np.ascontiguousarray(pixels[::-1] if down < 0 else pixels)

    turned = a == d == 0 and b != 0 != c
    straight = b == c == 0
    return (turn if turned or straight else np.ascontiguousarray), turned


class Pictures:
    """Numbered pictures as a video; attributes as of :class:`Video`.

    Args:
        pattern: A path with a number in it, such as ``frames/%05d.png``; it begins with the lowest that is there.
        where: The flag that names it.
        rate: Frames per second.

    Raises:
        UserError: There are none, or one is missing among them.
    """

    again, stream, aspect, shift, fault = None, None, None, 0, ''

    def __init__(self, pattern: str, where: str, rate: Fraction) -> None:
        self.where, self.name, self.rate, self.time_base = where, pattern, rate, 1 / rate
        self.files = _numbered(pattern, where)
        self.count = self.expected = len(self.files)
        self.read = 0
        self.height, self.width, channels, bits = self._load(self.files[0])[1]
        self.layout = Layout(True, bits, 1, 1, channels == 4)
        self.deep = bits > 8
        self.colour = Colour(BT709, False)
        self.notes = [f'{pattern} has transparency, which is left out'] if channels == 4 else []

    def _load(self, path: Path) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        try:
            pixels = read(path).pixels
        except UnusableError as error:
            raise UserError(self.where, f'{path} {error.reason}.') from None
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        bgr = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if channels == 1 else np.ascontiguousarray(pixels[..., :3])
        return bgr, (*pixels.shape[:2], channels, 8 * pixels.itemsize)

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """All frames from number ``start`` on.

        Raises:
            UserError: One cannot be read, or has another size.
        """
        before = None
        for number, path in enumerate(self.files):
            self.read = number + 1
            if number < start:
                continue
            pixels = self._load(path)[0]
            if pixels.shape[:2] != (self.height, self.width):
                height, width = pixels.shape[:2]
                raise UserError(
                    self.where,
                    f'{path} has {width}x{height} pixels, and those before {self.width}x{self.height}; a video has '
                    'frames of one size.',
                )
            if self.deep and pixels.dtype == np.uint8:
                pixels = pixels.astype(np.uint16) * 257
            pixels = pixels if self.deep else eight_bits(pixels)
            same = before is not None and np.array_equal(pixels, before)
            before = pixels
            yield Frame(number, 1, pixels, same)

    def close(self) -> None:
        """Nothing is open."""


def is_pattern(path: str | os.PathLike) -> bool:
    """Whether a path stands for numbered pictures, such as ``frames/%05d.png``; a video may be called my%20dog.mp4."""
    return has_number(path) and Path(path).suffix.lower() in PICTURES


def has_number(path: str | os.PathLike) -> bool:
    """Whether a number such as ``%05d`` is in the name."""
    return re.search(r'%0?\d*d', os.path.basename(path)) is not None


def check_pattern(path: str, where: str) -> None:
    """Checks that numbered pictures can have such names.

    Raises:
        UserError: There are several numbers, or the ending is no picture's.
    """
    if len(re.findall('%', os.path.basename(path))) != 1 or '%' in os.path.dirname(path):
        raise UserError(where, f'write one number such as %05d into the name of the frames, not {path}.')
    if Path(path).suffix.lower() not in PICTURES:
        raise UserError(where, f'{path} names no pictures; they are told by their endings {", ".join(PICTURES)}.')


def _numbered(pattern: str, where: str) -> list[Path]:
    check_pattern(pattern, where)
    folder = Path(pattern).parent
    name = Path(pattern).name
    if reason := no_file(folder):
        if reason != 'is a folder':
            raise UserError(where, f'{folder} {reason}; give a folder of numbered frames.')
    parts = re.split(r'%0?\d*d', name)
    found = {}
    for each in os.listdir(folder):
        inner = each[len(parts[0]) : len(each) - len(parts[1])]
        if each.startswith(parts[0]) and each.endswith(parts[1]) and inner.isdecimal() and name % int(inner) == each:
            found[int(inner)] = folder / each
    if not found:
        raise UserError(where, f'no file is called {pattern}; the number is written as in {name % 1}.')
    numbers = sorted(found)
    gap = next((each for each in range(numbers[0], numbers[-1]) if each not in found), None)
    if gap is not None:
        raise UserError(where, f'{folder / (name % gap)} is missing among the frames; number them without a gap.')
    return [found[number] for number in numbers]
