"""The ground floor: how old and new BasicSR, torch and torchvision are met. Imports nothing else of this project."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import functools
import gc
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import multiprocessing.process
import multiprocessing.reduction
import os
import re
import stat
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

OLDEST_TORCH = (2, 1)
MOST_SHOWN = 20  # mistakes; who has mended them sees the rest
_ENDLESS = re.compile(r'\S{1000,}')
WAITING = 30  # seconds until the main process has told a mistake that all processes find


class UserError(Exception):
    """A mistake that a user can mend, in one sentence.

    Commands print ``where: sentence`` without a traceback and exit with status 2.

    Args:
        where: A key, a file, a flag, or several from the outside in (``run.yml: train:stages``). Without a second
            argument it is the whole text, which is taken apart behind a first word or flag.
        sentence: What is wrong there and what to do about it.
    """

    def __init__(self, where: str, sentence: str | None = None) -> None:
        super().__init__(*((where,) if sentence is None else (where, sentence)))
        if sentence is None:
            found = re.match(r'(\S+|-\S+ \w+): ', where)
            where, sentence = (found[1], where[found.end() :]) if found else ('', where)
        self.where = where
        self.sentence = sentence.replace('?.', '?')  # where it ends in the question of near()

    def __str__(self) -> str:
        text = f'{self.where}: {self.sentence}' if self.where else self.sentence
        # names and values are shown as somebody has written them, but for line breaks and what is endless
        return _ENDLESS.sub(lambda found: f'{found[0][:300]}...{found[0][-100:]}', text.replace('\n', '\\n'))

    @property
    def mistakes(self) -> tuple[UserError, ...]:
        """All mistakes that it holds, each by itself: this one, but see :class:`UserErrors`."""
        return (self,)

    def at(self, where: str) -> UserError:
        """The same sentence about another place: a caller knows what the user wrote and where."""
        return UserError(where, self.sentence)

    def within(self, where: str) -> UserError:
        """The same error, with what surrounds its place in front, such as the file of a key."""
        return self.at(f'{where}: {self.where}' if self.where else where)

    def report(self) -> str:
        """What a command prints."""
        return str(self)


class UserErrors(UserError):  # noqa: N818  several of them
    """Several mistakes that were found together; as text a sentence each, one under the other.

    ``where`` and ``sentence`` are those of the first. Who can go on after a mistake gathers them by :class:`Mistakes`.

    Args:
        mistakes: At least two.
        source: What they are in, such as a file, for the heading of :meth:`report`.
    """

    def __init__(self, mistakes: Iterable[UserError], source: str = '') -> None:
        self._mistakes, self.source = tuple(mistakes), source
        super().__init__(self._mistakes[0].where, self._mistakes[0].sentence)

    def __str__(self) -> str:
        return '\n'.join(map(str, self._mistakes))

    def __reduce__(self):
        return UserErrors, (self._mistakes, self.source)

    @property
    def mistakes(self) -> tuple[UserError, ...]:
        return self._mistakes

    def at(self, where: str) -> UserErrors:
        return UserErrors((each.at(where) for each in self._mistakes), self.source)

    def within(self, where: str) -> UserErrors:
        return UserErrors((each.within(where) for each in self._mistakes), where)

    def report(self) -> str:
        count = len(self._mistakes)
        more = [f'and {count - MOST_SHOWN} more mistake{"s" * (count > MOST_SHOWN + 1)}'] * (count > MOST_SHOWN)
        heading = f'{self.source} has {count} mistakes:' if self.source else f'{count} mistakes:'
        return '\n'.join([heading, *map(str, self._mistakes[:MOST_SHOWN]), *more])


class UnusableError(Exception):
    """One image cannot be used, the others can; ``kind`` is how the final line counts it."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


def unreadable(reason: str) -> UnusableError:
    """The error of an image that cannot be decoded; ``reason`` is the end of a sentence."""
    return UnusableError('unreadable', reason)


