"""Blind sheets, their score, and README's picture of what ships."""

import json
import re
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from sdakd import cli
from sdakd.compat import UserError
from sdakd.files.named import zoo

SCRIPTS = Path(cli.__file__).parents[1] / 'test_scripts'
sys.path.append(str(SCRIPTS))
import blind_sheet  # noqa: E402
import zoo_picture  # noqa: E402

sys.path.pop()
LABEL, GAP = 26, 8  # of sdakd.files.sheets


@pytest.fixture
def call(monkeypatch, tmp_path):
    def run(name, *words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', [name, *map(str, words)])
        monkeypatch.setattr(sys, 'path', [str(SCRIPTS), *sys.path])
        monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(SCRIPTS / f'{name}.py'), run_name='__main__')
        assert done.value.code == 0

    return run


@pytest.fixture
def world(tmp_path):
    """Inputs, and enlarged images of a student, grey, and of a teacher, coloured; every pixel tells its place."""
    for place, name in enumerate('abc'):
        y, x = np.mgrid[:64, :80].astype(np.uint8)
        noise = np.random.default_rng(place).integers(0, 256, (64, 80)).astype(np.uint8)
        for folder, image in (('student', [noise] * 3), ('teacher', [y, x, noise])):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f'{name}.png'), np.dstack(image))
        (tmp_path / 'lq').mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / 'lq' / f'{name}.png'), np.dstack([noise] * 3)[::4, ::4])
    return tmp_path


MAKE = ('make', '-m', 'student', 'teacher', '-d', ':lq', '-o', 'new/blind', '--key', 'key.json', '--crop', '32')


def test_a_sheet_shows_what_its_key_says_and_tells_nobody(world, call, monkeypatch):
    call('blind_sheet', *MAKE, '--count', '10')
    key = json.loads((world / 'key.json').read_text())
    assert sorted(path.name for path in (world / 'new/blind').iterdir()) == [
        'answers.txt',
        'sheet_1.png',
        'sheet_2.png',
    ]
    sheets = [cv2.imread(str(world / f'new/blind/sheet_{page}.png')) for page in (1, 2)]
    cell = 64 + GAP, 64 + LABEL + GAP
    assert [crop['number'] for crop in key['crops']] == list(range(1, 11))
    for index, crop in enumerate(key['crops']):
        page, place = divmod(index, blind_sheet.ROWS * blind_sheet.PAIRS)
        for letter, column in (('A', 0), ('B', 1)):
            top = place // blind_sheet.PAIRS * cell[1] + LABEL
            left = (place % blind_sheet.PAIRS * 2 + column) * cell[0]
            shown = sheets[page][top : top + 64, left : left + 64]
            whole = cv2.imread(str(world / crop[letter] / f'{crop["image"]}.png'))
            wanted = whole[crop['top'] : crop['top'] + 32, crop['left'] : crop['left'] + 32]
            assert wanted.shape == (32, 32, 3)
            np.testing.assert_array_equal(shown, np.kron(wanted, np.ones((2, 2, 1), np.uint8)))
    assert {(crop['A'], crop['B']) for crop in key['crops']} == {('student', 'teacher'), ('teacher', 'student')}
    names = [crop['image'] for crop in key['crops']]
    assert all(sorted(names[begin : begin + 3]) == ['a', 'b', 'c'] for begin in (0, 3, 6))
    assert re.fullmatch(r'(\d+ \n){10}', (world / 'new/blind/answers.txt').read_text())
    first = (world / 'key.json').read_text()
    again = '-o', 'again', '--key', 'again.json', '--seed', str(key['seed'])
    call('blind_sheet', *MAKE, '--count', '10', *again)
    assert (world / 'again.json').read_text() == first
    call('blind_sheet', *MAKE, '--count', '10', '-o', 'other', '--key', 'other.json')
    other = json.loads((world / 'other.json').read_text())
    assert other['seed'] != key['seed'] and other['crops'] != key['crops']  # nobody knows it who made one before
    for flags, sentence in (
        (('--key', 'new.json'), '^-o: .*answers.txt is there'),
        (('-o', 'b'), '^--key: key.json is'),
    ):
        monkeypatch.setattr(sys, 'argv', ['blind_sheet', *MAKE, *flags])
        with pytest.raises(UserError, match=sentence):
            runpy.run_path(str(SCRIPTS / 'blind_sheet.py'), run_name='__main__')
    assert (world / 'key.json').read_text() == first


