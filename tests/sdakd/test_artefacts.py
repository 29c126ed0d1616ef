"""The scripts for the paper's figures and tables, on tiny networks and photographs, through their own command lines."""

import csv
import itertools
import json
import math
import os
import re
import runpy
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from safetensors.torch import save_file

from sdakd.compat import UserError
from sdakd.files.results import write_section
from sdakd_models.reader import read_run

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / 'test_scripts'
CONFIGS = SCRIPTS / 'configs'
FIGURES = {
    'figure2': 'figure2_discriminator_dcd',
    'figure3': 'figure3_discriminators',
    'figure4': 'figure4_qualitative',
}
BLUE, VERMILLION = (0, 114, 178), (213, 94, 0)  # Okabe and Ito


class Sample:
    """What `make demo` leaves behind, at a tiny size, below ``root``."""

    def __init__(self, root, photographs):
        self.root = root
        torch.manual_seed(3)
        self.generators, self.discriminators = {}, {}
        for name in ('distill', 'no_teacher'):
            models = root / 'demo/experiments' / name / 'models'
            models.mkdir(parents=True)
            self.generators[name] = SRVGGNetCompact(num_feat=4, num_conv=2).eval()
            self.discriminators[name] = judge = UNetDiscriminatorSN(3, num_feat=4)
            for _ in range(20):  # the spectral norms settle, as in training
                judge(torch.rand(1, 3, 32, 32))
            judge.eval()
            torch.save({'params_ema': self.generators[name].state_dict()}, models / 'net_g_latest.pth')
            torch.save({'params': self.discriminators[name].state_dict()}, models / 'net_d_image_latest.pth')
        (root / 'sdakd/pretrained').mkdir(parents=True)
        self.generators['teacher'] = SRVGGNetCompact(num_feat=8, num_conv=2).eval()
        save_file(self.generators['teacher'].state_dict(), root / 'sdakd/pretrained/demo_teacher_x4.safetensors')
        data = root / 'demo/data/held_out'
        self.gt, self.lq = {}, {}
        for name, other in (('chelsea', 'chelsea'), ('motorcycle', 'rocket')):
            self.gt[name] = cv2.resize(photographs[other], (416, 320), interpolation=cv2.INTER_CUBIC)
            self.lq[name] = cv2.resize(self.gt[name], (104, 80), interpolation=cv2.INTER_AREA)
            for kind, image in (('gt', self.gt[name]), ('lq', self.lq[name])):
                (data / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(data / kind / f'{name}.png'), image[..., ::-1])

    def generated(self, run, name):
        """The network's plain output, ``(1, 3, 320, 416)``."""
        with torch.no_grad():
            return self.generators[run](torch.from_numpy(self.lq[name]).permute(2, 0, 1)[None].float() / 255)

    def logits(self, judge, run, name):
        with torch.no_grad():
            return self.discriminators[judge](self.generated(run, name))[0, 0].double().numpy()


@pytest.fixture(scope='module')
def sample(tmp_path_factory, photographs):
    return Sample(tmp_path_factory.mktemp('sample'), photographs)


@pytest.fixture
def call(sample, monkeypatch):
    """Runs a script from the sample's folder, as ``python test_scripts/NAME.py ...`` does, in this process."""

    def run(script, *arguments, status=0):
        monkeypatch.chdir(sample.root)
        monkeypatch.setattr(sys, 'argv', [script, *map(str, arguments)])
        monkeypatch.setattr(sys, 'path', [str(SCRIPTS), *sys.path])
        monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPTS / f'{script}.py'), run_name='__main__')
        assert end.value.code == status

    return run


@pytest.fixture
def modules(monkeypatch):
    """Makes the scripts' shared modules importable."""
    monkeypatch.setattr(sys, 'path', [str(SCRIPTS), *sys.path])


