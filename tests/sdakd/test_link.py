"""`sdakd link`: what it writes, refuses, finds and takes away; an unmodified train.py of a linked BasicSR."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from basicsr.archs.srvgg_arch import SRVGGNetCompact

import basicsr
from sdakd import cli, compat
from sdakd.commands import link
from sdakd.compat import UserError

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path(basicsr.__file__).parent
PACKAGES = {
    'basicsr/archs/sdakd_arch.py': 'sdakd_arch',
    'basicsr/losses/sdakd_loss.py': 'sdakd_losses',
    'basicsr/models/sdakd_model.py': 'sdakd_models',
}
SHIMS = tuple(PACKAGES)
OPTIONS = {f'options/{p.relative_to(ROOT / "options").as_posix()}': p for p in (ROOT / 'options').rglob('*.yml')}
FILES = {**OPTIONS, 'options/schema.json': ROOT / 'options/schema.json'}  # the first line of each leads an editor to it

# What stands in for the machine of a user, in every process of a test that has the folder of this file on its path.
SITE = """
import os, sys

if os.environ.get('MEND'):  # a torchvision that belongs to its torch
    import torch

    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')


class Hidden:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0].startswith('sdakd') else self.finder.find_spec(name, path, target)


if os.environ.get('HIDE'):  # this plugin is not installed
    sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
    if os.environ['HIDE'] == 'mend':
        # without the plugin, BasicSR's own imports must be those of its torchvision
        import torchvision.transforms.functional

        sys.modules['torchvision.transforms.functional_tensor'] = torchvision.transforms.functional
"""

# a train.py cannot be stopped at an iteration from outside
STOP = """
import importlib.util, os

if 'STOP' in os.environ and importlib.util.find_spec('sdakd_models'):
    from sdakd_models.sdakd_model import SDAKDModel

    step = SDAKDModel.optimize_parameters

    def optimize_parameters(self, iteration):
        if iteration > int(os.environ['STOP']) and not self.opt.get('rehearsal'):
            os._exit(9)
        step(self, iteration)

    SDAKDModel.optimize_parameters = optimize_parameters
"""


def tree(folder) -> dict:
    """Every file with its content and every folder, without Python's caches."""
    paths = [p for p in Path(folder).rglob('*') if '__pycache__' not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def times(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob('*')}


@pytest.fixture
def bare(tmp_path):
    """The files by which a checkout is told, and a BasicSR that knows the models as soon as it is imported."""
    folder = tmp_path / 'BasicSR'
    for name in link.NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('')
    (folder / 'basicsr/utils/options.py').write_text('def parse_options(root_path, is_train=True):\n    pass\n')
    (folder / 'basicsr/utils/registry.py').write_text("MODEL_REGISTRY = {'SRModel': 0, 'SDAKDModel': 0}\n")
    (folder / 'basicsr/version.py').write_text('')
    (folder / 'options/train').mkdir(parents=True)
    (folder / 'options/train/theirs.yml').write_text('name: theirs\n')
    return folder


@pytest.fixture
def sdakd(monkeypatch, capsys):
    """Calls the command; returns its status and what it printed."""
    monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)

    def call(*arguments):
        status = cli.main(['link', *map(str, arguments)])
        return status, capsys.readouterr().out

    return call


class Machine:
    """Runs Python as a user's machine would, without a GPU."""

    def __init__(self, site):
        (site / 'sitecustomize.py').write_text(SITE)
        self.site = str(site)

    def environment(self, path='.', **more):
        """The variables of a process whose path begins with ``path``; ``MEND=''`` leaves torchvision as it is."""
        path = os.pathsep.join(filter(None, [path, self.site, str(ROOT)]))
        mend = '1' if compat._kept else ''  # only where torchvision did not import by itself
        return {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': path, 'MEND': mend, **more}

    def __call__(self, folder, *arguments, **environment):
        """Returns the status and all that was printed."""
        process = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=folder, timeout=300, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, **self.environment(**environment)},
        )  # fmt: skip
        return process.returncode, process.stdout

    def together(self, folder, *runs):
        """Several runs, pairs of arguments and variables, two at a time: importing torch is most of their work."""
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda run: self(folder, *run[0], **run[1]), runs))


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    return Machine(tmp_path_factory.mktemp('site'))


