"""An evenly spaced sample of `test_scripts/bad_inputs.py`, and whether the script sees what is wrong."""

import sys
from pathlib import Path

import pytest

from sdakd import cli
from sdakd.compat import UserError

sys.path.append(str(Path(cli.__file__).parents[1] / 'test_scripts'))
import bad_inputs  # noqa: E402

sys.path.pop()
EVERY = 41  # a prime: it meets flags and kinds in ever other pairs


@pytest.fixture(scope='module', autouse=True)
def place():
    with bad_inputs.place():
        yield


def test_every_command_is_among_them():
    found = bad_inputs.cases()
    commands = {case.command if case.command in cli.COMMANDS else case.command.split()[0] for case in found}
    assert commands == set(cli.COMMANDS) and len(found) > 1000
    assert {case.words[: len(case.command.split())] for case in found} == {
        tuple(case.command.split()) for case in found
    }


# each stands for a kind of fault that the whole has found
FOUND = {
    ('evaluate', '--output', 'in the input'),  # results among the test images
    ('prepare faces', '--identities', 'a device'),  # read without end
    ('prepare faces', '--identities', 'a pipe'),  # waited for
    ('demo', '--teacher', 'missing'),  # photographs were written first
    ('upscale', '--threads', 'a long number'),
    ('distill', '--seed', 'a long number'),
    ('export', '--output', 'a loop'),
    ('prepare subimages', '--only', 'bytes'),
    ('prepare meta', '--input', 'a line break'),
    ('prepare meta', '--input', 'bytes'),
    ('options', 'name', 'very long'),
}
CASES = bad_inputs.cases()
KNOWN = [case for case in CASES if (case.command, case.flag, case.kind) in FOUND]


def test_all_that_was_found_is_tried():
    assert len(KNOWN) == len(FOUND)


@pytest.mark.parametrize('case', [*CASES[::EVERY], *KNOWN], ids=str)
def test_a_wrong_input_is_one_sentence(case):
    result = bad_inputs.run(case)
    assert not result.fault, result.said


@pytest.mark.parametrize(
    ('end', 'fault'),
    [
        (UserError('-i', 'one\nand two.'), ''),
        (UserError('-i', 'no full stop'), 'no whole sentence'),
        (UserError('-i', 'see <class int>.'), 'words of a program'),
        (KeyError('a'), 'unforeseen'),
        (0, 'status 0'),
    ],
)
def test_the_script_sees_what_is_wrong(end, fault, monkeypatch):
    def main(_words):
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(cli, 'main', main)
    assert bad_inputs.run(bad_inputs.cases()[0]).fault == fault


def test_the_script_sees_what_is_left_and_what_is_changed(monkeypatch):
    def main(_words):
        Path('new.part').touch()
        raise UserError('-i', 'a sentence.')

    case = bad_inputs.cases()[0]
    monkeypatch.setattr(cli, 'main', main)
    assert bad_inputs.run(case).fault == 'left ./new.part' and not Path('new.part').exists()

    def other(_words):
        Path('texts/a.txt').write_text('another text', encoding='utf-8')
        raise UserError('-i', 'a sentence.')

    monkeypatch.setattr(cli, 'main', other)
    assert bad_inputs.run(case).fault == 'changed ./texts/a.txt'
    Path('texts/a.txt').write_text('a text', encoding='utf-8')
