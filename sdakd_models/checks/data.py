"""Checks of data sets: what is missing, empty, unreadable or of the wrong size is named before a run starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from copy import deepcopy

import cv2
import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY
from PIL import Image

from sdakd.compat import Mistakes, UserError, no_file
from sdakd_arch.width import lookup
from sdakd_models.scenario import Scenario

DECODED = 100  # images per set that are decoded whole; of the others only existence and size are read


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
    paths = getattr(dataset, 'paths', None)
    if not shallow and paths:
        reader = _Lmdb(options) if is_lmdb(options) else _Disk()
        try:
            _check_images(where, options, scenario.scale, paths, reader)
        finally:
            reader.close()
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
            if is_lmdb(options) and roots and not missing and not os.path.isfile(f'{roots[0]}/meta_info.txt'):
                mistakes.add(f'{where}:{key}', f'{root} is no LMDB data set, it has no meta_info.txt.')
        for key in ('meta_info', 'meta_info_file'):
            if isinstance(options.get(key), str) and not os.path.isfile(options[key]):
                mistakes.add(f'{where}:{key}', f'the file {options[key]} does not exist.')


class _Disk:
    """Images in folders: existence, size from the header, and the pixels."""

    def close(self) -> None:
        pass

    def size(self, path: str, side: str) -> tuple[int, int] | None:
        if reason := no_file(path):
            raise OSError(reason)
        with Image.open(path) as image:
            return image.size

    def pixels(self, path: str, side: str) -> np.ndarray | None:
        return cv2.imread(path, cv2.IMREAD_UNCHANGED)


class _Lmdb:
    """Images in LMDB data sets; their sizes stand in ``meta_info.txt``."""

    def __init__(self, options: Mapping) -> None:
        import lmdb

        self.environments = {}
        self.sizes = {}
        for side in ('gt', 'lq'):
            folder = options.get(f'dataroot_{side}')
            if folder:
                try:
                    self.environments[side] = lmdb.open(folder, readonly=True, lock=False, readahead=False)
                except lmdb.Error as error:
                    raise UserError(f'datasets: {folder} cannot be opened as LMDB ({error}).') from None
                with open(os.path.join(folder, 'meta_info.txt')) as file:
                    for line in file:
                        name, _, rest = line.partition(' (')
                        height, width = rest.split(',')[:2]
                        self.sizes[side, name.split('.')[0]] = (int(width), int(height))

    def close(self) -> None:
        """lmdb opens a database once in a process: the data loader comes next."""
        for environment in self.environments.values():
            environment.close()

    def size(self, key: str, side: str) -> tuple[int, int] | None:
        with self.environments[side].begin() as transaction:
            if transaction.get(key.encode('ascii')) is None:
                raise OSError('the key is not in the database')
        return self.sizes.get((side, key))

    def pixels(self, key: str, side: str) -> np.ndarray | None:
        with self.environments[side].begin() as transaction:
            return cv2.imdecode(np.frombuffer(transaction.get(key.encode('ascii')), np.uint8), cv2.IMREAD_UNCHANGED)


def _pairs(paths: list) -> Iterator[dict[str, str]]:
    """A data set's paths by side: ``gt`` and ``lq``."""
    for entry in paths:
        yield (
            {key.removesuffix('_path'): path for key, path in entry.items()}
            if isinstance(entry, Mapping)
            else {'': entry}
        )


def _check_images(where: str, options: Mapping, scale: int, paths: list, reader: _Disk | _Lmdb) -> None:
    single = 'gt' if options.get('dataroot_gt') else 'lq'
    step = max(1, len(paths) // DECODED)
    logging.getLogger('PIL').setLevel(logging.WARNING)
    for number, sides in enumerate(_pairs(paths)):
        sizes = {}
        for side, path in sides.items():
            side = side or single
            try:
                sizes[side] = reader.size(path, side)
                broken = number % step == 0 and reader.pixels(path, side) is None
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, cv2.error):
                broken = True
            if broken:
                reason = no_file(path) if isinstance(reader, _Disk) else None
                remedy = f'{reason}; correct the list' if reason else 'cannot be read; mend it or take it away'
                raise UserError(f'{where}: the image {path} {remedy}.')
        if None in sizes.values():
            continue
        side = options.get('out_size')
        if side is not None and set(sizes.values()) != {(side, side)}:
            width, height = next(iter(sizes.values()))
            raise UserError(
                f'{where}: {next(iter(sides.values()))} is {width}x{height}, not {side}x{side}; make faces of one size '
                f'with `sdakd prepare faces --size {side}`.'
            )
        if len(sizes) == 2 and options['phase'] == 'train':
            (gt_w, gt_h), (lq_w, lq_h) = sizes['gt'], sizes['lq']
            crop = options.get('gt_size', 0)
            if (gt_w, gt_h) != (lq_w * scale, lq_h * scale):
                raise UserError(
                    f'{where}: {sides["gt"]} is {gt_w}x{gt_h} and its LQ image {lq_w}x{lq_h}, which scale {scale} does '
                    'not relate; crop the ground truth to a multiple of the scale.'
                )
            if not isinstance(crop, int) or crop % scale or min(gt_w, gt_h) < crop:
                raise UserError(
                    f'{where}:gt_size: the crop of {crop} must be a multiple of scale {scale} and fit into '
                    f'{sides["gt"]} ({gt_w}x{gt_h}).'
                )
