"""`sdakd compare` before and beside its trainings: what is missing, room on the disk, a GPU for each training."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
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


@pytest.mark.parametrize('name', ['x4plus_2x2', 'realesr_general_x4'])
def test_a_dry_run_without_the_teacher_lists_all_the_same(here, monkeypatch, capsys, name):
    """Of comparisons that ship, where neither data nor weights are there: every folder and file, each once."""
    monkeypatch.setenv('TORCH_HOME', str(here / 'hub'))
    file = ROOT / f'options/compare/{name}.yml'
    options = yaml.safe_load(file.read_text())
    monkeypatch.setattr('sdakd.commands.compare.config.ROOT', here)  # a checkout may hold some of them
    assert compare('-opt', file, '-o', 'NEW', '--dry_run') == 0
    text = capsys.readouterr().out
    lines = text.partition('\nMissing:\n')[2].splitlines()
    data, named = options['data'], [options['teacher'], options['perceptual']['weights']]
    named += re.findall(r'experiments/pretrained_models/[\w.-]+', str(options['methods']))
    named += [part for source in data['test'].values() for part in source.split(':')]
    named += [data['photographs']['folder']] if 'photographs' in data else [
        data[part][side] for part in ('train', 'validation') for side in ('gt', 'lq')]  # fmt: skip
    for path in named:
        assert sum(f'{path} does not exist' in line for line in lines) == 1, (path, lines)
    assert len(named) > 4 and "told where the teacher's file is" in text and not list(here.iterdir())


def test_a_dry_run_goes_on_without_a_validation_split(here, monkeypatch, capsys):
    """Of which a distance of sets, the primary metric, wants to know the sizes."""
    import torch
    import torchvision

    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), here / 'squeezenet.pth')
    options = smoke(metrics=['kid'], primary={'metric': 'kid'}, fd_backbone='squeezenet:squeezenet.pth')
    monkeypatch.setattr('sdakd.commands.compare.rehearsal.too_slow', lambda matrix: True)
    for data in (
        {part: {'gt': f'none/{part}/gt', 'lq': f'none/{part}/lq'} for part in ('train', 'validation')},
        {'photographs': {**options['data']['photographs'], 'validation': 'none/validation/gt'}},
    ):
        content = {**options, 'data': {**data, 'test': options['data']['test']}}
        assert compare('-opt', write(here, content), '-o', 'NEW', '--dry_run') == 0
        assert 'the folder none/validation/gt does not exist' in capsys.readouterr().out


def test_a_dry_run_refuses_mistakes_all_the_same(here):
    options = smoke()
    options['methods']['sdakd']['options'] = {'train:feature_opt:x': 1}
    with pytest.raises(UserError, match='there is no train:feature_opt:x'):
        compare('-opt', write(here, options), '-o', 'NEW', '--dry_run')
    network = {'type': 'SRVGGNetCompact', 'upscale': 4}
    write(here, {'teacher': {'weights': 'nowhere.pth', 'network': network}}, 'teacher.yml')
    options = smoke(teacher='teacher.yml')
    options['budget']['crop'] = 30
    with pytest.raises(UserError, match='budget:crop: 30 must be a multiple of the scale 4'):
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


HOLDER = """
import sys
from sdakd.lock import hold
hold(sys.argv[1])
print('held', flush=True)
sys.stdin.read()
"""


def test_a_record_is_that_of_the_process_that_trains(here):
    """A second one, refused before it starts or by its own training, changes neither record nor log nor options."""
    from sdakd.files.runs import Run, train_all

    class Told(Run):
        def command(self):
            path = f'experiments/{self.name}/models'
            return [sys.executable, '-c', f'import pathlib; p = pathlib.Path("{path}"); p.mkdir(parents=True); '
                                          '(p / "net_g_latest.pth").touch()']  # fmt: skip

    def run(name='run'):
        return Told(name, {}, here / 'runs', here, 1, 'key')

    first = run()
    first.record.state, first.record.starts, first.record.seconds = 'begun', 1, 5.0
    first.save()
    first.write_options()
    first.path('log').write_text('of the first')
    files = {path: path.read_bytes() for path in (here / 'runs').iterdir()}
    command = [sys.executable, '-c', HOLDER, str(first.experiment)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == 'held\n'
        second, third, events = run(), run('third'), []
        train_all([second, third], watch=lambda one, event: events.append((one.name, event)))
        assert second.record.state == 'broken' and 'a training runs in' in second.record.reason
        assert not second.done and third.done  # the others go on
        assert [event for name, event in events if name == 'run'] == ['begun', 'broken']
        late = run()
        late.finish(1)  # it began before the other one had come to its lock, and its training was refused
        assert late.record.state == 'broken'
        assert {path: path.read_bytes() for path in files} == files
        other.stdin.close()
    train_all([again := run()])  # now it is free
    assert again.done
