"""Training runs as processes of their own: kept when nothing changed, continued when interrupted, watched while busy.

A run is an option file and its record in one folder; BasicSR's `experiments/<name>` stands in the same folder or in
another one. What a run is, its key says: a digest of its options and of the files they name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from sdakd import machine, stops
from sdakd.compat import UserError
from sdakd.files.images import write
from sdakd.lock import check_free, holder, lock_of
from sdakd.progress import say

ROOT = Path(__file__).resolve().parents[2]
ITERATION = re.compile(rb'\[epoch: *\d+, iter: *([\d,]+)')
PEAK = re.compile(rb'Peak memory: ([\d,]+) MiB \(cuda\)')
POLL = 0.2  # seconds between two looks at the processes
GRACE = 180  # seconds that a training has to save its state when it is asked to end: a validation may be under way
PATIENCE = 3  # seconds after which it is said what is waited for


def digest(file: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes."""
    found = hashlib.sha256()
    with open(file, 'rb') as stream:
        while part := stream.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def key_of(options: Mapping, stand_ins: Mapping[str, str] | None = None, more: Iterable[str] = ()) -> str:
    """The key of a run.

    Args:
        options: Its options.
        stand_ins: What stands for a text in the options, such as a file's digest for its path: the key is then the same
            wherever the file lies.
        more: Whatever else decides the result.
    """

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return (stand_ins or {}).get(value, value) if isinstance(value, str) else value

    return hashlib.sha256(json.dumps([plain(options), *more], sort_keys=True).encode()).hexdigest()


@dataclass
class Record:
    """What is known of a run: the file ``<name>.json`` beside its option file."""

    key: str = ''
    state: str = 'new'  # new, begun, broken, done
    seconds: float = 0.0  # of all its processes
    starts: int = 0
    iteration: int = 0
    threads: int = 0
    peak_mib: float | None = None  # the most that the process held; None where the system does not say
    gpu_mib: float | None = None
    reason: str = ''  # why it broke


