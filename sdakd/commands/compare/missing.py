"""What a dry run misses: it is noted and told at the end, with how to get it, instead of ending the command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from sdakd.compat import UserError
from sdakd.files.testsets import split_pair

_noted: ContextVar[dict[str, str] | None] = ContextVar('noted', default=None)
SETS = {  # by a word in a folder's path: who publishes the images
    'df2k': "Real-ESRGAN's docs/Training.md says where DIV2K, Flickr2K, OST and the list of their images are published",
    'div2k': 'DIV2K is published at https://data.vision.ee.ethz.ch/cvl/DIV2K/',
    'ffhq': 'FFHQ is published at https://github.com/NVlabs/ffhq-dataset',
    'celeba-hq': 'CelebA-HQ is published at https://github.com/tkarras/progressive_growing_of_gans',
    'gcfsr': 'the README of https://github.com/hejingwenhejingwen/GCFSR says where its authors publish it',
}


@contextlib.contextmanager
def noted() -> Iterator[dict[str, str]]:
    """Whatever is missing inside is noted: what it is about, by the sentence."""
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
    found.setdefault(sentence, where)


def how_to_get(path: Path) -> str:
    """The sentence about a file that is not there: where it comes from."""
    from sdakd_arch.zoo import MODELS, sources_of

    if path.stem in MODELS and MODELS[path.stem].size:
        return f'{path} does not exist; `sdakd fetch {path.stem}` gets it, and so does the start.'
    if sources := sources_of(path.name):
        return f'{path} does not exist; the start fetches it from {sources[0].url}.'
    return f'{path} does not exist; {_publisher(path)}put it there, or correct the path.'


def folder_to_get(path: str) -> str:
    """The sentence about a folder that is not there."""
    return f'the folder {path} does not exist; {_publisher(path)}correct the path.'


def _publisher(path: str | Path) -> str:
    told = next((told for word, told in SETS.items() if word in str(path).lower()), None)
    return f'{told}; ' if told and noting() else ''


def is_there(source: str) -> bool:
    """Whether a test set, ``HR``, ``HR:LR`` or ``:LR``, is there: only a dry run goes on without."""
    return all(Path(part).exists() for part in split_pair(source)[::2] if part)
