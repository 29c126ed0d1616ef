"""Who is in training, validation and test: a list of identities, and parts that share none."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdakd.compat import UserError, near, no_file
from sdakd.files.images import ENDINGS, stem

PARTS = ('train', 'validation', 'test')
FORM = 'write a line per picture: name,identity or name,identity,part'


@dataclass(frozen=True)
class Entry:
    """A line of the list."""

    name: str
    identity: str
    part: str | None
    line: int


def key_of(name: str) -> str:
    """A picture's name without an image's ending, so that a list of .jpg names fits the same pictures as .png."""
    return stem(name) if name.lower().endswith(ENDINGS) else name


def read_list(path: str) -> dict[str, Entry]:
    """Reads a list of identities, by key of the picture.

    A line is ``name,identity`` or ``name,identity,part``: CSV if the first line has a comma, otherwise separated by
    spaces, as CelebA's list is. A first line that starts with the word ``name`` is a heading.

    Raises:
        UserError: It cannot be read, a line is of another form or contradicts another, or an identity is in two parts.
    """
    if reason := no_file(path):
        raise UserError('--identities', f'the file {path} {reason}.')
    try:
        lines = Path(path).read_text(encoding='utf-8-sig').splitlines()
    except OSError as error:
        raise UserError('--identities', f'{path} cannot be read ({error.strerror}).') from None
    except UnicodeDecodeError:
        raise UserError('--identities', f'{path} is no text; {FORM}.') from None
    comma = ',' in next((line for line in lines if line.strip()), '')
    entries: dict[str, Entry] = {}
    homes: dict[str, Entry] = {}
    for number, line in enumerate(lines, 1):
        words = [word.strip() for word in next(csv.reader([line]), [])] if comma else line.split()
        if not any(words) or (not entries and words[0].lower() == 'name'):
            continue
        where = f'--identities: line {number} of {path}'
        if len(words) not in (2, 3) or not all(words):
            raise UserError(f'{where} is {line.strip()!r}; {FORM}.')
        entry = Entry(words[0], words[1], words[2] if words[2:] else None, number)
        if entry.part not in (None, *PARTS):
            raise UserError(f'{where} has the part {entry.part}; {near(entry.part, PARTS)}.')
        first = next(iter(entries.values()), entry)
        if (entry.part is None) != (first.part is None):
            raise UserError(f'{where} and line {first.line} differ: only one has a part; give one to all or to none.')
        other = entries.setdefault(key_of(entry.name), entry)
        home = homes.setdefault(entry.identity, entry)
        if other.identity != entry.identity:
            raise UserError(
                f'{where} says that {entry.name} is {entry.identity}, and line {other.line} that it is '
                f'{other.identity}; leave one of them.'
            )
        if home.part != entry.part:
            raise UserError(
                f'{where} puts {entry.identity} into {entry.part}, and line {home.line} into {home.part}; an identity '
                'belongs to one part.'
            )
    if not entries:
        raise UserError('--identities', f'{path} is empty; {FORM}.')
    return entries


def assign(names: Iterable[str], path: str, held_out: dict[str, int]) -> dict[str, tuple[str, str]]:
    """Gives every picture its part and its identity.

    Where the list names no parts, identities are held out in the order of the SHA-256 of their names: the choice does
    not depend on the order of the list, and changes little when identities are added.

    Args:
        names: The pictures.
        path: The list.
        held_out: How many identities ``validation`` and ``test`` get; empty where the list says it.

    Raises:
        UserError: The list is faulty, lacks a picture, or does not go together with the numbers.
    """
    entries, names = read_list(path), list(names)
    missing = [name for name in names if key_of(name) not in entries]
    if missing:
        raise UserError(
            '--identities',
            f'{path} lacks {len(missing)} of {len(names)} pictures, the first is {missing[0]}; add them '
            'or move them to another folder.',
        )
    found = {name: entries[key_of(name)] for name in names}
    flags = ' and '.join(f'--{part}' for part in held_out)
    if next(iter(entries.values())).part is not None:
        if held_out:
            raise UserError('--identities', f'{path} names the part of every picture; leave out {flags}.')
        return {name: (entry.part, entry.identity) for name, entry in found.items()}
    if not held_out:
        raise UserError(
            '--identities',
            f'{path} does not say who is held out; give --validation or --test a number of identities, '
            'or each line its part.',
        )
    people = sorted({entry.identity for entry in found.values()}, key=lambda who: hashlib.sha256(who.encode()).digest())
    if sum(held_out.values()) >= len(people):
        raise UserError(flags, f'{path} has {len(people)} identities in these pictures; leave some for training.')
    parts, left = dict.fromkeys(people, 'train'), iter(people)
    for part, count in held_out.items():
        parts.update((next(left), part) for _ in range(count))
    return {name: (parts[entry.identity], entry.identity) for name, entry in found.items()}