# ---------------------------------------------- what is written ------------------------------------------------------


def test_linked_twice_and_removed(bare, sdakd):
    before = tree(bare)
    status, out = sdakd(bare)
    assert status == 0 and out.splitlines() == [
        f'wrote 3 shims in basicsr/ and {len(OPTIONS)} option files in options/.',
        f'{bare} is linked: BasicSR finds this plugin through the shims.',
        f'  try it:    sdakd link {bare} --check',
        f'  train:     cd {bare} && python basicsr/train.py -opt options/sdakd_realesrgan_x4.yml',
        f'  undo it:   sdakd link {bare} --remove',
    ]
    after = tree(bare)
    assert set(after) - set(before) >= {*SHIMS, *FILES, link.RECORD}
    assert all(after[name] == path.read_bytes() for name, path in FILES.items()) and len(OPTIONS) > 5
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith('.part')]

    stamps = times(bare)
    status, out = sdakd(bare)
    assert (status, out) == (0, f'{bare} is linked already: nothing has changed.\n')
    assert tree(bare) == after and times(bare) == stamps

    status, out = sdakd(bare, '--remove')
    assert status == 0 and tree(bare) == before
    summary = f'removed 3 shims in basicsr/ and {len(OPTIONS)} option files in options/.'
    assert out.splitlines() == [summary, f'{bare} is not linked any more.']
    status, out = sdakd(bare, '--verbose')
    assert all(f'wrote {name}\n' in out for name in (*SHIMS, *FILES)) and tree(bare) == after
    status, out = sdakd(bare, '--remove', '--verbose')
    assert all(f'removed {name}\n' in out for name in (*SHIMS, *FILES)) and tree(bare) == before
    status, out = sdakd(bare, '--remove')
    assert (status, out) == (0, f'{bare} is not linked: there was nothing to remove.\n')


@pytest.mark.parametrize('name, package', list(PACKAGES.items()))
def test_a_shim_imports_its_own_kind_and_only_where_it_is_installed(name, package, monkeypatch):
    source = link.wanted_files()[name].decode()
    for installed in (True, False):
        asked, imported = [], []
        monkeypatch.setattr(importlib.util, 'find_spec', lambda n, a=asked, i=installed: a.append(n) or (i or None))
        real = __import__

        def importer(module, *rest, log=imported, real=real):
            if module == 'importlib.util':
                return real(module, *rest)
            log.append(module)

        exec(source, {'__builtins__': {'__import__': importer}})
        monkeypatch.undo()
        assert asked == [package] and imported == ([package] if installed else [])


def test_a_newer_plugin_updates_what_is_unchanged(bare, sdakd, monkeypatch):
    now = link.wanted_files
    older = {n: (b'# older\n' + d if n.startswith('options/') else d + b'# older\n') for n, d in now().items()}
    older['options/sub/deep/gone.yml'] = older['options/sub/gone_too.yml'] = b'name: gone\n'
    monkeypatch.setattr(link, 'wanted_files', lambda shims: older)
    before = tree(bare)
    sdakd(bare)
    monkeypatch.setattr(link, 'wanted_files', now)
    mine = bare / 'options/sdakd_realesrgan_x4.yml'
    mine.write_text('name: mine\n')
    (bare / 'options/sub/gone_too.yml').write_text('name: mine too\n')
    status, out = sdakd(bare, '--check')
    assert status == 1 and out.startswith(f'out of date: run `sdakd link {bare}` (') and out.count('\n') == 1
    assert 'options/distill.yml' in out and SHIMS[0] in out and mine.name not in out

    status, out = sdakd(bare, '--verbose')
    kept = 'kept options/sdakd_realesrgan_x4.yml, which has been changed since it was written\n'
    assert status == 0 and kept in out
    for line in ('updated options/distill.yml', f'updated {SHIMS[2]}', 'removed options/sub/deep/gone.yml',
                 'removed 1 option file in options/.'):  # fmt: skip
        assert f'{line}\n' in out
    content = tree(bare)
    assert content['options/distill.yml'] == OPTIONS['options/distill.yml'].read_bytes()
    assert content[SHIMS[2]] == now()[SHIMS[2]] and content['options/sub/gone_too.yml'] == b'name: mine too\n'
    assert mine.read_text() == 'name: mine\n'
    status, out = sdakd(bare)
    assert status == 0 and out == f'{kept}{bare} is linked already: nothing has changed.\n'

    status, out = sdakd(bare, '--remove')
    assert status == 0 and kept in out
    left = {'options/sub': None, 'options/sub/gone_too.yml': b'name: mine too\n'}
    assert tree(bare) == {**before, **left, 'options/sdakd_realesrgan_x4.yml': b'name: mine\n'}