def test_the_order_is_a_fair_coin(world, call):
    call('blind_sheet', *MAKE, '--count', '200', '--seed', '0')
    first = [crop['A'] == 'teacher' for crop in json.loads((world / 'key.json').read_text())['crops']]
    assert binomtest(sum(first), 200).pvalue > 0.01
    assert binomtest(sum(a == b for a, b in zip(first, first[1:], strict=False)), 199).pvalue > 0.01


def test_answers_are_scored(tmp_path):
    crops = [{'number': n, 'A': 'teacher' if n % 2 else 'student'} for n in range(1, 25)]
    (tmp_path / 'key.json').write_text(json.dumps({'crops': crops}))
    lines = [f'{n} {"A" if n % 2 else "b"}' for n in range(1, 15)] + [
        f'{n}: {"B" if n % 2 else "A"}' for n in range(15, 23)
    ]
    (tmp_path / 'answers.txt').write_text('# which one is the teacher?\n' + '\n'.join([*lines, '23 ', '24']) + '\n')
    said = blind_sheet.score(tmp_path / 'key.json', tmp_path / 'answers.txt')
    wanted = binomtest(14, 22)
    low, high = wanted.proportion_ci(0.95, 'exact')
    assert said.startswith(f'14 of 22 right, 64%; 95% interval {low:.0%} to {high:.0%} (Clopper-Pearson); ')
    assert f'{wanted.pvalue:.3f} is' in said and '2 crops without an answer' in said


@pytest.mark.parametrize(
    ('right', 'count'), [(0, 1), (1, 1), (0, 24), (24, 24), (12, 24), (17, 24), (3, 40), (100, 200)]
)
def test_intervals_are_scipys(right, count):
    wanted = binomtest(right, count)
    assert blind_sheet.binomial_interval(right, count) == pytest.approx(
        tuple(wanted.proportion_ci(0.95, 'exact')), abs=1e-9
    )
    assert blind_sheet.chance(right, count) == pytest.approx(wanted.pvalue)


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('1 A\n2 C\n', "--answers: line 2 of .* is '2 C'; write a number and A or B"),
        ('1 A\n1 B\n', '--answers: 1 .line 2 of .* comes twice'),
        ('3 A\n', '--answers: 3 .line 1 of .* is not in the key'),
        ('1 \n2\n', '--answers: .* holds no answer'),
        (None, '--answers: the file .* does not exist'),
    ],
)
def test_mistakes_in_answers(tmp_path, text, sentence):
    (tmp_path / 'key.json').write_text('{"crops": [{"number": 1, "A": "teacher"}, {"number": 2, "A": "student"}]}')
    if text is not None:
        (tmp_path / 'answers.txt').write_text(text)
    with pytest.raises(UserError, match=sentence):
        blind_sheet.score(tmp_path / 'key.json', tmp_path / 'answers.txt')
    (tmp_path / 'key.json').write_text('[]')
    with pytest.raises(UserError, match='--key: .* is no key of this script'):
        blind_sheet.score(tmp_path / 'key.json', tmp_path / 'answers.txt')


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (('-m', 'student'), '-m: give two, the student and then the teacher, not 1'),
        (('--crop', '70'), '--crop: [abc] has 80x64 pixels, less than a crop of 70'),
        (('--count', '0'), '--count: write a whole number of at least 1'),
    ],
)
def test_mistakes_about_a_blind_sheet(world, monkeypatch, words, sentence):
    before = sorted(world.rglob('*'))
    monkeypatch.chdir(world)
    monkeypatch.setattr(sys, 'argv', ['blind_sheet', *MAKE, *words])
    monkeypatch.setattr(sys, 'path', [str(SCRIPTS), *sys.path])
    monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
    with pytest.raises(UserError, match=sentence):
        runpy.run_path(str(SCRIPTS / 'blind_sheet.py'), run_name='__main__')
    assert sorted(world.rglob('*')) == before


