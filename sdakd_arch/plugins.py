"""Packages of third parties: imported by name, so that what they register can be looked up.

A plug-in registers architectures, losses and metrics with BasicSR's registries and terms with
:func:`sdakd_models.terms.register_term`, as this project's own modules do. It is installed with an entry point of the
group ``sdakd.plugins``, and then every command knows it, or the option file names it under ``imports:``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable

from sdakd.compat import UserError

GROUP = 'sdakd.plugins'


@functools.cache
def import_entry_points() -> None:
    """Imports what installed packages name under the entry-point group ``sdakd.plugins``; once in a process.

    Raises:
        UserError: A plug-in fails; with its name and module.
    """
    for entry in sorted(importlib.metadata.entry_points(group=GROUP)):
        _run(entry.load, f'the plug-in {entry.name}', entry.module, 'update or uninstall it')


def import_modules(names: object) -> None:
    """Imports the modules of ``imports:``. The current folder is searched last, and stays on the path.

    The folder of the option file is not searched: who only hands over an option file must not be able to have code
    beside it executed. What runs is what the user has installed, or what lies where the user works.

    Raises:
        UserError: No list of names, or a module that is missing or fails; with its name.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'imports: write a list of modules, [my_package], not {names!r}.')
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        _run(lambda name=name: importlib.import_module(name), 'imports', name, 'correct its name or install it')


def _run(load: Callable[[], object], where: str, module: str, remedy: str) -> None:
    try:
        load()
    except Exception as error:  # the code of someone else may raise anything
        reason = ' '.join(str(error).split()) or 'without a text'
        raise UserError(
            f'{where}: the module {module} cannot be imported ({type(error).__name__}: {reason[:200]}); {remedy}, '
            f'`python -c "import {module}"` shows where it fails.'
        ) from None
