"""Convolutions of torchvision's classifiers, from a weights file that the user names: for perceptual terms and FD."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.efficientnet import efficientnet_lite0, own_keys
from sdakd_arch.weights import load_into, read_weights
from sdakd_arch.zoo import ensure_file

# what users write -> torchvision; squeezenet-caffe is squeezenet with Caffe's input
BACKBONES = {'squeezenet': 'squeezenet1_1', 'alexnet': 'alexnet', 'vgg16': 'vgg16', 'vgg19': 'vgg19'}
LITE = 'efficientnet_lite0'  # for measuring only; see sdakd_arch/efficientnet.py
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of RGB in [0, 1]
CAFFE = (104, 117, 123)  # mean of BGR in 0..255
# Four depths for perceptual terms, the last of each resolution. VGG16's are relu1_2, relu2_2, relu3_3 and relu4_3.
# VGG19's relu1_2, relu2_2, relu3_4 and relu4_4 are a choice of this project, and so are SqueezeNet 1.1's, which have
# the same numbers of channels (64, 128, 256, 512) at half of VGG's resolution.
DEPTHS = {'vgg16': (3, 8, 15, 22), 'vgg19': (3, 8, 17, 26), 'squeezenet': (1, 4, 7, 12)}
INPUTS = ('imagenet', 'raw', 'caffe')
UNITS = ('given', 'measured')
# backbone of a perceptual term -> its usual input and units. VGG16's is the public code's of OMGD, CRD and DCD; VGG19's
# input is that of BasicSR's perceptual loss.
PERCEPTUAL = {
    'vgg16': ('raw', 'given'),
    'vgg19': ('imagenet', 'given'),
    'squeezenet': ('imagenet', 'measured'),
    'squeezenet-caffe': ('caffe', 'measured'),
}
SHIFT = 16  # the grid of the deepest map has 8 (VGG) or 16 pixels (SqueezeNet): further shifts repeat it


def split_name(name: str, where: str) -> tuple[str, bool]:
    """Takes ``squeezenet-caffe`` apart: a key of :data:`BACKBONES`, and whether Caffe's input is meant.

    Raises:
        UserError: With near names.
    """
    kind = name.removesuffix('-caffe')
    if name == LITE:
        return LITE, False
    if kind not in BACKBONES:
        raise UserError(f'{where}: no backbone is called {name!r}; {near(name, (*BACKBONES, LITE))}.')
    return kind, kind != name


def convolutions(kind: str, layers: int | None = None) -> nn.Sequential:
    """The convolutions of a classifier (torchvision's ``features``), frozen and without values; nothing is drawn.

    Args:
        kind: A key of :data:`BACKBONES`, or :data:`LITE`.
        layers: How many of them, from the first; None for all.
    """
    import torchvision

    with torch.device('meta'):
        if kind == LITE:
            features = efficientnet_lite0()
        else:
            features = getattr(torchvision.models, BACKBONES[kind])(weights=None).features
        features = features[:layers]
    return features.to_empty(device='cpu').requires_grad_(False).eval()


def load_convolutions(features: nn.Module, kind: str, file: str | Path, where: str) -> None:
    """Loads convolutions from a file with the published key names; half precision and ``.safetensors`` too.

    The file may hold more than ``features`` has: further convolutions and the classifier.

    Raises:
        UserError: A missing or damaged file, or one that holds another network.
    """
    state = read_weights(file, where=where)
    if kind == LITE:
        state = own_keys(state)
    else:
        state = {key: state[f'features.{key}'] for key in features.state_dict() if f'features.{key}' in state}
    try:
        load_into(features, state, file, where)
    except UserError:
        network = "EfficientNet-PyTorch's EfficientNet-lite0" if kind == LITE else f"torchvision's {BACKBONES[kind]}"
        raise UserError(f'{where}: {file} does not hold {network}; name its file.') from None


def ensure_backbone(options: Mapping, block: str) -> None:
    """Sees, before a run, that a perceptual term will find its backbone; official files are downloaded.

    Args:
        options: The term's options, with ``backbone`` and ``weights``.
        block: Where they stand in the option file, for example ``train:imitation_opt``.

    Raises:
        UserError: See :func:`check_backbone`, or a file that is missing, damaged or another network's.
    """
    check_backbone(options, block)
    without = f'go without the term: write `{block.rpartition(":")[2]}: ~` under train'
    ensure_file(options['weights'], f'{block}:weights', without)
    PerceptualBackbone(options['backbone'], options['weights'], where=f'{block}:weights')


def check_backbone(options: Mapping, block: str) -> None:
    """Refuses options that name no known backbone, input or units, no file, or no possible numbers; reads nothing.

    Args:
        options: ``backbone`` and ``weights``; ``input``, ``units``, ``shift`` and ``layer_weights`` where they are not
            the usual ones.
        block: Where they stand in the option file, for example ``train:imitation_opt``.

    Raises:
        UserError: With near names.
    """
    backbone, weights = options.get('backbone'), options.get('weights')
    if not isinstance(backbone, str) or backbone not in PERCEPTUAL:
        raise UserError(f'{block}:backbone: no backbone is called {backbone!r}; {near(str(backbone), PERCEPTUAL)}.')
    if not isinstance(weights, str | Path) or not str(weights):
        raise UserError(
            f'{block}:weights: name the file of {backbone} with the key names of torchvision, for example '
            'experiments/pretrained_models/vgg16-397923af.pth.'
        )
    for key, known in (('input', INPUTS), ('units', UNITS)):
        value = options.get(key)
        if value is not None and value not in known:
            raise UserError(f'{block}:{key}: there is no {value!r}; write {", ".join(known[:-1])} or {known[-1]}.')
    if backbone.endswith('-caffe') and options.get('input') not in (None, 'caffe'):
        raise UserError(
            f'{block}:input: {backbone} takes caffe; write `backbone: {backbone.removesuffix("-caffe")}` for a file '
            f'that takes {options["input"]}.'
        )
    factors = options.get('layer_weights', [1.0] * 4)
    if not isinstance(factors, list | tuple) or len(factors) != 4 or any(type(f) not in (int, float) for f in factors):
        raise UserError(f'{block}:layer_weights: write a list of four numbers, shallow to deep, not {factors!r}.')
    shift = options.get('shift', 0)
    if type(shift) is not int or not 0 <= shift <= SHIFT:
        raise UserError(
            f'{block}:shift: write a whole number of pixels from 0 (off) to {SHIFT}, after which the grid of the '
            f'deepest map repeats, not {shift!r}.'
        )


def takes(backbone: str, side: int) -> bool:
    """Whether images of ``side`` x ``side`` pixels are large enough for the deepest map of a perceptual term."""
    kind, _ = split_name(backbone, 'backbone')
    try:
        convolutions(kind, DEPTHS[kind][-1] + 1).to('meta')(torch.empty(1, 3, side, side, device='meta'))
    except RuntimeError:
        return False
    return True


class PerceptualBackbone(nn.Module):
    """Four feature maps of an image, at the depths :data:`DEPTHS`.

    ``input`` says how it takes an image: ``imagenet``, RGB normalised by ImageNet's mean and deviation, which
    torchvision's files were trained on; ``caffe``, BGR in 0..255 minus (104, 117, 123); ``raw``, RGB in [0, 1] as it
    is. Usual are ``raw`` for VGG16, as in the public code of OMGD, CRD and DCD, ``caffe`` for ``squeezenet-caffe``, and
    ``imagenet`` for the others.

    Args:
        backbone: A key of :data:`PERCEPTUAL`.
        weights: Its file, with torchvision's key names; convolutions behind the deepest map need not be in it.
        input: One of :data:`INPUTS`, or None for the backbone's usual one.
        where: File and key to name in an error.

    Raises:
        UserError: A missing or damaged file, or one that holds another network.
    """

    def __init__(self, backbone: str, weights: str | Path, input: str | None = None, where: str = 'weights') -> None:
        super().__init__()
        kind, _ = split_name(backbone, where)
        input = input or PERCEPTUAL[backbone][0]
        self.depths, self.bgr = DEPTHS[kind], input == 'caffe'
        self.features = convolutions(kind, self.depths[-1] + 1)
        load_convolutions(self.features, kind, weights, where)
        mean, deviation = {
            'imagenet': IMAGENET,
            'raw': ((0, 0, 0), (1, 1, 1)),
            'caffe': (tuple(value / 255 for value in CAFFE), (1 / 255,) * 3),
        }[input]
        self.register_buffer('mean', torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer('deviation', torch.tensor(deviation).view(3, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The maps of ``(N, 3, H, W)`` in [0, 1], shallow to deep; the gradient reaches the image."""
        maps, found = ((image.flip(1) if self.bgr else image) - self.mean) / self.deviation, []
        for depth, layer in enumerate(self.features):
            maps = layer(maps)
            if depth in self.depths:
                found.append(maps)
        return found
