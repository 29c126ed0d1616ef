"""`sdakd fetch`: networks from Real-ESRGAN's releases or, where only a package index answers, from a wheel."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from sdakd import compat, stops
from sdakd.commands.interface import Flags, Outcome
from sdakd.compat import UserError, near

FOLDER = Path('experiments/pretrained_models')  # where option files look


@dataclass
class Fetched(Outcome):
    """What was fetched, or what can be.

    Args:
        files: The files by name, in the order asked for.
        lines: For people.
    """

    files: dict[str, Path]
    lines: list[str]

    def __str__(self) -> str:
        return ''.join(f'{line}\n' for line in self.lines)


@stops.leaving('give the same command again to go on with what has come')
def fetch(names: str | Sequence[str] = (), output: str | os.PathLike = FOLDER) -> Fetched:
    """Gets official networks as BasicSR's ``.pth``, or lists what is known where no name is given.

    Args:
        names: Of :data:`sdakd_arch.zoo.MODELS`, with or without ``.pth``.
        output: The folder to put them into.

    Raises:
        UserError: An unknown name, before anything is fetched, or no source gives a file.
    """
    compat.import_basicsr()
    names = [names] if isinstance(names, str) else names
    targets = {name: _target(name, output) for name in names}
    lines = [] if targets else [known(output)]
    for name, path in targets.items():
        said = 'was there already' if path.is_file() else 'fetched'
        fetch_one(name, output)
        lines.append(f'{path}: {said}, {path.stat().st_size / 1e6:.1f} MB')
    return Fetched(targets, lines)


def fetch_one(name: str, folder: str | os.PathLike = FOLDER, sources: Sequence | None = None) -> Path:
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
        raise UserError('-o', f'{path} is a folder; remove it, or choose another folder.')
    if not path.is_file():
        obtain(path, sources_of(path.name) if sources is None else sources, 'fetch')
    return path


def _target(name: str, folder: str | os.PathLike) -> Path:
    from sdakd_arch.zoo import MODELS

    name = name.removesuffix('.pth')
    if name not in MODELS:
        raise UserError('NAME', f'no official network is called {name}; {near(name, MODELS)}.')
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
    """Adds the flags."""
    add = Flags(parser, fetch)
    add('names', nargs='*', metavar='NAME', help='networks to fetch (default: list what is known)')
    add(
        '-o', '--output', metavar='FOLDER', help='folder to put them into (default: {default}, where option files look)'
    )
