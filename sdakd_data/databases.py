"""LMDB data sets: a database is opened once in a process, however many data sets, threads and commands read it.

BasicSR opens one per data set, which py-lmdb refuses for the second: the same database to train and to validate, or a
training without worker processes, would end at the first validation.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

import lmdb
from basicsr.utils import FileClient
from basicsr.utils.file_client import BaseStorageBackend

_lock = threading.RLock()
_opened: dict[str, tuple[tuple[int, int], lmdb.Environment]] = {}  # by folder: the file's identity, and its database


def environment(folder: str | os.PathLike, readahead: bool = False) -> lmdb.Environment:
    """The database in a folder, opened for reading; who asks first opens it, and nobody closes it.

    It is opened anew where another file has taken its place, and stays as it was where it has been moved away.

    Args:
        folder: The data set, with ``data.mdb`` in it.
        readahead: Whether the system may read ahead, which is good for databases that fit into the memory.

    Raises:
        lmdb.Error: It is no database, or cannot be opened.
        OSError: The file is shorter than the database says; reading it would end the process without a word.
    """
    folder = os.path.realpath(folder)
    with _lock:
        try:
            found = os.stat(os.path.join(folder, 'data.mdb'))
            identity = found.st_dev, found.st_ino
        except OSError:
            identity = None
        if folder in _opened:
            known, database = _opened[folder]
            if identity in (None, known):
                return database
            del _opened[folder], database  # it is closed with the last transaction of another thread
        if identity is not None and not found.st_size:
            raise OSError(f'{folder}/data.mdb is empty; copy or make it again')
        database = lmdb.open(folder, readonly=True, lock=False, readahead=readahead, meminit=False)
        pages, size = database.info()['last_pgno'] + 1, database.stat()['psize']
        if identity is not None and found.st_size < pages * size:
            database.close()
            raise OSError(
                f'{folder}/data.mdb is cut off: it has {found.st_size:,d} of {pages * size:,d} bytes; copy or make it '
                'again'
            )
        _opened[folder] = identity, database
        return database


def read(folder: str | os.PathLike, key: str, readahead: bool = False) -> bytes | None:
    """The value of a key, None where the database has none.

    Raises:
        lmdb.Error, OSError: See :func:`environment`.
    """
    name = key.encode()
    database = environment(folder, readahead)
    try:
        with database.begin() as transaction:
            return transaction.get(name)
    except lmdb.MapResizedError:  # another process has written more than was mapped
        with _lock:
            database.set_mapsize(0)
        with database.begin() as transaction:
            return transaction.get(name)
    except lmdb.BadValsizeError:  # longer than keys can be
        return None


def _in_child() -> None:
    """A forked process must not read through its parent's databases (LMDB's documentation, caveats)."""
    global _lock
    _lock = threading.RLock()
    for _, database in _opened.values():
        database.close()
    _opened.clear()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_in_child)


class Databases(BaseStorageBackend):
    """What BasicSR's ``FileClient`` reads LMDB data sets through, in the place of its ``LmdbBackend``.

    It opens nothing before the first image is asked for, and can be sent to another process.

    Args:
        db_paths: The data sets.
        client_keys: What each is called, such as ``gt`` and ``lq``.
        readahead: See :func:`environment`.
        options: ``readonly``, ``lock`` and the like, which BasicSR hands to ``lmdb.open``: without effect.
    """

    def __init__(
        self, db_paths: list | str, client_keys: list | str = 'default', readahead: bool = False, **options: object
    ) -> None:
        paths = [db_paths] if isinstance(db_paths, str | os.PathLike) else db_paths
        keys = [client_keys] if isinstance(client_keys, str) else client_keys
        self.folders: Mapping[str, str] = dict(zip(keys, map(str, paths), strict=True))
        self.readahead = readahead

    def get(self, filepath: str | os.PathLike, client_key: str) -> bytes:
        """The image of a key.

        Raises:
            LookupError: The database has none.
            lmdb.Error, OSError: See :func:`environment`.
        """
        content = read(self.folders[client_key], str(filepath), self.readahead)
        if content is None:
            raise LookupError(f'{filepath} is not in the database {self.folders[client_key]}')
        return content

    def get_text(self, filepath: str | os.PathLike) -> str:
        """A text in UTF-8, of the first data set; see :meth:`get`."""
        return self.get(filepath, next(iter(self.folders))).decode()


FileClient._backends['lmdb'] = Databases
