"""Signs of life: lines where there is no terminal, a bar on a real one, nothing while something else is said."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdakd.progress import Progress, duration

ROOT = Path(__file__).resolve().parents[2]


def shown(code, terminal=False, **environment):
    """What a program writes to stderr, with a silence of 0.3 s in the place of 10."""
    code = (
        'import sys, time, logging; from sdakd import progress; from sdakd.progress import Progress, say;'
        f'progress.SILENCE, progress.PATIENCE, progress.TICK = 0.3, 0.1, 0.05\n{code}'
    )
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'COLUMNS': '80', **environment}
    command = [sys.executable, '-c', code]
    if not terminal:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stderr
    master, slave = pty.openpty()
    process = subprocess.Popen(command, env=environment, stderr=slave, stdout=slave)
    os.close(slave)
    found = b''
    try:
        while data := os.read(master, 4096):
            found += data
    except OSError:  # the other side is closed
        pass
    os.close(master)
    assert process.wait(60) == 0, found
    return found.decode()


SLOW = """
with Progress('outside'):
    with Progress('pairs', 4, 'images') as inner:
        inner.step()
        time.sleep(1)
    time.sleep(1)
time.sleep(1)
sys.stderr.write('end\\n')
"""


def test_lines_where_there_is_no_terminal():
    lines = shown(SLOW).splitlines()
    assert lines[0].startswith('pairs: 1 of 4 images, 0:00:0') and lines[0].endswith(' left')
    names = [line.partition(':')[0] for line in lines]
    assert names[-1] == 'end' and 'outside' in names
    assert names[:-1] == sorted(names[:-1], reverse=True)  # the inner one, then the outer one, then none
    assert '\r' not in ''.join(lines)


def test_nothing_is_said_while_something_else_is():
    code = """
logging.getLogger('basicsr').addHandler(logging.NullHandler())
with Progress('training'):
    for _ in range(20):
        time.sleep(0.1)
        logging.getLogger('basicsr').warning('a line of the log') if _ % 2 else say('something')
"""
    lines = shown(code).splitlines()
    assert lines.count('something') == 10 and len(lines) <= 12  # a slow machine may be silent for 0.3 s


def test_what_opens_inside_again_and_again_is_no_sign():
    code = """
for _ in Progress('outside', 20, 'images').over(range(20)):
    with Progress('inside'):
        time.sleep(0.1)
"""
    assert len(shown(code).splitlines()) >= 2


def test_a_bar_on_a_terminal_that_leaves_no_trace():
    text = shown(SLOW, terminal=True)
    assert 'pairs: 1 of 4 images' in text and '\r' in text and 'outside: 0:00:0' in text
    lines = re.split(r'\r\x1b\[K', text)
    assert lines[-1] == 'end\r\n' and '#' in text and all(len(line) < 80 for line in lines)


def test_processes_other_than_the_main_one_are_silent():
    assert shown(SLOW, RANK='1') == 'end\n'


def test_an_error_ends_it():
    code = """
try:
    with Progress('outside'):
        Progress('inside').__enter__()  # whoever should have closed it was interrupted
        raise ValueError
except ValueError:
    time.sleep(1)
"""
    assert shown(code) == ''


def test_counts():
    progress = Progress('pairs', 10, 'images')
    assert list(progress.over('abc')) == ['a', 'b', 'c'] and progress.count == 3
    progress.note = 'two are broken'
    assert str(progress).startswith('pairs: 3 of 10 images, two are broken, 0:00:00, 0:00:00 left')
    assert str(Progress('search')) == 'search: 0:00:00'
    assert str(Progress('run', 5, 'iterations', lambda: 2, lambda: 'eta: unknown')).endswith('0:00:00, eta: unknown')


@pytest.mark.parametrize(('seconds', 'text'), [(-86400, '0:00:00'), (0.4, '0:00:00'), (467, '0:07:47')])
def test_duration(seconds, text):
    assert duration(seconds) == text
