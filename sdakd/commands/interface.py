"""What every command is made of: a function with typed arguments, a parser that fills them in, and an outcome.

A module of a command has ``add_arguments(parser)``, which says with :class:`Flags` which function the command is. Its
defaults are those of the function's signature, and stand nowhere else.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from sdakd.compat import UserError, near

MOST_THREADS, MOST_SEED = 4096, 2**32 - 1


class Outcome:
    """What a command did. ``str()`` is what the command line shows of it."""

    status = 0  # of the process

    def __str__(self) -> str:
        return ''

    def check(self) -> None:
        """Checks that nothing was left out.

        Raises:
            UserError: Something was, such as an image that cannot be used; everything else was done.
        """


class Flags:
    """Adds the arguments of a function to a parser, one by one.

    Args:
        parser: Of the command. It gets ``function`` among its values, every argument by its name, and --debug.
        function: What the command calls; it returns an :class:`Outcome`.
    """

    def __init__(self, parser: argparse.ArgumentParser, function: Callable[..., Outcome]) -> None:
        self.parser, self.parameters = parser, inspect.signature(function).parameters
        parser.set_defaults(function=function)
        shows = 'show where an unexpected error comes from (also: SDAKD_DEBUG=1)'
        parser.add_argument('--debug', action='store_true', default=argparse.SUPPRESS, help=shows)

    def __call__(self, *names: str, help: str, to: Any = None, **options: Any) -> None:
        """Adds a flag; ``dest`` is the argument's name. It is required if the argument has no default.

        Args:
            help: ``{default}`` stands for the default.
            to: A group of the parser, instead of the parser.
        """
        action = (to or self.parser).add_argument(*names, **options)
        default = self.parameters[action.dest].default
        if default is inspect.Parameter.empty:
            action.required = True
        else:
            action.default = default
        shown = ' '.join(map(str, default)) if isinstance(default, tuple) else default
        action.help = help.replace('{default}', str(shown)).replace('%', '%%')


def number(text: str) -> int | float | str:
    """Reads a number of a flag; a text that is none stays one, and the function refuses it in one sentence."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def one_of(value: str, known: Iterable[str], where: str) -> None:
    """Checks that an argument is one of the known ones.

    Raises:
        UserError: It is not; with near names.
    """
    if value not in known:
        raise UserError(where, f'{value} is unknown; {near(value, known)}.')


def whole(value: object, where: str, least: int = 0, most: int | None = None) -> int:
    """Checks that an argument is a whole number.

    Raises:
        UserError: It is none, or less than ``least`` or more than ``most``.
    """
    fits = not isinstance(value, bool) and re.fullmatch(r'\d+', str(value)) and int(value) >= least
    if not fits or (most is not None and int(value) > most):
        limits = f'of at least {least}' if most is None or not fits else f'from {least} to {most}'
        raise UserError(where, f'write a whole number {limits}, not {str(value)!r}.')
    return int(value)
