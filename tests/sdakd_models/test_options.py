"""The option files that ship, and the page that describes their keys."""

import glob
import os

import pytest

from sdakd.commands.prepare.synthesis import PUBLISHED
from sdakd.compat import Mistakes
from sdakd_arch.pairing import pair_taps
from sdakd_arch.taps import default_taps
from sdakd_arch.width import build, student_of
from sdakd_arch.zoo import URLS
from sdakd_models.cast import Cast
from sdakd_models.checks import degradation, faces, keys, networks, stages, validation
from sdakd_models.options import read_discriminators, read_teachers
from sdakd_models.reader import read_run
from sdakd_models.scenario import Scenario

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FILES = sorted(os.path.relpath(p, ROOT) for p in glob.glob(f'{ROOT}/options/**/*.yml', recursive=True))
FILES = [file for file in FILES if os.path.dirname(file) != 'options/compare']  # they name option files, and are none
METHODS = [file for file in FILES if file.startswith('options/methods/')]
BASE = 'options/sdakd_realesr_general_x4v3.yml'
PRE_GAN = 200_000


def load(file):
    return read_run(os.path.join(ROOT, file))


@pytest.mark.parametrize('file', FILES)
def test_option_file_is_sound(file, monkeypatch):
    # the files that networks start from are on no test machine
    monkeypatch.setattr('sdakd_models.cast.read_state', lambda *_: {})
    monkeypatch.setattr('sdakd_models.cast.load_into', lambda *_: None)
    opt = load(file)
    with Mistakes() as mistakes:
        keys.settle(opt, mistakes)
        scenario = Scenario.read(opt)
        stages.check(scenario)
        faces.check(scenario)
        validation.check(scenario, mistakes)
    assert opt['name'] == os.path.splitext(os.path.basename(file))[0]
    assert ('network_g' in opt) == scenario.plan.trains_student
    assert all(entry.learns or entry.weights for entry in scenario.discriminators.values())
    cast = Cast(scenario, 'meta')
    networks.check_scales(scenario, cast)
    for name in cast.terms:  # losses that read a file come without a check of what is in it
        if not scenario.terms[name].loss.get('weights') and scenario.terms[name].loss['type'] != 'PerceptualLoss':
            cast.terms[name].check(scenario, cast)
    if opt['model_type'] == 'SDAKDRealESRGANModel' and opt.get('high_order_degradation', True):
        with Mistakes() as mistakes:
            degradation.check(scenario, mistakes)
        given = {**opt['datasets']['train'], **opt}
        assert {key: given[key] for key in PUBLISHED} == PUBLISHED
        assert opt['gt_size'] == opt['datasets']['train']['gt_size']
        assert opt['gt_size'] == 256 or file.startswith(('options/zoo/', 'options/distill'))  # a GPU's minutes


@pytest.mark.parametrize(
    ('file', 'denominator'),
    [
        ('sdakd_realesrgan_x4', 4),
        ('sdakd_realesrgan_x4_1_2', 2),
        ('sdakd_realesrgan_x4_1_8', 8),
        ('sdakd_realesrgan_x2', 4),
        ('sdakd_realesr_general_x4v3', 4),
    ],
)
def test_student_is_the_narrowed_teacher(file, denominator):
    """Generator and discriminator have the ratio that the file's name and comments promise; the teacher is official."""
    opt = load(f'options/{file}.yml')
    assert student_of(read_teachers(opt)['teacher'].network, 1 / denominator) == opt['network_g']
    upstream = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64, 'skip_connection': True}
    assert student_of(upstream, 1 / denominator) == read_discriminators(opt)['student'].network
    assert os.path.basename(read_teachers(opt)['teacher'].weights) in URLS
    features = Scenario.read(opt).terms['feature'].options
    networks = [build(network, '').to('meta') for network in (opt['network_g'], opt['teacher']['network'])]
    channels = pair_taps(*networks, features.layers, 'train:feature_opt:layers', 64).channels
    assert set(channels) == set(default_taps(networks[0]))
    assert all(student * denominator == teacher for student, teacher in channels.values())


@pytest.mark.parametrize('file', METHODS)
def test_methods_share_their_setting(file):
    """Same data, teacher and student, averaging, rates and lengths; no discriminator is heard sooner than another's."""
    opt, base = load(file), load(BASE)
    for key in base.keys() - {'name', 'train', 'network_d', 'path', 'datasets', 'teacher'}:
        assert opt.get(key) == base[key], key
    assert opt['datasets']['train'] == base['datasets']['train']
    own = ()
    if 'cotrain' in opt['teacher']:  # it learns along, and a validation says when it is better
        assert opt['teacher']['network'] == base['teacher']['network']
        own = ('val',)
    else:
        assert opt['datasets'] == base['datasets'] and opt['teacher'] == base['teacher']
    assert opt['path']['pretrain_network_g'] is opt['path']['resume_state'] is None
    assert opt.keys() - base.keys() <= {'discriminators', 'teachers', 'network_d', *own}
    scenario, shared = Scenario.read(opt), Scenario.read(base)
    train, wanted = scenario.train, shared.train
    for key in ('ema_decay', 'optim_g', 'optim_d', 'start_stage'):
        assert getattr(train, key) == getattr(wanted, key), key
    plan, shared = scenario.plan, shared.plan
    assert plan.total_iter == shared.total_iter == 400_000
    for iteration in range(1, plan.total_iter + 1, 997):
        assert plan.learning_rate(iteration, 'g') == shared.learning_rate(iteration, 'g')
        terms = scenario.active[plan.at(iteration).name]
        training = [each for each in scenario.discriminators.values() if each.term in terms and each.trains_student]
        assert not training or iteration > PRE_GAN
        if training:
            assert plan.learning_rate(iteration, 'd') == shared.learning_rate(iteration, 'd')
    for key in ('pixel_opt', 'gan_opt'):
        assert opt['train'].get(key, base['train'][key]) == base['train'][key], key


@pytest.mark.parametrize('file', [*METHODS, 'options/teacher_discriminator_realesr_general_x4v3.yml'])
def test_methods_share_one_teacher_discriminator(file):
    """Who starts from the teacher's discriminator finds what the file that makes it makes."""
    made = load('options/teacher_discriminator_realesr_general_x4v3.yml')
    for entry in read_discriminators(load(file)).values():
        if entry.weights:
            assert entry.weights == f'experiments/pretrained_models/{made["name"]}.pth'
            assert entry.network == made['discriminators']['teacher']['network']
    for key in load(BASE).keys() - {'name', 'train', 'network_g', 'network_d', 'path', 'logger'}:
        assert made.get(key) == load(BASE)[key], key


def test_the_page_of_options_is_current():
    from sdakd_models.reference import reference

    with open(os.path.join(ROOT, 'docs/options.md'), encoding='utf-8') as page:
        assert page.read() == reference(), 'run: python -m sdakd_models.reference > docs/options.md'
