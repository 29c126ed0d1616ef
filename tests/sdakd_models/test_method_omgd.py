"""OMGD: its losses against their formulas, the pairing of layers, and training with one and two teachers."""

import copy
import math
import re
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.models import build_model
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.adapter_arch import AdapterBank, Connector
from sdakd_arch.pairing import Pairing, pair_taps
from sdakd_losses.omgd_loss import OMGDLoss, channel_distance, ssim, total_variation
from sdakd_models.options import read_term
from sdakd_models.terms.omgd import OMGDTerm

# ---------------------------------------------------------------------------------------------------- structure (SSIM)


def with_border(rows):
    """Five zeros on every side of a nested list."""
    width = len(rows[0]) + 10
    return [[0.0] * width] * 5 + [[0.0] * 5 + row + [0.0] * 5 for row in rows] + [[0.0] * width] * 5


def ssim_by_hand(one, other):
    """Wang et al. (2004), window by window and pixel by pixel, on nested lists of double precision."""
    weights = [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = math.fsum(math.fsum(row) for row in weights)
    c1, c2 = 0.0001, 0.0009
    values = []
    for a, b in ((x, y) for m, n in zip(one.tolist(), other.tolist(), strict=True) for x, y in zip(m, n, strict=True)):
        a, b = with_border(a), with_border(b)
        for top in range(len(a) - 10):
            for left in range(len(a[0]) - 10):
                window = [
                    (weights[i][j] / total, a[top + i][left + j], b[top + i][left + j])
                    for i in range(11)
                    for j in range(11)
                ]
                mean_a, mean_b = math.fsum(w * x for w, x, _ in window), math.fsum(w * y for w, _, y in window)
                var_a = math.fsum(w * (x - mean_a) ** 2 for w, x, _ in window)
                var_b = math.fsum(w * (y - mean_b) ** 2 for w, _, y in window)
                both = math.fsum(w * (x - mean_a) * (y - mean_b) for w, x, y in window)
                values.append(
                    (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                )
    return math.fsum(values) / len(values)


@pytest.mark.parametrize('size', [(13, 12), (3, 5)])  # the second is smaller than the window
def test_ssim_is_the_formula(size):
    one = 2 * torch.rand(2, 3, *size, dtype=torch.float64) - 1
    other = 0.6 * one + 0.8 * torch.rand_like(one) - 0.4
    assert ssim(one, other).item() == pytest.approx(ssim_by_hand(one, other), rel=1e-12)


def test_ssim_is_scikit_images_on_photographs(photographs):
    from skimage.metrics import structural_similarity

    one, other = (photographs[name] / 127.5 - 1 for name in ('astronaut', 'coffee'))
    other = 0.7 * one + 0.3 * other
    options = {'gaussian_weights': True, 'sigma': 1.5, 'use_sample_covariance': False, 'data_range': 1.0}
    framed = [np.pad(image, ((10, 10), (10, 10), (0, 0))) for image in (one, other)]
    _, values = structural_similarity(*framed, channel_axis=2, full=True, **options)
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in (one, other)]
    assert ssim(*tensors).item() == pytest.approx(values[10:-10, 10:-10].mean(), rel=1e-9)
    assert ssim(*(tensor.float() for tensor in tensors)).item() == pytest.approx(
        values[10:-10, 10:-10].mean(), abs=1e-5
    )


def test_ssim_of_an_image_with_itself_is_one_and_with_another_less(photo):
    for image in (photo, torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)):
        assert abs(1 - ssim(image, image).item()) < 1e-6
    other = photo.flip(3)
    assert ssim(photo, other) < 0.9
    assert ssim(photo, other).item() == pytest.approx(ssim(other, photo).item(), rel=1e-6)


def test_gradient_of_ssim_is_finite_where_both_images_are_flat():
    image = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    ssim(image, torch.full((1, 3, 16, 16), 0.5)).backward()
    assert torch.isfinite(image.grad).all()


# ------------------------------------------------------------------------------------ total variation and channel means


def test_total_variation_is_the_formula():
    images = torch.rand(3, 2, 5, 4, dtype=torch.float64)
    wanted = 0.0
    for image in images.tolist():
        for rows in image:
            for i, row in enumerate(rows):
                for j, value in enumerate(row):
                    wanted += abs(rows[i + 1][j] - value) if i + 1 < len(rows) else 0
                    wanted += abs(row[j + 1] - value) if j + 1 < len(row) else 0
    assert total_variation(images).item() == pytest.approx(wanted / 3, rel=1e-12)


