"""Stages as functions of the iteration, and the typed options."""

import copy
import math
import pickle

import pytest
import torch

from sdakd.compat import UserError
from sdakd_models.options import DiscriminatorBlock, TeacherBlock, Train, read_discriminators, read_train, typed
from sdakd_models.stages import CosineAnnealingLR, EveryOr, MultiStepLR, Plan, Stage, StageMark
from sdakd_models.terms.feature import FeatureMapTerm

NAN, INF = float('nan'), float('inf')


@pytest.fixture
def stages():
    return {
        'supervised': Stage(iters=3, terms=['pixel'], lr_g=2e-4),
        'distillation': Stage(iters=1, terms=['pixel', 'feature'], lr_g=1e-4),
        'adversarial': Stage(iters=4, terms=['pixel', 'gan'], lr_g=5e-5, lr_d=3e-5),
    }


# --------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize(
    ('iteration', 'index', 'name', 'step'),
    [
        (-5, 0, 'supervised', 1),
        (0, 0, 'supervised', 1),
        (1, 0, 'supervised', 1),
        (2, 0, 'supervised', 2),
        (3, 0, 'supervised', 3),
        (4, 1, 'distillation', 1),
        (5, 2, 'adversarial', 1),
        (8, 2, 'adversarial', 4),
        (9, 2, 'adversarial', 4),
        (1000, 2, 'adversarial', 4),
    ],
)
def test_moment_of_every_boundary(stages, iteration, index, name, step):
    moment = Plan(stages).at(iteration)
    assert (moment.index, moment.name, moment.step) == (index, name, step)
    assert moment.stage is stages[name]


def test_every_iteration_is_one_step_of_one_stage(stages):
    plan = Plan(stages)
    assert (plan.total_iter, plan.ends, plan.names) == (8, [3, 4, 8], list(stages))
    steps = [(moment.name, moment.step) for moment in map(plan.at, range(1, 9))]
    assert steps == [(name, step) for name, stage in stages.items() for step in range(1, stage.iters + 1)]


def test_a_plan_may_begin_with_a_later_stage(stages):
    plan = Plan(stages, 'distillation')
    assert (plan.total_iter, plan.ends, plan.names) == (5, [1, 5], ['distillation', 'adversarial'])
    assert [(plan.at(i).index, plan.at(i).name, plan.at(i).step) for i in (1, 2, 6)] == [
        (0, 'distillation', 1),
        (1, 'adversarial', 1),
        (1, 'adversarial', 4),
    ]


def test_learning_rates_of_both_sides(stages):
    plan = Plan(stages)
    assert [plan.learning_rate(i, 'g') for i in (1, 3, 4, 5, 9)] == [2e-4, 2e-4, 1e-4, 5e-5, 5e-5]
    assert [plan.learning_rate(i, 'd') for i in (1, 3, 4, 5, 9)] == [0, 0, 0, 3e-5, 3e-5]


# ----------------------------------------------------------------------------------------------------- learning rates


def rates_of_torch(make, base, iters):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = make(optimizer)
    rates = []
    for _ in range(iters):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return rates


def rates_of_ours(scheduler, base, iters, **options):
    # a stage before it: milestones and angles count from the stage's own beginning
    stages = {
        'before': Stage(iters=7, terms=['pixel'], lr_g=1.0),
        'stage': Stage(iters=iters, terms=['pixel'], lr_g=base, lr_d=base / 2, scheduler=scheduler, **options),
    }
    plan = Plan(stages)
    rates = [plan.learning_rate(i, 'g') for i in range(8, 8 + iters)]
    assert [plan.learning_rate(i, 'd') for i in range(8, 8 + iters)] == pytest.approx([r / 2 for r in rates], rel=1e-12)
    return rates


