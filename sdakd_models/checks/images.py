"""The images of data sets: all are decoded before a run starts; each kind of fault is told in one sentence."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch.utils.data import Dataset

from sdakd.compat import Mistakes, UserError, replacing
from sdakd_data import pairs
from sdakd_data.decoded import Decoder, Size
from sdakd_data.remembered import cache_folder

NAMED = 3  # images that a sentence names; the others are counted, and listed in a file


def check(where: str, options: Mapping, scale: int, dataset: Dataset, keyed: Collection[str] = ()) -> None:
    """Decodes every image of a data set that has ``paths``, as BasicSR's do, and compares sizes.

    Args:
        where: Key of the data set, to name in errors.
        options: Its options.
        scale: Of the run.
        dataset: It, with ``paths``: paths or keys of its images, or mappings of ``gt_path`` and ``lq_path`` to them.
        keyed: The sides whose keys in a teacher's cache will be wanted.

    Raises:
        UserError: Images that cannot be decoded, pairs whose sizes do not differ by the scale, images smaller than the
            crop, faces of another size: a sentence for each fault, which names the first images.
        KeyboardInterrupt: It was interrupted; what is known by then is remembered.
    """
    paths = getattr(dataset, 'paths', None)
    if not paths:
        return
    single = 'gt' if options.get('dataroot_gt') else 'lq'
    backend = getattr(dataset, 'io_backend_opt', None) or options.get('io_backend') or {'type': 'disk'}
    decoder = Decoder(backend, {side: options.get(f'dataroot_{side}') for side in ('gt', 'lq')}, where, keyed)
    with _interruptible():
        total = sum(len(sides) for sides in _items(paths, single))
        images = (image for sides in _items(paths, single) for image in sides.items())
        number = decoder.memories[single].path.stem[:8]
        faults = _Faults(where, cache_folder() / f'unusable-{options["phase"]}-{number}.txt')
        with contextlib.closing(decoder.sizes(images, total, f'images of {where}')) as sizes:
            for sides in _items(paths, single):
                found = {side: next(sizes) for side in sides}
                bad = {side: size for side, size in found.items() if isinstance(size, str)}
                for side, reason in bad.items():
                    _add_unreadable(faults, sides[side], reason)
                if not bad:
                    _check_sizes(faults, options, scale, sides, found)
    faults.tell()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt('give the same command again, images that were decoded are not decoded again') from None


def _items(paths: list, single: str) -> Iterator[dict[str, str]]:
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
        what = next((what for what in ('WIDTH', 'HEIGHT') if f'in {what.lower()} that' in reason), 'PIXELS')
        remedy = f'cut it into smaller ones, or set the environment variable OPENCV_IO_MAX_IMAGE_{what}'
    elif reason in ('does not exist', 'is a folder', 'is a pipe or a device, not a file'):
        remedy = 'correct the list'
    else:
        reason, _, own = reason.partition('; ')
        remedy = own or 'mend it or take it away'
    faults.add(re.sub(r'\d+x\d+', '', reason), image, f'the image {image} {reason}', remedy)


def _check_sizes(
    faults: _Faults, options: Mapping, scale: int, images: Mapping[str, str], sizes: Mapping[str, Size]
) -> None:
    """The sizes of one item: faces of one size, pairs that differ by the scale, crops that fit."""
    shown = {side: f'{width}x{height}' for side, (height, width, *_) in sizes.items()}
    side, train, crop = options.get('out_size'), options['phase'] == 'train', options.get('gt_size', 0)
    for name, (height, width, *_) in sizes.items():
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
    # in validation, this type cuts the ground truth to its input
    spare = pairs.SPARE if options['type'] == 'PairedImageDataset' and not train else 1
    if found := pairs.misfit(gt, lq, scale, spare):
        faults.add(f'scale, {found[1]}', images['gt'], f'{images["gt"]} {found[0]}', found[1])
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
        names = dict.fromkeys(name for _, _, images in self.found.values() for name in images)
        try:
            self.listing.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.listing) as file:
                file.writelines(os.fsencode(f'{name}\n') for name in names)
        except (OSError, UserError):
            return False
        return True
