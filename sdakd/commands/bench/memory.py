"""The memory that a model takes on a processor, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from sdakd import stops
from sdakd.compat import import_basicsr

import_basicsr()  # here, because a server process imports this module once for all measurements

from sdakd.commands.bench.backends import GRAPHS, noise, open_model, start  # noqa: E402


def restart_peak() -> bool:
    """Has the peak of this process begin anew (proc(5)); False where that is not possible."""
    try:
        Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')
    except OSError:
        return False
    return True


def status(key: str) -> int:
    """A size in KiB from Linux's account of this process."""
    for line in Path('/proc/self/status').read_text(encoding='utf-8').splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1])
    raise OSError(f'no {key}')


def _measure_growth(
    source: str, graph: str | None, backend: str, precision: str, size: int, threads: int
) -> float | None:
    """In a process of its own: see :func:`peak_growth`."""
    if not restart_peak():
        return None
    torch.set_num_threads(threads)
    import sdakd_arch.inference.fast  # noqa: F401  what is imported is not the model's

    if backend in GRAPHS:
        __import__(backend)
    before = status('VmRSS')
    opened = None if backend in GRAPHS else open_model(source)
    with torch.no_grad():
        run = start(backend, precision, opened, Path(graph) if graph else None, noise(size), threads)
        del opened  # the backend has its own weights
        restart_peak()
        for _ in range(2):
            run()
    return (status('VmHWM') - before) / 1024


def peak_growth(source: str, graph: Path | None, backend: str, precision: str, size: int, threads: int) -> float | None:
    """The growth of a process's resident memory, in MiB, at its peak while a ready model runs.

    Measured in a process of its own, from before the model is opened (its packages are imported already) to the peak of
    two runs: weights, what the runtime keeps, and activations. None where it cannot be told: not Linux; torch.compile,
    whose compiler lives in the same process; or the process ends.
    """
    if backend == 'compile' or not sys.platform.startswith('linux'):
        return None
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['sdakd.commands.bench.memory', 'sdakd.files.generators'])  # imported once for all
    arguments = (source, str(graph) if graph else None, backend, precision, size, threads)
    try:
        with ProcessPoolExecutor(1, mp_context=context, initializer=stops.leave_to_parent) as pool:
            with stops.held_back(deaf=True):  # what is started here hears of no Ctrl-C, which its parent does
                growth = pool.submit(_measure_growth, *arguments)
            return growth.result()
    except Exception:  # the same failure has been reported where it was timed
        return None
