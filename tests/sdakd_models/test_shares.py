"""The terms' shares of the student's gradient: measured, asked for, brought back, and equal in two processes."""

import copy
import logging
import statistics

import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.models import build_model
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_models.shares import Shares

TAPS = ('body.3', 'body.5', 'body.7', 'body.9')


def batches(count, size=2):
    generator = torch.Generator().manual_seed(3)
    gts = [torch.rand(size, 3, 32, 32, generator=generator) for _ in range(count)]
    return [{'gt': gt, 'lq': F.avg_pool2d(gt, 4)} for gt in gts]


def run(model, data, first, last):
    logs = {}
    for iteration in range(first, last + 1):
        model.update_learning_rate(iteration)
        model.feed_data(data[(iteration - 1) % len(data)])
        model.optimize_parameters(iteration)
        logs[iteration] = model.get_current_log()
    return logs


@pytest.fixture
def options(world):
    """Three stages of 24 iterations without warm-up; the gradients of the last are not clipped."""
    options = world.options()
    for stage in options['train']['stages'].values():
        stage |= {'iters': 24, 'warmup_iter': 0}
        stage.pop('grad_clip', None)
    return options


def start(world, parse, options):
    return build_model(parse(world.write(options), world.root))


def ask(options, share=0.3):
    """Has the feature term ask for a share; returns the options."""
    del options['train']['feature_opt']['loss_weight']
    options['train']['feature_opt']['share'] = share
    return options


def double(network, fresh):
    """A network in double precision, without the hooks of the other."""
    fresh.load_state_dict(network.state_dict())
    return fresh.double()


def norms_by_hand(model, world, data, variances):
    """The 2-norm of every term's gradient in float64, as the model stands before its step.

    Feature maps count without a weight, pixels with 1 and the discriminator's verdict with 0.1. ``variances`` holds the
    teacher's maps of the batches before, and is added to.
    """
    student = double(model.bare_student, SRVGGNetCompact(num_feat=4, num_conv=4))
    teacher = double(world.teacher, SRVGGNetCompact(num_feat=8, num_conv=4))
    lq, gt = data['lq'].double(), data['gt'].double()

    def maps(network):
        image, found = lq, {}
        for number, layer in enumerate(network.body):
            image = layer(image)
            found[f'body.{number}'] = image[..., 2:-2, 2:-2]  # a quarter of the crop of 8 is border
        return network.upsampler(image) + F.interpolate(lq, scale_factor=4, mode='nearest'), found

    image, ours = maps(student)
    losses = {'pixel': (image - gt).abs().mean()}
    adapter = copy.deepcopy(next(player.bare for player in model.players if player.name == 'adapter')).double()
    with torch.no_grad():
        _, theirs = maps(teacher)
    losses['feature'] = 0
    for tap in TAPS:
        variances.setdefault(tap, []).append(theirs[tap].flatten())
        variance = torch.cat(variances[tap]).var(unbiased=False)
        adapted = adapter.adapters[tap.replace('.', '/')](ours[tap])
        losses['feature'] = losses['feature'] + ((adapted - theirs[tap]) ** 2).mean() / (variance + 1e-8) / 4
    if 'student' in model.discriminators:
        judge = double(model.discriminators['student'].bare, UNetDiscriminatorSN(3, 4)).train()
        losses['gan'] = 0.1 * torch.log1p(torch.exp(-judge(image))).mean()
    found = {}
    for term, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True, allow_unused=True)
        found[term] = sum((each**2).sum() for each in gradients if each is not None).sqrt().item()
    return found


def test_shares_of_two_and_three_terms_are_those_computed_by_hand(world, parse, options):
    options['train']['feature_opt']['loss_weight'] = 0.05
    for first, terms in ((25, ('pixel', 'feature')), (49, ('pixel', 'feature', 'gan'))):
        model = start(world, parse, options)
        data = batches(1)
        norms = norms_by_hand(model, world, data[0], {})
        norms['feature'] *= 0.05
        total = sum(norms[term] for term in terms)
        log = run(model, data, first, first)[first]
        for term in terms:
            assert log[f'share_{term}'] == pytest.approx(norms[term] / total, rel=1e-4)
        assert {key for key in log if key.startswith('share_')} == {f'share_{term}' for term in terms}
        assert not any(key.startswith('weight_') for key in log)


