"""`sdakd upscale` on videos: what the frames are, what stays beside them, and what happens when it is stopped.

The network repeats every pixel four times each way, exactly: convolutions of zeros, and what SRVGGNetCompact adds. So
what a video must hold is known without any network, and colours are compared by the formulas of H.273.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.srvgg_arch import SRVGGNetCompact

from sdakd import cli
from sdakd.commands.upscale import upscale
from sdakd.compat import UserError
from sdakd.files.lanes import Ahead, Behind
from sdakd.files.segments import LENGTH, Segments

av = pytest.importorskip('av')
ROOT = Path(cli.__file__).parents[1]
ffmpeg = pytest.mark.skipif(not shutil.which('ffmpeg'), reason='needs ffmpeg')
K = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # matrix -> Kr and Kb of H.273


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    net = SRVGGNetCompact(num_feat=4, num_conv=1, upscale=4)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    path = tmp_path_factory.mktemp('model') / 'repeats.pth'
    torch.save({'params': net.state_dict()}, path)
    return path


@pytest.fixture
def run(model, tmp_path, monkeypatch):
    """The command in a folder of its own; texts and numbers are its words."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: cli.main(['upscale', '-m', str(model), *map(str, words)])


def times_four(pixels):
    return pixels.repeat(4, -3).repeat(4, -2)


