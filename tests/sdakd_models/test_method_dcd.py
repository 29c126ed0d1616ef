"""DCD: the loss, the connectors, what the discriminator sees, and who moves."""

import copy
import math

import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.models import build_model
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_arch.adapter_arch import ChannelMLP
from sdakd_arch.connector_arch import ImageConnectors
from sdakd_losses.dcd_loss import DCDLoss
from sdakd_models.terms import Context

TAPS = ('body.3', 'body.5', 'body.7', 'body.9')  # the defaults of a trunk of four


def test_the_loss_is_its_formula():
    shapes = {'a': (2, 3, 4, 5), 'b': (2, 2, 3, 3)}
    student = {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}
    teacher = {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}
    wanted = 0.0
    for name in shapes:
        pairs = list(zip(student[name].flatten().tolist(), teacher[name].flatten().tolist(), strict=True))
        wanted += math.fsum(abs(t - s) for s, t in pairs) / len(pairs)
    loss = DCDLoss(loss_weight=0.3)
    assert loss(student, teacher).item() == pytest.approx(0.3 * wanted, rel=1e-12)
    assert loss(teacher, teacher).item() == 0
    loss(student, teacher).backward()  # of either side: who is detached is decided by the connectors
    for name in shapes:
        torch.testing.assert_close(teacher[name].grad, -student[name].grad)
    assert torch.autograd.gradcheck(lambda a, b: loss({'a': a, 'b': b}, teacher), tuple(student.values()))


# ---------------------------------------------------------------------------------------------------------- connectors


def normalised(values):
    """Batch normalisation of one channel, on a list of numbers."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in values]


def connected(feature, connector, batch):
    """1x1 convolution, batch normalisation (of the batch, or with mean 0 and variance 1), ReLU; element by element."""
    weight, gains = connector[0].weight.detach(), connector[1].weight.tolist()
    n, _, h, w = feature.shape
    out = torch.empty(n, len(weight), h, w, dtype=torch.float64)
    places = [(i, y, x) for i in range(n) for y in range(h) for x in range(w)]
    for channel, factors in enumerate(weight.flatten(1).tolist()):
        values = [
            math.fsum(f * v for f, v in zip(factors, feature[i, :, y, x].tolist(), strict=True)) for i, y, x in places
        ]
        values = normalised(values) if batch else [value / math.sqrt(1 + 1e-5) for value in values]
        for (i, y, x), value in zip(places, values, strict=True):
            out[i, channel, y, x] = max(gains[channel] * value, 0.0)
    return out


KINDS = ['learning', 'fixed', 'normalised']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('mlp', [False, True])
def test_connectors_are_their_formula(kind, mlp):
    bank = ImageConnectors({'body.3': (2, 5)}, teacher=kind, mlp=mlp).double()
    student, teacher = torch.randn(2, 2, 3, 4, dtype=torch.float64), torch.randn(2, 5, 3, 4, dtype=torch.float64)
    ours, theirs = bank({'body.3': student}, {'body.3': teacher})
    its = bank.teacher['body/3']
    wanted = connected(teacher, its, kind != 'fixed')
    torch.testing.assert_close(theirs['body.3'].detach(), wanted)
    if mlp:
        raised = copy.deepcopy(bank.student['body/3'])(student).detach()
        wanted = connected(raised, its, kind != 'fixed')
    else:
        wanted = connected(student, bank.student['body/3'], True)
    torch.testing.assert_close(ours['body.3'].detach(), wanted)


@pytest.mark.parametrize('kind', KINDS)
def test_connectors_start_as_published(kind):
    """Convolutions from N(0, 0.02) and factors of the normalisation from N(1, 0.02), on both sides."""
    bank = ImageConnectors({f't{n}': (64, 64) for n in range(200)}, kind)
    for side in (bank.student, bank.teacher):
        weights = torch.cat([connector[0].weight.flatten() for connector in side.values()])
        factors = torch.cat([connector[1].weight for connector in side.values()])
        for values, mean in ((weights, 0), (factors, 1)):  # four standard errors
            assert abs(values.mean().item() - mean) < 4 * 0.02 / len(values) ** 0.5
            assert abs(values.std().item() / 0.02 - 1) < 4 / (2 * len(values)) ** 0.5
        assert all(connector[0].bias is None and not connector[1].bias.any() for connector in side.values())


@pytest.mark.parametrize('kind', ['normalised', 'fixed'])
@pytest.mark.parametrize('mlp', [False, True])
def test_the_teachers_connector_never_moves(kind, mlp):
    bank = ImageConnectors({'a': (2, 5)}, teacher=kind, mlp=mlp)
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    optimizer = torch.optim.Adam(bank.parameters(), lr=0.1)
    for mode in (True, False, True):
        bank.train(mode)
        ours, theirs = bank({'a': torch.randn(2, 2, 3, 4)}, {'a': torch.randn(2, 5, 3, 4)})
        assert not theirs['a'].requires_grad
        ours['a'].sum().backward()
        optimizer.step()
    moved = {key for key, value in bank.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith('student.') for key in moved)


@pytest.mark.parametrize('mlp', [False, True])
def test_a_teachers_connector_learns_and_its_input_is_detached(mlp):
    bank = ImageConnectors({'a': (2, 5)}, 'learning', mlp).double()
    connector = bank.teacher['a']
    student, teacher = (torch.randn(2, c, 3, 4, dtype=torch.float64, requires_grad=True) for c in (2, 5))
    target = torch.randn(2, 3, 3, 4, dtype=torch.float64)

    def loss(*parameters):
        named = dict(zip(('0.weight', '1.weight', '1.bias'), parameters, strict=True))
        both = torch.func.functional_call(bank, {f'teacher.a.{key}': value for key, value in named.items()},
                                          ({'a': student}, {'a': teacher}))  # fmt: skip
        return ((both[1]['a'] - target) ** 2).sum()

    assert torch.autograd.gradcheck(loss, tuple(connector.parameters()))
    loss(*connector.parameters()).backward()
    assert teacher.grad is None and all(parameter.grad.abs().sum() > 0 for parameter in connector.parameters())
    ours, theirs = bank({'a': student}, {'a': teacher})
    (ours['a'] - theirs['a']).abs().sum().backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    torch.optim.Adam(bank.parameters(), lr=0.1).step()
    assert bank.training and connector.training
    assert not bank.eval().teacher['a'].training


def test_student_connectors_pass_the_gradient_to_the_features():
    bank = ImageConnectors({'a': (2, 3)}, mlp=True).double()
    student, teacher = (torch.randn(1, c, 3, 3, dtype=torch.float64, requires_grad=True) for c in (2, 3))
    assert torch.autograd.gradcheck(lambda f: bank({'a': f}, {'a': teacher})[0]['a'], (student,))


@pytest.mark.parametrize('kind', KINDS)
def test_through_the_mlp_linearly_related_features_cost_nothing(kind):
    """MLP(f) = A relu(f) - A relu(-f) = A f is the teacher's feature, and both sides take the same connector."""
    bank = ImageConnectors({'a': (3, 6)}, teacher=kind, mlp=True).double()
    matrix = torch.randn(6, 3, dtype=torch.float64)
    mlp = bank.student['a']
    assert isinstance(mlp, ChannelMLP)
    with torch.no_grad():
        for layer in (mlp[0], mlp[2]):
            layer.bias.zero_()
        mlp[0].weight.copy_(torch.eye(3, dtype=torch.float64).repeat(2, 1)[..., None, None])
        mlp[0].weight[3:].neg_()
        mlp[2].weight.copy_(torch.cat([matrix, -matrix], 1)[..., None, None])
    student = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    ours, theirs = bank({'a': student}, {'a': torch.einsum('oc,nchw->nohw', matrix, student)})
    assert DCDLoss()(ours, theirs).item() < 1e-12


