"""The border of a crop, where a teacher's answer is an artefact of padding: what leaves it out, and what does not."""

import copy

import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.models import build_model
from torch.nn import functional as F

from sdakd.compat import UserError
from sdakd_models.scenario import Scenario
from sdakd_models.terms import Context

SCALE, CROP, MARGIN = 4, 16, 4  # of the runs below: 4 input pixels of crops of 16 are border by default
TERMS = {
    'output': {'type': 'L1Loss'},
    'crd': {'type': 'ContentRelationLoss', 'patches': 4},
    'omgd': {'type': 'OMGDLoss', 'ssim_weight': 1.0, 'tv_weight': 1e-3, 'channel_weight': 1.0},
    'feature': {'type': 'FeatureMapLoss', 'layers': ['body.3', 'body.9', 'upsampler']},
    'dcd': {'type': 'DCDLoss'},
}


@pytest.fixture
def options(world):
    options = world.options()
    options['datasets']['train']['gt_size'] = CROP * SCALE
    judge = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    options['discriminators'] = {'teacher': {'network': judge, 'fake': ['teacher']}}
    terms = ['pixel', *TERMS, 'gan', 'gan:teacher']
    options['train']['stages'] = {'all': {'iters': 4, 'lr_g': 1e-3, 'lr_d': 1e-3, 'terms': terms}}
    options['train'] |= {f'{name}_opt': dict(block) for name, block in TERMS.items()}
    return options


@pytest.fixture
def model(world, parse, options):
    return build_model(parse(world.write(options), world.root))


def batch():
    gt = torch.rand(2, 3, CROP * SCALE, CROP * SCALE, generator=torch.Generator().manual_seed(3))
    return {'gt': gt, 'lq': F.avg_pool2d(gt, SCALE)}


def ring(maps, distance):
    """Noise on the square line that is ``distance`` pixels away from the border, 0 elsewhere."""
    mask = torch.zeros(maps.shape[-2:])
    mask[distance : maps.shape[-2] - distance, distance : maps.shape[-1] - distance] = 1
    mask[distance + 1 : maps.shape[-2] - distance - 1, distance + 1 : maps.shape[-1] - distance - 1] = 0
    return mask * torch.rand(maps.shape, generator=torch.Generator().manual_seed(5))


def value(model, name, changed=None, distance=0):
    """The sum of a term; ``changed``: the module whose output a line of noise is added to."""
    model.feed_data(batch())
    hook = None
    if changed is not None:
        hook = changed.register_forward_hook(lambda _m, _i, out: out + ring(out, distance), prepend=True)
    torch.manual_seed(7)
    found = sum(copy.deepcopy(model.terms[name])(Context(model, model.terms[name].needs_features)).values()).item()
    if hook is not None:
        hook.remove()
    return found


@pytest.mark.parametrize('who', ['student', 'teacher'])
@pytest.mark.parametrize('name', ['output', 'crd', 'omgd'])
def test_a_terms_value_does_not_hear_the_border_of_images(model, name, who):
    network = model.bare_student if who == 'student' else model.teachers['teacher']
    last = MARGIN * SCALE - 1
    same = value(model, name)
    assert value(model, name, network, 0) == same and value(model, name, network, last) == same
    assert value(model, name, network, last + 1) != same


@pytest.mark.parametrize('who', ['student', 'teacher'])
@pytest.mark.parametrize(('name', 'tap', 'unit'), [('feature', 'upsampler', SCALE), ('feature', 'body.9', 1),
                                                   ('dcd', 'body.9', 1), ('omgd', 'body.9', 1)])  # fmt: skip
def test_a_terms_value_does_not_hear_the_border_of_maps(model, name, tap, unit, who):
    network = model.bare_student if who == 'student' else model.teachers['teacher']
    module = network.get_submodule(tap)
    same = value(model, name)
    # what stands behind the tap, one convolution of 3x3, spreads the noise by one pixel
    quiet = MARGIN * unit - (1 if unit == 1 else 0) - 1
    assert value(model, name, module, quiet) == same
    assert value(model, name, module, MARGIN * unit) != same


