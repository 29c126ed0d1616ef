"""One video of `sdakd upscale`: frames are read ahead, enlarged, and written behind, each in a thread of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from sdakd.commands.upscale.inputs import PIPE
from sdakd.commands.upscale.sinks import File, Numbered, Pipe, fitting, frames_alone, pipe_format
from sdakd.commands.upscale.upscaler import Upscaler
from sdakd.compat import UnusableError, UserError, no_file
from sdakd.files.encoding import Coding, Wanted, choose, choose_format
from sdakd.files.lanes import PARTING, Ahead, Behind
from sdakd.files.pictures import resized
from sdakd.files.videos import Frame, Pictures, Video, is_pattern
from sdakd.progress import Progress, duration, say

ROOM = 4  # frames that wait before the network, and behind it
MANY = 10_000  # frames of a video that does not tell how many it has
STALLED = 1.0  # seconds that a pipe gets to end when everything is given up: it may give nothing for ever


@dataclass
class Made:
    """What became of a video.

    Args:
        frames: How many the result has.
        kept: How many of them an earlier command had made.
        repeated: How many equal the one before in every bit and were not computed again.
        seconds: What this command took.
        notes: What users should know, in sentences.
        fault: What is damaged in the source, as the end of a sentence.
    """

    frames: int
    kept: int
    repeated: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    fault: str = ''

    def __str__(self) -> str:
        rate = (self.frames - self.kept) / self.seconds
        more = [f'{rate:.2f} frames per second'] * (rate > 0)
        more += [f'{self.kept} were there from an earlier command'] * bool(self.kept)
        more += [f'{self.repeated} equal the one before and were not computed again'] * bool(self.repeated)
        return f'{self.frames} frames in {self.seconds:.1f} s, {", ".join(more)}'


@dataclass
class Work:
    """What all videos of a command share.

    Args:
        upscaler: Enlarges frames.
        outscale: Factor between input and output.
        wanted: What the user says of the result.
        rate: Frames per second of numbered pictures.
        facts: What decides what an enlarged frame looks like, as JSON holds it.
        overwrite: Whether nothing of an earlier command is used.
        settle: Is given the first frame and how many there are, before it is enlarged.
    """

    upscaler: Upscaler
    outscale: float
    wanted: Wanted
    rate: Fraction
    facts: Mapping
    overwrite: bool
    settle: Callable[[np.ndarray, int], None]


def opened(path: str, rate: Fraction) -> Video | Pictures:
    """Opens a video: a file, numbered pictures, or :data:`~sdakd.commands.upscale.inputs.PIPE`.

    Raises:
        UserError: It cannot be used.
    """
    if path == PIPE:
        # unbuffered: a thread that waits in a buffered reader holds its lock, and Python aborts when it ends meanwhile
        return Video(open(sys.stdin.fileno(), 'rb', buffering=0, closefd=False), '-i', 'standard input')
    if is_pattern(path) and not os.path.exists(path):
        return Pictures(path, '-i', rate)
    if reason := no_file(path):
        raise UserError('-i', f'{path} {reason}; give a video.')
    return Video(path, '-i', path)


def _identity(source: Video | Pictures) -> list:
    """What tells a video from another one and from what it was before."""
    if isinstance(source, Pictures):
        stats = [(path.name, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in source.files]
        return [str(source.rate), hashlib.sha256(repr(stats).encode()).hexdigest()]
    found = os.stat(source.name)
    return [os.path.realpath(source.name), found.st_size, found.st_mtime_ns]


def enlarge(source: Video | Pictures, target: str, work: Work) -> Made:
    """Enlarges a video and closes it.

    Args:
        source: The video.
        target: A video file, a pattern for numbered pictures, or :data:`~sdakd.commands.upscale.inputs.PIPE`.
        work: What it shares with others.

    Raises:
        UserError: A setting does not fit it, or the result cannot be written.
        UnusableError: A frame cannot be enlarged.
    """
    begun = time.perf_counter()
    notes = list(source.notes)
    own = work.upscaler.size_of(source.height, source.width, work.outscale)
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        if target == PIPE:
            pix_fmt = pipe_format(work.wanted.pix_fmt, source)
            size = fitting(pix_fmt, own)
            sink = Pipe(stack.enter_context(frames_alone()), source, size, pix_fmt)
        elif is_pattern(target):
            size = own
            again = Path(source.name) if isinstance(source, Video) and source.again else None
            sink = Numbered(target, again, {**work.facts, 'numbered': True}, work.overwrite)
        else:
            codec, options = choose(work.wanted, Path(target), '-o')
            pix_fmt, note = choose_format(codec, work.wanted.pix_fmt, source.layout)
            notes += [note] * bool(note)
            size = fitting(pix_fmt, own)
            times = source.time_base, source.rate, source.aspect
            coding = Coding(codec, pix_fmt, tuple(options.items()), size, source.colour, *times)
            facts = {**work.facts, 'coding': coding.facts()}
            again = isinstance(source, Pictures) or source.again
            facts['source'] = _identity(source) if again else None
            sink = File(Path(target), coding, facts, work.overwrite, lasting=bool(again))
        stack.callback(sink.close)
        if size != own:
            notes.append(f'the result has {size[1]}x{size[0]} pixels instead of {own[1]}x{own[0]}, for even sides')
        for note in notes:
            say(note)
        if sink.done:
            say(f'{sink.done} frames are there from an earlier command; --overwrite makes them anew')
        said = len(notes)
        repeated = _flow(source, sink, size, work)
        sink.finish(source, notes)
        for note in notes[said:]:
            say(note)
        return Made(source.read, sink.done, repeated, time.perf_counter() - begun, notes, source.fault)


def _flow(source: Video | Pictures, sink: File | Numbered | Pipe, size: tuple[int, int], work: Work) -> int:
    """Enlarges all frames that are not there yet; returns how many equal the one before."""
    repeated, result, unsettled = 0, None, True
    progress = Progress('upscale', source.expected, 'frames')
    progress.count = sink.done

    def left() -> str:
        done = progress.count - sink.done
        if not source.expected or not done:
            return 'time left unknown'
        return f'{duration((time.monotonic() - progress.begun) / done * (source.expected - progress.count))} left'

    progress.left = left

    def write(item: tuple[Frame, np.ndarray]) -> None:
        sink.add(item[1], item[0].pts, item[0].duration)

    parting = STALLED if isinstance(source, Video) and not source.again else PARTING
    with Ahead(source.frames(sink.done), ROOM, parting) as frames, Behind(write, ROOM) as behind, progress:
        for frame in frames:
            if unsettled:
                unsettled = False
                work.settle(frame.pixels, (source.expected or MANY) - sink.done)
            if frame.same and result is not None:
                repeated += 1
            else:
                try:
                    made = work.upscaler.bands(frame.pixels)
                    result = resized(made, size, cv2.INTER_LANCZOS4).whole()
                except UnusableError as error:
                    raise UnusableError(error.kind, f'{error.reason} (frame {progress.count})') from None
            behind.give((frame, result))
            rate = (progress.count + 1 - sink.done) / max(time.monotonic() - progress.begun, 1e-6)
            progress.step(note=f'{rate:.2f} frames per second')
    return repeated
