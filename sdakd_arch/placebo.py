"""A placebo of a teacher: a network that holds all of its numbers and none of what it has learnt."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

SIDE = 64  # pixels of the image on which layers are brought to their size, where the network takes any
LARGEST = 1e4  # a layer whose output vanishes in random order is not enlarged beyond all measure


def natural_noise(side: int, generator: torch.Generator) -> torch.Tensor:
    """Noise with the spectrum of photographs, ``(1, 3, side, side)`` in [0, 1]: amplitudes fall as 1 / frequency.

    Field, "Relations between the statistics of natural images and the response properties of cortical cells", JOSA A
    4(12), 1987.
    """
    vertical, horizontal = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
    frequency = (vertical[:, None] ** 2 + horizontal[None] ** 2).sqrt()
    frequency[0, 0] = 1 / side  # of the mean, which has none
    grey = torch.randn(1, 1, side, side, generator=generator)
    colours = 0.3 * torch.randn(1, 3, side, side, generator=generator)
    image = torch.fft.irfft2(torch.fft.rfft2(grey + colours) / frequency, s=(side, side))
    low, high = image.aminmax()
    return (image - low) / (high - low)


@torch.no_grad()
def shuffle(network: nn.Module, seed: int) -> None:
    """Puts the numbers of every tensor of weights into random order, in place; layers stay as large as they were.

    Shuffled weights alone let the signal vanish or explode within a few blocks. Therefore every convolution and linear
    layer is scaled until its output on an image of :func:`natural_noise` has the standard deviation that it had before.
    A student that gains as much from this network as from the one before gains nothing that the teacher knows.

    Args:
        network: The teacher, on the CPU.
        seed: Of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    training = network.training
    network.eval()
    image, *others = (
        network.example_inputs() if hasattr(network, 'example_inputs') else (torch.empty(1, 3, SIDE, SIDE),)
    )
    inputs = natural_noise(image.shape[-1], generator), *others
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    sizes: dict[str, torch.Tensor] = {}

    def remember(name: str, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        sizes.setdefault(name, output.std())

    def scale(name: str, module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor | None:
        if name not in sizes:
            return None  # shared: it has its size already
        ratio = (sizes.pop(name) / output.std()).nan_to_num(1.0).clamp(max=LARGEST)
        for parameter in module.parameters():
            parameter.mul_(ratio)
        return output * ratio

    for hook in (remember, scale):
        hooks = [module.register_forward_hook(partial(hook, name)) for name, module in layers.items()]
        try:
            network(*inputs)
        finally:
            for each in hooks:
                each.remove()
        if hook is remember:
            for parameter in network.parameters():
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    network.train(training)