def test_a_single_term_has_everything(world, parse, options):
    assert run(start(world, parse, options), batches(1), 1, 1)[1]['share_pixel'] == 1


def test_measuring_changes_no_step(world, parse, options):
    """Bit for bit, also where a discriminator is on."""
    ends = []
    for every in (1, 1000):
        options['train']['share_freq'] = every
        torch.manual_seed(4)
        opt = parse(world.write(options), world.root)
        torch.manual_seed(5)
        model = build_model(opt)
        run(model, batches(4), 49, 52)
        ends.append([v.clone() for player in model.players for v in player.bare.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_the_weight_is_the_median_over_the_batches_of_the_window(world, parse, options):
    """w = s / (1 - s) * |gradient of pixels| / |gradient of features|; after 20 batches, it stays."""
    options['train']['share_freq'] = 1
    model = start(world, parse, ask(options))
    data, wanted, variances = batches(24), [], {}
    for iteration in range(25, 49):
        norms = norms_by_hand(model, world, data[iteration - 25], variances)
        log = run(model, [data[iteration - 25]], iteration, iteration)[iteration]
        if len(wanted) < 20:
            wanted.append(0.3 / 0.7 * norms['pixel'] / norms['feature'])
        weight = statistics.median(wanted)
        assert log['weight_feature'] == pytest.approx(weight, rel=2e-4), iteration
        share = weight * norms['feature'] / (norms['pixel'] + weight * norms['feature'])
        assert log['share_feature'] == pytest.approx(share, rel=2e-4), iteration
        assert log['share_feature'] + log['share_pixel'] == pytest.approx(1)


def test_the_term_has_the_share_that_was_asked_for(world, parse, options):
    """One batch and next to no learning: every batch's weight is the same."""
    options['train']['share_freq'] = 48
    options['train']['stages']['distillation']['lr_g'] = 1e-9
    log = run(start(world, parse, ask(options, 0.3)), batches(1), 25, 48)[48]
    assert log['share_feature'] == pytest.approx(0.3, rel=1e-3) and log['share_pixel'] == pytest.approx(0.7, rel=1e-3)


def test_the_step_pays_the_calibrated_weight(world, parse, options):
    """Adam's first moment over 0.1 is the gradient: that of pixels plus the weight times that of features."""
    model = start(world, parse, ask(options))
    student, data = copy.deepcopy(model.bare_student), batches(1)
    log = run(model, data, 25, 25)[25]
    pixel = (student(data[0]['lq']) - data[0]['gt']).abs().mean()
    pixel = torch.autograd.grad(pixel, list(student.parameters()))
    moments = next(player for player in model.players if player.name == 'g').optimizer.state
    paid = [moments[parameter]['exp_avg'] / 0.1 for parameter in model.bare_student.parameters()]
    rest = [(one - other).norm() for one, other in zip(paid, pixel, strict=True)]
    pixel = [each.norm() for each in pixel]
    ratio = (torch.stack(rest).norm() / torch.stack(pixel).norm()).item()
    assert ratio == pytest.approx(0.3 / 0.7, rel=1e-3)
    assert log['weight_feature'] > 0


def test_shares_beside_a_discriminator(world, parse, options):
    """A GAN loss with a weight is no reference; one with a share is given it."""
    options['train']['share_freq'] = 1
    model = start(world, parse, ask(options))
    norms = norms_by_hand(model, world, batches(1)[0], {})
    log = run(model, batches(1), 49, 49)[49]
    feature = 0.3 / 0.7 * norms['pixel']
    total = norms['pixel'] + feature + norms['gan']
    assert log['weight_feature'] == pytest.approx(feature / norms['feature'], rel=1e-4)
    assert log['share_gan'] == pytest.approx(norms['gan'] / total, rel=1e-4)
    assert log['share_feature'] == pytest.approx(feature / total, rel=1e-4) and 'weight_gan' not in log

    options['train']['gan_opt'] = {'type': 'GANLoss', 'gan_type': 'vanilla', 'share': 0.2}
    log = run(start(world, parse, options), batches(1), 49, 49)[49]
    for term, share in (('pixel', 0.5), ('feature', 0.3), ('gan', 0.2)):
        assert log[f'share_{term}'] == pytest.approx(share, rel=1e-5)
    assert log['weight_gan'] > 0 and log['l_g_gan'] > 0


def test_a_second_discriminators_own_block_may_ask_for_a_share(world, parse, options):
    judge = {'network': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}, 'fake': ['teacher']}
    options['discriminators'] = {'guide': {**judge, 'gan_opt': {'type': 'GANLoss', 'gan_type': 'lsgan', 'share': 0.1}}}
    options['train']['teacher_margin'] = 0
    options['train']['stages']['adversarial']['terms'].append('gan:guide')
    log = run(start(world, parse, ask(options)), batches(1), 49, 49)[49]
    parts = {term: log[f'share_{term}'] for term in ('pixel', 'feature', 'gan', 'gan_guide')}
    assert sum(parts.values()) == pytest.approx(1) and log['weight_gan_guide'] > 0
    rest = 1 - parts['gan']  # the GAN loss with a weight comes on top
    assert parts['feature'] / rest == pytest.approx(0.3, rel=1e-5)
    assert parts['gan_guide'] / rest == pytest.approx(0.1, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ warnings


@pytest.fixture
def warnings_of(world, parse, options):
    """Runs iterations on one batch and returns the logged warnings."""

    def call(first, last):
        records = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: records.append(record.getMessage())
        logger = logging.getLogger('basicsr')
        logger.addHandler(handler)
        try:
            run(start(world, parse, options), batches(1), first, last)
        finally:
            logger.removeHandler(handler)
        return records

    return call


def test_where_all_terms_need_the_teacher_none_drowns_the_rest(options, warnings_of):
    options['train'] |= {'share_freq': 2, 'output_opt': {'type': 'L1Loss', 'loss_weight': 1e4}}
    options['train']['stages'] = {
        name: stage | {'terms': ['output', 'feature']} for name, stage in options['train']['stages'].items()
    }
    named = [line for line in warnings_of(25, 30) if 'gradient' in line]
    assert len(named) == 1 and named[0].startswith('The term feature') and 'hardly heard' in named[0]


@pytest.mark.parametrize(('weight', 'words'), [(1e-7, 'hardly heard'), (1e4, 'hardly anything else is heard')])
def test_a_method_that_is_not_heard_or_drowns_the_rest_is_named_once_a_stage(options, warnings_of, weight, words):
    options['train']['feature_opt']['loss_weight'] = weight
    options['train']['share_freq'] = 2
    found = warnings_of(25, 30)
    assert len(found) == 1 and 'The term feature has ' in found[0] and words in found[0]
    assert 'in the stage distillation' in found[0] and 'write a share instead' in found[0]


def test_other_terms_and_sound_shares_are_not_warned_of(options, warnings_of):
    options['train']['share_freq'] = 2
    ask(options)
    options['train']['gan_opt']['loss_weight'] = 1e-9  # the student's own discriminator is no method
    assert warnings_of(49, 54) == []


# ------------------------------------------------------------------------------------------------- state and processes


def test_the_state_comes_back_and_other_terms_are_passed_over(world, parse, options):
    model = start(world, parse, ask(options))
    run(model, batches(5), 25, 29)
    state = model.shares.state()
    assert len(state['samples']['feature']) == 5 and state['weights']['feature'] != 1
    again = Shares(model.bare_student, {'feature': 0.3}, (), 1000)
    again.load_state(copy.deepcopy(state))
    assert again.state() == state and again.log() == model.shares.log()
    other = Shares(model.bare_student, {'output': 0.3}, (), 1000)
    other.load_state(state)
    assert other.weight('output') == 1 and other.weight('feature') == 1


def _train(rank, file, opt, results):
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)
    results[rank] = _few_steps(opt | {'dist': True, 'rank': rank, 'world_size': 2}, slice(rank, rank + 1))
    torch.distributed.destroy_process_group()


def _few_steps(opt, images):
    torch.manual_seed(11)
    model = build_model(opt)
    data = [{key: value[images] for key, value in each.items()} for each in batches(8)]
    log = run(model, data, 25, 28)[28]
    weights = {key: value.numpy() for key, value in model.bare_student.state_dict().items()}
    return weights, {key: value for key, value in log.items() if key != 'stage'}


def test_two_processes_with_an_image_each_are_one_with_two(world, parse, options):
    """Student, logged values and calibrated weight after steps with a share and the teacher's running variance."""
    ask(options)
    options['train']['share_freq'] = 2
    options['train']['pixel_opt']['type'] = 'MSELoss'  # an L1 loss's sign turns by rounding
    opt = parse(world.write(options), world.root)
    weights, log = _few_steps(copy.deepcopy(opt), slice(0, 2))
    context = torch.multiprocessing.get_context('fork')
    with context.Manager() as manager:
        results = manager.dict()
        processes = [
            context.Process(target=_train, args=(rank, world.root / 'meeting', copy.deepcopy(opt), results))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        found = dict(results)
    for rank in range(2):
        for key, value in weights.items():
            assert found[rank][0][key] == pytest.approx(value, abs=2e-6), (rank, key)
        assert found[rank][1] == pytest.approx(log, rel=1e-4)
    assert all((found[0][0][key] == found[1][0][key]).all() for key in weights)
    assert found[0][1]['weight_feature'] == found[1][1]['weight_feature'] != 1


# ----------------------------------------------------------------------------------------------------------- bad input


def refused(world, parse, options, sentence):
    there = set(world.root.rglob('*')) | {world.root / 'run.yml'}
    with pytest.raises(UserError, match=sentence) as error:
        parse(world.write(options), world.root)
    assert '\n' not in str(error.value) and set(world.root.rglob('*')) == there


@pytest.mark.parametrize('share', [0, 1, 1.5, -0.1, 'x', '0.3', True, [0.3], float('nan')])
@pytest.mark.parametrize('block', ['feature_opt', 'gan_opt', 'discriminators'])
def test_shares_that_are_none_are_refused(shared_world, parse, block, share):
    options = shared_world.options()
    where = f'train:{block}'
    if block == 'discriminators':
        judge = {'network': options['network_d'], 'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla'}}
        options['discriminators'] = {'guide': judge}
        options['train']['stages']['adversarial']['terms'].append('gan:guide')
        target, where = judge['gan_opt'], 'discriminators:guide:gan_opt'
    else:
        target = options['train'][block]
    target.pop('loss_weight', None)
    target['share'] = share
    sentence = f"{where}:share: (write the term's part of the gradient, between 0 and 1|write finite numbers), not "
    refused(shared_world, parse, options, sentence)


@pytest.mark.parametrize('block', ['feature_opt', 'gan_opt'])
def test_a_share_beside_a_weight_is_refused(shared_world, parse, block):
    options = shared_world.options()
    options['train'][block]['share'] = 0.3
    refused(shared_world, parse, options, f'train:{block}: share and loss_weight are both there; keep one')


def test_shares_that_leave_nothing_are_refused(shared_world, parse):
    options = ask(shared_world.options(), 0.6)
    options['train']['gan_opt'] = {'type': 'GANLoss', 'gan_type': 'vanilla', 'share': 0.4}
    sentence = 'stages:adversarial:terms: the shares of feature, gan add up to 1; keep them below 1'
    refused(shared_world, parse, options, sentence)


@pytest.mark.parametrize('terms', [['feature'], ['feature', 'gan']])
def test_a_share_with_nothing_to_measure_against_is_refused(shared_world, parse, terms):
    options = ask(shared_world.options())
    options['train']['stages']['adversarial']['terms'] = terms
    sentence = 'stages:adversarial:terms: the share of feature is measured against terms that have a loss_weight'
    refused(shared_world, parse, options, sentence)


@pytest.mark.parametrize('every', [0, -1, 'often', 1.5])
def test_share_freq_is_a_whole_number(shared_world, parse, every):
    options = shared_world.options()
    options['train']['share_freq'] = every
    refused(shared_world, parse, options, 'train:share_freq: expected `int')
