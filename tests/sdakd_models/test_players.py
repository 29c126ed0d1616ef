"""Players and discriminators: who moves in a step, who does not, and what is paid."""

import math

import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.losses import build_loss
from torch import nn
from torch.nn import functional as F

from sdakd_models import players
from sdakd_models.options import DiscriminatorBlock
from sdakd_models.players import OPTIMIZERS, Discriminator, Player, freeze, make_optimizer, r1_penalty
from sdakd_models.stages import Stage

WEIGHT = 0.1
ADAM = {'type': 'Adam', 'betas': [0.9, 0.99]}


class Images:
    """What a training iteration offers to a discriminator: a student with gradient, fixed teacher's and real images."""

    def __init__(self):
        self.net = nn.Conv2d(3, 3, 3, padding=1)
        self.player = Player('g', self.net, self.net, 'g', (), ADAM)
        self.player.set_learning_rate(1e-3)
        self.lq, self.real, self.teacher = torch.rand(3, 2, 3, 16, 16)
        self.student = self.net(self.lq)
        self.asked = []

    def target(self, term):
        self.asked.append(term)
        return self.real

    def run(self, network, image):
        return network(image)

    def inside(self, image):
        return image


@pytest.fixture
def images():
    return Images()


def unet():
    """A small one as it is after some training: biases, settled spectral norm, verdicts far from zero."""
    net = UNetDiscriminatorSN(3, 4).train()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith('bias'):
                parameter.normal_(0, 0.3)
        net.conv9.weight.mul_(5)
        for _ in range(10):
            net(torch.rand(1, 3, 16, 16))
    return net


def batch_normed():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3))


def discriminator(name='student', make=unet, gan_type='vanilla', **facts):
    net = make()
    gan_opt = {'type': 'GANLoss', 'gan_type': gan_type, 'loss_weight': WEIGHT}
    facts = DiscriminatorBlock(network={}, **facts)
    facts.name = name
    player = None
    if facts.learns:
        player = Player(name, net, net, 'd', (), ADAM)
        player.set_learning_rate(1e-3)
    else:
        freeze(net)
    found = Discriminator(name, facts, build_loss(gan_opt), net, player)
    if make is unet:  # as after a step of its weights: the vectors of spectral norm lag a little behind
        for vector in net.buffers():
            vector.copy_(F.normalize(vector + 0.05 * torch.randn_like(vector), dim=0))
    return found


def twin(net):
    """The same network in the same state, apart from it."""
    other = batch_normed() if isinstance(net, nn.Sequential) else unet()
    other.load_state_dict(net.state_dict())
    return other.train()


def state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def moved(before, net):
    """Names of parameters and buffers that are not bit for bit what they were."""
    return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


def parameters(net):
    return {name for name, _ in net.named_parameters()}


def buffers(net):
    return {name for name, _ in net.named_buffers()}


def crossentropy(verdict, real):
    """-log(sigmoid(v)) for real ones, -log(1 - sigmoid(v)) for fake ones, in double precision."""
    sign = -1 if real else 1
    values = verdict.detach().double().flatten().tolist()
    return math.fsum(math.log1p(math.exp(sign * value)) for value in values) / len(values)


def gradients(net):
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def assert_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------- the student discriminator


def test_the_student_pays_weighted_crossentropy_and_the_discriminators_weights_stay(images):
    ours = discriminator()
    before, other = state(ours.bare), twin(ours.bare)
    found = ours.student_loss(images)
    assert list(found) == ['gan']
    verdict = other(images.net(images.lq))
    assert found['gan'].item() == pytest.approx(WEIGHT * crossentropy(verdict, True), rel=1e-5)
    found['gan'].backward()
    assert all(parameter.grad is None for parameter in ours.bare.parameters())
    assert moved(before, ours.bare) == buffers(ours.bare)  # u and v of spectral norm, as in BasicSR's training step
    wanted = torch.autograd.grad(WEIGHT * torch.log1p(torch.exp(-verdict)).mean(), list(images.net.parameters()))
    assert_gradients(gradients(images.net), dict(zip(('weight', 'bias'), wanted, strict=True)))


