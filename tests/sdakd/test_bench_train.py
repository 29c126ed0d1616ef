"""`sdakd bench train`: a plain step is BasicSR's in every bit, what is booked where, the table, and bad input."""

import copy
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.data import degradations
from basicsr.utils import USMSharp
from torch import nn

import sdakd
from sdakd import cli
from sdakd.commands.bench_train import rival, rows, stand_ins
from sdakd.commands.bench_train.ledger import PARTS, Ledger
from sdakd.commands.bench_train.steps import Stepper, load, quietly, watched_step
from sdakd.compat import UserError
from sdakd_models import reader
from sdakd_models.context import Context
from sdakd_models.players import Discriminator

EXACT = {'type': 'Adam', 'betas': [0.9, 0.99], 'fused': False}  # the implementation that BasicSR's Adam takes


def degraded(world):
    """Options of Real-ESRGAN's degradation."""
    opt = world.options() | world.degradation | {'model_type': 'SDAKDRealESRGANModel', 'gt_size': 32}
    opt['datasets'] = {'train': opt['datasets']['train'] | world.kernels}
    opt['datasets']['train'] |= {'type': 'RealESRGANDataset', 'meta_info': 'none', 'use_rot': False}
    del opt['datasets']['train']['dataroot_lq']
    return opt


def plan_of(opt, root, precisions=('fp32',), reuse=(1,), cache=False, device='cpu'):
    """Its rows, as the command makes them."""
    opt = yaml.safe_load(yaml.safe_dump(opt))
    rows.settle(opt, device, None, None, True)
    stand_ins.images(opt, root, None, rows.largest_crop(opt, list(reuse)))
    crop = rows.crop_of(opt)
    return rows.Plan(opt, root, 'run.yml', device, crop, None, list(precisions), list(reuse), cache, False)


def steppers(found, batches=2):
    loaded, _ = load(found[0].options, batches)
    with quietly(False):
        return [Stepper(row.options, row.stage, row.cache, loaded) for row in found]


# --------------------------------------------------- BasicSR's step ---------------------------------------------------


def kinds(world):
    """Name -> options whose plain step is to be BasicSR's."""
    pairs, high, paired = world.options(), degraded(world), world.options()
    del paired['network_d']
    paired['train']['stages'].pop('adversarial')
    esrgan = world.options() | {'model_type': 'SDAKDRealESRGANModel', 'high_order_degradation': False}
    esrgan['datasets']['train'] |= {'type': 'RealESRGANPairedDataset'}
    return {'SRGANModel': pairs, 'SRModel': paired, 'RealESRGANModel': high, 'pairs': esrgan}


@pytest.mark.parametrize('name', ['SRGANModel', 'SRModel', 'RealESRGANModel', 'pairs'])
def test_a_plain_step_is_the_work_of_basicsr(world, tmp_path, name):
    """Weights, moments and averages are equal in every bit after steps whose sharpening is one implementation's.

    Degraded inputs come out of BasicSR's noise and JPEG there and of this project's here: the pool's pairs are equal.
    """
    opt = kinds(world)[name]
    opt['train'] |= {'optim_g': EXACT, 'optim_d': EXACT}
    opt['train']['channels_last'] = False  # BasicSR's layout, whose sums have another order
    opt['train'].pop('feature_opt')
    plain = rows.plain_options(plan_of(opt, tmp_path).opt)
    plan = plan_of(opt, tmp_path)
    done = plan.complete(plain, 'fp32', 1)
    both = ('', rival.options(done)), ('plain', done)
    theirs, ours = steppers([rows.Row('', stage, 'fp32', 1, False, False, each) for stage, each in both])
    for batch in ours.batches:
        batch['gt'] = batch['gt'][..., :128, :128].contiguous()  # BasicSR's sharpening takes its time
    start = copy.deepcopy(ours.model.bare_student.state_dict())
    assert theirs.model.name == ('RealESRGANModel' if name == 'pairs' else name)
    for network in (theirs.model.net_g, theirs.model.net_g_ema):  # ours begins with other weights
        network.load_state_dict(start)
    if hasattr(theirs.model, 'net_d'):  # and its spectral norm has had some power iterations
        theirs.model.net_d.load_state_dict(ours.model.discriminators['student'].bare.state_dict())
    if hasattr(ours.model, 'usm_sharpener'):
        ours.model.usm_sharpener = USMSharp()  # the same up to rounding otherwise
    for _ in range(5):  # the pool of two batches is full after two
        with quietly(False):
            theirs.step()
            ours.step()
        assert torch.equal(theirs.model.lq, ours.model.lq) and torch.equal(theirs.model.gt, ours.model.gt)
    pairs = [(theirs.model.net_g, ours.model.bare_student), (theirs.model.net_g_ema, ours.model.net_g_ema)]
    if hasattr(theirs.model, 'net_d'):
        pairs.append((theirs.model.net_d, ours.model.discriminators['student'].bare))
    for their, our in pairs:
        state = our.state_dict()
        assert their.state_dict().keys() == state.keys()
        for key, value in their.state_dict().items():
            assert torch.equal(value, state[key]), key
    log = {key.removeprefix('l_g_').removeprefix('l_'): value for key, value in theirs.model.log_dict.items()}
    for key, value in ours.model.get_current_log().items():
        if key != 'stage':
            assert value == pytest.approx(log[key.removeprefix('l_g_').removeprefix('l_')], rel=1e-6), key
    moved = ours.model.bare_student.state_dict()
    assert any(not torch.equal(moved[key], start[key]) for key in moved)


