"""Option files that are broken one value at a time: a sentence, or a run to its end (test_scripts/mutate_options)."""

import importlib.util
import os
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.utils.registry import DATASET_REGISTRY, METRIC_REGISTRY

from sdakd.compat import Mistakes, UserError
from sdakd_models.basicsr_options import Degradation, FaceDataset, RealESRGANDataset, Validation
from sdakd_models.checks.keys import settle
from sdakd_models.options import DiscriminatorBlock, Logger, Train, is_finite, numeral
from sdakd_models.scenario import Scenario

ROOT = Path(__file__).parents[2]
SAMPLE = 79  # every n-th case is started; the script starts them all

_spec = importlib.util.spec_from_file_location('mutate_options', ROOT / 'test_scripts/mutate_options.py')
slips = importlib.util.module_from_spec(_spec)
sys.modules['mutate_options'] = slips
_spec.loader.exec_module(slips)


@pytest.fixture(scope='module')
def ground(tmp_path_factory):
    return slips.Ground(tmp_path_factory.mktemp('ground'))


@pytest.fixture(scope='module')
def cases(ground):
    return [case for run, make in slips.RUNS.items() for case in slips.cases(run, make(ground.folder / 'data'))]


def test_a_sample_of_all_slips(ground, cases):
    """From the option file to the end of a training, or to a sentence with nothing created and nothing archived."""
    sample = cases[::SAMPLE]
    happened = [(str(case), *ground.start(case)) for case in sample]
    wrong = [slips.verdict(case, what, said) for case, (_, what, said) in zip(sample, happened, strict=True)]
    assert [(each, reason) for each, reason in zip(happened, wrong, strict=True) if reason] == []
    assert {what for _, what, _ in happened} == {'runs', 'refused'}
    assert ground.before.keys() <= ground.state().keys()


def test_what_is_broken_holds_what_option_files_hold(cases):
    """Who adds a key is reminded of the runs that are broken here."""
    places = {':'.join(map(str, case.place)) for case in cases}
    structs = {'train': Train, 'logger': Logger, 'val': Validation, 'discriminators:other': DiscriminatorBlock}
    for block, struct in structs.items():
        assert {key for key in struct.__struct_fields__ if f'{block}:{key}' not in places} <= {'total_iter'}, block
    assert set(Degradation.__struct_fields__) <= places
    kept = {'use_shuffle', 'phase', 'scale', 'dataroot_lq'}
    assert {f'datasets:train:{key}' for key in RealESRGANDataset.__struct_fields__ if key not in kept} <= places
    assert {f'datasets:train:{key}' for key in FaceDataset.__struct_fields__ if key not in kept} <= places


def read(options):
    """The mistakes that are found without building a network."""
    with Mistakes() as mistakes:
        settle(options, mistakes)
        options.setdefault('num_gpu', 0)
        Scenario.read(options, mistakes=mistakes)
    return options


def test_every_misspelt_key_is_named(cases):
    """Of all blocks that are typed; arguments of networks, losses and metrics are asked of their classes later."""
    later = ('network', 'optim_', ':metrics:', 'name', 'model_type')
    looked_at = 0
    for case in cases:
        text = ':'.join(map(str, case.place))
        if case.kind != 'misspelt' or case.right != 'refused' or any(part in text for part in later):
            continue
        if isinstance(case.place[-1], int) or text.startswith(('train:', 'discriminators:')) and text.count(':') > 3:
            continue
        with pytest.raises(UserError) as error:
            read(deepcopy(case.options))
        assert slips.verdict(case, 'refused', str(error.value)) is None, (str(case), str(error.value))
        looked_at += 1
    assert looked_at > 100


# ------------------------------------------------ values, one by one ------------------------------------------------


