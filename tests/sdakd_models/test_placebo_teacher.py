"""`teacher: shuffle`: the run's teacher is the placebo of its file, and nothing else in the run changes."""

import copy

import pytest
import torch

from sdakd.compat import UserError
from sdakd_arch.placebo import shuffle
from sdakd_arch.weights import fingerprint
from sdakd_models import launch
from sdakd_models.cast import Cast
from sdakd_models.scenario import Scenario


def teacher_of(world, **changes):
    options = world.options() | {'num_gpu': 0}
    options['teacher'] |= changes
    launch.check_options(options, str(world.root), 'run.yml')
    return Cast(Scenario.read(options), 'cpu')


def test_the_teacher_is_the_placebo_of_its_file(shared_world):
    cast = teacher_of(shared_world, shuffle=5)
    expected = copy.deepcopy(shared_world.teacher)
    shuffle(expected, 5)
    found = cast.teachers['teacher'].state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())
    assert not any(p.requires_grad for p in cast.teachers['teacher'].parameters())
    # what its answers on disk are told by
    assert cast.fingerprints['teacher'] == fingerprint(expected) != fingerprint(shared_world.teacher)
    plain = teacher_of(shared_world)
    student = plain.student.state_dict()
    assert all(torch.equal(value, student[key]) for key, value in cast.student.state_dict().items())


@pytest.mark.parametrize('value', [-1, 1.5, 'yes', True])
def test_mistakes_name_the_key(shared_world, value):
    with pytest.raises(UserError, match='teacher:shuffle'):
        teacher_of(shared_world, shuffle=value)
