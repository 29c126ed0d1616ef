"""The rehearsal: every stage's first step before anything is created, without a trace."""

import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.models import build_model
from basicsr.utils.registry import LOSS_REGISTRY

from sdakd.compat import UserError
from sdakd_arch import weights
from sdakd_models import launch
from sdakd_models.cast import Cast
from sdakd_models.rehearsal import rehearse, shrunk, untouched
from sdakd_models.scenario import Scenario
from sdakd_models.terms import TERMS, Term

ROOT = Path(__file__).parents[2]


@LOSS_REGISTRY.register()
class FailingLoss(torch.nn.Module):
    """A loss that fails where it is told to."""

    def __init__(self, loss_weight=1.0, where='forward'):
        super().__init__()
        self.loss_weight, self.where = loss_weight, where

    def forward(self, one, other):
        if self.where == 'forward':
            raise RuntimeError('the size of tensor a\n(3) must match')
        value = (one - other).abs().mean()
        if self.where == 'backward':
            value.register_hook(lambda _: 1 / 0)
        return value


def everything(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob('*')}


@pytest.mark.parametrize(
    ('where', 'sentence'),
    [
        ('forward', r"train:stages:distillation: .* in the term 'output' \(RuntimeError: the size of tensor a \(3\) "),
        ('backward', r'train:stages:distillation: .* in the backward pass or the update \(ZeroDivisionError'),
    ],
)
def test_a_term_that_fails_in_a_later_stage_is_named_at_once(world, parse, where, sentence):
    options = world.options()
    options['train']['output_opt'] = {'type': 'FailingLoss', 'where': where}
    options['train']['stages']['distillation']['terms'] = ['pixel', 'output']
    file = world.write(options)
    before = everything(world.root)
    with pytest.raises(UserError, match=sentence) as error:
        parse(file, world.root)
    assert '\n' not in str(error.value) and everything(world.root) == before


@pytest.mark.parametrize('answer', [lambda loss: None, lambda loss: loss], ids=['nothing', 'a tensor'])
def test_a_term_that_returns_no_mapping_is_named(world, parse, monkeypatch, answer):
    """A forgotten return would take the term out of the stage in silence."""

    class Forgetful(Term):
        name, option = 'forgetful', 'forgetful_opt'

        def __call__(self, context):
            return answer(self.loss(context.student, context.target('pixel')))

    monkeypatch.setitem(TERMS, 'forgetful', Forgetful)
    options = world.options()
    options['train']['forgetful_opt'] = {'type': 'L1Loss'}
    options['train']['stages']['distillation']['terms'] = ['pixel', 'forgetful']
    with pytest.raises(UserError, match=r"train:stages:distillation: .* in the term 'forgetful' \(TypeError"):
        parse(world.write(options), world.root)


def test_a_teacher_that_answers_with_no_numbers_is_refused(world, parse):
    """Its weights are numbers, and what they make of an image is none."""
    state = {key: tensor * 1e30 for key, tensor in world.teacher.state_dict().items()}
    torch.save({'params': state}, world.root / 'teacher.pth')
    with pytest.raises(UserError, match=r'train:stages:distillation: the loss l_g_feature is nan in a rehearsal'):
        parse(world.write(world.options()), world.root)


def test_a_discriminator_that_cannot_be_trained_is_named(world, parse):
    options = world.options()
    options['train']['gan_opt'] = {'type': 'FailingLoss'}
    with pytest.raises(UserError, match=r"train:stages:adversarial: .* in the term 'gan' \(TypeError"):
        parse(world.write(options), world.root)


def train(world, parse, options, steps=60):
    """Trains a parsed run on fixed batches; returns all that it saves."""
    opt = parse(world.write(options), world.root)
    folder = world.root / 'experiments/run'
    for key in ('models', 'training_states', 'visualization'):
        (folder / key).mkdir(parents=True, exist_ok=True)
    model = build_model(opt)
    for iteration in range(1, steps + 1):
        gt = torch.rand(2, 3, 32, 32)
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)})
        model.optimize_parameters(iteration)
    model.save(0, steps)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    files = sorted(folder.rglob(f'*{steps}.[ps]*'))
    saved = {file.name: torch.load(file, weights_only=True) for file in files}
    assert saved[f'{steps}.state'].pop('clock')['seconds']  # how long steps have taken
    return saved, drawn


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_run_with_and_without_a_rehearsal_is_the_same_run(world, parse, monkeypatch):
    """Bit for bit: weights, averages, adapters, spectral norm, optimizers, running scales, and random numbers."""
    options = world.options()
    for stage in options['train']['stages'].values():
        stage['iters'] = 3
    options['train']['feature_opt'] = {'type': 'FeatureMapLoss', 'share': 0.3}
    rehearsed, drawn = train(world, parse, options, 9)
    monkeypatch.setattr(launch, 'rehearse', lambda *_: None)
    plain, other = train(world, parse, options, 9)
    assert set(rehearsed) == {'net_g_9.pth', 'net_d_9.pth', 'net_adapter_9.pth', '9.state'}
    assert same(rehearsed, plain) and drawn == other


