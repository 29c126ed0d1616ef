"""GCFSR: the published layout, its formulas written out slowly, widths, noise, gradients, and what is refused."""

import re
import subprocess
import sys

import pytest
import torch
from basicsr.archs.stylegan2_arch import ModulatedConv2d as TextbookConv2d
from basicsr.archs.stylegan2_arch import StyleGAN2Discriminator, UpFirDnSmooth, UpFirDnUpsample
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_arch.gcfsr.gcfsr_arch import GCFSR, GCFSRBlind, GCFSRDiscriminator
from sdakd_arch.gcfsr.stylegan_layers import Blur, ModulatedConv2d, Upsample
from sdakd_arch.taps import FeatureTaps, default_taps
from sdakd_arch.weights import infer_network, load_into, read_weights, save_whole
from sdakd_arch.width import build, cost, example_inputs, initialise, scale_of, student_of

SMALL = {'out_size': 32, 'num_style_feat': 8, 'narrow': 1 / 64}


def vivid(network):
    """Biases and strengths of noise away from their start, so that every parameter matters in the output."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith('bias') or parameter.shape == (1,):
                parameter.add_(0.5 * torch.randn_like(parameter))
    return network


def inputs(size, batch=2, dtype=torch.float32):
    return torch.rand(batch, 3, size, size, dtype=dtype) * 2 - 1, torch.rand(batch, 1, dtype=dtype)


# ------------------------------------------------------------------------------------------------- the published layout


def layered(prefix, out, inp, side, number=0):
    """Convolution without bias and, behind it, the activation's bias; a blur without parameters may come first."""
    return {f'{prefix}.{number}.weight': (out, inp, side, side), f'{prefix}.{number + 1}.bias': (out,)}


def modulated(prefix, out, inp, side):
    prefix += '.modulated_conv'
    return {
        f'{prefix}.weight': (1, out, inp, side, side),
        f'{prefix}.modulation.weight': (inp, 512),
        f'{prefix}.modulation.bias': (inp,),
    }


def styled(prefix, out, inp):
    return {f'{prefix}.weight': (1,), f'{prefix}.activate.bias': (out,), **modulated(prefix, out, inp, 3)}


def to_rgb(prefix, inp):
    return {f'{prefix}.bias': (1, 3, 1, 1), **modulated(prefix, 3, inp, 1)}


def published(widths, noises, blind=False):
    """Names and shapes of the published generators; ``widths`` are the encoder's channels from the image to 16x16."""
    last = 512 if blind else 256
    latents = 2 * len(widths)
    layout = layered('conv_body_first', widths[0], 3, 3)
    for k, (inp, out) in enumerate(zip(widths, widths[1:], strict=False)):
        layout |= layered(f'conv_body_down.{k}', out, inp, 3, 1)
    layout |= layered('final_conv', 512, 512, 3)
    layout |= layered('final_down1', 512, 512, 3, 1) | layered('final_down2', last, 512, 3, 1)
    layout |= {'final_linear.weight': (512 * latents, 16 * last), 'final_linear.bias': (512 * latents,)}
    for k, width in enumerate(widths):
        for name in ('condition_scale1', 'condition_scale2'):
            layout |= {f'{name}.{k}.weight': (width, 1), f'{name}.{k}.bias': (width,)}
        layout |= {f'condition_shift.{k}.0.weight': (width, width, 3, 3), f'condition_shift.{k}.0.bias': (width,)}
    layout |= styled('style_conv1', 512, 512) | to_rgb('to_rgb1', 512)
    upwards = widths[::-1]
    for j, (inp, out) in enumerate(zip(upwards, upwards[1:], strict=False)):
        layout |= styled(f'style_convs.{2 * j}', out, inp) | styled(f'style_convs.{2 * j + 1}', out, out)
        layout |= to_rgb(f'to_rgbs.{j}', out)
    return layout | {f'noises.noise{i}': (1, 1, size, size) for i, size in enumerate(noises)}


