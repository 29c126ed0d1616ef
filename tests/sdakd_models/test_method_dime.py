"""DiME: its loss against loops in float64, and training by its option file's terms."""

import math
import os

import pytest
import torch
import torchvision
from basicsr.models import build_model

from sdakd_losses.dime_loss import DistributionMatchingLoss
from sdakd_models.reader import read_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp('backbone') / 'squeezenet.pth'
    torch.manual_seed(3)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return {'backbone': 'squeezenet', 'weights': str(path)}


def images(number, seed=0):
    return torch.rand(number, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments_by_loops(maps):
    """By channel: the means over images of an image's mean over positions, and of its square."""
    means = [[math.fsum(map(math.fsum, plane)) / (len(plane) * len(plane[0])) for plane in image] for image in maps]
    columns = [*zip(*means, strict=True)]
    number = len(means)
    return [[math.fsum(x**power for x in column) / number for column in columns] for power in (1, 2)]


def test_the_formula_in_loops(backbone):
    loss = DistributionMatchingLoss(**backbone, first_weight=0.5, second_weight=3.0, loss_weight=0.7, units='given')
    loss = loss.double()
    student, teacher = images(3), images(3, seed=1)
    with torch.no_grad():
        deepest = [loss.backbone(each)[-1].tolist() for each in (student, teacher)]
    wanted = []
    for own, other in zip(*map(moments_by_loops, deepest), strict=True):
        wanted.append(math.fsum(abs(a - b) for a, b in zip(own, other, strict=True)) / len(own))
    (parts,) = loss.parts(student, teacher)
    assert parts['first'].item() == pytest.approx(0.35 * wanted[0], rel=1e-9)
    assert parts['second'].item() == pytest.approx(2.1 * wanted[1], rel=1e-9)
    assert loss(student, teacher).item() == pytest.approx(0.35 * wanted[0] + 2.1 * wanted[1], rel=1e-9)


def test_which_image_is_whose_does_not_count(backbone):
    """It compares distributions: the order of a batch changes nothing, and equal batches cost nothing."""
    loss = DistributionMatchingLoss(**backbone).double()
    student, teacher = images(3), images(3, seed=1)
    loss.eval()
    one = loss(student, teacher)
    loss.scales.set_extra_state({'seen': 0, 'totals': {}})
    assert loss(student, teacher.flip(0)).item() == pytest.approx(one.item(), rel=1e-9)
    assert loss(teacher.flip(0), teacher).item() < 1e-12 < one.item()


def test_the_gradient_is_the_students(backbone):
    student, teacher = images(2).requires_grad_(), images(2, seed=1).requires_grad_()
    loss = DistributionMatchingLoss(**backbone, units='given').double()
    loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    direction = torch.randn_like(student)
    step = 1e-6
    with torch.no_grad():
        wanted = (loss(student + step * direction, teacher) - loss(student - step * direction, teacher)) / (2 * step)
    assert (student.grad * direction).sum().item() == pytest.approx(wanted.item(), rel=1e-4)
    with pytest.raises(ValueError, match='first_weight, second_weight: both are 0'):
        DistributionMatchingLoss(**backbone, first_weight=0, second_weight=0)


def test_training_by_the_terms_of_its_option_file(world, parse, backbone):
    published = read_run(os.path.join(ROOT, 'options/methods/dime.yml'))
    options = world.options()
    del options['train']['feature_opt']
    judge = published['discriminators']['teacher'] | {'network': dict(options['network_d']), 'weights': None}
    options['discriminators'] = {'teacher': judge}
    options['datasets']['train']['gt_size'] = 64
    stages = {name: published['train']['stages'][name] for name in ('distillation', 'adversarial')}
    for stage in stages.values():
        stage |= {'iters': 4, 'lr_g': 2e-3, 'terms': [term for term in stage['terms'] if term != 'perceptual']}
    options['train'] |= {'stages': stages, 'imitation_opt': published['train']['imitation_opt'] | backbone}
    model = build_model(parse(world.write(options), world.root))
    assert {player.name for player in model.players} == {'g', 'd', 'd_teacher'}  # both learn
    gt = torch.rand(2, 3, 64, 64)
    for iteration in range(1, 9):
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)})
        model.optimize_parameters(iteration)
    log = model.get_current_log()
    assert {'l_g_imit_first_squeezenet', 'l_g_imit_second_squeezenet', 'l_g_gan', 'l_g_gan_teacher'} <= set(log)
    assert {'share_imitation', 'out_d_fake_teacher', 'out_d_fake'} <= set(log)