def command(sample, script, *arguments):
    """The real command line, from the sample's folder."""
    line = [sys.executable, '-W', 'ignore', str(SCRIPTS / f'{script}.py'), *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    return subprocess.run(line, cwd=sample.root, env=environment, capture_output=True, text=True)


def config(name, **changes):
    return {**yaml.safe_load((CONFIGS / f'{name}.yml').read_text()), **changes}


def save(path, content):
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def read_csv(path):
    with open(path, newline='', encoding='utf-8') as stream:
        return list(csv.DictReader(stream))


def check_figure(folder, name, inches, colours=()):
    """PDF and PNG are there, at 300 dpi, and are drawn on with these colours."""
    assert (folder / f'{name}.pdf').read_bytes().startswith(b'%PDF-')
    assert b'/Type3' not in (folder / f'{name}.pdf').read_bytes()
    image = cv2.imread(str(folder / f'{name}.png'))[..., ::-1]
    assert image.shape[1] == round(inches * 300)
    assert 5 < image.std() and len(np.unique(image.reshape(-1, 3), axis=0)) > 30
    for colour in colours:
        assert (image == colour).all(-1).sum() > 50


def overlap(one, other):
    """The overlap coefficient by a histogram of 200 bins over the central 99% of both, and a bin on each side."""
    low = min(np.quantile(part.astype(np.float32), 0.005) for part in (one, other))
    high = max(np.quantile(part.astype(np.float32), 0.995) for part in (one, other))
    edges = np.concatenate([[-np.inf], np.linspace(low, high, 201), [np.inf]])
    counts = [np.diff(np.searchsorted(np.sort(part), edges)) / part.size for part in (one, other)]
    return np.minimum(*counts).sum()


# ------------------------------------------------------- figures -----------------------------------------------------


def test_figure2_by_the_real_command(sample, tmp_path):
    done = command(sample, 'figure2_discriminator_dcd', '-opt', CONFIGS / 'figure2_demo.yml', '-o', tmp_path / 'out')
    assert (done.returncode, 'Traceback' in done.stderr) == (0, False), done.stderr
    check_figure(tmp_path / 'out', 'figure2', 3.5, [BLUE, VERMILLION])
    content = json.loads((tmp_path / 'out/figure2.json').read_text())
    flat = {}
    for run, found in zip(('distill', 'no_teacher'), content['runs'], strict=True):
        images = {name: sample.logits(run, run, name) for name in ('chelsea', 'motorcycle')}
        flat[run] = values = np.concatenate([image.ravel() for image in images.values()])
        assert found['values'] == values.size == 2 * 320 * 416
        assert found['mean'] == pytest.approx(values.mean(), abs=1e-6)
        assert found['std'] == pytest.approx(values.std(), rel=1e-4)
        assert found['median'] == pytest.approx(np.median(values), abs=1e-6)
        assert found['called_real'] == pytest.approx((values > 0).mean(), abs=1e-3)
        for name, image in images.items():
            assert found['image_means'][f'{name}.png'] == pytest.approx(image.mean(), abs=1e-6)
    assert content['overlaps'][0]['overlap'] == pytest.approx(overlap(*flat.values()), abs=2e-3)
    rows = read_csv(tmp_path / 'out/figure2.csv')
    assert [row['Run'] for row in rows] == ['SDAKD student', 'student without teacher']
    assert float(rows[0]['Mean']) == pytest.approx(flat['distill'].mean(), rel=6e-3)


def test_figure3_shows_the_outputs_on_one_image(sample, call, tmp_path):
    call('figure3_discriminators', '-opt', CONFIGS / 'figure3_demo.yml', '-o', tmp_path)
    check_figure(tmp_path, 'figure3', 7.16, [BLUE, VERMILLION])
    row = json.loads((tmp_path / 'figure3.json').read_text())['rows'][0]
    maps = [sample.logits(judge, 'distill', 'chelsea') for judge in ('distill', 'no_teacher')]
    for found, values in zip(row['discriminators'], maps, strict=True):
        assert found['mean'] == pytest.approx(values.mean(), abs=1e-6)
        assert found['p95'] == pytest.approx(np.quantile(values, 0.95), abs=1e-5)
    assert row['overlaps'][0]['overlap'] == pytest.approx(overlap(*(m.ravel() for m in maps)), abs=2e-3)


def test_figure3_takes_rows_of_different_length(call, tmp_path):
    content = config('figure3_demo', log_density=True)
    short = {**content['rows'][0], 'label': 'one judge', 'discriminators': content['rows'][0]['discriminators'][:1]}
    call('figure3_discriminators', '-opt', save(tmp_path / 'a.yml', {**content, 'rows': [*content['rows'], short]}),
         '-o', tmp_path / 'out')  # fmt: skip
    check_figure(tmp_path / 'out', 'figure3', 7.16, [BLUE])


def test_equal_runs_give_equal_files(call, tmp_path):
    for folder in 'ab':
        call('figure3_discriminators', '-opt', CONFIGS / 'figure3_demo.yml', '-o', tmp_path / folder)
    for path in sorted((tmp_path / 'a').iterdir()):
        assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes(), path.name


@pytest.mark.parametrize('shift', [0.0, 1.0, 3.0])
def test_overlap_of_two_normal_distributions(modules, shift):
    """Two unit normal distributions, d apart, overlap by 2 Phi(-d / 2) = erfc(d / sqrt 8)."""
    from discriminators import densities

    rng = np.random.default_rng(0)
    one, other = rng.standard_normal(400_000), rng.standard_normal(400_000) + shift
    found = densities({'one': one, 'other': other})
    assert found.overlap('one', 'other') == pytest.approx(math.erfc(shift / 8**0.5), abs=0.015)
    area = (found.density('one') * np.diff(found.edges)).sum()  # the rest lies outside
    assert area == pytest.approx(np.mean((one >= found.edges[0]) & (one <= found.edges[-1])), abs=1e-9)


def test_few_outputs_get_few_bins_and_are_all_drawn(modules):
    """One bin for every four outputs from 10 to 200, between the smallest and the largest of few outputs."""
    from discriminators import densities

    for count, bins in ((2, 10), (8, 10), (40, 10), (100, 25), (796, 199), (800, 200), (4000, 200)):
        found = densities({'one': np.linspace(0, 1, count), 'other': np.linspace(-0.5, 1, count)})
        assert len(found.edges) == bins + 1, count
        if count < 200:
            assert (found.edges[0], found.edges[-1]) == (-0.5, 1) and found.density('one').sum() > 0
            assert found.shares['one'][[0, -1]].tolist() == [0, 0]
    # ten bins of width 1: the first has (0, 0) and (0), the sixth (5) and (5, 5), the last (10) and (10)
    found = densities({'one': np.array([0, 0, 5, 10.0]), 'other': np.array([0, 5, 5, 10.0])})
    assert found.overlap('one', 'other') == pytest.approx(3 / 4)


def test_discriminator_takes_every_size(sample, modules):
    """The U-Net halves the image three times: what is not a multiple of 8 is padded, which changes nothing far away."""
    from discriminators import open_discriminator

    judge = open_discriminator(str(sample.root / 'demo/experiments/distill/models/net_d_image_latest.pth'), '')
    image = torch.from_numpy(sample.gt['chelsea']).permute(2, 0, 1)[None].float() / 255
    logits = judge(image[..., :315, :413])
    with torch.no_grad():
        whole = sample.discriminators['distill'](image)[0, 0].numpy()
    assert logits.shape == (315, 413)
    np.testing.assert_allclose(logits[:200, :300], whole[:200, :300], atol=1e-5)


def test_discriminator_without_skip_connections_is_told_by_its_option_file(sample, modules, tmp_path):
    from discriminators import open_discriminator

    network = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4, 'skip_connection': False}
    torch.manual_seed(1)
    plain = UNetDiscriminatorSN(3, num_feat=4, skip_connection=False).eval()
    (tmp_path / 'models').mkdir()
    torch.save({'params': plain.state_dict()}, tmp_path / 'models/net_d_1.pth')
    options = {'network_g': {'type': 'SRVGGNetCompact'}, 'network_d': network}
    save(tmp_path / 'run.yml', options)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = plain(image)[0, 0].numpy()
    found = open_discriminator(str(tmp_path / 'models/net_d_1.pth'), '')(image)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_figure4_crops_are_the_networks_outputs(sample, call, tmp_path):
    content = config('figure4_demo')
    (tmp_path / 'made').mkdir()
    for name, image in sample.gt.items():
        cv2.imwrite(str(tmp_path / 'made' / f'{name}.png'), 255 - image[..., ::-1])
    content['models'].append({'label': 'made before', 'images': str(tmp_path / 'made')})
    call('figure4_qualitative', '-opt', save(tmp_path / 'a.yml', content), '-o', tmp_path / 'out')
    check_figure(tmp_path / 'out', 'figure4', 7.16)
    crops = {path.name: cv2.imread(str(path))[..., ::-1] for path in (tmp_path / 'out/figure4_crops').iterdir()}
    assert len(crops) == 2 * 6
    for number, name, (left, top) in ((1, 'chelsea', (110, 60)), (2, 'motorcycle', (300, 190))):
        place = slice(top, top + 96), slice(left, left + 96)
        expected = {'Input': np.kron(sample.lq[name], np.ones((4, 4, 1), np.uint8)), 'Ground_truth': sample.gt[name]}
        expected['made_before'] = 255 - sample.gt[name]
        for label, run in (('Teacher', 'teacher'), ('SDAKD_1_4', 'distill'), ('No_teacher_1_4', 'no_teacher')):
            output = sample.generated(run, name)[0].clamp(0, 1).permute(1, 2, 0).numpy()
            expected[label] = np.round(output * 255).astype(np.uint8)
        for label, whole in expected.items():
            np.testing.assert_array_equal(crops[f'{number}_{name}_{label}.png'], whole[place])


