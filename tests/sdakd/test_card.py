"""`sdakd card`, and what files say of their training, against the Hub's own reader and OpenModelDB's rules."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import cv2
import jsonschema
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sdakd
from sdakd.commands.card import SHEET, openmodeldb
from sdakd.compat import UserError
from sdakd.files.generators import open_network
from sdakd.files.named import PRETRAINED
from sdakd.files.named import zoo as zoo_of_ours
from sdakd.files.training import training_of, without_folders
from sdakd_arch import zoo
from sdakd_arch.zoo import MODELS, official, values_digest

ROOT = Path(sdakd.__file__).parents[1]
SHIPPED = zoo_of_ours().models
TEXT = {'type': 'string', 'minLength': 1}
COUNT = {'type': 'integer', 'minimum': 1}
# the parts of OpenModelDB's src/lib/schema.ts and src/lib/model-props.ts that a record of one file has to do with
RECORD = {
    'type': 'object',
    'additionalProperties': False,
    'required': [
        'name', 'author', 'license', 'tags', 'description', 'date', 'architecture', 'size', 'scale', 'inputChannels',
        'outputChannels', 'resources', 'images',
    ],
    'properties': {
        'name': TEXT,
        'author': {'type': 'string', 'pattern': '^[a-z0-9]+(-[a-z0-9]+)*$'},
        'license': {'type': ['string', 'null']},
        'tags': {'type': 'array', 'minItems': 1, 'items': {'enum': [
            'anime', 'compression-removal', 'deblur', 'denoise', 'general-upscaler', 'jpeg', 'photo', 'restoration',
        ]}},
        'description': {'type': 'string', 'pattern': r'^\S(.|\n)*\S$'},
        'date': {'type': 'string', 'pattern': r'^\d{4}-\d\d-\d\d$'},
        'architecture': {'enum': ['esrgan', 'esrgan+', 'compact']},
        'size': {'type': 'array', 'items': TEXT},
        'scale': {'type': 'integer', 'minimum': 1, 'maximum': 16},
        'inputChannels': {'type': 'integer', 'minimum': 1, 'maximum': 4},
        'outputChannels': {'type': 'integer', 'minimum': 1, 'maximum': 4},
        'resources': {'type': 'array', 'minItems': 1, 'items': {
            'type': 'object', 'required': ['type', 'size', 'sha256', 'urls', 'platform'], 'additionalProperties': False,
            'properties': {
                'type': {'enum': ['pth', 'onnx', 'safetensors']}, 'platform': {'enum': ['pytorch', 'onnx']},
                'size': COUNT, 'sha256': {'type': 'string', 'pattern': '^[0-9a-f]{64}$'},
                'urls': {'type': 'array', 'minItems': 1, 'items': {'type': 'string', 'pattern': '^https://'}},
            },
        }},
        'images': {'type': 'array', 'items': {
            'type': 'object', 'required': ['type', 'LR', 'SR'], 'additionalProperties': False,
            'properties': {'type': {'const': 'paired'}, 'caption': TEXT, 'LR': TEXT, 'SR': TEXT},
        }},
        'dataset': TEXT, 'trainingIterations': COUNT, 'trainingBatchSize': COUNT, 'trainingHRSize': COUNT,
        'trainingOTF': {'type': 'boolean'},
    },
}  # fmt: skip


def canonical(identifier):
    """OpenModelDB's canonicalizeModelId: what an identifier has to be equal to."""
    identifier = re.sub('^-|-$', '', re.sub('[^a-z0-9]+', '-', identifier.strip(), flags=re.IGNORECASE))
    identifier = re.sub(r'^(\d+)x-(?:\1x-?|x\1)', r'\1x-', identifier, flags=re.IGNORECASE)
    return re.sub(r'^((\d+)x.*?)-(?:x\2|\2x)$', r'\1', identifier, flags=re.IGNORECASE)


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def small(path, seed=0):
    """A network that enlarges twice, at a path whose ending says how it is written."""
    torch.manual_seed(seed)
    state = SRVGGNetCompact(num_feat=4, num_conv=2, upscale=2).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path) if path.suffix == '.safetensors' else torch.save({'params_ema': state}, path)
    return path


