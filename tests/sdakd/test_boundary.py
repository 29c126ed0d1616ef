"""Canaries: files that would execute, overwrite or hang if they were trusted, at every door through which files come.

`Canary` makes a file when it is unpickled. The environment variable that takes torch's protection away is set in all
tests, as torch before 2.6 had none: without care, BasicSR, torchvision, GFPGAN and others would execute it.
"""

import contextlib
import http.server
import io
import json
import os
import pickle
import signal
import struct
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from PIL import Image
from safetensors.torch import save

from sdakd.cli import main
from sdakd.compat import UserError, replacing
from sdakd.decoding import PNG
from sdakd.files import images
from sdakd.files.generators import open_network
from sdakd_arch.download import Release, obtain
from sdakd_arch.inference.onnx_network import external_files
from sdakd_arch.weights import read_weights, save_whole, tensors_only
from sdakd_arch.width import build
from sdakd_arch.zoo import ensure_file
from sdakd_models import resuming


class Canary:
    """Makes the file ``alarm`` when it is unpickled."""

    def __init__(self, alarm):
        self.alarm = str(alarm)

    def __reduce__(self):
        return open, (self.alarm, 'w')


def zipped(path, alarm):
    torch.save({'params': {'weight': torch.zeros(1)}, 'more': Canary(alarm)}, path)


def pickled(path, alarm):
    path.write_bytes(pickle.dumps({'params': Canary(alarm)}))


KINDS = {'zip': zipped, 'pickle': pickled}


@pytest.fixture(autouse=True)
def unprotected(monkeypatch):
    """torch as it was before 2.6; and nothing may wait for ever."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')

    def hangs(*_):
        raise AssertionError('it waits')

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def alarm(tmp_path):
    return tmp_path / 'alarm'


@pytest.fixture(params=KINDS)
def canary(request, tmp_path, alarm):
    """A weights file that makes ``alarm`` if it is executed."""
    path = tmp_path / 'canary.pth'
    KINDS[request.param](path, alarm)
    return path


@pytest.fixture(params=['pipe', 'device', 'link to a device'])
def endless(request, tmp_path):
    """Makes a path that waits or never ends, whatever its name is."""

    def make(path):
        if request.param == 'pipe':
            os.mkfifo(path)
        else:
            path.symlink_to('/dev/zero')
        return path

    return make


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, photographs and nothing else; the current one."""
    folder = tmp_path / 'place'
    (folder / 'in').mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ('a.png', 'b.png', 'c.png'):
        cv2.imwrite(str(folder / 'in' / name), picture)
    (folder / 'in/from.yml').write_text(
        'model_type: ESRGANModel\nscale: 4\ndatasets: {x: 1}\nnetwork_g: {x: 1}\ntrain: {x: 1}\n'
    )
    torch.save({'params': SRVGGNetCompact(num_feat=4, num_conv=1).state_dict()}, folder / 'net.pth')
    monkeypatch.chdir(folder)
    monkeypatch.setenv('TORCH_HOME', str(folder / 'torch'))
    return folder


def refused(*words, match='[a-z]'):
    """Gives a command, which must end with one sentence."""
    with pytest.raises(UserError, match=match) as error:
        main([str(word) for word in words])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', KINDS)
def test_the_canary_lives(kind, tmp_path, alarm):
    KINDS[kind](tmp_path / 'canary.pth', alarm)
    with contextlib.suppress(Exception), pytest.warns(UserWarning, match='TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'):
        torch.load(tmp_path / 'canary.pth')
    assert alarm.exists()


# ---------------------------------------------- weights, by every flag ------------------------------------------------

EVALUATE = ('evaluate', '-d', 'in', '-o', 'out')
FLAGS = {
    'evaluate -m': (*EVALUATE, '-m', '{}'),
    'evaluate --backbone': (*EVALUATE, '-m', 'bicubic', '--metrics', 'fd', '--backbone', 'squeezenet:{}'),
    'evaluate --backbone lite': (*EVALUATE, '-m', 'bicubic', '--metrics', 'fd', '--backbone', 'efficientnet_lite0:{}'),
    'evaluate --distance': (*EVALUATE, '-m', 'bicubic', '--distance', 'squeezenet:{}'),
    'evaluate --face_model': (*EVALUATE, '-m', 'bicubic', '--metrics', 'identity', '--face_model', '{}'),
    'bench -m': ('bench', '-m', '{}', '-o', 'out'),
    'export -m': ('export', '-m', '{}', '-o', 'out', '--to', 'safetensors'),
    'upscale -m': ('upscale', '-m', '{}', '-i', 'in', '-o', 'out'),
    'distill -t': ('distill', '-t', '{}', '-d', 'in', '-o', 'out'),
    'init -t': ('init', '--from', 'in/from.yml', '-t', '{}', '-w', '1/4'),
    'prepare faces --detector': ('prepare', 'faces', '-i', 'in', '-o', 'out', '--size', '32', '--detector', '{}'),
}


