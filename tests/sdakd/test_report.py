"""`sdakd report`: logs as BasicSR writes them, a page that agrees with results.json, and the page in a real browser."""

import base64
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from sdakd import cli
from sdakd.commands.report import curves, svg
from sdakd.commands.report.pictures import _show, choose_region, in_rows
from sdakd.compat import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STUDENT = 'student <script>window.hacked = 1</script> & "x"'
EVIL = '<img src=x onerror=window.hacked=2>'
MODELS = ('teacher', EVIL, STUDENT)
PICTURES = ('chelsea', 'coffee', 'astronaut', 'rocket', 'chelsea 2', 'coffee 2')


# ------------------------------------------------- a run and its logs ------------------------------------------------

PLAN = {'supervised': 60, 'distillation': 40, 'adversarial': 30}


def values_at(iteration, seed=0):
    """What a run logs at an iteration, by the stage it is in."""
    value = 0.05 / (1 + iteration / 50) + 0.001 * np.cos(7 * iteration + seed)
    logged = {'l_g_pix': value}
    if iteration > 60:
        logged['l_g_feature'] = value / 40
    if iteration > 100:
        logged |= {'l_g_gan': 2 * value, 'l_d_real': 0.7 - value, 'l_d_fake': 0.7 + value, 'out_d_fake': -value}
    return logged


def write_log(folder, time, first, last, seed=0, resumed=0):
    """Writes iterations with BasicSR's own logger, every second one, and this project's mark of the stage."""
    from basicsr.utils.logger import MessageLogger

    from sdakd_models.stages import Plan, Stage, StageMark

    plan = Plan({name: Stage(iters=iters, terms=['pixel'], lr_g=1e-3) for name, iters in PLAN.items()})
    logger = logging.getLogger('basicsr')
    handler = logging.FileHandler(folder / f'train_{folder.name}_{time}.log', 'w')
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s: %(message)s'))
    level, logger.propagate = logger.level, False
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    opt = {'name': folder.name, 'logger': {'print_freq': 2, 'use_tb_logger': False}, 'train': {'total_iter': 130}}
    try:
        write = MessageLogger(opt, resumed)
        logger.info('\nVersion Information: \n\tBasicSR: 1.4.2\n\tPyTorch: 2.13.0+cpu\n\tTorchVision: 0.28.0')
        logger.info(f'Start training from epoch: 0, iter: {resumed}')
        for iteration in range(first, last + 1, 2):
            moment = plan.at(iteration)
            times = {'time': 0.1, 'data_time': 0.01}
            mark = {'stage': StageMark(plan, moment)}
            write({'epoch': 0, 'iter': iteration, 'lrs': [1e-3], **times, **mark, **values_at(iteration, seed)})
            if iteration in (60, 130):
                logger.info(f'Validation held_out\n\t # psnr: {20 + iteration / 100:.4f}\tBest: 20.6000 @ 60 iter\n')
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    """A run that was resumed at 80 after it had gone on to 90."""
    folder = tmp_path_factory.mktemp('experiments') / 'run & <b>'
    (folder / 'models').mkdir(parents=True)
    (folder / 'run.yml').write_text('name: run  # <script>window.hacked = 3</script>\ntrain: {}\n')
    write_log(folder, '20260101_100000', 2, 90, seed=1)
    write_log(folder, '20260101_110000', 82, 130, seed=2, resumed=80)
    return folder


def test_logs_are_read_back(experiment):
    run = curves.read_run(experiment)
    assert run.name == 'run & <b>' and run.options[0] == 'run.yml'
    assert run.versions == {'BasicSR': '1.4.2', 'PyTorch': '2.13.0+cpu', 'TorchVision': '0.28.0'}
    assert [at for at, _ in run.series['l_g_pix']] == list(range(2, 131, 2))
    assert [at for at, _ in run.series['l_d_real']] == list(range(102, 131, 2))
    assert set(run.series) == {'l_g_pix', 'l_g_feature', 'l_g_gan', 'l_d_real', 'l_d_fake', 'out_d_fake'}
    for name, points in run.series.items():
        for at, value in points:  # what came before the resumption stays, what came after it is the later run's
            assert value == pytest.approx(values_at(at, seed=1 if at <= 80 else 2)[name], rel=1e-4, abs=1e-7)
    assert run.validation == {('held_out', 'psnr'): [(60, 20.6), (130, 21.3)]}