def parsed(folder):
    """The card, read by the Hub's own library."""
    return ModelCard.load(folder / 'README.md', ignore_metadata_errors=False)


# --------------------------------------------------------------------------------------------------- committed files


@pytest.mark.parametrize('name', SHIPPED)
def test_what_ships_says_how_it_was_trained(name):
    training = training_of(open_network(SHIPPED[name].path))
    facts = training['facts']
    assert training['source'] in ('option file', 'stated') and facts['recipe'] and facts['limits']
    if facts['recipe'].startswith('options/'):
        assert Path(ROOT, facts['recipe']).is_file() and facts['iterations'] > 1000
    found = [teacher.get('official') or Path(teacher['file']).stem for teacher in facts['teachers']]
    assert found == ([SHIPPED[name].teacher] if SHIPPED[name].teacher else [])
    for teacher in facts['teachers']:
        own = SHIPPED.get(Path(teacher['file']).stem) or MODELS[teacher['official']]
        assert teacher['values'] == own.values


@pytest.mark.parametrize('name', SHIPPED)
def test_what_ships_has_a_card_and_a_record(name, tmp_path):
    made = sdakd.card(name, tmp_path, repo='Some-one/sdakd', author='Some one')
    assert made.license == SHIPPED[name].license and made.notes == []
    card = parsed(tmp_path)
    assert card.data.license == made.license.lower() and SHIPPED[name].sha256 in card.text
    (path,) = tmp_path.glob('*.json')
    record = json.loads(path.read_text())
    jsonschema.validate(record, RECORD)
    assert path.stem == canonical(path.stem)
    (resource,) = record['resources']
    assert (resource['size'], resource['sha256']) == (SHIPPED[name].bytes, SHIPPED[name].sha256)
    assert f'{SHIPPED[name].cost.parameters:,d} parameters' in record['description']
    if quality := SHIPPED[name].quality:  # the figures are those of zoo.json
        said = f"{quality.psnr:.1f} dB from the teacher's; bicubic interpolation is {quality.bicubic[0]:.1f} dB"
        assert said in record['description'] and said in card.text and 'was not measured' not in card.text
        assert f'| {quality.psnr:.2f} |' in ' '.join(card.text.split()) and quality.set in card.text
    if ratio := zoo_of_ours().ratio(name):
        assert f'{ratio:.1f} times as fast as its teacher' in record['description']


# --------------------------------------------------------------------------------------------------- training


def test_a_file_that_says_nothing_is_told_by_its_hash_through_all_exports(tmp_path):
    model = small(tmp_path / 'a/b/net.pth')
    first = training_of(open_network(model))
    assert first['source'] == 'not recorded' and first['sha256'] == digest(model) and 'option file' in first['reason']
    sdakd.export(model, 'safetensors', tmp_path / 'out/one.safetensors')
    sdakd.export(tmp_path / 'out/one.safetensors', 'safetensors', tmp_path / 'out/two.pth')
    sdakd.export(tmp_path / 'out/two.pth', 'onnx', tmp_path / 'out/three.onnx')
    for name in ('one.safetensors', 'two.pth', 'three.onnx'):
        assert training_of(open_network(tmp_path / 'out' / name)) == first
    with safe_open(tmp_path / 'out/one.safetensors', 'pt') as file:
        assert json.loads(file.metadata()['training']) == first


