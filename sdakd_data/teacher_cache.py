"""A teacher's answers to whole training images, in a folder: computed once, read crop by crop in every later step."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sdakd.compat import UserError, replacing

FORMAT = 1  # of the folder; raised when what the code writes is no longer what it wrote before
MANIFEST = 'cache.json'


def key_of(image: np.ndarray) -> str:
    """What an input image is called in a cache: SHA-256 of its size and pixels, ``(h, w, 3)``, uint8, BGR."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


class TeacherCache:
    """The folder of one teacher: ``cache.json``, ``images/`` and, for every tap, ``maps/<tap>/``.

    An entry is called by its input's :func:`key_of` and is a NumPy array of float16, ``(H, W, C)``; images are RGB, in
    [0, 1] but for overshoot. float16 keeps 11 bits, so that an image is off by at most 1/16 of an 8-bit level.

    Args:
        folder: The folder, which need not exist yet.
        taps: The taps whose maps are wanted besides the images.
        where: Key of the option file to name in an error.
    """

    def __init__(self, folder: str, taps: Iterable[str] = (), where: str = 'teacher:cache') -> None:
        self.folder, self.taps, self.where = Path(folder), tuple(taps), where

    def path(self, key: str, tap: str = '') -> Path:
        """The file of an image's map, or with no tap of the teacher's image."""
        return self.folder / (f'maps/{tap.replace(":", "-")}' if tap else 'images') / f'{key}.npy'

    def missing(self, key: str) -> list[str]:
        """What is still to be computed for an image: taps, and '' for the teacher's image."""
        return [tap for tap in ('', *self.taps) if not self.path(key, tap).is_file()]

    def read(self, key: str, tap: str = '') -> np.ndarray:
        """An entry, mapped into memory: only what is used is read.

        Raises:
            UserError: It is missing or damaged.
        """
        path = self.path(key, tap)
        try:
            entry = np.load(path, mmap_mode='r')
        except (OSError, ValueError, EOFError):
            entry = None
        if entry is None or entry.dtype != np.float16 or entry.ndim != 3:
            raise UserError(f'{self.where}: the entry {path} is missing or damaged; delete it to have it made again.')
        return entry

    def write(self, key: str, tap: str, values: np.ndarray) -> None:
        """Writes an entry, which other processes find either whole or not at all."""
        stream = io.BytesIO()
        np.save(stream, values)
        self._write(self.path(key, tap), stream.getvalue())

    def _write(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f'.{path.name}.{os.getpid()}.part')  # several processes may fill one folder
        try:
            with replacing(path, partial) as file:
                file.write(data)
        except UserError as error:
            raise error.within(self.where) from None

    def manifest(self) -> dict[str, Any] | None:
        """What the folder says of itself; None where it is new or empty.

        Raises:
            UserError: It is no folder of this kind.
        """
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return None
        try:
            found = json.loads((self.folder / MANIFEST).read_bytes())
            return {key: found[key] for key in ('format', 'teacher', 'scale', 'taps')}
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.where}: {self.folder} is no folder of a teacher's answers (its {MANIFEST} is missing or "
                'damaged); name a new or an empty folder.'
            ) from None

    def check(self, teacher: str) -> None:
        """Sees that the folder is new, or holds the answers of this teacher in this format.

        Args:
            teacher: Its fingerprint.

        Raises:
            UserError: It does not.
        """
        found = self.manifest()
        if found is not None and found['format'] != FORMAT:
            raise UserError(
                f'{self.where}: {self.folder} has the format {found["format"]} of another version of this program, '
                f'which writes {FORMAT}; delete it or name another folder.'
            )
        if found is not None and found['teacher'] != teacher:
            raise UserError(
                f'{self.where}: {self.folder} holds the answers of another teacher (its weights have the fingerprint '
                f'{str(found["teacher"])[:12]}, these {teacher[:12]}); name another folder, or delete this one.'
            )

    def claim(self, teacher: str, scale: int) -> None:
        """Makes the folder, or adds the taps to those that its manifest names.

        Raises:
            UserError: It belongs to another teacher, or cannot be written.
        """
        self.check(teacher)
        found = self.manifest()
        taps = sorted({*self.taps, *(found['taps'] if found else ())})
        manifest = {'format': FORMAT, 'teacher': teacher, 'scale': scale, 'values': 'float16', 'taps': taps}
        if found is None or found['taps'] != taps:
            self._write(self.folder / MANIFEST, (json.dumps(manifest, indent=1) + '\n').encode())


def blocks(values: np.ndarray, k: int) -> np.ndarray:
    """Sees ``(h * k, w * k, C)`` as ``(h, w, k, k, C)``, a block per input pixel, so that crops are those of inputs."""
    height, width, channels = values.shape
    return values.reshape(height // k, k, width // k, k, channels).transpose(0, 2, 1, 3, 4)


def joined(parts: np.ndarray) -> np.ndarray:
    """Undoes :func:`blocks`; a copy."""
    height, width, k, _, channels = parts.shape
    return parts.transpose(0, 2, 1, 3, 4).reshape(height * k, width * k, channels)
