"""`sdakd upscale`: enlarges images with a model, with the flags of Real-ESRGAN's inference script."""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from sdakd import __version__, compat, stops
from sdakd.commands.interface import MOST_THREADS, Flags, Outcome, number, one_of, whole
from sdakd.compat import FullError, UserError, near
from sdakd.decoding import eight_bits, first_line
from sdakd.files.images import ENDINGS, UnusableError, by_stem, list_images, stem
from sdakd.files.limits import MAX_PIXELS, limited
from sdakd.files.pictures import Bands, bands_of, beside, check_format, ending_of, filled, read, resized, write_picture
from sdakd.files.results import output_folder
from sdakd.progress import Progress, say

if TYPE_CHECKING:
    from sdakd.commands.upscale.faces import FaceUpscaler
    from sdakd.commands.upscale.upscaler import Upscaler
    from sdakd.files.generators import Opened

DEFAULT = 'demo_student_x4'
EXTENSIONS, ALPHA = ('auto', 'png', 'jpg', 'webp'), ('realesrgan', 'bicubic')
PRETRAINED = Path(__file__).parents[2] / 'pretrained'
DOWNLOADS = Path('experiments/pretrained_models')  # where the option files want official networks, too

# GFPGANer looks for its helpers in this folder, below the one where the command is given
FACE_FOLDER = Path('gfpgan/weights')
FACE_URLS = {
    'GFPGANv1.3.pth': 'https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.3.pth',
    'detection_Resnet50_Final.pth': (
        'https://github.com/xinntao/facexlib/releases/download/v0.1.0/detection_Resnet50_Final.pth'
    ),
    'parsing_parsenet.pth': 'https://github.com/xinntao/facexlib/releases/download/v0.2.2/parsing_parsenet.pth',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, upscale)
    add('-i', '--input', dest='images', help='an image, or a folder that is searched with its sub-folders')
    add('-o', '--output', help='folder for the results')
    add('-m', '--model_path', dest='model', metavar='FILE', help='model: .pth, .safetensors, ncnn .param or .onnx')
    named = f'a model by name instead: {DEFAULT} (default), RealESRGAN_x4plus, realesr-general-x4v3, ...'
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


def _auto(text: str) -> int | float | str | None:
    return None if text == 'auto' else number(text)


def _pixels(value: object, where: str) -> int | None:
    return None if value is None else whole(value, where)


def _positive(value: object, where: str) -> float | None:
    if value is None or (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        return value
    raise UserError(where, f'{value} is no factor; give a number above 0, for example 2.')


@dataclass
class Upscaled(Outcome):
    """What was enlarged.

    Args:
        files: Result by input, both as paths.
        failed: Why an input has no result, one line each.
        text: For people, with the time.
        kept: Which of the inputs have their result from an earlier run with the same settings.
    """

    files: dict[Path, Path]
    failed: list[str]
    folder: Path
    output: Path
    text: str
    kept: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text

    def check(self) -> None:
        if self.failed:
            first = '; '.join(self.failed[:3]) + ('; ...' if len(self.failed) > 3 else '')
            total = len(self.failed) + len(self.files)
            raise UserError(
                f'{len(self.failed)} of {total} images in {self.folder} could not be upscaled ({first}); '
                f'the others are in {self.output}.'
            )


def _inputs(images: str | Path, output: str | Path, suffix: str, ext: str) -> tuple[Path, dict[str, str]]:
    """The folder of the inputs, and which of them becomes which result; both relative, to it and to ``-o``.

    Raises:
        UserError: No image there, two would become the same result, or a result would replace an input.
    """
    source = Path(images)
    if not source.exists():
        raise UserError('-i', f'{source} does not exist; give an image or a folder.')
    folder = source if source.is_dir() else source.parent
    if source.is_dir():
        names = list_images(str(source))
        if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(source)):
            raise UserError('-o', f'{output} lies in the folder of the inputs (-i {source}); put it beside that one.')
    else:
        names = [source.name]
        if source.suffix.lower() not in ENDINGS:
            raise UserError('-i', f'{source} is no image; images are told by their endings {", ".join(ENDINGS)}.')

    def result(name: str) -> str:
        return stem(name) + (f'_{suffix}' if suffix else '') + ending_of(folder / name, ext)

    results = by_stem(names, str(folder), result)
    for name in results:
        target = Path(output, name)
        if target.is_dir():
            raise UserError(
                '-o', f'{target} is a folder, and a result would get its name; remove it or change --suffix.'
            )
        if source.is_file() and target.exists() and target.samefile(source):
            raise UserError('-o', f'the result would replace {source} itself; choose another folder or give --suffix.')
    return folder, results