@pytest.mark.parametrize('flag', FLAGS)
def test_a_flag_executes_nothing(flag, canary, alarm, place):
    if 'face' in flag:
        pytest.importorskip('facexlib')
    refused(*(word.format(canary) for word in FLAGS[flag]), match='could run code|cannot be read')
    assert not alarm.exists() and not (place / 'out/results.json').exists()


@pytest.mark.parametrize('flag', FLAGS)
def test_a_flag_takes_no_weights_that_are_no_numbers(flag, place):
    if 'face' in flag:
        pytest.importorskip('facexlib')
    state = SRVGGNetCompact(num_feat=4, num_conv=1).state_dict()
    state['body.1.weight'][2] = float('nan')
    torch.save({'params': state}, 'nan.pth')
    sentence = r': \S*nan.pth is damaged .* its tensor params:body.1.weight is not finite'
    refused(*(word.format('nan.pth') for word in FLAGS[flag]), match=sentence)
    assert not (place / 'out/results.json').exists()


@pytest.mark.parametrize('flag', ['evaluate -m', 'bench -m', 'upscale -m'])
def test_a_flag_takes_no_graph_that_gives_no_numbers(flag, place):
    from sdakd.commands.export.formats import to_onnx
    from sdakd.files.generators import open_network

    opened = open_network('net.pth')
    opened.module.body[0].bias[1] = float('nan')
    to_onnx(opened, place / 'nan.onnx')
    refused(
        *(word.format('nan.onnx') for word in FLAGS[flag]), match='nan.onnx is damaged: it gives values that are not'
    )


@pytest.mark.parametrize(
    ('metric', 'name'), [('lpips', 'alexnet-owt-7be5be79.pth'), ('fid', 'weights-inception-2015-12-05-6726825d.pth')]
)
def test_a_file_in_torchs_folder_executes_nothing(metric, name, canary, alarm, place, monkeypatch):
    """Neither by its hash nor, were the hash the published one, by the package that loads it."""
    pytest.importorskip('lpips' if metric == 'lpips' else 'torch_fidelity')
    cached = place / 'torch/hub/checkpoints' / name
    cached.parent.mkdir(parents=True)
    os.link(canary, cached)
    refused(*EVALUATE, '-m', 'bicubic', '--metrics', metric, match='is not the standard file')
    monkeypatch.setattr('sdakd_metrics.distribution.digest_of', lambda path: name.removesuffix('.pth')[-8:])
    refused(*EVALUATE, '-m', 'bicubic', '--metrics', metric, match='cannot be read as a weights file')
    assert not alarm.exists()


@pytest.mark.parametrize('name', ['GFPGANv1.3.pth', 'detection_Resnet50_Final.pth', 'parsing_parsenet.pth'])
def test_faces_are_enhanced_without_executing_anything(name, canary, alarm, place, monkeypatch):
    pytest.importorskip('gfpgan')
    monkeypatch.setattr(torchvision.ops, 'nms', lambda boxes, scores, threshold: torch.zeros(1))
    folder = place / 'gfpgan/weights'
    folder.mkdir(parents=True)
    for other in ('GFPGANv1.3.pth', 'detection_Resnet50_Final.pth', 'parsing_parsenet.pth'):
        if other != name:
            torch.save({'params_ema': {}}, folder / other)
    os.link(canary, folder / name)
    refused('upscale', '-i', 'in', '-o', 'out', '-m', 'net.pth', '--face_enhance', match='cannot be used')
    assert not alarm.exists()


# ---------------------------------------------- weights, by every key -------------------------------------------------


def perceptual(options, file, **values):
    options['train']['perceptual_opt'] = values
    for stage in options['train']['stages'].values():
        stage['terms'] = ['pixel', 'perceptual']


def backbone(options, file):
    perceptual(options, file, type='BackbonePerceptualLoss', backbone='squeezenet', weights=str(file), share=0.1)


def put(*keys):
    def change(options, file):
        block = options
        for key in keys[:-1]:
            block = block.setdefault(key, {})
        block[keys[-1]] = str(file)

    return change


def discriminator(options, file):
    options['discriminators'] = {'other': {'network': options['network_d'], 'weights': str(file)}}
    options['train']['stages']['adversarial']['terms'].append('gan:other')


def second_teacher(options, file):
    options['teachers'] = {'second': {'weights': str(file)}}
    features = Path(file).with_name('squeezenet.pth')
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), features)
    values = {'backbone': 'squeezenet', 'weights': str(features), 'teachers': ['second'], 'loss_weight': 1}
    options['train']['imitation_opt'] = {'type': 'ImitationLoss', **values}
    options['train']['stages'] = {'only': {'iters': 4, 'lr_g': 1e-3, 'terms': ['imitation']}}


def of_network(kind, key, **more):
    def change(options, file):
        options['network_g'] = {'type': kind, key: str(file), **more}

    return change


