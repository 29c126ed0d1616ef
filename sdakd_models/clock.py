"""How long a run still takes, from what its steps have taken: every stage costs something else."""

from __future__ import annotations

import statistics
import time
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager

from basicsr.utils import MessageLogger
from basicsr.utils.dist_util import master_only

from sdakd.progress import Progress, duration
from sdakd_models.loop import Loop
from sdakd_models.stages import Plan

FIRST = 3  # steps of a stage whose time tells nothing: memory is allocated, algorithms are chosen
RECENT = 200  # steps that are averaged; the lazy penalties of discriminators are among them
OUTLIER = 10  # times the median that a step counts at most: a machine may have slept


class Clock:
    """Takes the time of every step, and of what is done between two of them.

    Args:
        plan: The stages. Those with ``seconds`` are known before they are reached.
        asides: What interrupts steps (``saving``, ``validation``), to how many iterations lie between two of them. It
            is done once more at the end of the run.
    """

    def __init__(self, plan: Plan, asides: Mapping[str, int]) -> None:
        self.plan, self.frequencies = plan, dict(asides)
        stages = zip(plan.names, plan.stages, strict=True)
        self.known = {name: stage.seconds for name, stage in stages if stage.seconds is not None}
        self.asides: dict[str, dict[int, float]] = {kind: {} for kind in asides}
        self.iteration, self.stage = 0, ''
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.last: float | None = None
        self.away = 0.0  # seconds of asides since the last step

    def lap(self, iteration: int) -> None:
        """A step has ended; of several students, the first one's counts, and with it all that lies between two."""
        if iteration == self.iteration and self.last is not None:
            return
        now, moment = time.perf_counter(), self.plan.at(iteration)
        if moment.name != self.stage:
            self.seconds()  # the stage that has ended stays known
            self.stage, self.first = moment.name, []
            self.recent.clear()
        elif self.last is not None:
            spent = now - self.last - self.away
            if len(self.first) < FIRST:
                self.first.append(spent)
            else:
                self.recent.append(spent)
        self.iteration, self.last, self.away = iteration, now, 0.0

    @contextmanager
    def aside(self, kind: str):
        """Takes the time of what is done between two steps."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            self.away += spent
            if kind in self.asides:
                times = self.asides[kind]
                times[self.iteration] = times.get(self.iteration, 0.0) + spent

    def seconds(self) -> dict[str, float]:
        """Seconds of an iteration by stage, as far as they are known; those of this stage as they are lately."""
        found, recent = dict(self.known), list(self.recent)  # another thread may ask while a step ends
        if recent:
            most = OUTLIER * statistics.median(recent)
            found[self.stage] = self.known[self.stage] = statistics.fmean(min(each, most) for each in recent)
        elif self.first:
            found.setdefault(self.stage, statistics.median(self.first))
        return found

    def left(self) -> tuple[float | None, int]:
        """Seconds that the run still takes after its last step, and how many later stages are not in them.

        The first is None where nothing is known of this stage.
        """
        moment, seconds = self.plan.at(self.iteration), self.seconds()
        if moment.name not in seconds:
            return None, 0
        here, total = self.iteration, self.plan.total_iter
        ahead = [(name, max(end - stage.iters, here), end)
                 for name, stage, end in zip(self.plan.names, self.plan.stages, self.plan.ends, strict=True)
                 if end > here]  # fmt: skip
        known = [each for each in ahead if each[0] in seconds]
        found, unknown = sum((end - begin) * seconds[name] for name, begin, end in known), len(ahead) - len(known)
        for kind, times in self.asides.items():
            if times:
                every = self.frequencies[kind]
                count = sum(_multiples(every, begin, end) for _, begin, end in known)
                count += here % every == 0 and here not in times  # the log comes before them
                count += not unknown and here <= total
                found += count * statistics.fmean(list(times.values())[-5:])
        return found, unknown

    def eta(self) -> str:
        """``0:07:47``, ``0:02:03 + 2 later stages`` where their cost is not known, or ``unknown``."""
        found, unknown = self.left()
        later = f' + {unknown} later stage{"s" if unknown > 1 else ""}' if unknown else ''
        return 'unknown' if found is None else duration(found) + later

    def state(self) -> dict:
        """What a training state keeps of it."""
        asides = {kind: statistics.fmean(times.values()) for kind, times in self.asides.items() if times}
        return {'seconds': self.seconds(), 'asides': asides}

    def load_state(self, state: Mapping, iteration: int) -> None:
        """Goes on after an iteration with what :meth:`state` returned; it comes before what the options say."""
        self.iteration = iteration
        self.known |= {name: value for name, value in state.get('seconds', {}).items() if name in self.plan.names}
        for kind, spent in state.get('asides', {}).items():
            if kind in self.asides:
                self.asides[kind][iteration] = spent


def _multiples(frequency: int, after: int, end: int) -> int:
    """How many iterations from ``after`` + 1 to ``end`` BasicSR's loop finds at a frequency."""
    every = int(frequency)
    also = [each for each in getattr(frequency, 'also', ()) if after < each <= end and each % every]
    return end // every - after // every + len(also)


class TrainingLog(MessageLogger):
    """BasicSR's message logger with the time left as the run's :class:`Clock` knows it, and a sign of life between.

    BasicSR takes the mean of all steps so far for the time of those to come. Lines, TensorBoard's names and arguments
    are the same.
    """

    def __init__(self, opt: Mapping, start_iter: int = 1, tb_logger=None) -> None:
        super().__init__(opt, start_iter, tb_logger)
        self.loop = Loop.latest
        self.loop.tb_logger = tb_logger
        self.clock = clock = self.loop.model.clock
        clock.iteration = start_iter
        eta = lambda: f'eta: {clock.eta()}'  # noqa: E731
        progress = Progress(opt['name'], self.max_iters, 'iterations', lambda: clock.iteration, eta)
        progress.__enter__()
        weakref.finalize(self, progress.close)  # BasicSR's loop does not say when it ends
        self.loop.listen()

    @master_only
    def __call__(self, log_vars: dict) -> None:
        """Logs an iteration.

        Args:
            log_vars: ``epoch``, ``iter``, ``lrs``, ``time`` and ``data_time`` (seconds of an iteration), and values.
        """
        values = dict(log_vars)
        _, iteration, rates = (values.pop(key) for key in ('epoch', 'iter', 'lrs'))  # one long epoch to BasicSR
        spent, data = values.pop('time', None), values.pop('data_time', None)
        rates = ''.join(f'{rate:.3e},' for rate in rates)
        epoch = self.loop.epoch_of(iteration)
        parts = [f'[{self.exp_name[:5]}..][epoch:{epoch:3d}, iter:{iteration:8,d}, lr:({rates})]']
        if spent is not None:
            parts.append(f'[eta: {self.clock.eta()}, time (data): {spent:.3f} ({data:.3f})]')
        parts += [f'{name}: {value:.4e}' for name, value in values.items()]
        if self.use_tb_logger and 'debug' not in self.exp_name:
            for name, value in values.items():
                self.tb_logger.add_scalar(f'losses/{name}' if name.startswith('l_') else name, value, iteration)
        self.logger.info(' '.join(parts) + ' ')