def test_sheet_of_crops(sample, call, tmp_path):
    from basicsr.utils.matlab_functions import imresize

    (tmp_path / 'made').mkdir()
    for name, image in sample.gt.items():
        cv2.imwrite(str(tmp_path / 'made' / f'{name}.png'), 255 - image[..., ::-1])
    data = next(path.parent for path in sample.root.rglob('gt/chelsea.png')).parent
    models = ('bicubic', f'inverted={tmp_path / "made"}')
    flags = ('--rows', 'motorcycle:7,9', 'chelsea', '--crop', '100', '--zoom', '3')
    call('zoo_sheet', '-m', *models, '-d', f'{data}/gt:{data}/lq', '-o', tmp_path / 'new/a.png', *flags)
    sheet = cv2.imread(str(tmp_path / 'new/a.png'))[..., ::-1]
    assert sheet.shape == (20 + 2 * 320, 3 * 304 - 4, 3)
    for number, (name, left, top) in enumerate((('motorcycle', 7, 9), ('chelsea', 158, 110))):  # of 416 x 320
        bicubic = imresize(sample.lq[name][..., ::-1].astype(np.float32) / 255, 4)[..., ::-1].clip(0, 1) * 255
        for column, whole in enumerate((bicubic.round(), 255 - sample.gt[name], sample.gt[name])):
            cell = sheet[20 + 320 * number : 320 * (number + 1), 304 * column : 304 * column + 300]
            expected = np.kron(whole[top : top + 100, left : left + 100], np.ones((3, 3, 1)))
            np.testing.assert_array_equal(cell, expected)
    call('zoo_sheet', '-m', *models, '-d', f'{data}/gt:{data}/lq', '-o', tmp_path / 'b.png')
    assert cv2.imread(str(tmp_path / 'b.png')).shape == (20 + 2 * 340, 3 * 324 - 4, 3)  # two images in the set