def test_total_variation_of_flat_images_is_zero_and_of_an_edge_its_length():
    assert total_variation(torch.full((2, 3, 8, 6), 0.3)).item() == 0
    edge = torch.zeros(1, 3, 8, 6)
    edge[..., 3:] = 0.5
    assert total_variation(edge).item() == pytest.approx(0.5 * 8 * 3)
    assert total_variation(edge + 0.2).item() == pytest.approx(0.5 * 8 * 3, rel=1e-5)


def maps(*shapes):
    return {f'body.{i}': torch.randn(shape, dtype=torch.float64) for i, shape in enumerate(shapes)}


def test_channel_distance_is_the_formula_for_maps_of_other_sizes_too():
    student, teacher = maps((2, 3, 4, 5), (2, 6, 2, 3)), maps((2, 3, 7, 2), (2, 6, 1, 1))
    wanted = 0.0
    for name in student:
        differences = [
            statistics.fmean(sum(a, [])) - statistics.fmean(sum(b, []))
            for one, other in zip(student[name].tolist(), teacher[name].tolist(), strict=True)
            for a, b in zip(one, other, strict=True)
        ]
        wanted += math.fsum(value**2 for value in differences) / len(differences)
    assert channel_distance(student, teacher).item() == pytest.approx(wanted, rel=1e-12)


def test_channel_distance_does_not_see_where_a_channel_responds():
    teacher = maps((2, 3, 4, 4))['body.0']
    moved = teacher.flatten(2)[..., torch.randperm(16)].unflatten(2, (4, 4))
    assert channel_distance({'t': moved}, {'t': teacher}).item() < 1e-20
    assert channel_distance({'t': moved + 0.5}, {'t': teacher}).item() == pytest.approx(0.25)
    assert channel_distance({'t': moved[:, [1, 0, 2]]}, {'t': teacher}).item() > 0.01


def test_connector_is_convolution_without_bias_normalisation_and_relu():
    connector, feature = Connector(3, 5), torch.randn(4, 3, 6, 6)
    hidden = torch.einsum('oi,nihw->nohw', connector[0].weight[..., 0, 0], feature)
    mean, variance = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), unbiased=False, keepdim=True)
    with torch.no_grad():
        connector[1].bias.normal_()
    hidden = (hidden - mean) / (variance + 1e-5).sqrt()
    wanted = torch.einsum('o,nohw->nohw', connector[1].weight, hidden) + connector[1].bias[:, None, None]
    torch.testing.assert_close(connector(feature), wanted.clamp(min=0))
    assert {name for name, _ in connector.named_parameters()} == {'0.weight', '1.weight', '1.bias'}
    bank = AdapterBank({'a/body.1': (3, 5)}, hidden_ratio=None)
    assert {name: tuple(f.shape) for name, f in bank({'a/body.1': feature}).items()} == {'a/body.1': (4, 5, 6, 6)}


# ------------------------------------------------------------------------------------------------------------ the whole


def images(size=12):
    one = torch.rand(1, 2, size, size, dtype=torch.float64)
    return one, (0.7 * one + 0.3 * torch.rand_like(one))


def test_parts_have_their_weights_and_defaults_are_the_published():
    student, teacher = images()
    ours, theirs = maps((1, 3, 4, 4)), maps((1, 3, 4, 4))
    published = OMGDLoss()(student, teacher, ours, theirs)
    assert published['ssim'].item() == pytest.approx(10 * (1 - ssim_by_hand(2 * student - 1, 2 * teacher - 1)))
    assert published['tv'].item() == pytest.approx(2e-5 * total_variation(student).item())  # twice, in [-1, 1]
    assert published['channel'].item() == pytest.approx(10 * channel_distance(ours, theirs).item())
    other = OMGDLoss(ssim_weight=1, tv_weight=2e-5, channel_weight=500, loss_weight=0.1)(student, teacher, ours, theirs)
    factors = {name: other[name].item() / published[name].item() for name in published}
    assert factors == pytest.approx({'ssim': 0.01, 'tv': 0.2, 'channel': 5})
    assert set(OMGDLoss()(student, teacher, {}, {})) == {'ssim', 'tv'}