@dataclass
class Run:
    """One training run.

    Args:
        name: Of its experiment and its files.
        options: The option file's content, without ``name``.
        folder: Receives ``name.yml``, ``name.json`` (the record) and ``name.log`` (what the process printed).
        root: Receives ``experiments/``; a checkout of this project, or any folder.
        iterations: How many it has.
        key: See :func:`key_of`.
        product: What it makes, in its experiment's ``models/``; other networks than students are dropped at the end.
    """

    name: str
    options: Mapping
    folder: Path
    root: Path
    iterations: int
    key: str
    product: str = 'net_g_latest.pth'
    record: Record = field(init=False)

    def __post_init__(self) -> None:
        try:
            content = json.loads(self.path('json').read_text(encoding='utf-8'))
            known = Record(**content)
        except (OSError, ValueError, TypeError):
            known = Record()
        self.record = known if known.key == self.key else Record(key=self.key)

    def path(self, ending: str) -> Path:
        return self.folder / f'{self.name}.{ending}'

    @property
    def experiment(self) -> Path:
        return self.root / 'experiments' / self.name

    @property
    def result(self) -> Path:
        """What it made: the trained student, unless it is told otherwise."""
        return self.experiment / 'models' / self.product

    @property
    def done(self) -> bool:
        return self.record.state == 'done' and self.result.is_file()

    def command(self) -> list[str]:
        """The literal command in a checkout's own folder; elsewhere `sdakd train`, the same for any folder."""
        here = self.root.resolve() == ROOT and (ROOT / 'basicsr/train.py').is_file()
        program = ['basicsr/train.py'] if here else ['-m', 'sdakd.cli', 'train']
        command = [sys.executable, *program, '-opt', str(self.path('yml').resolve())]
        return [*command, '--auto_resume'] if self.record.starts else command

    def save(self) -> None:
        content = {name: getattr(self.record, name) for name in Record.__dataclass_fields__}
        write(self.path('json'), (json.dumps(content, indent=2) + '\n').encode())

    def write_options(self) -> Path:
        """Writes the option file and returns its path."""
        write(self.path('yml'), yaml.safe_dump({**self.options, 'name': self.name}, sort_keys=False).encode())
        return self.path('yml')

    def start(self, threads: int, device: str | None = None) -> subprocess.Popen:
        """Starts its process, or lets it go on from its last checkpoint.

        Args:
            threads: That it may use for arithmetic.
            device: The GPU that it sees, as in CUDA_VISIBLE_DEVICES; None: what this process sees.

        Raises:
            UserError: Another process trains it; its record and log are left as they are.
        """
        check_free(self.experiment)
        if self.record.starts and not any((self.experiment / 'training_states').glob('*.state')):
            shutil.rmtree(self.experiment, ignore_errors=True)  # it had not come to its first checkpoint
        self.write_options()
        command = self.command()
        self.record.state, self.record.threads, self.record.reason = 'begun', threads, ''
        self.record.starts += 1
        self.save()
        environment = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads)}
        if device is not None:
            environment['CUDA_VISIBLE_DEVICES'] = device
        path = [os.environ.get('PYTHONPATH')]
        if self.options.get('imports'):  # its modules may lie where the user works, and the process works elsewhere
            path.append(os.getcwd())
        try:
            importlib.metadata.distribution('sdakd')
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            path.append(str(ROOT))
        environment['PYTHONPATH'] = os.pathsep.join(filter(None, path))
        with open(self.path('log'), 'ab' if self.record.starts > 1 else 'wb') as log:
            return start(command, self.root, env=environment, stdout=log)

    def progress(self) -> int:
        """The last iteration that its log knows of."""
        found = ITERATION.findall(_end_of(self.path('log')))
        return int(found[-1].replace(b',', b'')) if found else 0

    def explain(self, status: int) -> str:
        """Why its process failed: the log's last sentence."""
        lines = [line.strip() for line in _end_of(self.path('log')).decode(errors='replace').splitlines()]
        last = next((line for line in reversed(lines) if line), 'its log is empty')
        if status < 0:
            with contextlib.suppress(ValueError):
                return f'it was ended by {signal.Signals(-status).name}, after: {last[:200]}'
        return last.removeprefix('Error: ')[:400]

    def finish(self, status: int) -> None:
        """Notes how its process ended, and drops what only a continuation needs.

        Where it was refused because another process had begun to train the same, the record stays that one's.
        """
        complete = status == 0 and self.result.is_file()
        self.record.state = 'done' if complete else 'broken'
        self.record.reason = '' if complete else self.explain(status)
        if complete:
            self.record.iteration = self.iterations
            if found := PEAK.findall(_end_of(self.path('log'))):
                self.record.gpu_mib = float(found[-1].replace(b',', b''))
            shutil.rmtree(self.experiment / 'training_states', ignore_errors=True)
            for path in (self.experiment / 'models').glob('net_*_*.pth'):
                if not path.name.startswith('net_g_') and path != self.result:
                    path.unlink(missing_ok=True)
        elif holder(lock_of(self.experiment)):
            return
        self.save()