@pytest.mark.parametrize(
    ('flags', 'sentence'),
    [
        ('--rows chelse', "--rows: gt has no image 'chelse'; did you mean chelsea"),
        ('--rows chelsea:300,9', r'--rows: a crop of 160 pixels at 300,9 leaves chelsea \(416x320\)'),
        ('--rows chelsea:1', "--rows: write NAME or NAME:LEFT,TOP, not 'chelsea:1'"),
        ('--zoom 0', '--zoom: write a whole number of at least 1, not 0'),
        ('-o sheet.jpg', '-o: the sheet is a PNG'),
    ],
)
def test_mistakes_about_the_sheet(flags, sentence, sample, monkeypatch, tmp_path):
    data = next(path.parent for path in sample.root.rglob('gt/chelsea.png')).parent
    line = ['zoo_sheet', '-m', 'bicubic', '-d', f'gt={data}/gt:{data}/lq', '-o', str(tmp_path / 'new/a.png')]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [*line, *flags.split(' ')])
    monkeypatch.setattr(sys, 'path', [str(SCRIPTS), *sys.path])
    monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
    with pytest.raises(UserError, match=sentence):
        runpy.run_path(str(SCRIPTS / 'zoo_sheet.py'), run_name='__main__')
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------- tables -----------------------------------------------------

# parameters and GMACs of RRDBNet for 64x64 pixels, parameters of its U-Net discriminator
REAL_ESRGAN = {
    '1': (16_697_987, 73.43, 4_376_897),
    '1/2': (4_178_755, 18.39, 1_094_817),
    '1/4': (1_046_819, 4.61, 274_001),
    '1/8': (262_771, 1.16, 68_649),
}


def bench_section(times, size=64):
    """As `sdakd bench` writes it: ``times`` by model, a pair of parameters and milliseconds."""
    runs = [
        {'model': name, 'backend': backend, 'precision': 'fp32', 'median_ms': ms, 'error': None}
        for name, (_, by_backend) in times.items()
        for backend, ms in by_backend.items()
    ]
    models = [{'name': name, 'network': {'type': 'RRDBNet'}, 'parameters': count} for name, (count, _) in times.items()]
    facts = {'device': 'cpu', 'cpu': 'a processor', 'threads': 2, 'torch': '2.13.0', 'size': size}
    return {**facts, 'models': models, 'runs': runs}


