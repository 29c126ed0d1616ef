"""SDAKD for BasicSR: distils super-resolution GANs into narrow students, as a plugin of BasicSR.

The functions below are what the commands of the same names call, see docs/python.md. They are imported when they are
first asked for: ``import sdakd`` loads neither torch nor BasicSR.
"""

import importlib

from sdakd.compat import UserError
from sdakd.version import VERSION

__version__ = VERSION
FUNCTIONS = tuple(
    'bench bench_train card compare demo distill doctor evaluate export fetch init link models options publish report '
    'upscale'.split()
)
__all__ = ['UserError', *FUNCTIONS]


def __getattr__(name: str) -> object:
    if name not in FUNCTIONS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.commands.{name}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *FUNCTIONS])
