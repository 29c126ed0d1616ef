"""`sdakd export --to onnx-int8 ...`: what a file says it loses is computed anew, and what loses too much is refused."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.utils.matlab_functions import imresize
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from torch.nn import functional as F

from sdakd import cli
from sdakd.commands import export
from sdakd.commands.export import int8
from sdakd.compat import UserError
from sdakd.files.generators import open_network

COUNT = 9


def run(*words):
    return cli.main(['export', *map(str, words)])


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Different parts of photographs that scikit-image brings along, larger than a crop for scale 2."""
    folder = tmp_path_factory.mktemp('photographs')
    sources = data.astronaut(), data.chelsea(), data.coffee()
    for number in range(COUNT):
        part = sources[number % 3][20 * number : 20 * number + 140, 30 * number : 30 * number + 150, ::-1]
        cv2.imwrite(str(folder / f'{number}.png'), part)
    return folder


def save(network, path):
    network.eval().requires_grad_(False)
    torch.save({'params': network.state_dict()}, path)
    return path


@pytest.fixture(scope='module')
def gentle(tmp_path_factory):
    """A network that int8 hardly harms."""
    torch.manual_seed(3)
    network = SRVGGNetCompact(num_feat=8, num_conv=2, upscale=2)
    network.body[-1].weight.data *= 0.1
    return save(network, tmp_path_factory.mktemp('gentle') / 'gentle.pth')


@pytest.fixture(scope='module')
def touchy(tmp_path_factory):
    """The enlarged image, plus a large feature less twice its half: nothing in float32, rounding errors in int8.

    Two of the twelve values of a pixel get more and less of the image, so that the errors are not clipped away.
    """
    network = SRVGGNetCompact(num_feat=3, num_conv=0, upscale=2)
    for parameter in network.parameters():
        parameter.data.zero_()
    network.body[0].weight.data[:, :, 1, 1] = torch.tensor([[200.0], [100.0], [200.0]])
    network.body[1].weight.data.fill_(0.25)
    last = network.body[2].weight.data[:, :, 1, 1]
    last[:] = torch.tensor([0.1, -0.2, 0.0])
    last[:2, 2] = torch.tensor([0.002, -0.002])
    return save(network, tmp_path_factory.mktemp('touchy') / 'touchy.pth')


def in_onnx(path):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda image: session.run(None, {'input': image})[0]


def in_openvino(path):
    model = openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda image: model(image)[0]


def in_onnx_facts(path):
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return {key: json.loads(text) for key, text in facts.items()}


def in_openvino_facts(path):
    model = openvino.Core().read_model(path)
    keys = 'network', 'scale', 'training', 'commit', 'version', 'quantization'
    return {key: json.loads(model.get_rt_info(['framework', key]).astype(str)) for key in keys}


def losses(names, folder, network, int8_file, scale=2):
    """Means over photographs of the loss and of the PSNR to float32, without a function of this project."""
    found = []
    for name in names:
        image = cv2.imread(str(folder / name)).astype(np.float32)[..., ::-1] / 255
        top, left = (image.shape[0] - 64 * scale) // 2, (image.shape[1] - 64 * scale) // 2
        large = image[top : top + 64 * scale, left : left + 64 * scale]
        small = np.round(np.clip(imresize(np.ascontiguousarray(large), 1 / scale), 0, 1) * 255) / 255
        small = np.ascontiguousarray(small.transpose(2, 0, 1))[None].astype(np.float32)
        large = large.transpose(2, 0, 1)[None]
        whole, coarse = network(torch.from_numpy(small)).numpy().clip(0, 1), int8_file(small).clip(0, 1)
        against = [peak_signal_noise_ratio(large, output, data_range=1) for output in (whole, coarse)]
        found.append((against[0] - against[1], peak_signal_noise_ratio(whole, coarse, data_range=1)))
    return np.mean(found, 0)


RUNTIMES = {
    'onnx-int8': ('_int8.onnx', in_onnx, in_onnx_facts),
    'openvino-int8': ('_openvino_int8.xml', in_openvino, in_openvino_facts),
}