KEYS = {
    'teacher:weights': put('teacher', 'weights'),
    'teachers:NAME:weights': second_teacher,
    'discriminators:NAME:weights': discriminator,
    'path:pretrain_network_g': put('path', 'pretrain_network_g'),
    'path:pretrain_network_d': put('path', 'pretrain_network_d'),
    'train:perceptual_opt:weights': backbone,
    'network_g:load_path': of_network('SpyNet', 'load_path'),
    'network_g:spynet_path': of_network('BasicVSR', 'spynet_path', num_feat=4, num_block=1),
    'network_g:dict_path': of_network('DFDNet', 'dict_path', num_feat=4),
}


@pytest.mark.parametrize('key', KEYS)
def test_a_key_executes_nothing(key, canary, alarm, world, parse):
    options = world.options()
    KEYS[key](options, canary)
    with pytest.raises(UserError, match='canary.pth cannot be read as a weights file'):
        parse(world.write(options), world.root)
    assert not alarm.exists() and not (world.root / 'experiments').exists()


@pytest.mark.parametrize('kind', ['vgg19', 'vgg16', 'vgg11'])
def test_basicsrs_vgg_executes_nothing(kind, canary, alarm, world, parse, place, monkeypatch):
    names = {'vgg19': 'vgg19-dcbb9e9d.pth', 'vgg16': 'vgg16-397923af.pth', 'vgg11': 'vgg11-8a719046.pth'}
    cached = place / 'torch/hub/checkpoints' / names[kind]
    cached.parent.mkdir(parents=True)
    os.link(canary, cached)
    monkeypatch.setattr('basicsr.archs.vgg_arch.VGG_PRETRAIN_PATH', 'nowhere')
    options = world.options()
    perceptual(options, None, type='PerceptualLoss', vgg_type=kind, layer_weights={'conv1_1': 1}, perceptual_weight=1)
    with pytest.raises(UserError, match='could run code|cannot be read'):
        parse(world.write(options), world.root)
    assert not alarm.exists() and not (world.root / 'experiments').exists()


def test_a_state_to_resume_from_executes_nothing(canary, alarm):
    with pytest.raises(UserError, match='path:resume_state: .* cannot be read as a training state'):
        resuming.load_resume_state({'path': {'resume_state': str(canary)}})
    assert not alarm.exists()


def test_whoever_loads_gets_tensors_only(canary, alarm, tmp_path):
    """Also code that insists on executing, or brings an unpickler of its own; afterwards torch is as it was."""
    before = torch.load
    for options in ({}, {'weights_only': False}, {'pickle_module': pickle, 'weights_only': False}):
        with tensors_only('where'), pytest.raises(UserError, match=r'where: .*canary.pth cannot be read'):
            torch.load(canary, **options)
    with tensors_only('where'), open(canary, 'rb') as file, pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=False)
    assert torch.load is before and not alarm.exists()


def test_an_old_archive_is_not_unpacked(tmp_path):
    """torch wrote tar files before 0.4, and unpacks them onto the disk."""
    import tarfile

    with tarfile.open(tmp_path / 'old.pth', 'w') as archive:
        for name in ('storages', 'tensors', 'pickle'):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b'abc'))
    with pytest.raises(UserError, match='is a tar archive'):
        read_weights(tmp_path / 'old.pth')


# ---------------------------------------------- option files ---------------------------------------------------------

TAG = '!!python/object/apply:builtins.open ["{}", "w"]'
# what comes before a tag in a file that BasicSR's loader would execute, were the file taken for one of SRModel
DISGUISES = {
    'plain': 'model_type: SDAKDModel\n',
    'text': 'note: |\n  model_type: SRModel\nmodel_type: SDAKDModel\n',
    'folded': 'note: >\n  as in\n  model_type: SRModel\n',
    'quoted': 'note: "\n  model_type: SRModel\n  "\nmodel_type: SDAKDModel\n',
    'nested': 'datasets:\n  model_type: SRModel\nmodel_type: SDAKDModel\n',
    'flow': 'datasets: {\n  model_type: SRModel\n  }\nmodel_type: SDAKDModel\n',
    'first': 'model_type: SRModel\nmodel_type: SDAKDModel\n',
    'last': 'model_type: SDAKDModel\nmodel_type: SRModel\n',
    'merged': 'base: &base\n  model_type: SRModel\n<<: *base\n',
    'documents': 'model_type: SRModel\n---\nmodel_type: SDAKDModel\n',
    'comment': '#\n# model_type: SRModel\n',
    'unfinished': 'model_type: SRModel\nx: [\n',
    'absent': '',
    'list': 'model_type: [SRModel]\n',
    'unknown': 'model_type: NoSuchModel\n',
}


@pytest.mark.parametrize('disguise', DISGUISES)
def test_an_option_file_executes_nothing(disguise, alarm, parse, place):
    (place / 'run.yml').write_text(f'{DISGUISES[disguise]}train: {TAG.format(alarm)}\n')
    with pytest.raises(UserError):
        parse('run.yml', place)
    assert not alarm.exists() and not (place / 'experiments').exists()


