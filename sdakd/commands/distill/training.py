"""The training of a distillation: a child process on the option file, and its progress."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sdakd.compat import UserError

ITERATION = re.compile(r'iter: *([\d,]+), .* stage: (\S+ \S+)')
SHOWN = ('Stage ', '# psnr', 'WARNING')
SILENCE = 10  # seconds after which a line is printed where there is no terminal


@dataclass
class Progress:
    """How far a training is, in the seconds that its iterations were measured to take.

    Args:
        iters: Iterations by stage, in order.
        seconds: Of an iteration by stage.
    """

    iters: Mapping[str, int]
    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        return self.after(sum(self.iters.values()))

    def after(self, iteration: int) -> float:
        """Seconds that the first iterations take."""
        spent = 0.0
        for stage, count in self.iters.items():
            spent += min(iteration, count) * self.seconds[stage]
            iteration -= min(iteration, count)
        return spent


def clock(seconds: float) -> str:
    """``4:05`` or ``1:04:05``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f'{hours}:{rest // 60:02d}:{rest % 60:02d}' if hours else f'{rest // 60}:{rest % 60:02d}'


def train(file: Path, folder: Path, progress: Progress) -> Path:
    """Runs a training to its end, from its last checkpoint where there is one; returns the student's file.

    Args:
        file: The option file.
        folder: Receives ``experiments/``.
        progress: Of its stages.

    Raises:
        UserError: It broke.
        KeyboardInterrupt: It was interrupted.
    """
    name = file.stem
    student = folder / 'experiments' / name / 'models/net_g_latest.pth'
    if student.is_file():
        return student
    command = [sys.executable, '-m', 'sdakd.cli', 'train', '-opt', str(file.resolve()), '--auto_resume']
    lines: list[str] = []
    terminal = sys.stderr.isatty()
    begun, first, said = time.monotonic(), None, time.monotonic()
    bar = tqdm(
        total=round(progress.total), disable=not terminal, bar_format='{desc} {percentage:3.0f}%|{bar}|{postfix}'
    )
    bar.set_description(name)
    with (
        bar,
        subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding='utf-8',
            errors='replace',
        ) as process,
    ):
        try:
            for line in process.stdout:
                lines = [*lines[-30:], line]
                text = re.sub(r'^\S+ \S+ ', '', line.rstrip())
                if any(mark in text for mark in SHOWN):
                    tqdm.write('  ' + text.replace('INFO: ', '').strip(), file=sys.stdout)
                    sys.stdout.flush()
                found = ITERATION.search(line)
                if not found:
                    continue
                done = progress.after(int(found[1].replace(',', '')))
                now = time.monotonic()
                first = first or (now, done)
                # what was measured before the start, corrected by what it has taken since
                pace = (now - first[0]) / (done - first[1]) if done - first[1] > 20 else 1.0
                left = clock((progress.total - done) * pace)
                bar.n = round(min(done, bar.total))
                bar.set_postfix_str(f' {found[2]}, {left} left')
                if not terminal and now - said >= SILENCE:
                    said = now
                    sys.stdout.write(f'  {found[2]}, {left} left\n')
                    sys.stdout.flush()
        except KeyboardInterrupt:
            process.wait()
            raise KeyboardInterrupt('give the same command again to go on') from None
    if process.returncode or not student.is_file():
        sys.stderr.write(''.join(lines[-15:]))
        raise UserError(
            str(file), 'its training broke; mend what the lines above say, and give the same command again.'
        )
    bar.close()
    sys.stdout.write(f'  {name}: trained, {clock(time.monotonic() - begun)}\n')
    return student
