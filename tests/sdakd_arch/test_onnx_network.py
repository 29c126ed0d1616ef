"""Graphs of others: what enlarges RGB in [0, 1] by a whole factor runs, and all else is refused for its reason."""

import json

import numpy as np
import onnx
import pytest
import torch

from sdakd.compat import UserError
from sdakd.files.generators import open_network

NEAREST = 'coordinate_transformation_mode="asymmetric", mode="nearest", nearest_mode="floor"'
PIXELS = 'float[n,3,h,w]'


def graph(path, *lines, taken=f'{PIXELS} x', given='float[n,c,H,W] y', values='', **told):
    """A graph of lines such as ``y = Relu (x)``, saved with what it tells of itself."""
    text = f'<ir_version: 9, opset_import: ["" : 17]> g ({taken}) => ({given}) <{values}> {{ {" ".join(lines)} }}'
    model = onnx.parser.parse_model(text)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in told.items()})
    onnx.save(model, path)
    return path


def enlarged(path, tall=2.0, wide=None, before='', after='', source='x', target='y', values='', **more):
    """A graph that repeats pixels; ``before`` makes ``source`` of x, ``after`` makes y of ``target``."""
    factors = f'float[4] factors = {{1.0, 1.0, {tall}, {wide or tall}}}' + (f', {values}' if values else '')
    return graph(path, before, f'{target} = Resize <{NEAREST}> ({source}, "", factors)', after, values=factors, **more)


