"""Official files that users may lack: where they are published, and fetching them."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import torch

from sdakd.compat import UserError

_REAL_ESRGAN = 'https://github.com/xinntao/Real-ESRGAN/releases/download'

# file name -> URL: Real-ESRGAN's releases; torchvision's VGG19 for BasicSR's perceptual loss, VGG16 and
# SqueezeNet for perceptual backbones and AlexNet for LPIPS; torch-fidelity's InceptionV3 for FID
URLS = {
    'RealESRGAN_x4plus.pth': f'{_REAL_ESRGAN}/v0.1.0/RealESRGAN_x4plus.pth',
    'RealESRGAN_x2plus.pth': f'{_REAL_ESRGAN}/v0.2.1/RealESRGAN_x2plus.pth',
    'RealESRNet_x4plus.pth': f'{_REAL_ESRGAN}/v0.1.1/RealESRNet_x4plus.pth',
    'RealESRGAN_x4plus_netD.pth': f'{_REAL_ESRGAN}/v0.2.2.3/RealESRGAN_x4plus_netD.pth',
    'RealESRGAN_x2plus_netD.pth': f'{_REAL_ESRGAN}/v0.2.2.3/RealESRGAN_x2plus_netD.pth',
    'RealESRGAN_x4plus_anime_6B.pth': f'{_REAL_ESRGAN}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth',
    'RealESRGAN_x4plus_anime_6B_netD.pth': f'{_REAL_ESRGAN}/v0.2.2.4/RealESRGAN_x4plus_anime_6B_netD.pth',
    'realesr-animevideov3.pth': f'{_REAL_ESRGAN}/v0.2.5.0/realesr-animevideov3.pth',
    'realesr-general-x4v3.pth': f'{_REAL_ESRGAN}/v0.2.5.0/realesr-general-x4v3.pth',
    'vgg19-dcbb9e9d.pth': 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth',
    'vgg16-397923af.pth': 'https://download.pytorch.org/models/vgg16-397923af.pth',
    'squeezenet1_1-b8a52dc0.pth': 'https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth',
    'alexnet-owt-7be5be79.pth': 'https://download.pytorch.org/models/alexnet-owt-7be5be79.pth',
    'weights-inception-2015-12-05-6726825d.pth': 'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
    'weights-inception-2015-12-05-6726825d.pth',
}


def ensure_file(path: str | os.PathLike, where: str, otherwise: str = '', url: str | None = None) -> None:
    """Sees to it that a file exists: an official one is downloaded from its release when the machine is online.

    Args:
        path: The file.
        where: Key of the option file to name in an error.
        otherwise: How to go on without the file, for the error.
        url: Where to get it; default: known official names.

    Raises:
        UserError: The file is missing and unknown, or its address cannot be reached; nothing was created then.
    """
    path = Path(path)
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f'{where}: {path} is a folder, name the file in it.')
    url = url or URLS.get(path.name)
    ending = f', or {otherwise}.' if otherwise else '.'
    if url is None:
        raise UserError(f'{where}: the file {path} does not exist; correct the path{ending}')
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=15):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, 'reason', error)
        raise UserError(
            f'{where}: {path} does not exist and cannot be downloaded ({reason}); get it from {url} and put it there'
            f'{ending}'
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    # torch downloads to a temporary name; a hash in the name (vgg19-dcbb9e9d.pth) is the file's own
    digest = re.search(r'-([0-9a-f]{8})\.pth$', path.name)
    torch.hub.download_url_to_file(url, str(path), hash_prefix=digest and digest[1])
