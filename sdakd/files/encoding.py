"""Encoders for the videos that `sdakd upscale` writes: which there are, their settings, and what a container holds."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from sdakd.compat import UserError, near
from sdakd.files.colour import Colour, Frames, Layout, layout, nearest_format
from sdakd.machine import cores

CONTAINERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mov', '.mkv': 'matroska', '.webm': 'webm'}  # ending -> FFmpeg's


@dataclass(frozen=True)
class Kind:
    """What is known of an encoder.

    Args:
        crf: Default of ``--crf`` and the worst that there is; None: the flag means nothing to it.
        preset: Default of ``--preset``; None: likewise.
        preset_key: What FFmpeg calls it.
        options: Further ones, as FFmpeg calls them.
        lossless: Whether it keeps what it is given, RGB and 16 bits as well.
    """

    crf: tuple[int, int] | None = None
    preset: str | None = None
    preset_key: str = 'preset'
    options: tuple[tuple[str, str], ...] = ()
    lossless: bool = False


ENCODERS = {
    'libx264': Kind((18, 51), 'medium'),
    'libx265': Kind((20, 51), 'medium', options=(('x265-params', 'log-level=error'),)),
    'libsvtav1': Kind((25, 63), '8'),
    'libaom-av1': Kind((25, 63), '6', 'cpu-used', (('row-mt', '1'),)),
    'libvpx-vp9': Kind((24, 63), '4', 'cpu-used', (('row-mt', '1'), ('deadline', 'good'))),
    'ffv1': Kind(options=(('level', '3'), ('slices', '4'), ('slicecrc', '1')), lossless=True),
    'prores_ks': Kind(options=(('vendor', 'apl0'),)),
}
SPEEDS = ('ultrafast', 'superfast', 'veryfast', 'faster', 'fast', 'medium', 'slow', 'slower', 'veryslow', 'placebo')


@dataclass(frozen=True)
class Wanted:
    """What a user says of the result; None: by default."""

    vcodec: str | None = None
    crf: int | float | None = None
    preset: str | None = None
    pix_fmt: str | None = None

    def given(self) -> list[str]:
        """The flags that were given."""
        return [f'--{name}' for name, value in asdict(self).items() if value is not None]


@dataclass(frozen=True)
class Coding:
    """How frames are encoded: everything that decides what the encoder gives.

    Args:
        codec: FFmpeg's name of the encoder.
        pix_fmt: Pixel format.
        options: As FFmpeg calls them.
        size: Height and width.
        colour: What the result is marked with.
        time_base: Unit of times, in seconds.
        rate: Frames per second on average.
        aspect: Width of a pixel over its height; None: not told.
    """

    codec: str
    pix_fmt: str
    options: tuple[tuple[str, str], ...]
    size: tuple[int, int]
    colour: Colour
    time_base: Fraction
    rate: Fraction
    aspect: Fraction | None

    def facts(self) -> dict:
        """All of it, and the library that encodes, to be compared as JSON."""
        import av

        return {**{key: str(value) for key, value in asdict(self).items()}, 'libraries': str(av.library_versions)}

    def dress(self, context) -> None:
        """Gives the settings to a ``VideoCodecContext`` that is not open yet."""
        context.height, context.width = self.size
        context.pix_fmt = self.pix_fmt
        context.time_base, context.framerate = self.time_base, self.rate
        rgb = layout(self.pix_fmt).rgb
        context.colorspace = 0 if rgb else self.colour.matrix
        context.color_range = 2 if rgb or self.colour.full else 1
        context.color_primaries, context.color_trc = self.colour.primaries, self.colour.transfer
        if self.aspect:
            context.sample_aspect_ratio = self.aspect
        context.thread_type, context.thread_count = 'AUTO', cores()
        context.options = dict(self.options)


def container_of(path: Path, where: str) -> str:
    """FFmpeg's name of the container that a file's ending tells.

    Raises:
        UserError: None that is written here.
    """
    if path.suffix.lower() not in CONTAINERS:
        raise UserError(where, f'{path} has no ending of a video that is written here: {", ".join(CONTAINERS)}.')
    return CONTAINERS[path.suffix.lower()]


def encoders() -> list[str]:
    """Those of :data:`ENCODERS` that the installed PyAV has."""
    import av

    return [name for name in ENCODERS if name in av.codecs_available and _has(name)]


def _has(name: str) -> bool:
    import av

    try:
        return av.Codec(name, 'w') is not None
    except av.codec.codec.UnknownCodecError:
        return False


def choose(wanted: Wanted, path: Path, where: str) -> tuple[str, dict[str, str]]:
    """The encoder and its options.

    Args:
        wanted: What the user says.
        path: The file that is to be written.
        where: The flag that names it.

    Raises:
        UserError: An unknown encoder, one that is missing or that the container does not hold, or a setting that means
            nothing to it.
    """
    import av

    container, there = container_of(path, where), encoders()
    codec = wanted.vcodec or ('libvpx-vp9' if container == 'webm' else 'libx264')
    if codec not in ENCODERS:
        raise UserError('--vcodec', f'{codec} is unknown; {near(codec, ENCODERS)}.')
    if codec not in there:
        raise UserError('--vcodec', f'the installed av {av.__version__} has no {codec}; it has {", ".join(there)}.')
    held = av.open(f'file:{path}', 'w', format=container).supported_codecs
    if codec not in held:
        fitting = [name for name in there if name in held]
        raise UserError(
            '--vcodec', f'{path.suffix} files do not hold {codec}; they hold {", ".join(fitting)}, and .mkv holds all.'
        )
    kind = ENCODERS[codec]
    options = dict(kind.options)
    if wanted.crf is not None and kind.crf is None:
        raise UserError('--crf', f'{codec} has no such setting; leave the flag out.')
    if wanted.preset is not None and kind.preset is None:
        raise UserError('--preset', f'{codec} has no such setting; leave the flag out.')
    if kind.crf:
        default, worst = kind.crf
        crf = default if wanted.crf is None else wanted.crf
        there = isinstance(crf, int | float) and 0 <= crf <= worst  # not a number is neither
        if not (there and (codec in ('libx264', 'libx265') or crf == int(crf))):
            raise UserError('--crf', f'{crf} is none of {codec}; give a number from 0 (the best) to {worst}.')
        options['crf'] = f'{crf:g}'
    if kind.preset:
        preset = kind.preset if wanted.preset is None else str(wanted.preset)
        named = not kind.preset.isdecimal()
        if named and preset not in SPEEDS:
            raise UserError('--preset', f'{preset} is unknown; {near(preset, SPEEDS)}.')
        if not named and not (preset.isdecimal() and int(preset) <= 13):
            raise UserError('--preset', f'{preset} is none of {codec}; give a number from 0 (slow) to 13 (fast).')
        options[kind.preset_key] = preset if named or codec == 'libsvtav1' else str(min(int(preset), 8))
    return codec, options


def choose_format(codec: str, wanted: str | None, source: Layout) -> tuple[str, str]:
    """The pixel format, and a note about what it does not keep.

    Args:
        codec: The encoder.
        wanted: What the user says; None or ``auto``: what keeps the most of the source.
        source: How the source stores its pixels.

    Raises:
        UserError: The encoder takes no such format.
    """
    import av

    names = [each.name for each in av.Codec(codec, 'w').video_formats]
    if wanted not in (None, 'auto'):
        if wanted not in names:
            raise UserError('--pix_fmt', f'{codec} takes no {wanted}; {near(wanted, names)}.')
        return wanted, ''
    if source.rgb and not ENCODERS[codec].lossless:
        source = Layout(False, source.bits, 2, 2, False)
    name = nearest_format(names, source)
    lost = layout(name).bits < min(source.bits, 10)
    return name, f'{codec} takes no {source.bits} bits here, so the result has {layout(name).bits}' if lost else ''


def quiet() -> None:
    """Keeps encoders from writing to the terminal by themselves."""
    os.environ.setdefault('SVT_LOG', '1')


class Encoder:
    """Encodes frames of one piece of a video, which can be decoded without what is before."""

    def __init__(self, coding: Coding) -> None:
        import av

        quiet()
        self.coding, self.frames = coding, Frames(coding.colour, coding.pix_fmt)
        self.context = av.CodecContext.create(coding.codec, 'w')
        coding.dress(self.context)
        self.context.flags |= _GLOBAL_HEADER

    def open(self) -> None:
        """Opens it.

        Raises:
            UserError: It refuses its settings.
        """
        import av

        try:
            self.context.open()
        except (av.error.FFmpegError, ValueError) as error:
            height, width = self.coding.size
            reason = getattr(error, 'strerror', None) or error
            raise UserError(
                '--vcodec',
                f'{self.coding.codec} refuses {width}x{height} pixels of {self.coding.pix_fmt} ({reason}); choose '
                'another encoder, another --pix_fmt, or a smaller -s.',
            ) from None

    def add(self, pixels: np.ndarray, pts: int, duration: int) -> list[tuple[int, bool, bytes]]:
        """Takes the next frame and returns what is finished: times, whether they are key frames, and bytes."""
        frame = self.frames(pixels)
        frame.pts, frame.duration, frame.time_base = pts, duration, self.coding.time_base
        return [(packet.pts, packet.is_keyframe, bytes(packet)) for packet in self.context.encode(frame)]

    def end(self) -> list[tuple[int, bool, bytes]]:
        """What is left."""
        return [(packet.pts, packet.is_keyframe, bytes(packet)) for packet in self.context.encode(None)]


_GLOBAL_HEADER = 1 << 22
