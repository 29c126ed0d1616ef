"""`sdakd prepare lmdb`: a database of images in BasicSR's layout."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb as _lmdb

from sdakd.commands.prepare.jobs import Made, add_job, apart, job, made
from sdakd.compat import UserError, of_system, reserve
from sdakd.files.images import Pass, by_stem, encode_png, list_images, read_image, stem, write
from sdakd.files.limits import MAX_PIXELS

LMDB_LEVEL = 1  # PNG compression inside a database, BasicSR's default
LMDB_ROOM = 1 << 30  # bytes; the map grows when they are used up
LMDB_LEAST = 1 << 16  # bytes of an empty database, and more
LMDB_BATCH = 64 << 20  # bytes that are written at a time


def _encode(name: str, source: str) -> tuple[bytes, tuple[int, ...]]:
    image = read_image(os.path.join(source, name))
    return encode_png(image, LMDB_LEVEL), image.shape


def _existing_lmdb(folder: str, output: str, keys: dict[str, str], workers: int | None) -> Made:
    """Keeps a finished database that holds the inputs.

    Raises:
        UserError: It holds others, or older ones, or is no database.
    """
    try:
        finished = os.path.getmtime(os.path.join(output, 'data.mdb'))
        lines = Path(output, 'meta_info.txt').read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError('-o', f'{output} already exists and is no database of images; give another name.') from None
    remedy = f'delete {output} to have it made again, or give another name'
    held = {line.split('.')[0] for line in lines}
    if held - keys.keys():
        raise UserError('-o', f'the database holds {min(held - keys.keys())}, which {folder} does not; {remedy}.')
    for key in held:
        if os.path.getmtime(os.path.join(folder, keys[key])) > finished:
            raise UserError('-o', f'{keys[key]} in {folder} is newer than the database; {remedy}.')
    every = Pass('lmdb', folder, workers)
    # what the first run could not read is missing rightly
    missing = [name for key, name in keys.items() if key not in held]
    for name, _ in every.over(functools.partial(_encode, source=folder), missing) if missing else ():
        raise UserError('-o', f'the database lacks {name} of {folder}; {remedy}.')
    every.counts['kept'] = len(held)
    return made(every, output, f'dataroot_gt (or dataroot_lq): {output}, io_backend: {{type: lmdb}}')


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


@job
def lmdb(images: str, output: str, *, workers: int | None = None, max_pixels: int = MAX_PIXELS) -> Made:
    """Packs images into an LMDB database for BasicSR's datasets.

    Args:
        images: Folder of images, with its sub-folders.
        output: The database, ``NAME.lmdb``. A finished one of the same images is kept.
        workers: Processes; default: one per core.
        max_pixels: Images of more pixels are not decoded.

    Raises:
        UserError: No images, a name that is no key, or a database of other images.
    """
    if not output.endswith('.lmdb'):
        raise UserError('-o', f"{output} must end in .lmdb, or BasicSR's datasets refuse it.")
    apart(images, output)
    keys = keys_of(list_images(images), images)
    if os.path.lexists(output):
        return _existing_lmdb(images, output, keys, workers)
    place = Path(output)
    partial = place.with_name(f'.{place.stem}.part.lmdb')
    every = Pass('lmdb', images, workers)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed: a database is made in one go
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise of_system(error, place, 'it cannot be written') or error from None
        reserve(place, LMDB_LEAST)
        with contextlib.closing(every.over(functools.partial(_encode, source=images), keys.values())) as encoded:
            _fill(partial, place, encoded)
        if every.counts['done']:
            os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made(every, output, f'dataroot_gt (or dataroot_lq): {output}, io_backend: {{type: lmdb}}')


def _fill(folder: Path, place: Path, images: Iterable[tuple[str, tuple[bytes, tuple[int, ...]]]]) -> None:
    """Writes a database as BasicSR's LmdbMaker does, and its ``meta_info.txt``.

    Without a lock, which nobody needs while the folder is hidden: LMDB maps its file, and on a full disk the process
    would be killed by SIGBUS.

    Args:
        folder: Where it is made.
        place: Where it will be, for errors.
        images: Name, PNG and shape of each.
    """
    room = LMDB_ROOM
    with _lmdb.open(str(folder), map_size=room, lock=False) as database:
        lines, batch, size = [], [], 0

        def commit() -> None:
            nonlocal room
            written = (folder / 'data.mdb').stat().st_size
            reserve(place, size, written)  # LMDB calls a full disk an input/output error
            if 2 * (written + size) > room:
                # not BasicSR's 1 TB at once, which some systems set aside in full; growing needs an idle database
                room = ((4 * (written + size) >> 20) + 1) << 20
                database.set_mapsize(room)
            with database.begin(write=True) as transaction:
                for key, png in batch:
                    transaction.put(key, png)

        for name, (png, (height, width, channels)) in images:
            key = stem(name)
            lines.append(f'{key}.png ({height},{width},{channels}) {LMDB_LEVEL}\n')
            batch.append((key.encode('ascii'), png))
            size += len(png) + 16384  # besides the image, whole pages and their tree
            if size > LMDB_BATCH:
                commit()
                batch, size = [], 0
        commit()
    write(folder / 'meta_info.txt', ''.join(lines).encode())


def add_to(jobs: Any) -> None:
    """Adds the job."""
    add_job(jobs, 'lmdb', lmdb, "pack images into an LMDB database for BasicSR's datasets", 'database, NAME.lmdb')
