"""`sdakd compare`: cells equal but for their method, stopped and continued; tables over seeds; every mistake."""

import copy
import itertools
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from sdakd import cli
from sdakd.compat import UserError
from sdakd_models.reader import read_run

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / 'options/compare/smoke.yml'
COMMAND = [sys.executable, '-m', 'sdakd.cli', 'compare']
HR = 'datasets/smoke/{}/HR'
FIRST = re.compile('first_stage_[0-9a-f]{6}')


def compare(*arguments):
    return cli.main(['compare', *map(str, arguments)])


def shipped():
    return yaml.safe_load(SMOKE.read_text())


def smoke():
    """The same on the images and the teacher of ``ground``."""
    data = {part: {'gt': HR.format(part), 'lq': f'datasets/smoke/{part}/LRx4'} for part in ('train', 'validation')}
    data['test'] = {'smoke': HR.format('test')}
    return {**shipped(), 'teacher': 'datasets/smoke/teacher.pth', 'data': data}


def write(folder, options, name='compare.yml'):
    path = folder / name
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return path


@pytest.fixture(scope='module')
def ground(tmp_path_factory, photographs):
    """The folder that the smoke comparison's relative paths are meant for."""
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    from sdakd.commands.prepare.synthesis import downscale

    root = tmp_path_factory.mktemp('compare')
    smoke = root / 'datasets/smoke'
    for part, names in {'train': ('astronaut', 'coffee'), 'validation': ('chelsea',), 'test': ('rocket',)}.items():
        for side in ('HR', 'LRx4'):
            (smoke / part / side).mkdir(parents=True)
        for name, column in itertools.product(names, (0, 64)):
            gt = np.ascontiguousarray(photographs[name][:64, column : column + 64, ::-1])
            cv2.imwrite(str(smoke / part / f'HR/{name}{column}.png'), gt)
            cv2.imwrite(str(smoke / part / f'LRx4/{name}{column}.png'), downscale(gt, 4))
    torch.manual_seed(1)
    torch.save({'params': SRVGGNetCompact(num_feat=8, num_conv=4).state_dict()}, smoke / 'teacher.pth')
    return root


@pytest.fixture
def here(ground, monkeypatch):
    monkeypatch.chdir(ground)
    return ground


def records(output):
    found = {}
    for path in (output / 'cells').glob('*.json'):
        found[path.stem] = json.loads(path.read_text())
    return found


@pytest.fixture(scope='module')
def finished(ground):
    """The smoke comparison, killed after its first cell and given again; with what was there in between."""
    from sdakd.lock import alone_in

    output = ground / 'OUT'
    command = [*COMMAND, '-opt', str(SMOKE), '-o', 'OUT', '--jobs', '2']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    first = subprocess.Popen(command, cwd=ground, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 200
    while not {'done', 'begun'} <= {record['state'] for record in records(output).values()}:
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0].decode()
        time.sleep(0.05)
    with pytest.raises(UserError, match='another command works in') as taken, alone_in(output, '-o'):
        pass
    first.send_signal(signal.SIGKILL)
    first.communicate()
    time.sleep(0.5)
    between = records(output)
    kept = {name for name, record in between.items() if record['state'] == 'done'}
    students = {name: (output / f'experiments/{name}/models/net_g_latest.pth').stat().st_mtime_ns for name in kept}
    third = subprocess.run(command, cwd=ground, env=environment, capture_output=True, text=True)
    assert third.returncode == 0, third.stdout + third.stderr
    return output, between, students, str(taken.value), third


def results(output):
    return json.loads((output / 'results.json').read_text())


# ------------------------------------------------ the whole command --------------------------------------------------


def test_a_killed_comparison_goes_on(finished):
    output, between, students, taken, third = finished
    assert taken.startswith('-o: ') and '(process ' in taken
    after = records(output)
    assert len(after) == 7 and all(record['state'] == 'done' for record in after.values())
    assert students and len(students) < 7
    for name, changed in students.items():  # done before the kill: not trained again
        assert after[name] == between[name]
        assert (output / f'experiments/{name}/models/net_g_latest.pth').stat().st_mtime_ns == changed
        assert f'{name}: kept' in third.stderr
    begun = [name for name, record in between.items() if record['state'] == 'begun']
    assert begun and all(after[name]['starts'] == 2 for name in begun)
    assert all(record['seconds'] > 0 and record['peak_mib'] > 50 for record in after.values())
    assert '[7/7] ' in third.stderr


def test_everything_is_written_and_says_what_was_equal(finished):
    output, *_, third = finished
    tables = [f'compare_{name}.{kind}' for name in ('quality', 'teacher', 'differences', 'cost')
              for kind in ('md', 'csv', 'tex')]  # fmt: skip
    for name in (*tables, 'comparison.md', 'quality_training.png', 'quality_training.pdf', 'report.html'):
        assert (output / name).stat().st_size > 100, name
    assert (output / 'quality_training.pdf').read_bytes().startswith(b'%PDF')
    text = (output / 'comparison.md').read_text()
    for words in (
        'Exploratory: 2 seeds',
        'PSNR-Y to the ground truth',
        'supervised 4',
        'batch 2, crop 32',
        'one of 1, 3',
        'Perceptual terms: none',
        'Equal for all methods',
    ):
        assert words in text and words in third.stdout
    for row in ('none_student_d', 'sdakd', 'bicubic', 'teacher', 'sdakd - none_student_d'):
        assert f'| {row} ' in text
    assert not list(output.rglob('*.state')) and not list(output.rglob('net_d_*'))
    page = (output / 'report.html').read_text()
    assert page.index(results(output)['compare']['verdict'].partition(':')[0]) < page.index('id="methods"')
    assert set(results(output)['compare']['latency']) == {'teacher', '1/2'}


def test_weights_are_chosen_on_the_validation_split(finished):
    output = finished[0]
    found = results(output)['compare']
    validation = json.loads((output / 'validation/results.json').read_text())['evaluate']
    assert [s['name'] for s in validation['sets']] == ['validation'] and validation['sets'][0]['images'] == 2
    scores = {s['model']: s['mean'] for s in validation['scores'] if s['reference'] == 'gt'}
    assert len(scores) == len(found['search']) == 3
    assert [t['factor'] for t in found['search'] if t['row'] == 'none_student_d'] == [1]  # it has no weight of its own
    for row in ('sdakd',):
        of_factor = {1: scores[f'{row}_w1-2_s0'], 3: scores[f'{row}_w1-2_s0_x3']}
        best = max(of_factor, key=of_factor.get)
        assert {t['factor']: t['value'] for t in found['search'] if t['row'] == row} == of_factor
        assert {e['factor'] for e in found['costs'] if e['row'] == row} == {best}
        assert len([c for c in found['cells'] if c['row'] == row and c['factor'] == best]) == 2


def test_means_and_differences_against_numpy(finished):
    content = results(finished[0])
    plain, found = content['evaluate'], content['compare']
    cells = {}
    for entry in found['costs']:
        for cell in found['cells']:
            if (cell['row'], cell['width'], cell['factor']) == (entry['row'], entry['width'], entry['factor']):
                cells.setdefault(cell['row'], {})[cell['seed']] = cell['name']
    assert {row: set(seeds) for row, seeds in cells.items()} == {'none_student_d': {0, 1}, 'sdakd': {0, 1}}
    assert len(found['scores']) == 2 * 2 * 2 and len(found['differences']) == 4

    def value(model, entry, key='mean'):
        keys = {key: entry[key] for key in ('set', 'metric', 'reference')} | {'model': model}
        (score,) = (s for s in plain['scores'] if s.items() >= keys.items())
        return score[key]

    for entry in found['scores']:
        values = [value(cells[entry['row']][seed], entry) for seed in (0, 1)]
        assert entry['mean'] == pytest.approx(np.mean(values)) and entry['n'] == 2
        assert entry['sd'] is None and list(entry['values'].values()) == values  # of two seeds there is no spread
    for entry in found['differences']:
        assert (entry['a'], entry['b']) == ('sdakd', 'none_student_d')
        by_seed = [value(cells['sdakd'][s], entry) - value(cells['none_student_d'][s], entry) for s in (0, 1)]
        assert entry['mean'] == pytest.approx(np.mean(by_seed))
        assert list(entry['values'].values()) == pytest.approx(by_seed) and entry['images'] == 2
        assert entry['sd'] is entry['low'] is entry['high'] is None
    text = (finished[0] / 'comparison.md').read_text()
    assert '±' not in text and '[' not in text.partition('| Set ')[2].partition('![')[0]
    assert 'In parentheses: the value of every seed.' in text
    minutes = {e['row']: e['seconds'] for e in found['costs']}
    of_cells = {c['name']: c['seconds'] for c in found['cells']}
    for row, seeds in cells.items():
        assert minutes[row] == pytest.approx(np.mean([of_cells[name] for name in seeds.values()]))


