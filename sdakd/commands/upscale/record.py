"""What `sdakd upscale` has made in a folder: a command that was stopped goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from sdakd.compat import of_system
from sdakd.files.generators import Opened
from sdakd.files.runs import digest
from sdakd_arch.inference.onnx_network import OnnxNetwork, external_files
from sdakd_arch.weights import fingerprint

NAME = '.sdakd_upscale.jsonl'  # in the output folder; scans of folders pass over dot-files


def identity(opened: Opened) -> list:
    """What tells a network from others: its options and weights, or the files of a graph."""
    if not isinstance(opened.module, OnnxNetwork):
        return [opened.network, fingerprint(opened.module)]
    return [digest(opened.path), *(digest(opened.path.parent / name) for name in sorted(external_files(opened.path)))]


class Record:
    """A line for every result that is complete: of which file, with which settings, and what both files were then.

    Args:
        folder: Of the results.
        settings: All that decides what a result looks like; it can be written as JSON.
    """

    def __init__(self, folder: Path, settings: Mapping) -> None:
        self.folder, self.path = folder, folder / NAME
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.known: dict[str, list] = {}
        lines = self.path.read_text(encoding='utf-8', errors='replace').splitlines() if self.path.is_file() else []
        for line in lines:
            try:
                name, facts = json.loads(line)
                self.known[name] = facts
            except (ValueError, TypeError):
                continue  # cut off where the command was killed
        # a line that was cut off must not swallow the next one
        self.gap = '\n' if lines and self.path.read_bytes()[-1:] != b'\n' else ''

    def _facts(self, name: str, source: Path) -> list | None:
        try:
            files = [os.stat(path) for path in (source, self.folder / name)]
        except OSError:
            return None
        return [self.key, os.path.realpath(source), *(value for s in files for value in (s.st_size, s.st_mtime_ns))]

    def holds(self, name: str, source: Path) -> bool:
        """Whether a result is there, made of this very file with these settings, and neither has changed since."""
        return name in self.known and self.known[name] == self._facts(name, source)

    def add(self, name: str, source: Path) -> None:
        """Notes a result that has just been written.

        Raises:
            UserError: The note cannot be written.
        """
        try:
            number = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, 'O_NOFOLLOW', 0), 0o666)
            with open(number, 'a', encoding='utf-8') as file:
                file.write(f'{self.gap}{json.dumps([name, self._facts(name, source)])}\n')
        except OSError as error:
            raise of_system(error, self.path, 'it cannot be written') or error from None
        self.gap = ''
