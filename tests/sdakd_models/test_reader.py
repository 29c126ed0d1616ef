"""How an option file is read: inheritance, widths, plug-ins, the archived file; and every mistake in one sentence."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import basicsr.train
from sdakd.commands.prepare.synthesis import read_settings
from sdakd.compat import UserError
from sdakd_arch import plugins
from sdakd_models import launch
from sdakd_models.reader import merge, read_merged, read_run, read_yaml

ROOT = Path(__file__).resolve().parents[2]
RESOLVED = Path(__file__).with_name('resolved_options.json')


def put(folder, **files):
    """Writes option files, texts or mappings, by name; ``sub__a`` is ``sub/a.yml``."""
    for name, content in files.items():
        path = Path(folder, f'{name.replace("__", "/")}.yml')
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding='utf-8'
        )


def refused(sentence, read, *arguments):
    with pytest.raises(UserError) as caught:
        read(*arguments)
    text = str(caught.value)
    assert sentence in text, text
    assert '\n' not in text and text.endswith(('.', '?'))


# ------------------------------------------------------ merging ------------------------------------------------------

MERGED = {  # inherited, what extends it, what both make
    'keys': ('{a: 1, b: 2}', '{b: 3, c: 4}', '{a: 1, b: 3, c: 4}'),
    'depth': ('{a: {b: {c: 1, d: 2}}}', '{a: {b: {d: 3}}}', '{a: {b: {c: 1, d: 3}}}'),
    'list': ('{a: [1, 2, 3]}', '{a: [4]}', '{a: [4]}'),
    'value for mapping': ('{a: {b: 1}}', '{a: 2}', '{a: 2}'),
    'mapping for value': ('{a: 2}', '{a: {b: 1}}', '{a: {b: 1}}'),
    'same type': ('{a: {type: X, b: 1}}', '{a: {type: X, c: 2}}', '{a: {type: X, b: 1, c: 2}}'),
    'no type in the new': ('{a: {type: X, b: 1}}', '{a: {c: 2}}', '{a: {type: X, b: 1, c: 2}}'),
    'other type': ('{a: {type: X, b: 1}}', '{a: {type: Y, c: ~}}', '{a: {type: Y, c: ~}}'),
    'type for a width': ('{network_g: {width: 1/4}}', '{network_g: {type: X, n: 8}}', '{network_g: {type: X, n: 8}}'),
    'null': ('{a: {b: 1, c: 2}}', '{a: {b: ~}}', '{a: {c: 2}}'),
    'null for a block': ('{a: {b: 1}, c: 2}', '{a: ~}', '{c: 2}'),
    'null for a null': ('{path: {resume_state: ~}}', '{path: {resume_state: ~}}', '{path: {}}'),
    'null without a key': ('{a: 1}', '{b: ~}', '{a: 1, b: ~}'),
    'inherited null': ('{prefetch_mode: ~, a: 1}', '{a: 2}', '{prefetch_mode: ~, a: 2}'),
    'a term of a stage': (
        '{train: {stages: {s: {terms: [pixel, perceptual]}}, perceptual_opt: {a: 1}}}',
        '{train: {perceptual_opt: ~}}',
        '{train: {stages: {s: {terms: [pixel, perceptual]}}, perceptual_opt: ~}}',
    ),
    'a term of no stage': (
        '{train: {stages: {s: {terms: [pixel, feature]}}, feature_opt: {a: 1}}}',
        '{train: {stages: {s: {terms: [pixel]}}, feature_opt: ~, gan_opt: ~}}',
        '{train: {stages: {s: {terms: [pixel]}}}}',
    ),
    'gan_opt of a discriminator': (
        '{discriminators: {t: {gan_opt: {a: 1}, real: gt}}}',
        '{discriminators: {t: {gan_opt: ~}}}',
        '{discriminators: {t: {real: gt}}}',
    ),
    'stages': (
        '{train: {stages: {one: {iters: 1, terms: [a]}, two: {iters: 2}}}}',
        '{train: {stages: {three: {iters: 3}, two: {lr_g: 4}, one: {terms: [b]}}}}',
        '{train: {stages: {one: {iters: 1, terms: [b]}, two: {iters: 2, lr_g: 4}, three: {iters: 3}}}}',
    ),
    'stage less': ('{train: {stages: {a: {b: 1}, c: {}}}}', '{train: {stages: {a: ~}}}', '{train: {stages: {c: {}}}}'),
}  # fmt: skip


@pytest.mark.parametrize(('base', 'new', 'wanted'), MERGED.values(), ids=MERGED)
def test_merging(base, new, wanted):
    base, new, wanted = map(yaml.safe_load, (base, new, wanted))
    before = repr((base, new))
    assert repr(merge(base, new)) == repr(wanted)  # the order of keys, too: that of stages counts
    assert repr((base, new)) == before


def test_a_chain_of_files_in_several_folders(tmp_path, monkeypatch):
    put(tmp_path, base={'name': 'base', 'a': {'x': 1, 'y': [1, 2]}, 'imports': ['os', 'json']})
    put(tmp_path, sub__middle={'extends': '../base.yml', 'a': {'y': [3]}, 'imports': ['re', 'os']})
    put(tmp_path, sub__last={'extends': 'middle.yml', 'name': 'last'})
    put(tmp_path, other__far={'extends': str(tmp_path / 'sub/last.yml'), 'b': 2})
    wanted = {'name': 'last', 'a': {'x': 1, 'y': [3]}, 'imports': ['os', 'json', 're']}
    assert read_merged(tmp_path / 'sub/last.yml') == read_run(str(tmp_path / 'sub/last.yml')) == wanted
    monkeypatch.chdir(tmp_path / 'other')  # a path starts from the file that holds it, not from the current folder
    assert read_merged('../sub/last.yml') == wanted and read_merged('far.yml') == {**wanted, 'b': 2}


def test_files_that_cannot_be_extended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, a={'extends': 'sub/b.yml'}, sub__b={'extends': '../c.yml'}, c={'extends': './a.yml'})
    refused('c.yml', read_merged, 'a.yml')
    refused('in a circle, a.yml -> sub/b.yml -> c.yml -> a.yml.', read_merged, 'a.yml')
    put(tmp_path, self={'extends': 'self.yml'}, lost={'extends': 'gone.yml'}, sub__lost={'extends': 'a.yml'})
    refused('self.yml -> self.yml.', read_merged, 'self.yml')
    refused('lost.yml: extends: the file gone.yml does not exist; ', read_merged, 'lost.yml')
    refused('sub/lost.yml: extends: the file sub/a.yml does not exist; ', read_merged, 'sub/lost.yml')
    put(tmp_path, many={'extends': ['a.yml', 'c.yml']}, child={'extends': 'broken.yml'}, broken='a: 1\nb: [')
    refused('many.yml: extends: write the path of one option file', read_merged, 'many.yml')
    refused('broken.yml: broken YAML in line', read_merged, 'child.yml')


@pytest.mark.parametrize(
    ('text', 'key', 'first', 'second'),
    [
        ('name: a\nscale: 4\nname: b\n', 'name', 1, 3),
        ('train:\n  stages:\n    one: {}\n    two: {}\n    one: {}\n', 'one', 3, 5),
        ('a: 1\nb: {c: 1, d: 2, c: 3}\n', 'c', 2, 2),
        ('a: [1, {2: x, 3: y,\n 2: z}]\n', '2', 1, 2),
    ],
)
def test_a_key_that_stands_twice(tmp_path, text, key, first, second):
    put(tmp_path, twice=text)
    said = f"twice.yml: broken YAML in line {second}: the key '{key}' stands in line {first} already, keep one of them."
    refused(said, read_yaml, tmp_path / 'twice.yml')


def test_equal_keys_that_are_legal(tmp_path):
    """In different mappings, of different kinds, and beside what an anchor merges in."""
    put(tmp_path, legal="base: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}\nd: {x: 4}\ne: {1: a, '1': b}\nf: *b\n")
    wanted = {'base': {'x': 1, 'y': 2}, 'c': {'x': 1, 'y': 3}, 'd': {'x': 4}, 'e': {1: 'a', '1': 'b'}}
    assert read_yaml(tmp_path / 'legal.yml') == {**wanted, 'f': {'x': 1, 'y': 2}}


# ------------------------------------------------------ widths -------------------------------------------------------

RRDB = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 23, 'num_grow_ch': 32}
SRVGG = {'type': 'SRVGGNetCompact', 'num_feat': 64, 'num_conv': 32, 'upscale': 4, 'act_type': 'prelu'}
GCFSR = {'type': 'GCFSR', 'out_size': 512, 'num_style_feat': 512, 'channel_multiplier': 2, 'narrow': 1}
UNET = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 64, 'skip_connection': True}
FACE_D = {'type': 'GCFSRDiscriminator', 'out_size': 512, 'channel_multiplier': 2, 'narrow': 1}


@pytest.mark.parametrize('ratio', ['1/4', 0.25, '0.25'])
@pytest.mark.parametrize(
    ('teacher', 'student', 'judge'),
    [
        (RRDB, {**RRDB, 'num_feat': 16, 'num_grow_ch': 8}, {**UNET, 'num_feat': 16}),
        (SRVGG, {**SRVGG, 'num_feat': 16}, {**UNET, 'num_feat': 16}),
        (GCFSR, {**GCFSR, 'narrow': 0.25}, {**FACE_D, 'narrow': 0.25}),
    ],
)
def test_width_narrows_the_teacher_and_its_discriminator(tmp_path, teacher, student, judge, ratio):
    put(
        tmp_path,
        run={
            'teacher': {'weights': 'not_needed.pth', 'network': teacher},
            'network_g': {'width': ratio},
            'network_d': {'width': ratio},
            'discriminators': {'one': {'network': {'width': ratio}}, 'full': {'network': {'width': 1}}},
        },
    )
    opt = read_run(tmp_path / 'run.yml')
    assert opt['network_g'] == student
    assert opt['network_d'] == opt['discriminators']['one']['network'] == judge
    assert opt['discriminators']['full']['network'] == (FACE_D if teacher is GCFSR else UNET)
    assert opt['teacher']['network'] == teacher


def test_width_is_relative_to_what_the_block_says(tmp_path):
    put(
        tmp_path,
        run={
            'teacher': {'network': RRDB},
            'network_g': {'width': '1/8', 'num_block': 6},  # the teacher's keys, but for the depth
            'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 32, 'width': '1/2'},
            'discriminators': {'d': {'network': {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'width': '1/4'}}},
        },
        alone={'network_g': {**SRVGG, 'width': '1/2'}},  # without a teacher
    )
    opt = read_run(tmp_path / 'run.yml')
    assert opt['network_g'] == {**RRDB, 'num_feat': 8, 'num_grow_ch': 4, 'num_block': 6}
    assert opt['network_d'] == {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 16}
    judge = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 16}  # of BasicSR's default, 64
    assert opt['discriminators']['d']['network'] == judge
    assert read_run(tmp_path / 'alone.yml')['network_g'] == {**SRVGG, 'num_feat': 32}


def test_widths_are_inherited_and_changed(tmp_path):
    base = {'teacher': {'network': RRDB}, 'network_g': {'width': '1/4'}, 'network_d': {**UNET, 'width': '1/4'}}
    put(tmp_path, base=base, half={'extends': 'base.yml', 'network_g': {'width': '1/2'}, 'network_d': {'width': '1/2'}})
    put(tmp_path, wide={'extends': 'half.yml', 'network_d': {'width': None}})
    put(tmp_path, other={'extends': 'base.yml', 'network_g': SRVGG})
    wanted = {**RRDB, 'num_feat': 32, 'num_grow_ch': 16}, {**UNET, 'num_feat': 32}
    half, wide, other = (read_run(tmp_path / f'{name}.yml') for name in ('half', 'wide', 'other'))
    assert (half['network_g'], half['network_d']) == wanted
    assert (wide['network_g'], wide['network_d']) == (wanted[0], UNET)
    assert (other['network_g'], other['network_d']) == (SRVGG, {**UNET, 'num_feat': 16})


def test_the_command_line_changes_a_width_or_what_it_makes(tmp_path):
    put(tmp_path, run={'teacher': {'network': RRDB}, 'network_g': {'width': '1/4'}, 'network_d': {'width': '1/4'}})
    opt = read_run(tmp_path / 'run.yml', ['network_g:width=1/2', 'network_g:num_block=4', 'network_d:num_feat=64'])
    assert opt['network_g'] == {**RRDB, 'num_feat': 32, 'num_grow_ch': 16, 'num_block': 4}
    assert opt['network_d'] == UNET
    opt = read_run(tmp_path / 'run.yml', ['teacher:network:num_feat=32', 'network_d={type: X}'])
    assert opt['network_g']['num_feat'] == 8 and opt['network_d'] == {'type': 'X'}
    said = 'run.yml: --force_yml network_g:num_fea=3: there is no key network_g:num_fea; did you mean num_feat'
    refused(said, read_run, tmp_path / 'run.yml', ['network_g:num_fea=3'])


def test_width_of_a_teacher_that_its_file_tells(world, parse, monkeypatch, tmp_path):
    options = world.options() | {'network_g': {'width': '1/2'}}
    wanted = {'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 4, 'act_type': 'prelu'} | world.options()['network_g']
    assert parse(world.write(options), world.root)['network_g'] == wanted
    options['teacher']['weights'] = 'teacher.pth'
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')  # then in the folder that holds experiments/
    assert parse(world.write(options), world.root)['network_g'] == wanted


SHIPPED = {  # option file: the width that it stands for, the channels of student and discriminator written out
    'sdakd_realesrgan_x4': ('1/4', {'num_feat': 16, 'num_grow_ch': 8}, {'num_feat': 16}),
    'sdakd_realesrgan_x4_1_2': ('1/2', {'num_feat': 32, 'num_grow_ch': 16}, {'num_feat': 32}),
    'sdakd_realesrgan_x4_1_8': ('1/8', {'num_feat': 8, 'num_grow_ch': 4}, {'num_feat': 8}),
    'sdakd_realesrgan_x2': ('1/4', {'num_feat': 16, 'num_grow_ch': 8}, {'num_feat': 16}),
    'sdakd_realesr_general_x4v3': ('1/4', {'num_feat': 16}, {'num_feat': 16}),
    'sdakd_gcfsr_1024': ('1/4', {'narrow': 0.25}, {'narrow': 0.25}),
    'sdakd_gcfsr_1024_1_2': ('1/2', {'narrow': 0.5}, {'narrow': 0.5}),
    'sdakd_gcfsr_1024_1_8': ('1/8', {'narrow': 0.125}, {'narrow': 0.125}),
    'sdakd_gcfsr_512': ('1/4', {'narrow': 0.25}, {'narrow': 0.25}),
    'sdakd_gcfsr_512_1_2': ('1/2', {'narrow': 0.5}, {'narrow': 0.5}),
    'sdakd_gcfsr_512_1_8': ('1/8', {'narrow': 0.125}, {'narrow': 0.125}),
    'sdakd_gcfsr_128': ('1/4', {'narrow': 0.0625}, {'narrow': 0.0625}),
    'methods/sdakd': ('1/4', {'num_feat': 16}, {'num_feat': 16}),
    'methods/none_student_d': ('1/4', {'num_feat': 16}, {'num_feat': 16}),
    'zoo/sdakd_x4plus_rrdbnet_1_4': ('1/4', {'num_feat': 16, 'num_grow_ch': 8}, {'num_feat': 16}),
}


@pytest.mark.parametrize(('file', 'shipped'), SHIPPED.items())
def test_widths_of_the_files_that_ship(tmp_path, file, shipped):
    """What the files resolve to are these numbers, and a width alone stands for them."""
    width, student, judge = shipped
    opt = read_run(ROOT / f'options/{file}.yml')
    networks = opt['network_g'], opt['network_d']
    assert networks == (opt['teacher']['network'] | student, opt['network_d'] | judge)
    put(tmp_path, run={**opt, 'network_g': {'width': width}, 'network_d': {'width': width}})
    again = read_run(tmp_path / 'run.yml')
    assert (again['network_g'], again['network_d']) == networks


WIDTH_MISTAKES = [
    ({'network_g': {'width': 'quarter'}}, "network_g:width: write a share of the teacher's channels such as 1/4, not"),
    ({'network_g': {'width': 2}}, "network_g:width: write a share of the teacher's channels such as 1/4, not 2."),
    ({'network_g': {'width': True}}, "network_g:width: write a share of the teacher's channels such as 1/4, not True."),
    ({'network_g': {'width': 0}}, 'network_g:width: write a share'),
    ({'network_g': {'width': '1/0'}}, 'network_g:width: write a share'),
    ({'network_g': {'width': '1/3'}}, 'network_g:width: num_feat of RRDBNet is 64, which 1/3 does not divide'),
    ({'network_d': {**UNET, 'width': '1/128'}}, 'network_d:width: num_feat of UNetDiscriminatorSN is 64, which'),
    ({'network_g': {'type': 'SRVGGNetCompat', 'width': '1/4'}}, "'SRVGGNetCompat'; did you mean SRVGGNetCompact"),
    ({'network_g': {'width': '1/4'}, 'teacher': None}, 'network_g:width: there is no teacher to narrow; write type'),
    ({'network_g': {'width': '1/4'}, 'teacher': {'weights': 'gone.pth'}},
     'network_g:width: teacher:weights: the file gone.pth does not exist; correct the path, or write teacher:network.'),
    ({'network_d': {'width': '1/4'}, 'teacher': {'network': {'type': 'EDSR'}}},
     "network_d:width: no discriminator is known for the architecture 'EDSR'; write its type"),
    ({'network_d': {'width': '1/4'}, 'teacher': {'network': {'type': 'GCFSR'}}}, 'network_d:width: narrow of GCFSR'),
    ({'discriminators': {'t': {'network': {'width': '1/4', 'num_feat': 'x'}}}}, 'discriminators:t:network:width: '),
]  # fmt: skip


@pytest.mark.parametrize(('changes', 'sentence'), WIDTH_MISTAKES)
def test_mistakes_in_a_width(tmp_path, changes, sentence):
    put(tmp_path, run={'teacher': {'network': RRDB}} | changes)
    refused(sentence, read_run, tmp_path / 'run.yml')
    refused('run.yml: ', read_run, tmp_path / 'run.yml')


# ----------------------------------------------------- plug-ins ------------------------------------------------------

ARCHITECTURE = """
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

