"""`sdakd distill` and `sdakd demo`: real processes on small photographs and a small teacher."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from safetensors.torch import load_file

import sdakd
from sdakd.commands.distill import photographs, read_time, recipe, training
from sdakd.compat import UserError
from sdakd.files.generators import open_network
from sdakd_models.costs import Costs, measure
from sdakd_models.launch import check_options


def image(seed, height, width):
    """Blurred noise: an image with structures at all places."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


def halved(picture):
    """Means of 2x2 pixels."""
    return cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """Photographs in two folders, pairs of them at x2, and teachers of 16 channels at x2 and x4."""
    root = tmp_path_factory.mktemp('world')
    for number in range(8):
        folder = root / 'photos' / ('more' if number > 5 else '')
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{number}.png'), image(number, 220, 250 + 10 * number))
    for name in ('gt', 'lq'):
        (root / name).mkdir()
    for number in range(4):
        gt = image(number, 200, 220)
        cv2.imwrite(str(root / f'gt/{number:04d}.png'), gt)
        cv2.imwrite(
            str(root / f'lq/{number:04d}x2.png'), cv2.resize(gt, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        )
    for scale in (2, 4):
        torch.manual_seed(scale)
        teacher = SRVGGNetCompact(num_feat=16, num_conv=3, upscale=scale)
        with torch.no_grad():  # a network that does something to images, and little
            teacher.body[-1].weight.mul_(0.3)
        torch.save({'params_ema': teacher.state_dict()}, root / f'teacher_x{scale}.pth')
    return root


ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1'}


def command(*arguments, cwd=None, check=True):
    """Runs the command line; returns status, stdout and stderr."""
    line = [sys.executable, '-m', 'sdakd.cli', *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done.returncode, done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------------ whole command


@pytest.fixture(scope='module')
def made(world):
    """A distillation on pairs that was interrupted in its training, and given again."""
    arguments = ['distill', '-t', world / 'teacher_x2.pth', '-d', f'{world / "gt"}:{world / "lq"}', '-o', world / 'out',
                 '--degradation', 'none', '--iters', '80', '--baseline']  # fmt: skip
    line = [sys.executable, '-m', 'sdakd.cli', *map(str, arguments)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(line, env=ENVIRONMENT, start_new_session=True, **pipes) as process:
        states = world / 'out/experiments/distill/training_states'
        begun = time.monotonic()
        while not any(states.glob('*.state')) and process.poll() is None and time.monotonic() - begun < 300:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and 'give the same command again to go on' in error, error[-2000:]
    first = yaml.safe_load((world / 'out/distill.yml').read_text())
    status, printed, _ = command(*arguments)
    return world / 'out', printed, first, arguments


def test_a_distillation_that_was_interrupted_goes_on_and_ends_in_a_student(made):
    out, printed, first, _ = made
    assert yaml.safe_load((out / 'distill.yml').read_text()) == first  # the plan of the first start
    log = ''.join(path.read_text() for path in (out / 'experiments/distill').glob('train_*.log'))
    assert 'Resuming training' in log
    student = open_network(out / 'student.pth', '-m')
    assert student.network == {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_conv': 3,
                               'upscale': 2, 'act_type': 'prelu'}  # fmt: skip
    written = load_file(out / 'export/student.safetensors')
    assert all(torch.equal(written[key], value) for key, value in student.module.state_dict().items())
    for name in ('report.html', 'comparison.png', 'table.md', 'card/README.md', 'export/student.onnx'):
        assert (out / name).stat().st_size > 0


def test_the_plan_is_shown_before_the_training_and_the_table_after_it(made):
    out, printed, _, _ = made
    plan = json.loads((out / 'distill.json').read_text())['plan']
    assert sum(plan['iters'].values()) == 80 and list(plan['iters']) == ['supervised', 'distillation', 'adversarial']
    assert printed.index('Plan: ') < printed.index('Training distill.yml')
    for stage, count in plan['iters'].items():
        assert re.search(rf'^{stage} +{count} +{plan["step"][stage]:.3f} ', printed, re.MULTILINE)
    results = json.loads((out / 'results/results.json').read_text())
    names = [model['name'] for model in results['evaluate']['models']]
    assert names == ['bicubic', 'teacher', 'student without teacher', 'student']
    mean = next(
        s['mean']
        for s in results['evaluate']['scores']
        if (s['model'], s['metric'], s['reference']) == ('student', 'psnr', 'teacher')
    )
    assert re.search(rf'^student +{mean:.2f} ', printed, re.MULTILINE)
    assert f"Its images are {mean:.1f} dB from the teacher's" in printed
    assert f"Its images are {mean:.1f} dB from the teacher's" in (out / 'card/README.md').read_text()


def test_what_was_made_says_how(made, world):
    out, printed, first, _ = made
    beside = json.loads((out / 'student.json').read_text())['training']
    for name in ('student.safetensors', 'student.onnx'):
        assert open_network(out / 'export' / name).metadata['training'] == beside
    assert beside['train']['stages'] == first['train']['stages'] and beside['source'] == 'option file'
    facts = beside['facts']
    assert (facts['iterations'], facts['degradation']) == (80, 'none') and 'photographs' in facts['data']
    digest = hashlib.sha256((world / 'teacher_x2.pth').read_bytes()).hexdigest()
    assert [(each['file'], each['sha256']) for each in facts['teachers']] == [('teacher_x2.pth', digest)]
    assert str(world) not in (out / 'student.json').read_text() + (out / 'card/README.md').read_text()
    assert "other: the teacher's licence is not known" in (out / 'card/README.md').read_text()
    assert "The teacher's licence is not known" in printed


def test_given_again_when_all_is_done_nothing_is_trained(made):
    out, _, _, arguments = made
    before = (out / 'student.pth').read_bytes()
    logs = set((out / 'experiments/distill').glob('*.log'))
    command(*arguments)
    assert (out / 'student.pth').read_bytes() == before and set((out / 'experiments/distill').glob('*.log')) == logs


def test_the_option_file_trains_by_the_ordinary_command(made, tmp_path):
    out, *_ = made
    short = [f'train:stages:{stage}:iters=1' for stage in recipe.SHARES]
    status, printed, error = command('train', '-opt', out / 'distill.yml', '--force_yml', *short, cwd=tmp_path)
    assert (tmp_path / 'experiments/distill/models/net_g_latest.pth').is_file(), error


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (['-w', '1/2'], 'holds a distillation with width 1/4, and now it is 1/2'),
        (['--seed', '3'], 'holds a distillation with seed 0, and now it is 3'),
        (['--iters', '90'], 'holds a distillation with iters 80, and now it is 90'),
    ],
)
def test_another_distillation_in_the_folder_is_refused(made, change, sentence):
    out, _, _, arguments = made
    status, _, error = command(*arguments, *change, check=False)
    assert status == 2 and sentence in error and 'Traceback' not in error


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'teacher': 'none.pth'}, '-t: the file none.pth does not exist'),
        ({'teacher': 'realesr-general-x4'}, 'did you mean realesr-general-x4v3'),
        ({'width': '1/3'}, '-w: num_feat of SRVGGNetCompact is 16, which 1/3 does not divide into channels'),
        ({'width': 'wide'}, '-w: write a share'),
        ({'arch': 'RRDB'}, "--arch: no generator is called 'RRDB'; did you mean RRDBNet"),
        ({'time': 'soon'}, "--time: write a time such as 20m, 2h or 1h30m, not 'soon'"),
        ({'time': '1h', 'iters': 100}, '--time: --iters is given as well'),
        ({'iters': 10}, '--iters: write a whole number of at least 60'),
        ({'degradation': 'blur'}, '--degradation: blur is unknown'),
        ({'degradation': 'none'}, '-d: .* does not name two folders; with --degradation none write GT:LQ'),
        ({'photographs': 'nowhere'}, '-d: nowhere is no folder'),
        ({'validation': 'nowhere'}, '--photos-validation: nowhere is no folder'),
        ({'seed': -1}, '--seed: write a whole number'),
        ({'time': '2s'}, r'--time: 0:00:02 leaves time for 0 iterations, and 60 are the least; give \d+m or more'),
    ],
)
def test_mistakes_are_one_sentence(world, tmp_path, change, sentence):
    arguments = {'teacher': world / 'teacher_x4.pth', 'photographs': world / 'photos', 'output': tmp_path / 'out',
                 'degradation': 'bicubic'}  # fmt: skip
    with pytest.raises(UserError, match=sentence) as error:
        sdakd.distill(**arguments | change)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'out/distill.yml').exists()