def test_shares_in_the_log_of_a_real_run(world):
    """Six iterations, as a user types them: a stage without and one with feature distillation."""
    options = world.options()
    options['train']['stages'] = {
        'supervised': {'iters': 3, 'lr_g': 1e-3, 'terms': ['pixel']},
        'distillation': {'iters': 3, 'lr_g': 1e-3, 'terms': ['pixel', 'feature']},
    }
    options['train'] |= {'share_freq': 1, 'feature_opt': {'type': 'FeatureMapLoss', 'share': 0.3}}
    options['logger']['print_freq'] = 1
    del options['val'], options['datasets']['val'], options['network_d'], options['train']['gan_opt']
    line = [sys.executable, '-m', 'sdakd.cli', 'train', '-opt', world.write(options)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': ROOT}
    subprocess.run(line, cwd=world.root, env=environment, check=True, capture_output=True, timeout=300)
    run = curves.read_run(world.root / 'experiments/run')
    shares = {name: dict(points) for name, points in run.series.items() if name.startswith('share_')}
    assert set(shares) == {'share_pixel', 'share_feature'}
    assert list(shares['share_pixel']) == [1, 2, 3, 4, 5, 6] and list(shares['share_feature']) == [4, 5, 6]
    assert [shares['share_pixel'][at] for at in (1, 2, 3)] == [1, 1, 1]
    for at in (4, 5, 6):
        assert shares['share_pixel'][at] + shares['share_feature'][at] == pytest.approx(1, abs=2e-4)
    assert shares['share_feature'][4] == pytest.approx(0.3, abs=1e-4)  # the median of one batch is its own

    assert cli.main(['report', '-i', str(world.root / 'experiments/run'), '-o', str(world.root / 'page.html')]) == 0
    page = (world.root / 'page.html').read_text()
    assert 'Shares of the gradient of run over iterations' in page and 'part of the student' in page
    assert '>share_feature<' in page and '>weight_feature<' not in page


def test_stages_are_told_from_the_log(experiment):
    stages = curves.read_run(experiment).stages
    found = [(stage.name, stage.first, stage.last) for stage in stages]
    assert found == [('supervised', 1, 60), ('distillation', 61, 100), ('adversarial', 101, 130)]


def test_a_run_without_stages_and_with_a_nan(tmp_path):
    line = '2026-01-01 10:00:00,000 INFO: [run..][epoch:  3, iter:   {}, lr:(1.000e-04,1.000e-05,)] {}l_pix: {} \n'
    eta = '[eta: 1 day, 2:00:00, time (data): 0.1 (0.0)] '
    text = (
        line.format('1,000', eta, '1.5000e-02')
        + line.format('1,100', eta, 'nan')
        + line.format('1,200', '', '-2.5000e-02')
    )
    (tmp_path / 'train_run_20260101_100000.log').write_text(text)
    run = curves.read_run(tmp_path)
    assert run.series == {'l_pix': [(1000, 0.015), (1200, -0.025)]} and run.stages == [] and run.last == 1200


def test_smoothing_is_a_mean_that_stops_at_stages():
    points = [(at, float(at <= 45)) for at in range(1, 91)]
    stages = [curves.Stage('a', 45, first=1), curves.Stage('b', 45, first=46)]
    assert dict(curves.smooth(points, stages)) == pytest.approx(dict(points))  # constant in each stage: none leaks over
    across = dict(curves.smooth(points, []))
    assert across[45] == pytest.approx(4 / 7) and across[1] == 1  # 45 +- 3, of which 42 to 45 are 1


def test_thinning_keeps_the_extremes():
    rng = np.random.default_rng(0)
    points = [(at, float(value)) for at, value in enumerate(rng.standard_normal(5001))]
    thinned = curves.thin(points, 200)
    assert len(thinned) <= 202 and thinned == sorted(thinned) and set(thinned) <= set(points)
    assert {max(points, key=lambda p: p[1]), min(points, key=lambda p: p[1])} <= set(thinned)


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (-3.2, 17), (28.61, 28.99), (1e-5, 2e-5), (12, 130_000)])
def test_ticks(low, high):
    ticks = svg.linear_ticks(low, high)
    assert 3 <= len(ticks) <= 7 and low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9
    assert np.ptp(np.diff(ticks)) < 1e-9 * max(abs(high), 1) and len(set(svg.labels(ticks, False))) == len(ticks)


def test_log_axis():
    axis = svg.Axis(1, 1000, 0, 300, log=True)
    assert [axis(10.0**k) for k in range(4)] == [0, 100, 200, 300] and axis.ticks() == [1, 10, 100, 1000]
    assert svg.log_ticks(4, 60) == [5, 10, 20, 50]


# ------------------------------------------------------ results ------------------------------------------------------


def interval(values):
    values = np.asarray(values, float)
    return {'mean': values.mean(), 'low': values.min(), 'high': values.max(), 'n': len(values)}


@pytest.fixture(scope='module')
def pictures(photographs):
    """Ground truth and what three models made of it: blurred by different amounts, one with a stroke."""
    made = {}
    for name in PICTURES:
        gt = photographs[name.removesuffix(' 2')][..., ::-1].copy()
        if name.endswith('2'):
            gt = np.ascontiguousarray(gt.transpose(1, 0, 2))
        blurred = {model: cv2.GaussianBlur(gt, (0, 0), sigma) for model, sigma in zip(MODELS, (1, 3, 1.5), strict=True)}
        colour = (0, 0, 0) if gt[75, 70:111].mean() > 128 else (255, 255, 255)
        cv2.line(blurred[STUDENT], (70, 75), (110, 75), colour, 9)  # where teacher and student differ most
        made[name] = {'gt': gt, 'lq': cv2.resize(gt, (32, 32), interpolation=cv2.INTER_AREA), **blurred}
    return made


@pytest.fixture(scope='module')
def out(tmp_path_factory, pictures, experiment):
    """A folder as evaluate and bench write it; the first student lies in the experiment."""
    folder = tmp_path_factory.mktemp('out')
    metrics = [
        {'name': 'psnr', 'label': 'PSNR', 'unit': 'dB', 'higher_is_better': True, 'convention': 'all <channels>'},
        {'name': 'niqe', 'label': 'NIQE', 'unit': None, 'higher_is_better': False, 'convention': 'none'},
    ]
    paths, scores, differences, measured = {}, [], [], {}
    for name, images in pictures.items():
        entry = {}
        for number, (key, image) in enumerate(images.items()):
            path = folder / 'images' / f'{name}_{number}.png'
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), image)
            entry[key] = path.relative_to(folder).as_posix()
        paths[name] = {'gt': entry.pop('gt'), 'lq': entry.pop('lq'), 'models': entry}
    for model in MODELS:
        measured[model] = {n: cv2.PSNR(images[model], images['gt']) for n, images in pictures.items()}
        base = {'model': model, 'set': 'Set & 1'}
        scores.append(
            {**base, 'metric': 'psnr', 'reference': 'gt', 'per_image': measured[model]}
            | interval(list(measured[model].values()))
        )
        unknown = dict.fromkeys(('low', 'high', 'per_image', 'reference'))
        scores.append({**base, **unknown, 'metric': 'niqe', 'mean': 5.5, 'n': 6})
    for model in MODELS[1:]:
        values = [measured[model][n] - measured['teacher'][n] for n in PICTURES]
        differences.append(
            {'a': model, 'b': 'teacher', 'set': 'Set & 1', 'metric': 'psnr', 'reference': 'gt'} | interval(values)
        )
    for name in ('a', 'b', 'c'):  # columns that make the tables wider than a phone
        metrics.append({'name': name, 'label': f'Metric {name}', 'higher_is_better': True})
        scores += [{**score, 'metric': name} for score in scores if score['metric'] == 'psnr']
        differences += [{**entry, 'metric': name} for entry in differences if entry['metric'] == 'psnr']
    cost = {'teacher': (16_697_987, 73_430_000_000), STUDENT: (1_050_163, 4_610_000_000), EVIL: (None, None)}
    models = [
        {'name': m, 'source': f'{m}.pth', 'kind': 'network', 'network': {'type': 'RRDBNet', 'num_feat': 64},
         'parameters': cost[m][0], 'macs': cost[m][1], 'sha256': 'ab' * 32, 'metadata': {'note': EVIL}}
        for m in MODELS
    ]  # fmt: skip
    models[2]['source'] = str(experiment / 'models' / 'net_g_130.pth')
    runs = [
        {'model': m, 'backend': backend, 'precision': 'fp32', 'median_ms': ms, 'p10_ms': 0.9 * ms, 'p90_ms': 1.2 * ms,
         'peak_memory_mib': 123.4, 'ratio': 120 / ms, 'psnr': None, 'error': None}
        for m, times in ((MODELS[0], (120.0, 80.0)), (EVIL, (30.0, 15.0)), (STUDENT, (24.0, 10.0)))
        for backend, ms in zip(('eager', 'onnxruntime'), times, strict=True)
    ]  # fmt: skip
    runs.append({'model': STUDENT, 'backend': 'openvino', 'precision': 'fp32', 'error': f'not installed {EVIL}'})
    common = {'version': '0.1.0', 'torch': '2.13.0', 'device': 'cpu', 'date': '2026-11-21', 'teacher': 'teacher'}
    common['models'] = models
    sets = [{'name': 'Set & 1', 'source': 'x', 'images': 6, 'unreadable': [f'{EVIL}.png is damaged']}]
    results = {
        'evaluate': {**common, 'scale': 4, 'seed': 0, 'metrics': metrics, 'scores': scores, 'sets': sets,
                     'differences': differences, 'pictures': {'Set & 1': paths}},
        'bench': {**common, 'cpu': 'a <fast> one', 'threads': 2, 'size': 64, 'rounds': 5, 'runs': runs},
    }  # fmt: skip
    (folder / 'results.json').write_text(json.dumps(results))
    return folder