class Mistakes:
    """Gathers the mistakes of checks that do not depend on each other, and raises them together at its end.

    ::

        with Mistakes() as mistakes:
            for name in names:
                with mistakes.collect():
                    check(name)
            if not mistakes.about('teacher'):  # a check that needs the teacher
                ...

    One mistake is raised as it is, several as :class:`UserErrors`. A check adds nothing about a place of which an
    earlier one has complained: that would be the same mistake in other words.

    Attributes:
        found: The mistakes so far.
    """

    def __init__(self) -> None:
        self.found: list[UserError] = []

    @contextlib.contextmanager
    def collect(self) -> Iterator[list[UserError]]:
        """Survives a :class:`UserError` of the check inside, and keeps it; the list holds what the check raises."""
        raised: list[UserError] = []
        try:
            yield raised
        except UserError as error:
            raised += error.mistakes
            known = {each.where.split(': ')[-1] for each in self.found} - {''} | {str(each) for each in self.found}
            self.found += [each for each in raised if not known & {each.where, str(each)}]

    def add(self, where: str, sentence: str) -> None:
        """Keeps a mistake of the check that calls, which may find several at one place."""
        self.found.append(UserError(where, sentence))

    def about(self, *keys: str) -> bool:
        """Whether a mistake lies at one of these keys or below it; what depends on them cannot be checked then."""
        parts = [part for each in self.found for part in each.where.split(': ')]
        return any(part == key or part.startswith((f'{key}:', f'{key}[')) for part in parts for key in keys)

    def __enter__(self) -> Mistakes:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, UserError):
            with self.collect():
                raise error
        elif error is not None:
            return
        if self.found:
            raise (UserErrors(self.found) if len(self.found) > 1 else self.found[0]) from None


def gathering(read: Callable) -> Callable:
    """Has a function that takes ``mistakes`` raise them at its end where its caller gives none to add to.

    With ``mistakes`` it returns what could be read, so that the caller can go on with it.
    """

    @functools.wraps(read)
    def call(*arguments, mistakes: Mistakes | None = None):
        if mistakes is not None:
            return read(*arguments, mistakes=mistakes)
        with Mistakes() as mistakes:
            return read(*arguments, mistakes=mistakes)

    return call


def in_order_of(options: Mapping, error: UserError) -> UserError:
    """The mistakes of an option file, in the order in which their keys stand there; those that it lacks come last.

    Args:
        options: What was read.
        error: The mistakes; ``where`` is a key.
    """

    def place(mistake: UserError) -> list[int]:
        block, found = options, []
        for key in mistake.where.split(': ')[0].split(':'):
            if not isinstance(block, Mapping):
                break
            names = [str(name) for name in block]
            found.append(names.index(key) if key in names else len(names))
            block = block[list(block)[found[-1]]] if key in names else None
        return found

    return UserErrors(sorted(error.mistakes, key=place)) if len(error.mistakes) > 1 else error


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Before the processes of a distributed training know each other, the main one speaks, and the others are silent.

    A launcher ends all as soon as one has ended: the others wait for it, so that the main process can speak.
    """
    try:
        yield
    except UserError:
        rank = os.environ.get('RANK') or (os.environ.get('SLURM_PROCID') if 'slurm' in sys.argv else None)
        torch = sys.modules.get('torch')
        if int(rank or 0) > 0 and not (torch and torch.distributed.is_initialized()):
            time.sleep(WAITING)
            raise SystemExit(2) from None
        raise


def near(name: str, known: Iterable[str]) -> str:
    """A clause for an error message that names what is known and, first, what looks like ``name``."""
    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return 'did you mean ' + ' or '.join(close) + '?'
    shown = ', '.join(known[:40]) + (', ...' if len(known) > 40 else '')
    return f'known are {shown}' if known else 'none is known here'


def one_line(error: BaseException) -> str:
    """What an error of somebody else's code says, for the inside of a sentence."""
    return ' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__


def meant(given: Mapping, known: Iterable[str], cutoff: float = 0.5) -> dict:
    """A mapping as its writer meant it: an unknown key stands for what it looks like, where that is missing.

    What follows from a slip in a key is not a second mistake.
    """
    known = list(known)
    found = {key: value for key, value in given.items() if key in known}
    for key, value in given.items():
        if key not in known:
            for close in difflib.get_close_matches(str(key), known, n=1, cutoff=cutoff):
                found.setdefault(close, value)
    return found


