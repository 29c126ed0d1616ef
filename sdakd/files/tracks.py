"""What a video has beside its pictures: sound, subtitles, covers, attachments; copied or converted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

from sdakd.decoding import first_line

# of the file that it was, not of the film
OF_FILES = {'encoder', 'major_brand', 'minor_version', 'compatible_brands', 'vendor_id', 'duration', 'rotate',
            'bps', 'number_of_frames', 'number_of_bytes', '_statistics_writing_app', '_statistics_writing_date_utc',
            '_statistics_tags', 'stereo_mode'}  # fmt: skip
SOUND = {'mp4': 'aac', 'mov': 'aac', 'matroska': 'libopus', 'webm': 'libopus'}  # what others become
TEXT = {'mp4': 'mov_text', 'mov': 'mov_text', 'matroska': 'subrip', 'webm': 'webvtt'}
NAMES = {'aac': 'AAC', 'libopus': 'Opus'}
GAP = b'\0\0'  # what QuickTime shows between subtitles, which the container writes by itself
OPUS_RATE = 48_000


def told(metadata: dict[str, str]) -> dict[str, str]:
    """What of the metadata belongs to the film."""
    return {key: value for key, value in metadata.items() if key.lower().partition('-')[0] not in OF_FILES}


class Copied:
    """A stream whose packets stay as they are.

    Attributes:
        passed: How many are left out because their times go back, as where broadcasts were joined; no container holds
            them.
    """

    def __init__(self, output, stream) -> None:
        self.stream = output.add_stream_from_template(stream, opaque=True)
        self.gaps = stream.codec_context is not None and stream.codec_context.name == 'mov_text'
        self.passed, self.last = 0, None

    def feed(self, packet) -> Iterator:
        """The packets of the result that a packet makes."""
        if self.gaps and bytes(packet) == GAP:
            return
        at = packet.dts if packet.dts is not None else packet.pts
        if at is not None and self.last is not None and at < self.last:
            self.passed += 1
            return
        self.last = at if at is not None else self.last
        packet.stream = self.stream
        yield packet

    def end(self) -> Iterable:
        """What is left at the end."""
        return ()


class Sound:
    """A sound that is encoded anew; its layout, rate and format may change on the way, as in joined broadcasts."""

    def __init__(self, output, stream, codec: str) -> None:
        context = stream.codec_context
        rate = OPUS_RATE if codec == 'libopus' else context.sample_rate
        self.stream = output.add_stream(codec, rate=rate)
        target = self.stream.codec_context
        target.layout = context.layout if context.layout.nb_channels <= 2 else 'stereo'
        target.bit_rate = 128_000 if codec == 'libopus' else 192_000
        target.open()
        self.target, self.resampler, self.heard, self.ended = target, None, None, None
        self.portions = self._resampler(target.frame_size or None)  # of as many samples as the encoder wants

    def _resampler(self, frame_size: int | None = None):
        import av

        return av.AudioResampler(self.target.format, self.target.layout, self.target.sample_rate, frame_size)

    def _encoded(self, frames: list) -> Iterator:
        rate = self.target.sample_rate
        for frame in frames:
            at = self.ended or 0 if frame.pts is None else round(frame.pts * frame.time_base * rate)
            if self.ended is not None and at + frame.samples <= self.ended:
                continue  # joined parts may overlap
            frame.pts = at if self.ended is None else max(at, self.ended)
            frame.time_base = Fraction(1, rate)  # the same for all resamplers
            self.ended = frame.pts + frame.samples
            for piece in self.portions.resample(frame):
                yield from self.stream.encode(piece)

    def feed(self, packet) -> Iterator:
        """The packets of the result that a packet makes; one that is damaged makes none."""
        import av

        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            return
        for frame in frames:
            heard = frame.format.name, frame.layout.name, frame.sample_rate
            if heard != self.heard:
                if self.resampler:
                    yield from self._encoded(self.resampler.resample(None))
                self.resampler, self.heard = self._resampler(), heard
            yield from self._encoded(self.resampler.resample(frame))

    def end(self) -> Iterator:
        """What is left at the end."""
        if self.resampler:
            yield from self._encoded(self.resampler.resample(None))
        for piece in self.portions.resample(None):
            yield from self.stream.encode(piece)
        yield from self.stream.encode(None)


class Text:
    """Subtitles of another format of text."""

    def __init__(self, output, stream, codec: str) -> None:
        self.source = stream.codec_context
        self.source.open(strict=False)
        self.stream = output.add_stream(codec)
        self.stream.time_base = stream.time_base
        self.stream.codec_context.time_base = stream.time_base
        self.stream.codec_context.subtitle_header = self.source.subtitle_header

    def feed(self, packet) -> Iterator:
        """The packets of the result that a packet makes; one that is damaged makes none."""
        import av

        if self.source.name == 'mov_text':  # whose decoder names a font for every line
            data = bytes(packet)
            text = data[2 : 2 + int.from_bytes(data[:2], 'big')]
            made = av.Packet(text) if text else None
        else:
            try:
                found = self.source.decode2(packet)
                made = self.stream.codec_context.encode_subtitle(found) if found is not None else None
            except av.error.FFmpegError:
                return
        if made is not None:
            made.pts = made.dts = packet.pts
            made.duration, made.time_base, made.stream = packet.duration, packet.time_base, self.stream
            made.is_keyframe = True
            yield made

    def end(self) -> Iterable:
        """Nothing is left."""
        return ()


def _track(output, stream, container: str, notes: list[str], name: str) -> Copied | Sound | Text | None:
    """The track of the result that a stream becomes; None, with a note, where it is left out."""
    codec = getattr(stream, 'name', None) if stream.codec_context is None else stream.codec_context.name
    what = f'{name}: {stream.type} stream {stream.index} ({codec or "of an unknown codec"})'
    if stream.type in ('data', 'unknown') or (stream.codec_context is None and stream.type != 'attachment'):
        if codec != 'bin_data':  # the names of chapters, which QuickTime keeps as a stream
            notes.append(f'{what} is left out')
        return None
    if stream.type == 'attachment':
        if container == 'matroska':
            return Copied(output, stream)
        notes.append(f'{what} is left out, for only .mkv holds it')
        return None
    if codec in output.supported_codecs or stream.codec_context.codec.canonical_name in output.supported_codecs:
        return Copied(output, stream)
    if stream.type == 'audio':
        notes.append(f'{what} is encoded to {NAMES[SOUND[container]]}, for the container does not hold it')
        return Sound(output, stream, SOUND[container])
    if stream.type == 'subtitle' and codec in ('subrip', 'srt', 'ass', 'ssa', 'webvtt', 'mov_text', 'text'):
        notes.append(f'{what} becomes {TEXT[container]}, for the container does not hold it')
        return Text(output, stream, TEXT[container])
    notes.append(f'{what} is left out, for the container does not hold it; .mkv may')
    return None


def tracks_of(source, video, output, container: str, notes: list[str], name: str) -> dict[int, Copied | Sound | Text]:
    """Makes the tracks of a result; by the index of the stream of the source.

    Args:
        source: PyAV's container, for reading.
        video: Its stream that is enlarged; other videos are left out, covers are kept.
        output: PyAV's container, for writing; the video's stream is there already.
        container: FFmpeg's name of its format.
        notes: Receives what users should know.
        name: What notes call the source.
    """
    found = {}
    for stream in source.streams:
        if stream.index == video.index or (stream.type == 'video' and not stream.disposition & _PICTURE):
            continue
        try:
            track = _track(output, stream, container, notes, name)
        except (ValueError, OSError) as error:
            notes.append(f'{name}: {stream.type} stream {stream.index} is left out ({first_line(error)})')
            continue
        if track:
            track.stream.metadata.update(told(stream.metadata))
            track.stream.disposition = stream.disposition
            found[stream.index] = track
    return found


_PICTURE = 1 << 10  # of FFmpeg: a stream that is a picture of the cover