@ARCH_REGISTRY.register()
class PluggedNet(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 48, 3, padding=1), nn.PixelShuffle(4))
"""
METHOD = """
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from sdakd_models.terms import Term, register_term

@LOSS_REGISTRY.register()
class PluggedLoss(torch.nn.Module):
    def __init__(self, loss_weight=1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, one, other):
        return self.loss_weight * (one - other).square().mean()

@register_term('plugged')
class PluggedTerm(Term):
    needs_teacher = True

    def __call__(self, context):
        return {'plugged': self.loss(*context.pair())}
"""


def plug(site, module, source):
    """Installs a package with an entry point, as pip would leave it."""
    information = site / f'{module}-1.0.dist-info'
    information.mkdir(parents=True)
    (information / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n')
    (information / 'entry_points.txt').write_text(f'[{plugins.GROUP}]\nours = {module}\n')
    (site / f'{module}.py').write_text(source)


def command(*arguments, cwd, site):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONWARNINGS': 'ignore'}
    environment['PYTHONPATH'] = os.pathsep.join([str(site), str(ROOT)])
    # a console command has no current folder on its path, unlike python -m
    start = 'import sys; sys.path.remove(""); from sdakd.cli import main; sys.exit(main(sys.argv[1:]))'
    process = subprocess.run(
        [sys.executable, '-c', start, *map(str, arguments)], cwd=cwd, env=environment, timeout=300, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return process.returncode, process.stdout


def test_plug_ins_train_and_their_students_are_opened(world, tmp_path):
    """An architecture by its entry point and a term by ``imports``, in a file that extends another."""
    site, work = tmp_path / 'site', tmp_path / 'work'
    plug(site, 'plugged_arch', ARCHITECTURE)
    work.mkdir()
    (work / 'my_method.py').write_text(METHOD)
    (tmp_path / 'beside.py').write_text('open("executed", "w")')
    options = world.options()
    for stage in options['train']['stages'].values():
        stage['iters'] = 2
    options['logger']['print_freq'] = 1
    put(
        tmp_path,
        base=options,
        mine={
            'extends': 'base.yml',
            'imports': ['my_method'],
            'network_g': {'type': 'PluggedNet', 'width': 4},
            'train': {
                'stages': {'distillation': {'terms': ['plugged']}, 'adversarial': {'terms': ['plugged', 'gan']}},
                'plugged_opt': {'type': 'PluggedLoss', 'loss_weight': 2.0},
                'feature_opt': None,
            },
        },
    )
    status, out = command('train', '-opt', tmp_path / 'mine.yml', '--force_yml', 'manual_seed=7', cwd=work, site=site)
    assert status == 0 and 'l_g_plugged: ' in out, out
    run = work / 'experiments/run'
    archived = read_yaml(run / 'mine.yml')
    wanted = options | {'manual_seed': 7, 'imports': ['my_method'], 'network_g': {'type': 'PluggedNet', 'width': 4}}
    wanted['train'] |= {'plugged_opt': {'type': 'PluggedLoss', 'loss_weight': 2.0}}
    wanted['train']['stages']['distillation']['terms'] = ['plugged']
    wanted['train']['stages']['adversarial']['terms'] = ['plugged', 'gan']
    del wanted['train']['feature_opt']
    assert archived == wanted
    comment = (run / 'mine.yml').read_text().partition('\n\n')[0]
    assert str(tmp_path / 'mine.yml') in comment and '--force_yml manual_seed=7' in comment

    student = run / 'models/net_g_latest.pth'
    arguments = 'evaluate', '-m', student, '-d', tmp_path / 'HR', '--scale', 4, '--metrics', 'psnr', '-o', 'results'
    status, out = command(*arguments, cwd=work, site=site)
    assert status == 0 and 'PluggedNet' in (work / 'results/results.json').read_text(), out

    (work / 'my_method.py').unlink()
    put(tmp_path, lost={'extends': 'mine.yml', 'imports': ['beside']})  # beside the option file, which does not count
    status, out = command('train', '-opt', tmp_path / 'lost.yml', cwd=work, site=site)
    assert status == 2 and 'Traceback' not in out, out
    assert f'Error: {tmp_path}/lost.yml: imports: the module my_method cannot be imported (ModuleNotFoundError' in out
    put(tmp_path, lost={'extends': 'base.yml', 'imports': ['beside']})
    status, out = command('train', '-opt', tmp_path / 'lost.yml', cwd=work, site=site)
    assert status == 2 and 'imports: the module beside cannot be imported' in out, out
    assert not (work / 'executed').exists()


@pytest.mark.parametrize(
    ('imports', 'sentence'),
    [
        ('my_package', "run.yml: imports: write a list of modules, [my_package], not 'my_package'."),
        ([1], 'run.yml: imports: write a list of modules, [my_package], not [1].'),
        (['no_such_module'], 'run.yml: imports: the module no_such_module cannot be imported (ModuleNotFoundError: '),
        (['json', 'torn'], 'run.yml: imports: the module torn cannot be imported (SyntaxError: '),
        (['fails'], 'run.yml: imports: the module fails cannot be imported (RuntimeError: two lines); '),
    ],
)
def test_imports_that_fail(tmp_path, monkeypatch, imports, sentence):
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'torn.py').write_text('def\n')
    (tmp_path / 'fails.py').write_text('raise RuntimeError("two\\nlines")\n')
    put(tmp_path, run={'name': 'run', 'imports': imports})
    refused(sentence, read_run, 'run.yml')


def test_an_entry_point_that_fails(tmp_path, monkeypatch):
    plug(tmp_path, 'plugged_badly', 'raise ImportError("no such thing")\n')
    monkeypatch.syspath_prepend(tmp_path)
    plugins.import_entry_points.cache_clear()
    put(tmp_path, run={'name': 'run'})
    said = 'run.yml: the plug-in ours: the module plugged_badly cannot be imported (ImportError: no such thing); update'
    refused(said, read_run, tmp_path / 'run.yml')
    monkeypatch.undo()
    assert read_run(tmp_path / 'run.yml') == {'name': 'run'}


# ------------------------------------------------- the archived file --------------------------------------------------


def archived(file, parse, root, *flags):
    """What BasicSR's training loop writes into the folder of a run."""
    parse(file, root, *flags)
    folder = Path(root, 'experiments/run')
    folder.mkdir(parents=True, exist_ok=True)
    basicsr.train.copy_opt_file(str(file), str(folder))
    return folder / Path(file).name


