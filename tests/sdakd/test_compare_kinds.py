"""`sdakd compare` on photographs that are degraded on line, and on faces."""

import copy
import json
import shutil
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml

from sdakd import cli
from sdakd.compat import UserError
from sdakd_models.reader import read_run

ROOT = Path(__file__).resolve().parents[2]
HALF = Fraction(1, 2)
SMOKE = yaml.safe_load((ROOT / 'options/compare/smoke.yml').read_text())


@pytest.fixture(scope='module')
def ground(tmp_path_factory, photographs):
    """Photographs in two folders, one with a sub-folder, faces of 128 and 32 pixels, and teachers of each kind."""
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    from sdakd_arch.width import build

    root = tmp_path_factory.mktemp('kinds')
    images = dict(photographs)
    for number, (name, image) in enumerate(images.items()):
        place = root / ('held' if number == 3 else 'photographs/more' if number else 'photographs')
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f'{name}.png'), image[:96, :112, ::-1])
    for size in (128, 32):
        for part, names in {'train': 3, 'validation': 1, 'test': 2}.items():
            (root / f'faces{size}/{part}').mkdir(parents=True)
            for number in range(names):
                shift = {'train': 0, 'validation': 5, 'test': 9}[part]
                image = list(images.values())[number][shift : shift + 100, :100, ::-1]
                face = cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=cv2.INTER_AREA)
                cv2.imwrite(str(root / f'faces{size}/{part}/{part}{number}.png'), face)
    torch.manual_seed(1)
    torch.save({'params': SRVGGNetCompact(num_feat=8, num_conv=4).state_dict()}, root / 'teacher.pth')
    for size, narrow in ((128, 1 / 8), (32, 1 / 32)):
        network = build({'type': 'GCFSR', 'out_size': size, 'narrow': narrow}, '')
        torch.save({'params_ema': network.state_dict()}, root / f'gcfsr{size}.pth')
    return root


@pytest.fixture
def here(ground, monkeypatch):
    monkeypatch.chdir(ground)
    return ground


def on_line(**changes):
    options = copy.deepcopy(SMOKE)
    photographs = {'folder': 'photographs', 'validation': 'held', 'degradation': 'realesrgan', 'on_line': True}
    options['data']['photographs'] = {**photographs, 'queue_size': 8, 'pool_reuse': 2}
    return {**options, 'teacher': 'teacher.pth', 'seeds': [0], **changes}


def faces(size=32, **changes):
    options = copy.deepcopy(SMOKE)
    options['data'] = {
        'faces': {f'{part}': f'faces{size}/{part}' for part in ('train', 'validation')} | {'factors': [4, 4, 8]},
        'test': {'faces': f'faces{size}/test'},
    }
    del options['budget']['crop']
    for stage in options['budget']['stages'].values():
        stage['iters'] = 2
    return {**options, 'teacher': f'gcfsr{size}.pth', 'seeds': [0], **changes}


def write(folder, options, name='compare.yml'):
    path = folder / name
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return path


def matrix_of(here, options, output):
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.data import make_pairs, open_images
    from sdakd.commands.compare.matrix import Matrix
    from sdakd.commands.compare.rows import read_rows

    config = read_config(str(write(here, options, 'matrix.yml')))
    made = Matrix(config, read_rows(config, here), open_images(config), here / output)
    make_pairs(config, made.images, made.output, made.scale)
    return made


# ------------------------------------------------------ on line ------------------------------------------------------


def test_on_line_cells_are_real_esrgans_training(here):
    made = matrix_of(here, on_line(), 'L')
    published = read_run(ROOT / 'options/sdakd_realesrgan_x4.yml')
    first = made.first_run(made.rows[1], HALF, 0).options
    for options in (first, made.options(made.rows[1], HALF, 0, 1)):
        assert options['model_type'] == published['model_type'] == 'SDAKDRealESRGANModel'
        for key in ('l1_gt_usm', 'gan_gt_usm', 'resize_prob', 'noise_range2', 'jpeg_range2', 'second_blur_prob'):
            assert options[key] == published[key], key
        train = options['datasets']['train']
        for key in ('type', 'kernel_list', 'blur_kernel_size', 'sinc_prob2', 'blur_sigma2', 'final_sinc_prob'):
            assert train[key] == published['datasets']['train'][key], key
        assert (options['gt_size'], options['queue_size'], options['train']['pool_reuse']) == (32, 8, 2)
        assert train['dataroot_gt'] == str(here / 'photographs')
        listed = Path(train['meta_info']).read_text(encoding='utf-8').split()
        assert sorted(listed) == sorted(str(p.relative_to(here / 'photographs'))
                                        for p in (here / 'photographs').rglob('*.png'))  # fmt: skip
    held = [path.name for path in (here / 'L/data/validation/gt').iterdir()]
    assert held == [path.name for path in (here / 'held').iterdir()]
    key = made.run(made.rows[1], HALF, 0, 1).key
    options = on_line()
    options['data']['photographs']['pool_reuse'] = 4
    assert matrix_of(here, options, 'L').run(made.rows[1], HALF, 0, 1).key != key


