"""`sdakd bench`: what is counted, what a ratio means, what fails without ending the run, and bad input."""

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact

from sdakd import cli
from sdakd.commands.bench.backends import open_model
from sdakd.commands.bench.memory import peak_growth
from sdakd.compat import UserError
from sdakd.files.generators import Opened
from sdakd_arch.inference import onednn


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A teacher with 16 features and a student with 8, two layers each."""
    folder = tmp_path_factory.mktemp('models')
    torch.manual_seed(0)
    for name, features in (('teacher', 16), ('student', 8)):
        network = SRVGGNetCompact(num_feat=features, num_conv=2)
        torch.save({'params': network.state_dict()}, folder / f'{name}.pth')
    return folder


def read(folder):
    return json.loads((folder / 'results.json').read_text())


def test_the_whole_table(files, tmp_path, capsys):
    (tmp_path / 'results.json').write_text('{"evaluate": {"version": "0"}}')
    models = [f'{files}/teacher.pth', f'small={files}/student.pth']
    flags = ['--size', '16', '--rounds', '3', '--threads', '1']
    assert cli.main(['bench', '-m', *models, '-o', str(tmp_path), *flags]) == 0

    results = read(tmp_path)
    assert results['evaluate'] == {'version': '0'}
    bench = results['bench']
    assert (bench['size'], bench['rounds'], bench['threads'], bench['device']) == (16, 3, 1, 'cpu')
    assert bench['teacher'] == 'teacher' and bench['cpu'] and bench['torch'] == torch.__version__
    for model, name, features in zip(bench['models'], ('teacher', 'small'), (16, 8), strict=True):
        layers = ((3, features), (features, features), (features, features), (features, 48))
        macs = sum(9 * inputs * outputs * 16 * 16 for inputs, outputs in layers)
        parameters = sum((9 * inputs + 1) * outputs for inputs, outputs in layers) + 3 * features  # and PReLU's slopes
        assert (model['name'], model['macs'], model['parameters']) == (name, macs, parameters)

    with_units = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    both = ('fp32', 'bf16') if with_units else ('fp32',)
    assert [(run['backend'], run['precision']) for run in bench['runs'] if run['model'] == 'small'] == [
        *((backend, precision) for backend in ('eager', 'channels_last', 'fast') for precision in both),
        ('onnxruntime', 'fp32'),
        *(('openvino', precision) for precision in both),
    ]
    base = bench['runs'][0]['median_ms']
    for run in bench['runs']:
        if run['error']:  # bfloat16 on an old processor
            assert run['precision'] == 'bf16' and run['median_ms'] is None
            continue
        assert run['p10_ms'] <= run['median_ms'] <= run['p90_ms']
        assert run['ratio'] == pytest.approx(base / run['median_ms'])
        assert run['peak_memory_mib'] > 0 or sys.platform != 'linux'
        if run['precision'] == 'fp32' and run['backend'] != 'eager':
            assert run['difference'] < 1e-5
            assert run['psnr'] is None or run['psnr'] > 100
        elif run['precision'] == 'bf16':
            assert run['psnr'] > 40

    screen = capsys.readouterr().out
    assert 'MiB: growth at the peak' in screen and str(tmp_path) in screen
    assert ('bf16: this processor has no units for it' in screen) != with_units
    for ending in ('md', 'csv', 'tex'):
        assert 'openvino' in (tmp_path / f'bench.{ending}').read_text()


def test_only_some_backends_still_refer_to_the_teacher(files, tmp_path):
    models = [f'{files}/teacher.pth', f'{files}/student.pth']
    flags = ['--size', '16', '--rounds', '1', '--backends', 'onnxruntime']
    cli.main(['bench', '-m', *models, '-o', str(tmp_path), *flags])
    runs = read(tmp_path)['bench']['runs']
    assert [(run['model'], run['backend'], run['precision']) for run in runs] == [
        ('teacher', 'eager', 'fp32'),
        ('teacher', 'onnxruntime', 'fp32'),
        ('student', 'onnxruntime', 'fp32'),
    ]
    assert all(run['ratio'] == pytest.approx(runs[0]['median_ms'] / run['median_ms']) for run in runs)


@pytest.mark.parametrize('units', [False, True])
@pytest.mark.parametrize(
    ('flags', 'without', 'with_units'),
    [
        ([], ['fp32'], ['fp32', 'bf16']),
        (['--precisions', 'fp32'], ['fp32'], ['fp32']),
        (['--precisions', 'bf16'], ['fp32', 'bf16'], ['fp32', 'bf16']),  # the ratio is to fp32
    ],
)
def test_bf16_is_measured_where_the_processor_has_units_or_on_demand(
    files, tmp_path, monkeypatch, capsys, units, flags, without, with_units
):
    monkeypatch.setattr(onednn, 'computes_bf16', lambda: units)
    common = ['-o', str(tmp_path), '--size', '8', '--rounds', '1', '--threads', '1', '--backends', 'eager']
    cli.main(['bench', '-m', f'{files}/student.pth', *common, *flags])
    runs = read(tmp_path)['bench']['runs']
    assert [run['precision'] for run in runs] == (with_units if units else without)
    assert all(run['median_ms'] > 0 for run in runs)
    assert ('bf16: this processor has no units for it' in capsys.readouterr().out) == (not units and not flags)


def test_the_processor_is_asked_itself():
    """Linux lists what a processor can: without AVX-512 and its kind, an x86 has no units for bfloat16."""
    cpuinfo = Path('/proc/cpuinfo')
    if not cpuinfo.exists() or not (found := re.search(r'^flags\s*:(.*)$', cpuinfo.read_text(encoding='utf-8'), re.M)):
        pytest.skip('not an x86 with Linux')
    assert onednn.computes_bf16() == bool({'avx512bw', 'avx_ne_convert'} & set(found[1].split()))


def test_an_exported_model_runs_where_it_can(files, tmp_path):
    from sdakd.commands.export import to_onnx

    to_onnx(open_model(f'{files}/student.pth'), tmp_path / 'graph.onnx')
    flags = ['--size', '16', '--rounds', '1', '--backends', 'eager', 'onnxruntime']
    models = [f'{files}/teacher.pth', f'{tmp_path}/graph.onnx']
    cli.main(['bench', '-m', *models, '-o', str(tmp_path), *flags])
    bench = read(tmp_path)['bench']
    last = bench['runs'][-1]
    assert [run['backend'] for run in bench['runs'] if run['model'] == 'graph'] == ['onnxruntime']
    assert last['ratio'] > 0 and last['psnr'] is None
    assert bench['models'][1]['parameters'] == bench['models'][0]['parameters'] - (
        open_model(f'{files}/teacher.pth').cost()[0] - open_model(f'{files}/student.pth').cost()[0]
    )


def test_what_fails_is_listed_and_the_rest_is_measured(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'openvino', None)  # as if it were not installed
    flags = ['--size', '16', '--rounds', '1', '--backends', 'eager', 'openvino']
    assert cli.main(['bench', '-m', f'{files}/student.pth', '-o', str(tmp_path), *flags]) == 0
    runs = {(run['backend'], run['precision']): run for run in read(tmp_path)['bench']['runs']}
    assert runs['eager', 'fp32']['median_ms'] > 0 and runs['eager', 'fp32']['error'] is None
    failed = runs['openvino', 'fp32']
    assert 'pip install openvino' in failed['error'] and failed['median_ms'] is failed['ratio'] is None
    assert 'Left out: student openvino fp32: the package openvino is not installed' in capsys.readouterr().out


def test_random_models_are_the_architecture_at_a_width():
    opened = open_model('random:RRDBNet:1/8')
    assert isinstance(opened, Opened) and opened.scale == 4
    assert opened.module.conv_first.out_channels == 8 and len(opened.module.body) == 23
    assert opened.module.body[0].rdb1.conv1.out_channels == 4
    again = open_model('random:RRDBNet:1/8').module
    assert torch.equal(opened.module.conv_last.weight, again.conv_last.weight)
    assert open_model('random:SRVGGNetCompact').module.num_feat == 64


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems do not tell a peak, and None is written')
def test_memory_grows_with_the_largest_layers():
    """At output resolution x4, 64 channels of float32 are 64 * 16 * 4 bytes for every input pixel."""
    growth = {size: peak_growth('random:RRDBNet:1/4', None, 'channels_last', 'fp32', size, 1) for size in (96, 192)}
    pixels = 192 * 192 - 96 * 96
    one = pixels * 16 * 16 * 4 / 2**20  # MiB of one tensor with 16 channels at output resolution
    assert 2 * one * 0.9 < growth[192] - growth[96] < 6 * one  # a convolution's input and output at least


def test_sums_of_the_trunk_and_the_tail_are_kept_precise(tmp_path):
    import openvino

    from sdakd.commands.export import to_openvino

    torch.manual_seed(0)
    network = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_block': 2, 'num_grow_ch': 8}
    options = {key: value for key, value in network.items() if key != 'type'}
    opened = Opened('net', tmp_path, RRDBNet(**options).eval(), 4, network)
    to_openvino(opened, tmp_path / 'net.xml')
    layers = list(ET.parse(tmp_path / 'net.xml').getroot().find('layers'))
    marked = [
        layer.get('type')
        for layer in layers
        if any(entry.get('name') == 'precise' for entry in layer.iterfind('rt_info/attribute'))
    ]
    # two blocks with two dense residuals and one of their own, the network's; biases of the four layers behind it
    assert marked.count('Add') == 2 * 3 + 1 + 4
    assert marked.count('Convolution') == 4 and marked.count('Interpolate') == 2
    assert [layer.get('type') for layer in layers].count('Convolution') == 2 * 3 * 5 + 6
    image = torch.rand(1, 3, 8, 8)
    model = openvino.Core().compile_model(tmp_path / 'net.xml', 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    assert (torch.from_numpy(model(image.numpy())[0]) - opened.module(image)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    (
        (['-m', 'absent.pth'], '-m: the file absent.pth does not exist'),
        (['-m', 'random:RRDBNet:1/3'], 'does not divide into channels'),
        (['-m', 'random:RRDBNet:wide'], "'wide' is no width"),
        (['-m', 'random:RRDNet'], 'did you mean RRDBNet?'),
        (['-m', 'random:UNetDiscriminatorSN'], 'no generator is called'),
        (['-m', 'random:SRVGGNetCompact', 'random:SRVGGNetCompact'], 'two models are called SRVGGNetCompact'),
        (['-m', 'random:SRVGGNetCompact', '--backends', 'onnx'], '--backends: onnx is unknown; did you mean'),
        (['-m', 'random:SRVGGNetCompact', '--precisions', 'bf8'], '--precisions: bf8 is unknown; did you mean bf16'),
        (['-m', 'random:SRVGGNetCompact', '--size', '4'], '--size: write a whole number of at least 8'),
        (['-m', 'random:SRVGGNetCompact', '--rounds', 'many'], '--rounds: write a whole number'),
        (['-m', 'random:SRVGGNetCompact', '--threads', '0'], '--threads: write a whole number'),
    ),
)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        cli.main(['bench', *arguments, '-o', 'out'])
    assert sentence in str(error.value) and '\n' not in str(error.value)
    assert not (tmp_path / 'out').exists()


def test_sides_that_pixel_unshuffling_refuses(tmp_path):
    network = RRDBNet(3, 3, scale=2, num_feat=8, num_block=1, num_grow_ch=4)
    torch.save({'params': network.state_dict()}, tmp_path / 'x2.pth')
    with pytest.raises(UserError, match='--size: x2 takes sides that are multiples of 2, not 17'):
        cli.main(['bench', '-m', f'{tmp_path}/x2.pth', '-o', f'{tmp_path}/out', '--size', '17'])


def test_the_command_line_says_what_is_wrong(tmp_path):
    (tmp_path / 'text.pth').write_text('no weights')
    (tmp_path / 'taken').write_text('a file')
    for model, output, sentence in (
        ('text.pth', 'out', 'Error: -m: text.pth cannot be read as a weights file'),
        ('random:SRVGGNetCompact:1/8', 'taken', 'Error: -o: taken cannot be written to'),
    ):
        command = [sys.executable, '-m', 'sdakd.cli', 'bench', '-m', model, '-o', output, '--rounds', '1']
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and sentence in done.stderr and 'Traceback' not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ['taken', 'text.pth']


def test_numbers_in_the_file_are_finite(files, tmp_path):
    flags = ['--size', '8', '--rounds', '1', '--backends', 'eager', 'channels_last']
    cli.main(['bench', '-m', f'{files}/student.pth', '-o', str(tmp_path), *flags])
    for run in read(tmp_path)['bench']['runs']:
        assert all(math.isfinite(value) for value in run.values() if isinstance(value, float))