def test_the_archived_file_resolves_to_the_same(world, parse, monkeypatch):
    put(world.root, base=world.options(), sub__run={
        'extends': '../base.yml',
        'network_g': {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 4, 'width': '1/2'},
        'train': {'stages': {'adversarial': {'lr_g': '2e-4'}}, 'perceptual_opt': None},
    })  # fmt: skip
    file, flags = world.root / 'sub/run.yml', ['train:ema_decay=0.5', 'manual_seed=3']
    copied = archived(file, parse, world.root, '--force_yml', *flags)
    text = copied.read_text()
    assert read_run(copied) == yaml.safe_load(text) == read_run(file, flags)
    assert 'extends' not in yaml.safe_load(text) and 'width' not in yaml.safe_load(text)['network_g']
    first = text.splitlines()[0]
    assert str(file) in first and first.startswith('#') and '--force_yml train:ema_decay=0.5 manual_seed=3' in text
    again = archived(copied, parse, world.root / 'again')  # loadable alone, in another folder
    assert read_run(again) == read_run(copied)

    wanted, text = read_run(copied), copied.read_text()
    assert archived(copied, parse, world.root) == copied and copied.read_text() == text  # resumed
    parse(copied, world.root)
    copied.rename(world.root / 'moved.yml')  # trained anew: BasicSR renames the folder before it copies the file
    basicsr.train.copy_opt_file(str(copied), str(copied.parent))
    assert read_run(copied) == wanted


