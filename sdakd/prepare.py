"""`sdakd prepare`: cuts, downscales, lists and packs images for BasicSR's datasets, and synthesises LQ/GT pairs."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from PIL import Image

from sdakd import compat
from sdakd.compat import UserError
from sdakd.images import (
    Pass,
    UnusableError,
    by_stem,
    encode_png,
    is_made,
    list_images,
    read_image,
    stem,
    write,
    write_png,
)

RECORD = '.sdakd_prepare.json'  # what an output folder was made of; BasicSR's folder scan passes over dot-files
MULTISCALE = ((3, 4), (1, 2), (1, 3))  # Real-ESRGAN's factors for T0, T1, T2
SHORTEST = 400  # pixels of T3's shortest side
LMDB_LEVEL = 1  # PNG compression inside a database, BasicSR's default
LMDB_ROOM = 1 << 30  # bytes; the map grows when they are used up


def _apart(folder: str, output: str, flag: str = '-i') -> None:
    """Raises a UserError if the output lies in a folder of inputs: the next run would take it for an input."""
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f'-o: {output} lies in the folder of the inputs ({flag} {folder}); put it beside that folder.')


def _claim(output: str, record: dict[str, Any]) -> None:
    """Makes the output folder, or finds that it is this very job's.

    Raises:
        UserError: It holds something else, or images made with other settings.
    """
    path = Path(output, RECORD)
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = {}
        changed = [key for key in {**record, **found} if record.get(key) != found.get(key)]
        if changed:
            key = changed[0]
            raise UserError(
                f'-o: {output} was made with {key} {found.get(key)!r}, and now it is {record.get(key)!r}; '
                'give another folder, or delete this one.'
            )
        return
    if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise UserError(f'-o: {output} already exists and `sdakd prepare` did not make it; give a new or empty folder.')
    write(path, (json.dumps(record, indent=1, sort_keys=True) + '\n').encode())


# ---------------------------------------------- sub-images and multi-scale copies -------------------------------------


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


def _subimages(args: argparse.Namespace) -> int:
    def without_scale(name: str) -> str:  # 0801x4 -> 0801, as BasicSR's script does for DIV2K
        return re.sub(r'(?<=\d)x[2348]$', '', stem(name))

    _apart(args.input, args.output)
    names = {name: new for new, name in by_stem(list_images(args.input), args.input, without_scale).items()}
    cut = {'crop_size': args.crop_size, 'step': args.step, 'thresh_size': args.thresh_size}
    _claim(args.output, {'job': 'subimages', 'input': os.path.realpath(args.input), **cut})
    images = Pass(args, args.input)
    images.run(functools.partial(_cut, source=args.input, names=names, output=args.output, **cut), names)
    return images.finish(args.output, f'dataroot_gt (or dataroot_lq): {args.output}')


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


def _multiscale(args: argparse.Namespace) -> int:
    _apart(args.input, args.output)
    names = by_stem(list_images(args.input), args.input).values()
    _claim(args.output, {'job': 'multiscale', 'input': os.path.realpath(args.input)})
    images = Pass(args, args.input)
    images.run(functools.partial(_downscale, source=args.input, output=args.output), names)
    return images.finish(args.output, 'meta_info: a list of both folders, from `sdakd prepare meta -i FOLDER FOLDER`')


# ---------------------------------------------- meta-info files -------------------------------------------------------


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
    lq_names = by_stem(list_images(lq_folder, '--lq'), lq_folder)
    lines = []
    for key, gt in gt_names.items():
        scaled = (key + f'x{scale}' for scale in (2, 3, 4, 8))  # DIV2K's way of naming: 0801.png and 0801x4.png
        lq = next((lq_names.pop(k) for k in (key, *scaled) if k in lq_names), None)
        if lq is None:
            raise UserError(f'--lq: {lq_folder} has no partner for {gt}; give both the same name (or 1.png, 1x4.png).')
        lines.append(f'{gt}, {lq}')
    if lq_names:
        lq = next(iter(lq_names.values()))
        raise UserError(f'--lq: {len(lq_names)} images have no partner in {gt_folder}, the first is {lq}; remove them.')
    return lines


def _meta(args: argparse.Namespace) -> int:
    folders = args.input
    if not args.output.endswith('.txt') or os.path.isdir(args.output):
        raise UserError(f'-o: {args.output} is no name for a meta-info file; give one that ends in .txt.')
    for folder in folders:
        _apart(folder, args.output)
    if args.lq is not None:
        if len(folders) > 1 or args.root:
            raise UserError('--lq: pairs have one folder each, -i for GT and --lq for LQ, and no --root.')
        _apart(args.lq, args.output, '--lq')
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
            raise UserError('--root: an option file has one dataroot_gt; give one folder that holds all inputs.')
        paths = [os.path.join(folder, name) for folder in folders for name in list_images(folder)]
        lines = list(dict.fromkeys(Path(os.path.relpath(path, root)).as_posix() for path in paths))
        if any(line.startswith('../') for line in lines):
            raise UserError(f'--root: {root} does not hold every folder of -i; give one that does.')
        broken = [line for line in lines if re.search(r'\s', line)]
        what = 'space'
    if broken:
        raise UserError(
            f'-i: BasicSR would cut the line of {broken[0]} at its {what}; rename it ({len(broken)} such names).'
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
            raise UserError(f'-o: {args.output} already exists and lists other images; delete it or give another name.')
        images.counts['kept'] += images.counts.pop('done', 0)
    elif lines:
        write(args.output, text)
    second = f', dataroot_lq: {args.lq}' if args.lq else ''
    return images.finish(args.output, f'dataroot_gt: {root}{second}, meta_info: {args.output}')


# ---------------------------------------------- LMDB ------------------------------------------------------------------


def _encode(name: str, source: str) -> tuple[bytes, tuple[int, ...]]:
    image = read_image(os.path.join(source, name))
    return encode_png(image, LMDB_LEVEL), image.shape


def _existing_lmdb(args: argparse.Namespace, keys: dict[str, str]) -> int:
    """Keeps a finished database that holds the inputs.

    Raises:
        UserError: It holds others, or older ones, or is no database.
    """
    try:
        made = os.path.getmtime(os.path.join(args.output, 'data.mdb'))
        lines = Path(args.output, 'meta_info.txt').read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f'-o: {args.output} already exists and is no database of images; give another name.') from None
    remedy = f'delete {args.output} to have it made again, or give another name'
    held = {line.split('.')[0] for line in lines}
    if held - keys.keys():
        raise UserError(f'-o: the database holds {min(held - keys.keys())}, which {args.input} does not; {remedy}.')
    for key in held:
        if os.path.getmtime(os.path.join(args.input, keys[key])) > made:
            raise UserError(f'-o: {keys[key]} in {args.input} is newer than the database; {remedy}.')
    images = Pass(args, args.input)
    # what the first run could not read is missing rightly
    missing = [name for key, name in keys.items() if key not in held]
    for name, _ in images.over(functools.partial(_encode, source=args.input), missing) if missing else ():
        raise UserError(f'-o: the database lacks {name} of {args.input}; {remedy}.')
    images.counts['kept'] = len(held)
    return images.finish(args.output, f'dataroot_gt (or dataroot_lq): {args.output}, io_backend: {{type: lmdb}}')


def _lmdb(args: argparse.Namespace) -> int:
    if not args.output.endswith('.lmdb'):
        raise UserError(f"-o: {args.output} must end in .lmdb, or BasicSR's datasets refuse it.")
    _apart(args.input, args.output)
    keys = by_stem(list_images(args.input), args.input)
    for key, name in keys.items():
        if not re.fullmatch(r'[ -~]+', key) or '.' in key or len(key) > 511:
            raise UserError(
                f"-i: {name} in {args.input} cannot be a key (BasicSR's readers take ASCII without a dot before the "
                'ending, in folders too); rename it.'
            )
    if os.path.lexists(args.output):
        return _existing_lmdb(args, keys)
    compat.import_basicsr()
    from basicsr.utils.lmdb_util import LmdbMaker

    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f'.{output.stem}.part.lmdb')
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run: a database is made in one go
    maker = LmdbMaker(str(partial), map_size=LMDB_ROOM, batch=256, compress_level=LMDB_LEVEL)
    images = Pass(args, args.input)
    size, used = LMDB_ROOM, 0
    for name, (png, shape) in images.over(functools.partial(_encode, source=args.input), keys.values()):
        used += len(png) + 16384  # besides the image, whole pages and their tree
        if 2 * used > size:
            # not BasicSR's 1 TB at once, which some systems set aside in full; growing needs an idle database
            maker.txn.commit()
            size = ((4 * used >> 20) + 1) << 20
            maker.env.set_mapsize(size)
            maker.txn = maker.env.begin(write=True)
        maker.put(png, stem(name), shape)
    maker.close()
    if images.counts['done']:
        os.replace(partial, output)
    else:
        shutil.rmtree(partial)
    return images.finish(args.output, f'dataroot_gt (or dataroot_lq): {args.output}, io_backend: {{type: lmdb}}')


# ---------------------------------------------- LQ/GT pairs -----------------------------------------------------------


def _pairs(args: argparse.Namespace) -> int:
    _apart(args.input, args.output)
    names = by_stem(list_images(args.input), args.input).values()
    compat.import_basicsr()
    from sdakd import pairs

    settings = pairs.read_settings(args.degradation, args.scale, args.opt, args.seed)
    _claim(args.output, {'job': 'pairs', 'input': os.path.realpath(args.input), **settings})
    images = Pass(args, args.input)
    work = functools.partial(pairs.make_pair, source=args.input, output=args.output, settings=json.dumps(settings))
    images.run(work, names)
    roots = (os.path.join(args.output, part) for part in ('gt', 'lq'))
    use = 'scale: {}, dataroot_gt: {}, dataroot_lq: {}'.format(settings['scale'], *roots)
    if any('/' in name for name in names):
        use += "\nBasicSR's PairedImageDataset does not look into sub-folders: give it LMDB databases of both folders."
    return images.finish(args.output, use)


# ---------------------------------------------- the command line ------------------------------------------------------


def _whole(flag: str, least: int) -> Callable[[str], int]:
    """A reader of whole numbers for a flag."""

    def read(text: str) -> int:
        if not re.fullmatch(r'\d+', text) or int(text) < least:
            raise UserError(f'{flag}: write a whole number of at least {least}, not {text!r}.')
        return int(text)

    return read


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the jobs and their flags."""
    jobs = parser.add_subparsers(dest='name', metavar='job', required=True)

    def add(name: str, job: Callable, description: str, output: str, **given: Any) -> argparse.ArgumentParser:
        command = jobs.add_parser(name, help=description, description=description)
        command.add_argument('-i', '--input', required=True, help='folder of images, with its sub-folders', **given)
        command.add_argument('-o', '--output', required=True, help=output)
        command.add_argument(
            '--workers', type=_whole('--workers', 1), default=_cores(), help='processes (default: one per core)'
        )
        command.set_defaults(run=job)
        return command

    command = add('subimages', _subimages, 'cut images into overlapping sub-images', 'folder of NAME_s001.png, ...')
    for flag, least, default, meaning in (
        ('--crop_size', 1, 480, 'side of a sub-image in pixels'),
        ('--step', 1, 240, 'pixels from one sub-image to the next'),
        ('--thresh_size', 0, 0, 'a rest of more pixels than this gets a sub-image flush with the border'),
    ):
        command.add_argument(flag, type=_whole(flag, least), default=default, help=f'{meaning} (default: {default})')

    add(
        'multiscale',
        _multiscale,
        "make Real-ESRGAN's copies at 3/4, 1/2, 1/3 and with a shortest side of 400 pixels",
        'folder of NAMET0.png to NAMET3.png',
    )

    command = add('meta', _meta, 'write a meta-info file: a line per image, or per GT/LQ pair', 'file.txt', nargs='+')
    command.add_argument('--lq', help='folder of the LQ images of the GT images in -i, for lines `gt, lq`')
    command.add_argument('--root', nargs='+', help='dataroot_gt (default: the folder of -i, or what several share)')
    command.add_argument('--check', action='store_true', help='decode every image; leave out what cannot be used')

    add('lmdb', _lmdb, "pack images into an LMDB database for BasicSR's datasets", 'database, NAME.lmdb')

    command = add('pairs', _pairs, 'synthesise LQ/GT pairs once', 'folder of gt/ and lq/')
    command.add_argument('--degradation', choices=('bicubic', 'realesrgan'), required=True, help='how LQ is made')
    command.add_argument('--scale', type=_whole('--scale', 1), help="GT over LQ (default: the option file's, or 4)")
    command.add_argument('-opt', help="training option file whose Real-ESRGAN degradation replaces the published one's")
    command.add_argument('--seed', type=_whole('--seed', 0), default=0, help='of the degradation (default: 0)')


def run(args: argparse.Namespace) -> int:
    """Runs the job.

    Returns:
        0, or 130 when it was interrupted.

    Raises:
        UserError: A mistake on the command line, an unusable image, a full disk, or too little memory.
    """
    args.output = os.path.normpath(args.output)  # a shell's completion leaves a slash, also after NAME.lmdb
    try:
        return args.run(args)
    except (OSError, lmdb.Error) as error:
        where, what = getattr(error, 'filename', None) or args.output, getattr(error, 'strerror', None) or error
        raise UserError(f'{where}: {what}; mend that and give the same command again to go on.') from None
    except BrokenProcessPool:
        raise UserError(
            f'a worker process was killed, most likely for want of memory: try --workers {max(1, args.workers // 2)}.'
        ) from None
    except KeyboardInterrupt:
        sys.stderr.write('\nInterrupted; give the same command again to go on.\n')
        return 130