def moving(count, height=18, width=32, dtype=np.uint8, seed=0):
    """Frames of noise that differ, RGB."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max + 1, (count, height, width, 3), dtype=dtype)


def make(
    path, frames, codec='ffv1', pix_fmt='bgr0', pts=None, base=Fraction(1, 24), aspect=None, dress=None, options=None,
    rotation=None,
):  # fmt: skip
    """A video of RGB frames, or of frames of PyAV."""
    with av.open(str(path), 'w') as output:
        stream = output.add_stream(codec, rate=24, time_base=base, options=options or {})
        first = frames[0]
        stream.height, stream.width = first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
        stream.pix_fmt = pix_fmt
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for key, value in (dress or {}).items():
            setattr(stream.codec_context, key, value)
        if rotation:
            stream.set_display_rotation(*rotation)
        for number, frame in enumerate(frames):
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(frame, 'rgb24' if frame.dtype == np.uint8 else 'rgb48le')
                frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = (number if pts is None else pts[number]), base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def frames_of(path):
    """Its frames as PyAV decodes them."""
    with av.open(str(path)) as source:
        return list(source.decode(source.streams.video[0]))


def rgb_of(path):
    return np.stack([frame.to_ndarray(format='rgb24') for frame in frames_of(path)])


def packets_of(path, kind, number=0):
    """Of one stream: bytes and times in seconds."""
    with av.open(str(path)) as source:
        stream = getattr(source.streams, kind)[number]
        return [
            (bytes(packet), packet.pts * packet.time_base) for packet in source.demux(stream) if packet.pts is not None
        ]


def times_of(path):
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        return [frame.pts * stream.time_base for frame in source.decode(stream)]


def layers(frame):
    """Its planes without the padding of lines, as (h, w) arrays."""
    kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    return [
        np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width].astype(int) for plane in frame.planes
    ]


def yuv_of(rgb, matrix, full, bits=8):
    """Planes of 4:4:4 in levels of RGB in [0, 1], by H.273."""
    kr, kb = K[matrix]
    luma = rgb @ [kr, 1 - kr - kb, kb]
    blue, red = (rgb[..., 2] - luma) / (2 - 2 * kb), (rgb[..., 0] - luma) / (2 - 2 * kr)
    step, top = 1 << (bits - 8), (1 << bits) - 1
    if full:
        return [top * luma, 128 * step + top * blue, 128 * step + top * red]
    return [step * (16 + 219 * luma), step * (128 + 224 * blue), step * (128 + 224 * red)]


def rgb_from(planes, matrix, full, bits=8):
    """The reverse, in [0, 1]."""
    kr, kb = K[matrix]
    step, top = 1 << (bits - 8), (1 << bits) - 1
    luma, blue, red = planes
    luma = luma / top if full else (luma / step - 16) / 219
    blue, red = (((part - 128 * step) / (top if full else 224 * step)) for part in (blue, red))
    r, b = luma + red * (2 - 2 * kr), luma + blue * (2 - 2 * kb)
    return np.stack([r, (luma - kr * r - kb * b) / (1 - kr - kb), b], -1)


def frame_of(planes, pix_fmt):
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix_fmt)
    for plane, values in zip(frame.planes, planes, strict=True):
        values = (
            np.round(values)
            .clip(0, 255 if 'le' not in pix_fmt else 1023)
            .astype('<u2' if 'le' in pix_fmt else np.uint8)
        )
        lines = np.zeros((plane.height, plane.line_size), np.uint8)
        lines[:, : values.shape[1] * values.itemsize] = values.view(np.uint8).reshape(len(values), -1)
        plane.update(lines)
    return frame


# ------------------------------------------------ frames -------------------------------------------------------------


@pytest.mark.parametrize(('dtype', 'pix_fmt'), [(np.uint8, 'bgr0'), (np.uint16, 'gbrp16le')])
def test_frames_are_those_of_pictures(run, tmp_path, dtype, pix_fmt, monkeypatch):
    """With a network that has weights, against the command on the same frames as PNG files."""
    torch.manual_seed(3)
    torch.save({'params': SRVGGNetCompact(num_feat=4, num_conv=2, upscale=4).state_dict()}, 'net.pth')
    frames = moving(3, dtype=dtype)
    make('in.mkv', list(frames), pix_fmt=pix_fmt)
    (tmp_path / 'in').mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(f'in/{number}.png', frame[..., ::-1])
    assert cli.main(['upscale', '-i', 'in', '-o', 'out', '-m', 'net.pth', '-s', '3']) == 0
    assert cli.main(['upscale', '-i', 'in.mkv', '-o', 'out.mkv', '-m', 'net.pth', '-s', '3', '--vcodec', 'ffv1']) == 0
    kind = 'rgb24' if dtype == np.uint8 else 'rgb48le'
    for number, frame in enumerate(frames_of('out.mkv')):
        expected = cv2.imread(f'out/{number}_out.png', cv2.IMREAD_UNCHANGED)[..., ::-1]
        assert frame.format.name == pix_fmt and expected.std() > 1000 * (dtype == np.uint16)
        assert np.abs(frame.to_ndarray(format=kind).astype(int) - expected).max() <= 1


def test_equal_frames_are_computed_once(run, monkeypatch, capsys):
    from sdakd.commands.upscale.upscaler import Upscaler

    frames = moving(4)[[0, 0, 1, 1, 1, 2, 3, 0]]
    make('in.mkv', list(frames))
    computed, bands = [], Upscaler.bands
    monkeypatch.setattr(Upscaler, 'bands', lambda self, image, *more: computed.append(1) or bands(self, image, *more))
    assert run('-i', 'in.mkv', '-o', 'out.mkv', '--vcodec', 'ffv1') == 0
    assert len(computed) == 5
    assert 'upscale: out.mkv in ., x4 with repeats: 8 frames in ' in (said := capsys.readouterr().out)
    assert said.endswith(' per second, 3 equal the one before and were not computed again\n')
    assert (rgb_of('out.mkv') == times_four(frames)).all()
    assert sorted(os.listdir()) == ['in.mkv', 'out.mkv']


@pytest.mark.parametrize(
    ('flags', 'shape'),
    [(['-s', '1.4'], (28, 46)), (['-s', '1.4', '--pix_fmt', 'yuv444p'], (29, 46)), ([], (84, 132)),
     (['-s', '1.4', '--vcodec', 'ffv1'], (29, 46)), (['-s', '0.05'], (2, 2))],
)  # fmt: skip
def test_sides_are_even_where_chroma_is_halved(run, flags, shape):
    make('in.mkv', list(moving(2, 21, 33)))
    assert run('-i', 'in.mkv', '-o', 'out.mp4' if '--vcodec' not in flags else 'out.mkv', *flags) == 0
    assert [rgb.shape[1:3] for rgb in [rgb_of('out.mp4' if '--vcodec' not in flags else 'out.mkv')]] == [shape]


# ------------------------------------------------ colours ------------------------------------------------------------


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('matrix', K)
@pytest.mark.parametrize('bits', [8, 10])
def test_colours_stay_what_the_tags_say(run, matrix, full, bits):
    """Both ways by the formulas, and not by the library that converts."""
    rgb = np.random.default_rng(1).integers(0, 256, (6, 8, 3)) / 255
    pix_fmt = 'yuv444p' if bits == 8 else 'yuv444p10le'
    tags = {'colorspace': matrix, 'color_range': 2 if full else 1, 'color_primaries': 1, 'color_trc': 13}
    make('in.mkv', [frame_of(yuv_of(rgb, matrix, full, bits), pix_fmt)], pix_fmt=pix_fmt, dress=tags)
    for name, flags in (('out.mkv', ['--vcodec', 'ffv1']), ('out.mp4', ['--crf', '0'])):
        assert run('-i', 'in.mkv', '-o', name, *flags) == 0
        (frame,) = frames_of(name)
        assert frame.format.name.replace('yuvj', 'yuv') == pix_fmt
        assert {key: getattr(frame, key) for key in tags} == tags
        found = rgb_from(layers(frame), matrix, full, bits).clip(0, 1)
        assert np.abs(found - times_four(rgb)).max() * 255 <= 2 + (name == 'out.mp4')
    # read with another matrix it is far from that
    other = next(each for each in K if each != matrix)
    assert np.abs(rgb_from(layers(frame), other, full, bits) - times_four(rgb)).max() * 255 > 10


@pytest.mark.parametrize(('height', 'matrix'), [(718, 6), (720, 1)])
def test_untagged_colours_are_guessed_by_height_and_then_told(run, height, matrix):
    """And kept so, though the result is taller."""
    rgb = np.zeros((height, 4, 3)) + [0.9, 0.3, 0.1]
    make('in.mkv', [frame_of(yuv_of(rgb, matrix, False), 'yuv444p')], pix_fmt='yuv444p')
    assert frames_of('in.mkv')[0].colorspace == 2
    assert run('-i', 'in.mkv', '-o', 'out.mkv', '--vcodec', 'ffv1') == 0
    (frame,) = frames_of('out.mkv')
    assert (frame.colorspace, frame.color_range) == (matrix, 1)
    assert np.abs(rgb_from(layers(frame), matrix, False) - rgb[0, 0]).max() * 255 <= 2


@ffmpeg
@pytest.mark.parametrize('space', ['bt709', 'smpte170m'])
@pytest.mark.parametrize('range_', ['tv', 'pc'])
def test_ffmpeg_sees_the_same_colours(run, space, range_):
    """Patches of 4:2:0, made by the formulas, of which ffmpeg reads the result by its tags."""
    rgb = np.kron(np.random.default_rng(2).integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    luma, *chroma = yuv_of(rgb / 255, 1 if space == 'bt709' else 6, range_ == 'pc')
    tags = {'colorspace': 1 if space == 'bt709' else 6, 'color_range': 2 if range_ == 'pc' else 1}
    frame = frame_of([luma, *(part[::2, ::2] for part in chroma)], 'yuv420p')
    make('in.mp4', [frame], 'libx264', 'yuv420p', dress=tags, options={'qp': '0'})
    assert run('-i', 'in.mp4', '-o', 'out.mp4', '--crf', '0') == 0
    accurate = '-sws_flags accurate_rnd+full_chroma_int+full_chroma_inp'.split()
    back = [*accurate, '-frames:v', '1', '-pix_fmt', 'rgb24']
    subprocess.run(['ffmpeg', '-v', 'error', '-i', 'out.mp4', *back, 'out.png'], check=True)
    found = cv2.imread('out.png')[32::64, 32::64, ::-1].astype(int)  # the middle of each patch
    assert np.abs(found - rgb[8::16, 8::16]).max() <= 2


def test_ten_bits_stay_ten(run):
    """Steps of luma that eight bits do not tell apart."""
    luma = np.arange(400, 400 + 16 * 16).reshape(16, 16)
    grey = np.full((8, 8), 512)
    make('in.mkv', [frame_of([luma, grey, grey], 'yuv420p10le')], pix_fmt='yuv420p10le')
    assert run('-i', 'in.mkv', '-o', 'out.mp4', '--crf', '0') == 0
    (frame,) = frames_of('out.mp4')
    assert frame.format.name == 'yuv420p10le'
    assert np.abs(layers(frame)[0] - luma.repeat(4, 0).repeat(4, 1)).max() <= 1


def test_hdr_is_marked_as_such(run, capsys):
    tags = {'colorspace': 9, 'color_primaries': 9, 'color_trc': 16}
    grey = np.full((16, 16), 512)
    make('in.mkv', [frame_of([grey, grey[::2, ::2], grey[::2, ::2]], 'yuv420p10le')], pix_fmt='yuv420p10le', dress=tags)
    assert run('-i', 'in.mkv', '-o', 'out.mp4') == 0
    assert 'in.mkv is HDR (PQ)' in capsys.readouterr().err
    assert {key: getattr(frames_of('out.mp4')[0], key) for key in tags} == tags


# ------------------------------------------------ times and shape ----------------------------------------------------

UNEVEN = [0, 1001, 2002, 7000, 7001, 20000, 20100, 20200, 45000, 90000]  # of 1/90000 s


@pytest.mark.parametrize(
    ('name', 'start', 'base'), [('in.mp4', 0, 90000), ('in.mov', 4500, 90000), ('in.mkv', 0, 1000)]
)
def test_times_are_kept(run, name, start, base):
    pts = [start + time for time in UNEVEN]
    base = Fraction(1, base)
    make(name, list(moving(10)), 'libx264', 'yuv420p', pts, base, options={'bf': '2'})
    before = times_of(name)
    assert before == [base * time for time in pts]
    assert run('-i', name, '-o', f'out{name[2:]}') == 0
    assert times_of(f'out{name[2:]}') == before


def test_decoding_times_suit_any_reordering(tmp_path):
    """Ascending, never after the frame is shown, and the first as early as need be, over pieces of unlike depth."""
    rng = np.random.default_rng(0)
    for case in range(20):
        segments = Segments(tmp_path / f'{case}', {})
        start = 0
        for _ in range(3):
            pts = start + np.cumsum(rng.integers(1, 50, 12))
            start = int(pts[-1])
            depth = rng.integers(0, 4)
            order = sorted(range(12), key=lambda n: n + rng.uniform(0, depth))  # noqa: B023
            segments.add(12, [(int(pts[n]), 1, True, b'x') for n in order])
        shown = [packet[0] for packet in segments.all()]
        decoded = segments.decoding_times()
        assert len(decoded) == 36 and all(np.diff(decoded) > 0)
        assert all(one <= other for one, other in zip(decoded, shown, strict=True))


@pytest.mark.parametrize('degrees', [0, 90, 180, 270])
@pytest.mark.parametrize('mirrored', [False, True])
def test_frames_are_upright(run, degrees, mirrored):
    """Turned in the pixels, so that nothing turns them once more; the oracle is ffmpeg where it is installed."""
    picture = moving(1, 16, 24)[0]
    make('in.mov', [picture], 'libx264rgb', 'rgb24', rotation=(degrees, mirrored), aspect=Fraction(4, 3),
         options={'qp': '0'})  # fmt: skip
    assert run('-i', 'in.mov', '-o', 'out.mkv', '--vcodec', 'ffv1') == 0
    (frame,) = frames_of('out.mkv')
    assert frame.rotation == 0
    found = frame.to_ndarray(format='rgb24')[::4, ::4]
    if shutil.which('ffmpeg'):
        command = ['ffmpeg', '-v', 'error', '-i', 'in.mov', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-']
        shown = subprocess.run(command, check=True, capture_output=True).stdout
        expected = np.frombuffer(shown, np.uint8).reshape(found.shape)
        assert (found == expected).all()
    if not mirrored:
        assert (found == np.rot90(picture, degrees // 90)).all()


@pytest.mark.parametrize(('degrees', 'shape'), [(0, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_the_shape_of_pixels_is_kept(run, degrees, shape):
    make('in.mp4', list(moving(2)), 'libx264', 'yuv420p', aspect=Fraction(4, 3), rotation=(degrees,))
    for name in ('out.mp4', 'out.mkv'):
        assert run('-i', 'in.mp4', '-o', name) == 0
        with av.open(name) as source:
            assert source.streams.video[0].sample_aspect_ratio == shape


# ------------------------------------------------ other tracks -------------------------------------------------------

LINES = [(0.5, 1.0, 'First line'), (2.0, 1.25, 'Zweite Zeile äöü\nin two rows')]
SECONDS = 4


def film(path, sound='aac', text='subrip'):
    """Four seconds with two sounds, subtitles, chapters, names; in .mkv an attachment, too."""
    with av.open(str(path), 'w') as output:
        video = output.add_stream('libx264', rate=24, options={'bf': '2'})
        video.width, video.height, video.pix_fmt = 32, 18, 'yuv420p'
        sounds = [output.add_stream(sound, rate=48000) for _ in range(2)]
        words = output.add_stream(text)
        words.time_base = Fraction(1, 1000)
        header = '[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\n'
        words.codec_context.subtitle_header = header.encode()
        if Path(path).suffix == '.mkv':
            output.add_attachment('letters.ttf', 'font/ttf', b'no font at all')
        sounds[0].metadata.update(language='eng', title='Original')
        sounds[1].metadata.update(language='deu', title='Kommentar')
        sounds[1].disposition = av.stream.Disposition.comment
        words.metadata.update(language='fra')
        output.metadata.update(title='A film', artist='Somebody')
        second = {'id': 2, 'start': 1500, 'end': 4000, 'time_base': Fraction(1, 1000), 'metadata': {'title': 'Then'}}
        first = {'id': 1, 'start': 0, 'end': 1500, 'time_base': Fraction(1, 1000), 'metadata': {'title': 'Begin'}}
        output.set_chapters([first, second])
        for number, pixels in enumerate(moving(24 * SECONDS)):
            frame = av.VideoFrame.from_ndarray(pixels, 'rgb24').reformat(format='yuv420p')
            frame.pts, frame.time_base = number, Fraction(1, 24)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        for number, stream in enumerate(sounds):
            tone = np.sin(np.arange(48000 * SECONDS) * (number + 1) / 20).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), 'fltp', 'stereo')
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            stream.codec_context.open(strict=False)
            size = stream.codec_context.frame_size or 1024
            resampler = av.AudioResampler(stream.format, 'stereo', 48000, frame_size=size)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                output.mux(stream.encode(piece))
            output.mux(stream.encode(None))
        for at, lasts, line in LINES:
            data = line.encode() if text == 'subrip' else len(line.encode()).to_bytes(2, 'big') + line.encode()
            packet = av.Packet(data)
            packet.pts = packet.dts = round(1000 * at)
            packet.duration, packet.time_base, packet.stream = round(1000 * lasts), Fraction(1, 1000), words
            output.mux(packet)
    return path


def lines_of(path):
    """Start, length and text of its subtitles."""
    found = []
    with av.open(str(path)) as source:
        stream = source.streams.subtitles[0]
        for packet in source.demux(stream):
            for part in packet.decode() if packet.size > 2 else ():
                text = re.sub(r'{.*?}', '', part.dialogue.decode()).replace('\\N', '\n').strip()
                found.append((float(packet.pts * packet.time_base), float(packet.duration * packet.time_base), text))
    return found


def names_of(path):
    """Languages, titles and dispositions of its sounds and subtitles, names of the whole, and chapters."""
    with av.open(str(path)) as source:
        streams = [*source.streams.audio, *source.streams.subtitles]
        tracks = [(each.language, each.metadata.get('title'), int(each.disposition)) for each in streams]
        chapters = [
            (float(each['start'] * each['time_base']), float(each['end'] * each['time_base']), each['metadata'])
            for each in source.chapters()
        ]
        whole = {key.lower(): value for key, value in source.metadata.items() if key.lower() in ('title', 'artist')}
        return tracks, chapters, whole


@pytest.mark.parametrize(
    ('name', 'sound', 'text'),
    [('in.mkv', 'aac', 'subrip'), ('in.mp4', 'aac', 'mov_text'), ('in.mkv', 'flac', 'subrip')],
)
def test_all_tracks_stay_as_they_are(run, name, sound, text, capsys):
    film(name, sound, text)
    result = f'out{name[2:]}'
    assert run('-i', name, '-o', result) == 0
    assert 'left out' not in (said := capsys.readouterr().err) and 'becomes' not in said
    for kind, number in (('audio', 0), ('audio', 1), ('subtitles', 0)):
        before = packets_of(name, kind, number)
        assert packets_of(result, kind, number) == before and len(before) >= 2
    assert packets_of(name, 'audio', 0) != packets_of(name, 'audio', 1)
    assert names_of(result) == names_of(name)
    if name == 'in.mkv':
        assert lines_of(result) == LINES and names_of(name)[0][1] == ('deu', 'Kommentar', 8)
        assert names_of(name)[1] == [(0, 1.5, {'title': 'Begin'}), (1.5, 4, {'title': 'Then'})]
        with av.open(result) as source:
            (letters,) = source.streams.attachments
            assert (letters.name, letters.mimetype, letters.data) == ('letters.ttf', 'font/ttf', b'no font at all')
    assert times_of(result) == times_of(name)


@pytest.mark.parametrize(('name', 'result'), [('in.mkv', 'out.mp4'), ('in.mp4', 'out.mkv'), ('in.mkv', 'out.webm')])
def test_text_becomes_what_the_container_holds(run, name, result, capsys):
    film(name, text='subrip' if name == 'in.mkv' else 'mov_text')
    flags = ['--preset', '8'] if result == 'out.webm' else []
    assert run('-i', name, '-o', result, *flags) == 0
    assert 'for the container does not hold it' in (said := capsys.readouterr().err)
    found = lines_of(result)
    assert [text for *_, text in found] == [text for *_, text in LINES]
    # Matroska counts milliseconds, and its sound begins 21 ms before, with the delay of its encoder
    shift = lines_of(name)[0][0] - LINES[0][0]
    assert np.abs([[a - shift - c, b - d] for (a, b, _), (c, d, _) in zip(found, LINES, strict=True)]).max() < 0.0011
    if name == 'in.mkv' and result == 'out.mp4':
        assert 'attachment stream 4 (letters.ttf) is left out' in said
    if result != 'out.webm':
        assert [data for data, _ in packets_of(result, 'audio')] == [data for data, _ in packets_of(name, 'audio')]
        assert names_of(result)[1:] == names_of(name)[1:]


def test_a_sound_that_the_container_does_not_hold_is_encoded(run, capsys):
    """Heard to be the same, at the same times."""
    film('in.mp4', text='mov_text')
    assert run('-i', 'in.mp4', '-o', 'out.webm', '--preset', '8') == 0
    assert 'audio stream 2 (aac) is encoded to Opus' in capsys.readouterr().err

    def heard(path):
        with av.open(path) as source:
            stream = source.streams.audio[1]
            assert stream.language == 'deu'
            parts = [frame.to_ndarray()[:1] for frame in source.decode(stream)]
            return stream.codec_context.name, np.concatenate(parts, 1)[0]

    (_, before), (codec, after) = heard('in.mp4'), heard('out.webm')
    assert codec in ('opus', 'libopus') and abs(len(after) - len(before)) < 2000
    middle = slice(48000, 144000)
    shifts = {
        shift: np.corrcoef(before[middle], np.roll(after, shift)[middle])[0, 1] for shift in range(-1500, 1500, 4)
    }
    assert max(shifts.values()) > 0.99


@ffmpeg
def test_a_sound_that_changes_on_the_way(run, capsys):
    """From stereo at 48 kHz to mono at 44.1 kHz, as in joined broadcasts: tones stay where they were."""
    for number, (tone, more) in enumerate([(440, '-ac 2 -ar 48000'), (880, '-ac 1 -ar 44100')]):
        video, sound = f'testsrc=s=32x18:r=10:d=2 -output_ts_offset {2 * number}', f'sine=f={tone}:d=2:r=48000'
        source, offset = video.split(' ', 1)
        command = f'ffmpeg -v error -f lavfi -i {source} -f lavfi -i {sound} -pix_fmt yuv420p -c:v libx264 -c:a ac3'
        subprocess.run([*f'{command} {more} {offset}'.split(), f'{number}.ts'], check=True)
    Path('in.ts').write_bytes(Path('0.ts').read_bytes() + Path('1.ts').read_bytes())
    with pytest.raises(UserError, match='in.ts has 1 damaged frame of 40; what could be read'):  # a gap, where joined
        run('-i', 'in.ts', '-o', 'out.webm', '--preset', '8')
    assert len(frames_of('out.webm')) == 40
    with av.open('out.webm') as source:
        (stream,) = source.streams.audio
        parts = [(float(frame.time), frame.to_ndarray()[0]) for frame in source.decode(stream)]
        assert stream.codec_context.layout.name == 'stereo'
    for start, stop, tone in ((0.3, 1.7, 440), (2.3, 3.7, 880)):
        heard = np.concatenate([part for time, part in parts if start < time < stop])
        assert len(heard) > 48000
        assert abs(np.abs(np.fft.rfft(heard)).argmax() * 48000 / len(heard) - tone) < 2
    with pytest.raises(UserError, match='in.ts has 1 damaged frame of 40; what could be read'):
        run('-i', 'in.ts', '-o', 'out.mkv')
    left = int(re.search(r'in.ts: (\d+) packets of stream 1 are left out, for their', capsys.readouterr().err)[1])
    before, after = packets_of('in.ts', 'audio'), packets_of('out.mkv', 'audio')
    times = [time for _, time in after]
    assert times == sorted(times) and len(after) == len(before) - left and 0 < left < 10


def test_rows_of_codecs(run):
    """Every encoder that is installed gives what decodes to about the same frames."""
    from sdakd.files.encoding import encoders

    smooth = [cv2.resize(frame, (64, 36), interpolation=cv2.INTER_CUBIC) for frame in moving(4, 5, 8)]
    make('in.mkv', smooth)
    there = encoders()
    assert {'libx264', 'ffv1'} <= set(there)
    for codec in there:
        assert run('-i', 'in.mkv', '-o', f'{codec}.mkv', '--vcodec', codec) == 0
        found = rgb_of(f'{codec}.mkv').astype(int)
        assert found.shape == (4, 144, 256, 3)
        assert np.abs(found - times_four(np.stack(smooth))).mean() < 6, codec
    assert rgb_of('ffv1.mkv').tolist() == times_four(np.stack(smooth)).tolist()


# ------------------------------------------------ stopping and going on ---------------------------------------------


class Started:
    """The command as a process of its own, in a folder; its standard error is kept in a file there."""

    def __init__(self, folder, *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE):
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
        self.log = Path(folder, 'said')
        with open(self.log, 'w', encoding='utf-8') as log:
            command = [sys.executable, '-m', 'sdakd.cli', 'upscale', *map(str, words)]
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=stdin, stdout=stdout, stderr=log
            )

    def wait(self):
        self.output = self.process.communicate(timeout=120)[0]
        return self.process.returncode

    @property
    def said(self):
        return self.log.read_text(encoding='utf-8')


def slow(tmp_path):
    """A network that takes long enough to be stopped in."""
    torch.manual_seed(5)
    torch.save({'params': SRVGGNetCompact(num_feat=16, num_conv=3, upscale=4).state_dict()}, tmp_path / 'slow.pth')
    return tmp_path / 'slow.pth'


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs SIGKILL')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT] if hasattr(os, 'fork') else [])
def test_a_stopped_video_goes_on_to_the_same_file(tmp_path, monkeypatch, number):
    """Equal in every packet and every time to one that is made in one go; uneven times, reordered frames.

    Frames are 256 pixels wide: libx264 gives one of several results by chance where they are less than 16 blocks.
    """
    count = 2 * LENGTH + 30
    step = np.cumsum(np.random.default_rng(0).integers(100, 3000, count)).tolist()
    make(tmp_path / 'silent.mp4', list(moving(count, 36, 64)), 'libx264', 'yuv420p', step, Fraction(1, 90000))
    network = slow(tmp_path)
    words = ('-i', 'silent.mp4', '-m', network, '--preset', 'fast')
    monkeypatch.chdir(tmp_path)
    assert cli.main(['upscale', *map(str, words), '-o', 'whole.mp4']) == 0
    stopped = Started(tmp_path, *words, '-o', 'parts.mp4')
    parts = tmp_path / '.parts.mp4.parts'
    until = time.monotonic() + 60
    while not (parts / '000000.piece').exists() and time.monotonic() < until:
        time.sleep(0.005)
    stopped.process.send_signal(number)
    assert stopped.wait() == (-number if number == signal.SIGKILL else 128 + number)
    if number == signal.SIGINT:
        assert stopped.said.splitlines()[-1].startswith('Interrupted: ')
    assert not (tmp_path / 'parts.mp4').exists()
    pieces = sorted(parts.glob('*.piece'))
    assert 1 <= len(pieces) <= 2
    (parts / f'{len(pieces):06d}.piece').write_bytes(pieces[0].read_bytes()[:-5])  # as a crash of the machine leaves it
    again = Started(tmp_path, *words, '-o', 'parts.mp4')
    assert again.wait() == 0, again.said
    assert f'{len(pieces) * LENGTH} frames are there from an earlier command' in again.said
    assert f', {len(pieces) * LENGTH} were there from an earlier command' in again.output.decode()
    assert not parts.exists()
    for name in ('whole', 'parts'):
        assert times_of(tmp_path / f'{name}.mp4') == times_of(tmp_path / 'silent.mp4')
    assert packets_of(tmp_path / 'parts.mp4', 'video') == packets_of(tmp_path / 'whole.mp4', 'video')
    assert (rgb_of(tmp_path / 'parts.mp4') == rgb_of(tmp_path / 'whole.mp4')).all()


def test_other_settings_begin_anew(run, monkeypatch, capsys):
    """And so does another input, or --overwrite; the same settings do not."""
    from sdakd.files import joining

    make('in.mkv', list(moving(LENGTH + 5, 4, 6)))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, '_print', lambda _: None)
    said = []
    monkeypatch.setattr('sdakd.commands.upscale.video.say', said.append)
    words = ['-i', 'in.mkv', '-o', 'out.mkv', '--vcodec', 'ffv1']

    def interrupted(*more):
        monkeypatch.setattr('sdakd.commands.upscale.sinks.join', stop)
        assert run(*words, *more) == 130
        monkeypatch.setattr('sdakd.commands.upscale.sinks.join', joining.join)
        said.clear()

    for change in (['-s', '2'], ['--pix_fmt', 'yuv444p'], ['--overwrite']):
        interrupted()
        assert run(*words, *change) == 0
        assert not said and not Path('.out.mkv.parts').exists(), change
    interrupted()
    assert run(*words) == 0
    assert said == [f'{LENGTH + 5} frames are there from an earlier command; --overwrite makes them anew']
    interrupted()
    make('in.mkv', list(moving(LENGTH + 5, 4, 6, seed=1)))
    assert run(*words) == 0 and not said
    assert (rgb_of('out.mkv') == times_four(moving(LENGTH + 5, 4, 6, seed=1))).all()


@pytest.mark.parametrize('name', ['out.mkv', 'f%d.png'])
def test_two_commands_do_not_make_the_same_file(run, tmp_path, name):
    from sdakd.lock import alone_in

    make('in.mkv', list(moving(2)))
    parts = tmp_path / f'.{name}.parts'
    parts.mkdir()
    with alone_in(parts, '-o'), pytest.raises(UserError, match='another command works in'):
        run('-i', 'in.mkv', '-o', name)
    assert run('-i', 'in.mkv', '-o', name) == 0 and not parts.exists()


@pytest.mark.parametrize(('share', 'pieces'), [(0.1, 0), (0.95, 2)])
def test_a_disk_without_room_is_one_sentence(run, share, pieces):
    """In a piece, and in the file that they become; with room the command goes on."""
    resource = pytest.importorskip('resource')
    make('in.mkv', list(moving(LENGTH + 20, 18, 32)))
    assert run('-i', 'in.mkv', '-o', 'whole.mkv', '--crf', '20') == 0
    limit = int(os.path.getsize('whole.mkv') * share)
    Path('out.mkv').write_text('before', encoding='utf-8')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r'it cannot be written \(File too large\); have the limit'):
            run('-i', 'in.mkv', '-o', 'out.mkv', '--crf', '20')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Path('out.mkv').read_text(encoding='utf-8') == 'before' and not list(Path().glob('.*.part'))
    assert len(list(Path('.out.mkv.parts').glob('*.piece'))) == pieces
    assert run('-i', 'in.mkv', '-o', 'out.mkv', '--crf', '20') == 0
    assert len(frames_of('out.mkv')) == LENGTH + 20


# ------------------------------------------------ pipes, pictures, folders ------------------------------------------


@ffmpeg
@pytest.mark.parametrize('pix_fmt', ['yuv420p', 'yuv420p10le'])
def test_pipes(tmp_path, model, pix_fmt):
    """Between two ffmpegs; nothing but frames comes out, in as many bits as go in."""
    make(tmp_path / 'in.mkv', [frame.reformat(format=pix_fmt) for frame in map(
        lambda rgb: av.VideoFrame.from_ndarray(rgb, 'rgb24'), moving(5))], pix_fmt=pix_fmt)  # fmt: skip
    reading = ['ffmpeg', '-v', 'error', '-i', 'in.mkv', '-strict', '-1', '-f', 'yuv4mpegpipe', '-']
    source = subprocess.Popen(reading, cwd=tmp_path, stdout=subprocess.PIPE)
    into = ['ffmpeg', '-v', 'error', '-y', '-f', 'yuv4mpegpipe', '-i', '-', '-c:v', 'ffv1', 'out.mkv']
    target = subprocess.Popen(into, cwd=tmp_path, stdin=subprocess.PIPE)
    command = Started(tmp_path, '-i', '-', '-o', '-', '-m', model, stdin=source.stdout, stdout=target.stdin)
    target.stdin.close()
    assert command.wait() == 0 and source.wait() == 0 and target.wait() == 0, command.said
    before, after = frames_of(tmp_path / 'in.mkv'), frames_of(tmp_path / 'out.mkv')
    assert len(after) == 5 and after[0].format.name == pix_fmt
    for one, other in zip(before, after, strict=True):
        luma = layers(one)[0].repeat(4, 0).repeat(4, 1)
        # through RGB, which the noise of the source does not fit into everywhere
        assert np.abs(layers(other)[0] - luma).mean() < 2 * (4 if '10' in pix_fmt else 1)
    assert times_of(tmp_path / 'out.mkv') == times_of(tmp_path / 'in.mkv')
    assert re.search(r'upscale: standard output, x4 with repeats: 5 frames in ', command.said)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs signals')
def test_a_pipe_that_gives_nothing_is_stopped_at_once(tmp_path, model):
    """While it is waited for, without an abort of Python's; nothing stays, for nothing can go on with it."""
    make(tmp_path / 'in.mkv', list(moving(LENGTH + 20, 18, 32)), options={'g': '1'})
    data = (tmp_path / 'in.mkv').read_bytes()
    command = Started(tmp_path, '-i', '-', '-o', 'out.mkv', '-m', model, '--vcodec', 'ffv1', stdin=subprocess.PIPE)
    command.process.stdin.write(data[: len(data) - 1000])
    command.process.stdin.flush()
    until = time.monotonic() + 100
    while not (tmp_path / '.out.mkv.parts/000000.piece').exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(1)
    begun = time.monotonic()
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(60) == 130, command.said
    assert time.monotonic() - begun < 7
    assert command.said.splitlines()[-1] == (
        'Interrupted: what goes through a pipe begins anew; give both ends of it again.'
    )
    assert sorted(os.listdir(tmp_path)) == ['in.mkv', 'said']
    command.process.stdin.close()


