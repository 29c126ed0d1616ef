"""What was found out about files, kept beyond the process in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import zlib
from pathlib import Path

from sdakd.compat import no_file, replacing

COARSE, FINE = 2_000_000_000, 20_000_000  # ns: the steps of clocks of file systems that count in seconds, and of others

Stamp = tuple[int, int]  # size in bytes, time of the last change in ns
_unwritten: dict[Path, dict[str, list]] = {}  # what could not be written, for the rest of the process


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/sdakd``, by default ``~/.cache/sdakd``; everything in it may be deleted at any time."""
    home = os.path.expanduser('~')
    home = tempfile.gettempdir() if home == '~' else home  # a user of a container who has none
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.join(home, '.cache'), 'sdakd')


class Remembered:
    """Findings by the name, size and time of change of files, kept beyond the process.

    A line is what was written at one time, with its checksum, behind a line break of its own: damaged lines, and one
    that a process could not finish, are passed over, and processes that write at the same time add their lines one
    behind the other. Where the folder cannot be written, the process alone remembers.

    Args:
        what: What the findings depend on besides the file, such as the version of the decoder; they get a file of their
            own.
    """

    def __init__(self, *what: object) -> None:
        self.path = cache_folder() / 'images' / f'{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.jsonl'
        self._known: dict[str, list] = _unwritten.get(self.path, {})
        self._new: dict[str, list] = {}
        if self._read() > 2 * len(self._known):
            self._shorten()

    def get(self, name: str, stamp: Stamp) -> object | None:
        """What was found out about a file as it is now; None: nothing."""
        known = self._known.get(name)
        return known[2] if known is not None and known[0] == stamp[0] and known[1] == stamp[1] else None

    def add(self, name: str, stamp: Stamp, found: object) -> None:
        """Keeps a finding, which JSON can express; :meth:`write` writes it."""
        # who has just been changed may be changed again without the clock having moved
        if 0 <= time.time_ns() - stamp[1] < (FINE if stamp[1] % 1_000_000_000 else COARSE):
            return
        self._known[name] = self._new[name] = [*stamp, found]

    def write(self) -> None:
        """Appends what was added since the last call."""
        if not self._new:
            return
        line, self._new = _line(self._new), {}
        try:
            if no_file(self.path) not in (None, 'does not exist'):
                raise OSError
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, 'ab', buffering=0) as file:
                file.write(b'\n' + line)
        except OSError:
            _unwritten[self.path] = self._known

    def _read(self) -> int:
        """Reads what is there; returns the number of findings, and of lines that are none."""
        count = 0
        if no_file(self.path) is None:
            with contextlib.suppress(OSError), open(self.path, 'rb') as file:
                for line in file:
                    try:
                        found = json.loads(line[9:]) if int(line[:8], 16) == zlib.crc32(line[9:]) else {}
                    except ValueError:
                        found = {}
                    self._known.update(found)
                    count += max(len(found), len(line) > 1)
        return count

    def _shorten(self) -> None:
        """Leaves out findings that later ones replace, and damaged lines."""
        with contextlib.suppress(OSError), replacing(self.path, self.path.with_suffix(f'.{os.getpid()}.part')) as file:
            file.write(_line(self._known))


def _line(findings: dict[str, list]) -> bytes:
    content = json.dumps(findings).encode() + b'\n'
    return b'%08x ' % zlib.crc32(content) + content