def test_draws_are_the_same_for_all_cells_of_a_seed(here):
    """Whatever a method draws besides; and targets are sharpened."""
    from basicsr.data import build_dataset
    from basicsr.models import build_model

    from sdakd.commands.compare import rehearsal
    from sdakd_data.draws import Drawn, Draws, training_loader
    from sdakd_models.rehearsal import untouched

    made = matrix_of(here, on_line(seeds=[0, 1]), 'L')

    def batches(row, seed, extra):
        options = made.options(row, HALF, seed, 1)
        options['path']['pretrain_network_g'] = None
        options['datasets']['train']['num_worker_per_gpu'] = 0
        opt = rehearsal.parse(options, row.name, here / 'L', rehearses=False)
        found = []
        with untouched(False):
            model = build_model(opt)
            train = opt['datasets']['train'] | {'phase': 'train', 'scale': 4}
            data = build_dataset(copy.deepcopy(train))
            draws = Draws(len(data), 2, seed, 1, 5)
            for iteration, batch in enumerate(training_loader(Drawn(data, seed, ''), draws, opt), 1):
                model.feed_data(batch)
                found.append((model.lq, model.gt, model.target('pixel')))
                assert not torch.equal(model.target('pixel'), model.gt) and torch.equal(model.target('gan'), model.gt)
                model.optimize_parameters(iteration)
                torch.rand(extra)  # as a term might
        return [tensor for each in found for tensor in each]

    one, other = (batches(row, 0, extra) for extra, row in enumerate(made.rows))
    assert len(one) == 15 and one[0].shape == (2, 3, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, batches(made.rows[0], 1, 0), strict=True))


def test_a_comparison_on_line(here, capsys):
    options = on_line(methods={'l1': {'weight': []}}, reference='l1')
    options['budget']['stages'] = {'supervised': {'iters': 3, 'lr_g': 1e-3}}
    assert cli.main(['compare', '-opt', str(write(here, options)), '-o', 'ON']) == 0, capsys.readouterr().out
    text = (here / 'ON/comparison.md').read_text()
    assert 'drawn on line from the seed and the iteration alone' in text and 'every pair used 2 times' in text
    assert not (here / 'ON/data/train').exists()  # no pairs are made to train on
    log = next((here / 'ON/experiments').glob('l1*/train_*.log')).read_text()
    assert 'model [SDAKDRealESRGANModel] is created' in log.lower() or 'SDAKDRealESRGANModel' in log


# ------------------------------------------------- the paper's tables ------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'published'), [('realesrgan', 'sdakd_realesrgan_x4.yml'), ('gcfsr', 'sdakd_gcfsr_1024.yml')]
)
def test_the_papers_comparisons_are_its_option_files(name, published):
    """Lengths, rates, batch and averaging of the single training; and tables name cells that there are."""
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.rows import read_rows

    config = read_config(str(ROOT / f'options/compare/paper_{name}.yml'))
    rows = {row.name: row for row in read_rows(config, ROOT / 'options/compare')}
    own = read_run(ROOT / 'options' / published)
    for stage, wanted in own['train']['stages'].items():
        length = config.budget.stages[stage]
        assert (length.iters, length.lr_g, length.lr_d) == (wanted['iters'], wanted['lr_g'], wanted.get('lr_d'))
        assert rows['sdakd'].stages[stage]['terms'] == wanted['terms']
    assert config.budget.batch == own['datasets']['train']['batch_size_per_gpu']
    assert config.budget.ema_decay == own['train']['ema_decay']
    assert config.teacher == published and [str(ratio) for ratio in config.ratios()] == ['1/2', '1/4', '1/8']
    for term in ('pixel_opt', 'perceptual_opt', 'gan_opt'):
        assert rows['sdakd'].options['train'][term] == own['train'][term], term
    if name == 'realesrgan':
        assert config.budget.crop == own['gt_size'] and config.data.photographs.queue_size == own['queue_size']
        assert config.data.photographs.meta_info == own['datasets']['train']['meta_info']
    else:
        assert config.data.faces.factors == own['datasets']['train']['factors']
    assert {'sdakd_no_student_d', 'sdakd_no_stage1', 'sdakd_no_stage2', 'sdakd_linear', 'dcd', 'dcd_modified'} <= set(
        rows
    )
    assert len({row.iterations for row in rows.values()}) == 1 and config.primary.metric == 'fid'
    cells = {f'{row}_w{str(ratio).replace("/", "-")}_s{seed}' for row in rows for ratio in config.ratios()
             for seed in config.seeds}  # fmt: skip
    for table in {'realesrgan': ('table_fid', 'table_ablation'), 'gcfsr': ('table_fid_gcfsr',)}[name]:
        content = yaml.safe_load((ROOT / f'test_scripts/configs/{table}.yml').read_text())
        assert {row['model'] for row in content['rows']} - {'teacher'} <= cells
        assert {Path(folder).parts[1] for folder in content['results']} == {Path(config.output).name}
        assert {column['set'] for column in content['columns']} <= set(config.data.test)