def test_the_students_pass_keeps_gradients_that_the_discriminator_has(images):
    ours = discriminator()
    for parameter in ours.bare.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    ours.student_loss(images)['gan'].backward()
    assert all((parameter.grad == 7).all() for parameter in ours.bare.parameters())


def test_the_discriminator_learns_from_real_and_fake_images(images):
    ours = discriminator()
    other = twin(ours.bare)
    ours.student_loss(images)['gan'].backward()
    images.player.step(None)
    before = state(ours.bare)
    log = ours.learn(images)

    other(images.student.detach())  # spectral norm moves in every pass: the student's, on real, on fake images
    real = other(images.real)
    torch.log1p(torch.exp(-real)).mean().backward()
    fake = other(images.student.detach())
    torch.log1p(torch.exp(fake)).mean().backward()
    assert log['l_d_real'].item() == pytest.approx(crossentropy(real, True), rel=1e-5)
    assert log['l_d_fake'].item() == pytest.approx(crossentropy(fake, False), rel=1e-5)
    assert log['out_d_real'].item() == pytest.approx(real.mean().item(), rel=1e-4)
    assert log['out_d_fake'].item() == pytest.approx(fake.mean().item(), rel=1e-4)
    assert set(log) == {'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'}
    assert images.asked == ['gan']
    assert_gradients(gradients(ours.bare), gradients(other))
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(dict(ours.bare.named_buffers())[name], buffer)
    assert moved(before, ours.bare) == buffers(ours.bare)
    ours.player.step(None)
    assert moved(before, ours.bare) == parameters(ours.bare) | buffers(ours.bare)
    assert all(parameter.grad is None for parameter in (*ours.bare.parameters(), *images.net.parameters()))


def test_learning_does_not_reach_the_student(images):
    ours = discriminator()
    ours.learn(images)
    assert all(parameter.grad is None for parameter in images.net.parameters())
    before = state(images.net)
    ours.player.step(None)
    assert moved(before, images.net) == set()


def test_a_second_iteration_goes_like_the_first(images):
    ours = discriminator()
    for _ in range(2):
        images.student = images.net(images.lq)
        before, student = state(ours.bare), state(images.net)
        ours.student_loss(images)['gan'].backward()
        images.player.step(None)
        ours.learn(images)
        ours.player.step(None)
        assert moved(student, images.net) == {'weight', 'bias'}
        assert moved(before, ours.bare) == parameters(ours.bare) | buffers(ours.bare)


# ------------------------------------------------------------------------------------------------------------- regimes


def test_a_frozen_discriminator_is_listened_to_and_stays_bit_for_bit(images):
    ours = discriminator('teacher', learns=False)
    before, other = state(ours.bare), twin(ours.bare).eval()
    ours.bare.train()  # whatever somebody else left it in
    student = state(images.net)
    found = ours.student_loss(images)
    assert found['gan_teacher'].item() == pytest.approx(WEIGHT * crossentropy(other(images.student), True), rel=1e-5)
    found['gan_teacher'].backward()
    images.player.step(None)
    assert ours.learn(images) == {}
    assert moved(student, images.net) == {'weight', 'bias'}
    assert moved(before, ours.bare) == set()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in ours.bare.parameters())


@pytest.mark.parametrize('make', [unet, batch_normed])
def test_updating_freezing_the_students_pass_moves_nothing(images, make):
    ours = discriminator('teacher', make, fake=['teacher'])
    for _ in range(2):  # the second time, it comes out of its own training
        images.student = images.net(images.lq)
        before, other = state(ours.bare), twin(ours.bare).eval()
        found = ours.student_loss(images)['gan_teacher']
        assert found.item() == pytest.approx(WEIGHT * crossentropy(other(images.student), True), rel=1e-5)
        found.backward()
        assert moved(before, ours.bare) == set()
        assert all(parameter.grad is None for parameter in ours.bare.parameters())

        other.train()
        real, fake = other(images.real), other(images.teacher)
        log = ours.learn(images)
        assert log['l_d_real_teacher'].item() == pytest.approx(crossentropy(real, True), rel=1e-5)
        assert log['l_d_fake_teacher'].item() == pytest.approx(crossentropy(fake, False), rel=1e-5)
        assert moved(before, ours.bare) == buffers(ours.bare)
        ours.player.step(None)
        assert moved(before, ours.bare) == parameters(ours.bare) | buffers(ours.bare)


