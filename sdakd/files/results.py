"""``results.json`` of `sdakd evaluate` and `sdakd bench`, and tables made from rows of text."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from sdakd.compat import UserError, no_file
from sdakd.files.images import write

NAME = 'results.json'
TABLES = {'md': 'pipe', 'tex': 'latex_booktabs'}  # ending -> tabulate's format; CSV is written by csv


def read_results(folder: str | Path, remedy: str = 'move it away or choose another -o') -> dict:
    """The sections ``evaluate`` and ``bench`` of a folder's ``results.json``; empty where there is none.

    Args:
        folder: Where the file is.
        remedy: What to do about a damaged file, the end of the error's sentence.

    Raises:
        UserError: The file is damaged or of another kind.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return {}
    if reason := no_file(path):
        raise UserError(f'{path} {reason}: {remedy}.')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error}): {remedy}.') from None
    if not isinstance(content, dict):
        raise UserError(f'{path} holds no results of evaluate or bench: {remedy}.')
    return content


def write_section(folder: str | Path, section: str, content: dict) -> Path:
    """Replaces one command's section of ``results.json`` and keeps the other's; returns the file's path."""
    path = Path(folder) / NAME
    results = {**read_results(folder), section: content}
    write(path, (json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + '\n').encode())
    return path


def output_folder(folder: str | Path, flag: str = '-o') -> Path:
    """Makes the output folder and checks that it can be written to, before anything is computed.

    Raises:
        UserError: It cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(flag, f'{folder} cannot be written to ({error.strerror}); choose another folder.') from None
    return folder


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = 'simple') -> str:
    """Rows of text as a table: tabulate's ``simple`` for the screen, ``md``, ``tex`` or ``csv``.

    Columns in which every cell is a number, or begins with one, are set flush right; texts stand as they are given.
    """
    if kind == 'csv':
        text = io.StringIO()
        csv.writer(text, lineterminator='\n').writerows([header, *rows])
        return text.getvalue()
    align = ['right' if all(re.match(r'[-+]?(\d|$|inf)', str(cell)) for cell in column) else 'left'
             for column in zip(*rows, strict=True)] or None  # fmt: skip
    return tabulate(rows, header, tablefmt=TABLES.get(kind, kind), colalign=align, disable_numparse=True) + '\n'


def write_tables(
    folder: str | Path, name: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = ''
) -> list[Path]:
    """Writes ``name.md``, ``name.csv`` and ``name.tex`` and returns their paths.

    Args:
        note: A sentence for beneath the table: a paragraph in Markdown, a comment in LaTeX; CSV holds numbers alone.
    """
    notes = {'md': f'\n{note}\n', 'tex': f'% {note}\n', 'csv': ''} if note else {}
    paths = [Path(folder) / f'{name}.{kind}' for kind in ('md', 'csv', 'tex')]
    for path in paths:
        kind = path.suffix[1:]
        write(path, (table(header, rows, kind) + notes.get(kind, '')).encode())
    return paths