def _model_file(model: str | Path | None, name: str | None) -> tuple[Path, str]:
    """The model's file and the flag that named it; an official one is downloaded where it is missing.

    Raises:
        UserError: Both flags, an unknown name, or a file that is not there and cannot be downloaded.
    """
    from sdakd_arch.zoo import URLS, ensure_file

    if model is not None:
        if name is not None:
            raise UserError('-m and -n', 'give one of them, a file or a name.')
        return Path(model), '-m'
    name = (name or DEFAULT).removesuffix('.pth')
    shipped = {path.stem: path for path in PRETRAINED.iterdir() if path.suffix in ('.pth', '.safetensors')}
    if name in shipped:
        return shipped[name], '-n'
    official = {Path(file).stem for file in URLS if file.lower().startswith('realesr') and 'netD' not in file}
    if name not in official:
        raise UserError('-n', f'no model is called {name}; {near(name, official | shipped.keys())}.')
    path = DOWNLOADS / f'{name}.pth'
    ensure_file(path, '-n', 'name another file with -m')
    return path, '-n'


def _device(gpu: int | None, onnx: bool) -> str:
    import torch

    count = torch.cuda.device_count()
    if gpu is not None and gpu >= count:
        have = f'the GPUs are 0 to {count - 1}' if count else 'torch finds no GPU here; leave the flag out'
        raise UserError('-g', f'there is no GPU {gpu}: {have}.')
    return f'cuda:{gpu or 0}' if count and not onnx else 'cpu'  # ONNX Runtime takes and gives arrays in main memory


def _face_enhancer(upscaler, outscale: float):
    """GFPGAN's restorer with ``upscaler`` for everything but the faces.

    Raises:
        UserError: It or what it needs is not installed, or weights are missing and cannot be downloaded.
    """
    import torch
    import torchvision

    from sdakd_arch.weights import tensors_only
    from sdakd_arch.zoo import ensure_file

    try:
        from gfpgan import GFPGANer
    except ModuleNotFoundError as error:
        raise UserError(
            '--face_enhance', f'the package {error.name} is not installed: pip install gfpgan, or leave the flag out.'
        ) from None
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # the face detector's
    except RuntimeError:
        raise UserError(
            '--face_enhance',
            'the installed torchvision was built for another torch and cannot detect faces: install '
            f'the torchvision that belongs to torch {torch.__version__}, or leave the flag out.',
        ) from None
    for name, url in FACE_URLS.items():
        ensure_file(FACE_FOLDER / name, '--face_enhance', 'leave the flag out', url)
    try:
        path = str(FACE_FOLDER / 'GFPGANv1.3.pth')
        with tensors_only('--face_enhance'):
            return GFPGANer(path, upscale=outscale, bg_upsampler=upscaler, device=upscaler.device)
    except Exception as error:  # a file that is cut off, or of another network
        reason = error.sentence.rstrip('.') if isinstance(error, UserError) else first_line(error)
        raise UserError(
            '--face_enhance',
            f'a file in {FACE_FOLDER} cannot be used ({reason}); remove it to have it downloaded again.',
        ) from None


def with_faces(pixels: np.ndarray, upscaler, faces, outscale: float, alpha_upsampler: str) -> Bands:
    """Enlarges an image and restores its faces; eight bits, which is all that GFPGAN knows."""
    pixels = eight_bits(pixels)
    colour = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., :3])
    output = faces.enhance(colour, has_aligned=False, only_center_face=False, paste_back=True)[2]
    if pixels.ndim == 2:
        return bands_of(cv2.cvtColor(output, cv2.COLOR_BGR2GRAY))
    if pixels.shape[2] == 3:
        return bands_of(output)
    alpha = upscaler.enlarge_alpha(pixels[..., 3], alpha_upsampler)
    return beside(bands_of(output), resized(alpha, output.shape[:2], cv2.INTER_LANCZOS4))


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


