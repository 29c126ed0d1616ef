"""Commands that are stopped: real processes, real signals, and results compared with those of uninterrupted runs."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact

from sdakd import cli
from sdakd.commands import upscale
from sdakd.commands.upscale.record import NAME as RECORD
from sdakd.files.runs import end, start
from sdakd.machine import lives

ROOT = Path(cli.__file__).parents[1]
# the checkout's folder basicsr/ must not hide an installed BasicSR
ENTER = f'import sys; sys.path.append({str(ROOT)!r}); from sdakd import cli; sys.path.remove({str(ROOT)!r})'
PATIENCE = 120  # seconds, after which a test has failed


@pytest.fixture(scope='module')
def photos(tmp_path_factory, photographs):
    """24 of 384 x 384 pixels, and 24 of 64 x 64."""
    root = tmp_path_factory.mktemp('photos')
    large = cv2.resize(photographs['chelsea'], (384, 384), interpolation=cv2.INTER_CUBIC)
    for side in (384, 64):
        (root / str(side)).mkdir()
        for number in range(24):
            cv2.imwrite(str(root / str(side) / f'{number:02d}.png'), np.roll(large, 16 * number, 1)[:side, :side])
    return root


def contents(folder):
    """Every file's bytes by its path, without the record of `sdakd upscale`, which holds times."""
    found = (path for path in Path(folder).rglob('*') if path.is_file() and path.name != RECORD)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def finished(folder):
    return [path for path in Path(folder).glob('*.png') if path.name[0] != '.']


def more_than(count, folder):
    return len(finished(folder)) > count


def begin(*words, code=f'{ENTER}; sys.exit(cli.main())', **options):
    """Starts a program in a session of its own, so that all that it starts can be found."""
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    line = [sys.executable, '-W', 'ignore', '-c', code, *map(str, words)]
    return subprocess.Popen(line, start_new_session=True, env=environment, **pipes, **options)


def wait_for(condition, process=None):
    begun = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() - begun < PATIENCE
        time.sleep(0.005)


def of_session(leader):
    """Processes of a session that live."""
    found = []
    for status in Path('/proc').glob('[0-9]*/stat'):
        try:
            _, _, rest = status.read_text().rpartition(')')
        except OSError:
            continue
        state, _, _, session = rest.split()[:4]
        if int(session) == leader and state not in 'ZX':
            found.append(int(status.parent.name))
    return found


def stop(process, number, group):
    """Stops a command; returns the last line that it says on stderr."""
    (os.killpg if group else os.kill)(process.pid, number)
    printed, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, said
    assert 'Traceback' not in said and 'Error' not in said
    assert len([line for line in said.splitlines() if line.startswith('Interrupted: ')]) == 1, said
    wait_for(lambda: not of_session(process.pid))
    return said.splitlines()[-1]


ON = 'Interrupted: give the same command again to go on.'


def test_prepare_goes_on_wherever_it_is_stopped(tmp_path, photos):
    """Three kinds of signal, to the command alone and to all of its processes, and at last to the end."""

    def words(out):
        settings = ('--crop_size', 96, '--step', 72, '--workers', 2)
        return [str(w) for w in ('prepare', 'subimages', '-i', photos / '384', '-o', tmp_path / out, *settings)]

    assert cli.main(words('whole')) == 0
    whole = contents(tmp_path / 'whole')
    there = set()
    for number, group in ((signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGHUP, False)):
        process = begin(*words('out'))
        wait_for(functools.partial(more_than, len(there), tmp_path / 'out'), process)
        assert stop(process, number, group) == ON
        found = contents(tmp_path / 'out')
        assert there < found.keys() < whole.keys()  # it has gone on, and nothing half-written is left
        assert all(found[name] == whole[name] for name in found)
        there = found.keys() - {'.sdakd_prepare.json'}
    assert cli.main(words('out')) == 0
    assert contents(tmp_path / 'out') == whole