def make(folder, *inputs, flags=()):
    """Runs the command; the page's text."""
    page = folder / 'report.html'
    assert cli.main(['report', '-i', *map(str, inputs), '-o', str(page), *flags]) == 0
    return page.read_text()


@pytest.fixture(scope='module')
def html(tmp_path_factory, out):
    return make(tmp_path_factory.mktemp('page'), out)


class Page(HTMLParser):
    """Elements with their attributes, cells of tables by row, and the text outside of scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.rows, self.texts, self.inside = [], [], [], []
        self.feed(html)
        self.text = ' '.join(' '.join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ('img', 'meta', 'link', 'input', 'path', 'rect', 'circle', 'wbr'):
            self.inside.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th') and self.rows:
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] in ('script', 'style'):
            return
        self.texts.append(data)
        if self.rows and ('td' in self.inside or 'th' in self.inside):
            self.rows[-1][-1] += data

    def row(self, first, length=0):
        return next(cells for cells in self.rows if cells and cells[0] == first and len(cells) >= length)


def test_page_loads_nothing(html):
    page = Page(html)
    for _, attributes in page.elements:
        for name in ('src', 'href', 'srcset', 'poster', 'action', 'data', 'xlink:href'):
            value = attributes.get(name)
            assert value is None or value.startswith(('data:', '#')), (name, value[:80])
        assert not any(name.startswith('on') for name in attributes)
    style = re.search(r'<style>(.*?)</style>', html, re.S)[1]
    assert 'url(' not in style and '@import' not in style and '@font-face' not in style
    assert not re.search(r'https?://', html)
    policy = next(a['content'] for t, a in page.elements if a.get('http-equiv') == 'Content-Security-Policy')
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_names_are_texts(html):
    page = Page(html)
    scripts = [attributes for tag, attributes in page.elements if tag == 'script']
    assert scripts == [{'type': 'application/json', 'id': 'data'}, {}]
    assert not [a for tag, a in page.elements if tag == 'img' and a.get('src') == 'x']
    assert STUDENT in page.text and EVIL in page.text and 'run & <b>' in page.text and 'a <fast> one' in page.text
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
    assert data['pair'] == ['teacher', STUDENT]
    assert next(a for t, a in page.elements if t == 'html')['lang'] == 'en'
    assert all(a.get('aria-label') for t, a in page.elements if t == 'svg' and a.get('role') == 'img')
    assert all(a.get('alt') for t, a in page.elements if t == 'img' and 'src' in a)


def test_numbers_agree_with_results(html, out):
    page, results = Page(html), json.loads((out / 'results.json').read_text())
    for score in results['evaluate']['scores']:
        if score['metric'] == 'psnr':
            cell = page.row(score['model'], 6)[1]
            assert cell == f'{score["mean"]:.2f}{score["low"]:.2f} to {score["high"]:.2f}'
    for entry in results['evaluate']['differences']:
        cell = page.row(f'{entry["a"]} \u2212 teacher')[1].replace('\u2212', '-')
        word = 'worse' if entry['high'] < 0 else 'not measurably different'
        assert cell.startswith(f'{entry["mean"]:+.2f}') and word in cell
        assert cell.endswith(f'{entry["low"]:+.2f} to {entry["high"]:+.2f}')
    timed = [cells for cells in page.rows if cells and cells[0] == 'onnxruntime fp32']
    assert [cells[1] for cells in timed] == ['80.0', '15.0', '10.0']
    assert [cells[3] for cells in timed] == ['1.5\u00d7', '8.0\u00d7', '12.0\u00d7']
    assert 'openvino fp32' in page.text and 'not installed' in page.text and 'is damaged' in page.text
    assert 'adversarial : iterations 101 to 130' in page.text and 'window.hacked = 3' in page.text


def test_page_begins_with_what_the_student_loses_and_gains(html, out):
    """Every number against results.json; the student is the last network."""
    page, results = Page(html), json.loads((out / 'results.json').read_text())
    summary = page.text.partition('What does')[2].partition('Quality Means over')[0]
    psnr = next(d for d in results['evaluate']['differences'] if d['a'] == STUDENT and d['metric'] == 'psnr')
    assert psnr['high'] < 0
    assert summary.startswith(f' {STUDENT} lose against teacher, and what does it gain?')
    for words in (
        f'{STUDENT} loses PSNR ({-psnr["mean"]:.2f} dB worse on Set & 1), Metric a (',
        'It gains speed (5.0 times as fast as teacher, 8.0 times in the fastest runtime of each)',
        'a small size (1/15.9 of the parameters). Without a verdict: NIQE.',
        'Quality on Set & 1, 6 images; small: 95% intervals',
        f'The other models {EVIL} loses',
    ):
        assert words in summary
    means = {s['model']: s['mean'] for s in results['evaluate']['scores'] if s['metric'] == 'psnr'}
    row = page.row('PSNR (dB)\u00a0\u2191')
    assert row[1:3] == [f'{means[name]:.2f}' for name in ('teacher', STUDENT)]
    interval = f'{psnr["low"]:+.2f} to {psnr["high"]:+.2f}'
    assert row[3].replace('\u2212', '-') == f'{psnr["mean"]:+.2f}{interval}'
    for what, cells in {
        'Time in eager fp32, ms': ['120.0', '24.0', '5.0 times as fast'],
        'Time in the fastest runtime of each, ms': ['80.0', '10.0', '8.0 times as fast'],
        'Parameters': ['16,697,987', '1,050,163', '1/15.9'],
        'Weights in float32, MB': ['66.79', '4.20', '1/15.9'],
        'GMACs for 64\u00d764 pixels': ['73.430', '4.610', '1/15.9'],
    }.items():
        assert page.row(what)[1:] == cells
    headings = [cells[0] for cells in page.rows if len(cells) == 1]
    wanted = ['Loses', 'Gains', 'No measurable difference', 'Without an interval, so without a verdict']
    assert headings[:4] == wanted and page.row('Memory at the peak, MiB')[1:] == ['123', '123', '1/1']


def test_student_that_is_named(out, tmp_path):
    page = make(tmp_path, out, flags=['--student', EVIL])
    assert f'What does {EVIL} lose against teacher' in Page(page).text
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert data['pair'] == ['teacher', EVIL]
    for name in ('teacher', 'studnet'):
        words = refused('-i', out, '-o', tmp_path / 'no.html', '--student', name)
        assert f"--student: no row beside the teacher is called '{name}'" in words
    assert not (tmp_path / 'no.html').exists()


def test_few_images_have_no_interval_and_no_mark(out, tmp_path):
    """Results of five images, written when there still were intervals of so few."""
    results = split(out, tmp_path / 'few', 'evaluate')
    found = results['evaluate']
    found['sets'][0]['images'] = 5
    for entry in (*found['scores'], *found['differences']):
        entry['n'] = 5
    (tmp_path / 'few/results.json').write_text(json.dumps(results))
    html = make(tmp_path, tmp_path / 'few')
    page = Page(html)
    kinds = {kind for tag, a in page.elements if tag in ('td', 'span') for kind in (a.get('class') or '').split()}
    assert not kinds & {'interval', 'best', 'better', 'worse', 'open', 'sign'}
    assert page.text.count('Set & 1, 5 images: too few for intervals, which need 6') == 3
    psnr = next(d for d in found['differences'] if d['a'] == STUDENT and d['metric'] == 'psnr')
    assert f'Without a verdict: PSNR \u2212{-psnr["mean"]:.2f} dB' in page.text and 'loses' not in page.text
    assert ' to ' not in ''.join(''.join(cells[1:]) for cells in page.rows)


@pytest.mark.parametrize('number', range(1, 30))
def test_no_crop_is_alone_on_a_row(number):
    for most in (5, 3, 4) + (2,) * (number % 2 == 0):
        rows = in_rows(number, most)
        assert sum(rows) == number and max(rows) <= most and max(rows) - min(rows) <= 1
        assert min(rows) >= 2 or number == 1


def decoded(uri):
    data = base64.b64decode(uri.removeprefix('data:image/webp;base64,'))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_pictures_and_crops_are_those_of_the_models(html, pictures):
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
    crops = [a for t, a in Page(html).elements if t == 'img' and a.get('class') == 'crop' and 'src' in a]
    assert [p['title'] for p in data['pictures']] == [f'Set & 1 / {name}' for name in PICTURES]
    for picture in data['pictures']:
        images = pictures[picture['title'].split(' / ')[1]]
        assert [v['name'] for v in picture['versions']] == ['ground truth', 'bicubic input', *MODELS]
        left, top, width, height = (round(share * 128 / 100) for share in picture['region'])
        assert (width, height) == (48, 48) and left <= 75 and left + 48 >= 105 and top <= 70 and top + 48 >= 80
        for version in picture['versions']:
            whole, crop = decoded(version['whole']).astype(float), decoded(crops.pop(0)['src'])
            if version['name'] != 'bicubic input':
                image = images['gt' if version['name'] == 'ground truth' else version['name']]
                assert np.array_equal(crop, image[top : top + 48, left : left + 48])  # lossless
                assert np.abs(whole - image).mean() < 5
            else:
                assert np.abs(whole - images['teacher']).mean() < 8


def test_region_of_most_detail():
    image = np.full((300, 400, 3), 128, np.uint8)
    image[200:260:2, 300:360] = 255
    left, top, width, height = choose_region(image, None)
    assert (width, height) == (60, 60) and abs(left - 300) <= 4 and abs(top - 200) <= 4


def test_max_images_and_budget(out, tmp_path, monkeypatch):
    assert '1 of 6 images shown' in Page(make(tmp_path, out, flags=['--max_images', '1'])).text
    monkeypatch.setattr('sdakd.commands.report.pictures.BUDGET', 1)  # at least one is shown, however large it is
    assert '1 of 6 images shown' in Page(make(tmp_path, out)).text


def test_large_pictures_are_shown_smaller(tmp_path):
    versions = {'teacher': np.zeros((300, 2048, 3), np.uint8), 'student': np.zeros((304, 2050, 3), np.uint8)}
    shown = _show(versions, ('teacher', 'student'), 'set', 'name')
    assert (shown.width, shown.height, shown.reduced) == (2048, 300, True)
    assert decoded(shown.versions[1].whole).shape == (150, 1024, 3)


# -------------------------------------------------- parts and mistakes -----------------------------------------------


def split(out, folder, *sections):
    """A copy of the results with some of the sections, in a folder of its own; the pictures stay where they are."""
    results = {name: json.loads((out / 'results.json').read_text())[name] for name in sections}
    for images in results.get('evaluate', {}).get('pictures', {}).values():
        for picture in images.values():
            picture['gt'], picture['lq'] = str(out / picture['gt']), str(out / picture['lq'])
            picture['models'] = {model: str(out / path) for model, path in picture['models'].items()}
    folder.mkdir()
    (folder / 'results.json').write_text(json.dumps(results))
    return results


def test_sections_from_several_folders(out, tmp_path, html):
    split(out, tmp_path / 'a', 'evaluate')
    split(out, tmp_path / 'b', 'bench')
    whole = make(tmp_path, tmp_path / 'a', tmp_path / 'b')
    assert Page(whole).text == Page(html).text
    ids = {a.get('id') for _, a in Page(make(tmp_path, tmp_path / 'a')).elements}
    assert {'quality', 'compare', 'training'} <= ids and not {'speed', 'trade-off'} & ids
    page = Page(make(tmp_path, tmp_path / 'b'))
    assert not {'quality', 'compare', 'trade-off'} & {a.get('id') for _, a in page.elements}
    assert 'sdakd evaluate -m' in page.text and 'times as fast' in page.text


def test_a_run_alone(experiment, tmp_path):
    page = Page(make(tmp_path, experiment))
    ids = {a.get('id') for _, a in page.elements}
    assert 'training' in ids and not {'quality', 'speed', 'compare'} & ids
    assert 'sdakd evaluate -m' in page.text and 'sdakd bench -m' in page.text
    assert {'l_g_pix', 'l_d_fake', 'out_d_fake', 'held_out'} <= set(page.text.split())


def test_missing_and_damaged_pictures(out, tmp_path, capsys):
    results = split(out, tmp_path / 'a', 'evaluate')
    picture = results['evaluate']['pictures']['Set & 1']['chelsea']
    picture['models']['teacher'] = 'images/none.png'
    (tmp_path / 'a' / 'half.png').write_bytes(b'\x89PNG but no image')
    picture['models'][STUDENT] = 'half.png'
    (tmp_path / 'a' / 'results.json').write_text(json.dumps(results))
    page = Page(make(tmp_path, tmp_path / 'a'))
    for text in (page.text, capsys.readouterr().err):
        assert 'images/none.png cannot be read' in text and 'half.png is damaged' in text
    assert '6 of 6 images shown' in page.text
    for picture in results['evaluate']['pictures']['Set & 1'].values():
        picture.update(gt=None, lq='none.png', models={'teacher': 'none.png'})
    (tmp_path / 'a' / 'results.json').write_text(json.dumps(results))
    page = Page(make(tmp_path, tmp_path / 'a'))
    assert 'compare' not in {a.get('id') for _, a in page.elements} and 'The pictures are missing' in page.text


def refused(*words):
    with pytest.raises(UserError) as caught:
        cli.main(['report', *map(str, words)])
    sentence = str(caught.value)
    assert '\n' not in sentence and sentence.endswith('.')
    return sentence


def test_bad_input(out, tmp_path, experiment):
    page = tmp_path / 'page' / 'report.html'
    (tmp_path / 'empty').mkdir()
    assert 'holds no results.json' in refused('-i', tmp_path / 'empty', '-o', page)
    assert 'is no folder' in refused('-i', out / 'results.json', '-o', page)
    split(out, tmp_path / 'again', 'evaluate')
    assert 'both hold results of evaluate' in refused('-i', out, tmp_path / 'again', '-o', page)
    assert 'ends in .html' in refused('-i', out, '-o', out / 'results.json')
    assert 'ends in .html' in refused('-i', out, '-o', tmp_path)
    assert '--max_images' in refused('-i', out, '-o', page, '--max_images', '0')
    (tmp_path / 'file').write_text('')
    assert 'cannot be written' in refused('-i', out, '-o', tmp_path / 'file' / 'report.html')
    (tmp_path / 'folder.html').mkdir()
    assert 'is a folder' in refused('-i', out, '-o', tmp_path / 'folder.html')
    assert not list(tmp_path.rglob('*.part')) and not page.exists()


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda r: r['evaluate'].pop('metrics'), 'metrics'),
        (lambda r: r['evaluate']['models'][0].update(name=3), 'evaluate.models[0].name'),
        (lambda r: r.update(evaluate=[]), 'evaluate'),
        (lambda r: r['bench']['runs'][0].update(median_ms='fast'), 'bench.runs[0].median_ms'),
    ],
)
def test_damaged_results(out, tmp_path, change, says):
    results = split(out, tmp_path / 'a', 'evaluate', 'bench')
    change(results)
    (tmp_path / 'a' / 'results.json').write_text(json.dumps(results))
    sentence = refused('-i', tmp_path / 'a', '-o', tmp_path / 'r.html')
    assert says in sentence and 'results.json' in sentence and not (tmp_path / 'r.html').exists()


def test_command_line(experiment, tmp_path):
    """A mistake keeps the old page and ends with status 2 and one sentence; the next try replaces it."""
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'results.json').write_text('{"evaluate": {')
    page = tmp_path / 'report.html'
    page.write_text('old')
    command = [sys.executable, '-W', 'ignore', '-m', 'sdakd.cli', 'report', '-o', str(page), '-i']
    failed = subprocess.run([*command, str(tmp_path / 'a')], capture_output=True, text=True)
    assert failed.returncode == 2 and page.read_text() == 'old'
    last = failed.stderr.splitlines()[-1]
    assert last.startswith('Error: ') and 'make it again' in last and 'Traceback' not in failed.stderr
    done = subprocess.run([*command, str(experiment)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f'{page}: run run & <b>')
    assert page.read_text().startswith('<!doctype html>') and sorted(p.name for p in tmp_path.iterdir()) == [
        'a',
        'report.html',
    ]


# ------------------------------------------------------ browser ------------------------------------------------------


@pytest.fixture(scope='module')
def browser(tmp_path_factory, html):
    """The page in a headless Chromium, reloaded with other screens and colours by ``open``."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    names = ('chromium', 'chromium-browser', 'google-chrome')
    binary = next((found for name in names if (found := shutil.which(name))), None)
    driver_file = shutil.which('chromedriver')
    if binary is None or driver_file is None:
        pytest.skip('no chromium with chromedriver here: the page is not looked at in a browser')
    folder = tmp_path_factory.mktemp('browser')
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        'headless=new', 'no-sandbox', 'disable-gpu', 'no-first-run', 'disable-background-networking',
        'disable-component-update', 'disable-sync', f'user-data-dir={folder / "profile"}',
    ):  # fmt: skip
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=Service(driver_file))

    def open_page(width=1280, height=900, scheme='light', html=html):
        (folder / 'report.html').write_text(html)
        metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 500}
        driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
        features = [{'name': 'prefers-color-scheme', 'value': scheme}]
        driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': features})
        driver.get((folder / 'report.html').as_uri())
        return driver

    yield SimpleNamespace(open=open_page)
    driver.quit()


