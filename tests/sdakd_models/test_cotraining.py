"""A teacher that learns along: who moves, what it learns, when the student sees it, and resuming."""

import copy
import math

import pytest
import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model

import basicsr.train
from sdakd.compat import UserError
from sdakd_models.reader import read_yaml
from sdakd_models.resuming import load_resume_state

JUDGE = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
ENTRY = {'network': JUDGE, 'real': 'gt', 'fake': ['teacher'], 'trains_student': True}


def cotrained(world, **teacher):
    """Options with one adversarial stage: pixels, the teacher's image, an online discriminator of the teacher."""
    options = world.options()
    del options['network_d']
    options['discriminators'] = {'teacher': ENTRY}
    options['teacher'] |= {'cotrain': {'metric': 'psnr'}, **teacher}
    terms = ['pixel', 'feature', 'gan:teacher']
    options['train']['stages'] = {'adversarial': {'iters': 12, 'lr_g': 1e-3, 'lr_d': 1e-3, 'terms': terms}}
    return options


def build(world, parse, options, *flags):
    opt = parse(world.write(options), world.root, *flags)
    for key in ('models', 'training_states', 'visualization'):
        (world.root / 'experiments/run' / key).mkdir(parents=True, exist_ok=True)
    return build_model(opt)


def train(model, first, last):
    for iteration in range(first, last + 1):
        gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(iteration))
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)})
        model.optimize_parameters(iteration)
    return model.get_current_log()


def held_out(model):
    options = model.opt['datasets']['val']
    return build_dataloader(build_dataset(options), options, num_gpu=0, dist=False, sampler=None, seed=0)


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def mean_psnr(network, loader):
    """PSNR-Y without a border of 4 pixels, from the definition (BT.601 luma of 8-bit RGB), averaged over the set."""
    weights, values = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64).view(3, 1, 1), []
    for data in loader:
        with torch.no_grad():
            images = network(data['lq']), data['gt']
        luma = [(weights * (x[0].clamp(0, 1) * 255).round().double() / 255).sum(0) + 16 for x in images]
        error = (luma[0] - luma[1])[4:-4, 4:-4].square().mean()
        values.append(10 * math.log10(255**2 / error))
    return sum(values) / len(values)


def test_the_copy_in_training_moves_and_the_one_shown_stays(world, parse):
    model = build(world, parse, cotrained(world))
    (teacher,) = model.cotrained
    assert same(state(teacher.player.bare), state(world.teacher))
    before, judge = state(teacher.shown), state(model.discriminators['teacher'].bare)
    log = train(model, 1, 3)
    assert same(state(teacher.shown), before)
    moved = state(teacher.player.bare)
    assert all(not torch.equal(moved[key], before[key]) for key in before)
    after = state(model.discriminators['teacher'].bare)
    assert all(not torch.equal(after[key], judge[key]) for key in judge)
    assert {'l_t_pix', 'l_t_gan_teacher', 'l_g_pix', 'l_g_feature', 'l_g_gan_teacher'} <= set(log)


def test_its_first_step_is_adam_on_pixels_and_its_discriminator(world, parse):
    """Against the objective written here: |T(x) - y| + 0.1 softplus(-D(T(x))), Adam's first step."""
    model = build(world, parse, cotrained(world))
    (teacher,) = model.cotrained
    network, judge = copy.deepcopy(teacher.player.bare), copy.deepcopy(model.discriminators['teacher'].bare)
    for module in judge.modules():
        module.training = True
    gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    lq = torch.nn.functional.avg_pool2d(gt, 4)
    # the student's pass comes first and leaves the discriminator as it is
    image = network(lq)
    loss = (image - gt).abs().mean() + 0.1 * torch.nn.functional.softplus(-judge(image[..., 8:-8, 8:-8])).mean()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.99))
    loss.backward()
    optimizer.step()
    log = train(model, 1, 1)
    assert log['l_t_pix'] + log['l_t_gan_teacher'] == pytest.approx(loss.item(), rel=1e-5)
    for key, tensor in teacher.player.bare.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[key], rtol=0, atol=1e-6)


