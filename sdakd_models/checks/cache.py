"""Teachers' caches: whether a run can use them, and whether what lies in their folders is this run's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

import torch
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.taps import FeatureTaps
from sdakd_arch.width import example_inputs
from sdakd_data.cached_dataset import CachedPairedDataset
from sdakd_data.teacher_cache import TeacherCache
from sdakd_models.cast import Cast
from sdakd_models.scenario import Scenario

PAIRED = ('PairedImageDataset', 'RealESRGANPairedDataset')


def check(scenario: Scenario, cast: Cast, shallow: bool = False) -> None:
    """Checks the caches of the teachers that a run needs, and has the training data set read them.

    Args:
        scenario: The run; ``datasets:train`` is changed.
        cast: Its networks on ``'meta'``.
        shallow: Does not look at the folders.

    Raises:
        UserError: The data are not paired, or a folder holds the answers of another teacher, to other images or damaged
            ones, or the disk has no room for those that are missing.
    """
    teachers = {name: entry for name, entry in scenario.teachers.items() if entry.cache is not None}
    if not teachers:
        return
    where = {name: entry.key('cache') for name, entry in teachers.items()}
    train = scenario.datasets['train']
    folders: dict[str, str] = {}
    for name, entry in teachers.items():
        if entry.cotrain is not None:
            raise entry.error('a teacher that learns (cotrain) has no lasting answers; leave it out.', 'cache')
        if entry.cache in folders:
            raise entry.error(
                f'{entry.cache} is the folder of {where[folders[entry.cache]]}; name another one.', 'cache'
            )
        folders[entry.cache] = name
    _check_data(scenario, train, next(iter(where.values())))

    taps = {name: cast.taps[name].names if name in cast.taps else [] for name in teachers}
    compared = [name for name, term in cast.terms.items() if term.needs_features]
    for name, entry in teachers.items():
        if taps[name] and (train.get('use_hflip') or train.get('use_rot')):
            raise entry.error(
                f'the term {compared[0]!r} compares feature maps, and those of a flipped image are not the flipped '
                'maps; write use_hflip: false and use_rot: false under datasets:train (in a comparison flips: false '
                'under budget), or leave the cache out.',
                'cache',
            )
    sizes = {name: _sizes(cast.teachers[name], taps[name], where[name]) for name in teachers}
    caches = {name: {'folder': teachers[name].cache, 'taps': taps[name], 'where': where[name]} for name in teachers}
    swapped = {**train, 'type': CachedPairedDataset.__name__, 'plain': train['type'], 'caches': caches}
    if not shallow:
        for name in teachers:
            TeacherCache(**caches[name]).check(cast.fingerprints[name])
        _check_entries(
            CachedPairedDataset(swapped), {name: {'': (scenario.scale, 3), **sizes[name]} for name in teachers}
        )
    train.update(swapped)


def _check_data(scenario: Scenario, train: Mapping, where: str) -> None:
    if train['type'] not in PAIRED or scenario.degrades:
        raise UserError(
            f'{where}: only a pair that comes again has an answer to keep, and LQ images that are made while training '
            'do not; make pairs with `sdakd prepare pairs` and train on them (PairedImageDataset or '
            'RealESRGANPairedDataset, with high_order_degradation: false), or leave cache out.'
        )
    for key in ('mean', 'std', 'color'):
        if train.get(key) is not None:
            raise UserError(f'datasets:train:{key}: this key and {where} exclude each other; leave one out.')


def _sizes(network: nn.Module, names: list[str], where: str) -> dict[str, tuple[int, int]]:
    """By tap, how many pixels of a map stand for the side of an input pixel, and its channels."""
    taps = FeatureTaps(network, names, where)
    inputs = example_inputs(network, 32)
    with torch.no_grad(), taps:
        network(*inputs)
    found = {}
    for name, values in taps.pop().items():
        height, width = inputs[0].shape[-2:]
        k = values.shape[-1] // width
        if values.dim() != 4 or k == 0 or values.shape[-2:] != (height * k, width * k):
            raise UserError(
                f'{where}: the maps of {name} are {tuple(values.shape[1:])} for an input of {height}x{width}, so that '
                'crops of the input are none of theirs; leave cache out.'
            )
        found[name] = (k, values.shape[1])
    taps.close()
    return found


def _check_entries(pairs: CachedPairedDataset, sizes: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
    """What is there fits the images, and there is room for what is not."""
    known = dict.fromkeys(sizes, 0)
    room = dict.fromkeys(sizes, 0)  # bytes
    seen: set[str] = set()
    for number, (height, width, key) in enumerate(pairs.inputs()):
        if key in seen:
            continue
        seen.add(key)
        for name, cache in pairs.caches.items():
            missing = cache.missing(key)
            for tap, (k, channels) in sizes[name].items():
                shape = (height * k, width * k, channels)
                if tap in missing:
                    room[name] += 2 * shape[0] * shape[1] * shape[2]
                elif cache.read(key, tap).shape != shape:
                    raise UserError(
                        f'{cache.where}: the entry {cache.path(key, tap)} does not fit its image '
                        f'{pairs.paths[number]["lq_path"]}; delete it to have it made again.'
                    )
            known[name] += '' not in missing
    for name, cache in pairs.caches.items():
        if not known[name] and any(cache.path('').parent.glob('*.npy')):
            raise UserError(
                f'{cache.where}: {cache.folder} holds answers to other images and none to those of '
                f'{pairs.opt["dataroot_lq"]}; name another folder, or delete this one.'
            )
        parent = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.exists())
        if not os.access(parent, os.W_OK):
            raise UserError(f'{cache.where}: {parent} cannot be written to; name another folder.')
        free = shutil.disk_usage(parent).free
        if room[name] > free:
            raise UserError(
                f'{cache.where}: the answers that {cache.folder} lacks take {room[name] / 1e9:,.1f} GB, and '
                f'{free / 1e9:,.1f} GB are free; name a folder on a larger disk, or leave cache out.'
            )
