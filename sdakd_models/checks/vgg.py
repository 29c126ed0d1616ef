"""The file of BasicSR's perceptual loss."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from basicsr.archs import vgg_arch

from sdakd.compat import UserError
from sdakd_arch.zoo import URLS, ensure_file

VGG = {'vgg19': 'vgg19-dcbb9e9d.pth', 'vgg16': 'vgg16-397923af.pth'}


def ensure_vgg(options: Mapping, root_path: str | os.PathLike) -> None:
    """BasicSR's perceptual loss finds its VGG, or the sentence says which file is missing and how to go without.

    Args:
        options: Of the loss.
        root_path: The folder that holds ``experiments/``.
    """
    kind = options.get('vgg_type', 'vgg19')
    without = 'go without the term: write `perceptual_opt: ~` under train'
    cache = Path(torch.hub.get_dir(), 'checkpoints')
    if kind not in VGG:
        if not list(cache.glob(f'{kind}-*.pth')):
            raise UserError(
                f"train:perceptual_opt: the weights of {kind} are not in {cache}; put torchvision's file there, or "
                f'{without}.'
            )
        vgg_arch.VGG_PRETRAIN_PATH = ''  # BasicSR would load the file of another VGG that lies there
        return
    folder = Path('experiments/pretrained_models')
    candidates = [folder / VGG[kind], Path(root_path, folder, VGG[kind]), cache / VGG[kind]]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        found = candidates[1]
        ensure_file(found, 'train:perceptual_opt', without, URLS[VGG[kind]])
    vgg_arch.VGG_PRETRAIN_PATH = str(found.resolve())