def test_browser_shows_the_page_without_errors(browser):
    driver = browser.open()
    assert driver.get_log('browser') == []
    assert driver.execute_script('return window.hacked') is None
    assert (
        driver.execute_script(
            'return performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:"))'
        )
        == []
    )
    assert driver.execute_script('return [...document.images].every(i => i.complete && i.naturalWidth > 0)')
    assert STUDENT in driver.find_element('id', 'right-tag').text


def test_keyboard_moves_the_line(browser):
    from selenium.webdriver.common.keys import Keys

    driver = browser.open()
    split = driver.find_element('id', 'split')
    clip = 'return getComputedStyle(document.getElementById("over")).clipPath'
    width = driver.execute_script('return document.getElementById("stage").clientWidth')

    def hidden():
        return driver.execute_script(
            'const o = document.getElementById("over").getBoundingClientRect(), l = document.getElementById("line")'
            '.getBoundingClientRect(); return (l.left + l.right) / 2 - o.left'
        )

    before = driver.execute_script(clip)
    assert hidden() == pytest.approx(width / 2, abs=2)
    for _ in range(20):
        split.send_keys(Keys.ARROW_LEFT)
    assert split.get_attribute('value') == '30' and '30% teacher' in split.get_attribute('aria-valuetext')
    assert driver.execute_script(clip) != before and '70%' in driver.execute_script(clip)
    assert hidden() == pytest.approx(0.3 * width, abs=2)
    split.send_keys(Keys.END)
    assert split.get_attribute('value') == '100' and hidden() == pytest.approx(width, abs=2)


