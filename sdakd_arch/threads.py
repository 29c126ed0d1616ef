"""How many threads of the CPU a piece of work is best done with: measured, because other programs are at work too.

torch takes a thread per core. Where another program keeps a core busy, all threads of an operation wait for the one
that shares it, and small tensors do not repay the waiting between them on any machine.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping

import torch

NEAR = 1.05  # times the least time: fewer threads that are as good as that leave cores to others
STARTING = 0.1  # seconds that it may take to make threads
HOPELESS = 2.0  # times the least time: still more threads are not tried


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure_threads(work: Callable[[], object], counts: Iterable[int], seconds: float) -> dict[int, float]:
    """Seconds that a piece of work takes, by number of threads; the median of rounds in which all numbers take turns.

    Args:
        work: It is called again and again.
        counts: Numbers of threads, ascending. Larger ones are left out when one takes twice the least time.
        seconds: The time to spend; every number has one turn at least.
    """
    begun, times = time.perf_counter(), {}
    for count in counts:
        torch.set_num_threads(count)
        times[count] = [_timed(work)]
        least = min(values[0] for values in times.values())
        if times[count][0] < HOPELESS * least + STARTING:  # threads are made when they are first needed
            times[count] = [_timed(work)]
        if times[count][0] > HOPELESS * least:
            break
    while len(times) > 1:
        for count, values in times.items():
            if time.perf_counter() - begun > seconds:
                return {count: statistics.median(values) for count, values in times.items()}
            torch.set_num_threads(count)
            work()  # threads of another number must come to rest first
            values.append(_timed(work))
    return {count: statistics.median(values) for count, values in times.items()}


def fewest(times: Mapping[int, float]) -> int:
    """The least number of threads whose time is near the best one."""
    return min(count for count, value in times.items() if value <= NEAR * min(times.values()))


def _say(line: str) -> None:
    sys.stderr.write(line + '\n')


def threads_of(count: int) -> str:
    """``1 thread``, ``2 threads``."""
    return f'{count} thread{"s" if count > 1 else ""}'


def choose_threads(
    work: Callable[[], object],
    seconds: float = 1.0,
    *,
    each: str = 'a step',
    processes: int = 1,
    say: Callable[[str], None] = _say,
) -> int:
    """Sets the number of threads that torch computes with to the best one for a piece of work, and says so in a line.

    ``2 threads: 0.14 s a step (1: 0.25 s, 4: 0.30 s)``. The environment's ``OMP_NUM_THREADS`` is respected: then
    nothing is measured.

    Args:
        work: A small piece of the work to come, on the CPU. It is called some times with each of 1, 2, 4, ... and all
            threads.
        seconds: About how long to measure.
        each: What the piece of work is called in the line.
        processes: How many processes share the machine.
        say: Takes the line; default: stderr.

    Returns:
        The number of threads, the fewest whose time is within 5 % of the best.
    """
    if os.environ.get('OMP_NUM_THREADS'):
        count = torch.get_num_threads()
        say(f'{threads_of(count)}, as OMP_NUM_THREADS says')
        return count
    most = max(1, torch.get_num_threads() // processes)
    counts = sorted({*(2**power for power in range(most.bit_length())), most})
    times = measure_threads(work, counts, seconds) if most > 1 else {}
    chosen = fewest(times) if times else 1
    torch.set_num_threads(chosen)
    others = ', '.join(f'{count}: {value:.2g} s' for count, value in times.items() if count != chosen)
    found = f': {times[chosen]:.2g} s {each}{f" ({others})" if others else ""}' if times else ''
    say(f'{threads_of(chosen)}{found}')
    return chosen
