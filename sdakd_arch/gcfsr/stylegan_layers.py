"""Layers of StyleGAN2 (Karras et al., arXiv 1912.04958) in plain PyTorch: any device, any order of gradient.

BasicSR's equalised convolution and linear layer are used as they are; its modulated convolution, activation and
resampling need compiled extensions, or a group of filters for every image of the batch, and are written anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from basicsr.archs.stylegan2_arch import EqualConv2d, EqualLinear
from torch import nn
from torch.nn import functional as F

SLOPE = 0.2  # of every leaky ReLU
GAIN = math.sqrt(2)  # behind it, which keeps the variance; a leaky ReLU commutes with it
EPS = 1e-8


def precise(x: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: torch.Tensor) -> torch.autocast:
    """A context in which autocast on the device of ``x`` leaves precisions alone."""
    return torch.autocast('cuda' if x.is_cuda else 'cpu', enabled=False)


def _filter(x: torch.Tensor, kernel: torch.Tensor, stride: int, padding: int, transposed: bool) -> torch.Tensor:
    """Correlates every channel with one kernel, or applies the transposed map, in the precision of ``x``."""
    operator = F.conv_transpose2d if transposed else F.conv2d
    channels = x.shape[1]
    with without_autocast(x):
        return operator(
            x, kernel.to(x.dtype).expand(channels, 1, -1, -1), stride=stride, padding=padding, groups=channels
        )


class _Filter(torch.autograd.Function):
    """:func:`_filter` with gradients of any order by itself.

    torch's own second derivative of a convolution with as many groups as channels visits channel after channel, for
    the gradient of a kernel that has none: more than half of an R1 penalty on the CPU.
    """

    @staticmethod
    def forward(ctx, x, kernel, stride, padding, transposed):
        ctx.save_for_backward(kernel)
        ctx.geometry = stride, padding, not transposed
        return _filter(x, kernel, stride, padding, transposed)

    @staticmethod
    def backward(ctx, gradient):
        return _Filter.apply(gradient, *ctx.saved_tensors, *ctx.geometry), None, None, None, None


class _Resample(nn.Module):
    """Holds a kernel that no state dict knows."""

    def __init__(self, resample_kernel: Sequence[float], gain: float, flip: bool) -> None:
        super().__init__()
        if len(resample_kernel) < 2 or not sum(resample_kernel) > 0:
            raise ValueError(f'resample_kernel must hold at least two numbers of positive sum, not {resample_kernel}')
        taps = torch.tensor([tap / sum(resample_kernel) for tap in resample_kernel])
        taps = taps.flip(0) if flip else taps
        self.register_buffer('kernel', gain * torch.outer(taps, taps), persistent=False)

    def filter(self, x: torch.Tensor, stride: int, padding: int, transposed: bool) -> torch.Tensor:
        needed = torch.is_grad_enabled() and x.requires_grad
        return (_Filter.apply if needed else _filter)(x, self.kernel, stride, padding, transposed)


class Blur(_Resample):
    """Convolution of every channel with the outer product of a kernel with itself, normalised to sum ``gain``.

    Args:
        resample_kernel: One-dimensional, of n taps.
        pad: Zeros before and behind, in both directions; the output is ``pad[0] + pad[1] + 1 - n`` pixels larger.
        gain: Sum of the two-dimensional kernel.
    """

    def __init__(self, resample_kernel: Sequence[float], pad: tuple[int, int], gain: float = 1.0) -> None:
        super().__init__(resample_kernel, gain, flip=True)  # convolution is correlation with the flipped kernel
        self.pad = pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, C, H, W)`` to the size that padding and kernel leave."""
        first, last = self.pad
        if first == last >= 0:
            return self.filter(x, 1, first, transposed=False)
        return self.filter(F.pad(x, (first, last, first, last)), 1, 0, transposed=False)