def test_updating_freezing_learns_nothing_about_the_student(images):
    found = []
    for student in (images.student, torch.rand_like(images.student, requires_grad=True)):
        torch.manual_seed(3)
        ours = discriminator('teacher', fake=['teacher'])
        images.student = student
        ours.student_loss(images)['gan_teacher'].backward()
        ours.learn(images)
        found.append(gradients(ours.bare))
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name])


def test_an_online_discriminators_first_verdict_is_no_larger_than_later_ones(images):
    # spectral norm begins with random vectors, which underestimate the norm of every layer many times
    def fresh():
        return UNetDiscriminatorSN(3, 16)

    ours = discriminator('teacher', fresh, fake=['teacher'])
    exact = fresh().eval()
    exact.load_state_dict(ours.bare.state_dict())
    with torch.no_grad():
        for i in range(1, 9):
            layer = getattr(exact, f'conv{i}')
            left, _, right = torch.linalg.svd(layer.weight_orig.flatten(1), full_matrices=False)
            layer.weight_u.copy_(left[:, 0])
            layer.weight_v.copy_(right[0])
    wanted = WEIGHT * crossentropy(exact(images.student), True)
    assert ours.student_loss(images)['gan_teacher'].item() == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize('order', [['teacher', 'student'], ['student', 'teacher']])
def test_always_updating_pays_the_mean_over_both_fakes(images, order):
    ours = discriminator('teacher', fake=order)
    before, other = state(ours.bare), twin(ours.bare)
    ours.student_loss(images)['gan_teacher'].backward()
    assert moved(before, ours.bare) == buffers(ours.bare)
    log = ours.learn(images)

    other(images.student.detach())
    real = other(images.real)
    torch.log1p(torch.exp(-real)).mean().backward()
    verdicts = []
    for name in order:
        verdicts.append(other(getattr(images, name).detach()))
        (torch.log1p(torch.exp(verdicts[-1])).mean() / 2).backward()
    both = [crossentropy(verdict, False) for verdict in verdicts]
    assert both[0] != pytest.approx(both[1], rel=1e-3)
    assert log['l_d_real_teacher'].item() == pytest.approx(crossentropy(real, True), rel=1e-5)
    assert log['l_d_fake_teacher'].item() == pytest.approx(sum(both) / 2, rel=1e-5)
    assert log['out_d_fake_teacher'].item() == pytest.approx(sum(v.mean().item() for v in verdicts) / 2, rel=1e-4)
    assert_gradients(gradients(ours.bare), gradients(other))
    ours.player.step(None)
    assert moved(before, ours.bare) == parameters(ours.bare) | buffers(ours.bare)


@pytest.mark.parametrize('fake', [['teacher'], ['student']])
def test_a_discriminator_without_listener_only_learns(images, fake):
    ours = discriminator('teacher', trains_student=False, fake=fake)
    before, other = state(ours.bare), twin(ours.bare)
    assert ours.student_loss(images) == {}
    assert moved(before, ours.bare) == set()
    log = ours.learn(images)
    other(images.real)
    verdict = other(getattr(images, fake[0]))
    assert log['l_d_fake_teacher'].item() == pytest.approx(crossentropy(verdict, False), rel=1e-5)
    ours.player.step(None)
    assert moved(before, ours.bare) == parameters(ours.bare) | buffers(ours.bare)
    assert all(parameter.grad is None for parameter in images.net.parameters())


