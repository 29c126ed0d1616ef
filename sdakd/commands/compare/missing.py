"""What a dry run misses: it is noted and told at the end, with how to get it, instead of ending the command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from sdakd.compat import UserError
from sdakd.files.testsets import split_pair

_noted: ContextVar[dict[str, str] | None] = ContextVar('noted', default=None)


@contextlib.contextmanager
def noted() -> Iterator[dict[str, str]]:
    """Whatever is missing inside is noted: sentences by what they are about, each once."""
    found: dict[str, str] = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def noting() -> bool:
    """Whether this is a dry run."""
    return _noted.get() is not None


def note(where: str, sentence: str) -> None:
    """Notes what is missing.

    Raises:
        UserError: This is no dry run.
    """
    found = _noted.get()
    if found is None:
        raise UserError(where, sentence)
    if sentence not in found.values():
        found[where] = sentence


def how_to_get(path: Path) -> str:
    """The sentence about a file that is not there: where it comes from."""
    from sdakd_arch.zoo import MODELS, sources_of

    if path.stem in MODELS and MODELS[path.stem].size:
        return f'{path} does not exist; `sdakd fetch {path.stem}` gets it, and so does the start.'
    if sources := sources_of(path.name):
        return f'{path} does not exist; the start fetches it from {sources[0].url}.'
    return f'{path} does not exist; put it there, or correct the path.'


def is_there(source: str) -> bool:
    """Whether a test set, ``HR``, ``HR:LR`` or ``:LR``, is there: only a dry run goes on without."""
    return all(Path(part).exists() for part in split_pair(source)[::2] if part)
