"""The finished parts of a video that is being made: encoded pieces of so many frames, in a hidden folder beside it.

A command that was stopped or killed goes on behind the last of them. A piece is decoded without the others, so what is
made in several goes is what is made in one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from sdakd.compat import UserError, of_system, replacing
from sdakd.files.images import write

LENGTH = 100  # frames
SETTINGS, ENDING = 'settings.json', '.piece'

Packet = tuple[int, int, bool, bytes]  # when it is shown, how long, whether it is a key frame, and its bytes


def folder_of(path: Path) -> Path:
    """Where the parts of a file are: ``.NAME.parts`` beside it."""
    return path.with_name(f'.{path.name}.parts')


class Segments:
    """Pieces of a video by number.

    Args:
        folder: Where they are; it must be there.
        facts: All that decides what is in them, as JSON holds it: pieces of other facts are removed.
        anew: Whether all are removed.

    Raises:
        UserError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, facts: dict, anew: bool = False) -> None:
        self.folder, self.counts, self.packets = folder, [], []
        path = folder / SETTINGS
        known = None
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text(encoding='utf-8'))
        if known != facts or anew:
            for piece in folder.glob(f'*{ENDING}'):
                piece.unlink()
            write(path, json.dumps(facts).encode())
        while self._path(len(self.counts)).is_file() and (head := self._head(len(self.counts))):
            self.counts.append(head['frames'])
            self.packets.append(head['packets'])

    def _path(self, number: int) -> Path:
        return self.folder / f'{number:06d}{ENDING}'

    def _head(self, number: int) -> dict | None:
        try:
            with open(self._path(number), 'rb') as file:
                head = json.loads(file.readline())
                size = os.fstat(file.fileno()).st_size - file.tell()
            return head if size == sum(packet[3] for packet in head['packets']) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def frames(self) -> int:
        """How many frames are there."""
        return sum(self.counts)

    def add(self, frames: int, packets: list[Packet]) -> None:
        """Keeps the next piece.

        Raises:
            UserError: It cannot be written.
        """
        head = {'frames': frames, 'packets': [[*facts, len(data)] for *facts, data in packets]}
        with replacing(self._path(len(self.counts))) as file:
            file.write(json.dumps(head).encode() + b'\n')
            for packet in packets:
                file.write(packet[3])
        self.counts.append(frames)
        self.packets.append(head['packets'])

    def all(self) -> Iterator[Packet]:
        """The packets of all pieces, in the order in which they are decoded."""
        for number in range(len(self.counts)):
            with open(self._path(number), 'rb') as file:
                file.readline()
                for pts, duration, key, size in self.packets[number]:
                    yield pts, duration, key, file.read(size)

    def decoding_times(self) -> list[int]:
        """When each packet is decoded, in units of the frames' times: ascending, and not after it is shown.

        So many frames are waited for as the deepest reordering needs, as encoders do it for a whole video.
        """
        shown = [packet[0] for packets in self.packets for packet in packets]
        order = sorted(shown)
        rank = {pts: number for number, pts in enumerate(order)}
        wait = max((number - rank[pts] for number, pts in enumerate(shown)), default=0)
        early = [order[number] - (order[wait] - order[0]) for number in range(wait)]
        return early + order[: len(order) - wait]

    def remove(self) -> None:
        """Removes them; the folder stays, for it holds the lock."""
        for path in (*self.folder.glob(f'*{ENDING}'), self.folder / SETTINGS):
            path.unlink(missing_ok=True)


def make_folder(path: Path, flag: str) -> Path:
    """Makes the folder for the parts of a file.

    Raises:
        UserError: It cannot be made, or a link stands in its place.
    """
    folder = folder_of(path)
    try:
        if folder.is_symlink():
            raise UserError(flag, f'{folder} is a link, and parts of the video would be kept there; remove it.')
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise of_system(error, folder, 'it cannot be made') or error from None
    return folder