def test_a_pipe_that_nobody_reads(tmp_path, model):
    make(tmp_path / 'in.mkv', list(moving(40, 72, 128)))
    command = Started(tmp_path, '-i', 'in.mkv', '-o', '-', '-m', model)
    command.process.stdout.read(1000)
    command.process.stdout.close()
    assert command.process.wait(60) == 141  # as of a program that SIGPIPE ends
    assert 'Traceback' not in command.said


def test_a_pipe_holds_what_a_file_does(tmp_path, model):
    make(tmp_path / 'in.mov', list(moving(3)), 'libx264rgb', 'rgb24', aspect=Fraction(4, 3), options={'qp': '0'})
    command = Started(tmp_path, '-i', 'in.mov', '-o', '-', '-m', model)
    assert command.wait() == 0
    head, _, rest = command.output.partition(b'\n')
    assert head == b'YUV4MPEG2 W128 H72 F24:1 Ip A4:3 C444 XCOLORRANGE=LIMITED'
    assert len(rest) == 3 * (6 + 3 * 128 * 72) and rest.startswith(b'FRAME\n')
    planes = np.frombuffer(rest[6 : 6 + 3 * 128 * 72], np.uint8).reshape(3, 72, 128).astype(int)
    assert np.abs(rgb_from(planes, 1, False) * 255 - times_four(moving(3)[0])).max() <= 2