def test_it_rests_before_its_discriminator_is_on_and_where_the_student_rests(world, parse):
    options = cotrained(world)
    options['train']['stages'] = {
        'supervised': {'iters': 1, 'lr_g': 1e-3, 'terms': ['pixel', 'feature']},
        'judge': {'iters': 1, 'lr_d': 1e-3, 'terms': ['gan:teacher']},
    }
    options['discriminators'] = {'teacher': {**ENTRY, 'trains_student': False}}
    model = build(world, parse, options)
    (teacher,) = model.cotrained
    before = state(teacher.player.bare)
    assert [key for key in train(model, 1, 1) if key.startswith('l_t_')] == ['l_t_pix']
    moved = state(teacher.player.bare)
    assert not same(moved, before)
    assert 'l_t_pix' not in train(model, 2, 2)
    assert same(state(teacher.player.bare), moved)


@pytest.mark.parametrize('better', ['higher', 'lower'])
def test_a_validation_replaces_it_by_a_better_one_only(world, parse, better):
    options = cotrained(world)
    options['val']['metrics']['psnr']['better'] = better
    model = build(world, parse, options)
    (teacher,) = model.cotrained
    loader, sign = held_out(model), 1 if better == 'higher' else -1
    shown = world.teacher.eval()
    replaced = []
    for iteration in (1, 2, 3, 4):
        with torch.no_grad():  # away from the start at random: sometimes better, sometimes worse
            torch.manual_seed(iteration)
            for parameter, start in zip(teacher.player.bare.parameters(), world.teacher.parameters(), strict=True):
                parameter.copy_(start * (1 + 0.3 * (2 - iteration) * torch.randn(()).abs()))
        known, found = mean_psnr(shown, loader), mean_psnr(teacher.player.bare, loader)
        model.validation(loader, iteration, None, False)
        if sign * found > sign * known:
            shown = copy.deepcopy(teacher.player.bare).eval()
            replaced.append(iteration)
        assert same(state(teacher.shown), state(shown))
        assert teacher.score == pytest.approx(mean_psnr(shown, loader), abs=2e-3)
        assert teacher.player.bare.training and not teacher.shown.training
    assert 0 < len(replaced) < 4


def test_what_is_shown_is_what_the_student_is_compared_with(world, parse):
    model = build(world, parse, cotrained(world))
    (teacher,) = model.cotrained
    train(model, 1, 2)
    with torch.no_grad():
        for parameter in teacher.shown.parameters():
            parameter.zero_()
    taps = model.taps['teacher']
    seen = []
    original = taps.pop
    taps.pop = lambda: seen.append(original()) or seen[-1]
    train(model, 3, 3)
    assert all(torch.count_nonzero(feature) == 0 for features in seen for feature in features.values())


