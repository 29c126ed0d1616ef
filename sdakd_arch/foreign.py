"""Networks of architectures that this project does not know and spandrel does, where that is installed.

They give their image, and nothing else is known of them: they cannot be narrowed, exported or tapped.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re

import torch
from torch import nn

from sdakd.compat import UserError, one_line
from sdakd_arch.families import LARGEST
from sdakd_arch.families.base import State
from sdakd_arch.width import budget_for, check_channels


class Foreign(nn.Module):
    """A network that spandrel has opened, called as any other generator.

    Sides that it does not take are mirrored to what it does and cut back by spandrel, which also clips the image.

    Args:
        descriptor: spandrel's ``ImageModelDescriptor`` of a network for RGB.
    """

    def __init__(self, descriptor) -> None:
        super().__init__()
        self.descriptor, self.network = descriptor, descriptor.model
        self.kind, self.scale = descriptor.architecture.name, descriptor.scale

    @property
    def multiple(self) -> int:
        """What sides of tiles should be multiples of, in input pixels."""
        return self.descriptor.size_requirements.multiple_of

    @property
    def supports_half(self) -> bool:
        """Whether it may be converted to float16."""
        return self.descriptor.supports_half

    def describe(self) -> str:
        """One line for people."""
        return ' '.join([self.kind, *self.descriptor.tags, 'by spandrel'])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, 3, h, w)`` to ``(N, 3, h * scale, w * scale)``, both RGB in [0, 1]; it has no gradients."""
        if image.is_meta:  # what an architecture computes in between may need values
            count, _, height, width = image.shape
            return image.new_empty(count, 3, height * self.scale, width * self.scale)
        precise = contextlib.nullcontext()
        if not self.descriptor.supports_bfloat16:
            precise = torch.autocast(image.device.type, enabled=False)
        with precise:
            # some architectures work in place on their input, and what is computed in inference mode meets no gradients
            return self.descriptor(image.clone()).clone()


def open_foreign(state: State, path: str | os.PathLike, where: str) -> Foreign | None:
    """Opens weights by spandrel; they were read here, so that nothing in a file runs.

    Args:
        state: The weights.
        path: Their file.
        where: Flag or key to name in an error.

    Returns:
        The network on the CPU; None where spandrel is not installed or does not know it.

    Raises:
        UserError: It knows one that does not enlarge RGB images of any size by a whole factor.
    """
    try:
        import spandrel
    except (ImportError, RuntimeError):  # the latter where torchvision was built for another torch
        return None
    # it counts layers by the largest number in names, before it builds any
    if any(len(number) > len(str(LARGEST)) or int(number) > LARGEST for number in re.findall(r'\d+', ' '.join(state))):
        return None
    try:
        with budget_for(state):
            opened = spandrel.ModelLoader('cpu').load_from_state_dict(dict(state))
    except Exception:  # it is of none, or looks like one at first and does not fit
        return None
    name = opened.architecture.name
    if not isinstance(opened, spandrel.ImageModelDescriptor):
        raise UserError(where, f'{path} holds {name}, which takes a mask beside the image; give a generator.')
    check_channels(
        {'type': name, 'num_in_ch': opened.input_channels, 'num_out_ch': opened.output_channels}, path, where
    )
    if opened.purpose == 'FaceSR' or opened.size_requirements.square:
        raise UserError(
            where, f'{path} holds {name}, which takes square images of one kind; give a generator for any image.'
        )
    network = Foreign(opened.eval()).requires_grad_(False)
    try:
        output = network(torch.linspace(0, 1, 3 * 17 * 19).reshape(1, 3, 17, 19))
    except Exception as error:  # spandrel guesses what weights do not tell
        raise UserError(
            where, f'{path} holds {network.describe()}, which does not run ({one_line(error)}); give another network.'
        ) from None
    if output.shape != (1, 3, 17 * network.scale, 19 * network.scale) or not torch.isfinite(output).all():
        raise UserError(
            where,
            f'{path} holds {network.describe()}, which does not enlarge an image {network.scale} times; give another '
            'network.',
        )
    return network


def needs_spandrel() -> str:
    """What else to try with a file of no known architecture, as the end of a sentence; empty where it was tried."""
    found = importlib.util.find_spec('spandrel')
    return '' if found else ', or pip install spandrel, which knows more architectures'