def test_pictures_and_back(run, capsys):
    frames = moving(4, dtype=np.uint16)
    make('in.mkv', list(frames), pix_fmt='gbrp16le')
    assert run('-i', 'in.mkv', '-o', 'frames/f%03d.png') == 0
    assert sorted(os.listdir('frames')) == ['.sdakd_upscale.jsonl', *(f'f{n:03d}.png' for n in (1, 2, 3, 4))]
    for number, frame in enumerate(frames):
        found = cv2.imread(f'frames/f{number + 1:03d}.png', cv2.IMREAD_UNCHANGED)
        assert (found[..., ::-1] == times_four(frame)).all()
    os.remove('frames/f003.png')  # as a command that was stopped behind the second one
    capsys.readouterr()
    stamps = [os.stat(f'frames/f{n:03d}.png').st_mtime_ns for n in (1, 2)]
    assert run('-i', 'in.mkv', '-o', 'frames/f%03d.png') == 0
    assert '4 frames in ' in (said := capsys.readouterr().out) and ', 2 were there from an earlier command' in said
    assert stamps == [os.stat(f'frames/f{n:03d}.png').st_mtime_ns for n in (1, 2)]
    back = ['-i', 'frames/f%03d.png', '-o', 'back.mkv', '-s', '0.25', '--vcodec', 'ffv1', '--fps', '24000/1001']
    assert run(*back) == 0
    assert [round(time * 1000) for time in times_of('back.mkv')] == [0, 42, 83, 125]
    found = np.stack([frame.to_ndarray(format='rgb48le') for frame in frames_of('back.mkv')]).astype(int)
    assert found.shape == frames.shape