@pytest.mark.parametrize('kind', ['option file', 'shim', 'dangling link', 'folder', 'file for a folder'])
def test_what_others_have_written_stays(kind, bare, sdakd, monkeypatch):
    if kind == 'option file':
        name = 'options/sdakd_realesrgan_x2.yml'
        (bare / name).write_text('name: mine\n')
    elif kind == 'shim':
        name = SHIMS[1]
        (bare / name).write_text('import my_loss\n')
    elif kind == 'dangling link':
        name = 'options/distill.yml'
        (bare / name).symlink_to(bare / 'nowhere.yml')
    elif kind == 'folder':
        name = SHIMS[0]
        (bare / name).mkdir()
    else:
        files = {**link.wanted_files(), 'options/sub/new.yml': b'name: new\n'}
        monkeypatch.setattr(link, 'wanted_files', lambda shims: files)
        (bare / 'options/sub').write_text('')
        name = 'options/sub/new.yml'
    before = tree(bare)
    with pytest.raises(UserError) as caught:
        sdakd(bare)
    text = str(caught.value)
    assert text.startswith(f'{bare / name} exists and was not written by') or kind == 'file for a folder', text
    assert str(bare / name) in text and 'move it away' in text
    assert tree(bare) == before
    sdakd(bare, '--remove')
    assert tree(bare) == before


def test_a_copy_by_hand_stays(bare, sdakd):
    shutil.copy(ROOT / 'options/distill.yml', bare / 'options/distill.yml')
    before = tree(bare)
    sdakd(bare)
    sdakd(bare, '--remove')
    assert tree(bare) == before


def test_interrupted_anywhere(bare, sdakd, monkeypatch):
    """Whatever the file at which writing fails: it can be undone to the byte, and done to the end."""
    before, whole = tree(bare), link.write
    sdakd(bare)
    linked = tree(bare)
    sdakd(bare, '--remove')
    for first in range(len(link.wanted_files()) + 1):
        left = [first]

        def failing(path, data, left=left):
            if not left[0]:
                raise OSError(28, 'No space left on device', str(path))
            left[0] -= 1
            whole(path, data)

        for finish in ([], ['--remove']):
            left[0] = first
            monkeypatch.setattr(link, 'write', failing)
            with pytest.raises(UserError, match='No space left on device; make .* writable'):
                sdakd(bare)
            monkeypatch.setattr(link, 'write', whole)
            status, _ = sdakd(bare, *finish)
            assert status == 0 and tree(bare) == (before if finish else linked)
            sdakd(bare, '--remove')


def test_a_damaged_or_hostile_record(bare, sdakd, tmp_path):
    (tmp_path / 'precious.yml').write_bytes(b'')
    empty = hashlib.sha256(b'').hexdigest()
    names = 'options/../../precious.yml', str(tmp_path / 'precious.yml')
    for record in ('{', '[]', *(json.dumps({'files': {name: empty}, 'folders': []}) for name in names)):
        (bare / link.RECORD).write_text(record)
        for action in ([], ['--check'], ['--remove']):
            with pytest.raises(UserError, match='sdakd_link.json is damaged: delete it'):
                sdakd(bare, *action)
    assert (tmp_path / 'precious.yml').exists()


