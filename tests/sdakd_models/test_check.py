"""A user's mistakes: one sentence that names what, where and what to do, before anything is created."""

import copy
import os
import re

import pytest
import torch
import yaml

from sdakd.compat import UserError
from sdakd_arch import zoo
from sdakd_models import resuming
from sdakd_models.reader import force
from sdakd_models.scenario import Scenario


def change(options, path, value):
    block = options
    *parents, last = path.split('/')
    for key in parents:
        block = block[key]
    if value is DELETE:
        del block[last]
    else:
        block[last] = value


DELETE = object()

# what is changed in the option file of a good run; what the sentence must say
MISTAKES = [
    ('model_type', 'SDAKDModle', r"model_type: nothing called 'SDAKDModle' is registered; did you mean SDAKDModel"),
    ('name', DELETE, r'name: the key is missing'),
    ('name', '../up', r'name: .* no path separator'),
    ('num_gpu', 3, r'num_gpu: 3 GPUs are asked for'),
    ('num_gpu', 'two', r'num_gpu: write auto or a number'),
    ('discriminator', {}, r"discriminator: this key is not known; did you mean discriminators"),
    ('scale', 2, r'scale: the options say 2, but network_g enlarges 4 times'),
    ('train/stages', DELETE, r'train: object missing required field `stages`'),
    ('train/stages', {}, r'train:stages: expected `object` of length >= 1'),
    ('train/stages/supervised/terms', ['pixle'],
     r"train:stages:supervised:terms: unknown term 'pixle'; did you mean pixel"),
    ('train/stages/supervised/terms', ['gan:techer'], r"term 'gan:techer' needs the discriminator 'techer'"),
    ('train/stages/supervised/terms', ['pixel', 'pixel'], r'a term stands twice'),
    ('train/stages/supervised/terms', ['perceptual'], r'train:perceptual_opt: the block is missing'),
    ('train/stages/supervised/iter', 3, r"train:stages:supervised: unknown key 'iter'; did you mean iters"),
    ('train/stages/supervised/iters', 'many',
     r"train:stages:supervised:iters: expected `int`, got `str`, given 'many'"),
    ('train/stages/supervised/iters', 0, r'train:stages:supervised:iters: expected `int` >= 1'),
    ('train/stages/supervised/lr_g', 'fast', r'train:stages:supervised:lr_g: expected `float`'),
    ('train/stages/supervised/lr_g', -1.0, r'train:stages:supervised:lr_g: expected `float` > 0'),
    ('train/stages/supervised/lr_g', DELETE,
     r'train:stages:supervised:lr_g: the key is missing, but a term trains the student \(pixel\)'),
    ('train/pixel_opt', None, r'train:stages:supervised:terms: no term is left that trains the student'),
    ('network_g', DELETE, r'network_g: the key is missing'),
    ('train/stages/supervised/scheduler', {'type': 'StepLR'}, r"train:stages:supervised:scheduler.*StepLR"),
    ('train/stages/adversarial/lr_d', DELETE, r'train:stages:adversarial:lr_d: the key is missing'),
    ('train/start_stage', 'distilation',
     r"train:start_stage: there is no stage 'distilation'; did you mean distillation"),
    ('train/featur_opt', {}, r"train: unknown key 'featur_opt'; did you mean feature_opt"),
    ('train/scheduler', {}, r'train:scheduler: this belongs to each stage'),
    ('train/optim_g', {'type': 'SGD'}, r"train:optim_g:type: 'SGD' is not offered"),
    ('train/optim_g', {'type': 'Adam', 'lr': 1e-4}, r'train:optim_g:lr: the learning rate belongs to each stage'),
    ('train/optim_d', {'type': 'Adam', 'beta': 1}, r'train:optim_d: .*beta'),
    ('train/pixel_opt', {'type': 'L1Lost'},
     r"train:pixel_opt:type: nothing called 'L1Lost' is registered; did you mean L1Loss"),
    ('train/pixel_opt', {'type': 'L1Loss', 'weight': 1},
     r"train:pixel_opt: L1Loss takes no 'weight'; did you mean loss_weight"),
    ('train/pixel_opt/loss_weight', '1e-2', r'train:pixel_opt:loss_weight: write a number'),
    ('train/feature_opt/layers', ['body.4', 'bodi.7'],
     r"train:feature_opt:layers: SRVGGNetCompact has no module 'bodi.7'"),
    ('train/feature_opt/layers', ['body.4:out'], r"train:feature_opt:layers: the tap 'body.4:out' ends in 'out'"),
    ('train/feature_opt/hidden_ratio', 'wide', r'train:feature_opt:hidden_ratio: expected `float`'),
    ('network_g/type', 'SRVGGNetCompat',
     r"network_g:type: nothing called 'SRVGGNetCompat' .* did you mean SRVGGNetCompact"),
    ('network_g/num_feats', 4, r'network_g: SRVGGNetCompact cannot be built .*num_feats'),
    ('network_d', DELETE, r"train:stages:adversarial:terms: .* needs the discriminator 'student'.*network_d"),
    ('network_d/type', 'UNet', r'network_d:type: nothing called'),
    ('network_d', {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 4},
     r'network_d: it does not take images of 32x32'),
    ('discriminators', {'student': {}}, r'discriminators:student: this name belongs to network_d'),
    ('teacher', DELETE, r'teacher: the block is missing'),
    ('teacher/weight', 'x', r"teacher: unknown key 'weight'; did you mean weights"),
    ('teacher/weights', 'missing.pth', r'teacher:weights: the file .*missing.pth does not exist'),
    ('teacher/network', {'type': 'SRVGGNetCompact', 'num_feat': 16, 'num_conv': 4},
     r'teacher:weights: .*does not fit SRVGGNetCompact\(num_feat=16, .* holds SRVGGNetCompact\(num_feat=8'),
    ('path/pretrain_network_g', 'student.pth', r'path:pretrain_network_g: the file .*student.pth does not exist'),
    ('path/resume_state', 'none.state', r'path:resume_state: the file .*none.state does not exist'),
    ('datasets/train', DELETE, r'datasets:train: the data set to train on is missing'),
    ('datasets/train/type', 'PairedImagesDataset', r'datasets:train:type: .*did you mean PairedImageDataset'),
    ('datasets/train/dataroot_gt', 'nowhere', r'datasets:train:dataroot_gt: the folder .*nowhere does not exist'),
    ('datasets/train/dataroot_lq', DELETE,
     r'datasets:train:dataroot_lq: the key is missing, PairedImageDataset needs it'),
    ('datasets/train/gt_size', 30, r'datasets:train:gt_size: the crop of 30 must be a multiple of scale 4'),
    ('datasets/train/gt_size', 128, r'datasets:train:gt_size: the crop of 128 .* fit into'),
    ('datasets/train/batch_size_per_gpu', 0, r'datasets:train:batch_size_per_gpu: expected `int` >= 1, given 0'),
    ('datasets/train/batch_size_per_gpu', 'two', r'datasets:train:batch_size_per_gpu: expected `int`, got `str`'),
    ('datasets/train/num_worker_per_gpu', 'many', r'datasets:train:num_worker_per_gpu: .*many.*auto'),
    ('val/metrics/psnr/type', 'calculate_pnsr', r'val:metrics:psnr:type: .*did you mean calculate_psnr'),
    ('val/val_freq', 'often', r'val:val_freq: expected `int`, got `str`'),
    ('logger/print_freq', 0, r'logger:print_freq: expected `int` >= 1, given 0'),
]  # fmt: skip