def test_pictures_of_a_longer_video_are_named(run, capsys):
    make('long.mkv', list(moving(5)))
    make('short.mkv', list(moving(3, seed=1)))
    assert run('-i', 'long.mkv', '-o', 'f%d.png') == 0
    assert 'were there' not in capsys.readouterr().err
    assert run('-i', 'short.mkv', '-o', 'f%d.png') == 0
    assert 'f4.png to f5.png were there before and are not of this video; remove them' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['my%20dog.mp4', 'my%20dog.film', 'my%d.mkv'])
def test_a_video_whose_name_looks_numbered(run, name):
    frames = moving(2)
    make('in.mkv', list(frames))
    os.mkdir('in')
    shutil.copy('in.mkv', name)
    shutil.move('in.mkv', f'in/{name}')
    assert run('-i', name, '-o', 'out%20d.mkv', '--vcodec', 'ffv1') == 0
    assert (rgb_of('out%20d.mkv') == times_four(frames)).all()
    with pytest.raises(UserError, match='--fps: it is about numbered pictures'):
        run('-i', name, '-o', 'out.mkv', '--fps', '5')
    if not name.endswith('film'):  # an ending by which no folder is searched
        assert run('-i', 'in', '-o', 'out') == 0
        assert len(list(Path('out').glob('my%*_out.m*'))) == 1
    with pytest.raises(UserError, match='none%d.mp4 does not exist'):
        run('-i', 'none%d.mp4', '-o', 'out.mkv')