def test_the_own_sharpening_is_basicsrs_up_to_rounding(world, tmp_path):
    plan = plan_of(degraded(world), tmp_path)
    found = [row for row in plan.rows() if row.step in (rows.BASICSR, rows.PLAIN)]
    theirs, ours = steppers(found)
    for stepper in (theirs, ours):
        with quietly(False):
            stepper.step()
    # a rounded level of 255 may fall to the other side
    assert (theirs.model.lq - ours.model.lq).abs().mean() < 1e-4
    assert (theirs.model.gt_usm - ours.model.gt_usm).abs().max() < 1e-5


def test_without_a_discriminator_it_is_realesrnet(world, tmp_path):
    opt = degraded(world)
    del opt['network_d'], opt['train']['stages']['adversarial']
    (found,) = steppers([row for row in plan_of(opt, tmp_path).rows() if row.step == rows.BASICSR])
    with quietly(False):
        assert found.step() > 0 and found.model.name == 'RealESRNetModel'


def test_basicsr_is_itself_only_while_it_works():
    before = [getattr(degradations, name) for name in rival.OF_BASICSR], nn.Module.cuda
    image = torch.rand(1, 3, 4, 4)
    with pytest.raises(ZeroDivisionError), rival.of_basicsr(torch.device('cpu')):
        assert image.cuda() is image
        assert {getattr(degradations, name).__module__ for name in rival.OF_BASICSR} == {'basicsr.data.degradations'}
        raise ZeroDivisionError
    assert ([getattr(degradations, name) for name in rival.OF_BASICSR], nn.Module.cuda) == before
    assert 'cuda' not in vars(torch.Tensor)


# ----------------------------------------------------- the parts ------------------------------------------------------

NAP = 0.03


def napping(owner, method, monkeypatch):
    """Has a method take longer by a nap."""
    inner = getattr(owner, method)

    def slow(*args, **kwargs):
        time.sleep(NAP)
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, method, slow)


SLOW = {  # part -> what is slow, of a model of ours and of BasicSR's
    'degradation': (lambda model: (model, 'feed_data'),) * 2,
    'student forward': (lambda model: (model.net_g, 'forward'),) * 2,
    'teacher forward': (lambda model: (model.teachers['teacher'], 'forward'), None),
    'feature losses': (lambda model: (model.terms['feature'].player.net, 'forward'), None),
    'pixel loss': (lambda model: (model.terms['pixel'].loss, 'forward'), lambda model: (model.cri_pix, 'forward')),
    'discriminators': (
        lambda model: (model.discriminators['student'].bare, 'forward'),
        lambda model: (model.net_d, 'forward'),
    ),
    'EMA': (lambda model: (model, 'model_ema'),) * 2,
    'optimizers': (lambda model: (model.optimizers[0], 'step'),) * 2,
    'logging': (lambda model: (model, '_report'), lambda model: (model, 'reduce_loss_dict')),
}


