"""The threads of a training on the CPU: chosen when it begins, kept when it goes on, said in its log."""

import contextlib
import logging

import pytest
import torch
import yaml
from basicsr.models import build_model

from sdakd.compat import UserError
from sdakd_models.resuming import load_resume_state


@pytest.fixture
def free(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv('OMP_NUM_THREADS')
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def log():
    """What is logged within, as texts."""
    lines, logger = [], logging.getLogger('basicsr')
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)


def test_they_are_measured_logged_and_kept(world, parse, free, monkeypatch):
    from sdakd_models.sdakd_model import SDAKDModel

    crops, step = [], SDAKDModel.optimize_parameters

    def watched(model, iteration):
        crops.append((torch.get_num_threads(), model.lq.shape[-1], model.plan.at(iteration).name))
        return step(model, iteration)

    monkeypatch.setattr(SDAKDModel, 'optimize_parameters', watched)
    options = world.options()
    options['datasets']['train']['gt_size'] = 64
    options['train']['stages']['distillation']['iters'] = 30
    file = world.write(options)
    opt = parse(file, world.root)
    assert opt['threads'].split(':')[0] == f'{torch.get_num_threads()} thread{"s" * (torch.get_num_threads() > 1)}'
    # the rehearsal's own steps, on small crops, and those of the longest stage, on the run's
    assert {crop for _, crop, _ in crops[:3]} == {8} and {each[1:] for each in crops[3:]} == {(16, 'distillation')}
    assert {count for count, *_ in crops[3:]} >= {1, 2}
    assert opt.get('num_threads') is None and 'threads' not in yaml.safe_load(open(file, encoding='utf-8'))
    with log() as lines:
        model = build_model(opt)
    assert opt['threads'] in lines

    for key in ('models', 'training_states'):
        (world.root / 'experiments/run' / key).mkdir(parents=True)
    torch.set_num_threads(2)  # whatever was chosen
    model.save(0, 3)
    torch.set_num_threads(1)
    crops.clear()
    again = parse(file, world.root, '--auto_resume')
    assert {crop for _, crop, _ in crops} == {8} and torch.get_num_threads() == 1  # nothing was measured
    with log() as lines:
        model = build_model(again)
        model.resume_training(load_resume_state(again))
    assert torch.get_num_threads() == 2 and '2 threads, as before' in lines


@pytest.mark.parametrize('environment', [True, False])
def test_what_the_user_says_counts(world, parse, free, monkeypatch, environment):
    options = world.options() | ({} if environment else {'num_threads': 1})
    for key in ('models', 'training_states'):
        (world.root / 'experiments/run' / key).mkdir(parents=True)
    if environment:
        torch.set_num_threads(1)
        monkeypatch.setenv('OMP_NUM_THREADS', '1')
    opt = parse(world.write(options), world.root)
    assert torch.get_num_threads() == 1
    assert opt['threads'] == f'1 thread, as {"OMP_NUM_THREADS" if environment else "num_threads"} says'
    model = build_model(opt)
    torch.set_num_threads(2)
    model.save(0, 3)
    torch.set_num_threads(1)
    again = parse(world.root / 'run.yml', world.root, '--auto_resume')
    build_model(again).resume_training(load_resume_state(again))
    assert torch.get_num_threads() == 1  # a continued run had two, but the user says one


def test_measuring_changes_nothing_of_the_run(world, parse, free):
    """The same start with and without it: random numbers and weights."""
    found = []
    for number in (None, 2):
        options = world.options() | ({'num_threads': number} if number else {})
        model = build_model(parse(world.write(options), world.root))
        found.append([*(player.bare.state_dict() for player in model.players), {'next': torch.rand(5)}])
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize('value', [0, -1, 'two', True, 1.5])
def test_no_number(world, parse, value):
    with pytest.raises(
        UserError, match='num_threads: (write auto or a number of threads of at least 1, not|expected `int)'
    ):
        parse(world.write(world.options() | {'num_threads': value}), world.root)


def test_the_command_line_may_say_it(world, parse):
    opt = parse(world.write(world.options()), world.root, '--force_yml', 'num_threads=1')
    assert opt['num_threads'] == 1
