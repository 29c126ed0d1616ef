"""`sdakd options`: option files by name, complete copies of them, and the JSON schema that editors check files by."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import jsonschema
import pytest
import yaml

import sdakd
from sdakd import cli
from sdakd.commands.compare.config import method_file, read_config
from sdakd.commands.options.schema import NUMBER, text
from sdakd.commands.prepare.pairs import pairs
from sdakd.compat import UserError
from sdakd.shipped import find_shipped, option_file, shipped_files, without_schema_line
from sdakd_models.checks.keys import KNOWN_TOP_LEVEL
from sdakd_models.options import typed
from sdakd_models.reader import merge, read_merged, read_yaml
from sdakd_models.registry import term_options
from sdakd_models.scenario import Scenario

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.relative_to(ROOT / 'options').with_suffix('').as_posix(): path for path in ROOT.glob('options/**/*.yml')}
RUNS = [name for name in FILES if not name.startswith('compare/')]
COMPARISONS = [name for name in FILES if name.startswith('compare/')]


# ------------------------------------------------------- names -------------------------------------------------------


def test_every_file_is_found_by_its_names():
    assert shipped_files() == FILES and len(FILES) > 50
    for name, path in FILES.items():
        for given in (name, f'{name}.yml', f'options/{name}.yml', f'./options/{name}.yml', path.name, path.stem):
            assert find_shipped(given) == path, given  # so that no two have the same name in different folders
    for given in ('', 'methods', 'fakd/', 'zoo/fakd', 'my/methods/fakd.yml', '../fakd', 'fakd.yaml', '/options/fakd'):
        assert find_shipped(given) is None, given


def test_a_file_of_this_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert option_file('fakd') == str(FILES['methods/fakd'])
    (tmp_path / 'fakd').mkdir()
    assert option_file('fakd') == str(FILES['methods/fakd'])  # a folder is no option file
    (tmp_path / 'fakd.yml').write_text('name: mine\n')
    assert option_file('fakd.yml') == 'fakd.yml' and option_file('methods/fakd.yml') == str(FILES['methods/fakd'])
    (tmp_path / 'options').mkdir()
    (tmp_path / 'options/gcfsr_128.yml').write_text('name: mine\n')
    assert option_file('options/gcfsr_128.yml') == 'options/gcfsr_128.yml'
    assert option_file('gcfsr_128') == str(FILES['gcfsr_128'])


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (
            'fkad',
            '-opt: fkad cannot be read (No such file or directory), and none of this name ships; did you mean fakd',
        ),
        ('methods/fkad.yml', 'and none of this name ships; did you mean methods/fakd'),
        ('.', '-opt: . cannot be read (Is a directory), and'),
        ('zzzzzzz.yml', 'and none of this name ships; `sdakd options` lists those that ship.'),
    ],
)
def test_names_of_none(given, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        option_file(given)
    assert sentence in str(error.value) and str(error.value).endswith(('?', '.'))


def test_commands_take_a_name(tmp_path, parse, photographs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        parse('demo_teacher', tmp_path)
    assert error.value.where == f'{FILES["demo_teacher"]}: datasets:train:dataroot_gt'
    text = str(sdakd.compare('crd_ablations', dry_run=True))  # its data are the user's own
    assert '\nMissing:\n' in text and 'teacher: ' in text
    (tmp_path / 'photos').mkdir()
    cv2.imwrite('photos/coffee.png', photographs['coffee'])
    pairs('photos', 'pairs', degradation='realesrgan', opt='sdakd_realesrgan_x2')
    assert json.loads((tmp_path / 'pairs/.sdakd_prepare.json').read_text())['scale'] == 2
    assert not (tmp_path / 'experiments').exists()


def test_a_file_may_extend_one_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ('methods/fakd', 'fakd', 'options/methods/fakd.yml'):
        Path('mine.yml').write_text(f'extends: {given}\nname: mine\n', encoding='utf-8')
        assert read_merged('mine.yml') == read_merged(FILES['methods/fakd']) | {'name': 'mine'}
    Path('fakd.yml').write_text('name: beside\n', encoding='utf-8')
    Path('mine.yml').write_text('extends: fakd.yml\nscale: 2\n', encoding='utf-8')
    assert read_merged('mine.yml') == {'name': 'beside', 'scale': 2}
    Path('mine.yml').write_text('extends: methods/fkad\n', encoding='utf-8')
    with pytest.raises(UserError, match=r'extends: the file methods/fkad does not exist; .* did you mean methods/fakd'):
        read_merged('mine.yml')


# --------------------------------------------------- list and print --------------------------------------------------


def test_the_list(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['options']) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    words = ' '.join(out.split())
    for name, path in FILES.items():
        first = path.read_text().splitlines()[1].removeprefix('# ')  # after the line for editors
        assert re.search(rf'(?m)^{name} ', out) and ' '.join(first.split()[:3]) in words, name
    assert 'methods/fakd' in words and "FAKD: affinity matrices of feature maps and the teacher's image" in words


def test_the_list_is_cheap():
    code = 'import sdakd, sys; sdakd.options(); sys.exit(bool({"torch", "basicsr"} & set(sys.modules)))'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize('name', FILES)
def test_a_printed_file_stands_alone(name, tmp_path):
    printed = str(sdakd.options(name))
    (tmp_path / 'mine.yml').write_text(printed)
    content = read_yaml(tmp_path / 'mine.yml')
    wanted = read_merged(FILES[name])
    assert content == wanted and list(content) == list(wanted) and 'extends' not in content
    stages = (content.get('train') or {}).get('stages') or {}
    assert list(stages) == list((wanted.get('train') or {}).get('stages') or {})
    lines = printed.splitlines()
    assert lines[0].startswith(f'# options/{name}.yml of sdakd {sdakd.__version__}') and 'yaml-language' not in printed
    original = without_schema_line(FILES[name].read_text())
    assert original.splitlines()[0] in lines  # what it is
    if 'extends' in read_yaml(FILES[name]):
        assert max(len(line) for line in lines if not line.startswith('#')) <= 120
    else:
        assert printed.endswith(original)  # with all comments
    if name in COMPARISONS:
        config = read_config(str(tmp_path / 'mine.yml'))
        for method, entry in config.methods.items():
            assert method_file(method, entry, tmp_path) == method_file(method, entry, FILES[name].parent)


def test_a_printed_file_is_read_as_the_one_it_was(tmp_path, parse, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('demo_teacher', 'teacher_discriminator_gcfsr_1024'):
        Path('mine.yml').write_text(str(sdakd.options(name)), encoding='utf-8')
        said = []
        for given in ('mine.yml', name):
            with pytest.raises(UserError) as error:
                parse(given, tmp_path, '--force_yml', 'datasets:train:type=FaceDatase', 'path:resume_state=~')
            said.append((error.value.where.rpartition('.yml: ')[2], error.value.sentence))
        assert said[0] == said[1]


def test_unknown_names_and_flags():
    for arguments, sentence in (
        (('fkad',), 'NAME: no option file that ships is called fkad; did you mean fakd'),
        (('methods',), 'NAME: no option file that ships is called methods; '),
    ):
        with pytest.raises(UserError) as error:
            sdakd.options(*arguments)
        assert str(error.value).startswith(sentence)
    with pytest.raises(UserError, match='--schema: it is the same for all option files; leave fakd out'):
        sdakd.options('fakd', schema=True)


# ---------------------------------------------------- the parsers ----------------------------------------------------


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        ('evalute', 'Error: sdakd: there is no command evalute; did you mean evaluate?'),
        ('tarin -opt x', 'Error: sdakd: there is no command tarin; did you mean train'),
        ('qqqqq', 'Error: sdakd: there is no command qqqqq; known are '),
        ('prepare subimage', 'Error: sdakd prepare: there is no job subimage; did you mean subimages?'),
        ('upscale -i a -o b --outscal=2 --sufix x', 'Error: --sufix: there is no such flag; did you mean --suffix'),
        ('link a b', 'Error: sdakd link: b is one argument too many; `sdakd link -h` shows what there is.'),
        ('export -m a -o b --to onxn', "Error: --to: invalid choice 'onxn'; did you mean onnx"),
        ('card -o b', 'Error: sdakd card: the following arguments are required: -m'),
        ('export -o b --to onnx', 'Error: -m: name a model; only --to web has one of its own'),
        ('--versoin', 'Error: sdakd: '),
    ],
)
def test_slips_of_the_command_line(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
    with pytest.raises(UserError) as error:
        cli.main(words.split())
    with pytest.raises(SystemExit) as end:
        sys.excepthook(UserError, error.value, None)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and said.startswith(sentence)


def test_slips_of_a_training(parse, tmp_path):
    with pytest.raises(UserError, match=r'^--force_yaml: there is no such flag; did you mean --force_yml'):
        parse('fakd', tmp_path, '--force_yaml', 'a=1')
    with pytest.raises(UserError, match=r"^--launcher: invalid choice 'pytroch'; did you mean pytorch"):
        parse('fakd', tmp_path, '--launcher', 'pytroch')


# ----------------------------------------------------- the schema ----------------------------------------------------

SCHEMA = json.loads((ROOT / 'options/schema.json').read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def test_the_file_is_current(capsys):
    assert cli.main(['options', '--schema']) == 0
    printed = capsys.readouterr().out
    assert printed == text()
    said = 'run: sdakd options --schema > options/schema.json'
    assert (ROOT / 'options/schema.json').read_text() == printed, said


def nodes(schema):
    yield schema
    for value in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from nodes(value)


def test_editors_understand_it():
    """Draft 7 of JSON Schema, whose `$ref` stands alone: what stands beside it is not looked at."""
    assert SCHEMA['$schema'] == 'http://json-schema.org/draft-07/schema#'
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    later = {'$defs', 'prefixItems', 'unevaluatedProperties', 'dependentRequired', 'dependentSchemas'}
    used = set()
    for node in nodes(SCHEMA):
        if isinstance(node, dict):
            assert not later & node.keys()
            if isinstance(node.get('$ref'), str):
                assert len(node) == 1
                used.add(node['$ref'].removeprefix('#/definitions/'))
    assert used == SCHEMA['definitions'].keys()


@pytest.mark.parametrize('name', FILES)
def test_files_that_ship_are_valid_and_lead_to_the_schema(name):
    found = [f'{list(error.absolute_path)}: {error.message}' for error in VALIDATOR.iter_errors(read_yaml(FILES[name]))]
    assert found == []
    first, second = FILES[name].read_text().splitlines()[:2]
    # as VS Code's YAML extension looks for it
    assert re.match(r'^#\s+yaml-language-server\s*:', first)
    (line,) = re.findall(r'\$schema=\S+', first)
    target = line.removeprefix('$schema=')
    assert (FILES[name].parent / target).resolve() == ROOT / 'options/schema.json'
    assert second.startswith('# ')


BASE = {
    'name': 'run', 'model_type': 'SDAKDModel', 'scale': 4,
    'network_g': {'type': 'SRVGGNetCompact', 'num_feat': 4},
    'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3},
    'teacher': {'weights': 'teacher.pth'},
    'discriminators': {'judge': {'network': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3}, 'real': 'teacher'}},
    'datasets': {}, 'path': {},
    'train': {
        'stages': {'one': {'iters': 4, 'lr_g': 1e-4, 'lr_d': 1e-4, 'terms': ['pixel', 'feature', 'gan', 'gan:judge']}},
        'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0},
        'feature_opt': {'type': 'FeatureMapLoss', 'share': 0.3},
        'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
    },
}  # fmt: skip
STAGE = 'train: {stages: {one: '


@pytest.mark.parametrize(
    'change',
    [
        'train: {ema_decy: 0.9}',
        'train: {ema_decay: 1.0}',
        'train: {ema_decay: much}',
        'train: {lr_g: 1.0e-4}',
        'train: {precision: float16}',
        'train: {stages: {one: ~}}',
        'train: {pool_reuse: 0}',
        'train: {pixel_opt: {share: 1.5, loss_weight: ~}}',
        'train: {pixel_opt: {share: 0, loss_weight: ~}}',
        'train: {pixel_opt: {share: half, loss_weight: ~}}',
        'train: {pixel_opt: {share: 0.5}}',
        'train: {pixel_opt: {los_weight: 2}}',
        'train: {pixel_opt: {loss_weight: heavy}}',
        'train: {feature_opt: {layers: body}}',
        'train: {feature_opt: {hidden_ratio: wide}}',
        'train: {gan_opt: {gan_typ: lsgan}}',
        STAGE + '{itres: 5}}}',
        STAGE + '{iters: 0}}}',
        STAGE + '{iters: few}}}',
        STAGE + '{lr_g: -1}}}',
        STAGE + '{lr_g: [1]}}}',
        STAGE + '{terms: pixel}}}',
        STAGE + '{terms: []}}}',
        STAGE + '{scheduler: {type: StepLR}}}}',
        STAGE + '{scheduler: {type: CosineAnnealingLR, milestones: [1]}}}}',
        STAGE + '{reset_optimizers: perhaps}}}',
        'teacher: {weight: teacher.pth}',
        'teacher: {weights: [teacher.pth]}',
        'teacher: {replace_by: psnr}',
        'teacher: {cotrain: psnr}',
        'teachers: {other: {weigths: x}}',
        'discriminators: {judge: {listens: true}}',
        'discriminators: {judge: {real: student}}',
        'discriminators: {judge: {fake: [gt]}}',
        'discriminators: {judge: 4}',
    ],
)
def test_what_is_refused_is_refused_by_a_run_too(change):
    opt = merge(BASE, yaml.safe_load(change))
    assert VALIDATOR.is_valid(BASE) and Scenario.read(BASE)
    assert not VALIDATOR.is_valid(opt)
    with pytest.raises(UserError):
        Scenario.read(opt)


@pytest.mark.parametrize(
    'change',
    [
        STAGE + '{lr_g: 2e-4, lr_d: ~}}}',  # text to YAML, a number to the run
        STAGE + '{scheduler: {type: MultiStepLR, milestones: [1, 2]}}}}',
        'train: {stages: {two: {iters: 1, lr_g: 1, terms: [pixel]}}, start_stage: two}',
        'train: {pixel_opt: {share: 0.4, loss_weight: ~}}',
        'train: {feature_opt: {layers: {body.1: body.2}, hidden_ratio: 2}}',
        'train: {pixel_opt: {type: CharbonnierLoss, eps: 1.0e-6}}',
        'train: {feature_opt: ~}',
        'train: {optim_g: {type: Adam, betas: [0, 0.99]}, teacher_margin: 0}',
        'teacher: {network: {type: EDSR}, cache: folder, cotrain: {metric: psnr}}',
        'my_own_key: 5',
    ],
)
def test_what_is_legal_is_legal_to_a_run_too(change):
    opt = merge(BASE, yaml.safe_load(change))
    assert VALIDATOR.is_valid(opt) and Scenario.read(opt)


@pytest.mark.parametrize(
    'text',
    [
        'extends: base.yml',  # which provides all the rest
        'extends: base.yml\ntrain: {stages: {one: ~, two: {lr_d: ~, terms: [a]}}, gan_opt: ~}\nteacher: ~',
        'extends: base.yml\ntrain: {stages: {one: {scheduler: {gamma: 0.1}}}, feature_opt: {share: 0.2}}',
        'network_g: {width: 1/4}\nnetwork_d: {width: 0.25, num_feat: 32}',
        'imports: [mine]\nnetwork_g: {type: MyNet, my_argument: 3}\ndatasets: {train: {type: MyData, other: 1}}',
        'imports: [mine]\ntrain: {my_opt: {type: MyLoss, anything: 1}, stages: {one: {terms: [my, gan:judge]}}}',
        'num_gpu: auto\nval: {val_freq: 5e3, metrics: {psnr: {type: calculate_psnr, crop_border: 4}}}',
    ],
)
def test_what_files_may_say(text):
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(
    'change',
    [
        'widths: 4',
        'seeds: [-1]',
        'budget: {batc: 4}',
        'methods: {sdakd: {weights: []}}',
        'primary: {against: hr}',
        'tea: 1',
    ],
)
def test_comparisons_are_told_from_runs(change, tmp_path):
    opt = merge(read_yaml(FILES['compare/smoke']), yaml.safe_load(change))
    assert not VALIDATOR.is_valid(opt)
    (tmp_path / 'mine.yml').write_text(yaml.safe_dump(opt))
    with pytest.raises(UserError):
        read_config(str(tmp_path / 'mine.yml'))


def test_it_knows_and_describes_the_keys():
    run = SCHEMA['definitions']['OptionFile']['properties']
    assert (
        run.keys() >= KNOWN_TOP_LEVEL and SCHEMA['definitions']['Train']['properties'].keys() >= term_options().keys()
    )
    for block in ('OptionFile', 'Train', 'Stage', 'TeacherBlock', 'DiscriminatorBlock', 'Dataset', 'Paths'):
        for key, value in SCHEMA['definitions'][block]['properties'].items():
            target = next((entry['$ref'] for entry in value.get('anyOf', ()) if '$ref' in entry), '').rpartition('/')[2]
            assert value.get('description') or SCHEMA['definitions'][target]['description'], (block, key)
    models = run['model_type']['anyOf'][0]['enum']
    assert models == ['SDAKDGCFSRModel', 'SDAKDModel', 'SDAKDRealESRGANModel']
    assert 'FeatureMapLoss' in SCHEMA['definitions']['loss']['properties']['type']['anyOf'][0]['enum']
    assert {'RRDBNet', 'SRVGGNetCompact'} <= set(
        SCHEMA['definitions']['network']['properties']['type']['anyOf'][0]['enum']
    )


@pytest.mark.parametrize('written', ['1', '-2', '2e-4', '2E+4', '0.5', '1e', 'e5', '', '1,5', '0x1', '1 ', '2,000'])
def test_numbers_as_text(written):
    from msgspec import Struct

    class Box(Struct):
        value: float

    try:
        typed(Box, {'value': written}, 'box')
        legal = True
    except UserError:
        legal = False
    assert legal == bool(re.match(NUMBER, written)), written
