"""What the jobs of `sdakd prepare` share: their flags, and the folders that they write to."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdakd.compat import UserError
from sdakd.files.images import write

RECORD = '.sdakd_prepare.json'  # what an output folder was made of; BasicSR's folder scan passes over dot-files


def apart(folder: str, output: str, flag: str = '-i') -> None:
    """Raises a UserError if the output lies in a folder of inputs: the next run would take it for an input."""
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            '-o', f'{output} lies in the folder of the inputs ({flag} {folder}); put it beside that folder.'
        )


def claim(output: str, record: dict[str, Any]) -> None:
    """Makes the output folder, or finds that it is this very job's.

    Raises:
        UserError: It holds something else, or images made with other settings.
    """
    path = Path(output, RECORD)
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
        except ValueError:
            found = {}
        changed = [key for key in {**record, **found} if record.get(key) != found.get(key)]
        if changed:
            key = changed[0]
            raise UserError(
                '-o',
                f'{output} was made with {key} {found.get(key)!r}, and now it is {record.get(key)!r}; '
                'give another folder, or delete this one.',
            )
        return
    if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise UserError(
            '-o', f'{output} already exists and `sdakd prepare` did not make it; give a new or empty folder.'
        )
    write(path, (json.dumps(record, indent=1, sort_keys=True) + '\n').encode())


def whole(flag: str, least: int) -> Callable[[str], int]:
    """A reader of whole numbers for a flag."""

    def read(text: str) -> int:
        if not re.fullmatch(r'\d+', text) or int(text) < least:
            raise UserError(flag, f'write a whole number of at least {least}, not {text!r}.')
        return int(text)

    return read


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def add_job(
    jobs: Any, name: str, job: Callable, description: str, output: str, **given: Any
) -> argparse.ArgumentParser:
    """Adds a job with the flags that all have; ``output`` says what -o is, ``given`` is for -i.

    Args:
        jobs: What ``add_subparsers`` returned.
    """
    command = jobs.add_parser(name, help=description, description=description)
    command.add_argument('-i', '--input', required=True, help='folder of images, with its sub-folders', **given)
    command.add_argument('-o', '--output', required=True, help=output)
    command.add_argument(
        '--workers', type=whole('--workers', 1), default=_cores(), help='processes (default: one per core)'
    )
    command.set_defaults(run=job)
    return command
