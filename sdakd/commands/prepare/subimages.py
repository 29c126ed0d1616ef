"""`sdakd prepare subimages`: overlapping crops."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

from sdakd.commands.interface import number, whole
from sdakd.commands.prepare.jobs import Made, add_job, apart, claim, job, made
from sdakd.files.images import Pass, UnusableError, by_stem, is_made, list_images, read_image, stem, write_png
from sdakd.files.limits import MAX_PIXELS


def cut_positions(length: int, crop_size: int, step: int, thresh_size: int) -> list[int]:
    """First pixels of the crops along one side; a rest of more than ``thresh_size`` pixels gets one at the border."""
    positions = list(range(0, length - crop_size + 1, step))
    if length - crop_size - positions[-1] > thresh_size:
        positions.append(length - crop_size)
    return positions


def _cut(
    name: str,
    source: str,
    names: dict[str, str],
    output: str,
    crop_size: int,
    step: int,
    thresh_size: int,
    keep_small: bool = False,
) -> bool:
    path = os.path.join(source, name)
    image = read_image(path)
    high, wide = (min(side, crop_size) for side in image.shape[:2])
    if min(high, wide) < crop_size and not keep_small:
        size = f'{image.shape[1]}x{image.shape[0]}'
        raise UnusableError('too small', f'is smaller ({size}) than --crop_size {crop_size}')
    rows = cut_positions(image.shape[0], high, step, thresh_size)
    columns = cut_positions(image.shape[1], wide, step, thresh_size)
    made = False
    for index, (y, x) in enumerate(((y, x) for y in rows for x in columns), 1):
        target = os.path.join(output, f'{names[name]}_s{index:03d}.png')
        if not is_made(target, path):
            write_png(target, image[y : y + high, x : x + wide])
            made = True
    return made


@job
def subimages(
    images: str,
    output: str,
    *,
    crop_size: int = 480,
    step: int = 240,
    thresh_size: int = 0,
    keep_small: bool = False,
    flat: bool = False,
    only: Sequence[str] | None = None,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Made:
    """Cuts images into overlapping crops.

    Args:
        images: Folder of images, with its sub-folders.
        output: Folder of ``NAME_s001.png``, ...
        crop_size: Side of a crop in pixels.
        step: Pixels from one crop to the next.
        thresh_size: A rest of more pixels than this gets a crop flush with the border.
        keep_small: Takes sides shorter than a crop whole, instead of refusing the image.
        flat: Puts all into one folder, as ``SUB_NAME_s001.png``: BasicSR's data sets of pairs look into no sub-folder.
        only: The images to cut, as paths in the folder; default: all.
        workers: Processes; default: one per core.
        max_pixels: Images of more pixels are not decoded.

    Raises:
        UserError: No images, or a folder that holds something else or was made with other settings.
    """

    def without_scale(name: str) -> str:  # 0801x4 -> 0801, as BasicSR's script does for DIV2K
        return re.sub(r'(?<=\d)x[2348]$', '', stem(name))

    cut = {
        'crop_size': whole(crop_size, '--crop_size', 1),
        'step': whole(step, '--step', 1),
        'thresh_size': whole(thresh_size, '--thresh_size'),
    }
    chosen = {key: True for key, on in (('keep_small', keep_small), ('flat', flat)) if on}
    apart(images, output)
    listed = list_images(images) if only is None else list(only)
    called = (lambda name: without_scale(name).replace('/', '_')) if flat else without_scale
    names = {name: new for new, name in by_stem(listed, images, called).items()}
    if only is not None:
        chosen['only'] = hashlib.sha256(os.fsencode('\n'.join(sorted(only)))).hexdigest()
    claim(output, {'job': 'subimages', 'input': os.path.realpath(images), **cut, **chosen})
    every = Pass('subimages', images, workers)
    every.run(functools.partial(_cut, source=images, names=names, output=output, keep_small=keep_small, **cut), names)
    return made(every, output, f'dataroot_gt (or dataroot_lq): {output}')


def add_to(jobs: Any) -> None:
    """Adds the job and its flags."""
    description, output = 'cut images into overlapping sub-images', 'folder of NAME_s001.png, ...'
    add = add_job(jobs, 'subimages', subimages, description, output)
    for flag, meaning in (
        ('--crop_size', 'side of a sub-image in pixels'),
        ('--step', 'pixels from one sub-image to the next'),
        ('--thresh_size', 'a rest of more pixels than this gets a sub-image flush with the border'),
    ):
        add(flag, type=number, help=f'{meaning} (default: {{default}})')
    small = 'take sides shorter than a crop whole, instead of refusing the image'
    add('--keep_small', '--keep-small', action='store_true', help=small)
    add('--only', nargs='+', metavar='NAME', help='cut these images only, paths in the folder (default: all)')
    add('--flat', action='store_true', help='put all into one folder, sub-folders become part of the names')