@pytest.mark.parametrize('name', RUNTIMES)
@pytest.mark.parametrize('model', ['gentle', 'touchy'])
def test_a_file_says_what_it_loses(name, model, photographs, request, tmp_path, capsys):
    if name == 'openvino-int8':
        pytest.importorskip('nncf')
    ending, runtime, facts_of = RUNTIMES[name]
    source = request.getfixturevalue(model)
    bar = ['--max_loss', '60'] if model == 'touchy' else []
    assert run('-m', source, '--to', name, '--calibrate', photographs, '-o', tmp_path, *bar) == 0
    file = tmp_path / f'{model}{ending}'
    kinds = {'.onnx': {'.onnx'}, '.xml': {'.xml', '.bin'}}[file.suffix]
    assert {path.name for path in tmp_path.iterdir()} == {f'{file.stem}{kind}' for kind in kinds}
    facts = facts_of(file)
    assert facts['network']['type'] == 'SRVGGNetCompact' and facts['scale'] == 2
    told = facts['quantization']
    assert told['held_out'] == ['3.png', '7.png']
    assert sorted(told['images'] + told['held_out']) == [f'{number}.png' for number in range(COUNT)]
    assert told['method'] in int8.QUANTISERS[name].methods

    network = open_network(source).module
    loss, close = losses(told['held_out'], photographs, network, runtime(file))
    assert told['loss_db'] == pytest.approx(loss, abs=2e-3) and told['psnr_to_float_db'] == pytest.approx(
        close, abs=0.02
    )
    assert (loss > 1) == (model == 'touchy') and 8 < close < 70
    line = capsys.readouterr().out.splitlines()[0]
    assert f'loses {round(loss, 2) + 0.0:.2f} dB on 2 photographs held out, {close:.1f} dB to float32' in line

    for shape in ((1, 3, 17, 40), (3, 3, 32, 21)):  # any batch and size
        image = torch.rand(shape)
        found = torch.from_numpy(runtime(file)(image.numpy()))
        assert found.dtype == torch.float32 and found.shape == (shape[0], 3, 2 * shape[2], 2 * shape[3])
        if model == 'gentle':
            assert -10 * (found - network(image)).square().mean().log10() > 25