def test_refused_folders(bare, sdakd, tmp_path):
    old = shutil.copytree(bare, tmp_path / 'old')
    (old / 'basicsr/utils/options.py').write_text('def parse(opt_path, root_path, is_train=True):\n    pass\n')
    site = shutil.copytree(bare, tmp_path / 'site-packages')
    lacking = shutil.copytree(bare, tmp_path / 'lacking')
    (lacking / 'basicsr/models/base_model.py').unlink()
    project = tmp_path / 'project'  # the launcher of this project's checkout is all that is in its basicsr/
    for name in ('basicsr', 'sdakd_models', 'options'):
        (project / name).mkdir(parents=True)
    shutil.copy(ROOT / 'basicsr/train.py', project / 'basicsr')
    before = tree(tmp_path)
    for folder, said in (
        (tmp_path / 'nowhere', 'is no folder'),
        (tmp_path / 'lacking', 'is no BasicSR checkout, it has no basicsr/models/base_model.py'),
        (project, 'is a checkout of this plugin and needs no link'),
        (ROOT, 'is a checkout of this plugin and needs no link'),
        (bare / 'basicsr', f'is the package inside a checkout: name the folder above it, {bare}'),
        (site, 'holds an installed BasicSR, no checkout: run `sdakd train'),
        (old, 'holds a BasicSR older than 1.4'),
    ):
        for action in ([], ['--check'], ['--remove']):
            with pytest.raises(UserError) as caught:
                sdakd(folder, *action)
            assert str(caught.value).startswith(f'{folder} {said}') and str(caught.value).endswith('.')
    assert tree(tmp_path) == before


def test_a_mistake_is_one_sentence(python, tmp_path):
    status, out = python(tmp_path, '-m', 'sdakd.cli', 'link', 'nowhere', path='', MEND='')
    assert (status, out) == (
        2,
        'Error: nowhere is no folder: name the folder of a BasicSR checkout (`git clone` of BasicSR) or of a '
        'project that trains with BasicSR.\n',
    )


# ---------------------------------------------- --check --------------------------------------------------------------

FUNCTIONAL = "No module named 'torchvision.transforms.functional_tensor'"


@pytest.mark.parametrize(
    'init, environment, said',
    [
        ('', {}, None),
        ("raise RuntimeError('operator torchvision::nms does not exist')", {}, 'torchvision was built for another'),
        (f'raise ImportError({FUNCTIONAL!r}, name={FUNCTIONAL.split(chr(39))[1]!r})', {}, 'run `git pull` in it'),
        ("raise ValueError('a fault of theirs')", {}, 'fails in {} with ValueError: a fault of theirs; see '),
        ('import os; os._exit(3)', {}, 'fails in {} with exit status 3'),
        ('from . import utils; utils.registry.MODEL_REGISTRY.pop("SDAKDModel")', {}, 'does not know SDAKDModel'),
        ("class UserError(Exception): pass\nraise UserError('torch is too old.')", {}, 'not working: torch is too old'),
        ('', {'path': ''}, f'imports {INSTALLED}/__init__.py instead of {{}}/basicsr, run `pip install'),
        ('', {'HIDE': '1'}, 'does not find sdakd_arch there, install this plugin again'),
    ],
)  # fmt: skip
def test_check_says_what_is_wrong_in_one_sentence(init, environment, said, bare, python, sdakd, monkeypatch):
    (bare / 'basicsr/utils/__init__.py').write_text('from . import registry\n')
    (bare / 'basicsr/__init__.py').write_text(init + '\n')
    sdakd(bare)
    before = tree(bare)
    monkeypatch.delenv('PYTHONDONTWRITEBYTECODE', raising=False)
    for name, value in python.environment(**{'MEND': '', **environment}).items():
        monkeypatch.setenv(name, value)  # the command itself runs here, the import of the checkout in a process
    status, out = sdakd(bare, '--check')
    first, second = out.splitlines()
    assert first == f'linked: 3 shims, {len(OPTIONS)} option files.'
    if said is None:
        assert status == 0 and second == 'working: `python basicsr/train.py` there knows SDAKDModel.'
    else:
        assert status == 1 and second.startswith('not working: ') and said.format(bare) in second
        assert second.endswith('.') and '. ' not in second.replace('PYTHONPATH=. ', '').replace('-e .` ', '')
    assert tree(bare) == before and not list(bare.rglob('__pycache__'))


def test_check_without_importing(bare, sdakd):
    status, out = sdakd(bare, '--check')
    assert (status, out) == (1, f'not linked: run `sdakd link {bare}`.\n')
    sdakd(bare)
    (bare / 'basicsr/version.py').unlink()
    status, out = sdakd(bare, '--check')
    assert status == 1 and 'has no basicsr/version.py, which its installation generates, run `pip install' in out
    (bare / SHIMS[2]).unlink()
    status, out = sdakd(bare, '--check')
    assert (status, out) == (1, f'out of date: run `sdakd link {bare}` ({SHIMS[2]}).\n')


