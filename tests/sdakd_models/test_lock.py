"""One training per folder: a second start is refused, and what a killed one has left is in nobody's way."""

import errno
import json
import os
import platform
import time

import filelock
import pytest

from sdakd.commands.doctor import doctor
from sdakd.lock import check_free, hold, lock_of
from sdakd_models.sdakd_model import SDAKDModel


def stay_in_step(last):
    """Has the training of this process stay in the step after ``last``."""
    step = SDAKDModel.optimize_parameters

    def late(model, iteration):
        if 'rehearsal' not in model.opt and iteration > last:
            time.sleep(1000)
        return step(model, iteration)

    SDAKDModel.optimize_parameters = late


def content(folder):
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in folder.rglob('*')
    }


def wait_for(path):
    until = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < until, f'{path} does not come'
        time.sleep(0.02)


@pytest.fixture
def file(world):
    options = world.options()
    for stage in options['train']['stages'].values():
        stage['iters'] = 2
    del options['val']
    options['logger'] |= {'save_checkpoint_freq': 1}
    options['datasets']['train']['num_worker_per_gpu'] = 1  # forked, it has the lock's file open, too
    return world.write(options)


def test_a_second_start_is_refused_until_the_first_one_is_gone(world, file, fork):
    run = world.root / 'experiments/run'
    first = fork(world.root, '-opt', file, change=lambda: stay_in_step(3))
    wait_for(run / 'training_states/3.state')
    time.sleep(0.5)
    before = content(world.root / 'experiments')
    for flags in ((), ('--auto_resume',)):
        second = fork(world.root, '-opt', file, *flags)
        printed = second.wait()
        assert second.status == 2 and 'Traceback' not in printed
        (sentence,) = [line for line in printed.splitlines() if line.startswith('Error: ')]
        assert f'{file}: name: a training runs in {run} already (process {first.pid} on ' in sentence
        assert f'{platform.node()}, since 20' in sentence and 'give this run another name' in sentence
        assert content(world.root / 'experiments') == before
    shown = [one for one in doctor(world.root).findings if one.subject == 'trainings']
    assert len(shown) == 1 and f'{run} (process {first.pid} on ' in shown[0].text

    first.kill()
    assert not [one for one in doctor(world.root).findings if one.subject == 'trainings']
    parts = [run / 'models/.net_g_4.pth.77.partial', run / 'training_states/.4.state.part']
    for part in parts:
        part.write_bytes(b'half')
    third = fork(world.root, '-opt', file, '--auto_resume')  # at once, while the killed one's worker may live still
    printed = third.wait()
    assert third.status == 0, printed
    assert not [part for part in parts if part.exists()]
    assert (run / 'models/net_g_6.pth').exists()


def test_a_run_that_begins_afresh_keeps_its_lock(world, file, fork):
    run = world.root / 'experiments/run'
    (run / 'models').mkdir(parents=True)
    (run / 'models/net_g_9.pth').write_bytes(b'of before')
    first = fork(world.root, '-opt', file, change=lambda: stay_in_step(1))
    wait_for(run / 'training_states/1.state')
    (archived,) = (world.root / 'experiments').glob('run_archived_*')
    assert (archived / 'models/net_g_9.pth').exists() and not (run / 'models/net_g_9.pth').exists()
    with pytest.raises(filelock.Timeout):
        filelock.FileLock(lock_of(run), timeout=0).acquire()
    second = fork(world.root, '-opt', file)
    assert f'process {first.pid} on ' in second.wait() and second.status == 2
    assert len(list((world.root / 'experiments').glob('run*'))) == 2


@pytest.mark.parametrize('error', [OSError(errno.ENOLCK, 'No locks available'), NotImplementedError('no flock')])
def test_a_disk_without_locks_is_no_mistake(tmp_path, monkeypatch, error):
    """As of network disks whose server offers none."""

    def acquire(self, *_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, 'acquire', acquire)
    assert hold(tmp_path / 'experiments/run') in ('No locks available', 'no flock')
    check_free(tmp_path / 'experiments/run')


def test_a_lock_of_another_run_is_nobody_elses(tmp_path):
    assert hold(tmp_path / 'experiments/one') is None is hold(tmp_path / 'experiments/one')
    check_free(tmp_path / 'experiments/two')
    assert hold(tmp_path / 'experiments/two') is None
    assert json.loads((tmp_path / 'experiments/.one.lock.json').read_text())['pid'] == os.getpid()
    assert {path.name[0] for path in (tmp_path / 'experiments').iterdir()} == {'.'}
