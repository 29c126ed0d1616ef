"""`sdakd export`: every file, opened by its runtime without the command's help, gives what BasicSR's network gives."""

import copy
import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import ncnn
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import spandrel
import torch
import yaml
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from safetensors import safe_open
from safetensors.torch import load_file

from sdakd import cli
from sdakd.commands import export
from sdakd.compat import UserError
from sdakd.files.generators import open_network
from sdakd_arch.inference.tiling import run_tiled

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIZES = (20, 36), (44, 28)
FORMATS = ['safetensors', 'onnx', 'openvino', 'torchscript', 'ncnn']
NETWORKS = {
    'rrdb_quarter': lambda: RRDBNet(3, 3, num_feat=16, num_block=2, num_grow_ch=8),
    'rrdb_eighth': lambda: RRDBNet(3, 3, num_feat=8, num_block=1, num_grow_ch=4),
    'rrdb_x2': lambda: RRDBNet(3, 3, scale=2, num_feat=16, num_block=1, num_grow_ch=8),
    'rrdb_x1': lambda: RRDBNet(3, 3, scale=1, num_feat=8, num_block=1, num_grow_ch=4),
    'srvgg_quarter': lambda: SRVGGNetCompact(num_feat=16, num_conv=3),
    'srvgg_eighth': lambda: SRVGGNetCompact(num_feat=8, num_conv=2, upscale=2),
}


def make(name):
    """A network whose every weight, bias and slope matters: untrained ones have zero biases and equal slopes."""
    torch.manual_seed(3)
    network = NETWORKS[name]().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.08 * torch.randn_like(parameter)
    return network


def images(sizes=SIZES, batch=1):
    return [torch.rand(batch, 3, *size) for size in sizes]


def run(*words):
    return cli.main(['export', *map(str, words)])


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Exports a network in every format that fits, once; returns the network and the folder."""
    done = {}

    def call(name, half=False):
        if (name, half) not in done:
            folder = tmp_path_factory.mktemp(name)
            network = make(name)
            torch.save({'params': network.state_dict()}, folder / 'net.pth')
            formats = FORMATS + ['padded'] * name.startswith('rrdb')
            assert run('-m', folder / 'net.pth', '--to', *formats, '-o', folder, *['--half'] * half) == 0
            done[name, half] = network, folder
        return done[name, half]

    return call


def in_onnx(path, image):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    assert [entry.type for entry in (*session.get_inputs(), *session.get_outputs())] == ['tensor(float)'] * 2
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: image.numpy()})[0])


def in_ncnn(path, image, half=False):
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
    assert net.load_param(str(path)) == 0 and net.load_model(str(path.with_suffix('.bin'))) == 0
    array = np.ascontiguousarray(image[0].numpy())
    extractor = net.create_extractor()
    extractor.input('data', ncnn.Mat(array))
    status, output = extractor.extract('output')
    assert status == 0
    return torch.from_numpy(np.array(output))[None]


def in_openvino(path, image, precision='f32'):
    model = openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': precision})
    return torch.from_numpy(model(image.numpy())[0].copy())


def in_spandrel(path, image):
    with torch.no_grad():
        output = spandrel.ModelLoader('cpu').load_from_file(str(path)).model.eval()(image)
        return output[0] if isinstance(output, tuple) else output


def psnr(a, b):
    return 10 * np.log10(max(1, b.abs().max().item()) ** 2 / (a - b).square().mean().item())


# ----------------------------------------------------- every format --------------------------------------------------


@pytest.mark.parametrize('name', NETWORKS)
def test_safetensors(exported, name):
    network, folder = exported(name)
    state = load_file(folder / 'net.safetensors')
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items())
    if name.startswith('srvgg'):
        for image in images():
            assert (in_spandrel(folder / 'net.safetensors', image) - network(image)).abs().max() < 1e-5


@pytest.mark.parametrize('name', NETWORKS)
def test_onnx_takes_any_batch_and_size(exported, name):
    network, folder = exported(name)
    model = onnx.load(folder / 'net.onnx')
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', 17)]
    scale = open_network(folder / 'net.pth').scale
    for image in [*images(), *images([(19, 35), (4, 5)], batch=3)]:
        # an image for RRDBNet of scale 2 and 1 is padded; SRVGG needs no padding at any scale
        wanted = run_tiled(network, image, scale) if name.startswith('rrdb') else network(image)
        assert (in_onnx(folder / 'net.onnx', image) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize('name', NETWORKS)
def test_openvino_takes_any_batch_and_size(exported, name):
    network, folder = exported(name)
    scale = open_network(folder / 'net.pth').scale
    for image in [*images(), *images([(19, 35), (4, 5)], batch=3)]:
        wanted = run_tiled(network, image, scale) if name.startswith('rrdb') else network(image)
        bound = 1e-5 * wanted.abs().max().clamp(min=1)
        assert (in_openvino(folder / 'net_openvino.xml', image) - wanted).abs().max() < bound


@pytest.mark.parametrize('name', NETWORKS)
def test_openvino_computes_activations_with_convolutions(exported, name):
    """Also those with a slope for each channel, of which torch's exporter writes equal ones once for all layers."""
    folder = exported(name)[1]
    model = openvino.Core().read_model(folder / 'net_openvino.xml')
    model.reshape([1, 3, 20, 36])
    compiled = openvino.Core().compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    left = [layer.get_friendly_name() for layer in compiled.get_runtime_model().get_ops()]
    assert any('Conv' in layer for layer in left)
    if name not in ('rrdb_eighth', 'rrdb_x1'):  # which split the channels before they activate some of them
        assert not [layer for layer in left if 'relu' in layer.rpartition('/')[2].lower()]