class Upsample(_Resample):
    """Doubles height and width: zeros between pixels, then a blur with gain 4, centred as StyleGAN2 does."""

    def __init__(self, resample_kernel: Sequence[float]) -> None:
        super().__init__(resample_kernel, gain=4, flip=False)
        taps = len(resample_kernel)
        self.first = taps - 2 - (taps - 1) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, C, H, W)`` to ``(N, C, 2 H, 2 W)``."""
        rows, columns = (slice(self.first, self.first + 2 * size) for size in x.shape[2:])
        return self.filter(x, 2, 0, transposed=True)[..., rows, columns]


class BiasedLeakyReLU(nn.Module):
    """``sqrt(2) leaky_relu(a x + b shift + bias)`` with slope 0.2 and a bias for every channel, in few passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        x: torch.Tensor,
        a: torch.Tensor | None = None,
        b: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Maps ``(N, C, H, W)`` to the same; ``a`` and ``b`` are ``(N, C)``, ``shift`` is of the size of ``x``."""
        bias = (GAIN * self.bias).to(x.dtype).view(1, -1, 1, 1)
        if a is None:
            x = torch.add(bias, x, alpha=GAIN)
        else:
            a, b = ((GAIN * factor).to(x.dtype)[..., None, None] for factor in (a, b))
            x = torch.addcmul(bias, x, a).addcmul_(shift, b)
        return F.leaky_relu_(x, SLOPE)


class ConvLayer(nn.Sequential):
    """Equalised convolution with biased leaky ReLU, with a blur in front where it halves height and width.

    Bias and gain are the convolution's own here, so that a pass over its output is enough; hooks on the parts see
    nothing, those on the layer do.

    Args:
        in_channels, out_channels, kernel_size: Of the convolution.
        resample_kernel: Halves height and width, blurred by it; None keeps them.
        activate: Whether bias and activation follow.
        gain: On the output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        resample_kernel: Sequence[float] | None = None,
        activate: bool = True,
        gain: float = GAIN,
    ) -> None:
        down = resample_kernel is not None
        layers: list[nn.Module] = []
        if down:
            room = len(resample_kernel) - 2 + kernel_size - 1
            layers.append(Blur(resample_kernel, ((room + 1) // 2, room // 2)))
        stride, padding = (2, 0) if down else (1, kernel_size // 2)
        layers.append(EqualConv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False))
        if activate:
            layers.append(BiasedLeakyReLU(out_channels))
        super().__init__(*layers)
        self.down, self.activate, self.gain = down, activate, gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, in, H, W)`` to ``(N, out, H, W)``, or half as high and wide."""
        convolution = self[int(self.down)]
        weight = convolution.weight * (convolution.scale * self.gain)
        bias = self[-1].bias * self.gain if self.activate else None
        x = self[0](x) if self.down else x
        x = F.conv2d(x, weight, bias, convolution.stride, convolution.padding)
        return F.leaky_relu_(x, SLOPE) if self.activate else x


class ActivatedLinear(EqualLinear):
    """Equalised linear layer with leaky ReLU and gain sqrt(2)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, in)`` to ``(N, out)``."""
        gain = self.scale * GAIN  # applied to the input, which has far fewer elements than the weights
        bias = self.bias * (self.lr_mul * GAIN)
        return F.leaky_relu_(F.linear(x * gain, self.weight, bias), SLOPE)


class ModulatedConv2d(nn.Module):
    """Convolution whose weights each image scales by its style (section 2.2), without a filter bank for each image.

    Per image and output channel ``o``, with ``s = modulation(style)`` and ``W`` equalised, the weights are
    ``d_o s_i W_oik`` with ``d_o = 1 / sqrt(sum_ik (s_i W_oik)^2 + 1e-8)``. A convolution is linear in its weights, so
    scaling its input by ``s`` and its output by ``d`` gives the same from one set of filters for the whole batch.
    Where there is one image, and fewer weights than activations, the weights are scaled. Both factors are computed in
    float32.

    Args:
        in_channels, out_channels, kernel_size: Of the convolution.
        num_style_feat: Length of a style.
        demodulate: Whether ``d`` is applied.
        resample_kernel: Doubles height and width, blurred by it; None keeps them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        num_style_feat: int,
        demodulate: bool = True,
        resample_kernel: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.modulation = EqualLinear(num_style_feat, in_channels, bias_init_val=1)
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, kernel_size, kernel_size))
        self.blur = None
        if resample_kernel is not None:
            room = len(resample_kernel) - 2 - (kernel_size - 1)
            self.blur = Blur(resample_kernel, ((room + 1) // 2 + 1, room // 2 + 1), gain=4)

    def _apply(self, fn, recurse=True):
        # the published shape has five dimensions, which to(memory_format=torch.channels_last) would refuse
        return super()._apply(lambda tensor: fn(tensor[0])[None] if tensor.dim() == 5 else fn(tensor), recurse)

    def factors(self, style: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What inputs ``(N, in)`` and outputs ``(N, out)`` are scaled by; the first holds the equalising scale too."""
        with without_autocast(style):
            before = precise(self.modulation(style.to(self.modulation.weight.dtype))) * self.scale
            if not self.demodulate:
                return before, None
            energy = precise(self.weight[0]).square().sum((2, 3))
            return before, torch.rsqrt(before.square() @ energy.T + EPS)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Maps ``(N, in, H, W)`` and ``(N, num_style_feat)`` to ``(N, out, H, W)``, or twice as high and wide."""
        before, after = self.factors(style)
        weight = self.weight[0]
        if weight.shape[-1] == 1:  # to few channels: a filter bank for each image is smaller than any activation
            scaled = precise(weight[..., 0, 0]) * before[:, None]
            scaled = scaled if after is None else scaled * after[..., None]
            return (scaled.to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])
        if len(x) == 1 and weight.numel() <= x.numel():
            scaled = precise(weight) * before.view(1, -1, 1, 1)
            scaled = scaled if after is None else scaled * after.view(-1, 1, 1, 1)
            return self._convolve(x, scaled.to(x.dtype))
        x = self._convolve(x * before.to(x.dtype)[..., None, None], weight)
        return x if after is None else x * after.to(x.dtype)[..., None, None]

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.blur is None:
            return F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        return self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))


