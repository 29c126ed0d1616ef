"""`sdakd link`: drops the plugin into a BasicSR checkout or a project, looks whether it works, takes it away again.

BasicSR imports every ``*_arch.py``, ``*_loss.py`` and ``*_model.py`` of three folders, so one file of one line in each
of them is enough for an unmodified ``basicsr/train.py``. A project that has BasicSR installed, such as Real-ESRGAN, HAT
or GFPGAN, has a ``train.py`` of its own that calls BasicSR's ``train_pipeline``: it gets one import, before all others,
so that a BasicSR older than its torchvision can be imported, too. The option files are copied beside the others.

A shim is known by its first line, the import by its comment. An option file is known by its checksum in the record, a
file at the top of the checkout: a user may edit an option file, which is then kept. The record names a file before it
is written, so that an interrupted command can be given again, or undone.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import inspect
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sdakd.commands.interface import Flags, Outcome
from sdakd.compat import UserError
from sdakd.files.images import write
from sdakd.shipped import SCHEMA, options_folder, shipped_files

# each kind imports its own package only: while BasicSR scans its architectures, its models do not exist yet
SHIMS = {
    'basicsr/archs/sdakd_arch.py': 'sdakd_arch',
    'basicsr/losses/sdakd_loss.py': 'sdakd_losses',
    'basicsr/models/sdakd_model.py': 'sdakd_models',
}
LINE = 'import sdakd_models  # noqa: F401, I001  written by `sdakd link`, taken away by `sdakd link --remove`'
MARK = '"""Loads SDAKD, where it is installed. Written by `sdakd link`, taken away by `sdakd link --remove`."""\n'
RECORD = '.sdakd_link.json'
EXAMPLE = 'options/sdakd_realesrgan_x4.yml'
NEEDED = (
    'basicsr/__init__.py',
    'basicsr/train.py',
    'basicsr/archs/__init__.py',
    'basicsr/losses/__init__.py',
    'basicsr/models/__init__.py',
    'basicsr/models/base_model.py',
    'basicsr/utils/options.py',
)
INSTALL = 'run `pip install --no-build-isolation -e .` in it'
FINDING = 'sdakd-link-finding:'  # what an import prints by itself may stand before it


def shim(package: str) -> bytes:
    """The file that makes BasicSR import ``package``; without the plugin it does nothing.

    It looks for the package instead of catching an ImportError, which would hide a fault inside the plugin.
    """
    lines = (
        'import importlib.util\n',
        '\n',
        f"if importlib.util.find_spec('{package}') is not None:\n",
        f'    import {package}  # noqa: F401\n',
    )
    return (MARK + ''.join(lines)).encode()


def wanted_files(shims: Mapping[str, str] = SHIMS) -> dict[str, bytes]:
    """Content of every file of a linked checkout by its path there, with forward slashes; shims first.

    Raises:
        UserError: The installation of the plugin has no option files.
    """
    folder = options_folder()
    files = {name: shim(package) for name, package in shims.items()}
    for path in (*shipped_files().values(), folder / SCHEMA):
        files[f'options/{path.relative_to(folder).as_posix()}'] = path.read_bytes()
    return files


def find_checkout(folder: str) -> tuple[Path, list[str]]:
    """The folder, made absolute, and its scripts that call BasicSR's ``train_pipeline``: none in a BasicSR checkout.

    Raises:
        UserError: It is nothing that a link can work in.
    """
    root = Path(os.path.abspath(folder))
    name_one = 'name the folder of a BasicSR checkout (`git clone` of BasicSR) or of a project that trains with BasicSR'
    if not root.is_dir():
        raise UserError(f'{folder} is no folder: {name_one}.')
    missing = [name for name in NEEDED if not (root / name).is_file()]
    if missing:
        if (root / 'sdakd_models').is_dir():
            raise UserError(
                f'{folder} is a checkout of this plugin and needs no link, `python basicsr/train.py -opt ...` works in '
                f'it as it is: {name_one}.'
            )
        if all((root.parent / name).is_file() for name in NEEDED) and root.name == 'basicsr':
            raise UserError(f'{folder} is the package inside a checkout: name the folder above it, {root.parent}.')
        if scripts := _scripts(root):
            return root, scripts
        raise UserError(
            f"{folder} is no BasicSR checkout, it has no {missing[0]}, and no train.py in it calls BasicSR's "
            f'train_pipeline: {name_one}, or write `import sdakd_models` into your own script, above its other imports.'
        )
    if root.name in ('site-packages', 'dist-packages'):
        raise UserError(
            f'{folder} holds an installed BasicSR, no checkout: run `sdakd train -opt ...`, which needs no link, or '
            f'{name_one}.'
        )
    if 'def parse_options(root_path' not in (root / 'basicsr/utils/options.py').read_text(errors='replace'):
        raise UserError(f'{folder} holds a BasicSR older than 1.4, which this plugin does not fit: `git pull` in it.')
    return root, []


def _scripts(root: Path) -> list[str]:
    """The scripts ``train.py`` and ``PACKAGE/train.py`` that import ``train_pipeline`` from BasicSR."""
    found = []
    for path in (root / 'train.py', *sorted(root.glob('*/train.py'))):
        if path.is_file():
            with contextlib.suppress(SyntaxError, ValueError):
                nodes = ast.parse(path.read_bytes()).body
                modules = [node.module or '' for node in nodes if isinstance(node, ast.ImportFrom)]
                if (
                    any(module.split('.')[0] == 'basicsr' for module in modules)
                    and b'train_pipeline' in path.read_bytes()
                ):
                    found.append(path.relative_to(root).as_posix())
    return found


def with_line(source: bytes) -> bytes:
    """A script with :data:`LINE` before its first import at the top, in its own kind of line breaks."""
    nodes = ast.parse(source).body
    first = next(
        node
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, 'module', '') != '__future__'
    )
    lines = source.splitlines(keepends=True)
    end = b'\r\n' if lines[first.lineno - 1].endswith(b'\r\n') else b'\n'
    return b''.join([*lines[: first.lineno - 1], LINE.encode(), end, *lines[first.lineno - 1 :]])


def without_line(source: bytes) -> bytes:
    """A script without :data:`LINE`."""
    return b''.join(line for line in source.splitlines(keepends=True) if line.rstrip() != LINE.encode())


@dataclass
class Linked(Outcome):
    """What was done or found.

    Args:
        lines: For people.
        status: 0, or 1 where a check finds that the checkout is not linked or does not work.
    """

    lines: list[str]
    status: int = 0

    def __str__(self) -> str:
        return ''.join(f'{line}\n' for line in self.lines)


class Checkout:
    """A BasicSR checkout or a project with BasicSR, what it should hold, and what it does hold."""

    def __init__(self, folder: str, verbose: bool = False):
        self.folder, self.verbose = folder, verbose
        self.root, self.scripts = find_checkout(folder)
        self.train = self.scripts[0] if self.scripts else 'basicsr/train.py'
        self.wanted = wanted_files({} if self.scripts else SHIMS)
        self.files, self.folders = self._read_record()

    def _read_record(self) -> tuple[dict[str, str], list[str]]:
        """Checksums of the option files that were written, and the folders that were made for them."""
        path = self.root / RECORD
        if not path.exists():
            return {}, []
        try:
            record = json.loads(path.read_bytes())
            files, folders = dict(record['files']), list(record['folders'])
            parts = [PurePosixPath(name).parts for name in (*files, *folders)]
            if any(p[0] != 'options' or '..' in p for p in parts):
                raise ValueError
        except (ValueError, KeyError, TypeError, IndexError):
            raise UserError(
                f'{path} is damaged: delete it and the option files of this plugin in {self.root / "options"}, then '
                f'run `sdakd link {self.folder}`.'
            ) from None
        return files, folders

    def _write_record(self) -> None:
        content = {'files': self.files, 'folders': self.folders}
        data = (json.dumps(content, indent=1, sort_keys=True) + '\n').encode()
        path = self.root / RECORD
        if not path.exists() or path.read_bytes() != data:
            write(path, data)

    def state(self, name: str) -> str:
        """``missing``, ``current``, ``outdated`` (of an older version), ``edited`` (changed since) or ``foreign``."""
        path = self.root / name
        if name in self.scripts:
            return 'missing' if without_line(path.read_bytes()) == path.read_bytes() else 'current'
        if not os.path.lexists(path):
            parent = next(p for p in path.parents if os.path.lexists(p))
            return 'missing' if parent.is_dir() else 'foreign'
        if not path.is_file():
            return 'foreign'
        data = path.read_bytes()
        if data == self.wanted.get(name):
            return 'current'
        if name in SHIMS:
            return 'outdated' if data.startswith(MARK.encode()) else 'foreign'
        if name not in self.files:
            return 'foreign'
        return 'outdated' if _checksum(data) == self.files[name] else 'edited'

    def states(self) -> dict[str, str]:
        """The state of every file that is wanted, or that an older version of the plugin has written."""
        return {name: self.state(name) for name in dict.fromkeys((*self.scripts, *self.wanted, *self.files))}

    def _told(self, verb: str, names: list[str]) -> list[str]:
        """What was done to files: every one of them if asked for, then how many of which kind."""
        kinds = [
            (sum(name in SHIMS for name in names), 'shim', 'basicsr/'),
            (sum(name in self.scripts for name in names), 'import', ', '.join(self.scripts)),
            (sum(name.endswith('.yml') for name in names), 'option file', 'options/'),
        ]
        counted = ' and '.join(f'{n} {kind}{"s" * (n > 1)} in {place}' for n, kind, place in kinds if n)
        listed = [f'{verb} {name}' for name in names] if self.verbose else []
        return [*listed, f'{verb} {counted}.'] if names else []

    def link(self) -> Linked:
        """Writes what is missing or outdated."""
        states = self.states()
        foreign = [name for name in self.wanted if states[name] == 'foreign']
        if foreign:
            raise UserError(
                f'{self.root / foreign[0]} exists and was not written by `sdakd link`: move it away or rename it, then '
                'give the command again.'
            )
        due = [name for name in self.wanted if states[name] in ('missing', 'outdated')]
        lines_due = [name for name in self.scripts if states[name] == 'missing']
        for name in due:
            if name not in SHIMS and states[name] == 'missing':
                self.files[name] = _checksum(self.wanted[name])
                missing = [p for p in PurePosixPath(name).parents[:-1] if not (self.root / p).is_dir()]
                self.folders.extend(str(p) for p in reversed(missing) if str(p) not in self.folders)
        if due:
            self._write_record()
        for name in due:
            write(self.root / name, self.wanted[name])
        for name in lines_due:
            self._rewrite(name, with_line)
        due = [*lines_due, *due]
        dropped = [name for name in self.files if name not in self.wanted]
        for name in dropped:  # the plugin has this option file no more
            if states[name] == 'outdated':
                (self.root / name).unlink()
            del self.files[name]
        self.files = {n: c if states[n] == 'edited' else _checksum(self.wanted[n]) for n, c in self.files.items()}
        if due or dropped or (self.root / RECORD).exists():
            self._write_record()
        lines = self._told('wrote', [name for name in due if states[name] == 'missing'])
        lines += self._told('updated', [name for name in due if states[name] == 'outdated'])
        lines += self._told('removed', [name for name in dropped if states[name] == 'outdated'])
        lines += [_kept(name) for name in self.wanted if states[name] == 'edited']
        if due or dropped:
            place = shlex.quote(self.folder)
            how = f'{self.train} imports this plugin' if self.scripts else 'BasicSR finds this plugin through the shims'
            lines += [
                f'{self.folder} is linked: {how}.',
                f'  try it:    sdakd link {place} --check',
                f'  train:     cd {place} && python {self.train} -opt {EXAMPLE}',
                f'  undo it:   sdakd link {place} --remove',
            ]
        else:
            lines.append(f'{self.folder} is linked already: nothing has changed.')
        return Linked(lines)

    def remove(self) -> Linked:
        """Takes away what was written and has not been changed."""
        states = self.states()
        written = [name for name in states if name in SHIMS and states[name] in ('current', 'outdated')]
        written += [name for name in self.files if states[name] in ('current', 'outdated')]
        kept = [name for name in self.files if states[name] == 'edited']
        for name in written:
            (self.root / name).unlink()
        lines_taken = [name for name in self.scripts if states[name] == 'current']
        for name in lines_taken:
            self._rewrite(name, without_line)
        written = [*lines_taken, *written]
        for name in reversed(self.folders):
            folder = self.root / name
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        (self.root / RECORD).unlink(missing_ok=True)
        lines = self._told('removed', written) + [_kept(name) for name in kept]
        end = 'is not linked any more' if written or kept else 'is not linked: there was nothing to remove'
        lines.append(f'{self.folder} {end}.')
        return Linked(lines)

    def _rewrite(self, name: str, change: Callable[[bytes], bytes]) -> None:
        path = self.root / name
        mode = path.stat().st_mode
        write(path, change(path.read_bytes()))
        path.chmod(mode)

    def check(self) -> Linked:
        """Whether the checkout is linked and works; the status is 0 only then."""
        states = self.states()
        again = f'run `sdakd link {self.folder}`'
        if not any(states[name] in ('current', 'outdated') for name in self.scripts or SHIMS):
            return Linked([f'not linked: {again}.'], 1)
        due = [name for name in (*self.scripts, *self.wanted) if states[name] not in ('current', 'edited')]
        due += [name for name in self.files if name not in self.wanted]
        if due:
            return Linked([f'out of date: {again} ({", ".join(due)}).'], 1)
        edited = [name for name in self.wanted if states[name] == 'edited']
        changed = f', of which {", ".join(edited)} changed since' if edited else ''
        files = sum(name.endswith('.yml') for name in self.wanted)
        through = f'an import in {", ".join(self.scripts)}' if self.scripts else f'{len(SHIMS)} shims'
        linked = f'linked: {through}, {files} option files{changed}.'
        if not self.scripts and not (self.root / 'basicsr/version.py').is_file():
            fault = f'{self.folder} has no basicsr/version.py, which its installation generates, {INSTALL}'
        else:
            found = self._try()
            fault = self._fault(found)
        if fault:
            return Linked([linked, f'not working: {fault}.'], 1)
        return Linked([linked, f'working: `python {self.train}` there knows {", ".join(found["models"])}.'])

    def _try(self) -> dict:
        """Imports what ``train.py`` imports, in a process of its own."""
        code = f'{inspect.getsource(_probe)}\n_probe()'
        process = subprocess.run(
            [sys.executable, '-c', code, str(self.root), FINDING, self.train, *SHIMS.values()],
            cwd=self.root,
            env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'},  # to look leaves no trace
            capture_output=True,
            encoding='utf-8',
            errors='replace',
        )
        _, finding, rest = process.stdout.rpartition(FINDING)
        if finding:
            return json.loads(rest.splitlines()[0])
        last = (process.stderr.strip().splitlines() or [''])[-1]
        return {'error': f'exit status {process.returncode}', 'message': last}

    def _fault(self, found: dict) -> str | None:
        """What keeps the link from working, where, and what to do about it, as a sentence without its full stop."""
        error, message, module = (found.get(key) or '' for key in ('error', 'message', 'module'))
        if found.get('lacking'):
            home = Path(__file__).resolve().parents[2]
            how = f': `pip install --no-build-isolation -e {home}`' if (home / 'pyproject.toml').is_file() else ''
            return f'{sys.executable} does not find {found["lacking"][0]} there, install this plugin again{how}'
        if 'torchvision::' in message:
            return (
                'torchvision was built for another torch than the one installed, install the torchvision that belongs '
                f'to your torch, or run `PYTHONPATH=. sdakd train -opt ...` in {self.folder}, which copes'
            )
        if module == 'torchvision.transforms.functional_tensor':
            return (
                f'the BasicSR in {self.folder} imports {module}, which torchvision 0.17 removed, run `git pull` in it '
                'or change functional_tensor to functional in basicsr/data/degradations.py'
            )
        if error == 'UserError':
            return message.rstrip('.')
        package = self.train.partition('/')[0]
        if error == 'ModuleNotFoundError' and self.scripts and module.partition('.')[0] == package:
            return (
                f'`python {self.train}` does not find {module}, install {package} as its README says, or put '
                'PYTHONPATH=. before the command'
            )
        if error and self.scripts:
            return (
                f'`python {self.train}` fails in {self.folder} with {error}: {message.strip()[:300]}; see the command '
                'itself for the whole'
            )
        if error:
            return (
                f'`import basicsr` fails in {self.folder} with {error}: {message.strip()[:300]}; see '
                '`PYTHONPATH=. python -c "import basicsr"` there for the whole'
            )
        if not found['models']:
            return f'BasicSR imports in {self.folder} but does not know SDAKDModel, install the plugin again'
        if not found['literal']:
            instead = f'imports {found["instead"]}' if found['instead'] else 'finds no BasicSR'
            return (
                f'`python basicsr/train.py` {instead} instead of {self.folder}/basicsr, {INSTALL}, or put PYTHONPATH=. '
                'before the command'
            )
        return None


def _kept(name: str) -> str:
    return f'kept {name}, which has been changed since it was written'


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _probe() -> None:
    """Prints what BasicSR registers for a script; its source is run where nothing of this plugin is imported yet."""
    import importlib.util
    import json
    import os
    import runpy
    import sys

    root, finding, train, *packages = sys.argv[1:]
    own = train == 'basicsr/train.py'
    # what the path is for `python basicsr/train.py`; '' stands for the current folder, which that command leaves out
    sys.path[:] = [os.path.dirname(os.path.join(root, train)), *(entry for entry in sys.path if entry)]
    spec = importlib.util.find_spec('basicsr')
    origin = spec and (spec.origin or str(list(spec.submodule_search_locations)))
    found = {'literal': os.path.realpath(origin or '') == os.path.realpath(os.path.join(root, 'basicsr/__init__.py'))}
    found['instead'] = None if found['literal'] else origin
    if not own:
        found['literal'] = True  # a project uses the BasicSR that is installed
    if not found['literal']:
        sys.path.insert(1, root)  # PYTHONPATH=.
    specs = {name: importlib.util.find_spec(name) for name in packages}
    found['lacking'] = [name for name, spec in specs.items() if spec is None or spec.origin is None]
    try:
        if not found['lacking']:
            if not own:
                runpy.run_path(os.path.join(root, train), run_name='probe')
            from basicsr.utils.registry import MODEL_REGISTRY

            found['models'] = sorted(name for name in MODEL_REGISTRY.keys() if name.startswith('SDAKD'))
    except BaseException as error:
        found.update(error=type(error).__name__, message=str(error), module=getattr(error, 'name', None))
    sys.stdout.write(f'\n{finding}{json.dumps(found)}\n')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add, action = Flags(parser, link), parser.add_mutually_exclusive_group()
    add('folder', help='folder of a BasicSR checkout, or of a project that trains with BasicSR')
    only = 'only say whether it is linked and works (exit status 0)'
    add('--check', action='store_true', help=only, to=action)
    add('--remove', action='store_true', help='take away what was written and not changed since', to=action)
    add('--verbose', action='store_true', help='list every file')


def link(folder: str | Path, *, check: bool = False, remove: bool = False, verbose: bool = False) -> Linked:
    """Drops the plugin into a BasicSR checkout, or into a project that trains by BasicSR's ``train_pipeline``.

    Args:
        folder: Of the checkout or project.
        check: Only look whether it is linked and works.
        remove: Take away what was written and has not been changed since.
        verbose: List every file.

    Raises:
        UserError: Neither of them, a file of someone else's in the way, or a folder that cannot be written.
    """
    folder = str(folder)
    try:
        checkout = Checkout(folder, verbose)
        return checkout.remove() if remove else checkout.check() if check else checkout.link()
    except OSError as error:
        raise UserError(
            error.filename or folder,
            f'{error.strerror or error}; make {folder} readable and writable, then give the command again.',
        ) from None
