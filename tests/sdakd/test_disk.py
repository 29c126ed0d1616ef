"""Disks that are full, folders that cannot be written: one sentence, nothing half-written, and what was there stays."""

import contextlib
import errno
import functools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.srvgg_arch import SRVGGNetCompact

from sdakd import cli, compat
from sdakd.compat import REMEDIES, FullError, UserError, of_system, replacing
from sdakd.files.images import write
from sdakd_arch.weights import save_whole

ROOT = Path(cli.__file__).parents[1]
LIMIT = 16 << 10  # bytes of a file, from which on the system writes no more
OURS = ('.sdakd_prepare.json', '.sdakd_upscale.jsonl')  # small files that say what a folder holds


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Noise, whose files are larger than the limit, a network likewise, and results."""
    folder = tmp_path_factory.mktemp('place')
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    for part, side in (('in', 128), ('small', 64)):
        (folder / part).mkdir()
        for name in 'ab':
            cv2.imwrite(str(folder / part / f'{name}.png'), noise[:side, :side])
    torch.save({'params': SRVGGNetCompact(num_feat=24, num_conv=6).state_dict()}, folder / 'net.pth')
    evaluated = ['evaluate', '-m', 'bicubic', '-d', str(folder / 'in'), '--metrics', 'psnr']
    assert cli.main([*evaluated, '-o', str(folder / 'results')]) == 0
    return folder


@pytest.fixture
def limited():
    """Files end at the limit, as a disk does that is full; Python ignores the signal that comes with it."""

    @contextlib.contextmanager
    def within():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return within


def contents(folder):
    found = (path for path in Path(folder).rglob('*') if path.is_file() and path.name not in OURS)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


COMMANDS = {  # the line, and a file that it would replace
    'subimages': ('prepare subimages -i in -o {} --crop_size 96 --step 96 --workers 1', None),
    'multiscale': ('prepare multiscale -i in -o {} --workers 1', None),
    'pairs': ('prepare pairs -i in -o {} --degradation bicubic --workers 1', None),
    'faces': ('prepare faces -i in -o {} --aligned --size 128 --workers 1', None),
    'lmdb': ('prepare lmdb -i in -o {}/db.lmdb --workers 1', None),
    'evaluate': ('evaluate -m bicubic -d in -o {} --metrics psnr', 'results.json'),
    'upscale': ('upscale -i small -o {} -m net.pth', 'a_out.png'),
    'report': ('report -i results -o {}/report.html', 'report.html'),
    'export safetensors': ('export -m net.pth -o {} --to safetensors', 'net.safetensors'),
    'export onnx': ('export -m net.pth -o {} --to onnx', 'net.onnx'),
    'export torchscript': ('export -m net.pth -o {} --to torchscript', 'net.pt'),
    'export ncnn': ('export -m net.pth -o {} --to ncnn', 'net.param'),
}


@pytest.mark.parametrize('name', COMMANDS)
def test_a_file_that_finds_no_room(name, place, tmp_path, limited, monkeypatch):
    line, replaced = COMMANDS[name]
    if name == 'export ncnn':
        pytest.importorskip('pnnx')
    monkeypatch.chdir(place)
    out = tmp_path / 'out'
    if replaced:
        out.mkdir()
        (out / replaced).write_text('{"before": 1}')
    before = contents(out)
    with limited(), pytest.raises(UserError) as found:
        cli.main([word.format(out) for word in line.split()])
    assert re.fullmatch(r'\S+: it cannot be written \(File too large\); have the limit .*\.', str(found.value))
    assert found.value.where.startswith(str(out))
    after = contents(out)
    assert before.items() <= after.items()
    for name in after.keys() - before.keys():  # smaller than the limit, and whole
        assert name.endswith('.png') and cv2.imread(str(out / name)) is not None
    assert not [path for path in tmp_path.rglob('.*') if path.name not in OURS]


FULL = """
import contextlib, os, subprocess, sys
from pathlib import Path
sys.path.append({root!r})
from sdakd import cli
sys.path.remove({root!r})
disk, kind, keep = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=256k', 'none', disk], check=True)
if kind == 'ro':
    subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)
else:
    with open(disk / 'filler', 'wb', 0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b'x' * 4096)
    os.truncate(disk / 'filler', os.path.getsize(disk / 'filler') - keep)
try:
    status = cli.main(sys.argv[4:])
except BaseException as error:
    status = f'{{type(error).__name__}}: {{error}}'