@pytest.mark.parametrize(
    ('size', 'widths', 'noises', 'entries', 'total'),
    [
        (1024, [32, 64, 128, 256, 512, 512, 512], [4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128, 256, 256], 170,
         66_668_706),
        (512, [64, 128, 256, 512, 512, 512], [4, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128], 146, 62_352_925),
    ],
)  # fmt: skip
@pytest.mark.parametrize('cls', [GCFSR, GCFSRBlind])
def test_names_and_shapes_are_the_published_ones(cls, size, widths, noises, entries, total):
    with torch.device('meta'):
        network = cls(size)
    found = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert len(found) == entries
    assert found == published(widths, noises, cls is GCFSRBlind)
    # the blind one's last map has 256 channels more: in its own weights, and in the linear layer behind it
    more = 256 * (512 * 9 + 1) + 16 * 256 * 512 * 2 * len(widths) if cls is GCFSRBlind else 0
    assert sum(parameter.numel() for parameter in network.parameters()) == total + more


@pytest.mark.parametrize(
    ('ratio', 'large', 'medium', 'judge'),
    [
        (1, 66.67, 62.35, 29_007_905),
        (1 / 2, 24.79, 22.65, 7_253_777),
        (1 / 4, 10.26, 9.19, 1_814_345),
        (1 / 8, 4.60, 4.07, 454_037),
    ],
)
def test_published_sizes_of_every_width(ratio, large, medium, judge):
    for size, wanted in ((1024, large), (512, medium)):
        student = student_of({'type': 'GCFSR', 'out_size': size, 'num_style_feat': 512}, ratio)
        assert student == {'type': 'GCFSR', 'out_size': size, 'num_style_feat': 512, 'narrow': ratio}
        assert round(cost(student)[0] / 1e6, 2) == wanted
    assert cost(student_of({'type': 'GCFSRDiscriminator', 'out_size': 1024}, ratio))[0] == judge


def test_the_discriminators_names_are_the_published_ones():
    with torch.device('meta'):
        found = {key: tuple(tensor.shape) for key, tensor in GCFSRDiscriminator(1024).state_dict().items()}
    widths = [32, 64, 128, 256, 512, 512, 512, 512, 512]  # 1024 to 4
    wanted = layered('conv_body.0', 32, 3, 1) | layered('final_conv', 512, 512, 3)
    for k, (inp, out) in enumerate(zip(widths, widths[1:], strict=False), 1):
        wanted |= layered(f'conv_body.{k}.conv1', inp, inp, 3) | layered(f'conv_body.{k}.conv2', out, inp, 3, 1)
        wanted |= {f'conv_body.{k}.skip.1.weight': (out, inp, 1, 1)}
    wanted |= {'final_linear.0.weight': (512, 8192), 'final_linear.0.bias': (512,)}
    wanted |= {'final_linear.1.weight': (1, 512), 'final_linear.1.bias': (1,)}
    assert found == wanted