def dataset(**values):
    kind = values.pop('type', 'PairedImageDataset')
    loader = {'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2}
    paired = {'gt_size': 32, 'use_hflip': True, 'use_rot': False, 'dataroot_lq': '/lq'}
    own = {'PairedImageDataset': paired}.get(kind, {})
    backend = {'io_backend': {'type': 'disk'}}
    return {'name': 'set', 'type': kind, 'dataroot_gt': '/gt', **backend, **loader, **own, **values}


def places(block, where='train'):
    options = {'datasets': {where: block}}
    mistakes = Mistakes()
    settle(options, mistakes)
    return [each.where for each in mistakes.found], options['datasets'].get(where)


@pytest.mark.parametrize(
    ('values', 'wrong'),
    [
        ({}, []),
        ({'prefetch_mode': 'cuda', 'pin_memory': True}, []),
        ({'prefetch_mode': 'cuda'}, []),
        ({'prefetch_mode': 'cuda', 'pin_memory': False}, ['datasets:train:pin_memory']),
        ({'num_worker_per_gpu': 'auto'}, []),
        ({'num_worker_per_gpu': 'many'}, ['datasets:train:num_worker_per_gpu']),
        ({'num_worker_per_gpu': -1}, ['datasets:train:num_worker_per_gpu']),
        ({'prefetch_mode': 'gpu'}, ['datasets:train:prefetch_mode']),
        ({'prefetch_mode': 'cpu', 'num_prefetch_queue': 0}, ['datasets:train:num_prefetch_queue']),
        ({'persistent_workers': True}, ['datasets:train:persistent_workers']),
        ({'persistent_workers': True, 'num_worker_per_gpu': 1}, []),
        ({'mean': [0.5, 0.5, 0.5]}, ['datasets:train:mean']),
        ({'mean': [0.5, 0.5, 0.5], 'std': [1, 1, 1]}, []),
        ({'filename_tmpl': 'x4'}, ['datasets:train:filename_tmpl']),
        ({'io_backend': {'type': 'disc'}}, ['datasets:train:io_backend:type']),
        ({'io_backend': {'type': 'disk', 'readonyl': True}}, ['datasets:train:io_backend']),
        ({'dataset_enlarge_ratio': 100, 'meta_info_file': None, 'color': 'y'}, []),
        ({'type': 'CachedPairedDataset'}, ['datasets:train:type']),
        ({'type': 'REDSDataset', 'num_frame': 5, 'interval_list': [1]}, []),
        ({'type': 'REDSDataset', 'batch_size_per_gpus': 5}, ['datasets:train:batch_size_per_gpus']),
    ],
)
def test_keys_of_the_loader(values, wrong):
    assert places(dataset(**values))[0] == wrong


@DATASET_REGISTRY.register()
class GuestDataset(torch.utils.data.Dataset):
    """A data set of a user's own, whose images have no inputs."""

    def __init__(self, opt):
        self.opt, self.paths = opt, []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {'gt': torch.zeros(3, 8, 8), self.opt.get('side', 'lr'): torch.zeros(3, 2, 2)}


def test_a_data_set_of_a_users_own_keeps_its_keys(world, parse):
    own = {'type': 'GuestDataset', 'anything': {'a': [None]}, 'nothing': None, 'batch_size_per_gpu': '2'}
    wrong, block = places(dataset(**own))
    assert wrong == [] and block['anything'] == {'a': [None]} and block['batch_size_per_gpu'] == 2
    options = world.options()
    options['datasets']['train'] |= own | {'gt_size': 32}
    with pytest.raises(UserError, match='datasets:train:type: GuestDataset gives no lq, which SDAKDModel reads'):
        parse(world.write(options), world.root / 'root')
    options['datasets']['train']['side'] = 'lq'
    assert parse(world.write(options), world.root / 'root')['datasets']['train']['side'] == 'lq'


def test_phases_have_names(world):
    for name, meant in (('trian', ['train']), ('vall', ['val']), ('test_1', []), ('train_2', ['train']), (3, [])):
        options = {'datasets': {name: dataset()}}
        mistakes = Mistakes()
        settle(options, mistakes)
        assert [each.where for each in mistakes.found] == [f'datasets:{name}'] and list(options['datasets']) == meant


DEGRADATION = [
    ('resize_prob', [0.2, 0.7, 0.2], 'add up to 1'),
    ('resize_prob', [0.5, 0.5], 'length >= 3'),
    ('resize_prob2', [0.33, 0.33, 0.33], None),  # within rounding
    ('resize_range', [1.5, 0.15], 'smaller number first'),
    ('resize_range', [0, 1.5], '>= 0.01'),
    ('noise_range', [-1, 30], '>= 0'),
    ('noise_range', [0, 0], None),
    ('noise_range2', [1, 25, 30], 'length <= 2'),
    ('jpeg_range', [30, 101], '<= 100'),
    ('jpeg_range2', [0, 95], '>= 1'),
    ('gray_noise_prob', 1.5, '<= 1'),
    ('second_blur_prob', 'often', 'expected'),
    ('high_order_degradation', 'maybe', 'expected `bool`'),
    ('l1_gt_usm', 2, 'expected `bool`'),
    ('queue_size', 0, '>= 1'),
    ('queue_size', '1.8e2', None),
    ('gt_size', float('inf'), 'expected `int`'),
    ('poisson_scale_range', [0.05, float('nan')], '>= 0'),
]


@pytest.mark.parametrize(('key', 'value', 'sentence'), DEGRADATION)
def test_values_of_the_degradation(key, value, sentence):
    options, mistakes = {key: value}, Mistakes()
    settle(options, mistakes)
    if sentence is None:
        assert mistakes.found == [] and options[key] == numeral(value) and is_finite(options[key])
    else:
        (error,) = mistakes.found
        assert error.where.startswith(key) and sentence in str(error) and options == {}


@pytest.mark.parametrize(
    ('values', 'place'),
    [
        ({}, None),
        ({'kernel_list': ['iso', 'anizo'], 'kernel_prob': [0.5, 0.5]}, 'kernel_list[1]'),
        ({'kernel_list': ['iso', 'aniso']}, 'kernel_prob'),
        ({'kernel_prob2': [1, 1, 0, 0, 0, 0]}, 'kernel_prob2'),
        ({'blur_kernel_size': 20}, 'blur_kernel_size'),
        ({'blur_kernel_size2': 23}, 'blur_kernel_size2'),
        ({'blur_sigma': [1, 1]}, 'blur_sigma'),  # BasicSR asserts that they differ
        ({'betag_range': [1, 1]}, None),
        ({'sinc_prob': -0.1}, 'sinc_prob'),
        ({'meta_info': None}, 'meta_info'),
        ({'io_backend': {'type': 'lmdb'}, 'meta_info': None}, None),
    ],
)
def test_kernels(world, values, place):
    kernels = deepcopy(world.kernels)
    block = dataset(type='RealESRGANDataset', meta_info='m.txt', use_hflip=True, use_rot=False, **kernels)
    wrong, _ = places(block | values)
    assert wrong == ([f'datasets:train:{place}'] if place else [])


@METRIC_REGISTRY.register()
def calculate_guest(img, img2, strictly: bool = False, fails='', **kwargs):
    if fails == 'raises':
        raise RuntimeError('no\nsuch image')
    return float('nan') if fails else float(np.abs(img - img2.astype(float)).mean())


@pytest.mark.parametrize(
    ('metric', 'sentence'),
    [
        ({'type': 'calculate_psnr', 'crop_border': 4}, None),
        ({'type': 'calculate_psnr'}, 'val:metrics:m:crop_border: the key is missing, calculate_psnr needs it'),
        ({'type': 'calculate_psnr', 'crop_border': -1}, 'm:crop_border: write a whole number of at least 0, not -1'),
        ({'type': 'calculate_psnr', 'crop_border': 128}, r'm: it cannot measure an image of 256x256 pixels \(nan\)'),
        ({'type': 'calculate_psnr', 'crop_boder': 4}, "m: calculate_psnr takes no 'crop_boder'; did you mean crop"),
        ({'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': 3}, 'm:test_y_channel: write true or false'),
        ({'type': 'calculate_ssim', 'crop_border': 4, 'better': 'more'}, 'm:better: write lower or higher'),
        ({'type': 'calculate_niqe', 'crop_border': 0}, None),
        ({'type': 'calculate_psnr_pt', 'crop_border': 0}, r'm: it cannot measure .*\(\w+: '),  # of tensors
        ({'type': 'calculate_guest', 'whatever': 3}, None),
        ({'type': 'calculate_guest', 'strictly': 3}, 'm:strictly: write true or false, not 3'),
        ({'type': 'calculate_guest', 'fails': 'raises'}, r'm: it cannot measure .* \(RuntimeError: no such image\)'),
        ({'type': 'calculate_guest', 'fails': 'nan'}, r'm: it cannot measure .* \(nan\)'),
    ],
)  # fmt: skip
def test_metrics_are_tried_before_a_run(world, parse, metric, sentence):
    """Else they are missing in validation, which comes after days."""
    options = world.options()
    options['val']['metrics'] = {'m': metric}
    options['train']['stages'] = {'one': {'iters': 2, 'lr_g': 1e-3, 'terms': ['pixel']}}
    file = world.write(options)
    if sentence is None:
        parse(file, world.root / 'root')
        return
    with pytest.raises(UserError, match=sentence) as error:
        parse(file, world.root / 'root')
    assert '\n' not in str(error.value) and not (world.root / 'root').exists()


def test_what_the_log_is_sent_to_is_installed(world, parse, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr('importlib.util.find_spec', lambda name, *a: None if name == 'wandb' else find(name, *a))
    options = world.options()
    options['logger']['wandb'] = {'project': 'mine', 'resume_id': None}
    with pytest.raises(UserError) as error:
        parse(world.write(options), world.root / 'root')
    assert [each.where.partition('.yml: ')[2] for each in error.value.mistakes] == [
        'logger:use_tb_logger',
        'logger:wandb:project',
    ]
    assert not os.path.exists(world.root / 'root')


def test_numbers_as_text_reach_basicsr_as_numbers(world, parse):
    options = world.options()
    options['datasets']['train'] |= {'batch_size_per_gpu': '2', 'gt_size': '3.2e1', 'num_worker_per_gpu': '0'}
    options |= {'manual_seed': '7', 'scale': '4'}
    options['val']['val_freq'] = '5e1'
    opt = parse(world.write(options), world.root)
    train = opt['datasets']['train']
    assert (train['batch_size_per_gpu'], train['gt_size'], train['num_worker_per_gpu']) == (2, 32, 0)
    assert (opt['manual_seed'], opt['scale'], int(opt['val']['val_freq'])) == (7, 4, 50)
    assert all(type(value) is int for value in (train['gt_size'], opt['scale'], opt['manual_seed']))
