"""Faces in images, restored by GFPGAN for `sdakd upscale --face_enhance`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sdakd.compat import UserError
from sdakd.decoding import eight_bits, first_line
from sdakd.files.pictures import Bands, bands_of, beside, resized

# GFPGANer looks for its helpers in this folder, below the one where the command is given
FACE_FOLDER = Path('gfpgan/weights')
FACE_URLS = {
    'GFPGANv1.3.pth': 'https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.3.pth',
    'detection_Resnet50_Final.pth': (
        'https://github.com/xinntao/facexlib/releases/download/v0.1.0/detection_Resnet50_Final.pth'
    ),
    'parsing_parsenet.pth': 'https://github.com/xinntao/facexlib/releases/download/v0.2.2/parsing_parsenet.pth',
}


def face_enhancer(upscaler, outscale: float):
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
