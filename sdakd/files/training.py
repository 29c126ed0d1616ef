"""How a network was trained, as its file says it: the key ``training`` of what `sdakd export` writes.

``training`` is never empty. It holds

- the keys of the run's option file, where one is known, with absolute paths cut to their last part;
- ``source``: ``option file``, ``stated`` (by whoever has written the file), or ``not recorded``;
- ``facts``: what an option file does not say. ``teachers`` is a list, of each its ``file``, ``sha256`` and ``values``
  (:func:`sdakd_arch.zoo.values_digest`) where the file was at hand, and, of an official one, ``official`` (its name),
  ``told by`` (:func:`sdakd_arch.zoo.official`) and ``license``; ``start``, the same of the weights that the training
  began with (``path:pretrain_network_g``), if it did; ``iterations``; where a command knows more, ``recipe``,
  ``batch``, ``data``, ``degradation``, ``limits``; for an official network itself ``official``, ``told by``
  and ``license``;
- where nothing is known, ``reason``, and ``file`` and ``sha256`` of the file that says nothing; of ncnn's files the
  ``.bin``, as all networks of a shape have the same ``.param``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd.compat import UserError, no_file
from sdakd.files.generators import METADATA, open_network, options_beside
from sdakd_arch.ncnn_file import is_ncnn
from sdakd_arch.weights import read_weights
from sdakd_arch.zoo import LICENCE, digest_of, official, values_digest

if TYPE_CHECKING:
    from sdakd.files.generators import Opened

KNOWN, UNKNOWN = 'option file', 'not recorded'  # what ``source`` is
PRIVATE = re.compile(
    r'\s*(?:[/\\~$%]|\.\.(?:[/\\]|$)|[a-z]:[/\\]|(?!https?://[^/@]*(?:/|$))[a-z][a-z0-9+.-]*:/)', re.IGNORECASE
)
LARGEST = 1 << 20  # bytes of a description beside weights


def training_of(opened: Opened) -> dict:
    """How a generator was trained: what its file says, else ``NAME.json`` beside it, else the option file of its run.

    Of a network that is official itself, the licence is added.

    Returns:
        See the module; it can be written as JSON.
    """
    return _training_of(opened, frozenset())


def _training_of(opened: Opened, seen: frozenset[Path]) -> dict:
    """The same for what a training began with, whose own start may be one of those that were ``seen``."""
    said = _said(opened.metadata.get('training')) or _said((description(opened) or {}).get('training'))
    if said and said['source'] != UNKNOWN:
        return said
    options = options_beside(opened.path)
    # the folders above may hold another network's option file
    if options and _same(options['network_g'], opened.network):
        facts = {'teachers': [_teacher(weights, opened.path) for weights in _weights_of_teachers(options)]}
        if weights := _weights_of_start(options):
            facts['start'] = _start(weights, opened.path, seen | {opened.path.resolve()})
        if iters := _iterations(opened.path):
            facts['iterations'] = iters
        return {**without_folders(options), 'source': KNOWN, 'facts': facts}
    if said:
        return said
    reason = 'the file itself says nothing'
    reason += f', {beside(opened.path).name} is not of this network' if not no_file(beside(opened.path)) else ''
    reason = 'the option file two folders above is of another network' if options else (
        f'no option file lies two folders above, and {reason}'
    )  # fmt: skip
    facts = _of_official(opened.path)
    weights = weights_file(opened.path)
    return {'source': UNKNOWN, 'reason': reason, 'file': weights.name, 'sha256': digest_of(weights)} | (
        {'facts': facts} if facts else {}
    )


def without_folders(value: object) -> object:
    """Options with private places cut to their last part: a file that is passed on tells nothing of this machine.

    These are absolute paths, shares and addresses that are not of the web, and what begins with ``~``, a variable
    or ``..``.
    """
    if isinstance(value, Mapping):
        return {str(key): without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    if isinstance(value, str) and PRIVATE.match(value):
        return re.split(r'[\\/]', value.rstrip('\\/'))[-1]
    return value


def beside(path: Path) -> Path:
    """The file in which a weights file that cannot say anything of itself is described."""
    return path.with_suffix('.json')


def weights_file(path: Path) -> Path:
    """The file that holds the weights: of ncnn's two the ``.bin``."""
    return path.with_suffix('.bin') if is_ncnn(path) else path


def values_of(path: Path) -> str | None:
    """:func:`sdakd_arch.zoo.values_digest` of a file; None where its weights cannot be read, as those of graphs."""
    if path.suffix == '.onnx':
        return None
    try:
        return values_digest(read_weights(path, 'params_ema'))
    except UserError:  # 8-bit weights of ncnn's
        return None


def description(opened: Opened) -> dict | None:
    """``NAME.json`` beside a model, if this project has written it, and of this network.

    A name may be that of another file, or of a file that was replaced since: the network has to be the same, and
    the values where their digest is there.
    """
    file = beside(opened.path)
    if no_file(file) or file.stat().st_size > LARGEST:
        return None
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):  # a file of someone else
        return None
    if not isinstance(content, dict) or not {'network', 'training'} <= content.keys() <= {*METADATA, 'values'}:
        return None
    if not _same(content['network'], opened.network):
        return None
    return content if content.get('values') in (None, values_of(opened.path)) else None