@pytest.mark.parametrize('narrow', [1 / 2, 1 / 4, 1 / 8])
@pytest.mark.parametrize('cls', [GCFSR, GCFSRBlind])
def test_every_width_runs(cls, narrow):
    network = cls(32, num_style_feat=16, narrow=narrow)
    image, in_size = inputs(32)
    with torch.no_grad():
        output = network(image, in_size)
    assert output.shape == image.shape and output.isfinite().all()
    assert network.style_conv1.modulated_conv.weight.shape[1] == 512 * narrow
    assert network.final_linear.weight.shape == (16 * 4, 16 * int(512 * narrow) // (2 if cls is GCFSR else 1))
    assert GCFSRDiscriminator(32, narrow=narrow)(output).shape == (2, 1)


# ------------------------------------------------------------------------------------- the formulas, in float64, slowly


def slow_upfirdn(x, up, down, first, last):
    """Zeros between pixels and around the image, the kernel (1, 3, 3, 1) both ways, every ``down``-th pixel."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, first + height * up + last, first + width * up + last)
    spread[:, :, first : first + height * up : up, first : first + width * up : up] = x
    taps = [tap / 8 * up for tap in (1, 3, 3, 1)]
    high, wide = spread.shape[2] - 3, spread.shape[3] - 3
    out = sum(
        taps[i] * taps[j] * spread[:, :, 3 - i : 3 - i + high, 3 - j : 3 - j + wide] for i in range(4) for j in range(4)
    )
    return out[:, :, ::down, ::down]


def slow_conv(x, weight, stride=1, pad=0):
    side = weight.shape[-1]
    x = F.pad(x, (pad,) * 4)
    high, wide = (x.shape[2] - side) // stride + 1, (x.shape[3] - side) // stride + 1
    return sum(
        torch.einsum(
            'ncyx,oc->noyx', x[:, :, i : i + stride * high : stride, j : j + stride * wide : stride], weight[..., i, j]
        )
        for i in range(side)
        for j in range(side)
    )


def slow_transposed(x, weight):
    """Every pixel (y, x) adds its multiple of the kernel from (2 y, 2 x) on."""
    out = x.new_zeros(len(x), len(weight), 2 * x.shape[2] + 1, 2 * x.shape[3] + 1)
    for i in range(3):
        for j in range(3):
            place = out[:, :, i : i + 2 * x.shape[2] : 2, j : j + 2 * x.shape[3] : 2]
            place += torch.einsum('ncyx,oc->noyx', x, weight[..., i, j])
    return out


class Slow:
    """GCFSR and its discriminator from a state dict, one formula after the other."""

    def __init__(self, state):
        self.state = {key: tensor.double() for key, tensor in state.items()}

    def equal(self, name):
        """Equalised learning rate: weights are divided by the root of the number of inputs."""
        weight = self.state[f'{name}.weight']
        return weight / weight[0].numel() ** 0.5

    def activate(self, x, bias):
        x = x + bias.view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(x > 0, x, 0.2 * x) * 2**0.5

    def layer(self, name, x, down=False):
        if down:
            x = slow_conv(slow_upfirdn(x, 1, 1, 2, 2), self.equal(f'{name}.1'), 2)
            return self.activate(x, self.state[f'{name}.2.bias'])
        weight = self.equal(f'{name}.0')
        return self.activate(slow_conv(x, weight, 1, weight.shape[-1] // 2), self.state[f'{name}.1.bias'])

    def linear(self, name, x):
        return x @ self.equal(name).T + self.state[f'{name}.bias']

    def active_linear(self, name, x):
        return self.activate(x @ self.equal(name).T, self.state[f'{name}.bias'])

    def modulated(self, name, x, style, up=False, demodulate=True):
        name += '.modulated_conv'
        weight = self.state[f'{name}.weight'][0]
        weight = weight / weight[0].numel() ** 0.5
        factors, images = self.linear(f'{name}.modulation', style), []
        for image, factor in zip(x, factors, strict=True):
            own = weight * factor[None, :, None, None]
            if demodulate:
                own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            if up:
                images.append(slow_upfirdn(slow_transposed(image[None], own), 1, 1, 1, 1) * 4)
            else:
                images.append(slow_conv(image[None], own, 1, own.shape[-1] // 2))
        return torch.cat(images)

    def style_conv(self, name, x, style, noise, up=False, condition=None):
        x = self.modulated(name, x, style, up) + self.state[f'{name}.weight'] * noise
        if condition is not None:
            one, two, shift = condition
            norm = (one**2 + two**2 + 1e-8).sqrt()
            x = x * (one / norm)[..., None, None] + shift * (two / norm)[..., None, None]
        return self.activate(x, self.state[f'{name}.activate.bias'])

    def rgb(self, name, x, style):
        return self.modulated(name, x, style, demodulate=False) + self.state[f'{name}.bias']

    def generator(self, x, in_size, noises):
        x, in_size, noises = x.double(), in_size.double(), [noise.double() for noise in noises]
        stages = x.shape[2].bit_length() - 5  # from 32x32 on
        features = [self.layer('conv_body_first', x)]
        for k in range(stages):
            features.append(self.layer(f'conv_body_down.{k}', features[-1], down=True))
        conditions = [
            (
                self.linear(f'condition_scale1.{k}', in_size),
                self.linear(f'condition_scale2.{k}', in_size),
                slow_conv(feature, self.equal(f'condition_shift.{k}.0'), 1, 1)
                + self.state[f'condition_shift.{k}.0.bias'][:, None, None],
            )
            for k, feature in enumerate(features)
        ]
        code = self.layer('final_down2', self.layer('final_down1', features[-1], down=True), down=True)
        styles = self.active_linear('final_linear', code.flatten(1)).view(len(x), 2 * stages + 2, -1).unbind(1)
        out = self.layer('final_conv', features[-1])
        out = self.style_conv('style_conv1', out, styles[0], noises[0], condition=conditions[-1])
        image = self.rgb('to_rgb1', out, styles[1])
        for j in range(stages):
            up, flat, colour = styles[2 * j + 1 : 2 * j + 4]
            out = self.style_conv(f'style_convs.{2 * j}', out, up, noises[2 * j + 1], up=True)
            condition = conditions[stages - 1 - j]
            out = self.style_conv(f'style_convs.{2 * j + 1}', out, flat, noises[2 * j + 2], condition=condition)
            image = slow_upfirdn(image, 2, 1, 2, 1) + self.rgb(f'to_rgbs.{j}', out, colour)
        return image

    def discriminator(self, x):
        stages = x.shape[2].bit_length() - 3
        x = self.layer('conv_body.0', x.double())
        for k in range(1, stages + 1):
            name = f'conv_body.{k}'
            main = self.layer(f'{name}.conv2', self.layer(f'{name}.conv1', x), down=True)
            x = (main + slow_conv(slow_upfirdn(x, 1, 1, 1, 1), self.equal(f'{name}.skip.1'), 2)) / 2**0.5
        x = self.layer('final_conv', x).flatten(1)
        return self.linear('final_linear.1', self.active_linear('final_linear.0', x))


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize(
    ('cls', 'size', 'narrow'), [(GCFSR, 32, 1 / 32), (GCFSR, 64, 1 / 64), (GCFSRBlind, 32, 3 / 128)]
)
def test_the_generator_equals_its_formulas(cls, size, narrow, batch):
    network = vivid(cls(size, num_style_feat=12, narrow=narrow))
    image, in_size = inputs(size, batch)
    noises = network.make_noise(batch)
    wanted = Slow(network.state_dict()).generator(
        image, torch.ones_like(in_size) if cls is GCFSRBlind else in_size, noises
    )
    with torch.no_grad():
        assert (network(image, in_size, noises) - wanted).abs().max() < 1e-5 * wanted.std()
        found = network.double()(image.double(), in_size.double(), noises)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('narrow', [1 / 32, 3 / 256])
def test_the_discriminator_equals_its_formulas(narrow):
    network = vivid(GCFSRDiscriminator(64, narrow=narrow))
    image, _ = inputs(64)
    wanted = Slow(network.state_dict()).discriminator(image)
    with torch.no_grad():
        torch.testing.assert_close(network(image).double(), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network.double()(image.double()), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('size', [8, 24])  # one image: fewer activations than weights, and more
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('mode', [None, 'upsample', 'to_rgb'])
def test_modulation_of_activations_equals_weights_for_each_image(size, batch, mode):
    up = (1, 3, 3, 1) if mode == 'upsample' else None
    out, side, demodulate = (3, 1, False) if mode == 'to_rgb' else (20, 3, True)
    mine = ModulatedConv2d(16, out, side, 8, demodulate, up)
    textbook = TextbookConv2d(16, out, side, 8, demodulate, None if up is None else mode)
    textbook.load_state_dict(vivid(mine).state_dict())
    x, style = torch.randn(batch, 16, size, size), torch.randn(batch, 8)
    wanted = textbook(x, style)
    torch.testing.assert_close(mine(x, style), wanted, rtol=1e-5, atol=1e-5)
    mine.to(memory_format=torch.channels_last)  # torch refuses it for five dimensions
    assert mine.weight[0].is_contiguous(memory_format=torch.channels_last)
    assert mine.weight.shape == textbook.weight.shape
    torch.testing.assert_close(
        mine(x.contiguous(memory_format=torch.channels_last), style), wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('kernel', [(1, 3, 3, 1), (1, 2), (1, 4, 2), (1, 2, 5, 3, 1), (5, 3, 1, 1, 0.5, 2)])
def test_resampling_equals_basicsrs_on_the_cpu(kernel):
    x = torch.randn(2, 3, 8, 10)
    torch.testing.assert_close(Upsample(kernel)(x), UpFirDnUpsample(kernel)(x))
    blur = UpFirDnSmooth(kernel, downsample_factor=2, kernel_size=3)
    torch.testing.assert_close(Blur(kernel, blur.pad)(x), blur(x))
    blur = UpFirDnSmooth(kernel, upsample_factor=2, kernel_size=3)
    torch.testing.assert_close(Blur(kernel, blur.pad, 4)(x), blur(x))


# ------------------------------------------------------------------------------------------------- noise and precisions


def test_noise_is_none_given_or_random():
    network = vivid(GCFSR(64, num_style_feat=8, narrow=1 / 64))
    image, in_size = inputs(64)
    noises = network.make_noise(2)
    assert [tuple(noise.shape) for noise in noises] == [(2, 1, size, size) for size in (16, 32, 32, 64, 64)]
    with torch.no_grad():
        for mode in (True, False):
            network.train(mode)
            silent = network(image, in_size)
            assert torch.equal(silent, network(image, in_size, 'none'))
            torch.testing.assert_close(silent, network(image, in_size, [torch.zeros_like(n) for n in noises]))
            given = network(image, in_size, noises)
            assert torch.equal(given, network(image, in_size, noises))
            assert not torch.equal(*(network(image, in_size, 'random') for _ in range(2)))
            assert not torch.allclose(given, silent, atol=1e-3)
        for tensor in network.noises.buffers():  # what a published file holds there
            tensor.normal_()
        assert torch.equal(network(image, in_size), silent)
    again = (network.make_noise(2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(*again, strict=True))


def test_a_network_starts_without_noise():
    network = GCFSR(**SMALL)
    image, in_size = inputs(32)
    with torch.no_grad():
        torch.testing.assert_close(network(image, in_size, 'random'), network(image, in_size))


def test_the_factor_changes_the_image_unless_the_network_is_blind():
    image, in_size = inputs(32)
    with torch.no_grad():
        network = vivid(GCFSR(**SMALL))
        assert not torch.allclose(network(image, in_size), network(image, in_size + 0.5), atol=1e-3)
        blind = vivid(GCFSRBlind(**SMALL))
        assert torch.equal(blind(image), blind(image, in_size))


@pytest.mark.parametrize('batch', [1, 3])
def test_images_of_a_batch_do_not_see_each_other(batch):
    network = vivid(GCFSR(**SMALL))
    image, in_size = inputs(32, 3)
    with torch.no_grad():
        torch.testing.assert_close(
            network(image, in_size)[:batch], network(image[:batch], in_size[:batch]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('how', ['autocast', 'bfloat16', 'channels last'])
def test_bfloat16_and_channels_last_are_close(how, batch):
    network, judge = vivid(GCFSR(64, num_style_feat=16, narrow=1 / 16)), vivid(GCFSRDiscriminator(64, narrow=1 / 16))
    image, in_size = inputs(64, batch)
    noises = network.make_noise(batch)
    with torch.no_grad():
        wanted, logits = network(image, in_size, noises), judge(image)
        if how == 'autocast':
            with torch.autocast('cpu', torch.bfloat16):
                found, judged = network(image, in_size, noises), judge(image)
            assert found.dtype == torch.float32
        elif how == 'bfloat16':
            network, judge = network.bfloat16(), judge.bfloat16()
            found, judged = network(image.bfloat16(), in_size.bfloat16(), noises), judge(image.bfloat16())
        else:
            network, judge = (net.to(memory_format=torch.channels_last) for net in (network, judge))
            found, judged = network(image, in_size, noises), judge(image)
    bound = 1e-5 if how == 'channels last' else 0.05
    assert (found - wanted).square().mean().sqrt() < bound * wanted.std()
    assert (judged.float() - logits).abs().max() < bound * 2


# ------------------------------------------------------------------------------------------------------------ gradients


def directional(network, function):
    """The derivative of ``function()`` in a random direction of the parameters: by autograd, and by differences."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(function(), parameters)
    direction = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((gradient * step).sum() for gradient, step in zip(gradients, direction, strict=True))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.add_(sign * 1e-6 * step)
        values.append(function().detach())
        with torch.no_grad():
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.sub_(sign * 1e-6 * step)
    return slope.item(), ((values[0] - values[1]) / 2e-6).item()


@pytest.mark.parametrize('batch', [1, 2])
def test_gradients_of_all_parameters(batch):
    network = vivid(GCFSR(**SMALL)).double()
    image, in_size = inputs(32, batch, torch.double)
    noises = network.make_noise(batch)
    target = torch.randn_like(image)
    found, wanted = directional(network, lambda: (network(image, in_size, noises) * target).mean())
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize('make', [lambda: GCFSRDiscriminator(32, narrow=1 / 128), lambda: GCFSRBlind(**SMALL)])
def test_second_derivatives(make):
    network = vivid(make()).double()
    image = (torch.rand(2, 3, 32, 32, dtype=torch.double) * 2 - 1).requires_grad_()

    def penalty():
        """As R1, but of the squared output, so that the last bias has a part in it too."""
        (gradient,) = torch.autograd.grad(network(image).square().sum(), image, create_graph=True)
        return gradient.square().sum((1, 2, 3)).mean()

    for name, parameter in network.named_parameters():  # strengths of noise that is not added
        parameter.requires_grad_(not re.fullmatch(r'style_conv\w*(\.\d+)?\.weight', name))
    found, wanted = directional(network, penalty)
    assert found == pytest.approx(wanted, rel=1e-4)


def test_derivatives_of_the_filters():
    for layer in (Blur((1, 2, 4), (1, 2)), Blur((1, 3, 3, 1), (2, 2)), Upsample((1, 3, 2, 1))):
        x = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(layer.double(), x)
        assert torch.autograd.gradgradcheck(layer, x)


# -------------------------------------------------------------------------------------------------------- the project's


@pytest.mark.parametrize(
    ('network', 'ratio', 'narrow'),
    [({}, 1 / 2, 1 / 2), ({'narrow': 0.5}, 1 / 4, 1 / 8), ({'narrow': 1}, 1, 1), ({'narrow': 0.75}, 1 / 3, 1 / 4)],
)
@pytest.mark.parametrize('kind', ['GCFSR', 'GCFSRBlind', 'GCFSRDiscriminator'])
def test_narrowing_leaves_the_style_alone(kind, network, ratio, narrow):
    network = {'type': kind, 'out_size': 64, **({} if 'Disc' in kind else {'num_style_feat': 40}), **network}
    assert student_of(network, ratio) == {**network, 'narrow': narrow}


def test_costs():
    """Of a discriminator by hand: convolutions at their output's size, blurs of 16 taps where a convolution halves."""
    c, macs = 4, 32 * 32 * 3 * 4
    for size in (32, 16, 8):
        half = size // 2
        macs += size**2 * 9 * c * c + half**2 * (9 + 1) * c * c  # three convolutions
        macs += 16 * c * ((size + 1) ** 2 + (size - 1) ** 2)
    macs += 16 * 9 * c * c + 16 * c * c + c
    narrow = {'type': 'GCFSRDiscriminator', 'out_size': 32, 'narrow': 1 / 128}
    assert cost(narrow)[1] == cost(narrow, 128)[1] == macs
    generator = {'type': 'GCFSR', **SMALL}
    assert cost(generator, 128) == cost(generator)
    network = build(generator, 'network_g')
    assert [tuple(tensor.shape) for tensor in example_inputs(network)] == [(1, 3, 32, 32), (1, 1)]
    assert scale_of(network, 'network_g') == 1


def test_its_own_start_is_kept():
    network = GCFSR(**SMALL)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    initialise(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert (network.style_conv1.modulated_conv.modulation.bias == 1).all()
    assert all((layer.bias == 1).all() for layer in [*network.condition_scale1, *network.condition_scale2])
    assert 0.9 < network.final_linear.weight.std() < 1.1


@pytest.mark.parametrize(('size', 'numbers'), [(1024, [3, 5, 9, 11]), (512, [3, 5, 7, 9]), (128, [1, 3, 5]), (32, [1])])
@pytest.mark.parametrize('cls', [GCFSR, GCFSRBlind])
def test_default_taps(cls, size, numbers):
    # quarters of six sizes end within the sizes 1.5, 3, 4.5 and 6, counted from 1
    with torch.device('meta'):
        network = cls(size, num_style_feat=8, narrow=1 / 16)
        taps = default_taps(network)
        with FeatureTaps(network, taps) as recorder:
            network(*network.example_inputs())
    assert taps == [f'style_convs.{number}' for number in numbers]
    sizes = [feature.shape[-1] for feature in recorder.pop().values()]
    assert sizes == [32 << number // 2 for number in numbers]


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize(
    'options',
    [
        {'type': 'GCFSR', 'out_size': 32, 'narrow': 1 / 64, 'channel_multiplier': 2, 'num_style_feat': 8},
        {'type': 'GCFSR', 'out_size': 256, 'narrow': 3 / 64, 'channel_multiplier': 1, 'num_style_feat': 5},
        {'type': 'GCFSRBlind', 'out_size': 64, 'narrow': 1 / 32, 'channel_multiplier': 2, 'num_style_feat': 8},
        {'type': 'GCFSRDiscriminator', 'out_size': 128, 'narrow': 1 / 64, 'channel_multiplier': 2},
        {'type': 'GCFSRDiscriminator', 'out_size': 32, 'narrow': 1 / 8, 'channel_multiplier': 2},
    ],
    ids=lambda options: f'{options["type"]}-{options["out_size"]}',
)
def test_the_network_is_told_from_its_file(tmp_path, options, suffix):
    from safetensors.torch import save_file

    network = build(options, 'network_g')
    path = tmp_path / f'net{suffix}'
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    save_whole({'params_ema': state}, path) if suffix == '.pth' else save_file(state, path)
    found = infer_network(read_weights(path))
    assert found == options
    load_into(build(found, 'teacher'), read_weights(path), path, 'teacher:weights')


def test_a_full_width_file_is_told_too():
    with torch.device('meta'):
        state = GCFSR(1024).state_dict()
    wanted = {'type': 'GCFSR', 'out_size': 1024, 'narrow': 1, 'channel_multiplier': 2, 'num_style_feat': 512}
    assert infer_network(state) == wanted


def test_stylegan2s_discriminator_is_not_taken_for_ours():
    assert infer_network(StyleGAN2Discriminator(32, narrow=1 / 32).state_dict()) is None
    state = GCFSR(**SMALL).state_dict()
    del state['final_linear.weight']
    assert infer_network(state) is None


# ------------------------------------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ('cls', 'other', 'sentence'),
    [
        (GCFSR, {'type': 'GCFSRBlind'}, r'GCFSR\(out_size=32.*: it holds GCFSRBlind\(out_size=32'),
        (GCFSRBlind, {}, r'GCFSRBlind\(out_size=32.*: it holds GCFSR\(out_size=32'),
        (GCFSR, {'narrow': 1 / 32}, r'narrow=0.015625,.*: it holds .*narrow=0.03125,'),
        (GCFSR, {'out_size': 64}, 'out_size=32.*: it holds .*out_size=64'),
        (GCFSR, {'num_style_feat': 9}, 'num_style_feat=8.*: it holds .*num_style_feat=9'),
        (GCFSRDiscriminator, {}, r'GCFSRDiscriminator\(.*: it holds GCFSR\('),
    ],
    ids=['blind', 'not blind', 'width', 'size', 'style', 'discriminator'],
)
def test_a_file_of_another_network_is_refused(cls, other, sentence):
    own = cls(32, narrow=1 / 64) if cls is GCFSRDiscriminator else cls(**SMALL)
    state = build({'type': 'GCFSR', **SMALL, **other}, 'teacher:network').state_dict()
    with pytest.raises(UserError, match=f'teacher:weights: net.pth does not fit .*{sentence}'):
        load_into(own, state, 'net.pth', 'teacher:weights')


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'out_size': 100}, 'out_size must be a power of two of at least 32, not 100'),
        ({'out_size': 16}, 'out_size must be a power of two of at least 32, not 16'),
        ({'out_size': 0}, 'out_size .* not 0'),
        ({'out_size': -64}, 'out_size .* not -64'),
        ({'out_size': 64.0}, 'out_size .* not 64.0'),
        ({'out_size': '64'}, "out_size .* not '64'"),
        ({'out_size': 32, 'narrow': 1 / 3}, 'narrow=0.333.* leaves a fraction of the 512 channels at 4x4 pixels'),
        ({'out_size': 1024, 'narrow': 1 / 64}, 'narrow=0.015625 leaves a fraction of the 32 channels at 1024x1024'),
        ({'out_size': 32, 'narrow': 1e-9}, 'narrow=1e-09 leaves a fraction'),
        ({'out_size': 32, 'narrow': 0}, 'narrow must be a positive number, not 0'),
        ({'out_size': 32, 'narrow': float('nan')}, 'narrow must be a positive number, not nan'),
        ({'out_size': 32, 'narrow': '1/2'}, "narrow must be a positive number, not '1/2'"),
        ({'out_size': 32, 'channel_multiplier': -1}, 'channel_multiplier must be a positive number'),
        ({'out_size': 32, 'narrow': 1 / 8, 'resample_kernel': [1]}, 'resample_kernel must hold at least two numbers'),
    ],
)
@pytest.mark.parametrize('kind', ['GCFSR', 'GCFSRDiscriminator'])
def test_options_that_make_no_network(kind, options, sentence):
    with pytest.raises(UserError, match=f'network_g: {kind} cannot be built from these options: {sentence}'):
        build({'type': kind, **options}, 'network_g')


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [({'narrow': 1 / 512}, 'leaves half a channel at 4x4'), ({'num_style_feat': 0}, 'num_style_feat must be')],
)
def test_options_that_make_no_generator(options, sentence):
    with pytest.raises(UserError, match=f'network_g: GCFSR cannot be built from these options: .*{sentence}'):
        build({'type': 'GCFSR', 'out_size': 32, **options}, 'network_g')