def test_the_teachers_images_may_be_the_real_ones(images):
    ours = discriminator('distillation', real='teacher')
    other = twin(ours.bare)
    log = ours.learn(images)
    assert log['l_d_real_distillation'].item() == pytest.approx(crossentropy(other(images.teacher), True), rel=1e-5)
    assert log['l_d_fake_distillation'].item() == pytest.approx(crossentropy(other(images.student), False), rel=1e-5)
    assert images.asked == []


def test_two_train_the_student_at_once(images):
    own, pretrained = discriminator(), discriminator('teacher', learns=False)
    others = twin(own.bare), twin(pretrained.bare).eval()
    log = own.student_loss(images) | pretrained.student_loss(images)
    sum(log.values()).backward()
    image = images.net(images.lq)
    loss = WEIGHT * sum(torch.log1p(torch.exp(-other(image))).mean() for other in others)
    wanted = torch.autograd.grad(loss, list(images.net.parameters()))
    assert_gradients(gradients(images.net), dict(zip(('weight', 'bias'), wanted, strict=True)))


@pytest.mark.parametrize(
    ('gan_type', 'student', 'real', 'fake'),
    [
        ('lsgan', lambda v: (v - 1) ** 2, lambda v: (v - 1) ** 2, lambda v: v**2),
        ('hinge', lambda v: -v, lambda v: (1 - v).clamp(min=0), lambda v: (1 + v).clamp(min=0)),
        ('wgan', lambda v: -v, lambda v: -v, lambda v: v),
    ],
)
def test_other_gan_losses_by_their_formulas(images, gan_type, student, real, fake):
    ours = discriminator(gan_type=gan_type)
    other = twin(ours.bare)
    paid = ours.student_loss(images)['gan']
    assert paid.item() == pytest.approx(WEIGHT * student(other(images.student)).mean().item(), rel=1e-4)
    log = ours.learn(images)
    assert log['l_d_real'].item() == pytest.approx(real(other(images.real)).mean().item(), rel=1e-4)
    assert log['l_d_fake'].item() == pytest.approx(fake(other(images.student)).mean().item(), rel=1e-4)


def test_terms_by_which_stages_switch_them_on():
    assert discriminator().term == 'gan'
    assert discriminator('teacher').term == 'gan:teacher'


# ------------------------------------------------------------------------------------------------------------- players


def linear(**options):
    net = nn.Linear(3, 2)
    return Player('x', net, net, 'g', options.pop('terms', ()), options or ADAM)


@pytest.mark.parametrize(
    ('terms', 'on', 'learns'),
    [
        ((), ['pixel'], True),
        (('feature',), ['pixel'], False),
        (('feature',), ['pixel', 'feature'], True),
        (('gan:teacher', 'gan'), ['pixel', 'gan'], True),
        (('gan',), ['gan:teacher'], False),
    ],
)
def test_a_player_learns_where_one_of_its_terms_is_on(terms, on, learns):
    assert linear(terms=terms).learns_in(Stage(iters=1, terms=on, lr_g=1.0)) is learns


def grad(player, scale=1.0):
    torch.manual_seed(5)
    for parameter in player.bare.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    return [parameter.grad.clone() for parameter in player.bare.parameters()]


def test_a_step_is_adams_at_the_rate_that_was_set_and_clears_the_gradients():
    player = linear(type='Adam', betas=[0.5, 0.9])
    before = [parameter.detach().clone() for parameter in player.bare.parameters()]
    player.set_learning_rate(0.01)
    first = grad(player)
    player.step(None)
    second = grad(player, -2.0)
    player.set_learning_rate(0.003)
    player.step(None)
    for old, parameter, g1, g2 in zip(before, player.bare.parameters(), first, second, strict=True):
        wanted = old - 0.01 * g1 / (g1.abs() + 1e-8)
        mean = (0.5 * 0.5 * g1 + 0.5 * g2) / (1 - 0.5**2)
        square = (0.9 * 0.1 * g1**2 + 0.1 * g2**2) / (1 - 0.9**2)
        torch.testing.assert_close(parameter.detach(), wanted - 0.003 * mean / (square.sqrt() + 1e-8))
        assert parameter.grad is None


