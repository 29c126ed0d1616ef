"""`sdakd prepare faces`: aligned crops of one size, in parts that share no identity."""

from __future__ import annotations

import functools
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from sdakd.commands.interface import number, whole
from sdakd.commands.prepare import alignment, database
from sdakd.commands.prepare.identities import PARTS, assign
from sdakd.commands.prepare.jobs import RECORD, Made, add_job, apart, claim, job, made, shared_folder
from sdakd.compat import UserError
from sdakd.files.images import Pass, UnusableError, by_stem, is_made, list_images, read_image, stem, write_png
from sdakd.files.limits import MAX_PIXELS

SIZES = tuple(1 << power for power in range(5, 11))


def _resize(name: str, source: str, size: int) -> Any:
    """A face that is aligned already, at the size."""
    image = read_image(os.path.join(source, name))
    height, width = image.shape[:2]
    if height != width:
        raise UnusableError('not square', f'is not square ({width}x{height}), so it is no aligned face')
    if height < size:
        raise UnusableError('too small', f'is smaller ({width}x{height}) than --size {size}')
    return alignment.shrink(image, size)


def _align(name: str, source: str, size: int, weights: str) -> Any:
    """The largest face of a photograph, aligned, at the size."""
    image = read_image(os.path.join(source, name))
    try:
        landmarks = alignment.find_landmarks(image, alignment.detector(weights))
        matrix = None if landmarks is None else alignment.similarity(landmarks, size)
        if matrix is None:
            raise UnusableError('without a face', 'shows no face')
        side = round(alignment.face_side(matrix, size))
        if side < size:
            raise UnusableError('too small', f'shows a face of {side}x{side} pixels, smaller than --size {size}')
        return alignment.crop(image, matrix, size)
    except cv2.error as error:  # of a picture with a side of more than 32767 pixels
        raise UnusableError('unreadable', f'cannot be cut ({error.err})') from None


def _make(name: str, source: str, targets: dict[str, str], face: functools.partial) -> bool:
    if is_made(targets[name], os.path.join(source, name)):
        return False
    write_png(targets[name], face(name))
    return True


def _flat(name: str) -> str:
    """What a face is called: BasicSR's scan of a folder of faces does not look into sub-folders."""
    return stem(name).replace('/', '_')


def _inputs(folders: list[str], output: str) -> tuple[str, list[str]]:
    """The folder of -i, or what several share, and the pictures below it."""
    for folder in folders:
        apart(folder, output)
    root = shared_folder(folders)
    paths = [os.path.join(folder, name) for folder in folders for name in list_images(folder)]
    names = list(dict.fromkeys(Path(os.path.relpath(path, root)).as_posix() for path in paths))
    return root, list(by_stem(names, root, _flat).values())


def _parts(names: list[str], listed: str | None, held_out: dict[str, int]) -> dict[str, tuple[str, str]]:
    """The part and the identity of every picture."""
    if listed is not None:
        return assign(names, listed, held_out)
    if held_out:
        raise UserError(
            f'--{next(iter(held_out))}',
            'faces that are held out at random show people of the training set again; say with --identities FILE who '
            'is who, or leave the flag out to have all in train.',
        )
    sys.stderr.write(
        'All faces go into train; to hold some out, say with --identities FILE who is who: faces that are held out at '
        'random show people of the training set again.\n'
    )
    return dict.fromkeys(names, ('train', ''))


def _check_made(output: str, targets: dict[str, str]) -> None:
    """Raises a UserError if an earlier run put a face where it does not belong now, which could mix the parts."""
    wanted = {os.path.normpath(path) for path in targets.values()}
    for part in PARTS if Path(output, RECORD).exists() else ():
        for path in sorted(Path(output, part).glob('*.png')):
            if path.name[0] != '.' and os.path.normpath(path) not in wanted:
                raise UserError(
                    '-o',
                    f'{path} was made of a picture that is gone or of another part now; delete the folder {output} '
                    'to have it made again, or give another.',
                )