@pytest.mark.parametrize('kind', ['GCFSR', 'GCFSRBlind', 'GCFSRDiscriminator'])
def test_ratios_that_leave_no_network_are_refused(kind):
    for ratio in (1 / 3, 1 / 64):
        with pytest.raises(UserError, match=f'narrow of {kind} is 1, which .* does not divide into channels'):
            student_of({'type': kind, 'out_size': 1024}, ratio)
    with pytest.raises(UserError, match=f'narrow of {kind} is 0.5, which 1/32 does not divide into channels.*1024'):
        student_of({'type': kind, 'out_size': 1024, 'narrow': 0.5}, 1 / 32)
    for ratio in (0, -1, 2, float('nan')):
        with pytest.raises(UserError, match=f'the width ratio {ratio} of {kind} must be greater than 0 and at most 1'):
            student_of({'type': kind, 'out_size': 1024}, ratio)
    with pytest.raises(UserError, match='out_size must be a power of two of at least 32, not None'):
        student_of({'type': kind}, 1 / 2)


def test_inputs_of_another_shape_are_refused():
    network, (image, in_size) = GCFSR(**SMALL), inputs(32)
    for wrong in (in_size[:1], in_size.flatten(), in_size.repeat(1, 2)):
        with pytest.raises(RuntimeError, match=r'in_size must be of shape \(2, 1\)'):
            network(image, wrong)
    for wrong in (image[:, :1], image[..., :31], image[0], F.pad(image, (16, 16, 16, 16))):
        for net, args in ((network, (in_size,)), (GCFSRDiscriminator(32, narrow=1 / 64), ())):
            with pytest.raises(RuntimeError, match=r'takes images \(N, 3, 32, 32\), not'):
                net(wrong, *args)
    noises = network.make_noise(2)
    for wrong in (noises[:-1], network.make_noise(1), [*network.noises.buffers()]):
        with pytest.raises(RuntimeError, match='make_noise makes them'):
            network(image, in_size, wrong)
    with pytest.raises(RuntimeError, match="'none' or a list of tensors, not 'noisy'"):
        network(image, in_size, 'noisy')


def test_export_asks_for_a_generator_of_any_image(tmp_path):
    save_whole({'params_ema': GCFSR(**SMALL).state_dict()}, tmp_path / 'face.pth')
    command = [sys.executable, '-m', 'sdakd.cli', 'export', '--to', 'onnx']
    command += ['-m', str(tmp_path / 'face.pth'), '-o', str(tmp_path / 'out')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert 'face.pth holds GCFSR(out_size=32' in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'out').exists()
