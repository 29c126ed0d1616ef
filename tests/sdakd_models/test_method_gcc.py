"""GCC: its loss against loops, channel masks and what trains them, images that are held out, and who sees them."""

import copy
import math
import os

import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.models import build_model
from torch import nn
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_arch.channel_masks import ChannelMasks
from sdakd_data.draws import Drawn, Draws, photographs
from sdakd_losses.gcc_loss import FeatureGramLoss
from sdakd_models.reader import read_run
from sdakd_models.resuming import load_resume_state
from sdakd_models.selection import on_held_out

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def maps(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------------------------- the loss


def root_of_mean(one, other):
    differences = [(a - b) ** 2 for a, b in zip(one, other, strict=True)]
    return math.sqrt(math.fsum(differences) / len(differences))


def gram_entries(batch):
    """The products of channels over positions, divided by the number of a map's elements, of all images in a row."""
    found = []
    for image in batch.tolist():
        flat = [[value for row in channel for value in row] for channel in image]
        size = len(flat) * len(flat[0])
        found += [math.fsum(a * b for a, b in zip(one, other, strict=True)) / size for one in flat for other in flat]
    return found


def test_the_formula_in_loops():
    student = {'a': maps(2, 3, 4, 5), 'b': maps(2, 4, 3, 3, seed=1)}
    teacher = {'a': maps(2, 3, 4, 5, seed=2), 'b': maps(2, 4, 3, 3, seed=3)}
    wanted = 0.0
    for tap in student:
        wanted += 0.3 * root_of_mean(student[tap].flatten().tolist(), teacher[tap].flatten().tolist())
        wanted += 2.0 * root_of_mean(gram_entries(student[tap]), gram_entries(teacher[tap]))
    found = FeatureGramLoss(0.7, content_weight=0.3, gram_weight=2.0)(student, teacher)
    assert found.dtype == torch.float64 and found.item() == pytest.approx(0.7 * wanted, rel=1e-12)


def test_the_gradient_is_that_of_finite_differences_and_none_where_nothing_differs():
    student, teacher = maps(2, 2, 3, 3).requires_grad_(), maps(2, 2, 3, 3, seed=1).requires_grad_()
    loss = FeatureGramLoss()
    assert torch.autograd.gradcheck(lambda x: loss({'a': x}, {'a': teacher}), student)
    loss({'a': student}, {'a': teacher}).backward()
    assert teacher.grad is None
    student.grad = None
    loss({'a': student}, {'a': student}).backward()
    assert not student.grad.any()  # the root's own is infinite there
    with pytest.raises(ValueError, match='content_weight, gram_weight: both are 0'):
        FeatureGramLoss(content_weight=0, gram_weight=0)


# ---------------------------------------------------------------------------------------------------------- the masks


def small_network():
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 5, 3), nn.SiLU(), nn.Conv2d(5, 1, 3)]
    return nn.Sequential(*layers).double()


def test_a_channel_that_is_off_is_one_without_weights():
    network, image = small_network(), maps(2, 3, 9, 9)
    plain = copy.deepcopy(network)
    masks = ChannelMasks(network, None, 0.5, 'here')
    assert [*masks.alphas] == ['0', '2'] and torch.equal(network(image), plain(image))  # all are on at first
    masks.alphas['0'][:] = torch.tensor([0.9, 0.4, 0.6, 0.5])
    masks.alphas['2'][3] = 0
    with torch.no_grad():
        for layer, off in ((plain[0], [1, 3]), (plain[2], [3])):
            layer.weight[off], layer.bias[off] = 0, 0
    torch.testing.assert_close(network(image), plain(image), rtol=1e-12, atol=1e-12)
    assert masks.share().item() == pytest.approx(6 / 9)
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_the_gradient_passes_straight_through():
    """That of alpha is that of the factor of a channel, at its value of 0 or 1."""
    network, image = small_network(), maps(2, 3, 9, 9)
    plain = copy.deepcopy(network)
    masks = ChannelMasks(network, None, 0.5, 'here')
    masks.alphas['0'][1] = 0.2
    masks.requires_grad_(True)
    network(image).square().sum().backward()

    def value(factors):
        first = plain[1](plain[0](image) * factors[:, None, None])
        return plain[2:](first).square().sum()

    factors = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    for channel in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[channel] = 1e-6
        wanted = (value(factors + step) - value(factors - step)) / 2e-6
        assert masks.alphas['0'].grad[channel].item() == pytest.approx(wanted.item(), rel=1e-6)