def test_a_database_is_there_whole_or_not_at_all(tmp_path, photos):
    words = ['prepare', 'lmdb', '-i', photos / '384', '-o', tmp_path / 'db.lmdb', '--workers', '1']
    process = begin(*words)
    wait_for(lambda: list(tmp_path.glob('.db.part.lmdb/data.mdb')), process)
    assert stop(process, signal.SIGTERM, True) == ON
    assert list(tmp_path.iterdir()) == []


def test_upscale_goes_on(tmp_path, photos, capsys):
    torch.manual_seed(0)
    torch.save({'params': SRVGGNetCompact(num_feat=16, num_conv=4).state_dict()}, tmp_path / 'net.pth')

    def words(out, *more):
        return [
            str(w) for w in ('upscale', '-i', photos / '64', '-o', tmp_path / out, '-m', tmp_path / 'net.pth', *more)
        ]

    process = begin(*words('out'))
    wait_for(functools.partial(more_than, 2, tmp_path / 'out'), process)
    said = stop(process, signal.SIGTERM, False)
    assert said == 'Interrupted: the finished images stay; give the same command again to go on.'
    cut = tmp_path / 'out' / RECORD
    cut.write_bytes(cut.read_bytes()[:-9])  # as if it had been killed while it noted the last one
    before = {path: path.stat().st_mtime_ns for path in finished(tmp_path / 'out')}
    noted = len(cut.read_bytes().splitlines()) - 1
    assert 1 <= noted <= len(before) < 24

    assert cli.main(words('out')) == 0
    assert f'{noted} of 24 images are kept from an earlier run; --overwrite makes them anew' in capsys.readouterr().err
    assert sum(path.stat().st_mtime_ns == at for path, at in before.items()) == noted
    assert cli.main(words('whole')) == 0
    assert contents(tmp_path / 'out') == contents(tmp_path / 'whole')


def test_upscale_keeps_what_is_the_same(tmp_path, photos):
    """Another setting, network or input, a result that somebody changed, and --overwrite: these are made anew."""
    few = tmp_path / 'in'
    few.mkdir()
    for name in ('a.png', 'b.png'):
        cv2.imwrite(str(few / name), cv2.imread(str(photos / '64/00.png'))[:20, :20])
    net = SRVGGNetCompact(num_feat=4, num_conv=1)
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')

    def kept(**options):
        done = upscale.upscale(few, tmp_path / 'out', model=tmp_path / 'net.pth', **options)
        assert len(done.files) == 2
        return sorted(path.name for path in done.kept)

    assert kept() == []
    assert kept() == ['a.png', 'b.png']
    assert kept(overwrite=True) == [] and kept() == ['a.png', 'b.png']
    assert kept(outscale=2) == []  # of the same names
    assert kept() == []
    (tmp_path / 'out/a_out.png').write_bytes((tmp_path / 'out/a_out.png').read_bytes() + b'edited')
    assert kept() == ['b.png']
    cv2.imwrite(str(few / 'b.png'), cv2.imread(str(photos / '64/01.png'))[:20, :20])
    assert kept() == ['a.png']
    (tmp_path / 'out/a_out.png').unlink()
    assert kept() == ['b.png']
    net.body[0].weight.data.mul_(2)
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    assert kept() == []
    upscale.upscale(few / 'a.png', tmp_path / 'out', model=tmp_path / 'net.pth', outscale=2)
    assert kept() == ['b.png']  # a single image is always made, and is another one now


def test_an_export_leaves_only_whole_files(tmp_path):
    torch.save({'params': RRDBNet(3, 3, num_feat=8, num_block=1).state_dict()}, tmp_path / 'net.pth')
    process = begin('export', '-m', tmp_path / 'net.pth', '-o', tmp_path / 'out', '--to', 'torchscript')
    wait_for(lambda: list(tmp_path.glob('out/.export_*')), process)
    said = stop(process, signal.SIGINT, True)
    assert said == 'Interrupted: only whole files were written; give the same command again.'
    assert os.listdir(tmp_path) == ['net.pth']


# ------------------------------------------------------- signals ------------------------------------------------------

