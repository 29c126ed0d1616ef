"""Experiments that version 0.1.0 wrote go on, and its checkpoints open.

``fixtures/experiments_0_1_0.zip`` is the folder ``experiments/`` of a checkout of 0.1.0 after trainings by its own
command that were killed: ``paired`` in the middle of its second and of its third stage (iterations 6 and 10 of 12);
``degraded``, whose teacher learns along, in the middle of the third; ``connected``, DCD with the default connector of
its time, in the middle of the second. Their option files are those that 0.1.0 archived.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.models import build_model

from sdakd import cli

ROOT = Path(__file__).resolve().parents[2]
STOPPED = [('paired', 6), ('paired', 10), ('degraded', 10), ('connected', 6)]
STAGE, END = 4, 12  # iterations of every stage, and of all three


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


@pytest.fixture
def checkout(world):
    """A checkout of this version with the experiments of 0.1.0, and the images that their option files name."""
    root = world.root / 'checkout'
    (root / 'basicsr').mkdir(parents=True)
    shutil.copy(ROOT / 'basicsr/train.py', root / 'basicsr')
    for package in (path for path in ROOT.iterdir() if (path / '__init__.py').is_file()):
        os.symlink(package, root / package.name)
    for folder in ('HR', 'LRx4'):
        shutil.copytree(world.root / folder, root / 'datasets' / folder)
    names = sorted(path.name for path in (root / 'datasets/HR').iterdir())
    (root / 'datasets/HR.txt').write_text(''.join(f'{name} (64,64,3)\n' for name in names))
    shutil.unpack_archive(ROOT / 'tests/fixtures/experiments_0_1_0.zip', root / 'experiments')
    return root


def stopped(checkout, name, iteration):
    """The folder of an experiment that saved nothing after an iteration."""
    folder = checkout / 'experiments' / name
    for path in [*folder.glob('models/*'), *folder.glob('training_states/*')]:
        if int(path.stem.rpartition('_')[2]) > iteration:
            path.unlink()
    return folder


def differences(one, other, where=''):
    """The keys under which two nested contents differ; tensors by every element."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f'{where}: {sorted(map(str, one.keys() ^ other.keys()))}']
        return [found for key in one for found in differences(one[key], other[key], f'{where}/{key}')]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return [found for n, each in enumerate(pairs) for found in differences(*each, f'{where}/{n}')]
    same = torch.equal(one, other) if torch.is_tensor(one) and torch.is_tensor(other) else one == other
    return [] if same else [where]


def steps(state):
    """Adam's counters: for every player the steps of its parameters, by number."""
    return {
        player: {number: int(moments['step']) for number, moments in optimizer['state'].items()}
        for player, optimizer in zip(state['players'], state['optimizers'], strict=True)
    }


@pytest.mark.parametrize(('name', 'iteration'), STOPPED)
def test_what_is_resumed_is_what_was_saved(name, iteration, checkout, parse):
    """Saved again before any step, every network, average, moment and score is bit for bit the one of 0.1.0."""
    from sdakd_models.resuming import load_resume_state

    folder = stopped(checkout, name, iteration)
    files = [*folder.glob(f'models/*_{iteration}.pth'), folder / f'training_states/{iteration}.state']
    saved = {path: load(path) for path in files}
    assert len(saved) == {'paired': 5, 'degraded': 6, 'connected': 4}[name]
    opt = parse(folder / f'{name}.yml', checkout, '--auto_resume')
    model = build_model(opt)
    state = load_resume_state(opt)
    assert state['iter'] == iteration
    model.resume_training(state)
    for path in files:
        path.unlink()
    model.save(state['epoch'], iteration)
    for path, content in saved.items():
        again = load(path)
        if path.suffix == '.state':  # what later versions have measured besides is not in it
            again = {key: again[key] for key in content}
            for group in (
                group for each in (content, again) for kept in each['optimizers'] for group in kept['param_groups']
            ):
                group.pop('fused')  # which of torch's implementations steps
        assert not differences(content, again), path.name


@pytest.mark.parametrize(('name', 'iteration'), STOPPED)
def test_the_literal_command_goes_on_to_the_end(name, iteration, checkout):
    folder = stopped(checkout, name, iteration)
    before = load(folder / f'training_states/{iteration}.state')
    words = [sys.executable, 'basicsr/train.py', '-opt', f'experiments/{name}/{name}.yml', '--auto_resume']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    process = subprocess.run(words, cwd=checkout, env=environment, timeout=300, **streams)
    out = process.stdout
    assert process.returncode == 0, out
    assert f'Resuming training from epoch: {before["epoch"]}, iter: {iteration}' in out
    assert f'stage: 3/3 adversarial {STAGE}/{STAGE}' in out

    # Adam counts on from 0.1.0's steps to the end of the stage, and from nothing in the next one
    end = -(-iteration // STAGE) * STAGE
    expected = {
        player: {number: count + end - iteration for number, count in counts.items()}
        for player, counts in steps(before).items()
    }
    assert any(counts and min(counts.values()) == STAGE for counts in expected.values())
    assert steps(load(folder / f'training_states/{end}.state')) == expected
    last = steps(load(folder / f'training_states/{END}.state'))
    assert {count for counts in last.values() for count in counts.values()} == {STAGE}
    for player in before['players']:
        start, final = (load(folder / f'models/net_{player}_{number}.pth') for number in (iteration, 'latest'))
        assert differences(start['params'], final['params']), player

    # who trains the student is as 0.1.0's option file says
    which, heard = {'paired': ('watcher', False)}.get(name, ('teacher', True))
    assert f'l_d_real_{which}: ' in out and (f'l_g_gan_{which}: ' in out) == heard
    if name == 'degraded':  # whose teacher learns along, by its images' PSNR
        assert (
            load(folder / f'training_states/{END}.state')['teacher_scores']['teacher']
            >= (before['teacher_scores']['teacher'])
        )


@pytest.mark.parametrize(('name', 'architecture'), [('paired', RRDBNet), ('degraded', SRVGGNetCompact)])
def test_a_students_checkpoint_upscales(name, architecture, checkout, tmp_path, photographs):
    """`sdakd upscale` on the checkpoint alone, against BasicSR's network with the averaged weights in the file."""
    folder = checkout / 'experiments' / name
    options = yaml.safe_load((folder / f'{name}.yml').read_text())['network_g']
    network = architecture(**{key: value for key, value in options.items() if key != 'type'})
    network.load_state_dict(load(folder / 'models/net_g_10.pth')['params_ema'])
    image = np.ascontiguousarray(photographs['coffee'][:24, :32])
    cv2.imwrite(str(tmp_path / 'small.png'), image[..., ::-1])
    model = folder / 'models/net_g_10.pth'
    words = ['upscale', '-i', str(tmp_path / 'small.png'), '-o', str(tmp_path / 'large'), '-m', str(model)]
    assert not cli.main(words)
    (written,) = (tmp_path / 'large').glob('*.png')
    with torch.no_grad():
        wanted = network.eval()(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0]
    levels = wanted.clamp(0, 1).permute(1, 2, 0).numpy() * 255
    assert np.abs(cv2.imread(str(written))[..., ::-1] - levels).max() <= 0.5 + 1e-3  # the nearest level