def test_an_option_file_gives_teacher_iterations_and_licence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / 'experiments/run'
    model = small(run / 'models/net_g_latest.pth')
    small(run / 'models/net_g_700.pth')
    teacher = small(tmp_path / 'weights/teacher.pth', 5)
    network = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 2, 'upscale': 2}
    options = {'network_g': network, 'teacher': {'weights': 'weights/teacher.pth'}}
    (run / 'run.yml').write_text(yaml.safe_dump(options))

    def found():
        (one,) = training_of(open_network(model))['facts']['teachers']
        return one

    assert training_of(open_network(model))['facts']['iterations'] == 700
    values = values_digest(torch.load(teacher)['params_ema'])
    assert found() == {'file': 'teacher.pth', 'sha256': digest(teacher), 'values': values}

    # an official one: by the SHA-256 of its file, by its values in another file, and by its name where it is gone
    model_of = {'of this test': zoo.Model('a network', 1, digest(teacher), values=values)}
    monkeypatch.setattr(zoo, 'MODELS', model_of)
    assert (found()['official'], found()['told by'], found()['license']) == ('of this test', 'SHA-256', 'BSD-3-Clause')
    half = {key: value.half() for key, value in torch.load(teacher)['params_ema'].items()}
    save_file(half, 'weights/half.pth')
    assert official('weights/half.pth') == ('of this test', 'values')
    half['body.0.bias'][0] += 1
    save_file(half, 'weights/half.pth')
    assert official('weights/half.pth') is None
    monkeypatch.setattr(zoo, 'MODELS', {'other': zoo.Model('a network', 1, '0' * 64, values=values)})
    assert found()['told by'] == 'values'
    teacher.unlink()
    assert found() == {'file': 'teacher.pth'}
    monkeypatch.setattr(zoo, 'MODELS', {'teacher': zoo.Model('a network', 1, '0' * 64)})
    assert found() == {'file': 'teacher.pth', 'official': 'teacher', 'told by': 'name', 'license': 'BSD-3-Clause'}
    small(teacher, 6)  # whose name is official and which is not
    assert 'official' not in found()


def test_a_description_counts_for_the_values_that_it_was_written_for(tmp_path):
    stated = {'source': 'stated', 'facts': {'license': 'MIT'}}
    state = SRVGGNetCompact(num_feat=4, num_conv=2, upscale=2).state_dict()
    save_file(state, tmp_path / 'source.safetensors', metadata={'training': json.dumps(stated)})
    model, beside = tmp_path / 'net.pth', tmp_path / 'net.json'
    sdakd.export(tmp_path / 'source.safetensors', 'safetensors', model)
    said = json.loads(beside.read_text())
    assert said['values'] == values_digest(state) and training_of(open_network(model)) == stated

    def refused():
        found = training_of(open_network(model))
        return found['source'] == 'not recorded' and 'net.json is not of this network' in found['reason']

    small(model, 1)  # another network of the same shape, under the same name
    assert refused() and sdakd.card(model, tmp_path / 'card').license is None
    torch.save(state, model)
    assert training_of(open_network(model)) == stated
    beside.write_text(json.dumps({key: value for key, value in said.items() if key != 'values'}))  # an older one
    assert training_of(open_network(model)) == stated
    for foreign in ({'training': stated}, {**said, 'network': {**said['network'], 'num_conv': 3}}, {**said, 'key': 1},
                    {**said, 'network': None}):  # fmt: skip
        beside.write_text(json.dumps(foreign))
        assert refused()


def test_what_a_training_began_with_has_a_licence_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / 'experiments/run'
    model, start = small(run / 'models/net_g_9.pth'), small(tmp_path / 'start.pth', 1)
    small(tmp_path / 'teacher.pth', 2)
    teacher = digest('teacher.pth')
    monkeypatch.setattr(zoo, 'MODELS', {'of this test': zoo.Model('a network', 1, teacher)})
    network = {'type': 'SRVGGNetCompact', 'num_feat': 4, 'num_conv': 2, 'upscale': 2}
    options = {'network_g': network, 'teacher': {'weights': 'teacher.pth'}}

    def made(begin, output='card'):
        (run / 'run.yml').write_text(yaml.safe_dump({**options, 'path': {'pretrain_network_g': begin}}))
        return sdakd.card(model, output)

    assert made(None).license == 'BSD-3-Clause'
    unknown = made('start.pth')
    assert unknown.license is None and 'The licence of start.pth, which the training began with, is not' in str(unknown)
    text = parsed(Path('card')).text
    assert (
        f'| began with | `start.pth`, SHA-256 `{digest(start)}`' in text and 'other: the licence of start.pth' in text
    )
    assert training_of(open_network(model))['facts']['start']['values'] == values_digest(
        torch.load(start)['params_ema']
    )
    assert made('gone.pth').license is None
    assert made(str(model)).license is None  # in a circle
    assert made('teacher.pth').license == 'BSD-3-Clause'
    # a student of the same teacher: what it says of itself; written before `facts` had `start`, it names the file alone
    said = {'training': json.dumps({'source': 'stated', 'facts': {'teachers': [{'license': 'BSD-3-Clause'}]}})}
    save_file(torch.load(start)['params_ema'], 'start.safetensors', metadata=said)
    assert made('start.safetensors').license == 'BSD-3-Clause'
    old = {'source': 'option file', 'path': {'pretrain_network_g': 'x.pth'}, 'facts': {'license': None, 'teachers': [
        {'license': 'BSD-3-Clause'}]}}  # fmt: skip
    save_file(torch.load(start)['params_ema'], 'old.safetensors', metadata={'training': json.dumps(old)})
    assert sdakd.card('old.safetensors', 'card').license is None