def test_it_makes_the_first_step_of_every_stage_on_small_crops(world, parse, monkeypatch):
    opt = parse(world.write(world.options()), world.root)
    from sdakd_models.sdakd_model import SDAKDModel

    seen, step = [], SDAKDModel.optimize_parameters

    def note(model, iteration):
        weights = [parameter.clone() for player in model.players for parameter in player.bare.parameters()]
        step(model, iteration)
        after = [parameter for player in model.players for parameter in player.bare.parameters()]
        seen.append((model.plan.at(iteration).name, model.plan.at(iteration).step, tuple(model.lq.shape)))
        assert all(torch.equal(one, other) for one, other in zip(weights, after, strict=True))

    monkeypatch.setattr(SDAKDModel, 'optimize_parameters', note)
    opt['datasets']['train']['gt_size'] = opt['gt_size'] = 256  # 64 input pixels, of which 8 are enough
    rehearse(opt)
    assert seen == [(name, 1, (2, 3, 8, 8)) for name in ('supervised', 'distillation', 'adversarial')]


def test_a_discriminator_of_one_size_sees_that_size(world):
    """With reused pairs, which have context, nothing of a crop is left out: in a rehearsal neither."""
    options = world.options() | {'num_gpu': 0}
    network = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 4, 'input_size': 128}
    options['discriminators'] = {'teacher': {'network': network, 'fake': ['teacher']}}
    options['train']['stages']['adversarial']['terms'] = ['pixel', 'gan:teacher']
    options['train']['pool_reuse'] = 2
    options['datasets']['train']['gt_size'] = options['gt_size'] = 128
    small = shrunk(options, Cast(Scenario.read(options), 'meta'))
    assert small['gt_size'] == 128 and Scenario.read(small).inside == 32
    options['train']['pool_reuse'] = 1  # crops have a border then, and what it leaves is no image for this one
    with pytest.raises(UserError, match='does not take images of'):
        shrunk(options, Cast(Scenario.read(options), 'meta'))


def test_a_file_is_read_once(world, parse, monkeypatch):
    """The check, the rehearsal and the model share the teacher's tensors; a file that changes is read again."""
    read, load = [], weights._load
    monkeypatch.setattr(weights, '_load', lambda path, *a, **k: read.append(str(path)) or load(path, *a, **k))
    file = world.write(world.options())
    build_model(parse(file, world.root))
    assert read == [str(world.root / 'teacher.pth')]
    state = {key: tensor + 1 for key, tensor in world.teacher.state_dict().items()}
    torch.save({'params': state}, world.root / 'teacher.pth')
    model = build_model(parse(file, world.root))
    assert len(read) == 2 and same(dict(model.teachers['teacher'].state_dict()), state)


def test_the_logger_is_put_back_where_a_rehearsal_fails(capfd):
    import logging

    from basicsr.utils import get_root_logger
    from basicsr.utils import logger as module

    before, handlers = dict(module.initialized_logger), list(logging.getLogger('basicsr').handlers)
    with pytest.raises(ZeroDivisionError), untouched(cuda=False):
        get_root_logger().warning('said by nobody')
        raise ZeroDivisionError
    assert module.initialized_logger == before and not logging.getLogger('basicsr').disabled
    assert logging.getLogger('basicsr').handlers == handlers and 'nobody' not in capfd.readouterr().err


def test_the_command_ends_with_one_sentence_and_status_2(world):
    (world.root / 'broken.py').write_text(
        textwrap.dedent("""
            from sdakd_models.terms import Term, register_term

            @register_term('broken')
            class BrokenTerm(Term):
                def __call__(self, context):
                    return {'broken': self.loss(context.student, context.nothing)}
        """)
    )
    options = world.options() | {'imports': ['broken']}
    options['train']['broken_opt'] = {'type': 'L1Loss'}
    options['train']['stages']['adversarial']['terms'].append('broken')
    start = 'import sys; sys.path.remove(""); from sdakd.cli import train; sys.exit(train(root_path="."))'
    process = subprocess.run(
        [sys.executable, '-c', start, '-opt', world.write(options)],
        cwd=world.root,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)},
        timeout=300,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out = process.stdout
    assert process.returncode == 2 and 'Traceback' not in out, out
    assert "train:stages:adversarial: a rehearsal of the first step fails in the term 'broken' (AttributeError" in out
    assert not (world.root / 'experiments').exists()