def _same(network: object, other: Mapping | None) -> bool:
    """Whether options of two networks agree where both give them; those of one may have been read from JSON."""
    if not isinstance(network, Mapping) or other is None or network.get('type') != other.get('type'):
        return False
    network, other = (json.loads(json.dumps(options, default=str)) for options in (network, other))
    return all(other.get(key, value) == value for key, value in network.items())


def start_of(training: Mapping) -> dict | None:
    """What the training began with, by the keys that the module names; None where it began with random weights."""
    if start := training.get('facts', {}).get('start'):
        return start
    weights = _weights_of_start(training)
    return _named(weights) if weights else None


def licence_told(training: Mapping) -> str | None:
    """The licence: its own where it is known, else that of all teachers and of what the training began with.

    Returns:
        None where one of them has none that is known, or they have several.
    """
    if own := training.get('facts', {}).get('license'):
        return own
    start = start_of(training)
    found = {source.get('license') for source in [*teachers_of(training), *([] if start is None else [start])]}
    return found.pop() if len(found) == 1 else None


def teachers_of(training: Mapping) -> list[dict]:
    """The teachers of a run, by the keys that the module names; empty where there was none or none is known."""
    return training.get('facts', {}).get('teachers', [])


def _said(training: object) -> dict | None:
    """What a file says; of one that was written before ``source`` and ``facts`` were, with these."""
    if not isinstance(training, dict) or not training:
        return None
    if isinstance(training.get('source'), str):
        facts = _plain(training.get('facts'))
        return {**training, 'facts': facts} if facts or 'facts' in training else training
    return {**training, 'source': KNOWN, 'facts': {'teachers': [_named(w) for w in _weights_of_teachers(training)]}}


def _plain(facts: object) -> dict:
    """Facts as this module writes them, of whatever a file holds: texts, whole numbers, and teachers of texts."""
    if not isinstance(facts, dict):
        return {}
    found = {key: value for key, value in facts.items() if isinstance(value, str | int)}
    if isinstance(teachers := facts.get('teachers'), list):
        mappings = [teacher for teacher in teachers if isinstance(teacher, dict)]
        found['teachers'] = [{k: v for k, v in each.items() if isinstance(v, str)} for each in mappings]
    if isinstance(start := facts.get('start'), dict):
        found['start'] = {k: v for k, v in start.items() if isinstance(v, str)}
    return found


def _weights_of_teachers(options: Mapping) -> list[str]:
    """The files of the teachers of an option file, those of ``teacher`` and ``teachers``."""
    entries = options.get('teachers')
    blocks = [options.get('teacher'), *(entries.values() if isinstance(entries, Mapping) else ())]
    files = [block.get('weights') for block in blocks if isinstance(block, Mapping)]
    return [file for file in files if isinstance(file, str) and file]


def _weights_of_start(options: Mapping) -> str | None:
    """The file that the training of an option file begins with."""
    path = options.get('path')
    weights = path.get('pretrain_network_g') if isinstance(path, Mapping) else None
    return str(weights) if weights else None


def _named(weights: str) -> dict:
    """What the name of a file alone tells."""
    name = re.split(r'[\\/]', weights)[-1]
    return {'file': name, **_official_facts(official(Path('/nowhere', name)))}


def _at_hand(weights: str, model: Path) -> Path | None:
    """A file of an option file, where it is found from here or from above ``experiments/``."""
    folders = [Path(), *model.resolve().parents[3:4]]
    return next((path for path in (folder / weights for folder in folders) if not no_file(path)), None)


def _teacher(weights: str, model: Path) -> dict:
    """What is known of a teacher: all of its file, where that is at hand."""
    file = _at_hand(weights, model)
    if file is None:
        return _named(weights)
    try:
        values = {'values': values_digest(read_weights(file, 'params_ema'))}
        return {'file': file.name, 'sha256': digest_of(weights_file(file)), **values, **_of_official(file)}
    except UserError:  # it has become another file since
        return _named(weights)


def _start(weights: str, model: Path, seen: frozenset[Path]) -> dict:
    """What is known of the weights that a training began with; they may be a student's, whose training tells more."""
    found, file = _teacher(weights, model), _at_hand(weights, model)
    if 'license' in found or file is None or file.resolve() in seen:
        return found
    try:
        told = licence_told(_training_of(open_network(file), seen))
    except UserError:
        return found
    return {**found, 'license': told} if isinstance(told, str) else found


def _of_official(path: Path) -> dict:
    return _official_facts(official(path))


def _official_facts(found: tuple[str, str] | None) -> dict:
    return {'official': found[0], 'told by': found[1], 'license': LICENCE} if found else {}


def _iterations(model: Path) -> int | None:
    """Iterations of a checkpoint of BasicSR's: of ``latest`` as many as the newest one beside it has."""
    if found := re.fullmatch(r'net_g_(\d+)', model.stem):
        return int(found[1])
    if model.stem != 'net_g_latest':
        return None
    numbers = [int(each.stem[6:]) for each in model.parent.glob('net_g_*.pth') if each.stem[6:].isdigit()]
    states = (model.resolve().parent.parent / 'training_states').glob('*.state')
    return max([*numbers, *(int(each.stem) for each in states if each.stem.isdigit())], default=None)
