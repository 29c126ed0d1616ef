"""What stands in for the files of a run while it is timed: images, and random weights where files are missing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch

from sdakd.compat import UnusableError, UserError
from sdakd.files.images import list_images, read_image, write_again, write_png
from sdakd_arch.width import build
from sdakd_models.checks.vgg import VGG

IMAGES = 8  # that are made
PHOTOGRAPHS = 16  # that are used at most
LEAST = 400  # pixels: RealESRGANDataset fills smaller images up
DATA = ('RealESRGANDataset', 'PairedImageDataset', 'RealESRGANPairedDataset', 'FaceDataset')
BACKBONES = {'vgg16': 'vgg16', 'vgg19': 'vgg19', 'squeezenet': 'squeezenet1_1', 'squeezenet-caffe': 'squeezenet1_1'}


# ------------------------------------------------------- weights ------------------------------------------------------


def random_weights(opt: dict, folder: Path) -> list[str]:
    """Writes random weights for files of the options that are missing, and has the options name them.

    Weights and images do not change what a step costs.

    Args:
        opt: Options as they were read; changed in place.
        folder: The root of the run, in whose ``experiments/`` a VGG is looked for.

    Returns:
        What has random weights.

    Raises:
        UserError: Nothing tells the network of a missing file.
    """
    made = []
    for where, entry in _networks(opt):
        weights = entry.get('weights')
        if not isinstance(weights, str) or os.path.exists(os.path.expanduser(weights)):
            continue
        if not isinstance(entry.get('network'), Mapping):
            what = 'name its file with -t' if where == 'teacher' else f'write {where}:network'
            raise UserError(
                f'{where}:weights', f'the file {weights} does not exist, and nothing tells its network; {what}.'
            )
        path = folder / 'random' / f'{where.replace(":", "_")}.pth'
        path.parent.mkdir(exist_ok=True)
        torch.save({'params': build(entry['network'], f'{where}:network').state_dict()}, path)
        entry |= {'weights': str(path), 'param_key': 'params'}
        made.append(where)
    train = opt.get('train') if isinstance(opt.get('train'), Mapping) else {}
    for key, block in train.items():
        if not isinstance(block, Mapping) or not key.endswith('_opt'):
            continue
        if block.get('type') == 'PerceptualLoss' and (kind := block.get('vgg_type', 'vgg19')) in VGG:
            file = Path('experiments/pretrained_models', VGG[kind])
            if not file.is_file() and not Path(torch.hub.get_dir(), 'checkpoints', VGG[kind]).is_file():
                _save_backbone(kind, folder / file)
                made.append(f'train:{key}')
        elif block.get('backbone') in BACKBONES and isinstance(block.get('weights'), str):
            if not os.path.exists(os.path.expanduser(block['weights'])):
                path = folder / 'random' / f'{block["backbone"]}.pth'
                _save_backbone(BACKBONES[block['backbone']], path)
                block['weights'] = str(path)
                made.append(f'train:{key}')
    return made


def _networks(opt: Mapping) -> Iterator[tuple[str, dict]]:
    """Teachers and discriminators, by their keys."""
    if isinstance(opt.get('teacher'), dict):
        yield 'teacher', opt['teacher']
    for block in ('teachers', 'discriminators'):
        if isinstance(opt.get(block), Mapping):
            yield from ((f'{block}:{name}', entry) for name, entry in opt[block].items() if isinstance(entry, dict))


def _save_backbone(kind: str, path: Path) -> None:
    """A classifier of torchvision's with random convolutions; its last layers, which nobody uses, take no room."""
    import torchvision

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.device('meta'):
        shapes = {
            key: value.shape for key, value in getattr(torchvision.models, kind)(weights=None).state_dict().items()
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # small enough for 19 layers; a stride of 0 stores one number
        state = {k: 0.02 * torch.randn(s) if k[0] == 'f' else torch.zeros(()).expand(s) for k, s in shapes.items()}
    torch.save(state, path)


# ------------------------------------------------------- images -------------------------------------------------------


def images(opt: dict, folder: Path, photographs: str | None, crop: int) -> None:
    """Has the training data be made of photographs, or of blurred noise: always the same, whatever the disk holds.

    Args:
        opt: Options as they were read; ``datasets`` is changed in place. A data set of a kind that is not known here
            keeps its own images.
        folder: Receives files.
        photographs: A folder; None: noise.
        crop: Side of a crop of the ground truth in pixels, pool included.

    Raises:
        UserError: A photograph cannot be used, or is smaller than a crop.
    """
    data = opt['datasets']['train']
    kind, scale = data.get('type'), opt.get('scale') or 1
    if kind not in DATA:
        if photographs is not None:
            raise UserError('--data', f'the data set {kind} takes other images than photographs; leave it out.')
        return
    gt, lq = folder / 'gt', folder / 'lq'
    names = []
    for number, (image, path) in enumerate(_sources(photographs, crop, scale)):
        name = f'{number:02d}.png'
        if kind == 'RealESRGANDataset' and path is not None:
            name = f'{number:02d}{Path(path).suffix}'
            write_again(gt / name, path)  # a JPEG is loaded as one
        elif kind == 'FaceDataset':
            write_png(gt / name, _face(image, int(data['out_size'])))
        else:
            high, wide = (side // scale * scale for side in image.shape[:2])
            if min(high, wide) < crop and path is not None:
                raise UserError('--data', f'{path} is smaller than crops of {crop} pixels; take larger photographs.')
            write_png(gt / name, image[:high, :wide])
            if 'Paired' in kind:
                small = cv2.resize(image[:high, :wide], (wide // scale, high // scale), interpolation=cv2.INTER_AREA)
                write_png(lq / name, small)
        names.append(name)
    for key in ('meta_info', 'meta_info_file', 'filename_tmpl'):
        data.pop(key, None)
    data |= {'dataroot_gt': str(gt), 'io_backend': {'type': 'disk'}}
    if 'Paired' in kind:
        data['dataroot_lq'] = str(lq)
    if kind == 'RealESRGANDataset':
        (folder / 'list.txt').write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')
        data['meta_info'] = str(folder / 'list.txt')


def _sources(photographs: str | None, crop: int, scale: int) -> Iterator[tuple[np.ndarray, str | None]]:
    """Images (H, W, 3), uint8, and where each lies; None of one that is made."""
    if photographs is None:
        side = -(-max(LEAST, crop) // scale) * scale
        for number in range(IMAGES):
            noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            yield cv2.GaussianBlur(noise, (0, 0), 2), None
        return
    for name in list_images(photographs, '--data')[:PHOTOGRAPHS]:
        path = os.path.join(photographs, name)
        try:
            yield read_image(path), path
        except UnusableError as error:
            raise UserError('--data', f'{path} {error.reason}; repair it or take it out.') from None


def _face(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image as a square of a face's size."""
    least = min(image.shape[:2])
    top, left = ((length - least) // 2 for length in image.shape[:2])
    square = image[top : top + least, left : left + least]
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if least > side else cv2.INTER_CUBIC)