@pytest.mark.parametrize('name', NETWORKS)
def test_torchscript_takes_any_batch_and_size(exported, name):
    network, folder = exported(name)
    graph = torch.jit.load(str(folder / 'net.pt'))
    scale = open_network(folder / 'net.pth').scale
    for image in [*images(), *images([(19, 35), (4, 5)], batch=3)]:
        wanted = run_tiled(network, image, scale) if name.startswith('rrdb') else network(image)
        assert (graph(image) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize('name', NETWORKS)
def test_ncnn_has_the_blobs_that_upscayl_expects(exported, name):
    network, folder = exported(name)
    for image in images():
        wanted = network(image)
        assert (in_ncnn(folder / 'net.param', image) - wanted).abs().max() < 1e-4
        assert psnr(in_ncnn(folder / 'net.param', image, half=True), wanted) > 40
    lines = [line.split() for line in (folder / 'net.param').read_text().splitlines()[2:]]
    assert lines[0][0] == 'Input' and lines[0][-1] == 'data'
    blobs = [blob for line in lines for blob in line[4 : 4 + int(line[2]) + int(line[3])]]
    assert blobs.count('output') == 1 and not {'in0', 'out0'} & set(blobs)
    kinds = {line[0] for line in lines}
    assert kinds <= {'Input', 'Split', 'Convolution', 'PReLU', 'PixelShuffle', 'Interp', 'BinaryOp', 'Concat', 'Reorg'}
    assert ('Reorg' in kinds) == (name in ('rrdb_x2', 'rrdb_x1'))


@pytest.mark.parametrize('name', [name for name in NETWORKS if name.startswith('rrdb')])
def test_padded_is_exact_and_opens_in_spandrel(exported, name, tmp_path):
    network, folder = exported(name)
    with pytest.raises(Exception, match='size mismatch'):  # what padding is for
        spandrel.ModelLoader('cpu').load_from_file(str(folder / 'net.pth'))
    run('-m', folder / 'net.pth', '--to', 'padded', '-o', tmp_path / 'wide.pth')
    model = spandrel.ModelLoader('cpu').load_from_file(str(folder / 'net_padded.safetensors'))
    plain, scale = model.architecture.id == 'MMRealSR', open_network(folder / 'net.pth').scale
    assert plain == (scale == 4) and model.architecture.id in ('MMRealSR', 'ESRGAN') and model.scale == scale
    for image in images():
        wanted = network(image)
        for path in (folder / 'net_padded.safetensors', tmp_path / 'wide.pth'):
            scaled = (in_spandrel(path, image) - wanted) / wanted.abs().max().clamp(min=1)
            assert scaled.abs().max() < 1e-6
    wide = torch.load(tmp_path / 'wide.pth', weights_only=True)['params_ema']
    features, narrow = network.conv_first.weight.shape[0], network.body[0].rdb1.conv1.weight.shape[0]
    growth = narrow if plain else 32
    assert wide['conv_first.weight'].shape[0] == features
    assert wide['body.0.rdb3.conv4.weight'].shape == (growth, features + 3 * growth, 3, 3)
    nonzero = sum(tensor.count_nonzero() for tensor in wide.values())
    assert nonzero == sum(tensor.count_nonzero() for tensor in network.state_dict().values())
    for path in (folder / 'net_padded.safetensors', tmp_path / 'wide.pth'):
        again = open_network(path)
        assert again.network['num_grow_ch'] == growth
        image = torch.rand(1, 3, 24, 36)
        assert torch.allclose(again.module(image), network(image), atol=1e-5)
    assert json.loads((tmp_path / 'wide.json').read_text())['network']['num_grow_ch'] == growth
    if plain:  # its zeros take no room in a .pth
        assert (tmp_path / 'wide.pth').stat().st_size < (folder / 'net.pth').stat().st_size + 20000


@pytest.mark.parametrize('kind', ['relu', 'leakyrelu'])
def test_activations_that_spandrel_does_not_know_become_prelu(tmp_path, kind):
    torch.manual_seed(4)
    network = SRVGGNetCompact(num_feat=8, num_conv=3, act_type=kind).eval().requires_grad_(False)
    folder = tmp_path / 'experiments/run/models'
    folder.mkdir(parents=True)
    torch.save({'params': network.state_dict()}, folder / 'net_g_9.pth')
    options = {'network_g': {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 3, 'act_type': kind}}
    (folder.parent / 'run.yml').write_text(yaml.safe_dump(options))
    with pytest.raises(spandrel.UnsupportedModelError):
        spandrel.ModelLoader('cpu').load_from_file(folder / 'net_g_9.pth')
    for name in ('a.safetensors', 'b.pth'):
        assert run('-m', folder / 'net_g_9.pth', '--to', 'safetensors', '-o', tmp_path / name) == 0
        opened = open_network(tmp_path / name)
        assert opened.network['act_type'] == 'prelu'
        for image in images():
            wanted = network(image)
            assert wanted.std() > 0.05
            assert (in_spandrel(tmp_path / name, image) - wanted).abs().max() < 1e-6
            assert (opened.module(image) - wanted).abs().max() < 1e-6


def esrgan(scale, shuffle=None, plus=False):
    torch.manual_seed(6)
    network = spandrel.architectures.ESRGAN.ESRGAN(
        in_nc=3 * (shuffle or 1) ** 2, num_filters=8, num_blocks=2, scale=scale * (shuffle or 1), plus=plus,
        shuffle_factor=shuffle,
    )  # fmt: skip
    for parameter in network.parameters():
        parameter.requires_grad_(False).add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize(
    ('scale', 'shuffle', 'plus'),
    [(1, None, False), (2, None, False), (8, None, False), (4, 2, False), (1, 2, True), (4, None, True)],
)
def test_networks_of_esrgan_at_any_scale(tmp_path, scale, shuffle, plus):
    network = esrgan(scale, shuffle, plus)
    torch.save(network.state_dict(), tmp_path / 'net.pth')
    formats = 'safetensors', 'onnx', 'openvino', 'torchscript', 'ncnn'
    assert run('-m', tmp_path / 'net.pth', '--to', *formats, '-o', tmp_path) == 0
    assert open_network(tmp_path / 'net.onnx').multiple == (shuffle or 1)
    if not plus:
        assert open_network(tmp_path / 'net.param').network == open_network(tmp_path / 'net.pth').network
    for image in images():
        wanted = network(image)
        bound = 1e-4 * wanted.abs().max().clamp(min=1)
        assert wanted.shape[-1] == scale * image.shape[-1] and wanted.std() > 0.05
        assert (in_spandrel(tmp_path / 'net.safetensors', image) - wanted).abs().max() < bound
        assert (in_onnx(tmp_path / 'net.onnx', image) - wanted).abs().max() < bound
        assert (in_openvino(tmp_path / 'net_openvino.xml', image) - wanted).abs().max() < bound
        assert (torch.jit.load(str(tmp_path / 'net.pt'))(image) - wanted).abs().max() < bound
        assert (in_ncnn(tmp_path / 'net.param', image) - wanted).abs().max() < bound
        if not plus:
            assert (open_network(tmp_path / 'net.param').module(image) - wanted).abs().max() < bound


def test_a_narrow_network_of_esrgan_plus_is_padded(tmp_path):
    from sdakd_arch.width import build, student_of

    torch.save(esrgan(2, plus=True).state_dict(), tmp_path / 'net.pth')
    narrow = student_of(open_network(tmp_path / 'net.pth').network, 1 / 4)
    assert (narrow['num_feat'], narrow['num_grow_ch']) == (2, 8)
    network = build(narrow, 'network_g').eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    torch.save({'params': network.state_dict()}, tmp_path / 'narrow.pth')
    assert run('-m', tmp_path / 'narrow.pth', '--to', 'padded', '-o', tmp_path / 'wide.pth') == 0
    for image in images():
        wanted = network(image)
        assert (in_spandrel(tmp_path / 'wide.pth', image) - wanted).abs().max() < 1e-5 * wanted.abs().max().clamp(min=1)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_graph_tells_what_sides_its_network_takes(exported, name):
    folder = exported(name)[1]
    opened, graph = open_network(folder / 'net.pth'), open_network(folder / 'net.onnx')
    assert (graph.scale, graph.multiple) == (opened.scale, opened.multiple)


@pytest.mark.parametrize('name', ['rrdb_x2', 'srvgg_quarter'])
def test_half(exported, name):
    network, folder = exported(name, half=True)
    whole = exported(name)[1]
    pairs = [('net.safetensors', load_file(folder / 'net_fp16.safetensors').values())]
    graph = onnx.load(folder / 'net_fp16.onnx')
    pairs.append(('net.onnx', [torch.tensor(onnx.numpy_helper.to_array(entry)) for entry in graph.graph.initializer]))
    pairs.append(('net.pt', torch.jit.load(str(folder / 'net_fp16.pt')).state_dict().values()))
    for file, tensors in pairs:
        assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float16}, file
    for path in ('net.safetensors', 'net.bin', 'net_openvino.bin'):
        halved = f'{path.partition(".")[0]}_fp16.{path.partition(".")[2]}'
        assert os.path.getsize(folder / halved) < 0.65 * os.path.getsize(whole / path)
    for image in images():
        wanted = network(image)
        script = torch.jit.load(str(folder / 'net_fp16.pt'))(image)
        assert script.dtype == torch.float32
        outputs = [script, in_onnx(folder / 'net_fp16.onnx', image), in_ncnn(folder / 'net_fp16.param', image)]
        outputs.append(in_openvino(folder / 'net_openvino_fp16.xml', image))
        outputs += [open_network(folder / 'net_fp16.safetensors').module(image)]
        if name.startswith('rrdb'):
            outputs.append(in_spandrel(folder / 'net_padded_fp16.safetensors', image))
        for output in outputs:
            assert 45 < psnr(output, wanted) < 120  # not float32 after all