def test_cost_table_counts_and_leaves_the_paper_empty(call, tmp_path, capsys):
    call('table_cost', '-opt', CONFIGS / 'table_cost.yml', '-o', tmp_path / 'out')
    rows = read_csv(tmp_path / 'out/table_cost.csv')
    assert [row['Generator'] for row in rows[::4]] == ['Real-ESRGAN', 'realesr-general-x4v3', 'GCFSR']
    for row, millions in zip(rows[8:], (66.67, 24.79, 10.26, 4.60), strict=True):
        assert round(int(row['Parameters'].replace(',', '')) / 1e6, 2) == millions
    for row in rows[:4]:
        parameters, gmacs, discriminator = REAL_ESRGAN[row['Width']]
        assert row['Generator'] == 'Real-ESRGAN'
        assert int(row['Parameters'].replace(',', '')) == parameters
        assert round(float(row['GMACs']), 2) == gmacs
        assert int(row['Discriminator parameters'].replace(',', '')) == discriminator
        assert float(row['Times fewer MACs']) == pytest.approx(73.43 / gmacs, rel=0.01)
    for row in rows:  # what the paper says of them could not be read, and nothing was timed
        assert {value for key, value in row.items() if 'Paper' in key or 'eager' in key} == {''}
    note = 'Paper, speed-up: up to 4.35 (of which network is not known; read in a machine-written summary'
    assert note in (tmp_path / 'out/table_cost.md').read_text() and note in capsys.readouterr().out
    assert (tmp_path / 'out/table_cost.tex').read_text().startswith('\\begin{tabular}')


def test_cost_table_takes_times_from_bench(call, tmp_path):
    times = {
        'whole': (16_697_987, {'eager': 400.0, 'onnxruntime': 300.0}),
        'narrow': (1_046_819, {'eager': 80.0, 'onnxruntime': 25.0}),
        'narrowest': (262_771, {'eager': None}),
    }
    write_section(tmp_path / 'bench', 'bench', bench_section(times))
    timings = [{'label': 'eager'}, {'label': 'ONNX', 'backend': 'onnxruntime'}]
    content = config('table_cost', bench=[str(tmp_path / 'bench')], timings=timings)
    del content['generators'][1:]
    call('table_cost', '-opt', save(tmp_path / 'a.yml', content), '-o', tmp_path / 'out')
    rows = {row['Width']: row for row in read_csv(tmp_path / 'out/table_cost.csv')}
    keys = ('ms, eager', 'Speed-up, eager', 'ms, ONNX', 'Speed-up, ONNX')
    assert [rows['1'][key] for key in keys] == ['400.00', '1.00', '300.00', '1.33']
    assert [rows['1/4'][key] for key in keys] == ['80.00', '5.00', '25.00', '16.00']
    assert [rows[width][key] for width in ('1/2', '1/8') for key in keys] == [''] * 8
    assert 'Measured on a processor, 2 threads, torch 2.13.0.' in (tmp_path / 'out/table_cost.md').read_text()


def evaluate_section(scale, models, low=None):
    scores = [
        {'model': name, 'set': 'DIV2K', 'metric': 'fid', 'reference': 'gt', 'mean': mean, 'n': 100, 'per_image': None}
        for name, mean in models.items()
    ]
    for score in scores:
        score['low'], score['high'] = (None, None) if low is None else (score['mean'] - low, score['mean'] + low)
    return {'scale': scale, 'scores': scores}


