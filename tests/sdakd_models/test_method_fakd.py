"""FAKD: its loss against loops in float64, and training by its option file's terms."""

import math
import os

import pytest
import torch
from basicsr.models import build_model

from sdakd_losses.fakd_loss import FeatureAffinityLoss
from sdakd_models.reader import read_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def affinities(image):
    """Cosines between the features of all positions of one image, ``[row][column]``, from nested lists."""
    features = [[channel[y][x] for channel in image] for y in range(len(image[0])) for x in range(len(image[0][0]))]
    norms = [math.sqrt(math.fsum(value * value for value in feature)) for feature in features]
    unit = [[value / norm for value in feature] for feature, norm in zip(features, norms, strict=True)]
    return [[math.fsum(a * b for a, b in zip(one, other, strict=True)) for other in unit] for one in unit]


def by_loops(student, teacher):
    """Mean over taps of the mean absolute difference of affinities, over images and pairs of positions."""
    taps = []
    for tap, batch in student.items():
        differences = []
        for one, other in zip(batch.tolist(), teacher[tap].tolist(), strict=True):
            for row, teacher_row in zip(affinities(one), affinities(other), strict=True):
                differences += [abs(a - b) for a, b in zip(row, teacher_row, strict=True)]
        taps.append(math.fsum(differences) / len(differences))
    return math.fsum(taps) / len(taps)


def test_the_formula_in_loops():
    student = {'a': maps(2, 3, 4, 5), 'b': maps(2, 4, 3, 3, seed=1)}
    teacher = {'a': maps(2, 7, 4, 5, seed=2), 'b': maps(2, 4, 3, 3, seed=3)}
    found = FeatureAffinityLoss(loss_weight=0.7)(student, teacher)
    assert found.dtype == torch.float64 and found.item() == pytest.approx(0.7 * by_loops(student, teacher), rel=1e-12)


def test_larger_maps_are_pooled_by_means():
    student, teacher = maps(1, 3, 8, 8), maps(1, 5, 8, 8, seed=1)
    pooled = [x.reshape(1, -1, 4, 2, 4, 2).mean((3, 5)) for x in (student, teacher)]
    found = FeatureAffinityLoss(side=4)({'a': student}, {'a': teacher})
    assert found.item() == pytest.approx(by_loops({'a': pooled[0]}, {'a': pooled[1]}), rel=1e-12)


def test_scale_and_channels_do_not_count():
    """The affinities of features are those of their multiples, and of the same features beside zeros."""
    features = maps(1, 3, 4, 4)
    wider = torch.cat([5 * features, torch.zeros(1, 2, 4, 4, dtype=torch.float64)], 1)
    assert FeatureAffinityLoss()({'a': features}, {'a': wider}).item() == pytest.approx(0, abs=1e-15)


def test_the_gradient_is_that_of_finite_differences():
    student, teacher = maps(1, 2, 3, 3).requires_grad_(), maps(1, 4, 3, 3, seed=1).requires_grad_()
    loss = FeatureAffinityLoss()
    assert torch.autograd.gradcheck(lambda x: loss({'a': x}, {'a': teacher}), student)
    loss({'a': student}, {'a': teacher}).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_training_by_the_terms_of_its_option_file(world, parse):
    """Twenty iterations of its stages on small networks; the affinities come closer than they were."""
    published = read_run(os.path.join(ROOT, 'options/methods/fakd.yml'))['train']
    options = world.options()
    del options['network_d'], options['train']['gan_opt']
    stages = {'distillation': published['stages']['distillation'], 'adversarial': published['stages']['adversarial']}
    for stage in stages.values():
        stage |= {'iters': 10, 'lr_g': 2e-3, 'terms': [term for term in stage['terms'] if term != 'perceptual']}
    options['train'] |= {'stages': stages, **{f'{term}_opt': published[f'{term}_opt'] for term in ('output', 'fakd')}}
    model = build_model(parse(world.write(options), world.root))
    assert [player.name for player in model.players] == ['g']  # no adapters
    gt = torch.rand(2, 3, 32, 32)
    values = []
    for iteration in range(1, 21):
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)})
        model.optimize_parameters(iteration)
        log = model.get_current_log()
        values.append(log['l_g_fakd'] / log['weight_fakd'])
    assert {'l_g_pix', 'l_g_output', 'l_g_fakd', 'share_fakd', 'weight_fakd'} <= set(log)
    assert values[-1] < values[0]
