"""Every image of a data set, decoded as trainings decode it: once, on all cores, and remembered for the next start."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
from basicsr.utils import FileClient, imfrombytes

from sdakd import decoding
from sdakd.compat import UnusableError, UserError, no_file
from sdakd.machine import cores
from sdakd.progress import Progress
from sdakd_data import databases
from sdakd_data.remembered import Remembered, Stamp
from sdakd_data.teacher_cache import key_of

ROOM = 200_000_000  # pixels that are decoded at the same time: 600 MB
AHEAD = 16  # images per thread that are begun before the first of them is asked for
WRITING = 10.0  # seconds between two times that findings are written

Size = tuple[int, int, int] | tuple[int, int, int, str]  # height, width, channels; key


class Decoder:
    """Decodes the images of a data set of BasicSR's kind as it will decode them itself.

    Their bytes come from BasicSR's ``FileClient``, their pixels from its ``imfrombytes``, which turns what EXIF says.
    Kinds of files that it may show wrong are decoded as they are meant, too, and refused where the two differ.

    Args:
        backend: ``io_backend`` as the data set completes it, with ``db_paths`` and ``client_keys`` for LMDB.
        roots: The folders or databases of its images by side, ``gt`` and ``lq``.
        keyed: The sides of which :func:`sdakd_data.teacher_cache.key_of` is wanted, behind the size of an image.
        where: Key of the option file to name in an error.

    Raises:
        UserError: A database cannot be opened.
    """

    def __init__(self, backend: Mapping, roots: Mapping[str, object], where: str, keyed: Collection[str] = ()) -> None:
        backend = dict(backend)
        self.kind = backend.pop('type')
        self.client = FileClient(self.kind, **backend)
        self.databases: Mapping[str, str] = self.client.client.folders if self.kind == 'lmdb' else {}
        for folder in self.databases.values():
            _open(folder, where)
        self._room, self._keyed = _Room(ROOM), keyed
        self.memories = {
            side: Remembered('decoded', 2, cv2.__version__, decoding.opencv_most('PIXELS'), str(root), side in keyed)
            for side, root in roots.items()
        }

    def stamp(self, side: str, name: str) -> Stamp | str | None:
        """Size and time of an image's file, or of its database; what is wrong with it; None where nothing tells."""
        if self.kind == 'lmdb':
            path = os.path.join(self.databases.get(side) or self.databases['default'], 'data.mdb')
        elif self.kind == 'disk':
            path = name
        else:
            return None
        with contextlib.suppress(OSError, ValueError):
            found = os.stat(path)
            if stat.S_ISREG(found.st_mode):
                return found.st_size, found.st_mtime_ns
        return no_file(path)

    def decode(self, side: str, name: str) -> tuple[Size | str, bool]:
        """The size of an image or what is wrong with it, and whether it would be found again."""
        try:
            content = self.client.get(name, side if side in self.databases else 'default')
        except LookupError:
            return 'is not in the database', True
        except Exception as error:  # the system's, or lmdb's
            return f'cannot be read ({getattr(error, "strerror", None) or error})', False
        if not len(content):
            return 'is empty', True
        found, reason = None, decoding.DAMAGED
        try:
            found = decoding.header(content)
        except UnusableError as error:  # OpenCV may know it all the same
            reason = error.reason
        if found and (many := decoding.too_large_for_opencv(found.width, found.height)):
            return many, False
        doubt = found is not None and decoding.in_doubt(found)
        try:
            with self._room(found.width * found.height * (1 + doubt) if found else ROOM):
                image = imfrombytes(content)
                errs = decoding.opencv_errs(content, found, image) if doubt else None
        except cv2.error as error:
            many = f'has more pixels than the {decoding.opencv_most("PIXELS"):,d} that OpenCV decodes'
            return many if 'IO_MAX' in error.err else f'cannot be decoded ({error.err})', False
        except MemoryError:
            return 'needs more memory than there is', False
        if errs:
            return errs, True
        if image is None:
            return reason, True
        return (*image.shape, key_of(image)) if side in self._keyed else image.shape, True

    def sizes(self, images: Iterable[tuple[str, str]], total: int, what: str) -> Iterator[Size | str]:
        """The sizes of images as they are decoded, or what is wrong with them, in their order.

        What is remembered of an image that has not changed since is not found out again; whoever stops in between,
        or is stopped, goes on there at the next start.

        Args:
            images: Side (``gt`` or ``lq``) and path or key.
            total: How many there are.
            what: For the progress line.

        Returns:
            ``(height, width, channels)``, with the key behind it where it is wanted, or the end of a sentence, such as
            ``is empty``.
        """
        threads = cv2.getNumThreads()
        cv2.setNumThreads(0)  # an image per thread is what keeps cores busy
        workers = cores()
        pool, written = ThreadPoolExecutor(workers, 'decoding'), time.monotonic()
        ahead: deque[tuple[str, str, Stamp | None, Future | object]] = deque()
        progress = Progress(what, total, 'images')
        try:
            with progress:
                for side, name in images:
                    stamp = self.stamp(side, name)
                    if isinstance(stamp, str):
                        found, stamp = stamp, None
                    else:
                        found = stamp and side in self.memories and self.memories[side].get(name, stamp)
                    found = found or pool.submit(self.decode, side, name)
                    ahead.append((side, name, stamp, found))
                    while ahead and (len(ahead) > AHEAD * workers or not isinstance(ahead[0][3], Future)):
                        yield self._settle(*ahead.popleft())
                        progress.step()
                    if time.monotonic() > written + WRITING:
                        self._write()
                        written = time.monotonic()
                while ahead:
                    yield self._settle(*ahead.popleft())
                    progress.step()
        finally:
            pool.shutdown(cancel_futures=True)
            self._write()
            cv2.setNumThreads(threads)

    def _settle(self, side: str, name: str, stamp: Stamp | None, found: Future | object) -> Size | str:
        if isinstance(found, Future):
            found, lasting = found.result()
            if lasting and stamp is not None and side in self.memories:
                self.memories[side].add(name, stamp, found)
        return found if isinstance(found, str) else tuple(found)

    def _write(self) -> None:
        for memory in self.memories.values():
            memory.write()


def _open(folder: str, where: str) -> None:
    if reason := no_file(file := os.path.join(folder, 'data.mdb')):  # one that is open can still be read
        raise UserError(where, f'the images cannot be opened (the file {file} {reason}).')
    try:
        databases.environment(folder)
    except Exception as error:  # the system's, or lmdb's
        raise UserError(where, f'the images cannot be opened ({str(error).rstrip(".")}).') from None


class _Room:
    """Lets threads in as long as what they hold together does not exceed a limit; a larger one comes in alone."""

    def __init__(self, most: int) -> None:
        self.most, self.held, self.change = most, 0, threading.Condition()

    @contextlib.contextmanager
    def __call__(self, amount: int) -> Iterator[None]:
        with self.change:
            self.change.wait_for(lambda: not self.held or self.held + amount <= self.most)
            self.held += amount
        try:
            yield
        finally:
            with self.change:
                self.held -= amount
                self.change.notify_all()
