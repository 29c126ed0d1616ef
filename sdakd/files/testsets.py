"""Test sets for `sdakd evaluate`: folders or LMDB databases of HR images, LR images or both, one image at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdakd.compat import UnusableError, UserError
from sdakd.files.images import by_stem, decode, find_images, read_header, read_image, stem


class Folder:
    """Images of a folder, with its sub-folders, by their relative path without ending.

    ``note`` is a line for people about files of other kinds.
    """

    def __init__(self, path: str, flag: str) -> None:
        self.path = path
        names, self.note = find_images(path, flag)
        self.files = by_stem(names, path, where=flag)
        self.sizes: dict[str, tuple[int, int] | None] = {}  # of headers that were read

    def file(self, name: str) -> str:
        """How messages call an image."""
        return self.files[name]

    def where(self, name: str) -> Path | None:
        """The image's own file, None in a database."""
        return Path(self.path, self.files[name])

    def read(self, name: str) -> np.ndarray:
        return read_image(self.where(name))

    def size(self, name: str) -> tuple[int, int] | None:
        """Height and width by the file's header; None where reading the image will say what is wrong with it."""
        if name not in self.sizes:
            try:
                found = read_header(self.where(name))
                self.sizes[name] = found.height, found.width
            except UnusableError:
                self.sizes[name] = None
        return self.sizes[name]


class Database:
    """Images of an LMDB database in BasicSR's layout, by their keys."""

    note = ''

    def __init__(self, path: str, flag: str) -> None:
        self.path = path
        try:
            lines = Path(path, 'meta_info.txt').read_text(encoding='utf-8').splitlines()
            # KEY.png (height,width,channels) level
            entries = [line.rsplit(' ', 2) for line in lines if line.strip()]
            shapes = {name.split('.')[0]: shape.strip('()').split(',') for name, shape, _ in entries}
            self.sizes = {name: (int(shape[0]), int(shape[1])) for name, shape in shapes.items()}
        except (OSError, ValueError, IndexError):
            raise UserError(
                flag,
                f"{path} is no database in BasicSR's layout (data.mdb, meta_info.txt); make it with "
                '`sdakd prepare lmdb`.',
            ) from None
        if not self.sizes:
            raise UserError(flag, f'{path} holds no image.')
        self.files = {name: name for name in self.sizes}
        from sdakd_data.databases import environment

        try:
            environment(path)
        except Exception as error:  # the system's, or lmdb's
            raise UserError(flag, f'{path} cannot be opened as an LMDB database ({str(error).rstrip(".")}).') from None

    def file(self, name: str) -> str:
        return name

    def where(self, name: str) -> None:
        return None

    def read(self, name: str) -> np.ndarray:
        from sdakd_data.databases import read

        data = read(self.path, name)
        if data is None:
            raise UnusableError('unreadable', 'is in meta_info.txt but not in the database')
        return decode(data)

    def size(self, name: str) -> tuple[int, int]:
        return self.sizes[name]


Images = Folder | Database


def open_images(path: str, flag: str = '-d') -> Images:
    """A folder, or a database whose name ends in ``.lmdb``.

    Raises:
        UserError: There is none, or it holds no image.
    """
    path = os.path.normpath(os.path.expanduser(path))
    return Database(path, flag) if path.endswith('.lmdb') else Folder(path, flag)


def partners(names: Iterable[str], others: Iterable[str], missing: Callable[[str], str]) -> dict[str, str]:
    """Finds every name's partner among ``others``: the same name, or the name and an ending that all partners share.

    So ``0001x4``, ``0001_out`` and ``0001_EXPERIMENT`` are found without being known here.

    Args:
        names: Names to find partners for; at least one.
        others: Where to look.
        missing: Makes the sentence for the first name that has no partner.

    Raises:
        UserError: No ending serves all names.
    """
    names, others = list(names), set(others)
    endings = {other[len(names[0]) :] for other in others if other.startswith(names[0])} | {''}
    lacking = {ending: [name for name in names if name + ending not in others] for ending in endings}
    best = min(endings, key=lambda ending: (len(lacking[ending]), len(ending)))
    if lacking[best]:
        raise UserError(missing(lacking[best][0]))
    return {name: name + best for name in names}