def test_feature_maps_are_cut_at_their_own_resolution(model):
    """The written formula with maps of the input's size and four times that, both without the border."""
    model.feed_data(batch())
    bank = next(player.bare for player in model.players if player.name == 'adapter')
    maps = {}
    for who, network in (('student', model.bare_student), ('teacher', model.teachers['teacher'])):
        image = model.lq
        with torch.no_grad():
            for number, layer in enumerate(network.body):
                image = layer(image)
                maps[who, f'body.{number}'] = image[..., 4:-4, 4:-4]
            maps[who, 'upsampler'] = network.upsampler(image)[..., 16:-16, 16:-16]
    wanted = []
    for tap in ('body.3', 'body.9', 'upsampler'):
        its = maps['teacher', tap].double()
        with torch.no_grad():
            ours = bank.adapters[tap.replace('.', '/')](maps['student', tap]).double()
        wanted.append(((ours - its) ** 2).mean() / (its.var(unbiased=False) + 1e-8))
    found = model.terms['feature'](Context(model, with_features=True))['feature']
    assert found.item() == pytest.approx(sum(wanted).item() / 3, rel=1e-5)


def test_only_a_discriminator_that_sees_the_teachers_images_is_shown_crops(model):
    seen = {name: [] for name in model.discriminators}
    for name, adversary in model.discriminators.items():
        adversary.bare.register_forward_pre_hook(lambda _m, given, name=name: seen[name].append(given[0].clone()))
    student = copy.deepcopy(model.bare_student)
    data = batch()
    model.update_learning_rate(1)
    model.feed_data(data)
    model.optimize_parameters(1)
    with torch.no_grad():
        image, teacher = student(data['lq']), model.teachers['teacher'](data['lq'])
    pairs = zip(seen['student'], (image, data['gt'], image), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    images = [each for each in seen['teacher'] if each.shape[-1] == 32]  # the others are DCD's maps
    pairs = zip(images, (each[..., 16:-16, 16:-16] for each in (image, data['gt'], teacher)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(('crop', 'margin'), [(4, 1), (8, 2), (16, 4), (31, 7), (32, 8), (64, 8)])
def test_the_default_margin(crop, margin):
    train = {'stages': {'only': {'iters': 1, 'lr_g': 1e-3, 'terms': ['pixel']}}, 'pixel_opt': {'type': 'L1Loss'}}
    opt = {'train': train, 'model_type': 'SDAKDRealESRGANModel', 'datasets': {}, 'gt_size': 4 * crop, 'scale': 4}
    assert Scenario.read(opt).margin == margin
    assert Scenario.read({**opt, 'model_type': 'SDAKDGCFSRModel'}).margin == 0
    opt['train']['teacher_margin'] = '3'  # a number written as text, as the typed options take it
    assert Scenario.read(opt).margin == 3


@pytest.mark.parametrize(
    ('margin', 'sentence'),
    [
        (8, 'train:teacher_margin: a border of 8 leaves nothing of crops of 16 input pixels; write at most 7'),
        (100, 'train:teacher_margin: a border of 100 leaves nothing'),
        (-1, 'train:teacher_margin: expected `int` >= 0'),
        (1.5, 'train:teacher_margin: expected `int'),
        ('wide', 'train:teacher_margin: expected `int'),
        (7, r'discriminators:teacher:network: it does not take images of 8x8 pixels, what train:teacher_margin leaves'),
    ],
)
def test_margins_that_are_refused(world, parse, options, margin, sentence):
    if margin == 7:  # a discriminator that wants more than what is left
        options['discriminators']['teacher']['network'] = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3,
                                                           'num_feat': 4, 'input_size': 128}  # fmt: skip
    options['train']['teacher_margin'] = margin
    before = {path for path in world.root.rglob('*')} | {world.root / 'run.yml'}
    with pytest.raises(UserError, match=sentence) as error:
        parse(world.write(options), world.root)
    assert '\n' not in str(error.value) and {path for path in world.root.rglob('*')} == before


def test_a_run_without_a_teacher_has_no_margin_to_check(world, parse, options):
    options['train']['stages']['all']['terms'] = ['pixel']
    options['datasets']['train']['gt_size'] = 4  # one input pixel
    options['train']['stages']['all'].pop('lr_d')
    assert build_model(parse(world.write(options), world.root)).teachers == {}


def test_the_largest_border_that_leaves_something_is_taken(world, parse, options):
    options['train']['stages']['all'] |= {'terms': ['pixel', 'output']}
    options['train']['stages']['all'].pop('lr_d')
    options['train']['teacher_margin'] = 7
    model = build_model(parse(world.write(options), world.root))
    model.feed_data(batch())
    student, teacher = Context(model, False).pair()
    assert student.shape == teacher.shape == (2, 3, 8, 8)
    assert UNetDiscriminatorSN(3, 4)(student).shape == (2, 1, 8, 8)