def test_tab_reaches_the_controls_and_shows_where(browser):
    from selenium.webdriver.common.keys import Keys

    driver = browser.open()
    reached = []
    for _ in range(60):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        element = driver.switch_to.active_element
        if element.tag_name == 'body':
            break
        mark = 'knob' if element.get_attribute('id') == 'split' else None
        style = driver.execute_script(
            'const s = getComputedStyle(arguments[1] ? document.getElementById(arguments[1]) : arguments[0]);'
            'return [s.outlineStyle, parseFloat(s.outlineWidth)]', element, mark
        )  # fmt: skip
        assert style[0] != 'none' and style[1] >= 2, element.get_attribute('outerHTML')[:100]
        reached.append(element.get_attribute('id') or element.tag_name)
    controls = [name for name in reached if name in ('metric', 'image', 'left', 'right', 'split')]
    assert controls == ['metric', 'image', 'left', 'right', 'split']
    assert reached[0] == 'a' and 'summary' in reached


def test_selects_change_what_is_shown(browser, pictures):
    from selenium.webdriver.support.ui import Select

    driver = browser.open()
    read = """
        const image = document.getElementById(arguments[0]), done = arguments[1];
        image.decode().then(() => {
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            done([...context.getImageData(0, 0, canvas.width, canvas.height).data]);
        });"""

    def pixels(name):
        values = np.array(driver.execute_async_script(read, name), np.float64).reshape(128, 128, 4)
        return values[..., 2::-1]  # BGR

    shown = {'left': 'over', 'right': 'under'}
    for image in PICTURES[:2]:
        Select(driver.find_element('id', 'image')).select_by_visible_text(f'Set & 1 / {image}')
        for side, model in (('left', 'ground truth'), ('right', EVIL), ('left', 'teacher')):
            Select(driver.find_element('id', side)).select_by_visible_text(model)
            image_of = pictures[image]['gt' if model == 'ground truth' else model]
            assert np.abs(pixels(shown[side]) - image_of).mean() < 6
            assert model in driver.find_element('id', f'{side}-tag').text
            assert model in driver.find_element('id', shown[side]).get_attribute('alt')
    select = Select(driver.find_element('id', 'metric'))
    select.select_by_visible_text('NIQE on Set & 1')
    assert ['NIQE' in f.text for f in driver.find_elements('css selector', 'figure.trade-off') if f.is_displayed()] == [
        True
    ]


