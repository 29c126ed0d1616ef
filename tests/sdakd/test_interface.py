"""Commands as functions: the errors they raise, and the parsers that fill their arguments in."""

import argparse
import importlib
import inspect
import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.utils.matlab_functions import imresize

import sdakd
from sdakd import cli
from sdakd.commands.prepare.faces import faces
from sdakd.commands.prepare.pairs import pairs
from sdakd.commands.prepare.subimages import subimages
from sdakd.compat import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_an_error_knows_its_place():
    error = UserError('train:stages', 'there is no stage; write one.')
    assert (error.where, error.sentence) == ('train:stages', 'there is no stage; write one.')
    assert str(error) == 'train:stages: there is no stage; write one.'
    assert str(error.at('methods:sdakd')) == 'methods:sdakd: there is no stage; write one.'
    assert str(error.within('run.yml').within('out')) == 'out: run.yml: train:stages: there is no stage; write one.'
    assert error.within('run.yml').where == 'run.yml: train:stages'


@pytest.mark.parametrize(
    ('text', 'where', 'sentence'),
    [
        ('--size: write 8, not: 4.', '--size', 'write 8, not: 4.'),
        ('--metrics fid: the file is missing.', '--metrics fid', 'the file is missing.'),
        ('run.yml: train:stages: write one.', 'run.yml', 'train:stages: write one.'),
        ('torch is too old: install another.', '', 'torch is too old: install another.'),
        ('nothing could be measured.', '', 'nothing could be measured.'),
    ],
)
def test_one_argument_is_the_whole_text(text, where, sentence):
    error = UserError(text)
    assert (str(error), error.where, error.sentence) == (text, where, sentence)
    assert str(error.at('here')) == f'here: {sentence}'
    assert str(error.within('here')) == f'here: {text}'


def test_an_error_survives_another_process():
    """A worker's exception is pickled on its way to the parent."""
    for error in (UserError('-i', 'is it there?.'), UserError('-i: is it there?.'), UserError('torch is old.')):
        found = pickle.loads(pickle.dumps(error))
        assert (str(found), found.where, found.sentence) == (str(error), error.where, error.sentence)
    assert str(UserError('-i', 'is it there?.')) == '-i: is it there?'


# ------------------------------------------------------ parsers ------------------------------------------------------


def names():
    return sorted(name.replace(' ', '_') for name in set(cli.COMMANDS) - {'prepare'})


def parsed(command, words):
    parser = argparse.ArgumentParser()
    importlib.import_module(f'sdakd.commands.{command}').add_arguments(parser)
    return vars(parser.parse_args(words))


REQUIRED = {
    'bench': '-m a -o out',
    'bench_train': '-opt a',
    'card': '-m a',
    'compare': '-opt a',
    'demo': '',
    'distill': '-t a -d b -o out',
    'doctor': '',
    'evaluate': '-m a -d b -o out',
    'export': '-o out',
    'fetch': '',
    'init': '--from a -t b',
    'link': 'folder',
    'models': '',
    'options': '',
    'publish': '-m a',
    'report': '-i a -o out',
    'upscale': '-i a -o out',
}
JOBS = {
    'subimages': '',
    'multiscale': '',
    'meta': '',
    'lmdb': '',
    'pairs': '--degradation bicubic',
    'faces': '',
}  # fmt: skip


@pytest.mark.parametrize(('command', 'words'), [*REQUIRED.items(), *((f'prepare {job}', w) for job, w in JOBS.items())])
def test_a_parser_fills_in_what_the_function_takes_and_nothing_else(command, words):
    """Every argument of the function has a flag, and what is not given is the signature's default."""
    command, *job = command.split()
    words = [*job, *(['-i', 'a', '-o', 'out'] if job else []), *words.split()]
    values = parsed(command, words)
    function = values.pop('function')
    assert function.__name__ == (job or [command])[0]
    parameters = inspect.signature(function).parameters
    assert values.keys() == parameters.keys()
    given = {name for name, value in values.items() if value != parameters[name].default}
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    assert required <= given <= required | {'output'}
    if required:
        with pytest.raises(SystemExit):  # the command line cannot do without them
            parsed(command, job)


def test_every_command_has_a_function_of_its_name():
    assert names() == sorted(REQUIRED) == sorted(sdakd.FUNCTIONS)
    for name in names():
        module = importlib.import_module(f'sdakd.commands.{name}')
        assert getattr(sdakd, name) is getattr(module, name)
        assert name in dir(sdakd)
    with pytest.raises(AttributeError, match='no attribute .evaluat'):
        sdakd.evaluat  # noqa: B018