def test_fid_table_puts_ours_beside_an_empty_paper(sample, call, tmp_path, capsys):
    write_section(tmp_path / 'x4', 'evaluate', evaluate_section(4, {'teacher': 10.126, 'sdakd_w1-4_s0': 20.0}))
    write_section(tmp_path / 'x2', 'evaluate', evaluate_section(2, {'teacher': 5.5}, low=0.25))
    columns = [{'label': f'FID x{scale}', 'set': 'DIV2K', 'scale': scale, 'metric': 'fid'} for scale in (2, 4)]
    content = config('table_fid', results=[str(tmp_path / 'x4'), str(tmp_path / 'x2')], columns=columns)
    call('table_fid', '-opt', save(tmp_path / 'a.yml', content), '-o', tmp_path / 'out')
    rows = read_csv(tmp_path / 'out/table_fid.csv')
    assert list(rows[0]) == ['Method', 'Width', 'FID x2', 'Paper: FID x2', 'FID x4', 'Paper: FID x4']
    assert list(rows[0].values()) == ['teacher', '1', '5.50 [5.25, 5.75]', '', '10.13', '']
    assert list(rows[2].values()) == ['SDAKD', '1/4', '', '', '20.00', '']
    assert all(row['Paper: FID x2'] == row['Paper: FID x4'] == '' for row in rows) and len(rows) == 13
    assert 'sdakd_w1-4_s0: FID x2' in capsys.readouterr().err  # what is missing is named
    assert 'could not be read' in (tmp_path / 'out/table_fid.md').read_text()


def test_ablation_table(sample, call, tmp_path):
    names = ('sdakd', 'sdakd_no_student_d', 'sdakd_no_stage1', 'sdakd_no_stage2')
    scores = {f'{name}_w1-4_s0': value for name, value in zip(names, (20.0, 25.0, 24.0, 23.0), strict=True)}
    write_section(tmp_path / 'results', 'evaluate', evaluate_section(4, scores))
    content = config('table_ablation', results=[str(tmp_path / 'results')])
    call('table_ablation', '-opt', save(tmp_path / 'a.yml', content), '-o', tmp_path / 'out')
    rows = read_csv(tmp_path / 'out/table_ablation.csv')
    assert [row['FID x4'] for row in rows] == ['20.00', '25.00', '24.00', '23.00', '', '']
    assert {row['Paper: FID x4'] for row in rows} == {''}


def test_miniature_tables_read_what_evaluate_writes(sample, call, tmp_path, monkeypatch):
    from sdakd import cli

    monkeypatch.chdir(sample.root)
    models = ['teacher=sdakd/pretrained/demo_teacher_x4.safetensors']
    models += [f'{name}=demo/experiments/{run}/models/net_g_latest.pth' for name, run in
               (('sdakd', 'distill'), ('no_feature', 'no_teacher'))]  # fmt: skip
    data = [
        '-d',
        'demo/data/held_out/gt:demo/data/held_out/lq',
        '--metrics',
        'psnr',
        '--no_images',
        '-o',
        'results/demo',
    ]
    assert cli.main(['evaluate', '-m', *models, *data]) == 0
    for table, count in (('table_fid', 3), ('table_ablation', 2)):
        call(table, '-opt', CONFIGS / f'{table}_demo.yml', '-o', tmp_path)
        rows = read_csv(tmp_path / f'{table}.csv')
        assert len(rows) == count and all(float(row['PSNR-Y (dB)'].split()[0]) > 5 for row in rows)
        assert {row['NIQE'] for row in rows} == {''}


def test_the_papers_numbers_are_what_could_be_read(modules):
    numbers = yaml.safe_load((SCRIPTS / 'paper.yml').read_text())['numbers']
    assert [(one['table'], one['metric'], one['value']) for one in numbers] == [('cost', 'speed-up', 'up to 4.35')]
    assert 'machine-written' in numbers[0]['source']


def test_a_number_of_the_paper_stands_in_its_cell_only(modules, tmp_path, monkeypatch):
    import published

    entry = {'table': 'fid', 'metric': 'fid', 'value': '7.5', 'source': 'a test', 'generator': 'G', 'method': 'M'}
    monkeypatch.setattr(
        published, 'FILE', save(tmp_path / 'p.yml', {'numbers': [{**entry, 'width': '1/4', 'scale': 4}]})
    )
    table = published.Published('fid')
    cells = itertools.product(
        ('G', 'H'), (published.fraction('1/4', ''), published.fraction(1, '')), ('M', 'N'), (2, 4)
    )
    found = {cell: table.cell('fid', *cell) for cell in cells}
    assert [text for text in found.values() if text] == ['7.5']
    assert found['G', Fraction(1, 4), 'M', 4] == '7.5'
    assert published.Published('ablation').cell('fid', 'G', Fraction(1, 4), 'M', 4) == ''


# ------------------------------------------------------- mistakes ----------------------------------------------------


@pytest.mark.parametrize('script', [*FIGURES.values(), 'table_fid', 'table_ablation', 'table_cost'])
def test_help(script, call, capsys):
    call(script, '--help')
    assert f'python test_scripts/{script}.py -opt test_scripts/configs/' in capsys.readouterr().out


