"""`sdakd upscale`: enlarges images with a model, with the flags of Real-ESRGAN's inference script."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from sdakd import compat
from sdakd.compat import UserError, near
from sdakd.files.images import ENDINGS, UnusableError, by_stem, list_images, stem, write
from sdakd.files.pictures import Picture, eight_bits, encode, ending_of, first_line, read
from sdakd.files.results import output_folder

if TYPE_CHECKING:
    from sdakd.commands.upscale.faces import FaceUpscaler
    from sdakd.commands.upscale.upscaler import Upscaler
    from sdakd.files.generators import Opened

DEFAULT = 'demo_student_x4'
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


def _factor(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f'{text} is no factor; give a number above 0, for example 2')
    return value


def _pixels(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text} is no number of pixels; give 0 or more')
    return int(text)


def _auto_pixels(text: str) -> int | None:
    return None if text == 'auto' else _pixels(text)


def _suffix(text: str) -> str:
    if '/' in text or os.sep in text:
        raise argparse.ArgumentTypeError(f'{text} is no part of a file name; folders are given with -o')
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('-i', '--input', required=True, help='an image, or a folder that is searched with its sub-folders')
    add('-o', '--output', required=True, help='folder for the results')
    named = f'a model by name instead: {DEFAULT} (default), RealESRGAN_x4plus, realesr-general-x4v3, ...'
    add('-m', '--model_path', metavar='FILE', help='model: .pth, .safetensors or .onnx')
    add('-n', '--model_name', metavar='NAME', help=named)
    add('-s', '--outscale', type=_factor, help="factor between input and output (default: the model's own)")
    factor = 'for GCFSR: take the face as one reduced so many times (default: by its size)'
    add('--factor', type=_factor, help=factor)
    tile = 'side of a tile in input pixels; 0: no tiles (default: auto, what fits into memory)'
    add('-t', '--tile', type=_auto_pixels, default='auto', metavar='PIXELS', help=tile)
    pad = "overlap of tiles in input pixels (default: auto, the model's reach, at most 40)"
    add('--tile_pad', type=_auto_pixels, default='auto', metavar='PIXELS', help=pad)
    add('--pre_pad', type=_pixels, default=0, metavar='PIXELS', help='mirrored border at the right and bottom')
    add('--fp32', action='store_true', help='full precision on a GPU, too (default: half there, full on a CPU)')
    ext = 'ending of the results; auto: that of the input, or png where it cannot hold alpha or 16 bits'
    add('--ext', choices=('auto', 'png', 'jpg', 'webp'), default='auto', help=ext)
    add('--suffix', type=_suffix, default='out', help='NAME.png becomes NAME_SUFFIX.png (default: out)')
    add('--face_enhance', action='store_true', help='restore faces with GFPGAN (pip install gfpgan)')
    alpha = 'how alpha is enlarged (default: realesrgan, by the model)'
    add('--alpha_upsampler', choices=('realesrgan', 'bicubic'), default='realesrgan', help=alpha)
    add('-g', '--gpu-id', type=_pixels, metavar='NUMBER', help='which GPU (default: the first, where there is one)')


def inputs(args: argparse.Namespace) -> tuple[Path, dict[str, str]]:
    """The folder of the inputs, and which of them becomes which result; both relative, to it and to ``-o``.

    Raises:
        UserError: No image there, two would become the same result, or a result would replace an input.
    """
    source = Path(args.input)
    if not source.exists():
        raise UserError('-i', f'{source} does not exist; give an image or a folder.')
    folder = source if source.is_dir() else source.parent
    if source.is_dir():
        names = list_images(str(source))
        if Path(os.path.realpath(args.output)).is_relative_to(os.path.realpath(source)):
            raise UserError(
                '-o', f'{args.output} lies in the folder of the inputs (-i {source}); put it beside that one.'
            )
    else:
        names = [source.name]
        if source.suffix.lower() not in ENDINGS:
            raise UserError('-i', f'{source} is no image; images are told by their endings {", ".join(ENDINGS)}.')

    def result(name: str) -> str:
        return stem(name) + (f'_{args.suffix}' if args.suffix else '') + ending_of(folder / name, args.ext)

    results = by_stem(names, str(folder), result)
    for name in results:
        target = Path(args.output, name)
        if target.is_dir():
            raise UserError(
                '-o', f'{target} is a folder, and a result would get its name; remove it or change --suffix.'
            )
        if source.is_file() and target.exists() and target.samefile(source):
            raise UserError('-o', f'the result would replace {source} itself; choose another folder or give --suffix.')
    return folder, results


def model_file(args: argparse.Namespace) -> tuple[Path, str]:
    """The model's file and the flag that named it; an official one is downloaded where it is missing.

    Raises:
        UserError: Both flags, an unknown name, or a file that is not there and cannot be downloaded.
    """
    from sdakd_arch.zoo import URLS, ensure_file

    if args.model_path is not None:
        if args.model_name is not None:
            raise UserError('-m and -n: give one of them, a file or a name.')
        return Path(args.model_path), '-m'
    name = (args.model_name or DEFAULT).removesuffix('.pth')
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
        return GFPGANer(path, upscale=outscale, bg_upsampler=upscaler, device=upscaler.device)
    except Exception as error:  # a file that is cut off, or of another network
        raise UserError(
            '--face_enhance',
            f'a file in {FACE_FOLDER} cannot be used ({first_line(error)}); remove it to have it downloaded again.',
        ) from None


def with_faces(pixels: np.ndarray, upscaler, faces, outscale: float, alpha_upsampler: str) -> np.ndarray:
    """Enlarges an image and restores its faces; eight bits, which is all that GFPGAN knows."""
    if pixels.dtype == np.uint16:
        pixels = eight_bits(pixels)
    colour = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., :3])
    output = faces.enhance(colour, has_aligned=False, only_center_face=False, paste_back=True)[2]
    if pixels.ndim == 2:
        return cv2.cvtColor(output, cv2.COLOR_BGR2GRAY)
    if pixels.shape[2] == 3:
        return output
    alpha = upscaler.enlarge_alpha(pixels[..., 3], alpha_upsampler)
    return np.dstack([output, upscaler.resized(alpha, pixels.shape[:2], outscale)])


def _upscaler(args: argparse.Namespace, opened: Opened, device: str) -> Upscaler | FaceUpscaler:
    """What enlarges images.

    Raises:
        UserError: A flag that the network has no use for, or the package realesrgan is missing.
    """
    if opened.scale is None:
        from sdakd.commands.upscale.faces import FaceUpscaler, check_flags

        check_flags(args, opened)
        return FaceUpscaler(opened, args.factor, device)
    if args.factor is not None:
        raise UserError('--factor', f'{opened.path} always enlarges {opened.scale} times; leave the flag out.')
    try:
        from sdakd.commands.upscale.upscaler import Upscaler
    except ModuleNotFoundError as error:
        if error.name != 'realesrgan':
            raise
        raise UserError('the package realesrgan is not installed: pip install realesrgan.') from None
    half = device != 'cpu' and not args.fp32
    return Upscaler(opened, args.tile, args.tile_pad, args.pre_pad, half, device)


def run(args: argparse.Namespace) -> int:
    """Upscales; returns 0.

    Raises:
        UserError: A mistake on the command line, or images that could not be upscaled; the others are done then.
    """
    Image.MAX_IMAGE_PIXELS = None  # one's own panorama is no attack
    folder, results = inputs(args)
    single = Path(args.input).is_file()
    try:
        if single:  # before the model is loaded
            read(args.input)
    except UnusableError as error:
        raise UserError('-i', f'{args.input} {error.reason}.') from None
    compat.import_basicsr()
    from sdakd.files.generators import open_network

    path, flag = model_file(args)
    device = _device(args.gpu_id, path.suffix == '.onnx')
    opened = open_network(path, flag, faces=True)
    upscaler = _upscaler(args, opened, device)
    outscale = args.outscale or opened.scale
    faces = _face_enhancer(upscaler, outscale) if args.face_enhance else None
    output = output_folder(args.output)

    def upscale(name: str, target: Path) -> float:
        """Returns the result's size in megapixels."""
        picture = read(folder / name)
        if faces:
            pixels = with_faces(picture.pixels, upscaler, faces, outscale, args.alpha_upsampler)
        else:
            pixels = upscaler.enhance(picture.pixels, outscale, args.alpha_upsampler)[0]
        write(target, encode(Picture(pixels, picture.profile), target.suffix))
        return pixels.shape[0] * pixels.shape[1] / 1e6

    megapixels, failed, begun = 0.0, [], time.perf_counter()
    for target, name in tqdm(results.items(), desc='upscale', unit='image'):
        try:
            megapixels += upscale(name, output / target)
        except Exception as error:  # the model, a codec or the disk may fail one image: the others go on
            known = isinstance(error, UnusableError)
            reason = error.reason if known else f'cannot be upscaled ({first_line(error)})'
            failed.append(f'{name} {reason}')
            if single:
                raise UserError('-i', f'{args.input} {reason}.') from None
            tqdm.write(f'{folder / name} {reason}', file=sys.stderr)
    seconds = time.perf_counter() - begun
    done = len(results) - len(failed)
    size = f'x{outscale:g}' if outscale else f'to {upscaler.out_size}x{upscaler.out_size} pixels'
    what = next(iter(results)) if single else f'{done} of {len(results)} images'
    sys.stdout.write(
        f'upscale: {what} in {output}, {size} with {opened.name}: {seconds:.1f} s, '
        f'{megapixels / seconds:.2f} megapixels of output per second\n'
    )
    if failed:
        first = '; '.join(failed[:3]) + ('; ...' if len(failed) > 3 else '')
        raise UserError(
            f'{len(failed)} of {len(results)} images in {folder} could not be upscaled ({first}); the others are in '
            f'{output}.'
        )
    return 0