def test_basicsrs_own_loader_would_have(alarm, parse, place):
    """Option files of other models keep it: that is BasicSR's own command."""
    (place / 'run.yml').write_text(f'model_type: SRModel\ntrain: {TAG.format(alarm)}\n')
    with contextlib.suppress(Exception):
        parse('run.yml', place)
    assert alarm.exists()


def test_neither_what_it_extends_nor_the_command_line_executes_anything(alarm, world, parse):
    (world.root / 'base.yml').write_text(f'model_type: SRModel\nname: {TAG.format(alarm)}\n')
    (world.root / 'run.yml').write_text('extends: base.yml\n')
    with pytest.raises(UserError, match='base.yml: broken YAML'):
        parse(world.root / 'run.yml', world.root)
    file = world.write(world.options())
    with pytest.raises(UserError, match='the value is no YAML literal'):
        parse(file, world.root, '--force_yml', f'name={TAG.format(alarm)}')
    refused('init', '--from', 'run.yml', '-t', 'net.pth', '-w', '1/4')
    assert not alarm.exists()


def test_option_files_that_wait_or_never_end(endless, parse, place):
    with pytest.raises(UserError, match='is a pipe or a device'):
        parse(endless(place / 'run.yml'), place)
    (place / 'deep.yml').write_text('[' * 100_000)
    with pytest.raises(UserError, match='deep.yml'):
        parse(place / 'deep.yml', place)


# ---------------------------------------------- what a file tells of itself -------------------------------------------