# ---------------------------------------------- a BasicSR that is linked ---------------------------------------------


@pytest.fixture(scope='module')
def linked(tmp_path_factory):
    """The installed BasicSR as a checkout, linked, with a model that can stop a training."""
    folder = tmp_path_factory.mktemp('linked') / 'BasicSR'
    shutil.copytree(INSTALLED, folder / 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))
    (folder / 'options').mkdir()
    assert link.link(folder).status == 0
    (folder / 'basicsr/models/stop_model.py').write_text(STOP)
    return folder


def write(folder, name, options, more=''):
    file = folder / 'options' / name
    file.write_text(yaml.safe_dump(options, sort_keys=False) + more)
    return f'options/{name}'


def test_check_of_the_real_basicsr(linked, python, sdakd, monkeypatch):
    for name, value in python.environment().items():
        monkeypatch.setenv(name, value)
    status, out = sdakd('--check', linked)
    models = 'SDAKDGCFSRModel, SDAKDModel, SDAKDRealESRGANModel'
    assert status == 0 and f'working: `python basicsr/train.py` there knows {models}.\n' in out


def test_an_unmodified_train_py_trains_and_resumes_on_the_cpu(linked, python, shared_world):
    options = shared_world.options()
    for stage in options['train']['stages'].values():
        stage['iters'] = 3
    options['logger'].update(print_freq=1, save_checkpoint_freq=2)
    options['val']['val_freq'] = 100
    command = ('basicsr/train.py', '-opt', write(linked, 'mine.yml', options), '--auto_resume')
    status, out = python(linked, *command, STOP='5')
    assert status == 9 and 'stage: 2/3 distillation 2/3' in out, out
    status, out = python(linked, *command)
    assert status == 0 and 'Traceback' not in out, out
    assert 'Resuming training from epoch: ' in out and 'iter: 4.' in out
    assert 'stage: 2/3 distillation 2/3' in out and 'stage: 1/3' not in out and 'stage: 3/3 adversarial 3/3' in out
    assert 'l_g_feature: ' in out and 'l_g_gan: ' in out and '# psnr: ' in out
    run = linked / 'experiments/run'
    assert {f'net_g_{i}.pth' for i in (3, 6, 9, 'latest')} <= {p.name for p in (run / 'models').iterdir()}
    state = torch.load(run / 'models/net_g_latest.pth', weights_only=True)
    SRVGGNetCompact(num_feat=4, num_conv=4).load_state_dict(state['params_ema'])
    assert (linked / 'basicsr/train.py').read_bytes() == (INSTALLED / 'train.py').read_bytes()


def test_a_bad_option_file_creates_nothing(linked, python, shared_world):
    before, value = tree(linked), shared_world.options()
    value['train']['stages']['supervised']['lr_g'] = 'fast'
    tag = "trap: !!python/object/apply:os.mkdir ['trapped']\n"  # BasicSR's own loader would make the folder
    files = {'lr_g: expected `float`': ('value.yml', value), 'object/apply': ('tag.yml', shared_world.options(), tag)}
    runs = [(('basicsr/train.py', '-opt', write(linked, *file)), {}) for file in files.values()]
    for (said, (name, *_)), (status, out) in zip(files.items(), python.together(linked, *runs), strict=True):
        errors = [line for line in out.splitlines() if line.startswith(f'Error: options/{name}: ')]
        assert status == 2 and len(errors) == 1 and said in errors[0] and 'Traceback' not in out, out
        (linked / 'options' / name).unlink()
    assert tree(linked) == before


