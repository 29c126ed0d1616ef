"""The example of CONTRIBUTING.md, replayed from its text: a package of one's own that trains and is compared."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def blocks():
    """The code blocks whose first line names a file, by that name; and the others of YAML."""
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    named, unnamed = {}, []
    for _, body in re.findall(r'^ *```(python|yaml)\n(.*?)^ *```$', text, re.MULTILINE | re.DOTALL):
        content = textwrap.dedent(body)
        name = re.match(r'# (\S+\.(?:py|yml))\n', content)
        if name:
            named[name[1]] = content
        else:
            unnamed.append(content)
    return named, unnamed


@pytest.fixture
def folder(world):
    """The folder of somebody who follows the recipe, with small networks and without a perceptual loss's VGG."""
    named, _ = blocks()
    assert {Path(name).suffix for name in named} == {'.py', '.yml'}
    world.write(world.options() | {'name': 'base'}, 'base.yml')
    for name, content in named.items():
        path = world.root / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == '.yml':
            options = yaml.safe_load(content)
            assert (ROOT / options['extends']).is_file()
            options['extends'] = 'base.yml'
            for stage in options['train']['stages'].values():
                stage['terms'].remove('perceptual')
            content = yaml.safe_dump(options, sort_keys=False)
        path.write_text(content)
    return world.root


def command(folder, *arguments):
    start = 'import sys; sys.path.remove(""); from sdakd.cli import main; sys.exit(main(sys.argv[1:]))'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONWARNINGS': 'ignore'}
    process = subprocess.run(
        [sys.executable, '-c', start, *map(str, arguments)],
        cwd=folder,
        env=environment | {'PYTHONPATH': str(ROOT)},
        timeout=300,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return process.returncode, process.stdout


def test_the_method_trains(folder):
    options = yaml.safe_load((folder / 'my_method.yml').read_text())
    options['logger'] = {'print_freq': 1}
    options['val'] = None
    options['train']['stages'] = {
        'supervised': {'iters': 1},
        **{name: stage | {'iters': 1} for name, stage in options['train']['stages'].items()},
    }
    (folder / 'short.yml').write_text(yaml.safe_dump(options, sort_keys=False))
    status, out = command(folder, 'train', '-opt', 'short.yml')
    assert status == 0 and 'l_g_attention: ' in out and 'stage: 3/3 adversarial 1/1' in out, out
    assert (folder / 'experiments/my_method/models/net_g_latest.pth').is_file()


def test_it_is_compared_with_the_others(folder):
    _, (methods,) = blocks()
    config = yaml.safe_load((ROOT / 'options/compare/smoke.yml').read_text())
    for part, name in {'train': 'astronaut', 'validation': 'chelsea', 'test': 'rocket'}.items():
        for side in ('HR', 'LRx4'):
            (folder / part / side).mkdir(parents=True)
            for number in range(2):
                shutil.copy(folder / side / f'{name}{number}.png', folder / part / side)
    config['data'] = {
        **{part: {'gt': f'{part}/HR', 'lq': f'{part}/LRx4'} for part in ('train', 'validation')},
        'test': {'own': 'test/HR'},
    }
    config |= {'teacher': str(folder / 'teacher.pth'), 'seeds': [0]}
    config['methods'] |= yaml.safe_load(methods)['methods']
    (folder / 'compare.yml').write_text(yaml.safe_dump(config, sort_keys=False))
    status, out = command(folder, 'compare', '-opt', 'compare.yml', '-o', 'OUT', '--dry_run')
    assert status == 0 and 'my_method' in out and not (folder / 'OUT').exists(), out


def test_the_term_on_images_is_one(folder, monkeypatch, world, parse):
    from basicsr.models import build_model

    from sdakd_models.registry import TERMS

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    options = world.options() | {'imports': ['my_package.closeness']}
    options['train'] |= {'closeness_opt': {'type': 'L1Loss'}}
    options['train']['stages']['distillation']['terms'] = ['pixel', 'closeness']
    try:
        model = build_model(parse(world.write(options), world.root))
        assert model.terms['closeness'].needs_teacher
    finally:
        for name in ('attention', 'closeness'):
            TERMS.pop(name, None)
        for name in [name for name in sys.modules if name.partition('.')[0] == 'my_package']:
            del sys.modules[name]
