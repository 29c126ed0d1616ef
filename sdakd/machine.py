"""What systems have ways of their own for: processor cores, memory, and processes by their number.

On the ground floor, like :mod:`sdakd.compat`.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import psutil


def shown(path: str | os.PathLike) -> str:
    """A path from the current folder, as people read it; absolute where it lies on another drive of Windows."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return os.path.abspath(path)


def refused_letters(name: str, system: str = os.name) -> str:
    """The letters of a name that no file or folder may have on a system; of Windows, where a colon hides the file."""
    return ' '.join(letter for letter in '<>:"|?*' if letter in name) if system == 'nt' else ''


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def lives(pid: int) -> bool:
    """Whether a process of this machine lives; one that has ended and that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:  # it is somebody else's
        return True


def family(pid: int) -> list[psutil.Process]:
    """The processes that a process has started, and theirs."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def peak_memory(pid: int | None = None) -> float | None:
    """The most memory in MiB that a living process has held since its program began; None where no system says it.

    Args:
        pid: Its number; None: this process.
    """
    # Linux's getrusage knows the peak of whoever started a process as well
    with contextlib.suppress(OSError):
        found = re.search(r'VmHWM:\s+(\d+) kB', Path(f'/proc/{pid or "self"}/status').read_text(encoding='utf-8'))
        return int(found[1]) / 2**10 if found else None
    with contextlib.suppress(psutil.Error, AttributeError):
        return psutil.Process(pid).memory_info().peak_wset / 2**20  # Windows
    with contextlib.suppress(ImportError):
        import resource

        if pid is None:  # macOS, in bytes
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return None