def test_lines_say_size_and_difference(tmp_path, capsys):
    torch.save(make('srvgg_eighth').state_dict(), tmp_path / 'net.pth')  # bare, as older files are
    assert run('-m', tmp_path / 'net.pth', '--to', 'onnx', 'ncnn', '-o', tmp_path / 'a' / 'b') == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r'.*net\.onnx: 0\.0\d MB, opset 17, float32, largest difference \d\.\de-\d\d at .*', first)
    assert 'net.param: ' in second and 'SRVGGNetCompact(num_feat=8' in last and str(tmp_path / 'a' / 'b') in last
    found = sorted(path.name for path in (tmp_path / 'a' / 'b').iterdir())
    assert found == ['net.bin', 'net.json', 'net.onnx', 'net.param']
    assert run('-m', tmp_path / 'net.pth', '--to', 'ncnn', '-o', tmp_path / 'c' / 'mine.bin') == 0
    assert sorted(path.name for path in (tmp_path / 'c').iterdir()) == ['mine.bin', 'mine.json', 'mine.param']
    assert run('-m', tmp_path / 'net.pth', '--to', 'openvino', '-o', tmp_path / 'd' / 'mine.bin') == 0
    assert sorted(path.name for path in (tmp_path / 'd').iterdir()) == ['mine.bin', 'mine.xml']


