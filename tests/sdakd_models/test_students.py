"""Several students in one run: each is, bit for bit, the student of a run of its own."""

import copy
import re
import runpy
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from sdakd.compat import UserError
from sdakd_models.common import Remembered
from sdakd_models.sdakd_model import SDAKDModel
from sdakd_models.students import expand

_resume = runpy.run_path(str(Path(__file__).with_name('test_resume.py')))
Runs, differences, scenario = (_resume[name] for name in ('Runs', 'differences', 'scenario'))
STUDENTS = {'w2': {'width': '1/2'}, 'w4': {'width': '1/4'}, 'w8': {'width': '1/8'}}


@pytest.fixture
def runs(world, monkeypatch):
    return Runs(world, monkeypatch)


def several(world, kind):
    """Options with widths, and the students."""
    options, students = scenario(world, 'paired' if kind == 'cached' else kind), copy.deepcopy(STUDENTS)
    options['network_g'] = {'width': '1/4'}
    options['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 16, 'width': '1/4'}
    if kind == 'cached':  # and what has numbers of its own: shifts, shares, units that are measured
        torch.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1().state_dict(), world.root / 'squeezenet.pth')
        options['teacher'] = {'weights': options['teacher']['weights'], 'cache': str(world.root / 'cache')}
        options['datasets']['train'] |= {'use_hflip': False, 'use_rot': False}
        backbone = {'backbone': 'squeezenet', 'weights': str(world.root / 'squeezenet.pth'), 'shift': 8}
        options['train'] |= {
            'perceptual_opt': {'type': 'BackbonePerceptualLoss', **backbone, 'loss_weight': 0.1},
            'feature_opt': {'type': 'FeatureMapLoss', 'share': 0.3},
        }
        for stage in options['train']['stages'].values():
            stage['terms'] = ['perceptual', *stage['terms']]
        own = {'lr_g': 2e-3, 'grad_clip': 0.5}
        students['w8']['train'] = {
            'feature_opt': {'layers': ['body.1', 'body.9']},
            'stages': {'distillation': own},
            'ema_decay': 0.5,
        }
    return options, students


def alone(options, name, entry):
    """The same student in an option file of its own."""
    own, more = copy.deepcopy(options), entry.get('train', {})
    for block in (own['network_g'], own['network_d']):
        block['width'] = entry['width']
    own['train']['feature_opt'] |= more.get('feature_opt', {})
    own['train']['ema_decay'] = more.get('ema_decay', own['train']['ema_decay'])
    own['train']['stages']['distillation'] |= more.get('stages', {}).get('distillation', {})
    return own | {'name': f'alone_{name}'}


@pytest.mark.parametrize('kind', ['paired', 'cached', 'degraded', 'reused'])
def test_each_is_the_student_of_a_run_of_its_own(world, runs, kind):
    """Networks, averages, adapters, optimizers, shares, random numbers, pools and all else that a run leaves."""
    options, students = several(world, kind)
    runs(world.write(options | {'name': 'joint', 'students': students}))
    for name, entry in students.items():
        runs(world.write(alone(options, name, entry), f'{name}.yml'))
        found, expected = runs.end(f'joint_{name}'), runs.end(f'alone_{name}')
        assert {'net_g_latest.pth', 'net_d_latest.pth', 'net_adapter_latest.pth', '12.state'} <= found.keys()
        assert not differences(found, expected)
    channels = [runs.end(f'joint_{name}')['net_g_latest.pth']['params']['body.0.weight'].shape[0] for name in students]
    assert channels == [4, 2, 1]


def test_a_joint_run_that_is_killed_goes_on_to_the_same_bits(world, runs, monkeypatch):
    options, students = several(world, 'reused')
    files = {name: world.write(options | {'name': name, 'students': students}, f'{name}.yml') for name in 'ab'}
    runs(files['a'])
    runs(files['b'], kill=5)
    write = SDAKDModel.write

    def cut(model, epoch, current_iter):  # after the first student has its checkpoint of iteration 8
        if current_iter == 8 and model.opt['name'] == 'b_w4':
            raise KeyboardInterrupt
        return write(model, epoch, current_iter)

    with monkeypatch.context() as patch:
        patch.setattr(SDAKDModel, 'write', cut)
        with pytest.raises(KeyboardInterrupt):
            runs(files['b'], '--auto_resume')
    states = {name: world.root / f'experiments/b_{name}/training_states' for name in students}
    assert [(folder / '8.state').exists() for folder in states.values()] == [True, False, False]
    runs(files['b'], '--auto_resume')
    for name in students:
        assert not differences(runs.end(f'a_{name}'), runs.end(f'b_{name}'))
    # and one of them alone, from the option file in its folder
    for path in states['w4'].glob('12*'):
        path.unlink()
    runs(world.root / 'experiments/b_w4/b_w4.yml', '--auto_resume')
    assert not differences(runs.end('a_w4'), runs.end('b_w4'))
