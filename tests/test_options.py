"""The option files that ship, and the page that describes their keys."""

import glob
import os

import pytest

from sdakd.commands.prepare.synthesis import PUBLISHED
from sdakd_arch.pairing import pair_taps
from sdakd_arch.taps import default_taps
from sdakd_arch.width import build, scale_of, student_of
from sdakd_arch.zoo import URLS
from sdakd_models.checks.run import check_degradation, check_optimizers, check_terms, check_validation
from sdakd_models.options import read_discriminators, read_teachers, read_train
from sdakd_models.reader import read_run
from sdakd_models.terms import TERMS, term_options
from sdakd_models.terms.feature import read_features
from sdakd_models.wiring import active_terms, needed_teachers, used_discriminators

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FILES = sorted(os.path.relpath(p, ROOT) for p in glob.glob(f'{ROOT}/options/**/*.yml', recursive=True))
FILES = [file for file in FILES if os.path.dirname(file) != 'options/compare']  # they name option files, and are none
METHODS = [file for file in FILES if file.startswith('options/methods/')]
BASE = 'options/sdakd_realesr_general_x4v3.yml'
PRE_GAN = 200_000


def load(file):
    return read_run(os.path.join(ROOT, file))


def networks(opt, names):
    """Student, teachers and discriminators on meta; the files they start from are on no test machine."""
    judges = used_discriminators(opt, names)
    for name, entry in judges.items():
        assert entry.learns or entry.weights, f'{name} does not learn and has no file'
    known = read_teachers(opt)  # the demo's is told on the command line
    teachers = {name: known[name].network for name in needed_teachers(opt, names, judges) if name in known}
    parts = (
        {'': opt.get('network_g')},
        teachers,
        {name: entry.network for name, entry in judges.items()},
    )
    built = [{name: build(options, name).to('meta') for name, options in part.items() if options} for part in parts]
    return built[0].get(''), built[1], built[2]


@pytest.mark.parametrize('file', FILES)
def test_option_file_is_sound(file):
    opt = load(file)
    train = read_train(opt, term_options())
    names = check_terms(opt, train.plan())
    check_optimizers(train)
    check_validation(opt)
    assert opt['name'] == os.path.splitext(os.path.basename(file))[0] or file == 'options/demo.yml'
    assert ('network_g' in opt) == train.plan().trains_student
    student, teachers, judges = networks(opt, names)
    for network in (student, *teachers.values()):
        assert network is None or scale_of(network, '') == opt.get('scale', 1)
    for name in names & TERMS.keys():
        options = opt['train'][TERMS[name].option]
        backbone = options.get('weights')  # on no test machine
        if set(TERMS[name].teachers(options)) <= teachers.keys() and (not backbone or os.path.isfile(backbone)):
            TERMS[name].check_networks(options, student, teachers, judges)
    if opt['model_type'] == 'SDAKDRealESRGANModel' and opt.get('high_order_degradation', True):
        check_degradation(opt, train.pool_reuse)
        given = {**opt['datasets']['train'], **opt}
        assert {key: given[key] for key in PUBLISHED} == PUBLISHED
        assert opt['gt_size'] == opt['datasets']['train']['gt_size']
        assert opt['gt_size'] == 256 or file.startswith('options/zoo/')  # a GPU's minutes


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
    if 'replace_by' in opt['teacher']:  # it learns along, and a validation says when it is better
        assert opt['teacher']['network'] == base['teacher']['network']
        own = ('val',)
    else:
        assert opt['datasets'] == base['datasets'] and opt['teacher'] == base['teacher']
    assert opt['path']['pretrain_network_g'] is opt['path']['resume_state'] is None
    assert opt.keys() - base.keys() <= {'discriminators', 'teachers', 'network_d', *own}
    train, wanted = (read_train(content, term_options()) for content in (opt, base))
    for key in ('ema_decay', 'optim_g', 'optim_d', 'start_stage'):
        assert getattr(train, key) == getattr(wanted, key), key
    plan, shared = train.plan(), wanted.plan()
    assert plan.total_iter == shared.total_iter == 400_000
    for iteration in range(1, plan.total_iter + 1, 997):
        assert plan.learning_rate(iteration, 'g') == shared.learning_rate(iteration, 'g')
        terms = active_terms(plan.at(iteration).stage, opt)
        heard = [t for t in terms if t.startswith('gan') and read_discriminators(opt)[t[4:] or 'student'].listens]
        assert not heard or iteration > PRE_GAN
        if heard:
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