@pytest.mark.parametrize(('path', 'value', 'sentence'), MISTAKES, ids=lambda v: v if isinstance(v, str) else '')
def test_mistake_in_the_option_file(shared_world, parse, tmp_path, path, value, sentence):
    options = shared_world.options()
    change(options, path, value)
    file = tmp_path / 'bad.yml'
    file.write_text(yaml.safe_dump(options, sort_keys=False))
    with pytest.raises(UserError) as caught:
        opt = parse(file, tmp_path / 'root')
        resuming.load_resume_state(opt)
    text = str(caught.value)
    assert re.search(sentence, text), text
    assert '\n' not in text and text.endswith(('.', '?')) and len(text) < 500
    assert not (tmp_path / 'root').exists()


def test_a_good_file_passes_and_is_completed(shared_world, parse, tmp_path):
    file = tmp_path / 'good.yml'
    file.write_text(yaml.safe_dump(shared_world.options(), sort_keys=False))
    opt = parse(file, tmp_path / 'root')
    assert opt['train']['total_iter'] == 60
    assert [i for i in range(1, 61) if i % opt['logger']['save_checkpoint_freq'] == 0] == [20, 40, 60]
    assert [i for i in range(1, 61) if i % opt['val']['val_freq'] == 0] == [20, 40]
    assert not (tmp_path / 'root').exists()


