"""The ground floor: how old and new BasicSR, torch and torchvision are met. Imports nothing else of this project."""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import re
import sys
import types
import warnings
from collections.abc import Iterable

OLDEST_TORCH = (2, 1)


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
        return f'{self.where}: {self.sentence}' if self.where else self.sentence

    def at(self, where: str) -> UserError:
        """The same sentence about another place: a caller knows what the user wrote and where."""
        return UserError(where, self.sentence)

    def within(self, where: str) -> UserError:
        """The same error, with what surrounds its place in front, such as the file of a key."""
        return self.at(f'{where}: {self.where}' if self.where else where)


def near(name: str, known: Iterable[str]) -> str:
    """A clause for an error message that names what is known and, first, what looks like ``name``."""
    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return 'did you mean ' + ' or '.join(close) + '?'
    shown = ', '.join(known[:40]) + (', ...' if len(known) > 40 else '')
    return f'known are {shown}' if known else 'none is known here'


def exit_with_sentence(error_type: type[BaseException], error: BaseException, traceback) -> None:
    """An excepthook: a :class:`UserError` becomes its sentence and exit status 2, anything else stays as it was."""
    if issubclass(error_type, UserError):
        sys.stdout.flush()
        sys.stderr.write(f'Error: {error}\n')
        sys.stderr.flush()
        raise SystemExit(2)
    sys.__excepthook__(error_type, error, traceback)


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
        if action.choices is None or value in action.choices:
            return
        if not action.option_strings:
            raise UserError(self.prog, f'there is no {action.metavar} {value}; {near(value, action.choices)}.')
        raise UserError(action.option_strings[-1], f'invalid choice {value!r}; {near(value, action.choices)}.')

    def error(self, message: str):
        raise UserError(self.prog, f'{message}; `{self.prog} -h` shows what there is.')


def _define_box_operators() -> list:
    """Declares the two operators that a CUDA torchvision wheel lacks beside a CPU-only torch.

    torchvision registers fake kernels for them while it is imported, which fails when its compiled library could not
    be loaded. Nothing of BasicSR, realesrgan or facexlib that this project uses calls the box operators themselves.
    """
    import torch

    libraries = []
    for schema in (
        'nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
        'qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
    ):
        library = torch.library.Library('torchvision', 'FRAGMENT')
        library.define(schema)
        libraries.append(library)
    return libraries


_kept: list = []  # a torch.library.Library withdraws its schemas when it is collected


def _import_torchvision() -> None:
    try:
        importlib.import_module('torchvision')
    except RuntimeError as error:
        if 'torchvision::' not in str(error):
            raise
        for name in [n for n in sys.modules if n == 'torchvision' or n.startswith('torchvision.')]:
            del sys.modules[name]
        _kept.extend(_define_box_operators())
        importlib.import_module('torchvision')
        warnings.warn(
            'torchvision was built for another torch (its compiled box operators are missing); '
            'super-resolution does not use them, but install the matching torchvision for anything else',
            stacklevel=3,
        )


def _alias_functional_tensor() -> None:
    """BasicSR 1.4.2 imports ``rgb_to_grayscale`` from a module that torchvision 0.17 removed."""
    name = 'torchvision.transforms.functional_tensor'
    if importlib.util.find_spec(name) is None:
        from torchvision.transforms.functional import rgb_to_grayscale

        module = types.ModuleType(name, 'Alias for BasicSR 1.4.2, made by sdakd.compat.')
        module.rgb_to_grayscale = rgb_to_grayscale
        sys.modules[name] = module


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
    _import_torchvision()
    if 'torchvision.transforms.functional_tensor' not in sys.modules:
        _alias_functional_tensor()


def import_basicsr() -> None:
    """Imports BasicSR, or says in one sentence what is missing.

    Raises:
        UserError: BasicSR is not installed, or what answers to its name is not BasicSR.
    """
    prepare_imports()
    remedy = 'pip install --no-build-isolation basicsr==1.4.2 (Python 3.12 or older), or `make setup` in a checkout'
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