@dataclass
class Sample:
    """One image of a test set, uint8 BGR.

    Args:
        lq: ``(h, w, 3)``.
        gt: ``(h * scale, w * scale, 3)``, or None in a set without ground truth.
        gt_file: The file that holds just this ground truth, None where it was cropped or is in a database.
        lq_file: Likewise for ``lq``.
    """

    lq: np.ndarray
    gt: np.ndarray | None
    gt_file: Path | None
    lq_file: Path | None


class TestSet:
    """A named set of images.

    Args:
        name: What tables call it.
        source: As the user gave it.
        hr: Ground truth, or None.
        lr: Input, or None where it is made from the ground truth by MATLAB's bicubic interpolation.
        scale: Factor between them. Ground truth of another size is cropped at its right and lower border to its input's
            size times the scale, or to a multiple of the scale, as BasicSR and the MATLAB scripts do.

    Raises:
        UserError: Numbers, names or sizes of ``hr`` and ``lr`` do not match.
    """

    __test__ = False  # pytest would take the class for a test by its name

    def __init__(self, name: str, source: str, hr: Images | None, lr: Images | None, scale: int) -> None:
        self.name, self.source, self.hr, self.lr, self.scale = name, source, hr, lr, scale
        self.names = sorted((hr or lr).files)
        if hr is None or lr is None:
            self.inputs = {name: name for name in self.names}
            return
        if len(hr.files) != len(lr.files):
            raise UserError(
                '-d',
                f'{hr.path} holds {len(hr.files)} images and {lr.path} {len(lr.files)}; give folders whose images '
                'belong together, one to one.',
            )
        self.inputs = partners(
            self.names,
            lr.files,
            lambda name: (
                f'-d: {lr.path} has no image for {hr.file(name)} of {hr.path}; LR images need the name of their '
                f'HR image, or that name and one ending such as x{scale}.'
            ),
        )
        from sdakd_data.pairs import SPARE, misfit

        for name in self.names:
            large, small = hr.size(name), lr.size(self.inputs[name])
            if large and small and (found := misfit(large, small, scale, SPARE)):
                raise UserError('-d', f'{hr.file(name)} in {hr.path} {found[0]} (in {lr.path}); {found[1]}.')

    def describe(self) -> str:
        """A line for people, which says where the LR images come from, behind those of the folders."""
        made = f'made from HR by MATLAB bicubic x1/{self.scale}'
        origin = f'from {self.lr.path}' if self.lr else made
        notes = ''.join(images.note for images in (self.hr, self.lr) if images)
        return f'{notes}{self.name}: {len(self.names)} images, LR {origin}{"" if self.hr else ", no ground truth"}'

    def size(self, name: str) -> tuple[int, int] | None:
        """Height and width that an enlarged image must have; None where the file's header cannot be read."""
        if self.hr is None:
            small = self.lr.size(self.inputs[name])
            return small and (small[0] * self.scale, small[1] * self.scale)
        if self.lr is not None and (small := self.lr.size(self.inputs[name])):
            return small[0] * self.scale, small[1] * self.scale
        large = self.hr.size(name)
        return large and (large[0] // self.scale * self.scale, large[1] // self.scale * self.scale)

    def read(self, name: str) -> Sample:
        """Reads one image.

        Raises:
            UnusableError: A file is damaged, or an image too small; the reason names the file.
        """
        from basicsr.data.transforms import mod_crop

        gt = gt_file = lq = None
        if self.lr is not None:
            lq = self._read(self.lr, self.inputs[name])
        if self.hr is not None:
            whole = self._read(self.hr, name)
            gt = (
                mod_crop(whole, self.scale)
                if lq is None
                else whole[: lq.shape[0] * self.scale, : lq.shape[1] * self.scale]
            )
            gt_file = self.hr.where(name) if gt.shape == whole.shape else None
        if lq is not None:
            return Sample(lq, gt, gt_file, self.lr.where(self.inputs[name]))
        from sdakd.commands.prepare.synthesis import downscale

        if min(gt.shape[:2]) < 4 * self.scale:
            raise UnusableError('too small', f'{self.hr.file(name)} is smaller than {4 * self.scale} pixels')
        return Sample(downscale(gt, self.scale), gt, gt_file, None)

    def _read(self, images: Images, name: str) -> np.ndarray:
        try:
            return images.read(name)
        except UnusableError as error:
            raise UnusableError(error.kind, f'{os.path.join(images.path, images.file(name))} {error.reason}') from None


def split_name(text: str) -> tuple[str | None, str]:
    """``NAME=path`` as name and path; None for a path alone, also for one that has a ``=`` itself."""
    name, equals, path = text.partition('=')
    named = equals and name and path and not os.path.lexists(text) and not any(mark in name for mark in '/\\:')
    return (name, path) if named else (None, text)


def split_pair(text: str) -> tuple[str, str, str]:
    """``HR:LR`` as both paths, either of which may be empty, with the colon between; a path alone as that path.

    The colon behind the letter of a Windows drive is none, and other colons may be parts of names.
    """
    if os.path.exists(text):
        return text, '', ''
    cuts = [place for place, letter in enumerate(text) if letter == ':']
    pairs = [(text[:place], ':', text[place + 1 :]) for place in cuts]
    there = [pair for pair in pairs if all(not path or os.path.exists(path) for path in pair[::2])]
    plain = [pair for pair in pairs if not re.search(r'(^|:)[A-Za-z]$', pair[0]) or pair[2][:1] not in ('/', '\\')]
    return next(iter(there or plain), (text, '', ''))


def set_name(path: str) -> str:
    """The folder's name; where it says no more than HR or LRx4, its parent's."""
    path = Path(os.path.abspath(path))
    plain = stem(path.name) if path.suffix == '.lmdb' else path.name
    if plain.lower() in ('hr', 'gt', 'lr', 'lq') or plain.lower().startswith(('lrx', 'lr_')):
        return path.parent.name or plain
    return plain


def open_sets(sources: Iterable[str], scale: int) -> list[TestSet]:
    """Opens what ``-d`` names: ``HR``, ``HR:LR`` or ``:LR``, each with ``NAME=`` in front where wanted.

    Raises:
        UserError: A folder is missing or empty, two sets have the same name, or HR and LR do not belong together.
    """
    sets: dict[str, TestSet] = {}
    for source in sources:
        given, paths = split_name(source)
        hr, colon, lr = split_pair(paths)
        if colon and not lr:
            raise UserError(
                '-d', f'{source} names no folder behind its colon; write HR:LR, or :LR without ground truth.'
            )
        if hr and not lr and not hr.endswith('.lmdb'):
            lr = _sibling(hr, scale)
        name = given or set_name(hr or lr)
        if name in sets:
            raise UserError('-d', f'two sets are called {name}; write NAME=PATH to give one another name.')
        images = open_images(hr) if hr else None
        sets[name] = TestSet(name, source, images, open_images(lr) if lr else None, scale)
    return list(sets.values())


def _sibling(hr: str, scale: int) -> str:
    """The folder LRx4 or LR beside a folder called HR; empty where there is none."""
    path = Path(os.path.abspath(hr))
    beside = (path.parent / name for name in (f'LRx{scale}', 'LR')) if path.name.lower() in ('hr', 'gt') else ()
    return next((str(folder) for folder in beside if folder.is_dir()), '')
