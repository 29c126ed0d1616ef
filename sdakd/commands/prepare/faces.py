"""`sdakd prepare faces`: aligned crops of one size, in parts that share no identity."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2

from sdakd.commands.prepare import alignment, database, identities
from sdakd.commands.prepare.jobs import RECORD, add_job, apart, claim, whole
from sdakd.compat import UserError
from sdakd.files.images import Pass, UnusableError, by_stem, is_made, list_images, read_image, stem, write_png

SIZES = tuple(1 << power for power in range(5, 11))


def _size(text: str) -> int:
    if text not in map(str, SIZES):
        raise UserError('--size', f'write a power of two, {", ".join(map(str, SIZES))}, not {text!r}.')
    return int(text)


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
    root = folders[0] if len(folders) == 1 else os.path.relpath(os.path.commonpath(map(os.path.abspath, folders)))
    paths = [os.path.join(folder, name) for folder in folders for name in list_images(folder)]
    names = list(dict.fromkeys(Path(os.path.relpath(path, root)).as_posix() for path in paths))
    return root, list(by_stem(names, root, _flat).values())


def _parts(args: argparse.Namespace, names: list[str]) -> dict[str, tuple[str, str]]:
    """The part and the identity of every picture."""
    held_out = {part: getattr(args, part) for part in identities.PARTS[1:] if getattr(args, part)}
    if args.identities is not None:
        return identities.assign(names, args.identities, held_out)
    if held_out:
        raise UserError(
            f'--{next(iter(held_out))}',
            'faces that are held out at random show people of the training set again; say '
            'with --identities FILE who is who, or leave the flag out to have all in train.',
        )
    sys.stderr.write(
        'All faces go into train; to hold some out, say with --identities FILE who is who: faces that are held out at '
        'random show people of the training set again.\n'
    )
    return dict.fromkeys(names, ('train', ''))


def _check_made(output: str, targets: dict[str, str]) -> None:
    """Raises a UserError if an earlier run put a face where it does not belong now, which could mix the parts."""
    wanted = {os.path.normpath(path) for path in targets.values()}
    for part in identities.PARTS if Path(output, RECORD).exists() else ():
        for path in sorted(Path(output, part).glob('*.png')):
            if path.name[0] != '.' and os.path.normpath(path) not in wanted:
                raise UserError(
                    '-o',
                    f'{path} was made of a picture that is gone or of another part now; delete the folder {output} '
                    'to have it made again, or give another.',
                )


def run(args: argparse.Namespace) -> int:
    """Makes the faces, and the databases if they are wanted."""
    if args.aligned and args.detector:
        raise UserError('--detector', 'with --aligned no face is searched for; leave one of the two out.')
    source, names = _inputs(args.input, args.output)
    if args.lmdb:
        database.keys_of(names, source)
    parts = _parts(args, names)
    targets = {name: os.path.join(args.output, parts[name][0], f'{_flat(name)}.png') for name in names}
    _check_made(args.output, targets)
    if args.aligned:
        face = functools.partial(_resize, source=source, size=args.size)
    else:
        weights = alignment.find_weights(args.detector)
        face = functools.partial(_align, source=source, size=args.size, weights=weights)
    given = sorted(os.path.realpath(folder) for folder in args.input)
    claim(args.output, {'job': 'faces', 'input': given, 'size': args.size, 'aligned': args.aligned})

    images = Pass(args, source)
    made: dict[str, list[str]] = defaultdict(list)
    for name, _ in images.over(functools.partial(_make, source=source, targets=targets, face=face), names):
        part, identity = parts[name]
        made[part].append(identity)
    uses = []
    for part in sorted(made, key=identities.PARTS.index):
        folder, people = os.path.join(args.output, part), len(set(made[part]))
        sys.stdout.write(
            f'{part}: {len(made[part])} faces' + (f' of {people} identities\n' if args.identities else '\n')
        )
        uses.append(f'{folder} ({part})')
        if args.lmdb:
            packed = argparse.Namespace(name='lmdb', input=folder, output=f'{folder}.lmdb', workers=args.workers)
            database.run(packed)
    return images.finish(args.output, 'dataroot_gt: ' + ', '.join(uses))


def add_to(jobs: Any) -> None:
    """Adds the job and its flags."""
    description = 'crop aligned faces, in parts that share no identity'
    command = add_job(jobs, 'faces', run, description, 'folder of train/, validation/ and test/', nargs='+')
    sizes = f'side in pixels, a power of two from {SIZES[0]} to {SIZES[-1]} (default: 512)'
    command.add_argument('--size', type=_size, default=512, help=sizes)
    command.add_argument('--aligned', action='store_true', help='the images are aligned faces: only resize them')
    command.add_argument('--detector', metavar='FILE', help="detection_Resnet50_Final.pth (default: facexlib's own)")
    listed = 'list of name,identity or name,identity,part'
    command.add_argument('--identities', metavar='FILE', help=listed)
    for part in identities.PARTS[1:]:
        wanted = f'identities of the list to hold out for {part} (default: what the list says, or 0)'
        command.add_argument(f'--{part}', type=whole(f'--{part}', 1), metavar='N', help=wanted)
    command.add_argument('--lmdb', action='store_true', help='also pack every part into a database, PART.lmdb')