@pytest.mark.parametrize(
    ('call', 'where'),
    [
        (lambda: sdakd.evaluate(['bicubic'], ['photos'], scale=0), '--scale'),
        (lambda: sdakd.evaluate(['bicubic'], ['photos'], scale=[2, 2]), '--scale'),
        (lambda: sdakd.evaluate(['bicubic'], ['photos'], crop_border=-1), '--crop_border'),
        (lambda: sdakd.evaluate(['bicubic'], ['photos'], noise='some'), '--noise'),
        (lambda: sdakd.evaluate(['bicubic'], ['photos'], seed=1.5), '--seed'),
        (lambda: sdakd.bench(['student.pth'], size=True), '--size'),
        (lambda: sdakd.bench(['student.pth'], rounds=0), '--rounds'),
        (lambda: sdakd.bench(['student.pth'], precisions=['fp8']), '--precisions'),
        (lambda: sdakd.bench(['student.pth'], device='tpu'), '--device'),
        (lambda: sdakd.bench_train('absent.yml', reuse=[0]), '--reuse'),
        (lambda: sdakd.bench_train('absent.yml', device='tpu'), '--device'),
        (lambda: sdakd.export('student.pth', 'onxn', 'out'), '--to'),
        (lambda: sdakd.upscale('photos', 'out', ext='gif'), '--ext'),
        (lambda: sdakd.upscale('photos', 'out', outscale=-2), '-s'),
        (lambda: sdakd.upscale('photos', 'out', tile=1.5), '-t'),
        (lambda: sdakd.upscale('photos', 'out', alpha_upsampler='none'), '--alpha_upsampler'),
        (lambda: sdakd.report(['OUT'], 'page.txt'), '-i'),
        (lambda: sdakd.compare('a.yml', jobs=0), '--jobs'),
        (lambda: subimages('photos', 'out', crop_size=0), '--crop_size'),
        (lambda: pairs('photos', 'out', degradation='cubic'), '--degradation'),
        (lambda: faces('photos', 'out', size=100), '--size'),
    ],
)
def test_functions_refuse_what_their_flags_refuse(call, where, ground, monkeypatch):
    monkeypatch.chdir(ground)
    before = sorted(ground.rglob('*'))
    with pytest.raises(UserError) as error:
        call()
    assert error.value.where == where and error.value.sentence.count('\n') == 0
    assert sorted(ground.rglob('*')) == before


# ------------------------------------------------------ from Python --------------------------------------------------


@pytest.fixture
def ground(tmp_path, photographs):
    """What the examples of docs/python.md expect to find."""
    for name, features in (('teacher', 8), ('student', 4)):
        network = SRVGGNetCompact(num_feat=features, num_conv=2)
        torch.save({'params': network.state_dict()}, tmp_path / f'{name}.pth')
    (tmp_path / 'photos').mkdir()
    for name in ('astronaut', 'coffee'):
        cv2.imwrite(str(tmp_path / 'photos' / f'{name}.png'), photographs[name][..., ::-1])
    return tmp_path


def test_importing_is_cheap():
    code = 'import sdakd, sys; sys.exit(bool({"torch", "numpy", "cv2", "basicsr", "yaml"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0


def test_the_examples_in_the_documentation(ground, monkeypatch, capsys):
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT / 'docs/python.md').read_text(), re.M | re.S)
    monkeypatch.chdir(ground)
    scope = {}
    for block in blocks:
        exec(block, scope)  # they build on each other
    printed = capsys.readouterr().out
    assert '-m | the file absent.pth does not exist.\n' in printed
    assert 'photos/coffee.png -> large/coffee_out.png\n' in printed and 'EXPORT/student.pt\n' in printed
    enlarged = cv2.imread('large/coffee_out.png')
    assert enlarged.shape == (256, 256, 3)
    written = json.loads((ground / 'OUT/results.json').read_text())
    section = scope['results'].sections[4]
    assert written['evaluate'] == section and written['bench'] == scope['timings'].section
    found = {(s['model'], s['metric'], s['reference']): s['mean'] for s in section['scores']}
    assert scope['results'].mean('student', 'ssim', 'teacher') == found['student', 'ssim', 'teacher']
    assert scope['results'].mean('teacher', 'ssim', 'teacher') is None
    assert 'student' in (ground / 'report.html').read_text()
    assert len(list((ground / 'train/lq').iterdir())) == 8


def test_nothing_is_written_without_an_output(ground, monkeypatch, capsys):
    monkeypatch.chdir(ground)
    before = sorted(ground.rglob('*'))
    results = sdakd.evaluate(['student.pth', 'bicubic'], ['photos'], metrics=['psnr'])
    timings = sdakd.bench(['student.pth'], size=8, rounds=1, backends=['eager'], precisions=['fp32'])
    assert sorted(ground.rglob('*')) == before
    assert capsys.readouterr().out == ''
    lq = [imresize(cv2.imread(f'photos/{name}.png') / 255, 1 / 4) for name in ('astronaut', 'coffee')]
    large = [(imresize((part.clip(0, 1) * 255).round() / 255, 4).clip(0, 1) * 255).round() for part in lq]
    gt = [cv2.imread(f'photos/{name}.png').astype(float) for name in ('astronaut', 'coffee')]
    y = [(b @ [24.966, 128.553, 65.481])[4:-4, 4:-4] / 255 for b in (a - c for a, c in zip(gt, large, strict=True))]
    psnr = [10 * math.log10(255**2 / np.square(error).mean()) for error in y]
    assert results.mean('bicubic', 'psnr') == pytest.approx(sum(psnr) / 2, abs=0.05)
    assert timings.section['runs'][0]['median_ms'] > 0 and 'Wrote' not in str(timings)
