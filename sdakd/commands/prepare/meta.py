"""`sdakd prepare meta`: lists of images, or of GT/LQ pairs."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdakd.commands.prepare.jobs import Made, add_job, apart, job, made, shared_folder
from sdakd.compat import UserError
from sdakd.files.images import Pass, UnusableError, by_stem, list_images, read_image, write
from sdakd.files.limits import MAX_PIXELS


def _check(line: str, root: str, lq_root: str | None) -> bool:
    """Decodes the image, or both images of a pair, of a line."""
    if lq_root is None:
        read_image(os.path.join(root, line))
        return True
    gt, lq = (read_image(os.path.join(at, name)) for at, name in zip((root, lq_root), line.split(', '), strict=True))
    scale = gt.shape[0] // lq.shape[0]
    if gt.shape[:2] != (lq.shape[0] * scale, lq.shape[1] * scale):
        sizes = f'{gt.shape[1]}x{gt.shape[0]}, LQ {lq.shape[1]}x{lq.shape[0]}'
        raise UnusableError('of other size', f'do not fit: GT is {sizes}')
    return True


def _pair_lines(gt_folder: str, lq_folder: str) -> list[str]:
    gt_names = by_stem(list_images(gt_folder), gt_folder)
    lq_names = by_stem(list_images(lq_folder, '--lq'), lq_folder, where='--lq')
    lines = []
    for key, gt in gt_names.items():
        scaled = (key + f'x{scale}' for scale in (2, 3, 4, 8))  # DIV2K's way of naming: 0801.png and 0801x4.png
        lq = next((lq_names.pop(k) for k in (key, *scaled) if k in lq_names), None)
        if lq is None:
            raise UserError(
                '--lq', f'{lq_folder} has no partner for {gt}; give both the same name (or 1.png, 1x4.png).'
            )
        lines.append(f'{gt}, {lq}')
    if lq_names:
        lq = next(iter(lq_names.values()))
        raise UserError(
            '--lq', f'{len(lq_names)} images have no partner in {gt_folder}, the first is {lq}; remove them.'
        )
    return lines


@job
def meta(
    images: str | Sequence[str],
    output: str,
    *,
    lq: str | None = None,
    root: str | Sequence[str] | None = None,
    check: bool = False,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Made:
    """Writes a meta-info file: a line per image, or per GT/LQ pair.

    Args:
        images: Folder of images, or several.
        output: The file, ``.txt``.
        lq: Folder of the LQ images of the GT images in ``images``, for lines ``gt, lq``.
        root: ``dataroot_gt``, which holds all images; default: the folder of the images, or what several share.
        check: Decode every image, and leave out what cannot be used.
        workers: Processes; default: one per core.
        max_pixels: Images of more pixels are not decoded.

    Raises:
        UserError: No images, images without a partner, a name that BasicSR cannot read, or another file of this name.
    """
    folders = [images] if isinstance(images, str) else images
    if not output.endswith('.txt') or os.path.isdir(output):
        raise UserError('-o', f'{output} is no name for a meta-info file; give one that ends in .txt.')
    for folder in folders:
        apart(folder, output)
    if lq is not None:
        if len(folders) > 1 or root:
            raise UserError('--lq', 'pairs have one folder each, -i for GT and --lq for LQ, and no --root.')
        apart(lq, output, '--lq')
        root = folders[0]
        lines = _pair_lines(root, lq)
        broken = [line for line in lines if line.count(', ') > 1 or '\n' in line]
        what = '", "'
    else:
        roots = {root} if isinstance(root, str) else set(root or [shared_folder(folders)])
        root = roots.pop()
        if roots:
            raise UserError('--root', 'an option file has one dataroot_gt; give one folder that holds all inputs.')
        paths = [os.path.join(folder, name) for folder in folders for name in list_images(folder)]
        lines = list(dict.fromkeys(Path(os.path.relpath(path, root)).as_posix() for path in paths))
        if any(line.startswith('../') for line in lines):
            raise UserError('--root', f'{root} does not hold every folder of -i; give one that does.')
        broken = [line for line in lines if re.search(r'\s', line)]
        what = 'space'
    if broken:
        raise UserError(
            '-i', f'BasicSR would cut the line of {broken[0]} at its {what}; rename it ({len(broken)} such names).'
        )

    every = Pass('meta', root, workers)
    if check:
        work = functools.partial(_check, root=root, lq_root=lq)
        lines = [line for line, _ in every.over(work, lines)]
    else:
        every.counts['done'] = len(lines)
    text = os.fsencode(''.join(f'{line}\n' for line in lines))
    if os.path.exists(output):
        if Path(output).read_bytes() != text:
            raise UserError('-o', f'{output} already exists and lists other images; delete it or give another name.')
        every.counts['kept'] += every.counts.pop('done', 0)
    elif lines:
        write(output, text)
    second = f', dataroot_lq: {lq}' if lq else ''
    return made(every, output, f'dataroot_gt: {root}{second}, meta_info: {output}')


def add_to(jobs: Any) -> None:
    """Adds the job and its flags."""
    description = 'write a meta-info file: a line per image, or per GT/LQ pair'
    add = add_job(jobs, 'meta', meta, description, 'file.txt', nargs='+')
    add('--lq', help='folder of the LQ images of the GT images in -i, for lines `gt, lq`')
    add('--root', nargs='+', help='dataroot_gt (default: the folder of -i, or what several share)')
    add('--check', action='store_true', help='decode every image; leave out what cannot be used')
