"""The photographs of a distillation: which are held out, and the crops and pairs that are made of them."""

from __future__ import annotations

import functools
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from sdakd.commands.prepare.pairs import pairs
from sdakd.commands.prepare.subimages import subimages
from sdakd.compat import UserError
from sdakd.files.images import (
    Pass,
    UnusableError,
    by_stem,
    is_made,
    list_images,
    read_header,
    read_image,
    stem,
    write_png,
)
from sdakd.files.testsets import split_pair

LARGEST = 480  # pixels: sides of what is cut out of the middle of a photograph that is held out
MOST_PARTS = 20_000  # about 7 GB; more photographs than make so many are left out, by lot
MOST_HELD_OUT = 20


@dataclass(frozen=True)
class Source:
    """Where photographs come from: a folder, or for pairs one of ground truth and one of inputs.

    Args:
        gt: The folder of the photographs.
        lq: The folder of their inputs; None where inputs are made.
        where: The flag that named them.
    """

    gt: str
    lq: str | None
    where: str

    @classmethod
    def read(cls, text: str, pairs: bool, where: str) -> Source:
        """Reads ``FOLDER``, or ``GT:LQ`` for pairs.

        Raises:
            UserError: No folder, or one where two are wanted.
        """
        gt, lq = text, None
        if pairs:
            gt, _, lq = split_pair(text)
            if not (os.path.isdir(gt) and os.path.isdir(lq)):
                raise UserError(
                    where, f'{text!r} does not name two folders; with --degradation none write GT:LQ, the folder of '
                    'the photographs and that of their small versions.'
                )  # fmt: skip
        return cls(gt, lq, where)

    def names(self) -> list[str]:
        """The photographs, sorted.

        Raises:
            UserError: There is none, or one of a pair has no partner.
        """
        names = list_images(self.gt, self.where)
        by_stem(names, self.gt, where=self.where)
        return names

    def partners(self, scale: int) -> dict[str, str]:
        """The input of every photograph; it may end in the scale, as DIV2K's do (``0801x4.png``).

        Raises:
            UserError: One has none.
        """
        here = by_stem(list_images(self.lq, self.where), self.lq, functools.partial(_without_scale, scale), self.where)
        found = {}
        for name in self.names():
            partner = here.get(_without_scale(scale, name))
            if partner is None:
                raise UserError(self.where, f'{name} in {self.gt} has no partner in {self.lq}; add it, or take it out.')
            sizes = [_size(os.path.join(root, one)) for root, one in ((self.gt, name), (self.lq, partner))]
            if None not in sizes and sizes[0] != tuple(scale * side for side in sizes[1]):
                (width, height), (small_width, small_height) = sizes
                raise UserError(
                    self.where,
                    f'{name} in {self.gt} has {width}x{height} pixels, which is not {scale} times the {small_width}x'
                    f"{small_height} of {partner} in {self.lq}; give pairs of the teacher's scale.",
                )
            found[name] = partner
        return found


def _size(path: str) -> tuple[int, int] | None:
    """Width and height as they are seen; None where the header cannot be read, which whoever decodes it says."""
    try:
        found = read_header(path)
        return found.width, found.height
    except UnusableError:
        return None


def _without_scale(scale: int, name: str) -> str:
    return stem(name).removesuffix(f'x{scale}')


