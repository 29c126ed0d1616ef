"""What the jobs of `sdakd prepare` share: their flags, the folders that they write to, and their outcome."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb

from sdakd import compat, stops
from sdakd.commands.interface import Flags, Outcome, number, whole
from sdakd.compat import UserError
from sdakd.files.images import Pass, write
from sdakd.files.limits import MAX_PIXELS, pixel_limit
from sdakd.machine import cores, shown

RECORD = '.sdakd_prepare.json'  # what an output folder was made of; BasicSR's folder scan passes over dot-files


def apart(folder: str, output: str, flag: str = '-i') -> None:
    """Raises a UserError if the output lies in a folder of inputs: the next run would take it for an input."""
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder)):
        raise UserError(
            '-o', f'{output} lies in the folder of the inputs ({flag} {folder}); put it beside that folder.'
        )


def shared_folder(folders: Sequence[str]) -> str:
    """The folder that holds all of several.

    Raises:
        UserError: There is none: they lie on several drives of Windows.
    """
    if len(folders) == 1:
        return folders[0]
    try:
        return shown(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
    except ValueError:
        raise UserError('-i', f'{", ".join(folders)} lie on several drives; put them on one.') from None


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


@dataclass
class Made(Outcome):
    """What a job of `sdakd prepare` made.

    Args:
        job: Its name.
        output: Where it wrote to.
        counts: How many images were ``done``, ``kept`` from an earlier run, ``unreadable``, or unusable otherwise.
        use: What an option file says to use it.
        unusable: Why an image could not be used, one line each; the others were.
        folder: Where the images are.
        parts: Lines about parts of the output, in front.
    """

    job: str
    output: str
    counts: Counter
    use: str
    unusable: list[str]
    folder: str
    parts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ['done', 'kept', 'unreadable', *sorted(self.counts.keys() - {'done', 'kept', 'unreadable'})]
        counts = ', '.join(f'{self.counts[kind]} {kind}' for kind in kinds)
        lines = [*self.parts, f'{self.job}: {counts}; {self.output}']
        if self.counts['done'] + self.counts['kept']:
            lines.append(f'In the option file: {self.use}')
        return ''.join(f'{line}\n' for line in lines)

    def check(self) -> None:
        if self.unusable:
            first = '; '.join(self.unusable[:3]) + ('; ...' if len(self.unusable) > 3 else '')
            raise UserError(
                f'{len(self.unusable)} of {sum(self.counts.values())} images in {self.folder} could not be used '
                f'({first}); repair or remove them and give the same command again.'
            )


def made(images: Pass, output: str, use: str, parts: Sequence[str] = ()) -> Made:
    """The outcome of a pass."""
    return Made(images.job, output, images.counts, use, images.unusable, images.folder, list(parts))


def job(function: Callable[..., Made]) -> Callable[..., Made]:
    """Makes paths plain, and says in one sentence what keeps a job from going on; it can be given again."""

    @functools.wraps(function)
    @stops.leaving('give the same command again to go on')
    def guarded(images: str | Path | Sequence[str | Path], output: str | Path, **options: Any) -> Made:
        images = str(images) if isinstance(images, str | Path) else list(map(str, images))
        output = os.path.normpath(output)  # a shell's completion leaves a slash, also after NAME.lmdb
        if options.get('workers') is not None:
            options['workers'] = whole(options['workers'], '--workers', 1)
        try:
            with pixel_limit(options.get('max_pixels', MAX_PIXELS)):
                return function(images, output, **options)
        except OSError as error:
            raise compat.of_system(error, error.filename or output) or error from None
        except lmdb.Error as error:
            raise UserError(output, f'{error}; mend that and give the same command again.') from None
        except BrokenProcessPool:
            fewer = max(1, (options.get('workers') or cores()) // 2)
            raise UserError(
                f'a worker process was killed, most likely for want of memory: try --workers {fewer}{_or_a_script()}.'
            ) from None

    return guarded


def _or_a_script() -> str:
    """What else may have ended a worker that is started afresh: it runs the main program's file once more."""
    main = sys.modules['__main__']
    if multiprocessing.get_start_method() == 'fork' or main.__spec__ is not None or not hasattr(main, '__file__'):
        return ''
    return f"; or write `if __name__ == '__main__':` in {Path(main.__file__).name} before what it does"


def add_job(jobs: Any, name: str, function: Callable[..., Made], description: str, output: str, **given: Any) -> Flags:
    """Adds a job with the flags that all have; ``output`` says what -o is, ``given`` is for -i.

    Args:
        jobs: What ``add_subparsers`` returned.
    """
    add = Flags(jobs.add_parser(name, help=description, description=description), function)
    add('-i', '--input', dest='images', help='folder of images, with its sub-folders', **given)
    add('-o', '--output', help=output)
    add('--workers', type=number, help='processes (default: one per core)')
    add(
        '--max-pixels', type=number, metavar='PIXELS', help='images of more pixels are not decoded (default: {default})'
    )
    return add