def test_spread_and_interval_of_enough_seeds_and_images():
    """Means over seeds against numpy, the interval over images of these means; neither of two seeds or five images."""
    from types import SimpleNamespace

    from sdakd.commands.compare import summary
    from sdakd.files.intervals import bootstrap_interval

    def tables(seeds, images, key='per_image'):
        rng = np.random.default_rng(images)
        values = {(row, seed): rng.normal(28, 2, images) for row in ('base', 'own') for seed in range(seeds)}
        runs = [
            summary.Cell(SimpleNamespace(name=row), Fraction(1, 2), seed, 1.0, SimpleNamespace(name=f'{row}{seed}'))
            for row, seed in values
        ]
        scores = [
            {'model': f'{row}{seed}', 'set': 'set', 'metric': 'psnr', 'reference': 'gt', 'mean': of.mean(),
             'per_image': None, key: {str(number): value for number, value in enumerate(of)}}
            for (row, seed), of in values.items()
        ]  # fmt: skip
        section = {'scores': scores, 'metrics': [{'name': 'psnr', 'label': 'PSNR'}]}
        found, (difference,) = summary.over_seeds(section, runs, 'base')
        by_image = np.array([values['own', seed] - values['base', seed] for seed in range(seeds)])
        _, (row,) = summary.difference_table(section, [difference])
        return found, difference, by_image, row[-1]

    found, difference, by_image, text = tables(3, 6)
    assert difference['mean'] == pytest.approx(by_image.mean())
    assert difference['sd'] == pytest.approx(by_image.mean(1).std(ddof=1)) and all(entry['sd'] for entry in found)
    assert (difference['low'], difference['high']) == pytest.approx(bootstrap_interval(by_image.mean(0))[1:])
    assert re.fullmatch(r'-?\d\.\d\d ± \d\.\d\d \[.+, .+\]', text)
    assert tables(3, 6, 'pseudo_values')[1] == difference  # of a metric of sets, such as KID
    found, difference, _, text = tables(2, 6)
    assert difference['sd'] is difference['low'] is None and not any(entry['sd'] for entry in found)
    assert re.fullmatch(r'-?\d\.\d\d \(-?\d\.\d\d, -?\d\.\d\d\)', text)
    _, difference, _, text = tables(3, 5)
    assert difference['sd'] and difference['low'] is None and '[' not in text and ' ± ' in text


def test_a_broken_cell_is_reported_and_the_rest_goes_on(finished, here, capsys):
    """A third method whose loss overflows after a while; the others, of which nothing changed, are kept."""
    (here / 'worse_loss.py').write_text(
        'from basicsr.utils.registry import LOSS_REGISTRY\n\n'
        "@LOSS_REGISTRY.register()\nclass OverflowingLoss(LOSS_REGISTRY.get('L1Loss')):\n    calls = 0\n\n"
        '    def forward(self, *images):\n        self.calls += 1\n'
        "        return super().forward(*images) * (float('inf') if self.calls > 6 else 1)\n"
    )
    base = os.path.relpath(ROOT / 'options/methods/sdakd.yml', here)
    own = {'extends': base, 'imports': ['worse_loss'], 'train': {'pixel_opt': {'type': 'OverflowingLoss'}}}
    (here / 'worse.yml').write_text(yaml.safe_dump(own))
    options = shipped()
    options['methods']['worse'] = {'file': 'worse.yml', 'weight': 'train:feature_opt:share'}
    before = records(here / 'OUT')
    with pytest.raises(UserError, match='2 of 10 cells broke .no trial of worse was finished.') as error:
        compare('-opt', write(here, options), '-o', 'OUT', '--jobs', '2')
    assert 'the loss l_g_pix became inf at iteration 7' in str(error.value)
    after = records(here / 'OUT')
    assert {name: after[name] for name in before} == before
    assert {FIRST.sub('first', name): record['state'] for name, record in after.items() if name not in before} == {
        'first_w1-2_s0': 'done',  # of a loss of its own, which has not overflowed yet
        'worse_w1-2_s0': 'broken',
        'worse_w1-2_s0_x3': 'broken',
    }
    text = (here / 'OUT/comparison.md').read_text()
    assert 'Broken: worse_w1-2_s0: ' in text and '| sdakd ' in text
    assert 'Written to OUT' in capsys.readouterr().out


def test_a_method_of_ones_own_extends_and_imports(here, capsys):
    """Its loss lies in the current folder; the training runs in another one."""
    (here / 'my_loss.py').write_text(
        'from basicsr.utils.registry import LOSS_REGISTRY\n\n'
        "@LOSS_REGISTRY.register()\nclass MyComparedLoss(LOSS_REGISTRY.get('L1Loss')):\n    pass\n"
    )
    base = os.path.relpath(ROOT / 'options/methods/l1.yml', here)
    own = {'extends': base, 'imports': ['my_loss'], 'train': {'pixel_opt': {'type': 'MyComparedLoss'}}}
    (here / 'own.yml').write_text(yaml.safe_dump(own))
    options = {**smoke(), 'methods': {'own': {'file': 'own.yml', 'weight': []}}, 'reference': 'own', 'seeds': [0]}
    for length in options['budget']['stages'].values():
        length['iters'] = 1
    assert compare('-opt', write(here, options), '-o', 'OWN') == 0, capsys.readouterr().out
    content = read_run(here / 'OWN/cells/own_w1-2_s0.yml')
    assert content['imports'] == ['my_loss'] and content['train']['pixel_opt'] == {'type': 'MyComparedLoss'}


def test_dry_run_shows_the_matrix_and_writes_nothing(here, capsys):
    before = sorted(here.rglob('*'))
    assert compare('-opt', SMOKE, '-o', 'NEW', '--dry_run') == 0
    lines = FIRST.sub('first', capsys.readouterr().out).splitlines()
    for row, expected in {
        'first': ['1/2', '2', '4'],
        'none_student_d': ['1/2', '2', '8'],
        'sdakd': ['1/2', '3', '8'],
    }.items():
        (line,) = (line.split() for line in lines if line.startswith(f'{row} '))
        assert line[1:4] == expected
    assert any(line.startswith('7 cells, about ') for line in lines)
    assert sorted(here.rglob('*')) == before


def test_the_room_foreseen_is_what_students_take(finished, tmp_path, monkeypatch):
    """Of all cells in a new folder; of none in the one that has them."""
    from sdakd.commands.compare import rehearsal, room
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.data import open_images, set_places
    from sdakd.commands.compare.matrix import Matrix
    from sdakd.commands.compare.rows import read_rows

    monkeypatch.chdir(finished[0].parent)
    config = read_config(str(SMOKE))
    rows = read_rows(config, SMOKE.parent)
    made = [Matrix(config, rows, open_images(config), output) for output in (tmp_path / 'new', finished[0])]
    parsed = rehearsal.check_rows(made[0], tmp_path, real_data=False)
    firsts = {run.name for seed in (0, 1) for run in made[0].first_runs(Fraction(1, 2), seed)}
    names = {name for name in records(finished[0]) if name.startswith(('none_student_d', 'sdakd'))} | firsts
    assert len(names) == 7
    taken = 0
    for path in (path for path in finished[0].glob('experiments/*/models/net_g_*.pth') if path.parts[-3] in names):
        states = torch.load(path, weights_only=True).values()
        taken += sum(value.numel() * value.element_size() for state in states for value in state.values())
    # a bound, which counts every checkpoint that falls due
    assert 0 < taken <= room.needed(made[0], parsed, 1).students <= 1.3 * taken
    # at once: as many as there are, of which each has a seed, a factor or a width of its own
    at_once = [room.needed(made[0], parsed, jobs).running for jobs in (1, 2, 7, 8)]
    assert at_once[1] == 2 * at_once[0] and at_once[1] < at_once[2] == at_once[3] < 7 * at_once[0]
    set_places(made[1].images, finished[0])
    left = room.needed(made[1], parsed, 1)
    assert (left.students, left.running, left.images) == (0, 0, 0)


# ----------------------------------------------------- SLURM ---------------------------------------------------------

SBATCH = """\
#!{python}
import os, shutil, subprocess, sys, pathlib
arguments = sys.argv[1:]
flags = []
while arguments[0].startswith('--'):
    flags.append(arguments.pop(0))
place = pathlib.Path({place!r})
number = len(list(place.glob('job*')))
with open(place / 'calls.txt', 'a') as file:
    file.write(' '.join([*flags, *arguments[1:]]) + '\\n')
if arguments[-1] == os.environ.get('FAIL_AT'):
    sys.exit(1)
script = place / f'job{{number}}'  # SLURM runs a copy from its spool
shutil.copy(arguments.pop(0), script)
last = int(next(flag for flag in flags if flag.startswith('--array=')).rpartition('-')[2])
for task in range(last + 1):
    environment = dict(os.environ, SLURM_JOB_ID=str(number), SLURM_ARRAY_TASK_ID=str(task), SLURM_CPUS_PER_TASK='1')
    del environment['MARK']
    output = next(flag for flag in flags if flag.startswith('--output=')).partition('=')[2].replace('%a', str(task))
    with open(output, 'a') as file:
        subprocess.run(['bash', script, *arguments], cwd='/', env=environment, stdout=file, stderr=file)
print(f'{{number}};cluster')
"""