def exit_with_sentence(error_type: type[BaseException], error: BaseException, traceback) -> None:
    """An excepthook: a :class:`UserError` becomes its sentence and exit status 2, anything else stays as it was.

    So does an interruption whose text says what is left to do: exit status 130.
    """
    if issubclass(error_type, KeyboardInterrupt) and error.args:
        sys.stderr.write(f'\nInterrupted: {error}.\n')
        raise SystemExit(130)
    if issubclass(error_type, UserError):
        sys.stdout.flush()
        sys.stderr.write(f'Error: {error.report()}\n')
        sys.stderr.flush()
        tell_launcher(error.report())
        raise SystemExit(2)
    if issubclass(error_type, KeyboardInterrupt):
        sys.stderr.write('\nInterrupted.\n')
        raise SystemExit(130)
    sys.__excepthook__(error_type, error, traceback)


def tell_launcher(text: str) -> None:
    """Has torchrun, if it has started this process, show a text as the cause at the end of its own report."""
    if file := os.environ.get('TORCHELASTIC_ERROR_FILE'):
        more = {'py_callstack': text, 'timestamp': str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({'message': {'message': text, 'extraInfo': more}}), encoding='utf-8')


class Parser(argparse.ArgumentParser):
    """A parser of flags whose errors are one sentence, with near names: a :class:`UserError`, not usage and exit."""

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition('=')[0]
            if flag.startswith('-'):
                raise UserError(flag, f'there is no such flag; {near(flag, self._option_string_actions)}.')
            self.error(f'{flag} is one argument too many')
        return namespace, unknown

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if value == '' and action.type is None:  # such as an unset variable of a shell; type=str takes it
            flag = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
            raise UserError(flag, 'it has an empty value; write one, or leave it out.')
        if action.choices is None or value in action.choices:
            return
        if not action.option_strings:
            raise UserError(self.prog, f'there is no {action.metavar} {value}; {near(value, action.choices)}.')
        raise UserError(action.option_strings[-1], f'invalid choice {value!r}; {near(value, action.choices)}.')

    def error(self, message: str):
        raise UserError(self.prog, f'{message}; `{self.prog} -h` shows what there is.')


# ------------------------------------------------- imports of others -------------------------------------------------
#
# What torchvision lacks for BasicSR is put in while Python imports it, in every process in which this module was
# imported; and this module comes first in every process that is spawned.

_kept: list = []  # a torch.library.Library withdraws its schemas when it is collected


class _BoxOperators(importlib.abc.MetaPathFinder):
    """Declares the two operators that a torchvision lacks beside a torch for which it was not built.

    torchvision registers fake kernels for them while it is imported, which fails where its compiled library could not
    be loaded. Nothing of BasicSR, realesrgan or facexlib that this project uses calls the box operators themselves.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == 'torchvision._meta_registrations' and not _kept:
            import torch

            importlib.import_module('torchvision.extension')  # it loads the compiled library where that is possible
            if hasattr(torch.ops.torchvision, 'nms'):
                return
            for schema in (
                'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
                'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
            ):
                library = torch.library.Library('torchvision', 'FRAGMENT')
                library.define(schema)
                _kept.append(library)
            if multiprocessing.current_process().name == 'MainProcess':  # else it has been said
                warnings.warn(
                    'torchvision was built for another torch (its compiled box operators are missing); '
                    'super-resolution does not use them, but install the matching torchvision for anything else',
                    stacklevel=2,
                )


class _FunctionalTensor(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """BasicSR 1.4.2 imports ``rgb_to_grayscale`` from a module that torchvision 0.17 removed."""

    name = 'torchvision.transforms.functional_tensor'

    def find_spec(self, name: str, path: object = None, target: object = None):
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def exec_module(self, module: types.ModuleType) -> None:
        from torchvision.transforms.functional import rgb_to_grayscale

        module.rgb_to_grayscale = rgb_to_grayscale


class _Distutils(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """BasicSR 1.4.2 compares torchvision's version by a module that Python 3.12 removed; setuptools may bring it."""

    names = ('distutils', 'distutils.version')

    def find_spec(self, name: str, path: object = None, target: object = None):
        return (
            importlib.util.spec_from_loader(name, self, is_package=name == self.names[0])
            if name in self.names
            else None
        )

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == self.names[1]:
            from torch._vendor.packaging.version import parse

            module.LooseVersion = parse


