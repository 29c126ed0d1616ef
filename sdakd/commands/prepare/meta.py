"""`sdakd prepare meta`: lists of images, or of GT/LQ pairs."""

from __future__ import annotations

import argparse
import functools
import os
import re
from pathlib import Path
from typing import Any

from sdakd.commands.prepare.jobs import add_job, apart
from sdakd.compat import UserError
from sdakd.files.images import Pass, UnusableError, by_stem, list_images, read_image, write


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


def run(args: argparse.Namespace) -> int:
    folders = args.input
    if not args.output.endswith('.txt') or os.path.isdir(args.output):
        raise UserError('-o', f'{args.output} is no name for a meta-info file; give one that ends in .txt.')
    for folder in folders:
        apart(folder, args.output)
    if args.lq is not None:
        if len(folders) > 1 or args.root:
            raise UserError('--lq', 'pairs have one folder each, -i for GT and --lq for LQ, and no --root.')
        apart(args.lq, args.output, '--lq')
        root = folders[0]
        lines = _pair_lines(root, args.lq)
        broken = [line for line in lines if line.count(', ') > 1 or '\n' in line]
        what = '", "'
    else:
        default = (
            folders[0]
            if len(folders) == 1
            else os.path.relpath(os.path.commonpath([os.path.abspath(f) for f in folders]))
        )
        roots = set(args.root or [default])
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

    images = Pass(args, root)
    if args.check:
        work = functools.partial(_check, root=root, lq_root=args.lq)
        lines = [line for line, _ in images.over(work, lines)]
    else:
        images.counts['done'] = len(lines)
    text = os.fsencode(''.join(f'{line}\n' for line in lines))
    if os.path.exists(args.output):
        if Path(args.output).read_bytes() != text:
            raise UserError(
                '-o', f'{args.output} already exists and lists other images; delete it or give another name.'
            )
        images.counts['kept'] += images.counts.pop('done', 0)
    elif lines:
        write(args.output, text)
    second = f', dataroot_lq: {args.lq}' if args.lq else ''
    return images.finish(args.output, f'dataroot_gt: {root}{second}, meta_info: {args.output}')


def add_to(jobs: Any) -> None:
    """Adds the job and its flags."""
    description = 'write a meta-info file: a line per image, or per GT/LQ pair'
    command = add_job(jobs, 'meta', run, description, 'file.txt', nargs='+')
    command.add_argument('--lq', help='folder of the LQ images of the GT images in -i, for lines `gt, lq`')
    command.add_argument('--root', nargs='+', help='dataroot_gt (default: the folder of -i, or what several share)')
    command.add_argument('--check', action='store_true', help='decode every image; leave out what cannot be used')
