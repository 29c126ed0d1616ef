"""`sdakd prepare pairs`: LQ/GT pairs, degraded once."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

from sdakd import compat
from sdakd.commands.interface import number, one_of, whole
from sdakd.commands.prepare.jobs import Made, add_job, apart, claim, job, made
from sdakd.files.images import Pass, by_stem, list_images
from sdakd.files.limits import MAX_PIXELS
from sdakd.shipped import option_file

DEGRADATIONS = ('bicubic', 'realesrgan')


@job
def pairs(
    images: str,
    output: str,
    *,
    degradation: str,
    scale: int | None = None,
    opt: str | None = None,
    per_image: int = 1,
    sharpen: bool = False,
    seed: int = 0,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Made:
    """Synthesises LQ/GT pairs once.

    Args:
        images: Folder of images, with its sub-folders.
        output: Folder of ``gt/`` and ``lq/``.
        degradation: ``bicubic`` (MATLAB's) or ``realesrgan``.
        scale: GT over LQ; default: the option file's, or 4.
        opt: Training option file whose Real-ESRGAN degradation replaces the published one's.
        per_image: Degradations of every image, ``NAME_1`` to ``NAME_N``.
        sharpen: Write the ground truth sharpened by USM, as Real-ESRGAN's pixel and perceptual losses want it.
        seed: Of the degradation.
        workers: Processes; default: one per core.
        max_pixels: Images of more pixels are not decoded.

    Raises:
        UserError: No images, settings that do not go together, or a folder that was made with others.
    """
    one_of(degradation, DEGRADATIONS, '--degradation')
    scale = None if scale is None else whole(scale, '--scale', 1)
    per_image, seed = whole(per_image, '--per_image', 1), whole(seed, '--seed')
    apart(images, output)
    names = by_stem(list_images(images), images).values()
    compat.import_basicsr()
    from sdakd.commands.prepare import synthesis

    opt = None if opt is None else option_file(opt)
    settings = synthesis.read_settings(degradation, scale, opt, seed, per_image, sharpen)
    claim(output, {'job': 'pairs', 'input': os.path.realpath(images), **settings})
    every = Pass('pairs', images, workers)
    work = functools.partial(synthesis.make_pair, source=images, output=output, settings=json.dumps(settings))
    every.run(work, names)
    roots = (os.path.join(output, part) for part in ('gt', 'lq'))
    use = 'scale: {}, dataroot_gt: {}, dataroot_lq: {}'.format(settings['scale'], *roots)
    if any('/' in name for name in names):
        use += "\nBasicSR's PairedImageDataset does not look into sub-folders: give it LMDB databases of both folders."
    return made(every, output, use)


def add_to(jobs: Any) -> None:
    """Adds the job and its flags."""
    add = add_job(jobs, 'pairs', pairs, 'synthesise LQ/GT pairs once', 'folder of gt/ and lq/')
    add('--degradation', choices=DEGRADATIONS, help='how LQ is made')
    add('--scale', type=number, help="GT over LQ (default: the option file's, or 4)")
    replaces = "option file, or the name of one that ships, whose Real-ESRGAN degradation replaces the published one's"
    add('-opt', help=replaces)
    several = 'degradations of every image, NAME_1 to NAME_N (default: {default}, called NAME)'
    add('--per_image', '--per-image', type=number, metavar='N', help=several)
    add('--sharpen', action='store_true', help="write gt/ sharpened by USM, as Real-ESRGAN's pixel losses want it")
    add('--seed', type=number, help='of the degradation (default: {default})')
