"""Narrow RRDBNets in spandrel, which chaiNNer and ComfyUI open models with: one line, ``import sdakd_arch.spandrel``.

spandrel reads the number of features and blocks of an ESRGAN from its weights and takes 32 growth channels for granted.
Importing this module adds an architecture to its main registry, ``NarrowESRGAN``, whose growth channels are read, too.
From then on ``spandrel.ModelLoader().load_from_file`` opens a student as it is, everywhere in the process.

The file needs nothing but spandrel and torch, so that it also works by itself, without this project: copied under
any name into ComfyUI's folder ``custom_nodes``, for example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchSupport,
    ImageModelDescriptor,
    SizeRequirements,
)
from torch import nn
from torch.nn import functional as F

NODE_CLASS_MAPPINGS: dict = {}  # ComfyUI looks for it in what it imports; there are no nodes here
WIDE = 32  # growth channels of what spandrel opens itself
NEEDED = ('conv_first.weight', 'body.0.rdb1.conv1.weight', 'conv_body.weight', 'conv_up1.weight', 'conv_hr.weight',
          'conv_last.weight')  # fmt: skip


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the block's input and what the ones before it gave; (N, features, H, W)."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for number in range(5):
            outputs = features if number == 4 else growth
            setattr(self, f'conv{number + 1}', nn.Conv2d(features + number * growth, outputs, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The input and a fifth of what the convolutions make of it."""
        maps = [image]
        for number in range(1, 5):
            maps.append(F.leaky_relu(getattr(self, f'conv{number}')(torch.cat(maps, 1)), 0.2, inplace=True))
        return image + 0.2 * self.conv5(torch.cat(maps, 1))


class Block(nn.Module):
    """Three dense blocks and a residual around them."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The input and a fifth of what the dense blocks make of it."""
        return image + 0.2 * self.rdb3(self.rdb2(self.rdb1(image)))


class NarrowESRGAN(nn.Module):
    """RRDBNet with any number of growth channels, under BasicSR's names.

    Args:
        taken, given: Channels of the input and of the output.
        features, blocks, growth: Of the trunk.
        ups: Enlargements by two behind the trunk.
        unshuffle: Side of the blocks of input pixels that become channels.
    """

    def __init__(
        self, *, taken: int, given: int, features: int, blocks: int, growth: int, ups: int, unshuffle: int
    ) -> None:
        super().__init__()
        self.unshuffle, self.ups = unshuffle, ups
        self.conv_first = nn.Conv2d(taken * unshuffle**2, features, 3, 1, 1)
        self.body = nn.Sequential(*(Block(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, 1, 1)
        for number in range(1, ups + 1):
            setattr(self, f'conv_up{number}', nn.Conv2d(features, features, 3, 1, 1))
        self.conv_hr = nn.Conv2d(features, features, 3, 1, 1)
        self.conv_last = nn.Conv2d(features, given, 3, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, C, H, W)`` in [0, 1] to the enlarged image; sides must be multiples of ``unshuffle``."""
        maps = self.conv_first(F.pixel_unshuffle(image, self.unshuffle) if self.unshuffle > 1 else image)
        maps = maps + self.conv_body(self.body(maps))
        for number in range(1, self.ups + 1):
            maps = F.interpolate(maps, scale_factor=2, mode='nearest')
            maps = F.leaky_relu(getattr(self, f'conv_up{number}')(maps), 0.2, inplace=True)
        return self.conv_last(F.leaky_relu(self.conv_hr(maps), 0.2, inplace=True))


def is_narrow(state: Mapping[str, object]) -> bool:
    """Whether weights are an RRDBNet's of other than 32 growth channels, under BasicSR's names, and of nothing more."""
    if not all(key in state for key in NEEDED) or any(key.startswith(('am_list.', 'de_net.')) for key in state):
        return False
    return state['body.0.rdb1.conv1.weight'].shape[0] != WIDE and not any('.conv1x1.' in key for key in state)


class NarrowESRGANArch(Architecture[NarrowESRGAN]):
    """What spandrel's registry knows of it."""

    def __init__(self) -> None:
        super().__init__(id='NarrowESRGAN', name='ESRGAN (narrow)', detect=is_narrow)

    def load(self, state_dict: Mapping[str, torch.Tensor]) -> ImageModelDescriptor[NarrowESRGAN]:
        """Makes the network that the weights tell."""
        first, last = state_dict['conv_first.weight'], state_dict['conv_last.weight']
        growth, features, given = state_dict['body.0.rdb1.conv1.weight'].shape[0], first.shape[0], last.shape[0]
        blocks = 1 + max(int(found[1]) for key in state_dict if (found := re.match(r'body\.(\d+)\.', key)))
        ups = sum(re.fullmatch(r'conv_up\d+\.weight', key) is not None for key in state_dict)
        unshuffle = next((side for side in (2, 4) if first.shape[1] == given * side**2), 1)
        network = NarrowESRGAN(
            taken=first.shape[1] // unshuffle**2,
            given=given,
            features=features,
            blocks=blocks,
            growth=growth,
            ups=ups,
            unshuffle=unshuffle,
        )
        scale = 2**ups // unshuffle
        return ImageModelDescriptor(
            network,
            state_dict,
            architecture=self,
            purpose='Restoration' if scale == 1 else 'SR',
            tags=[f'{features}nf', f'{blocks}nb', f'{growth}gc'],
            supports_half=True,
            supports_bfloat16=True,
            scale=scale,
            input_channels=first.shape[1] // unshuffle**2,
            output_channels=given,
            size_requirements=SizeRequirements(minimum=2, multiple_of=unshuffle),
        )


def register() -> None:
    """Makes narrow RRDBNets known to spandrel; a second call does nothing."""
    MAIN_REGISTRY.add(ArchSupport.from_architecture(NarrowESRGANArch(), before=('ESRGAN',)), ignore_duplicates=True)


register()
