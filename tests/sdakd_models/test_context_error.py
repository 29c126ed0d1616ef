"""The teacher's error on crops, measured when a run starts: against passes written out here, and what it advises."""

import copy
import logging
import random
import re

import cv2
import numpy as np
import pytest
import torch
from basicsr.models import build_model
from torch import nn
from torch.nn import functional as F

from sdakd_models.context_error import reach

NAMES = ['astronaut', 'chelsea', 'coffee', 'rocket']


@pytest.fixture
def large(world, photographs):
    """Photographs of 128 pixels, crops of 64 (16 of the input) and a teacher that sees far and draws strongly."""
    for folder in ('HR', 'LRx4'):
        for path in (world.root / folder).iterdir():
            path.unlink()
    for name in NAMES:
        image = photographs[name][..., ::-1]
        cv2.imwrite(str(world.root / f'HR/{name}.png'), image)
        cv2.imwrite(str(world.root / f'LRx4/{name}.png'), cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA))
    with torch.no_grad():
        for layer in world.teacher.body:
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(2)
    torch.save({'params': world.teacher.state_dict()}, world.root / 'teacher.pth')
    return world


def start(world, parse, options):
    """Builds the model; returns it with what was logged about teachers, by level."""
    records = {logging.INFO: [], logging.WARNING: []}
    handler = logging.Handler()
    handler.emit = lambda record: records[record.levelno].append(record.getMessage())
    logger = logging.getLogger('basicsr')
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        model = build_model(parse(world.write(options), world.root))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return model, *([text for text in records[kind] if 'in context' in text] for kind in records)


def settings(world, margin, terms=('pixel', 'output')):
    options = world.options()
    (world.root / 'list.txt').write_text(''.join(f'{name}.png (128,128,3)\n' for name in NAMES))
    options['datasets']['train'] |= {'gt_size': 64, 'meta_info_file': str(world.root / 'list.txt')}
    options['train']['stages'] = {'only': {'iters': 2, 'lr_g': 1e-3, 'terms': list(terms)}}
    options['train'] |= {'output_opt': {'type': 'L1Loss', 'loss_weight': 1.0}, 'teacher_margin': margin}
    return options


def inputs(world):
    """The two images that are looked at on a CPU, ``(1, 3, 32, 32)``: a quarter and three quarters along the list."""
    for name in (NAMES[1], NAMES[3]):
        image = cv2.imread(str(world.root / f'LRx4/{name}.png'))[..., ::-1].astype(np.float32) / 255
        yield torch.from_numpy(image.copy()).permute(2, 0, 1)[None]


def decibels(world, margin):
    """Crops of 16 with 8 pixels around them, all that there is: the mean square over both images."""
    errors = []
    for image in inputs(world):
        with torch.no_grad():
            whole = world.teacher(image).clamp(0, 1)[..., 32:96, 32:96]
            part = world.teacher(image[..., 8:24, 8:24]).clamp(0, 1)
        cut = slice(4 * margin, 64 - 4 * margin)
        errors.append(((whole - part)[..., cut, cut].double() ** 2).mean().item())
    return -10 * np.log10(np.mean(errors) + 1e-12)


def test_no_border_warns_with_the_figure_and_the_margin_that_helps(large, parse):
    assert decibels(large, 0) < 36 < decibels(large, 4)
    _, info, warned = start(large, parse, settings(large, 0))
    assert info == [] and len(warned) == 1 and '\n' not in warned[0]
    wanted = f'inside a border of 0, its image of crops of 16 input pixels is {decibels(large, 0):.1f} dB from'
    assert warned[0].startswith(f'teacher: {wanted} what it makes of them in context')
    assert warned[0].endswith(f'write train:teacher_margin: 4 ({decibels(large, 4):.1f} dB).')


def test_a_border_as_wide_as_the_networks_reach_is_well(large, parse):
    """Six convolutions of 3x3: a pixel that is six away from the border knows nothing of it."""
    assert reach(large.teacher) == 6
    _, info, warned = start(large, parse, settings(large, 6))
    assert warned == [] and len(info) == 1 and 'inside a border of 6' in info[0]
    assert float(re.search(r'is ([\d.]+) dB', info[0])[1]) > 100


