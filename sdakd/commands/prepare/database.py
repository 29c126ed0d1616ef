"""`sdakd prepare lmdb`: a database of images in BasicSR's layout."""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdakd import compat
from sdakd.commands.prepare.jobs import add_job, apart
from sdakd.compat import UserError
from sdakd.files.images import Pass, by_stem, encode_png, list_images, read_image, stem

LMDB_LEVEL = 1  # PNG compression inside a database, BasicSR's default
LMDB_ROOM = 1 << 30  # bytes; the map grows when they are used up


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
        raise UserError(
            '-o', f'{args.output} already exists and is no database of images; give another name.'
        ) from None
    remedy = f'delete {args.output} to have it made again, or give another name'
    held = {line.split('.')[0] for line in lines}
    if held - keys.keys():
        raise UserError('-o', f'the database holds {min(held - keys.keys())}, which {args.input} does not; {remedy}.')
    for key in held:
        if os.path.getmtime(os.path.join(args.input, keys[key])) > made:
            raise UserError('-o', f'{keys[key]} in {args.input} is newer than the database; {remedy}.')
    images = Pass(args, args.input)
    # what the first run could not read is missing rightly
    missing = [name for key, name in keys.items() if key not in held]
    for name, _ in images.over(functools.partial(_encode, source=args.input), missing) if missing else ():
        raise UserError('-o', f'the database lacks {name} of {args.input}; {remedy}.')
    images.counts['kept'] = len(held)
    return images.finish(args.output, f'dataroot_gt (or dataroot_lq): {args.output}, io_backend: {{type: lmdb}}')


def keys_of(names: Iterable[str], folder: str) -> dict[str, str]:
    """Maps the keys of a database to the images of a folder.

    Raises:
        UserError: A name is no key that BasicSR's readers could take, or two are the same key.
    """
    keys = by_stem(names, folder)
    for key, name in keys.items():
        if not re.fullmatch(r'[ -~]+', key) or '.' in key or len(key) > 511:
            raise UserError(
                '-i',
                f"{name} in {folder} cannot be a key (BasicSR's readers take ASCII without a dot before the "
                'ending, in folders too); rename it.',
            )
    return keys


def run(args: argparse.Namespace) -> int:
    if not args.output.endswith('.lmdb'):
        raise UserError('-o', f"{args.output} must end in .lmdb, or BasicSR's datasets refuse it.")
    apart(args.input, args.output)
    keys = keys_of(list_images(args.input), args.input)
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


def add_to(jobs: Any) -> None:
    """Adds the job."""
    add_job(jobs, 'lmdb', run, "pack images into an LMDB database for BasicSR's datasets", 'database, NAME.lmdb')