def test_rows_of_crops_in_the_browser(browser, out, tmp_path):
    """Images in two to eight versions, on a wide screen and on phones: all crops of one size, none alone on a row."""
    results = split(out, tmp_path / 'a', 'evaluate')
    found = results['evaluate']
    (images,) = found['pictures'].values()
    base = found['models'][-1]
    found['models'] += [{**base, 'name': f'further {number}'} for number in range(3)]
    for number, picture in enumerate(images.values()):
        file, picture['lq'] = picture['models']['teacher'], None
        picture['models'] = {model['name']: file for model in found['models'][: number + 1]}
    (tmp_path / 'a/results.json').write_text(json.dumps(results))
    html = make(tmp_path, tmp_path / 'a')
    tops = """return [...document.querySelectorAll('.crops')].map(list => [...list.children].map(item => {
        const box = item.querySelector('img').getBoundingClientRect();
        return [Math.round(box.top), Math.round(box.width)];
    }));"""
    for width in (1280, 700, 375, 320):
        driver = browser.open(width, 812, html=html)
        shown = driver.execute_script(tops)
        assert [len(crops) for crops in shown] == [2, 3, 4, 5, 6, 7]
        for crops in shown:
            rows = [top for top, _ in crops]
            assert min(rows.count(top) for top in rows) >= 2, (width, rows)
            assert max(size for _, size in crops) - min(size for _, size in crops) <= 1
            assert min(size for _, size in crops) >= 80


