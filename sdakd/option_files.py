"""Option files as YAML: read, what they extend, ``--force_yml`` applied; and BasicSR's command line, which names them.

On the ground floor beside :mod:`sdakd.compat`: neither torch nor BasicSR is imported, so that a mistake of the YAML
alone is told at once. What the keys mean is read by :mod:`sdakd_models.reader`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from sdakd.compat import Mistakes, Parser, UserError, near, no_file, one_voice
from sdakd.shipped import find_shipped, near_shipped, option_file

# values of --force_yml that change a narrowed network; all others change what is narrowed
WITHIN_NETWORK = re.compile(r'(network_[gd]|discriminators:[^:=]+:network):(?!width *=)')

OPTIONAL = ('train', 'path', 'val', 'teacher', 'logger')  # blocks that --force_yml may add keys to


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
    if os.path.exists(path) and not os.path.isdir(path) and (reason := no_file(path)):
        raise UserError('-opt', f'{path} {reason}.')
    try:
        with open(path, encoding='utf-8') as file:
            content = yaml.load(file, _Loader)
    except RecursionError:
        raise UserError(str(path), 'its blocks lie too deep in each other.') from None
    except OSError as error:
        raise UserError(f'-opt: {path} cannot be read ({error.strerror}).') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, 'problem_mark', None)
        line = f' in line {mark.line + 1}' if mark else ''
        raise UserError(f'{path}: broken YAML{line}: {getattr(error, "problem", error)}.') from None
    if not isinstance(content, dict):
        raise UserError(f'{path}: this is no option file, it must hold keys and values.')
    return content


def read_merged(path: str | os.PathLike, instead: Mapping[Path, Path] | None = None) -> dict:
    """Reads a file and what it extends: ``extends: other.yml``, relative to the folder of the file that says so.

    Where there is no such file, it may be the name of one that ships (:func:`sdakd.shipped.find_shipped`). See
    :func:`merge`. The modules under ``imports`` add up.

    Args:
        path: The file.
        instead: Files that are extended in the place of others.

    Raises:
        UserError: As :func:`read_yaml`; a file that is missing or extends itself.
    """
    return _read_chain(str(path), [], {os.path.realpath(old): str(new) for old, new in (instead or {}).items()})


def _read_chain(path: str, above: list[str], instead: Mapping[str, str]) -> dict:
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
        shipped = find_shipped(name)
        if shipped is None:
            raise UserError(
                f'{path}: extends: the file {base} does not exist; the path starts from the folder of {path}, or is '
                f'the name of an option file that ships, {near_shipped(name)}.'
            )
        base = str(shipped)
    base = instead.get(os.path.realpath(base), base)
    inherited = _read_chain(base, [*above, path], instead)
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
    with Mistakes() as mistakes:
        for entry in entries:
            with mistakes.collect():
                _force(opt, entry)


def _force(opt: dict, entry: str) -> None:
    where = f'--force_yml {entry}'
    keys, equals, text = entry.partition('=')
    if not equals:
        raise UserError(where, 'write key:key=value.')
    try:
        value = yaml.safe_load(text.strip())
    except yaml.YAMLError:
        raise UserError(where, 'the value is no YAML literal.') from None
    *parents, last = keys.strip().split(':')
    block = opt
    for depth, key in enumerate(parents):
        if not isinstance(block.get(key), dict):
            raise UserError(where, f'there is no block {":".join(parents[: depth + 1])}; {near(key, block)}.')
        block = block[key]
    optional = parents[:2] == ['train', 'stages'] or parents in ([key] for key in OPTIONAL)
    if last not in block and not optional and keys.strip() != 'num_threads':
        raise UserError(where, f'there is no key {keys.strip()}; {near(last, block)}.')
    block[last] = value


def read_options(
    path: str | os.PathLike, overrides: Iterable[str] = (), instead: Mapping[Path, Path] | None = None
) -> tuple[dict, list[str]]:
    """Reads an option file with what it extends and applies ``--force_yml``: all that YAML alone tells.

    Returns:
        The options; and the entries of ``overrides`` that are left, because the network that they change has a
        ``width`` and is not narrowed yet.

    Raises:
        UserError: As :func:`read_merged` and :func:`force`, with the file's name.
    """
    opt, overrides = read_merged(path, instead), list(overrides)
    within = [entry for entry in overrides if WITHIN_NETWORK.match(entry.strip())]
    left: list[str] = []
    try:
        with Mistakes() as mistakes:
            with mistakes.collect():
                force(opt, [entry for entry in overrides if entry not in within])
            left = [entry for entry in within if '=' in entry and _is_narrowed(opt, entry)]
            with mistakes.collect():
                force(opt, [entry for entry in within if entry not in left])
    except UserError as error:
        raise error.within(str(path)) from None
    return opt, left


def _is_narrowed(opt: Mapping, entry: str) -> bool:
    block: object = opt
    for key in WITHIN_NETWORK.match(entry.strip())[1].split(':'):
        block = _mapping(block).get(key)
    return 'width' in _mapping(block)


# ---------------------------------------------- the command line of a training ----------------------------------------


def arguments() -> argparse.Namespace:
    """BasicSR's own flags, as the command line gives them; ``opt`` is the path of the option file."""
    parser = Parser()
    parser.add_argument('-opt', type=str, required=True, help='option file (YAML), or the name of one that ships')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher')
    parser.add_argument('--auto_resume', action='store_true', help='continue from the last saved state, if any')
    parser.add_argument(
        '--change_stages', action='store_true', help='continue although train:stages has changed since the run began'
    )
    parser.add_argument('--debug', action='store_true', help='name the run debug_..., log, save and validate often')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')
    parser.add_argument('--force_yml', nargs='+', help='change values of the option file: train:ema_decay=0.99')
    found = parser.parse_args()
    with one_voice():
        found.opt = option_file(found.opt)
    return found


def model_type() -> str | None:
    """The ``model_type`` of the option file that the command line names; None where it does not say one, or says two.

    The file is parsed and its values are not made: option files of other models may hold YAML tags that only BasicSR's
    loader accepts, which executes what they ask for. So it gets what says another model as a key of the file, and never
    what merely holds such a line.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('-opt')
    path = parser.parse_known_args()[0].opt
    if path is not None and not os.path.isfile(path):
        path = find_shipped(path)
    if path is None:
        return None
    try:
        with open(path, encoding='utf-8') as file:
            root = yaml.compose(file, yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None  # read_yaml() says what is wrong
    keys = root.value if isinstance(root, yaml.MappingNode) else ()
    found = [value for key, value in keys if key.value == 'model_type']
    return found[0].value if len(found) == 1 and isinstance(found[0], yaml.ScalarNode) else None


def check_command_line() -> None:
    """Reads the option file of a training before torch is imported, for what its YAML alone has wrong.

    A file that may be of another model is left to BasicSR.

    Raises:
        UserError: As :func:`read_options`.
    """
    if (model_type() or 'SDAKD').startswith('SDAKD'):
        flags = arguments()
        with one_voice():
            read_options(flags.opt, flags.force_yml or ())