# ------------------------------------------------- README's picture --------------------------------------------------


def test_inputs_of_the_picture_are_the_same_every_time(tmp_path):
    first, again = (zoo_picture.degraded(tmp_path / name) for name in ('first', 'again'))
    assert first.keys() == zoo_picture.PARTS.keys()
    for name in zoo_picture.PARTS:
        assert np.array_equal(first[name], again[name]) and first[name].shape == (64, 64, 3)


def test_the_picture_has_a_column_for_each():
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, (2, side, side, 3), np.uint8) for side in (60, 240))
    sheet = np.asarray(zoo_picture.sheet({'photograph': (list(small), ''), 'x4': (list(large), '2.2 MB, 1 ms')}))
    side, gap, line = 240, 8, 24
    assert sheet.shape == (2 * side + gap + 2 * line, 2 * side + gap, 3)
    for row in (0, 1):
        top = line + row * (side + gap)
        cell = sheet[top : top + side, :side, ::-1]
        np.testing.assert_array_equal(cell, np.kron(small[row], np.ones((4, 4, 1), np.uint8)))
        np.testing.assert_array_equal(sheet[top : top + side, side + gap :, ::-1], large[row])
    assert (sheet[-line:, side + gap :] < 128).any() and (sheet[-line:, :side] == 255).all()


def test_the_picture_in_the_readme_is_of_what_ships():
    model = zoo().models[zoo().default]
    assert zoo_picture.said(model.bytes, model.cost) == f'{model.bytes / 1e6:.1f} MB, {model.cost.ms:.0f} ms'
    readme = (SCRIPTS.parent / 'README.md').read_text(encoding='utf-8')
    assert 'docs/zoo.png' in readme and (SCRIPTS.parent / 'docs/zoo.png').is_file()


def test_a_shallower_network_is_the_deep_one_without_its_middle(tmp_path, call, monkeypatch, capsys):
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    torch.manual_seed(0)
    deep, cut = (SRVGGNetCompact(num_feat=4, num_conv=number, act_type='prelu') for number in (6, 3))
    with torch.no_grad():
        for conv in (1, 2, 3):  # of the six; first and last layers stay: 1 and 2 from the beginning, 3 from the end
            torch.nn.init.dirac_(deep.body[2 + 2 * conv].weight)
            deep.body[2 + 2 * conv].bias.zero_()
            deep.body[3 + 2 * conv].weight.fill_(1)  # a PReLU that does nothing
    torch.save({'params': deep.state_dict()}, tmp_path / 'deep.pth')
    call('shallower', '-m', 'deep.pth', '--num_conv', 3, '-o', 'new/start.pth')
    cut.load_state_dict(torch.load(tmp_path / 'new/start.pth', weights_only=True)['params'])
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(cut(image), deep(image))
    for flags, sentence in (
        (('-m', 'deep.pth', '--num_conv', '6'), 'has 6 convolutions; write a number from 1 to 5'),
        (('-m', 'x4plus_rrdbnet_1_8', '--num_conv', '2'), 'x4plus_rrdbnet_1_8 holds RRDBNet'),
    ):
        monkeypatch.setattr(sys, 'argv', ['shallower', *flags, '-o', 'bad.pth'])
        with pytest.raises(UserError, match=sentence):
            runpy.run_path(str(SCRIPTS / 'shallower.py'), run_name='__main__')
    assert not (tmp_path / 'bad.pth').exists()
