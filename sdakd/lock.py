"""One training per folder, one command per output: locks that go away with their process, whatever ends it.

On the ground floor, like :mod:`sdakd.compat`: trainings and commands take them, and `sdakd doctor` shows those of
trainings.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from sdakd.compat import UserError, replacing
from sdakd.progress import say

WITHOUT_LOCKS = {None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # what disks say that offer none

_held: dict[Path, filelock.BaseFileLock] = {}  # of this process


@dataclass(frozen=True)
class Holder:
    """Who works in a folder.

    Args:
        pid: Of the process, on ``host``.
        host: Name of the machine.
        since: When it took the lock, ``2026-11-28 01:06:21`` in that machine's time.
    """

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f'process {self.pid} on {self.host}, since {self.since}'


def lock_of(folder: str | os.PathLike) -> Path:
    """The lock of a run's folder, hidden beside it: BasicSR renames the folder when the run starts afresh."""
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f'.{folder.name}.lock')


def _record(lock: Path) -> Path:
    # beside the lock: older filelocks empty a lock that they try, and Windows lets nobody read one that is held
    return lock.with_name(f'{lock.name}.json')


def holder(lock: Path) -> Holder | str | None:
    """Who holds a lock, as far as it is known; None where nobody does."""
    if lock in _held or not lock.exists():
        return None
    try:
        with filelock.FileLock(lock, timeout=0):
            return None  # what a killed process has left
    except filelock.Timeout:
        return _known(lock)
    except (OSError, NotImplementedError):
        return None


def _known(lock: Path) -> Holder | str:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(_record(lock).read_text(encoding='utf-8')))
    return 'process unknown'


def check_free(folder: str | os.PathLike) -> None:
    """Creates nothing.

    Raises:
        UserError: Another process trains in the folder.
    """
    if found := holder(lock_of(folder)):
        raise UserError(
            'name',
            f'a training runs in {folder} already ({found}); wait until it ends, or stop it, or give this run another '
            'name.',
        )


def hold(folder: str | os.PathLike) -> str | None:
    """Takes the lock of a run's folder for the rest of this process; what a killed run left half-written is removed.

    Returns:
        Why there is no lock, where the disk does not offer any.

    Raises:
        UserError: Another process trains in the folder.
    """
    lock = lock_of(folder)
    if lock in _held:
        return None
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        _take(lock)
    except filelock.Timeout:
        check_free(folder)
        return hold(folder)  # the other one has ended meanwhile
    except (OSError, NotImplementedError) as error:
        return getattr(error, 'strerror', None) or str(error)
    atexit.register(_release, lock, os.getpid())
    for pattern in ('.*.partial', '.*.part'):
        for part in Path(folder).rglob(pattern):
            part.unlink(missing_ok=True)
    return None


@contextlib.contextmanager
def alone_in(folder: Path, flag: str) -> Iterator[None]:
    """Locks a command's output folder against other commands while it lasts.

    Args:
        folder: It must be there; receives a file ``.lock``.
        flag: That names it.

    Raises:
        UserError: Another command works in it, or it cannot be locked.
    """
    lock = Path(folder, '.lock').absolute()
    try:
        _take(lock)
    except filelock.Timeout:
        raise UserError(flag, f'another command works in {folder} ({_known(lock)}); wait for it or stop it.') from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, 'strerror', None) or error
        if getattr(error, 'errno', None) not in WITHOUT_LOCKS:
            raise UserError(flag, f'{lock} cannot be written ({reason}); remove it, if it is a link.') from None
        say(f'{folder} cannot be locked ({reason}): give no other command that works there.')
    try:
        yield
    finally:
        if lock in _held:
            _record(lock).unlink(missing_ok=True)
            _held.pop(lock).release()


@contextlib.contextmanager
def waiting_for(path: Path) -> Iterator[None]:
    """Waits until no other process makes a file, and keeps others waiting while it lasts.

    Args:
        path: The file; its folder must be there.

    Raises:
        OSError: Nothing can be written there.
    """
    lock = path.with_name(f'.{path.name}.lock')
    taken = filelock.FileLock(lock)
    try:
        taken.acquire()
    except (OSError, NotImplementedError) as error:
        if getattr(error, 'errno', None) not in WITHOUT_LOCKS:
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is held: afterwards it may be another's
            lock.unlink()
        taken.release()


def _take(lock: Path) -> None:
    if lock in _held:
        raise filelock.Timeout(str(lock))
    taken = filelock.FileLock(lock, timeout=0)
    taken.acquire()
    _held[lock] = taken
    own = Holder(os.getpid(), platform.node() or 'this machine', time.strftime('%Y-%m-%d %H:%M:%S'))
    with contextlib.suppress(OSError, UserError), replacing(_record(lock)) as file:
        file.write(json.dumps(asdict(own)).encode())


def _release(lock: Path, pid: int) -> None:
    if os.getpid() != pid:  # a forked process holds nothing
        return
    for path in (_record(lock), lock):  # while it is held: afterwards it may be another's
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        _held.pop(lock).release()
