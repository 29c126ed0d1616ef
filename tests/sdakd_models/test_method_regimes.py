"""Who judges whom, who learns and what stays, for the option file of every method; discriminators without a student."""

import copy
import glob
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.models import build_model

from sdakd.compat import UserError
from sdakd_metrics.overlap import overlap
from sdakd_models import resuming
from sdakd_models.reader import force, read_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATHS = sorted(glob.glob(f'{ROOT}/options/methods/**/*.yml', recursive=True))
FILES = {os.path.splitext(os.path.basename(path))[0]: path for path in PATHS}

# What a discriminator sees in one step, in order: first what trains the student, then what it learns from, then what is
# only logged. '+': in training mode, where spectral norm moves its vectors; '-': in evaluation mode.
OWN = ['student+', 'gt+', 'student+']
FROZEN = ['student-']
UPDATING_FREEZING = ['student-', 'gt+', 'teacher+']
ALWAYS_UPDATING = ['student+', 'gt+', 'teacher+', 'student+']
REGIMES = {
    'l1': {},
    'omgd': {},
    'output': {'student': OWN},
    'none': {'student': OWN},
    'none_teacher_d_pretrained': {'teacher': OWN},
    'sdakd': {'student': OWN},
    'sdakd_no_student_d': {'teacher': OWN},
    'dgl_gan': {'student': OWN, 'teacher': FROZEN},
    'dgl_gan_updated': {'student': OWN, 'teacher': OWN},
    'dime': {'student': OWN, 'teacher': OWN},
    'mcad': {'student': OWN},
    'sdakd_plus': {'image': ['student+', 'teacher+', 'student+', 'teacher-', 'gt-']},
    # the step of the masks comes last: of both discriminators, whose gap is compared
    'gcc': {'selected': [*OWN, 'student-', 'gt-'], 'teacher': ['teacher-']},
    'akdg': {'student': OWN, 'distillation': ['student+', 'teacher+', 'student+', 'teacher-', 'gt-']},
    'dcd': {'teacher': UPDATING_FREEZING},
    'dcd_always_updating': {'teacher': ALWAYS_UPDATING},
    'dcd_modified': {'teacher': FROZEN},
    'dcd_modified_mlp': {'teacher': UPDATING_FREEZING},
    'dcd_modified_updated': {'teacher': ALWAYS_UPDATING},
    'crd': {'teacher': UPDATING_FREEZING},
    'crd_always_updating': {'teacher': ALWAYS_UPDATING},
    'crd_cotrained': {'teacher': ['student-', 'apprentice+', 'gt+', 'apprentice+']},  # the teacher in training
    'crd_no_discriminator': {},  # it would train nobody
    'crd_pretrained_freezing': {'teacher': FROZEN},
    'crd_pretrained_updating': {'teacher': OWN},
}


def regime(name):
    """The one that is written above for this option file, or for the method whose variant it is.

    A method without discriminators needs no row.
    """
    options = load(FILES[name]) if name in FILES else {}
    if name not in REGIMES and options and not options.get('network_d') and not options.get('discriminators'):
        return {}
    while name not in REGIMES:
        name, found, _ = name.rpartition('_')
        assert found, 'write its regime into the table above'
    return REGIMES[name]


def load(path):
    return read_run(path)


def small(world, opt):
    """The discriminators and the stages of an option file in a run of seconds; of the terms, pixels and GANs stay."""
    options = world.options()
    options['logger']['print_freq'] = 1
    stages = {
        name: {
            **stage,
            'iters': 1,
            'terms': [term for term in stage['terms'] if term.split(':')[0] in ('pixel', 'gan')],
        }
        for name, stage in opt['train']['stages'].items()
    }
    for stage in stages.values():
        if 'lr_g' in stage and 'pixel' not in stage['terms']:
            stage['terms'].insert(0, 'pixel')  # in the place of what the student learns from there
    torch.save({'params': UNetDiscriminatorSN(3, 4).state_dict()}, world.root / 'judge.pth')
    judge = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    if 'network_d' in opt:
        assert opt['network_d']['type'] == judge['type']
        options['network_d'] = judge
    options['discriminators'] = copy.deepcopy(opt.get('discriminators') or {})
    for entry in options['discriminators'].values():
        assert entry['network']['type'] == judge['type']
        entry['network'] = judge
        if entry.get('selective'):
            entry['selective']['held_out'] = 4  # there are eight images
        entry['weights'] = str(world.root / 'judge.pth') if entry.get('weights') else None
    if opt['path'].get('pretrain_network_d'):
        options['path']['pretrain_network_d'] = str(world.root / 'judge.pth')
    if opt.get('teacher', {}).get('cotrain'):
        options['teacher']['cotrain'] = {'metric': 'psnr'}
    options['train']['stages'] = stages
    options['train']['gan_opt'] = opt['train'].get('gan_opt', options['train']['gan_opt'])
    if 'network_g' not in opt:
        del options['network_g'], options['val'], options['datasets']['val']
    return options