def test_a_file_that_is_complete_is_archived_with_its_comments(world, parse, tmp_path):
    file = Path(world.write(world.options()))
    file.write_text('# why this run\n' + file.read_text(encoding='utf-8'), encoding='utf-8')
    text = archived(file, parse, tmp_path / 'root').read_text()
    assert text.endswith(file.read_text(encoding='utf-8')) and '# CMD:' in text


@pytest.mark.parametrize(
    ('schema', 'stays'),
    [
        ('schema.json', False),
        ('../../options/schema.json', False),
        ('https://example.org/schema.json', True),
        ('file:///schema.json', True),
        ('/schema.json', True),
    ],
)
def test_an_archived_file_leads_no_editor_astray(schema, stays, world, parse, tmp_path):
    """A relative path to the schema starts from the folder of the file, which is another one for the copy."""
    file = Path(world.write(world.options()))
    line, rest = f'# yaml-language-server: $schema={schema}\n', '# why this run\n' + file.read_text(encoding='utf-8')
    file.write_text(line + rest, encoding='utf-8')
    text = archived(file, parse, tmp_path / 'root').read_text()
    assert text.endswith(f'\n\n{line if stays else ""}{rest}') and text.count('yaml-language-server') == stays


def test_models_of_others_are_archived_by_basicsr(world, parse, tmp_path, monkeypatch):
    put(world.root, base=world.options(), run={'extends': 'base.yml'})
    archived(world.root / 'run.yml', parse, tmp_path / 'root')
    other = world.root / 'other.yml'
    other.write_text('model_type: SRModel\nname: other\ndatasets: {}\npath: {}\nnum_gpu: 0\ntrain: {}\n')
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(other)])
    launch.parse_options(str(tmp_path))
    assert basicsr.train.copy_opt_file.__module__ == 'basicsr.utils.options'


