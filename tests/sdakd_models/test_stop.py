"""A training that is told to stop, or fails in a step, saves, says how to go on, and goes on to the same end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STAGE = 60

BOMB = '''
import os, signal, time
from glob import glob
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.losses.basic_loss import L1Loss
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY

LOGS = 'experiments/run/*.log'

@LOSS_REGISTRY.register()
class BombLoss(L1Loss):
    calls = 0

    def forward(self, *images):
        BombLoss.calls += 1
        if BombLoss.calls == 12:
            raise RuntimeError('boom\\nand more')
        return super().forward(*images)

@LOSS_REGISTRY.register()
class SlowLoss(L1Loss):
    def forward(self, *images):
        if os.path.exists('slow'):
            time.sleep(30)
        return super().forward(*images)

@DATASET_REGISTRY.register()
class BombDataset(PairedImageDataset):
    """One image ends the process that loads it, or cannot be decoded."""

    def __getitem__(self, index):
        if 'coffee1' in self.paths[index]['gt_path'] and torch.utils.data.get_worker_info() is not None:
            if self.opt['name'] == 'image':
                raise ValueError('it is no image')
            deadline = time.monotonic() + 60  # it loads ahead: the first iteration may not have been done yet
            while time.monotonic() < deadline and not any('lr:(' in open(log).read() for log in glob(LOGS)):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)
'''


def options(world, name):
    found = world.options() | {'name': name, 'num_threads': 1}
    for stage in found['train']['stages'].values():
        stage |= {'iters': STAGE, 'lr_g': 1e-3}
    found['logger'] |= {'save_checkpoint_freq': 1000, 'print_freq': 1}
    found['datasets']['train']['num_worker_per_gpu'] = 1
    return found


def start(world, file):
    environment = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{world.root}', 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'sdakd.cli', 'train', '-opt', file, '--auto_resume']
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731  tests may run under nohup
    return subprocess.Popen(
        command, cwd=world.root, env=environment, start_new_session=True, preexec_fn=heard, **streams
    )


def until(process, pattern, count):
    """Reads lines until so many of them match."""
    for line in process.stdout:
        count -= bool(re.search(pattern, line))
        if not count:
            return line
    raise AssertionError(f'the process has ended before {count} more lines match {pattern}')


def end(folder):
    return {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob('models/*_latest.pth'))}


def flat(content, where=''):
    if torch.is_tensor(content):
        return {where: content}
    return {key: value for name, inner in content.items() for key, value in flat(inner, f'{where}/{name}').items()}


def test_signals_save_and_the_run_goes_on_to_the_same_bits(world):
    whole, stopped = (world.write(options(world, name), f'{name}.yml') for name in ('whole', 'stopped'))
    process = start(world, whole)
    out, _ = process.communicate()
    assert process.returncode == 0, out[-3000:]
    folder, last = world.root / 'experiments/stopped', 0
    for number, everyone in ((signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)):
        process = start(world, stopped)
        until(process, 'iter: .* lr', 20)
        # a terminal sends it to the whole group, those that load images among them
        os.killpg(process.pid, number) if everyone else process.send_signal(number)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + number, out[-3000:]
        assert f'{number.name}: the run saves after this step' in out and 'Traceback' not in out
        said = re.search(r'Stopped after iteration (\d+), which is saved in (.*); .*--auto_resume continues', out)
        assert said and said[2] == str(folder) and int(said[1]) > last
        last = int(said[1])
        assert (folder / f'training_states/{last}.state').is_file()
    process = start(world, stopped)
    out, _ = process.communicate()
    assert process.returncode == 0, out[-3000:]
    assert not [path for path in folder.rglob('*') if 'partial' in path.name]
    one, other = (flat(end(world.root / 'experiments' / name)) for name in ('whole', 'stopped'))
    assert one.keys() == other.keys() and len(one) > 60
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_the_second_signal_ends_at_once(world):
    given = options(world, 'run')
    given['imports'], given['train']['pixel_opt'] = ['bomb'], {'type': 'SlowLoss'}
    (world.root / 'bomb.py').write_text(BOMB)
    process = start(world, world.write(given))
    until(process, 'iter: .* lr', 3)
    (world.root / 'slow').touch()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    until(process, 'the run saves after this step', 1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ('bomb', 'sentence'),
    [
        ('loss', r'iteration \d+ failed in pixel \(RuntimeError: boom and more\)'),
        ('worker', 'datasets:train:num_worker_per_gpu: a process that loads images was killed'),
        ('image', r'datasets:train: .*coffee1.png cannot be used \(it is no image\); repair or remove it'),
    ],
)
def test_a_failure_in_mid_training_saves_and_says_what_it_was(world, bomb, sentence):
    given = options(world, 'run')
    (world.root / 'bomb.py').write_text(BOMB)
    given['imports'] = ['bomb']
    if bomb == 'loss':
        given['train']['pixel_opt'] = {'type': 'BombLoss'}
    else:
        given['datasets']['train']['type'] = 'BombDataset'
        given['datasets']['train']['name'] = bomb
    process = start(world, world.write(given))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and 'Traceback' not in out, out[-3000:]
    last = out.strip().splitlines()[-1]
    assert re.match(f'Error: {sentence}', last) and last.endswith('--auto_resume continues.'), last
    iteration = int(re.search(r'after iteration (\d+), which is saved', last)[1])
    assert (world.root / f'experiments/run/training_states/{iteration}.state').is_file()
    log = next((world.root / 'experiments/run').glob('*.log')).read_text()
    assert ('Traceback' in log) == (bomb == 'loss')  # what is a fault of the program can be reported
    if bomb == 'loss':  # the run goes on once the fault is mended
        given['train']['pixel_opt'] = {'type': 'L1Loss'}
        process = start(world, world.write(given))
        until(process, f'Resuming training from epoch: .* iter: {iteration}', 1)
        until(process, f'iter: *{iteration + 1}, lr', 1)
        process.kill()
        process.communicate()