@pytest.fixture(scope='module')
def two(shared_world, tmp_path_factory):
    """A model of the third stage, and BasicSR's."""
    plan = plan_of(shared_world.options(), tmp_path_factory.mktemp('two'))
    return steppers([row for row in plan.rows() if row.stage in ('', 'adversarial')])[::-1]


@pytest.mark.parametrize(('part', 'whose'), [(part, i) for part, of in SLOW.items() for i in (0, 1) if of[i]])
def test_what_takes_long_is_booked_where_it_belongs(two, part, whose, monkeypatch):
    stepper = two[whose]
    with quietly(False):
        stepper.step()
        napping(*SLOW[part][whose](stepper.model), monkeypatch)
        spent, found = watched_step(stepper)
    assert found[part] >= NAP and set(found) <= set(PARTS)
    assert sum(found.values()) == pytest.approx(spent, rel=1e-6)
    assert spent >= NAP


def test_backward_passes_of_discriminators_are_theirs(two, monkeypatch):
    backward = torch.Tensor.backward
    for stepper in two:
        with monkeypatch.context() as patch, quietly(False):
            calls = []

            def slow(tensor, calls=calls):
                calls.append(tensor)
                time.sleep(NAP)
                return backward(tensor)

            patch.setattr(torch.Tensor, 'backward', slow)
            _, found = watched_step(stepper)
        assert len(calls) == 3  # the generator's, and one on real and on made images
        assert found['backward'] >= NAP and found['discriminators'] >= 2 * NAP


def test_a_ledger_leaves_nothing_behind(two):
    ours = two[0].model
    before = {key: value for key, value in vars(ours).items() if callable(value)}
    kinds = [type(term) for term in ours.terms.values()]
    methods = [vars(Discriminator)['learn'], torch.Tensor.backward, ours._report.__func__]
    with quietly(False), pytest.raises(ZeroDivisionError), two[0].watched():
        assert torch.Tensor.backward is not methods[1]
        raise ZeroDivisionError
    assert {key: value for key, value in vars(ours).items() if callable(value)} == before
    assert [type(term) for term in ours.terms.values()] == kinds
    assert [vars(Discriminator)['learn'], torch.Tensor.backward, ours._report.__func__] == methods


def test_a_ledger_books_on_the_innermost_part():
    now = iter(range(100))
    ledger = Ledger(lambda: next(now))

    class Work:
        def outer(self):
            return self.inner() + 1

        def inner(self):
            return 1

    work = Work()
    ledger.watch(work, 'outer', 'EMA')
    ledger.watch(work, 'inner', lambda *_: 'logging')
    ledger.forget()  # 1
    assert work.outer() == 2  # 2, 3 to 4, 5
    ledger.settle()  # 6
    assert ledger.seconds == {'other': 2, 'EMA': 2, 'logging': 1}
    ledger.close()
    assert vars(work) == {}


def test_steps_that_pay_count_as_often_as_they_happen():
    row = rows.Row('a', 'a', 'fp32', 4, False, False, {}, paying=[10.0], free=[1.0, 3.0, 2.0])
    assert row.average(np.median) == (10 + 3 * 2) / 4
    row.parts = {True: [{'EMA': 0.008}], False: [{'EMA': 0.0}, {'EMA': 0.004, 'other': 0.002}]}
    assert row.breakdown() == pytest.approx({'EMA': (8 + 3 * 2) / 4, 'other': 3 * 1 / 4})
    row.free = []
    assert row.average(np.median) is None
    assert rows.Row('a', 'a', 'fp32', 1, False, False, {}, paying=[10.0, 20.0, 40.0]).average(np.median) == 20


# ----------------------------------------------------- the table ------------------------------------------------------


def read(folder):
    return json.loads((folder / 'results.json').read_text())