@pytest.mark.parametrize('milestones', [[5], [1, 4, 9], [4, 4, 7], [12, 3], [40], []])
@pytest.mark.parametrize('gamma', [0.5, 0.1])
def test_multi_step_is_torchs(milestones, gamma):
    wanted = rates_of_torch(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones, gamma), 3e-4, 15)
    assert rates_of_ours(MultiStepLR(milestones=milestones, gamma=gamma), 3e-4, 15) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize('eta_min', [0.0, 0.05, 1.0])
@pytest.mark.parametrize('iters', [1, 2, 20])
def test_cosine_is_torchs_with_its_least_rate_as_a_fraction(eta_min, iters):
    def make(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=iters, eta_min=eta_min * 2e-4)

    wanted = rates_of_torch(make, 2e-4, iters)
    assert rates_of_ours(CosineAnnealingLR(eta_min=eta_min), 2e-4, iters) == pytest.approx(wanted, rel=1e-9)


def test_warm_up_rises_linearly_and_multiplies_the_decay():
    rates = rates_of_ours(None, 4e-4, 8, warmup_iter=4)
    assert rates == pytest.approx([1e-4, 2e-4, 3e-4, 4e-4, 4e-4, 4e-4, 4e-4, 4e-4], rel=1e-12)
    both = rates_of_ours(MultiStepLR(milestones=[2, 6], gamma=0.5), 4e-4, 8, warmup_iter=4)
    assert both == pytest.approx([1e-4, 2e-4, 1.5e-4, 2e-4, 2e-4, 2e-4, 1e-4, 1e-4], rel=1e-12)


# ----------------------------------------------------------------------------------- numbers for BasicSR's loop and log


def test_every_or_is_met_at_multiples_and_at_the_named_iterations():
    every = EveryOr(4, (3, 10))
    assert [i for i in range(1, 13) if i % every == 0] == [3, 4, 8, 10, 12]
    assert [i % every for i in (1, 2, 5, 7)] == [1, 2, 1, 3]
    assert isinstance(every, int) and every == 4 and int(every) == 4


@pytest.mark.parametrize('clone', [copy.copy, copy.deepcopy, lambda every: pickle.loads(pickle.dumps(every))])
def test_every_or_survives_copies(clone):
    found = clone({'val_freq': EveryOr(5, (7,))})['val_freq']
    assert type(found) is EveryOr
    assert [i for i in range(1, 12) if i % found == 0] == [5, 7, 10]


def test_stage_mark_is_a_number_for_tensorboard_and_a_sentence_for_the_console():
    stages = {name: Stage(iters=12000, terms=['pixel'], lr_g=1e-4) for name in ('supervised', 'adversarial')}
    plan = Plan(stages)
    mark = StageMark(plan, plan.at(13234))
    assert float(mark) == 2.0
    # BasicSR's console line is f'{k}: {v:.4e} '
    assert f'stage: {mark:.4e} ' == 'stage: 2/2 adversarial 1,234/12,000 '
    assert f'{StageMark(plan, plan.at(1)):.4e}' == '1/2 supervised 1/12,000'
    assert math.isclose(mark + 1, 3.0)


# -------------------------------------------------------------------------------------------------------- typed options


BASE = {'iters': 10, 'terms': ['pixel'], 'lr_g': 1e-4}
WHERE = 'train:stages:first'


@pytest.mark.parametrize(
    ('key', 'text', 'number'),
    [
        ('lr_g', '2e-4', 2e-4),
        ('lr_d', '1E-5', 1e-5),
        ('grad_clip', '1', 1.0),
        ('iters', '100000', 100000),
        ('iters', '1e5', 100000),
        ('iters', 1e5, 100000),
        ('warmup_iter', '500', 500),
    ],
)
def test_numbers_written_as_text_become_numbers(key, text, number):
    found = getattr(typed(Stage, {**BASE, key: text}, WHERE), key)
    assert found == number
    assert type(found) is type(number)