# ----------------------------------------------------- all that apply -------------------------------------------------


def test_all_formats_that_apply(tmp_path, monkeypatch, capsys):
    """Of what is not there, one line says why; what is named remains an error."""
    torch.save({'params': make('srvgg_eighth').state_dict()}, tmp_path / 'net.pth')
    monkeypatch.setitem(sys.modules, 'pnnx', None)
    monkeypatch.chdir(tmp_path)
    assert run('-m', 'net.pth', '-o', 'out') == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(':')[0] for line in lines[:-1]] == [
        'out/net.safetensors', 'out/net.onnx', 'out/net_openvino.xml', 'out/net.pt', 'not padded', 'not ncnn'
    ]  # fmt: skip
    assert 'SRVGGNetCompact' in lines[4] and lines[5].endswith('pnnx is not installed: pip install pnnx ncnn.')
    found = ['net.onnx', 'net.pt', 'net.safetensors', 'net_openvino.bin', 'net_openvino.xml']
    assert sorted(os.listdir('out')) == found
    image = images()[0]
    wanted = make('srvgg_eighth')(image)
    assert (in_onnx(tmp_path / 'out/net.onnx', image) - wanted).abs().max() < 1e-4
    done = export.export('net.pth', 'all', 'again')
    assert list(done.files) == ['safetensors', 'onnx', 'openvino', 'torchscript']
    assert set(done.left_out) == {'padded', 'ncnn'}

    # beside a model the file of its own format is left out
    shutil.copy('out/net.safetensors', 'copy.safetensors')
    before = (tmp_path / 'copy.safetensors').read_bytes()
    assert run('-m', 'copy.safetensors', '--to', 'all') == 0
    assert 'not safetensors: copy.safetensors is the model itself' in capsys.readouterr().out
    assert (tmp_path / 'copy.safetensors').read_bytes() == before and (tmp_path / 'copy.onnx').exists()