def hold_out(names: list[str], seed: int, where: str) -> tuple[list[str], list[str]]:
    """Chooses photographs to measure on: a tenth of them, at most 20; at least six where that is not over a third.

    Returns:
        Those to train on and those held out, both sorted.

    Raises:
        UserError: There are fewer than three.
    """
    if len(names) < 3:
        raise UserError(
            where, f'{len(names)} photographs are too few to train on some and hold others out; give more, or others '
            'with --photos-validation.'
        )  # fmt: skip
    count = min(max(len(names) // 10, min(6, len(names) // 3), 1), MOST_HELD_OUT)
    held_out = set(random.Random(seed).sample(names, count))
    return [name for name in names if name not in held_out], sorted(held_out)


def usable(names: list[str], source: Source, part: int, least: int, seed: int) -> list[str]:
    """The photographs that are large enough; as many, drawn by lot, as make at most :data:`MOST_PARTS` parts.

    Args:
        names: The photographs.
        source: Where they are.
        part: Side of a part in pixels.
        least: Shortest side that will do.
        seed: Of the lot.

    Raises:
        UserError: None is.
    """
    small, parts, found = [], 0, []
    for name in random.Random(seed).sample(names, len(names)):
        width, height = _size(os.path.join(source.gt, name)) or (least, least)
        if min(width, height) < least:
            small.append(name)
            continue
        parts += -(-width // part) * -(-height // part)
        found.append(name)
        if parts > MOST_PARTS:
            break
    if not found:
        raise UserError(
            source.where, f'no photograph in {source.gt} has sides of {least} pixels or more; give larger ones.'
        )
    if small:
        sys.stderr.write(
            f'{source.gt}: left out {len(small)} photographs with a side below {least} pixels ({min(small)}'
            f'{", ..." if len(small) > 1 else ""}).\n'
        )
    return sorted(found)


def _middle(name: str, source: str, output: str, limit: int, divisor: int, names: dict[str, str]) -> bool:
    path, target = os.path.join(source, name), os.path.join(output, f'{names[name]}.png')
    if is_made(target, path):
        return False
    image = read_image(path)
    high, wide = (min(side, limit) // divisor * divisor for side in image.shape[:2])
    if min(high, wide) < 16 * divisor:
        raise UnusableError('too small', f'is smaller ({image.shape[1]}x{image.shape[0]}) than {16 * divisor} pixels')
    # at multiples of the divisor, so that the middles of a pair show the same
    top, left = ((side - part) // 2 // divisor * divisor for side, part in zip(image.shape, (high, wide), strict=False))
    write_png(target, image[top : top + high, left : left + wide])
    return True


def middles(source: str, names: dict[str, str], output: str, limit: int, divisor: int) -> None:
    """Cuts the middles of images out.

    Args:
        source: Their folder.
        names: What each is called in the output, by name.
        output: A folder.
        limit: Longest side in pixels.
        divisor: Of the sides.

    Raises:
        UserError: An image cannot be used.
    """
    every = Pass('held out', source)
    work = functools.partial(_middle, source=source, output=output, limit=limit, divisor=divisor, names=names)
    every.run(work, names)
    if every.unusable:
        raise UserError(source, f'{every.unusable[0]}; it is to be measured on: repair it or take it out.')


@dataclass(frozen=True)
class Cut:
    """How photographs are cut for a training.

    Args:
        part: Side in pixels of the parts of photographs; a multiple of four times the scale.
        least: Shortest side of a photograph that will do.
    """

    part: int
    least: int


def prepare(
    source: Source, validation: Source | None, folder: Path, degradation: str, scale: int, cut: Cut, seed: int
) -> tuple[list[str], list[str]]:
    """Makes ``train/gt``, ``held_out/gt``, ``held_out/lq`` and, unless inputs are made while training, ``train/lq``.

    Args:
        source: The photographs.
        validation: Those to measure on; None holds some of the photographs out.
        folder: Receives all.
        degradation: ``bicubic``, ``realesrgan``, or ``none`` for pairs.
        scale: GT over input.
        cut: How they are cut to be trained on.
        seed: Of what is held out, and of the degradation of those.

    Returns:
        Which photographs are trained on, and which are held out.

    Raises:
        UserError: None or too few can be used, or a pair does not fit.
    """
    names, measured = source.names(), validation or source
    train, held_out = (names, validation.names()) if validation else hold_out(names, seed, source.where)
    train = usable(train, source, cut.part, cut.least, seed)
    tiles = folder / ('parts' if degradation == 'bicubic' else 'train/gt')
    _cut(source.gt, tiles, cut.part, train, source.where)
    if degradation == 'none':
        partners = source.partners(scale)
        _cut(source.lq, folder / 'train/lq', cut.part // scale, [partners[name] for name in train], source.where)
    elif degradation == 'bicubic':
        pairs(tiles, folder / 'train', degradation='bicubic', scale=scale)
    called = {name: stem(name).replace('/', '_') for name in held_out}
    limit = LARGEST // scale
    if degradation == 'none':
        partners = measured.partners(scale)
        middles(measured.gt, called, str(folder / 'held_out/gt'), limit * scale, scale)
        middles(measured.lq, {partners[n]: called[n] for n in held_out}, str(folder / 'held_out/lq'), limit, 1)
    else:
        photographs, seeded = folder / 'middles', {} if degradation == 'bicubic' else {'seed': seed}
        middles(measured.gt, called, str(photographs), limit * scale, scale)
        pairs(photographs, folder / 'held_out', degradation=degradation, scale=scale, **seeded).check()
    return train, held_out


def _cut(source: str, output: Path, part: int, names: list[str], where: str) -> None:
    """Cuts photographs into parts; those that cannot be read are left out."""
    cut = subimages(
        source, output, crop_size=part, step=part, thresh_size=part // 4, keep_small=True, flat=True, only=names
    )
    if len(cut.unusable) == len(names):
        raise UserError(where, f'none of the photographs in {source} could be used ({cut.unusable[0]}).')