def test_gradient_against_finite_differences():
    student, teacher = images(11)
    ours, theirs = maps((1, 3, 2, 2), (1, 2, 3, 1)), maps((1, 3, 2, 2), (1, 2, 2, 2))

    def loss(image, *features):
        parts = OMGDLoss(tv_weight=0.01)(image, teacher, dict(zip(ours, features, strict=True)), theirs)
        return torch.stack(list(parts.values()))

    assert torch.autograd.gradcheck(loss, [value.requires_grad_() for value in (student, *ours.values())])


def test_teacher_gets_no_gradient():
    student, teacher = images()
    ours, theirs = maps((1, 3, 4, 4)), maps((1, 3, 4, 4))
    for tensor in (student, teacher, ours['body.0'], theirs['body.0']):
        tensor.requires_grad_()
    sum(OMGDLoss()(student, teacher, ours, theirs).values()).backward()
    assert teacher.grad is None and theirs['body.0'].grad is None
    assert student.grad.abs().sum() > 0 and ours['body.0'].grad.abs().sum() > 0


# ------------------------------------------------------------------------------------------------------ pairing layers


def srvgg(features, convs, upscale=4):
    return SRVGGNetCompact(num_feat=features, num_conv=convs, upscale=upscale).to('meta')


def test_a_wider_teacher_is_paired_layer_by_layer():
    pairing = pair_taps(srvgg(4, 8), srvgg(16, 8), None, 'layers')
    assert pairing.pairs == {name: name for name in ('body.5', 'body.9', 'body.13', 'body.17')}
    assert set(pairing.channels.values()) == {(4, 16)}


@pytest.mark.parametrize(
    ('student', 'teacher', 'wanted'),
    [
        (4, 8, {'body.3': 'body.5', 'body.5': 'body.9', 'body.7': 'body.13', 'body.9': 'body.17'}),
        (8, 4, {'body.5': 'body.3', 'body.9': 'body.5', 'body.13': 'body.7', 'body.17': 'body.9'}),
        (8, 2, {'body.9': 'body.3', 'body.17': 'body.5'}),  # the half of one beside the half of the other
    ],
)
def test_a_deeper_teacher_is_paired_by_equal_shares_of_the_trunk(student, teacher, wanted):
    assert pair_taps(srvgg(4, student), srvgg(4, teacher), None, 'layers').pairs == wanted


def test_a_teacher_of_another_architecture_and_resolution_is_paired():
    other = RRDBNet(3, 3, scale=2, num_feat=8, num_block=4, num_grow_ch=4).to('meta')  # works at half the resolution
    pairing = pair_taps(srvgg(4, 4, upscale=2), other, None, 'layers')
    assert list(pairing.pairs.values()) == ['body.0', 'body.1', 'body.2', 'body.3']
    assert set(pairing.channels.values()) == {(4, 8)}


def test_layers_may_be_named_by_hand_and_left_out():
    student, teacher = srvgg(4, 4), srvgg(8, 6)
    wanted = Pairing({'body.3': 'body.3'}, {'body.3': (4, 8)})
    assert pair_taps(student, teacher, ['body.3'], 'layers') == wanted
    wanted = Pairing({'body.0': 'body.13'}, {'body.0': (4, 8)})
    assert pair_taps(student, teacher, {'body.0': 'body.13'}, 'layers') == wanted
    options = {'teachers': ['t'], 'layers': {'t': []}}
    assert pairings(options, student, {'t': teacher}) == {'t': {}}


def pairings(options, student, teachers):
    """What the term pairs, by teacher."""
    block = read_term('omgd', {'type': 'OMGDLoss', **options}, 'train:omgd_opt', OMGDTerm.Options)
    cast = SimpleNamespace(
        student=student, teachers=teachers, device='meta', watch=lambda *_: None, add_player=lambda *_: None, lower=None
    )
    return OMGDTerm(block, cast).pairs


class Odd(nn.Module):
    """A generator of no known kind with a module that is never run and one whose output is no map."""

    def __init__(self):
        super().__init__()
        self.conv, self.idle, self.pool = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Flatten()

    def forward(self, x):
        maps = self.conv(x)
        self.pool(maps)
        return nn.functional.pixel_shuffle(maps, 4)


