"""Memory that is used again."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -4, -3, -1  # of mallopt(3)
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}  # what glibc comes to with large blocks


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """While it lasts, memory that this process frees is kept for its next tensors; tells whether that can be had.

    glibc asks the system for every block of more than 32 MiB and gives it back when it is freed, and the system clears
    each page of the next one. Torch has no store of its own on a processor, so that a network's large feature maps cost
    more than what is computed with them: RRDBNet with 8 features takes 2.5 times as long for 1024x1024 pixels. At the
    end, what is free goes back to the system. Elsewhere than on Linux with glibc, nothing is changed.
    """
    library = None
    if sys.platform.startswith('linux'):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            library = ctypes.CDLL(None)
            if not (library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, 2**31 - 1)):
                library = None
    try:
        yield library is not None
    finally:
        if library is not None:
            for key, value in USUAL.items():
                library.mallopt(key, value)
            library.malloc_trim(0)
