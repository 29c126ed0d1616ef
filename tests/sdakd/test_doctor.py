"""`sdakd doctor`: what it says of installations that are whole, broken or missing, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet

import basicsr
import sdakd
from sdakd.cli import main
from sdakd.commands import doctor as module
from sdakd.commands.doctor import Diagnosis, Finding
from sdakd.compat import UserError

ROOT = Path(__file__).resolve().parents[2]


def by_subject(diagnosis):
    found = {}
    for finding in diagnosis.findings:
        found.setdefault(finding.subject, []).append(finding)
    return found


def findings(folder, *, path=(), **environment):
    """Runs the command in a process of its own; its status, and the findings by subject."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (*path, ROOT))), **environment}
    command = [sys.executable, '-m', 'sdakd.cli', 'doctor', '--json']
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert 'Traceback' not in done.stderr, done.stderr
    content = json.loads(done.stdout)
    assert content['status'] == done.returncode
    return done.returncode, {one['subject']: one for one in content['findings']}


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / 'empty'
    folder.mkdir()
    return folder


def test_this_installation_trains(empty, capsys, monkeypatch):
    monkeypatch.chdir(empty)
    assert main(['doctor']) == 0
    text = capsys.readouterr().out
    for word in (sdakd.__version__, torch.__version__, np.__version__, basicsr.__version__, str(empty)):
        assert word in text
    assert text.splitlines()[-1].startswith('No problem and ')
    assert list(empty.iterdir()) == []
    diagnosis = sdakd.doctor(empty)
    assert isinstance(diagnosis, Diagnosis) and diagnosis.status == 0 and not diagnosis.problems
    assert {one.level for one in diagnosis.findings} <= {'ok', 'note', 'problem'}
    cores = len(os.sched_getaffinity(0))
    (processor,) = by_subject(diagnosis)['processor']
    assert f'{cores} cores, torch computes with {torch.get_num_threads()} threads' in processor.text


@pytest.mark.parametrize('name', ['basicsr', 'torch', 'numpy'])
def test_a_package_that_is_missing(name, empty, tmp_path):
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site/sitecustomize.py').write_text(f'import sys\nsys.modules[{name!r}] = None\n')
    status, found = findings(empty, path=[tmp_path / 'site'])
    subject = {'basicsr': 'BasicSR'}.get(name, name)
    assert status == 1 and found[subject]['level'] == 'problem' and 'install' in str(found[subject])
    assert found['Python']['level'] == 'ok' and found['disk']['text'].endswith('GiB free')  # the others are looked at


@pytest.mark.parametrize(
    ('name', 'error'),
    [
        ('cv2', "ImportError('libGL.so.1: cannot open')"),
        ('torchvision', "OSError('undefined symbol')"),
        ('basicsr', "AttributeError('no such function')"),
    ],
)
def test_a_package_that_is_broken(name, error, empty, tmp_path):
    (tmp_path / 'site' / name).mkdir(parents=True)
    (tmp_path / 'site' / name / '__init__.py').write_text(f'raise {error}\n')
    status, found = findings(empty, path=[tmp_path / 'site'])
    subject = {'basicsr': 'BasicSR', 'cv2': 'opencv-python'}.get(name, name)
    assert status == 1 and found[subject]['level'] == 'problem'
    assert error.split("'")[1] in found[subject]['text']


