"""The models that ship: zoo.json against the files, `sdakd models`, and names in the place of files."""

import hashlib
import json
import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from safetensors.torch import load_file

import sdakd
from sdakd import cli
from sdakd.commands.models import measured
from sdakd.compat import UserError
from sdakd.files import named
from sdakd.files.generators import open_network
from sdakd.files.named import PRETRAINED, model_file, published, zoo

sys.path.append(str(Path(cli.__file__).parents[1] / 'test_scripts'))
import zoo_figures  # noqa: E402

sys.path.pop()
WEIGHTS = ('.pth', '.safetensors')
ROOM = 8_000_000  # bytes, for all that ships


def weights(path):
    return load_file(path) if path.suffix == '.safetensors' else torch.load(path, weights_only=True)['params_ema']


# ------------------------------------------------------ zoo.json ------------------------------------------------------


@pytest.mark.parametrize('name', zoo().models)
def test_figures_are_those_of_the_file(name):
    model = zoo().models[name]
    content, state = model.path.read_bytes(), weights(model.path)
    assert model.path.stem == name
    assert (model.bytes, model.sha256) == (len(content), hashlib.sha256(content).hexdigest()), 'run zoo_figures.py'
    assert model.cost.parameters == sum(tensor.numel() for tensor in state.values())
    # every convolution of these networks is 3x3; RRDBNet's last ones see the image enlarged twice and four times
    pixels = {'conv_up1': 4, 'conv_up2': 16, 'conv_hr': 16, 'conv_last': 16}
    macs = sum(t.numel() * pixels.get(key.partition('.')[0], 1) for key, t in state.items() if t.dim() == 4)
    assert model.cost.macs == macs * zoo().speed.size ** 2
    assert model.what and model.license and model.network == open_network(model.path).describe()
    if model.teacher:
        assert zoo().teacher_cost(name) is not None and zoo().ratio(name) > 1


def test_all_that_ships_has_an_entry_and_there_is_room_for_more():
    files = {path for path in PRETRAINED.iterdir() if path.suffix in WEIGHTS}
    assert files == {model.path for model in zoo().models.values()}
    assert sum(path.stat().st_size for path in PRETRAINED.rglob('*') if path.is_file()) <= ROOM


def test_the_default_is_a_general_student_that_was_measured():
    model = zoo().models[zoo().default]
    assert model.teacher == 'RealESRGAN_x4plus' and model.quality.psnr > model.quality.bicubic[0]
    assert model.quality.distance < model.quality.bicubic[1]


def test_the_readme_has_the_figures():
    text = (PRETRAINED / 'README.md').read_text(encoding='utf-8')
    assert zoo_figures.readme_with_table(text, zoo()) == text, 'run test_scripts/zoo_figures.py'
    assert f'{zoo().models[zoo().default].quality.psnr:.2f}' in text


def test_figures_of_other_weights_are_forgotten():
    content = msgspec.json.decode(msgspec.json.encode(zoo()), type=named.Zoo)
    name = content.default
    content.models[name].values = 'of other weights'
    content.models[name].network = 'another network'
    zoo_figures.told(content)
    assert content.models[name].quality is None and content.models[name].cost.ms is None
    content.models[name].quality, content.models[name].cost.ms = (
        zoo().models[name].quality,
        zoo().models[name].cost.ms,
    )
    assert content == zoo()


# ---------------------------------------------------- sdakd models ---------------------------------------------------