@pytest.mark.parametrize(
    ('private', 'left'),
    [
        ('/home/u/x.pth', 'x.pth'), ('~/a/x', 'x'), (r'C:\Users\u\x', 'x'), ('c:/u/x/', 'x'), (r'\\server\u\x', 'x'),
        ('file:///home/u/x', 'x'), ('s3://bucket/u/x', 'x'), ('../../home/u/x', 'x'), (r'..\u\x', 'x'), ('..', '..'),
        ('$HOME/x', 'x'), ('${HOME}/u/x', 'x'), (r'%USERPROFILE%\x', 'x'), (' /home/u/x', 'x'), ('file:/home/u/x', 'x'),
        ('https://u:word@host.example/u/x', 'x'),
    ],
)  # fmt: skip
def test_private_places_do_not_travel(private, left):
    assert without_folders({'a': [private]}) == {'a': [left]}


@pytest.mark.parametrize(
    'public', ['a/b.pth', 'x', '1:2', 'net: a/b', '..a', '.5', 'https://example.org/a/x', 'https://a.example/@u/x']
)
def test_other_texts_travel(public):
    assert without_folders([public]) == [public]


def test_an_official_network_is_no_student_and_has_its_licence(tmp_path, monkeypatch):
    model = small(tmp_path / 'given/net.pth')
    monkeypatch.setattr(zoo, 'MODELS', {'of this test': zoo.Model('x2: drawings', 1, digest(model))})
    made = sdakd.card(model, tmp_path / 'card')
    assert made.license == 'BSD-3-Clause' and parsed(tmp_path / 'card').data.license == 'bsd-3-clause'
    assert "Real-ESRGAN's of this test" in parsed(tmp_path / 'card').text
    assert 'knowledge-distillation' not in parsed(tmp_path / 'card').data.tags


# ------------------------------------------------------------------------------------------------------------- cards


@pytest.fixture(scope='module')
def eighth(tmp_path_factory):
    """The card of the committed 1/8 student, with a repository."""
    folder = tmp_path_factory.mktemp('eighth')
    return sdakd.card(PRETRAINED / 'x4plus_rrdbnet_1_8.safetensors', folder, repo='Some-one/x4plus.eighth')


def test_the_hub_reads_the_card(eighth):
    card = parsed(eighth.folder)
    assert (card.data.license, card.data.library_name) == ('bsd-3-clause', 'sdakd')
    assert card.data.pipeline_tag == 'image-to-image' and 'knowledge-distillation' in card.data.tags
    assert card.data.eval_results is None
    for name in re.findall(r'!\[.*?\]\((.*?)\)', card.text):
        assert cv2.imread(str(eighth.folder / name)) is not None
    facts = training_of(open_network(PRETRAINED / 'x4plus_rrdbnet_1_8.safetensors'))['facts']
    for fact in ('RealESRGAN_x4plus', MODELS['RealESRGAN_x4plus'].values, 'x4plus_rrdbnet_1_8.yml', '--to padded',
                 f'{facts["iterations"]:,d} iterations', facts['limits'],
                 digest(PRETRAINED / 'x4plus_rrdbnet_1_8.safetensors'),
                 'hf download Some-one/x4plus.eighth x4plus_rrdbnet_1_8.safetensors'):  # fmt: skip
        assert fact in card.text, fact


