"""Files that are no weights: each is refused for what it is, with what to do, whatever its name."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from safetensors.torch import save

from sdakd.compat import UserError
from sdakd.files.generators import open_network
from sdakd_arch.weights import read_weights, tensors_only

POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:4fa0d38905f7\nsize 67040989\n'


def state():
    return SRVGGNetCompact(num_feat=4, num_conv=1).state_dict()


def saved(content, **options):
    data = io.BytesIO()
    torch.save(content, data, **options)
    return data.getvalue()


def zipped(**members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name.replace('_', '.'), content)
    return data.getvalue()


def program():
    data = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Conv2d(3, 3, 1), torch.ones(1, 3, 4, 4)), data)
    return data.getvalue()


def graph():
    node = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[n,3,h,w] x) => (float[n,3,h,w] y) {y = Relu (x)}'
    )
    return node.SerializeToString()


def in_tar():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode='w') as archive:
        archive.addfile(tarfile.TarInfo('storages'), io.BytesIO())
    return data.getvalue()


def picture(kind):
    return cv2.imencode(kind, np.zeros((9, 9, 3), np.uint8))[1].tobytes()


FILES = {
    'pointer': (POINTER.encode, 'a pointer of Git LFS; run `git lfs pull`'),
    'page': (
        lambda: b'<!DOCTYPE html><html><head><title>404 Not Found</title>',
        'a web page; download the file itself',
    ),
    'page behind blanks': (lambda: b'\r\n  <HTML lang="en">', 'a web page'),
    'feed': (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'a web page'),
    'empty': (bytes, 'it is empty; download it again'),
    'zeros': (lambda: bytes(70_000), 'it holds zeros alone; download it again'),
    'json': (lambda: json.dumps({'error': 'Repository not found'}).encode(), 'a JSON text'),
    'json list': (lambda: b'\n [1, 2]', 'a JSON text'),
    'text': (lambda: 'kein Modell, sondern Größe'.encode(), "a text that begins 'kein Modell, sondern Größe'"),
    'text cut in a character': (lambda: b'a' + 'ä'.encode() * 400, 'a text that begins'),
    'ncnn': (lambda: b'7767517\n3 3\n', 'a graph of ncnn; let its name end in .param'),
    'zip': (lambda: zipped(model_bin=b'1', readme_txt=b'2'), 'a zip archive .* of model.bin, readme.txt; unpack it'),
    'zip of a model': (lambda: zipped(net_pth=saved(state())), 'a zip archive .* of net.pth; unpack it'),
    'empty zip': (zipped, 'a zip archive'),
    'program': (program, 'a program of TorchScript'),
    'onnx': (graph, 'an ONNX graph; give .pth or .safetensors, or let its name end in .onnx'),
    'gzip': (lambda: gzip.compress(b'1' * 99), 'a gzip archive; unpack it'),
    'bzip2': (lambda: bz2.compress(b'1' * 99), 'a bzip2 archive; unpack it'),
    'xz': (lambda: lzma.compress(b'1' * 99), 'an xz archive; unpack it'),
    '7z': (lambda: b'7z\xbc\xaf\x27\x1c' + bytes(range(256)), 'a 7-Zip archive; unpack it'),
    'png': (lambda: picture('.png'), 'a PNG image'),
    'jpeg': (lambda: picture('.jpg'), 'a JPEG image'),
    'numpy': (lambda: b'\x93NUMPY\x01\x00v\x00', 'an array of NumPy'),
    'hdf5': (lambda: b'\x89HDF\r\n\x1a\n' + bytes(99), 'an HDF5 file'),
    'network': (
        lambda: saved(torch.nn.Conv2d(3, 3, 1)),
        r'it holds torch.nn.modules.conv.Conv2d, which could run code; save',
    ),
    'pickle': (lambda: pickle.dumps(Path('.'), protocol=2), r'it holds [\w.]+, which could run code'),
    'newer pickle': (lambda: pickle.dumps(Path('.')), r'it is no checkpoint, or a damaged one; download it again'),
    'noise': (lambda: np.random.default_rng(0).bytes(4000), 'file: '),
    'cut zip': (lambda: saved(state())[:-9], 'cut off or damaged; download it again'),
    'cut pickle': (lambda: saved(state(), _use_new_zipfile_serialization=False)[:-9], 'a weights file: '),
    'cut safetensors': (lambda: save(state())[:-9], 'a weights file: '),
}


@pytest.mark.parametrize('ending', ['.pth', '.safetensors', '.ckpt'])
@pytest.mark.parametrize('name', FILES)
def test_what_it_is_and_what_to_do(tmp_path, name, ending):
    make, sentence = FILES[name]
    path = tmp_path / f'net{ending}'
    path.write_bytes(make())
    with pytest.raises(UserError, match=rf'^teacher:weights: \S+net{ending} cannot be read as .*{sentence}') as caught:
        read_weights(path, where='teacher:weights')
    assert '\n' not in str(caught.value)
    with pytest.raises(UserError, match='^-m: '):
        open_network(path)


@pytest.mark.parametrize('name', ['pointer', 'page'])
@pytest.mark.parametrize('ending', ['.onnx', '.param', '.bin'])
def test_what_stands_for_a_graph_or_for_half_of_a_model(tmp_path, name, ending):
    make, sentence = FILES[name]
    (tmp_path / f'net{ending}').write_bytes(make())
    if ending == '.bin':
        (tmp_path / 'net.param').write_text('7767517\n1 1\nInput in 0 1 data\n')
    with pytest.raises(UserError, match=rf'^-m: \S+net{ending} cannot be read as an .*{sentence}'):
        open_network(tmp_path / f'net{ending}')


def test_weights_under_the_names_of_others(tmp_path):
    (tmp_path / 'net.bin').write_bytes(save(state()))
    assert open_network(tmp_path / 'net.bin').scale == 4
    for data in (save(state()), saved(state())):
        (tmp_path / 'net.onnx').write_bytes(data)
        with pytest.raises(UserError, match='cannot be read as an ONNX graph: it holds weights'):
            open_network(tmp_path / 'net.onnx')


def test_files_that_other_packages_load_are_told_apart_too(tmp_path):
    (tmp_path / 'vgg.pth').write_text(POINTER)
    with tensors_only('train:perceptual_opt'), pytest.raises(UserError, match='^train:perceptual_opt: .*Git LFS'):
        torch.load(tmp_path / 'vgg.pth')


def test_tar(tmp_path):
    (tmp_path / 'net.pth').write_bytes(in_tar())
    with pytest.raises(UserError, match='tar archive, as torch wrote before 0.4'):
        read_weights(tmp_path / 'net.pth')


def test_an_activation_that_leaves_no_trace(tmp_path):
    for kind in ('relu', 'leakyrelu'):
        torch.save(SRVGGNetCompact(num_feat=4, num_conv=1, act_type=kind).state_dict(), tmp_path / 'net.pth')
        with pytest.raises(
            UserError, match='SRVGGNetCompact, and whether its activation is ReLU or LeakyReLU leaves no trace'
        ):
            open_network(tmp_path / 'net.pth')
