"""Inference in PyTorch as fast as a processor allows, from the weights that a network has."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sdakd_arch.families import family_of

LARGEST_ERROR = 1e-5  # of an accelerated network in float32, in units of the output's largest magnitude
LOWEST_PSNR = 40.0  # dB, of one in bfloat16, peak: the output's largest magnitude; for the check on noise


class Plain(nn.Module):
    """A network as it is, in ``dtype`` and channels last, where nothing faster is known: on a GPU, for example."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.network.to(dtype=dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image.to(self.dtype, memory_format=torch.channels_last)).to(image.dtype)


def _agrees(fast: nn.Module, network: nn.Module, dtype: torch.dtype) -> bool:
    """Whether both give the same for a small image of noise; False where the fast one cannot be run."""
    image = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    try:
        found = fast(image)
    except Exception:  # operators that are not there, or have other arguments in another torch
        return False
    with torch.no_grad():
        wanted = network(image)
    difference = (found - wanted) / wanted.abs().max().clamp(min=1e-30)
    if dtype == torch.float32:
        return bool(difference.abs().max() <= LARGEST_ERROR)
    return bool(-10 * difference.square().mean().log10() >= LOWEST_PSNR)


def accelerate(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A module for inference that gives what ``network`` gives, faster; it copies the weights and has no parameters.

    On a processor, a family may rebuild its networks (:mod:`sdakd_arch.inference.onednn`) from operators that torch
    keeps for itself: the result is compared with the network on a small image here, and where it cannot be run or
    differs, everything falls back to the network itself in channels-last memory (:class:`Plain`), as on a GPU and for
    other architectures. In float32 outputs differ by rounding, less than 1e-5 of the largest magnitude.

    Args:
        network: On the device where it is to run; maps ``(N, 3, h, w)`` to ``(N, C, h * scale, w * scale)``.
        dtype: float32; bfloat16 (processors with AVX-512 BF16 or AMX); float16 (GPUs). Inputs and outputs keep theirs.

    Returns:
        The module, which takes any batch, height and width that ``network`` takes.
    """
    if next(network.parameters()).device.type == 'cpu' and dtype in (torch.float32, torch.bfloat16):
        reference = copy.deepcopy(network).eval().float()
        try:
            fast = family_of(network).accelerated(reference, dtype)
        except (AttributeError, RuntimeError, TypeError, ValueError):  # a network of that name, built otherwise
            fast = None
        if fast is not None and _agrees(fast.eval(), reference, dtype):
            return fast
    return Plain(network, dtype)