def judges_of(opt):
    """What option files say of discriminators that are selectively activated, by name."""
    return {key: entry['selective'] for key, entry in (opt.get('discriminators') or {}).items() if 'selective' in entry}


def build(world, parse, options):
    opt = parse(world.write(options), world.root)
    for key in ('models', 'training_states'):
        os.makedirs(opt['path'][key], exist_ok=True)
    return build_model(opt)


def step(model, iteration):
    gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(iteration))
    model.update_learning_rate(iteration)
    model.feed_data({'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)})
    model.optimize_parameters(iteration)
    return model.get_current_log()


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def moved(before, network):
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def parameters(network):
    return {name for name, _ in network.named_parameters()}


def inside(image):
    """Without the border of two input pixels, a quarter of the crop of 8."""
    return image[..., 8:-8, 8:-8]


class Watch:
    """Notes whose images a model's discriminators are given, in which mode, and how they stood when that happened.

    One that is shown images of the teacher sees all images without the border.
    """

    def __init__(self, model):
        self.model, self.images = model, {}
        self.calls = {name: [] for name in model.discriminators}
        self.states = {name: [] for name in model.discriminators}
        if model.cast.student is not None:
            model.bare_student.register_forward_hook(lambda _m, _i, image: self.images.update(student=image))
        for teacher in model.teachers.values():
            teacher.register_forward_hook(lambda _m, _i, image: self.images.update(teacher=image))
        for teacher in model.cotrained:
            teacher.player.bare.register_forward_hook(lambda _m, _i, image: self.images.update(apprentice=image))
        for name, adversary in model.discriminators.items():
            adversary.bare.register_forward_pre_hook(lambda net, given, name=name: self.note(name, net, given[0]))

    def note(self, name, net, image):
        known = {**self.images, 'gt': self.model.gt}
        facts = self.model.discriminators[name].facts
        if 'teacher' in [facts.real, *facts.fake]:
            known = {kind: inside(tensor) for kind, tensor in known.items()}
        found = [kind for kind, tensor in known.items() if torch.equal(tensor, image)]
        assert len(found) == 1
        self.calls[name].append(found[0] + ('+' if net.training else '-'))
        self.states[name].append(state(net))

    def clear(self):
        self.images.clear()
        for notes in (*self.calls.values(), *self.states.values()):
            notes.clear()


@pytest.mark.parametrize('name', FILES)
def test_regime_of_a_method(name, world, parse):
    """In every stage, those that are on do what the method says, and everyone else stays bit for bit."""
    opt = load(FILES[name])
    model = build(world, parse, small(world, opt))
    watch, wanted = Watch(model), regime(name)
    assert set(model.discriminators) == set(wanted)
    teachers = {key: state(teacher) for key, teacher in model.teachers.items()}
    for iteration, stage in enumerate(model.plan.stages, 1):
        judges = {key: state(adversary.bare) for key, adversary in model.discriminators.items()}
        student = state(model.bare_student)
        watch.clear()
        log = step(model, iteration)
        assert moved(student, model.bare_student) == set(student)
        for key, adversary in model.discriminators.items():
            on = adversary.term in stage.terms
            if by := [judge for judge, entry in judges_of(opt).items() if entry.get('against') == key]:
                on = f'gan:{by[0]}' in stage.terms  # it trains nobody: another one's masks look at it
            assert watch.calls[key] == (wanted[key] if on else [])
            learns = on and any(call.startswith('gt+') or call == 'teacher+' for call in wanted[key])
            assert moved(judges[key], adversary.bare) == (set(judges[key]) if learns else set())
            assert all(parameter.grad is None for parameter in adversary.bare.parameters())
            assert (f'l_g_gan{adversary.suffix}' in log) == (on and adversary.facts.trains_student)
            assert (f'l_d_real{adversary.suffix}' in log) == learns
            if len(watch.states[key]) > 1:  # what the student's pass has left behind when the discriminator learns
                before, after = watch.states[key][:2]
                changed = {name for name in after if not torch.equal(before[name], after[name])}
                buffers = set(after) - parameters(adversary.bare)
                assert changed == (buffers if watch.calls[key][0] == 'student+' else set())
    assert watch.calls == wanted
    assert all(moved(before, model.teachers[key]) == set() for key, before in teachers.items())


@pytest.mark.parametrize(
    ('facts', 'calls'),
    [
        ({'fake': ['teacher']}, UPDATING_FREEZING),
        ({'fake': ['teacher', 'student']}, ALWAYS_UPDATING),
        ({'fake': ['teacher'], 'trains_student': False}, ['gt+', 'teacher+']),  # CRD's Table 6, "without discriminator"
        ({'learns': False, 'weights': True}, FROZEN),
        ({'fake': ['student'], 'weights': True}, OWN),
        ({'real': 'teacher', 'fake': ['student']}, ['student+', 'teacher+', 'student+', 'teacher-', 'gt-']),
    ],
)
def test_regime_of_facts(facts, calls, world, parse):
    """The rows of the literature that have no option file here, by the facts that an entry can state."""
    stages = {'adversarial': {'iters': 1, 'lr_g': 1e-3, 'lr_d': 1e-3, 'terms': ['pixel', 'gan:other']}}
    opt = {'train': {'stages': stages}, 'path': {}, 'network_g': {}}
    opt['discriminators'] = {'other': {'network': {'type': 'UNetDiscriminatorSN'}, **facts}}
    model = build(world, parse, small(world, opt))
    watch, judge = Watch(model), model.discriminators['other'].bare
    before = state(judge)
    log = step(model, 1)
    assert watch.calls == {'other': calls}
    assert moved(before, judge) == (set(before) if facts.get('learns', True) else set())
    assert ('l_g_gan_other' in log) == facts.get('trains_student', True)


# --------------------------------------------------------------------------------------------------- without a student

ALONE = load(os.path.join(ROOT, 'options/teacher_discriminator_realesr_general_x4v3.yml'))


@pytest.fixture
def alone(world):
    options = small(world, ALONE)
    options['train']['stages']['discriminator']['iters'] = 4
    return options


def test_a_discriminator_learns_without_a_student(world, parse, alone):
    model = build(world, parse, alone)
    assert not hasattr(model, 'net_g') and [player.name for player in model.players] == ['d_teacher']
    watch, judge = Watch(model), model.discriminators['teacher'].bare
    teacher, before = state(model.teachers['teacher']), state(judge)
    log = step(model, 1)
    assert watch.calls == {'teacher': ['gt+', 'teacher+']}
    assert moved(before, judge) == set(before)
    assert moved(teacher, model.teachers['teacher']) == set()
    names = {'l_d_real_teacher', 'l_d_fake_teacher', 'out_d_real_teacher', 'out_d_fake_teacher'}
    assert set(log) == {'stage'} | names

    # one loss on real, one on fake images, as written down
    fresh = UNetDiscriminatorSN(3, 4)
    fresh.load_state_dict(before)
    gt = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        real = fresh.train()(inside(gt))
        fake = fresh(inside(model.teachers['teacher'](torch.nn.functional.avg_pool2d(gt, 4))))
    assert log['l_d_real_teacher'] == pytest.approx(torch.log1p(torch.exp(-real)).mean().item(), rel=1e-5)
    assert log['l_d_fake_teacher'] == pytest.approx(torch.log1p(torch.exp(fake)).mean().item(), rel=1e-5)


def test_its_checkpoint_is_resumed_and_opened_by_a_method(world, parse, alone):
    model = build(world, parse, alone)
    for iteration in (1, 2):
        step(model, iteration)
    model.save(0, 2)
    for iteration in (3, 4):
        step(model, iteration)
    model.save(-1, -1)
    found = {path.name for path in (world.root / 'experiments/run/models').iterdir()}
    assert found == {'net_d_teacher_2.pth', 'net_d_teacher_latest.pth'}

    opt = parse(world.write(alone), world.root, '--auto_resume')
    resumed = build_model(opt)
    resumed.resume_training(resuming.load_resume_state(opt))
    for iteration in (3, 4):
        step(resumed, iteration)
    end = state(model.discriminators['teacher'].bare)
    assert moved(end, resumed.discriminators['teacher'].bare) == set()

    options = small(world, load(FILES['dgl_gan']))
    file = str(world.root / 'experiments/run/models/net_d_teacher_latest.pth')
    options['discriminators']['teacher']['weights'] = file
    guided = build(world, parse, options)
    assert moved(end, guided.discriminators['teacher'].bare) == set()


def test_the_command_trains_a_discriminator_alone(world, alone):
    """From the option file to the checkpoint, as a user types it; the log tells its price."""
    alone['logger']['print_freq'] = 2
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': ROOT}
    line = [sys.executable, '-m', 'sdakd.cli', 'train', '-opt', world.write(alone)]
    done = subprocess.run(line, cwd=world.root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = world.root / 'experiments/run'
    assert {path.name for path in (folder / 'models').iterdir()} == {
        'net_d_teacher_4.pth',
        'net_d_teacher_latest.pth',
    }
    (log,) = folder.glob('train_*.log')
    training = log.read_text().split('Start training')[1]
    assert 'out_d_real_teacher: ' in training and 'out_d_fake_teacher: ' in training and 'student' not in training
    assert 'Time consumed: ' in training and re.search(r'Peak memory: [1-9][\d,]* MiB \(cpu\)', training)


def discriminator(options):
    return options['train']['stages']['discriminator']


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (lambda o, w: o.update(network_g=w['network_g']), 'network_g: no stage trains the student; leave'),
        (lambda o, w: o.update(val=w['val']), 'val: there is no student'),
        (
            lambda o, w: discriminator(o).update(lr_g=1e-4),
            'trains the student; where only discriminators learn, leave lr_g out',
        ),
        (lambda o, w: discriminator(o)['terms'].append('pixel'), r'lr_g: the key is missing, but .* \(pixel\)'),
        (
            lambda o, w: o['discriminators']['teacher'].update(trains_student=True),
            r'lr_g: the key is missing.*gan:teacher',
        ),
        (lambda o, w: o['discriminators']['teacher'].update(fake=['student']), 'teacher:fake: it names the student'),
        (lambda o, w: o['discriminators']['teacher'].update(learns=False), 'that trains the student or a discrim'),
        (lambda o, w: o.pop('teacher'), 'teacher: the block is missing'),
        (lambda o, w: o.update(scale=2), 'teacher: it enlarges 4 times and the options say scale: 2'),
        (lambda o, w: discriminator(o).pop('lr_d'), 'lr_d: the key is missing, but a discriminator learns'),
    ],
)
def test_mistakes_without_a_student(world, parse, alone, change, sentence):
    change(alone, world.options())
    with pytest.raises(UserError, match=sentence) as caught:
        parse(world.write(alone), world.root)
    assert '\n' not in str(caught.value)
    assert not (world.root / 'experiments').exists()


def test_the_student_may_rest_while_discriminators_learn(world, parse):
    options = world.options()
    facts = {'network': options['network_d'], 'fake': ['teacher'], 'trains_student': False}
    options['discriminators'] = {'teacher': facts}
    options['train']['stages'] = {
        'both': {'iters': 1, 'lr_g': 1e-3, 'lr_d': 1e-3, 'terms': ['pixel', 'feature', 'gan']},
        'alone': {'iters': 1, 'lr_d': 1e-3, 'terms': ['gan:teacher']},
        'again': {'iters': 1, 'lr_g': 1e-3, 'terms': ['pixel']},
    }
    model = build(world, parse, options)
    names = {'g', 'adapter', 'd', 'd_teacher'}
    for iteration, moving in enumerate(({'g', 'adapter', 'd', 'ema'}, {'d_teacher'}, {'g', 'ema'}), 1):
        networks = {player.name: player.bare for player in model.players} | {'ema': model.net_g_ema}
        assert set(networks) == names | {'ema'}
        before = {name: state(network) for name, network in networks.items()}
        calls = []
        hook = model.bare_student.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        step(model, iteration)
        hook.remove()
        assert {name for name, network in networks.items() if moved(before[name], network)} == moving
        assert bool(calls) == ('g' in moving)


# -------------------------------------------------------------------------------------------------------------- DGL-GAN


def test_dgl_gan_guides_at_its_share_and_goes_on():
    for name in ('dgl_gan', 'dgl_gan_updated'):
        opt = load(FILES[name])
        guide, own = opt['discriminators']['teacher']['gan_opt'], opt['train']['gan_opt']
        assert guide['share'] == 0.3 and own['loss_weight'] == 0.1
        assert {key: guide[key] for key in guide if key != 'share'} == {k: own[k] for k in own if k != 'loss_weight'}
        stages = opt['train']['stages']
        assert list(stages) == ['supervised', 'distillation', 'adversarial', 'guided']
        assert set(stages['guided']['terms']) - set(stages['adversarial']['terms']) == {'gan:teacher'}
        assert stages['guided']['reset_optimizers'] is False


def test_dgl_gan_of_the_uncompressed_student():
    """The flags of its page widen generator and discriminator to the teacher's, and nothing else."""
    opt, base = load(FILES['dgl_gan']), load(FILES['dgl_gan'])
    force(opt, ['name=dgl_gan_ratio_1', 'network_g:num_feat=64', 'network_d:num_feat=64'])
    assert opt['network_g'] == base['teacher']['network']
    assert opt['network_d'] == base['discriminators']['teacher']['network']
    assert {key for key in opt if opt[key] != base[key]} == {'name', 'network_g', 'network_d'}
    with open(os.path.join(ROOT, 'docs/methods/dgl_gan.md'), encoding='utf-8') as page:
        assert 'name=dgl_gan_ratio_1 network_g:num_feat=64 network_d:num_feat=64' in page.read()


# --------------------------------------------------------------------------------------------------- overlap, and AKDG


def test_overlap_by_its_formula():
    """Shares counted one value after the other, between quantiles found by counting too."""
    one = torch.randn(70)
    other = 0.5 * torch.randn(70) + 0.4
    together = sorted(one.tolist() + other.tolist())
    found = 0.0
    bins = 7
    for number in range(bins):
        low = together[number * 140 // bins] if number else -math.inf
        high = together[(number + 1) * 140 // bins] if number < bins - 1 else math.inf
        shares = [sum(low <= value < high for value in values.tolist()) / 70 for values in (one, other)]
        found += min(shares)
    assert overlap(one, other, bins).item() == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize('shift', [0.0, 0.5, 1.0, 2.0, 4.0])
def test_overlap_of_two_normals(shift):
    """Two densities of deviation 1 cross half-way: the overlap is twice the tail beyond, erfc(shift / (2 sqrt 2))."""
    one, other = torch.randn(2, 1, 20, 5000)
    found = overlap(one, other + shift).item()
    assert found == pytest.approx(math.erfc(shift / (2 * math.sqrt(2))), abs=0.02)
    assert overlap(other + shift, one).item() == pytest.approx(found, abs=1e-6)


def test_overlap_at_its_ends_and_under_increasing_functions():
    one, other = torch.randn(2, 1000).double()
    assert overlap(one, one) == 1 and overlap(one, one + 100) == 0
    assert overlap(torch.zeros(9), torch.zeros(9)) == 1 and overlap(torch.zeros(9), torch.ones(9)) == 0
    assert overlap(one.sigmoid(), other.sigmoid()) == overlap(one, other)
    with_outlier = torch.cat([one[1:], torch.tensor([1e9]).double()])
    assert overlap(with_outlier, other).item() == pytest.approx(overlap(one, other).item(), abs=0.01)
    expected = 1 - math.sqrt(50 / (math.pi * 1000))
    found = torch.stack([overlap(*torch.randn(2, 1000)) for _ in range(50)]).mean()
    assert found.item() == pytest.approx(expected, abs=0.01)


def test_akdg_logs_the_overlap_where_the_log_is_printed_and_nothing_moves_by_it(world, parse):
    options = small(world, load(FILES['akdg']))
    options['train']['stages']['adversarial']['iters'] = 4
    models = []
    for frequency in (2, 1000):
        options['logger']['print_freq'] = frequency
        torch.manual_seed(1)
        models.append(build(world, parse, options))
    often, never = models
    for iteration in range(1, 7):
        log, other = step(often, iteration), step(never, iteration)
        printed = iteration % 2 == 0 and iteration > 2
        assert set(log) - set(other) == ({'out_d_overlap_distillation'} if printed else set())
        assert {key: log[key] for key in other if key != 'stage'} == {k: v for k, v in other.items() if k != 'stage'}
        if printed:
            judge = copy.deepcopy(often.discriminators['distillation'].bare).eval()
            with torch.no_grad():
                verdicts = judge(inside(often.teachers['teacher'](often.lq))), judge(inside(often.gt))
            assert log['out_d_overlap_distillation'] == pytest.approx(overlap(*verdicts).item())
    for one, two in zip(often.players, never.players, strict=True):
        assert moved(state(one.bare), two.bare) == set()