def test_basicsr_is_told_apart(empty, tmp_path):
    """Installed from an index, a checkout, a copy in a project, and a folder that only has its name."""
    status, found = findings(empty)
    assert status == 0 and f'{basicsr.__version__}' in found['BasicSR']['text']
    package = Path(basicsr.__file__).parent
    for name, files in (('checkout', ['setup.py', '.git']), ('project', [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'basicsr').symlink_to(package)
        for file in files:
            (tmp_path / name / file).touch()
    assert module._kind(tmp_path / 'checkout/basicsr') == 'a checkout'
    assert module._kind(tmp_path / 'project/basicsr') == 'vendored, a copy without an installation'
    assert module._kind(tmp_path / 'lib/site-packages/basicsr') == 'of PyPI'
    status, found = findings(empty, path=[tmp_path / 'project'])
    assert status == 0 and 'vendored' in found['BasicSR']['text'] and str(tmp_path) in found['BasicSR']['text']


def test_a_wrong_torchvision_and_old_torch_are_told(monkeypatch):
    versions = {'torch': '2.1.0', 'torchvision': '0.17.0'}
    monkeypatch.setattr(module, '_version', lambda name: versions.get(name, ''))
    monkeypatch.setattr(torch, '__version__', '2.1.0')
    (vision,) = module._torchvision()
    assert vision.level == 'note' and 'torchvision 0.16' in vision.remedy
    (found,) = module._torch()
    assert found.level == 'note' and 'executes' in found.text
    monkeypatch.setattr(torch, '__version__', '1.13.1')
    (found,) = module._torch()
    assert found.level == 'problem' and '2.1 or newer' in found.remedy


def test_weights_at_hand(empty):
    place = empty / 'experiments/pretrained_models'
    place.mkdir(parents=True)
    (place / 'RealESRGAN_x4plus.pth').write_bytes(b'PK cut off')
    whole = RRDBNet(3, 3, num_feat=8, num_block=1, num_grow_ch=4)
    torch.save({'params_ema': whole.state_dict()}, place / 'RealESRGAN_x2plus.pth')
    (place / 'realesr-general-x4v3.pth.part').write_bytes(b'half')
    os.mkfifo(place / 'RealESRNet_x4plus.pth')
    found = by_subject(sdakd.doctor(empty))['weights']
    said = {next(word for word in str(one.text).split() if 'models/' in word): one for one in found if '/' in one.text}
    assert said[f'{place}/RealESRGAN_x4plus.pth'].level == 'problem'
    assert said[f'{place}/RealESRNet_x4plus.pth'].level == 'problem'
    assert said[f'{place}/RealESRGAN_x2plus.pth'].level == 'ok'
    assert 'not the release' in said[f'{place}/RealESRGAN_x2plus.pth'].text
    assert said[f'{place}/realesr-general-x4v3.pth.part'].level == 'note'
    assert sdakd.doctor(empty).status == 1


def test_the_published_file_is_known_by_its_hash(empty, monkeypatch):
    import hashlib

    place = empty / 'experiments/pretrained_models'
    place.mkdir(parents=True)
    (place / 'vgg19-dcbb9e9d.pth').write_bytes(b'content')
    digest = hashlib.sha256(b'content').hexdigest()
    monkeypatch.setattr('sdakd_arch.zoo.published_digest', lambda name: digest[:8])
    (found,) = by_subject(sdakd.doctor(empty))['weights']
    assert found.level == 'ok' and found.text.endswith('is the published file')


def test_little_room_and_nothing_writable(empty, monkeypatch):
    usage = __import__('collections').namedtuple('usage', 'total used free')
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: usage(1 << 20, 0, 1 << 20))
    found = by_subject(sdakd.doctor(empty))
    assert found['disk'][0].level == 'problem' and found['shared memory'][0].level == 'note'
    (empty / 'experiments').touch()
    diagnosis = sdakd.doctor(empty)
    (problem,) = [one for one in by_subject(diagnosis)['folder'] if one.level == 'problem']
    assert 'experiments' in problem.text and diagnosis.status == 1
    with pytest.raises(UserError, match='--folder: .* is no folder'):
        sdakd.doctor(empty / 'experiments')


def test_a_disk_without_memory_maps(empty, monkeypatch):
    import lmdb

    def refuse(*arguments, **options):
        raise lmdb.InvalidParameterError('mmap')

    monkeypatch.setattr(lmdb, 'open', refuse)
    (found,) = module._lmdb(empty)
    assert found.level == 'note' and 'mmap' in found.text and list(empty.iterdir()) == []


def test_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda index: (20 << 30, 24 << 30))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index: f'card {index}')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: ((7, 5), (9, 0))[index])
    first, second = module._gpus()
    assert first.text == 'card 0, 20.0 of 24.0 GiB free, fp32' and second.text.endswith('fp32 and bf16')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    (none,) = module._gpus()
    assert none.level == 'note' and 'processor' in none.remedy


def test_plugins_are_named_and_a_broken_one_is_a_problem(tmp_path, empty):
    information = tmp_path / 'site/ladder-1.0.dist-info'
    information.mkdir(parents=True)
    (information / 'METADATA').write_text('Metadata-Version: 2.1\nName: ladder\nVersion: 1.0\n')
    (information / 'entry_points.txt').write_text('[sdakd.plugins]\nladder = ladder\n')
    (tmp_path / 'site/ladder.py').write_text('')
    status, found = findings(empty, path=[tmp_path / 'site'])
    assert (status, found['plug-ins']['text']) == (0, 'ladder')
    (tmp_path / 'site/ladder.py').write_text('import nowhere\n')
    status, found = findings(empty, path=[tmp_path / 'site'])
    assert status == 1 and 'nowhere' in found['plug-ins']['text']


def test_text_and_status():
    lines = str(Diagnosis([Finding('a', 'ok', 'x'), Finding('long', 'problem', 'y', 'do z')])).splitlines()
    assert lines == ['ok      a     x', 'problem long  y: do z', '1 problem and 0 notes: trainings do not run here.']
    assert Diagnosis([Finding('a', 'problem', 'x')]).status == 1


@pytest.mark.parametrize(('encoding', 'level'), [('cp1252', 'note'), ('UTF-8', 'ok'), ('utf8', 'ok')])
def test_a_text_encoding_that_lacks_letters_is_named(monkeypatch, encoding, level):
    """As Windows' code pages, by which BasicSR reads lists of images."""
    monkeypatch.setattr('locale.getpreferredencoding', lambda _=True: encoding)
    (found,) = module._text()
    assert found.level == level and encoding in found.text and ('PYTHONUTF8=1' in found.remedy) == (level == 'note')