def test_layers_of_masks():
    network = UNetDiscriminatorSN(3, 4)
    assert len(ChannelMasks(network, None, 0.5, 'here').alphas) == 9  # all but the last
    normalised = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 3)).double().eval()
    masks = ChannelMasks(normalised, ['1'], 0.5, 'here')
    masks.alphas['1'][:] = 0
    assert torch.equal(normalised[:2](maps(1, 3, 5, 5)), torch.zeros(1, 4, 3, 3, dtype=torch.float64))
    for layers, said in ((['conv99'], "here: UNetDiscriminatorSN has no .* 'conv99'; .*conv9"), ([], 'list layers')):
        with pytest.raises(UserError, match=said):
            ChannelMasks(network, layers, 0.5, 'here')


# --------------------------------------------------------------------------------------------- images that are held out


class Numbers:
    """A data set of random numbers, in an order that no disk would have."""

    opt = None
    paths = [f'{(7 * number) % 20:02d}.png' for number in range(20)]

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {'name': self.paths[index], 'drawn': torch.rand(1).item()}


def test_images_are_held_out_by_name_and_come_along():
    data, plain = Drawn(Numbers(), 3, 'here', held_out=5), Drawn(Numbers(), 3, 'here')
    assert len(data) == 16 and len(plain) == 20
    held = {'04.png', '09.png', '14.png', '19.png'}
    order = [*Draws(len(data), 2, 3, 1, 40)]
    samples = [data[draw] for draw in order]
    assert {sample['name'] for sample in samples} == set(Numbers.paths) - held
    assert {sample['held_out']['name'] for sample in samples} == held
    assert samples == [data[draw] for draw in order]  # wherever a run goes on
    assert len({sample['held_out']['drawn'] for sample in samples}) == len(samples)
    assert {sample['held_out']['drawn'] for sample in samples}.isdisjoint(sample['drawn'] for sample in samples)
    assert 'held_out' not in plain[0, 0]


class Named:
    """Images of these names."""

    opt = None

    def __init__(self, *names):
        self.paths = [{'lq_path': f'lq/{name}.png', 'gt_path': f'gt/{name}.png'} for name in names]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return {'name': os.path.basename(self.paths[index]['gt_path']).removesuffix('.png')}


def test_images_of_one_photograph_are_held_out_together():
    """As `prepare pairs --per_image` and `prepare subimages` name them, also one after the other."""
    several = [f'{name}_{number}' for name in ('a_b', 'b', 'c', 'd') for number in range(1, 13)]
    parts = [f'{name}_s{number:03d}' for name in 'efg' for number in range(1, 4)]
    both = [f'h_s{part:03d}_{number}' for part in (1, 2) for number in (1, 2)]
    data = Drawn(Named(*reversed([*several, *parts, *both])), 0, 'here', held_out=4)
    held = {data.dataset[index]['name'] for index in data.held}
    assert held == {name for name in [*several, *parts, *both] if name[0] in 'dh'}
    assert {data[number, 0]['name'] for number in range(len(data))} == {*several, *parts, *both} - held
    with pytest.raises(UserError, match='^here: one of every 9 photographs is held out, of 8 in all .*; write a small'):
        Drawn(Named(*several, *parts, *both), 0, 'here', held_out=9)


def test_what_a_camera_counts_are_photographs():
    names = ['DSC_0001', 'DSC_0002', 'trip_7', 'trip_8', 'one_1', '0001', '0002', 'x_s1', 'x_s2']
    assert photographs(names) == [*range(len(names))]
    assert photographs(['p_1', 'q', 'p_2', 'q_s001', 'r/p_1']) == [0, 1, 0, 1, 2]