def test_a_job_file_makes_what_the_command_makes(finished, tmp_path, monkeypatch, capsys):
    """Its tasks really run, one after the other; stopped between two arrays and given again; students to the bit."""
    here = tmp_path
    monkeypatch.chdir(here)
    place = here / 'fake'
    place.mkdir()
    (place / 'sbatch').write_text(SBATCH.format(python=sys.executable, place=str(place)))
    (place / 'sbatch').chmod(stat.S_IRWXU)
    options = {**shipped(), 'reference': 'sdakd'}
    options['methods'] = {'sdakd': options['methods']['sdakd']}
    file = write(here, options)
    assert compare('-opt', file, '-o', 'JOBS', '--slurm', 'jobs.sh') == 0
    assert 'jobs.sh: 8 tasks in 6 arrays' in capsys.readouterr().out and not (here / 'JOBS').exists()
    environment = {**os.environ, 'PATH': f'{place}:{os.environ["PATH"]}', 'MARK': 'here', 'GPUS': '2'}
    environment |= {'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': str(ROOT)}

    def submit(*flags, **more):
        return subprocess.run(
            ['bash', 'jobs.sh', *flags], cwd=here, env=environment | more, capture_output=True, text=True
        )

    stopped = submit(FAIL_AT='trials')
    assert stopped.returncode == 1 and stopped.stdout.splitlines() == [
        'data: job 0, 1 tasks',
        'shared: job 1, 2 tasks',
    ]
    (first,) = (here / 'JOBS/experiments').glob('first_stage_*_w1-2_s1/models/net_g_latest.pth')
    kept = first.stat().st_mtime_ns
    done = submit('--partition=gpu', '--time=1:00:00')
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == kept
    calls = (place / 'calls.txt').read_text().splitlines()[3:]
    assert [call.rpartition(' ')[2] for call in calls] == ['data', 'shared', 'trials', 'search', 'cells', 'tables']
    assert all('--gres=gpu:2 ' in call and '--partition=gpu --time=1:00:00' in call for call in calls)
    assert [re.findall(r'--dependency=afterany:(\d+)', call) for call in calls] == [
        [],
        *([str(n)] for n in range(2, 7)),
    ]
    assert '--array=0-1 ' in calls[1] and '--array=0-0 ' in calls[4]
    logs = {path.name: path.read_text() for path in (here / 'JOBS/slurm').iterdir()}
    assert re.search(r'^search: sdakd [13]$', logs['search_0.log'], re.M)
    assert 'Written to' in logs['tables_0.log'], logs
    students = sorted(path.relative_to(here / 'JOBS') for path in (here / 'JOBS').rglob('net_g_latest.pth'))
    assert len(students) == 5
    for student in students:
        one, other = (torch.load(out / student, weights_only=True) for out in (here / 'JOBS', finished[0]))
        for key in ('params', 'params_ema'):
            assert all(torch.equal(value, other[key][name]) for name, value in one[key].items()), student
    found = [[score for score in results(out)['compare']['scores'] if score['row'] == 'sdakd']
             for out in (here / 'JOBS', finished[0])]  # fmt: skip
    assert found[0] == found[1] and len(found[0]) == 4
    # a part that is asked for too early, or that is none
    (first,) = (here / 'JOBS/experiments').glob('first_stage_*_w1-2_s0')
    shutil.rmtree(first)
    assert compare('-opt', file, '-o', 'JOBS', '--part', 'sdakd_w1-2_s0') == 0  # it is done, and begins with nothing
    shutil.rmtree(here / 'JOBS/experiments/sdakd_w1-2_s0')
    for part, sentence in {
        'sdakd_w1-2_s0': f'begins with {first.name}, which is not done; give --part {first.name}',
        'serach': "the comparison has no part 'serach'; did you mean search",
    }.items():
        with pytest.raises(UserError, match=f'--part: .*{sentence}'):
            compare('-opt', file, '-o', 'JOBS', '--part', part)
    with pytest.raises(UserError, match='starts.*is not there; give --part data first'):
        compare('-opt', file, '-o', 'EMPTY', '--part', 'sdakd_w1-2_s0')
    with pytest.raises(UserError, match='each is a command of its own'):
        compare('-opt', file, '-o', 'EMPTY', '--part', 'data', '--dry_run')


def test_a_done_comparison_does_not_need_its_first_stages(finished, monkeypatch, capsys):
    """One that was removed for its room is not trained again, and nothing is called broken."""
    output = finished[0]
    monkeypatch.chdir(output.parent)
    (first,) = (output / 'experiments').glob('first_stage_*_w1-2_s1')
    before = records(output)
    aside = first.rename(output / 'aside')
    try:
        assert compare('-opt', SMOKE, '-o', output.name) == 0
        assert not first.exists() and records(output) == before
    finally:
        shutil.rmtree(first, ignore_errors=True)
        aside.rename(first)


def test_names_with_spaces_in_a_job_file(matrix, here):
    from sdakd.commands.compare.slurm import write_jobs

    told = write_jobs(here / 'my jobs.sh', here / "my run's file (2).yml", matrix(), {'data': ['data']})
    assert f"`bash '{here}/my jobs.sh'` submits them" in told
    text = (here / 'my jobs.sh').read_text()
    assert '\n#SBATCH --job-name=my_run_s_file_2_\n' in text
    assert "   bash 'my jobs.sh' --partition" in text and "GPUS= bash 'my jobs.sh'" in text
    assert subprocess.run(['bash', '-n', here / 'my jobs.sh']).returncode == 0


def test_the_part_data_sees_to_room_for_the_largest_array(matrix, here, monkeypatch):
    from sdakd.commands.compare import parts

    made, asked = matrix(seeds=[0, 1, 2, 3]), []
    made.output = here
    monkeypatch.setattr(parts, 'prepare', lambda _, jobs: asked.append(jobs))
    parts.run_part(made, parts.DATA, 1)
    assert asked == [6]  # two methods, three further seeds


# ---------------------------------------------------- a single run ----------------------------------------------------


def test_an_interrupted_run_resumes_from_its_checkpoint(shared_world):
    from sdakd.files.runs import Run, key_of, train_all

    options = shared_world.options()
    options['train']['stages'] = {'supervised': {'iters': 400, 'lr_g': 1e-3, 'terms': ['pixel']}}
    options['logger'] = {'print_freq': 5, 'save_checkpoint_freq': 20, 'use_tb_logger': False}
    for key in ('val', 'name'):
        del options[key]
    del options['datasets']['val']
    root = shared_world.root

    def run(changed=options):
        return Run('single', changed, root / 'runs', root, 400, key_of(changed))

    events = []

    def stop(one, event):
        events.append(event)
        if list((one.experiment / 'training_states').glob('*.state')):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all([run()], watch=stop)
    first = run()
    assert first.record.state == 'begun' and not first.done and 0 < first.record.seconds and events[0] == 'begun'
    assert 'done' not in events
    last = max(int(path.stem) for path in (first.experiment / 'training_states').glob('*.state'))
    assert 20 <= last < 400
    train_all([first])
    again = run()
    assert again.done and again.record.starts == 2 and again.record.iteration == 400
    assert again.record.seconds > first.record.seconds * 0.99
    text = again.path('log').read_text()
    assert f'iter: {last}.' in text and text.count('Resuming training') == 1
    events.clear()
    train_all([again], watch=lambda one, event: events.append(event))
    assert events == ['kept']
    assert run({**options, 'manual_seed': 5}).record.starts == 0  # another run: nothing of the old one counts


# --------------------------------------------- equal but for the method ----------------------------------------------


@pytest.fixture
def matrix(here):
    """The matrix of more methods, two widths and a schedule of its own; nothing is trained."""
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.data import open_images
    from sdakd.commands.compare.matrix import Matrix
    from sdakd.commands.compare.rows import read_rows

    def make(**changes):
        options = {**smoke(), **changes}
        config = read_config(str(write(here, options, 'matrix.yml')))
        return Matrix(config, read_rows(config, here), open_images(config), here / 'M')

    return make


METHODS = {
    'l1': {'weight': 'train:pixel_opt:loss_weight'},
    'none_student_d': {'weight': []},
    'none_teacher_d': {'weight': []},
    'sdakd': {'weight': 'train:feature_opt:share'},
    'crd': {'weight': ['train:crd_opt:share', 'train:imitation_opt:loss_weight']},
    'omgd': {'weight': ['train:omgd_opt:ssim_weight', 'train:omgd_opt:channel_weight']},
    'akdg': {'weight': 'discriminators:distillation:gan_opt:share'},
}
ALONE = {'l1'}
MAY_DIFFER = {'network_d', 'discriminators', 'teachers'}