def test_feature_maps_are_told_in_units_of_their_variance(large, parse):
    _, _, (warned,) = start(large, parse, settings(large, 1, ('pixel', 'feature')))
    wanted = {}
    for image in inputs(large):
        maps = {}
        for who, part in (('whole', image), ('part', image[..., 8:24, 8:24])):
            with torch.no_grad():
                for number, layer in enumerate(large.teacher.body):
                    part = layer(part)
                    maps[who, number] = part[..., 8:24, 8:24] if who == 'whole' else part
        for number in (3, 5, 7, 9):
            whole, part = (maps[who, number][..., 1:-1, 1:-1].double() for who in ('whole', 'part'))
            error = ((whole - part) ** 2).mean() / whole.var(unbiased=False)
            wanted.setdefault(number, []).append(error.item())
    told = {int(number): float(error) for number, error in re.findall(r'body\.(\d+) ([\d.e-]+)', warned)}
    assert told == pytest.approx({number: np.mean(errors) for number, errors in wanted.items()}, rel=0.06)


def test_where_no_margin_helps_a_larger_crop_is_advised(large, parse):
    options = settings(large, 0)
    options['datasets']['train']['gt_size'] = 32  # a border of 4 would leave nothing of 8 input pixels
    _, _, warned = start(large, parse, options)
    assert len(warned) == 1 and warned[0].endswith('raise gt_size, for example to 64.')


def test_ground_truth_to_degrade_is_reduced_by_an_antialiased_bicubic(large, parse):
    (large.root / 'meta.txt').write_text(''.join(f'{name}.png\n' for name in NAMES))
    options = settings(large, 0)
    options['datasets']['train'] = {
        'name': 'gt', 'type': 'RealESRGANDataset', **large.kernels, 'use_hflip': False, 'use_rot': False, 'gt_size': 64,
        'num_worker_per_gpu': 0, 'batch_size_per_gpu': 2, 'dataroot_gt': str(large.root / 'HR'),
        'meta_info': str(large.root / 'meta.txt'), 'io_backend': {'type': 'disk'},
    }  # fmt: skip
    options |= {'model_type': 'SDAKDRealESRGANModel', **large.degradation}
    _, _, (warned,) = start(large, parse, options)
    errors = []
    for name in (NAMES[1], NAMES[3]):
        image = cv2.imread(str(large.root / f'HR/{name}.png'))
        image = cv2.copyMakeBorder(image, 0, 272, 0, 272, cv2.BORDER_REFLECT_101)  # BasicSR's 400x400
        image = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
        # 16 input pixels with 24 on each side, in the middle
        lq = F.interpolate(image[..., 72:328, 72:328], (64, 64), mode='bicubic', antialias=True).clamp(0, 1)
        with torch.no_grad():
            whole, part = large.teacher(lq).clamp(0, 1)[..., 96:160, 96:160], large.teacher(lq[..., 24:40, 24:40])
        errors.append(((whole - part.clamp(0, 1)).double() ** 2).mean().item())
    assert f'is {-10 * np.log10(np.mean(errors)):.1f} dB' in warned


def test_nothing_is_measured_where_it_does_not_matter(large, parse):
    options = settings(large, 0)
    options['teacher']['cotrain'] = {'metric': 'psnr'}
    assert start(large, parse, options)[1:] == ([], [])  # learns along
    opt = parse(large.write(settings(large, 0)), large.root)
    resumed = {**opt['path'], 'resume_state': 'some.state'}
    for change, measured in (({}, True), ({'rank': 1}, False), ({'path': resumed}, False)):
        images = []
        hook = nn.modules.module.register_module_forward_hook(lambda _m, _i, out: images.append(out))  # noqa: B023
        build_model({**copy.deepcopy(opt), **change})
        hook.remove()
        assert bool(images) == measured
    near = settings(large, 0)
    near['datasets']['train']['gt_size'] = 128  # the images' size: there is no context
    assert start(large, parse, near)[1:] == ([], [])
    other = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, (5, 1)))
    assert reach(other) == 3


def test_numbers_that_the_run_draws_are_the_same(large, parse):
    states = []
    for margin in (0, 8):
        options = settings(large, 0)
        options['teacher'] |= {'cotrain': {'metric': 'psnr'}} if margin else {}
        opt = parse(large.write(options), large.root)
        random.seed(1), np.random.seed(1)
        build_model(opt)
        states.append((random.random(), np.random.rand()))
    assert states[0] == states[1]
