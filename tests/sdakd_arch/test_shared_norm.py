"""Batch normalisation over processes: alone it is torch's; two are tested in sdakd_models/test_equal_batches.py."""

import copy

import pytest
import torch
from torch import nn

from sdakd_arch.shared_norm import share_statistics


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    'options', [{}, {'affine': False}, {'momentum': None}, {'track_running_stats': False}, {'eps': 0.1}]
)
@pytest.mark.parametrize('training', [True, False])
def test_one_process_is_torchs_own(group, options, training):
    torchs = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, **options), nn.ReLU()).double().train(training)
    ours, results = copy.deepcopy(torchs), []
    share_statistics(ours)
    assert [type(module) for module in ours] != [type(module) for module in torchs]
    images = torch.randn(2, 2, 3, 5, 6, dtype=torch.float64) + 3
    for network in (torchs, ours):
        given = images.clone().requires_grad_()
        output = sum((network(each) * torch.arange(30).view(5, 6)).square().sum() for each in given)
        output.backward()
        gradients = [given.grad, *(parameter.grad for parameter in network.parameters())]
        results.append([output, *gradients, *network.state_dict().values()])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
