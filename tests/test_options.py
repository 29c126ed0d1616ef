"""The option files that ship, and the page that describes their keys."""

import glob
import os

import pytest
import yaml

from sdakd.pairs import PUBLISHED
from sdakd_arch.taps import default_taps
from sdakd_arch.width import build, scale_of, student_of
from sdakd_arch.zoo import URLS
from sdakd_models.check import check_degradation, check_optimizers, check_terms, check_validation
from sdakd_models.options import read_discriminators, read_teachers, read_train
from sdakd_models.terms import term_options
from sdakd_models.terms.feature import read_features, tap_channels

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = sorted(os.path.relpath(p, ROOT) for p in glob.glob(f'{ROOT}/options/**/*.yml', recursive=True))


def load(file):
    with open(os.path.join(ROOT, file), encoding='utf-8') as stream:
        return yaml.safe_load(stream)


@pytest.mark.parametrize('file', FILES)
def test_option_file_is_sound(file):
    opt = load(file)
    train = read_train(opt, term_options())
    check_terms(opt, train.plan())
    check_optimizers(train)
    check_validation(opt)
    assert opt['name'] == os.path.splitext(os.path.basename(file))[0] or file == 'options/demo.yml'
    assert scale_of(build(opt['network_g'], 'network_g'), 'network_g') == opt['scale']
    if opt['model_type'] == 'SDAKDRealESRGANModel' and opt.get('high_order_degradation', True):
        check_degradation(opt)
        given = {**opt['datasets']['train'], **opt}
        assert {key: given[key] for key in PUBLISHED} == PUBLISHED
        assert opt['gt_size'] == opt['datasets']['train']['gt_size'] == 256


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
    features = read_features(opt['train']['feature_opt'])
    networks = [build(network, '').to('meta') for network in (opt['network_g'], opt['teacher']['network'])]
    _, channels = tap_channels(*networks, features, 64, 'meta')
    assert set(channels) == set(default_taps(networks[0]))
    assert all(student * denominator == teacher for student, teacher in channels.values())


def test_the_page_of_options_is_current():
    from sdakd_models.reference import reference

    with open(os.path.join(ROOT, 'docs/options.md'), encoding='utf-8') as page:
        assert page.read() == reference(), 'run: python -m sdakd_models.reference > docs/options.md'
