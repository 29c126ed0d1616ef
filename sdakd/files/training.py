"""How a network was trained, as its file says it: the key ``training`` of what `sdakd export` writes.

``training`` is never empty. It holds

- the keys of the run's option file, where one is known, with absolute paths cut to their last part;
- ``source``: ``option file``, ``stated`` (by whoever has written the file), or ``not recorded``;
- ``facts``: what an option file does not say. ``teachers`` is a list, of each its ``file``, ``sha256`` and ``values``
  (:func:`sdakd_arch.zoo.values_digest`) where the file was at hand, and, of an official one, ``official`` (its name),
  ``told by`` (:func:`sdakd_arch.zoo.official`) and ``license``; ``iterations``; where a command knows more, ``recipe``,
  ``batch``, ``data``, ``degradation``, ``limits``; for an official network itself ``official``, ``told by``
  and ``license``;
- where nothing is known, ``reason``, and ``file`` and ``sha256`` of the file that says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd.compat import UserError, no_file
from sdakd.files.generators import options_beside
from sdakd_arch.weights import read_weights
from sdakd_arch.zoo import LICENCE, digest_of, official, values_digest

if TYPE_CHECKING:
    from sdakd.files.generators import Opened

KNOWN, UNKNOWN = 'option file', 'not recorded'  # what ``source`` is
LARGEST = 1 << 20  # bytes of a description beside weights


def training_of(opened: Opened) -> dict:
    """How a generator was trained: what its file says, else ``NAME.json`` beside it, else the option file of its run.

    Of a network that is official itself, the licence is added.

    Returns:
        See the module; it can be written as JSON.
    """
    said = _said(opened.metadata.get('training')) or _said_beside(opened.path)
    if said and said['source'] != UNKNOWN:
        return said
    beside = options_beside(opened.path)
    # the folders above may hold another network's option file
    if beside and all((opened.network or {}).get(key, value) == value for key, value in beside['network_g'].items()):
        found = [_teacher(weights, opened.path) for weights in _weights_of_teachers(beside)]
        facts = {'teachers': found} | ({'iterations': iters} if (iters := _iterations(opened.path)) else {})
        return {**without_folders(beside), 'source': KNOWN, 'facts': facts}
    if said:
        return said
    reason = 'the option file two folders above is of another network' if beside else (
        'no option file lies two folders above, and the file itself says nothing'
    )  # fmt: skip
    facts = _of_official(opened.path)
    return {'source': UNKNOWN, 'reason': reason, 'file': opened.path.name, 'sha256': digest_of(opened.path)} | (
        {'facts': facts} if facts else {}
    )


def without_folders(value: object) -> object:
    """Options with absolute paths cut to their last part: a file that is passed on tells nothing of this machine."""
    if isinstance(value, Mapping):
        return {str(key): without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_folders(entry) for entry in value]
    if isinstance(value, str) and re.match(r'[/~]|[A-Za-z]:[\\/]', value):
        return re.split(r'[\\/]', value.rstrip('\\/'))[-1]
    return value


def beside(path: Path) -> Path:
    """The file in which a weights file that cannot say anything of itself is described."""
    return path.with_suffix('.json')


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
    return found


def _said_beside(path: Path) -> dict | None:
    """``training`` of ``NAME.json``, which `sdakd export` writes beside ``.pth`` and ncnn's files."""
    file = beside(path)
    if no_file(file) or file.stat().st_size > LARGEST:
        return None
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):  # a file of someone else
        return None
    return _said(content.get('training')) if isinstance(content, dict) else None


def _weights_of_teachers(options: Mapping) -> list[str]:
    """The files of the teachers of an option file, those of ``teacher`` and ``teachers``."""
    entries = options.get('teachers')
    blocks = [options.get('teacher'), *(entries.values() if isinstance(entries, Mapping) else ())]
    files = [block.get('weights') for block in blocks if isinstance(block, Mapping)]
    return [file for file in files if isinstance(file, str) and file]


def _named(weights: str) -> dict:
    """What the name of a teacher's file alone tells."""
    name = re.split(r'[\\/]', weights)[-1]
    return {'file': name, **_official_facts(official(Path('/nowhere', name)))}


def _teacher(weights: str, model: Path) -> dict:
    """What is known of a teacher: all of its file, where that is found from here or from above ``experiments/``."""
    folders = [Path(), *model.resolve().parents[3:4]]
    file = next((path for path in (folder / weights for folder in folders) if not no_file(path)), None)
    if file is None:
        return _named(weights)
    try:
        values = {'values': values_digest(read_weights(file, 'params_ema'))}
        return {'file': file.name, 'sha256': digest_of(file), **values, **_of_official(file)}
    except UserError:  # it has become another file since
        return _named(weights)


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
