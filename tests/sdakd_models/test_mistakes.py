"""All mistakes of an option file at one start: each once, in the order of the file, none that follows from another."""

import os
import subprocess
import sys

import pytest
import torch
import yaml

from sdakd.compat import Mistakes, UserError, UserErrors, exit_with_sentence, in_order_of
from sdakd_models.options import TeacherBlock, typed
from sdakd_models.stages import Stage

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GONE = object()


def changed(options, changes):
    """Options with values at paths such as ``train/stages``; ``GONE`` takes the key out."""
    for path, value in changes.items():
        block = options
        *parents, last = path.split('/')
        for key in parents:
            block = block[key]
        if value is GONE:
            del block[last]
        else:
            block[last] = value
    return options


def start(*arguments, cwd):
    """A training as it is typed; returns its status and what it printed to stderr."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': ROOT}
    environment |= {'PYTHONWARNINGS': 'ignore'}
    process = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, timeout=300, capture_output=True, text=True
    )
    return process.returncode, process.stderr


def found(world, parse, changes):
    """The places of all mistakes, without the file."""
    file = world.write(changed(world.options(), changes), 'bad.yml')
    with pytest.raises(UserError) as caught:
        parse(file, world.root / 'root')
    assert not (world.root / 'root').exists()
    places = [each.where.removeprefix(f'{file}: ') for each in caught.value.mistakes]
    assert len(set(map(str, caught.value.mistakes))) == len(places)
    return places


def test_one_start_shows_them_all(world, tmp_path):
    file = world.write(
        changed(
            world.options(),
            {
                'datasets/train/dataroot_gt': '/nowhere',  # not there
                'datasets/val/type': 'PairedImageDatset',
                'network_g/num_feats': 4,  # an unknown argument
                'teacher/weights': '/gone.pth',
                'teacher/param_kye': 'params',
                'train/ema_decya': 0.5,
                'train/r1_reg_weight': 'heavy',
                'train/teacher_margin': -1,
                'train/stages/supervised/terms': ['pixel', 'perceptual'],  # a term without its block
                'train/stages/distillation/lr_g': 'fast',
                'train/stages/adversarial/lr_d': GONE,
                'val/val_freq': 'often',
                'logger/print_freq': 0,
            },
        )
    )
    (tmp_path / 'here').mkdir()
    status, text = start('-m', 'sdakd.cli', 'train', '-opt', file, cwd=tmp_path / 'here')
    assert status == 2 and 'Traceback' not in text
    lines = text.splitlines()
    assert lines == [
        f'Error: {file} has 13 mistakes:',
        f'{file}: datasets:train:dataroot_gt: the folder /nowhere does not exist.',
        f"{file}: datasets:val:type: nothing called 'PairedImageDatset' is registered; did you mean "
        + lines[2].partition('did you mean ')[2],
        lines[3],  # Python's own words
        f"{file}: teacher: unknown key 'param_kye'; did you mean param_key?",
        f'{file}: teacher:weights: the file /gone.pth does not exist; correct the path.',
        f"{file}: train: unknown key 'ema_decya'; did you mean ema_decay?",
        f"{file}: train:stages:distillation:lr_g: expected `float`, got `str`, given 'fast'.",
        f'{file}: train:stages:adversarial:lr_d: the key is missing, but a discriminator learns in this stage (gan).',
        lines[9],
        f'{file}: train:teacher_margin: expected `int` >= 0, given -1.',
        f"{file}: train:perceptual_opt: the block is missing, but train:stages:supervised has the term 'perceptual'.",
        f"{file}: val:val_freq: expected `int`, got `str`, given 'often'.",
        f'{file}: logger:print_freq: expected `int` >= 1, given 0.',
    ]
    assert lines[3].startswith(f'{file}: network_g: SRVGGNetCompact cannot be built from these options: ')
    assert lines[9].startswith(f'{file}: train:r1_reg_weight: expected `float`, got `str`')
    assert not list((tmp_path / 'here').iterdir())


ALONE = [  # changes; the places of which the start complains, in order
    # an unreadable teacher: nothing of its taps, its margin, its scale
    ({'teacher/weights': '/gone.pth', 'train/feature_opt/layers': ['bodi.7']}, ['teacher:weights']),
    ({'teacher/network': {'type': 'SRVGGNetCompat'}, 'train/teacher_margin': 3}, ['teacher:network:type']),
    # a width that cannot be resolved for want of a teacher: one mistake, of two networks
    (
        {'network_g': {'width': '1/2'}, 'network_d': {'width': '1/2'}, 'teacher/weights': '/gone.pth'},
        ['network_g:width: teacher:weights'],
    ),
    ({'network_g': {'width': '1/2'}, 'network_d': {'width': '1/2'}, 'teacher': GONE}, ['network_g:width']),
    ({'network_g': {'width': '1/2'}, 'network_d': {'width': 'x'}, 'teacher': GONE},
     ['network_g:width', 'network_d:width']),
    ({'network_g': {'width': '1/3'}, 'datasets/train/dataroot_lq': '/nowhere'},
     ['datasets:train:dataroot_lq', 'network_g:width']),
    # a slip in a key, and what it leaves missing
    ({'train/feature_optt': {'type': 'FeatureMapLoss'}, 'train/feature_opt': GONE}, ['train']),
    ({'train/stages/supervised': {'iter': 20, 'lr_g': 1e-3, 'terms': ['pixel']}}, ['train:stages:supervised']),
    ({'network_gg': {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 4}, 'network_g': GONE}, ['network_gg']),
    ({'teacherr': {'weights': '/gone.pth'}, 'teacher': GONE}, ['teacherr', 'teacher:weights']),
    ({'model_type': 'SDAKDModle', 'scale': 2}, ['model_type', 'scale']),
    # a stage that cannot be read: others do not suffer, its terms are looked at
    ({'train/stages/supervised/iters': 'many', 'train/stages/adversarial': 3},
     ['train:stages:supervised:iters', 'train:stages:adversarial']),
    ({'train/stages/supervised': 3, 'train/total_iter': 60}, ['train:stages:supervised']),
    ({'train/stages': 'x', 'train/total_iter': 60, 'val/val_freq': 0}, ['train:stages', 'val:val_freq']),
    ({'train/stages/distillation/iters': 'many', 'train/feature_opt/layers': ['bodi.7']},
     ['train:stages:distillation:iters', 'train:feature_opt:layers']),
    ({'train': GONE, 'val/val_freq': 0}, ['val:val_freq', 'train']),
    # one mistake, which two checks see
    ({'datasets/train/gt_size': 30}, ['datasets:train:gt_size']),
    ({'scale': 2}, ['scale']),
    ({'scale': 2, 'train/teacher_margin': 20}, ['scale']),
    ({'datasets/val': 3, 'datasets/train/gt_size': 'big'}, ['datasets:train:gt_size', 'datasets:val']),
    ({'train/gan_opt/losweight': 1, 'discriminators': {'t': {'network': {'type': 'VGGStyleDiscriminator'}}},
      'train/stages/adversarial/terms': ['pixel', 'gan', 'gan:t']}, ['train:gan_opt']),
    # blocks of the wrong kind
    ({'network_g': 'RRDBNet', 'path': 3, 'logger': [1]}, ['network_g', 'path', 'logger']),
    ({'teacher': 3, 'discriminators': 3, 'teachers': 3}, ['teacher', 'discriminators', 'teachers']),
    ({'path/resume_state': '/none.state', 'val/val_freq': 0}, ['path:resume_state', 'val:val_freq']),
    # independent ones of networks, taps and margins
    ({'network_d/type': 'UNet', 'train/feature_opt/layers': ['bodi.7']},
     ['network_d:type', 'train:feature_opt:layers']),
    ({'train/teacher_margin': 20, 'name': '../up', 'num_gpu': 'two'}, ['name', 'num_gpu', 'train:teacher_margin']),
    ({'train/optim_g': {'type': 'SGD'}, 'train/optim_d': {'type': 'Adam', 'beta': 1}},
     ['train:optim_g:type', 'train:optim_d']),
]  # fmt: skip


@pytest.mark.parametrize(('changes', 'places'), ALONE, ids=[' '.join(changes) for changes, _ in ALONE])
def test_what_depends_on_a_mistake_is_none(world, parse, changes, places):
    assert found(world, parse, changes) == places


def test_a_file_that_does_not_fit_says_nothing_of_its_taps(world, parse):
    torch.save({'params': {'a': torch.zeros(1)}}, world.root / 'teacher.pth')
    assert found(world, parse, {'train/feature_opt/layers': ['bodi.7']}) == ['teacher:weights']


def test_at_most_twenty(world, tmp_path):
    """25 mistakes in the order of the file, five of which are counted only."""
    options = world.options()
    options['train']['stages'] = {
        f's{number}': {'iters': 0, 'lr_g': 1e-3, 'terms': ['pixel']} for number in (*range(25, 5, -1), *range(1, 6))
    }
    file = world.write(options)
    status, text = start(os.path.join(ROOT, 'basicsr/train.py'), '-opt', file, cwd=tmp_path)
    lines = text.splitlines()
    assert status == 2 and lines[0] == f'Error: {file} has 25 mistakes:' and lines[-1] == 'and 5 more mistakes'
    assert [line.split(':')[3] for line in lines[1:-1]] == [f's{number}' for number in range(25, 5, -1)]


def test_one_mistake_is_told_as_ever(capsys):
    with pytest.raises(SystemExit) as left:
        try:
            with Mistakes() as mistakes, mistakes.collect():
                raise UserError('run.yml: scale', 'write a number.')
        except UserError as error:
            exit_with_sentence(type(error), error, None)
    assert left.value.code == 2 and capsys.readouterr().err == 'Error: run.yml: scale: write a number.\n'


def test_the_error_of_several():
    """For who calls this from Python: one error, with the place and the sentence of the first."""
    with pytest.raises(UserErrors) as caught, Mistakes() as mistakes:
        mistakes.add('a', 'one.')
        with mistakes.collect() as raised:
            raise UserError('b:c', 'two.')
        with mistakes.collect():
            raise UserError('b:c', 'two in other words.')
        assert len(raised) == 1 and mistakes.about('b') and not mistakes.about('c', 'b:d')
        raise UserError('three.')
    error = caught.value.within('f.yml')
    assert (error.where, error.sentence) == ('f.yml: a', 'one.')
    assert str(error) == 'f.yml: a: one.\nf.yml: b:c: two.\nf.yml: three.'
    assert error.report() == f'f.yml has 3 mistakes:\n{error}'
    with pytest.raises(ZeroDivisionError), Mistakes() as mistakes:  # what is no mistake of a user goes first
        mistakes.add('a', 'one.')
        raise ZeroDivisionError


def test_the_order_is_that_of_the_keys():
    options = {'b': {'y': 1, 'x': {'k': 2}}, 1: 3, 'a': 4}
    places = ['gone', 'a', '1', 'b:x:k', 'b:z', 'b', 'b:x', 'b:y', '']
    error = in_order_of(options, UserErrors(UserError(place, 's.') for place in places))
    assert [each.where for each in error.mistakes] == ['b', 'b:y', 'b:x', 'b:x:k', 'b:z', '1', 'a', 'gone', '']


def test_every_key_of_a_block_is_read():
    with pytest.raises(UserErrors) as caught:
        typed(Stage, {'iters': 'x', 'lr_g': -1, 'warmup': 3, 'scheduler': {'type': 'StepLR'}}, 's')
    assert [each.where for each in caught.value.mistakes] == ['s', 's:iters', 's', 's:lr_g', 's:scheduler:type']
    with pytest.raises(UserErrors) as caught:
        typed(TeacherBlock, {'weights': 3, 'replace_by': 'psnr', 'cotrain': {}}, 'teacher')
    places = ['teacher:replace_by', 'teacher:weights', 'teacher:cotrain']
    assert [each.where for each in caught.value.mistakes] == places


YAML_ALONE = {
    'missing': ([], '-opt: bad.yml cannot be read (No such file or directory)'),
    'broken': (['a: [1'], 'bad.yml: broken YAML in line 2: '),
    'twice': (['scale: 4', 'scale: 2'], "bad.yml: broken YAML in line 2: the key 'scale' stands in line 1 already"),
    'circle': (['extends: bad.yml'], 'bad.yml: extends: files extend each other in a circle, bad.yml -> bad.yml.'),
    'no base': (['extends: gone.yml'], 'bad.yml: extends: the file gone.yml does not exist'),
    'forced': (['scale: 4'], ['bad.yml has 3 mistakes:', 'bad.yml: --force_yml scale: write key:key=value.',
                              'bad.yml: --force_yml trian:x=1: there is no block trian; known are scale.',
                              'bad.yml: --force_yml network_g:n=3: there is no block network_g; known are scale.']),
}  # fmt: skip


@pytest.mark.parametrize('front_door', ['sdakd train', 'basicsr/train.py'])
def test_mistakes_of_the_yaml_need_no_torch(tmp_path, front_door):
    """One process tries them all, and torch is not among what it has imported."""
    run = 'from sdakd.cli import main; main(["train", *sys.argv[1:]])'
    if front_door != 'sdakd train':
        run = f'import runpy; runpy.run_path({os.path.join(ROOT, front_door)!r}, run_name="__main__")'
    program = (
        'import sys, traceback\n'
        'from sdakd.compat import UserError\n'
        'try:\n'
        f'    {run}\n'
        'except UserError as error:\n'
        '    sys.stderr.write(error.report())\n'
        'sys.stderr.write(f"\\n{sorted({name.split(chr(46))[0] for name in sys.modules} & {heavy!r})}")\n'
    ).replace('{heavy!r}', "{'torch', 'basicsr', 'torchvision', 'numpy', 'cv2'}")
    for text, said in YAML_ALONE.values():
        (tmp_path / 'bad.yml').unlink(missing_ok=True)
        if text:
            (tmp_path / 'bad.yml').write_text('\n'.join(text) + '\n')
        flags = ['--force_yml', 'scale', 'trian:x=1', 'network_g:n=3'] if isinstance(said, list) else []
        _, err = start('-c', program, '-opt', 'bad.yml', *flags, cwd=tmp_path)
        *lines, imported = err.splitlines()
        assert lines == said if isinstance(said, list) else lines[0].startswith(said), err
        assert imported == '[]'
    assert {path.name for path in tmp_path.iterdir()} == {'bad.yml'}


def test_files_of_other_models_are_left_to_basicsr(tmp_path):
    """Even with a tag that only BasicSR's loader accepts: what comes next is BasicSR's own complaint."""
    (tmp_path / 'other.yml').write_text('model_type: SRModel\nname: other\nbetas: !!python/tuple [1, 2]\n')
    status, text = start('-m', 'sdakd.cli', 'train', '-opt', 'other.yml', cwd=tmp_path)
    assert status == 1 and "KeyError: 'num_gpu'" in text and 'broken YAML' not in text


def test_a_comparison_tells_all_mistakes_of_its_own_keys(tmp_path):
    from sdakd.commands.compare import compare

    (tmp_path / 'c.yml').write_text(
        yaml.safe_dump(
            {
                'teacher': 'a.pth',
                'budget': {'stages': {'one': {'iter': 3}}, 'batch': -1},
                'primary': {},
                'metrics': ['psnr'],
            }
        )
    )
    with pytest.raises(UserErrors) as caught:
        compare(str(tmp_path / 'c.yml'))
    places = [each.where.partition(': ')[2] for each in caught.value.mistakes]
    assert places == ['budget:stages:one'] * 2 + ['primary', 'data', 'methods', 'reference', 'widths', 'seeds']