def test_option_files_differ_only_in_the_method(matrix):
    made = matrix(methods=METHODS, widths=['1/2', '1/4'])
    for ratio in (Fraction(1, 2), Fraction(1, 4)):
        files = {row.name: made.options(row, ratio, 1, 1) for row in made.rows}
        base = files['sdakd']
        for row in made.rows:
            name, options = row.name, files[row.name]
            first = made.first_run(row, ratio, 1)
            # of l1, the weight that is searched is that of its first stage
            assert (first is None) == (name in ALONE), name
            may = MAY_DIFFER | ({'path', 'logger'} if first is None else set())
            for key in (options.keys() | base.keys()) - may - {'train'}:
                assert options.get(key) == base.get(key), (name, key)
            assert options['network_g']['num_feat'] == 8 * ratio
            train, wanted = options['train'], base['train']
            shared = ('ema_decay', 'precision', 'optim_g', 'optim_d')
            assert {k for k in train if not k.endswith('_opt')} == {*shared, 'stages', 'share_freq'}
            for key in shared:
                assert train[key] == wanted[key]
            stages = {**(first.options['train']['stages'] if first else {}), **train['stages']}
            for stage, length in smoke()['budget']['stages'].items():
                mine = {k: v for k, v in stages[stage].items() if k != 'terms'}
                assert mine == length, (name, stage)
            assert train['stages']['adversarial']['terms'] == made_terms(name)
        widths = {name: options['network_d']['num_feat'] for name, options in files.items() if 'network_d' in options}
        assert set(widths.values()) <= {8 * ratio, 8}
        assert widths['sdakd'] == widths['none_student_d'] == 8 * ratio


def made_terms(name):
    return read_run(ROOT / f'options/methods/{name}.yml')['train']['stages']['adversarial']['terms']


def test_discriminators_are_as_wide_as_the_method_says(matrix):
    made = matrix(methods=METHODS, widths=['1/4'])
    of = {row.name: made.options(row, Fraction(1, 4), 0, 1) for row in made.rows}
    judges = {
        name: {entry['num_feat'] for entry in [options.get('network_d')] if entry}
        | {entry['network']['num_feat'] for entry in (options.get('discriminators') or {}).values()}
        for name, options in of.items()
    }
    assert judges['none_teacher_d'] == {8} and judges['none_student_d'] == {2} and judges['crd'] == {8}
    assert 2 in judges['akdg'] and not judges['l1']


def test_batches_are_equal_for_all_methods_of_a_seed(matrix):
    """What BasicSR's loader gives, made from two methods' option files as its training loop makes it."""
    from basicsr.data import build_dataset

    from sdakd_data.draws import Drawn, Draws, training_loader

    made = matrix(methods={name: METHODS[name] for name in ('none_student_d', 'sdakd', 'l1')})

    def batches(row, seed):
        random.seed(len(row.name))  # whatever a method has drawn in the main process
        opt = copy.deepcopy(made.options(row, Fraction(1, 2), seed, 1)) | {'num_gpu': 0, 'dist': False}
        options, seed = opt['datasets']['train'], opt['manual_seed']
        options.update(phase='train', scale=4)
        data = build_dataset(options)
        draws = Draws(len(data), options['batch_size_per_gpu'], seed, 1, 6)
        return [(batch['gt_path'], batch['gt']) for batch in training_loader(Drawn(data, seed, ''), draws, opt)]

    base = batches(made.rows[0], 0)
    for row in made.rows[1:]:
        for (names, images), (other_names, other_images) in zip(batches(row, 0), base, strict=True):
            assert names == other_names and torch.equal(images, other_images)
    other = batches(made.rows[0], 1)
    assert [names for names, _ in other] != [names for names, _ in base]
    assert not any(torch.equal(a, b) for (_, a), (_, b) in zip(other, base, strict=True))


def test_students_of_a_seed_start_equal(matrix):
    made = matrix(seeds=[0, 1], widths=['1/2'])
    for seed in (0, 1):
        made.make_start(Fraction(1, 2), seed)
    states = [torch.load(made.start(Fraction(1, 2), seed), weights_only=True)['params'] for seed in (0, 1)]
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])
    firsts = {made.first_run(row, Fraction(1, 2), 0).name: made.first_run(row, Fraction(1, 2), 0) for row in made.rows}
    paths = {made.options(row, Fraction(1, 2), 0, 1)['path']['pretrain_network_g'] for row in made.rows}
    (first,) = firsts.values()
    assert paths == {str(first.result)}
    assert first.options['path']['pretrain_network_g'] == str(made.start(Fraction(1, 2), 0))


def test_a_first_stage_is_shared_by_rows_that_begin_alike(matrix):
    """One run for a seed and width; who begins otherwise trains it alone, and keys follow what cells begin with."""
    ratio = Fraction(1, 2)
    methods = {
        'none_student_d': METHODS['none_student_d'],
        'sdakd': METHODS['sdakd'],
        'l1': {'weight': []},
        'heavier': {'file': 'methods/sdakd.yml', 'weight': [], 'options': {'train:pixel_opt:loss_weight': 3.0}},
        'no_stage1': {'file': 'methods/sdakd_no_stage1.yml', 'weight': []},
        'early': {'file': 'methods/sdakd_feature_in_stage1.yml', 'weight': []},
    }
    made = matrix(methods=methods, perceptual='none')
    firsts = {row.name: made.first_run(row, ratio, 0) for row in made.rows}
    assert firsts['no_stage1'] is firsts['early'] is None  # adapters begin in it, and their state is no student's
    # without perceptual terms l1 begins as the others do
    assert firsts['none_student_d'].key == firsts['sdakd'].key == firsts['l1'].key != firsts['heavier'].key
    names = {firsts[row].name for row in ('none_student_d', 'sdakd', 'heavier')}
    assert len(names) == 2 and all(re.fullmatch(r'first_stage_[0-9a-f]{6}_w1-2_s0', name) for name in names)
    assert len(made.first_runs(ratio, 0)) == 2
    cell = made.run(made.rows[1], ratio, 0, 1)
    begun = made.options(made.rows[1], ratio, 0, 1)
    assert list(begun['train']['stages']) == ['distillation', 'adversarial'] and cell.iterations == 8
    whole = made.options(made.rows[4], ratio, 0, 1)['train']['stages']
    assert sum(stage['iters'] for stage in whole.values()) == 12
    # l1 has one term throughout: what is left of it is as long as the others'
    rest = made.options(made.rows[2], ratio, 0, 1)['train']['stages'].values()
    assert sum(stage['iters'] for stage in rest) == 8
    budget = smoke()['budget']
    longer = {**budget['stages'], 'supervised': {**budget['stages']['supervised'], 'lr_g': 2e-3}}
    turned = matrix(methods=dict(reversed(methods.items())), perceptual='none')
    for row in turned.rows:  # another order, and fewer rows, are the same trainings
        first = turned.first_run(row, ratio, 0)
        assert (first and (first.name, first.key)) == (
            firsts[row.name] and (firsts[row.name].name, firsts[row.name].key)
        )
        rows = [each for each in made.rows if each.name == row.name]
        assert [made.run(each, ratio, 0, 1).key for each in rows] == [turned.run(row, ratio, 0, 1).key]
    other = matrix(methods=methods, perceptual='none', budget={**budget, 'stages': longer})
    assert other.first_run(other.rows[1], ratio, 0).name == firsts['sdakd'].name  # trained again, in its place
    assert other.run(other.rows[1], ratio, 0, 1).key != cell.key  # another beginning is another cell


def test_a_placebo_is_a_row_with_a_shuffled_teacher(matrix):
    method = {'file': 'methods/sdakd.yml', 'weight': 'train:feature_opt:share', 'options': {'teacher:shuffle': 7}}
    made = matrix(methods={**METHODS, 'placebo': method}, teacher_cache='answers')
    rows = {row.name: row for row in made.rows}
    plain, placebo = (made.options(rows[name], Fraction(1, 2), 0, 1) for name in ('sdakd', 'placebo'))
    different = set(leaves(plain).items() ^ leaves(placebo).items())
    assert {key for key, _ in different} == {'teacher:shuffle', 'teacher:cache'}  # other answers, in another folder
    assert placebo['teacher']['shuffle'] == 7 and plain['teacher'].get('shuffle') is None
    assert rows['placebo'].placebo == 7 and rows['sdakd'].placebo is None
    moved = matrix(methods={'placebo': method}, reference='placebo', teacher_cache='elsewhere')
    keys = [each.run(rows['placebo'], Fraction(1, 2), 0, 1).key for each in (made, moved)]
    assert keys[0] == keys[1] != made.run(rows['sdakd'], Fraction(1, 2), 0, 1).key
    first = made.first_run(rows['placebo'], Fraction(1, 2), 0)
    assert first.key == made.first_run(rows['sdakd'], Fraction(1, 2), 0).key


