"""Several students in one run: each is, bit for bit, the student of a run of its own."""

import copy
import sys

import pytest
import torch
import yaml

sys.path.append(__file__.rpartition('/')[0])
from test_resume import Runs, differences, scenario  # noqa: E402

STUDENTS = {'w2': {'width': '1/2'}, 'w4': {'width': '1/4'}, 'w8': {'width': '1/8'}}


@pytest.fixture
def runs(world, monkeypatch):
    return Runs(world, monkeypatch)


def several(world, kind):
    options = scenario(world, kind)
    options['network_g'] = {'width': '1/4'}
    options['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 16, 'width': '1/4'}
    return options


def alone(options, name):
    own = copy.deepcopy(options)
    for block in (own['network_g'], own['network_d']):
        block['width'] = STUDENTS[name]['width']
    return own | {'name': f'alone_{name}'}


@pytest.mark.parametrize('kind', ['paired', 'degraded', 'reused'])
def test_each_is_the_student_of_a_run_of_its_own(world, runs, kind):
    options = several(world, kind)
    runs(world.write(options | {'name': 'joint', 'students': STUDENTS}))
    for name in STUDENTS:
        runs(world.write(alone(options, name), f'{name}.yml'))
        found, expected = runs.end(f'joint_{name}'), runs.end(f'alone_{name}')
        assert not differences(found, expected)