# ----------------------------------------------- other readers of files -----------------------------------------------


def test_the_degradation_of_a_file_that_extends_another(tmp_path):
    put(tmp_path, base={'scale': 3, 'datasets': {'train': {'blur_sigma': [0.5, 1]}}, 'gray_noise_prob': 0.25})
    put(tmp_path, run={'extends': 'base.yml', 'gray_noise_prob': 0.75, 'network_g': {'width': '1/4'}})
    settings = read_settings('realesrgan', None, str(tmp_path / 'run.yml'), 0)
    assert (settings['scale'], settings['blur_sigma'], settings['gray_noise_prob']) == (3, [0.5, 1], 0.75)


# ------------------------------------------------ the files that ship ------------------------------------------------

ORDERED = ('stages', 'discriminators', 'teachers', 'layers', 'metrics')  # where the order of keys means something


def canonical(value, key=''):
    """A null is left out, as if it had not been written, but for that of a term, which takes it out of all stages."""
    if isinstance(value, dict):
        items = [
            [str(k), canonical(v, k)]
            for k, v in value.items()
            if v is not None or (key == 'train' and str(k).endswith('_opt'))
        ]
        return items if key in ORDERED else sorted(items)
    return [canonical(entry) for entry in value] if isinstance(value, list) else value


def test_every_file_resolves_to_what_it_was(tmp_path):
    """Digests of all that option files hold: an edit to one file shows here which others it changes.

    The first of them were made from files that were written out in full. New files need none.
    """
    known = json.loads(RESOLVED.read_text())
    digests = {}
    for name in known:
        content = json.dumps(canonical(read_run(ROOT / 'options' / name))).encode()
        digests[name] = hashlib.sha256(content).hexdigest()
    new = tmp_path / 'resolved_options.json'
    new.write_text(json.dumps(digests, indent=1) + '\n')
    assert digests == known, f'if these changes are meant, copy {new} to {RESOLVED}'


def test_the_files_resolve_wherever_they_are_copied(tmp_path):
    """`sdakd link` copies the folder into a checkout of BasicSR, a wheel holds it as a package."""
    shutil.copytree(ROOT / 'options', tmp_path / 'options')
    for path in (ROOT / 'options').rglob('*.yml'):
        assert read_merged(tmp_path / 'options' / path.relative_to(ROOT / 'options')) == read_merged(path)