def _new_process(kind: type) -> multiprocessing.process.BaseProcess:
    return kind.__new__(kind)


def _reduce_process(process: multiprocessing.process.BaseProcess) -> tuple:
    """As Python pickles it, but for the function in front: whoever unpickles it imports this module first.

    What a process works on may be BasicSR's, such as a data set, which is imported when it is unpickled.
    """
    return _new_process, (type(process),), process.__dict__


sys.meta_path.insert(0, _BoxOperators())
sys.meta_path += [_FunctionalTensor(), _Distutils()]  # where their modules are, they are found before
for _method in multiprocessing.get_all_start_methods():
    multiprocessing.reduction.register(multiprocessing.get_context(_method).Process, _reduce_process)
multiprocessing.reduction.register(multiprocessing.Process, _reduce_process)


def prepare_imports() -> None:
    """Makes ``import basicsr`` work on the installed torch and torchvision, without importing it.

    Raises:
        UserError: torch or torchvision is missing, or torch is older than 2.1. From here on such an error ends a
            program with its sentence.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = exit_with_sentence
    for package, remedy in (
        ('torch', 'pip install torch'),
        ('torchvision', 'pip install the torchvision that belongs to your torch'),
    ):
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise UserError(f'the package {package} is not installed: {remedy}.')
    import torch

    version = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])
    if version < OLDEST_TORCH:
        raise UserError(
            f'torch {torch.__version__} is too old: install torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]} or newer.'
        )
    importlib.import_module('torchvision')


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection: imports make 350,000 objects that stay; going through them takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def has_basicsr() -> bool:
    """Whether BasicSR is installed, without importing it."""
    spec = importlib.util.find_spec('basicsr')
    return spec is not None and spec.origin is not None


def import_basicsr() -> None:
    """Imports BasicSR, or says in one sentence what is missing.

    Raises:
        UserError: BasicSR is not installed, or what answers to its name is not BasicSR.
    """
    with _uncollected():
        prepare_imports()
        _import_basicsr()


def _import_basicsr() -> None:
    remedy = (
        'pip install --no-build-isolation basicsr==1.4.2 (Python 3.13 and newer: docs/drop-in.md), or `make setup` in '
        'a checkout'
    )
    try:
        package = importlib.import_module('basicsr')
    except ModuleNotFoundError as error:
        if error.name == 'basicsr':
            raise UserError(f'BasicSR is not installed: {remedy}.') from None
        if error.name == 'basicsr.version':
            raise UserError(
                'the BasicSR checkout on the path has no basicsr/version.py, which its installation generates: '
                'run `pip install --no-build-isolation -e .` in it.'
            ) from None
        raise
    if getattr(package, '__file__', None) is None:
        raise UserError(
            f'the name basicsr leads to the plain folder {list(package.__path__)}, not to BasicSR: {remedy}.'
        )


# ---------------------------------------------- files of others ------------------------------------------------------


def no_file(path: str | os.PathLike) -> str | None:
    """Why a path cannot be read as a file, as the end of a sentence; None where it can.

    Opening a pipe waits for whoever writes into it, and a device may never end: neither is opened.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 'does not exist'
    except (OSError, ValueError) as error:
        return f'cannot be read ({getattr(error, "strerror", None) or error})'
    if stat.S_ISREG(mode):
        return None
    return 'is a folder' if stat.S_ISDIR(mode) else 'is a pipe or a device, not a file'


