"""ncnn's files as models: written here by hand and by pnnx, read back, and compared with ncnn's own runtime."""

import re
import struct

import ncnn
import numpy as np
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact

from sdakd.cli import main
from sdakd.compat import UserError
from sdakd.files.generators import open_network
from sdakd_arch.ncnn_file import is_ncnn, read_ncnn
from sdakd_arch.weights import infer_network, read_weights

TAGS = {'fp16': 0x01306B47, 'fp32': 0}


class Writer:
    """A graph in ncnn's format, line by line as its wiki describes it, with the weights in the order of the lines.

    ``fused`` writes activations into convolutions and residuals as Eltwise, as ncnn's optimiser does; otherwise they
    are layers of their own, and products and sums of BinaryOp.
    """

    def __init__(self, precision='fp16', fused=True):
        self.precision, self.fused = precision, fused
        self.lines, self.blobs, self.weights = [], 0, b''

    def layer(self, kind, *inputs, count=1, **parameters):
        outputs = [f'b{self.blobs + number}' for number in range(count)]
        self.blobs += count
        words = [kind, f'{kind}_{len(self.lines)}', str(len(inputs)), str(count), *inputs, *outputs]
        words += [f'{key.removeprefix("p").replace("m", "-")}={value}' for key, value in parameters.items()]
        self.lines.append(' '.join(words))
        return outputs[0] if count == 1 else outputs

    def raw(self, array, kind):
        data = array.detach().numpy().astype(kind).tobytes()
        self.weights += data + bytes(-len(data) % 4)

    def convolution(self, blob, conv, slope=None):
        activation = {}
        if slope is not None and self.fused:
            activation = {'p9': 1} if slope == 0 else {'p9': 2, 'm23310': f'1,{slope:e}'}
        size = conv.weight.numel()
        blob = self.layer('Convolution', blob, p0=conv.out_channels, p1=3, p4=1, p5=1, p6=size, **activation)
        self.weights += struct.pack('<I', TAGS[self.precision])
        self.raw(conv.weight, '<f2' if self.precision == 'fp16' else '<f4')
        self.raw(conv.bias, '<f4')
        return self.layer('ReLU', blob, p0=slope) if slope is not None and not self.fused else blob

    def add(self, branch, skip, factor=1):
        if self.fused and factor != 1:
            return self.layer('Eltwise', branch, skip, p0=1, m23301=f'2,{factor:e},1.0')
        if factor != 1:
            branch = self.layer('BinaryOp', branch, p0=2, p1=1, p2=factor)
        return self.layer('BinaryOp', branch, skip, p0=0)

    def save(self, path):
        """Renames the first blob to ``data`` and the last one to ``output``, and splits what several layers read."""
        lines = [line.split() for line in self.lines]
        readers = {}
        for words in lines:
            for place in range(4, 4 + int(words[2])):
                readers.setdefault(words[place], []).append((words, place))
        text, blobs = [], self.blobs
        names = {'b0': 'data', f'b{self.blobs - 1}': 'output'}
        for words in lines:
            made = words[4 + int(words[2]) : 4 + int(words[2]) + int(words[3])]
            text.append(words)
            for blob in made:
                if len(readers.get(blob, [])) > 1:
                    copies = [f'{blob}_{number}' for number in range(len(readers[blob]))]
                    for (reader, place), copy in zip(readers[blob], copies, strict=True):
                        reader[place] = copy
                    text.append(['Split', f'split_{blob}', '1', str(len(copies)), blob, *copies])
                    blobs += len(copies)
        lines = [' '.join(names.get(word, word) for word in words) for words in text]
        path.write_text('\n'.join(['7767517', f'{len(lines)} {blobs}', *lines]) + '\n')
        path.with_suffix('.bin').write_bytes(self.weights)
        return path


def write_rrdbnet(net, path, unshuffle=0, **style):
    out = Writer(**style)
    blob = out.layer('Input')
    if unshuffle:
        blob = out.layer('Reorg', blob, p0=unshuffle)
    first = blob = out.convolution(blob, net.conv_first)
    for block in net.body:
        start = blob
        for dense in (block.rdb1, block.rdb2, block.rdb3):
            parts = [blob]
            for number in (1, 2, 3, 4):
                joined = parts[0] if number == 1 else out.layer('Concat', *parts, p0=0)
                parts.append(out.convolution(joined, getattr(dense, f'conv{number}'), 0.2))
            blob = out.add(out.convolution(out.layer('Concat', *parts, p0=0), dense.conv5), blob, 0.2)
        blob = out.add(blob, start, 0.2)
    blob = out.add(out.convolution(blob, net.conv_body), first)
    for conv in (net.conv_up1, net.conv_up2):
        blob = out.convolution(out.layer('Interp', blob, p0=1, p1=2.0, p2=2.0), conv, 0.2)
    out.convolution(out.convolution(blob, net.conv_hr, 0.2), net.conv_last)
    return out.save(path)