def image(height=13, width=21, count=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def repeated(pixels, scale):
    return pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


# ------------------------------------------------------------------------------------------------------- what opens


@pytest.mark.parametrize('scale', [1, 2, 3, 4, 8])
def test_scale_and_image(tmp_path, scale):
    opened = open_network(enlarged(tmp_path / 'g.onnx', float(scale)))
    assert (opened.scale, opened.multiple, opened.network) == (scale, 1, None)
    for count in (1, 3):
        assert torch.equal(opened.module(image(count=count)), repeated(image(count=count), scale))


def test_half_precision(tmp_path):
    half = {'taken': 'float16[n,3,h,w] x', 'given': 'float16[n,3,H,W] y'}
    opened = open_network(enlarged(tmp_path / 'g.onnx', **half))
    found = opened.module(image())
    assert found.dtype == torch.float32
    assert (found - repeated(image(), 2)).abs().max() < 1e-3
    mixed = enlarged(tmp_path / 'm.onnx', given='float16[n,3,H,W] y', target='z', after='y = Cast <to: int = 10> (z)')
    assert (open_network(mixed).module(image()) - repeated(image(), 2)).abs().max() < 1e-3


def test_a_batch_of_one_is_called_again_and_again(tmp_path):
    opened = open_network(enlarged(tmp_path / 'g.onnx', taken='float[1,3,h,w] x', given='float[1,3,H,W] y'))
    assert torch.equal(opened.module(image(count=3)), repeated(image(count=3), 2))


def test_channels_that_are_not_told(tmp_path):
    assert open_network(enlarged(tmp_path / 'g.onnx', taken='float[n,c,h,w] x')).scale == 2


@pytest.mark.parametrize('block', [2, 3, 4, 8])
@pytest.mark.parametrize('how', ['refuses', 'cuts'])
def test_what_sides_must_be_multiples_of(tmp_path, block, how):
    """By blocks of pixels that become channels, which fails elsewhere; by their means, which leaves others out."""
    if how == 'refuses':
        lines = [
            f'a = SpaceToDepth <blocksize: int = {block}> (x)',
            f'b = DepthToSpace <blocksize: int = {block}> (a)',
        ]
        path = enlarged(tmp_path / 'g.onnx', 2.0, before=' '.join(lines), source='b')
    else:
        line = f'a = AveragePool <kernel_shape=[{block},{block}], strides=[{block},{block}]> (x)'
        path = enlarged(tmp_path / 'g.onnx', 2.0 * block, before=line, source='a')
    opened = open_network(path)
    assert (opened.scale, opened.multiple) == (2, block)
    found = opened.module(image(3 * block, 5 * block))
    assert found.shape == (1, 3, 6 * block, 10 * block)


def test_an_image_of_any_size_is_upscaled(tmp_path):
    from sdakd.commands.upscale.upscaler import Upscaler

    pixels = (image(37, 53)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    blocks = 'a = SpaceToDepth <blocksize: int = 4> (x) b = DepthToSpace <blocksize: int = 4> (a)'
    for name, more in (('any', {}), ('blocks', {'before': blocks, 'source': 'b'})):
        upscaler = Upscaler(open_network(enlarged(tmp_path / f'{name}.onnx', 3.0, **more)), tile=16)
        found, _ = upscaler.enhance(pixels)
        assert np.array_equal(found, pixels.repeat(3, 0).repeat(3, 1))


# ------------------------------------------------------------------------------------------------- what is refused


def levels(factor, shift):
    """y = factor * x + shift, enlarged."""
    return {
        'target': 'z',
        'after': 'q = Mul (z, k) y = Add (q, s)',
        'values': f'float k = {{{float(factor)}}}, float s = {{{float(shift)}}}',
    }


REFUSED = {
    'x1.5': ({'tall': 1.5}, 'enlarges 1.5 times'),
    'x0.5': ({'tall': 0.5}, 'enlarges 0.5 times'),
    'x2 by x4': ({'tall': 2.0, 'wide': 4.0}, 'no whole multiple'),
    'larger': (
        {'target': 'z', 'after': 'y = Pad (z, p)', 'values': 'int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}'},
        'no whole multiple',
    ),
    'swapped': ({'target': 'z', 'after': 'y = Transpose <perm=[0,1,3,2]> (z)'}, 'width and height are swapped'),
    'grey': ({'target': 'z', 'after': 'y = ReduceMean <axes=[1]> (z)'}, '1 channel where RGB has 3'),
    'RGBA': (
        {'target': 'z', 'after': 'm = ReduceMean <axes=[1]> (z) y = Concat <axis=1> (z, m)'},
        '4 channels where RGB has 3',
    ),
    'channels last': ({'target': 'z', 'after': 'y = Transpose <perm=[0,2,3,1]> (z)'}, 'channels last'),
    'takes channels last': (
        {'taken': 'float[n,h,w,3] x', 'before': 'z = Transpose <perm=[0,3,1,2]> (x)', 'source': 'z'},
        r'takes images as \(n, h, w, 3\), channels last',
    ),
    'takes grey': ({'taken': 'float[n,1,h,w] x'}, r'takes \(n, 1, h, w\), not one RGB image'),
    'one size': ({'taken': 'float[1,3,64,64] x'}, r'images of one size, \(1, 3, 64, 64\)'),
    'one width': ({'taken': 'float[1,3,h,64] x'}, 'images of one size'),
    'batch alone': ({'taken': 'float[n,3,64,64] x'}, 'images of one size'),
    'batches of 4': ({'taken': 'float[4,3,h,w] x'}, 'takes 4 images at a time'),
    'takes bytes': (
        {'taken': 'uint8[n,3,h,w] x', 'before': 'z = Cast <to: int = 1> (x)', 'source': 'z'},
        'takes uint8, not float32 or float16',
    ),
    'gives bytes': (
        {'given': 'uint8[n,3,H,W] y', 'target': 'z', 'after': 'y = Cast <to: int = 2> (z)'},
        'gives uint8, not float32 or float16',
    ),
    'gives whole numbers': (
        {'given': 'int64[n,3,H,W] y', 'target': 'z', 'after': 'y = Cast <to: int = 7> (z)'},
        'gives int64',
    ),
    'rounds': ({'target': 'z', 'after': 'y = Round (z)'}, r'gives whole numbers'),
    'gives 0 to 255': (levels(255, 0), r'gives values in \[0, 255\]'),
    'gives -1 to 1': (levels(2, -1), r'gives values in \[-1, 1\]'),
    'takes 0 to 255': (levels(1 / 255, 0), r'takes values in \[0, 255\]'),
    'takes -1 to 1': (levels(0.5, 0.5), r'takes values in \[-1, 1\]'),
    'takes -1 to 1, gives 0 to 255': (levels(127.5, 127.5), r'takes values in \[-1, 1\] and gives'),
    'gives thousands': (levels(5000, 0), 'gives values from 0 to 5000'),
    'not finite': (levels('inf', 0), r'damaged: it gives values that are not finite'),
    'not finite for white': (
        {'target': 'z', 'after': 'q = Sub (one, z) y = Log (q)', 'values': 'float one = {1.0}'},
        'not finite',
    ),
    'two images': ({'taken': f'{PIXELS} x, {PIXELS} other'}, r'takes 2 inputs \(x, other\)'),
    'two outputs': (
        {'given': f'{PIXELS} side, {PIXELS} y', 'after': 'side = Identity (x)'},
        r'gives 2 outputs \(side, y\), and nothing tells which is the image',
    ),
    'scale that is another': ({'scale': 4}, 'says of itself that it enlarges 4 times, and enlarges 2 times'),
    'network that is another': (
        {'network': {'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 3}},
        'says of itself that it enlarges 3 times, and enlarges 2 times',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(tmp_path, name):
    more, sentence = REFUSED[name]
    path = enlarged(tmp_path / 'g.onnx', **more)
    with pytest.raises(UserError, match=rf'^-m: \S+g.onnx .*{sentence}') as caught:
        open_network(path)
    assert '\n' not in str(caught.value)


def test_a_graph_of_something_else_than_images(tmp_path):
    with pytest.raises(UserError, match=r'takes \(n, 3, h\), not one RGB image'):
        open_network(graph(tmp_path / 'g.onnx', 'y = Relu (x)', taken='float[n,3,h] x', given='float[n,3,h] y'))


def test_a_graph_that_runs_at_no_size(tmp_path):
    line, shape = 'y = Reshape (x, s)', 'int64[4] s = {1, 3, 61, 67}'
    with pytest.raises(UserError, match='does not run on images from 16 to 192 pixels'):
        open_network(graph(tmp_path / 'g.onnx', line, values=shape))
