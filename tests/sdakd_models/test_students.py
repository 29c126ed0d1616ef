"""Several students in one run: each is, bit for bit, the student of a run of its own."""

import copy
import re
import runpy
import signal
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from sdakd.commands.report.curves import is_run, read_run
from sdakd.compat import UserError
from sdakd_models.sdakd_model import SDAKDModel
from sdakd_models.students import expand
from sdakd_models.students_model import StudentsModel

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
        options['teacher']['precision'] = 'bf16'  # its answers for the cache are float32, for every student
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


@pytest.mark.parametrize('kind', ['paired', 'cached', 'degraded'])
def test_each_is_the_student_of_a_run_of_its_own(world, runs, kind):
    """Networks, averages, adapters, optimizers, shares, random numbers, pools and all else that a run leaves."""
    options, students = several(world, kind)
    if kind in ('paired', 'degraded'):
        del students['w4']
    runs(world.write(options | {'name': 'joint', 'students': students}))
    for name, entry in students.items():
        runs(world.write(alone(options, name, entry), f'{name}.yml'))
        found, expected = runs.end(f'joint_{name}'), runs.end(f'alone_{name}')
        assert {'net_g_latest.pth', 'net_d_latest.pth', 'net_adapter_latest.pth', '12.state'} <= found.keys()
        assert not differences(found, expected)
        assert found['net_g_latest.pth']['params']['body.0.weight'].shape[0] * int(name[1]) == 8


def test_so_it_is_in_a_run_that_was_killed_and_stopped(world, runs, monkeypatch):
    """With a pool whose pairs are reused."""
    options, students = several(world, 'reused')
    file = world.write(options | {'name': 'joint', 'students': students})
    runs(file, kill=5)  # in the middle of an iteration: one student has made its step
    step, write = SDAKDModel.optimize_parameters, SDAKDModel.write

    def stop(model, current_iter):
        step(model, current_iter)
        if current_iter == 7 and model.loop is not None:
            model.loop.wanted = signal.SIGTERM

    def cut(model, epoch, current_iter):  # in the middle of saving
        if current_iter == 8 and model.opt['name'] == 'joint_w4':
            raise KeyboardInterrupt
        return write(model, epoch, current_iter)

    for name, function, error in (('optimize_parameters', stop, SystemExit), ('write', cut, KeyboardInterrupt)):
        with monkeypatch.context() as patch:
            patch.setattr(SDAKDModel, name, function)
            with pytest.raises(error):
                runs(file, '--auto_resume')
    states = [world.root / f'experiments/joint_{name}/training_states' for name in students]
    assert [(folder / '8.state').exists() for folder in states] == [True, False, False]
    assert all((folder / '7.state').exists() for folder in states)
    runs(file, '--auto_resume')
    for name, entry in students.items():
        runs(world.write(alone(options, name, entry), f'{name}.yml'))
        assert not differences(runs.end(f'joint_{name}'), runs.end(f'alone_{name}'))
    # and one of them alone, with the option file in its folder
    assert 'resume_state' not in (world.root / 'experiments/joint_w4/joint_w4.yml').read_text()
    for path in states[1].glob('12*'):
        path.unlink()
    runs(world.root / 'experiments/joint_w4/joint_w4.yml', '--auto_resume')
    assert not differences(runs.end('joint_w4'), runs.end('alone_w4'))
    # a student that has begun later has no checkpoint of that iteration
    students['more'] = {'width': '1/8'}
    with pytest.raises(UserError, match=r'--auto_resume: the students have no whole checkpoint .*more has none\)'):
        runs(world.write(options | {'name': 'joint', 'students': students}), '--auto_resume')