TOLD = {
    'features': ({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 10**9}, 'num_feat.* is 1000000000'),
    'blocks': ({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 10**6}, 'num_block.* is 1000000'),
    'blocks that may be': ({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1000}, 'is larger'),
    'no features': ({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1000, 'num_feat': 0}, 'larger'),
    'convolutions': ({'type': 'SRVGGNetCompact', 'num_conv': 1000, 'num_feat': 1024}, 'which is larger'),
    'upscale': ({'type': 'SRVGGNetCompact', 'upscale': 1000}, 'which is larger'),
    'attention': ({'type': 'SwinIR', 'embed_dim': 960, 'depths': [1000] * 8, 'num_heads': [6] * 8}, 'which is larger'),
    'window': ({'type': 'SwinIR', 'img_size': 10**5}, 'img_size.* is 100000'),
    'side': ({'type': 'GCFSR', 'out_size': 2**40}, 'out_size.* is 1099511627776'),
    'negative': ({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': -5}, 'cannot be built'),
    'text': ({'type': 'RRDBNet', 'num_in_ch': 'three', 'num_out_ch': 3}, 'cannot be built'),
    'infinite': ({'type': 'RRDBNet', 'num_feat': float('inf')}, 'num_feat.* is inf'),
    'long': ({'type': 'SwinIR', 'depths': [2] * 10**5}, 'depths'),
    'deep': ({'type': 'SwinIR', 'depths': [[[[[[2]]]]]]}, 'depths'),
    'unknown key': ({'type': 'SRVGGNetCompact', 'command': 'rm'}, 'cannot be built'),
    'no type': ({'num_feat': 4}, 'it is no network'),
    'list': ([1, 2], 'it is no network'),
    'number': (3, 'it is no network'),
    'video': ({'type': 'BasicVSR', 'spynet_path': 'x'}, 'it names BasicVSR, which is no generator'),
    'part': ({'type': 'SpyNet', 'load_path': 'x'}, 'it names SpyNet, which is no generator'),
    'dictionary': ({'type': 'DFDNet_basicsr', 'num_feat': 4, 'dict_path': 'x'}, 'it names DFDNet, which is no'),
    'extractor': ({'type': 'VGGFeatureExtractor', 'layer_name_list': ['conv1_1']}, 'it names VGGFeatureExtractor'),
    'absent': ({'type': 'NoSuchNet'}, "nothing called 'NoSuchNet' is registered"),
}


def safetensors(path, metadata):
    state = SRVGGNetCompact(num_feat=4, num_conv=1).state_dict()
    path.write_bytes(save(state, metadata={'network': metadata}))
    return path


@pytest.mark.parametrize('case', TOLD)
def test_metadata_of_weights_are_not_trusted(case, place, alarm):
    network, sentence = TOLD[case]
    file = safetensors(place / 'told.safetensors', json.dumps(network))
    refused('export', '-m', file, '-o', 'out', '--to', 'safetensors', match=sentence)


@pytest.mark.parametrize('text', ['{', '[' * 100_000, 'RRDBNet', ''])
def test_metadata_that_are_no_json(text, place):
    refused('upscale', '-i', 'in', '-o', 'out', '-m', safetensors(place / 'x.safetensors', text), match='no network')


@pytest.mark.parametrize('case', ['blocks', 'attention', 'window', 'side', 'deep', 'video', 'dictionary', 'extractor'])
def test_an_option_file_beside_is_not_trusted(case, place):
    network, sentence = TOLD[case]
    (place / 'run/models').mkdir(parents=True)
    torch.save({'params': {'some.weight': torch.zeros(3)}}, place / 'run/models/net_g_1.pth')
    (place / 'run/run.yml').write_text(json.dumps({'network_g': network}))
    refused('bench', '-m', 'run/models/net_g_1.pth', '-o', 'out', match=sentence)


def test_an_option_file_beside_neither_executes_nor_hangs_nor_grows(place, alarm):
    (place / 'run/models').mkdir(parents=True)
    torch.save({'params': {'some.weight': torch.zeros(3)}}, place / 'run/models/net_g_1.pth')
    os.mkfifo(place / 'run/a.yml')
    tag = f'!!python/object/apply:builtins.open ["{alarm}", "w"]'
    (place / 'run/b.yml').write_text(f'x: {tag}\nnetwork_g: {{type: RRDBNet}}\n')
    nested = '\n'.join(f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]' for n in range(1, 12))
    (place / 'run/c.yml').write_text(f'a0: &a0 [1]\n{nested}\nnetwork_g: {{type: SwinIR, depths: *a11}}\n')
    refused('bench', '-m', 'run/models/net_g_1.pth', '-o', 'out', match='depths')
    assert not alarm.exists()


@pytest.mark.parametrize(
    'state',
    [
        {'conv_first.weight': torch.zeros(3, 3, 1, 1), 'body.0.rdb1.conv1.weight': torch.zeros(()),
         'conv_last.weight': torch.zeros(3)},
        {'conv_first.weight': torch.zeros(9, 3, 1, 1), 'body.0.rdb1.conv1.weight': torch.zeros(2),
         'conv_last.weight': torch.zeros(3), 'body.x': torch.zeros(1)},
        {'conv_first.weight': torch.zeros(200_000, 3, 1, 1), 'body.0.rdb1.conv1.weight': torch.zeros(200_000),
         'conv_last.weight': torch.zeros(3)},
        {'body.0.weight': torch.zeros(300_000, 3, 1, 1), 'body.1.weight': torch.zeros(2),
         'body.4.weight': torch.zeros(48, 1, 1, 1)},
        {'RRDB_trunk.x': torch.zeros(1), 'model.0.weight': torch.zeros(1), 'model.1.sub.y': torch.zeros(1)},
        {'conv0.weight': torch.zeros(900_000, 3), 'conv8.weight_orig': torch.zeros(1)},
    ],
)  # fmt: skip
def test_keys_that_tell_impossible_networks(state, place):
    torch.save({'params': state}, 'told.pth')
    refused('upscale', '-i', 'in', '-o', 'out', '-m', 'told.pth')


def test_a_teacher_that_tells_an_impossible_network(world, parse):
    state = {'body.0.weight': torch.zeros(300_000, 3, 1, 1), 'body.1.weight': torch.zeros(2)}
    torch.save({'params': {**state, 'body.4.weight': torch.zeros(48, 1, 1, 1)}}, world.root / 'teacher.pth')
    with pytest.raises(UserError, match='teacher:weights: .*which is larger'):
        parse(world.write(world.options()), world.root)


# ---------------------------------------------- graphs ----------------------------------------------------------------


def graph(path, location=None, where='initializer', network=None):
    """A graph that maps an image onto itself, with weights in the file that it names ``location``."""
    pytest.importorskip('onnx')
    from onnx import TensorProto, helper

    weight = helper.make_tensor('w', TensorProto.FLOAT, [3, 3, 1, 1], np.eye(3, dtype=np.float32).ravel())
    if location is not None:
        weight.ClearField('float_data')
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (('location', location), ('offset', '0'), ('length', '36')):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    nodes = [helper.make_node('Conv', ['i', 'w'], ['o'])]
    if where == 'constant':
        nodes.insert(0, helper.make_node('Constant', [], ['w'], value=weight))
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ['n', 3, 'h', 'w']) for name in 'io']
    made = helper.make_graph(nodes, 'g', shapes[:1], shapes[1:], [] if where == 'constant' else [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    if network is not None:
        helper.set_model_props(model, {'network': network})
    path.write_bytes(model.SerializeToString())
    return path


def weights(path):
    path.write_bytes(np.eye(3, dtype=np.float32).tobytes())


LOCATIONS = [
    '../outside.bin',
    '{}/outside.bin',
    'link.bin',
    'linked/outside.bin',
    'pipe',
    'gone.bin',
    '.',
    'in/../../x',
    'net.pth\0',
]


@pytest.mark.parametrize('where', ['initializer', 'constant'])
@pytest.mark.parametrize('location', LOCATIONS)
def test_a_graph_reads_nothing_outside_its_folder(location, where, tmp_path, place, monkeypatch):
    onnxruntime = pytest.importorskip('onnxruntime')
    monkeypatch.setattr(onnxruntime, 'InferenceSession', lambda *_, **__: pytest.fail('it was opened'))
    weights(tmp_path / 'outside.bin')
    (place / 'link.bin').symlink_to(tmp_path / 'outside.bin')
    (place / 'linked').symlink_to(tmp_path)
    os.mkfifo(place / 'pipe')
    file = graph(place / 'net.onnx', location.format(tmp_path), where)
    refused('upscale', '-i', 'in', '-o', 'out', '-m', file, match='names the file .* for its weights, which')
    refused(*EVALUATE, '-m', 'bicubic', '--metrics', 'identity', '--face_model', file, match='for its weights')


def test_weights_beside_a_graph_are_read(place):
    pytest.importorskip('onnxruntime')
    (place / 'below').mkdir()
    weights(place / 'below/w.bin')
    file = graph(place / 'net.onnx', 'below/w.bin')
    assert external_files(file) == {'below/w.bin'}
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(open_network(file).module(image), image)


@pytest.mark.parametrize('data', [b'', b'\xff' * 100, b'\x3a\xff\xff\xff\xff\x0f', b'\x3a\x05ab', b'\x0b', b'\x80'])
def test_what_is_no_graph(data, place):
    pytest.importorskip('onnxruntime')
    (place / 'net.onnx').write_bytes(data)
    refused('upscale', '-i', 'in', '-o', 'out', '-m', 'net.onnx', match='cannot be read as an ONNX graph')


@pytest.mark.parametrize('case', ['features', 'blocks', 'attention', 'window', 'list', 'video', 'extractor', 'deep'])
def test_metadata_of_a_graph_are_not_trusted(case, place):
    pytest.importorskip('onnxruntime')
    network, sentence = TOLD[case]
    file = graph(place / 'net.onnx', network=json.dumps(network))
    refused(*EVALUATE, '-m', file, '--scale', 1, match=f'{sentence}|cannot be built')


# ---------------------------------------------- pipes and devices -----------------------------------------------------


@pytest.mark.parametrize('flag', FLAGS)
def test_weights_from_a_pipe_or_a_device(flag, endless, place):
    if 'face' in flag:
        pytest.importorskip('facexlib')
    file = endless(place / 'net_x.pth')
    refused(*(word.format(file) for word in FLAGS[flag]), match='is a pipe or a device')


@pytest.mark.parametrize('ending', ['safetensors', 'onnx', 'param', 'bin'])
def test_other_models_from_a_pipe_or_a_device(ending, endless, place):
    file = endless(place / f'net_x.{ending}')
    refused('upscale', '-i', 'in', '-o', 'out', '-m', file, match='is a pipe or a device')


JOBS = {
    'upscale': ('upscale', '-m', 'net.pth'),
    'subimages': ('prepare', 'subimages', '--crop_size', '32', '--step', '32'),
    'multiscale': ('prepare', 'multiscale'),
    'pairs': ('prepare', 'pairs', '--degradation', 'bicubic'),
}


@pytest.mark.parametrize('job', JOBS)
def test_images_from_a_pipe_or_a_device(job, endless, place, capsys):
    endless(place / 'in/b_endless.png')
    refused(*JOBS[job], '-i', 'in', '-o', 'out', match='1 of 4 images .*b_endless.png is a pipe or a device')


@pytest.mark.parametrize('images', ['in', ':in'])
def test_a_test_set_with_a_pipe_or_a_device(images, endless, place):
    endless(place / 'in/b_endless.png')
    models = ('-m', 'bicubic', 'net.pth')
    refused('evaluate', *models, '-d', images, '-o', 'out', '--metrics', 'psnr', match='is a pipe or a device')


def test_a_training_image_from_a_pipe_or_a_device(endless, world, parse):
    for folder in ('HR', 'LRx4'):
        endless(world.root / folder / 'endless.png')
    options = world.options()
    names = sorted(os.listdir(world.root / 'LRx4'))
    (world.root / 'list.txt').write_text(''.join(f'{name} (64,64,3)\n' for name in names))
    options['datasets']['train']['meta_info_file'] = str(world.root / 'list.txt')
    with pytest.raises(UserError, match=r'endless.png is a pipe or a device, not a file; correct the list'):
        parse(world.write(options), world.root)


def test_a_training_image_that_is_too_large(world, parse):
    name = sorted(os.listdir(world.root / 'HR'))[0]
    (world.root / 'HR' / name).write_bytes(png(40_000, 40_000))
    with pytest.raises(UserError, match=f'{name} (cannot be read|is 40000x40000|has)'):
        parse(world.write(world.options()), world.root)


# ---------------------------------------------- where results go ------------------------------------------------------


@pytest.fixture
def precious(tmp_path):
    """A file that links lead to, and that stays as it is."""
    path = tmp_path / 'precious'
    path.write_bytes(b'precious')
    yield path
    assert path.read_bytes() == b'precious'


@pytest.mark.parametrize('name', ['file.pth', '.file.pth.part', f'.file.pth.{os.getpid()}.partial'])
@pytest.mark.parametrize('function', ['write', 'save_whole'])
def test_nothing_is_written_through_a_link(function, name, precious, place):
    (place / name).symlink_to(precious)
    target = place / 'file.pth'
    images.write(target, b'new') if function == 'write' else save_whole({'params': {}}, target)
    assert target.is_file() and not target.is_symlink()


@pytest.mark.parametrize('kind', ['pipe', 'socket'])
def test_nothing_takes_the_place_of_a_pipe(kind, place):
    import socket

    target = place / 'file.pth'
    if kind == 'pipe':
        os.mkfifo(target)
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(target))
    for write in (lambda: images.write(target, b'new'), lambda: save_whole({}, target)):
        with pytest.raises(UserError, match='is a pipe or a device, not a file; remove it'):
            write()
    assert sorted(os.listdir(place)) == ['file.pth', 'in', 'net.pth']


@pytest.mark.parametrize('name', ['a_out.png', '.a_out.png.part', '.sdakd'])
def test_upscale_writes_through_no_link(name, precious, place):
    (place / 'out').mkdir()
    (place / 'out' / name).symlink_to(precious)
    assert main(['upscale', '-i', 'in/a.png', '-o', 'out', '-m', 'net.pth']) == 0
    assert cv2.imread('out/a_out.png').shape == (256, 256, 3)


def test_a_folder_is_locked_through_no_link(precious, place):
    from sdakd.lock import alone_in

    (place / '.lock').symlink_to(precious)
    with pytest.raises(UserError, match=r'-o: .*\.lock cannot be written'), alone_in(place, '-o'):
        pass


def test_what_is_written_is_whole_or_absent(place):
    with pytest.raises(OSError, match='full'), replacing(place / 'file') as file:
        file.write(b'half')
        raise OSError('full')
    assert sorted(os.listdir(place)) == ['in', 'net.pth']


# ---------------------------------------------- downloads -------------------------------------------------------------


@pytest.fixture
def answers():
    """A server that answers each path with a status, headers and a body."""
    paths = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802  the name that http.server calls
            status, headers, body = paths[self.path]
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body if self.command == 'GET' else b'')

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    paths['url'] = f'http://127.0.0.1:{server.server_port}'
    yield paths
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize('place_of', ['file://{}', 'ftp://127.0.0.1{}', 'data:,{}'])
def test_an_address_leads_to_no_file(place_of, answers, precious, place):
    target = place_of.format(precious)
    answers['/x.pth'] = (302, {'Location': target}, b'')
    for url in (f'{answers["url"]}/x.pth', target):
        with pytest.raises(UserError, match='cannot be downloaded'):
            obtain(place / 'x.pth', [Release(url)], '-t')
    assert not (place / 'x.pth').exists() and not (place / 'x.pth.part').exists()


