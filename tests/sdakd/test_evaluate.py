"""`sdakd evaluate`: from the command line to results.json and tables, and every mistake in between."""

import csv
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sdakd import cli
from sdakd.compat import UserError
from sdakd.files import results

ROOT = Path(__file__).resolve().parents[2]


def evaluate(*arguments):
    """The command, in this process."""
    return cli.main(['evaluate', *map(str, arguments)])


def command(*arguments):
    """The command as a user gives it."""
    return subprocess.run(
        [sys.executable, '-m', 'sdakd.cli', 'evaluate', *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
    )


def read(folder):
    return json.loads((folder / 'results.json').read_text())['evaluate']


def score(found, model, metric, reference, of='set'):
    keys = {'model': model, 'set': of, 'metric': metric, 'reference': reference}
    (entry,) = (s for s in found['scores'] if s.items() >= keys.items())
    return entry


def save_network(path, features=4, seed=0, upscale=4):
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    torch.manual_seed(seed)
    network = SRVGGNetCompact(num_feat=features, num_conv=2, upscale=upscale)
    torch.save({'params': network.state_dict()}, path)
    return network.eval()


@pytest.fixture(scope='module')
def ground(tmp_path_factory, photographs):
    """A set of three photographs, one of a size that 4 does not divide, with LR images; teacher and student."""
    from basicsr.data.transforms import mod_crop
    from basicsr.utils.matlab_functions import imresize

    root = tmp_path_factory.mktemp('ground')
    for folder in ('set/HR', 'set/LRx4', 'only'):
        (root / folder).mkdir(parents=True)
    sizes = {'astronaut': (64, 80), 'chelsea': (64, 64), 'coffee': (71, 66)}
    for name, (height, width) in sizes.items():
        gt = photographs[name][:height, :width, ::-1]
        cv2.imwrite(str(root / f'set/HR/{name}.png'), gt)
        lq = imresize(mod_crop(gt, 4).astype(np.float32) / 255, 0.25).clip(0, 1) * 255
        cv2.imwrite(str(root / f'set/LRx4/{name}.png'), lq.round().astype(np.uint8))
        shutil.copy(root / f'set/LRx4/{name}.png', root / f'only/{name}x4.png')
    save_network(root / 'teacher.pth', 8, seed=1)
    save_network(root / 'student.pth', 4, seed=2)
    return root


@pytest.fixture(scope='module')
def measured(ground):
    """The command on three models; the folder of its results."""
    out = ground / 'out'
    results.write_section(out, 'bench', {'kept': True})
    done = command(
        *('-m', ground / 'teacher.pth', ground / 'student.pth', 'bicubic', '-d', ground / 'set/HR'),
        *('--metrics', 'psnr', 'ssim', '-o', out),
    )
    assert done.returncode == 0, done.stderr
    return out, done


# ---------------------------------------------- what it measures ----------------------------------------------------


def test_values_are_those_of_basicsrs_scripts_on_the_saved_images(ground, measured):
    from basicsr.metrics import calculate_psnr, calculate_ssim

    found = read(measured[0])
    for model in ('teacher', 'student', 'bicubic'):
        expected = {'psnr': {}, 'ssim': {}}
        for path in (measured[0] / 'images/set' / model).glob('*.png'):
            image = cv2.imread(str(path))
            gt = cv2.imread(str(ground / 'set/HR' / path.name))[: image.shape[0], : image.shape[1]]
            expected['psnr'][path.stem] = calculate_psnr(image, gt, 4, test_y_channel=True)
            expected['ssim'][path.stem] = calculate_ssim(image, gt, 4, test_y_channel=True)
        for metric, values in expected.items():
            entry = score(found, model, metric, 'gt')
            assert len(values) == 3 and entry['per_image'] == pytest.approx(values, abs=1e-6)
            assert entry['mean'] == pytest.approx(np.mean(list(values.values())), abs=1e-6)
            assert entry['n'] == 3


def test_images_are_what_the_network_makes_of_the_lr_images(ground, measured):
    network = save_network(ground / 'again.pth', 8, seed=1)
    lq = cv2.imread(str(ground / 'set/LRx4/coffee.png'))
    with torch.no_grad():
        output = network(torch.from_numpy(lq[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255)[0]
    expected = (output.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]
    image = cv2.imread(str(measured[0] / 'images/set/teacher/coffee.png'))
    assert image.shape == (68, 64, 3)  # of 71 x 66
    np.testing.assert_array_equal(image, expected)


def test_bicubic_is_matlabs(ground, measured):
    """Against the kernel of Keys (1981) with a = -0.5, written out, away from the borders."""
    lq = cv2.imread(str(ground / 'set/LRx4/chelsea.png')).astype(np.float64)

    def weight(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0

    matrix = np.array([[weight((i + 0.5) / 4 - 0.5 - j) for j in range(16)] for i in range(64)])
    expected = np.einsum('ij,jkc,lk->ilc', matrix, lq, matrix)[8:-8, 8:-8].clip(0, 255)
    image = cv2.imread(str(measured[0] / 'images/set/bicubic/chelsea.png'))[8:-8, 8:-8]
    assert np.abs(image - expected).max() < 0.501


def test_distance_to_the_teacher_and_paired_differences(measured):
    from basicsr.metrics import calculate_psnr

    found = read(measured[0])
    assert found['teacher'] == 'teacher'
    images = {
        model: {p.stem: cv2.imread(str(p)) for p in (measured[0] / 'images/set' / model).iterdir()}
        for model in ('teacher', 'student')
    }
    expected = {name: calculate_psnr(image, images['teacher'][name], 4, test_y_channel=True)
                for name, image in images['student'].items()}  # fmt: skip
    assert score(found, 'student', 'psnr', 'teacher')['per_image'] == pytest.approx(expected, abs=1e-6)
    assert not [s for s in found['scores'] if s['model'] == 'teacher' and s['reference'] == 'teacher']

    pairs = {(d['a'], d['b'], d['metric'], d['reference']): d for d in found['differences']}
    psnr = {key[:2] for key in pairs if key[2:] == ('psnr', 'gt')}
    assert psnr == {('student', 'teacher'), ('bicubic', 'teacher'), ('bicubic', 'student')}
    assert {key[:2] for key in pairs if key[3] == 'teacher'} == {('bicubic', 'student')}
    own, other = (score(found, model, 'psnr', 'gt')['per_image'] for model in ('bicubic', 'student'))
    values = [own[name] - other[name] for name in own]
    difference = pairs['bicubic', 'student', 'psnr', 'gt']
    assert difference['mean'] == pytest.approx(np.mean(values)) and difference['n'] == 3


def test_intervals_from_six_images_on(ground, photographs, tmp_path, capsys):
    """Against scipy; of five images there is none, and tables and screen say why."""
    from scipy import stats

    (tmp_path / 'six').mkdir()
    (tmp_path / 'five').mkdir()
    for number in range(6):
        gt = np.ascontiguousarray(list(photographs.values())[number % 4][number:, number:][:48, :64, ::-1])
        for folder in ('six', 'five')[: 1 + (number < 5)]:
            cv2.imwrite(str(tmp_path / folder / f'{number}.png'), gt)
    models = ['-m', ground / 'teacher.pth', 'bicubic', '--metrics', 'psnr', 'ssim', '-o', tmp_path / 'out']
    evaluate(*models, '-d', tmp_path / 'six', tmp_path / 'five', '--no_images')
    found, screen = read(tmp_path / 'out'), capsys.readouterr().out
    for entry in found['scores']:
        values = list(entry['per_image'].values())
        assert entry['n'] == len(values) == {'six': 6, 'five': 5}[entry['set']]
        if entry['set'] == 'five':
            assert entry['low'] is None and entry['high'] is None
        else:
            expected = stats.t.interval(0.95, 5, np.mean(values), stats.sem(values))
            assert (entry['low'], entry['high']) == pytest.approx(expected, rel=1e-3)
    limits = {d['set']: (d['n'], d['low'], d['high']) for d in found['differences'] if d['metric'] == 'psnr'}
    own, other = (score(found, m, 'psnr', 'gt', 'six')['per_image'].values() for m in ('bicubic', 'teacher'))
    expected = stats.ttest_rel(list(own), list(other)).confidence_interval()
    assert limits['six'] == (6, pytest.approx(expected.low, abs=1e-2), pytest.approx(expected.high, abs=1e-2))
    assert limits['five'] == (5, None, None)
    for text in (screen, *((tmp_path / f'out/table.{kind}').read_text() for kind in ('md', 'tex'))):
        assert 'In brackets: 95% intervals' in text and 'No interval for fewer than 6 images: five (5).' in text
    for row in csv.reader((tmp_path / 'out/table.csv').open()):
        assert ('[' in row[4]) == (row[0] == 'six')


def test_results_json_says_what_was_measured(ground, measured):
    found = read(measured[0])
    assert json.loads((measured[0] / 'results.json').read_text())['bench'] == {'kept': True}
    teacher, student, bicubic = found['models']
    assert teacher['kind'] == 'network' and teacher['network']['num_feat'] == 8 and bicubic['network'] is None
    state = torch.load(ground / 'student.pth', weights_only=True)['params']
    assert student['parameters'] == sum(tensor.numel() for tensor in state.values())
    # 3x3 convolutions on 64 x 64 pixels: 3 -> 4, twice 4 -> 4, 4 -> 48
    assert student['macs'] == 64 * 64 * 9 * (3 * 4 + 2 * 4 * 4 + 4 * 48)
    assert found['sets'] == [{'name': 'set', 'source': str(ground / 'set/HR'), 'images': 3, 'unreadable': []}]
    assert [m['label'] for m in found['metrics']] == ['PSNR-Y', 'SSIM-Y']
    assert 'border of 4 pixels' in found['metrics'][0]['convention']
    assert (found['scale'], found['seed'], found['torch']) == (4, 0, torch.__version__)
    pictures = found['pictures']['set']
    assert pictures['chelsea']['gt'] == str(ground / 'set/HR/chelsea.png')
    assert pictures['coffee']['gt'] == 'images/set/gt/coffee.png'  # cropped, so the original does not fit
    assert pictures['coffee']['models']['student'] == 'images/set/student/coffee.png'
    for picture in pictures.values():
        sizes = {cv2.imread(str(measured[0] / path)).shape for path in (picture['gt'], *picture['models'].values())}
        assert len(sizes) == 1


def test_tables_on_screen_and_in_files(measured):
    out, done = measured
    found = read(out)
    entry = score(found, 'student', 'psnr', 'gt')
    cell = f'{entry["mean"]:.2f}'
    rows = list(csv.reader((out / 'table.csv').open()))
    assert rows[0] == ['Set', 'Model', 'Parameters', 'GMACs', 'PSNR-Y', 'SSIM-Y']
    assert [row[1] for row in rows[1:]] == ['teacher', 'student', 'bicubic'] and rows[2][4] == cell
    for text in (done.stdout, (out / 'table.md').read_text(), (out / 'table.tex').read_text()):
        assert cell in text
    compared = list(csv.reader((out / 'table_teacher.csv').open()))
    assert [row[1] for row in compared[1:]] == ['student', 'bicubic']
    assert 'student - teacher' in done.stdout and 'bicubic - student' not in done.stdout
    assert 'bicubic - student' in (out / 'table_differences.md').read_text()
    assert done.stdout.splitlines()[-1].startswith(f'Written to {out}')
    assert 'Traceback' not in done.stderr and '\r' not in done.stderr  # a bar is for terminals


# ---------------------------------------------- forms of sets and models --------------------------------------------


def test_lr_images_from_a_sibling_from_a_second_folder_or_made_are_the_same(ground, tmp_path, capsys):
    shutil.copytree(ground / 'set/HR', tmp_path / 'alone')
    data = [ground / 'set/HR', f'two={ground / "set/HR"}:{ground / "only"}', tmp_path / 'alone']
    evaluate('-m', ground / 'student.pth', '-d', *data, '--metrics', 'psnr', '-o', tmp_path / 'out', '--no_images')
    found = read(tmp_path / 'out')
    values = [score(found, 'student', 'psnr', 'gt', of)['per_image'] for of in ('set', 'two', 'alone')]
    assert values[0] == values[1] == values[2] and len(values[0]) == 3
    said = capsys.readouterr().err
    assert (
        f'set: 3 images, LR from {ground / "set/LRx4"}' in said and f'two: 3 images, LR from {ground / "only"}' in said
    )
    assert 'alone: 3 images, LR made from HR by MATLAB bicubic x1/4' in said
    assert found['pictures'] == {} and not (tmp_path / 'out/images').exists()


def test_databases(ground, tmp_path):
    for folder in ('HR', 'LRx4'):
        cli.main(['prepare', 'lmdb', '-i', str(ground / 'set' / folder), '-o', str(tmp_path / f'{folder}.lmdb')])
    data = [ground / 'set/HR', f'db={tmp_path / "HR.lmdb"}:{tmp_path / "LRx4.lmdb"}', f'made={tmp_path / "HR.lmdb"}']
    evaluate('-m', ground / 'student.pth', '-d', *data, '--metrics', 'psnr', '-o', tmp_path / 'out')
    found = read(tmp_path / 'out')
    values = [score(found, 'student', 'psnr', 'gt', of)['per_image'] for of in ('set', 'db', 'made')]
    assert values[0] == values[1] == values[2]
    assert (tmp_path / 'out' / found['pictures']['db']['chelsea']['lq']).is_file()


def test_lr_images_alone(ground, tmp_path):
    models = ['-m', ground / 'teacher.pth', ground / 'student.pth']
    evaluate(*models, '-d', f':{ground / "only"}', '--metrics', 'psnr', 'niqe', '-o', tmp_path / 'out')
    found = read(tmp_path / 'out')
    assert {(s['model'], s['metric'], s['reference']) for s in found['scores']} == {
        ('teacher', 'niqe', None), ('student', 'niqe', None), ('student', 'psnr', 'teacher')}  # fmt: skip
    assert score(found, 'student', 'psnr', 'teacher', 'only')['n'] == 3
    assert score(found, 'student', 'niqe', None, 'only') | {'per_image': {}, 'n': 0, 'mean': None} == score(
        found, 'student', 'niqe', None, 'only'
    )  # 64 pixels are too few for NIQE
    assert 'gt' not in found['pictures']['only']['chelseax4']


def test_a_folder_of_enlarged_images_scores_as_the_model_that_made_them(ground, measured, tmp_path):
    for path in (measured[0] / 'images/set/student').iterdir():
        shutil.copy(path, tmp_path / f'{path.stem}_out.png')
    models = [ground / 'teacher.pth', ground / 'student.pth', f'copy={tmp_path}']
    evaluate('-m', *models, '-d', ground / 'set/HR', '--metrics', 'psnr', '-o', tmp_path / 'out')
    found = read(tmp_path / 'out')
    for reference in ('gt', 'teacher'):
        values = [score(found, model, 'psnr', reference)['per_image'] for model in ('student', 'copy')]
        assert values[0] == values[1]
    assert found['models'][2]['kind'] == 'folder'
    (same,) = (d for d in found['differences'] if (d['a'], d['b'], d['reference']) == ('copy', 'student', 'gt'))
    assert (same['mean'], same['n'], same['low']) == (0, 3, None)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of the exporter
def test_onnx_models_and_images_that_are_equal(ground, tmp_path):
    network = save_network(tmp_path / 'net.pth', 4, seed=2)
    axes = {'input': {2: 'h', 3: 'w'}, 'output': {2: 'h', 3: 'w'}}
    torch.onnx.export(network, torch.rand(1, 3, 16, 16), tmp_path / 'net.onnx', dynamo=False, dynamic_axes=axes,
                      input_names=['input'], output_names=['output'])  # fmt: skip
    models = [f'torch={tmp_path / "net.pth"}', f'onnx={tmp_path / "net.onnx"}', f'again={tmp_path / "net.pth"}']
    evaluate('-m', *models, '-d', ground / 'set/HR', '--metrics', 'psnr', '-o', tmp_path / 'out')
    found = read(tmp_path / 'out')
    assert [model['kind'] for model in found['models']] == ['network', 'onnx', 'network']
    own, other = (score(found, model, 'psnr', 'gt')['mean'] for model in ('torch', 'onnx'))
    assert own == pytest.approx(other, abs=1e-3)
    assert score(found, 'again', 'psnr', 'teacher')['mean'] is None  # infinite, which JSON has no word for
    rows = list(csv.reader((tmp_path / 'out/table_teacher.csv').open()))
    assert rows[2][1:] == ['again', rows[2][2], rows[2][3], 'inf']


def test_tiles_change_nothing_within_the_receptive_field(ground, tmp_path):
    arguments = ['-m', ground / 'student.pth', '-d', ground / 'set/HR', '--metrics', 'psnr']
    values = []
    for tile in ('0', '7'):
        evaluate(*arguments, '-t', tile, '-o', tmp_path / tile)
        values.append(score(read(tmp_path / tile), 'student', 'psnr', 'gt')['per_image'])
    assert values[0] == values[1]


def test_large_images_are_tiled_unasked(monkeypatch, ground, tmp_path):
    """What is run at once stays small, and the image is that of the whole."""
    from sdakd.commands.evaluate import contenders

    monkeypatch.setattr(contenders, 'WHOLE', 100)
    monkeypatch.setattr(contenders, 'TILE', 8)
    monkeypatch.setattr(contenders, 'OVERLAP', 4)
    seen = []
    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, 'forward', lambda self, x: (seen.append(x.shape[-2:]), forward(self, x))[1])
    evaluate('-m', ground / 'student.pth', '-d', ground / 'set/HR', '--metrics', 'psnr', '-o', tmp_path)
    assert seen and max(max(shape) for shape in seen if shape != (64, 64)) <= 16  # 64: where MACs are counted
    monkeypatch.undo()
    evaluate('-m', ground / 'student.pth', '-d', ground / 'set/HR', '--metrics', 'psnr', '-o', tmp_path / 'whole')
    assert score(read(tmp_path), 'student', 'psnr', 'gt') == score(read(tmp_path / 'whole'), 'student', 'psnr', 'gt')


def test_frechet_distance_of_patches(ground, tmp_path):
    import torchvision

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / 'squeezenet.pth')
    arguments = ['-m', ground / 'teacher.pth', 'bicubic', '-d', ground / 'set/HR', '-o', tmp_path / 'out']
    evaluate(*arguments, '--metrics', 'fd', '--backbone', f'squeezenet:{tmp_path / "squeezenet.pth"}')
    found = read(tmp_path / 'out')
    assert found['metrics'][0]['label'] == 'FD-squeezenet' and 'not FID' in found['metrics'][0]['convention']
    entry = score(found, 'bicubic', 'fd', 'gt')
    assert entry['mean'] > 0 and entry['per_image'] is None and entry['low'] is None and entry['n'] == 3
    network = torchvision.models.squeezenet1_1(weights=None).eval()
    network.load_state_dict(torch.load(tmp_path / 'squeezenet.pth', weights_only=True))
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    sets = []
    for pictures in ('models', 'gt'):
        features = []
        for picture in found['pictures']['set'].values():
            path = picture['models']['bicubic'] if pictures == 'models' else picture['gt']
            rgb = torch.from_numpy(cv2.imread(str(tmp_path / 'out' / path))[:64, :64, ::-1].copy())  # one patch each
            with torch.no_grad():
                features.append(network.features(normalise(rgb.permute(2, 0, 1) / 255)[None]).mean((2, 3))[0].double())
        sets.append(torch.stack(features))
    step = sets[0].mean(0) - sets[1].mean(0)
    # tr (C_a C_b)^(1/2) of centred features A and B is the nuclear norm of A B'
    centred = [values - values.mean(0) for values in sets]
    cross = torch.linalg.matrix_norm(centred[0] @ centred[1].T, 'nuc') / 2
    expected = step @ step + sum((values**2).sum() / 2 for values in centred) - 2 * cross
    assert entry['mean'] == pytest.approx(expected.item(), rel=1e-4)


def test_kernel_distance_of_patches_has_intervals_and_frechet_distance_says_what_it_lacks(ground, tmp_path, capsys):
    import torchvision

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / 'squeezenet.pth')
    (tmp_path / 'HR').mkdir()
    for number, path in itertools.product(range(3), sorted((ground / 'set/HR').iterdir())[:2]):
        image = np.rot90(cv2.imread(str(path)), number)[:96, :128]
        cv2.imwrite(str(tmp_path / f'HR/{path.stem}_{number}.png'), image)
    arguments = ['-m', ground / 'teacher.pth', 'bicubic', '-d', f'set={tmp_path / "HR"}', '-o', tmp_path / 'out']
    evaluate(
        *arguments, '--no_images', '--metrics', 'kid', 'fd', '--backbone', f'squeezenet:{tmp_path / "squeezenet.pth"}'
    )
    found = read(tmp_path / 'out')
    entries = {name: score(found, name, 'kid', 'gt') for name in ('teacher', 'bicubic')}
    for entry in entries.values():
        values = np.array(list(entry['pseudo_values'].values()))
        assert entry['per_image'] is None and entry['n'] == len(values) == 6
        assert entry['mean'] == pytest.approx(values.mean()) and entry['low'] < entry['mean'] < entry['high']
        assert set(entry['pseudo_values']) == {path.stem for path in (tmp_path / 'HR').iterdir()}
    (difference,) = (d for d in found['differences'] if d['metric'] == 'kid' and d['reference'] == 'gt')
    assert (difference['a'], difference['b']) == ('bicubic', 'teacher') and difference['low'] is not None
    assert difference['mean'] == pytest.approx(entries['bicubic']['mean'] - entries['teacher']['mean'])
    entry = score(found, 'bicubic', 'fd', 'gt')
    independent = sum(
        (h // 64) * (w // 64) for h, w, _ in (cv2.imread(str(p)).shape for p in (tmp_path / 'HR').iterdir())
    )
    assert (entry['samples'], entry['needed']) == (independent, 5120) and entry['low'] is None
    assert f'FD-squeezenet stands on {independent} patches of 64x64 pixels' in capsys.readouterr().err


def test_names_of_rows(ground, tmp_path):
    for run in ('one', 'two'):
        (tmp_path / f'experiments/{run}/models').mkdir(parents=True)
        save_network(tmp_path / f'experiments/{run}/models/net_g_latest.pth')
    models = [tmp_path / f'experiments/{run}/models/net_g_latest.pth' for run in ('one', 'two')]
    flags = ['-d', ground / 'set/HR', '--metrics', 'psnr', '-o', tmp_path / 'out', '--no_images']
    evaluate('-m', *models, 'own=bicubic', *flags, '--teacher', 'two_net_g_latest')
    found = read(tmp_path / 'out')
    assert [model['name'] for model in found['models']] == ['one_net_g_latest', 'two_net_g_latest', 'own']
    assert found['teacher'] == 'two_net_g_latest'
    assert {d['b'] for d in found['differences'] if d['a'] == 'one_net_g_latest'} == {'two_net_g_latest'}


# ---------------------------------------------- what goes wrong -----------------------------------------------------


def test_a_damaged_image_is_named_left_out_and_ends_in_status_2(ground, tmp_path):
    shutil.copytree(ground / 'set', tmp_path / 'set')
    (tmp_path / 'set/HR/chelsea.png').write_bytes((ground / 'set/HR/chelsea.png').read_bytes()[:300])
    done = command('-m', ground / 'student.pth', '-d', tmp_path / 'set/HR', '--metrics', 'psnr', '-o', tmp_path / 'out')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    path = tmp_path / 'set/HR/chelsea.png'
    assert f'set: {path} is damaged or no image; it is left out' in done.stderr
    assert done.stderr.splitlines()[-1].startswith('Error: -d: 1 images could not be used')
    found = read(tmp_path / 'out')
    assert found['sets'][0]['images'] == 2 and found['sets'][0]['unreadable'] == [f'{path} is damaged or no image']
    assert set(score(found, 'student', 'psnr', 'gt')['per_image']) == {'astronaut', 'coffee'}
    for name in ('astronaut', 'coffee'):
        (tmp_path / f'set/LRx4/{name}.png').write_bytes(b'')
    with pytest.raises(UserError, match='none of the 3 images of set could be used .*nothing was written'):
        evaluate('-m', 'bicubic', '-d', tmp_path / 'set/HR', '--metrics', 'psnr', '-o', tmp_path / 'none')
    assert not (tmp_path / 'none/results.json').exists()


class Malicious:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (os.mkdir, (str(self.victim),))


def test_a_pickle_with_code_is_refused_and_not_executed(ground, tmp_path):
    (tmp_path / 'evil.pth').write_bytes(pickle.dumps({'params': Malicious(tmp_path / 'victim')}))
    done = command('-m', tmp_path / 'evil.pth', '-d', ground / 'set/HR', '-o', tmp_path / 'out')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith('Error: -m: ') and 'evil.pth cannot be read as a weights file' in last
    assert 'weights_only' not in last  # torch's advice to execute it after all is not passed on
    assert not (tmp_path / 'victim').exists() and not (tmp_path / 'out').exists()


MISTAKES = [
    ('-m {x2} -d {hr}', r'-m: .*x2.pth enlarges 2 times, but --scale is 4'),
    ('-m {student} -d {hr} --scale 2', r'-m: .*student.pth enlarges 4 times, but --scale is 2'),
    ('-m {student} -d {empty}', r'-d: .*empty holds no file'),
    ('-m {empty} -d {hr}', r'-m: .*empty holds no file'),
    ('-m {student} -d {gone}', r'-d: .*gone is no folder'),
    ('-m {gone} -d {hr}', r'-m: the file .*gone does not exist'),
    ('-m {student} -d {hr}:{two}', r'-d: .*HR holds 3 images and .*two 2; give folders'),
    ('-m {student} -d {hr}:{names}', r'-d: .*names has no image for coffee.png of .*HR; LR images need'),
    (
        '-m {student} -d {hr}:{hr}',
        r'-d: astronaut.png in .* is 80x64 and its LQ image 80x64; at scale 4 that must be 20x16 .* a pair of scale 1',
    ),
    ('-m {student} -d {hr}:', r'-d: .*: names no folder behind its colon'),
    ('-m {student} -d {hr} {hr}', r'-d: two sets are called set; write NAME=PATH'),
    ('-m {student} -d {hr}.lmdb', r"-d: .*HR.lmdb is no database in BasicSR's layout"),
    ('-m {student} {student} -d {hr}', r'-m: two models are called .*; write NAME=PATH'),
    ('-m gt={student} -d {hr}', r"-m: 'gt' cannot be the name of a row"),
    ('-m {student} -d {hr} --teacher studnt', r"--teacher: no row is called 'studnt'; did you mean student"),
    ('-m {two} -d {hr}', r'-m: .*two has no image for coffee of set'),
    ('-m {lr} -d {hr}', r'-m: astronaut.png in .*LRx4 has 20x16 pixels; enlarged 4 times, astronaut of set has 80x64'),
    ('-m {text} -d {hr}', r'-m: .*text.pth cannot be read as a weights file'),
    ('-m {unknown} -d {hr}', r'-m: nothing tells the architecture of .*unknown.pth'),
    ('-m {student} -d {hr} --metrics psnr sim', r"--metrics: there is no metric 'sim'; did you mean ssim"),
    ('-m {student} -d {hr} --metrics fd', r'--metrics fd: name the backbone'),
    ('-m {student} -d :{lr} --metrics psnr', r'-d: set has no ground truth, and there are no two models'),
    ('-m {student} -d {hr} --crop_border 27', r'-d: astronaut of set \(80x64\) is too small for SSIM'),
    ('-m {student} -d {hr} --scale 0', r"--scale: write a whole number of at least 1, not '0'"),
    ('-m {student} -d {hr} -t big', r"-t: write a whole number of at least 0, not 'big'"),
    ('-m {student} -d {hr} --device cdua', r'--device: cdua cannot be used here'),
]


@pytest.mark.parametrize(('line', 'sentence'), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake_on_the_command_line(ground, tmp_path, line, sentence):
    names = {name: tmp_path / name for name in ('empty', 'gone', 'two', 'names')}
    for name in ('empty', 'two', 'names'):
        names[name].mkdir()
    for name in ('astronaut', 'chelsea'):
        for folder in ('two', 'names'):
            shutil.copy(ground / f'set/HR/{name}.png', names[folder])
    shutil.copy(ground / 'set/HR/coffee.png', names['names'] / 'tea.png')
    save_network(tmp_path / 'x2.pth', upscale=2)
    (tmp_path / 'text.pth').write_text('no checkpoint')
    torch.save({'weight': torch.zeros(2)}, tmp_path / 'unknown.pth')
    names |= {name: tmp_path / f'{name}.pth' for name in ('x2', 'text', 'unknown')}
    names |= {'student': ground / 'student.pth', 'hr': ground / 'set/HR', 'lr': ground / 'set/LRx4'}
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate(*line.format(**names).split(' '), '-o', tmp_path / 'out')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'out').exists()


def test_results_that_cannot_be_written(ground, tmp_path):
    (tmp_path / 'file').write_text('')
    arguments = ['-m', 'bicubic', '-d', ground / 'set/HR', '--metrics', 'psnr']
    with pytest.raises(UserError, match=r'-o: .*file/out cannot be written to'):
        evaluate(*arguments, '-o', tmp_path / 'file/out')
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/results.json').write_text('{"evaluate": ')
    with pytest.raises(UserError, match=r'results.json cannot be read .*choose another -o'):
        evaluate(*arguments, '-o', tmp_path / 'old')
    assert [path.name for path in (tmp_path / 'old').iterdir()] == ['results.json']


def test_memory_does_not_grow_with_the_number_of_images(ground, tmp_path):
    """Of an image that was measured, only numbers and paths stay."""
    import tracemalloc

    from sdakd.commands.evaluate.contenders import open_contenders
    from sdakd.commands.evaluate.measurement import Measurement
    from sdakd.files.testsets import open_sets
    from sdakd_metrics.metrics import Settings, open_metrics

    (tmp_path / 'many').mkdir()
    for number in range(24):
        shutil.copy(ground / 'set/HR/chelsea.png', tmp_path / f'many/{number:02}.png')
    (testset,) = open_sets([str(tmp_path / 'many')], 4)
    contenders = open_contenders([str(ground / 'student.pth'), 'bicubic'], 4, 'cpu', None)
    measurement = Measurement(testset, contenders, open_metrics(['psnr'], Settings(4)), contenders[0], tmp_path / 'out')
    for name in testset.names[:4]:
        measurement.take(name)
    tracemalloc.start()
    for name in testset.names[4:]:
        measurement.take(name)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 20 * 64 * 64 * 3  # less than one of the three images of each of 20
