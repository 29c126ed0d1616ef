"""`sdakd compare` before and beside its trainings: what is missing, room on the disk, a GPU for each, jobs of SLURM."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from sdakd import cli
from sdakd.compat import UserError

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / 'options/compare/smoke.yml'


def smoke(**changes):
    return {**yaml.safe_load(SMOKE.read_text()), **changes}


def write(folder, options, name='compare.yml'):
    path = folder / name
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return path


def compare(*arguments):
    return cli.main(['compare', *map(str, arguments)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------- what is missing, and room -----------------------------------------


def test_a_dry_run_lists_all_that_is_missing(here, monkeypatch, capsys):
    """With where it belongs and how to get it; the time of steps is told all the same, by stand-ins."""
    monkeypatch.setenv('TORCH_HOME', str(here / 'hub'))
    network = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 4}
    write(here, {'teacher': {'weights': 'pretrained/RealESRGAN_x4plus.pth', 'network': network}}, 'teacher.yml')
    options = smoke(teacher='teacher.yml', perceptual='as published', metrics=['psnr', 'fid'], search={'factors': [1]})
    options['data'] = {
        'photographs': {'folder': 'datasets/mine', 'degradation': 'bicubic'},
        'test': {'one': 'datasets/one', 'two': 'datasets/hr:datasets/lr'},
    }
    options['reference'] = 'dgl_gan'
    options['methods'] = {
        'dgl_gan': {'weight': [], 'options': {'discriminators:teacher:weights': 'pretrained/judge.pth'}},
    }
    file = write(here, options)
    before = sorted(here.rglob('*'))
    assert compare('-opt', file, '-o', 'NEW', '--dry_run') == 0
    text = capsys.readouterr().out
    assert sorted(here.rglob('*')) == before
    assert re.search(r'^dgl_gan +1/2 +2 +8 +\d+ s +\d+ s$', text, re.M)
    lines = text.partition('\nMissing:\n')[2].splitlines()
    found = [line.removeprefix('- ') for line in lines if line.startswith('- ')]
    expected = {
        'teacher': f'{here}/pretrained/RealESRGAN_x4plus.pth does not exist; `sdakd fetch RealESRGAN_x4plus` gets it',
        'data:photographs:folder': 'the folder datasets/mine does not exist',
        'data:test:one': 'the folder datasets/one does not exist',
        'data:test:two': 'the folder datasets/hr does not exist',
        'data:test:two: the folder': 'datasets/lr does not exist',
        'metrics (fid)': f'{here}/hub/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth does not exist; the '
        'start fetches it from https://github.com/toshas/torch-fidelity/',
        'methods (vgg19 of the perceptual term)': f'{here}/experiments/pretrained_models/vgg19-dcbb9e9d.pth does not '
        'exist; the start fetches it from https://download.pytorch.org/models/',
        'methods:dgl_gan: discriminators:teacher:weights': f'{here}/pretrained/judge.pth does not exist; put it there',
    }  # fmt: skip
    for where, sentence in expected.items():
        start = f'{where} {sentence}' if where.endswith('folder') and ' ' in where else f'{where}: {sentence}'
        assert sum(line.startswith(start) for line in found) == 1, (start, found)
    assert len(found) == len(expected)


def test_a_dry_run_refuses_mistakes_all_the_same(here):
    options = smoke()
    options['methods']['sdakd']['options'] = {'train:feature_opt:x': 1}
    with pytest.raises(UserError, match='there is no train:feature_opt:x'):
        compare('-opt', write(here, options), '-o', 'NEW', '--dry_run')


def test_a_disk_that_is_too_small_is_told_before_the_first_training(here, monkeypatch):
    usage = shutil.disk_usage(here)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=3 << 20))
    with pytest.raises(UserError, match=r'output: what is still to be written takes .* at most \(students .*, and the '
                       r'disk of .* has 3.0 MiB left; make room') as error:  # fmt: skip
        compare('-opt', SMOKE, '-o', 'NEW')
    assert (
        '\n' not in str(error.value) and not (here / 'NEW/experiments').exists() and not (here / 'NEW/starts').exists()
    )


def test_what_is_needed_for_test_images(here, capsys):
    """Three bytes a pixel, for the teacher, bicubic interpolation and every student; none if they do not stay."""
    (here / 'test').mkdir()
    cv2.imwrite(str(here / 'test/a.png'), np.full((1026, 1024, 3), 200, np.uint8))
    options = smoke()
    options['data']['test'] = {'large': 'test'}
    for images, wanted in ((True, 3 * 1024 * 1024 * (2 + 2 * 1 * 2)), (False, 0)):
        assert compare('-opt', write(here, {**options, 'images': images}), '-o', 'NEW', '--dry_run') == 0
        text = re.search(r'enlarged test images (\d+) MiB', capsys.readouterr().out)
        assert (int(text[1]) if text else 0) == wanted // 2**20


# ----------------------------------------------------- GPUs ----------------------------------------------------------


def test_each_training_sees_one_gpu(here, monkeypatch):
    """Two at a time on two GPUs: never both on the same one; the number comes from the outer CUDA_VISIBLE_DEVICES."""
    from sdakd.files.runs import Run, gpus, train_all

    class Told(Run):
        def command(self):
            says = (
                'import os, time, pathlib; time.sleep(0.3); path = pathlib.Path("experiments/NAME/models"); '
                'path.mkdir(parents=True); (path / "net_g_latest.pth").write_text(os.environ["CUDA_VISIBLE_DEVICES"])'
            )
            return [sys.executable, '-c', says.replace('NAME', self.name)]

    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3, 5')
    assert gpus() == ['3', '5']
    runs = [Told(f'run{number}', {}, here / 'runs', here, 1, 'key') for number in range(6)]
    now, seen = set(), []

    def watch(run, event):
        if event == 'begun':
            now.add(run.name)
        elif event in ('done', 'broken'):
            now.discard(run.name)
            seen.append((run.result.read_text(), set(now)))

    train_all(runs, 2, 1, watch, gpus())
    of = {run.name: run.result.read_text() for run in runs}
    assert sorted(of.values()) == ['3'] * 3 + ['5'] * 3
    assert all(of[other] != device for device, others in seen for other in others)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert gpus() == []


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


def test_a_job_file_makes_what_the_command_makes(here, capsys):
    """Its tasks really run, one after the other; stopped between two arrays and given again; students to the bit."""
    place = here / 'fake'
    place.mkdir()
    (place / 'sbatch').write_text(SBATCH.format(python=sys.executable, place=str(place)))
    (place / 'sbatch').chmod(stat.S_IRWXU)
    options = smoke(reference='sdakd')
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
    first = here / 'JOBS/experiments/first_stage_w1-2_s1/models/net_g_latest.pth'
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
    jobs = subprocess.run(
        [sys.executable, '-m', 'sdakd.cli', 'compare', '-opt', str(file), '-o', 'PLAIN'],
        cwd=here,
        env=environment | {'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert jobs.returncode == 0, jobs.stderr
    students = sorted(path.relative_to(here / 'PLAIN') for path in (here / 'PLAIN').rglob('net_g_latest.pth'))
    assert len(students) == 5
    for student in students:
        one, other = (torch.load(here / out / student, weights_only=True) for out in ('PLAIN', 'JOBS'))
        for key in ('params', 'params_ema'):
            assert all(torch.equal(value, other[key][name]) for name, value in one[key].items()), student
    assert (here / 'PLAIN/compare_quality.csv').read_text() == (here / 'JOBS/compare_quality.csv').read_text()
    # a part that is asked for too early, or that is none
    shutil.rmtree(here / 'JOBS/experiments/first_stage_w1-2_s0')
    for part, sentence in {
        'sdakd_w1-2_s0': 'begins with first_stage_w1-2_s0, which is not done; give --part first_stage_w1-2_s0',
        'serach': "the comparison has no part 'serach'; did you mean search",
    }.items():
        with pytest.raises(UserError, match=f'--part: .*{sentence}'):
            compare('-opt', file, '-o', 'JOBS', '--part', part)
    with pytest.raises(UserError, match='starts.*is not there; give --part data first'):
        compare('-opt', file, '-o', 'EMPTY', '--part', 'sdakd_w1-2_s0')
    with pytest.raises(UserError, match='each is a command of its own'):
        compare('-opt', file, '-o', 'EMPTY', '--part', 'data', '--dry_run')