def test_a_whole_stage_with_its_scheduler():
    stage = typed(Stage, {**BASE, 'scheduler': {'type': 'MultiStepLR', 'milestones': [5], 'gamma': '5e-1'}}, WHERE)
    assert stage.scheduler == MultiStepLR(milestones=[5], gamma=0.5)
    stage = typed(Stage, {**BASE, 'scheduler': {'type': 'CosineAnnealingLR'}}, WHERE)
    assert stage.scheduler == CosineAnnealingLR(eta_min=0.0)
    assert (stage.lr_d, stage.warmup_iter, stage.grad_clip, stage.reset_optimizers) == (None, 0, None, True)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('lr_g', NAN), ('lr_g', 'nan'), ('lr_g', '.nan'), ('lr_g', INF), ('lr_g', '-2e-4'), ('lr_g', -1e-4),
        ('lr_g', 0), ('lr_g', True), ('lr_g', 'fast'), ('lr_g', [1e-4]), ('lr_d', NAN),
        ('lr_d', -1), ('lr_d', INF), ('iters', 0), ('iters', -3), ('iters', 1.5), ('iters', True), ('iters', NAN),
        ('terms', 'pixel'), ('terms', []), ('terms', [3]), ('warmup_iter', -1), ('grad_clip', NAN), ('grad_clip', 0),
        ('reset_optimizers', 'perhaps'), ('scheduler', 'MultiStepLR'), ('scheduler', {'milestones': [5]}),
        ('scheduler', {'type': 'MultiStepLR'}), ('scheduler', {'type': 'MultiStepLR', 'milestones': '5'}),
        ('scheduler', {'type': 'MultiStepLR', 'milestones': [5], 'gamma': NAN}),
        ('scheduler', {'type': 'CosineAnnealingLR', 'eta_min': NAN}),
        ('scheduler', {'type': 'CosineAnnealingLR', 'eta_min': 1.5}),
    ],
)  # fmt: skip
def test_values_of_the_wrong_kind_are_refused_with_their_place(key, value):
    with pytest.raises(UserError, match=f'^{WHERE}:{key}') as caught:
        typed(Stage, {**BASE, key: value}, WHERE)
    assert '`$' not in str(caught.value) and '\n' not in str(caught.value)
    if not isinstance(value, (dict, list)) and value is not None:
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ('key', 'near'), [('lr', 'lr_g'), ('iter', 'iters'), ('term', 'terms'), ('gradclip', 'grad_clip')]
)
def test_unknown_keys_are_refused_with_near_names(key, near):
    with pytest.raises(UserError, match=f"^{WHERE}: unknown key '{key}'; did you mean.*{near}"):
        typed(Stage, {**BASE, key: 1}, WHERE)


def test_unknown_keys_and_types_of_a_scheduler_are_refused_with_near_names():
    with pytest.raises(UserError, match=f'^{WHERE}:scheduler.*milestone.*milestones'):
        typed(Stage, {**BASE, 'scheduler': {'type': 'MultiStepLR', 'milestone': [5]}}, WHERE)
    with pytest.raises(UserError, match=f'^{WHERE}:scheduler.*MultiStep.*MultiStepLR'):
        typed(Stage, {**BASE, 'scheduler': {'type': 'MultiStep', 'milestones': [5]}}, WHERE)


@pytest.mark.parametrize('key', ['iters', 'terms'])
def test_missing_keys_are_named(key):
    with pytest.raises(UserError, match=f'^{WHERE}: .*missing.*{key}'):
        typed(Stage, {k: v for k, v in BASE.items() if k != key}, WHERE)


@pytest.mark.parametrize('value', [None, [BASE], 'stage', 3])
def test_something_else_than_a_mapping_is_refused(value):
    with pytest.raises(UserError, match=f'^{WHERE}: write a mapping'):
        typed(Stage, value, WHERE)


