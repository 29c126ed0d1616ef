"""The number of threads, against work whose time is known: it moves the clock, by how many threads there are."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from sdakd_arch import threads
from sdakd_arch.threads import choose_threads, fewest, measure_threads

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def free(monkeypatch):
    """A machine of six cores on which nobody has said how many threads there are."""
    before = torch.get_num_threads()
    monkeypatch.delenv('OMP_NUM_THREADS')
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lasting(free, monkeypatch):
    """Makes work that takes so long, by the number of threads; and the list of its calls."""
    now = [0.0]
    monkeypatch.setattr(threads, 'time', types.SimpleNamespace(perf_counter=lambda: now[0]))

    def make(seconds):
        calls = []

        def work():
            calls.append(torch.get_num_threads())
            now[0] += seconds[torch.get_num_threads()]

        return work, calls

    return make


@pytest.mark.parametrize(
    ('seconds', 'line', 'tried'),
    [
        (
            {1: 0.08, 2: 0.04, 4: 0.02, 6: 0.01},
            '6 threads: 0.01 s a step (1: 0.08 s, 2: 0.04 s, 4: 0.02 s)',
            {1, 2, 4, 6},
        ),
        # 2 % are not worth two threads
        (
            {1: 0.3, 2: 0.1, 4: 0.098, 6: 0.15},
            '2 threads: 0.1 s a step (1: 0.3 s, 4: 0.098 s, 6: 0.15 s)',
            {1, 2, 4, 6},
        ),
        # where two cost that much, more are not asked for
        ({1: 0.14, 2: 2.24, 4: 0.01, 6: 0.01}, '1 thread: 0.14 s a step (2: 2.2 s)', {1, 2}),
    ],
)
def test_the_fewest_threads_near_the_best_are_taken(lasting, seconds, line, tried):
    work, calls = lasting(seconds)
    said = []
    assert choose_threads(work, 2, say=said.append) == torch.get_num_threads() == int(line[0])
    assert said == [line] and set(calls) == tried


def test_all_numbers_take_turns(lasting):
    work, calls = lasting({1: 0.001, 2: 0.001, 4: 0.001})
    measure_threads(work, (1, 2, 4), 0.2)
    rounds = [calls[start : start + 6] for start in range(0, len(calls), 6)]
    assert len(rounds) > 3 and all(each == [1, 1, 2, 2, 4, 4] for each in rounds[:-1])


def test_fewest():
    assert fewest({1: 1.0, 2: 0.6, 4: 0.5}) == 4
    assert fewest({1: 1.0, 2: 0.52, 4: 0.5}) == 2


def test_processes_share_the_cores(lasting):
    work, calls = lasting({1: 0.01, 2: 0.005, 3: 0.002})
    assert choose_threads(work, 0.1, processes=2, say=str) == 3
    assert set(calls) == {1, 2, 3}
    torch.set_num_threads(6)
    assert choose_threads(work, 0.1, processes=6, say=str) == 1


def test_the_environment_is_respected():
    """In a process of its own, because torch reads the variable when it is loaded."""
    code = (
        'import sys; from sdakd import compat; compat.import_basicsr(); import torch;'
        'from sdakd_arch.threads import choose_threads; print(choose_threads(lambda: sys.exit(3)))'
    )
    environment = {**os.environ, 'OMP_NUM_THREADS': '2', 'PYTHONPATH': str(ROOT)}
    found = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (0, '2\n') and '2 threads, as OMP_NUM_THREADS says' in found.stderr