def test_all_formats_leave_out_a_file_that_is_wrong(net, tmp_path, monkeypatch, capsys):
    right = export.FORMATS['onnx']

    def wrong(opened, path, half):
        spoilt = copy.copy(opened)
        spoilt.module = copy.deepcopy(opened.module)
        spoilt.module.conv_last.bias[1] += 0.0005
        right.write(spoilt, path, half)

    monkeypatch.setitem(export.FORMATS, 'onnx', dataclasses.replace(right, write=wrong))
    assert run('-m', net, '-o', tmp_path / 'out') == 0
    assert 'does not give what PyTorch gives' in capsys.readouterr().out
    found = {'net.safetensors', 'net_padded.safetensors', 'net.pt', 'net.param', 'net.bin', 'net.json'}
    assert set(os.listdir(tmp_path / 'out')) == found | {'net_openvino.xml', 'net_openvino.bin'}
    with pytest.raises(UserError, match='-o: .*x.onnx is one file, but --to names 6'):
        run('-m', net, '-o', tmp_path / 'x.onnx')
    monkeypatch.setattr(export, 'FORMATS', {'onnx': export.FORMATS['onnx']})
    with pytest.raises(UserError, match='--to all: .*net.pth cannot be written in any format .onnx: the file'):
        run('-m', net, '-o', tmp_path / 'none')
    assert not (tmp_path / 'none').exists()


# ------------------------------------------------------- metadata ----------------------------------------------------


