"""The folder of `sdakd export --to web`: what is written is listed in it, and nothing else is ever replaced."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sdakd.compat import UserError, one_line
from sdakd.files.images import write
from sdakd.lock import waiting_for

SERVICE = 'sw.js'
TELLS = 'const SITE = '  # how a service worker begins: with the files of its site
LAZY = 'ort/'  # engines, of which a browser needs one
MARK = '.sdakd'  # in a folder in which a site is being made


def finish(work: Path) -> None:
    """Tells the service worker which files there are, with their SHA-256; a change in any makes it a new one."""
    files, version = [], hashlib.sha256()
    for path in sorted(each for each in work.rglob('*') if each.is_file()):
        name, digest = path.relative_to(work).as_posix(), _digest(path)
        version.update(f'{name}\n{digest}\n'.encode())
        if name not in (SERVICE, MARK):
            files.append({'path': name, 'lazy': name.startswith(LAZY), 'sha256': digest})
    told = json.dumps({'version': version.hexdigest()[:16], 'files': files})
    service = work / SERVICE
    write(service, f'{TELLS}{told};\n'.encode() + service.read_bytes())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_own(folder: Path) -> None:
    """Whether a folder may be replaced: it is missing or empty, or a site with every file as it was written.

    Raises:
        UserError: It holds anything else.
    """
    there = {path.relative_to(folder).as_posix() for path in folder.rglob('*')}
    if foreign := sorted(there - _own(folder)):
        raise UserError(
            '-o',
            f'{folder} holds other files than those of a site that was written there ({foreign[0]}); '
            'give a new folder for the site, such as -o site.',
        )


def _own(folder: Path) -> set[str]:
    """Files and folders in a folder that :func:`finish` has listed and nobody has changed."""
    try:
        first = (folder / SERVICE).read_text(encoding='utf-8').partition('\n')[0]
        listed = {
            each['path']: each['sha256'] for each in json.loads(first.removeprefix(TELLS).removesuffix(';'))['files']
        }
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    own = {SERVICE}
    for name, digest in listed.items():
        path = folder / name
        if path.is_file() and not path.is_symlink() and _digest(path) == digest:
            own |= {name, *(parent.as_posix() for parent in PurePosixPath(name).parents)}
    return own


@contextlib.contextmanager
def replaced(output: Path) -> Iterator[Path]:
    """A hidden folder beside ``output``, which takes its place when the block has ended well.

    Two processes at once write it one after the other.

    Raises:
        UserError: The folder cannot be written, or what would be replaced is not a site.
    """
    output = Path(os.path.abspath(output))
    work, old = (output.with_name(f'.{output.name}.{end}') for end in ('part', 'old'))
    made = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with waiting_for(output):
            check_own(old)
            if not (work / MARK).exists():  # else a process was killed
                check_own(work)
            if old.exists() and not output.exists():  # it was killed between two names
                os.rename(old, output)
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)
            try:
                work.mkdir()
                (work / MARK).touch()
                yield work
                (work / MARK).unlink()
                check_own(output)  # once more, for making the site takes its time
                if output.exists():
                    os.rename(output, old)
                os.rename(work, output)
            except BaseException:
                if old.exists() and not output.exists():
                    os.rename(old, output)
                raise
            finally:
                shutil.rmtree(work, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError('-o', f'{output} cannot be written ({error.strerror or one_line(error)}).') from None
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()  # only where nothing has been made in it
