"""GCFSR in `sdakd upscale` and `sdakd evaluate`: against the network called directly on what its training makes."""

import csv
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import torchvision
import yaml
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from onnx import TensorProto, helper

from sdakd import cli
from sdakd.compat import UserError
from sdakd.files.generators import FaceNetwork, open_network
from sdakd_arch.width import build
from sdakd_data.face_dataset import degrade
from sdakd_metrics import identity
from sdakd_metrics.metrics import Settings, open_metrics

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64
NARROW = {'teacher': 1 / 64, 'half': 1 / 128, 'quarter': 1 / 256}


def options(kind='GCFSR', narrow=1 / 64, size=SIZE):
    return {'type': kind, 'out_size': size, 'num_style_feat': 8, 'narrow': narrow}


def save_network(path, network):
    torch.save({'params_ema': network.state_dict()}, path)


class Ground:
    """Eight faces of 64 pixels, a GCFSR teacher and two students, and other networks, below ``root``."""

    def __init__(self, root, photographs):
        self.root, self.faces, self.generators = root, {}, {}
        (root / 'HR').mkdir()
        for name, image in photographs.items():
            for number in range(2):
                face = image[SIZE * number :, SIZE * number :, ::-1][:SIZE, :SIZE].copy()
                self.faces[f'{name}{number}'] = face
                cv2.imwrite(str(root / f'HR/{name}{number}.png'), face)
        torch.manual_seed(1)
        for name, narrow in NARROW.items():
            self.generators[name] = build(options(narrow=narrow), '').eval()
            save_network(root / f'{name}.pth', self.generators[name])
        save_network(root / 'blind.pth', build(options('GCFSRBlind'), ''))
        judge = {'type': 'GCFSRDiscriminator', 'out_size': SIZE, 'narrow': 1 / 64}
        save_network(root / 'judge.pth', build(judge, ''))
        save_network(root / 'fixed.pth', SRVGGNetCompact(num_feat=4, num_conv=2))

    def made(self, model, image, factor, told=None):
        """What a generator makes of a face (uint8, BGR) that was reduced ``factor`` times: uint8, BGR."""
        lq = degrade(image.astype(np.float32) / 255, factor)[1]
        tensor = torch.from_numpy(lq[..., ::-1].copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            found = self.generators[model](2 * tensor - 1, torch.tensor([[16 * (told or factor) / SIZE]]))
        found = ((found + 1) / 2).clamp(0, 1)[0].permute(1, 2, 0).numpy()
        return (found * 255).round().astype(np.uint8)[..., ::-1]


@pytest.fixture(scope='module')
def ground(tmp_path_factory, photographs):
    return Ground(tmp_path_factory.mktemp('ground'), photographs)


def run(*arguments):
    """A command, in this process."""
    return cli.main([str(argument) for argument in arguments])


def command(*arguments):
    """A command as a user gives it."""
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'PYTHONWARNINGS': 'ignore'}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def call(name, config, output, folder, monkeypatch):
    """A script in this process, as ``python test_scripts/NAME.py ...`` runs it."""
    script = ROOT / f'test_scripts/{name}.py'
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'argv', [str(script), '-opt', str(config), '-o', str(output)])
    monkeypatch.setattr(sys, 'path', [str(script.parent), *sys.path])
    monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name='__main__')
    assert end.value.code == 0


def small(image, factor):
    return (degrade(image.astype(np.float32) / 255, factor)[0] * 255).round().astype(np.uint8)


