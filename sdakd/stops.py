"""How a command is stopped: Ctrl-C, SIGTERM, SIGHUP (a terminal that closes) and Windows' Ctrl-Break end it in order.

On the ground floor, like :mod:`sdakd.compat`. All of them raise a :class:`KeyboardInterrupt` in the main thread, so
that every ``finally`` runs; its text, if it has one, says what is left behind and how to go on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGBREAK') if hasattr(signal, name))
LEASH = 'SDAKD_LEASH'  # of the environment: what started this process holds the other end of its standard input
_held = 0  # how many held_back() are open
_waiting = False  # whether a signal has come meanwhile


@contextlib.contextmanager
def heard() -> Iterator[list[int]]:
    """While it lasts, the first of :data:`SIGNALS` raises a KeyboardInterrupt, and a second one ends the process.

    A signal that is ignored stays ignored, such as SIGHUP under ``nohup``. Outside of the main thread nothing changes.

    Yields:
        A list that holds the number of the first signal once it has come.
    """
    came: list[int] = []

    def stop(number: int, _frame: object) -> None:
        global _waiting
        if came:
            os._exit(128 + number)
        came.append(number)
        if not _held:
            raise KeyboardInterrupt
        _waiting = True

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            if handler is not None:  # of a handler that Python has not set
                signal.signal(number, handler)


def leave_to_parent() -> None:
    """In a worker process: what is sent to the whole group of a command, as a terminal does, the command alone hears.

    It ends its workers when they have finished what they are at. A SIGTERM to one worker ends that one.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(os, 'setpgrp'):
        os.setpgrp()


@contextlib.contextmanager
def held_back(deaf: bool = False) -> Iterator[None]:
    """While it lasts, a signal waits, and raises its KeyboardInterrupt at the end.

    For the start of processes: Python runs hooks when it forks, and ignores what is raised in them.

    Args:
        deaf: Whether a program that is started meanwhile never hears of a Ctrl-C or a closing terminal.
    """
    global _held, _waiting
    before = None
    if deaf and hasattr(signal, 'pthread_sigmask'):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, set(SIGNALS) - {signal.SIGTERM})
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if before is not None and hasattr(signal, 'pthread_sigmask'):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if _waiting and not _held:
            _waiting = False
            raise KeyboardInterrupt


def spare_helpers() -> None:
    """Starts what Python runs beside spawned worker processes, so that it hears of no Ctrl-C or closing terminal.

    A server and a tracker of semaphores: who lost them would end in tracebacks.
    """
    method = multiprocessing.get_start_method()
    if method == 'fork' or not hasattr(signal, 'pthread_sigmask'):
        return
    from multiprocessing import forkserver, resource_tracker

    with held_back(deaf=True):
        resource_tracker.ensure_running()
        if method == 'forkserver':
            forkserver.ensure_running()


@contextlib.contextmanager
def leaving(text: str) -> Iterator[None]:
    """Says of a command that is stopped inside what it leaves behind and how to go on.

    Args:
        text: What comes behind ``Interrupted: ``. That of the outermost command counts, which the user gave.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(text) from None


def follow_starter() -> None:
    """In a program that :func:`sdakd.files.runs.start` has started: stops when asked to, and ends with its starter.

    Both come through standard input: a byte is a SIGTERM, which Windows has no way to send, and its end says that the
    starter has ended, in whatever way.
    """
    if os.environ.pop(LEASH, None) is None:
        return

    def follow() -> None:
        while os.read(0, 1):
            signal.raise_signal(signal.SIGTERM)
        os._exit(1)

    threading.Thread(target=follow, name='starter', daemon=True).start()