def test_a_method_of_fewer_seeds(matrix):
    from sdakd.commands.compare import parts

    made = matrix(methods={'none_student_d': {'weight': []}, 'l1': {'weight': [], 'seeds': 1}}, seeds=[4, 5, 6])
    cells = [(cell.row.name, cell.seed) for cell in parts.finals(made, {'none_student_d': 1.0, 'l1': 1.0})]
    assert cells == [('none_student_d', 4), ('l1', 4), ('none_student_d', 5), ('none_student_d', 6)]
    names = parts.groups(made)
    assert names['trials'] == ['none_student_d_w1-2_s4', 'l1_w1-2_s4']
    assert names['cells'] == ['none_student_d_w1-2_s5', 'none_student_d_w1-2_s6']


def test_a_search_waits_for_all_trials(matrix, here, monkeypatch):
    """New and begun ones; not for those that broke, and not for those whose first stage did."""
    from sdakd.commands.compare import parts
    from sdakd.commands.compare.search import Search

    made = matrix(seeds=[7, 8])
    made.output = here / 'TRIED'
    for seed in (7, 8):
        made.make_start(Fraction(1, 2), seed)
    chosen = {'none_student_d': 1.0, 'sdakd': 3.0}
    asked = []
    monkeypatch.setattr(parts, 'choose', lambda *_: asked.append(1) or Search([], chosen))

    def note(run, state):
        run.record.state = state
        run.save()
        if state == 'done':
            run.result.parent.mkdir(parents=True, exist_ok=True)
            run.result.write_bytes(run.name.encode())

    none, plain, tripled = (trial.run for trial in parts.trials(made))
    (first,) = made.first_runs(Fraction(1, 2), 7)
    note(none, 'done')
    note(plain, 'begun')
    names = [(parts.SEARCH,), ('sdakd_w1-2_s8',)]
    sentence = (
        r'2 of 3 trials are not finished \(sdakd_w1-2_s7, sdakd_w1-2_s7_x3\).*no verdict yet; give --part sdakd_w'
    )
    for attempt in [*(lambda n=n: parts.run_part(made, *n, 1) for n in names), lambda: parts.measured(made)]:
        with pytest.raises(UserError, match=sentence):
            attempt()
    note(plain, 'broken')
    with pytest.raises(UserError, match=r'1 of 3 trials is not finished \(sdakd_w1-2_s7_x3\)'):
        parts.run_part(made, parts.SEARCH, 1)
    assert not asked and not (made.output / 'validation').exists()
    note(first, 'broken')
    assert parts.run_part(made, parts.SEARCH, 1) == 'search: none_student_d 1, sdakd 3'
    note(first, 'done')
    note(tripled, 'done')
    assert parts.run_part(made, parts.SEARCH, 1) and parts.measured(made)[2].best == chosen


def test_students_of_another_architecture(matrix):
    from sdakd_arch.width import build

    wide = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 2, 'num_grow_ch': 8}
    made = matrix(methods=METHODS, widths=['1/2'], student=wide)
    made.output /= 'another_architecture'  # other tests make starts of the teacher's
    for row in made.rows:
        options = made.options(row, Fraction(1, 2), 0, 1)
        assert options['network_g'] == wide | {'num_feat': 8, 'num_grow_ch': 4}
        assert options['teacher']['network']['type'] == 'SRVGGNetCompact'
    made.make_start(Fraction(1, 2), 0)
    state = torch.load(made.start(Fraction(1, 2), 0), weights_only=True)['params']
    assert state.keys() == build(wide, 'network_g').state_dict().keys()
    judges = (
        made.options(made.rows[1], Fraction(1, 2), 0, 1)['network_d'],
        made.options(made.rows[2], Fraction(1, 2), 0, 1),
    )
    assert judges[0]['num_feat'] == 8 and judges[1]['network_d']['num_feat'] == 8  # the student's, and the teacher's


def test_layers_are_those_of_the_students_depth(matrix, here, tmp_path):
    """A teacher of the files' own depth and students of half of it: layers that methods' files name are not there."""
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    from sdakd.commands.compare import rehearsal
    from sdakd.commands.compare.summary import student_line

    torch.save({'params': SRVGGNetCompact(num_feat=8, num_conv=32).state_dict()}, here / 'deep.pth')
    student = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 16, 'upscale': 4}
    changes = {'methods': {'dcd': {'weight': []}, 'omgd': {'weight': []}, 'gcc': {'weight': []}}, 'reference': 'dcd'}
    changes |= {'teacher_discriminator': {'iters': 1, 'lr_d': 1e-4}, 'budget': {**smoke()['budget'], 'crop': 64}}
    alone, made = (matrix(teacher='deep.pth', **changes, **more) for more in ({}, {'student': student}))
    for row in made.rows:
        stated, left = ({key for key, block in each.options(row, Fraction(1, 2), 0, 1)['train'].items()
                         if isinstance(block, dict) and 'layers' in block} for each in (alone, made))  # fmt: skip
        assert stated and not left, row.name
    assert len(rehearsal.check_rows(made, tmp_path, real_data=False, rehearses=False)) >= 3
    assert student_line(student) == (
        'Students: parts of SRVGGNetCompact (num_feat 8, num_conv 16, upscale 4), which stands in the place of the '
        "teacher's network."
    )


def test_the_best_factor_must_not_lie_at_the_edge(matrix, monkeypatch):
    """Of three or more; what the trials score is given."""
    from types import SimpleNamespace

    from sdakd.commands.compare import search
    from sdakd.commands.compare.summary import Cell

    def found(factors, psnr):
        made = matrix(search={'factors': factors})
        run = {factor: SimpleNamespace(name=f'x{factor:g}', done=True, record=SimpleNamespace(state='done'))
               for factor in factors}  # fmt: skip
        cells = [Cell(made.rows[1], Fraction(1, 2), 0, factor, run[factor]) for factor in factors]
        scores = [
            {'model': f'x{f:g}', 'reference': 'gt', 'mean': value} for f, value in zip(factors, psnr, strict=True)
        ]
        section = {'scores': scores, 'metrics': [{'higher_is_better': True}]}
        monkeypatch.setattr(search, 'measure', lambda *_, **__: section)
        made.rows = made.rows[1:]
        return search.choose(made.config, made, cells)

    assert found([1, 3, 9], [28, 30, 29]).edge == [] and found([1, 3, 9], [28, 30, 29]).best == {'sdakd': 3}
    assert found([1, 3, 9], [31, 30, 29]).edge == found([1, 3, 9], [28, 29, 30]).edge == ['sdakd']
    assert found([9, 1, 3], [29, 28, 30]).edge == []  # their order in the file does not matter
    assert found([1, 3], [31, 30]).edge == []  # of two, each is an edge
    assert found([1, 3], [None, 30]).best == {'sdakd': 3}


def test_a_row_that_no_trial_tells_anything_of_is_named(matrix, monkeypatch):
    """Its trials are done, and the primary metric has no value: NIQE of images that are too small."""
    from types import SimpleNamespace

    from sdakd.commands.compare import _broken, search
    from sdakd.commands.compare.summary import Cell

    made = matrix()
    run = {name: SimpleNamespace(name=name, done=name != 'c', record=SimpleNamespace(state=state, reason='why.'))
           for name, state in (('a', 'done'), ('b', 'done'), ('c', 'broken'))}  # fmt: skip
    section = {
        'scores': [{'model': name, 'reference': None, 'mean': None} for name in 'ab'],
        'metrics': [{'higher_is_better': False}],
    }
    monkeypatch.setattr(search, 'measure', lambda *_, **__: section)
    cells = [Cell(row, Fraction(1, 2), 0, 1.0, run[name]) for row, name in zip(made.rows, 'ab', strict=True)]
    found = search.choose(made.config, made, cells)
    assert found.lost == ['none_student_d', 'sdakd'] and not found.best
    assert _broken([], 2, found) == (
        'no trial of none_student_d, sdakd has a value of the primary metric on the validation split; give more images '
        'there, or larger ones, and give the same command again, which keeps what is trained.'
    )
    cells[1] = Cell(made.rows[1], Fraction(1, 2), 0, 1.0, run['c'])
    assert _broken([run['c']], 2, search.choose(made.config, made, cells)).startswith(
        '1 of 2 cells broke (no trial of sdakd was finished, no trial of none_student_d has a value of the primary '
        'metric on the validation split): c: why; mend that'
    )
    assert _broken([], 2, search.Search([])) == ''


def test_factors_scale_the_searched_weights_alone(matrix):
    made = matrix(methods=METHODS)
    for row in made.rows:
        plain, scaled = (made.options(row, Fraction(1, 2), 0, factor) for factor in (1, 3))
        different = set(leaves(plain).items() ^ leaves(scaled).items())
        assert {key for key, _ in different} == set(row.weights)
        for key in row.weights:
            one, other = leaves(plain)[key], leaves(scaled)[key]
            if key.endswith(':share'):  # what it is of the rest: what the calibrated weight is proportional to
                assert other / (1 - other) == pytest.approx(3 * one / (1 - one), rel=1e-5)
            else:
                assert other == pytest.approx(3 * one)
    assert {row.name: row.weights for row in made.rows}['crd'] == ['train:crd_opt:share']  # no perceptual terms