def test_a_download_without_end_is_cut(answers, place, monkeypatch):
    answers['/x.pth'] = (200, {'Connection': 'close'}, b'x' * (4 << 20))
    with pytest.raises(UserError, match='more than 1000 bytes came'):
        obtain(place / 'x.pth', [Release(f'{answers["url"]}/x.pth', '0' * 64, 1000)], '-t')
    monkeypatch.setattr('sdakd_arch.download.LARGEST', 1 << 20)
    with pytest.raises(UserError, match='more than 1048576 bytes came'):
        obtain(place / 'x.pth', [Release(f'{answers["url"]}/x.pth')], '-t')
    assert not list(place.glob('x*')) or (place / 'x.pth.part').stat().st_size == 0


def test_a_teacher_from_an_address_is_checked_before_it_has_a_name(answers, canary, alarm, place):
    answers['/teacher.pth'] = (200, {}, canary.read_bytes())
    url = f'{answers["url"]}/teacher.pth'
    refused('distill', '-t', url, '-d', 'in', '-o', 'out', match='what came is another file')
    refused('distill', '-t', f'{url}#sha256={"0" * 64}', '-d', 'in', '-o', 'out', match='has the SHA-256')
    assert not alarm.exists() and not list(place.rglob('teacher*.pth'))


@pytest.mark.parametrize('name', ['GFPGANv1.3.pth', 'recognition_arcface_ir_se50.pth', 'vgg16-397923af.pth'])
def test_official_files_are_known_by_their_hash(name, answers, place):
    answers[f'/{name}'] = (200, {}, b'another file')
    with pytest.raises(UserError, match='instead of'):
        ensure_file(place / name, '-t', url=f'{answers["url"]}/{name}')
    assert not (place / name).exists()


