"""How large images may be that commands decode: a small file may hold billions of pixels."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

from sdakd.compat import UserError

MAX_PIXELS = 400_000_000
_most = contextvars.ContextVar('most_pixels', default=MAX_PIXELS)


def most_pixels() -> int:
    """The most pixels of an image that is decoded here."""
    return _most.get()


def start_process(most: int) -> None:
    """Sets :func:`most_pixels` for good, in a process that a command has started."""
    _most.set(most)


@contextlib.contextmanager
def pixel_limit(most: object) -> Iterator[None]:
    """While it lasts, images of more pixels are refused before they are decoded, in processes that it starts as well.

    Raises:
        UserError: It is no number of pixels.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise UserError('--max-pixels', f'write a whole number of pixels such as {MAX_PIXELS}, not {str(most)!r}.')
    before = _most.set(most)
    try:
        yield
    finally:
        _most.reset(before)


def limited(function: Callable) -> Callable:
    """Makes a command keep to its argument ``max_pixels``."""

    @functools.wraps(function)
    def within(*arguments: Any, **options: Any) -> Any:
        with pixel_limit(options.get('max_pixels', MAX_PIXELS)):
            return function(*arguments, **options)

    return within