def leaves(value, at=''):
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in leaves(inner, f'{at}:{key}' if at else key).items()}
    return {at: str(value) if isinstance(value, list | None) else value}


def test_stages_share_the_budget():
    from sdakd.commands.compare.config import Length
    from sdakd.commands.compare.rows import schedule

    lengths = {name: Length(iters, 1e-3, 1e-4) for name, iters in (('a', 10), ('b', 20), ('c', 31))}

    def stages(*names, iters=100):
        return {name: {'iters': iters, 'terms': [name]} for name in names}

    def lengths_of(found):
        return {name: stage['iters'] for name, stage in found.items()}

    assert lengths_of(schedule(lengths, stages('a', 'b', 'c'), '')) == {'a': 10, 'b': 20, 'c': 31}
    assert lengths_of(schedule(lengths, stages('a', 'b', 'c', 'more'), '')) == {'a': 10, 'b': 20, 'c': 16, 'more': 15}
    assert lengths_of(schedule(lengths, stages('b', 'c'), '')) == {'b': 30, 'c': 31}
    assert lengths_of(schedule(lengths, stages('a'), '')) == {'a': 61}
    with pytest.raises(UserError, match='another order'):
        schedule(lengths, stages('b', 'a'), '')
    with pytest.raises(UserError, match="first stage 'z'"):
        schedule(lengths, stages('z', 'a'), '')


def test_a_schedule_of_its_own_is_a_second_row(matrix):
    budget = smoke()['budget']['stages']
    longer = {**budget, 'adversarial': {**budget['adversarial'], 'iters': 40}}
    made = matrix(schedules={'sdakd_long': {'method': 'sdakd', 'stages': longer}})
    assert {row.name: row.iterations for row in made.rows} == {'none_student_d': 12, 'sdakd': 12, 'sdakd_long': 48}
    seeds = {made.options(row, Fraction(1, 2), 0, 1)['manual_seed'] for row in made.rows}
    assert len(seeds) == 1  # the same order of images, however long a run is


def test_a_backbone_stands_in_for_all_methods_alike(matrix, here):
    (here / 'squeeze.pth').write_bytes(b'')
    made = matrix(methods=METHODS, perceptual='squeezenet-caffe:squeeze.pth')
    for row in made.rows:
        train = made.options(row, Fraction(1, 2), 0, 1)['train']
        blocks = [block for block in train.values() if isinstance(block, dict) and 'backbone' in block]
        assert len(blocks) == {'l1': 0, 'crd': 2, 'omgd': 2}.get(row.name, 1)
        for block in blocks:
            assert (block['backbone'], block['weights']) == ('squeezenet-caffe', str(here / 'squeeze.pth'))
        assert not any(isinstance(block, dict) and block.get('type') == 'PerceptualLoss' for block in train.values())


def test_a_backbone_with_its_conventions(matrix, here):
    """Written out instead of KIND:FILE; what a method's file says of its own backbone does not stay."""
    from sdakd.commands.compare.summary import perceptual_line

    (here / 'hed.pth').write_bytes(b'')
    wanted = {'backbone': 'vgg16', 'weights': 'hed.pth', 'input': 'imagenet', 'units': 'measured', 'shift': 16}
    method = {'weight': 'train:dcd_opt:share', 'options': {'train:imitation_opt:backbone': 'vgg19'}}
    for perceptual in (wanted, {'backbone': 'vgg16', 'weights': 'hed.pth'}, 'vgg16:hed.pth'):
        made = matrix(methods={**METHODS, 'dcd': method}, perceptual=perceptual)
        stated = perceptual if isinstance(perceptual, dict) else {'backbone': 'vgg16', 'weights': 'hed.pth'}
        for row in made.rows:
            train = made.options(row, Fraction(1, 2), 0, 1)['train']
            for block in (block for block in train.values() if isinstance(block, dict) and 'backbone' in block):
                found = {key: block[key] for key in wanted if key in block}
                assert found == {**stated, 'weights': str(here / 'hed.pth')}
        facts = ', input imagenet, units measured, shift 16' if perceptual is wanted else ''
        said = f'Perceptual terms: vgg16 (hed.pth{facts}) stands in for VGG, for all methods alike.'
        assert perceptual_line(made.config) == said


def test_one_teacher_discriminator_for_all_who_name_a_file(matrix):
    methods = {
        'sdakd': METHODS['sdakd'],
        'dgl_gan': {'weight': 'discriminators:teacher:gan_opt:share'},
        'none_teacher_d_pretrained': METHODS['none_teacher_d'],
    }

    def make(iters, names=tuple(methods)):
        discriminator = {'iters': iters, 'lr_d': 1e-4}
        chosen = {name: methods[name] for name in names}
        return matrix(methods=chosen, reference='sdakd', teacher_discriminator=discriminator)

    made = make(7)
    run = made.discriminator_run()
    assert made.guided == ['dgl_gan', 'none_teacher_d_pretrained'] and run.iterations == 7
    (discriminator,) = run.options['discriminators'].values()
    assert discriminator['network']['num_feat'] == 8
    assert discriminator['real'] == 'gt' and discriminator['fake'] == ['teacher']
    assert 'network_g' not in run.options and run.result.name == 'net_d_teacher_latest.pth'
    for row in made.rows[1:]:
        entry = made.options(row, Fraction(1, 2), 0, 1)['discriminators']['teacher']
        assert entry['weights'] == str(run.result) and entry['network'] == discriminator['network']
    keys, others = ([m.run(row, Fraction(1, 2), 0, 1).key for row in m.rows] for m in (made, make(8)))
    assert [key != other for key, other in zip(keys, others, strict=True)] == [False, True, True]
    assert make(7, ['sdakd']).discriminator_run() is None
    missing = matrix(methods=methods, reference='sdakd')
    with pytest.raises(UserError, match='teacher_discriminator_realesr_general_x4v3.pth does not exist'):
        missing.options(missing.rows[1], Fraction(1, 2), 0, 1)


def test_keys_follow_content_and_not_place(matrix, here):
    made = matrix()
    row = made.rows[1]
    key = made.run(row, Fraction(1, 2), 0, 1).key
    made.output = here / 'elsewhere'
    assert made.run(row, Fraction(1, 2), 0, 1).key == key
    assert made.run(row, Fraction(1, 2), 1, 1).key != key and made.run(row, Fraction(1, 2), 0, 3).key != key
    made.images.identity = 'other photographs'
    assert made.run(row, Fraction(1, 2), 0, 1).key != key


def test_keys_hold_what_decides_the_result(matrix):
    """Not how often a training saves, nor how many processes load its images."""
    budget, half = smoke()['budget'], Fraction(1, 2)

    def keys(**changes):
        made = matrix(budget={**budget, **changes})
        return [run.key for row in made.rows for run in (made.run(row, half, 0, 1), made.first_run(row, half, 0))]

    assert keys(checkpoints=4) == keys(workers=3) == keys()
    assert all(one != other for one, other in zip(keys(batch=1), keys(), strict=True))


def test_cells_share_the_teachers_answers(matrix, here, tmp_path):
    from sdakd.commands.compare import rehearsal

    made = matrix(teacher_cache='answers')
    key = made.run(made.rows[0], Fraction(1, 2), 0, 1).key
    cells = [
        made.options(row, ratio, seed, 1) for row in made.rows for ratio in made.config.ratios() for seed in (0, 1)
    ]
    assert {options['teacher']['cache'] for options in cells} == {str(here / 'answers')}
    assert matrix(teacher_cache='elsewhere').run(made.rows[0], Fraction(1, 2), 0, 1).key == key
    plain = matrix()
    assert plain.run(plain.rows[0], Fraction(1, 2), 0, 1).key != key  # answers to whole images are other targets

    def check(made, real_data, name):
        (tmp_path / name).mkdir()
        return rehearsal.check_rows(made, tmp_path / name, real_data)

    budget = {**smoke()['budget'], 'flips': False}
    for real_data in (False, True):
        with pytest.raises(UserError, match=r'methods:sdakd: teacher_cache: .* flips: false under budget\), or leave'):
            check(matrix(teacher_cache='answers'), real_data, f'flips{real_data}')
        found = check(matrix(teacher_cache='answers', budget=budget), real_data, f'none{real_data}')
        for options in found.values():
            assert options['datasets']['train']['use_hflip'] is options['datasets']['train']['use_rot'] is False
        cache = found['sdakd', Fraction(1, 2)]['datasets']['train']['caches']['teacher']
        assert (cache['folder'] == str(here / 'answers')) == real_data
    assert not (here / 'answers').exists()


