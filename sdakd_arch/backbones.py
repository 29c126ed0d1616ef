"""Convolutions of torchvision's classifiers, from a weights file that the user names: for perceptual terms and FD."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.weights import load_into, read_weights
from sdakd_arch.zoo import ensure_file

# what users write -> torchvision; squeezenet-caffe is squeezenet with Caffe's input
BACKBONES = {'squeezenet': 'squeezenet1_1', 'alexnet': 'alexnet', 'vgg16': 'vgg16', 'vgg19': 'vgg19'}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of RGB in [0, 1]
CAFFE = (104, 117, 123)  # mean of BGR in 0..255
# Four depths for perceptual terms. VGG16's are relu1_2, relu2_2, relu3_3 and relu4_3. SqueezeNet 1.1's are the last of
# each resolution, which have the same numbers of channels (64, 128, 256, 512) at half of VGG16's resolution.
DEPTHS = {'vgg16': (3, 8, 15, 22), 'squeezenet': (1, 4, 7, 12)}
PERCEPTUAL = ('vgg16', 'squeezenet', 'squeezenet-caffe')


def split_name(name: str, where: str) -> tuple[str, bool]:
    """Takes ``squeezenet-caffe`` apart: a key of :data:`BACKBONES`, and whether Caffe's input is meant.

    Raises:
        UserError: With near names.
    """
    kind = name.removesuffix('-caffe')
    if kind not in BACKBONES:
        raise UserError(f'{where}: no backbone is called {kind!r}; {near(kind, BACKBONES)}.')
    return kind, kind != name


def convolutions(kind: str) -> nn.Sequential:
    """torchvision's ``features`` of a classifier, frozen and without values; no random number is drawn."""
    import torchvision

    with torch.device('meta'):
        features = getattr(torchvision.models, BACKBONES[kind])(weights=None).features
    return features.to_empty(device='cpu').requires_grad_(False).eval()


def load_convolutions(features: nn.Module, kind: str, file: str | Path, where: str) -> None:
    """Loads the convolutions from a file with torchvision's key names; half precision and ``.safetensors`` too.

    Raises:
        UserError: A missing or damaged file, or one that holds another network.
    """
    state = read_weights(file, where=where)
    state = {key[len('features.') :]: tensor for key, tensor in state.items() if key.startswith('features.')}
    try:
        load_into(features, state, file, where)
    except UserError:
        raise UserError(f"{where}: {file} does not hold torchvision's {BACKBONES[kind]}; name its file.") from None


def ensure_backbone(backbone: object, weights: object, block: str) -> None:
    """Sees, before a run, that a perceptual term will find its backbone; official files are downloaded.

    Args:
        backbone: One of :data:`PERCEPTUAL`.
        weights: Its file, with torchvision's key names.
        block: The term's block of the option file, for example ``train:imitation_opt``.

    Raises:
        UserError: Another backbone, or a file that is missing, damaged or another network's.
    """
    check_backbone(backbone, weights, block)
    without = f'go without the term: write `{block.rpartition(":")[2]}: ~` under train'
    ensure_file(weights, f'{block}:weights', without)
    PerceptualBackbone(backbone, weights, f'{block}:weights')


def check_backbone(backbone: object, weights: object, block: str) -> None:
    """Refuses options that name no known backbone or no file; reads nothing.

    Raises:
        UserError: With near names.
    """
    if backbone not in PERCEPTUAL:
        raise UserError(f'{block}:backbone: no backbone is called {backbone!r}; {near(str(backbone), PERCEPTUAL)}.')
    if not isinstance(weights, str | Path) or not str(weights):
        raise UserError(
            f'{block}:weights: name the file of {backbone} with the key names of torchvision, for example '
            'experiments/pretrained_models/vgg16-397923af.pth.'
        )


class PerceptualBackbone(nn.Module):
    """Four feature maps of an image, at the depths :data:`DEPTHS`.

    VGG16 takes images in [0, 1] as they are, without ImageNet's mean and deviation, as the public code of OMGD, CRD and
    DCD does. A SqueezeNet takes what it was trained on: ``squeezenet`` RGB normalised by ImageNet's mean and deviation,
    ``squeezenet-caffe`` BGR in 0..255 minus (104, 117, 123).

    Args:
        backbone: One of :data:`PERCEPTUAL`.
        weights: Its file, with torchvision's key names.
        where: File and key to name in an error.

    Raises:
        UserError: A missing or damaged file, or one that holds another network.
    """

    def __init__(self, backbone: str, weights: str | Path, where: str = 'weights') -> None:
        super().__init__()
        kind, caffe = split_name(backbone, where)
        self.depths, self.caffe = DEPTHS[kind], caffe
        features = convolutions(kind)
        load_convolutions(features, kind, weights, where)
        self.features = features[: self.depths[-1] + 1]
        shift, divisor = (0, 0, 0), (1, 1, 1)
        if caffe:
            shift, divisor = (value / 255 for value in CAFFE), (1 / 255,) * 3
        elif kind != 'vgg16':
            shift, divisor = IMAGENET
        self.register_buffer('shift', torch.tensor(tuple(shift)).view(3, 1, 1), persistent=False)
        self.register_buffer('divisor', torch.tensor(divisor).view(3, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The maps of ``(N, 3, H, W)`` in [0, 1], shallow to deep; the gradient reaches the image."""
        maps, found = ((image.flip(1) if self.caffe else image) - self.shift) / self.divisor, []
        for depth, layer in enumerate(self.features):
            maps = layer(maps)
            if depth in self.depths:
                found.append(maps)
        return found