class StyleConv(nn.Module):
    """Modulated 3x3 convolution, noise, optional feature modulation, biased leaky ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, num_style_feat: int, resample_kernel: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.modulated_conv = ModulatedConv2d(
            in_channels, out_channels, 3, num_style_feat, resample_kernel=resample_kernel
        )
        self.weight = nn.Parameter(torch.zeros(1))  # strength of the noise
        self.activate = BiasedLeakyReLU(out_channels)

    def forward(
        self,
        x: torch.Tensor,
        style: torch.Tensor,
        noise: torch.Tensor | None = None,
        modulation: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | tuple[()] = (),
    ) -> torch.Tensor:
        """Maps ``(N, in, H, W)`` to ``(N, out, H, W)``, or twice as high and wide.

        Args:
            x: Features.
            style: ``(N, num_style_feat)``.
            noise: ``(N, 1, H, W)`` of the output's size.
            modulation: ``(a, b, shift)`` of :class:`BiasedLeakyReLU`.
        """
        x = self.modulated_conv(x, style)
        if noise is not None:
            x = x + noise.to(x.dtype) * self.weight.to(x.dtype)  # addcmul takes three times as long, broadcasting
        return self.activate(x, *modulation)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to an image, without demodulation, added to the enlarged image of half the size.

    The sum stays in float32 under autocast: bfloat16 has as many bits as the image.
    """

    def __init__(self, in_channels: int, num_style_feat: int, resample_kernel: Sequence[float] | None = None) -> None:
        super().__init__()
        self.modulated_conv = ModulatedConv2d(in_channels, 3, 1, num_style_feat, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.upsample = None if resample_kernel is None else Upsample(resample_kernel)

    def forward(self, x: torch.Tensor, style: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Maps ``(N, in, H, W)``, a style and an image ``(N, 3, H / 2, W / 2)`` to an image ``(N, 3, H, W)``."""
        image = precise(self.modulated_conv(x, style)) + self.bias
        return image if skip is None else image + self.upsample(skip)
