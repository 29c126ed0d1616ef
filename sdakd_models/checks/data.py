"""Checks of data sets: what is missing, empty, unreadable or of the wrong size is named before a run starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy

from basicsr.utils.registry import DATASET_REGISTRY

from sdakd.compat import Mistakes, UserError
from sdakd_arch.width import lookup
from sdakd_models.checks import images
from sdakd_models.scenario import Scenario


def check(scenario: Scenario, phase: str, shallow: bool = False) -> int:
    """Checks one entry of ``datasets:`` and counts its images.

    Args:
        scenario: The run.
        phase: The key of the data set.
        shallow: Count only.

    Raises:
        UserError: Unknown type, missing or empty folder, broken meta-info or LMDB, unreadable image (named), pairs
            whose sizes do not differ by the scale, images smaller than the crop, or numbers that are none.
    """
    where, options = f'datasets:{phase}', scenario.datasets[phase]
    if options['phase'] not in ('train', 'val'):
        raise UserError(f'{where}: a data set is called train, val or val_<number>.')
    if 'type' not in options or 'name' not in options:
        raise UserError(f'{where}: the key {"type" if "type" not in options else "name"} is missing.')
    backend = options.get('io_backend')
    is_lmdb = isinstance(backend, Mapping) and backend.get('type') == 'lmdb'
    with Mistakes() as mistakes:
        with mistakes.collect():
            cls = lookup(DATASET_REGISTRY, options['type'], f'{where}:type')
        if options['phase'] == 'train':
            _check_numbers(where, options, mistakes)
        _check_paths(where, options, is_lmdb, mistakes)
    try:
        dataset = cls(deepcopy(dict(options)))
        count = len(dataset)
    except KeyError as error:
        raise UserError(f'{where}: the key {error} is missing, {options["type"]} needs it.') from None
    except (AssertionError, ValueError, OSError, TypeError, AttributeError) as error:
        raise UserError(f'{where}: {str(error).rstrip(".") or type(error).__name__}.') from None
    if count == 0:
        raise UserError(f'{where}: no image was found in {options.get("meta_info") or options.get("dataroot_gt")}.')
    if not shallow:
        cached = phase == 'train' and any(entry.cache for entry in scenario.teachers.values())
        images.check(where, options, scenario.scale, dataset, keyed=('lq',) * cached)
    return count


def _check_numbers(where: str, options: Mapping, mistakes: Mistakes) -> None:
    for key, least in (('batch_size_per_gpu', 1), ('num_worker_per_gpu', 0), ('dataset_enlarge_ratio', 1)):
        value = options.get(key, 1 if key == 'dataset_enlarge_ratio' else None)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            mistakes.add(f'{where}:{key}', f'write a whole number of at least {least}, not {value!r}.')


def _check_paths(where: str, options: Mapping, is_lmdb: bool, mistakes: Mistakes) -> None:
    for key in ('dataroot_gt', 'dataroot_lq'):
        root = options.get(key)
        missing = [
            each
            for each in (root if isinstance(root, list) else [root])
            if each is not None and not os.path.isdir(each)
        ]
        for folder in missing:
            mistakes.add(f'{where}:{key}', f'the folder {folder} does not exist.')
        if is_lmdb and root and not missing and not os.path.isfile(os.path.join(str(root), 'meta_info.txt')):
            mistakes.add(f'{where}:{key}', f'{root} is no LMDB data set, it has no meta_info.txt.')
    for key in ('meta_info', 'meta_info_file'):
        if options.get(key) is not None and not os.path.isfile(options[key]):
            mistakes.add(f'{where}:{key}', f'the file {options[key]} does not exist.')
