"""The feature-map loss against its formula."""

import math

import pytest
import torch

from sdakd_arch.adapter_arch import AdapterBank, ChannelMLP
from sdakd_losses.feature_loss import FeatureMapLoss

SHAPES = {'body.0': (2, 3, 4, 5), 'body.1': (2, 6, 2, 3), 'conv9:input': (1, 1, 3, 3)}


ORDERS = {'planes': (torch.contiguous_format,) * 2, 'pixels': (torch.channels_last,) * 2}
ORDERS['mixed'] = ORDERS['planes'][:1] + ORDERS['pixels'][:1]


@pytest.fixture(params=ORDERS)
def maps(request):
    """Student's and teacher's maps of very different magnitudes, in every order of memory."""
    scales = dict(zip(SHAPES, (1.0, 30.0, 0.01), strict=True))
    return tuple(
        {
            name: (scales[name] * (torch.randn(shape) + shift)).contiguous(memory_format=order)
            for name, shape in SHAPES.items()
        }
        for shift, order in zip((0.0, 0.7), ORDERS[request.param], strict=True)
    )


def by_hand(student, teacher, eps):
    """The formula, one number at a time, in double precision."""
    per_tap = []
    for name in student:
        ours, theirs = (tensor.double().flatten().tolist() for tensor in (student[name], teacher[name]))
        mean = math.fsum(theirs) / len(theirs)
        variance = math.fsum((value - mean) ** 2 for value in theirs) / len(theirs)
        distance = math.fsum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours)
        per_tap.append(distance / (variance + eps))
    return math.fsum(per_tap) / len(per_tap)


@pytest.mark.parametrize('weight', [1.0, 0.25])
@pytest.mark.parametrize('eps', [1e-8, 0.5])
def test_value_is_the_formulas(maps, weight, eps):
    loss = FeatureMapLoss(loss_weight=weight, eps=eps)(*maps)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(weight * by_hand(*maps, eps), rel=1e-5)


def test_pairs_go_by_name_not_by_order(maps):
    student, teacher = maps
    turned = dict(reversed(teacher.items())) | {'not compared': torch.randn(1, 1, 1, 1)}
    assert FeatureMapLoss()(student, turned).item() == pytest.approx(FeatureMapLoss()(student, teacher).item())


def test_gradient_against_finite_differences(maps):
    student, teacher = ({name: tensor.double() for name, tensor in side.items()} for side in maps)
    names = list(student)

    def loss(*values):
        return FeatureMapLoss(loss_weight=0.3)(dict(zip(names, values, strict=True)), teacher)

    assert torch.autograd.gradcheck(loss, [student[name].requires_grad_() for name in names])


def test_teacher_gets_no_gradient(maps):
    student, teacher = maps
    for tensor in (*student.values(), *teacher.values()):
        tensor.requires_grad_()
    FeatureMapLoss()(student, teacher).backward()
    assert all(tensor.grad is None for tensor in teacher.values())
    assert all(tensor.grad.abs().sum() > 0 for tensor in student.values())


@pytest.mark.parametrize('scale', [1e-2, 1.0, 1e3])
def test_predicting_the_teachers_mean_costs_one_at_every_scale(maps, scale):
    teacher = {name: scale * tensor / tensor.std() for name, tensor in maps[1].items()}
    student = {name: tensor.mean().expand_as(tensor) for name, tensor in teacher.items()}
    assert FeatureMapLoss()(student, teacher).item() == pytest.approx(1, rel=1e-3)


def test_a_perfect_student_pays_nothing(maps):
    assert FeatureMapLoss()(maps[1], maps[1]).item() == 0


@pytest.mark.parametrize('constant', [0.0, 3.0])
def test_a_tap_that_the_teacher_leaves_constant_stays_finite(constant):
    student = {'body.0': torch.full((1, 2, 3, 3), constant, requires_grad=True)}
    teacher = {'body.0': torch.full((1, 2, 3, 3), constant)}
    loss = FeatureMapLoss()(student, teacher)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(student['body.0'].grad).all()
    far = FeatureMapLoss()({'body.0': student['body.0'] + 1}, teacher)
    assert torch.isfinite(far) and far > 1


def test_linearly_related_features_can_be_met_exactly():
    # s = relu(s) - relu(-s), so a hidden layer of twice the student's channels expresses every matrix
    matrix, student = torch.randn(8, 2), torch.randn(2, 2, 5, 5)
    teacher = torch.einsum('dc,nchw->ndhw', matrix, student)
    mlp = ChannelMLP(2, 8, hidden_ratio=0.5)
    with torch.no_grad():
        mlp[0].weight[:, :, 0, 0] = torch.cat([torch.eye(2), -torch.eye(2)])
        mlp[2].weight[:, :, 0, 0] = torch.cat([matrix, -matrix], 1)
        mlp[0].bias.zero_()
        mlp[2].bias.zero_()
        assert FeatureMapLoss()({'body.0': mlp(student)}, {'body.0': teacher}) < 1e-10


def test_adapters_learn_linearly_related_features_of_any_scale():
    student = {'body.0': torch.randn(4, 4, 6, 6), 'body.1': 20 * torch.randn(4, 4, 6, 6)}
    teacher = {name: torch.einsum('dc,nchw->ndhw', torch.randn(8, 4), tensor) for name, tensor in student.items()}
    bank, loss = AdapterBank({name: (4, 8) for name in student}, hidden_ratio=2.0), FeatureMapLoss()
    optimizer = torch.optim.Adam(bank.parameters(), lr=3e-2)
    first = loss(bank(student), teacher).item()
    for _ in range(400):
        optimizer.zero_grad()
        last = loss(bank(student), teacher)
        last.backward()
        optimizer.step()
    assert first > 0.5
    assert last.item() < 0.02
