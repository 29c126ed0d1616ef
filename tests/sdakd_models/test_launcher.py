"""Distributed trainings end together, with one sentence, and hang nowhere."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from basicsr.data.paired_image_dataset import PairedImageDataset

from sdakd_models import processes
from sdakd_models.loop import Loop
from sdakd_models.sdakd_model import SDAKDModel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def options(world):
    options = world.options()
    options['train']['stages'] = {'supervised': {'iters': 1000, 'lr_g': 1e-3, 'terms': ['pixel']}}
    options['logger'] |= {'print_freq': 1}
    del options['val']
    return options


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


@pytest.fixture
def pair(world, fork):
    """Starts a training in two processes that meet as those of a launcher; ends them after the test."""

    def start(options, change=lambda: None, roots=(world.root, world.root)):
        file = world.write(options)
        common = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port()}
        common |= {'TORCHELASTIC_ERROR_FILE': ''}
        flags = ('-opt', file, '--launcher', 'pytorch')
        return [fork(roots[rank], *flags, change=change, RANK=str(rank), **common) for rank in range(2)]

    return start


def on_rank(rank, name, function, of=SDAKDModel):
    """Puts a function before a method, in the process of this rank only and not in a rehearsal."""

    def change():
        original = getattr(of, name)

        def method(self, *arguments):
            rehearsed = isinstance(self, SDAKDModel) and 'rehearsal' in self.opt
            if os.environ['RANK'] == str(rank) and not rehearsed:
                function(self, *arguments)
            return original(self, *arguments)

        setattr(of, name, method)

    return change


def errors(*printed):
    return [line for text in printed for line in text.splitlines() if line.startswith('Error: ')]


def test_a_mistake_that_only_the_main_process_looks_for(world, options, pair):
    options['teacher']['weights'] = str(world.root / 'gone.pth')
    options['train']['stages']['supervised']['terms'] = ['pixel', 'feature']
    both = pair(options)
    printed = [one.wait() for one in both]
    assert [one.status for one in both] == [2, 2]
    assert len(errors(*printed)) == 1 and 'gone.pth does not exist' in errors(printed[0])[0]
    assert 'Traceback' not in ''.join(printed) and not (world.root / 'experiments').exists()


def test_nan_in_the_data_of_one_process(world, options, pair):
    def poison(model, iteration):
        if iteration > 2:
            model.gt = model.gt * float('nan')

    both = pair(options, on_rank(1, 'optimize_parameters', poison))
    printed = [one.wait() for one in both]
    assert [one.status for one in both] == [2, 2]
    (sentence,) = errors(*printed)
    assert 'the loss l_g_pix became nan at iteration 3' in sentence and '--auto_resume' in sentence
    assert 'Traceback' not in ''.join(printed)


def test_an_error_of_one_process(world, options, pair):
    def fail(model, iteration):
        if iteration > 2:
            raise ValueError('a fault of the program')

    main, second = pair(options, on_rank(1, 'optimize_parameters', fail))
    quiet, loud = main.wait(), second.wait()
    assert main.status == second.status == 1
    assert 'failed (ValueError: a fault of the program)' in loud and 'Traceback' not in loud
    assert 'Traceback' in next((world.root / 'experiments').rglob('error_1.log')).read_text()
    assert 'Traceback' not in quiet and 'Error' not in quiet


@pytest.mark.parametrize(('lost', 'far'), [(0, False), (1, False), (1, True)])
def test_a_process_that_is_killed(world, options, pair, monkeypatch, lost, far):
    """Without a launcher that would end the other one; with the main process, the store is lost as well."""
    if far:  # as on another machine, where nobody sees whether it runs
        monkeypatch.setattr(processes, '_place', lambda: os.environ['RANK'])
        monkeypatch.setattr(processes, 'SILENT', 3.0)

    def tell(model, iteration):
        if iteration == 3:
            (world.root / 'third').touch()

    both = pair(options, on_rank(0, 'optimize_parameters', tell))
    while not (world.root / 'third').exists():
        assert os.waitpid(both[0].pid, os.WNOHANG)[0] == 0, both[0].printed()
        time.sleep(0.02)
    both[lost].kill()
    printed = both[1 - lost].wait(60)
    assert both[1 - lost].status == 2
    (sentence,) = errors(printed)
    assert f'process {lost} of the run (pid {both[lost].pid} on ' in sentence and '--auto_resume' in sentence
    assert 'Traceback' not in printed


def test_a_request_to_stop_that_one_of_them_hears(world, options, pair):
    def tell(model, iteration):
        if iteration == 3:
            (world.root / 'third').touch()

    both = pair(options, on_rank(0, 'optimize_parameters', tell))
    while not (world.root / 'third').exists():
        assert os.waitpid(both[0].pid, os.WNOHANG)[0] == 0, both[0].printed()
        time.sleep(0.02)
    os.kill(both[1].pid, signal.SIGTERM)
    printed = [one.wait() for one in both]
    assert [one.status for one in both] == [128 + signal.SIGTERM] * 2
    assert 'Stopped after iteration ' in printed[0] and not errors(*printed) and 'Traceback' not in ''.join(printed)
    assert len(list((world.root / 'experiments/run/training_states').glob('*.state'))) == 1


def test_one_that_waits_outside_of_a_collective_operation_ends_too(world, options, pair):
    """In the data loader, on a disk that does not answer."""

    def wait(_set, _index):
        if Loop.latest.draws is not None:  # not in the checks, which load an image as well
            time.sleep(1000)

    def fail(model, iteration):
        raise ValueError('a fault of the program')

    def change():
        on_rank(0, '__getitem__', wait, PairedImageDataset)()
        on_rank(1, 'optimize_parameters', fail)()

    both = pair(options, change)
    printed = [one.wait(60) for one in both]
    assert [one.status for one in both] == [1, 1] and 'Traceback' not in printed[0]


def test_what_the_main_process_does_alone_may_take_longer_than_a_collective_operation(world, options, pair):
    """Its checks and its work before the first step, with a time limit of four seconds."""
    options['train']['stages']['supervised']['iters'] = 2

    def slow(*_):
        time.sleep(6)

    def change():
        import datetime

        from sdakd_models import launch, sdakd_model

        start = torch.distributed.init_process_group
        limit = datetime.timedelta(seconds=4)
        torch.distributed.init_process_group = lambda backend: start(backend, timeout=limit)
        check, context = launch.check_run, sdakd_model.check_context
        main = os.environ['RANK'] == '0'
        launch.check_run = lambda *a, **k: (slow() if main else None, check(*a, **k))[1]
        sdakd_model.check_context = lambda *a, **k: (slow(), context(*a, **k))[1]

    both = pair(options, change)
    printed = [one.wait() for one in both]
    assert [one.status for one in both] == [0, 0], printed


def test_the_main_process_alone_writes(world, options, pair):
    """The other one has another folder here, and leaves nothing there but its images and its own random numbers."""
    plain = world.options()
    options['val'], options['datasets'] = plain['val'] | {'val_freq': 2, 'save_img': True}, plain['datasets']
    options['logger'] |= {'use_tb_logger': True, 'save_checkpoint_freq': 2}
    options['train']['stages'] = plain['train']['stages']
    for stage in options['train']['stages'].values():
        stage['iters'] = 2
    far = world.root / 'far'
    far.mkdir()
    both = pair(options, roots=(world.root, far))
    printed = [one.wait() for one in both]
    assert [one.status for one in both] == [0, 0], printed
    written = [
        {str(path.relative_to(root)) for path in root.rglob('*') if path.is_file()} for root in (world.root, far)
    ]
    assert {f'experiments/run/models/net_{name}_6.pth' for name in ('g', 'd', 'adapter')} <= written[0]
    assert 'experiments/run/training_states/6.state' in written[0] and any('tb_logger' in each for each in written[0])
    images = {each for each in written[1] if each.startswith('experiments/run/visualization/')}
    assert len(images) == 4 * 3  # every second one of eight, three validations
    assert written[1] - images == {f'experiments/run/training_states/{number}_random1.pth' for number in (2, 4, 6)}


def test_meeting_takes_all_and_alone_nobody_waits(monkeypatch):
    processes.meet()
    assert processes.gather('own') == ['own'] and processes.spread('own') == 'own'


# ------------------------------------------------------------------------------------------------------------ torchrun


def torchrun(world, file, root):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(ROOT / 'sdakd/cli.py'), 'train', '-opt', file, '--launcher', 'pytorch']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    pipe = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    return subprocess.Popen(command, cwd=root, env=environment, **pipe)


def test_a_mistake_stands_at_the_end_of_torchruns_report(world, options):
    """It is found before the processes know each other."""
    options['train']['stagse'] = 1
    launcher = torchrun(world, world.write(options), world.root)
    printed = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 1  # torchrun's own
    assert len(errors(printed)) == 1 and "unknown key 'stagse'" in errors(printed)[0]
    assert printed.count('Traceback') == 1 and '[rank' not in printed  # torchrun's own
    cause = printed[printed.index('Root Cause') :]
    assert re.search(r'exitcode  : 2 .*\n.*\n  traceback : .*unknown key .stagse.; did you mean stages', cause)


def test_torchrun_with_a_process_that_is_killed(world, options):
    """torchrun ends the other one within a tenth of a second: it must have its say before."""
    launcher = torchrun(world, world.write(options), world.root)
    lines = []
    for line in launcher.stdout:
        lines.append(line)
        if 'iter:       3' in line:
            break
    children = Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text(encoding='utf-8').split()
    ranks = {}
    for pid in children:
        environment = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
        ranks |= {int(entry[5:]): int(pid) for entry in environment if entry.startswith(b'RANK=')}
    os.kill(ranks[1], signal.SIGKILL)
    printed = ''.join(lines) + launcher.communicate(timeout=100)[0]
    assert launcher.returncode == 1
    (sentence,) = errors(printed)
    assert f'process 1 of the run (pid {ranks[1]} on ' in sentence and '--auto_resume' in sentence
    assert printed.count('Traceback') == 1 and '[rank' not in printed


def agents(options, world, port):
    """One torchrun on each of two machines, which are this one, that find each other by rendezvous."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc-per-node=1', '--rdzv-id=run']
    command += ['--rdzv-backend=c10d', f'--rdzv-endpoint=localhost:{port}', str(ROOT / 'sdakd/cli.py'), 'train']
    command += ['-opt', world.write(options), '--launcher', 'pytorch']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    pipe = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    return [subprocess.Popen(command, cwd=world.root, env=environment, **pipe) for _ in range(2)]


