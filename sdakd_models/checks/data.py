"""Checks of data sets: what is missing, empty, unreadable or of the wrong size is named before a run starts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path

from basicsr.utils.registry import DATASET_REGISTRY

from sdakd.compat import Mistakes, UserError, replacing
from sdakd_arch.width import lookup
from sdakd_data.decoded import Decoder, Size
from sdakd_data.remembered import cache_folder
from sdakd_models.scenario import Scenario

NAMED = 3  # images that a sentence names; the others are counted, and listed in a file
CUT = 24  # pixels that a ground truth of validation may be larger: it is cut, and 24 is a multiple of all usual scales


def check(scenario: Scenario, phase: str, shallow: bool = False) -> int:
    """Checks one entry of ``datasets:`` and counts its images.

    Args:
        scenario: The run.
        phase: The key of the data set.
        shallow: Count only.

    Raises:
        UserError: Unknown type, missing or empty folder, broken meta-info or LMDB, unreadable image (named), pairs
            whose sizes do not differ by the scale, images smaller than the crop, or numbers that are none. Of images
            with one fault, the first ones are named.
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
    paths = getattr(dataset, 'paths', None)
    if not shallow and paths:
        backend = getattr(dataset, 'io_backend_opt', None) or backend or {'type': 'disk'}
        decoder = Decoder(backend, {side: options.get(f'dataroot_{side}') for side in ('gt', 'lq')}, where)
        with contextlib.closing(decoder):
            _check_images(where, options, scenario.scale, paths, decoder)
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


class _Faults:
    """Images that cannot be used, gathered by fault: a sentence each, however many they are.

    Args:
        where: Key of the data set.
        listing: The file that gets all their names where a sentence does not name them all.
    """

    def __init__(self, where: str, listing: Path) -> None:
        self.where, self.listing = where, listing
        self.found: dict[str, tuple[str, str, list[str]]] = {}

    def add(self, kind: str, image: str, fault: str, remedy: str, key: str = '') -> None:
        """Takes one in.

        Args:
            kind: What is equal for all that go into one sentence.
            image: Its path or key.
            fault: What is wrong, with the image's name.
            remedy: What to do.
            key: The key of the data set that it concerns.
        """
        place = f'{self.where}:{key}' if key else self.where
        self.found.setdefault(kind, (place, f'{fault}; {remedy}', []))[2].append(image)

    def tell(self) -> None:
        """Raises what was gathered."""
        listed = any(len(images) > NAMED for _, _, images in self.found.values()) and self._list()
        with Mistakes() as mistakes:
            for place, sentence, images in self.found.values():
                home = os.path.dirname(images[0])
                others = [name if os.path.dirname(name) != home else os.path.basename(name) for name in images[1:NAMED]]
                if len(images) > NAMED:
                    others.append(f'{len(images) - NAMED:,d} more{f", listed in {self.listing}" if listed else ""}')
                text = ' and '.join([', '.join(others[:-1])] * (len(others) > 1) + others[-1:])
                mistakes.add(place, f'{sentence}{f"; the same holds for {text}" if text else ""}.')

    def _list(self) -> bool:
        names = [name for _, _, images in self.found.values() for name in images]
        try:
            self.listing.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.listing) as file:
                file.writelines(os.fsencode(f'{name}\n') for name in names)
        except (OSError, UserError):
            return False
        return True


def _check_images(where: str, options: Mapping, scale: int, paths: list, decoder: Decoder) -> None:
    single = 'gt' if options.get('dataroot_gt') else 'lq'
    total = sum(len(sides) for sides in _pairs(paths, single))
    images = (image for sides in _pairs(paths, single) for image in sides.items())
    sizes = decoder.sizes(images, total, f'images of {where}')
    number = decoder.memories[single].path.stem[:8]
    faults = _Faults(where, cache_folder() / f'unusable-{options["phase"]}-{number}.txt')
    with contextlib.closing(sizes):
        for sides in _pairs(paths, single):
            found = {side: next(sizes) for side in sides}
            for side, size in found.items():
                if isinstance(size, str):
                    _add_unreadable(faults, sides[side], size)
            if all(not isinstance(size, str) for size in found.values()):
                _check_sizes(faults, options, scale, sides, found)
    faults.tell()


def _pairs(paths: list, single: str) -> Iterator[dict[str, str]]:
    """A data set's images by side, ``gt`` and ``lq``; ``single`` where it has one."""
    for entry in paths:
        sides = entry if isinstance(entry, Mapping) else {single: entry}
        yield {
            side.removesuffix('_path'): os.fspath(path)
            for side, path in sides.items()
            if isinstance(path, str | os.PathLike)
        }


def _add_unreadable(faults: _Faults, image: str, reason: str) -> None:
    if 'that OpenCV decodes' in reason:
        remedy = 'cut it into smaller ones, or set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS'
    elif reason in ('does not exist', 'is a folder', 'is a pipe or a device, not a file'):
        remedy = 'correct the list'
    else:
        remedy = 'mend it or take it away'
    faults.add(re.sub(r'\d+x\d+', '', reason), image, f'the image {image} {reason}', remedy)


def _check_sizes(
    faults: _Faults, options: Mapping, scale: int, images: Mapping[str, str], sizes: Mapping[str, Size]
) -> None:
    """The sizes of one item: faces of one size, pairs that differ by the scale, crops that fit."""
    shown = {side: f'{width}x{height}' for side, (height, width, _) in sizes.items()}
    side, train, crop = options.get('out_size'), options['phase'] == 'train', options.get('gt_size', 0)
    for name, (height, width, _) in sizes.items():
        if side is not None and (height, width) != (side, side):
            faults.add(
                'face',
                images[name],
                f'{images[name]} is {shown[name]}, not {side}x{side}',
                f'make faces of one size with `sdakd prepare faces --size {side}`',
            )
    if set(sizes) != {'gt', 'lq'}:
        return
    gt, lq = sizes['gt'][:2], sizes['lq'][:2]
    # in validation, this type cuts the ground truth to the scale
    spare = CUT if options['type'] == 'PairedImageDataset' and not train else 1
    if not all(0 <= large - small * scale < spare for large, small in zip(gt, lq, strict=True)):
        faults.add(
            'scale',
            images['gt'],
            f'{images["gt"]} is {shown["gt"]} and its LQ image {shown["lq"]}, which scale {scale} does not relate',
            'crop the ground truth to a multiple of the scale',
        )
    if train and (not isinstance(crop, int) or crop % scale):
        raise UserError(f'{faults.where}:gt_size', f'the crop of {crop} must be a multiple of scale {scale}.')
    if train and min(gt) < crop:
        faults.add(
            'crop',
            images['gt'],
            f'the crop of {crop} does not fit into {images["gt"]}, which is {shown["gt"]}',
            'write a smaller one, or take the image away',
            'gt_size',
        )