def load(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def apart(a, b):
    assert a.shape == b.shape and a.dtype == b.dtype
    return np.abs(a.astype(int) - b.astype(int)).max()


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def evaluated(folder):
    return json.loads((folder / 'results.json').read_text())['evaluate']


def score(found, model, metric, reference='gt'):
    keys = {'model': model, 'metric': metric, 'reference': reference}
    (entry,) = (s for s in found['scores'] if s.items() >= keys.items())
    return entry


# ---------------------------------------------- the network ---------------------------------------------------------


@pytest.mark.parametrize('factor', [1, 2, 4, 16])
def test_it_gets_what_the_training_makes(ground, factor):
    opened = open_network(ground.root / 'teacher.pth', faces=True)
    assert isinstance(opened.module, FaceNetwork) and opened.scale is None and opened.network['out_size'] == SIZE
    faces = [ground.faces[name].astype(np.float32) / 255 for name in ('astronaut0', 'coffee1')]
    reduced, enlarged = zip(*(degrade(face, factor) for face in faces), strict=True)
    as_tensor = [torch.from_numpy(np.stack(images)[..., ::-1].copy()).permute(0, 3, 1, 2) for images in
                 (reduced, enlarged)]  # fmt: skip
    assert torch.equal(opened.module.resize(as_tensor[0]), as_tensor[1])
    with torch.no_grad():
        expected = ground.generators['teacher'](2 * as_tensor[1] - 1, torch.full((2, 1), 16 * factor / SIZE))
        found = [opened.module(as_tensor[0]) for _ in range(2)]
    assert torch.equal(found[0], found[1])  # no noise
    torch.testing.assert_close(found[0], (expected + 1) / 2, rtol=0, atol=1e-6)


def test_every_square_size_is_enlarged_to_the_faces_size():
    network = FaceNetwork(build(options(size=32), ''))
    ramp = torch.linspace(0, 1, 32)
    for size in range(4, 33):
        image = torch.linspace(0.5 / size, 1 - 0.5 / size, size).expand(1, 3, size, size)
        large = network.resize(image)
        assert large.shape == (1, 3, 32, 32)
        assert (large[0, 0, 16] - ramp).abs().max() < 0.15  # the same place in the picture
    for shape, sentence in (((8, 9), 'is not square'), ((40, 40), 'from 4 to 32 pixels'), ((2, 2), 'from 4 to 32')):
        with pytest.raises(RuntimeError, match=sentence):
            network(torch.zeros(1, 3, *shape))


def test_bench_measures_it_where_it_runs(ground, tmp_path):
    models = [ground.root / 'teacher.pth', f'small={ground.root / "quarter.pth"}', 'random:GCFSR128:1/64']
    flags = ['--size', 16, '--rounds', 2, '--backends', 'eager', 'channels_last', 'onnxruntime']
    flags += ['--precisions', 'fp32', 'bf16']  # processors without units for bf16 would leave it out
    assert run('bench', '-m', *models, '-o', tmp_path, *flags) == 0
    bench = json.loads((tmp_path / 'results.json').read_text())['bench']
    expected = [(backend, precision) for backend in ('eager', 'channels_last') for precision in ('fp32', 'bf16')]
    for model in bench['models']:
        found = [entry for entry in bench['runs'] if entry['model'] == model['name']]
        assert [(entry['backend'], entry['precision']) for entry in found] == expected
        base = bench['runs'][0]['median_ms']
        for entry in found:
            assert entry['error'] is None and entry['ratio'] == pytest.approx(base / entry['median_ms'])
            plain = (entry['backend'], entry['precision']) == ('eager', 'fp32')  # what the others are compared with
            assert entry['psnr'] is None if plain else entry['psnr'] > (100 if entry['precision'] == 'fp32' else 40)
        network = build(model['network'], '')
        assert model['parameters'] == sum(weight.numel() for weight in network.parameters())
    assert bench['models'][2]['network']['out_size'] == 128 and bench['models'][2]['name'] == 'GCFSR128:1/64'


@pytest.mark.parametrize(
    ('line', 'sentence'),
    [
        ('{root}/teacher.pth --size 128', '--size: the input of teacher has 128x128 pixels, where faces from 4 to 64'),
        (
            '{root}/teacher.pth --backends openvino fast',
            '--backends: fast and openvino cannot run teacher; name one of',
        ),
        ('random:GCFSR', "no generator is called 'GCFSR'; did you mean GCFSR"),
    ],
)
def test_bench_refuses(ground, tmp_path, line, sentence):
    with pytest.raises(UserError, match=sentence):
        run('bench', '-m', *line.format(root=ground.root).split(), '-o', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


# ---------------------------------------------- upscale -------------------------------------------------------------


def test_upscale_takes_the_factor_from_the_size_and_goes_on_after_unusable_images(ground, tmp_path):
    (tmp_path / 'in').mkdir()
    for factor in (2, 4, 8):
        cv2.imwrite(str(tmp_path / f'in/x{factor}.png'), small(ground.faces['astronaut0'], factor))
    cv2.imwrite(str(tmp_path / 'in/odd.png'), ground.faces['coffee0'][:27, :27])
    cv2.imwrite(str(tmp_path / 'in/flat.png'), ground.faces['coffee0'][:20, :30])
    cv2.imwrite(str(tmp_path / 'in/large.png'), np.zeros((70, 70, 3), np.uint8))
    model = ground.root / 'teacher.pth'
    done = command('-m', 'sdakd.cli', 'upscale', '-i', tmp_path / 'in', '-o', tmp_path / 'out', '-m', model)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stdout.startswith(f'upscale: 4 of 6 images in {tmp_path / "out"}, to 64x64 pixels with teacher: ')
    last = done.stderr.splitlines()[-1]
    assert last.startswith('Error: 2 of 6 images') and 'flat.png has 30x20 pixels and is not square' in last
    assert 'large.png has 70x70 pixels, where faces from 4 to 64 pixels can be taken' in last
    assert files(tmp_path / 'out') == ['.sdakd_upscale.jsonl', 'odd_out.png', 'x2_out.png', 'x4_out.png', 'x8_out.png']
    for factor in (2, 4, 8):
        expected = ground.made('teacher', ground.faces['astronaut0'], factor)
        assert expected.std() > 5
        assert apart(load(tmp_path / f'out/x{factor}_out.png'), expected) <= 1
    assert load(tmp_path / 'out/odd_out.png').shape == (64, 64, 3)


def test_a_given_factor_is_what_the_network_is_told(ground, tmp_path):
    face = ground.faces['chelsea1']
    cv2.imwrite(str(tmp_path / 'a.png'), small(face, 4))
    flags = ['-i', tmp_path / 'a.png', '-m', ground.root / 'teacher.pth', '-t', '0']
    run('upscale', *flags, '-o', tmp_path / 'own')
    run('upscale', *flags, '-o', tmp_path / 'told', '--factor', 16)
    own, told = (load(tmp_path / f'{folder}/a_out.png') for folder in ('own', 'told'))
    assert apart(told, ground.made('teacher', face, 4, told=16)) <= 1
    assert apart(told, own) > 3


def test_kinds_of_pictures_and_outscale(ground, tmp_path):
    face = small(ground.faces['rocket0'], 2)
    deep = face.astype(np.uint16) * 257
    alpha = np.dstack([face, face[..., 0]])
    kinds = {'colour': face, 'deep': deep, 'grey': face[..., 0], 'alpha': alpha}
    kinds['opaque'] = np.dstack([face, np.full(face.shape[:2], 7, np.uint8)])
    (tmp_path / 'in').mkdir()
    for name, image in kinds.items():
        cv2.imwrite(str(tmp_path / f'in/{name}.png'), image)
    flags = ['-i', tmp_path / 'in', '-m', ground.root / 'half.pth', '--suffix', '']
    run('upscale', *flags, '-o', tmp_path / 'out')
    found = {name: load(tmp_path / f'out/{name}.png') for name in kinds}
    expected = ground.made('half', ground.faces['rocket0'], 2)
    assert apart(found['colour'], expected) <= 1 and apart(found['alpha'][..., :3], expected) <= 1
    assert found['deep'].dtype == np.uint16 and np.abs(found['deep'] / 257 - expected).max() <= 1
    assert apart(found['alpha'][..., 3], cv2.resize(alpha[..., 3], (64, 64), interpolation=cv2.INTER_CUBIC)) == 0
    assert found['grey'].shape == (64, 64) and (found['opaque'][..., 3] == 7).all()
    with torch.no_grad():
        tensor = torch.from_numpy(kinds['grey'].astype(np.float32) / 255).expand(1, 3, 32, 32)
        rgb = open_network(ground.root / 'half.pth', faces=True).module(tensor)[0].clamp(0, 1).numpy()
    luma = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    assert np.abs(found['grey'] - 255 * luma).max() <= 0.51
    run('upscale', *flags, '-o', tmp_path / 'x1.5', '-s', '1.5')  # of the input's 32 pixels
    lanczos = cv2.resize(found['colour'], (48, 48), interpolation=cv2.INTER_LANCZOS4)
    assert apart(load(tmp_path / 'x1.5/colour.png'), lanczos) == 0


REFUSED = [
    ('teacher -t 32', r'-t: .*teacher.pth \(GCFSR\) sees whole faces, without tiles'),
    ('teacher --tile_pad 8', r'--tile_pad: .*teacher.pth'),
    ('teacher --pre_pad 4', r'--pre_pad: .*teacher.pth'),
    ('teacher --face_enhance', r'--face_enhance: .*teacher.pth \(GCFSR\) makes faces itself'),
    ('teacher --factor 32', r'--factor: 32 does not fit faces of 64 pixels; give a number from 1 to 16'),
    ('teacher --factor 0.5', r'--factor: 0.5 does not fit'),
    ('blind --factor 8', r'--factor: .*blind.pth \(GCFSRBlind\) is not told a factor'),
    ('fixed --factor 8', r'--factor: .*fixed.pth always enlarges 4 times'),
    ('judge', r'judge.pth holds the discriminator GCFSRDiscriminator'),
]


@pytest.mark.parametrize(('line', 'sentence'), REFUSED, ids=[line for line, _ in REFUSED])
def test_upscale_refuses(ground, tmp_path, line, sentence):
    name, *flags = line.split()
    with pytest.raises(UserError, match=sentence) as caught:
        run('upscale', '-i', ground.root / 'HR', '-m', ground.root / f'{name}.pth', '-o', tmp_path / 'out', *flags)
    assert '\n' not in str(caught.value) and not (tmp_path / 'out').exists()


def test_a_face_alone_that_cannot_be_used(ground, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(UserError, match=r'-i: .*a.png has 9x8 pixels and is not square\.'):
        run('upscale', '-i', tmp_path / 'a.png', '-m', ground.root / 'blind.pth', '-o', tmp_path / 'out')
    assert files(tmp_path / 'out') == []


# ---------------------------------------------- evaluate, and the table of the paper ---------------------------------


@pytest.fixture(scope='module')
def measured(ground):
    """A teacher and two students at two factors, with the names of table_fid_gcfsr.yml, with another distance."""
    torch.manual_seed(5)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), ground.root / 'squeezenet.pth')
    out = ground.root / 'results'
    models = [f'teacher={ground.root / "teacher.pth"}', f'sdakd_w1-2_s0={ground.root / "half.pth"}']
    models += [f'sdakd_w1-4_s0={ground.root / "quarter.pth"}', 'bicubic']
    done = command(
        *('-m', 'sdakd.cli', 'evaluate', '-m', *models, '-d', f'CelebA-HQ={ground.root / "HR"}', '--scale', 2, 4),
        *('--metrics', 'fd', 'psnr', '--backbone', f'squeezenet:{ground.root / "squeezenet.pth"}', '-o', out),
    )
    assert done.returncode == 0, done.stderr
    return out, done


def distance(network, one, other):
    """The Frechet distance of two lists of images of 64 pixels, BGR: a patch each, in torchvision's convention."""
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    sets = []
    for images in (one, other):
        batch = torch.stack([torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255 for image in images])
        with torch.no_grad():
            sets.append(network.features(normalise(batch)).mean((2, 3)).double())
    step = sets[0].mean(0) - sets[1].mean(0)
    centred = [values - values.mean(0) for values in sets]
    count = len(one) - 1
    # tr (C_a C_b)^(1/2) of centred features A and B is the nuclear norm of A B'
    cross = torch.linalg.matrix_norm(centred[0] @ centred[1].T, 'nuc') / count
    return (step @ step + sum((values**2).sum() / count for values in centred) - 2 * cross).item()


MODELS = {'teacher': 'teacher', 'sdakd_w1-2_s0': 'half', 'sdakd_w1-4_s0': 'quarter'}


@pytest.fixture(scope='module')
def expected(ground, measured):
    """Frechet distance and mean PSNR by model and factor, without the project's commands and metrics."""
    network = torchvision.models.squeezenet1_1(weights=None).eval()
    network.load_state_dict(torch.load(ground.root / 'squeezenet.pth', weights_only=True))
    found, truth = {}, list(ground.faces.values())
    to_y = np.array([24.966, 128.553, 65.481]) / 255  # BGR, as MATLAB's rgb2ycbcr
    for name, own in MODELS.items():
        for factor in (2, 4):
            made = [ground.made(own, face, factor) for face in truth]
            psnr = []
            for image, face in zip(made, truth, strict=True):
                error = (image.astype(float) - face.astype(float)) @ to_y
                error = error[factor:-factor, factor:-factor]
                psnr.append(10 * math.log10(255**2 / (error**2).mean()))
            found[name, factor] = distance(network, made, truth), np.mean(psnr)
    return found


def test_several_factors_are_measured_in_one_call(ground, measured, expected):
    out, done = measured
    for factor in (2, 4):
        found = evaluated(out / f'x{factor}')
        assert found['scale'] == factor and [model['name'] for model in found['models']] == [*MODELS, 'bicubic']
        assert found['models'][0]['network'] == {**options(), 'channel_multiplier': 2, 'narrow': 1 / 64}
        for name in MODELS:
            fd, psnr = expected[name, factor]
            assert score(found, name, 'fd')['mean'] == pytest.approx(fd, rel=2e-2)
            assert score(found, name, 'psnr')['mean'] == pytest.approx(psnr, abs=2e-3)
        picture = out / f'x{factor}' / found['pictures']['CelebA-HQ']['coffee1']['models']['sdakd_w1-2_s0']
        assert apart(load(picture), ground.made('half', ground.faces['coffee1'], factor)) <= 1
    assert len({round(fd) for fd, _ in expected.values()}) > 3  # the cells differ, so that exchanged ones were seen
    assert 'GMACs: for 64x64 input pixels; GCFSR: for one face.' in done.stdout
    assert 'table_factors as .md, .csv and .tex; in x2, x4 each results.json' in done.stdout
    with open(out / 'table_factors.csv', encoding='utf-8', newline='') as file:
        header, *rows = csv.reader(file)
    assert header == ['Set', 'Model', 'FD-squeezenet x2', 'FD-squeezenet x4']
    assert [row[:2] for row in rows] == [['CelebA-HQ', name] for name in (*MODELS, 'bicubic')]
    for row in rows:
        for cell, factor in zip(row[2:], (2, 4), strict=True):
            assert cell == f'{score(evaluated(out / f"x{factor}"), row[1], "fd")["mean"]:.1f}'


def test_the_papers_table_in_miniature(measured, expected, tmp_path, monkeypatch):
    content = yaml.safe_load((ROOT / 'test_scripts/configs/table_fid_gcfsr.yml').read_text())
    assert [(c['scale'], c['metric']) for c in content['columns']] == [(factor, 'fid') for factor in (8, 16, 32, 64)]
    content['results'] = [str(measured[0] / 'x2'), str(measured[0] / 'x4')]
    columns = [{**content['columns'][0], 'label': f'FD x{s}', 'scale': s, 'metric': 'fd'} for s in (2, 4)]
    content['columns'] = [*columns, {**content['columns'][0], 'scale': 4}]
    content['rows'] = [row for row in content['rows'] if row['model'] in MODELS]
    (tmp_path / 'table.yml').write_text(yaml.safe_dump(content))
    call('table_fid', tmp_path / 'table.yml', tmp_path / 'out', tmp_path, monkeypatch)
    with open(tmp_path / 'out/table_fid.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['Method'], row['Width']) for row in rows] == [('teacher', '1'), ('SDAKD', '1/2'), ('SDAKD', '1/4')]
    for row, name in zip(rows, MODELS, strict=True):
        assert [float(row[f'FD x{factor}']) for factor in (2, 4)] == [
            pytest.approx(expected[name, factor][0], rel=2e-2) for factor in (2, 4)
        ]
        assert row['FID x8'] == row['Paper: FID x8'] == ''  # not measured, and not known


def test_the_full_size_table_is_sound_but_for_its_inputs(tmp_path, monkeypatch):
    config = ROOT / 'test_scripts/configs/table_fid_gcfsr.yml'
    with pytest.raises(UserError, match='experiments/compare_paper_gcfsr/x8/results.json holds no results of evaluate'):
        call('table_fid', config, tmp_path / 'out', tmp_path, monkeypatch)
    assert files(tmp_path) == []


def test_lr_images_of_each_factor_are_found_beside_hr(ground, measured, tmp_path):
    os.symlink(ground.root / 'HR', tmp_path / 'HR')
    for factor in (2, 4):
        (tmp_path / f'LRx{factor}').mkdir()
        for name, face in ground.faces.items():
            cv2.imwrite(str(tmp_path / f'LRx{factor}/{name}.png'), small(face, factor))
    flags = ['-d', tmp_path / 'HR', '--metrics', 'psnr', '--no_images']
    model = ['-m', f'teacher={ground.root / "teacher.pth"}']
    run('evaluate', *model, *flags, '--scale', 4, 2, '-o', tmp_path / 'both')
    run('evaluate', *model, *flags, '-o', tmp_path / 'one')  # a single factor stays in the folder itself
    assert files(tmp_path / 'one') == ['results.json', 'table.csv', 'table.md', 'table.tex']
    assert (tmp_path / 'both/table_factors.md').read_text().startswith('| Set')
    for found in (evaluated(tmp_path / 'both/x4'), evaluated(tmp_path / 'one')):
        values = score(found, 'teacher', 'psnr')['per_image']
        assert values == score(evaluated(measured[0] / 'x4'), 'teacher', 'psnr')['per_image']
    header = (tmp_path / 'both/table_factors.csv').read_text().splitlines()[0]
    assert header == 'Set,Model,PSNR-Y x4,PSNR-Y x2'  # in the order given


def test_noise_in_evaluate(ground, tmp_path):
    """Fixed noise depends on the image's name alone; random noise on the seed, the row and the factor as well."""
    networks, sources = {}, []
    for model in ('teacher', 'half'):
        networks[model] = build(options(narrow=NARROW[model]), '').eval().requires_grad_(False)
        networks[model].load_state_dict(ground.generators[model].state_dict())
        for name, parameter in networks[model].named_parameters():
            if name.endswith('.weight') and parameter.shape == (1,):  # the strengths of noise
                parameter.fill_(0.3)
        save_network(tmp_path / f'{model}.pth', networks[model])
        sources += [f'{model}={tmp_path}/{model}.pth', f'{model}_again={tmp_path}/{model}.pth']

    def made(noise, seed, scale=4):
        out = tmp_path / f'{noise}{seed}{scale}'
        flags = ['--noise', noise, '--seed', seed, '--scale', scale, '-o', out]
        run('evaluate', '-m', *sources, '-d', f'f={ground.root}/HR', '--metrics', 'psnr', *flags)
        assert evaluated(out)['noise'] == noise
        rows = {path.parent.name: {} for path in out.rglob('*.png')}
        for path in out.rglob('images/f/*/*.png'):
            rows[path.parent.name][path.stem] = load(path)
        return rows

    def equal(one, other):
        return all(np.array_equal(one[name], other[name]) for name in ground.faces)

    fixed = made('fixed', 0)
    for model, network in networks.items():
        for name, face in list(ground.faces.items())[:2]:
            lq = torch.from_numpy(degrade(face.astype(np.float32) / 255, 4)[1][..., ::-1].copy()).permute(2, 0, 1)[None]
            image = network(2 * lq - 1, torch.tensor([[16 * 4 / SIZE]]), networks['teacher'].noise_of(name))
            image = ((image + 1) / 2).clamp(0, 1)[0].permute(1, 2, 0).numpy()[..., ::-1] * 255
            assert apart(fixed[model][name], image.round().astype(np.uint8)) <= 1
        assert equal(fixed[model], fixed[f'{model}_again']) and equal(fixed[model], made('fixed', 5)[model])
    random = made('random', 0)
    assert not equal(random['half'], random['half_again']) and not equal(random['half'], fixed['half'])
    other = made('random', 5)
    assert not equal(random['half'], other['half'])
    assert all(equal(random[row], again) for row, again in made('random', 0).items())


MISTAKES = [
    (
        '-m {root}/fixed.pth bicubic -d {root}/HR --noise fixed',
        r'--noise: only GCFSR adds fixed noise',
    ),
    ('-m {root}/teacher.pth -d {root}/HR --scale 3', r'--scale: 3 does not fit teacher, whose faces have 64x64'),
    ('-m {root}/teacher.pth -d {root}/HR --scale 32', r'--scale: 32 does not fit teacher'),
    ('-m {root}/teacher.pth -d {tmp}/wrong', r'-d: b of wrong has 64x60 pixels, and teacher makes faces of 64x64'),
    ('-m {root}/teacher.pth {root}/half.pth -d :{root}/HR --scale 2', r'-d: .* has 128x128 pixels, enlarged 2 times'),
    ('-m {root}/fixed.pth -d {root}/HR --scale 2 4', r'-m: .*fixed.pth always enlarges 4 times, but --scale gives'),
    ('-m {root}/HR -d {root}/HR --scale 2 4', r'-m: .*HR holds images of one factor, but --scale gives several'),
    ('-m {root}/teacher.pth -d {root}/HR --scale 2 2', r'--scale: 2 2 names a factor twice'),
    ('-m {root}/teacher.pth -d {root}/HR --scale 2 x', r"--scale: write a whole number of at least 1, not 'x'"),
    ('-m {root}/teacher.pth -d {root}/HR -t 16', r'-t: .*teacher.pth \(GCFSR\) sees whole faces'),
    ('-m {root}/judge.pth -d {root}/HR', r'-m: .*judge.pth holds the discriminator'),
    ('-m {root}/teacher.pth -d {root}/HR --face_model a.onnx', r'--face_model: only the metric identity uses it'),
]


@pytest.mark.parametrize(('line', 'sentence'), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_evaluate_refuses(ground, tmp_path, line, sentence):
    (tmp_path / 'wrong').mkdir()
    cv2.imwrite(str(tmp_path / 'wrong/a.png'), ground.faces['coffee0'])
    cv2.imwrite(str(tmp_path / 'wrong/b.png'), ground.faces['coffee0'][:60])
    with pytest.raises(UserError, match=sentence) as caught:
        flags = line.format(root=ground.root, tmp=tmp_path).split()
        run('evaluate', *flags, '--metrics', 'psnr', '-o', tmp_path / 'out')
    assert '\n' not in str(caught.value) and not (tmp_path / 'out').exists()


def test_a_mistake_by_the_real_command(ground, tmp_path):
    flags = ['-m', ground.root / 'teacher.pth', '-d', ground.root / 'HR', '--scale', '2', '5', '-o', tmp_path / 'out']
    done = command('-m', 'sdakd.cli', 'evaluate', *flags)
    assert done.returncode == 2 and 'Traceback' not in done.stderr and not (tmp_path / 'out').exists()
    assert done.stderr.splitlines()[-1].startswith('Error: --scale: 5 does not fit teacher, whose faces have 64x64')


def test_a_damaged_face_is_counted_once_for_all_factors(ground, tmp_path):
    (tmp_path / 'HR').mkdir()
    for name in ('astronaut0', 'astronaut1'):
        cv2.imwrite(str(tmp_path / f'HR/{name}.png'), ground.faces[name])
    (tmp_path / 'HR/b.png').write_bytes((tmp_path / 'HR/astronaut0.png').read_bytes()[:300])
    with pytest.raises(UserError, match=r'-d: 1 images could not be used .*b.png'):
        flags = ['-d', tmp_path / 'HR', '--scale', 2, 4, '--metrics', 'psnr', '-o', tmp_path / 'out']
        run('evaluate', '-m', 'bicubic', *flags)
    assert evaluated(tmp_path / 'out/x4')['sets'][0]['images'] == 2
    assert (tmp_path / 'out/table_factors.csv').exists()


# ---------------------------------------------- figures -----------------------------------------------------------


@pytest.fixture(scope='module')
def judges(ground):
    """Two discriminators, and a folder of all faces reduced 4 times."""
    found = {}
    for name in ('one', 'other'):
        torch.manual_seed(len(name))
        found[name] = build({'type': 'GCFSRDiscriminator', 'out_size': SIZE, 'narrow': 1 / 64}, '').eval()
        torch.save({'params': found[name].state_dict()}, ground.root / f'net_d_{name}.pth')
    (ground.root / 'lq').mkdir()
    for name, face in ground.faces.items():
        cv2.imwrite(str(ground.root / f'lq/{name}.png'), small(face, 4))
    return found


def logit(ground, judge, model, face):
    """The output for what a generator makes of a face, without this project's scripts; nothing is clipped."""
    lq = torch.from_numpy(degrade(face.astype(np.float32) / 255, 4)[1][..., ::-1].copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        return judge(ground.generators[model](2 * lq - 1, torch.tensor([[16 * 4 / SIZE]]))).item()


def test_figures_2_and_3_have_one_output_for_a_face(ground, judges, tmp_path, monkeypatch):
    values = {
        (model, name): [logit(ground, judge, model, face) for face in ground.faces.values()]
        for model in ('teacher', 'half')
        for name, judge in judges.items()
    }
    runs = [
        {'label': model, 'generator': f'{ground.root}/{model}.pth', 'discriminator': f'{ground.root}/net_d_one.pth'}
        for model in ('teacher', 'half')
    ]
    (tmp_path / 'a.yml').write_text(yaml.safe_dump({'inputs': f'{ground.root}/lq', 'runs': runs}))
    call('figure2_discriminator_dcd', tmp_path / 'a.yml', tmp_path / 'two', tmp_path, monkeypatch)
    content = json.loads((tmp_path / 'two/figure2.json').read_text())
    for found in content['runs']:
        wanted = values[found['label'], 'one']
        assert found['values'] == len(wanted) == 8
        assert list(found['image_means'].values()) == pytest.approx(wanted, abs=1e-5)
        assert found['std'] == pytest.approx(np.std(wanted), rel=1e-4)
    assert 'One logit for each of 8 images' in (tmp_path / 'two/figure2.md').read_text()

    entries = [{'label': name, 'weights': f'{ground.root}/net_d_{name}.pth'} for name in judges]
    row = {
        'label': 'a',
        'generator': f'{ground.root}/half.pth',
        'input': f'{ground.root}/lq',
        'discriminators': entries,
    }
    rows = [row, {**row, 'label': 'first', 'images': 1}]
    (tmp_path / 'b.yml').write_text(yaml.safe_dump({'rows': rows}))
    call('figure3_discriminators', tmp_path / 'b.yml', tmp_path / 'three', tmp_path, monkeypatch)
    content = json.loads((tmp_path / 'three/figure3.json').read_text())['rows']
    assert content[0]['images'] == [f'{name}.png' for name in sorted(ground.faces)]
    assert content[1]['images'] == content[0]['images'][:1]
    for found in content[0]['discriminators']:
        assert found['mean'] == pytest.approx(np.mean(values['half', found['label']]), abs=1e-5)
        assert found['called_real'] == np.mean(np.array(values['half', found['label']]) > 0)
    first = sorted(ground.faces)[0]
    for found in content[1]['discriminators']:
        assert found['median'] == pytest.approx(
            logit(ground, judges[found['label']], 'half', ground.faces[first]), abs=1e-5
        )
    assert cv2.imread(str(tmp_path / 'three/figure3.png')).std() > 5


def test_a_mosaic_is_in_reading_order(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(ROOT / 'test_scripts'), *sys.path])
    from figure3_discriminators import WIDEST, mosaic, shrink

    parts = [np.full((1, 2), float(number)) for number in range(5)]
    blank = math.nan
    expected = [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, blank, blank]]
    np.testing.assert_array_equal(mosaic(parts, blank), expected)
    np.testing.assert_array_equal(mosaic([np.zeros((2, 3, 3))], 255), np.zeros((2, 3, 3)))
    face = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4, 1), np.ones((WIDEST // 4, WIDEST // 4, 3), np.uint8))
    assert shrink(face, 1) is face
    np.testing.assert_array_equal(shrink(face, 8), face[::8, ::8])  # eight of them are as wide as one


def test_figures_refuse_faces_that_do_not_fit(ground, judges, tmp_path, monkeypatch):
    judge = {'type': 'GCFSRDiscriminator', 'out_size': 32, 'narrow': 1 / 64}
    save_network(tmp_path / 'small.pth', build(judge, ''))
    (tmp_path / 'flat').mkdir()
    cv2.imwrite(str(tmp_path / 'flat/a.png'), np.zeros((8, 9, 3), np.uint8))
    (tmp_path / 'mixed').mkdir()
    for side in (8, 16):
        cv2.imwrite(str(tmp_path / f'mixed/{side:02d}.png'), np.zeros((side, side, 3), np.uint8))
    run_ = {'label': 'a', 'generator': f'{ground.root}/half.pth', 'discriminator': f'{ground.root}/net_d_one.pth'}
    fixed = {**run_, 'label': 'b', 'generator': f'{ground.root}/fixed.pth'}
    row = {'label': 'a', 'generator': run_['generator'], 'input': 'mixed'}
    row['discriminators'] = [{'label': 'a', 'weights': run_['discriminator']}]
    for script, content, sentence in (
        ('figure2_discriminator_dcd', {'inputs': 'lq', 'runs': [{**run_, 'discriminator': 'small.pth'}]},
         'small.pth: the discriminator takes faces of 32x32 pixels, and the generator makes 64x64'),
        ('figure2_discriminator_dcd', {'inputs': 'flat', 'runs': [run_]}, 'an input has 9x8 pixels and is not square'),
        ('figure2_discriminator_dcd', {'inputs': 'lq', 'runs': [run_, fixed]},
         'runs: the generators enlarge 4 times and to 64 pixels'),
        ('figure3_discriminators', {'rows': [row]}, r'rows\[0\]:input: mixed/16.png has 16x16 pixels, and others 8x8'),
    ):  # fmt: skip
        if not (tmp_path / 'lq').exists():
            os.symlink(ground.root / 'lq', tmp_path / 'lq')
        (tmp_path / 'a.yml').write_text(yaml.safe_dump(content))
        with pytest.raises(UserError, match=sentence) as caught:
            call(script, tmp_path / 'a.yml', tmp_path / 'out', tmp_path, monkeypatch)
        assert '\n' not in str(caught.value) and not (tmp_path / 'out').exists()


# ---------------------------------------------- identity ------------------------------------------------------------


def save_graph(path, side=112, flatten=True):
    """The mean of each channel: what it is given can be read off what it gives."""
    nodes = [helper.make_node('GlobalAveragePool', ['face'], ['pooled' if flatten else 'found'])]
    nodes += [helper.make_node('Flatten', ['pooled'], ['found'])] if flatten else []
    face = helper.make_tensor_value_info('face', TensorProto.FLOAT, [1, 3, side, side])
    found = helper.make_tensor_value_info('found', TensorProto.FLOAT, [1, 3] if flatten else [1, 3, 1, 1])
    graph = helper.make_graph(nodes, 'recognition', [face], [found])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=8), path)
    return str(path)


def metric(file):
    identity.open_face_model.cache_clear()
    return open_metrics(['identity'], Settings(4, face_model=file))[0]


def framed(size, inner, outer):
    """One colour in the central three quarters, another around it; B, G, R."""
    image = np.full((size, size, 3), outer, np.uint8)
    image[size // 8 : size - size // 8, size // 8 : size - size // 8] = inner
    return image


@pytest.mark.parametrize('size', [64, 512])
def test_identity_is_the_cosine_of_what_an_onnx_gives(tmp_path, size):
    found = metric(save_graph(tmp_path / 'mean.onnx'))
    assert found.higher_is_better and found.label == 'Identity' and not found.blind
    assert 'mean.onnx' in found.convention and 'RGB, (value - 127.5) / 127.5' in found.convention
    a, b = (30, 60, 250), (200, 10, 90)
    vectors = [np.array(colour[::-1]) / 127.5 - 1 for colour in (a, b)]
    expected = vectors[0] @ vectors[1] / math.sqrt((vectors[0] @ vectors[0]) * (vectors[1] @ vectors[1]))
    images = framed(size, a, (0, 0, 0)), framed(size, b, (255, 9, 9))
    assert found.measure(*images) == pytest.approx(expected, abs=1e-4)  # 12,544 pixels are summed up in float32
    assert found.measure(images[0], framed(size, a, b)) == pytest.approx(1, abs=1e-6)  # the frame is not seen
    embedding = identity.open_face_model(str(tmp_path / 'mean.onnx'), 'cpu')(images[0])
    np.testing.assert_allclose(embedding, vectors[0] / np.linalg.norm(vectors[0]), atol=1e-4)  # R, G, B


def test_the_crop_is_where_arcface_wants_faces():
    from sdakd.commands.prepare.alignment import TEMPLATE

    # ArcFace's landmarks in 112 x 112 pixels, as insightface has them
    arcface = [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
    # the similarity x -> (a x - b y + c, b x + a y + d) of least squares onto FFHQ's in 512 x 512
    rows = [row for x, y in arcface for row in ((x, -y, 1, 0), (y, x, 0, 1))]
    a, b, c, d = np.linalg.lstsq(np.array(rows), TEMPLATE.reshape(-1), rcond=None)[0]
    assert 112 * a / 512 == pytest.approx(identity.PART, abs=0.01) and abs(b / a) < 0.01
    assert [(a * 56 + c) / 512, (a * 56 + d) / 512] == pytest.approx([0.5, 0.5], abs=0.01)


def test_identity_by_facexlibs_arcface(ground, tmp_path):
    from facexlib.recognition.arcface_arch import Backbone

    with torch.device('meta'):
        network = Backbone(50, 0.6, 'ir_se')
    network = network.to_empty(device='cpu').eval()
    for name, tensor in network.state_dict().items():
        if name.endswith('num_batches_tracked'):
            tensor.zero_()
        elif name.endswith(('running_var', 'running_mean')):
            tensor.fill_(float(name.endswith('var')))
        elif tensor.dim() > 1:
            tensor.normal_(0, math.sqrt(2 / tensor[0].numel()))
        else:
            tensor.fill_(0 if name.endswith('bias') else 0.5)
    path = tmp_path / identity.WEIGHTS
    state = {key: value for key, value in network.state_dict().items() if 'num_batches' not in key}  # as old files are
    torch.save(state, path)
    faces = [ground.faces['astronaut0'], ground.faces['chelsea0']]
    found = metric(str(path)).measure(*faces)
    with torch.no_grad():
        inner = [cv2.resize(face[8:56, 8:56], (112, 112), interpolation=cv2.INTER_CUBIC)[..., ::-1] for face in faces]
        batch = torch.from_numpy(np.stack(inner).astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1
        one, other = network(batch.contiguous())
    assert found == pytest.approx((one @ other).item(), abs=1e-4) and found < 1 - 1e-4
    identity.open_face_model.cache_clear()


def test_identity_in_evaluate_is_measured_against_truth_and_teacher(ground, tmp_path):
    graph = save_graph(tmp_path / 'mean.onnx')
    models = [ground.root / 'teacher.pth', ground.root / 'half.pth']
    flags = ['-d', ground.root / 'HR', '--metrics', 'identity', '--face_model', graph, '-o', tmp_path / 'out']
    run('evaluate', '-m', *models, *flags)
    found = evaluated(tmp_path / 'out')

    def embedding(image):
        inner = cv2.resize(image[8:56, 8:56], (112, 112), interpolation=cv2.INTER_CUBIC)
        return inner.mean((0, 1)) / 127.5 - 1

    for reference in ('gt', 'teacher'):
        values = []
        for name, face in ground.faces.items():
            one = embedding(load(tmp_path / f'out/images/{ground.root.name}/half/{name}.png'))
            path = tmp_path / f'out/images/{ground.root.name}/teacher/{name}.png'
            other = embedding(face if reference == 'gt' else load(path))
            values.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        assert score(found, 'half', 'identity', reference)['mean'] == pytest.approx(np.mean(values), abs=1e-5)


def test_face_models_that_cannot_be_used(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, 'WEIGHTS', 'recognition_nowhere.pth')
    monkeypatch.setattr(identity, 'URL', 'http://127.0.0.1:9/recognition_nowhere.pth')
    with pytest.raises(UserError) as caught:
        metric(None)
    for part in ('--metrics identity: ', 'facexlib/weights/recognition_nowhere.pth', 'http://127.0.0.1:9/recognition',
                 'name an .onnx with --face_model, or leave identity out of the metrics'):  # fmt: skip
        assert part in str(caught.value)
    wrong = {
        tmp_path / 'gone.onnx': r'--face_model: the file .*gone.onnx does not exist',
        tmp_path / 'gone.pth': r'--face_model: the file .*gone.pth does not exist.*name an .onnx',
        ground.root / 'teacher.pth': r'--face_model: .*teacher.pth does not fit Backbone: it holds GCFSR',
        save_graph(tmp_path / 'large.onnx', 128): r'--face_model: .*large.onnx does not run on \(1, 3, 112, 112\)',
        save_graph(tmp_path / 'maps.onnx', flatten=False): None,  # (1, 3, 1, 1) is a vector, too
    }
    (tmp_path / 'text.onnx').write_text('no graph')
    wrong[tmp_path / 'text.onnx'] = r'--face_model: .*text.onnx cannot be read as an ONNX graph'
    for path, sentence in wrong.items():
        if sentence is None:
            metric(str(path))
            continue
        with pytest.raises(UserError, match=sentence):
            metric(str(path))
