"""Many images at once, for `sdakd prepare`: listing, reading, writing, and a pass over them in several processes.

Every image is decoded as BasicSR's datasets decode it: three channels, eight bits, turned as its EXIF tag says, without
alpha; kinds that OpenCV shows wrong are decoded as they are meant (:mod:`sdakd.decoding`). Every file is written beside
its place under a name that starts with a dot and is then renamed, so a file that is there is complete, and a command
that was interrupted goes on where it stopped when it is given again.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from sdakd import decoding, stops
from sdakd.compat import UnusableError, UserError, no_file, part_of, replacing, unreadable
from sdakd.files.limits import most_pixels, start_process
from sdakd.machine import cores
from sdakd.progress import Progress, say

ENDINGS = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


def list_images(folder: str, where: str = '-i') -> list[str]:
    """:func:`find_images` without the note, which goes to stderr."""
    names, note = find_images(folder, where)
    sys.stderr.write(note)
    return names


def _files(folder: str) -> Iterator[str]:
    """Paths of the files below ``folder``, relative to it, with forward slashes; dot-files are passed over."""
    seen = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(at))
        # a linked folder may lead back to one of its parents
        folders[:] = [f for f in folders if f[0] != '.' and os.path.realpath(os.path.join(at, f)) not in seen]
        yield from (Path(at, file).relative_to(folder).as_posix() for file in files if file[0] != '.')


def find_files(folder: str, endings: Collection[str]) -> list[str]:
    """Paths of the files below ``folder`` that have one of some endings, as :func:`find_images`."""
    return sorted(name for name in _files(folder) if os.path.splitext(name)[1].lower() in endings)


def find_images(folder: str, where: str = '-i', known: Collection[str] = ()) -> tuple[list[str], str]:
    """Paths of the images below ``folder``, relative to it, with forward slashes, sorted; dot-files are passed over.

    Args:
        folder: Where to look.
        where: The flag that names it.
        known: Endings of files that the caller uses, which the note does not count.

    Returns:
        The paths, and a line for people about files of other kinds, empty where there are none.

    Raises:
        UserError: There is no such folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise UserError(where, f'{folder} is no folder; give one that holds images.')
    names, others = [], Counter()
    for name in _files(folder):
        ending = os.path.splitext(name)[1].lower()
        if ending in ENDINGS:
            names.append(name)
        elif ending not in known:
            others[ending or 'no ending'] += 1
    kinds = ', '.join(sorted(others))
    if not names:
        there = f'only files of other kinds ({kinds})' if others else 'no file'
        raise UserError(where, f'{folder} holds {there}; images are told by their endings {", ".join(ENDINGS)}.')
    note = f'{folder}: left out {sum(others.values())} of other kinds ({kinds}).\n' if others else ''
    return sorted(names), note


def stem(name: str) -> str:
    """The relative path without its ending: what outputs, LMDB keys and pairs are called."""
    return os.path.splitext(name)[0]


def by_stem(
    names: Iterable[str], folder: str, rename: Callable[[str], str] = stem, where: str = '-i'
) -> dict[str, str]:
    """Maps output names to inputs.

    Raises:
        UserError: Two inputs would get the same output, as names on macOS and Windows are the same in either case.
    """
    found: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in names:
        found[rename(name)] = name
        other = seen.setdefault(rename(name).casefold(), name)
        if other != name:
            case = '' if rename(other) == rename(name) else ' on systems that do not tell a from A'
            raise UserError(
                where, f'{name} and {other} in {folder} would both become {rename(name)}{case}; rename one of them.'
            )
    return found


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Decodes an image as BasicSR's datasets do.

    Returns:
        uint8 array (H, W, 3), BGR.

    Raises:
        UnusableError: It cannot be read, is cut off, or has more pixels than are decoded here.
    """
    return decode(read_bytes(path))


def read_bytes(path: str | os.PathLike) -> bytes:
    """Reads a file whole.

    Raises:
        UnusableError: It cannot be read; a pipe or a device is not opened.
    """
    if reason := no_file(path):
        reason = 'cannot be read (No such file or directory)' if reason == 'does not exist' else reason
        raise unreadable(reason)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(f'cannot be read ({error.strerror or error})') from None


def check_size(width: int, height: int) -> None:
    """Checks that an image is not larger than is decoded here, which its header tells.

    Raises:
        UnusableError: It is.
    """
    if width * height > most_pixels():
        raise UnusableError(
            'too large',
            f'has {width}x{height} pixels, more than {most_pixels()}; give --max-pixels {width * height} if it is '
            'meant to be so large',
        )


def read_header(path: str | os.PathLike) -> decoding.Header:
    """Reads the header of an image.

    Raises:
        UnusableError: It cannot be read, or has more pixels than are decoded here.
    """
    if reason := no_file(path):
        raise unreadable(reason)
    try:
        with open(path, 'rb') as file:
            found = decoding.header(file)
    except OSError as error:
        raise unreadable(f'cannot be read ({error.strerror or error})') from None
    check_size(found.width, found.height)
    return found


def decode(data: bytes) -> np.ndarray:
    """Decodes the bytes of an image file; see :func:`read_image`."""
    found = decoding.header(data)
    check_size(found.width, found.height)
    decoding.check_single(found)
    if decoding.in_doubt(found) or decoding.too_large_for_opencv(found.width, found.height):
        return decoding.colour(decoding.picture(data, found).pixels)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise unreadable(decoding.DAMAGED)
        if found.kind == 'JPEG':
            with JpegImageFile(io.BytesIO(data)) as whole:
                whole.load()  # OpenCV 4 fills what is missing from a JPEG with grey and says nothing
    except OSError as error:
        raise unreadable(f'cannot be read ({error.strerror or error})') from None
    except cv2.error as error:
        raise unreadable(f'cannot be decoded ({error.err})') from None
    return image


def encode_png(image: np.ndarray, level: int) -> bytes:
    fine, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, level])
    if not fine:
        raise ValueError(f'OpenCV makes no PNG of an array {image.shape} of {image.dtype}')
    return data.tobytes()


def write(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file that is either absent or complete, and its folder if need be."""
    with replacing(path) as file:
        file.write(data)