def test_phone_has_no_sideways_scrolling(browser):
    driver = browser.open(375, 812)
    widths = driver.execute_script('return [document.documentElement.scrollWidth, innerWidth]')
    assert widths[0] <= widths[1] == 375
    sizes = driver.execute_script("""
        const texts = [...document.querySelectorAll('svg.narrow text')].filter(t => t.getClientRects().length);
        return texts.map(t => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getScreenCTM().a);""")
    assert sizes and min(sizes) >= 11


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read(browser, scheme):
    """WCAG 2.1's contrast, from the computed colours of every element that has text of its own: 4.5 at least."""
    driver = browser.open(scheme=scheme)
    driver.execute_script('document.querySelectorAll("details").forEach(d => d.open = true)')
    found = driver.execute_script("""
        const result = [];
        for (const e of document.querySelectorAll('body *')) {
            const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
            if (!own || !e.getClientRects().length || ['SCRIPT', 'TITLE', 'title'].includes(e.tagName)) continue;
            let b = e;
            while (b && /, 0\\)|transparent/.test(getComputedStyle(b).backgroundColor)) b = b.parentElement;
            const style = getComputedStyle(e);
            const colour = e.ownerSVGElement ? style.fill : style.color;
            const behind = getComputedStyle(b || document.body).backgroundColor;
            result.push([colour, behind, e.tagName + ' ' + e.textContent.slice(0, 40)]);
        }
        return result;""")

    def luminance(colour):
        rgb = [int(v) / 255 for v in re.fullmatch(r'rgb\((\d+), (\d+), (\d+)\)', colour).groups()]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert len(found) > 100
    for colour, background, text in found:
        dark, bright = sorted((luminance(colour), luminance(background)))
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (text, colour, background)
    page = driver.execute_script('return getComputedStyle(document.body).backgroundColor')
    assert (luminance(page) < 0.05) == (scheme == 'dark')


# ---------------------------------------------------- a comparison --------------------------------------------------

METHODS = {'base': (28.0, 28.2, 28.1), 'own & <b>': (28.6, 28.7, 28.9)}  # PSNR by seed


@pytest.fixture(scope='module')
def compared(tmp_path_factory, pictures, experiment):
    """A folder as compare writes it: two methods, one width, three seeds, of which the first has a log."""
    folder = tmp_path_factory.mktemp('compared')
    cells = [(f'm{m}_s{seed}', row, seed) for m, row in enumerate(METHODS) for seed in range(3)]
    names = ['bicubic', 'teacher', *(name for name, _, _ in cells)]
    paths = {}
    for image, versions in pictures.items():
        models = {}
        for number, name in enumerate(names):
            path = folder / f'images/{name}/{image}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), versions[MODELS[number % 3]])
            models[name] = path.relative_to(folder).as_posix()
        cv2.imwrite(str(folder / f'images/{image}.png'), versions['gt'])
        paths[image] = {'gt': f'images/{image}.png', 'models': models}
    models = [{'name': 'bicubic', 'kind': 'bicubic'}]
    models += [{'name': name, 'source': f'{name}.pth', 'parameters': 1000, 'macs': 10**9} for name in names[1:]]
    models[2]['source'] = f'm0_s0={folder / "experiments/m0_s0/models/net_g_latest.pth"}'
    shutil.copytree(experiment, folder / 'experiments/m0_s0')
    log = next((folder / 'experiments/m0_s0').glob('train_*100000.log'))
    log.write_text(log.read_text().replace('l_g_feature:', 'share_feature: 3.0000e-01 l_g_feature:'))
    means = {'bicubic': 27.0, 'teacher': 29.5} | {name: METHODS[row][seed] for name, row, seed in cells}
    common = {'set': 'Set & 1', 'metric': 'psnr', 'reference': 'gt'}
    evaluate = {
        'models': models, 'sets': [{'name': 'Set & 1', 'images': 6}], 'scale': 4, 'teacher': 'teacher',
        'metrics': [{'name': 'psnr', 'label': 'PSNR', 'unit': 'dB', 'higher_is_better': True}],
        'scores': [{'model': name, 'mean': mean, 'n': 6, **common} for name, mean in means.items()],
        'pictures': {'Set & 1': paths},
    }  # fmt: skip
    values = {row: {str(seed): value for seed, value in enumerate(by_seed)} for row, by_seed in METHODS.items()}
    scores = [
        {'row': row, 'width': '1/4', 'mean': sum(found.values()) / 3, 'sd': 0.1, 'values': found, **common}
        for row, found in values.items()
    ]
    own = 'own & <b>'
    difference = {'a': own, 'b': 'base', 'width': '1/4', 'mean': 0.63, 'sd': 0.1, 'low': 0.31, 'high': 0.95, **common}
    compare = {
        'verdict': 'Verdict by PSNR: better than base: own & <b>.', 'reference': 'base',
        'primary': {'metric': 'psnr', 'against': 'gt'}, 'notes': ['Equal: <i>all</i>.'],
        'gates': [{'name': 'teacher', 'open': True, 'text': 'It is <worth> it.'},
                  {'name': 'heard', 'open': False, 'text': 'No.'}, {'name': 'placebo', 'open': None, 'text': 'None.'}],
        'cells': [{'name': n, 'row': row, 'width': '1/4', 'seed': seed, 'factor': 3.0} for n, row, seed in cells]
        + [{'name': 'trial', 'row': 'base', 'width': '1/4', 'seed': 0, 'factor': 1.0}],
        'scores': scores, 'differences': [difference | {'values': {str(s): 0.6 for s in range(3)}}],
        'costs': [{'row': row, 'width': '1/4', 'iterations': 3500, 'seconds': 120, 'factor': 3.0} for row in METHODS],
        'latency': {'teacher': {'median_ms': 40, 'p10_ms': 38, 'p90_ms': 44},
                    '1/4': {'median_ms': 5, 'p10_ms': 4.5, 'p90_ms': 6}},
        'timed': 'eager fp32',
    }  # fmt: skip
    (folder / 'results.json').write_text(json.dumps({'evaluate': evaluate, 'compare': compare}))
    return folder


@pytest.fixture(scope='module')
def comparison_page(tmp_path_factory, compared):
    return make(tmp_path_factory.mktemp('comparison'), compared, flags=('--student', 'm1_s0'))


def test_a_comparison_begins_with_its_verdict_and_gates(comparison_page):
    page = Page(comparison_page)
    order = ['Verdict by PSNR: better than base: own & <b>.', 'teacher ✓ holds It is <worth> it.', 'heard ✗ fails']
    order += ['placebo – not looked at', 'Means over seeds', 'Differences to base', 'Ringed, on the line']
    order += ['The square in which', 'Pixel loss of every method', 'Equal: <i>all</i>.']
    places = [page.text.find(text) for text in order]
    assert -1 not in places and places == sorted(places), places
    assert 'base and own & <b> compared' in page.text and 'What does' not in page.text


