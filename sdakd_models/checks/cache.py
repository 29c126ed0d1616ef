"""Teachers' caches: whether a run can use them, and whether what lies in their folders is this run's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Set

import torch
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.taps import FeatureTaps
from sdakd_arch.weights import fingerprint
from sdakd_arch.width import build, example_inputs
from sdakd_data.cached_dataset import CachedPairedDataset
from sdakd_data.teacher_cache import TeacherCache, key_of
from sdakd_models.options import read_teachers
from sdakd_models.terms import TERMS
from sdakd_models.wiring import needed_teachers, teacher_network, used_discriminators

PAIRED = ('PairedImageDataset', 'RealESRGANPairedDataset')


def check_caches(opt: dict, terms: Set[str], shallow: bool = False) -> None:
    """Checks the caches of the teachers that a run needs, and has the training data set read them.

    Args:
        opt: All options, checked but for this; ``datasets:train`` is changed.
        terms: The terms in use.
        shallow: Does not look at the folders.

    Raises:
        UserError: The data are not paired, or a folder holds the answers of another teacher, to other images or damaged
            ones, or the disk has no room for those that are missing.
    """
    every = needed_teachers(opt, terms, used_discriminators(opt, terms))
    options = read_teachers(opt)
    names = [name for name in every if options[name].cache is not None]
    if not names:
        return
    where = {name: f'{"teacher" if name == "teacher" else f"teachers:{name}"}:cache' for name in names}
    train = opt['datasets']['train']
    folders: dict[str, str] = {}
    for name in names:
        folder = options[name].cache
        if options[name].replace_by is not None:
            raise UserError(f'{where[name]}: a teacher that learns (replace_by) has no lasting answers; leave it out.')
        if folder in folders:
            raise UserError(f'{where[name]}: {folder} is the folder of {where[folders[folder]]}; name another one.')
        folders[folder] = name
    _check_data(opt, train, where[names[0]])

    networks = {name: teacher_network(opt, name) for name in every}
    prints = {name: fingerprint(networks[name]) for name in names}
    networks = {name: network.to('meta').eval() for name, network in networks.items()}
    student = build(opt['network_g'], 'network_g').to('meta') if opt.get('network_g') else None
    taps: dict[str, set[str]] = {name: set() for name in every}
    for term in sorted(terms & TERMS.keys()):
        for name, found in TERMS[term].teacher_taps(opt['train'][TERMS[term].option], student, networks).items():
            taps[name].update(found)
            if found and name in names and (train.get('use_hflip') or train.get('use_rot')):
                raise UserError(
                    f'{where[name]}: the term {term!r} compares feature maps, and those of a flipped image are not the '
                    'flipped maps; write use_hflip: false and use_rot: false under datasets:train, or leave cache out.'
                )
    sizes = {name: _sizes(networks[name], sorted(taps[name]), where[name]) for name in names}
    caches = {name: {'folder': options[name].cache, 'taps': sorted(taps[name]), 'where': where[name]} for name in names}
    swapped = {**train, 'type': CachedPairedDataset.__name__, 'plain': train['type'], 'caches': caches}
    if not shallow:
        for name in names:
            TeacherCache(**caches[name]).check(prints[name])
        pairs = CachedPairedDataset(swapped)
        try:
            _check_entries(pairs, {name: {'': (opt['scale'], 3), **sizes[name]} for name in names})
        finally:
            pairs.close()
    train.update(swapped)


def _check_data(opt: Mapping, train: Mapping, where: str) -> None:
    if train['type'] not in PAIRED or ('RealESRGAN' in opt['model_type'] and opt.get('high_order_degradation', True)):
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
    for number in range(len(pairs)):
        image = pairs.read(number, 'lq')
        key = key_of(image)
        if key in seen:
            continue
        seen.add(key)
        for name, cache in pairs.caches.items():
            missing = cache.missing(key)
            for tap, (k, channels) in sizes[name].items():
                shape = (image.shape[0] * k, image.shape[1] * k, channels)
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
