"""The last step of a video: its finished pieces and the other tracks of its source become one file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sdakd.compat import UserError, of_system, part_of
from sdakd.decoding import first_line
from sdakd.files.encoding import CONTAINERS, Coding, quiet
from sdakd.files.segments import Segments
from sdakd.files.tracks import told, tracks_of
from sdakd.files.videos import Pictures, Video, opened

FAST = {'movflags': '+faststart'}
# Matroska would otherwise put off everything until a sound that begins with its encoder's delay is at 0
AS_IT_IS = {'avoid_negative_ts': 'disabled'}
OPTIONS = {'mp4': FAST, 'mov': FAST, 'matroska': AS_IT_IS, 'webm': AS_IT_IS}
APPLE = {'libx265': 'hvc1'}  # what players of Apple's want HEVC to be called
SHAPED = ('libx264', 'libx265')  # which store the shape of pixels themselves


def join(path: Path, segments: Segments, coding: Coding, source: Video | Pictures, notes: list[str]) -> None:
    """Writes a video from its pieces, without encoding them again; the file is either absent or complete.

    Args:
        path: The file.
        segments: The pieces, all of them.
        coding: How they were encoded.
        source: What they are made of; a video's file gives its other tracks, chapters and metadata, too.
        notes: Receives what users should know.

    Raises:
        UserError: It cannot be written.
    """
    import av

    part = part_of(path)
    try:
        part.unlink(missing_ok=True)
        if path.is_dir():
            raise UserError(str(path), 'it is a folder; remove it, or write to another place.')
        try:
            _write(part, CONTAINERS[path.suffix.lower()], segments, coding, source, notes)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise of_system(error, path, 'it cannot be written') or _refused(path, error) from None
    except (av.error.FFmpegError, ValueError) as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: Exception) -> UserError:
    reason = getattr(error, 'strerror', None) or first_line(error)
    return UserError(str(path), f'the container refuses the streams ({reason}); .mkv takes the most, give that ending.')


def _write(part: Path, container: str, segments: Segments, coding: Coding, source, notes: list[str]) -> None:
    import av

    quiet()
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(
            av.open(f'file:{part}', 'w', format=container, container_options=OPTIONS[container])
        )
        stream = output.add_stream(coding.codec, rate=coding.rate, time_base=coding.time_base)
        coding.dress(stream.codec_context)
        if coding.aspect not in (None, 1) and container in ('matroska', 'webm') and coding.codec not in SHAPED:
            notes.append(
                f'{source.name} has pixels of {coding.aspect.numerator}:{coding.aspect.denominator}, which is not '
                f'stored with {coding.codec} here; players show them square (libx264, libx265 and .mp4 store it)'
            )
        if coding.codec in APPLE and container in ('mp4', 'mov'):
            stream.codec_context.codec_tag = APPLE[coding.codec]
        tracks, other = {}, None
        if source.again:
            other = stack.enter_context(opened(source.again))
            own = other.streams[source.stream.index]
            stream.metadata.update(told(own.metadata))
            stream.disposition = own.disposition
            output.metadata.update(told(other.metadata))
            tracks = tracks_of(other, own, output, container, notes, source.name)
            output.set_chapters(_moved(other.chapters(), source))
        times = segments.decoding_times()
        packets = zip(times, segments.all(), strict=True)
        waiting = next(packets, None)

        def pictures(until: float):
            """Writes the video's packets that are decoded by a time in seconds."""
            nonlocal waiting
            while waiting is not None and waiting[0] * coding.time_base <= until:
                dts, (pts, duration, key, data) = waiting
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.duration, packet.time_base = pts, dts, duration, coding.time_base
                packet.is_keyframe, packet.stream = key, stream
                output.mux(packet)
                waiting = next(packets, None)

        if tracks:
            for packet in _readable(other, [other.streams[index] for index in tracks]):
                if packet.size == 0 and packet.pts is None:
                    continue  # the demuxer's last ones
                track = tracks[packet.stream_index]
                if source.shift:
                    off = round(source.shift * source.time_base / packet.time_base)
                    packet.pts = None if packet.pts is None else packet.pts - off
                    packet.dts = None if packet.dts is None else packet.dts - off
                at = packet.dts if packet.dts is not None else packet.pts
                if at is not None:
                    pictures(at * packet.time_base)
                for made in track.feed(packet):
                    output.mux(made)
            for index, track in tracks.items():
                for made in track.end():
                    output.mux(made)
                if passed := getattr(track, 'passed', 0):
                    notes.append(
                        f'{source.name}: {passed} packets of stream {index} are left out, for their times go back'
                    )
        pictures(float('inf'))


def _readable(container, streams: list):
    """Packets, as far as the file can be read."""
    import av

    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError):
            return
        if packet is None:
            return
        yield packet


def _moved(chapters: list[dict], source) -> list[dict]:
    off = source.shift * source.time_base
    moved = []
    for chapter in chapters:
        ticks = round(off / chapter['time_base'])
        moved.append({**chapter, 'start': chapter['start'] - ticks, 'end': chapter['end'] - ticks})
    return moved
