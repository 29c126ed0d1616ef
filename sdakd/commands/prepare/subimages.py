"""`sdakd prepare subimages`: overlapping crops."""

from __future__ import annotations

import argparse
import functools
import os
import re
from typing import Any

from sdakd.commands.prepare.jobs import add_job, apart, claim, whole
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


def run(args: argparse.Namespace) -> int:
    def without_scale(name: str) -> str:  # 0801x4 -> 0801, as BasicSR's script does for DIV2K
        return re.sub(r'(?<=\d)x[2348]$', '', stem(name))

    apart(args.input, args.output)
    names = {name: new for new, name in by_stem(list_images(args.input), args.input, without_scale).items()}
    cut = {'crop_size': args.crop_size, 'step': args.step, 'thresh_size': args.thresh_size}
    claim(args.output, {'job': 'subimages', 'input': os.path.realpath(args.input), **cut})
    images = Pass(args, args.input)
    images.run(functools.partial(_cut, source=args.input, names=names, output=args.output, **cut), names)
    return images.finish(args.output, f'dataroot_gt (or dataroot_lq): {args.output}')


def add_to(jobs: Any) -> None:
    """Adds the job and its flags."""
    description, output = 'cut images into overlapping sub-images', 'folder of NAME_s001.png, ...'
    command = add_job(jobs, 'subimages', run, description, output)
    for flag, least, default, meaning in (
        ('--crop_size', 1, 480, 'side of a sub-image in pixels'),
        ('--step', 1, 240, 'pixels from one sub-image to the next'),
        ('--thresh_size', 0, 0, 'a rest of more pixels than this gets a sub-image flush with the border'),
    ):
        command.add_argument(flag, type=whole(flag, least), default=default, help=f'{meaning} (default: {default})')