def test_weights_and_activations_follow_the_formula(gentle, photographs, tmp_path):
    """q = clip(round(x / scale) + zero, 0, 255); weights: round(w / scale) with scale = max |w| / 127 per channel."""
    assert run('-m', gentle, '--to', 'onnx-int8', '--calibrate', photographs, '-o', tmp_path / 'net.onnx') == 0
    model = onnx.load(tmp_path / 'net.onnx')
    onnx.checker.check_model(model, full_check=True)
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    conv = next(node for node in model.graph.node if node.op_type == 'Conv')
    weight, scale = (values[name] for name in makers[conv.input[1]].input[:2])
    layer = open_network(gentle).module.body[0]
    wanted = layer.weight.numpy()
    assert weight.dtype == np.int8 and scale.shape == (8,)
    np.testing.assert_allclose(scale, np.abs(wanted).max((1, 2, 3)) / 127, rtol=1e-5)
    coarse = np.round(wanted / scale[:, None, None, None])
    assert np.abs(weight - coarse).max() <= 1 and (weight == coarse).mean() > 0.99

    step, zero = (float(values[name]) for name in makers[conv.input[0]].input[1:3])
    image = np.random.default_rng(0).random((1, 3, 20, 24), np.float32)
    seen = (np.clip(np.round(image / step) + zero, 0, 255) - zero) * step
    exact = torch.from_numpy(weight * scale[:, None, None, None]).double()
    computed = F.conv2d(torch.from_numpy(seen).double(), exact, layer.bias.double(), padding=1).numpy()
    model.graph.output.append(onnx.helper.make_tensor_value_info(conv.output[0], onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    np.testing.assert_allclose(session.run([conv.output[0]], {'input': image})[0], computed, atol=1e-3)


def test_a_dense_block_is_quantised_as_the_network_has_it(photographs, tmp_path):
    torch.manual_seed(5)
    source = save(RRDBNet(3, 3, scale=2, num_feat=8, num_block=1, num_grow_ch=4), tmp_path / 'net.pth')
    assert run('-m', source, '--to', 'onnx-int8', '--calibrate', photographs, '-o', tmp_path, '--max_loss', 5) == 0
    graph = onnx.load(tmp_path / 'net_int8.onnx').graph
    assert sum(node.op_type == 'Conv' for node in graph.node) == sum(
        isinstance(module, torch.nn.Conv2d) for module in open_network(source).module.modules()
    )
    image = torch.rand(1, 3, 23, 31)  # sides that the network itself does not take
    assert in_onnx(tmp_path / 'net_int8.onnx')(image.numpy()).shape == (1, 3, 46, 62)


def test_what_loses_too_much_is_refused(touchy, photographs, tmp_path, capsys):
    words = '-m', touchy, '--calibrate', photographs, '-o', tmp_path / 'out'
    with pytest.raises(UserError, match=r'--to onnx-int8: the int8 file of .*touchy.pth loses (\d+\.\d\d) dB') as error:
        run(*words, '--to', 'onnx-int8')
    loss = float(str(error.value).partition('loses ')[2].split()[0])
    assert loss > 1 and 'more than --max_loss 0.5' in str(error.value) and not (tmp_path / 'out').exists()
    with pytest.raises(UserError, match=f'loses {loss:.2f} dB .* more than --max_loss {loss - 0.1:.2f}'):
        run(*words, '--to', 'onnx-int8', '--max_loss', f'{loss - 0.1:.2f}')
    assert not (tmp_path / 'out').exists()
    assert run(*words, '--to', 'onnx-int8', '--max_loss', f'{loss + 0.1:.2f}') == 0
    kept = (tmp_path / 'out/touchy_int8.onnx').read_bytes()
    with pytest.raises(UserError):
        run(*words, '--to', 'onnx-int8')
    assert (tmp_path / 'out/touchy_int8.onnx').read_bytes() == kept
    assert os.listdir(tmp_path / 'out') == ['touchy_int8.onnx']
    # among all formats it is left out, and the others are written
    capsys.readouterr()
    assert run('-m', touchy, '--calibrate', photographs, '-o', tmp_path / 'all') == 0
    assert f'not onnx-int8: the int8 file of {touchy} loses {loss:.2f} dB' in capsys.readouterr().out
    found = os.listdir(tmp_path / 'all')
    assert 'touchy.onnx' in found and 'touchy_int8.onnx' not in found


def test_crops_are_in_one_part_only(photographs, tmp_path):
    for number in range(COUNT):
        os.link(photographs / f'{number}.png', tmp_path / f'a{number}.png')
        os.link(photographs / f'{number}.png', tmp_path / f'b{number}.png')  # the same under another name
    found = int8.read_photographs(tmp_path, 2)
    assert len(found.calibration) + len(found.held_out) == COUNT and len(found.held_out) == COUNT // 4
    seen = {pair.large.numpy().tobytes() for pair in found.calibration}
    assert not seen & {pair.large.numpy().tobytes() for pair in found.held_out}
    assert {pair.small.shape for pair in found.calibration} == {(1, 3, 64, 64)}
    again = int8.read_photographs(tmp_path, 2)
    assert [pair.name for pair in again.held_out] == [pair.name for pair in found.held_out]
    assert int8.read_photographs(tmp_path, 1, multiple=48).held_out[0].small.shape == (1, 3, 96, 96)


def test_what_cannot_be_used_is_left_out(photographs, tmp_path, capfd):
    for number in range(4):
        os.link(photographs / f'{number}.png', tmp_path / f'{number}.png')
    (tmp_path / 'bad.png').write_bytes((photographs / '5.png').read_bytes()[:2000])
    cv2.imwrite(str(tmp_path / 'small.png'), np.zeros((127, 200, 3), np.uint8))
    found = int8.read_photographs(tmp_path, 2)
    assert [pair.name for pair in found.calibration] == ['0.png', '1.png', '2.png']
    assert [pair.name for pair in found.held_out] == ['3.png']
    errors = capfd.readouterr().err
    assert 'bad.png' in errors and 'small.png has 200x127 pixels, less than 128x128; left out' in errors
    os.remove(tmp_path / '3.png')
    with pytest.raises(
        UserError, match='--calibrate: .* holds 3 different photographs of at least 128x128 pixels, and 4'
    ):
        int8.read_photographs(tmp_path, 2)


def test_mistakes(gentle, photographs, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    (tmp_path / 'empty').mkdir()
    one = tmp_path / 'one'
    one.mkdir()
    os.link(photographs / '1.png', one / '1.png')
    named, folder = ['--to', 'onnx-int8'], ['--calibrate', photographs]
    for words, wanted in (
        (named, '--to onnx-int8: int8 is calibrated on photographs: name a folder of them with --calibrate'),
        (['--to', 'onnx', *folder], '--calibrate: only int8 formats use it'),
        (['--to', 'onnx', '--max_loss', '1'], '--max_loss: only int8 formats use it'),
        ([*named, *folder, '--half'], '--half: onnx-int8 has no weights in float16'),
        ([*named, *folder, '--max_loss', '-1'], '--max_loss: write a number of dB of at least 0'),
        ([*named, *folder, '--max_loss', 'nan'], '--max_loss: write a number of dB'),
        ([*named, *folder, '--max_loss', 'little'], "--max_loss: .* not 'little'"),
        ([*named, '--calibrate', tmp_path / 'nowhere'], '--calibrate: .*nowhere is no folder'),
        ([*named, '--calibrate', tmp_path / 'empty'], '--calibrate: .*empty holds no file'),
        ([*named, '--calibrate', one], '--calibrate: .*one holds 1 different photographs'),
    ):
        with pytest.raises(UserError, match=wanted):
            run('-m', gentle, '-o', out, *words)
        assert not out.exists(), words
    monkeypatch.setitem(sys.modules, 'nncf', None)
    with pytest.raises(UserError, match='--to openvino-int8: the package nncf is not installed: pip install .*nncf'):
        run('-m', gentle, '-o', out, '--to', 'openvino-int8', *folder)
    assert not out.exists()


def test_all_has_int8_only_with_photographs(gentle, tmp_path):
    done = export.export(gentle, 'all', tmp_path)
    assert not [name for name in (*done.files, *done.left_out) if 'int8' in name]


def test_an_int8_graph_enlarges_images(gentle, photographs, tmp_path):
    assert run('-m', gentle, '--to', 'onnx-int8', '--calibrate', photographs, '-o', tmp_path) == 0
    image = photographs / '2.png'
    assert cli.main(['upscale', '-m', str(tmp_path / 'gentle_int8.onnx'), '-i', str(image), '-o', str(tmp_path)]) == 0
    small = np.ascontiguousarray(cv2.imread(str(image))[..., ::-1].transpose(2, 0, 1)[None]).astype(np.float32) / 255
    wanted = in_onnx(tmp_path / 'gentle_int8.onnx')(small)[0].clip(0, 1).transpose(1, 2, 0)[..., ::-1] * 255
    found = cv2.imread(str(tmp_path / '2_out.png')).astype(float)
    assert np.abs(found - wanted).max() <= 1


# ------------------------------------------------------- ncnn --------------------------------------------------------


def has_tools():
    try:
        return bool(int8.tools())
    except UserError:
        return False


@pytest.mark.skipif(not has_tools(), reason="ncnn's tools are neither in NCNN_TOOLS nor in PATH")
def test_ncnn(gentle, photographs, tmp_path):
    import ncnn

    assert run('-m', gentle, '--to', 'ncnn-int8', '--calibrate', photographs, '-o', tmp_path) == 0
    assert sorted(os.listdir(tmp_path)) == ['gentle_int8.bin', 'gentle_int8.json', 'gentle_int8.param']
    told = json.loads((tmp_path / 'gentle_int8.json').read_text())['quantization']
    net = ncnn.Net()
    assert net.load_param(str(tmp_path / 'gentle_int8.param')) == 0
    assert net.load_model(str(tmp_path / 'gentle_int8.bin')) == 0

    def enlarge(image):
        extractor = net.create_extractor()
        extractor.input('data', ncnn.Mat(np.ascontiguousarray(image[0])))
        return np.array(extractor.extract('output')[1])[None]

    loss, close = losses(told['held_out'], photographs, open_network(gentle).module, enlarge)
    assert told['loss_db'] == pytest.approx(loss, abs=0.02) and told['psnr_to_float_db'] == pytest.approx(
        close, abs=0.5
    )
    assert 25 < close < 100 and os.path.getsize(tmp_path / 'gentle_int8.bin') < 0.6 * sum(
        4 * tensor.numel() for tensor in open_network(gentle).module.state_dict().values()
    )


@pytest.mark.parametrize('case', ['missing', 'fails', 'silent'])
def test_tools_that_are_missing_or_fail(case, gentle, photographs, tmp_path, monkeypatch):
    folder = tmp_path / 'tools'
    folder.mkdir()
    monkeypatch.setenv('NCNN_TOOLS', str(folder))
    wanted = (
        '--to ncnn-int8: the program ncnn2table is not in the folder .*tools of the variable NCNN_TOOLS; build ncnn'
    )
    if case != 'missing':
        for name in int8.TOOLS:
            status = 'echo wrong shape >&2; exit 3' if case == 'fails' else 'exit 0'
            (folder / name).write_text(f'#!/bin/sh\n{status}\n')
            (folder / name).chmod(0o755)
        wanted = r'--to ncnn-int8: .*gentle.pth cannot be written .*\(ncnn2table ended with status 3: wrong shape'
        if case == 'silent':
            wanted = r'--to ncnn-int8: .*gentle.pth cannot be written .*\(ncnn2table wrote nothing'
    with pytest.raises(UserError, match=wanted):
        run('-m', gentle, '--to', 'ncnn-int8', '--calibrate', photographs, '-o', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_sentence_of_a_mistake_ends_the_command(gentle, tmp_path):
    words = [
        sys.executable,
        '-m',
        'sdakd.cli',
        'export',
        '-m',
        str(gentle),
        '--to',
        'ncnn-int8',
        '-o',
        str(tmp_path / 'out'),
    ]
    done = subprocess.run(words, capture_output=True, encoding='utf-8', check=False)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()[-1:]) == 1 and '--calibrate' in done.stderr