# ------------------------------------------------------------------------------------------------------------ training


def options_of(world, **selective):
    """The stages of its option file after the first one, on small networks, with a random teacher's discriminator."""
    published = read_run(os.path.join(ROOT, 'options/methods/gcc.yml'))
    options = world.options()
    del options['network_d'], options['train']['feature_opt']
    torch.manual_seed(9)
    judge = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    discriminator = UNetDiscriminatorSN(3, 4)
    with torch.no_grad():
        for _ in range(20):  # spectral norm begins with random vectors, and verdicts of 1e7
            discriminator(torch.rand(1, 3, 32, 32))
    torch.save({'params': discriminator.state_dict()}, world.root / 'judge.pth')
    options['discriminators'] = copy.deepcopy(published['discriminators'])
    for entry in options['discriminators'].values():
        entry['network'] = dict(judge)
    options['discriminators']['teacher']['weights'] = str(world.root / 'judge.pth')
    options['discriminators']['selected']['selective'] |= {'held_out': 4, 'lr': 0.05, **selective}
    stages = {name: published['train']['stages'][name] for name in ('distillation', 'adversarial')}
    for stage in stages.values():
        stage |= {'iters': 4, 'lr_g': 2e-3, 'terms': [term for term in stage['terms'] if term != 'perceptual']}
    block = {key: value for key, value in published['train']['gcc_opt'].items() if key != 'layers'}
    options['train'] |= {'stages': stages, 'gcc_opt': block}
    return options


def pair(seed):
    gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return {'gt': gt, 'lq': F.avg_pool2d(gt, 4)}


def step(model, iteration, seed=0):
    model.update_learning_rate(iteration)
    model.feed_data({**pair(seed), 'held_out': pair(100 + iteration)})
    model.optimize_parameters(iteration)
    return model.get_current_log()