# ------------------------------------------------------------------------------------------------------------ training


def batches(count):
    generator = torch.Generator().manual_seed(3)
    gts = [torch.rand(2, 3, 64, 64, generator=generator) for _ in range(count)]
    return [{'gt': gt, 'lq': F.avg_pool2d(gt, 4)} for gt in gts]


def run(model, data, first, last):
    for iteration in range(first, last + 1):
        model.update_learning_rate(iteration)
        model.feed_data(data[iteration - 1])
        model.optimize_parameters(iteration)
    return model.get_current_log()


@pytest.fixture
def options(world):
    """A stage with the ground truth, one with DCD and an online discriminator of the teacher, the only one there is."""
    options = world.options()
    torch.manual_seed(4)
    torch.save({'params': UNetDiscriminatorSN(3, 4).state_dict()}, world.root / 'd.pth')
    options['datasets']['train']['gt_size'] = 64
    terms = ['pixel', 'dcd', 'gan:teacher']
    options['train'] |= {
        'stages': {
            'supervised': {'iters': 2, 'lr_g': 1e-3, 'terms': ['pixel']},
            'adversarial': {'iters': 4, 'lr_g': 1e-3, 'lr_d': 1e-3, 'terms': terms},
        },
        'dcd_opt': {'type': 'DCDLoss', 'loss_weight': 0.5},
    }
    network = options.pop('network_d')
    options['discriminators'] = {'teacher': {'network': network, 'real': 'gt', 'fake': ['teacher']}}
    for key in ('models', 'training_states', 'visualization'):
        (world.root / 'experiments/run' / key).mkdir(parents=True)
    return options


