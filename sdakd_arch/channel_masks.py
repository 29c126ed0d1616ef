"""Channel masks: which channels of a network's layers are on. Training only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from sdakd.compat import UserError, near

MASKED = {nn.Conv2d: 'out_channels', nn.BatchNorm2d: 'num_features'}  # what can be masked: where it keeps its channels


class ChannelMasks(nn.Module):
    """Multiplies the outputs of a network's layers by a mask of 0 and 1 for every channel.

    A channel is on while its number alpha is above ``threshold``; alpha begins as 1 and stays in [0, 1]. The gradient
    of alpha is that of the mask (straight through). GCC (Li et al., NeurIPS 2021) has these masks between normalisation
    and activation of a discriminator's blocks: name normalisations as ``layers`` where there are some.

    The network's own tensors and keys stay as they are: the masks are hooks of this instance, and ``alphas`` are a
    checkpoint of their own. Whoever trains them turns their gradient on.

    Args:
        network: The network.
        layers: Modules by dotted name; default: all convolutions but the last.
        threshold: See there.
        where: File and key to name in an error.

    Attributes:
        gap: What selection remembers of the teacher's discriminator; a buffer, so that it is saved.

    Raises:
        UserError: A layer is not there, comes twice, or is neither a convolution nor a batch normalisation.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str] | None, threshold: float, where: str) -> None:
        super().__init__()
        self.threshold = threshold
        modules = dict(network.named_modules())
        known = {name: module for name, module in modules.items() if isinstance(module, tuple(MASKED))}
        if layers is None:
            layers = [name for name, module in known.items() if isinstance(module, nn.Conv2d)][:-1]
        if not layers:
            raise UserError(where, f'{type(network).__name__} has no convolutions to choose channels of; list layers.')
        self.alphas = nn.ParameterDict()
        for name in layers:
            if name not in known:
                raise UserError(
                    where,
                    f'{type(network).__name__} has no convolution or batch normalisation {name!r}; '
                    f'{near(name, known)}.',
                )
            if name.replace('.', '/') in self.alphas:
                raise UserError(where, f'{name!r} stands there twice; a layer has one mask.')
            channels = next(getattr(known[name], key) for kind, key in MASKED.items() if isinstance(known[name], kind))
            device = next(known[name].parameters()).device  # under spectral norm the weight itself lies elsewhere
            key = name.replace('.', '/')  # a parameter's name may hold no dot
            self.alphas[key] = nn.Parameter(torch.ones(channels, device=device), requires_grad=False)
            known[name].register_forward_hook(partial(self._mask, key))
        self.register_buffer('gap', torch.zeros((), device=next(iter(self.alphas.values())).device))

    def mask(self, key: str) -> torch.Tensor:
        """The mask of a layer, ``(C,)``."""
        alpha = self.alphas[key]
        return (alpha > self.threshold).to(alpha) + (alpha - alpha.detach())

    def _mask(self, key: str, _module: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return output * self.mask(key).to(output.dtype)[:, None, None]

    @torch.no_grad()
    def clip(self) -> None:
        """Brings every alpha back to [0, 1]."""
        for alpha in self.alphas.values():
            alpha.clamp_(0, 1)

    @torch.no_grad()
    def share(self) -> torch.Tensor:
        """How many of all channels are on, from 0 to 1."""
        return torch.cat([self.mask(key) for key in self.alphas]).mean()