def test_any_error_of_a_video_leaves_the_others(run, tmp_path, monkeypatch):
    """Such as one of a library."""
    from sdakd.commands.upscale import video

    os.mkdir('in')
    for name in 'abc':
        make(f'in/{name}.mkv', list(moving(2)))
    opened = video.opened

    def fails(path, rate):
        if Path(path).name == 'b.mkv':
            raise ValueError('a codec fails')
        return opened(path, rate)

    monkeypatch.setattr(video, 'opened', fails)
    with pytest.raises(UserError, match=r'1 of 3 files in in could .* \(b.mkv cannot be upscaled \(a codec fails\)'):
        run('-i', 'in', '-o', 'out')
    assert sorted(path.name for path in Path('out').glob('*.mkv')) == ['a_out.mkv', 'c_out.mkv']


def test_a_folder_of_images_and_videos(run, tmp_path, capsys):
    (tmp_path / 'in/sub').mkdir(parents=True)
    frames = moving(2)
    cv2.imwrite('in/picture.png', frames[0])
    make('in/one.mkv', list(frames))
    make('in/sub/two.avi', list(frames))
    Path('in/broken.mp4').write_bytes(b'nothing of a video')
    with pytest.raises(UserError, match=r'1 of 4 files in in could not be upscaled \(broken.mp4 cannot be upscaled'):
        run('-i', 'in', '-o', 'out', '--suffix', 'x4')
    made = ['one_x4.mkv', 'picture_x4.png', 'sub/two_x4.mp4']
    found = [path.relative_to('out').as_posix() for path in sorted(Path('out').rglob('[!.]*')) if path.is_file()]
    assert found == made
    assert (cv2.imread('out/picture_x4.png') == times_four(frames[0])).all()
    os.remove('in/broken.mp4')
    capsys.readouterr()
    stamps = [os.stat(f'out/{name}').st_mtime_ns for name in made]
    assert run('-i', 'in', '-o', 'out', '--suffix', 'x4') == 0
    assert 'one_x4.mkv is kept from an earlier run' in capsys.readouterr().err
    assert stamps == [os.stat(f'out/{name}').st_mtime_ns for name in made]
    assert run('-i', 'in', '-o', 'out', '--suffix', 'x4', '--vcodec', 'libx265') == 0
    assert os.stat('out/picture_x4.png').st_mtime_ns == stamps[1]
    assert os.stat('out/one_x4.mkv').st_mtime_ns != stamps[0]


def test_from_python(run, model):
    make('in.mkv', list(moving(2)))
    done = upscale('in.mkv', 'out', model=model, vcodec='ffv1', outscale=2)
    assert done.files == {Path('in.mkv'): Path('out/in_out.mkv')} and not done.failed
    assert rgb_of('out/in_out.mkv').shape == (2, 36, 64, 3)


# ------------------------------------------------ mistakes and damage -----------------------------------------------


