"""The training of a distillation: a child process on the option file, and its progress."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdakd.compat import UserError
from sdakd.files.runs import end, start
from sdakd.progress import Progress, duration, sign

ITERATION = re.compile(r'iter: *([\d,]+), .* stage: (\S+ \S+)')
SHOWN = ('Stage ', '# psnr', 'WARNING', ' thread')
STEADY = 20  # seconds of training after which its pace is known better than from before it started


@dataclass
class Course:
    """How far a training is, in the seconds that its iterations were measured to take.

    Args:
        iters: Iterations by stage, in order.
        seconds: Of an iteration by stage.
    """

    iters: Mapping[str, int]
    seconds: Mapping[str, float]
    iteration: int = 0
    first: tuple[float, float] | None = field(default=None, repr=False)  # time and seconds done, when it was first seen

    @property
    def total(self) -> float:
        """Seconds of all."""
        return self.after(sum(self.iters.values()))

    def after(self, iteration: int) -> float:
        """Seconds that the first iterations take."""
        spent = 0.0
        for stage, count in self.iters.items():
            spent += min(iteration, count) * self.seconds[stage]
            iteration -= min(iteration, count)
        return spent

    def reach(self, iteration: int) -> None:
        """The training is at this iteration."""
        self.iteration = iteration
        self.first = self.first or (time.monotonic(), self.after(iteration))

    def left(self) -> str:
        """The time left: what was measured before the start, corrected by what it has taken since."""
        done, pace = self.after(self.iteration), 1.0
        if self.first and done - self.first[1] > STEADY:
            pace = (time.monotonic() - self.first[0]) / (done - self.first[1])
        return f'{duration((self.total - done) * pace)} left'


def train(file: Path, folder: Path, course: Course) -> Path:
    """Runs a training to its end, from its last checkpoint where there is one; returns the student's file.

    Args:
        file: The option file.
        folder: Receives ``experiments/``.
        course: Of its stages.

    Raises:
        UserError: It broke.
        KeyboardInterrupt: After it was ended.
    """
    student = folder / 'experiments' / file.stem / 'models/net_g_latest.pth'
    if student.is_file():
        return student
    command = [sys.executable, '-m', 'sdakd.cli', 'train', '-opt', str(file.resolve()), '--auto_resume']
    streams = {'stdout': subprocess.PIPE, 'encoding': 'utf-8', 'errors': 'replace'}
    lines: list[str] = []
    begun = time.monotonic()
    progress = Progress(
        file.stem, sum(course.iters.values()), 'iterations', done=lambda: course.iteration, left=course.left
    )
    with progress, start(command, folder, **streams) as process:
        try:
            for line in process.stdout:
                lines = [*lines[-30:], line]
                text = re.sub(r'^\S+ \S+ ', '', line.rstrip()).replace('INFO: ', '')
                if found := ITERATION.search(line):
                    course.reach(int(found[1].replace(',', '')))
                    progress.note = f'stage {found[2]}'
                elif any(mark in text for mark in SHOWN):
                    sign()
                    sys.stdout.write(f'  {text.strip()}\n')
                    sys.stdout.flush()
        except BaseException:  # such as a Ctrl-C
            end([process])
            raise
    if process.returncode or not student.is_file():
        sys.stderr.write(''.join(lines[-15:]))
        what = 'its training broke; mend what the lines above say, and give the same command again.'
        raise UserError(str(file), what)
    sys.stdout.write(f'  {file.stem}: trained in {duration(time.monotonic() - begun)}\n')
    return student
