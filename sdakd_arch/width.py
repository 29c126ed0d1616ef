"""Widths: narrower versions of a network, and what a network costs. The one place that knows how to narrow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sdakd.compat import UserError, near
from sdakd_arch.gcfsr.gcfsr_arch import channels_of

# architecture -> its options that count channels, with BasicSR's defaults
WIDTHS: dict[str, dict[str, int]] = {
    'RRDBNet': {'num_feat': 64, 'num_grow_ch': 32},
    'SRVGGNetCompact': {'num_feat': 64},
    'UNetDiscriminatorSN': {'num_feat': 64},
    'VGGStyleDiscriminator': {'num_feat': 64},
}
# architectures whose channels all follow one factor, the option narrow; a style's length, num_style_feat, does not
NARROWED = ('GCFSR', 'GCFSRBlind', 'GCFSRDiscriminator')


def student_of(network: Mapping, ratio: float) -> dict:
    """Narrows a generator or a discriminator: the same architecture and depth, ``ratio`` times the channels.

    Args:
        network: Options of the wide network, as BasicSR's ``build_network`` takes them, with ``type``.
        ratio: Between 0 (exclusive) and 1 (allowed): SDAKD uses 1/2, 1/4 and 1/8.

    Returns:
        The options of the narrow network.

    Raises:
        UserError: An architecture that this project cannot narrow, or a ratio that leaves a fraction of a channel.
    """
    kind = network.get('type')
    if kind not in WIDTHS and kind not in NARROWED:
        known = [*WIDTHS, *NARROWED]
        raise UserError(f'no rule says how to narrow the architecture {kind!r}; {near(str(kind), known)}.')
    exact = Fraction(ratio).limit_denominator(1024) if math.isfinite(ratio) else Fraction(0)
    if not 0 < exact <= 1:
        raise UserError(f'the width ratio {ratio} of {kind} must be greater than 0 and at most 1.')
    student = dict(network)
    if kind in NARROWED:
        return student | {'narrow': _narrow(network, exact)}
    for key, default in WIDTHS[kind].items():
        wide = network.get(key, default)
        if isinstance(wide, bool) or not isinstance(wide, int) or (wide * exact).denominator != 1:
            raise UserError(f'{key} of {kind} is {wide!r}, which {exact} does not divide into channels.')
        student[key] = int(wide * exact)
    return student


def fraction(text: object, where: str) -> Fraction:
    """A width as YAML writes it, ``1/4`` or ``0.25``.

    Raises:
        UserError: It is no number greater than 0 and at most 1.
    """
    try:
        value = Fraction(str(text))
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1:
        raise UserError(f"{where}: write a share of the teacher's channels such as 1/4, not {text!r}.")
    return value.limit_denominator(1024)


def discriminator_of(generator: Mapping) -> dict:
    """The discriminator that a generator of this architecture is published with, at its full width.

    Real-ESRGAN trains RRDBNet and SRVGGNetCompact against a U-Net of 64 features, GCFSR has a discriminator of its own.

    Args:
        generator: Options of the teacher.

    Raises:
        UserError: An architecture without one.
    """
    kind = generator.get('type')
    if kind in ('RRDBNet', 'SRVGGNetCompact'):
        colours = generator.get('num_out_ch', 3)
        return {'type': 'UNetDiscriminatorSN', 'num_in_ch': colours, 'num_feat': 64, 'skip_connection': True}
    if kind in ('GCFSR', 'GCFSRBlind'):
        same = {'channel_multiplier': 2, 'narrow': 1} | dict(generator)
        keys = [key for key in ('out_size', 'channel_multiplier', 'narrow') if key in same]
        return {'type': 'GCFSRDiscriminator'} | {key: same[key] for key in keys}
    raise UserError(f'no discriminator is known for the architecture {kind!r}; write its type and keys at full width.')


def _narrow(network: Mapping, ratio: Fraction) -> float:
    """The factor on all channels of a narrower network, an integer where it is one."""
    wide = network.get('narrow', 1)
    try:
        narrow = Fraction(wide).limit_denominator(1024) * ratio
        channels_of(network.get('out_size'), network.get('channel_multiplier', 2), narrow)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'narrow of {network["type"]} is {wide}, which {ratio} does not divide into channels: {error}.'
        ) from None
    return int(narrow) if narrow.denominator == 1 else float(narrow)


def lookup(registry, name: str, where: str):
    """The class registered under ``name``, BasicSR's suffix rule included; unlike BasicSR it says what is near.

    Raises:
        UserError: Nothing of that name is registered.
    """
    known = dict(iter(registry))
    for key in (name, f'{name}_basicsr'):
        if key in known:
            return known[key]
    names = {key.removesuffix('_basicsr') for key in known}
    raise UserError(f'{where}: nothing called {name!r} is registered; {near(str(name), names)}.')


def build(network: Mapping, where: str) -> nn.Module:
    """Builds a network from BasicSR options, without logging.

    Raises:
        UserError: Unknown type or argument, or values the architecture refuses.
    """
    options = dict(network)
    if 'type' not in options:
        raise UserError(f'{where}: the key type is missing; name an architecture, for example RRDBNet.')
    cls = lookup(ARCH_REGISTRY, options.pop('type'), f'{where}:type')
    try:
        return cls(**options)
    except (TypeError, ValueError, AssertionError, RuntimeError, UnboundLocalError) as error:
        raise UserError(f'{where}: {cls.__name__} cannot be built from these options: {error}.') from None


SLOPE = 0.8  # of PReLU at the start; BasicSR's 0.25 loses the signal behind 16 to 32 layers


def initialise(network: nn.Module) -> None:
    """Gives a generator that starts from nothing weights from which it learns at once.

    For SRVGGNetCompact and RRDBNet, see below; other architectures initialise themselves.
    """
    start = {'SRVGGNetCompact': _start_srvgg, 'RRDBNet': _start_rrdbnet}.get(type(network).__name__)
    if start:
        with torch.no_grad():
            start(network)


def _start_srvgg(network: nn.Module) -> None:
    """Keeps the signal through all layers of SRVGGNetCompact.

    BasicSR leaves the network to torch's default, which shrinks the signal about 2.4 times a layer: behind 17
    layers hardly any is left, and a narrow student stands still for more than 1,000 steps. Here the layers between the
    first and the last start delta-orthogonal (Xiao et al., arXiv 1806.05393, section 3): an orthogonal matrix over the
    channels in the kernel's centre, zero around it, times the gain that keeps the mean square behind the activation.
    Pixels stay distinguishable through any depth the more linear the activation is, so PReLU starts at
    :data:`SLOPE`. The last layer, a residual's, starts small. Slope and the last layer's size are choices of this
    project.
    """
    slope = 0.0
    for module in network.body:
        if isinstance(module, nn.PReLU):
            slope = SLOPE
            nn.init.constant_(module.weight, slope)
        elif isinstance(module, nn.LeakyReLU):
            slope = module.negative_slope
    first, *middle, last = (module for module in network.body if isinstance(module, nn.Conv2d))
    for convolution in (first, *middle, last):
        nn.init.kaiming_normal_(convolution.weight, a=slope)
        nn.init.zeros_(convolution.bias)
    for convolution in middle:
        nn.init.zeros_(convolution.weight)
        nn.init.orthogonal_(convolution.weight[:, :, 1, 1], gain=math.sqrt(2 / (1 + slope**2)))
    last.weight.mul_(0.1)


def _start_rrdbnet(network: nn.Module) -> None:
    """Lets RRDBNet begin as the image that it enlarges, a choice of this project.

    RRDBNet adds nothing to an enlarged input, unlike SRVGGNetCompact, so with BasicSR's weights a narrow student has to
    learn first what an image is: it stays behind bicubic interpolation for more than 1,000 steps. Here its first
    channels, one a colour, carry the pixels: each layer outside the trunk passes them on, the trunk adds zero to them
    and the last layer reads nothing else. The output at the start is exactly the image with every pixel repeated 4 x 4
    times, because leaky ReLU leaves values in [0, 1] as they are. The other weights of these layers are random, of a
    size that keeps the signal behind leaky ReLU (He et al., arXiv 1502.01852, section 2.2), ten times smaller in
    the trunk's last layer; the trunk keeps BasicSR's. Every parameter has a gradient from the second step on.

    A network of scale 2 or 1 gets its image as blocks of 2 x 2 or 4 x 4 pixels, one channel a pixel of the block, and
    begins as the blocks' means, enlarged: an image of equal blocks, such as a checkerboard, has constant channels, from
    which enlargement and convolutions make a constant image only, so no weights give its pixels back.
    """
    colours = network.conv_last.out_channels
    block = network.conv_first.in_channels // colours  # pixels of a block
    if network.conv_body.out_channels < colours:
        return
    passing = (network.conv_first, network.conv_up1, network.conv_up2, network.conv_hr, network.conv_last)
    for convolution in (*passing, network.conv_body):
        nn.init.kaiming_normal_(convolution.weight, a=network.lrelu.negative_slope)
        nn.init.zeros_(convolution.bias)
        convolution.weight[:colours] = 0
    network.conv_body.weight.mul_(0.1)
    for colour in range(colours):
        network.conv_first.weight[colour, colour * block : (colour + 1) * block, 1, 1] = 1 / block
        for convolution in passing[1:]:
            convolution.weight[colour, colour, 1, 1] = 1


def example_inputs(network: nn.Module, size: int = 64) -> tuple[torch.Tensor, ...]:
    """What to run a network on to find out its shapes: an image of ``size`` x ``size`` on the network's device.

    A network that takes more, or one size only, says so by a method ``example_inputs()``, which goes before ``size``.
    """
    own = getattr(network, 'example_inputs', None)
    return own() if own else (next(network.parameters()).new_zeros(1, 3, size, size),)


def scale_of(network: nn.Module, where: str) -> int:
    """The factor between a generator's input and output size, found by running it on meta tensors."""
    with torch.device('meta'):
        inputs = example_inputs(network.to('meta'))
        output = network(*inputs)
    size = inputs[0].shape[-1]
    if output.shape[-1] % size or output.shape[1] != 3:
        raise UserError(f'{where}: {type(network).__name__} maps 3x{size}x{size} to {tuple(output.shape[1:])}.')
    return output.shape[-1] // size


def cost(network: Mapping, size: int = 64) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a generator or discriminator for one RGB image of ``size`` x ``size``.

    A network for images of one size, such as GCFSR, is counted at that one (:func:`example_inputs`).
    A multiply-accumulate is half of what torch's own flop counter counts: convolutions and matrix products, no
    element-wise operations. Nothing is computed: the network runs on meta tensors.
    """
    with torch.device('meta'):
        net = build(network, 'network')
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(*example_inputs(net, size))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2