def test_a_damaged_video_is_finished_and_named(run):
    """Cut off, in the middle of a file and at its end; what could be read is there, and the status is 2."""
    frames = moving(48, 36, 64)
    make('in.mkv', list(frames), options={'g': '1'})
    data = Path('in.mkv').read_bytes()
    Path('cut.mkv').write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r'cut.mkv ends early: \d+ frames are good; what could be read was upscaled'):
        run('-i', 'cut.mkv', '-o', 'cut_out.mkv', '--vcodec', 'ffv1')
    found = rgb_of('cut_out.mkv')
    assert 20 <= len(found) <= 24 and (found == times_four(frames[: len(found)])).all()
    make('in.mp4', list(frames), 'libx264', 'yuv420p', options={'g': '12', 'movflags': 'faststart'})
    with av.open('in.mp4') as source:  # an index in front, as films on the web have it
        with av.open('front.mp4', 'w', container_options={'movflags': 'faststart'}) as output:
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    output.mux(packet)
    data = Path('front.mp4').read_bytes()
    Path('front.mp4').write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match=r'front.mp4 (ends early|has \d+ damaged|cannot be read further)'):
        run('-i', 'front.mp4', '-o', 'front_out.mp4')
    assert 16 <= len(frames_of('front_out.mp4')) < 48
    Path('in.mp4').write_bytes(Path('in.mp4').read_bytes()[: len(data) // 2])  # whose index was at the end
    with pytest.raises(UserError, match='in.mp4 is no video that can be read'):
        run('-i', 'in.mp4', '-o', 'nothing.mp4')
    assert not Path('nothing.mp4').exists()


def test_a_whole_video_is_not_called_damaged(run):
    for number, (name, codec) in enumerate([('a.mkv', 'ffv1'), ('a.mp4', 'libx264'), ('a.avi', 'ffv1')]):
        make(name, list(moving(30, seed=number)), codec, 'yuv420p')
        assert run('-i', name, '-o', 'out.mkv') == 0


@ffmpeg
def test_a_whole_video_that_begins_late_or_has_empty_frames(run):
    """Matroska counts its length from 0; AVI keeps the time by frames that are empty."""
    make('in.mkv', list(moving(30)))
    make('in.avi', list(moving(96, 36, 64)), 'mpeg4', 'yuv420p', pts=[n + 20 * (n > 9) for n in range(96)])
    with av.open('in.avi') as source:
        assert source.streams.video[0].frames > 96
    late = ['-itsoffset', '3', '-i', 'in.mkv', '-c', 'copy', '-avoid_negative_ts', 'disabled']
    subprocess.run(['ffmpeg', '-v', 'error', *late, 'late.mkv'], check=True)
    assert times_of('late.mkv')[0] == 3
    assert run('-i', 'late.mkv', '-o', 'out.mkv') == 0
    assert run('-i', 'in.avi', '-o', 'out.mkv') == 0
    assert len(frames_of('out.mkv')) == 96
    data = Path('in.avi').read_bytes()  # what is cut off is found by the time
    Path('cut.avi').write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match='cut.avi (ends early|has . damaged)'):
        run('-i', 'cut.avi', '-o', 'cut.mkv')


def test_interlaced_video_is_named(run):
    grey = np.full((32, 32), 128)
    frames = [frame_of([grey, grey[::2, ::2], grey[::2, ::2]], 'yuv420p') for _ in range(3)]
    context = {'flags': 1 << 18 | 1 << 29}  # interlaced DCT and motion
    make('in.mpg', frames, 'mpeg2video', 'yuv420p', dress=context)
    if not frames_of('in.mpg')[0].interlaced_frame:
        pytest.skip('this PyAV marks no frame as interlaced')
    with pytest.raises(UserError, match='is interlaced'):
        run('-i', 'in.mpg', '-o', 'out.mp4')


def test_a_play_list_opens_nothing(run):
    make('in.mkv', list(moving(2)))
    Path('list.mkv').write_text("ffconcat version 1.0\nfile 'in.mkv'\n", encoding='utf-8')
    text = '#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nin.mkv\n#EXT-X-ENDLIST\n'
    Path('list.mp4').write_text(text, encoding='utf-8')
    for name in ('list.mkv', 'list.mp4'):
        with pytest.raises(UserError, match=f'{name} is no video that can be read'):
            run('-i', name, '-o', 'out.mkv')


@pytest.fixture
def things(run):
    """A video, a sound, a picture, numbered pictures with a gap, and other files."""
    make('in.mkv', list(moving(2)))
    with av.open('sound.m4a', 'w', format='mp4') as output:
        stream = output.add_stream('aac', rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), 'fltp', 'stereo')
        frame.sample_rate = 48000
        output.mux([*stream.encode(frame), *stream.encode(None)])
    for name in ('picture.png', 'gap1.png', 'gap3.png', 'size1.png'):
        cv2.imwrite(name, moving(1)[0])
    cv2.imwrite('size2.png', moving(1, 8, 8)[0])
    Path('text.txt').write_text('a text', encoding='utf-8')
    Path('taken.mp4').mkdir()
    return run


@pytest.mark.parametrize(
    ('line', 'where', 'sentence'),
    [
        ('-i sound.m4a -o out.mp4', '-i', 'sound.m4a has no video stream'),
        (
            '-i text.txt -o out.mp4',
            '-i',
            '.webp) and no video that can be read',
        ),
        ('-i none.mp4 -o out.mp4', '-i', 'none.mp4 does not exist'),
        ('-i in.mkv -o out.avi', '-o', 'out.avi is no video that is written here'),
        ('-i in.mkv -o out.png', '-o', 'pictures are named by a number, as out/%05d.png'),
        ('-i in.mkv -o in.mkv', '-o', 'the result would replace in.mkv itself'),
        ('-i in.mkv -o . --suffix=', '-o', 'the result would replace in.mkv itself'),
        ('-i in.mkv -o out.mp4 --vcodec libx246', '--vcodec', 'libx246 is unknown; did you mean libx265 or libx264?'),
        ('-i in.mkv -o out.webm --vcodec libx264', '--vcodec', '.webm files do not hold libx264; they hold '),
        ('-i in.mkv -o out.mp4 --vcodec prores_ks', '--vcodec', '.mp4 files do not hold prores_ks'),
        ('-i in.mkv -o out.mp4 --crf 52', '--crf', '52 is none of libx264; give a number from 0 '),
        ('-i in.mkv -o out.mp4 --crf many', '--crf', 'many is none of libx264'),
        ('-i in.mkv -o out.webm --crf many', '--crf', 'many is none of libvpx-vp9'),
        ('-i in.mkv -o out.webm --crf 20.5', '--crf', '20.5 is none of libvpx-vp9'),
        ('-i in.mkv -o out.mkv --vcodec ffv1 --crf 1', '--crf', 'ffv1 has no such setting'),
        ('-i in.mkv -o out.mkv --vcodec ffv1 --preset fast', '--preset', 'ffv1 has no such setting'),
        ('-i in.mkv -o out.mp4 --preset quick', '--preset', 'quick is unknown'),
        ('-i in.mkv -o out.webm --preset fast', '--preset', 'fast is none of libvpx-vp9; give a number'),
        ('-i in.mkv -o out.mp4 --pix_fmt yuv421p', '--pix_fmt', 'libx264 takes no yuv421p; did you mean yuv42'),
        ('-i in.mkv -o out.mp4 --ext png', '--ext', 'it is about images, and the input is a video'),
        ('-i in.mkv -o out.mp4 --face_enhance', '--face_enhance', 'it is about images'),
        ('-i in.mkv -o out.mp4 --alpha_upsampler bicubic', '--alpha_upsampler', 'it is about images'),
        ('-i in.mkv -o out.mp4 --factor 2', '--factor', 'it is about images'),
        ('-i in.mkv -o out.mp4 --fps 24', '--fps', 'a video tells its times itself'),
        ('-i in.mkv -o - --crf 18', '--crf', 'a pipe holds frames as they are'),
        ('-i in.mkv -o - --pix_fmt nv12', '--pix_fmt', 'a pipe holds no nv12'),
        ('-i in.mkv -o f%03d.png --vcodec ffv1', '--vcodec', 'the result are pictures'),
        ('-i in.mkv -o f%03d.xyz', '-o', 'f%03d.xyz names no pictures'),
        ('-i in.mkv -o taken.mp4/ --max-pixels 10', '-i', 'in.mkv has 32x18 pixels, more than 10'),
        ('-i picture.png -o out.mp4', '-o', 'out.mp4 is a video and picture.png is not'),
        ('-i picture.png -o -', '-o', 'a pipe takes the frames of a video'),
        ('-i picture.png -o out --crf 18', '--crf', 'it is about videos, and none is among the inputs'),
        ('-i picture.png -o out --fps 18', '--fps', 'it is about videos'),
        ('-i gap%d.png -o out.mp4', '-i', 'gap2.png is missing among the frames'),
        ('-i size%d.png -o out.mp4', '-i', 'size2.png has 8x8 pixels, and those before 32x18'),
        ('-i none%d.png -o out.mp4', '-i', 'no file is called none%d.png'),
        ('-i gap%d.png -o out%d.png', '-i and -o', 'both are numbered pictures'),
        ('-i gap%d.png -o out', '-o', 'name a file for the video, such as out/video.mp4'),
        ('-i gap%d.png -o out.mp4 --fps 0', '--fps', '0 is no rate'),
        ('-i gap%d.png -o out.mp4 --fps 24/0', '--fps', '24/0 is no rate'),
    ],
)
def test_mistakes(things, line, where, sentence):
    before = {path: path.is_dir() or path.read_bytes() for path in Path().rglob('*')}
    with pytest.raises(UserError) as found:
        things(*line.split())
    assert found.value.where == where and sentence in found.value.sentence
    after = {path: path.is_dir() or path.read_bytes() for path in Path().rglob('*')}
    assert {**after, **before} == after and {str(path) for path in after.keys() - before.keys()} <= {'out'}


