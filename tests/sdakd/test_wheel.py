"""What works without a checkout: a wheel is built, installed into a new environment, and used from an empty folder."""

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import yaml

import basicsr
from sdakd.commands import link
from sdakd.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
PARTS = ('sdakd', 'sdakd_arch', 'sdakd_data', 'sdakd_losses', 'sdakd_metrics', 'sdakd_models', 'options')


class Installed:
    """The command of an environment that has the wheel, and everything else from the one that runs the tests."""

    def __init__(self, folder):
        source, environment = folder / 'source', folder / 'environment'
        for name in PARTS:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__', 'node_modules'))
        for name in ('pyproject.toml', 'setup.py', 'README.md'):
            shutil.copy(ROOT / name, source)
        (source / 'options/sub').mkdir()
        (source / 'options/sub/one.yml').write_text('# One more.\nname: one\n')
        pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
        build = ['wheel', '--quiet', '--no-deps', '--no-build-isolation', '--no-index', '-w', str(folder), str(source)]
        subprocess.run([*pip, *build], check=True)
        shutil.rmtree(source)
        subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(environment)], check=True)
        self.bin = environment / 'bin'
        (wheel,) = folder.glob('*.whl')
        install = ['--python', str(self.bin / 'python'), 'install', '--quiet', '--no-deps', '--no-index', str(wheel)]
        subprocess.run([*pip, *install], check=True)
        (packages,) = environment.glob('lib/python*/site-packages')
        # folders on the path only: the finder of an editable installation, a .pth in them, is not started
        others = [path for path in (*site.getsitepackages(), Path(basicsr.__file__).parents[1]) if Path(path) != ROOT]
        (packages / 'others.pth').write_text(''.join(f'{path}\n' for path in others))
        self.packages = packages

    def python(self, folder, *arguments, stderr=subprocess.STDOUT):
        """Returns the status and what was printed, signs of life included unless ``stderr`` goes elsewhere."""
        environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONWARNINGS': 'ignore'}
        environment.pop('PYTHONPATH', None)
        process = subprocess.run(
            list(map(str, arguments)), cwd=folder, env=environment, timeout=300, text=True, stdout=subprocess.PIPE,
            stderr=stderr,
        )  # fmt: skip
        return process.returncode, process.stdout

    def __call__(self, folder, *arguments, **options):
        return self.python(folder, self.bin / 'sdakd', *arguments, **options)


@pytest.fixture(scope='module')
def sdakd(tmp_path_factory):
    return Installed(tmp_path_factory.mktemp('wheel'))


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / 'empty'
    folder.mkdir()
    return folder


def test_it_is_the_wheel_that_is_used(sdakd, empty):
    code = 'from sdakd import shipped; print(shipped.__file__)'
    assert sdakd.python(empty, sdakd.bin / 'python', '-c', code) == (0, f'{sdakd.packages}/sdakd/shipped.py\n')
    assert sdakd(empty, '--version') == (0, f'sdakd {VERSION}\n')


def test_option_files(sdakd, empty):
    status, out = sdakd(empty, 'options')
    assert status == 0
    for path in (ROOT / 'options').rglob('*.yml'):
        assert f'\n{path.relative_to(ROOT / "options").with_suffix("").as_posix()} ' in f'\n{out}'
    assert '\nsub/one ' in out
    status, out = sdakd(empty, 'options', 'fakd')
    assert status == 0 and yaml.safe_load(out)['train']['fakd_opt']['type'] == 'FeatureAffinityLoss'
    schema = (ROOT / 'options/schema.json').read_text()
    assert sdakd(empty, 'options', '--schema', stderr=subprocess.DEVNULL) == (0, schema)
    assert (sdakd.packages / 'sdakd/options/schema.json').read_bytes() == (ROOT / 'options/schema.json').read_bytes()


def test_training(sdakd, empty, world):
    """By the name of a file, which stops at its data; and with data, in a file of the user's that extends it."""
    status, out = sdakd(empty, 'train', '-opt', 'demo_teacher')
    file = sdakd.packages / 'sdakd/options/demo_teacher.yml'
    assert status == 2 and f'\n{file}: datasets:train:dataroot_gt: the folder ' in out, out
    assert not any(empty.iterdir())
    stages = {name: {'iters': 1, 'scheduler': None} for name in ('supervised', 'adversarial')}
    given = world.options()
    (empty / 'mine.yml').write_text(
        yaml.safe_dump(
            {
                'extends': 'options/demo_teacher.yml',
                'name': 'mine',
                'datasets': given['datasets'],
                **{key: given[key] for key in ('network_g', 'network_d', 'logger')},
                'train': {'stages': stages},
            }
        )
    )
    status, out = sdakd(empty, 'train', '-opt', 'mine.yml')
    assert status == 0 and (empty / 'experiments/mine/models/net_g_latest.pth').is_file(), out
    assert 'extends' not in yaml.safe_load((empty / 'experiments/mine/mine.yml').read_text())


def test_the_other_commands(sdakd, empty, photographs):
    (empty / 'in').mkdir()
    cv2.imwrite(str(empty / 'in/coffee.png'), photographs['coffee'][:80, :80])
    status, out = sdakd(empty, 'upscale', '-i', 'in', '-o', 'out')  # with a student that ships
    assert status == 0 and cv2.imread(str(empty / 'out/coffee_out.png')).shape == (320, 320, 3), out
    status, out = sdakd(empty, 'fetch', '--help')
    assert status == 0 and out.startswith('usage: sdakd fetch')
    status, out = sdakd(empty, 'compare', '-opt', 'smoke', '--dry_run')  # on images that ship
    assert status == 0, out
    status, out = sdakd(empty, 'compare', '-opt', 'crd_ablations')  # on the user's own
    assert status == 2 and f'{sdakd.packages / "sdakd/options/compare/crd_ablations.yml"}: data' in out, out
    arguments = '-i', 'in', '-o', 'pairs', '--degradation', 'realesrgan', '-opt', 'sdakd_realesrgan_x2'
    status, out = sdakd(empty, 'prepare', 'pairs', *arguments)
    assert status == 0 and cv2.imread(str(empty / 'pairs/lq/coffee.png')).shape == (40, 40, 3), out


def test_sources_of_the_page(sdakd):
    from sdakd.commands.export import web

    installed = sdakd.packages / 'sdakd/web'
    assert {'package-lock.json', '.npmrc', 'build.mjs', 'src/app.js', 'src/index.html'} < set(web.sources())
    for name, data in web.sources().items():
        assert (installed / name).read_bytes() == data


def test_linking(sdakd, empty):
    for name in link.NEEDED:
        (empty / name).parent.mkdir(parents=True, exist_ok=True)
        (empty / name).write_text('')
    (empty / 'basicsr/utils/options.py').write_text('def parse_options(root_path, is_train=True):\n    pass\n')
    status, out = sdakd(empty, 'link', '.')
    assert status == 0, out
    shipped = [path for path in (ROOT / 'options').rglob('*') if path.suffix in ('.yml', '.json')]
    assert len(shipped) > 50
    for path in shipped:
        assert (empty / 'options' / path.relative_to(ROOT / 'options')).read_bytes() == path.read_bytes()
    assert (empty / 'options/sub/one.yml').read_text() == '# One more.\nname: one\n'