def test_numbers_without_a_dot_are_numbers(shared_world, parse, tmp_path):
    file = tmp_path / 'good.yml'
    file.write_text(yaml.safe_dump(shared_world.options(), sort_keys=False).replace('lr_g: 0.0001', 'lr_g: 2e-4'))
    assert isinstance(yaml.safe_load(file.read_text())['train']['stages']['adversarial']['lr_g'], str)
    plan = Scenario.read(parse(file, tmp_path)).plan
    assert plan.stages[2].lr_g == pytest.approx(2e-4)


def test_student_and_teacher_of_different_scale(world, parse):
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    torch.save(SRVGGNetCompact(num_feat=8, num_conv=4, upscale=2).state_dict(), world.root / 'teacher.pth')
    with pytest.raises(UserError, match='teacher: it enlarges 2 times and network_g 4 times'):
        parse(world.write(world.options()), world.root)


def test_student_of_another_width(world, parse):
    options = world.options()
    options['path']['pretrain_network_g'] = str(world.root / 'teacher.pth')
    with pytest.raises(UserError, match=r'pretrain_network_g: .*does not fit .*num_feat=4.*holds .*num_feat=8'):
        parse(world.write(options), world.root)


def test_discriminator_that_does_not_learn_needs_a_file(world, parse):
    options = world.options()
    options['discriminators'] = {'teacher': {'network': options['network_d'], 'learns': False}}
    options['train']['stages']['adversarial']['terms'].append('gan:teacher')
    with pytest.raises(UserError, match='discriminators:teacher:weights: .*needs its file'):
        parse(world.write(options), world.root)


@pytest.mark.parametrize('damage', ['empty', 'text', 'cut', 'size'])
def test_damaged_image_is_named(world, parse, damage):
    import cv2

    path = sorted((world.root / 'LRx4').iterdir())[3]
    if damage == 'size':
        cv2.imwrite(str(path), cv2.imread(str(path))[:-1])
    else:
        content = path.read_bytes()
        path.write_bytes({'empty': b'', 'text': b'no image', 'cut': content[: len(content) // 2]}[damage])
    with pytest.raises(UserError, match=path.name):
        parse(world.write(world.options()), world.root)


def test_empty_folder_and_missing_partner(world, parse):
    options = world.options()
    next((world.root / 'LRx4').iterdir()).unlink()
    with pytest.raises(UserError, match='datasets:train: .*different number of images'):
        parse(world.write(options), world.root)
    for folder in ('HR', 'LRx4'):
        for file in (world.root / folder).iterdir():
            file.unlink()
    with pytest.raises(UserError, match='datasets:train: no image was found in .*HR'):
        parse(world.write(options), world.root)


def test_missing_image_of_a_meta_file_is_named(world, parse):
    (world.root / 'meta.txt').write_text('astronaut0.png\ngone.png\n')
    options = world.options()
    options['datasets']['train']['meta_info_file'] = str(world.root / 'meta.txt')
    with pytest.raises(UserError, match='the image .*gone.png does not exist'):
        parse(world.write(options), world.root)


def test_pair_pool_that_the_batch_does_not_divide(world, parse):
    options = world.options() | world.degradation | {'model_type': 'SDAKDRealESRGANModel', 'queue_size': 7}
    with pytest.raises(UserError, match='queue_size: the pair pool holds 7 pairs.*write 8'):
        parse(world.write(options), world.root)
    del options['jpeg_range2']
    with pytest.raises(UserError, match='jpeg_range2: the key is missing'):
        parse(world.write(options), world.root)


def test_missing_vgg_is_announced_with_url_path_and_remedy(world, parse, monkeypatch):
    monkeypatch.setattr('basicsr.archs.vgg_arch.VGG_PRETRAIN_PATH', 'nowhere/vgg19-dcbb9e9d.pth')
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(world.root / 'hub'))
    monkeypatch.setitem(zoo.URLS, 'vgg19-dcbb9e9d.pth', 'http://127.0.0.1:9/v')
    options = world.options()
    options['train']['perceptual_opt'] = {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 1}}
    options['train']['stages']['supervised']['terms'] = ['pixel', 'perceptual']
    file = world.write(options)
    with pytest.raises(UserError) as caught:
        parse(file, world.root)
    for part in ('vgg19-dcbb9e9d.pth', 'http://127.0.0.1:9/v', 'perceptual_opt: ~'):
        assert part in str(caught.value)
    assert not (world.root / 'nowhere').exists()
    opt = parse(file, world.root, '--force_yml', 'train:perceptual_opt=~')  # the remedy, typed
    assert opt['train']['perceptual_opt'] is None


@pytest.mark.parametrize(('kind', 'file'), [('vgg16', 'vgg16-397923af.pth'), ('vgg19', 'vgg19-dcbb9e9d.pth')])
def test_each_vgg_finds_its_own_file_beside_the_other(world, monkeypatch, kind, file):
    """BasicSR loads one path into whatever VGG is asked for."""
    from basicsr.archs import vgg_arch

    from sdakd_models.checks.vgg import ensure_vgg

    monkeypatch.setattr(vgg_arch, 'VGG_PRETRAIN_PATH', 'experiments/pretrained_models/vgg19-dcbb9e9d.pth')
    folder = world.root / 'experiments/pretrained_models'
    folder.mkdir(parents=True)
    for name in ('vgg16-397923af.pth', 'vgg19-dcbb9e9d.pth'):
        (folder / name).touch()
    monkeypatch.chdir(world.root / 'HR')  # not the folder that holds experiments/
    ensure_vgg({'vgg_type': kind}, str(world.root))
    assert vgg_arch.VGG_PRETRAIN_PATH == str(folder / file)


def test_official_teacher_is_downloaded_when_its_release_answers(world, parse, monkeypatch):
    """A real server on this machine stands for the release page."""
    import functools
    import http.server
    import threading

    (world.root / 'www').mkdir()
    os.replace(world.root / 'teacher.pth', world.root / 'www/teacher.pth')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(world.root / 'www'))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(zoo.URLS, 'official.pth', f'http://127.0.0.1:{server.server_port}/teacher.pth')
    options = world.options()
    options['teacher']['weights'] = 'weights/official.pth'
    opt = parse(
        world.write(options),
        world.root,
    )
    server.shutdown()
    server.server_close()
    assert (world.root / 'www/teacher.pth').read_bytes() == open(opt['teacher']['weights'], 'rb').read()
    os.unlink(opt['teacher']['weights'])
    with pytest.raises(UserError, match=r'cannot be downloaded .*http://127.0.0.1'):
        parse(world.write(options), world.root)