@pytest.mark.parametrize('name', [*FIGURES, 'figure2_gcfsr', 'table_fid', 'table_ablation'])
def test_full_size_files_are_sound_but_for_their_inputs(name, call, tmp_path):
    with pytest.raises(UserError, match='no folder|does not exist|cannot be read|holds no results'):
        script = FIGURES.get(name.removesuffix('_gcfsr'), name)
        call(script, '-opt', CONFIGS / f'{name}.yml', '-o', tmp_path / 'new/out')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('figure*.yml')), ids=lambda path: path.stem)
def test_full_size_files_name_checkpoints_that_their_option_files_write(path):
    found = re.findall(r'experiments/(\w+)/models/net_(\w+)_latest\.pth', path.read_text())
    assert found or 'demo' in path.stem
    for name, player in found:
        if 'demo' in path.stem:
            continue
        (file,) = (ROOT / 'options').rglob(f'{name}.yml')
        options = read_run(file)
        learning = {
            'd_' + key for key, entry in (options.get('discriminators') or {}).items() if entry.get('learns', 1)
        }
        learning |= {block.removeprefix('network_') for block in ('network_g', 'network_d') if options.get(block)}
        assert player in learning, (name, player)


D = 'demo/experiments/distill/models/net_d_image_latest.pth'
G = 'demo/experiments/distill/models/net_g_latest.pth'
LQ, GT = 'demo/data/held_out/lq/chelsea.png', 'demo/data/held_out/gt/chelsea.png'
RUN = {'label': 'a', 'generator': G, 'discriminator': D}
ROW = {'lq': LQ, 'gt': GT, 'crop': [0, 0, 8, 8]}
MISTAKES = [
    ('figure2', {'rnus': []}, "unknown key 'rnus'; did you mean runs"),
    ('figure2', {'inputs': 3}, 'inputs: expected `str`, got `int`, given 3'),
    ('figure2', {'runs': []}, 'runs: the list is empty'),
    ('figure2', {'runs': [RUN, RUN]}, "runs: two entries are called 'a'"),
    ('figure2', {'runs': [{**RUN, 'generator': D}]}, 'holds the discriminator'),
    ('figure2', {'runs': [{**RUN, 'discriminator': G}]}, r'runs\[0\]:discriminator: .*holds SRVGGNetCompact'),
    ('figure2', {'runs': [{**RUN, 'discriminator': 'bad/code.pth'}]}, 'could run code'),
    ('figure2', {'runs': [{**RUN, 'discriminator': 'bad/text.pth'}]}, 'bad/text.pth cannot be read as a weights file'),
    (
        'figure2',
        {'runs': [{**RUN, 'discriminator': 'bad/nan.pth'}]},
        'bad/nan.pth is damaged .*conv9.bias is not',
    ),
    ('figure2', {'runs': [{**RUN, 'discriminator': 'bad/huge.pth'}]}, 'bad/huge.pth: .*outputs that are not finite'),
    ('figure2', {'inputs': 'bad'}, 'inputs: bad/broken.png is damaged or no image'),
    ('figure2', {'inputs': 'nothing'}, 'inputs: nothing is no folder'),
    ('figure2', {'inputs': 'demo/experiments'}, 'inputs: demo/experiments holds only files of other kinds'),
    ('figure2', {'images': 0}, 'images: expected `int` >= 1'),
    ('figure2', {'output': ''}, 'output: no folder is named'),
    ('figure2', {'output': LQ}, f'{LQ} cannot be written to'),
    ('figure4', {'rows': [{**ROW, 'crop': [400, 0, 96, 96]}]}, r'crop: \[400, 0, 96, 96\] leaves the image of 416x320'),
    ('figure4', {'rows': [{**ROW, 'crop': [0, 0, 8]}]}, 'crop: write four whole numbers'),
    ('figure4', {'rows': [{**ROW, 'lq': GT}]}, 'enlarges 4 times, and the ground truth of .* is 1 times'),
    ('figure4', {'rows': [{**ROW, 'gt': LQ, 'lq': GT}]}, 'has 104x80 pixels .* 416x320'),
    ('figure4', {'models': [{'label': 'a'}]}, 'give either weights, a generator, or images'),
    ('figure4', {'models': [{'label': 'Input', 'weights': G}]}, "two entries are called 'Input'"),
    ('figure4', {'models': [{'label': 'a', 'images': 'demo/data/held_out/lq'}]}, '104x80 pixels, not 416x320'),
    ('figure4', {'models': [{'label': 'a', 'images': 'bad'}]}, 'bad holds 0 images called chelsea, not one'),
]