@job
def faces(
    images: str | Sequence[str],
    output: str,
    *,
    size: int = 512,
    aligned: bool = False,
    detector: str | None = None,
    identities: str | None = None,
    validation: int | None = None,
    test: int | None = None,
    lmdb: bool = False,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Made:
    """Crops aligned faces of one size, in parts that share no identity.

    Args:
        images: Folder of photographs or of aligned faces, or several.
        output: Folder of ``train/``, ``validation/`` and ``test/``.
        size: Side in pixels, a power of two from 32 to 1024.
        aligned: The images are aligned faces: only resize them.
        detector: ``detection_Resnet50_Final.pth``; default: facexlib's own.
        identities: List of ``name,identity`` or ``name,identity,part``.
        validation, test: How many identities of the list to hold out; default: what the list says, or 0.
        lmdb: Whether every part is also packed into a database.
        workers: Processes; default: one per core.
        max_pixels: Images of more pixels are not decoded.

    Raises:
        UserError: No images, a size that is none, a faulty list, facexlib or its weights missing, or a folder that was
            made with other settings.
    """
    if size not in SIZES:
        raise UserError('--size', f'write a power of two, {", ".join(map(str, SIZES))}, not {str(size)!r}.')
    counts = {'validation': validation, 'test': test}
    held_out = {part: whole(count, f'--{part}', 1) for part, count in counts.items() if count is not None}
    if aligned and detector:
        raise UserError('--detector', 'with --aligned no face is searched for; leave one of the two out.')
    folders = [images] if isinstance(images, str) else images
    source, names = _inputs(folders, output)
    if lmdb:
        database.keys_of(names, source)
    parts = _parts(names, identities, held_out)
    targets = {name: os.path.join(output, parts[name][0], f'{_flat(name)}.png') for name in names}
    _check_made(output, targets)
    if aligned:
        face = functools.partial(_resize, source=source, size=size)
    else:
        weights = alignment.find_weights(detector)
        face = functools.partial(_align, source=source, size=size, weights=weights)
    given = sorted(os.path.realpath(folder) for folder in folders)
    claim(output, {'job': 'faces', 'input': given, 'size': size, 'aligned': aligned})

    every = Pass('faces', source, workers)
    found: dict[str, list[str]] = defaultdict(list)
    for name, _ in every.over(functools.partial(_make, source=source, targets=targets, face=face), names):
        part, identity = parts[name]
        found[part].append(identity)
    uses, lines = [], []
    for part in sorted(found, key=PARTS.index):
        folder, people = os.path.join(output, part), len(set(found[part]))
        lines.append(f'{part}: {len(found[part])} faces' + (f' of {people} identities' if identities else ''))
        uses.append(f'{folder} ({part})')
        if lmdb:
            packed = database.lmdb(folder, f'{folder}.lmdb', workers=workers)
            packed.check()
            lines += str(packed).splitlines()
    return made(every, output, 'dataroot_gt: ' + ', '.join(uses), lines)


def add_to(jobs: Any) -> None:
    """Adds the job and its flags."""
    description = 'crop aligned faces, in parts that share no identity'
    add = add_job(jobs, 'faces', faces, description, 'folder of train/, validation/ and test/', nargs='+')
    sizes = f'side in pixels, a power of two from {SIZES[0]} to {SIZES[-1]} (default: {{default}})'
    add('--size', type=number, help=sizes)
    add('--aligned', action='store_true', help='the images are aligned faces: only resize them')
    add('--detector', metavar='FILE', help="detection_Resnet50_Final.pth (default: facexlib's own)")
    add('--identities', metavar='FILE', help='list of name,identity or name,identity,part')
    for part in PARTS[1:]:
        wanted = f'identities of the list to hold out for {part} (default: what the list says, or 0)'
        add(f'--{part}', type=number, metavar='N', help=wanted)
    add('--lmdb', action='store_true', help='also pack every part into a database, PART.lmdb')