def test_metadata_travels(tmp_path):
    models = tmp_path / 'experiments' / 'run' / 'models'
    models.mkdir(parents=True)
    torch.save({'params': make('rrdb_eighth').state_dict()}, models / 'net_g_9.pth')
    options = {
        'name': 'run',
        'network_g': {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1},
        'teacher': {'weights': '/home/someone/teacher.pth', 'url': 'https://example.org/teacher.pth'},
        'train': {'stages': {'supervised': {'iters': 3, 'lr_g': 1e-3, 'terms': ['pixel', '~/odd/folder/']}}},
    }
    options['network_g']['num_grow_ch'] = 4
    (models.parent / 'run.yml').write_text(yaml.safe_dump(options))
    run('-m', models / 'net_g_9.pth', '--to', *FORMATS, 'padded', '-o', tmp_path)
    options['teacher']['weights'] = 'teacher.pth'
    options['train']['stages']['supervised']['terms'][1] = 'folder'
    options |= {'source': 'option file', 'facts': {'teachers': [{'file': 'teacher.pth'}], 'iterations': 9}}
    head = subprocess.run(['git', '-C', ROOT, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False)

    extra = dict.fromkeys(['network', 'scale', 'training', 'commit', 'version'], '')
    torch.jit.load(str(tmp_path / 'net_g_9.pt'), _extra_files=extra)
    session = onnxruntime.InferenceSession(str(tmp_path / 'net_g_9.onnx'), providers=['CPUExecutionProvider'])
    with safe_open(tmp_path / 'net_g_9.safetensors', 'pt') as file:
        headers = [file.metadata(), session.get_modelmeta().custom_metadata_map, extra]
    model = openvino.Core().read_model(tmp_path / 'net_g_9_openvino.xml')
    headers.append({key: model.get_rt_info(['framework', key]).astype(str) for key in extra})
    found = [{key: json.loads(text) for key, text in header.items()} for header in headers]
    found.append(json.loads((tmp_path / 'net_g_9.json').read_text()))
    for facts in found:
        assert facts['training'] == options and facts['scale'] == 4 and facts['version'] == export.__version__
        assert {**facts['network'], **options['network_g']} == facts['network']
        if os.path.exists(os.path.join(ROOT, '.git')):
            assert facts['commit'].removesuffix('-dirty') == head.stdout.strip()
        else:
            assert facts['commit'] is None
    assert open_network(tmp_path / 'net_g_9.onnx').metadata == found[0]
    assert open_network(tmp_path / 'net_g_9_padded.safetensors').metadata['training'] == options

    # from an exported file the training options travel on
    run('-m', tmp_path / 'net_g_9.safetensors', '--to', 'onnx', '-o', tmp_path / 'again.onnx')
    assert open_network(tmp_path / 'again.onnx').metadata['training'] == options


def test_option_file_of_another_network_is_left_out(tmp_path):
    (tmp_path / 'run' / 'models').mkdir(parents=True)
    torch.save({'params': make('rrdb_eighth').state_dict()}, tmp_path / 'run' / 'models' / 'net.pth')
    (tmp_path / 'run' / 'other.yml').write_text(yaml.safe_dump({'network_g': {'type': 'RRDBNet', 'num_feat': 16}}))
    run('-m', tmp_path / 'run' / 'models' / 'net.pth', '--to', 'safetensors', '-o', tmp_path / 'net.safetensors')
    digest = hashlib.sha256((tmp_path / 'run' / 'models' / 'net.pth').read_bytes()).hexdigest()
    training = open_network(tmp_path / 'net.safetensors').metadata['training']
    assert training.pop('reason') == 'the option file two folders above is of another network'
    assert training == {'source': 'not recorded', 'file': 'net.pth', 'sha256': digest}


# ----------------------------------------------- files that are not right --------------------------------------------


@pytest.fixture
def net(tmp_path):
    (tmp_path / 'in').mkdir()
    torch.save({'params': make('rrdb_eighth').state_dict()}, tmp_path / 'in' / 'net.pth')
    return tmp_path / 'in' / 'net.pth'


@pytest.mark.parametrize('half, damage', [(False, 0.0005), (True, 0.02), (True, float('nan'))])
@pytest.mark.parametrize('name', [*FORMATS, 'padded'])
def test_wrong_weights_are_caught(net, tmp_path, monkeypatch, name, damage, half):
    right = export.FORMATS[name]

    def wrong(opened, path, half):
        spoilt = copy.copy(opened)
        spoilt.module = copy.deepcopy(opened.module)
        spoilt.module.conv_last.bias[1] += damage
        right.write(spoilt, path, half)

    monkeypatch.setitem(export.FORMATS, name, dataclasses.replace(right, write=wrong))
    # who reads weights back refuses what is not finite
    says = 'does not give what PyTorch gives .*and was deleted|and was deleted .*is damaged'
    with pytest.raises(UserError, match=rf'--to {name}: .*({says})'):
        run('-m', net, '--to', name, '-o', tmp_path / 'new' / 'out', *['--half'] * half)
    assert os.listdir(tmp_path) == ['in']


def test_graph_of_one_fixed_size_is_caught(net, tmp_path, monkeypatch):
    real = torch.onnx.export
    monkeypatch.setattr(
        torch.onnx,
        'export',
        lambda *args, dynamic_axes, **options: real(
            *args, dynamo=False, **{k: v for k, v in options.items() if k != 'dynamo'}
        ),
    )
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'net.onnx').write_text('of last time')
    with pytest.raises(UserError, match='--to onnx: .*could not run at 24x36 pixels and was deleted'):
        run('-m', net, '--to', 'safetensors', 'onnx', '-o', tmp_path / 'out')
    assert sorted(os.listdir(tmp_path / 'out')) == ['net.onnx', 'net.safetensors']
    assert (tmp_path / 'out' / 'net.onnx').read_text() == 'of last time'