# ------------------------------------------------------- faces -------------------------------------------------------

METHODS = ('none_student_d', 'none_teacher_d', 'sdakd', 'dgl_gan', 'akdg', 'dcd', 'dcd_modified', 'crd', 'omgd', 'l1')


def test_files_of_methods_apply_to_faces(here, tmp_path):
    """As training checks them, with their first steps; the setting is GCFSR's in place of Real-ESRGAN's."""
    from sdakd.commands.compare import rehearsal

    methods = {name: {'weight': []} for name in METHODS}
    made = matrix_of(here, faces(methods=methods, teacher_discriminator={'iters': 2, 'lr_d': 1e-3}), 'F')
    found = rehearsal.check_rows(made, tmp_path, real_data=True)
    published = read_run(ROOT / 'options/sdakd_gcfsr_1024.yml')['train']
    narrow = {'student': 1 / 64, 'teacher': 1 / 32}
    judges = {}
    for name in METHODS:
        options = found[name, HALF]
        assert options['model_type'] == 'SDAKDGCFSRModel' and 'scale' not in made.options(made.rows[0], HALF, 0, 1)
        assert options['network_g']['narrow'] == narrow['student'] and options['network_g']['out_size'] == 32
        assert options['train']['optim_d'] == published['optim_d']
        assert options['datasets']['train']['factors'] == [4, 4, 8]
        networks = [options.get('network_d')] + [e['network'] for e in (options.get('discriminators') or {}).values()]
        networks = [network for network in networks if network]
        assert all((n['type'], n['out_size']) == ('GCFSRDiscriminator', 32) for n in networks)
        judges[name] = sorted(n['narrow'] for n in networks)
        learns = any(term.startswith('gan') for s in options['train']['stages'].values() for term in s['terms'])
        assert (options['train'].get('r1_reg_weight') == 10) == learns, name
        gans = [
            options['train'].get('gan_opt'),
            *(e.get('gan_opt') for e in (options.get('discriminators') or {}).values()),
        ]
        assert {gan['gan_type'] for gan in gans if gan} <= {'wgan_softplus'}
        if 'pixel_opt' in options['train']:
            assert options['train']['pixel_opt'] == published['pixel_opt']
    both = [narrow['student'], narrow['teacher']]
    assert judges == {
        'none_student_d': both[:1], 'none_teacher_d': both[1:], 'sdakd': both[:1], 'dgl_gan': both,
        'akdg': both[:1] * 2, 'dcd': both[1:], 'dcd_modified': both[1:], 'crd': both[1:], 'omgd': [], 'l1': [],
    }  # fmt: skip
    trained = made.discriminator_run().options
    assert trained['discriminators']['teacher']['network']['narrow'] == 1 / 32
    assert trained['train']['r1_reg_weight'] == 10


