"""Activation checkpointing (Chen et al., arXiv 1604.06174): blocks keep their inputs alone and are computed once more.

Names, parameters and hooks of modules stay as they are; results are the same in every bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module]) -> bool:
    """Has blocks keep their inputs alone, in passes with gradients, and be computed again in the backward pass.

    Blocks that change in a pass are left out: normalisations that follow their batches, spectral norms.

    Returns:
        Whether there is a block.
    """
    found = [block for block in blocks if not any(map(_moves, block.modules()))]
    for block in found:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return bool(found)


def _moves(module: nn.Module) -> bool:
    return (
        (isinstance(module, _NormBase) and module.track_running_stats)
        or isinstance(module, ParametrizationList)
        or any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    )
