"""Memory that is used again."""

from __future__ import annotations

import contextlib
import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed() -> bool:
    """Lets this process keep the memory that it frees, for the next tensors; returns whether it can be told to.

    glibc asks the system for every block of more than 32 MiB and gives it back when it is freed, and the system clears
    each page of the next one. Torch has no store of its own on a processor, so that a network's large feature maps cost
    more than what is computed with them: RRDBNet with 8 features takes 2.5 times as long for 1024x1024 pixels. Blocks
    are not moved, so that up to half as much memory again is held. On other systems nothing is changed.
    """
    if not sys.platform.startswith('linux'):
        return False
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        return bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, 2**31 - 1))
    return False