@pytest.fixture(scope='module')
def measured(ground, tmp_path_factory):
    """Two methods on faces of 128 pixels, from a teacher of an eighth of GCFSR's channels, searched."""
    import os
    import subprocess
    import sys

    file = write(ground, faces(128, metrics=['psnr']), 'faces.yml')
    command = [sys.executable, '-m', 'sdakd.cli', 'compare', '-opt', str(file), '-o', 'FACES']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(command, cwd=ground, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ground / 'FACES', done.stdout


def test_students_of_faces_are_measured_at_every_factor(ground, measured):
    """PSNR of the luma, from the network called directly."""
    from sdakd_arch.width import build
    from sdakd_data.face_dataset import degrade

    output, text = measured
    content = json.loads((output / 'results.json').read_text())
    assert [s['name'] for s in content['evaluate']['sets']] == ['faces x4', 'faces x8']
    to_y = np.array([24.966, 128.553, 65.481]) / 255
    state = torch.load(output / 'experiments/none_student_d_w1-2_s0/models/net_g_latest.pth', weights_only=True)
    network = build({'type': 'GCFSR', 'out_size': 128, 'narrow': 1 / 16}, '')
    network.load_state_dict(state['params_ema'])
    for factor in (4, 8):
        values = []
        for path in sorted((ground / 'faces128/test').iterdir()):
            face = cv2.imread(str(path))
            enlarged = degrade(face.astype(np.float32) / 255, factor)[1][..., ::-1].copy()
            lq = torch.from_numpy(enlarged).permute(2, 0, 1)[None]
            with torch.no_grad():
                made = network(2 * lq - 1, torch.tensor([[factor / 8]]))
            made = ((made[0].clamp(-1, 1) + 1) / 2 * 255).round().permute(1, 2, 0).numpy()[..., ::-1]
            error = ((made - face) @ to_y)[factor:-factor, factor:-factor]
            values.append(10 * np.log10(255**2 / np.mean(error**2)))
        (score,) = (s for s in content['compare']['scores'] if (s['row'], s['set'], s['reference']) ==
                    ('none_student_d', f'faces x{factor}', 'gt'))  # fmt: skip
        assert score['mean'] == pytest.approx(np.mean(values), abs=0.02)
        assert f'faces x{factor}' in text
    assert 'whole faces' in text and (output / 'report.html').stat().st_size > 1000


def test_the_search_on_faces_is_over_all_factors(measured):
    output, _ = measured
    found = json.loads((output / 'results.json').read_text())['compare']['search']
    scores = [json.loads((output / f'validation/x{factor}/results.json').read_text())['evaluate']['scores']
              for factor in (4, 8)]  # fmt: skip
    for trial in (trial for trial in found if trial['row'] == 'sdakd'):
        name = 'sdakd_w1-2_s0' + ('' if trial['factor'] == 1 else '_x3')
        values = [next(s['mean'] for s in each if (s['model'], s['reference']) == (name, 'gt')) for each in scores]
        assert trial['value'] == pytest.approx(np.mean(values)) and len(set(values)) == 2


def test_the_teacher_of_an_option_file(here):
    """Its network and weights; what the file trains does not matter."""
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.teacher import open_teacher

    network = {'type': 'GCFSR', 'out_size': 32, 'narrow': 1 / 32}
    write(here, {'teacher': {'weights': 'gcfsr32.pth', 'param_key': 'params_ema', 'network': network}}, 'own.yml')
    found = open_teacher(read_config(str(write(here, faces(teacher='own.yml')))))
    assert (found.weights, found.network, found.scale) == (here / 'gcfsr32.pth', network, None)
    assert found.keys == {'param_key': 'params_ema'}


def test_the_teacher_is_measured_as_it_teaches(here, tmp_path):
    """An option file's `param_key` and `network` count, where the file's first tensors are others."""
    from sdakd.commands.compare.measuring import teaching_file
    from sdakd.files.generators import open_network

    network = {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 4}
    ema = torch.load(here / 'teacher.pth', weights_only=True)['params']
    torch.save({'params_ema': ema, 'params': {key: -value for key, value in ema.items()}}, here / 'two.pth')
    # without the slopes of PReLU, nothing in the file tells which activation there is
    torch.save({'params': {k: v for k, v in ema.items() if v.ndim == 4 or 'bias' in k}}, here / 'relu.pth')

    def file(**teacher):
        write(here, {'teacher': teacher}, 'own.yml')
        made = matrix_of(here, on_line(teacher='own.yml'), tmp_path / 'T')
        return teaching_file(made)

    for weights, keys in {'two.pth': {'network': network, 'param_key': 'params'},
                          'relu.pth': {'network': {**network, 'act_type': 'relu'}}}.items():  # fmt: skip
        opened = open_network(file(weights=weights, **keys))
        assert opened.network == keys['network']
        state = torch.load(here / weights, weights_only=True)['params']
        assert all(torch.equal(value, state[key]) for key, value in opened.module.state_dict().items())
    assert file(weights='two.pth', network=network, param_key='params_ema') == here / 'two.pth'
    assert file(weights='two.pth') == here / 'two.pth'
    assert teaching_file(matrix_of(here, on_line(), tmp_path / 'T')) == here / 'teacher.pth'


def test_what_was_measured_is_kept_for_the_same_images_alone(here, tmp_path):
    """Other factors, another image under a path, images that shall stay: measured anew, each time once."""
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.measuring import measure

    test = tmp_path / 'test'
    shutil.copytree(here / 'faces128/test', test)

    def measured(factor=8, images=False):
        options = faces(128)
        options['data']['faces']['measured'] = [factor]
        config, matrix = read_config(str(write(tmp_path, options))), SimpleNamespace(scale=None)
        section = measure(config, matrix, tmp_path / 'M', [], {'a': str(test)}, ['psnr'], ['bicubic'], images)
        content = json.loads((tmp_path / 'M/results.json').read_text())['evaluate']
        assert content == section
        return section['scores'][0]['mean'], (tmp_path / 'M/results.json').stat().st_mtime_ns

    first = measured()
    assert measured() == first
    coarse = measured(16)
    assert coarse[0] < first[0] and measured(16) == coarse
    image = sorted(test.iterdir())[0]
    cv2.imwrite(str(image), cv2.imread(str(image))[::-1] // 2)
    other = measured(16)
    assert other[0] != coarse[0] and measured(16) == other
    assert not (tmp_path / 'M/images').exists()
    kept = measured(16, images=True)
    assert kept[0] == other[0] and list((tmp_path / 'M/images').rglob('*.png'))
    assert measured(16, images=True) == measured(16) == kept


MISTAKES = [
    (faces, ['data', 'faces', 'factors'], [3], r'data:faces: the factor 3 does not fit the faces of 32 pixels'),
    (faces, ['data', 'faces', 'measured'], [16], r'data:faces: the factor 16 does not fit'),
    (faces, ['data', 'faces', 'train'], 'nowhere', r'data:faces:train: the folder nowhere does not exist'),
    (faces, ['data', 'faces', 'train'], 'faces32/test', r'is also in'),
    (faces, ['data', 'faces', 'factor'], [4], r"data:faces: unknown key 'factor'; did you mean factors"),
    (faces, ['data', 'faces', 'validation'], None, r'data:faces:validation: the search chooses weights on'),
    (faces, ['budget', 'crop'], 32, r'budget:crop: leave it out, faces are trained on whole'),
    (faces, ['teacher'], 'teacher.pth', r'data:faces: .*teacher.pth holds SRVGGNetCompact.*, no generator of faces'),
    (faces, ['teacher'], 'matrix.yml', r'teacher: .*matrix.yml has no block teacher with weights'),
    (faces, ['teacher_cache'], 'answers', r'teacher_cache: inputs of faces are made while training'),
    (on_line, ['teacher'], 'gcfsr32.pth', r'teacher: .*gcfsr32.pth holds GCFSR.*, which makes faces'),
    (on_line, ['budget', 'crop'], None, r'budget:crop: the key is missing'),
    (on_line, ['teacher_cache'], 'answers', r'teacher_cache: no input comes twice'),
    (on_line, ['data', 'photographs', 'degradation'], 'bicubic', r'on_line: it is Real-ESRGAN'),
    (on_line, ['data', 'photographs', 'on_line'], False, r'data:photographs:queue_size: it belongs to on_line: true'),
    (on_line, ['data', 'photographs', 'validation'], 'photographs', r'lies in a sub-folder|is also in'),
    (on_line, ['data', 'photographs', 'validation'], None, r'data:photographs:validation: the search chooses'),
    (on_line, ['data', 'photographs', 'meta_info'], 'nolist.txt', r'data:photographs:meta_info: .*nolist.txt does not'),
    (on_line, ['data', 'photographs', 'meta_info'], 'matrix.yml', r'is not in .*photographs; correct the list'),
    (on_line, ['data', 'photographs', 'queue_size'], 7, r'queue_size: the pair pool holds 7 pairs'),
]  # fmt: skip


@pytest.mark.parametrize(('kind', 'path', 'value', 'sentence'), MISTAKES)
def test_mistakes_are_one_sentence(here, kind, path, value, sentence):
    options = kind()
    block = options
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    if value is None:
        del block[path[-1]]
    file = write(here, options, 'bad.yml')
    with pytest.raises(UserError, match=sentence) as error:
        cli.main(['compare', '-opt', str(file), '-o', 'BAD'])
    text = str(error.value)
    assert text.startswith(f'{file}: ') and '\n' not in text and not (here / 'BAD/experiments').exists()