def test_other_blocks_refuse_what_they_do_not_know():
    with pytest.raises(UserError, match="^teacher: unknown key 'weight'; did you mean weights"):
        typed(TeacherBlock, {'weight': 'a.pth'}, 'teacher')
    with pytest.raises(UserError, match="^discriminators:teacher:real: .*'ground truth'"):
        typed(DiscriminatorBlock, {'network': {}, 'real': 'ground truth'}, 'discriminators:teacher')
    with pytest.raises(UserError, match='^discriminators:teacher:fake'):
        typed(DiscriminatorBlock, {'network': {}, 'fake': ['gt']}, 'discriminators:teacher')
    with pytest.raises(UserError, match='^train:feature_opt:hidden_ratio'):
        typed(FeatureMapTerm.Options, {'hidden_ratio': NAN}, 'train:feature_opt')
    with pytest.raises(UserError, match='^train:ema_decay'):
        typed(Train, {'stages': {'first': BASE}, 'ema_decay': 1}, 'train')


def test_a_stage_that_is_no_mapping_is_named():
    with pytest.raises(UserError, match='^train:stages:first: '):
        read_train({'train': {'stages': {'first': 3}}}, {}).plan()


def test_plan_of_an_option_file():
    second = {**BASE, 'iters': '5', 'lr_d': '2e-5'}
    opt = {'train': {'stages': {'first': BASE, 'second': second}, 'pixel_opt': {'type': 'L1Loss'}}}
    plan = read_train(opt, {'pixel_opt': 'pixel'}).plan()
    assert (plan.names, plan.ends) == (['first', 'second'], [10, 15])
    assert plan.learning_rate(11, 'd') == 2e-5
    opt['train']['start_stage'] = 'second'
    assert read_train(opt, {'pixel_opt': 'pixel'}).plan().names == ['second']
    opt['train']['start_stage'] = 'secnd'
    with pytest.raises(UserError, match="^train:start_stage: .*'secnd'; did you mean second"):
        read_train(opt, {'pixel_opt': 'pixel'}).plan()
    with pytest.raises(UserError, match='^train:stages:second: unknown key'):
        read_train({'train': {'stages': {'first': BASE, 'second': {**second, 'lr': 1}}}}, {}).plan()


@pytest.mark.parametrize(
    ('train', 'sentence'),
    [
        (None, '^train: the block is missing'),
        ({}, '^train: .*missing.*stages'),
        ({'stages': {}}, '^train:stages'),
        ({'stages': {'first': BASE}, 'pixl_opt': {}}, "^train: unknown key 'pixl_opt'; did you mean pixel_opt"),
        ({'stages': {'first': BASE}, 'scheduler': {}}, '^train:scheduler: .*train:stages:<name>'),
        ({'stages': {'first': BASE}, 'optim_d': {'type': 'Adam', 'lr': 1e-4}}, '^train:optim_d:lr: .*lr_d'),
    ],
)
def test_mistakes_in_the_train_block_are_named(train, sentence):
    with pytest.raises(UserError, match=sentence):
        read_train({'train': train}, {'pixel_opt': 'pixel'}).plan()


def test_discriminators_by_name():
    found = read_discriminators(
        {
            'network_d': {'type': 'UNetDiscriminatorSN'},
            'path': {'pretrain_network_d': 'd.pth', 'param_key_d': 'params'},
            'discriminators': {'teacher': {'network': {'type': 'X'}, 'learns': False, 'fake': []}},
        }
    )
    assert list(found) == ['student', 'teacher']
    student, teacher = found.values()
    assert (student.weights, student.param_key, student.real, student.fake) == ('d.pth', 'params', 'gt', ['student'])
    assert (student.learns, student.trains_student, teacher.learns, teacher.trains_student) == (True, True, False, True)
    assert read_discriminators({}) == {}


def test_mistakes_in_discriminators_are_named():
    with pytest.raises(UserError, match='^discriminators:student: .*network_d'):
        read_discriminators({'discriminators': {'student': {'network': {}}}})
    with pytest.raises(UserError, match='^discriminators: write a mapping'):
        read_discriminators({'discriminators': ['teacher']})
    with pytest.raises(UserError, match='^discriminators:teacher:fake: '):  # nothing to learn to call fake
        read_discriminators({'discriminators': {'teacher': {'network': {}, 'learns': True, 'fake': []}}})