def write_again(path: str | os.PathLike, known: str | os.PathLike) -> None:
    """Gives a file a second name, by a hard link; where the disk has none, by a copy."""
    path = Path(path)
    part = part_of(path)
    try:
        part.unlink(missing_ok=True)  # of a run that was killed
        os.link(known, part)
        os.replace(part, path)
    except OSError:
        write(path, Path(known).read_bytes())
    finally:
        part.unlink(missing_ok=True)  # renaming a file to another name of its own leaves both


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    write(path, encode_png(image, 3))


def is_made(path: str | os.PathLike, source: str) -> bool:
    """Whether the output is there and not older than its input."""
    return os.path.exists(path) and os.path.getmtime(path) >= os.path.getmtime(source)


# ---------------------------------------------- a pass over many images -----------------------------------------------


def _start_worker(most: int) -> None:
    stops.leave_to_parent()
    cv2.setNumThreads(0)
    os.environ['OMP_NUM_THREADS'] = (
        '1'  # there is a process per core, and results must not depend on how many there are
    )
    if 'torch' in sys.modules:  # else it reads the variable when it is imported
        sys.modules['torch'].set_num_threads(1)
    start_process(most)
    parent = multiprocessing.parent_process().sentinel

    def follow() -> None:
        wait([parent])
        os._exit(1)  # a worker that outlived a killed parent would write into the next run's files

    threading.Thread(target=follow, daemon=True).start()


def _in_order(function: Callable, items: Iterable, workers: int) -> Iterator:
    """Yields ``function(item)`` in the order of the items, a few of them ahead, so that memory stays bounded."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # a forked process would wait for OpenCV's threads, which are not forked
    stops.spare_helpers()
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(most_pixels(),))
    ahead: deque = deque()
    try:
        for item in items:
            with stops.held_back():  # it starts the processes
                ahead.append(pool.submit(function, item))
            if len(ahead) > 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _attempt(work: Callable[[str], Any], name: str) -> tuple[str, Any, UnusableError | None]:
    try:
        return name, work(name), None
    except UnusableError as error:
        return name, None, error


class Pass:
    """One pass over images in several processes: a progress bar, counts, and what could not be used.

    Args:
        job: Its name.
        folder: Where the images are, to name them.
        workers: How many processes; None: one per core.
    """

    def __init__(self, job: str, folder: str, workers: int | None = None):
        self.job, self.folder, self.workers = job, folder, workers or cores()
        self.counts: Counter = Counter()
        self.unusable: list[str] = []

    def over(self, work: Callable[[str], Any], names: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Yields the name and what ``work`` returned (false: an output was kept) for every image that could be used."""
        names = list(names)
        with Progress(self.job, len(names), 'images') as progress:
            workers = min(self.workers, max(len(names), 1))
            for name, result, error in _in_order(functools.partial(_attempt, work), names, workers):
                progress.step()
                if error is None:
                    self.counts['done' if result else 'kept'] += 1
                    yield name, result
                else:
                    self.counts[error.kind] += 1
                    self.unusable.append(f'{name} {error.reason}')
                    say(f'{os.path.join(self.folder, name)} {error.reason}')

    def run(self, work: Callable[[str], Any], names: Iterable[str]) -> None:
        for _ in self.over(work, names):
            pass