def test_forced_values_are_literals(shared_world):
    options = shared_world.options()
    force(options, ['train:stages:supervised:iters=7', 'path:resume_state=~', 'name=__import__("os").getcwd()',
                           'train:optim_g={type: Adam, betas: [0.5, 0.9]}'])  # fmt: skip
    assert options['train']['stages']['supervised']['iters'] == 7
    assert options['name'] == '__import__("os").getcwd()'
    assert options['train']['optim_g'] == {'type': 'Adam', 'betas': [0.5, 0.9]}
    for entry, sentence in (
        ('train', 'write key:key=value'),
        ('trian:stages=1', 'no block trian; did you mean train'),
        ('nam=x', 'no key nam; did you mean name'),
        ('name=[', 'no YAML literal'),
    ):
        before = copy.deepcopy(options)
        with pytest.raises(UserError, match=sentence):
            force(options, [entry])
        assert options == before


def test_yaml_that_would_execute_code_is_refused(world, parse):
    marker = world.root / 'executed'
    text = yaml.safe_dump(world.options(), sort_keys=False) + f'evil: !!python/object/apply:os.mkdir ["{marker}"]\n'
    (world.root / 'evil.yml').write_text(text)
    with pytest.raises(UserError, match='broken YAML in line'):
        parse(world.root / 'evil.yml', world.root)
    assert not marker.exists()


@pytest.mark.parametrize(('content', 'sentence'), [('name: [', 'broken YAML'), ('- a', 'no option file')])
def test_file_that_is_no_option_file(tmp_path, parse, content, sentence):
    (tmp_path / 'bad.yml').write_text(content)
    with pytest.raises(UserError, match=sentence):
        parse(tmp_path / 'bad.yml', tmp_path)
    with pytest.raises(UserError, match='cannot be read'):
        parse(tmp_path / 'absent.yml', tmp_path)
