"""`sdakd prepare subimages`: overlapping crops."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

from sdakd.commands.interface import number, whole
from sdakd.commands.prepare.jobs import Made, add_job, apart, claim, job, made
from sdakd.files.images import Pass, UnusableError, by_stem, is_made, list_images, read_image, stem, write_png


def cut_positions(length: int, crop_size: int, step: int, thresh_size: int) -> list[int]:
    """First pixels of the crops along one side; a rest of more than ``thresh_size`` pixels gets one at the border."""
    positions = list(range(0, length - crop_size + 1, step))
    if length - crop_size - positions[-1] > thresh_size:
        positions.append(length - crop_size)
    return positions


def _cut(
    name: str, source: str, names: dict[str, str], output: str, crop_size: int, step: int, thresh_size: int
) -> bool:
    path = os.path.join(source, name)
    image = read_image(path)
    height, width = image.shape[:2]
    if min(height, width) < crop_size:
        raise UnusableError('too small', f'is smaller ({width}x{height}) than --crop_size {crop_size}')
    rows = cut_positions(height, crop_size, step, thresh_size)
    columns = cut_positions(width, crop_size, step, thresh_size)
    made = False
    for index, (y, x) in enumerate(((y, x) for y in rows for x in columns), 1):
        target = os.path.join(output, f'{names[name]}_s{index:03d}.png')
        if not is_made(target, path):
            write_png(target, image[y : y + crop_size, x : x + crop_size])
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
    workers: int | None = None,
) -> Made:
    """Cuts images into overlapping crops.

    Args:
        images: Folder of images, with its sub-folders.
        output: Folder of ``NAME_s001.png``, ...
        crop_size: Side of a crop in pixels.
        step: Pixels from one crop to the next.
        thresh_size: A rest of more pixels than this gets a crop flush with the border.
        workers: Processes; default: one per core.

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
    apart(images, output)
    names = {name: new for new, name in by_stem(list_images(images), images, without_scale).items()}
    claim(output, {'job': 'subimages', 'input': os.path.realpath(images), **cut})
    every = Pass('subimages', images, workers)
    every.run(functools.partial(_cut, source=images, names=names, output=output, **cut), names)
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