SLOW = f"""
{ENTER}
import time
from sdakd.commands import options
def slow(**_):
    try:
        print('begun', flush=True)
        time.sleep({PATIENCE})
    finally:
        time.sleep(0 if sys.argv[-1] == 'quick' else {PATIENCE})
options.add_arguments = lambda parser: (parser.add_argument('how'), parser.set_defaults(function=slow))
sys.exit(cli.main(['options', sys.argv[-1]]))
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_leaves_at_once(number):
    process = begin('slow', code=SLOW)
    assert process.stdout.readline() == 'begun\n'
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None  # it is in its finally
    process.send_signal(number)
    assert process.wait(PATIENCE / 2) == 128 + number
    assert 'Traceback' not in process.communicate()[1]


def test_what_is_ignored_stays_ignored():
    """As under nohup: the terminal closes, and the command goes on."""
    process = begin('quick', code=SLOW, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout.readline() == 'begun\n'
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 143 and said == '\nInterrupted: give the same command again.\n'


TRAINING = """
import os, signal, sys, time
from sdakd import stops
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
if not os.fork():
    time.sleep(600)  # such as a data loader's worker: it is not asked, or the training could not save
stops.follow_starter()
print('begun', flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.5)
print('x' * 100_000, flush=True)  # more than a pipe holds
open('saved', 'w').write(str(len(asked)))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_trainings_save_before_they_end(tmp_path):
    """They are asked once, waited for, and nothing of theirs is left."""
    processes = []
    for name in 'ab':
        (tmp_path / name).mkdir()
        processes.append(start([sys.executable, '-c', TRAINING], tmp_path / name, stdout=subprocess.PIPE))
        assert processes[-1].stdout.readline() == b'begun\n'
    end(processes)
    assert [(tmp_path / name / 'saved').read_text() for name in 'ab'] == ['1', '1']
    for process in processes:
        assert process.returncode is not None
        wait_for(lambda process=process: not of_session(process.pid))


STARTER = """
import subprocess, sys, time
from pathlib import Path
from sdakd.files.runs import start
code = 'import os, time; from sdakd import stops; stops.follow_starter(); print(os.getpid(), flush=True); time.sleep(9)'
training = start([sys.executable, '-c', code], Path(), stdout=subprocess.PIPE)
print(int(training.stdout.readline()), flush=True)
time.sleep(600)
"""


def test_a_training_ends_with_whoever_has_started_it(tmp_path):
    starter = begin(code=STARTER, cwd=tmp_path)
    training = int(starter.stdout.readline())
    assert lives(training)
    starter.kill()
    starter.wait()
    wait_for(lambda: not lives(training))


# ------------------------------------------------ errors that nobody foresaw -----------------------------------------

BROKEN = f"""
{ENTER}
from sdakd.commands import options
def fails(**_):
    raise KeyError('a key\\nof two lines')
options.options = fails
def add(parser):
    from sdakd.commands.interface import Flags
    Flags(parser, fails)
options.add_arguments = add
sys.exit(cli.main(['options', *sys.argv[1:]]))
"""


@pytest.mark.parametrize(('flags', 'debug'), [([], None), (['--debug'], None), ([], '1'), ([], '0')])
def test_an_unexpected_error_is_one_sentence_without_debug(flags, debug, monkeypatch):
    monkeypatch.delenv('SDAKD_DEBUG', raising=False)
    if debug:
        monkeypatch.setenv('SDAKD_DEBUG', debug)
    process = begin(*flags, code=BROKEN)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 1
    if flags or debug == '1':
        assert said.startswith('Traceback') and said.rstrip().endswith(r"KeyError: 'a key\nof two lines'")
    else:
        assert said == "Error: sdakd options failed: KeyError: 'a key\\nof two lines'; --debug shows where.\n"


@pytest.mark.parametrize('command', [name for name in cli.COMMANDS if name != 'prepare'] + ['prepare subimages'])
def test_every_command_has_the_flag(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), '-h'])
    assert ended.value.code == 0 and re.search(r'^ +--debug', capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize('words', [['options'], ['options', '-h']])
def test_a_reader_that_has_enough_is_no_error(words):
    process = begin(*words)
    process.stdout.close()
    assert process.wait(PATIENCE) in (0, 141)  # 0: it had written before
    assert process.stderr.read() == ''
    process.stderr.close()
