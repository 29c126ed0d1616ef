"""Reads the option file of a run: ``imports`` and ``width`` resolved, beside what :mod:`sdakd.option_files` reads.

The one function by which a run's option file is read is :func:`read_run`. What it returns is complete: dumped as YAML,
it is an option file that needs no other.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from basicsr.utils.registry import ARCH_REGISTRY

from sdakd.compat import Mistakes, UserError
from sdakd.option_files import WITHIN_NETWORK, force, merge, read_merged, read_options, read_yaml
from sdakd_arch.plugins import import_entry_points, import_modules
from sdakd_arch.weights import State, infer_network, read_weights
from sdakd_arch.width import discriminator_of, fraction, student_of
from sdakd_arch.zoo import ensure_file

__all__ = ['complete', 'force', 'forget_states', 'merge', 'read_merged', 'read_run', 'read_state', 'read_yaml']

_states: dict[tuple, State] = {}


def _mapping(value: object) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def resolve_widths(opt: dict, root_path: str = '') -> None:
    """Replaces ``width: 1/4`` in ``network_g``, ``network_d`` and ``discriminators: <name>: network`` by channels.

    It is a share of the channels of the network at its full width. A block with a ``type`` is that network. Without
    one, ``network_g`` narrows the teacher, and a discriminator narrows the one of the teacher's architecture
    (:func:`sdakd_arch.width.discriminator_of`); other keys of the block take the place of theirs. The teacher's options
    are ``teacher: network``, or told from its file. An architecture with an argument called ``width`` keeps it.

    Raises:
        UserError: Nothing tells the full width, or the width leaves a fraction of a channel; with the key.
    """
    blocks = {key: opt.get(key) for key in ('network_g', 'network_d')}
    for name, entry in _mapping(opt.get('discriminators')).items():
        blocks[f'discriminators:{name}:network'] = _mapping(entry).get('network')
    unknown = False  # the teacher, for a reason that is told once
    with Mistakes() as mistakes:
        for where, block in blocks.items():
            if not isinstance(block, dict) or 'width' not in block or has_width(block.get('type')):
                continue
            with mistakes.collect():
                full = {key: value for key, value in block.items() if key != 'width'}
                ratio = fraction(block['width'], f'{where}:width')
                try:
                    if 'type' not in full:
                        if unknown:
                            continue
                        unknown = True
                        teacher = _teacher(opt, root_path)
                        unknown = False
                        full = (teacher if where == 'network_g' else discriminator_of(teacher)) | full
                    narrow = student_of(full, float(ratio))
                except UserError as error:
                    raise error.within(f'{where}:width') from None
                block.clear()
                block.update(narrow)


def has_width(kind: object) -> bool:
    """Whether an architecture has an argument of that name."""
    cls = dict(iter(ARCH_REGISTRY)).get(kind)
    return cls is not None and 'width' in inspect.signature(cls).parameters


def _teacher(opt: Mapping, root_path: str) -> dict:
    """The teacher's network options, written or told from its file, an official one of which is fetched."""
    teacher = _mapping(opt.get('teacher'))
    if isinstance(teacher.get('network'), Mapping):
        return dict(teacher['network'])
    weights = teacher.get('weights')
    if not isinstance(weights, str):
        raise UserError('there is no teacher to narrow; write type and keys of the network at full width beside it.')
    here = os.path.expanduser(weights)
    file = next((path for path in (here, os.path.join(root_path, here)) if os.path.isfile(path)), here)
    ensure_file(file, 'teacher:weights', 'write teacher:network')
    network = infer_network(read_state(file, teacher.get('param_key'), 'teacher:weights'))
    if network is None:
        raise UserError(
            f'the keys of {file} do not tell a network that could be narrowed; write teacher:network, or the type and '
            'keys of the network at full width beside it.'
        )
    return network


def read_state(path: str | os.PathLike, param_key: str | None, where: str) -> State:
    """:func:`sdakd_arch.weights.read_weights`, but a process reads a file once: its tensors are not to be changed.

    A file that was written since is read again.
    """
    try:
        file = os.stat(path)
    except OSError:
        return read_weights(path, param_key, where)  # it says what is wrong
    key = (os.path.realpath(path), param_key, file.st_mtime_ns, file.st_size)
    if key not in _states:
        _states[key] = read_weights(path, param_key, where)
    return _states[key]


def forget_states() -> None:
    """Frees the memory of :func:`read_state`, when the networks of a run are built."""
    _states.clear()


def read_run(
    path: str | os.PathLike,
    overrides: Iterable[str] = (),
    root_path: str = '',
    instead: Mapping[Path, Path] | None = None,
) -> dict:
    """Reads the option file of a run: complete, with everything that it extends, imports and narrows.

    Args:
        path: The file.
        overrides: Entries of ``--force_yml`` (:func:`force`), as if they stood in the file; those inside a network with
            a ``width`` change the narrowed network.
        root_path: Where a relative path of the teacher's file is looked for after the current folder.
        instead: Files that are extended in the place of others.

    Raises:
        UserError: All mistakes that reading finds, with the file's name.
    """
    opt, left = read_options(path, overrides, instead)
    try:
        with Mistakes() as mistakes:
            complete(opt, left, root_path, mistakes)
    except UserError as error:
        raise error.within(str(path)) from None
    return opt


def complete(opt: dict, left: Iterable[str], root_path: str, mistakes: Mistakes) -> None:
    """Imports what options name and resolves their widths, in place: what is left to do after :func:`read_options`.

    Args:
        opt: The options.
        left: Entries of ``--force_yml`` inside networks with a ``width``.
        root_path: See :func:`read_run`.
        mistakes: Takes up what is wrong with widths; a network whose width is wrong keeps it.

    Raises:
        UserError: Modules cannot be imported; without them, little else can be checked.
    """
    load_modules(opt)
    with mistakes.collect():
        resolve_widths(opt, root_path)
    with mistakes.collect():
        force(opt, [entry for entry in left if not mistakes.about(WITHIN_NETWORK.match(entry.strip())[1])])


def load_modules(opt: Mapping) -> None:
    """Imports what options name, and what is installed for every command.

    Raises:
        UserError: Modules cannot be imported.
    """
    with Mistakes() as failed:
        with failed.collect():
            import_entry_points()
        if opt.get('imports') is not None:
            with failed.collect():
                import_modules(opt['imports'])