def state(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_training_by_its_option_file(world, parse):
    model = build_model(parse(world.write(options_of(world)), world.root))
    assert [player.name for player in model.players] == ['g', 'd_selected', 'd_selected_masks', 'gcc']
    adapters = model.terms['gcc'].player.bare
    assert all('bias' not in key for key in adapters.state_dict())
    logs = [step(model, iteration) for iteration in range(1, 9)]
    assert 'l_g_gan_selected' not in logs[3] and 'l_d_gap_selected' not in logs[3]
    assert {'l_g_gcc', 'l_g_gan_selected', 'l_d_gap_selected', 'out_d_channels_selected'} <= logs[7].keys()
    assert not any(key.endswith('_teacher') for key in logs[7])  # it trains nobody and does not learn
    values = [log['l_g_gcc'] / log['weight_gcc'] for log in logs]
    assert values[3] < values[0]
    assert 0 < logs[7]['out_d_channels_selected'] <= 1


def softplus(values):
    return F.softplus(values).mean()


def masked(network, factors, image):
    """The U-Net, with what the output of each convolution but the last is multiplied by."""

    def layer(name, maps):
        return F.leaky_relu(getattr(network, name)(maps) * factors[name][:, None, None], 0.2)

    def larger(maps):
        return F.interpolate(maps, scale_factor=2, mode='bilinear', align_corners=False)

    first = layer('conv0', image)
    second = layer('conv1', first)
    third = layer('conv2', second)
    maps = layer('conv4', larger(layer('conv3', third))) + third
    maps = layer('conv5', larger(maps)) + second
    maps = layer('conv6', larger(maps)) + first
    return network.conv9(layer('conv8', layer('conv7', maps)))


@pytest.mark.parametrize('real', ['gt', 'teacher'])
def test_a_step_of_the_masks_is_its_formula_and_moves_nothing_else(world, parse, real):
    options = options_of(world)
    options['discriminators']['selected']['real'] = real
    model = build_model(parse(world.write(options), world.root))
    judge, teacher = model.discriminators['selected'], model.discriminators['teacher']
    selection, gaps, seen, given = judge.selection, [], {}, []
    masks, learn = selection.masks, selection.learn
    selection.player.optimizer.register_step_pre_hook(
        lambda *_: given.append({name: alpha.grad.clone() for name, alpha in masks.alphas.items()})
    )

    def watched(context, moment):
        networks = {player.name: player.bare for player in model.players} | {'teacher': teacher.bare}
        before = {name: state(network) for name, network in networks.items()}
        held = pair(100 + model.last_iter + 1)
        assert torch.equal(model.gt, held['gt']) and torch.equal(model.lq, held['lq'])
        with torch.no_grad():
            target = model.teachers['teacher'](held['lq'])[..., 8:-8, 8:-8]  # a quarter of the input is its border
            verdict = teacher.bare.eval()(target)
            gap = (softplus(-verdict) - softplus(verdict)).abs().item()
            share = 1 - (moment.step - 1) / 4
            gaps.append(gap if not gaps else share * gap + (1 - share) * gaps[-1])
            fake = model.bare_student(held['lq'])
        images = (fake, held['gt']) if real == 'gt' else (fake[..., 8:-8, 8:-8], target)
        plain = UNetDiscriminatorSN(3, 4)
        plain.load_state_dict(judge.bare.state_dict())
        plain.eval().requires_grad_(False)
        factors = {name: (alpha.detach() > 0.5).float().requires_grad_() for name, alpha in masks.alphas.items()}
        of_fake, of_real = (masked(plain, factors, image) for image in images)
        distance = ((softplus(-of_fake) - softplus(of_fake)).abs() - gaps[-1]).abs()
        loss = distance + softplus(-of_real) + softplus(of_fake)
        wanted = dict(zip(factors, torch.autograd.grad(loss, [*factors.values()]), strict=True))
        assert 1e-3 < distance < 10 and all(softplus(-of_real) * part < 10 for part in (1, of_fake.abs().max()))
        log = learn(context, moment)
        assert not context.student.requires_grad
        after = {name: state(network) for name, network in networks.items()}
        changed = {name for name, old in before.items() if any(not old[key].equal(after[name][key]) for key in old)}
        assert changed == {'d_selected_masks'}
        assert log['l_d_gap_selected'].item() == pytest.approx(distance.item(), rel=1e-4)
        assert masks.gap.item() == pytest.approx(gaps[-1], rel=1e-5)
        for name, gradient in given[-1].items():
            assert gradient.any()
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-4 * wanted[name].abs().max().item())
        assert all(0 <= alpha.min() and alpha.max() <= 1 for alpha in masks.alphas.values())
        if moment.step == 1:  # Adam's first step is the rate, downhill from 1; what would rise stays
            for alpha, gradient in zip(masks.alphas.values(), given[0].values(), strict=True):
                moved = 1 - 0.05 * gradient / (gradient.abs() + 1e-8)
                torch.testing.assert_close(alpha.detach(), moved.clamp(max=1), rtol=0, atol=1e-5)
        seen[moment.step] = True
        return log

    selection.learn = watched
    for iteration in range(1, 9):
        gt = pair(0)['gt']
        step(model, iteration)
        assert torch.equal(model.gt, gt)  # the batch is back
    assert list(seen) == [1, 2, 3, 4] and len(given) == 4
    assert not any(alpha.requires_grad for alpha in masks.alphas.values())


def test_what_held_out_images_draw_changes_nothing_else(world, parse):
    """Their degradation, where tensors are degraded."""
    model = build_model(parse(world.write(options_of(world)), world.root))
    take, drawn = model.take, []
    model.take = lambda data: (drawn.append(torch.rand(1).item()), take(data))
    for seed, iteration in ((1, 0), (2, 1), (3, 0)):
        model.last_iter, model.held_out = iteration, pair(1)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        with on_held_out(model):
            assert torch.equal(torch.get_rng_state(), before)
    with model.drawing():
        drawn.append(torch.rand(1).item())  # of the batch itself
    assert drawn[0] == drawn[2] and len(set(drawn)) == 3


