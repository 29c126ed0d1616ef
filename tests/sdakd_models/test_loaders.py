"""How training data are loaded: what stands where nothing is said, ``auto``, and processes that are started once."""

import os
import time

import pytest
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import Dataset

from sdakd.compat import UserError
from sdakd_data.draws import Drawn, Draws, training_loader
from sdakd_models import loaders


@pytest.mark.parametrize(
    ('gpus', 'given', 'expected'),
    [
        (0, {}, {'num_worker_per_gpu': 'auto', 'pin_memory': False, 'persistent_workers': True}),
        (
            1,
            {},
            {'num_worker_per_gpu': 'auto', 'pin_memory': True, 'persistent_workers': True, 'prefetch_mode': 'cuda'},
        ),
        (1, {'num_worker_per_gpu': 0}, {'pin_memory': True, 'persistent_workers': False, 'prefetch_mode': 'cuda'}),
        (1, {'pin_memory': False}, {'num_worker_per_gpu': 'auto', 'persistent_workers': True}),
        (1, {'prefetch_mode': 'cpu', 'num_worker_per_gpu': 3}, {'pin_memory': True, 'persistent_workers': True}),
        (0, {'persistent_workers': False, 'pin_memory': True, 'num_worker_per_gpu': 2}, {}),
    ],
)
def test_what_is_given_counts_and_the_rest_follows_from_the_device(gpus, given, expected):
    opt = {'num_gpu': gpus, 'datasets': {'train': dict(given), 'val': {}}}
    loaders.complete(opt)
    assert opt['datasets'] == {'train': given | expected, 'val': {}}


@pytest.mark.parametrize(
    ('load', 'step', 'most', 'number'),
    [(0.01, 1.0, 8, 1), (1.0, 1.0, 8, 2), (2.0, 1.0, 8, 3), (2.1, 1.0, 8, 4), (50.0, 1.0, 8, 8), (50.0, 1.0, 1, 1)],
)
def test_half_as_many_processes_again_as_keep_up(load, step, most, number):
    assert loaders.workers_for(load, step, most) == number


@DATASET_REGISTRY.register()
class SlowPairs(PairedImageDataset):
    """Pairs that take a while."""

    def __getitem__(self, index):
        time.sleep(self.opt['seconds'])
        return super().__getitem__(index)


def settled(world, parse, monkeypatch, seconds, cores, **flags):
    """What a run makes of ``auto`` where a sample takes so long and the machine has so many cores."""
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setattr(loaders, 'cores', lambda: cores)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    options = world.options()
    options['datasets']['train'] |= {'type': 'SlowPairs', 'seconds': seconds, 'num_worker_per_gpu': 'auto'} | flags
    try:
        return parse(world.write(options), world.root)
    finally:
        torch.set_num_threads(before)


def test_auto_is_a_number_by_the_start(world, parse, monkeypatch):
    opt = settled(world, parse, monkeypatch, 0.2, 16)
    assert opt['datasets']['train']['num_worker_per_gpu'] == 15  # hundreds would keep up; one core is the training's
    assert opt['loading'].startswith('Loading: 15 processes, as a batch takes one of them 4')  # 2 samples of 0.2 s
    assert 'there are cores for 15.' in opt['loading']
    opt = settled(world, parse, monkeypatch, 0.0, 1)
    assert opt['datasets']['train']['num_worker_per_gpu'] == 1 and 'Loading: 1 process, ' in opt['loading']


def test_a_number_is_left_alone(world, parse, monkeypatch):
    opt = settled(world, parse, monkeypatch, 0.0, 16, num_worker_per_gpu=3)
    assert opt['datasets']['train']['num_worker_per_gpu'] == 3 and 'loading' not in opt


def test_a_gpu_gets_nothing_that_is_not_pinned(world, parse):
    options = world.options()
    options['datasets']['train'] |= {'prefetch_mode': 'cuda', 'pin_memory': False}
    with pytest.raises(UserError, match='datasets:train:pin_memory: with prefetch_mode: cuda, write pin_memory: true'):
        parse(world.write(options), world.root)


class Whose(Dataset):
    """The process that loads, and the number of the draw."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return {'process': os.getpid(), 'number': torch.rand(())}


def test_processes_are_started_once_for_basicsrs_two_iterators():
    """Its prefetcher makes one when it is built and another one when the epoch begins."""
    train = {'phase': 'train', 'num_worker_per_gpu': 2, 'batch_size_per_gpu': 1, 'num_prefetch_queue': 3}
    opt = {'datasets': {'train': train}, 'num_gpu': 0, 'dist': False}
    loaders.complete(opt)
    loader = training_loader(Drawn(Whose(), 0, 'datasets:train'), Draws(6, 1, 0, 1, 8), opt)
    assert loader.prefetch_factor == 3
    first = iter(loader)
    begun = {int(next(first)['process']) for _ in range(2)}
    found = list(loader)
    assert {int(batch['process']) for batch in found} == begun and len(begun) == 2
    train['persistent_workers'] = False
    alone = list(training_loader(Drawn(Whose(), 0, 'datasets:train'), Draws(6, 1, 0, 1, 8), opt))
    assert [float(batch['number']) for batch in found] == [float(batch['number']) for batch in alone]
    assert not begun & {int(batch['process']) for batch in alone} and os.getpid() not in begun


def test_without_a_start_auto_is_one_process():
    train = {'phase': 'train', 'num_worker_per_gpu': 'auto', 'batch_size_per_gpu': 1}
    loader = training_loader(
        Drawn(Whose(), 0, 'a'), Draws(6, 1, 0, 1, 2), {'datasets': {'train': train}, 'num_gpu': 0, 'dist': False}
    )
    assert loader.num_workers == 1 and loader.prefetch_factor == 2
