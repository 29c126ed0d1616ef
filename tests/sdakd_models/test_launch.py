"""The literal command as a user types it, in processes of its own, with BasicSR installed in every way."""

import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch

import basicsr

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
INSTALLED = os.path.dirname(os.path.abspath(basicsr.__file__))


def command(*arguments, cwd=ROOT, python=sys.executable, **environment):
    """Runs a command without a GPU; returns its status and all it printed."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **environment}
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    process = subprocess.run([python, *arguments], cwd=cwd, env=environment, timeout=300, **streams)
    return process.returncode, process.stdout


@pytest.fixture
def checkout(tmp_path):
    """This project's files that the literal command needs, in a folder of their own: runs write beside them."""
    folder = tmp_path / 'checkout'
    for package in ('sdakd', 'sdakd_arch', 'sdakd_data', 'sdakd_losses', 'sdakd_metrics', 'sdakd_models'):
        shutil.copytree(os.path.join(ROOT, package), folder / package, ignore=shutil.ignore_patterns('__pycache__'))
    (folder / 'basicsr').mkdir()
    shutil.copy(os.path.join(ROOT, 'basicsr/train.py'), folder / 'basicsr/train.py')
    return folder


def test_three_stages_stopped_and_resumed(world, checkout, tmp_path):
    """20 iterations a stage, killed in each of them and continued from another folder with --auto_resume."""
    options = world.options()
    options['logger'] = {'print_freq': 5, 'save_checkpoint_freq': 5, 'use_tb_logger': True}
    options['val']['val_freq'] = 1000
    file = world.write(options)
    train = str(checkout / 'basicsr/train.py')
    for last in (7, 33, 48):  # dies without a chance to save anything after this iteration
        killer = (
            f'import os, runpy, sys; sys.argv = sys.argv[1:]; sys.path.append({str(checkout)!r}); import sdakd_models;'
            'from sdakd_models.sdakd_model import SDAKDModel; step = SDAKDModel.optimize_parameters;'
            f'late = lambda model, i: i > {last} and "rehearsal" not in model.opt;'
            'SDAKDModel.optimize_parameters = lambda model, i: os._exit(9) if late(model, i) else step(model, i);'
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        status, out = command('-c', killer, train, '-opt', file, '--auto_resume', cwd=str(tmp_path))
        assert status == 9, out
    status, out = command(train, '-opt', file, '--auto_resume', cwd='/')
    assert status == 0, out
    assert 'Resuming training from epoch: ' in out and 'iter: 45' in out
    assert 'stage: 3/3 adversarial 20/20' in out and 'eta: ' in out
    run = checkout / 'experiments/run'
    assert {f'net_g_{i}.pth' for i in (20, 40, 60, 'latest')} <= {p.name for p in (run / 'models').iterdir()}
    logs = ''.join(p.read_text() for p in sorted(run.glob('*.log')))
    assert logs.count('Validation held_out') >= 3 and '# psnr: ' in logs
    for name in ('l_g_pix', 'l_g_feature', 'l_g_gan', 'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'):
        assert f'{name}: ' in logs
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = {}
    events = EventAccumulator(str(checkout / 'tb_logger/run'))
    events.Reload()
    tags = events.Tags()
    assert {'losses/l_g_pix', 'losses/l_g_feature', 'losses/l_d_real', 'out_d_real', 'stage'} <= set(tags['scalars'])
    assert 'metrics/held_out/psnr' in tags['scalars'] and 'held_out/0/result' in tags['images']
    assert {int(e.value) for e in events.Scalars('stage')} == {1, 2, 3}


def short(world):
    options = world.options()
    for stage in options['train']['stages'].values():
        stage['iters'] = 2
    del options['val']
    return options


def test_basicsr_through_pythonpath_and_editable(world, checkout, tmp_path):
    """A BasicSR checkout on PYTHONPATH, together with this project's root, and as an editable installation."""
    basicsr_checkout = tmp_path / 'BasicSR'
    shutil.copytree(INSTALLED, basicsr_checkout / 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))
    with open(basicsr_checkout / 'basicsr/train.py', 'a', encoding='utf-8') as file:
        file.write("\n\ndef _mark():\n    import sys\n    sys.stderr.write('the checkout is running\\n')\n\n_mark()\n")
    file = world.write(short(world))
    path = os.pathsep.join([str(checkout), str(basicsr_checkout)])
    status, out = command('basicsr/train.py', '-opt', file, cwd=str(checkout), PYTHONPATH=path)
    assert status == 0 and 'the checkout is running' in out, out
    shutil.rmtree(checkout / 'experiments')

    (basicsr_checkout / 'setup.py').write_text(
        'from setuptools import find_packages, setup\n'
        "setup(name='basicsr', version='1.4.2', packages=find_packages())\n"
    )
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(tmp_path / 'venv')], check=True)
    python = str(tmp_path / 'venv/bin/python')
    site = sysconfig.get_path('purelib', vars={'base': str(tmp_path / 'venv')})
    with open(
        os.path.join(site, 'parent.pth'), 'w', encoding='utf-8'
    ) as pth:  # torch and the rest, but BasicSR from the checkout
        pth.write(sysconfig.get_path('purelib') + '\n')
    pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-build-isolation',
           '--no-index', '--ignore-installed', '-e', str(basicsr_checkout)]  # fmt: skip
    subprocess.run(pip, check=True, env={**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1'})
    assert [p for p in os.listdir(site) if 'basicsr' in p and p.endswith(('.pth', '_finder.py'))]
    # setuptools' finder is asked after the folders of the path: the parent's wheel must not answer first
    hide = tmp_path / 'hide'
    hide.mkdir()
    for name in os.listdir(sysconfig.get_path('purelib')):
        if not name.startswith('basicsr'):
            os.symlink(os.path.join(sysconfig.get_path('purelib'), name), hide / name)
    with open(os.path.join(site, 'parent.pth'), 'w', encoding='utf-8') as pth:
        pth.write(f'{hide}\n')
    status, out = command('basicsr/train.py', '-opt', file, cwd=str(checkout), python=python, PYTHONPATH=str(checkout))
    assert status == 0 and 'the checkout is running' in out, out


def test_console_command_and_a_train_py_of_ones_own(world, tmp_path):
    options = short(world)
    (tmp_path / 'here').mkdir()
    arguments = ('-m', 'sdakd.cli', 'train', '-opt', world.write(options), '--debug')
    status, out = command(*arguments, cwd=tmp_path / 'here', PYTHONPATH=ROOT)
    assert status == 0 and 'stage: 3/3 adversarial 1/2' in out, out
    assert (tmp_path / 'here/experiments/debug_run/models/net_g_latest.pth').exists()

    own = tmp_path / 'own.py'
    own.write_text(
        'import sys\nimport sdakd_models\nfrom basicsr.train import train_pipeline\n\n'
        f'if __name__ == "__main__":\n    train_pipeline({str(tmp_path / "own")!r})\n'
    )
    status, out = command(str(own), '-opt', world.write(options), PYTHONPATH=ROOT)
    assert status == 0, out
    assert (tmp_path / 'own/experiments/run/models/net_g_6.pth').exists()
    options['train']['stages']['supervised']['lr_g'] = 'fast'
    status, out = command(str(own), '-opt', world.write(options, 'bad.yml'), PYTHONPATH=ROOT)
    assert status == 2 and 'Traceback' not in out and 'lr_g: expected `float`' in out
    assert len(list((tmp_path / 'own/experiments').iterdir())) == 1  # the good run was not archived


def test_two_processes_on_the_cpu(world, checkout):
    """torchrun with two processes: the same weights on both, all stages, one set of files."""
    options = short(world)
    file = world.write(options)
    arguments = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', 'basicsr/train.py', '-opt', file)
    status, out = command(*arguments, '--launcher', 'pytorch', cwd=str(checkout))
    assert status == 0, out
    models = checkout / 'experiments/run/models'
    state = torch.load(models / 'net_g_6.pth', weights_only=True)['params']
    assert all(torch.isfinite(value).all() for value in state.values())
    assert 'World size (gpu number): 2' in out and out.count('Start training from epoch: 0, iter: 0') == 1
    status, out = command('basicsr/train.py', '-opt', file, '--launcher', 'pytorch', cwd=str(checkout))
    assert status == 2 and 'torchrun --nproc_per_node=N' in out and 'Traceback' not in out


def test_without_basicsr_or_torch(checkout, tmp_path):
    """Bare interpreters say in one sentence what is missing."""
    status, out = command('-S', 'basicsr/train.py', '-opt', 'x.yml', cwd=str(checkout), PYTHONPATH='')
    assert status == 2 and out.strip() == 'Error: the package torch is not installed: pip install torch.'
    hide = tmp_path / 'hide'
    hide.mkdir()
    for name in os.listdir(sysconfig.get_path('purelib')):
        if not name.startswith('basicsr'):
            os.symlink(os.path.join(sysconfig.get_path('purelib'), name), hide / name)
    status, out = command('-S', 'basicsr/train.py', '-opt', 'x.yml', cwd=str(checkout), PYTHONPATH=str(hide))
    assert status == 2 and 'BasicSR is not installed: ' in out and 'Traceback' not in out
