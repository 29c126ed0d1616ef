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
    check_paths(scenario, phase)
    cls = lookup(DATASET_REGISTRY, options['type'], f'{where}:type')
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


def is_lmdb(options: Mapping) -> bool:
    """Whether the images of a data set lie in LMDB data sets."""
    backend = options.get('io_backend')
    return isinstance(backend, Mapping) and backend.get('type') == 'lmdb'


def check_paths(scenario: Scenario, phase: str) -> None:
    """The folders and lists of a data set are there.

    Raises:
        UserError: All that are not.
    """
    where, options = f'datasets:{phase}', scenario.datasets[phase]
    with Mistakes() as mistakes:
        for key in ('dataroot_gt', 'dataroot_lq'):
            root = options.get(key)
            roots = [each for each in (root if isinstance(root, list) else [root]) if isinstance(each, str)]
            missing = [each for each in roots if not os.path.isdir(each)]
            for folder in missing:
                mistakes.add(f'{where}:{key}', f'the folder {folder} does not exist.')
            for each in (each for each in roots if is_lmdb(options) and each not in missing):
                if lacking := [name for name in ('data.mdb', 'meta_info.txt') if not os.path.isfile(f'{each}/{name}')]:
                    mistakes.add(f'{where}:{key}', f'{each} is no LMDB data set, it has no {lacking[0]}.')
        for key in ('meta_info', 'meta_info_file'):
            if isinstance(options.get(key), str) and not os.path.isfile(options[key]):
                mistakes.add(f'{where}:{key}', f'the file {options[key]} does not exist.')
