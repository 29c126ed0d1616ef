"""Signs of life of whatever takes long: a bar on a terminal, elsewhere a line when nothing was said for ten seconds.

On the ground floor, like :mod:`sdakd.compat`: everything may use it.
"""

from __future__ import annotations

import datetime
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

SILENCE = 10.0  # seconds without a word after which a line is written where there is no terminal
PATIENCE = 1.0  # seconds without a word after which a bar appears on a terminal
TICK = 0.5  # seconds between two looks
BAR = 30  # characters of a bar, at most
WIPE = '\r\x1b[K'  # back to the beginning of the line, and nothing behind it

T = TypeVar('T')
_lock = threading.RLock()
_open: list[Progress] = []  # from the outside in; the innermost one is shown
_spoken = 0.0  # when something was last written
_drawn = False  # whether a bar stands in the terminal's last line
_looking: threading.Thread | None = None


def duration(seconds: float) -> str:
    """``0:07:47``; never negative."""
    return str(datetime.timedelta(seconds=max(0, round(seconds))))


class Progress:
    """What a program is at; it is shown from ``with`` to the end of the block, while no other one is open inside.

    Args:
        what: What is done, such as ``validation of Set5``.
        total: How many there are to do; None: nobody knows.
        unit: What they are, such as ``images``.
        done: Tells how many are done, where :meth:`step` does not.
        left: Tells what is to be said of the time left; default: what the time of those done foretells.
        shown: False: nothing is shown, as on all but the main process of a distributed training.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = '',
        done: Callable[[], int] | None = None,
        left: Callable[[], str] | None = None,
        shown: bool = True,
    ) -> None:
        self.what, self.total, self.unit, self.left = what, total, unit, left
        self.count, self.asked, self.note = 0, done, ''
        self.shown = shown and os.environ.get('RANK', '0') == '0' and os.environ.get('SLURM_PROCID', '0') == '0'
        self.begun = time.monotonic()

    def __enter__(self) -> Progress:
        global _looking, _spoken
        if self.shown:
            with _lock:
                _wipe()
                self.begun = time.monotonic()
                _spoken = _spoken if _open else self.begun  # what opens inside says nothing by that
                _open.append(self)
                if _looking is None or not _looking.is_alive():  # a forked process has no thread
                    _looking = threading.Thread(target=_look, name='progress', daemon=True)
                    _looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, and what is still open inside."""
        with _lock:
            if self in _open:
                _wipe()
                del _open[_open.index(self) :]

    @property
    def done(self) -> int:
        """How many are done."""
        return self.count if self.asked is None else self.asked()

    def step(self, count: int = 1, note: str | None = None) -> None:
        """So many more are done.

        Args:
            count: How many.
            note: What is to be said beside the number from now on.
        """
        self.count += count
        self.note = self.note if note is None else note

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Yields items; one is done when the next one is asked for. It opens and closes itself."""
        with self:
            for item in items:
                yield item
                self.step()

    def __str__(self) -> str:
        """``validation of Set5: 3 of 14 images, 0:00:20, 0:01:13 left``."""
        done = self.done
        spent = time.monotonic() - self.begun
        units = f' {self.unit}' if self.unit else ''
        parts = [] if self.total is None else [f'{done:,d} of {self.total:,d}{units}']
        parts += [self.note] if self.note else []
        parts += [duration(spent)]
        if self.left is not None:
            parts += [self.left()]
        elif self.total is not None and 0 < done <= self.total:
            parts += [f'{duration(spent / done * (self.total - done))} left']
        return f'{self.what}: {", ".join(parts)}'

    def bar(self) -> str:
        """:meth:`__str__` in one line of the terminal, with a bar behind it if there is room."""
        columns, text = shutil.get_terminal_size().columns - 1, str(self)
        room = min(columns - len(text) - 4, BAR)
        if not self.total or room < 10:
            return text[:columns]
        full = min(self.done, self.total) * room // self.total
        return f'{text}  [{"#" * full}{"-" * (room - full)}]'


def sign() -> None:
    """Something is about to be written: a bar makes room for it, and the silence begins anew."""
    global _spoken
    with _lock:
        _wipe()
        _spoken = time.monotonic()


def _wipe() -> None:
    global _drawn
    if _drawn:
        sys.stderr.write(WIPE)
        sys.stderr.flush()
        _drawn = False


def say(line: str) -> None:
    """Writes a line to stderr."""
    with _lock:
        sign()
        sys.stderr.write(f'{line}\n')
        sys.stderr.flush()


def is_open() -> bool:
    """Whether somebody shows already that a program is at work."""
    return bool(_open)


def _hear(_record: logging.LogRecord) -> bool:
    sign()
    return True


logging.getLogger('basicsr').addFilter(_hear)  # a training's log is a sign of life


def _forget() -> None:
    """In a forked process nothing is open, and nobody holds the lock."""
    global _lock
    _lock = threading.RLock()
    _open.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget)


def _look() -> None:
    """What the thread does as long as something is open."""
    global _drawn
    while True:
        time.sleep(TICK)
        with _lock:
            if not _open:
                return
            silence = time.monotonic() - _spoken
            if sys.stderr.isatty() and silence >= PATIENCE:
                sys.stderr.write(WIPE + _open[-1].bar())
                sys.stderr.flush()
                _drawn = True
            elif not sys.stderr.isatty() and silence >= SILENCE:
                say(str(_open[-1]))