@stops.leaving('the finished images stay; give the same command again to go on')
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
) -> Upscaled:
    """Enlarges an image, or a folder of images with its sub-folders.

    Of a folder, results are kept that an earlier run has made of the same files with the same settings.

    Args:
        images: A file, or a folder: grey, colour or alpha, 8 or 16 bits.
        output: Folder for the results.
        model: ``.pth``, ``.safetensors`` or ``.onnx``; default: the student that ships with this project.
        name: Instead of ``model``, a model that ships with this project or an official one, which is downloaded.
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
    folder, results = _inputs(images, output, suffix, ext)
    single = Path(images).is_file()
    try:
        if single:  # before the model is loaded
            read(images)
    except UnusableError as error:
        raise UserError('-i', f'{images} {error.reason}.') from None
    compat.import_basicsr()
    import torch

    from sdakd.commands.upscale.record import Record, identity
    from sdakd.commands.upscale.upscaler import settle_threads
    from sdakd.files.generators import open_network

    path, flag = _model_file(model, name)
    device = _device(_pixels(gpu, '-g'), path.suffix == '.onnx')
    opened = open_network(path, flag, faces=True, foreign=True)
    if face_enhance and opened.scale is None:
        network = opened.network['type']
        raise UserError('--face_enhance', f'{path} ({network}) makes faces itself; leave the flag out.')
    half = device != 'cpu' and half is not False
    settings = {'tile': tile, 'tile_pad': tile_pad, 'pre_pad': pre_pad, 'half': half, 'device': device}
    upscaler = open_upscaler(opened, factor=factor, **settings)
    outscale = outscale or opened.scale
    faces = _face_enhancer(upscaler, outscale) if face_enhance else None
    output = output_folder(output)
    on_cpu = device == 'cpu' and path.suffix != '.onnx'
    if threads is not None:
        torch.set_num_threads(threads)
    unsettled = threads is None and on_cpu and not os.environ.get('OMP_NUM_THREADS')

    known = {'outscale': outscale, 'factor': factor, 'faces': face_enhance, 'alpha': alpha_upsampler}
    known |= settings | {'model': identity(opened), 'version': __version__}
    record = Record(output, known)
    kept = {} if overwrite or single else {t: s for t, s in results.items() if record.holds(t, folder / s)}
    if kept:
        say(f'upscale: {len(kept)} of {len(results)} images are kept from an earlier run; --overwrite makes them anew')
    due = {target: source for target, source in results.items() if target not in kept}

    megapixels, failed, begun = 0.0, [], time.perf_counter()
    files = {folder / source: output / target for target, source in kept.items()}
    for target, source in Progress('upscale', len(due), 'images').over(due.items()):
        try:
            picture = read(folder / source)
            height, width, *channels = picture.pixels.shape
            check_format((*upscaler.size_of(height, width, outscale), *channels), Path(target).suffix)
            pixels = filled(picture.pixels)
            if unsettled:
                unsettled = False
                settle_threads(upscaler.enhance, pixels, opened.scale is None, len(due), say)
            if faces:
                made = with_faces(pixels, upscaler, faces, outscale, alpha_upsampler)
            else:
                made = upscaler.bands(pixels, outscale, alpha_upsampler)
            picture.pixels = pixels = None  # it may be large, and is not needed any more
            write_picture(output / target, made, picture.profile)
        except FullError:
            raise
        except Exception as error:  # the model, a codec or a name may fail one image: the others go on
            what = error.sentence.rstrip('.') if isinstance(error, UserError) else first_line(error)
            reason = error.reason if isinstance(error, UnusableError) else f'cannot be upscaled ({what})'
            failed.append(f'{source} {reason}')
            if single:
                raise UserError('-i', f'{images} {reason}.') from None
            say(f'{folder / source} {reason}')
            continue
        record.add(target, folder / source)
        megapixels += made.shape[0] * made.shape[1] / 1e6
        files[folder / source] = output / target
    seconds = time.perf_counter() - begun
    size = f'x{outscale:g}' if outscale else f'to {upscaler.out_size}x{upscaler.out_size} pixels'
    what = next(iter(results)) if single else f'{len(files)} of {len(results)} images'
    text = (
        f'upscale: {what} in {output}, {size} with {opened.name}: {seconds:.1f} s, '
        f'{megapixels / seconds:.2f} megapixels of output per second\n'
    )
    return Upscaled(files, failed, folder, output, text, [folder / source for source in kept.values()])
