"""`sdakd fetch`: networks from Real-ESRGAN's releases or, where only a package index answers, from a wheel."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from sdakd import compat
from sdakd.compat import UserError, near

FOLDER = Path('experiments/pretrained_models')  # where option files look


def fetch(name: str, folder: str | os.PathLike = FOLDER, sources: Sequence | None = None) -> Path:
    """Gets an official network as BasicSR's ``.pth``, unless it is there already.

    Args:
        name: One of :data:`sdakd_arch.zoo.MODELS`, with or without ``.pth``.
        folder: Where to put it.
        sources: Where to get it from, :class:`sdakd_arch.download.Release` or ``Wheel``; default: the published ones.

    Returns:
        The file.

    Raises:
        UserError: An unknown name, or no source gives the file; nothing was made under its name then.
    """
    from sdakd_arch.download import obtain
    from sdakd_arch.zoo import sources_of

    path = _target(name, folder)
    if path.is_dir():
        raise UserError(f'-o: {path} is a folder; remove it, or choose another folder.')
    if not path.is_file():
        obtain(path, sources_of(path.name) if sources is None else sources, 'fetch')
    return path


def _target(name: str, folder: str | os.PathLike) -> Path:
    from sdakd_arch.zoo import MODELS

    name = name.removesuffix('.pth')
    if name not in MODELS:
        raise UserError(f'NAME: no official network is called {name}; {near(name, MODELS)}.')
    return Path(folder, f'{name}.pth')


def known(folder: str | os.PathLike = FOLDER) -> str:
    """A table of what can be fetched, and of what is in a folder already."""
    from sdakd_arch.zoo import LICENCE, MODELS

    rows = []
    for name, model in MODELS.items():
        rows.append(
            [
                name,
                model.what,
                f'{model.size / 1e6:.1f} MB' if model.size else '',
                LICENCE,
                'release, package index' if model.wheel else 'release',
                'here' if Path(folder, f'{name}.pth').is_file() else '',
            ]
        )
    return tabulate(rows, ['name', 'what', 'size', 'licence', 'from', str(folder)], disable_numparse=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument('names', nargs='*', metavar='NAME', help='networks to fetch (default: list what is known)')
    where = f'folder to put them into (default: {FOLDER}, where option files look)'
    parser.add_argument('-o', '--output', default=str(FOLDER), metavar='FOLDER', help=where)


def run(args: argparse.Namespace) -> int:
    """Fetches what is named, one after the other, or lists what is known.

    Raises:
        UserError: See :func:`fetch`; unknown names are refused before anything is fetched.
    """
    compat.import_basicsr()
    targets = {name: _target(name, args.output) for name in args.names}
    if not targets:
        sys.stdout.write(known(args.output) + '\n')
    for name, path in targets.items():
        said = 'was there already' if path.is_file() else 'fetched'
        fetch(name, args.output)
        sys.stdout.write(f'{path}: {said}, {path.stat().st_size / 1e6:.1f} MB\n')
    return 0