def write_srvgg(net, path, shrink=None, **style):
    out = Writer(**style)
    image = blob = out.layer('Input')
    slope = {'relu': 0, 'leakyrelu': 0.1}.get(net.act_type)
    for number in range(0, len(net.body) - 1, 2):
        blob = out.convolution(blob, net.body[number], slope)
        if net.act_type == 'prelu':
            blob = out.layer('PReLU', blob, p0=net.num_feat)
            out.raw(net.body[number + 1].weight, '<f4')
    blob = out.layer('PixelShuffle', out.convolution(blob, net.body[-1]), p0=net.upscale)
    base = out.layer('Interp', image, p0=1, p1=net.upscale, p2=net.upscale)
    blob = out.add(blob, base)
    if shrink:
        out.layer('Interp', blob, p0=3, p1=shrink, p2=shrink)
    return out.save(path)


def rounded(net, half):
    """Random weights, convolutions' as float16 holds them if ``half``, with outputs that are no constant."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.1))
            if half and parameter.dim() > 1:
                parameter.copy_(parameter.half())
                parameter[parameter.abs() < 2**-14] = 0  # pnnx writes zeros for float16's subnormal numbers
    return net.eval()


def in_ncnn(path, image):
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    assert net.load_param(str(path)) == 0 and net.load_model(str(path.with_suffix('.bin'))) == 0
    array = np.ascontiguousarray(image[0].numpy())
    extractor = net.create_extractor()
    extractor.input('data', ncnn.Mat(array))
    status, output = extractor.extract('output')
    assert status == 0
    return torch.from_numpy(np.array(output))[None]


def levels(image):
    return (image.clamp(0, 1) * 255).round()


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for key in wanted:
        assert found[key].dtype == torch.float32 and torch.equal(found[key], wanted[key]), key


RRDB = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2, 'num_grow_ch': 4}
SRVGG = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_conv': 3}


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('precision', ['fp16', 'fp32'])
@pytest.mark.parametrize('scale', [4, 2, 1])
def test_rrdbnet_is_read_and_computes_what_ncnn_computes(tmp_path, photo, scale, precision, fused):
    net = rounded(RRDBNet(scale=scale, **RRDB), precision == 'fp16')
    path = write_rrdbnet(net, tmp_path / 'net.param', {2: 2, 1: 4}.get(scale, 0), precision=precision, fused=fused)
    state, network = read_ncnn(path)
    assert_same(state, net.state_dict())
    assert network == {'type': 'RRDBNet', 'scale': scale, **RRDB}
    image = photo[..., :16, :24]
    opened = open_network(path)
    assert opened.scale == scale and opened.network == network
    with torch.no_grad():
        assert (levels(opened.module(image)) - levels(in_ncnn(path, image))).abs().max() <= 1
        assert torch.equal(opened.module(image), net(image))


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('precision', ['fp16', 'fp32'])
@pytest.mark.parametrize(('act_type', 'upscale'), [('prelu', 4), ('relu', 2), ('leakyrelu', 3), ('prelu', 1)])
def test_srvgg_is_read_and_computes_what_ncnn_computes(tmp_path, photo, act_type, upscale, precision, fused):
    net = rounded(SRVGGNetCompact(act_type=act_type, upscale=upscale, **SRVGG), precision == 'fp16')
    path = write_srvgg(net, tmp_path / 'net.param', precision=precision, fused=fused)
    state, network = read_ncnn(path.with_suffix('.bin'))  # either half names the model
    assert_same(state, net.state_dict())
    assert network == {'type': 'SRVGGNetCompact', **SRVGG, 'act_type': act_type, 'upscale': upscale}
    image = photo[..., :16, :24]
    opened = open_network(path.with_suffix('.bin'))
    with torch.no_grad():
        assert (levels(opened.module(image)) - levels(in_ncnn(path, image))).abs().max() <= 1
        assert torch.equal(opened.module(image), net(image))


CONVERTED = {
    'x4': (RRDBNet, {**RRDB, 'scale': 4}),
    'x2': (RRDBNet, {**RRDB, 'scale': 2}),
    'x1': (RRDBNet, {**RRDB, 'scale': 1}),
    'prelu': (SRVGGNetCompact, {**SRVGG, 'upscale': 4, 'act_type': 'prelu'}),
    'one': (SRVGGNetCompact, {**SRVGG, 'upscale': 1, 'act_type': 'prelu'}),
}


@pytest.mark.parametrize(
    ('name', 'half'), [('x4', False), ('x4', True), ('x2', True), ('x1', False), ('prelu', True), ('one', False)]
)
def test_what_pnnx_converts_is_read_back(tmp_path, photo, name, half):
    kind, options = CONVERTED[name]
    net = rounded(kind(**options), half)
    torch.save({'params': net.state_dict()}, tmp_path / 'net.pth')
    flags = ['--half'] if half else []
    assert main(['export', '-m', str(tmp_path / 'net.pth'), '--to', 'ncnn', '-o', str(tmp_path / 'out'), *flags]) == 0
    (path,) = (tmp_path / 'out').glob('*.param')
    state, network = read_ncnn(path)
    assert_same(state, net.state_dict())
    assert network == {'type': kind.__name__, **options}
    image = photo[..., 32:48, :24]
    with torch.no_grad():
        assert (levels(open_network(path).module(image)) - levels(in_ncnn(path, image))).abs().max() <= 1


@pytest.mark.parametrize('act_type', ['relu', 'leakyrelu'])
def test_activations_that_weights_do_not_tell_come_from_the_graph(tmp_path, act_type):
    from sdakd.commands.export.formats import to_ncnn
    from sdakd.files.generators import Opened

    options = {**SRVGG, 'upscale': 4, 'act_type': act_type}
    net = rounded(SRVGGNetCompact(**options), False)
    (tmp_path / 'net').mkdir()
    path = tmp_path / 'net/net.param'
    to_ncnn(Opened('net', path, net, 4, {'type': 'SRVGGNetCompact', **options}), path)
    state = read_weights(path)
    assert_same(state, net.state_dict())
    assert infer_network(state) == {'type': 'SRVGGNetCompact', **options}
    assert infer_network(net.state_dict()) is None


def test_an_ncnn_model_with_values_that_are_no_numbers_is_refused(tmp_path):
    teacher = rounded(RRDBNet(scale=4, **RRDB), True)
    teacher.conv_first.bias.data[1] = float('nan')
    write_rrdbnet(teacher, tmp_path / 'teacher.param', 0)
    with pytest.raises(UserError, match='teacher:weights: .*teacher.param is damaged .* tensor conv_first.bias is not'):
        read_weights(tmp_path / 'teacher.param', where='teacher:weights')


def test_an_ncnn_model_is_a_teacher(world, parse):
    options = world.options()
    scale = options['scale']
    teacher = rounded(RRDBNet(scale=scale, **RRDB), True)
    write_rrdbnet(teacher, world.root / 'teacher.param', {2: 2, 1: 4}.get(scale, 0))
    options['teacher'] = {'weights': str(world.root / 'teacher.param')}
    options['network_g'] = {'width': '1/2'}
    options['train']['stages'] = {'only': {'iters': 2, 'lr_g': 1e-3, 'terms': ['pixel']}}
    opt = parse(world.write(options), world.root)
    assert (opt['network_g']['num_feat'], opt['network_g']['num_grow_ch']) == (4, 2)


# -------------------------------------------------- what is refused --------------------------------------------------


@pytest.fixture
def net():
    return rounded(SRVGGNetCompact(act_type='prelu', upscale=4, **SRVGG), True)


@pytest.fixture
def rrdb(tmp_path):
    return write_rrdbnet(rounded(RRDBNet(scale=4, **RRDB), True), tmp_path / 'net.param')


def refusal(path):
    with pytest.raises(UserError) as error:
        open_network(path, '-m')
    sentence = str(error.value)
    assert sentence.startswith('-m: ') and sentence.endswith('.') and str(path.parent) in sentence
    assert '\n' not in sentence
    return sentence


@pytest.mark.parametrize(('shrink', 'reason'), [(0.5, 'shrinks its output by 0.5'), (2, 'enlarges its output by 2')])
def test_a_network_that_goes_on_is_refused(tmp_path, net, shrink, reason):
    assert reason in refusal(write_srvgg(net, tmp_path / 'net.param', shrink))


@pytest.mark.parametrize(
    ('old', 'new', 'reason'),
    [
        (r'(PixelShuffle .*)0=4', r'\g<1>0=2', 'does not make 3 channels of 48'),
        (r'(PixelShuffle .*0=4)', r'\1 1=1', 'does not make 3 channels'),
        (r'(Interp .*)0=1', r'\g<1>0=2', 'no enlargement by the nearest pixel'),
        (r'(Interp .*) 1=4 2=4', r'\1 1=2 2=2', 'enlarges by 2, not by 4'),
        (r'(BinaryOp .*)0=0', r'\g<1>0=2', 'does not add'),
        (r'(PReLU .*)0=8', r'\g<1>0=1', 'has 1 slopes for 8 channels'),
        (r'PReLU (.*)0=8', r'Sigmoid \1', 'Sigmoid'),
        (r'(Convolution .*)1=3', r'\g<1>1=5', 'no 3x3 convolution'),
        (r'(Convolution .*)5=1', r'\g<1>5=0', 'a bias'),
        (r'(Convolution .*) 4=1', r'\1 4=1 3=2', 'stride 1'),
        (r'(Convolution .*) 4=1', r'\1 4=1 2=2', 'no 3x3 convolution'),
        (r'(Convolution .*) 6=216', r'\1 6=216 8=1', '8-bit integers'),
        (r'(Convolution .*) 6=216', r'\1 6=216 9=3', 'activation number 3'),
        (r'(Convolution .*) 6=216', r'\1 6=217', '217 weights where 8 x 3 x 3 x 3 are needed'),
        (r'(Convolution .*)0=8 1=3 4=1 5=1 6=216', r'\g<1>0=0 1=3 4=1 5=1 6=0', '0 weights'),
        (r'(Convolution .*)0=8 1=3', r'\g<1>0=-8 1=3', 'is no count'),
        (r'(Convolution .*)0=8 1=3', r'\g<1>0=inf 1=3', 'is no count'),
        (r'Input', 'Random', 'has 0 inputs'),
    ],
)
def test_graphs_that_deviate_from_srvgg_are_refused(tmp_path, net, old, new, reason):
    path = write_srvgg(net, tmp_path / 'net.param')
    text, count = re.subn(old, new, path.read_text(), count=1)
    assert count == 1
    path.write_text(text)
    assert reason in refusal(path)


@pytest.mark.parametrize(
    ('old', 'new', 'reason'),
    [
        (r'2,2\.0+e-01,1\.0', '2,1.0,1.0', 'does not add 0.2 times the branch'),
        (r'2,2\.0+e-01,1\.0', '2,1.0,0.2', 'does not add 0.2 times the branch'),
        (r'-23310=1,2\.0+e-01', '-23310=1,0.1', 'LeakyReLU(0.2) does not follow body.0.rdb1.conv1'),
        (r'9=2 -23310=1,2\.0+e-01', '9=1', 'LeakyReLU(0.2) does not follow body.0.rdb1.conv1'),
        (r'(Convolution_1 .*6=216)', r'\1 9=1', 'an activation follows conv_first'),
        (r'(Concat .*)0=0', r'\g<1>0=1', 'does not join channels'),
        (r'(Interp .*)1=2\.0 2=2\.0', r'\g<1>1=4.0 2=4.0', 'enlarges by 4, not by 2'),
        (r'(Input .*)', r'\1', None),
    ],
)
def test_graphs_that_deviate_from_rrdbnet_are_refused(rrdb, old, new, reason):
    text, count = re.subn(old, new, rrdb.read_text(), count=1)
    assert count == 1
    rrdb.write_text(text)
    if reason is None:
        open_network(rrdb, '-m')
    else:
        assert reason in refusal(rrdb)


def test_a_residual_from_elsewhere_is_refused(rrdb):
    """Two inputs of the same shape changed places: every size still fits."""
    lines = rrdb.read_text().splitlines()
    number = max(number for number, line in enumerate(lines) if line.startswith('Eltwise'))
    words = lines[number].split()
    words[5] = next(line.split()[6] for line in lines if line.startswith('Eltwise'))
    lines[number] = ' '.join(words)
    rrdb.write_text('\n'.join(lines))
    assert 'the residual of body.1' in refusal(rrdb)


def test_another_network_is_named(tmp_path):
    (tmp_path / 'net.param').write_text('7767517\n2 2\nInput in 0 1 data\nSigmoid s 1 1 data output\n')
    (tmp_path / 'net.bin').write_bytes(b'')
    sentence = refusal(tmp_path / 'net.param')
    assert 'no RRDBNet' in sentence and 'no SRVGGNetCompact' in sentence and 'Sigmoid' in sentence


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('', 'it is empty; download it again'),
        ('<html></html>', 'it is a web page; download the file itself'),
        ('version https://git-lfs.github.com/spec/v1', 'it is a pointer of Git LFS; run `git lfs pull`'),
        ('no graph', 'does not begin with 7767517'),
        ('7767517\n', 'counts of layers and blobs'),
        ('7767517\n1 x\n', 'counts of layers and blobs'),
        ('7767517\n2 1\nInput in 0 1 data\n', 'announces 2 layers and holds 1'),
        ('7767517\n1 2\nInput in 0 1 data\n', 'announces 2 blobs and holds 1'),
        ('7767517\n1 1\nInput in 0\n', 'line 3 is no layer'),
        ('7767517\n1 1\nInput in 0 99999999999 data\n', 'line 3 is no layer'),
        ('7767517\n1 1\nInput in 0 1 data 0=x\n', 'line 3 is no layer'),
        ('7767517\n1 1\nInput in 0 1 data -23310=2,1\n', 'line 3 is no layer'),
        ('7767517\n1 1\nReLU r 1 1 nothing data\n', 'reads nothing, which no layer before it makes'),
        ('7767517\n2 2\nInput in 0 1 data\nReLU r 1 1 data data\n', 'which another layer makes too'),
        (b'7767517\n\xff\xfe', 'no text'),
    ],
)
def test_texts_that_are_no_graph(tmp_path, text, reason):
    (tmp_path / 'net.param').write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / 'net.bin').write_bytes(b'')
    assert reason in refusal(tmp_path / 'net.param')


def test_an_endless_text_is_not_read(tmp_path):
    with open(tmp_path / 'net.param', 'wb') as file:
        file.truncate(1 << 40)  # a hole, which takes no room
    (tmp_path / 'net.bin').write_bytes(b'')
    assert 'too large for a graph' in refusal(tmp_path / 'net.param')


def test_sizes_are_checked_against_the_file_before_memory_is_taken(tmp_path, net):
    path = write_srvgg(net, tmp_path / 'net.param')
    wide = 10**6  # 18 terabytes in the second convolution
    text = path.read_text().replace('0=8', f'0={wide}').replace('6=216', f'6={27 * wide}')
    path.write_text(text.replace('6=576', f'6={9 * wide**2}').replace('6=3456', f'6={432 * wide}'))
    assert 'ends in the weights of Convolution Convolution_1' in refusal(path)


def test_a_bin_of_another_length(tmp_path, net):
    path = write_srvgg(net, tmp_path / 'net.param')
    weights = path.with_suffix('.bin')
    whole = weights.read_bytes()
    weights.write_bytes(b'')
    assert 'net.bin cannot be read as an ncnn model: it is empty' in refusal(path)
    for length in (3, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:length])
        sentence = refusal(path)
        assert 'net.bin' in sentence and f'after {length} bytes' in sentence
    weights.write_bytes(whole + bytes(8))
    assert '8 more than the graph has weights for' in refusal(path)


@pytest.mark.parametrize(
    ('tag', 'reason'),
    [(0x000D4B38, '8-bit integers'), (0x0002C056, '8-bit integers'), (0x11223344, 'a quantisation table')],
)
def test_quantised_weights_are_refused_for_what_they_are(tmp_path, net, tag, reason):
    path = write_srvgg(net, tmp_path / 'net.param')
    weights = path.with_suffix('.bin')
    weights.write_bytes(struct.pack('<I', tag) + weights.read_bytes()[4:])
    sentence = refusal(path)
    assert reason in sentence and 'float16 or float32' in sentence


def test_half_a_model(tmp_path, net):
    path = write_srvgg(net, tmp_path / 'net.param')
    path.with_suffix('.bin').rename(tmp_path / 'other.bin')
    assert 'put net.bin beside it' in refusal(path)
    assert 'put other.param beside it' in refusal(tmp_path / 'other.bin')
    assert 'does not exist' in refusal(tmp_path / 'absent.param')
    assert 'does not exist' in refusal(tmp_path / 'absent.bin')


def test_a_bin_of_torch_is_torchs(tmp_path, net):
    for new in (True, False):
        path = tmp_path / f'{new}.bin'
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=new)
        assert not is_ncnn(path)
        assert_same(read_weights(path), net.state_dict())
