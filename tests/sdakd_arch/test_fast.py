"""Fast inference: the same outputs as the network's own, for every width, scale and size."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from torch import nn
from torch.nn import functional as F

from sdakd.files.generators import open_network
from sdakd.files.named import PRETRAINED
from sdakd_arch.families import family_of
from sdakd_arch.inference.fast import Plain, accelerate
from sdakd_arch.inference.onednn import Convolution, FastRRDBNet, FastSRVGG
from sdakd_arch.inference.regroup import regroup

ONEDNN = torch.backends.mkldnn.is_available()
BF16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def loud(network):
    """Weights that keep the signal's size, and biases: BasicSR's own would hide mistakes in the dense blocks."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.normal_(layer.bias, std=0.1)
        elif isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0.05, 0.9)
    return network.eval().requires_grad_(False)


def rrdbnet(width=4, growth=None, scale=4, blocks=2):
    return loud(RRDBNet(3, 3, scale, 64 // width, blocks, growth or 32 // width))


def relative(found, wanted):
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def psnr(found, wanted):
    return -10 * torch.log10((found - wanted).square().mean()).item()


@pytest.mark.parametrize(('width', 'scale'), list(itertools.product((1, 2, 4, 8), (4, 2, 1))))
def test_rrdbnet_gives_what_the_network_gives(width, scale):
    network = rrdbnet(width, scale=scale)
    module = accelerate(network)
    assert isinstance(module, FastRRDBNet) == ONEDNN
    factor = {4: 1, 2: 2, 1: 4}[scale]  # pixel-unshuffling takes multiples of it
    for batch, height, width in ((1, 16, 16), (2, 7, 13), (1, 9, 10), (1, 1, 3)):
        image = torch.rand(batch, 3, height * factor, width * factor)
        assert relative(module(image), network(image)) < 1e-5


@pytest.mark.parametrize('width', (64, 32, 16, 8))
@pytest.mark.parametrize(('activation', 'upscale'), (('prelu', 4), ('relu', 2), ('leakyrelu', 1)))
def test_srvgg_gives_what_the_network_gives(width, activation, upscale):
    network = loud(SRVGGNetCompact(num_feat=width, num_conv=3, upscale=upscale, act_type=activation))
    module = accelerate(network)
    assert isinstance(module, FastSRVGG) == ONEDNN
    for batch, height, width in ((1, 16, 16), (2, 7, 13), (1, 9, 10)):
        image = torch.rand(batch, 3, height, width)
        assert relative(module(image), network(image)) < 1e-5


@pytest.mark.skipif(not ONEDNN, reason='this torch is built without oneDNN, and accelerate falls back')
@pytest.mark.parametrize(('channels', 'width'), list(itertools.product((3, 4, 8, 12, 16), (4, 5, 6, 7))))
def test_a_convolution_in_float64(channels, width):
    weight, bias = torch.randn(channels, 5, 3, 3), torch.randn(channels)
    image = torch.randn(2, 5, 6, width)
    found = Convolution(weight, bias, 0.2, torch.float32)(image.contiguous(memory_format=torch.channels_last))
    wanted = F.leaky_relu(F.conv2d(image.double(), weight.double(), bias.double(), padding=1), 0.2)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize('width', (4, 8))
def test_bfloat16_stays_near_and_float32_nearer(width):
    torch.manual_seed(1)
    network = RRDBNet(3, 3, 4, 64 // width, 23, 32 // width).eval().requires_grad_(False)
    image = torch.rand(1, 3, 24, 24)
    wanted = network(image)
    module = accelerate(network, torch.bfloat16)
    assert isinstance(module, FastRRDBNet) == BF16
    if BF16:
        assert psnr(module(image), wanted) > 50
        assert psnr(module(image), wanted) > psnr(Plain(network, torch.bfloat16)(image), wanted) + 3
    assert psnr(accelerate(network)(image), wanted) > 110


def test_networks_of_the_project_on_a_photograph(photo):
    for name in ('demo_teacher_x4.safetensors', 'demo_student_x4.pth'):
        network = open_network(PRETRAINED / name).module
        assert relative(accelerate(network)(photo), network(photo)) < 1e-5
        assert psnr(accelerate(network, torch.bfloat16)(photo), network(photo)) > 45


def test_network_and_input_stay_as_they_are(photo):
    network = rrdbnet(8)
    state, image = copy.deepcopy(network.state_dict()), photo[..., 3:43, 5:42]  # no memory of its own
    before = image.clone()
    wanted = network(image)
    for module in (accelerate(network), accelerate(network, torch.bfloat16), Plain(network, torch.bfloat16)):
        module(image)
    assert torch.equal(image, before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    module = accelerate(network)
    nn.init.zeros_(network.conv_last.weight)  # it has weights of its own
    for layout in (torch.contiguous_format, torch.channels_last):
        assert relative(module(image.contiguous(memory_format=layout)), wanted) < 1e-5
    assert module(image.double()).dtype == torch.float64
    with torch.enable_grad():
        assert not module(image.requires_grad_()).requires_grad


def test_where_operators_fail_or_lie_the_network_itself_runs(monkeypatch):
    network, image = rrdbnet(8), torch.rand(1, 3, 9, 9)

    def missing(self, *args):
        raise AttributeError('no such operator')

    monkeypatch.setattr(Convolution, 'pack', missing)
    assert isinstance(accelerate(network), Plain)
    monkeypatch.undo()
    honest = Convolution.__call__
    monkeypatch.setattr(Convolution, '__call__', lambda self, image: honest(self, image) * 1.001)
    module = accelerate(network)
    assert isinstance(module, Plain)
    assert relative(module(image), network(image)) < 1e-5


def test_other_architectures_run_as_they_are():
    class Other(nn.Sequential):
        pass

    class RRDBNet(Other):  # another one's, of the same name
        pass

    image = torch.rand(2, 3, 8, 9)
    for kind in (Other, RRDBNet):
        network = loud(kind(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)))
        module = accelerate(network)
        assert isinstance(module, Plain)
        assert relative(module(image), network(image)) < 1e-5
        assert module(image).dtype == torch.float32
        assert psnr(accelerate(network, torch.bfloat16)(image), network(image)) > 30


@pytest.mark.parametrize('runtime', ('onnxruntime', 'openvino'))
@pytest.mark.parametrize(('growth', 'scale'), list(itertools.product((1, 2, 4, 8), (4, 2, 1))))
def test_regrouped_networks_give_the_same(growth, scale, runtime):
    network = rrdbnet(8, growth, scale)
    state = copy.deepcopy(network.state_dict())
    network.conv_first.weight.requires_grad_()
    other = regroup(network, runtime)
    assert other is not network and other.state_dict().keys() != state.keys()
    with torch.no_grad():
        for image in (torch.rand(2, 3, 12, 20), torch.rand(1, 3, 4, 4)):  # 4x4 kernels see all of the smaller one
            assert relative(other(image), network(image)) < 1e-5
    assert network.conv_first.weight.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_wide_networks_and_others_are_not_regrouped():
    for network in (rrdbnet(1, blocks=1), rrdbnet(2, blocks=1), SRVGGNetCompact(num_feat=8, num_conv=2)):
        assert family_of(network).regrouped(network, 'openvino') is network


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='other systems are left as they are')
def test_freed_memory_is_kept():
    """A large block that was freed is there for the next one, until the end: the system hands out no pages for it."""
    code = """
import resource, torch
from sdakd_arch.inference.heap import freed_memory_kept

def cleared():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 26)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() >> 28

with freed_memory_kept() as kept:
    torch.ones(1 << 26)
    inside = cleared()
resident = int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
print(kept, inside, cleared(), held > 200 << 20)
"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    kept, inside, outside, given_back = done.stdout.split()
    if kept == 'False':
        pytest.skip('this C library cannot be told')
    assert int(inside) <= 1 and int(outside) == 4 and given_back == 'True'