def start(world, parse, options):
    return build_model(parse(world.write(options), world.root))


def state(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def moved(before, network):
    return {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}


def penultimate(network, image):
    """What ``conv9`` takes: the U-Net with spectral norm W / (u' W v), written out in double precision."""
    tensors = {key: value.double() for key, value in network.state_dict().items()}

    def layer(number, image, **how):
        if number == 0:
            weight = tensors['conv0.weight']
        else:
            weight, u, v = (tensors[f'conv{number}.weight_{part}'] for part in ('orig', 'u', 'v'))
            weight = weight / (u @ weight.flatten(1) @ v)
        image = F.conv2d(image, weight, tensors.get(f'conv{number}.bias'), padding=1, **how)
        return torch.where(image < 0, 0.2 * image, image)

    x0 = layer(0, image.double())
    x1 = layer(1, x0, stride=2)
    x2 = layer(2, x1, stride=2)
    x3 = layer(3, x2, stride=2)
    for number, skip in ((4, x2), (5, x1), (6, x0)):
        x3 = layer(number, F.interpolate(x3, scale_factor=2, mode='bilinear', align_corners=False)) + skip
    return layer(8, layer(7, x3))


@pytest.mark.parametrize('mlp', [False, True])
def test_a_step_is_the_formula(world, parse, options, mlp):
    options['train']['dcd_opt']['mlp'] = mlp
    model = start(world, parse, options)
    data = batches(6)
    run(model, data, 1, 2)
    bank = copy.deepcopy(next(player.bare for player in model.players if player.name == 'connectors'))
    judge = copy.deepcopy(model.discriminators['teacher'].bare)
    student = SRVGGNetCompact(num_feat=4, num_conv=4)
    student.load_state_dict(model.bare_student.state_dict())
    features = {}
    for who, network in (('student', student), ('teacher', copy.deepcopy(world.teacher))):
        image = data[2]['lq']
        with torch.no_grad():
            for number, module in enumerate(network.body):
                image = module(image)
                if f'body.{number}' in TAPS:
                    features[who, f'body.{number}'] = image[..., 4:-4, 4:-4]  # a quarter of the crop is border
    wanted = 0.0
    for tap in TAPS:
        key = tap.replace('.', '/')
        its = bank.teacher[key]
        theirs = connected(features['teacher', tap], its, True)
        if mlp:
            ours = connected(bank.student[key](features['student', tap]).detach(), its, True)
        else:
            ours = connected(features['student', tap], bank.student[key], True)
        wanted += (penultimate(judge, ours) - penultimate(judge, theirs)).abs().mean().item()
    log = run(model, data, 3, 3)
    assert log['l_g_dcd'] == pytest.approx(0.5 * wanted, rel=1e-4)
    assert {'l_g_pix', 'l_g_gan_teacher', 'l_d_real_teacher', 'l_d_fake_teacher'} <= set(log)


REGIMES = {
    'online': {'fake': ['teacher']},
    'cotrained': {'fake': ['teacher', 'student']},
    'updated': {'fake': ['teacher', 'student'], 'weights': 'd.pth'},
    'frozen': {'learns': False, 'weights': 'd.pth'},
}


@pytest.mark.parametrize('kind', ['learning', 'normalised'])
@pytest.mark.parametrize('mlp', [False, True])
@pytest.mark.parametrize('regime', list(REGIMES))
def test_who_moves(world, parse, options, regime, mlp, kind):
    options['train']['dcd_opt'] |= {'mlp': mlp, 'teacher_connector': kind}
    options['discriminators']['teacher'] |= REGIMES[regime]
    model = start(world, parse, options)
    data = batches(6)
    bank = next(player.bare for player in model.players if player.name == 'connectors')
    judge, teacher = model.discriminators['teacher'].bare, model.teachers['teacher']
    networks = {'student': model.bare_student, 'connectors': bank, 'judge': judge, 'teacher': teacher}
    before = {name: state(network) for name, network in networks.items()}
    run(model, data, 1, 2)
    assert {name for name, network in networks.items() if moved(before[name], network)} == {'student'}
    before = {name: state(network) for name, network in networks.items()}
    run(model, data, 3, 3)
    found = {name: moved(before[name], network) for name, network in networks.items()}
    assert found['student'] == set(before['student']) and found['teacher'] == set()
    sides = ('student.', 'teacher.') if kind == 'learning' else ('student.',)
    learned = {name for name, _ in bank.named_parameters() if name.startswith(sides)}
    assert learned <= found['connectors'] and all(key.startswith(sides) for key in found['connectors'])
    assert found['judge'] == (set() if regime == 'frozen' else set(before['judge']))


@pytest.mark.parametrize('fake', [['teacher'], ['teacher', 'student']])
def test_looking_moves_nothing_in_the_discriminator(world, parse, options, fake):
    """Its weights, their gradients and the vectors of spectral norm stay, whatever mode it comes in."""
    options['discriminators']['teacher']['fake'] = fake
    model = start(world, parse, options)
    judge = model.discriminators['teacher'].bare.train().requires_grad_(True)
    before = state(judge)
    model.feed_data(batches(1)[0])
    model.terms['dcd'](Context(model, with_features=True))['dcd'].backward()
    assert moved(before, judge) == set()
    assert all(parameter.grad is None for parameter in judge.parameters())
    trunk = [parameter for name, parameter in model.bare_student.named_parameters() if int(name.split('.')[1]) < 10]
    assert trunk and all(parameter.grad.abs().sum() > 0 for parameter in trunk)


def test_a_resumed_run_has_the_same_random_projection(world, parse, options):
    from sdakd_models.resuming import load_resume_state

    data = batches(6)
    model = start(world, parse, options)
    run(model, data, 1, 4)
    model.save(0, 4)
    run(model, data, 5, 6)
    torch.manual_seed(99)
    again = parse(world.root / 'run.yml', world.root, '--auto_resume')
    resumed = build_model(again)
    resumed.resume_training(load_resume_state(again))
    run(resumed, data, 5, 6)
    for one, other in zip(model.players, resumed.players, strict=True):
        assert one.name == other.name and not moved(state(one.bare), other.bare)


def test_other_layers_can_be_compared(world, parse, options):
    options['train']['dcd_opt'] |= {
        'layers': {'body.1': 'body.5', 'body.9': 'body.9'},
        'discriminator_layer': 'conv3',
        'teacher_connector': 'fixed',
    }
    model = start(world, parse, options)
    assert run(model, batches(6), 1, 3)['l_g_dcd'] > 0
    term = model.terms['dcd']
    with torch.no_grad():
        seen = term._seen(Context(model, with_features=True), torch.rand(1, 3, 16, 16))
    assert seen.shape == (1, 32, 2, 2)  # the eighth of the resolution, before its activation


MISTAKES = [
    ('layers', ['body.3', 'bodi.5'], r"dcd_opt:layers: SRVGGNetCompact has no module 'bodi.5' to tap; did you mean"),
    ('layers', [], 'train:dcd_opt:layers: the list is empty'),
    ('discriminator_layer', 'conv10:input',
     r"train:dcd_opt:discriminator_layer: UNetDiscriminatorSN has no module 'conv10' to tap; did you mean conv1"),
    ('discriminator_layer', 'conv9:in', "the tap 'conv9:in' ends in 'in'"),
    ('discriminator', 'techer',
     r"train:stages:adversarial:terms: the term 'dcd' looks into the discriminator 'techer', .*add 'gan:techer'"),
    ('teacher_connector', 'frozen', 'train:dcd_opt:teacher_connector: invalid enum value'),
    ('mlp', 'deep', r"train:dcd_opt:mlp: expected `bool`, got `str`, given 'deep'"),
    ('hidden_ratio', -1, 'train:dcd_opt:hidden_ratio: expected `float` >= 0'),
    ('lambda', 1.0, "train:dcd_opt: DCDLoss takes no 'lambda'"),
    ('loss_weight', '1', 'train:dcd_opt:loss_weight: write a number'),
]  # fmt: skip


@pytest.mark.parametrize(('key', 'value', 'sentence'), MISTAKES)
def test_mistakes_are_one_sentence(world, parse, options, key, value, sentence):
    options['train']['dcd_opt'][key] = value
    with pytest.raises(UserError, match=sentence) as error:
        parse(world.write(options), world.root)
    assert '\n' not in str(error.value)


def test_a_stage_without_the_discriminator_is_refused(world, parse, options):
    terms = options['train']['stages']['adversarial']['terms']
    terms.remove('gan:teacher')
    with pytest.raises(
        UserError, match=r"adversarial:terms: the term 'dcd' looks into the discriminator 'teacher', wh"
    ):
        parse(world.write(options), world.root)
    terms.append('gan:teacher')
    del options['discriminators']
    with pytest.raises(UserError, match=r"needs the discriminator 'teacher', .*: write discriminators:teacher"):
        parse(world.write(options), world.root)


def test_a_crop_that_the_discriminator_cannot_take_is_refused(world, parse, options):
    options['datasets']['train']['gt_size'] = 48  # itself a multiple of 8, which its 12 input pixels are not
    options['train']['teacher_margin'] = 0
    with pytest.raises(UserError, match=r"dcd_opt: the discriminator 'teacher' takes no 12x12 map, .* another gt_size"):
        parse(world.write(options), world.root)