def test_other_images_cannot_be_held_out_when_a_run_goes_on(world, parse):
    options = options_of(world)
    model = build_model(parse(world.write(options), world.root))
    step(model, 1)
    model.save(0, 1)
    flags = '--auto_resume', '--change_stages'
    load_resume_state(parse(world.write(options), world.root, *flags))
    for number, sentence in (
        (3, 'discriminators:selected:selective:held_out: it was 4 when the run began, and is 3, so that images'),
        (None, 'discriminators: it was 4 when the run began, and is 0, so that images'),
    ):
        if number is None:
            del options['discriminators']['selected']['selective']
        else:
            options['discriminators']['selected']['selective']['held_out'] = number
        opt = parse(world.write(options), world.root, *flags)
        with pytest.raises(UserError) as caught:
            load_resume_state(opt, change_stages=True)
        assert str(caught.value).startswith(sentence)


def test_a_rate_of_its_own_that_decays_as_the_stage_does(world, parse):
    options = options_of(world)
    options['train']['stages']['adversarial']['scheduler'] = {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5}
    model = build_model(parse(world.write(options), world.root))
    player = next(each for each in model.players if each.name == 'd_selected_masks')
    rates = []
    for iteration in range(1, 9):
        step(model, iteration)
        rates.append(player.optimizer.param_groups[0]['lr'])
    assert rates[4:] == [0.05, 0.05, 0.025, 0.025]


def test_without_held_out_images_the_batch_stands_in(world, parse):
    """As in rehearsals and benchmarks."""
    model = build_model(parse(world.write(options_of(world)), world.root))
    for iteration in range(1, 6):
        model.update_learning_rate(iteration)
        model.feed_data(pair(0))
        model.optimize_parameters(iteration)
    assert 'l_d_gap_selected' in model.get_current_log()


SELECTED = 'discriminators:selected'
MISTAKES = {
    'not on': (
        lambda o: o['train']['stages']['adversarial'].update(terms=['pixel', 'gan:selected']),
        "(discriminators:selected:selective:against), which is not on in this stage; add 'gan:teacher'",
    ),
    'itself': (
        lambda o: o['discriminators']['selected']['selective'].update(against='selected'),
        'discriminators:selected:selective:against: this is the discriminator itself; name that of the teacher',
    ),
    'frozen': (
        lambda o: o['discriminators']['teacher'].update(selective={}),
        'discriminators:teacher:selective: it balances a discriminator that learns from the student',
    ),
    'fakes': (
        lambda o: o['discriminators']['selected'].update(fake=['student', 'teacher']),
        "discriminators:selected:fake: its channels are chosen by the student's images alone; write [student]",
    ),
    'twice': (
        lambda o: o['discriminators']['selected']['selective'].update(layers=['conv1', 'conv1']),
        "selected:selective:layers: 'conv1' stands there twice; a layer has one mask",
    ),
    'many': (
        lambda o: o['discriminators']['selected']['selective'].update(held_out=9),
        'selective:held_out: one of every 9 training images is held out, of 8 in all; write a smaller number',
    ),
    'layer': (
        lambda o: o['discriminators']['selected']['selective'].update(layers=['conv77']),
        "selective:layers: UNetDiscriminatorSN has no convolution or batch normalisation 'conv77'",
    ),
    'threshold': (lambda o: o['discriminators']['selected']['selective'].update(threshold=1), 'selective:threshold: '),
    'tap': (
        lambda o: o['train']['gcc_opt'].update(discriminator_layers=['conv77']),
        'train:gcc_opt:discriminator_layers: UNetDiscriminatorSN has no module',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes(world, parse, name):
    change, said = MISTAKES[name]
    options = options_of(world)
    change(options)
    with pytest.raises(UserError) as caught:
        parse(world.write(options), world.root)
    assert said in str(caught.value), str(caught.value)
