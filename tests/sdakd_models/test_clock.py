"""The time left, on a clock that the steps move on: against the seconds that the rest then takes."""

import re
import types

import pytest
from basicsr.utils import MessageLogger

from sdakd_models import clock as module
from sdakd_models.clock import Clock, TrainingLog
from sdakd_models.loop import Loop
from sdakd_models.stages import EveryOr, Plan, Stage

COSTS = {'supervised': 0.1, 'distillation': 0.3, 'adversarial': 0.9}
ITERS = 50
SAVING, VALIDATION = 2.0, 5.0


def plan(**seconds):
    terms = {'terms': ['pixel'], 'lr_g': 1e-3, 'iters': ITERS}
    return Plan({name: Stage(**terms, seconds=seconds.get(name)) for name in COSTS})


class Run:
    """BasicSR's loop with steps that cost what they cost: checkpoints every 20, validations every 25 iterations."""

    def __init__(self, monkeypatch, **seconds):
        self.now, self.iteration, self.logged = 100.0, 0, {}
        monkeypatch.setattr(module, 'time', types.SimpleNamespace(perf_counter=lambda: self.now))
        self.restart(**seconds)

    def restart(self, **seconds):
        self.plan = plan(**seconds)
        saving, validation = EveryOr(20, self.plan.ends), EveryOr(25, self.plan.ends[:-1])
        self.every = {'saving': saving, 'validation': validation}
        self.clock = Clock(self.plan, self.every)

    def aside(self, kind, seconds):
        with self.clock.aside(kind):
            self.now += seconds

    def to(self, last):
        """Trains on, to the end of what comes after an iteration; the last one is followed by the run's end."""
        while self.iteration < last:
            self.iteration += 1
            moment = self.plan.at(self.iteration)
            self.now += COSTS[moment.name] + (7.0 if moment.step == 1 else 0)  # the first one allocates
            self.clock.lap(self.iteration)
            self.logged[self.iteration] = self.now, self.clock.left()[0]  # BasicSR logs here
            if self.iteration % self.every['saving'] == 0:
                self.aside('saving', SAVING)
            if self.iteration % self.every['validation'] == 0:
                self.aside('validation', VALIDATION / 2)
                self.aside('validation', VALIDATION / 2)  # two sets
        if last == self.plan.total_iter:
            self.aside('saving', SAVING)
            self.aside('validation', VALIDATION)


def test_every_stage_costs_its_own(monkeypatch):
    """With costs handed over and one of everything seen, what is foretold is what comes, but for first steps."""
    run = Run(monkeypatch, **COSTS)
    run.to(26)
    seconds, unknown = run.clock.left()
    before = run.now
    run.to(3 * ITERS)
    assert unknown == 0 and seconds == pytest.approx(run.now - before - 2 * 7.0)
    assert (before - 100) / 26 * (150 - 26) < 0.75 * seconds  # the mean of all steps so far, as BasicSR takes it


def test_without_costs_later_stages_are_named_and_not_guessed(monkeypatch):
    run = Run(monkeypatch)
    assert run.clock.eta() == 'unknown'
    run.to(10)
    assert run.clock.left() == (pytest.approx(40 * 0.1), 2) and run.clock.eta() == '0:00:04 + 2 later stages'
    run.to(60)
    seconds, unknown = run.clock.left()
    assert unknown == 1
    # 40 steps, the checkpoints of 80 and 100, the validations of 75 and 100
    assert seconds == pytest.approx(40 * 0.3 + 2 * SAVING + 2 * VALIDATION)
    assert run.clock.eta().endswith(' + 1 later stage')
    run.to(110)
    before, (seconds, unknown) = run.now, run.clock.left()
    run.to(150)
    assert unknown == 0 and seconds == pytest.approx(run.now - before)
    assert '+' not in run.clock.eta()


def test_a_line_of_the_log_comes_before_what_its_iteration_saves(monkeypatch):
    run = Run(monkeypatch, **COSTS)
    run.to(150)
    for iteration in (120, 125, 140, 149, 150):
        then, seconds = run.logged[iteration]
        assert seconds == pytest.approx(run.now - then), iteration


def test_a_step_that_took_very_long_counts_for_little(monkeypatch):
    run = Run(monkeypatch, **COSTS)
    run.to(30)
    seconds = run.clock.left()[0]
    run.now += 3600.0  # the machine slept
    run.to(31)
    assert run.clock.left()[0] < seconds + 2


def test_what_was_measured_goes_on_with_the_run(monkeypatch):
    run = Run(monkeypatch)
    run.to(120)
    known, state = run.clock.left(), run.clock.state()
    run.restart()
    run.clock.load_state(state, 120)
    run.iteration = 120
    assert run.clock.left() == (pytest.approx(known[0]), 0)
    run.iteration = run.clock.iteration = 41  # back to the first stage, knowing the later ones
    seconds, unknown = run.clock.left()
    before = run.now
    run.to(150)
    assert unknown == 0 and seconds == pytest.approx(run.now - before - 2 * 7)


def test_it_is_never_negative(monkeypatch):
    run = Run(monkeypatch, **COSTS)
    run.to(150)
    run.clock.iteration = 151  # BasicSR's loop leaves one past the last
    assert run.clock.eta() == '0:00:00'


@pytest.mark.parametrize('board', [False, True])
def test_lines_and_scalars_are_basicsrs_but_for_the_time_left(monkeypatch, board, tmp_path):
    class Board:
        def __init__(self):
            self.calls = []

        def add_scalar(self, *arguments):
            self.calls.append(arguments)

    opt = {
        'name': 'experiment',
        'logger': {'print_freq': 1, 'use_tb_logger': board},
        'train': {'total_iter': 150},
    }
    run = Run(monkeypatch, **COSTS)
    loop = Loop()
    loop.model, loop.epoch = types.SimpleNamespace(clock=run.clock), 2
    monkeypatch.setattr(loop, 'listen', lambda: None)
    monkeypatch.setattr(Loop, 'latest', loop)
    found = []
    for cls in (MessageLogger, TrainingLog):
        scalars, lines = Board(), []
        log = cls(opt, 30, scalars)
        log.logger = types.SimpleNamespace(info=lines.append)
        run.clock.iteration = 31
        values = {'stage': 1.0, 'l_g_pix': 0.25, 'out_d_real': -1.5}
        log({'epoch': 2, 'iter': 1234, 'lrs': [1e-4, 2e-4], 'time': 0.125, 'data_time': 0.01, **values})
        found.append((re.sub(r'eta: [^,]*(, -?[\d:]+)?,', 'eta,', lines[0]), scalars.calls))
    assert found[0] == found[1]
    assert len(found[1][1]) == (3 if board else 0)