# what a system says of a disk, a folder or a name -> what to do about it
REMEDIES = {
    errno.ENOSPC: 'make room there',
    errno.EDQUOT: 'make room there or have the quota raised',
    errno.EFBIG: 'have the limit of file sizes raised (ulimit -f)',
    errno.EROFS: 'make that place writable or choose another one',
    errno.EACCES: 'make that place readable and writable or choose another one',
    errno.EPERM: 'make that place readable and writable or choose another one',
    errno.EIO: 'look after that disk',
    errno.ENAMETOOLONG: 'choose a shorter name',
    errno.ELOOP: 'remove the link that leads to itself',
    errno.ENOENT: 'see that it exists',
    errno.ENOTDIR: 'remove the file that stands in the way or choose another place',
    errno.EEXIST: 'remove the file that stands in the way or choose another place',
    errno.EISDIR: 'remove the folder of that name or choose another one',
    errno.ENOTEMPTY: 'remove the folder of that name or choose another one',
}
# Windows' numbers, where its errno says too little or something else
REMEDIES_OF_WINDOWS = {
    32: 'close the program that has it open',  # ERROR_SHARING_VIOLATION
    33: 'close the program that has it open',  # ERROR_LOCK_VIOLATION
    123: 'choose a name without < > : " | ? *',  # ERROR_INVALID_NAME
    206: 'choose a shorter path, or switch on long paths in Windows',  # ERROR_FILENAME_EXCED_RANGE
    267: 'choose a name without < > : " | ? *',  # ERROR_DIRECTORY
}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class FullError(UserError):
    """A disk is full or read-only: nothing else can be written there either."""


def of_system(
    error: BaseException, path: str | os.PathLike | None = None, what: str = 'the system refuses'
) -> UserError | None:
    """What the system says of a disk, a folder or a name, as a mistake that a user can mend; None for other errors.

    Args:
        error: An :class:`OSError`, or what torch has made of one.
        path: What it is about; default: what the error says.
        what: In words.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__context__
    if found is None:
        return None
    remedy = REMEDIES_OF_WINDOWS.get(getattr(found, 'winerror', None)) or REMEDIES.get(found.errno)
    if remedy is None:
        return None
    sentence = f'{what} ({found.strerror}); {remedy}, and give the same command again.'
    kind = FullError if found.errno in FULL else UserError
    return kind(str(path or found.filename or ''), sentence)


def reserve(path: str | os.PathLike, size: int, beyond: int = 0) -> None:
    """Sees that a file may grow, for whoever would tell of a full disk badly or not at all.

    Args:
        path: The file; its folder must be there.
        size: Bytes that are to be written.
        beyond: Bytes that it has already.

    Raises:
        UserError: There is no room, or a quota or a limit of file sizes is in the way.
    """
    if not hasattr(os, 'posix_fallocate'):
        return
    try:
        with tempfile.TemporaryFile(dir=Path(path).parent) as file:
            os.posix_fallocate(file.fileno(), beyond, max(size, 1))
    except OSError as error:
        raise of_system(error, path, 'it cannot be written') or error from None


def part_of(path: Path) -> Path:
    """The name under which a file is written until it is complete: ``.NAME.part``, or shorter for a very long one."""
    name = path.name
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f'.{name}.part')


@contextlib.contextmanager
def replacing(path: str | os.PathLike, part: Path | None = None) -> Iterator[BinaryIO]:
    """Opens what takes the place of ``path`` when it is complete: a reader never meets half a file.

    Nothing is written through a link: one under the name ``path`` is replaced itself, one under ``part`` is removed.
    A folder that is missing is made.

    Args:
        path: The file.
        part: Where it is written until it is complete, in the same folder; default: :func:`part_of`.

    Raises:
        UserError: A folder, a pipe, a device or a socket has the name, or the file cannot be written: a full disk, a
            folder that is read-only. What was there before is there still.
    """
    path = Path(path)
    part = part or part_of(path)
    try:
        if not path.is_symlink() and (reason := no_file(path) or '').startswith('is '):
            raise UserError(str(path), f'it {reason}; remove it, or write to another place.')
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        try:
            with open(part, 'xb') as file:
                yield file
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)  # of a write that failed, such as on a full disk
    except (OSError, RuntimeError) as error:
        if fault := of_system(error, path, 'it cannot be written'):
            raise fault from None
        raise
