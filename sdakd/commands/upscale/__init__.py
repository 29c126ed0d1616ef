"""`sdakd upscale`: enlarges images with a model, with the flags of Real-ESRGAN's inference script."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdakd import __version__, compat, stops
from sdakd.commands.interface import MOST_THREADS, Flags, number, one_of, whole
from sdakd.commands.upscale.enhancer import FACE_URLS, face_enhancer, with_faces
from sdakd.commands.upscale.inputs import check_flags, plan_of, rate_of
from sdakd.commands.upscale.passes import Upscaled, enlarge_images, enlarge_videos, first_looks, left_behind
from sdakd.compat import UserError
from sdakd.files.encoding import Wanted
from sdakd.files.limits import MAX_PIXELS, limited
from sdakd.files.named import by_name, model_file, zoo
from sdakd.files.pictures import read
from sdakd.files.results import output_folder
from sdakd.progress import say

if TYPE_CHECKING:
    from sdakd.commands.upscale.faces import FaceUpscaler
    from sdakd.commands.upscale.upscaler import Upscaler
    from sdakd.files.generators import Opened

__all__ = ['FACE_URLS', 'Upscaled', 'add_arguments', 'open_upscaler', 'read', 'upscale', 'with_faces']
EXTENSIONS, ALPHA = ('auto', 'png', 'jpg', 'webp'), ('realesrgan', 'bicubic')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, upscale)
    source = 'an image, a video, or a folder that is searched with its sub-folders; frames/%05d.png, or - for a pipe'
    add('-i', '--input', dest='images', help=source)
    result = 'folder for the results; of a video also a file, frames/%05d.png, or - for a pipe'
    add('-o', '--output', help=result)
    add('-m', '--model_path', dest='model', metavar='FILE', help='model: .pth, .safetensors, ncnn .param or .onnx')
    named = f'a model by name: {zoo().default} (default), ..., RealESRGAN_x4plus, ...; `sdakd models` lists them'
    add('-n', '--model_name', dest='name', metavar='NAME', help=named)
    own = "factor between input and output (default: the model's own)"
    add('-s', '--outscale', type=number, help=own)
    factor = 'for GCFSR: take the face as one reduced so many times (default: by its size)'
    add('--factor', type=number, help=factor)
    tile = 'side of a tile in input pixels; 0: no tiles (default: auto, what fits into memory)'
    add('-t', '--tile', type=_auto, metavar='PIXELS', help=tile)
    pad = "overlap of tiles in input pixels (default: auto, the model's reach, at most 40)"
    add('--tile_pad', type=_auto, metavar='PIXELS', help=pad)
    add('--pre_pad', type=number, metavar='PIXELS', help='mirrored border at the right and bottom (default: {default})')
    fp32 = 'full precision on a GPU, too (default: half there, full on a CPU)'
    add('--fp32', dest='half', action='store_const', const=False, help=fp32)
    ext = 'ending of the results; auto: that of the input, or png where it cannot hold alpha or 16 bits'
    add('--ext', choices=EXTENSIONS, help=ext)
    add('--suffix', type=str, help='NAME.png becomes NAME_SUFFIX.png (default: {default})')
    add('--face_enhance', action='store_true', help='restore faces with GFPGAN (pip install gfpgan)')
    alpha = 'how alpha is enlarged (default: {default}, by the model)'
    add('--alpha_upsampler', choices=ALPHA, help=alpha)
    gpu = 'which GPU (default: the first, where there is one)'
    add('-g', '--gpu-id', dest='gpu', type=number, metavar='NUMBER', help=gpu)
    add(
        '--max-pixels', type=number, metavar='PIXELS', help='images of more pixels are not decoded (default: {default})'
    )
    again = 'make results anew that an earlier run with the same settings has made'
    add('--overwrite', action='store_true', help=again)
    threads = 'threads of the CPU (default: auto, OMP_NUM_THREADS or what is measured to be the fastest)'
    add('--threads', type=_auto, metavar='NUMBER', help=threads)
    videos = parser.add_argument_group('videos')
    codec = 'encoder: libx264 (default; of .webm libvpx-vp9), libx265, libsvtav1, libaom-av1, ffv1, prores_ks'
    add('--vcodec', metavar='NAME', help=codec, to=videos)
    add('--crf', type=number, metavar='NUMBER', help='quality, less is better (default: 18 for libx264)', to=videos)
    speed = 'effort of the encoder: medium, veryfast, ...; a number for AV1 and VP9'
    add('--preset', metavar='NAME', help=speed, to=videos)
    add('--pix_fmt', metavar='NAME', help="pixel format (default: auto, the video's as far as possible)", to=videos)
    rate = 'frames per second of numbered pictures, such as 24000/1001 (default: 24)'
    add('--fps', metavar='NUMBER', help=rate, to=videos)


def _auto(text: str) -> int | float | str | None:
    return None if text == 'auto' else number(text)


def _pixels(value: object, where: str) -> int | None:
    return None if value is None else whole(value, where)


def _positive(value: object, where: str) -> float | None:
    if value is None or (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        return value
    raise UserError(where, f'{value} is no factor; give a number above 0, for example 2.')


def _model_file(model: str | Path | None, name: str | None) -> tuple[Path, str]:
    """The model's file and the flag that named it.

    Raises:
        UserError: Both flags, a name that is unknown, or a published model that is not here.
    """
    if model is None:
        return by_name(zoo().default if name is None else name), '-n'
    if name is not None:
        raise UserError('-m and -n', 'give one of them, a file or a name.')
    return model_file(model), '-m'


def _device(gpu: int | None, onnx: bool) -> str:
    import torch

    count = torch.cuda.device_count()
    if gpu is not None and gpu >= count:
        have = f'the GPUs are 0 to {count - 1}' if count else 'torch finds no GPU here; leave the flag out'
        raise UserError('-g', f'there is no GPU {gpu}: {have}.')
    return f'cuda:{gpu or 0}' if count and not onnx else 'cpu'  # ONNX Runtime takes and gives arrays in main memory


def open_upscaler(
    opened: Opened,
    *,
    factor: float | None = None,
    tile: int | None = None,
    tile_pad: int | None = None,
    pre_pad: int = 0,
    half: bool = False,
    device: str = 'cpu',
) -> Upscaler | FaceUpscaler:
    """What enlarges arrays; see :func:`upscale` for the arguments.

    Raises:
        UserError: An argument that the network has no use for.
    """
    if opened.scale is None:
        from sdakd.commands.upscale.faces import FaceUpscaler, check_flags

        check_flags(opened, factor, {'-t': tile, '--tile_pad': tile_pad, '--pre_pad': pre_pad})
        return FaceUpscaler(opened, factor, device)
    from sdakd.commands.upscale.upscaler import Upscaler

    if factor is not None:
        raise UserError('--factor', f'{opened.path} always enlarges {opened.scale} times; leave the flag out.')
    return Upscaler(opened, tile, tile_pad, pre_pad, half, device)


@limited
def upscale(
    images: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    name: str | None = None,
    outscale: float | None = None,
    factor: float | None = None,
    tile: int | None = None,
    tile_pad: int | None = None,
    pre_pad: int = 0,
    half: bool | None = None,
    ext: str = 'auto',
    suffix: str = 'out',
    face_enhance: bool = False,
    alpha_upsampler: str = 'realesrgan',
    gpu: int | None = None,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    threads: int | None = None,
    vcodec: str | None = None,
    crf: int | float | None = None,
    preset: str | None = None,
    pix_fmt: str | None = None,
    fps: int | float | str | None = None,
) -> Upscaled:
    """Enlarges an image, a video, or a folder of both with its sub-folders.

    Of a folder, results are kept that an earlier run has made of the same files with the same settings. A video goes on
    where an earlier run with the same settings was stopped.

    Args:
        images: An image (grey, colour or alpha, 8 or 16 bits), a video, or a folder of them. Numbered pictures such as
            ``frames/%05d.png`` are a video; ``-`` is one on standard input.
        output: Folder for the results. Of a video, a file too, numbered pictures, or ``-`` for standard output.
        model: ``.pth``, ``.safetensors``, ncnn's ``.param`` or ``.onnx``, or what ``name`` may be; default: the best
            general student that ships with this project (:attr:`sdakd.files.named.Zoo.default`).
        name: Instead of ``model``, a model that ships with this project, or a published one that `sdakd fetch` has got.
        outscale: Factor between input and output; default: the model's own. Lanczos interpolation does the rest.
        factor: What GCFSR is told; default: what the size of the face says.
        tile: Side of a tile in input pixels; 0: no tiles; None: what fits into the memory.
        tile_pad: Overlap of tiles in input pixels; None: the model's reach, at most 40.
        pre_pad: Mirrored border at the right and the bottom in input pixels.
        half: Whether to compute in float16; None: on a GPU only. A CPU computes in float32.
        ext: Ending of the results: ``auto`` (that of the input, or png where it cannot hold alpha or 16 bits), ``png``,
            ``jpg`` or ``webp``.
        suffix: ``NAME.png`` becomes ``NAME_SUFFIX.png``; empty: the name stays.
        face_enhance: Whether GFPGAN restores faces.
        alpha_upsampler: How alpha is enlarged: ``realesrgan`` (by the model) or ``bicubic``.
        gpu: Number of the GPU; default: the first one, where there is one.
        max_pixels: Images of more pixels are not decoded.
        overwrite: Whether all results are made anew.
        threads: Threads of the CPU; default: what ``OMP_NUM_THREADS`` says, or what is found to be the fastest.
        vcodec: Encoder of videos; default: ``libx264``, of .webm ``libvpx-vp9``.
        crf: Quality of videos, less is better; default: what suits the encoder.
        preset: Effort of the encoder; default: likewise.
        pix_fmt: Pixel format of videos; default: that of the input, as far as the encoder takes it.
        fps: Frames per second of numbered pictures, a number or a fraction as text; default: 24.

    Returns:
        The results' files, and what failed.

    Raises:
        UserError: A mistake in an argument or a file, found before anything is computed; the only image fails; or a
            result cannot be written.
    """
    outscale, factor = _positive(outscale, '-s'), _positive(factor, '--factor')
    tile, tile_pad, pre_pad = _pixels(tile, '-t'), _pixels(tile_pad, '--tile_pad'), whole(pre_pad, '--pre_pad')
    threads = None if threads is None else whole(threads, '--threads', 1, MOST_THREADS)
    one_of(ext, EXTENSIONS, '--ext')
    one_of(alpha_upsampler, ALPHA, '--alpha_upsampler')
    if '/' in suffix or os.sep in suffix:
        raise UserError('--suffix', f'{suffix} is no part of a file name; folders are given with -o.')
    wanted, rate = Wanted(vcodec, crf, preset, pix_fmt), Fraction(24) if fps is None else rate_of(fps)
    plan = plan_of(images, output, suffix, ext)
    of_images = {'--ext': ext != 'auto', '--alpha_upsampler': alpha_upsampler != ALPHA[0]}
    check_flags(plan, wanted, fps, of_images | {'--face_enhance': face_enhance, '--factor': factor is not None})
    video = first_looks(plan, wanted, rate)
    compat.import_basicsr()
    import torch

    from sdakd.commands.upscale.record import Record, identity
    from sdakd.commands.upscale.upscaler import settle_threads
    from sdakd.commands.upscale.video import Work
    from sdakd.files.generators import open_network

    path, flag = _model_file(model, name)
    device = _device(_pixels(gpu, '-g'), path.suffix == '.onnx')
    opened = open_network(path, flag, faces=True, foreign=True)
    if opened.scale is None and (face_enhance or plan.videos):
        network = opened.network['type']
        if face_enhance:
            raise UserError('--face_enhance', f'{path} ({network}) makes faces itself; leave the flag out.')
        raise UserError(flag, f'{path} ({network}) makes faces of one size; videos need a network for any image.')
    half = device != 'cpu' and half is not False
    settings = {'tile': tile, 'tile_pad': tile_pad, 'pre_pad': pre_pad, 'half': half, 'device': device}
    upscaler = open_upscaler(opened, factor=factor, **settings)
    outscale = outscale or opened.scale
    faces = face_enhancer(upscaler, outscale) if face_enhance else None
    folder = output_folder(plan.output)
    on_cpu = device == 'cpu' and path.suffix != '.onnx'
    if threads is not None:
        torch.set_num_threads(threads)
    unsettled = threads is None and on_cpu and not os.environ.get('OMP_NUM_THREADS')

    def settle(pixels: np.ndarray, count: int) -> None:
        nonlocal unsettled
        if unsettled:
            unsettled = False
            settle_threads(upscaler.enhance, pixels, opened.scale is None, count, say)

    def enlarged(pixels: np.ndarray):
        if faces:
            return with_faces(pixels, upscaler, faces, outscale, alpha_upsampler)
        return upscaler.bands(pixels, outscale, alpha_upsampler)

    known = {'outscale': outscale, 'factor': factor, 'faces': face_enhance, 'alpha': alpha_upsampler}
    known |= settings | {'model': identity(opened), 'version': __version__}
    size = f'x{outscale:g}' if outscale else f'to {upscaler.out_size}x{upscaler.out_size} pixels'
    done = Upscaled({}, [], plan.folder, folder, '', kind='files' if plan.videos else 'images')
    with_what = f'{size} with {opened.name}'
    with stops.leaving(left_behind(plan)):
        if plan.pictures:
            record = Record(folder, known)
            enlarge_images(plan, record, enlarged, upscaler.size_of, outscale, settle, overwrite, with_what, done)
        if plan.videos:
            work = Work(upscaler, outscale, wanted, rate, known, overwrite, settle)
            record = Record(folder, known | {'coding': asdict(wanted)})
            enlarge_videos(plan, record, work, video, with_what, done)
    return done
