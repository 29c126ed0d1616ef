"""`sdakd options`: the option files that ship, listed and printed, and the schema by which editors check one."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import yaml
from tabulate import tabulate

from sdakd import compat
from sdakd.commands.interface import Flags, Outcome
from sdakd.compat import UserError
from sdakd.shipped import find_shipped, near_shipped, options_folder, shipped_files, without_schema_line
from sdakd.version import VERSION

WIDTH = 118  # of the list
LINE = 90  # characters of a mapping in one line


@dataclass
class Shown(Outcome):
    """A list, an option file or the schema.

    Args:
        text: As it is printed.
    """

    text: str

    def __str__(self) -> str:
        return self.text


def options(name: str | None = None, *, schema: bool = False) -> Shown:
    """Lists the option files that ship, gives one of them complete, or the JSON schema of option files.

    Args:
        name: Of a file, with or without folder and ``.yml``: ``sdakd_realesrgan_x4``, ``methods/fakd``. It is given
            with all that it extends, so that a copy needs no other file.
        schema: Give the schema.

    Raises:
        UserError: No option file has this name; with near names.
    """
    if schema:
        if name is not None:
            raise UserError('--schema', f'it is the same for all option files; leave {name} out.')
        compat.import_basicsr()
        from sdakd.commands.options.schema import text

        return Shown(text())
    if name is None:
        return Shown(_table())
    found = find_shipped(name)
    if found is None:
        raise UserError('NAME', f'no option file that ships is called {name}; {near_shipped(name)}.')
    compat.import_basicsr()
    return Shown(complete(found))


def _table() -> str:
    rows, last = [], ''
    for name, path in shipped_files().items():
        folder = name.rpartition('/')[0]
        if folder != last:
            rows.append(['', ''])
            last = folder
        rows.append([name, purpose(path.read_text(encoding='utf-8'))])
    table = tabulate(rows, tablefmt='plain', maxcolwidths=[None, WIDTH - max(len(name) for name, _ in rows)])
    end = '`sdakd train -opt NAME` trains on one, `sdakd options NAME > FILE` makes it a file of your own.'
    return f'{table}\n\n{end}\n'


def purpose(text: str) -> str:
    """The first sentence of the comment at the top of an option file."""
    paragraph = itertools.takewhile(str.strip, (line.removeprefix('#') for line in _header(text)))
    return ' '.join(' '.join(paragraph).split()).partition('. ')[0].removesuffix('.') + '.'


def _header(text: str) -> list[str]:
    """The comment at the top of an option file, line by line."""
    return list(itertools.takewhile(lambda line: line.startswith('#'), without_schema_line(text).splitlines()))


def complete(path: Path) -> str:
    """The text of an option file that needs no other: as it stands, or merged into what it extends.

    Comments beside keys stay where a file extends none; of others, the comment at the top does.
    """
    from sdakd_models.reader import read_merged, read_yaml

    text = path.read_text(encoding='utf-8')
    name = path.relative_to(options_folder()).as_posix()
    if 'extends' not in read_yaml(path):
        return f'# options/{name} of sdakd {VERSION}\n#\n{without_schema_line(text)}'
    blocks = [_Dumper.text({key: value}) for key, value in read_merged(path).items()]
    body = ''.join(f'\n{block}' if block.count('\n') > 1 or ': {' in block else block for block in blocks)
    said = f'# options/{name} of sdakd {VERSION}, complete: merged into what it extends'
    return '\n'.join([said, '#', *_header(text), '', body.lstrip('\n')])


class _Dumper(yaml.SafeDumper):
    """Writes as the files that ship are written: short mappings and lists in one line, ``~`` for null."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    depth = 0  # of the value at hand; the outermost mapping is the file

    def represent_data(self, data: object) -> yaml.Node:
        self.depth += 1
        node = super().represent_data(data)
        self.depth -= 1
        if isinstance(node, yaml.CollectionNode):
            parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else [entry])]
            flat = all(not isinstance(part, yaml.CollectionNode) or part.flow_style for part in parts)
            node.length = sum(getattr(part, 'length', len(str(part.value))) + 2 for part in parts)
            node.flow_style = flat and node.length < LINE and self.depth > 0
        return node

    @classmethod
    def text(cls, block: dict) -> str:
        return yaml.dump(block, Dumper=cls, sort_keys=False, allow_unicode=True, width=120)


_Dumper.add_representer(type(None), lambda dumper, _: dumper.represent_scalar('tag:yaml.org,2002:null', '~'))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, options)
    add('name', nargs='?', metavar='NAME', help='option file to print, complete (default: list them)')
    schema = 'print the JSON schema of option files, by which editors complete and check them'
    add('--schema', action='store_true', help=schema)