def test_the_whole_table(world, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/results.json').write_text('{"bench": {"version": "0"}}')
    before = sorted(path for path in tmp_path.rglob('*') if 'out' not in path.parts)
    file = world.write(world.options())
    flags = ['--rounds', '2', '--threads', '1', '--precisions', 'fp32', 'bf16', '--reuse', '1', '2', '--breakdown']
    flags += ['--stages', 'supervised', 'adversarial', '-o', f'{tmp_path}/out']
    assert cli.main(['bench', 'train', '-opt', file, *flags]) == 0

    results = read(tmp_path / 'out')
    assert results['bench'] == {'version': '0'}
    bench = results['bench_train']
    assert (bench['batch'], bench['gt_size'], bench['rounds'], bench['threads'], bench['device']) == (
        2,
        32,
        2,
        1,
        'cpu',
    )
    assert bench['options'] == 'run.yml' and bench['load_ms'] > 0 and bench['random'] == []
    variants = [(precision, reuse) for precision in ('fp32', 'bf16') for reuse in (1, 2)]
    wanted = [(step, *each) for step in (rows.PLAIN, 'supervised', 'adversarial') for each in variants]
    assert [(row['step'], row['precision'], row['reuse']) for row in bench['rows']] == [('BasicSR', 'fp32', 1), *wanted]
    base = bench['rows'][0]
    assert (bench['base'], bench['base_precision'], base['ratio']) == ('BasicSR', 'fp32', 1)
    for row in bench['rows']:
        assert row['error'] is None and row['p10_ms'] <= row['median_ms'] <= row['p90_ms']
        assert row['ratio'] == pytest.approx(row['median_ms'] / base['median_ms'])
        assert row['images_per_s'] == pytest.approx(2000 / row['median_ms'])
        parts = row['breakdown_ms']
        assert set(parts) <= set(PARTS) and min(parts.values()) >= 0
        assert ('teacher forward' in parts) == (row['step'] == 'adversarial')
        assert ('discriminators' in parts) == (row['step'] != 'supervised')
        if row['reuse'] == 1:  # of two steps, the median is the mean
            assert sum(parts.values()) == pytest.approx(row['median_ms'], rel=0.01)
        if sys.platform == 'linux':
            assert row['memory_ratio'] == pytest.approx(row['peak_memory_mib'] / base['peak_memory_mib'])

    screen = capsys.readouterr().out
    assert 'ratio: to BasicSR in fp32' in screen and 'One process loads a batch in' in screen
    for ending in ('md', 'csv', 'tex'):
        assert 'reuse 2' in (tmp_path / f'out/bench_train.{ending}').read_text()
        assert 'teacher forward' in (tmp_path / f'out/bench_train_parts.{ending}').read_text()
    left = sorted(path for path in tmp_path.rglob('*') if 'out' not in path.parts)
    assert [path for path in left if path not in before] == [world.root / 'run.yml']


def test_a_degraded_run_and_photographs(world, monkeypatch):
    monkeypatch.setattr('sdakd.commands.bench_train.steps.peak_growth', lambda *_: None)  # as on macOS
    opt = degraded(world) | {'gt_size': 16}
    opt['teacher']['network'] = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 4}
    opt['teacher']['weights'] = 'nowhere/teacher.pth'
    flags = {'rounds': 1, 'threads': 1, 'stages': ['adversarial'], 'gt_size': 32, 'batch': 1, 'reuse': [2]}
    times = sdakd.bench_train(world.write(opt), data=world.root / 'HR', **flags, force_yml=['network_g:num_feat=6'])
    section = times.section
    assert (section['batch'], section['gt_size'], section['random']) == (1, 32, ['teacher'])
    assert [row['step'] for row in section['rows']] == ['BasicSR', rows.PLAIN, 'adversarial']
    assert all(row['median_ms'] > 0 for row in section['rows'])
    assert section['rows'][0]['reuse'] == 1 and 'Random weights, as the files are missing: teacher.' in str(times)
    assert all(row[key] is None for row in section['rows'] for key in ('breakdown_ms', 'memory_ratio'))