def test_the_record_keeps_openmodeldbs_rules(eighth):
    (path,) = eighth.folder.glob('*.json')
    record = json.loads(path.read_text())
    jsonschema.validate(record, RECORD)
    assert path.read_text() == json.dumps(record, indent=4)  # their validation wants this format
    assert path.stem == canonical(path.stem) == '4x-plus-rrdbnet-1-8'
    file = PRETRAINED / 'x4plus_rrdbnet_1_8.safetensors'
    (resource,) = record['resources']
    assert (resource['size'], resource['sha256']) == (file.stat().st_size, digest(file))
    base = 'https://huggingface.co/Some-one/x4plus.eighth/resolve/main'
    assert resource['urls'] == [f'{base}/{file.name}']
    assert (record['architecture'], record['size']) == ('esrgan', ['8nf', '23nb', '4gc'])
    assert {'photo', 'denoise', 'jpeg'} < set(record['tags']) and record['license'] == 'BSD-3-Clause'
    for image in record['images']:
        assert all((eighth.folder / image[key].removeprefix(f'{base}/')).is_file() for key in ('LR', 'SR'))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [('x4plus_a', '4x-plus-a'), ('4x-x4-4xNice__Net', '4x-Nice-Net'), ('net_x4', '4x-net'), ('4x', '4x-student')],
)
def test_identifiers_are_canonical(name, expected):
    found = openmodeldb.identifier(name, 4)
    assert found == canonical(found) == expected and re.fullmatch(r'\d+x-[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*', found)