def test_two_machines_that_find_each_other_by_rendezvous(world, options):
    options['train']['stages']['supervised']['iters'] = 2
    machines = agents(options, world, free_port())
    printed = [machine.communicate(timeout=200)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed
    assert sorted('World size (gpu number): 2' in text for text in printed) == [False, True]
    assert (world.root / 'experiments/run/models/net_g_2.pth').exists()


# --------------------------------------------------------------------------------------------------------------- SLURM


def tasks(world, options, fork, hosts, number=2):
    """Tasks as srun starts them, with a scontrol that answers for SLURM's own."""
    folder = world.root / 'bin'
    folder.mkdir()
    script = f'#!/bin/sh\n[ "$*" = "show hostname far[1-2]" ] && {hosts}\n'
    (folder / 'scontrol').write_text(script, encoding='utf-8')
    (folder / 'scontrol').chmod(0o755)
    options['dist_params'] = {'backend': 'nccl', 'port': int(free_port())}
    flags = ('-opt', world.write(options), '--launcher', 'slurm')
    common = {'SLURM_NTASKS': '2', 'SLURM_NODELIST': 'far[1-2]', 'PATH': f'{folder}:{os.environ["PATH"]}'}
    return [fork(world.root, *flags, SLURM_PROCID=str(task), SLURM_LOCALID='0', **common) for task in range(number)]


def test_tasks_of_slurm_train_together(world, options, fork):
    options['train']['stages']['supervised']['iters'] = 2
    both = tasks(world, options, fork, "printf 'localhost\\nelsewhere\\n'")
    printed = [one.wait() for one in both]
    assert [one.status for one in both] == [0, 0], printed
    assert 'World size (gpu number): 2' in printed[0] and 'iter:       2' not in printed[1]
    assert (world.root / 'experiments/run/models/net_g_2.pth').exists()


def test_slurm_that_does_not_answer(world, options, fork):
    (one,) = tasks(world, options, fork, 'exit 1', number=1)  # the others are silent until srun ends them
    printed = one.wait()
    (sentence,) = errors(printed)
    assert one.status == 2
    assert '--launcher slurm: `scontrol show hostname far[1-2]` does not name the machines' in sentence
    assert 'Traceback' not in printed and not (world.root / 'experiments').exists()


def test_the_slurm_launcher_without_srun(world, options, fork):
    one = fork(world.root, '-opt', world.write(options), '--launcher', 'slurm')
    (sentence,) = errors(one.wait())
    assert one.status == 2 and 'no srun has started this process (SLURM_PROCID is not set)' in sentence