@pytest.mark.parametrize('kind', ['link', 'pipe'])
def test_a_download_writes_through_no_link(kind, answers, precious, place):
    answers['/x.pth'] = (200, {}, b'x')
    part = place / 'x.pth.part'
    part.symlink_to(precious) if kind == 'link' else os.mkfifo(part)
    with pytest.raises(UserError, match='taken by a link, a pipe or a device'):
        obtain(place / 'x.pth', [Release(f'{answers["url"]}/x.pth')], '-t')
    assert not (place / 'x.pth').exists()


# ---------------------------------------------- images ----------------------------------------------------------------


def png(width, height):
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return PNG + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(width + 1))) + chunk(b'IEND', b'')


def other(kind, width, height):
    """A file whose header says that it is large: that of a small one, with the size overwritten."""
    stream = io.BytesIO()
    Image.new('RGB', (16, 8)).save(stream, kind, **({'lossless': True} if kind == 'WEBP' else {}))
    data = bytearray(stream.getvalue())
    if kind == 'JPEG':
        at = data.index(b'\xff\xc0') + 5
        data[at : at + 4] = struct.pack('>HH', height, width)
    elif kind == 'BMP':
        data[18:26] = struct.pack('<ii', width, height)
    elif kind == 'TIFF':
        start = struct.unpack('<I', data[4:8])[0]
        for number in range(struct.unpack('<H', data[start : start + 2])[0]):
            at = start + 2 + 12 * number
            tag = struct.unpack('<H', data[at : at + 2])[0]
            if tag in (256, 257):
                data[at + 2 : at + 12] = struct.pack('<HII', 4, 1, width if tag == 256 else height)
    return bytes(data)