def test_the_list_says_what_ships_and_what_is_published(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights/RealESRGAN_x2plus.pth').write_bytes(b'')
    assert cli.main(['models']) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, model in zoo().models.items():
        (line,) = (line for line in lines if line.lstrip('*').split()[:1] == [name])
        assert line.startswith('*') == (name == zoo().default)
        assert f'{model.cost.parameters:,d}' in line and f'{model.bytes / 1e6:.2f}' in line and model.what in line
    assert any(line.startswith('RealESRGAN_x4plus ') and 'sdakd fetch RealESRGAN_x4plus' in line for line in lines)
    assert any(line.startswith('RealESRGAN_x2plus ') and 'weights' in line.split()[-1] for line in lines)
    assert not any('netD' in line for line in lines)


def test_the_list_as_json(capsys):
    assert cli.main(['models', '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['models'].keys() == zoo().models.keys() and found['published'].keys() == set(published())
    for entry in found['models'].values():
        assert Path(entry['path']).stat().st_size == entry['bytes']
        if entry['teacher'] in found['teachers']:
            ms = found['teachers'][entry['teacher']]['ms']
            assert entry['ratio'] == pytest.approx(ms / entry['cost']['ms'])


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A zoo of one student, of a teacher that is 16 times as wide and not here."""
    monkeypatch.setattr(named, 'PRETRAINED', tmp_path)
    torch.save({'params': SRVGGNetCompact(num_feat=4, num_conv=4).state_dict()}, tmp_path / 'narrow.pth')
    network = {'type': 'SRVGGNetCompact', 'num_feat': 64, 'num_conv': 4}
    models = {'narrow': named.Shipped('narrow.pth', 'nothing', 'wide')}
    content = named.Zoo(
        'narrow', named.Speed(64), {'wide': named.Teacher(parameters=0, macs=0, network=network)}, models
    )
    monkeypatch.setattr('sdakd.commands.models.zoo', lambda: content)
    return content


def test_times_are_measured_here(small, capsys):
    assert cli.main(['models', '--measure']) == 0
    shown = capsys.readouterr().out
    found = measured(small)
    state = SRVGGNetCompact(num_feat=64, num_conv=4).state_dict()
    assert found.teachers['wide'].parameters == sum(tensor.numel() for tensor in state.values())
    assert found.ratio('narrow') > 2 and small.ratio('narrow') is None  # what was given stays as it is
    assert (
        found.speed.threads == torch.get_num_threads()
        and found.speed.cpu
        and f'threads: {found.speed.threads}' in shown
    )


# --------------------------------------------------- names for files --------------------------------------------------


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_file('demo_student_x4') == PRETRAINED / 'demo_student_x4.pth'
    (tmp_path / 'demo_student_x4').write_bytes(b'')
    assert model_file('demo_student_x4') == Path('demo_student_x4')
    for text in ('none/demo_student_x4', 'absent.pth', '', 'x' * 300, 'a\nb'):
        assert model_file(text) == Path(text)  # no name: whoever opens it says what is wrong
    with pytest.raises(UserError, match='^-m: the file demo_studnt_x4 does not .* did you mean demo_student_x4'):
        model_file('demo_studnt_x4')


def test_a_folder_hides_no_name(tmp_path, monkeypatch):
    """`sdakd export -m NAME -o NAME` makes one."""
    monkeypatch.chdir(tmp_path)
    for name in ('demo_student_x4', 'mine', 'weights/RealESRGAN_x4plus.pth'):
        (tmp_path / name).mkdir(parents=True)
    assert model_file('demo_student_x4') == PRETRAINED / 'demo_student_x4.pth'
    with pytest.raises(UserError, match='^-m: mine is a folder, and no model is called mine; '):
        model_file('mine')
    with pytest.raises(UserError, match='RealESRGAN_x4plus does not ship and is not in .*; get it by'):
        model_file('RealESRGAN_x4plus')


def test_every_command_takes_names(tmp_path, photographs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'gt').mkdir()
    cv2.imwrite('gt/coffee.png', photographs['coffee'][:64, :64, ::-1])
    names = ['demo_teacher_x4', 'again=demo_student_x4', 'bicubic']
    section = sdakd.evaluate(names, ['gt'], metrics=['psnr']).sections[4]
    assert [model['name'] for model in section['models']] == ['demo_teacher_x4', 'again', 'bicubic']
    assert section['models'][1]['sha256'] == zoo().models['demo_student_x4'].sha256
    timings = sdakd.bench(['demo_student_x4'], size=8, rounds=1, backends=['eager'], precisions=['fp32'])
    assert timings.section['models'][0]['parameters'] == zoo().models['demo_student_x4'].cost.parameters
    assert timings.section['runs'][0]['median_ms'] > 0
    sent = sdakd.publish('demo_student_x4', repo='some/one', dry_run=True)
    assert 'demo_student_x4.pth' in str(sent)
    for words in (['bench', '-o', 'out'], ['card'], ['evaluate', '-o', 'out', '-d', 'gt'], ['export'], ['publish']):
        with pytest.raises(UserError, match='^-m: RealESRGAN_x4plus .* get it by `sdakd fetch RealESRGAN_x4plus`'):
            cli.main([*words, '-m', 'RealESRGAN_x4plus'])
    with pytest.raises(UserError, match=f'^-m: name a model; only --to web has one of its own .{zoo().default}'):
        cli.main(['export', '--to', 'onnx'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['gt']


@pytest.mark.parametrize('name', [name for name, model in zoo().models.items() if model.teacher])
def test_students_as_graphs(name, tmp_path):
    file = sdakd.export(name, 'onnx', tmp_path).files['onnx']
    assert file.name == f'{name}.onnx'
    image = np.random.default_rng(0).random((1, 3, 12, 16), dtype=np.float32)
    (found,) = onnxruntime.InferenceSession(file).run(None, {'input': image})
    with torch.no_grad():
        wanted = open_network(zoo().models[name].path).module(torch.from_numpy(image)).numpy()
    assert found.shape == (1, 3, 48, 64) and np.abs(found - wanted).max() < 1e-4