def _end_of(path: Path, size: int = 20_000) -> bytes:
    try:
        with open(path, 'rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read()
    except OSError:
        return b''


def start(
    command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen:
    """Starts a training in a session of its own: a Ctrl-C reaches its parent alone, who then asks it once to stop.

    It ends when this process ends, however that comes about: see :func:`sdakd.stops.follow_starter`.

    Args:
        command: The program and its arguments.
        folder: Where it works.
        env: Its environment; default: that of this process.
        options: Of ``subprocess.Popen``, such as ``stdout``.
    """
    with stops.held_back():
        return subprocess.Popen(
            command,
            cwd=folder,
            # what it prints is read as UTF-8, and BasicSR reads and writes text as the system likes it
            env={**(os.environ if env is None else env), stops.LEASH: '1', 'PYTHONUTF8': '1'},
            stdin=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            creationflags=getattr(subprocess, 'CREATE_NEW_PROCESS_GROUP', 0),  # Windows knows no sessions
            **options,
        )


def end(processes: Iterable[subprocess.Popen]) -> None:
    """Asks trainings to stop, waits until they have saved their state, and leaves no process of theirs behind.

    Only the trainings themselves are asked: without its data loader's workers, one could not finish its iteration.
    """
    processes, readers = list(processes), []
    families = [machine.family(process.pid) for process in processes]
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended already
            os.write(process.stdin.fileno(), b's')
        if process.stdout is not None:  # it may have something to say meanwhile, and a full pipe would hold it up
            readers.append(threading.Thread(target=process.stdout.read, daemon=True))
            readers[-1].start()
    for limit in (PATIENCE, GRACE):
        asked = time.monotonic()
        while any(process.poll() is None for process in processes) and time.monotonic() < asked + limit:
            time.sleep(POLL / 4)
        if limit == PATIENCE and any(process.poll() is None for process in processes):
            say('Waiting for the training to save its state; a second Ctrl-C leaves at once.')
    for process, family in zip(processes, families, strict=True):
        for one in (process, *family):
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait()
        process.stdin.close()
    for reader in readers:
        reader.join()


def gpus() -> list[str]:
    """The GPUs that this process sees, as in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    if named is not None:
        return [each.strip() for each in named.split(',') if each.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@dataclass
class _Busy:
    run: Run
    process: subprocess.Popen
    begun: float  # monotonic
    before: float  # seconds of earlier processes
    device: str | None = None
    saved: float = 0.0

    def look(self) -> None:
        self.run.record.seconds = self.before + time.monotonic() - self.begun
        peak = machine.peak_memory(self.process.pid)
        if peak is not None:
            self.run.record.peak_mib = max(peak, self.run.record.peak_mib or 0)
        self.run.record.iteration = max(self.run.record.iteration, self.run.progress())
        if time.monotonic() > self.saved + 5:  # what a killed parent leaves behind is nearly true
            self.saved = time.monotonic()
            self.run.save()


def train_all(
    runs: Iterable[Run],
    jobs: int = 1,
    threads: int | None = None,
    watch: Callable[[Run, str], None] = lambda run, event: None,
    devices: Sequence[str] = (),
) -> None:
    """Trains every run that is not done, ``jobs`` at a time; a broken one is noted in its record, the others go on.

    Args:
        threads: For each process; default: the machine's cores, divided among ``jobs``.
        watch: Called with a run and ``begun``, ``busy`` (several times a second), ``done``, ``broken`` or ``kept``.
        devices: GPUs (:func:`gpus`): each training sees one of them, the one with the fewest.

    Raises:
        KeyboardInterrupt: After the processes were ended; the records say how far they were.
    """
    threads = threads or max(1, int(os.environ.get('OMP_NUM_THREADS') or os.cpu_count() or 1) // jobs)
    waiting, busy = list(runs), []
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                run = waiting.pop(0)
                if run.done:
                    watch(run, 'kept')
                    continue
                before = run.record.seconds
                taken = [one.device for one in busy]
                device = min(devices, key=taken.count, default=None)
                try:
                    with stops.held_back():  # none is started that is not known
                        busy.append(_Busy(run, run.start(threads, device), time.monotonic(), before, device))
                except UserError as error:
                    run.record.state, run.record.reason = 'broken', error.sentence
                    for event in ('begun', 'broken'):
                        watch(run, event)
                    continue
                watch(run, 'begun')
            for one in list(busy):
                one.look()
                status = one.process.poll()
                if status is None:
                    watch(one.run, 'busy')
                    continue
                busy.remove(one)
                one.process.stdin.close()
                one.run.finish(status)
                watch(one.run, one.run.record.state)
            if busy:
                time.sleep(POLL)
    finally:
        end(one.process for one in busy)
        for one in busy:
            one.run.save()
