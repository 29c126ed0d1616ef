"""Placebos: the same numbers in another order, layers as large as before, nothing of what the teacher knows."""

import copy

import numpy as np
import pytest
import torch

from sdakd_arch.placebo import natural_noise, shuffle
from sdakd_arch.width import build

NETWORKS = {
    'RRDBNet': {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 3, 'num_grow_ch': 8},
    'SRVGGNetCompact': {'type': 'SRVGGNetCompact', 'num_feat': 16, 'num_conv': 6, 'upscale': 4},
    'GCFSR': {'type': 'GCFSR', 'out_size': 64, 'narrow': 0.25},
}


def made(name, seed=0):
    torch.manual_seed(seed)
    return build(NETWORKS[name], 'network').eval()


@pytest.mark.parametrize('name', NETWORKS)
def test_every_tensor_holds_the_same_numbers_times_one_factor(name):
    teacher = made(name)
    placebo = copy.deepcopy(teacher)
    shuffle(placebo, 0)
    moved = 0
    for (key, before), after in zip(teacher.named_parameters(), placebo.parameters(), strict=True):
        before, after = before.detach().flatten().double(), after.detach().flatten().double()
        if not before.any():
            assert not after.any(), key
            continue
        factor = after.norm() / before.norm()
        torch.testing.assert_close(after.sort()[0], before.sort()[0] * factor, rtol=1e-5, atol=1e-7)
        moved += not torch.allclose(after, before * factor)
    assert moved >= 6


@pytest.mark.parametrize('name', ['RRDBNet', 'SRVGGNetCompact'])
def test_layers_are_as_large_as_before_and_the_image_is_another(name):
    teacher = made(name)
    for module in teacher.modules():  # as trained ones, whose weights are not those of a random start
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data *= torch.linspace(0.2, 2, module.weight.numel()).view_as(module.weight)
    placebo = copy.deepcopy(teacher)
    shuffle(placebo, 3)
    image = natural_noise(64, torch.Generator().manual_seed(3))  # the seed's own image

    def sizes(network):
        found = {}
        hooks = [
            module.register_forward_hook(lambda _m, _i, output, key=key: found.update({key: output.std().item()}))
            for key, module in network.named_modules()
            if isinstance(module, torch.nn.Conv2d)
        ]
        with torch.no_grad():
            output = network(image)
        for hook in hooks:
            hook.remove()
        return found, output

    (before, one), (after, other) = sizes(teacher), sizes(placebo)
    assert after == pytest.approx(before, rel=1e-3)
    if name == 'RRDBNet':  # SRVGGNetCompact adds the enlarged input to both
        correlation = np.corrcoef(one.flatten().numpy(), other.flatten().numpy())[0, 1]
        assert abs(correlation) < 0.5


def test_the_seed_decides():
    states = []
    for seed in (0, 0, 1):
        placebo = made('SRVGGNetCompact')
        shuffle(placebo, seed)
        states.append(torch.cat([p.detach().flatten() for p in placebo.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.allclose(states[0], states[2])


def test_the_noise_has_the_spectrum_of_photographs():
    side, slopes = 128, []
    for seed in range(8):
        image = natural_noise(side, torch.Generator().manual_seed(seed))[0]
        assert image.min() == 0 and image.max() == 1
        amplitude = np.abs(np.fft.fft2(image.double().numpy().mean(0)))
        y, x = np.meshgrid(*(np.fft.fftfreq(side),) * 2, indexing='ij')
        radius = np.hypot(x, y)
        inside = (radius > 0.03) & (radius < 0.45)
        slopes.append(np.polyfit(np.log(radius[inside]), np.log(amplitude[inside]), 1)[0])
    assert np.mean(slopes) == pytest.approx(-1, abs=0.05)