def test_every_student_has_a_folder_as_any_run(world, fork):
    options, students = several(world, 'paired')
    options['logger'] |= {'use_tb_logger': True}
    options['train']['stages'] = {'supervised': {'iters': 2, 'lr_g': 1e-3, 'terms': ['pixel']}}
    del students['w8']
    file = world.write(options | {'name': 'joint', 'students': students})
    run = fork(world.root, '-opt', file)
    printed, folder = run.wait(), world.root / 'experiments'
    assert run.status == 0 and sorted(path.name for path in folder.glob('[!.]*')) == ['joint', 'joint_w2', 'joint_w4']
    assert re.search(r'INFO: w4: \[w4\.\.\]\[epoch: .*l_g_pix: ', printed)
    for name, features in (('w2', 4), ('w4', 2)):
        own = read_run(folder / f'joint_{name}')
        assert [at for at, _ in own.series['l_g_pix']] == [1, 2] and own.stages[0].terms == 'pixel'
        assert own.options[0] == f'joint_{name}.yml'
        complete = yaml.safe_load(own.options[1])
        assert complete['network_g']['num_feat'] == features and complete['name'] == f'joint_{name}'
        assert 'students' not in complete
        log = next((folder / f'joint_{name}').glob('train_*.log')).read_text()
        assert f'num_feat: {features}' in log and log.count('l_g_pix') == 2
        assert [*(world.root / f'tb_logger/joint_{name}').iterdir()]
    assert not is_run(folder / 'joint')
    assert yaml.safe_load((folder / 'joint/run.yml').read_text())['students'] == students
    second = fork(world.root, '-opt', file, change=lambda: None)
    assert second.wait() and second.status == 0  # begun anew, the first one is kept
    assert len([*folder.glob('joint*_archived_*')]) == 3


def test_the_teacher_and_the_backbone_are_there_once_and_run_once(world, parse):
    options, students = several(world, 'cached')
    del options['teacher']['cache']
    for stage in options['train']['stages'].values():
        stage['terms'] = ['perceptual', 'output', 'feature']
    options['train']['output_opt'] = {'type': 'L1Loss'}
    options['network_d'] = None
    opt = parse(world.write(options | {'students': students}), world.root) | {'root_path': str(world.root)}
    model = StudentsModel(opt)
    members = list(model.members.values())
    assert len({id(member.teachers['teacher']) for member in members}) == 1
    backbone, calls = members[0].terms['perceptual'].loss.backbone, []
    assert all(member.terms['perceptual'].loss.backbone is backbone for member in members)
    for network, name in ((members[0].teachers['teacher'], 'teacher'), (backbone.network, 'backbone')):
        network.register_forward_hook(lambda *_, name=name: calls.append(name))
    for number in (1, 2):
        calls.clear()
        model.feed_data({'lq': torch.rand(2, 3, 8, 8), 'gt': torch.rand(2, 3, 32, 32)})
        model.optimize_parameters(number)
        assert calls.count('teacher') == 1 and calls.count('backbone') == 1 + len(students)


@pytest.mark.parametrize(
    ('change', 'found'),
    [
        ({'w4': {'width': '1/3'}}, 'students:w4:width: '),
        ({'w4': {'wdth': '1/4'}}, "students:w4: unknown key 'wdth'; did you mean width"),
        ({'a/b': {'width': '1/4'}}, 'students:a/b: it names a folder'),
        ({'w4': {'network_g': {'type': 'SRVGGNetCompactt'}}}, "students:w4:network_g:type: nothing called '"),
        ({'w4': {'path': {'pretrain_network_g': 'none.pth'}}}, 'students:w4:path:pretrain_network_g: the file '),
        ({'w4': {'path': {'resume_state': 'x'}}}, 'students:w4:path:resume_state: this is the same for all students'),
        ({'w4': {'train': {'precision': 'bf16'}}}, 'students:w4:train:precision: this is the same for all students'),
        ({'w4': {'train': {'stages': {'supervised': {'iters': 9}}}}}, 'students:w4:train:stages:supervised:iters: thi'),
        ({'w4': {'train': {'stages': {'supervized': {}}}}}, 'did you mean supervised?'),
        ({'w4': {'train': {'ema_decay': 2}}}, 'students:w4:train:ema_decay: '),
        ({}, 'students: write a mapping of name and student'),
    ],
)
def test_mistakes_of_one_student_name_its_entry(world, parse, change, found):
    options, students = several(world, 'paired')
    with pytest.raises(UserError) as caught:
        parse(world.write(options | {'students': {'w2': students['w2'], **change} if change else {}}), world.root)
    assert f'run.yml: {found}' in str(caught.value) or found in str(caught.value)
    assert len(caught.value.mistakes) == 1 and not (world.root / 'experiments').exists()


