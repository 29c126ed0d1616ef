"""Baselines and ablations of SDAKD are option files alone: each changes what its page says and nothing else."""

import os

import pytest

from sdakd_models.reader import read_run
from sdakd_models.scenario import Scenario

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GONE = object()
PIXEL, PLAIN, FEATURE = ['pixel'], ['pixel', 'perceptual'], ['pixel', 'perceptual', 'feature']
STAGE = 'train:stages:{}:{}'.format
NO_TEACHER = {STAGE('distillation', 'terms'): PLAIN, 'train:feature_opt': GONE}
TEACHER_D = {
    'network': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64, 'skip_connection': True},
    'weights': 'experiments/pretrained_models/teacher_discriminator_realesr_general_x4v3.pth',
    'real': 'gt',
    'fake': ['student'],
}
INSTEAD = {'network_d': GONE, 'discriminators': {'teacher': TEACHER_D}}

# what differs from options/sdakd_realesr_general_x4v3.yml, besides the name
CHANGES = {
    'l1': {
        **{STAGE(stage, 'terms'): PIXEL for stage in ('supervised', 'distillation', 'adversarial')},
        **{f'train:{term}_opt': GONE for term in ('perceptual', 'feature', 'gan')},
        'network_d': GONE,
        STAGE('adversarial', 'lr_d'): GONE,
    },
    'none_student_d': {**NO_TEACHER, STAGE('adversarial', 'terms'): [*PLAIN, 'gan']},
    'none_teacher_d': {**NO_TEACHER, STAGE('adversarial', 'terms'): [*PLAIN, 'gan'], 'network_d:num_feat': 64},
    'none_teacher_d_pretrained': {**NO_TEACHER, **INSTEAD, STAGE('adversarial', 'terms'): [*PLAIN, 'gan:teacher']},
    'sdakd': {},
    'sdakd_no_student_d': {**INSTEAD, STAGE('adversarial', 'terms'): [*FEATURE, 'gan:teacher']},
    'sdakd_no_stage1': {
        STAGE('supervised', 'terms'): FEATURE,
        STAGE('distillation', 'reset_optimizers'): False,
    },
    'sdakd_no_stage2': {STAGE('distillation', 'terms'): PLAIN, STAGE('distillation', 'reset_optimizers'): False},
    'sdakd_no_feature': {'train:feature_opt': None},
    'sdakd_linear': {'train:feature_opt:hidden_ratio': 0},
    'sdakd_feature_in_stage1': {STAGE('supervised', 'terms'): FEATURE},
}


def load(file):
    return read_run(os.path.join(ROOT, 'options', file))


def differences(base, other, path=''):
    """What stands in ``other``, by the path of keys, where it differs from ``base``; GONE for what it lacks."""
    found = {}
    for key in {**base, **other}:
        where = f'{path}:{key}'.lstrip(':')
        if key not in other:
            found[where] = GONE
        elif key in base and isinstance(base[key], dict) and isinstance(other[key], dict):
            found |= differences(base[key], other[key], where)
        elif key not in base or base[key] != other[key]:
            found[where] = other[key]
    return found


@pytest.mark.parametrize('name', CHANGES)
def test_only_what_it_says_is_changed(name):
    base, other = load('sdakd_realesr_general_x4v3.yml'), load(f'methods/{name}.yml')
    assert differences(base, other) == {'name': name, **CHANGES[name]}


def plays(name):
    """Terms of every stage, and whom they need."""
    opt = load(f'methods/{name}.yml')
    scenario = Scenario.read(opt)
    return list(scenario.active.values()), list(scenario.teachers), scenario.discriminators


@pytest.mark.parametrize('name', ['l1', 'none_student_d', 'none_teacher_d', 'none_teacher_d_pretrained'])
def test_a_baseline_needs_no_teacher(name):
    assert plays(name)[1] == []


@pytest.mark.parametrize(
    ('one', 'other'), [('sdakd_no_feature', 'none_student_d'), ('sdakd_no_stage1', 'sdakd_feature_in_stage1')]
)
def test_rows_that_are_one_training_are(one, other):
    """The page says so, and that their difference in a table is noise."""
    assert plays(one) == plays(other)