BOMBS = {
    'png': png(30_000, 30_000),
    'jpg': other('JPEG', 30_000, 30_000),
    'bmp': other('BMP', 30_000, 30_000),
    'tif': other('TIFF', 30_000, 30_000),
}


@pytest.mark.parametrize('ending', BOMBS)
@pytest.mark.parametrize('job', JOBS)
def test_a_large_image_is_not_decoded(job, ending, place, capsys):
    (place / f'in/b_bomb.{ending}').write_bytes(BOMBS[ending])
    refused(
        *JOBS[job], '-i', 'in', '-o', 'out', match='b_bomb.* has 30000x30000 pixels, more than 400000000; give --max'
    )


def test_webp_too(place):
    stream = io.BytesIO()
    Image.new('L', (4000, 3000)).save(stream, 'WEBP', lossless=True)
    (place / 'in/b.webp').write_bytes(stream.getvalue())
    flags = ('upscale', '-m', 'net.pth', '-i', 'in/b.webp', '-o', 'out', '--max-pixels')
    refused(*flags, 11_999_999, match='has 4000x3000 pixels, more than 11999999; give --max-pixels 12000000')


def test_a_test_set_with_a_large_image(place):
    (place / 'in/b_bomb.png').write_bytes(BOMBS['png'])
    refused(*EVALUATE, '-m', 'bicubic', '--metrics', 'psnr', match='b_bomb.png has 30000x30000 pixels')


@pytest.mark.parametrize('flags', [JOBS['upscale'], JOBS['subimages']])
def test_the_limit_is_the_users(flags, place):
    refused(*flags, '-i', 'in', '-o', 'out', '--max-pixels', 4095, match='3 of 3 images .*has 64x64 pixels')
    assert main([*flags, '-i', 'in', '-o', 'out2', '--max-pixels', '4096']) == 0
    for wrong in (0, -1, 'many', 2.5):
        refused(*flags, '-i', 'in', '-o', 'out', '--max-pixels', wrong, match='--max-pixels: write a whole number')


@pytest.mark.parametrize('name', ['d.png', 'd.jpg', 'd.tif'])
def test_postscript_is_not_executed(name, place, alarm, monkeypatch):
    """Pillow hands it to Ghostscript, the program gs, whatever the file is called."""
    (place / 'bin').mkdir()
    program = place / 'bin/gs'
    program.write_text(f'#!/bin/sh\ntouch {alarm}\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(place / 'bin'), prepend=os.pathsep)
    monkeypatch.setattr('PIL.EpsImagePlugin.gs_binary', None, raising=False)
    text = '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n'
    (place / 'in' / name).write_text(text)
    with Image.open(place / 'in' / name) as image, contextlib.suppress(Exception):
        image.load()
    assert alarm.exists()  # it would be
    alarm.unlink()
    refused('upscale', '-i', f'in/{name}', '-o', 'out', '-m', 'net.pth', match='is a PostScript file')
    refused(*JOBS['pairs'], '-i', 'in', '-o', 'out', match='is a PostScript file')
    refused(*EVALUATE, '-m', 'bicubic', '--metrics', 'psnr', match='is a PostScript file')
    assert not alarm.exists()


def test_networks_are_built_without_executing_what_options_name(canary, alarm):
    for options in ({'type': 'SpyNet', 'load_path': str(canary)}, {'type': 'BasicVSR', 'spynet_path': str(canary)}):
        with pytest.raises(UserError, match='network: .*cannot be read'):
            build(options, 'network')
    assert not alarm.exists()