def test_converter_that_fails(net, tmp_path, monkeypatch):
    monkeypatch.setattr('pnnx.EXEC_PATH', '/bin/false')
    with pytest.raises(UserError, match='--to ncnn: .*pnnx ended with status 1'):
        run('-m', net, '--to', 'ncnn', '-o', tmp_path / 'out')
    assert os.listdir(tmp_path) == ['in']


# ------------------------------------------------------- bad input ---------------------------------------------------


def test_bad_input(net, tmp_path):
    torch.save({'params': UNetDiscriminatorSN(3, 4).state_dict()}, tmp_path / 'net_d.pth')
    torch.save({'params': {'w': torch.zeros(2)}}, tmp_path / 'unknown.pth')
    torch.save({'params': make('srvgg_eighth').state_dict()}, tmp_path / 'srvgg.pth')
    torch.save({'params': RRDBNet(3, 3, num_feat=4, num_block=1).state_dict()}, tmp_path / 'wide.pth')
    (tmp_path / 'text.pth').write_text('no weights')
    (tmp_path / 'a.onnx').write_text('')
    before = sorted(os.listdir(tmp_path))
    out = tmp_path / 'out'
    for words, sentence in (
        (['-m', tmp_path / 'none.pth', '--to', 'onnx', '-o', out], 'none.pth does not exist'),
        (['-m', tmp_path / 'text.pth', '--to', 'onnx', '-o', out], 'text.pth cannot be read as a weights file'),
        (['-m', tmp_path / 'unknown.pth', '--to', 'onnx', '-o', out], 'nothing tells the architecture of .*unknown'),
        (['-m', tmp_path / 'net_d.pth', '--to', 'onnx', '-o', out], 'holds the discriminator'),
        (['-m', tmp_path / 'a.onnx', '--to', 'ncnn', '-o', out], '-m: .*a.onnx is an exported graph already'),
        (['-m', tmp_path / 'srvgg.pth', '--to', 'onnx', 'padded', '-o', out], 'SRVGGNetCompact.*opens in spandrel'),
        (['-m', tmp_path / 'wide.pth', '--to', 'padded', '-o', out], '32 growth channels already and opens as it is'),
        (['-m', net, '--to', 'onnx', '-o', tmp_path / 'x.pt'], r'-o: .*x.pt should end in .onnx'),
        (['-m', net, '--to', 'onnx', 'ncnn', '-o', tmp_path / 'x.onnx'], '-o: .*x.onnx is one file, but --to names 2'),
        (['-m', net, '--to', 'onnx', '-o', tmp_path / 'text.pth'], '-o: .*text.pth should end in .onnx'),
        (['-m', net, '--to', 'padded', '-o', net], 'is the model itself'),
        (['-m', net, '--to', 'onnx', '-o', net / 'folder'], '-o: .*folder cannot be written to'),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            run(*words)
        assert str(caught.value).count('\n') == 0
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    'name, package',
    [('onnx', 'onnx'), ('onnx', 'onnxruntime'), ('openvino', 'openvino'), ('ncnn', 'pnnx'), ('ncnn', 'ncnn')],
)
def test_missing_package(net, tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=f'--to {name}: the package {package} is not installed: pip install .*{package}'
    ):
        run('-m', net, '--to', 'safetensors', name, '-o', tmp_path / 'out')
    assert os.listdir(tmp_path) == ['in']


def test_padded_without_spandrel(net, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'spandrel', None)
    run('-m', net, '--to', 'padded', '-o', tmp_path / 'p.safetensors')
    assert 'spandrel is not installed' in capsys.readouterr().err
    monkeypatch.undo()
    image = torch.rand(1, 3, 20, 28)
    assert (in_spandrel(tmp_path / 'p.safetensors', image) - make('rrdb_eighth')(image)).abs().max() < 1e-5


def test_command_line_ends_with_a_sentence_and_status_2(net, tmp_path):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'executed'),)

    with open(tmp_path / 'code.pth', 'wb') as file:
        pickle.dump({'params': Code()}, file)
    words = ['export', '-m', 'code.pth', '--to', 'safetensors', '-o', 'out']
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'sdakd.cli', *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, 'PYTHONPATH': ROOT},
        cwd=tmp_path,
    )
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('Error: -m: code.pth cannot be read as a weights file')
    assert sorted(os.listdir(tmp_path)) == ['code.pth', 'in']