def test_mistakes_of_all_students_are_told_once(world, parse, monkeypatch):
    options, students = several(world, 'paired')
    options['datasets']['train']['dataroot_gt'] = str(world.root / 'nowhere')
    options['logger']['wandb'] = {'project': None}
    file = world.write(options | {'students': students})
    with pytest.raises(UserError, match=r'run.yml: datasets:train:dataroot_gt: ') as caught:
        parse(file, world.root)
    assert len(caught.value.mistakes) == 1
    with pytest.raises(UserError, match='--launcher pytorch: several students are trained by one process'):
        parse(file, world.root, '--launcher', 'pytorch')
    more = {'logger': options['logger'] | {'wandb': {'project': 'x'}}, 'path': {'resume_state': 'x'}}
    with pytest.raises(UserError) as caught:
        parse(world.write(options | more | {'students': students}), world.root)
    assert [each.where.split(': ')[-1] for each in caught.value.mistakes] == ['path:resume_state', 'logger:wandb']


DROPPING = """
import torch
from basicsr.utils.registry import ARCH_REGISTRY

@ARCH_REGISTRY.register()
class Dropping(torch.nn.Sequential):
    def __init__(self, features):
        super().__init__(torch.nn.Conv2d(3, features, 3, 1, 1), torch.nn.Dropout(0.5),
                         torch.nn.Conv2d(features, 48, 3, 1, 1), torch.nn.PixelShuffle(4))
"""


def test_students_that_would_see_other_data_are_refused(world, parse, monkeypatch):
    (world.root / 'dropping.py').write_text(DROPPING)
    monkeypatch.syspath_prepend(str(world.root))
    options, students = several(world, 'reused')
    students['w8']['train'] = {'feature_opt': {'layers': ['body.1']}}
    with pytest.raises(UserError, match=r'students:w8: it compares other feature maps than w2, by which train:pool_'):
        parse(world.write(options | {'students': students}), world.root)
    options['train']['stages'] = {'only': {'iters': 2, 'lr_g': 1e-3, 'terms': ['pixel']}}
    students = {name: {'network_g': {'type': 'Dropping', 'features': int(name)}} for name in ('4', '8')}
    options |= {'imports': ['dropping'], 'students': students}
    with pytest.raises(UserError, match='students:8: in a step of the stage only it draws other random numbers'):
        parse(world.write(options), world.root)
    assert not (world.root / 'experiments').exists()


def test_a_width_takes_the_place_of_every_width(world):
    options, _ = several(world, 'paired')
    looks = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 8}
    options['discriminators'] = {'narrow': {'network': looks | {'width': '1/2'}}, 'wide': {'network': looks}}
    students = {'w8': {'width': '1/8'}, 'own': {'width': '1/8', 'network_d': {'width': '1/2'}}}
    found = expand(options | {'students': students})
    assert found['w8']['network_g'] == {'width': '1/8'} and found['w8']['network_d']['width'] == '1/8'
    assert found['own']['network_g'] == {'width': '1/8'} and found['own']['network_d']['width'] == '1/2'
    for each in found.values():
        assert each['discriminators']['narrow']['network']['width'] == '1/8' and 'students' not in each
        assert each['discriminators']['wide'] == options['discriminators']['wide']
    options['network_g'] = {'type': 'SRVGGNetCompact', 'num_feat': 4}
    with pytest.raises(UserError, match='students:w8:width: network_g has no width'):
        expand(options | {'students': students})
    del options['network_g']
    assert expand(options | {'students': students})['w8']['network_g'] == {'width': '1/8'}