def test_a_comparison_shows_means_over_seeds_and_one_student_of_every_method(comparison_page, compared):
    page = Page(comparison_page)
    rows = [cells for cells in page.rows if cells and cells[0] in ('bicubic', 'teacher', *METHODS)]
    assert rows[:4] == [
        ['bicubic', '27.00'],
        ['teacher', '29.50'],
        ['base', '28.10± 0.10'],
        ['own & <b>', '28.73± 0.10'],
    ]
    assert rows[4] == ['own & <b>', '+0.63 ▲ better+0.31 to +0.95']
    assert rows[6] == ['own & <b>', '×3', '3,500', '2.0', '1,000', '1.000', '5.00']
    crops = [a['alt'] for tag, a in page.elements if tag == 'img' and a.get('alt', '').startswith('Crop of')]
    versions = ['ground truth', 'bicubic', 'teacher', 'base', 'own & <b>']
    assert crops == [f'Crop of Set & 1 / {image}: {name}' for image in PICTURES for name in versions]
    data = json.loads(re.search(r'id="data">(.*?)</script>', comparison_page, re.S)[1])
    assert data['pair'] == ['teacher', 'own & <b>']
    assert 'm1_s1' not in comparison_page and 'Pixel loss of every method' in page.text
    assert 'base: feature' in page.text  # its share of the gradient
    policy = next(a['content'] for t, a in page.elements if a.get('http-equiv') == 'Content-Security-Policy')
    assert "default-src 'none'" in policy and not re.search(r'https?://', comparison_page)


def test_a_method_whose_first_seed_broke_is_shown_with_another(tmp_path, compared):
    """Its student of seed 0 was never measured; pictures, parameters and curves are those of seed 1, and say so."""
    folder = tmp_path / 'broken'
    shutil.copytree(compared, folder)
    shutil.copytree(folder / 'experiments/m0_s0', folder / 'experiments/m1_s1')
    content = json.loads((folder / 'results.json').read_text())
    evaluate, found = content['evaluate'], content['compare']
    for cell in found['cells']:
        cell['state'] = 'broken' if cell['name'] == 'm1_s0' else 'done'
    found['latency'] = {}  # costs are operations
    for key, name in (('models', 'name'), ('scores', 'model')):
        evaluate[key] = [entry for entry in evaluate[key] if entry[name] != 'm1_s0']
    for model in evaluate['models']:
        if model['name'] == 'teacher':
            model['macs'] *= 8
        if model['name'] == 'm1_s1':
            model['source'] = f'm1_s1={folder / "experiments/m1_s1/models/net_g_latest.pth"}'
    for picture in evaluate['pictures']['Set & 1'].values():
        del picture['models']['m1_s0']
    (folder / 'results.json').write_text(json.dumps(content))
    page = Page(make(tmp_path, folder, flags=('--student', 'm1_s2')))
    crops = [a['alt'] for tag, a in page.elements if tag == 'img' and a.get('alt', '').startswith('Crop of')]
    assert sum(crop.endswith(': own & <b> (seed 1)') for crop in crops) == len(PICTURES)
    assert sum(crop.endswith(': base') for crop in crops) == len(PICTURES) and len(crops) == 5 * len(PICTURES)
    rows = [cells for cells in page.rows if cells and cells[0] == 'own & <b>']
    assert rows[0] == ['own & <b>', '28.73± 0.10'] and rows[2][4:6] == ['1,000', '1.000']  # means are over seeds
    assert 'own & <b> (seed 1): feature' in page.text
    assert page.text.count('seed 0, unless another one stands beside the name') == 2
    (label,) = {a['aria-label'] for t, a in page.elements if t == 'svg' and 'Pareto' in a.get('aria-label', '')}
    assert label.endswith('on the Pareto front: own & <b> and teacher')


def test_pareto_front_is_what_nothing_beats():
    from sdakd.commands.report.front import Point, _dodge, pareto

    generator = np.random.default_rng(0)
    points = [Point(str(n), x, y) for n, (x, y) in enumerate(generator.integers(0, 12, (60, 2)).tolist())]
    for higher in (True, False):
        sign = 1 if higher else -1
        wanted = {
            p.name
            for p in points
            if not any(q.x <= p.x and sign * q.y >= sign * p.y and (q.x, q.y) != (p.x, p.y) for q in points)
        }
        found = pareto(points, higher)
        assert {p.name for p in found} == wanted and [p.x for p in found] == sorted(p.x for p in found)
    places = _dodge([20, 21, 22, 90, 99, 100], 10, 100)
    assert all(b - a >= 17 for a, b in zip(places, places[1:], strict=False)) and places[0] >= 10 and places[-1] <= 100


def test_front_of_a_comparison(comparison_page):
    page = Page(comparison_page)
    (label,) = {a['aria-label'] for t, a in page.elements if t == 'svg' and 'Pareto' in a.get('aria-label', '')}
    assert label == 'PSNR on Set & 1 against latency; on the Pareto front: own & <b> and teacher'
    assert sum(a.get('class') == 'ring' for t, a in page.elements if t == 'circle') == 2 * 2  # wide and narrow


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_comparison_in_the_browser(browser, comparison_page, scheme):
    driver = browser.open(375, 812, scheme, html=comparison_page)
    assert driver.get_log('browser') == []
    widths = driver.execute_script('return [document.documentElement.scrollWidth, innerWidth]')
    assert widths[0] <= widths[1] == 375
    assert driver.find_element('id', 'right-tag').text == 'own & <b>'
    shown = 'return [document.getElementById("right-crop").src, document.getElementById("right-crop").alt]'
    for index, name in enumerate(('ground truth', 'bicubic', 'teacher', 'base', 'own & <b>')):
        driver.execute_script(
            'const s = document.getElementById("right"); s.value = arguments[0]; s.dispatchEvent(new Event("change"))',
            index,
        )
        source, text = driver.execute_script(shown)
        image = driver.find_elements('css selector', '.grid-of-crops tbody tr:first-child img')[index]
        assert source == image.get_attribute('src') and text.endswith(f': {name}')
