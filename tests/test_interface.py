"""Commands as functions: the errors they raise, and the parsers that fill their arguments in."""

import pickle

import pytest

from sdakd.compat import UserError


def test_an_error_knows_its_place():
    error = UserError('train:stages', 'there is no stage; write one.')
    assert (error.where, error.sentence) == ('train:stages', 'there is no stage; write one.')
    assert str(error) == 'train:stages: there is no stage; write one.'
    assert str(error.at('methods:sdakd')) == 'methods:sdakd: there is no stage; write one.'
    assert str(error.within('run.yml').within('out')) == 'out: run.yml: train:stages: there is no stage; write one.'
    assert error.within('run.yml').where == 'run.yml: train:stages'


@pytest.mark.parametrize(
    ('text', 'where', 'sentence'),
    [
        ('--size: write 8, not: 4.', '--size', 'write 8, not: 4.'),
        ('--metrics fid: the file is missing.', '--metrics fid', 'the file is missing.'),
        ('run.yml: train:stages: write one.', 'run.yml', 'train:stages: write one.'),
        ('torch is too old: install another.', '', 'torch is too old: install another.'),
        ('nothing could be measured.', '', 'nothing could be measured.'),
    ],
)
def test_one_argument_is_the_whole_text(text, where, sentence):
    error = UserError(text)
    assert (str(error), error.where, error.sentence) == (text, where, sentence)
    assert str(error.at('here')) == f'here: {sentence}'
    assert str(error.within('here')) == f'here: {text}'


def test_an_error_survives_another_process():
    """A worker's exception is pickled on its way to the parent."""
    for error in (UserError('-i', 'is it there?.'), UserError('-i: is it there?.'), UserError('torch is old.')):
        found = pickle.loads(pickle.dumps(error))
        assert (str(found), found.where, found.sentence) == (str(error), error.where, error.sentence)
    assert str(UserError('-i', 'is it there?.')) == '-i: is it there?'