def test_photographs_are_split_and_paired(here, photographs, capfd):
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.data import hold_out, make_pairs, open_images

    assert hold_out(list('abcdefghij'), 3) == ['b', 'f', 'i']
    folder = here / 'photographs'
    folder.mkdir(exist_ok=True)
    for name, image in photographs.items():
        cv2.imwrite(str(folder / f'{name}.png'), image[:66, :70, ::-1])
    options = smoke()
    options['data'] = {'photographs': {'folder': 'photographs', 'validation': 1}, 'test': options['data']['test']}
    config = read_config(str(write(here, options)))
    images = open_images(config)
    make_pairs(config, images, here / 'P', 4)
    made = {part: sorted(p.stem for p in (here / f'P/data/{part}/gt').iterdir()) for part in ('train', 'validation')}
    assert made == {'train': ['astronaut', 'chelsea', 'rocket'], 'validation': ['coffee']}
    assert cv2.imread(str(images.train[0] / 'rocket.png')).shape == (64, 68, 3)
    assert cv2.imread(str(images.train[1] / 'rocket.png')).shape == (16, 17, 3)


def test_pairs_replace_pairs_and_nothing_else(here, photographs):
    """A folder of the user's in the place of the pairs is refused as it is; beside pairs, it stays."""
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.data import make_pairs, open_images

    (here / 'two').mkdir()
    for name in ('astronaut', 'rocket'):
        cv2.imwrite(str(here / f'two/{name}.png'), photographs[name][:96, :96, ::-1])

    def make(**changes):
        options = smoke()
        options['data'] = {
            'photographs': {'folder': 'two', 'validation': 1, **changes},
            'test': options['data']['test'],
        }
        config = read_config(str(write(here, options)))
        make_pairs(config, open_images(config), here / 'Q', 4)

    own = [here / 'Q/data/train/gt/mine.png', here / 'Q/data/notes.txt', here / 'Q/data/made.json']
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"mine": 1}')
    before = sorted((here / 'Q').rglob('*'))
    with pytest.raises(UserError, match=f'^-o: {here}/Q/data is where pairs are made, and what is there'):
        make()
    assert sorted((here / 'Q').rglob('*')) == before and all(path.read_text() == '{"mine": 1}' for path in own)
    shutil.rmtree(here / 'Q/data')
    make()
    (here / 'Q/data/notes.txt').write_text('mine')
    first = here / 'Q/data/train/lq'
    kept = {path.name: path.read_bytes() for path in first.iterdir()}
    make()
    assert {path.name: path.read_bytes() for path in first.iterdir()} == kept and len(kept) == 1
    make(degradation='realesrgan')
    (made,) = first.iterdir()
    assert made.read_bytes() != kept[made.name] and (here / 'Q/data/notes.txt').read_text() == 'mine'


def test_images_of_sub_folders_are_not_trained_on(here):
    """BasicSR pairs what lies in the folder itself; what lies below it is not counted and not looked for elsewhere."""
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.data import open_images

    shutil.copytree(here / 'datasets/smoke/train', here / 'deep')
    options = smoke()
    options['data']['train'] = {'gt': 'deep/HR', 'lq': 'deep/LRx4'}
    config = read_config(str(write(here, options)))
    before = open_images(config)
    (here / 'deep/HR/old').mkdir()
    shutil.copy(here / 'datasets/smoke/test/HR/rocket0.png', here / 'deep/HR/old')
    found = open_images(config)
    assert found.facts == before.facts and found.identity == before.identity
    assert found.facts[0].startswith('4 pairs to train on and 2 others')


# ----------------------------------------------------- bad input -----------------------------------------------------


def change(path, value):
    def apply(options):
        block = options
        for key in path[:-1]:
            block = block[key]
        if value is None:
            del block[path[-1]]
        else:
            block[path[-1]] = value

    return apply


MISTAKES = [
    (['methods', 'skadk'], {'weight': 'x'}, 'methods:skadk: there is no method of this name; did you mean sdakd'),
    (['methods', 'sdakd', 'weight'], 'train:featur_opt:loss_weight', 'no train:featur_opt; did you mean feature_opt'),
    (['methods', 'sdakd', 'wieght'], 1, "methods:sdakd: unknown key 'wieght'; did you mean weight"),
    (['methods', 'sdakd', 'options'], {'train:ema_decay': 0.5}, 'train:ema_decay is equal for all methods'),
    (['methods', 'sdakd', 'options'], {'train:feature_opt:x': 1}, 'methods:sdakd:options: there is no train:feature_'),
    (['methods', 'sdakd', 'file'], 'nowhere.yml', 'nowhere.yml does not exist'),
    (['reference'], 'sdkd', "reference: no method is called 'sdkd'; did you mean sdakd"),
    (['metrics'], ['psnr', 'ssmi'], "metrics: there is no metric 'ssmi'; did you mean ssim"),
    (['methods', 'sdakd', 'weight'], 'train:gan_opt:loss_weight', 'the weight of the discriminator that all methods'),
    (['methods', 'first_stage'], {'weight': []}, 'first_stage is the name of what methods share'),
    (['primary', 'margin'], -1, 'primary:margin'),
    (['primary', 'metric'], 'psn', "primary:metric: there is no metric 'psn'; did you mean psnr"),
    (['primary', 'metric'], 'niqe', 'niqe is not among the metrics'),
    (['primary', 'against'], 'student', 'primary:against'),
    (['metrics'], ['psnr', 'fd'], 'fd_backbone: name it'),
    (['fd_backbone'], 'efficientnet_lite0', 'fd_backbone: leave it out, or write fd or kid'),
    (['teacher'], 'datasets/none.pth', 'teacher: the file .*none.pth does not exist'),
    (['data', 'train', 'gt'], HR.format('trian'), 'data:train:gt: the folder datasets/smoke/trian/HR does not exist'),
    (['data', 'test', 'smoke'], 'datasets/no', 'data:test:smoke: the folder datasets/no does not exist'),
    (['data', 'test', 'smoke'], HR.format('validation'), 'is also in data:test:smoke'),
    (
        ['data', 'test', 'smoke'],
        HR.format('test') + ':datasets/smoke/train/LRx4',
        'data:test:smoke: .*HR holds 2 images',
    ),
    (['data', 'validation', 'gt'], HR.format('train'), 'is also in data:train:gt'),
    (['data', 'validation'], None, 'data: write either photographs, or faces, or both train and validation'),
    (['data', 'photographs'], {'folder': 'x', 'validation': 1}, 'data: write either photographs, or faces, or both'),
    (['budget', 'crop'], 30, 'budget:crop: 30 must be a multiple of the scale 4'),
    (['budget', 'crop'], 96, 'methods:none_student_d: datasets:train:gt_size: the crop of 96'),
    (['budget', 'batch'], 0, 'budget:batch'),
    (['budget', 'bach'], 4, "budget: unknown key 'bach'; did you mean batch"),
    (['budget', 'stages', 'adversarial', 'lr'], 1, "budget:stages:adversarial: unknown key 'lr'"),
    (['budget', 'stages', 'adversarial', 'lr_d'], None, 'adversarial:lr_d: the key is missing'),
    (
        ['budget', 'stages', 'distilation'],
        {'iters': 1, 'lr_g': 1},
        'no method has a stage .* did you mean distillation',
    ),
    (['widths'], ['1/3'], 'which 1/3 does not divide into channels'),
    (['widths'], ['2'], "widths: write a share of the teacher's channels such as 1/4"),
    (['widths'], ['1/2', 0.5], 'widths: 1/2 stands there twice'),
    (['seeds'], [1, 1], 'seeds: 1 stands there twice'),
    (['seeds'], [], 'seeds'),
    (['seed'], 1, "unknown key 'seed'; did you mean seeds"),
    (['budget'], None, 'budget: the key is missing'),
    (['perceptual'], 'squeezenet', 'perceptual: write as published, none, or KIND:FILE'),
    (['perceptual'], 'squeezenet:nowhere.pth', 'nowhere.pth does not exist'),
    (['perceptual'], 'squeezenett:x', "perceptual:backbone: no backbone is called 'squeezenett'; did you mean squeeze"),
    (['perceptual'], 'squeezenet:', 'perceptual:weights: name the file of squeezenet'),
    (['perceptual'], {'backbone': 'vgg16', 'weights': 'x', 'inptu': 'raw'}, "perceptual: unknown key 'inptu'; did you"),
    (['perceptual'], {'backbone': 'vgg16', 'weights': 'x', 'input': 'row'}, "perceptual:input: there is no 'row'"),
    (['perceptual'], {'backbone': 'vgg16'}, 'perceptual: .* missing required field `weights`'),
    (['schedules'], {'x': {'method': 'sdak', 'stages': {}}}, 'schedules:x'),
    (
        ['schedules'],
        {'sdakd': {'method': 'sdakd', 'stages': {'adversarial': {'iters': 1, 'lr_g': 1}}}},
        'has this name',
    ),
    (['output'], None, 'output: no folder is named'),
    (['methods', 'sdakd', 'seeds'], 3, 'methods:sdakd:seeds: there are 2 seeds, not 3'),
    (['student'], {'type': 'SRVGGNetCompact', 'upscale': 2}, 'student: it enlarges by 2, and the teacher by 4'),
    (['student'], {'type': 'SRVGGNetCompct'}, 'student: .*SRVGGNetCompact'),
]