def test_without_a_rate_nothing_moves():
    player = linear()
    before = state(player.bare)
    grad(player)
    player.step(None)
    assert moved(before, player.bare) == set()


@pytest.mark.parametrize('limit', [0.01, 1e6])
def test_gradients_are_limited_by_their_common_norm(limit):
    player = linear(type='Adam', eps=1.0)  # so large an eps that the size of the gradient counts
    before = [parameter.detach().clone() for parameter in player.bare.parameters()]
    player.set_learning_rate(0.1)
    given = grad(player)
    norm = math.sqrt(sum(g.double().square().sum().item() for g in given))
    player.step(limit)
    for old, parameter, g in zip(before, player.bare.parameters(), given, strict=True):
        g = g * min(1.0, limit / norm)
        torch.testing.assert_close(parameter.detach(), old - 0.1 * g / (g.abs() + 1), rtol=1e-4, atol=1e-7)


def test_forgetting_makes_the_next_step_a_first_one():
    player = linear()
    player.set_learning_rate(0.01)
    for _ in range(3):
        grad(player, 100.0)
        player.step(None)
    player.forget()
    before = [parameter.detach().clone() for parameter in player.bare.parameters()]
    given = grad(player)
    player.step(None)
    for old, parameter, g in zip(before, player.bare.parameters(), given, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.01 * g.sign(), rtol=1e-4, atol=1e-6)


def test_adamw_decays_the_weights_apart_from_the_gradient():
    player = linear(type='AdamW', weight_decay=0.5)
    before = [parameter.detach().clone() for parameter in player.bare.parameters()]
    player.set_learning_rate(0.01)
    given = grad(player)
    player.step(None)
    for old, parameter, g in zip(before, player.bare.parameters(), given, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.005) - 0.01 * g.sign(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('make', [unet, batch_normed])
def test_a_frozen_network_stays_bit_for_bit(make):
    net = make()
    before = state(net)
    assert freeze(net) is net
    image = torch.rand(2, 3, 16, 16, requires_grad=True)
    net(image).sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in net.parameters())
    assert moved(before, net) == set()


# --------------------------------------------------------------------------------------------------------- optimizers


def learner(optim, layout=torch.contiguous_format):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.PReLU(5), nn.Conv2d(5, 7, 3), nn.Linear(3, 300)).to(memory_format=layout)
    player = Player('g', net, net, 'g', (), optim)
    player.set_learning_rate(1e-3)
    return player


def learn(player, first, last):
    """Steps with gradients that depend on their number alone; the last layer has none in the first ones."""
    for number in range(first, last + 1):
        generator = torch.Generator().manual_seed(number)
        for name, parameter in player.bare.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator) * 10.0 ** -(number % 5)
            if number > 2 or name[0] != '3':
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
        player.step(None)
    return player


def weights(player):
    return torch.cat([parameter.detach().flatten() for parameter in player.bare.parameters()])


def adam(parameter, gradients, decay=0.0):
    """Algorithm 1 of Kingma and Ba (arXiv 1412.6980) in float64, with decoupled weight decay (arXiv 1711.05101)."""
    value, (first, second) = parameter.detach().double(), torch.zeros(2, *parameter.shape, dtype=torch.float64)
    for step, gradient in enumerate(gradients, 1):
        value = value * (1 - 1e-3 * decay)
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        value = value - 1e-3 * (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
    return value


@pytest.mark.parametrize('kind', ['Adam', 'AdamW'])
@pytest.mark.parametrize('choice', [{}, {'foreach': True}, {'foreach': False}, {'fused': False}])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_every_implementation_is_adam(kind, choice, layout):
    player = learner({'type': kind, 'betas': [0.9, 0.99], **choice}, layout)
    wanted = []
    for index, (name, parameter) in enumerate(player.bare.named_parameters()):
        gradients = []
        for number in range(1, 9):
            generator = torch.Generator().manual_seed(number)
            drawn = [torch.randn(each.shape, generator=generator) for each in player.bare.parameters()]
            if number > 2 or name[0] != '3':
                gradients.append(drawn[index].double() * 10.0 ** -(number % 5))
        wanted.append(adam(parameter, gradients, 0.01 if kind == 'AdamW' else 0.0).flatten())
    torch.testing.assert_close(weights(learn(player, 1, 8)).double(), torch.cat(wanted), rtol=1e-6, atol=1e-7)


def test_steps_over_lists_are_those_of_the_loop_bit_for_bit():
    found = [weights(learn(learner({**ADAM, 'foreach': lists}), 1, 8)) for lists in (True, False)]
    assert torch.equal(*found)


def test_what_the_options_choose_is_taken():
    for choice in ({'foreach': True}, {'foreach': False}, {'fused': False}, {'differentiable': False}):
        (group,) = learner({**ADAM, **choice}).optimizer.param_groups
        assert not group['fused'] and choice.items() <= group.items()
    # the cheapest where this torch has it, and never for memory with gaps
    plain, gap = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2, 4)[:, ::2])
    fused = True if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 5) else None
    for parameter, wanted in ((plain, fused), (gap, None)):
        assert make_optimizer([parameter], ADAM).param_groups[0]['fused'] is wanted