def test_what_has_no_plan_yet_takes_other_arguments(world, tmp_path):
    given = {'teacher': world / 'teacher_x4.pth', 'output': tmp_path / 'out', 'degradation': 'bicubic'}
    record = tmp_path / 'out/distill.json'
    with pytest.raises(UserError, match='--time'):
        sdakd.distill(**given, photographs=world / 'photos', time='2s')
    first = json.loads(record.read_text())
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out/data/train').rglob('*.png')}
    with pytest.raises(UserError, match='--time'):
        sdakd.distill(**given, photographs=world / 'photos', time='3s')
    second = json.loads(record.read_text())
    assert second['photographs'] == first['photographs'] and second['asked']['time'] == 3
    assert parts == {path: path.stat().st_mtime_ns for path in (tmp_path / 'out/data/train').rglob('*.png')}
    with pytest.raises(UserError, match='--time'):
        sdakd.distill(**given, photographs=world / 'photos', time='3s', seed=5)
    assert json.loads(record.read_text())['photographs'] != first['photographs']


def test_a_folder_among_the_photographs_is_refused(world):
    with pytest.raises(UserError, match='-o: .* lies in the folder of the inputs .-d '):
        sdakd.distill(world / 'teacher_x4.pth', world / 'photos', world / 'photos/out', degradation='bicubic', iters=60)
    assert not (world / 'photos/out').exists()