def test_photographs_are_what_is_loaded(world, tmp_path):
    photographs = {}
    for folder in ('photographs', 'x', 'y'):
        (tmp_path / folder).mkdir()
    for name in ('b', 'a'):
        photographs[name] = np.random.default_rng(len(photographs)).integers(0, 256, (53, 67, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f'photographs/{name} photo.png'), photographs[name])
    opt = degraded(world)
    stand_ins.images(opt, tmp_path / 'x', str(tmp_path / 'photographs'), 32)
    data = opt['datasets']['train']
    listed = (tmp_path / 'x/list.txt').read_text().split()
    assert [cv2.imread(f'{data["dataroot_gt"]}/{name}').tolist() for name in listed] == [
        photographs[name].tolist() for name in 'ab'
    ]
    opt = world.options()
    stand_ins.images(opt, tmp_path / 'y', str(tmp_path / 'photographs'), 32)
    gt, lq = (cv2.imread(f'{opt["datasets"]["train"][f"dataroot_{side}"]}/00.png') for side in ('gt', 'lq'))
    assert np.array_equal(gt, photographs['a'][:52, :64]) and lq.shape == (13, 16, 3)
    means = gt.reshape(13, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(lq - means).max() <= 0.5


def test_answers_of_a_cache_take_the_teachers_pass_away(world, tmp_path):
    plan = plan_of(world.options(), tmp_path, cache=True)
    found = [row for row in plan.rows() if row.step == 'adversarial']
    assert [(row.cache, row.extras) for row in found] == [(False, ''), (True, 'cache')]
    runs, cached = steppers(found)
    with quietly(False):
        assert 'teacher forward' in watched_step(runs)[1]
        assert 'teacher forward' not in watched_step(cached)[1]
        # its answer is that to the batch, in float16
        known = cached.model.answers['teacher']
        runs.model.lq, runs.model.border = cached.model.lq, 0
        answer = Context(runs.model, True)
    assert torch.equal(known.image, answer.image('teacher').half().float())
    assert known.features.keys() == answer.features('teacher').keys()


def test_a_model_holds_its_teacher_once(two):
    assert two[0].model.teachers and reader._states == {}  # as a run does, whose memory is measured


def test_faces_have_no_rival(tmp_path, photographs, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / 'sdakd_models'))
    from test_gcfsr_model import Faces

    faces = Faces(tmp_path, photographs)
    opt = faces.options()
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
    times = sdakd.bench_train(tmp_path / 'run.yml', rounds=1, threads=1, data=tmp_path / 'faces')
    names = [row['step'] for row in times.section['rows']]
    assert times.section['base'] == names[0] == rows.PLAIN and names[1:] == list(opt['train']['stages'])
    assert all(row['median_ms'] > 0 for row in times.section['rows'])
    assert times.section['gt_size'] == 32


def test_what_fails_is_listed_and_the_rest_is_measured(world, capsys):
    opt = world.options()
    opt['train']['optim_g'] = {'type': 'AdamW', 'betas': [0.9, 0.99]}
    times = sdakd.bench_train(world.write(opt), rounds=1, threads=1, stages=['supervised'])
    first, *others = times.section['rows']
    assert first['step'] == 'BasicSR' and first['median_ms'] is first['ratio'] is first['peak_memory_mib'] is None
    assert 'Left out: BasicSR fp32: train:optim_g: BasicSR says: optimizer AdamW' in str(times)
    assert times.section['base'] == rows.PLAIN and others[0]['ratio'] == 1


def test_a_run_of_discriminators_alone(world):
    opt = world.options()
    del opt['network_g']
    opt['train']['stages'] = {'judge': {'iters': 10, 'lr_d': 1e-4, 'terms': ['gan']}}
    opt['discriminators'] = {'image': {'network': opt.pop('network_d'), 'fake': ['teacher'], 'trains_student': False}}
    opt['train']['stages']['judge']['terms'] = ['gan:image']
    for key in ('pixel_opt', 'feature_opt'):
        del opt['train'][key]
    times = sdakd.bench_train(world.write(opt), rounds=1, threads=1)
    assert [row['step'] for row in times.section['rows']] == ['judge'] and times.section['base'] == 'judge'