def test_a_torch_whose_fused_implementation_is_not_whole_takes_another_one(monkeypatch):
    monkeypatch.setattr(players, 'FUSES', False)
    assert not learner(ADAM).optimizer.param_groups[0]['fused']


def test_a_device_without_the_fused_implementation_takes_another_one(monkeypatch):
    class Older(torch.optim.Adam):
        def __init__(self, parameters, fused=None, **values):
            if fused:  # what torch says of devices without it
                raise RuntimeError('`fused=True` requires all the params to be floating point Tensors of cuda')
            super().__init__(parameters, **values)

    monkeypatch.setattr(players, 'FUSES', True)
    monkeypatch.setitem(OPTIMIZERS, 'Adam', Older)
    found = learn(learner(ADAM), 1, 8)
    assert not found.optimizer.param_groups[0]['fused']
    assert torch.equal(weights(found), weights(learn(learner({**ADAM, 'foreach': False}), 1, 8)))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
def test_gradients_lie_in_memory_as_the_fused_implementation_wants_them(layout, precision):
    """Those of autograd, accumulated from two passes of which one is that of R1, as a discriminator's are."""
    found = []
    for choice in ({}, {'foreach': False}):
        torch.manual_seed(2)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 6, 1), nn.SiLU(), nn.Conv2d(6, 1, 3))
        player = Player('d', net, net.to(memory_format=layout), 'd', (), {**ADAM, **choice})
        player.set_learning_rate(1e-2)
        for _ in range(3):
            images = torch.rand(2, 3, 9, 9)
            with torch.autocast('cpu', torch.bfloat16, enabled=precision is torch.bfloat16):
                net(images).float().square().mean().backward()
            r1_penalty(net, images).backward()
            player.step(1.0)
        found.append(weights(player))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)  # a step changes a weight by up to 1e-2


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('other', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('choice', [{}, {'fused': False}, {'foreach': True}])
def test_an_optimizer_goes_on_from_whatever_has_saved_it(layout, other, choice):
    whole = learn(learner(ADAM, layout), 1, 8)
    before, after = learn(learner({**ADAM, **choice}, other), 1, 4), learner(ADAM, layout)
    group = dict(after.optimizer.param_groups[0])
    state = before.optimizer.state_dict()
    kept = [value.clone() for moments in state['state'].values() for value in moments.values()]
    after.bare.load_state_dict(before.bare.state_dict())
    after.load_optimizer(state)
    after.set_learning_rate(1e-3)
    learn(after, 5, 8)
    assert all(after.optimizer.param_groups[0][key] == group[key] for key in ('foreach', 'fused'))
    torch.testing.assert_close(weights(after), weights(whole), rtol=0, atol=2e-7)
    if layout == other and not choice:
        assert torch.equal(weights(after), weights(whole))
    now = [value for moments in state['state'].values() for value in moments.values()]
    assert all(torch.equal(one, two) for one, two in zip(kept, now, strict=True))  # it has not taken the state's memory