def test_after_is_what_the_network_makes_of_before(eighth):
    state = {key: value.float() for key, value in load_file(PRETRAINED / 'x4plus_rrdbnet_1_8.safetensors').items()}
    network = RRDBNet(3, 3, num_feat=8, num_block=23, num_grow_ch=4).eval()
    network.load_state_dict(state)
    before, after = (cv2.imread(str(eighth.folder / f'{name}_chelsea.png')) for name in ('before', 'after'))
    with torch.no_grad():
        output = network(torch.from_numpy(before[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255)
    wanted = (output[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()[..., ::-1]
    assert after.shape == (256, 512, 3) and np.abs(wanted - after).max() <= 1


def test_a_picture_is_shown_by_its_middle(tmp_path, photographs):
    picture = np.zeros((300, 700, 3), np.uint8)
    picture[86:214, 286:414] = photographs['chelsea'][..., ::-1]
    cv2.imwrite(str(tmp_path / 'a cat.png'), picture)
    sdakd.card(small(tmp_path / 'm/net.safetensors'), tmp_path / 'card', pictures=[tmp_path / 'a cat.png'])
    before = cv2.imread(str(tmp_path / 'card/before_a_cat.png'))
    assert np.array_equal(before, picture[22:278, 222:478])
    assert cv2.imread(str(tmp_path / 'card/after_a_cat.png')).shape == (512, 512, 3)


def test_pictures_whose_names_become_equal_are_numbered(tmp_path):
    names = ['a b', 'a_b', 'A_B', '\u00fc', '\u4e2d\u6587']
    for level, name in enumerate(names):
        cv2.imencode('.png', np.full((8, 8, 3), 40 * level, np.uint8))[1].tofile(str(tmp_path / f'{name}.png'))
    pictures = [tmp_path / f'{name}.png' for name in names]
    sdakd.card(small(tmp_path / 'm/net.safetensors'), tmp_path / 'card', pictures=pictures)
    record = json.loads((tmp_path / 'card/2x-net.json').read_text())
    assert [image['caption'] for image in record['images']] == names
    for level, image in enumerate(record['images']):
        assert (cv2.imread(str(tmp_path / 'card' / image['LR'])) == 40 * level).all()
    assert len({image[key].casefold() for image in record['images'] for key in ('LR', 'SR')}) == 10


def test_an_earlier_card_leaves_nothing_behind(tmp_path):
    cv2.imwrite(str(tmp_path / 'private.png'), np.zeros((8, 8, 3), np.uint8))
    for name in ('before_mine.png', '4x-mine.json', 'notes.txt'):
        (tmp_path / 'card').mkdir(exist_ok=True)
        (tmp_path / 'card' / name).write_text('{}')
    sdakd.card(small(tmp_path / 'm/old.safetensors'), tmp_path / 'card', pictures=[tmp_path / 'private.png'])
    assert {'before_private.png', 'after_private.png', '2x-old.json'} < {p.name for p in (tmp_path / 'card').iterdir()}
    sdakd.card(small(tmp_path / 'm/net.safetensors'), tmp_path / 'card')
    made = {f'{what}_{name}.png' for what in ('before', 'after') for name in ('chelsea', 'rocket')}
    mine = {'before_mine.png', '4x-mine.json', 'notes.txt'}
    assert {p.name for p in (tmp_path / 'card').iterdir()} == made | mine | {'README.md', '2x-net.json', SHEET}


def test_the_card_of_ncnn_s_files_names_both(tmp_path):
    texts = []
    for seed in (0, 1):
        source = small(tmp_path / f'{seed}/source/net.pth', seed)
        sdakd.export(source, 'ncnn', tmp_path / f'{seed}/net.param')
        folder = tmp_path / f'card{seed}'
        made = sdakd.card(tmp_path / f'{seed}/net.param', folder, repo='a/b')
        texts.append(parsed(folder).text)
        assert 'ncnn' in parsed(folder).data.tags and 'pytorch' not in parsed(folder).data.tags
        assert 'hf download a/b net.param net.bin --local-dir' in texts[-1] and 'chaiNNer' not in texts[-1]
        assert not list(folder.glob('*.json')) and "OpenModelDB has no name for ncnn's files" in str(made)
        training = training_of(open_network(source))
        said = json.loads((tmp_path / f'{seed}/net.json').read_text())
        assert said['values'] == values_digest(torch.load(source)['params_ema'])
        (tmp_path / f'{seed}/net.json').unlink()
        bare = training_of(open_network(tmp_path / f'{seed}/net.param'))
        assert training['sha256'] == digest(source) and bare['sha256'] == digest(tmp_path / f'{seed}/net.bin')
    assert digest(tmp_path / '0/net.param') == digest(tmp_path / '1/net.param')  # it tells no model
    assert digest(tmp_path / '0/net.bin') in texts[0] and digest(tmp_path / '0/net.bin') not in texts[1]
    with pytest.raises(UserError, match='card1.README.md is of another file'):
        sdakd.publish(tmp_path / '0/net.param', repo='a/b', card=tmp_path / 'card1', dry_run=True)
    sent = sdakd.publish(tmp_path / '0/net.bin', repo='a/b', card=tmp_path / 'card0', dry_run=True)
    assert sent.files.keys() == {'net.param', 'net.bin', 'README.md', SHEET}


@pytest.mark.parametrize('name', ['net.safetensors', 'net.pth'])
def test_a_padded_file_opens_as_it_is_and_has_no_record(tmp_path, name):
    torch.manual_seed(0)
    state = RRDBNet(3, 3, num_feat=4, num_block=1, num_grow_ch=2).state_dict()
    save_file(state, tmp_path / 'source.safetensors')
    sdakd.export(tmp_path / 'source.safetensors', 'padded', tmp_path / name)
    made = sdakd.card(tmp_path / name, tmp_path / 'card')
    text = parsed(tmp_path / 'card').text
    assert 'The file is padded: spandrel, chaiNNer and ComfyUI open it as it is.' in text and '--to padded' not in text
    assert not list((tmp_path / 'card').glob('*.json')) and 'wants the file that is not padded: no record' in str(made)


@pytest.fixture(scope='module')
def measured(tmp_path_factory, photographs):
    """A model, and results of it, its teacher and bicubic interpolation."""
    root = tmp_path_factory.mktemp('measured')
    (root / 'set').mkdir()
    for name, image in photographs.items():
        cv2.imwrite(str(root / f'set/{name}.png'), image[..., ::-1])
    models = [f'teacher={small(root / "t/teacher.pth", 1)}', str(small(root / 'm/net.pth')), 'bicubic']
    found = sdakd.evaluate(models, [f'my set={root / "set"}'], root / 'results', scale=2, teacher='teacher',
                           metrics=['psnr', 'ssim'])  # fmt: skip
    return root, found


def test_results_stand_in_the_card_and_in_its_metadata(measured, tmp_path):
    root, found = measured
    sdakd.card(root / 'm/net.pth', tmp_path / 'card', results=root / 'results/results.json')
    card = parsed(tmp_path / 'card')
    for result in card.data.eval_results:
        reference = 'teacher' if 'teacher' in result.metric_name else 'gt'
        assert result.metric_value == pytest.approx(found.mean('net', result.metric_type, reference), abs=1e-4)
        assert result.dataset_name == 'my set'
    assert {(r.metric_type, r.metric_name) for r in card.data.eval_results} == {
        ('psnr', 'PSNR-Y'), ('ssim', 'SSIM-Y'), ('psnr', 'PSNR-Y to the teacher'), ('ssim', 'SSIM-Y to the teacher')
    }  # fmt: skip
    near, bicubic = (found.mean(name, 'psnr', 'teacher') for name in ('net', 'bicubic'))
    assert f"{near:.1f} dB from the teacher's; bicubic interpolation is {bicubic:.1f} dB" in card.text
    row = next(line for line in card.text.splitlines() if re.match(r'\| my set +\| net ', line))
    assert f'{found.mean("net", "psnr"):.2f}' in row and f'{found.mean("net", "ssim"):.4f}' in row


def test_an_export_finds_its_row_by_its_name_and_another_network_does_not(measured, tmp_path):
    root, _ = measured
    sdakd.export(root / 'm/net.pth', 'safetensors', tmp_path / 'net.safetensors')
    sdakd.card(tmp_path / 'net.safetensors', tmp_path / 'card', results=root / 'results')
    assert parsed(tmp_path / 'card').data.eval_results
    torch.save({'params': SRVGGNetCompact(num_feat=4, num_conv=3, upscale=2).state_dict()}, tmp_path / 'net.pth')
    with pytest.raises(UserError, match='--results: .*results.json has no row of .*net.pth .it has teacher, net, bic'):
        sdakd.card(tmp_path / 'net.pth', tmp_path / 'other', results=root / 'results')
    assert not (tmp_path / 'other').exists()


def test_one_that_was_trained_since_has_no_row(measured, tmp_path):
    root, _ = measured
    small(tmp_path / 'net.pth', 7)
    with pytest.raises(UserError, match='--results: .* has no row of'):
        sdakd.card(tmp_path / 'net.pth', tmp_path / 'card', results=root / 'results')
    older = json.loads((root / 'results/results.json').read_text())
    for model in older['evaluate']['models']:
        assert (model.pop('values') is None) == (model['name'] == 'bicubic')
        del model['macs']
    (tmp_path / 'results.json').write_text(json.dumps(older))
    sdakd.card(tmp_path / 'net.pth', tmp_path / 'card', results=tmp_path)
    assert parsed(tmp_path / 'card').data.eval_results


def test_a_licence_is_given_or_said_to_be_unknown(tmp_path):
    model = small(tmp_path / 'm/net.safetensors')
    made = sdakd.card(model, tmp_path / 'card')
    assert made.license is None and '--license' in str(made)
    card = parsed(tmp_path / 'card')
    assert card.data.license == 'other' and "other: the teacher's licence is not known" in card.text
    assert json.loads((tmp_path / 'card/2x-net.json').read_text())['license'] is None
    for given, hub in (('CC-BY-NC-SA-4.0', 'cc-by-nc-sa-4.0'), ('GPL-3.0-only', 'gpl-3.0'), ('My-Own-1', 'other')):
        made = sdakd.card(model, tmp_path / 'card', license=given)
        card = parsed(tmp_path / 'card')
        assert card.data.license == hub and f'## Licence\n\n{given}.' in card.text and '--license' not in str(made)
        assert hub != 'other' or card.data.license_name == 'my-own-1'
        assert json.loads((tmp_path / 'card/2x-net.json').read_text())['license'] == given


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'license': 'do what you want'}, '--license: .* is no SPDX name'),
        ({'repo': 'nobody'}, '--repo: .nobody. is no name on the Hub; write user/name'),
        ({'repo': 'a/b--c'}, '--repo: '),
        ({'base_model': '/b'}, '--base_model: '),
        ({'pictures': ['absent.png']}, '--picture: the file absent.png does not exist'),
        ({'pictures': ['text.png']}, '--picture: text.png cannot be used'),
        ({'results': 'absent'}, '--results: absent is not called results.json'),
        ({'results': 'absent/results.json'}, '--results: .* does not exist'),
        ({'results': 'odd/results.json'}, '--results: .* holds no results of `sdakd evaluate`'),
        ({'output': 'text.png'}, '-o: text.png is a file'),
        ({'output': 'mine'}, '-o: .*README.md is no card of this command and would be replaced'),
        ({'model': 'absent.pth'}, '-m: the file absent.pth does not exist'),
    ],
)
def test_mistakes_write_nothing(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    small(Path('m/net.safetensors'))
    Path('text.png').write_text('no image', encoding='utf-8')
    Path('odd').mkdir()
    Path('odd/results.json').write_text('{"evaluate": {"models": 3}}', encoding='utf-8')
    Path('mine').mkdir()
    Path('mine/README.md').write_text('# My project\n', encoding='utf-8')
    before = sorted(Path().rglob('*'))
    with pytest.raises(UserError, match=sentence):
        sdakd.card(**{'model': 'm/net.safetensors', 'output': 'card', **arguments})
    assert (
        sorted(Path().rglob('*')) == before and Path('mine/README.md').read_text(encoding='utf-8') == '# My project\n'
    )


@pytest.mark.parametrize(
    'training',
    [
        {'source': 'stated', 'facts': {'official': [], 'license': {}, 'batch': None, 'teachers': [3, {'license': []}]}},
        {'source': 'stated', 'facts': 'none', 'datasets': [1]},
        {'source': 'stated', 'facts': {'license': 'a\nb: c', 'teachers': {}, 'iterations': 'many'}},
        {'teacher': 'odd', 'teachers': [1], 'datasets': {'train': 5}, 'train': None},
    ],
)
def test_claims_of_a_file_that_are_odd(tmp_path, training):
    state = SRVGGNetCompact(num_feat=4, num_conv=2, upscale=2).state_dict()
    save_file(state, tmp_path / 'net.safetensors', metadata={'training': json.dumps(training)})
    made = sdakd.card(tmp_path / 'net.safetensors', tmp_path / 'card')
    assert made.license is None and parsed(tmp_path / 'card').data.license == 'other'


def test_an_architecture_without_a_name_there_gets_no_record(tmp_path):
    shutil.copy(PRETRAINED / 'demo_student_x4.pth', tmp_path / 'net.pth')
    sdakd.export(tmp_path / 'net.pth', 'onnx', tmp_path / 'known.onnx')
    made = sdakd.card(tmp_path / 'known.onnx', tmp_path / 'known', repo='a/b')
    record = json.loads((tmp_path / 'known/4x-known.json').read_text())
    assert (record['resources'][0]['type'], record['resources'][0]['platform']) == ('onnx', 'onnx')
    jsonschema.validate(record, RECORD)
    assert made.license is None  # the JSON that says it lies beside the committed file only

    import onnx

    graph = onnx.load(tmp_path / 'known.onnx')
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / 'bare.onnx')
    made = sdakd.card(tmp_path / 'bare.onnx', tmp_path / 'bare')
    assert not list((tmp_path / 'bare').glob('*.json')) and 'no name for this architecture' in str(made)
    assert parsed(tmp_path / 'bare').data.library_name == 'sdakd'