def test_missing_files_get_random_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opt = {
        'teacher': {'weights': 'no.pth', 'network': {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 1}},
        'discriminators': {
            'one': {'weights': 'no.pth', 'network': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}},
            'two': {'network': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}},
        },
        'train': {'perceptual_opt': {'type': 'BackbonePerceptualLoss', 'backbone': 'squeezenet', 'weights': 'no.pth'}},
    }
    assert stand_ins.random_weights(opt, tmp_path) == ['teacher', 'discriminators:one', 'train:perceptual_opt']
    assert 'weights' not in opt['discriminators']['two']
    for file in (opt['teacher']['weights'], opt['discriminators']['one']['weights']):
        assert torch.load(file, weights_only=True)['params']
    from sdakd_arch.backbones import ensure_backbone

    ensure_backbone(opt['train']['perceptual_opt'], 'train:perceptual_opt')  # it fits


# ----------------------------------------------------- bad input ------------------------------------------------------


@pytest.mark.parametrize(
    ('flags', 'sentence'),
    [
        (['-opt', 'absent.yml'], '-opt: absent.yml cannot be read'),
        (['--stages', 'adversary'], '--stages: adversary is unknown; did you mean adversarial?'),
        (['--precisions', 'bf17'], '--precisions: '),
        (['--precisions', 'fp32', 'fp32/bf17'], '--precisions: '),
        (['--reuse', '0'], '--reuse: write a whole number'),
        (['--reuse', 'many'], '--reuse: write a whole number'),
        (['--rounds', '0'], '--rounds: write a whole number'),
        (['--batch', '0'], '--batch: write a whole number'),
        (['--gt_size', '30'], 'gt_size'),
        (['-t', 'absent.pth'], '-t: the file absent.pth does not exist.'),
        (['-d', 'absent'], '--data: absent is no folder'),
        (['-d', 'small'], 'small/a.png is smaller than crops of 32 pixels'),
        (['-d', 'broken'], 'broken/a.png '),
        (['--force_yml', 'teacher:weights=absent.pth'], 'teacher:weights: the file absent.pth does not exist, and'),
        (['--force_yml', 'train:stages=~'], 'train:stages: there is no stage to time'),
        (['--force_yml', 'datasets:train:type=Nothing'], 'datasets:train'),
        (['--force_yml', 'train:pixel_opt:type=L2Loss'], 'L2Loss'),
        (['-o', 'taken'], '-o: taken cannot be written to'),
        (['--compile', '--device', 'tpu'], '--device: invalid choice'),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(flags, sentence, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'small').mkdir()
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'taken').write_text('a file')
    cv2.imwrite('small/a.png', np.zeros((16, 16, 3), np.uint8))
    (tmp_path / 'broken/a.png').write_text('a text')
    given = [] if '-opt' in flags else ['-opt', world.write(world.options())]
    given += [] if '-o' in flags else ['-o', 'out']
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError) as error:
        cli.main(['bench', 'train', *given, *flags])
    assert sentence in str(error.value) and '\n' not in str(error.value)
    assert sorted(tmp_path.rglob('*')) == before


def test_a_cache_of_degraded_images_is_refused(world):
    with pytest.raises(UserError, match='only a pair that comes again has an answer to keep'):
        sdakd.bench_train(world.write(degraded(world)), rounds=1, cache=True)


@pytest.mark.skipif(sys.platform != 'linux', reason='peaks of memory are read from /proc')
def test_memory_is_measured_with_a_vgg_that_stands_in(world, tmp_path, monkeypatch):
    """The process that measures finds the file that the checks of this one have found."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))  # where no VGG was downloaded
    monkeypatch.chdir(world.root)
    options = world.options()
    options['train']['perceptual_opt'] = {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 1}, 'criterion': 'l1'}
    options['train']['stages'] = {'only': {'iters': 2, 'lr_g': 1e-4, 'terms': ['pixel', 'perceptual']}}
    flags = ['--rounds', '1', '--threads', '1', '--precisions', 'fp32', '-o', f'{tmp_path}/out']
    assert cli.main(['bench', 'train', '-opt', world.write(options), *flags]) == 0
    bench = read(tmp_path / 'out')['bench_train']
    assert bench['random'] == ['train:perceptual_opt']
    assert all(row['peak_memory_mib'] > 0 for row in bench['rows'])