@pytest.fixture(scope='module')
def bad(sample):
    """Files that are not what they should be."""
    folder = sample.root / 'bad'
    folder.mkdir(exist_ok=True)
    (folder / 'broken.png').write_bytes(b'no image')
    (folder / 'text.pth').write_bytes(b'no checkpoint')

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(folder / 'executed'),)

    torch.save({'params': Code()}, folder / 'code.pth')
    state = UNetDiscriminatorSN(3, num_feat=4).state_dict()
    torch.save({'params': {**state, 'conv9.bias': torch.tensor([math.nan])}}, folder / 'nan.pth')
    huge = {key: 1e30 * state[key] for key in ('conv0.weight', 'conv9.weight')}
    torch.save({'params': {**state, **huge}}, folder / 'huge.pth')
    return folder


@pytest.mark.parametrize(('name', 'changes', 'sentence'), MISTAKES)
def test_mistakes_get_a_sentence_and_leave_nothing(name, changes, sentence, call, bad, sample, tmp_path):
    content = config(f'{name}_demo', **{'output': str(tmp_path / 'new/out'), **changes})
    with pytest.raises(UserError, match=sentence) as error:
        call(FIGURES[name], '-opt', save(tmp_path / 'a.yml', content))
    assert '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['a.yml']
    assert not (bad / 'executed').exists()


def test_a_mistake_by_the_real_command(sample, tmp_path):
    file = save(tmp_path / 'a.yml', config('figure3_demo', rows=[]))
    done = command(sample, 'figure3_discriminators', '-opt', file, '-o', tmp_path / 'out')
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == 'Error: rows: the list is empty; name at least one.\n'
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        (None, 'no.yml cannot be read'),
        ('a: [', 'no.yml: broken YAML in line 1'),
        ('a: 1\na: 2', "no.yml: broken YAML in line 2: the key 'a' stands in line 1 already"),
        ('- 1', 'no.yml: this is no option file, it must hold keys and values'),
    ],
)
def test_files_that_are_no_configuration(text, sentence, call, tmp_path):
    if text is not None:
        (tmp_path / 'no.yml').write_text(text)
    with pytest.raises(UserError, match=sentence):
        call('table_cost', '-opt', tmp_path / 'no.yml')


def test_tables_refuse_what_they_cannot_tell(call, tmp_path):
    def refused(sentence, table='table_fid', **changes):
        file = save(tmp_path / 'a.yml', config(table, **{'results': [str(tmp_path / 'one')], **changes}))
        with pytest.raises(UserError, match=sentence):
            call(table, '-opt', file, '-o', tmp_path / 'out')
        assert not (tmp_path / 'out').exists()

    refused('one/results.json holds no results of evaluate')
    write_section(tmp_path / 'one', 'evaluate', {'scale': 4})
    refused('one/results.json is damaged')
    write_section(tmp_path / 'one', 'evaluate', evaluate_section(4, {'teacher': 1.0}))
    write_section(tmp_path / 'two', 'evaluate', evaluate_section(4, {'teacher': 2.0}))
    both = [str(tmp_path / 'one'), str(tmp_path / 'two')]
    refused('both have fid of teacher on DIV2K x4, and differ', results=both)
    refused('it holds teacher .fid against gt, DIV2K x4.', rows=[{'method': 'a', 'width': 1, 'model': 'taecher'}])
    refused(
        "width: write a width such as 1, 1/2 or 1/4, not 'wide'", rows=[{'method': 'a', 'width': 'wide', 'model': 'b'}]
    )

    def cost(sentence, **changes):
        with pytest.raises(UserError, match=sentence):
            call(
                'table_cost', '-opt', save(tmp_path / 'a.yml', config('table_cost', **changes)), '-o', tmp_path / 'out'
            )
        assert not (tmp_path / 'out').exists()

    cost('one/results.json holds no results of bench', bench=[str(tmp_path / 'one')])
    write_section(tmp_path / 'one', 'bench', bench_section({}, size=128))
    cost('was measured at 128x128 pixels; write size: 128', bench=[str(tmp_path / 'one')])
    cost('does not divide into channels', widths=['1/3'])
    cost('no rule says how to narrow', generators=[{'label': 'a', 'network': {'type': 'ECBSR'}}])