left = sorted(str(path.relative_to(disk)) for path in disk.rglob('*') if path.is_file() and path.name != 'filler')
print('RESULT', status, *left, sep='|')
"""


@functools.lru_cache
def can_mount():
    done = subprocess.run(['unshare', '-rm', 'mount', '-t', 'tmpfs', 'none', '/mnt'], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.parametrize(
    ('kind', 'keep', 'line', 'says'),
    [
        ('full', 0, 'prepare lmdb -i in -o {}/db.lmdb --workers 1', 'No space left on device'),  # LMDB: SIGBUS
        ('full', 90_000, 'prepare lmdb -i in -o {}/db.lmdb --workers 1', 'No space left on device'),
        ('full', 0, 'prepare subimages -i in -o {}/out --workers 1', 'No space left on device'),
        ('full', 20_000, 'prepare subimages -i in -o {}/out --crop_size 96 --workers 1', 'No space left on device'),
        ('full', 0, 'report -i results -o {}/report.html', 'No space left on device'),
        ('ro', 0, 'prepare lmdb -i in -o {}/db.lmdb --workers 1', 'Read-only file system'),
        ('ro', 0, 'prepare meta -i in -o {}/new/meta.txt --workers 1', 'Read-only file system'),
    ],
)
def test_a_real_disk_that_is_full_or_read_only(kind, keep, line, says, place, tmp_path):
    """A small file system of its own, in a process that may mount one."""
    try:
        possible = can_mount()
    except OSError:
        possible = False
    if not possible:
        pytest.skip('no file system can be mounted here')
    words = [word.format(tmp_path) for word in line.split()]
    program = ['unshare', '-rm', sys.executable, '-W', 'ignore', '-c', FULL.format(root=str(ROOT))]
    done = subprocess.run([*program, tmp_path, kind, str(keep), *words], cwd=place, capture_output=True, text=True)
    result = [text for text in done.stdout.splitlines() if text.startswith('RESULT|')]
    assert result, (done.returncode, done.stderr)
    _, status, *left = result[0].split('|')
    assert re.fullmatch(rf'FullError: \S+: it cannot be written \({says}\); .* the same command again\.', status)
    assert all(name.endswith('.sdakd_prepare.json') for name in left)


# ------------------------------------------------------ one file -----------------------------------------------------


def blocked(kind, tmp_path):
    """A path that cannot be written, and what the sentence says of it."""
    (tmp_path / 'file').write_text('before')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'loop').symlink_to('loop')
    return {
        'a file for a folder': (tmp_path / 'file/new', 'remove the file that stands in the way'),
        'a folder': (tmp_path / 'folder', 'it is a folder; remove it'),
        'a long name': (tmp_path / ('x' * 300), 'choose a shorter name'),
        'a loop': (tmp_path / 'loop/new', 'remove'),
    }[kind]


@pytest.mark.parametrize('kind', ['a file for a folder', 'a folder', 'a long name', 'a loop'])
@pytest.mark.parametrize('how', ['bytes', 'tensors'])
def test_a_place_that_does_not_fit(kind, how, tmp_path):
    path, says = blocked(kind, tmp_path)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=says) as found:
        write(path, b'1') if how == 'bytes' else save_whole({'a': torch.zeros(1)}, path)
    assert '\n' not in str(found.value) and found.value.where == str(path)
    assert sorted(tmp_path.rglob('*')) == before and (tmp_path / 'file').read_text() == 'before'


def test_a_missing_folder_is_made_and_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / 'new/newer' / ('ü' * 127)  # 254 bytes, of 255
    write(path, b'1')
    write(path, b'2')
    assert path.read_bytes() == b'2' and len(list(path.parent.iterdir())) == 1


def test_tensors_that_find_no_room(tmp_path, limited):
    """torch makes a RuntimeError of it, which says nothing."""
    save_whole({'a': torch.zeros(10)}, tmp_path / 'a.pth')
    before = (tmp_path / 'a.pth').read_bytes()
    with limited(), pytest.raises(FullError, match='a.pth: it cannot be written .File too large.'):
        save_whole({'a': torch.zeros(LIMIT)}, tmp_path / 'a.pth')
    assert contents(tmp_path) == {'a.pth': before}


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (RuntimeError('a shape'), OSError('without a number'), KeyError('a')):
        with pytest.raises(type(error)) as found, replacing(tmp_path / 'a'):
            raise error
        assert found.value is error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('number', sorted(REMEDIES))
def test_the_system_is_quoted(number):
    found = of_system(OSError(number, os.strerror(number), 'out/a.png'))
    assert str(found).startswith(f'out/a.png: the system refuses ({os.strerror(number)}); ')
    assert isinstance(found, FullError) == (number in compat.FULL)
    assert of_system(OSError(errno.ECONNRESET, 'reset')) is None


def test_a_command_tells_of_what_the_system_refuses_anywhere(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, 'Permission denied', 'somewhere')

    from sdakd.commands.prepare import meta

    monkeypatch.setattr(meta, 'list_images', refused)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    with pytest.raises(UserError, match='somewhere: the system refuses .Permission denied.; make that place readable'):
        cli.main(['prepare', 'meta', '-i', str(tmp_path), '-o', str(tmp_path.parent / 'meta.txt')])


def test_an_output_that_cannot_be_written():
    if not os.path.exists('/dev/full'):
        pytest.skip('there is no /dev/full here')
    code = f'import sys; sys.path.insert(0, {str(ROOT)!r}); from sdakd import cli; sys.exit(cli.main())'
    with open('/dev/full', 'w', encoding='utf-8') as full:
        done = subprocess.run([sys.executable, '-c', code, 'options'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith('Error: standard output: it cannot be written (No space left on device); make room')
    assert len(done.stderr.splitlines()) == 1


def test_upscale_passes_over_a_name_that_is_too_long(place, tmp_path, monkeypatch):
    """One image cannot be written, the others can; a full disk ends all."""
    (tmp_path / 'in').mkdir()
    for name in ('a', 'b' * 251, 'c'):
        cv2.imwrite(str(tmp_path / f'in/{name}.png'), cv2.imread(str(place / 'small/a.png'))[:16, :16])
    with pytest.raises(UserError, match='1 of 3 images in .* could not be upscaled .*File name too long'):
        cli.main(['upscale', '-i', str(tmp_path / 'in'), '-o', str(tmp_path / 'out'), '-m', str(place / 'net.pth')])
    assert sorted(contents(tmp_path / 'out')) == ['a_out.png', 'c_out.png']
    lines = (tmp_path / 'out/.sdakd_upscale.jsonl').read_text().splitlines()
    assert [json.loads(line)[0] for line in lines] == ['a_out.png', 'c_out.png']
