"""Real-ESRGAN's degradation for whole batches, against BasicSR's own functions, which go image by image."""

import importlib.util

import cv2
import numpy as np
import pytest
import torch
from basicsr.data import degradations
from basicsr.utils import DiffJPEG, USMSharp
from torch.utils._python_dispatch import TorchDispatchMode

from sdakd_data import degradation
from sdakd_data.degradation import BatchJPEG, Sharpener, gaussian_noise, levels_up, poisson_noise


@pytest.fixture(scope='module')
def basicsr():
    """The module as BasicSR has it, beside the one whose noise is replaced."""
    spec = importlib.util.spec_from_file_location('basicsr_degradations', degradations.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.generate_poisson_noise_pt is not degradations.generate_poisson_noise_pt
    return module


@pytest.fixture(scope='module')
def images(photographs):
    """Photographs, one of them of few levels, another one dark."""
    found = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in photographs.values()]).float() / 255
    found[1] = (found[1] * 5).round() / 5
    found[2] /= 20
    return found


def drawn(make, *args, **values):
    """What ``make`` returns, and the random number after it."""
    torch.manual_seed(5)
    return make(*args, **values), torch.rand(1)


class Reads(TorchDispatchMode):
    """Notes the operators whose results Python waits for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.split('::')[1] in ('_local_scalar_dense', '_unique2', 'unique_dim', 'nonzero', 'equal'):
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('size', [(128, 128), (119, 86)])
def test_jpeg_is_basicsrs_bit_for_bit(images, size):
    images = images[..., : size[0], : size[1]]
    for quality in ([30, 49.99, 50, 95], [1, 3.7, 99.5, 99.99], [50.01, 48, 10, 75]):
        quality = torch.tensor(quality)
        found = BatchJPEG(differentiable=False)(images, quality=quality)
        # BasicSR writes the factors over the qualities
        assert torch.equal(found, DiffJPEG(differentiable=False)(images, quality=quality.clone()))
        assert found.is_contiguous() and not torch.equal(found, images)


GREY = [torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.zeros(4), torch.ones(4), 0, 1]


@pytest.mark.parametrize('grey', GREY)
@pytest.mark.parametrize('ours', [gaussian_noise, poisson_noise])
def test_noise_is_basicsrs_bit_for_bit(basicsr, images, ours, grey):
    theirs = getattr(basicsr, f'generate_{ours.__name__}_pt')
    # BasicSR has no grey Gaussian noise of one strength for all
    for strength in (torch.tensor([0.05, 3.0, 1.0, 0.0]), *([2.5] if ours is poisson_noise else [])):
        found, after = drawn(ours, images, strength, grey)
        wanted, expected = drawn(theirs, images, strength, grey)
        assert torch.equal(found, wanted) and torch.equal(after, expected)


@pytest.mark.parametrize('kind', ['gaussian', 'poisson'])
@pytest.mark.parametrize('grey', [0, 0.4, 1])
def test_basicsrs_degradation_takes_it_and_draws_the_same(basicsr, images, kind, grey):
    name, strength = f'random_add_{kind}_noise_pt', (0.05, 3) if kind == 'poisson' else (1, 30)
    values = {'gray_prob': grey, 'clip': True, 'rounds': False}
    found, after = drawn(getattr(degradations, name), images, strength, **values)
    wanted, expected = drawn(getattr(basicsr, name), images, strength, **values)
    assert torch.equal(found, wanted) and torch.equal(after, expected)


@pytest.mark.parametrize('ours', [gaussian_noise, poisson_noise])
def test_nothing_waits_for_a_gpu(images, ours, monkeypatch):
    """Where it is not asked whether some noise is grey, values are those of noise that is not; moments are right."""
    monkeypatch.setattr(degradation, '_some', lambda grey: True)
    with Reads() as reads:
        found = ours(images, torch.full((4,), 2.0), torch.zeros(4))
        BatchJPEG(differentiable=False)(images, quality=torch.tensor([30.0, 49, 50, 95]))
    assert reads.found == []
    repeated = torch.cat([ours(images, torch.full((4,), 2.0), torch.zeros(4)) for _ in range(24)], 0)
    samples = torch.stack([found, *repeated.split(4)]).double()
    if ours is gaussian_noise:
        variance = torch.full_like(images, (2 / 255) ** 2, dtype=torch.float64)
    else:  # of a Poisson variable with mean v x, over v
        photons = torch.tensor(
            [[2 ** (len((each * 255).round().unique()) - 1).bit_length()] for each in images]
        ).double()
        variance = 4 * (images.double() * 255).round() / 255 / photons.view(4, 1, 1, 1)
    for number in range(4):
        total = samples.shape[0] * images[0].numel()
        mean = samples[:, number].mean()
        assert mean.abs() < 5 * (variance[number].mean() / total).sqrt()
        assert samples[:, number].square().mean() == pytest.approx(variance[number].mean().item(), rel=0.02)
    # channels are independent of each other
    one, other = samples[:, :, 0].flatten(), samples[:, :, 1].flatten()
    assert (one * other).mean().abs() < 5 * ((one * other).square().mean() / one.numel()).sqrt()


def test_levels_are_counted_as_unique_counts_them():
    for count in (1, 2, 3, 4, 5, 8, 9, 127, 128, 129, 255, 256):
        levels = torch.randperm(256)[:count]
        image = levels[torch.arange(3 * 20 * 20) % count].view(1, 3, 20, 20).float() / 255
        wanted = 1
        while wanted < len(image.unique()):
            wanted *= 2
        assert levels_up(image.expand(2, -1, -1, -1)).flatten().tolist() == [wanted, wanted]


def test_an_image_that_is_no_number_ends_in_noise_that_is_none(images):
    """It is for the check of losses to say so, not for an index out of range."""
    broken = images.clone()
    broken[0, 0, 0, 0] = float('nan')
    assert torch.isfinite(gaussian_noise(broken)).all() and torch.isfinite(levels_up(broken)).all()


@pytest.mark.parametrize('size', [(26, 26), (31, 32), (33, 64), (97, 128), (400, 70)])
def test_sharpening_blurs_as_opencv_does(size):
    """In float64, with the border mirrored at the outermost pixel."""
    images = torch.rand(2, 3, *size)
    found = Sharpener().blur(images)
    assert found.shape == images.shape and found.is_contiguous()
    for image, blurred in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        wanted = cv2.GaussianBlur(image.double().numpy(), (51, 51), 0, borderType=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(blurred.numpy(), wanted, rtol=0, atol=2e-6)


def test_sharpening_is_basicsrs(images):
    found, wanted = Sharpener()(images), USMSharp()(images)
    assert (wanted - images).abs().max() > 0.1
    # the pixels that are sharpened are told by a threshold, at which rounding may decide
    difference = (found - wanted).abs()
    assert difference.max() < 1e-3 and difference.mean() < 1e-6
