"""Faces are measured at every factor by itself: each test set at each factor is a set of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path


def at(name: str, factor: int) -> str:
    """The name of a test set at a factor."""
    return f'{name} x{factor}'


def names_of(sets: Sequence[str], factors: Sequence[int]) -> list[str]:
    """The sets' names in tables; with one factor, or none, those of the test sets."""
    return [at(name, factor) for factor in factors for name in sets] if len(factors) > 1 else list(sets)


def source_of(name: str, sources: Mapping[str, str]) -> str | None:
    """The source of a set, by its name with or without a factor."""
    return sources.get(name, sources.get(name.rpartition(' x')[0]))


def merge(folder: Path, factors: Sequence[int]) -> dict:
    """One section of what ``sdakd evaluate`` wrote into a folder for each factor.

    Pictures are those of the largest factor, as the page shows one.

    Args:
        folder: Holds ``x4/results.json`` and so on; receives the section in its own ``results.json``.
    """
    from sdakd.files import results

    parts = {factor: deepcopy(results.read_results(folder / f'x{factor}')['evaluate']) for factor in factors}
    merged, last = dict(parts[factors[0]]), max(factors)
    for key, name in (('sets', 'name'), ('scores', 'set'), ('differences', 'set')):
        merged[key] = [entry | {name: at(entry[name], factor)} for factor, part in parts.items() for entry in part[key]]
    merged |= {'scale': last, 'pictures': {}}
    for of, pictures in (parts[last].get('pictures') or {}).items():
        merged['pictures'][at(of, last)] = {name: _below(f'x{last}', entry) for name, entry in pictures.items()}
    results.write_section(folder, 'evaluate', merged)
    return merged


def _below(folder: str, picture: Mapping) -> dict:
    """A picture's files, seen from the folder above; absolute paths stay."""
    return {
        key: _below(folder, value) if isinstance(value, Mapping) else (Path(folder) / value).as_posix()
        for key, value in picture.items()
    }
