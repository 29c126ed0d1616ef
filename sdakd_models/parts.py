"""Passes over a batch in parts, ``train:micro_batch_size`` images at a time, for the results of the whole batch.

Gradient accumulation that runs every loss on every part is equal to the whole batch only for losses that are means over
images and for networks without memory. Here the networks alone work in parts, and whatever compares their outputs sees
the whole batch: losses, running scales, the batch normalisation of adapters. What a network keeps for its backward pass
is the large part of the memory: it is there for one part at a time, as all parts but the last are computed once
more when the backward pass reaches them (activation checkpointing, Chen et al., arXiv 1604.06174).
"""

from __future__ import annotations

import torch
from basicsr.archs.stylegan2_arch import StyleGAN2Discriminator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint


class InParts(nn.Module):
    """A network whose passes are in parts; what is to be saved, averaged or optimised is the network inside.

    Args:
        network: It takes and gives tensors, or lists and mappings of them, whose first dimension is the batch.
        size: Images of a part.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, *inputs: object) -> object:
        return in_parts(self.network, self.size, *inputs)


def in_parts(network: nn.Module, size: int | None, *inputs: object) -> object:
    """What a network gives for a batch, computed ``size`` images at a time.

    Args:
        network: See :class:`InParts`; one that goes in parts by itself is called as it is.
        size: Images of a part; None for the whole batch at once, as where one image depends on others
            (:func:`mixes`).
        inputs: Of the network.
    """
    tensors, kind = tree_flatten(inputs)
    number = next((len(each) for each in tensors if torch.is_tensor(each)), 0)
    if size is None or number <= size or isinstance(network, InParts | DistributedDataParallel) or mixes(network):
        return network(*inputs)
    count = -(-number // size)
    split = [each.split(size) if torch.is_tensor(each) else [each] * count for each in tensors]
    pieces = [tree_unflatten(list(piece), kind) for piece in zip(*split, strict=True)]
    again = torch.is_grad_enabled()  # what learns may be neither an input nor a parameter: channel masks are hooks
    advance(network)
    state = Still(network)

    def run(*piece: object) -> object:
        with state:
            return network(*piece)

    # the backward pass begins with the last part, which need not be computed again
    found = [
        checkpoint(run, *piece, use_reentrant=False) if again and piece is not pieces[-1] else run(*piece)
        for piece in pieces
    ]
    return tree_map(lambda *parts: torch.cat(parts), *found)


def mixes(network: nn.Module) -> bool:
    """Whether what a network makes of an image depends on the others of its batch; then it is not run in parts."""
    return any(
        isinstance(module, StyleGAN2Discriminator)  # the deviation over groups of images
        or (isinstance(module, _BatchNorm) and (module.training or module.running_mean is None))
        for module in network.modules()
    )


def _spectral(module: nn.Module) -> SpectralNorm | None:
    return next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)), None)


@torch.no_grad()
def advance(network: nn.Module) -> None:
    """The power iteration of every spectral norm in training mode: one for a batch, in however many parts it goes."""
    for module in network.modules():
        if module.training and (hook := _spectral(module)):
            hook.compute_weight(module, do_power_iteration=True)
        elif isinstance(module, ParametrizationList) and any(isinstance(each, _SpectralNorm) for each in module):
            module()


class Still:
    """A network's modes, and the vectors of its spectral norms, as they are now: in force within ``with``, also later.

    Spectral norms rest there, they have had their iteration. A pass that is computed again is the same pass then,
    although another one may have moved the vectors or changed the mode meanwhile.
    """

    def __init__(self, network: nn.Module) -> None:
        self.modes = {module: module.training for module in network.modules()}
        self.vectors = {}
        for module in self.modes:
            if isinstance(module, _SpectralNorm) or _spectral(module):
                self.modes[module] = False
                self.vectors[module] = {name: buffer.clone() for name, buffer in module._buffers.items()}
        self.before: list[tuple[nn.Module, bool, dict]] = []

    def __enter__(self) -> None:
        for module, mode in self.modes.items():
            vectors = self.vectors.get(module)
            if vectors is not None or module.training != mode:
                self.before.append((module, module.training, dict(module._buffers)))
                module.training = mode
                module._buffers.update(vectors or {})

    def __exit__(self, *_error: object) -> None:
        while self.before:
            module, module.training, buffers = self.before.pop()
            module._buffers.update(buffers)