def test_a_resumed_run_equals_an_uninterrupted_one(world, parse):
    options = cotrained(world, weights=None, network={'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 4})
    torch.manual_seed(5)
    model = build(world, parse, options)
    (teacher,) = model.cotrained
    train(model, 1, 4)
    model.validation(held_out(model), 4, None, False)
    train(model, 5, 6)
    model.save(0, 6)
    score, shown, trained = teacher.score, state(teacher.shown), state(teacher.player.bare)
    assert score is not None and not same(shown, trained)
    train(model, 7, 9)
    model.validation(held_out(model), 9, None, False)

    torch.manual_seed(99)
    again = build(world, parse, options, '--auto_resume')
    again.resume_training(load_resume_state(again.opt))
    (other,) = again.cotrained
    assert other.score == score and same(state(other.shown), shown) and same(state(other.player.bare), trained)
    train(again, 7, 9)
    again.validation(held_out(again), 9, None, False)
    assert other.score == teacher.score
    for one, two in ((teacher.shown, other.shown), (model.bare_student, again.bare_student)):
        assert same(state(one), state(two))
    for one, two in zip(model.players, again.players, strict=True):
        assert same(state(one.bare), state(two.bare))


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'cotrain': {'metric': 'fidd'}}, "teacher:cotrain:metric: 'fidd' is no entry of val:metrics"),
        ({'cotrain': None, 'weights': None}, 'teacher:weights: the key is missing'),
        ({'weights': None}, 'teacher:weights: the key is missing'),
    ],
)
def test_mistakes(world, parse, change, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(world.write(cotrained(world, **change)), world.root)


def test_there_must_be_a_validation_set(world, parse):
    options = cotrained(world)
    del options['datasets']['val']
    with pytest.raises(UserError, match='cotrain: teachers are compared on a validation set'):
        parse(world.write(options), world.root)


@pytest.mark.parametrize('metric', ['psnr', 'niqe'])
def test_what_a_validation_replaced_after_saving_is_not_lost(world, parse, metric):
    """BasicSR saves, then validates: the run that goes on from that iteration must follow the new teacher."""
    options = cotrained(world, cotrain={'metric': metric})
    options['val']['metrics']['niqe'] = {'type': 'calculate_psnr', 'crop_border': 0, 'better': 'lower'}
    model = build(world, parse, options)
    (teacher,) = model.cotrained
    train(model, 1, 4)
    model.save(0, 4)
    with torch.no_grad():  # far better, then far worse than the teacher that is shown
        for parameter in teacher.shown.parameters():
            parameter.mul_(3 if metric == 'psnr' else 1)
    if metric == 'niqe':
        with torch.no_grad():
            for parameter in teacher.player.bare.parameters():
                parameter.mul_(3)
        model.save(0, 4)
    model.validation(held_out(model), 4, None, False)
    assert same(state(teacher.shown), state(teacher.player.bare))
    again = build(world, parse, options, '--auto_resume')
    again.resume_training(load_resume_state(again.opt))
    (other,) = again.cotrained
    assert other.score == teacher.score and same(state(other.shown), state(teacher.shown))


def test_niqe_is_better_where_it_is_lower(world, parse):
    options = cotrained(world)
    options['val']['metrics']['niqe'] = {'type': 'calculate_niqe', 'crop_border': 4}
    assert parse(world.write(options), world.root)['val']['metrics']['niqe']['better'] == 'lower'


def test_it_does_not_imitate_the_copy_that_is_shown(world, parse):
    """All terms that compare with a teacher are the student's alone."""
    import torchvision

    torch.save(torchvision.models.squeezenet1_1().state_dict(), world.root / 'sq.pth')
    options = cotrained(world)
    options['train']['stages']['adversarial']['terms'] = ['pixel', 'imitation']
    backbone = {'backbone': 'squeezenet', 'weights': str(world.root / 'sq.pth')}
    options['train'] |= {'imitation_opt': {'type': 'ImitationLoss', **backbone}, 'teacher_margin': 0}
    log = train(build(world, parse, options), 1, 1)
    imitation = {'l_g_imit_style_squeezenet', 'l_g_imit_feature_squeezenet'}
    shares = {'share_pixel', 'share_imitation'}
    assert set(log) == {'stage', 'l_g_pix', 'l_t_pix', *imitation, *shares}


def as_in_version_0_1_0(options):
    """The same run by the names that its keys had."""
    old = copy.deepcopy(options)
    old['teacher']['replace_by'] = old['teacher'].pop('cotrain')['metric']
    old['discriminators']['teacher']['listens'] = old['discriminators']['teacher'].pop('trains_student')
    return old


@pytest.mark.parametrize(
    ('block', 'sentence'),
    [
        ('teacher', r'teacher:replace_by: this key is called cotrain now; write cotrain: {metric: psnr}\.'),
        ('discriminators', r'teacher:listens: this key is called trains_student now; write trains_student: true\.'),
    ],
)
def test_keys_of_version_0_1_0_are_refused_with_the_new_one(world, parse, block, sentence):
    options = cotrained(world)
    options[block] = as_in_version_0_1_0(options)[block]
    for flags in ((), ('--auto_resume',)):  # there is nothing to resume
        with pytest.raises(UserError, match=sentence):
            parse(world.write(options), world.root, *flags)


def test_a_run_of_version_0_1_0_is_resumed(world, parse, caplog):
    options = cotrained(world)
    model = build(world, parse, options)
    train(model, 1, 2)
    model.save(0, 2)
    old = as_in_version_0_1_0(options)
    again = build(world, parse, old, '--auto_resume')
    assert 'teacher:replace_by' in caplog.text and 'discriminators:teacher:listens' in caplog.text
    again.resume_training(load_resume_state(again.opt))
    for one, two in zip(model.players, again.players, strict=True):
        assert same(state(one.bare), state(two.bare))
    copied = world.root / 'experiments/run/run.yml'
    basicsr.train.copy_opt_file(str(world.root / 'run.yml'), str(copied.parent))
    archived = read_yaml(copied)  # goes on by itself from here
    assert archived['teacher'] == options['teacher'] and archived['discriminators'] == options['discriminators']