def test_a_folder_with_other_things_is_left_alone(world, tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(UserError, match='holds mine.txt and no distillation'):
        sdakd.distill(world / 'teacher_x4.pth', world / 'photos', tmp_path, degradation='bicubic', iters=60)
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_a_folder_in_which_another_one_works_is_left_alone(world, tmp_path):
    from sdakd.lock import alone_in

    with alone_in(tmp_path, '-o'), pytest.raises(UserError, match=f'-o: another command works in {tmp_path} .process'):
        sdakd.distill(world / 'teacher_x4.pth', world / 'photos', tmp_path, degradation='bicubic', iters=60)
    assert [path.name for path in tmp_path.iterdir()] == ['.lock']


@pytest.mark.parametrize(
    ('text', 'seconds'), [('20m', 1200), ('2h', 7200), ('1h30m', 5400), ('90s', 90), ('1.5h', 5400), (45, 45.0)]
)
def test_times(text, seconds):
    assert read_time(text) == seconds


@pytest.mark.parametrize('text', ['', 'm', '0m', '-1h', 'nan', float('nan'), True, '1h 30', '1..h'])
def test_what_is_no_time(text):
    with pytest.raises(UserError, match='--time: write a time'):
        read_time(text)


# ---------------------------------------------------------------------------------------------------------- photographs


def test_a_tenth_is_held_out_and_six_where_there_are_enough():
    for count, held in ((3, 1), (8, 2), (17, 5), (18, 6), (60, 6), (100, 10), (500, 20)):
        names = [f'{number}.png' for number in range(count)]
        train, out = photographs.hold_out(names, 0, '-d')
        assert len(out) == held and sorted(train + out) == sorted(names) and not set(train) & set(out)
    assert photographs.hold_out(names, 0, '-d') == photographs.hold_out(names, 0, '-d')
    assert photographs.hold_out(names, 1, '-d')[1] != out
    with pytest.raises(UserError, match='2 photographs are too few'):
        photographs.hold_out(['a', 'b'], 0, '-d')


def test_pairs_are_cut_alike_and_held_out_ones_are_not_trained_on(world, tmp_path):
    source = photographs.Source.read(f'{world / "gt"}:{world / "lq"}', True, '-d')
    train, held_out = photographs.prepare(source, None, tmp_path, 'none', 2, photographs.Cut(120, 88), 0)
    assert len(train) == 3 and len(held_out) == 1
    parts = sorted(path.name for path in (tmp_path / 'train/gt').glob('*.png'))
    assert parts == sorted(path.name for path in (tmp_path / 'train/lq').glob('*.png')) and len(parts) == 3 * 4
    assert not any(name.startswith(held_out[0].removesuffix('.png')) for name in parts)
    for folder in ('train', 'held_out'):
        for path in (tmp_path / folder / 'gt').glob('*.png'):
            gt, lq = cv2.imread(str(path)), cv2.imread(str(tmp_path / folder / 'lq' / path.name))
            # the inputs are means of 2x2 pixels: those of a part that lies elsewhere would differ by far
            assert (
                np.abs(cv2.resize(gt, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA).astype(int) - lq).max() <= 1
            )


def test_pairs_have_the_sizes_that_are_seen(tmp_path):
    """The ground truth is stored lying and shown upright, as cameras do it; its small version is upright."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ('gt', 'lq'):
        (tmp_path / folder).mkdir()
    for number in range(3):
        Image.new('RGB', (64, 32)).save(tmp_path / f'gt/{number}.jpg', exif=exif)
        Image.new('RGB', (8, 16)).save(tmp_path / f'lq/{number}.png')
    source = photographs.Source(str(tmp_path / 'gt'), str(tmp_path / 'lq'), '-d')
    assert source.partners(4) == {f'{number}.jpg': f'{number}.png' for number in range(3)}
    Image.new('RGB', (16, 8)).save(tmp_path / 'lq/1.png')
    with pytest.raises(UserError, match='1.jpg in .* has 32x64 pixels, which is not 4 times the 16x8 of 1.png'):
        source.partners(4)


def test_photographs_in_subfolders_and_small_ones(world, tmp_path, capsys):
    folder = tmp_path / 'in'
    (folder / 'a').mkdir(parents=True)
    for name, side in (('a/one', 260), ('two', 260), ('three', 250), ('small', 60)):
        cv2.imwrite(str(folder / f'{name}.png'), image(1, side, side))
    source = photographs.Source(str(folder), None, '-d')
    train, held_out = photographs.prepare(source, None, tmp_path / 'out', 'bicubic', 4, photographs.Cut(240, 176), 2)
    names = {path.name for path in (tmp_path / 'out/train/gt').glob('*.png')}
    assert names == {path.name for path in (tmp_path / 'out/train/lq').glob('*.png')}
    assert 'small' not in ''.join(names) and len(train) + len(held_out) >= 3
    if 'small.png' not in held_out:
        assert 'left out 1 photographs with a side below 176 pixels (small.png)' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (lambda lq: (lq / '0002x2.png').unlink(), '0002.png in .* has no partner in'),
        (
            lambda lq: cv2.imwrite(str(lq / '0002x2.png'), image(0, 90, 110)),
            '0002.png in .* has 220x200 pixels, which is not 2 times the 110x90 of 0002x2.png',
        ),
    ],
)
def test_pairs_that_do_not_fit_are_named(world, tmp_path, change, sentence):
    lq = tmp_path / 'lq'
    lq.mkdir()
    for path in (world / 'lq').iterdir():
        (lq / path.name).write_bytes(path.read_bytes())
    change(lq)
    source = photographs.Source.read(f'{world / "gt"}:{lq}', True, '-d')
    with pytest.raises(UserError, match=sentence):
        photographs.prepare(source, None, tmp_path / 'out', 'none', 2, photographs.Cut(120, 88), 0)


# ----------------------------------------------------------------------------------------------- recipe, plan, progress


def options(world, folder, degradation, scale=4, **changes):
    teacher = open_network(world / f'teacher_x{scale}.pth', '-t')
    student = recipe.student_network(teacher, Fraction(1, 4), changes.pop('arch', None))
    sizes = recipe.Sizes(2, 16, 4, 2, 8, 0, 'fp32')
    return recipe.options(
        teacher, student, recipe.discriminator_network(teacher, Fraction(1, 8)), folder, degradation, sizes, 0
    )


@pytest.fixture(scope='module')
def data(world):
    """Data for both kinds of degradation."""
    for degradation, cut in (('bicubic', photographs.Cut(240, 112)), ('realesrgan', photographs.Cut(400, 200))):
        source = photographs.Source(str(world / 'photos'), None, '-d')
        photographs.prepare(source, None, world / degradation, degradation, 4, cut, 0)
    names = sorted(path.name for path in (world / 'realesrgan/train/gt').glob('*.png'))
    (world / 'realesrgan/train/meta_info.txt').write_text('\n'.join(names))
    return world


@pytest.mark.parametrize('degradation', ['bicubic', 'realesrgan'])
@pytest.mark.parametrize('arch', [None, 'SRVGGNetCompact', 'RRDBNet'])
def test_recipes_pass_all_checks_with_and_without_a_teacher(data, degradation, arch):
    opt = options(data, data / degradation, degradation, arch=arch)
    assert opt['network_g']['type'] == arch or arch is None
    for variant in (opt, recipe.without_teacher(opt)):
        seconds = dict.fromkeys(recipe.SHARES, 0.1)
        check_options(recipe.with_lengths(variant, 100, seconds, 1), str(data), 'distill.yml')
    plain = recipe.without_teacher(opt)
    assert 'teacher' not in plain and not {'output', 'feature'} & {
        t for s in plain['train']['stages'].values() for t in s['terms']
    }


@pytest.mark.parametrize('degradation', ['bicubic', 'realesrgan'])
def test_costs_are_those_of_the_steps(data, degradation, monkeypatch):
    """By a clock that only the student's step (0.1 s) and the teacher's answer to a batch (1 s) move."""
    from sdakd_models import costs
    from sdakd_models.sdakd_model import SDAKDModel

    now = [0.0]

    def takes(seconds, function):
        def slow(self, *arguments):
            now[0] += seconds
            return function(self, *arguments)

        return slow

    monkeypatch.setattr(costs, 'time', SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(SDAKDModel, '_ask', takes(1.0, SDAKDModel._ask))
    monkeypatch.setattr(SDAKDModel, 'optimize_parameters', takes(0.1, SDAKDModel.optimize_parameters))
    opt = options(data, data / degradation, degradation)
    opt['train']['pool_reuse'] = 4
    opt['queue_size'] = 16
    check_options(opt, str(data), 'distill.yml')
    before = torch.get_rng_state()
    found = measure(opt)
    assert torch.equal(torch.get_rng_state(), before) and found.memory is None
    # a batch that comes into the pool is used four times, and eight of them fill it
    assert found.step == pytest.approx(dict.fromkeys(recipe.SHARES, 0.1 + 1.0 / 4)) and found.pool == pytest.approx(8)
    plain = recipe.without_teacher(options(data, data / degradation, degradation))
    check_options(plain, str(data), 'no_teacher.yml')
    assert measure(plain).step == pytest.approx(dict.fromkeys(recipe.SHARES, 0.1))


def test_an_iteration_takes_what_limits_it():
    costs = Costs({'a': 1.0}, 0.0, 0.6, None)
    assert costs.iteration('a', workers=0, threads=2, cores=2) == 1.6
    assert costs.iteration('a', workers=1, threads=1, cores=2) == 1.0
    assert costs.iteration('a', workers=1, threads=2, cores=2) == pytest.approx(1.3)
    assert costs.iteration('a', workers=1, threads=0, cores=8) == 1.0
    assert Costs({'a': 0.1}, 0.0, 0.6, None).iteration('a', workers=2, threads=0, cores=8) == pytest.approx(0.3)


def test_lengths_and_the_time_left(monkeypatch):
    for total in (60, 61, 99, 1000, 12345):
        assert sum(recipe.lengths(total).values()) == total and min(recipe.lengths(total).values()) >= 1
    course = training.Course({'a': 10, 'b': 5}, {'a': 1.0, 'b': 4.0})
    assert [course.after(n) for n in (0, 4, 10, 12, 15, 99)] == [0, 4, 10, 18, 30, 30] and course.total == 30
    assert course.left() == '0:00:30 left'
    course = training.Course({'a': 100, 'b': 50}, {'a': 1.0, 'b': 4.0})
    monkeypatch.setattr(training, 'time', SimpleNamespace(monotonic=lambda: now[0]))
    now = [0.0]
    course.reach(10)
    now[0] = 60.0  # 30 measured seconds took twice as long
    course.reach(40)
    assert course.left() == '0:08:40 left'  # 60 and 200 seconds, twice as long


def test_the_demo_writes_its_photographs(tmp_path):
    from sdakd.commands.demo import HELD_OUT, TRAIN, write_photographs

    folder = write_photographs(tmp_path / 'photographs')
    assert sorted(path.stem for path in (folder / 'train').iterdir()) == sorted(TRAIN)
    assert sorted(path.stem for path in (folder / 'held_out').iterdir()) == sorted(HELD_OUT)
    import skimage.data

    assert np.array_equal(cv2.imread(str(folder / 'held_out/chelsea.png'))[..., ::-1], skimage.data.chelsea())


def test_the_demos_picture_shows_what_ships_beside_what_it_trained(tmp_path, photographs):
    from sdakd.commands import demo
    from sdakd.commands.distill import Distilled, closing
    from sdakd.commands.report.pictures import choose_region
    from sdakd.files.named import zoo

    lq, gt = tmp_path / 'data/held_out/lq', tmp_path / 'data/held_out/gt'
    for folder, side in ((lq, 20), (gt, 80)):
        folder.mkdir(parents=True)
        image = np.ascontiguousarray(photographs['coffee'][:80, :80, ::-1])
        cv2.imwrite(str(folder / 'coffee.png'), cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
    names = ['bicubic', 'teacher=demo_teacher_x4', 'student=demo_student_x4']
    results = tmp_path / 'results'
    sdakd.evaluate(names, [f'held-out={gt}:{lq}'], results, metrics=['psnr'], teacher='teacher')
    done = Distilled(tmp_path, {}, [['a'], ['b']], 'facts', [])
    closing.picture(results, tmp_path / 'comparison.png')
    before = cv2.imread(str(tmp_path / 'comparison.png'))
    demo._show_what_ships(done)
    after = cv2.imread(str(tmp_path / 'comparison.png'))
    side = 288 + 8
    assert after.shape[1] == before.shape[1] + side
    own, truth = after[:, -2 * side : -side], after[:, -side:]  # the truth is the last column, as before
    assert np.array_equal(after[:, : -2 * side], before[:, :-side]) and np.array_equal(truth, before[:, -side:])
    sdakd.upscale(lq, tmp_path / 'own', model=zoo().models[zoo().default].path, suffix='')
    images = [cv2.imread(str(results / 'images/held-out' / name / 'coffee.png')) for name in ('teacher', 'student')]
    left, top, across, down = choose_region(*images)
    wanted = cv2.imread(str(tmp_path / 'own/coffee.png'))[top : top + down, left : left + across]
    assert np.array_equal(own[26 : 26 + 288, :288], cv2.resize(wanted, (288, 288), interpolation=cv2.INTER_NEAREST))
    assert f'ships: {zoo().default}' in str(done) and 'trained here' in str(done)
    content = json.loads((results / 'results.json').read_text())
    content['evaluate']['scale'] = 2
    (results / 'results.json').write_text(json.dumps(content))
    (tmp_path / 'comparison.png').unlink()
    demo._show_what_ships(done)  # nothing to compare with: what ships enlarges four times
    assert not (tmp_path / 'comparison.png').exists() and len(done.notes) == 1