@pytest.mark.parametrize(
    ('layers', 'sentence'),
    [
        (None, r'train:omgd_opt:layers:deeper: Odd has no default taps'),
        (['body.3'], r"train:omgd_opt:layers:deeper: Odd has no module 'body.3'"),
        ({'body.3': 'idle'}, r"train:omgd_opt:layers:deeper: Odd never runs the module 'idle'"),
        ({'body.3': 'pool'}, r"train:omgd_opt:layers:deeper: the tap 'pool' of Odd is no feature map"),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(layers, sentence):
    with pytest.raises(UserError, match=sentence):
        options = {'teachers': ['deeper'], 'layers': {'deeper': layers} if layers else {}}
        pairings(options, srvgg(4, 4), {'deeper': Odd().to('meta')})


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture
def two(world):
    """Options of three short stages, of which the last two imitate a wider and a deeper teacher, without adversary."""
    torch.manual_seed(2)
    torch.save({'params': SRVGGNetCompact(num_feat=4, num_conv=8).state_dict()}, world.root / 'deeper.pth')
    options = world.options()
    options['teachers'] = {'deeper': {'weights': str(world.root / 'deeper.pth')}}
    options['train']['omgd_opt'] = {'type': 'OMGDLoss', 'teachers': ['teacher', 'deeper']}
    stages = options['train']['stages']
    for stage in stages.values():
        stage['iters'] = 3
    stages['distillation']['terms'] = stages['adversarial']['terms'] = ['pixel', 'omgd']
    del options['network_d'], stages['adversarial']['lr_d'], options['train']['gan_opt']
    for key in ('models', 'training_states', 'visualization'):
        (world.root / 'experiments/run' / key).mkdir(parents=True)
    return options


def batches(count):
    generator = torch.Generator().manual_seed(3)
    gts = [torch.rand(2, 3, 32, 32, generator=generator) for _ in range(count)]
    return [{'gt': gt, 'lq': nn.functional.avg_pool2d(gt, 4)} for gt in gts]


def run(model, first, last):
    logs, data = {}, batches(last)
    for iteration in range(first, last + 1):
        model.update_learning_rate(iteration)
        model.feed_data(data[iteration - 1])
        model.optimize_parameters(iteration)
        logs[iteration] = model.get_current_log()
    return logs


def state(model):
    """Parameters and buffers of every player and every teacher."""
    networks = {player.name: player.bare for player in model.players} | model.teachers
    return {f'{name}.{key}': value.clone() for name, net in networks.items() for key, value in net.state_dict().items()}


def moved(before, after):
    return {key for key in after if not torch.equal(before[key], after[key])}


def test_student_and_adapters_learn_and_teachers_rest(world, parse, two):
    model = build_model(parse(world.write(two), world.root))
    assert [player.name for player in model.players] == ['g', 'omgd'] and set(model.teachers) == {'teacher', 'deeper'}
    calls = {name: 0 for name in model.teachers}
    for name, teacher in model.teachers.items():
        teacher.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))

    before = state(model)
    log = run(model, 1, 3)[3]
    assert calls == {'teacher': 0, 'deeper': 0} and 'l_g_ssim' not in log
    assert {key.split('.')[0] for key in moved(before, state(model))} == {'g'}

    before = state(model)
    log = run(model, 4, 5)[5]
    assert calls == {'teacher': 2, 'deeper': 2}
    parts = {'l_g_ssim', 'l_g_ssim_deeper', 'l_g_tv', 'l_g_channel', 'l_g_channel_deeper'}
    shares = {'share_pixel', 'share_omgd'}
    assert set(log) == {'stage', 'l_g_pix', *shares, *parts} and all(log[part] > 0 for part in parts)
    # all but nothing: the normalisation's running moments and counts too, for both teachers' adapters
    assert moved(before, state(model)) == {key for key in before if key.split('.')[0] in ('g', 'omgd')}
    assert {key.split('/')[0] for key in before if key.startswith('omgd.')} == {
        'omgd.adapters.teacher', 'omgd.adapters.deeper'
    }  # fmt: skip
    assert all(parameter.grad is None for net in model.teachers.values() for parameter in net.parameters())
    assert not any(teacher.training for teacher in model.teachers.values())


