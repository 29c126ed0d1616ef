"""Where the enlarged frames of a video go: into a file, into numbered pictures, or into a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sdakd.commands.upscale.record import Record
from sdakd.compat import UserError
from sdakd.files import y4m
from sdakd.files.colour import layout
from sdakd.files.encoding import Coding, Encoder
from sdakd.files.joining import join
from sdakd.files.pictures import bands_of, write_picture
from sdakd.files.segments import LENGTH, Segments, make_folder
from sdakd.files.videos import Pictures, Video
from sdakd.lock import alone_in


class File:
    """A video file, which is made in pieces that a stopped command leaves behind.

    Args:
        path: The file.
        coding: How frames are encoded.
        facts: What decides what the frames look like, as JSON holds it.
        overwrite: Whether pieces of an earlier command are removed.
        lasting: Whether a stopped command leaves its pieces; a pipe cannot be gone on with.

    Attributes:
        done: How many frames are there from an earlier command.
    """

    def __init__(self, path: Path, coding: Coding, facts: dict, overwrite: bool, lasting: bool) -> None:
        self.path, self.coding, self.lasting = path, coding, lasting
        self._stack = contextlib.ExitStack()
        folder = _alone_with(path, self._stack)
        self.segments = Segments(folder, facts, overwrite or not lasting)
        self.done = self.segments.frames
        self._begin()

    def _begin(self) -> None:
        self.encoder, self.packets, self.durations, self.count = None, [], {}, 0

    def add(self, pixels: np.ndarray, pts: int, duration: int) -> None:
        """Takes the next frame."""
        if self.encoder is None:
            self.encoder = Encoder(self.coding)
            self.encoder.open()
        self.durations[pts] = duration
        self.packets += self.encoder.add(pixels, pts, duration)
        self.count += 1
        if self.count == LENGTH:
            self._end_piece()

    def _end_piece(self) -> None:
        packets = [*self.packets, *self.encoder.end()]
        if len(packets) != self.count:  # a piece that lacks frames would look complete
            raise UserError(
                '--vcodec',
                f'{self.coding.codec} gave {len(packets)} packets for {self.count} frames; choose another encoder.',
            )
        self.segments.add(self.count, [(pts, self.durations.get(pts, 0), key, data) for pts, key, data in packets])
        self._begin()

    def finish(self, source: Video | Pictures, notes: list[str]) -> None:
        """Makes the file, from the pieces and the other tracks of the source."""
        if self.count:
            self._end_piece()
        join(self.path, self.segments, self.coding, source, notes)
        self.segments.remove()

    def close(self) -> None:
        """Lets others work on the file; what no command can go on with is removed."""
        if not (self.lasting and self.segments.counts):
            self.segments.remove()
        self._stack.close()


def _alone_with(path: Path, stack: contextlib.ExitStack) -> Path:
    """Locks a result against other commands until a stack is closed; returns the folder of its parts."""
    folder = make_folder(path, '-o')
    stack.callback(_remove_empty, folder)
    stack.enter_context(alone_in(folder, '-o'))
    return folder


def _remove_empty(folder: Path) -> None:
    """Removes a folder in which nothing but its lock is left."""
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {'.lock'}:
            (folder / '.lock').unlink(missing_ok=True)
            folder.rmdir()


class Numbered:
    """Pictures, a file for each frame; those that an earlier command has made of the same video are kept.

    Args:
        pattern: Of their names, with a number such as ``%05d``; the first is 1.
        source: The video's file; None: there is none, and nothing is kept.
        facts: What decides what the frames look like, as JSON holds it.
        overwrite: Whether all are made anew.
    """

    def __init__(self, pattern: str, source: Path | None, facts: dict, overwrite: bool) -> None:
        self.folder, self.name, self.source = Path(pattern).parent, Path(pattern).name, source
        self._stack = contextlib.ExitStack()
        _alone_with(Path(pattern), self._stack)
        self.record = Record(self.folder, facts)
        self.done = 0
        while source and not overwrite and self.record.holds(self.name % (self.done + 1), source):
            self.done += 1
        self.count = self.done

    def add(self, pixels: np.ndarray, _pts: int, _duration: int) -> None:
        """Takes the next frame."""
        self.count += 1
        name = self.name % self.count
        write_picture(self.folder / name, bands_of(pixels))
        if self.source:
            self.record.add(name, self.source)

    def finish(self, _source: Video | Pictures, notes: list[str]) -> None:
        """Sees whether others follow, which who reads the pictures would take for its end."""
        last = self.count
        while (self.folder / (self.name % (last + 1))).exists():
            last += 1
        if last > self.count:
            these = ' to '.join(sorted({str(self.folder / (self.name % each)) for each in (self.count + 1, last)}))
            notes.append(f'{these} were there before and are not of this video; remove them')

    def close(self) -> None:
        """Lets others work on the pictures."""
        self._stack.close()


class Pipe:
    """Frames on standard output, as YUV4MPEG2.

    Args:
        stream: Takes the bytes.
        source: What they are made of.
        size: Height and width of the result.
        pix_fmt: Its pixel format.
    """

    done = 0

    def __init__(self, stream, source: Video | Pictures, size: tuple[int, int], pix_fmt: str) -> None:
        self.stream, self.source, self.size, self.pix_fmt = stream, source, size, pix_fmt
        self.writer = None

    def add(self, pixels: np.ndarray, _pts: int, _duration: int) -> None:
        """Takes the next frame."""
        if self.writer is None:
            source = self.source
            self.writer = y4m.Writer(
                self.stream.write, self.size, source.rate, source.aspect, source.colour, self.pix_fmt
            )
        self.writer.add(pixels)
        self.stream.flush()

    def finish(self, _source: Video | Pictures, _notes: list[str]) -> None:
        """All is there."""

    def close(self) -> None:
        """Nothing is open."""


def pipe_format(wanted: str | None, source: Video | Pictures) -> str:
    """The pixel format of a pipe.

    Raises:
        UserError: YUV4MPEG2 has no such format.
    """
    if wanted in (None, 'auto'):
        return y4m.choose_format(source.layout)
    if wanted not in y4m.FORMATS:
        raise UserError('--pix_fmt', f'a pipe holds no {wanted}; it holds {", ".join(y4m.FORMATS)}.')
    return wanted


def fitting(name: str | None, size: tuple[int, int]) -> tuple[int, int]:
    """The largest size that is not larger and that a pixel format can have; None: pictures, which have any."""
    return size if name is None else layout(name).fitting(*size)


@contextlib.contextmanager
def frames_alone() -> Iterator:
    """Standard output as a stream of bytes; what else is written to it while it lasts goes to standard error."""
    sys.stdout.flush()
    own = sys.stdout.fileno()
    kept = os.dup(own)
    os.dup2(sys.stderr.fileno(), own)
    try:
        with open(kept, 'wb', closefd=False) as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(kept, own)
        os.close(kept)