@pytest.mark.parametrize('crf', [float('nan'), float('inf'), -float('inf'), '20', 'abc'])
@pytest.mark.parametrize('name', ['out.webm', 'out.mp4'])
def test_a_quality_that_is_no_number(run, model, name, crf):
    make('in.mkv', list(moving(2)))
    with pytest.raises(UserError, match=f'--crf: {crf} is none of lib.*; give a number from 0'):
        upscale('in.mkv', name, model=model, crf=crf)


def test_an_encoder_that_loses_frames(run, monkeypatch):
    from sdakd.files.encoding import Encoder

    make('in.mkv', list(moving(5)))
    add = Encoder.add
    monkeypatch.setattr(Encoder, 'add', lambda self, pixels, pts, more: add(self, pixels, pts, more) if pts else [])
    with pytest.raises(UserError, match='--vcodec: ffv1 gave 4 packets for 5 frames; choose another encoder'):
        run('-i', 'in.mkv', '-o', 'out.mkv', '--vcodec', 'ffv1')
    assert os.listdir() == ['in.mkv']


def test_an_encoder_that_is_missing(run, monkeypatch):
    make('in.mkv', list(moving(2)))
    monkeypatch.setattr('sdakd.files.encoding.encoders', lambda: ['libx264', 'ffv1'])
    with pytest.raises(UserError, match='--vcodec: the installed av .* has no libx265; it has libx264, ffv1'):
        run('-i', 'in.mkv', '-o', 'out.mp4', '--vcodec', 'libx265')


def test_without_pyav(tmp_path, model):
    make(tmp_path / 'in.mkv', list(moving(2)))
    cv2.imwrite(str(tmp_path / 'a.png'), moving(1)[0])
    code = "import sys; sys.modules['av'] = None\nfrom sdakd import cli\nsys.exit(cli.main(sys.argv[1:]))"
    for name, status in (('in.mkv', 2), ('a.png', 0)):
        words = ['upscale', '-i', tmp_path / name, '-o', tmp_path / 'out', '-m', model]
        done = subprocess.run([sys.executable, '-c', code, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert ('Error: -i: videos need the package av' in done.stderr) == (status == 2)
        assert 'pip install av' in done.stderr or not status


# ------------------------------------------------ the threads -------------------------------------------------------


def test_reading_ahead_is_bounded_and_ends_with_its_error():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number
        raise ValueError('the end')

    with Ahead(items(), 3) as ahead:
        first = next(found := iter(ahead))
        time.sleep(0.1)
        assert first == 0 and len(taken) <= 6
        with pytest.raises(ValueError, match='the end'):
            list(found)
        assert len(taken) == 100
    with pytest.raises(RuntimeError), Ahead(iter(range(10**9)), 3):
        raise RuntimeError('who takes them gives up')
    assert not [thread for thread in threading.enumerate() if thread.name == 'reading']


def test_writing_behind_does_all_or_raises():
    done = []
    with Behind(done.append, 2) as behind:
        for number in range(50):
            behind.give(number)
    assert done == list(range(50))

    def fail(number):
        if number == 3:
            raise ValueError('three')

    with pytest.raises(ValueError, match='three'), Behind(fail, 2) as behind:
        for number in range(1000):
            behind.give(number)
    with pytest.raises(ValueError, match='three'), Behind(fail, 9) as behind:
        behind.give(3)
    assert not [thread for thread in threading.enumerate() if thread.name == 'writing']


def test_reading_ends_while_frames_are_passed_over():
    """As a video that goes on and is stopped again: nothing is taken for a long time."""
    passed = []

    def items():
        while True:
            passed.append(1)
            yield None
            time.sleep(0.01)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Ahead(items(), 3, parting=30) as ahead:
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert not ahead.thread.is_alive() and time.monotonic() - begun < 10
    with Ahead(iter([None, 1, None, 2, None]), 3) as ahead:
        assert list(ahead) == [1, 2]


def test_frames_that_are_there_are_passed_over_one_by_one(tmp_path):
    from sdakd.files.videos import Video

    frames = moving(6)
    video = Video(make(tmp_path / 'in.mkv', list(frames)), '-i', 'in.mkv')
    found = list(video.frames(4))
    video.close()
    assert found[:4] == [None] * 4 and [(part.pixels[..., ::-1] == frames[4 + n]).all() for n, part in enumerate(
        each for each in found if each is not None)] == [True, True]  # fmt: skip


def test_a_video_is_not_closed_while_a_thread_reads_it(tmp_path, monkeypatch):
    from sdakd.files.videos import Video

    video = Video(make(tmp_path / 'in.mkv', list(moving(6))), '-i', 'in.mkv')
    within, go_on, pixels = threading.Event(), threading.Event(), video._pixels

    def waiting(frame):
        within.set()
        go_on.wait(30)
        return pixels(frame)

    monkeypatch.setattr(video, '_pixels', waiting)
    with Ahead(video.frames(), 9, parting=0) as ahead:
        assert within.wait(30)
    video.close()
    assert next(video.container.demux(video.stream)).size > 0  # a closed one raises
    go_on.set()
    ahead.thread.join(30)
    video.close()
    with pytest.raises(AssertionError):
        next(video.container.demux(video.stream))


def test_writing_ends_when_it_is_stopped_at_the_end(monkeypatch):
    done, begun = [], threading.Event()

    def work(number):
        begun.set()
        time.sleep(0.02)
        done.append(number)

    join = threading.Thread.join

    def interrupted(thread, timeout=None):
        monkeypatch.setattr(threading.Thread, 'join', join)
        assert begun.wait(30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Behind(work, 500) as behind:
        for number in range(500):
            behind.give(number)
        monkeypatch.setattr(threading.Thread, 'join', interrupted)
    assert not behind.thread.is_alive() and len(done) < 500
