"""Reads option files: YAML without code, ``extends``, ``imports`` and ``width`` resolved, ``--force_yml`` applied.

The one function by which a run's option file is read is :func:`read_run`. What it returns is complete: dumped as YAML,
it is an option file that needs no other.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping

import yaml
from basicsr.utils.registry import ARCH_REGISTRY

from sdakd.compat import UserError, near
from sdakd_arch.plugins import import_entry_points, import_modules
from sdakd_arch.weights import State, infer_network, read_weights
from sdakd_arch.width import discriminator_of, fraction, student_of
from sdakd_arch.zoo import ensure_file

# values of --force_yml that change a narrowed network; all others change what is narrowed
WITHIN_NETWORK = re.compile(r'(network_[gd]|discriminators:[^:=]+:network):(?!width *=)')


_states: dict[tuple, State] = {}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the last of equal keys win in silence."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in lines:
                problem = f'the key {key.value!r} stands in line {lines[key.tag, key.value]} already, keep one of them'
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.tag, key.value] = key.start_mark.line + 1
        return node


def read_yaml(path: str | os.PathLike) -> dict:
    """Reads one file as it stands.

    Raises:
        UserError: Missing file, broken YAML, a key that stands twice in a mapping, tags that would execute code, or no
            mapping.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = yaml.load(file, _Loader)
    except OSError as error:
        raise UserError(f'-opt: {path} cannot be read ({error.strerror}).') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, 'problem_mark', None)
        line = f' in line {mark.line + 1}' if mark else ''
        raise UserError(f'{path}: broken YAML{line}: {getattr(error, "problem", error)}.') from None
    if not isinstance(content, dict):
        raise UserError(f'{path}: this is no option file, it must hold keys and values.')
    return content


def read_merged(path: str | os.PathLike) -> dict:
    """Reads a file and what it extends: ``extends: other.yml``, relative to the folder of the file that says so.

    See :func:`merge`. The modules under ``imports`` add up.

    Raises:
        UserError: As :func:`read_yaml`; a file that is missing or extends itself.
    """
    return _read_chain(str(path), [])


def _read_chain(path: str, above: list[str]) -> dict:
    if any(os.path.realpath(path) == os.path.realpath(other) for other in above):
        raise UserError(f'{path}: extends: files extend each other in a circle, {" -> ".join([*above, path])}.')
    content = read_yaml(path)
    if 'extends' not in content:
        return content
    name = content.pop('extends')
    if not isinstance(name, str):
        raise UserError(f'{path}: extends: write the path of one option file, not {name!r}.')
    base = os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(name)))
    if not os.path.isfile(base):
        raise UserError(f'{path}: extends: the file {base} does not exist; the path starts from the folder of {path}.')
    inherited = _read_chain(base, [*above, path])
    merged = merge(inherited, content)
    lists = [block['imports'] for block in (inherited, content) if isinstance(block.get('imports'), list)]
    if len(lists) == 2:
        merged['imports'] = list(dict.fromkeys([*lists[0], *lists[1]]))
    return merged


def merge(base: Mapping, new: Mapping) -> dict:
    """What the options ``base`` are once ``new`` extends them; both stay as they are.

    Mappings merge key by key: inherited keys (stages among them) keep their order, new ones come last. A mapping with a
    ``type`` that the inherited one does not have replaces it whole, as lists and plain values do. A null removes an
    inherited key, with one exception: ``train: <term>_opt: ~`` stays where a stage names the term, because there it
    takes the term out of all stages.
    """
    merged = _merge(base, new)
    train = merged.get('train')
    if isinstance(train, dict):
        stages = [stage for stage in _mapping(train.get('stages')).values() if isinstance(stage, Mapping)]
        named = [term for stage in stages if isinstance(stage.get('terms'), list) for term in stage['terms']]
        for key, value in _mapping(new.get('train')).items():
            if value is None and str(key).endswith('_opt') and key.removesuffix('_opt') not in named:
                train.pop(key, None)
    return merged


def _merge(base: Mapping, new: Mapping, where: tuple = ()) -> dict:
    if 'type' in new and base.get('type') != new['type']:
        return dict(new)
    merged = dict(base)
    for key, value in new.items():
        if value is None and key in base and not (where == ('train',) and str(key).endswith('_opt')):
            del merged[key]
        elif isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            merged[key] = _merge(base[key], value, (*where, key))
        else:
            merged[key] = value
    return merged


def _mapping(value: object) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def force(opt: dict, entries: Iterable[str]) -> None:
    """Applies ``--force_yml key:key=value``; values are YAML literals, and nothing is executed.

    As in BasicSR the key must exist; unlike there, a list index may be part of it, and optional keys of this plugin's
    stages may be added.

    Raises:
        UserError: No ``=``, or a key that does not exist.
    """
    for entry in entries:
        keys, equals, text = entry.partition('=')
        if not equals:
            raise UserError(f'--force_yml {entry}: write key:key=value.')
        try:
            value = yaml.safe_load(text.strip())
        except yaml.YAMLError:
            raise UserError(f'--force_yml {entry}: the value is no YAML literal.') from None
        *parents, last = keys.strip().split(':')
        block = opt
        for depth, key in enumerate(parents):
            if not isinstance(block.get(key), dict):
                raise UserError(
                    f'--force_yml {entry}: there is no block {":".join(parents[: depth + 1])}; {near(key, block)}.'
                )
            block = block[key]
        optional = parents[:2] == ['train', 'stages'] or parents in (
            ['train'],
            ['path'],
            ['val'],
            ['teacher'],
            ['logger'],
        )
        if last not in block and not optional and keys.strip() != 'num_threads':
            raise UserError(f'--force_yml {entry}: there is no key {keys.strip()}; {near(last, block)}.')
        block[last] = value


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
    for where, block in blocks.items():
        if not isinstance(block, dict) or 'width' not in block:
            continue
        kind = block.get('type')
        cls = dict(iter(ARCH_REGISTRY)).get(kind)
        if cls is not None and 'width' in inspect.signature(cls).parameters:
            continue
        full = {key: value for key, value in block.items() if key != 'width'}
        ratio = fraction(block['width'], f'{where}:width')
        try:
            if kind is None:
                teacher = _teacher(opt, root_path)
                full = (teacher if where == 'network_g' else discriminator_of(teacher)) | full
            narrow = student_of(full, float(ratio))
        except UserError as error:
            raise UserError(f'{where}:width: {error}') from None
        block.clear()
        block.update(narrow)


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
        raise UserError(f'the keys of {file} do not tell which network the teacher is; write teacher:network.')
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


def read_run(path: str | os.PathLike, overrides: Iterable[str] = (), root_path: str = '') -> dict:
    """Reads the option file of a run: complete, with everything that it extends, imports and narrows.

    Args:
        path: The file.
        overrides: Entries of ``--force_yml`` (:func:`force`), as if they stood in the file; those inside a network with
            a ``width`` change the narrowed network.
        root_path: Where a relative path of the teacher's file is looked for after the current folder.

    Raises:
        UserError: The first mistake, with the file's name.
    """
    opt, overrides = read_merged(path), list(overrides)
    late = [entry for entry in overrides if WITHIN_NETWORK.match(entry.strip())]
    try:
        force(opt, [entry for entry in overrides if entry not in late])
        import_entry_points()
        if opt.get('imports') is not None:
            import_modules(opt['imports'])
        resolve_widths(opt, root_path)
        force(opt, late)
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    return opt
