"""Passes in parts: spectral norms, batch normalisation, structures of tensors; steps are in test_equal_batches.py."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sdakd.compat import UserError
from sdakd_arch.channel_masks import ChannelMasks
from sdakd_models.parts import InParts, in_parts
from sdakd_models.players import penalise, r1_penalty


def judge(norm, channels=4):
    layers = [norm(nn.Conv2d(3, channels, 3)), nn.LeakyReLU(0.2), norm(nn.Conv2d(channels, 1, 3))]
    return nn.Sequential(*layers).double()


def trace(network, images, call):
    """Outputs, gradients and buffers of two passes, the second in evaluation mode, and one backward pass for both."""
    images = images.clone().requires_grad_()
    outputs = [call(network.train(), images), call(network.eval(), images.square())]
    network.train()
    (outputs[0].square().sum() + outputs[1].sin().sum()).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return [*outputs, images.grad, *gradients, *network.buffers()]


@pytest.mark.parametrize('size', [1, 2, 3, 5, 9])
@pytest.mark.parametrize('norm', [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_moves_once_for_a_batch(norm, size):
    """Also where another pass comes between a pass and its backward pass."""
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    whole, batches = judge(norm), []
    parted = copy.deepcopy(whole)
    parted[0].register_forward_hook(lambda _module, _inputs, output: batches.append(len(output)))
    wanted = trace(whole, images, lambda network, given: network(given))
    found = trace(parted, images, lambda network, given: in_parts(network, size, given))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    parts = -(-5 // size)
    assert max(batches) == min(size, 5) and len(batches) == 2 * (2 * parts - 1)  # all but the last once more


def test_masks_of_a_network_that_rests_are_learned_in_parts():
    """Neither images nor parameters ask for a gradient then."""
    images, batches = torch.randn(5, 3, 8, 8, dtype=torch.float64), []
    network = judge(nn.utils.spectral_norm).eval().requires_grad_(False)
    masks = ChannelMasks(network, ['0'], 0.5, 'here').requires_grad_(True)
    found = []
    network[0].register_forward_hook(lambda _module, _inputs, output: batches.append(len(output)))
    for size in (None, 2):
        batches.clear()
        masks.zero_grad()
        in_parts(network, size, images).sin().sum().backward()
        found.append(masks.alphas['0'].grad.clone())
    torch.testing.assert_close(*found)
    assert batches == [2, 2, 1, 2, 2]  # all but the last once more


@pytest.mark.parametrize('size', [2, 3])
def test_r1_in_parts(size):
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    whole = judge(nn.utils.spectral_norm)
    parted = copy.deepcopy(whole)
    wanted = r1_penalty(whole, images) * 3
    wanted.backward()
    found = penalise(InParts(parted, size), images, 3, size, torch.Tensor.backward)
    torch.testing.assert_close(found, wanted.detach())
    for one, two in zip(
        [*parted.parameters(), *parted.buffers()], [*whole.parameters(), *whole.buffers()], strict=True
    ):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one.grad, two.grad)


def test_what_mixes_images_is_run_whole():
    network, batches = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), []
    network[0].register_forward_hook(lambda _module, _inputs, output: batches.append(len(output)))
    images = torch.randn(4, 3, 5, 5)
    in_parts(network, 1, images)
    assert batches == [4]
    with torch.no_grad():
        torch.testing.assert_close(
            in_parts(network.eval(), 1, images), network(images)
        )  # running statistics mix nothing
    assert batches == [4, 1, 1, 1, 1, 4]


def test_lists_and_mappings_of_tensors():
    class Network(nn.Module):
        def forward(self, image, noise, word):
            return {word: [image + noise[0], noise[1]]}

    image, noise = torch.randn(3, 2), [torch.randn(3, 2), torch.randn(3, 1)]
    found = in_parts(Network(), 2, image, noise, 'sum')
    assert torch.equal(found['sum'][0], image + noise[0]) and torch.equal(found['sum'][1], noise[1])


@pytest.mark.parametrize('place', ['train', 'datasets:train'])
@pytest.mark.parametrize('key', ['accum_iter', 'accumulate'])
def test_what_others_call_it_is_told(shared_world, parse, place, key):
    options = shared_world.options()
    block = options['train'] if place == 'train' else options['datasets']['train']
    block[key] = 2
    with pytest.raises(UserError, match=f'{place}: there is no {key}; .* as train:micro_batch_size'):
        parse(shared_world.write(options), shared_world.root)


def test_an_architecture_without_blocks_is_refused(world, parse):
    options = world.options()
    options['network_g'] = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1}
    options['train'] |= {'activation_checkpointing': True, 'stages': {'one': options['train']['stages']['supervised']}}
    with pytest.raises(UserError, match='train:activation_checkpointing: nothing tells the blocks of EDSR'):
        parse(world.write(options), world.root)
