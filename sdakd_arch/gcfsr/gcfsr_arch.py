"""GCFSR (He et al., CVPR 2022): super-resolution of faces by a factor that the network is told, at any width."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from basicsr.archs.stylegan2_arch import EqualConv2d, EqualLinear
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from sdakd_arch.gcfsr.stylegan_layers import (
    EPS,
    ActivatedLinear,
    ConvLayer,
    StyleConv,
    ToRGB,
    precise,
    without_autocast,
)

START = 16  # height and width where the decoder begins
KERNEL = (1, 3, 3, 1)


def channels_of(out_size: int, channel_multiplier: float = 2, narrow: float = 1) -> dict[int, int]:
    """The channels at every height of feature maps, 4 to ``out_size``: StyleGAN2's, times ``narrow``.

    Raises:
        ValueError: A size that is no power of two from 32 up, or a width that leaves no or half a channel.
    """
    if not isinstance(out_size, int) or out_size < 32 or out_size & (out_size - 1):
        raise ValueError(f'out_size must be a power of two of at least 32, not {out_size!r}')
    for name, value in (('narrow', narrow), ('channel_multiplier', channel_multiplier)):
        if not isinstance(value, (int, float, Fraction)) or not 0 < value < math.inf:
            raise ValueError(f'{name} must be a positive number, not {value!r}')
    width, multiplier = (Fraction(value).limit_denominator(1024) for value in (narrow, channel_multiplier))
    channels = {}
    for size in (1 << power for power in range(2, out_size.bit_length())):
        wide = Fraction(512) if size <= 32 else multiplier * 16384 / size
        if (wide * width).denominator != 1 or not width:
            raise ValueError(f'narrow={narrow} leaves a fraction of the {wide} channels at {size}x{size} pixels')
        channels[size] = int(wide * width)
    return channels


def _check_images(network: nn.Module, x: torch.Tensor) -> None:
    size = network.out_size
    if x.dim() != 4 or x.shape[1:] != (3, size, size):
        raise RuntimeError(
            f'{type(network).__name__} takes images (N, 3, {size}, {size}), not {tuple(x.shape)}; resize them first'
        )


@ARCH_REGISTRY.register()
class GCFSR(nn.Module):
    """The generator: an encoder, and StyleGAN2's decoder from 16x16, modulated by encoder and upscaling factor.

    Names and shapes at ``narrow=1`` are those of the published checkpoints.

    Args:
        out_size: Height and width of input and output, a power of two from 32 up.
        num_style_feat: Length of a style; independent of ``narrow``.
        channel_multiplier: Of the channels at 64x64 pixels and above.
        resample_kernel: Blurs where height and width change.
        narrow: Factor on all channels; every value that leaves whole numbers.

    Raises:
        ValueError: A value that makes no network.
    """

    halved = True  # the last feature map of the encoder has half the channels
    takes_factor = True

    def __init__(
        self,
        out_size: int,
        num_style_feat: int = 512,
        channel_multiplier: float = 2,
        resample_kernel: Sequence[float] = KERNEL,
        narrow: float = 1,
    ) -> None:
        super().__init__()
        channels = channels_of(out_size, channel_multiplier, narrow)
        last = channels[4] // 2 if self.halved else channels[4]
        if not last:
            raise ValueError(f'narrow={narrow} leaves half a channel at 4x4 pixels')
        if not isinstance(num_style_feat, int) or num_style_feat < 1:
            raise ValueError(f'num_style_feat must be a whole number of at least 1, not {num_style_feat!r}')
        self.out_size, self.num_style_feat = out_size, num_style_feat
        sizes = [size for size in sorted(channels, reverse=True) if size >= START]  # of the encoder's maps
        self.num_latent = 2 * len(sizes)

        self.conv_body_first = ConvLayer(3, channels[out_size], 3)
        self.conv_body_down = nn.ModuleList(
            ConvLayer(channels[size], channels[size // 2], 3, resample_kernel) for size in sizes[:-1]
        )
        self.final_conv = ConvLayer(channels[START], channels[START], 3)
        self.final_down1 = ConvLayer(channels[16], channels[8], 3, resample_kernel)
        self.final_down2 = ConvLayer(channels[8], last, 3, resample_kernel)
        self.final_linear = ActivatedLinear(16 * last, num_style_feat * self.num_latent)

        self.condition_scale1 = nn.ModuleList(EqualLinear(1, channels[size], bias_init_val=1) for size in sizes)
        self.condition_scale2 = nn.ModuleList(EqualLinear(1, channels[size], bias_init_val=1) for size in sizes)
        self.condition_shift = nn.ModuleList(
            nn.Sequential(EqualConv2d(channels[size], channels[size], 3, padding=1)) for size in sizes
        )

        self.style_conv1 = StyleConv(channels[START], channels[START], num_style_feat)
        self.to_rgb1 = ToRGB(channels[START], num_style_feat)
        self.style_convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for size in sizes[-2::-1]:
            self.style_convs.append(StyleConv(channels[size // 2], channels[size], num_style_feat, resample_kernel))
            self.style_convs.append(StyleConv(channels[size], channels[size], num_style_feat))
            self.to_rgbs.append(ToRGB(channels[size], num_style_feat, resample_kernel))

        # Published files hold noise that was sized as if the decoder began at 4x4 pixels, a quarter of what its maps
        # need. It is a place for those entries, so that such a file loads strictly, and never added to anything.
        self.noises = nn.Module()
        for index in range(1 + len(self.style_convs)):
            size = 4 << (index + 1) // 2
            self.noises.register_buffer(f'noise{index}', torch.zeros(1, 1, size, size))

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Inputs of one image, to find out shapes and costs: it takes no other size."""
        like = self.final_linear.weight
        return like.new_zeros(1, 3, self.out_size, self.out_size), like.new_ones(1, 1)

    def make_noise(self, batch: int, generator: torch.Generator | None = None) -> list[torch.Tensor]:
        """Normal noise for every style convolution, to be given to networks that shall see the same.

        Args:
            batch: Number of images.
            generator: On the network's device; default: torch's own.

        Returns:
            Tensors ``(batch, 1, size, size)`` of sizes 16, 32, 32, 64, 64, ..., ``out_size``, ``out_size``.
        """
        like = self.final_linear.weight
        return self._draw(batch, like.device, like.dtype, generator)

    def _draw(
        self, batch: int, device: torch.device | str, dtype: torch.dtype, generator: torch.Generator | None
    ) -> list[torch.Tensor]:
        sizes = [START << (index + 1) // 2 for index in range(1 + len(self.style_convs))]
        return [torch.randn(batch, 1, size, size, generator=generator, device=device, dtype=dtype) for size in sizes]

    def noise_of(self, *facts: object) -> list[torch.Tensor]:
        """Noise for one image that depends on nothing but ``facts``, such as its name: the same on every device.

        Args:
            facts: What :func:`repr` writes alike in every run, texts and numbers.

        Returns:
            As :meth:`make_noise` for a batch of 1; equal for all networks of this ``out_size``.
        """
        seed = hashlib.sha256(repr(facts).encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, 'big'))
        return [noise.to(self.final_linear.weight) for noise in self._draw(1, 'cpu', torch.float32, generator)]

    def _noises(self, noise: str | Sequence[torch.Tensor] | None, batch: int) -> Sequence[torch.Tensor | None]:
        count = 1 + len(self.style_convs)
        if noise is None or isinstance(noise, str):
            if noise not in (None, 'none', 'random'):
                raise RuntimeError(f"noise must be 'random', 'none' or a list of tensors, not {noise!r}")
            return self.make_noise(batch) if noise == 'random' else [None] * count
        wanted = [(batch, 1, START << (index + 1) // 2, START << (index + 1) // 2) for index in range(count)]
        if (given := [tuple(tensor.shape) for tensor in noise]) != wanted:
            raise RuntimeError(f'noise must be tensors of the shapes {wanted}, not {given}; make_noise makes them')
        return noise

    def _modulation(self, level: int, in_size: torch.Tensor, feature: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What a style convolution multiplies its output and the shift by, ``(N, C)`` each, and the shift."""
        with without_autocast(in_size):
            a, b = (precise(layers[level](in_size)) for layers in (self.condition_scale1, self.condition_scale2))
            norm = torch.rsqrt(a.square() + b.square() + EPS)
        return a * norm, b * norm, self.condition_shift[level](feature)

    def forward(
        self, x: torch.Tensor, in_size: torch.Tensor, noise: str | Sequence[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Super-resolves faces.

        Args:
            x: ``(N, 3, out_size, out_size)``, RGB in [-1, 1]: low-resolution images, already resized by bicubic
                interpolation.
            in_size: ``(N, 1)``: the upscaling factor, divided by ``out_size / 16``.
            noise: ``'random'`` draws it anew; None or ``'none'`` adds none, so that the image depends on nothing but
                the input; a list of :meth:`make_noise` is used as it is.

        Returns:
            ``(N, 3, out_size, out_size)``, RGB, [-1, 1] by training, not clipped.

        Raises:
            RuntimeError: An input of another shape.
        """
        _check_images(self, x)
        if in_size.shape != (len(x), 1):
            raise RuntimeError(
                f'in_size must be of shape ({len(x)}, 1), one number for each image, not {tuple(in_size.shape)}'
            )
        noises = self._noises(noise, len(x))
        in_size = in_size.to(x.device, self.final_linear.weight.dtype)
        if x.device.type == 'cpu':  # oneDNN blurs several times faster in this order
            x = x.contiguous(memory_format=torch.channels_last)

        features = [self.conv_body_first(x)]
        for layer in self.conv_body_down:
            features.append(layer(features[-1]))
        code = self.final_down2(self.final_down1(features[-1]))
        styles = self.final_linear(code.flatten(1)).unflatten(1, (self.num_latent, self.num_style_feat))

        # a feature is dropped where it has been used: the large ones are most of the memory
        level = len(features) - 1
        start = self.final_conv(features[-1])
        out = self.style_conv1(start, styles[:, 0], noises[0], self._modulation(level, in_size, features.pop()))
        image = self.to_rgb1(out, styles[:, 1])
        for stage, to_rgb in enumerate(self.to_rgbs):
            index, level = 2 * stage + 1, level - 1
            up, convolution = self.style_convs[index - 1], self.style_convs[index]
            out = up(out, styles[:, index], noises[index])
            out = convolution(
                out, styles[:, index + 1], noises[index + 1], self._modulation(level, in_size, features.pop())
            )
            image = to_rgb(out, styles[:, index + 2], image)
        return image


@ARCH_REGISTRY.register()
class GCFSRBlind(GCFSR):
    """The generator that is not told the factor: ``in_size`` is 1, and the encoder's last map keeps its channels."""

    halved = False
    takes_factor = False

    def forward(
        self,
        x: torch.Tensor,
        in_size: torch.Tensor | None = None,
        noise: str | Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """As :meth:`GCFSR.forward`; whatever ``in_size`` says is not used."""
        return super().forward(x, x.new_ones(len(x), 1), noise)


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1x1 one, both halving height and width, added and divided by sqrt(2)."""

    def __init__(self, in_channels: int, out_channels: int, resample_kernel: Sequence[float]) -> None:
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3)
        # the division cancels the gain of the activation
        self.conv2 = ConvLayer(in_channels, out_channels, 3, resample_kernel, gain=1)
        self.skip = ConvLayer(in_channels, out_channels, 1, resample_kernel, activate=False, gain=math.sqrt(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, in, H, W)`` to ``(N, out, H / 2, W / 2)``."""
        return self.conv2(self.conv1(x)) + self.skip(x)


@ARCH_REGISTRY.register()
class GCFSRDiscriminator(nn.Module):
    """StyleGAN2's residual discriminator without statistics of the batch.

    Args:
        out_size: Height and width of its input, a power of two from 32 up.
        channel_multiplier, resample_kernel, narrow: As of :class:`GCFSR`.

    Raises:
        ValueError: A value that makes no network.
    """

    def __init__(
        self,
        out_size: int,
        channel_multiplier: float = 2,
        resample_kernel: Sequence[float] = KERNEL,
        narrow: float = 1,
    ) -> None:
        super().__init__()
        channels = channels_of(out_size, channel_multiplier, narrow)
        self.out_size = out_size
        sizes = sorted(channels, reverse=True)[:-1]
        self.conv_body = nn.Sequential(
            ConvLayer(3, channels[out_size], 1),
            *(ResidualBlock(channels[size], channels[size // 2], resample_kernel) for size in sizes),
        )
        self.final_conv = ConvLayer(channels[4], channels[4], 3)
        self.final_linear = nn.Sequential(ActivatedLinear(16 * channels[4], channels[4]), EqualLinear(channels[4], 1))

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Inputs of one image, to find out shapes and costs: it takes no other size."""
        return (self.final_linear[1].weight.new_zeros(1, 3, self.out_size, self.out_size),)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images ``(N, 3, out_size, out_size)``, RGB in [-1, 1], to logits ``(N, 1)``.

        Raises:
            RuntimeError: Images of another size.
        """
        _check_images(self, x)
        if x.device.type == 'cpu':  # oneDNN blurs several times faster in this order
            x = x.contiguous(memory_format=torch.channels_last)
        return self.final_linear(self.final_conv(self.conv_body(x)).flatten(1))