@pytest.mark.parametrize(('path', 'value', 'sentence'), MISTAKES)
def test_mistakes_are_one_sentence(here, path, value, sentence, capsys):
    options = smoke()
    options['output'] = 'BAD'
    change(path, value)(options)
    file = write(here, options, 'bad.yml')
    with pytest.raises(UserError, match=sentence) as error:
        compare('-opt', file)
    text = str(error.value)
    assert text.startswith(f'{file}: ') and text.count(str(file)) == 1 and '\n' not in text
    assert not list((here / 'BAD').rglob('*.json')) and not (here / 'BAD/experiments').exists()


def test_students_are_not_judged_by_what_has_trained_them(here):
    (here / 'one.pth').write_bytes(b'same')
    (here / 'other.pth').write_bytes(b'same')  # a copy is the same network
    options = {**smoke(), 'perceptual': 'squeezenet:one.pth', 'metrics': ['psnr', 'fd'], 'output': 'BAD'}
    options['fd_backbone'] = 'squeezenet:other.pth'
    from sdakd.commands.compare import measuring
    from sdakd.commands.compare.config import read_config

    config = read_config(str(write(here, options, 'bad.yml')))
    with pytest.raises(UserError, match='fd_backbone: other.pth is also what trains students'):
        measuring.check_judge(config)


def test_a_distance_of_sets_that_decides_has_samples_enough(here, tmp_path):
    """Two photographs and two test images of 64x64 pixels are four patches; 512 features take 5,120."""
    import torchvision

    from sdakd.commands.compare.measuring import check_samples
    from sdakd_metrics.metrics import Settings, open_metrics

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / 'squeezenet.pth')
    backbone = f'squeezenet:{tmp_path / "squeezenet.pth"}'
    options = {**smoke(), 'metrics': ['psnr', 'fd'], 'primary': {'metric': 'fd'}, 'fd_backbone': backbone}
    file = write(here, options, 'bad.yml')
    wanted = (
        'primary:metric: FD-squeezenet takes 5,120 patches of 64x64 pixels that do not overlap, ten for each of its '
        '512 features, and the validation split has 2 in 2 images; give about 5,120 such images, or write kid'
    )
    with pytest.raises(UserError, match=wanted):
        compare('-opt', file, '-o', 'FD')
    assert not (here / 'FD').exists()
    fd, kid = open_metrics(['fd', 'kid'], Settings(4, backbone=backbone))
    check_samples(fd, {'enough': [(640, 640)] * 51 + [(64, 1300)], 'unreadable': [None, *[(6400, 6400)]]})
    with pytest.raises(UserError, match='small has 0 in 2 images; give larger images'):
        check_samples(fd, {'small': [(63, 640), None]})
    with pytest.raises(UserError, match='short has 5,119 in 52 images'):
        check_samples(fd, {'short': [(640, 640)] * 51 + [(64, 1279)]})
    check_samples(kid, {'two': [(64, 64), None, (63, 640), (70, 640)]})
    wanted = 'primary:metric: KID-squeezenet compares patches of 64x64 .* of two or more images, and {} has 1 that will'
    with pytest.raises(UserError, match=wanted.format('small') + ' do in 3; give more, or larger'):
        check_samples(kid, {'two': [(64, 64)] * 2, 'small': [(63, 640), (6400, 6400), None]})
    for image in ('chelsea', 'rocket'):
        for side in ('HR', 'LRx4'):
            place = here / 'one' / image / side
            place.mkdir(parents=True)
            (found,) = here.glob(f'datasets/smoke/*/{side}/{image}0.png')
            shutil.copy(found, place)
    options |= {'metrics': ['kid'], 'primary': {'metric': 'kid'}}
    one = {'gt': 'one/chelsea/HR', 'lq': 'one/chelsea/LRx4'}
    for name, data in {'the validation split': {'validation': one}, 'a': {'test': {'a': 'one/rocket/HR'}}}.items():
        file = write(here, {**options, 'data': {**options['data'], **data}}, 'bad.yml')
        with pytest.raises(UserError, match=wanted.format(name) + ' do in 1'):
            compare('-opt', file, '-o', 'KID')
    assert not (here / 'KID').exists()


def test_a_frechet_distance_of_few_samples_is_not_reported():
    from sdakd.commands.compare.measuring import without_short

    def entry(metric, of, samples=None, needed=None):
        return {'metric': metric, 'set': of} | ({} if needed is None else {'samples': samples, 'needed': needed})

    scores = [entry('fd', 'a', 99, 100), entry('fd', 'b', 100, 100), entry('fid', 'a', 5, 100), entry('psnr', 'a')]
    section = {'scores': scores, 'metrics': [{'name': name, 'label': name.upper()} for name in ('fd', 'fid', 'psnr')]}
    kept, sentences = without_short(section)
    assert kept['scores'] == scores[1:] and kept['metrics'] == section['metrics']
    assert sentences == [
        'FD is not reported on a: there are 99 independent samples, and it needs 100, ten for each feature.',
        'FID on a is too large and says little: it stands on 5 independent samples, and it needs 100, ten for each '
        'feature.',
    ]
    kept, _ = without_short({**section, 'scores': scores[:1] + scores[2:]})
    assert [metric['name'] for metric in kept['metrics']] == ['fid', 'psnr'] and len(section['scores']) == 4


@pytest.mark.parametrize('kind', ['squeezenett', 'squeezenet'])
def test_the_backbone_of_fd_is_named_by_its_key(here, kind):
    """And not by the flag of `sdakd evaluate`: an unknown kind, and weights of another network."""
    options = {**smoke(), 'metrics': ['psnr', 'fd'], 'fd_backbone': f'{kind}:datasets/smoke/teacher.pth'}
    file = write(here, options, 'bad.yml')
    with pytest.raises(UserError) as error:
        compare('-opt', file, '-o', 'FD')
    assert str(error.value).startswith(f'{file}: fd_backbone: ') and '--' not in str(error.value)
    assert not (here / 'FD').exists()


def test_the_command_line_refuses_with_status_2(here):
    options = smoke()
    options['primary']['metric'] = 'psn'
    cases = [
        (['-opt', str(write(here, options, 'bad.yml'))], 'did you mean psnr'),
        (['-opt', 'nowhere.yml'], 'nowhere.yml cannot be read'),
        (['-opt', str(SMOKE), '--jobs', '0'], '--jobs: write a whole number'),
    ]
    for arguments, sentence in cases:
        done = subprocess.run([*COMMAND, *arguments], cwd=here, capture_output=True, text=True)
        assert done.returncode == 2 and sentence in done.stderr and 'Traceback' not in done.stderr


def test_the_real_comparison_names_what_there_is():
    """Methods, keys and stages of options/compare/realesr_general_x4.yml, without its photographs and weights."""
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.rows import read_rows

    config = read_config(str(ROOT / 'options/compare/realesr_general_x4.yml'))
    rows = read_rows(config, ROOT / 'options/compare')
    wanted = {'none_student_d', 'none_teacher_d', 'sdakd', 'dcd', 'dcd_modified', 'crd', 'omgd', 'dgl_gan', 'akdg'}
    assert wanted <= {row.name for row in rows}
    assert len({row.iterations for row in rows if not row.own_schedule}) == 1
    assert all(bool(row.weights) != (row.name == 'l1' or row.name.startswith('none_')) for row in rows)
    assert config.reference in {row.name for row in rows} and len(config.search.factors) == 3
    assert [row.name for row in rows if row.placebo is not None] == ['placebo']
    assert set(config.data.test) == {'Set5', 'Set14'}


@pytest.mark.parametrize('name', ['crd', 'sdakd'])
def test_ablations_name_what_there_is_and_differ_from_the_method(name):
    """Every row of options/compare/*_ablations.yml is another training than the method's own."""
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.rows import read_rows

    config = read_config(str(ROOT / f'options/compare/{name}_ablations.yml'))
    rows = read_rows(config, ROOT / 'options/compare')
    assert config.reference == name and len(rows) == {'crd': 18, 'sdakd': 7}[name]
    assert len({row.iterations for row in rows}) == 1 and not any(row.weights for row in rows)
    trainings = [(row.stages, row.options['train'], row.options.get('discriminators')) for row in rows]
    for number, training in enumerate(trainings):
        terms = {key: value for key, value in training[1].items() if key.endswith('_opt')}
        assert all((training[0], terms, training[2]) != other for other in trainings[:number])
        trainings[number] = (training[0], terms, training[2])
