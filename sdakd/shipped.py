"""The option files that come with this project: found by name, in a checkout and in an installed wheel alike."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sdakd.compat import UserError, near

SCHEMA = 'schema.json'  # beside the option files; their first line names it, for editors
# the schema is found from the place of the file: in a copy elsewhere the line would lead nowhere
_SCHEMA_LINE = re.compile(r'^# yaml-language-server: \$schema=(?!/|\w+:).*\n', re.MULTILINE)


def options_folder() -> Path:
    """The folder of this installation's option files: inside the package, or beside it in a checkout."""
    inside = Path(__file__).resolve().parent / 'options'
    return inside if inside.is_dir() else inside.parents[1] / 'options'


def shipped_files() -> dict[str, Path]:
    """Every option file by its name, its path in the folder without ending (``methods/fakd``), folder by folder.

    Raises:
        UserError: The installation has none.
    """
    folder = options_folder()
    paths = sorted(folder.rglob('*.yml'), key=lambda path: (path.parent, path.stem))
    if not paths:
        raise UserError(f'the option files of this plugin are missing ({folder}): install it again.')
    return {path.relative_to(folder).with_suffix('').as_posix(): path for path in paths}


def find_shipped(name: str) -> Path | None:
    """The option file of a name with or without its folder, ``options/`` and ``.yml``; None if there is none."""
    name, files = _plain(name), shipped_files()
    return next((path for known, path in files.items() if name in (known, known.rpartition('/')[2])), None)


def near_shipped(name: str) -> str:
    """A clause for an error message: which option files have a name like this one."""
    names = list(shipped_files())
    known = names if '/' in name else [each.rpartition('/')[2] for each in names]
    clause = near(_plain(name), known)
    return clause if clause.startswith('did you mean') else '`sdakd options` lists those that ship'


def _plain(name: str) -> str:
    return re.sub(r'^(\./)?options/|\.yml$', '', name)


def option_file(path: str) -> str:
    """What ``-opt`` means: the file of this path or, where there is none, the option file that ships under this name.

    Raises:
        UserError: There is neither; with near names.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        return path
    found = find_shipped(path)
    if found is None:
        reason = 'Is a directory' if os.path.isdir(path) else 'No such file or directory'
        raise UserError('-opt', f'{path} cannot be read ({reason}), and none of this name ships; {near_shipped(path)}.')
    return str(found)


def without_schema_line(text: str) -> str:
    """The text of an option file without the line that leads an editor from its old place to the schema."""
    return _SCHEMA_LINE.sub('', text)