def test_first_step_is_adam_on_the_sum_over_both_teachers(world, parse, two):
    """One step of stage 2 against the formula, with plain torch; SSIM has tests of its own."""
    two['train']['omgd_opt'] |= {'ssim_weight': 2.0, 'tv_weight': 1e-3, 'channel_weight': 0.5}
    two['train']['stages']['distillation']['warmup_iter'] = 0
    model = build_model(parse(world.write(two), world.root))
    adapters = model.players[1].bare
    with torch.no_grad():  # not the normalisation's identity, which would hide a missing one
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fresh = [SRVGGNetCompact(num_feat=f, num_conv=c) for f, c in ((4, 4), (8, 4), (4, 8))]
    sources = model.bare_student, model.teachers['teacher'], model.teachers['deeper']
    for net, source in zip(fresh, sources, strict=True):
        net.load_state_dict(source.state_dict())
    expected = copy.deepcopy(adapters)
    data = batches(4)[3]
    run(model, 4, 4)

    def shots(net, names):
        recorded, modules = [], dict(net.named_modules())
        for name in names:
            modules[name].register_forward_hook(lambda _m, _i, out: recorded.append(out.clone()))
        return net(data['lq']), recorded

    own = ['body.3', 'body.5', 'body.7', 'body.9']

    def inside(maps, border):
        return maps[..., border:-border, border:-border]

    image, mine = shots(fresh[0], own)
    loss = (image - data['gt']).abs().mean()
    # two input pixels, a quarter of the crop, are border
    image, mine = inside(image, 8), [inside(maps, 2) for maps in mine]
    for name, net, taps in (
        ('teacher', fresh[1], own),
        ('deeper', fresh[2], ['body.5', 'body.9', 'body.13', 'body.17']),
    ):
        with torch.no_grad():
            target, its = shots(net, taps)
        target, its = inside(target, 8), [inside(maps, 2) for maps in its]
        differences = (image[..., 1:] - image[..., :-1]).abs().sum() + (image[:, :, 1:] - image[:, :, :-1]).abs().sum()
        loss = loss + 2 * (1 - ssim(2 * image - 1, 2 * target - 1)) + 1e-3 * 2 * differences / 2
        for tap, ours, theirs in zip(own, mine, its, strict=True):
            conv, norm, _ = expected.adapters[f'{name}/{tap.replace(".", "/")}']
            hidden = torch.einsum('oi,nihw->nohw', conv.weight[..., 0, 0], ours)
            mean, variance = hidden.mean((0, 2, 3), True), hidden.var((0, 2, 3), unbiased=False, keepdim=True)
            hidden = (hidden - mean) / (variance + 1e-5).sqrt()
            hidden = (hidden * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
            loss = loss + 0.5 * ((hidden.mean((2, 3)) - theirs.mean((2, 3))) ** 2).mean()
    learning = [*fresh[0].parameters(), *expected.parameters()]
    wanted = torch.autograd.grad(loss, learning)
    # Adam's first step is the gradient's sign, and its moment the gradient itself
    optimizers = model.players[0].optimizer, model.players[1].optimizer
    found = [
        optimizer.state[p]['exp_avg'] / 0.1 for optimizer in optimizers for p in optimizer.param_groups[0]['params']
    ]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_only_the_listed_teachers_are_loaded_and_each_counts(world, parse, two):
    logs = []
    for teachers in (['teacher'], ['deeper'], ['teacher', 'deeper']):
        two['train']['omgd_opt']['teachers'] = teachers
        opt = parse(world.write(two), world.root)
        torch.manual_seed(7)  # after the checks, which draw numbers too
        model = build_model(opt)
        assert set(model.teachers) == set(teachers)
        logs.append(run(model, 4, 4)[4])
    wide, deep, both = logs
    assert {'l_g_ssim', 'l_g_channel'} < set(wide) and {'l_g_ssim_deeper', 'l_g_channel_deeper'} < set(deep)
    assert not set(wide) & {'l_g_ssim_deeper', 'l_g_channel_deeper'} and 'l_g_ssim' not in deep
    assert both['l_g_ssim'] == pytest.approx(wide['l_g_ssim'], rel=1e-6)
    assert both['l_g_ssim_deeper'] == pytest.approx(deep['l_g_ssim_deeper'], rel=1e-6)
    assert both['l_g_tv'] == pytest.approx(wide['l_g_tv'] + deep['l_g_tv'], rel=1e-6)
    assert abs(wide['l_g_ssim'] - deep['l_g_ssim_deeper']) > 1e-3


def test_a_teachers_features_may_be_left_out(world, parse, two):
    two['train']['omgd_opt']['layers'] = {'deeper': []}
    log = run(build_model(parse(world.write(two), world.root)), 4, 4)[4]
    assert {'l_g_channel', 'l_g_ssim_deeper'} < set(log) and 'l_g_channel_deeper' not in log
    two['train']['omgd_opt']['layers'] = {'deeper': [], 'teacher': []}
    model = build_model(parse(world.write(two), world.root))
    assert [player.name for player in model.players] == ['g']
    shares = {'share_pixel', 'share_omgd'}
    assert set(run(model, 4, 4)[4]) == {'stage', 'l_g_pix', 'l_g_ssim', 'l_g_ssim_deeper', 'l_g_tv', *shares}


@pytest.mark.parametrize('stop', [4, 6])
def test_a_resumed_run_with_two_teachers_equals_an_uninterrupted_one(world, parse, two, stop):
    from sdakd_models.resuming import load_resume_state

    model = build_model(parse(world.write(two), world.root))
    run(model, 1, stop)
    model.save(0, stop)
    run(model, stop + 1, 9)
    torch.manual_seed(99)
    again = parse(world.root / 'run.yml', world.root, '--auto_resume')
    saved = load_resume_state(again)
    resumed = build_model(again)
    resumed.resume_training(saved)
    run(resumed, stop + 1, 9)
    assert moved(state(model), state(resumed)) == set()


@pytest.mark.parametrize(('name', 'where'), [('deeper', 'teachers:deeper'), ('teacher', 'teacher')])
def test_another_teacher_is_refused_on_resuming(world, parse, two, name, where):
    from sdakd_models.resuming import load_resume_state

    model = build_model(parse(world.write(two), world.root))
    run(model, 1, 4)
    model.save(0, 4)
    changed = {key: value + 0.1 for key, value in model.teachers[name].state_dict().items()}
    torch.save({'params': changed}, world.root / f'{name}.pth')
    again = parse(world.root / 'run.yml', world.root, '--auto_resume')
    with pytest.raises(UserError, match=f'^{where}:weights: this is not the teacher'):
        build_model(again).resume_training(load_resume_state(again))


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'teachers': []}, r'train:omgd_opt:teachers: expected `array` of length >= 1'),
        ({'teachers': ['teacher', 'teacher']}, r'train:omgd_opt:teachers: a teacher stands twice'),
        ({'teachers': ['teacher', 'wider']}, r'teachers:wider: the block is missing'),
        ({'layers': {'wider': []}}, r'train:omgd_opt:layers:wider: this teacher is not under teachers'),
        ({'layers': {'deepr': []}}, r'deepr: this teacher is not under teachers; did you mean deeper'),
        ({'layers': {'deeper': ['body.99']}}, r"train:omgd_opt:layers:deeper: SRVGGNetCompact has no module 'body.99'"),
        ({'layers': {'deeper': {'body.3': 'body.99'}}}, r"SRVGGNetCompact has no module 'body.99'"),
        ({'layers': ['body.3']}, r'train:omgd_opt:layers: expected `object'),
        (
            {'tv_weight': '1e-5'},
            "train:omgd_opt:tv_weight: write a number .*, not '1e-5'",
        ),
        ({'channel_weight': True}, r'train:omgd_opt:channel_weight: write a number'),
        ({'ssim_wieght': 1.0}, r"train:omgd_opt: OMGDLoss takes no 'ssim_wieght'; did you mean ssim_weight"),
    ],
)
def test_mistakes_are_named(world, parse, two, change, sentence):
    two['train']['omgd_opt'] |= change
    with pytest.raises(UserError) as caught:
        parse(world.write(two), world.root / 'root')
    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert not (world.root / 'root').exists()


def test_a_crop_smaller_than_the_window_of_ssim_is_taken(world, parse, two):
    two['datasets']['train']['gt_size'] = 8
    model = build_model(parse(world.write(two), world.root))
    gt = torch.rand(2, 3, 8, 8)
    model.update_learning_rate(4)
    model.feed_data({'gt': gt, 'lq': nn.functional.avg_pool2d(gt, 4)})
    model.optimize_parameters(4)
    assert 0 < model.get_current_log()['l_g_ssim'] <= 20