def test_models_of_others_are_left_to_basicsr(linked, python, shared_world):
    """With the plugin and, as after it has been uninstalled, without it."""
    runs = {}
    for name, hide in (('beside', ''), ('alone', 'mend')):
        options = shared_world.options()
        options.update(name=name, model_type='SRModel', num_gpu=0)
        options['network_g'] = {'type': 'MSRResNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1}
        options['train'] = {
            'total_iter': 2,
            'optim_g': {'type': 'Adam', 'lr': 1e-3, 'betas': [0, 0]},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [2]},
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
        }
        for block, key in (
            (options, 'network_d'),
            (options, 'teacher'),
            (options, 'val'),
            (options['datasets'], 'val'),
        ):
            del block[key]
        # BasicSR's own parse_options evaluates a list as Python; to this plugin's, 1 - 0.5 is a text
        flags = ('--force_yml', 'train:optim_g:betas=[0.5,1-0.5]')
        runs[name] = ('basicsr/train.py', '-opt', write(linked, f'{name}.yml', options), *flags), {'HIDE': hide}
    for name, (status, out) in zip(runs, python.together(linked, *runs.values()), strict=True):
        assert status == 0 and 'Model [SRModel] is created.' in out and 'betas: [0.5, 0.5]' in out, out
        assert (linked / f'experiments/{name}/models/net_g_latest.pth').is_file()


@pytest.mark.parametrize('package', ['sdakd_models', 'sdakd_arch'])
def test_whichever_package_is_imported_first(package, linked, python):
    """The import of a package begins that of BasicSR, whose shims begin those of the others."""
    code = f"""
import sys, {package}, basicsr.train, sdakd_models
from basicsr.utils.registry import LOSS_REGISTRY, MODEL_REGISTRY

assert basicsr.train.parse_options is sdakd_models.launch.parse_options
assert 'SDAKDModel' in MODEL_REGISTRY and 'FeatureMapLoss' in LOSS_REGISTRY
sys.stdout.write(basicsr.__file__)
"""
    status, out = python(linked, '-c', code)
    assert status == 0 and out.endswith(str(linked / 'basicsr/__init__.py')), out


# ---------------------------------------------- a project with an installed BasicSR ---------------------------------

TRAIN = """# a project's script
from __future__ import annotations
import os.path as osp

import windows.archs
from basicsr.train import train_pipeline

if __name__ == '__main__':
    root_path = osp.abspath(osp.join(__file__, osp.pardir, osp.pardir))
    train_pipeline(root_path)
"""

# an architecture that takes sizes of whole windows only, as HAT's
ARCH = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn


@ARCH_REGISTRY.register()
class Windows(nn.Module):
    def __init__(self, window_size=16):
        super().__init__()
        self.window_size = window_size
        self.body = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x):
        n, c, h, w = x.shape
        x.view(n, c, h // self.window_size, self.window_size, w // self.window_size, self.window_size)
        return self.body(x)
"""


@pytest.fixture
def project(tmp_path):
    """Laid out like Real-ESRGAN, HAT and GFPGAN: a package with train.py, options/, BasicSR installed elsewhere."""
    folder = tmp_path / 'project'
    (folder / 'windows/archs').mkdir(parents=True)
    (folder / 'options').mkdir()
    (folder / 'windows/__init__.py').write_text('')
    (folder / 'windows/archs/__init__.py').write_text('from . import windows_arch\n')
    (folder / 'windows/archs/windows_arch.py').write_text(ARCH)
    (folder / 'windows/train.py').write_text(TRAIN)
    return folder


def test_a_project_gets_one_import_and_loses_it(project, sdakd):
    before = tree(project)
    status, out = sdakd(project)
    assert status == 0 and out.splitlines()[:2] == [
        f'wrote 1 import in windows/train.py and {len(OPTIONS)} option files in options/.',
        f'{project} is linked: windows/train.py imports this plugin.',
    ]
    assert f'cd {project} && python windows/train.py -opt options/sdakd_realesrgan_x4.yml' in out
    after = tree(project)
    assert set(after) - set(before) >= {*FILES, link.RECORD} and not set(SHIMS) & set(after)
    lines = after['windows/train.py'].decode().splitlines()
    assert lines[2] == link.LINE and [*lines[:2], *lines[3:]] == TRAIN.splitlines()
    status, out = sdakd(project)
    assert (status, out) == (0, f'{project} is linked already: nothing has changed.\n') and tree(project) == after
    status, out = sdakd(project, '--remove')
    assert status == 0 and tree(project) == before and out.endswith('is not linked any more.\n')
    status, out = sdakd(project, '--remove')
    assert (status, out) == (0, f'{project} is not linked: there was nothing to remove.\n')
    status, out = sdakd(project, '--check')
    assert (status, out) == (1, f'not linked: run `sdakd link {project}`.\n')


@pytest.mark.parametrize('source', [
    TRAIN.replace('\n', '\r\n').encode(),
    b'\xef\xbb\xbf' + TRAIN.encode(),
    TRAIN.rstrip().encode(),
    b'"""Doc.\n\nimport nothing\n"""\n# -*- coding: utf-8 -*-\n\nimport os; import sys\n'
    b'from basicsr import train_pipeline\n',
    '# größe\nfrom basicsr.train import (\n    train_pipeline,\n)\n'.encode(),
])  # fmt: skip
def test_whatever_the_script_looks_like(project, sdakd, source):
    """The import is the first one, other lines stay as they are, byte by byte."""
    import ast

    (project / 'windows/train.py').write_bytes(source)
    sdakd(project)
    linked = (project / 'windows/train.py').read_bytes()
    imports = [node for node in ast.parse(linked).body if isinstance(node, ast.Import | ast.ImportFrom)]
    first = next(node for node in imports if getattr(node, 'module', '') != '__future__')
    assert [name.name for name in first.names] == ['sdakd_models'] and linked.count(b'sdakd_models') == 1
    sdakd(project, '--remove')
    assert (project / 'windows/train.py').read_bytes() == source


@pytest.mark.parametrize('source', ['import basicsr_other\ntrain_pipeline()\n', 'print(1\n', 'import torch\n'])
def test_what_is_no_script_of_basicsr(project, source):
    (project / 'windows/train.py').write_text(source)
    with pytest.raises(UserError, match='no train.py in it calls .* or write `import sdakd_models` into your own'):
        link.link(project)


def test_a_script_at_the_top(project, sdakd):
    (project / 'windows/train.py').rename(project / 'train.py')
    assert 'wrote 1 import in train.py' in sdakd(project)[1]


def test_a_project_trains_its_own_architecture(project, python, sdakd, shared_world, monkeypatch, tmp_path):
    """An unmodified BasicSR; inputs of validation that are no multiple of the windows are padded."""
    import cv2
    import numpy as np

    for name, value in python.environment(path=str(project)).items():
        monkeypatch.setenv(name, value)
    sdakd(project)
    models = 'SDAKDGCFSRModel, SDAKDModel, SDAKDRealESRGANModel'
    assert f'working: `python windows/train.py` there knows {models}.\n' in sdakd(project, '--check')[1]
    options = shared_world.options() | {'network_g': {'type': 'Windows', 'window_size': 16}, 'num_gpu': 0}
    del options['network_d'], options['path']
    options['datasets']['train']['gt_size'] = 64
    options['train']['stages'] = {'supervised': {'iters': 2, 'lr_g': 1e-3, 'terms': ['pixel']}}
    options['train'] = {key: options['train'][key] for key in ('ema_decay', 'stages', 'pixel_opt')}
    options['val'] |= {'val_freq': 2, 'save_img': True}
    image = np.random.default_rng(0).integers(0, 256, (27, 37, 3), np.uint8)
    for side, scale in (('gt', 4), ('lq', 1)):
        (tmp_path / side).mkdir()
        cv2.imwrite(str(tmp_path / side / 'odd.png'), image.repeat(scale, 0).repeat(scale, 1))
        options['datasets']['val'][f'dataroot_{side}'] = str(tmp_path / side)
    status, out = python(project, 'windows/train.py', '-opt', write(project, 'mine.yml', options), path=str(project))
    assert status == 0 and '# psnr: ' in out, out
    (picture,) = (project / 'experiments/run/visualization').rglob('*.png')
    assert cv2.imread(str(picture)).shape == (108, 148, 3)
    options['datasets']['train']['gt_size'] = 96
    status, out = python(project, 'windows/train.py', '-opt', write(project, 'mine.yml', options), path=str(project))
    assert (
        status == 2 and 'datasets:train:gt_size: the crop of 96 gives inputs of 24 pixels, and network_g takes' in out
    )
    assert 'write a multiple of 64.' in out


def test_check_of_a_project_that_is_not_installed(project, python, sdakd, monkeypatch):
    for name, value in python.environment(path='').items():
        monkeypatch.setenv(name, value)
    sdakd(project)
    status, out = sdakd(project, '--check')
    assert status == 1 and 'not working: `python windows/train.py` does not find windows' in out
