"""`sdakd prepare multiscale`: Real-ESRGAN's smaller copies."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
from PIL import Image

from sdakd.commands.prepare.jobs import Made, add_job, apart, claim, job, made
from sdakd.files.images import Pass, by_stem, is_made, list_images, read_image, stem, write_png
from sdakd.files.limits import MAX_PIXELS

MULTISCALE = ((3, 4), (1, 2), (1, 3))  # Real-ESRGAN's factors for T0, T1, T2
SHORTEST = 400  # pixels of T3's shortest side


def multiscale_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Sizes (width, height) of T0 to T3; T3 is missing where it would enlarge."""
    shortest = min(width, height)
    sizes = [(width * n // d, height * n // d) for n, d in MULTISCALE]
    if shortest > SHORTEST:
        sizes.append((width * SHORTEST // shortest, height * SHORTEST // shortest))
    return [(max(1, w), max(1, h)) for w, h in sizes]


def _downscale(name: str, source: str, output: str) -> bool:
    path = os.path.join(source, name)
    targets = [os.path.join(output, f'{stem(name)}T{index}.png') for index in range(len(MULTISCALE) + 1)]
    if all(is_made(target, path) for target in targets):
        return False
    image = Image.fromarray(read_image(path))  # BGR; resizing treats the channels alike
    made = False
    for target, size in zip(targets, multiscale_sizes(*image.size), strict=False):
        if not is_made(target, path):
            write_png(target, np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
            made = True
    return made


@job
def multiscale(images: str, output: str, *, workers: int | None = None, max_pixels: int = MAX_PIXELS) -> Made:
    """Makes Real-ESRGAN's copies at 3/4, 1/2, 1/3 and with a shortest side of 400 pixels.

    Args:
        images: Folder of images, with its sub-folders.
        output: Folder of ``NAMET0.png`` to ``NAMET3.png``.
        workers: Processes; default: one per core.
        max_pixels: Images of more pixels are not decoded.

    Raises:
        UserError: No images, or a folder that holds something else.
    """
    apart(images, output)
    names = by_stem(list_images(images), images).values()
    claim(output, {'job': 'multiscale', 'input': os.path.realpath(images)})
    every = Pass('multiscale', images, workers)
    every.run(functools.partial(_downscale, source=images, output=output), names)
    return made(every, output, 'meta_info: a list of both folders, from `sdakd prepare meta -i FOLDER FOLDER`')


def add_to(jobs: Any) -> None:
    """Adds the job."""
    description = "make Real-ESRGAN's copies at 3/4, 1/2, 1/3 and with a shortest side of 400 pixels"
    add_job(jobs, 'multiscale', multiscale, description, 'folder of NAMET0.png to NAMET3.png')
