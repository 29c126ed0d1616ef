"""The processes of a distributed training: they wait for each other as long as it takes, and end together.

BasicSR leaves both to the launcher and to collective operations, which hang until a time limit where one process has
ended, and each process then writes what its library knows of it. Here every process looks after the others
beside its work: the first one that fails says why, all leave with its exit status, and one that was killed is named.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import platform
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sdakd.compat import UserError, exit_with_sentence, tell_launcher
from sdakd.machine import lives
from sdakd.stops import SIGNALS

POLL = 0.05  # seconds between two looks at who has come
PULSE = 1.0  # seconds between two looks at the others
SILENT = 300.0  # seconds without a sign of life after which a process on another machine has ended
PATIENCE = 5.0  # seconds in which it shows why a connection was lost
FAILURE = 'sdakd/failure'  # key of the store
_LOST = re.compile(r'\b(gloo|nccl|broken pipe|connection (closed|reset|refused))\b', re.IGNORECASE)

_meetings = itertools.count()  # equal on all processes: each goes through the same meetings in the same order


@dataclass(frozen=True)
class _Failure:
    """Why a run ends.

    Args:
        rank: Of the process that says it.
        status: Exit status of all processes.
        text: What is said.
    """

    rank: int
    status: int
    text: str


@dataclass
class _Peer:
    """Another process of the run.

    Args:
        rank: Its rank.
        pid: Its number on ``host``.
        host: Its machine's name.
        near: Whether this process can see it: it runs on the same machine.
    """

    rank: int
    pid: int
    host: str
    near: bool
    beat: int = 0
    heard: float = 0.0  # when ``beat`` changed last

    def __str__(self) -> str:
        return f'process {self.rank} of the run (pid {self.pid} on {self.host})'


class _Others:
    """What this process knows of the others, and how it is told."""

    def __init__(self) -> None:
        self.store = _store()
        self.rank, self.number = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.ending = threading.Lock()  # held by the thread that ends this process
        own = {'pid': os.getpid(), 'host': platform.node(), 'place': _place()}
        self.store.set(f'sdakd/process/{self.rank}', json.dumps(own))
        self.peers: list[_Peer] = []
        for rank in range(self.number):
            found = json.loads(self.store.get(f'sdakd/process/{rank}'))
            near = found['place'] == own['place'] and lives(found['pid'])
            if rank != self.rank:
                self.peers.append(_Peer(rank, found['pid'], found['host'], near, heard=time.monotonic()))

    def told(self) -> _Failure | None:
        """Why the run ends, where a process has said so."""
        if not self.store.check([FAILURE]):
            return None
        return _Failure(**json.loads(self.store.get(FAILURE)))

    def claim(self, status: int, text: str) -> _Failure:
        """Says why the run ends, unless another process has done so before; returns what counts."""
        own = _Failure(self.rank, status, text)
        try:
            return _Failure(**json.loads(self.store.compare_set(FAILURE, '', json.dumps(asdict(own)))))
        except Exception:  # the store has ended with the main process: the first one of those left speaks
            first = min([self.rank, *(peer.rank for peer in self.peers if peer.near and lives(peer.pid))])
            return own if first == self.rank else _Failure(first, status, text)

    def killed(self) -> _Peer | None:
        """A process that has ended without a word."""
        for peer in self.peers:
            if peer.near:
                ended = not lives(peer.pid)
            else:
                with contextlib.suppress(Exception):  # without a store, nobody is heard any more
                    beat = self.store.add(f'sdakd/beat/{peer.rank}', 0)
                    if beat != peer.beat:
                        peer.beat, peer.heard = beat, time.monotonic()
                ended = time.monotonic() > peer.heard + SILENT
            if ended and not self._left(peer.rank):
                return peer
        return None

    def _left(self, rank: int) -> bool:
        with contextlib.suppress(Exception):  # without a store, nothing has been left in order
            return self.store.check([f'sdakd/left/{rank}'])
        return False

    def leave(self) -> None:
        """This process ends in order."""
        self.ending.acquire()
        self.part()
        with contextlib.suppress(Exception):
            torch.distributed.destroy_process_group()

    def part(self) -> None:
        """Tells the others that it ends; the main process, which may hold the store, waits until all of them know."""
        with contextlib.suppress(Exception):
            self.store.set(f'sdakd/left/{self.rank}', '1')
            until = time.monotonic() + PATIENCE
            while self.rank == 0 and time.monotonic() < until:
                if all(self._left(peer.rank) or (peer.near and not lives(peer.pid)) for peer in self.peers):
                    break
                time.sleep(POLL)

    def watch(self, woken: socket.socket) -> None:
        """What a thread does beside the training, which may be in a collective operation that never ends.

        Args:
            woken: Receives the numbers of signals.
        """
        while not self.ending.locked():
            numbers = woken.recv(64) if select.select([woken], [], [], PULSE)[0] else b''
            failure = None
            with contextlib.suppress(Exception):  # a store that has ended tells nothing
                if not all(peer.near for peer in self.peers):
                    self.store.add(f'sdakd/beat/{self.rank}', 1)
                failure = self.told()
            killed = None if failure else self.killed()
            if (failure or killed) and self.ending.acquire(blocking=False):
                if killed:
                    failure = self.claim(2, _killed(killed).report())
                    if failure.rank == self.rank:
                        sys.stderr.write(f'Error: {failure.text}\n')
                self.end(failure)
            if signal.SIGTERM in numbers and signal.getsignal(signal.SIGTERM) is _pass:
                os._exit(128 + signal.SIGTERM)

    def end(self, failure: _Failure) -> None:
        """Ends this process at once: in order, it would wait for the others."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        tell_launcher(failure.text)
        self.part()
        if failure.rank != self.rank:
            time.sleep(PULSE)  # a launcher shows what the first one that ends has said
        os._exit(failure.status)


_others: _Others | None = None


def _store() -> torch.distributed.Store:
    from torch.distributed.distributed_c10d import _get_default_store  # a torch built without distributed lacks it

    return _get_default_store()


def _together() -> bool:
    """Whether this process is one of several."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _place() -> str:
    """What two processes have in common that see each other's numbers."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # Linux, whose containers may have one name
        boot = Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
        parts += [boot, os.readlink('/proc/self/ns/pid')]
    return ' '.join(parts)


def _killed(peer: _Peer) -> UserError:
    return UserError(
        '',
        f'{peer} was killed or has crashed, and the others stop; see what has ended it, such as a lack of memory, and '
        'go on from the last checkpoint with --auto_resume.',
    )


def _pass(_number: int, _frame: object) -> None:
    """SIGTERM is left to the thread, which knows whether it comes because another process has failed."""


def _forget() -> None:
    """In a forked process, such as one that loads images, signals are no business of the thread."""
    global _others
    if _others is not None:
        _others = None
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
            if signal.getsignal(signal.SIGTERM) is _pass:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget)


def start() -> None:
    """Has this process look after the others of the run; once the process group is there."""
    global _others
    _others = _Others()
    read, write = socket.socketpair()
    write.setblocking(False)
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _pass)
    _others.pipe = read, write  # they are closed with the last reference
    threading.Thread(target=_others.watch, args=(read,), name='others', daemon=True).start()
    atexit.register(_others.leave)
    sys.excepthook = ending_together(exit_with_sentence)  # torch has put one of its own there


def is_ending() -> bool:
    """Whether a process of a distributed run has failed, so that all of them end."""
    with contextlib.suppress(Exception):
        return _others is not None and (_others.told() or _others.killed()) is not None
    return False


def ending_together(hook: Callable) -> Callable:
    """An excepthook that, in a distributed run, has the first process that fails speak, and all others end as well.

    Args:
        hook: Says what has happened; the exit status is that of the SystemExit that it may raise, else 1.
    """

    @functools.wraps(hook)
    def end(kind: type[BaseException], error: BaseException, trace: object) -> None:
        others = _others
        if others is None:
            return hook(kind, error, trace)
        others.ending.acquire()  # else the other thread ends the process
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # from the launcher, which ends all when one has ended
                signal.signal(number, signal.SIG_IGN)
        if _is_lost(error):
            error = _explain(others, error)
            kind, trace = type(error), None
        status = 2 if issubclass(kind, UserError) else 130 if issubclass(kind, KeyboardInterrupt) else 1
        text = error.report() if isinstance(error, UserError) else f'{kind.__name__}: {error}'
        failure = others.claim(status, text)
        if failure.rank == others.rank:
            with contextlib.suppress(SystemExit):
                hook(kind, error, trace)
        others.end(failure)

    return end


def _is_lost(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached."""
    return isinstance(error, RuntimeError) and (  # DistError is one
        isinstance(error, torch.distributed.DistError) or bool(_LOST.search(str(error)))
    )


def _explain(others: _Others, error: BaseException) -> UserError:
    """What has happened to the process that cannot be reached; who ends says so, or is seen to have ended."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(Exception):
            if others.told() is not None:
                break
        with contextlib.suppress(Exception):
            if (peer := others.killed()) is not None:
                return _killed(peer)
        time.sleep(POLL)
    reason = ' '.join(str(error).split())[:200].rstrip('.')
    return UserError(
        '',
        f'process {others.rank} of the run has lost the others ({reason}); see what their machines and the network '
        'say, and go on from the last checkpoint with --auto_resume.',
    )


# ------------------------------------------------------------------------------------------------ waiting and sharing


def meet() -> None:
    """Waits for all processes of the run; what one of them does alone before may take hours.

    A collective operation gives up after 10 minutes with NCCL and after 30 with Gloo, and the others wait in it while
    one checks data or validates. One process alone goes on at once.
    """
    if not _together():
        return
    store, key = _store(), f'sdakd/meeting/{next(_meetings)}'
    store.add(key, 1)
    while store.add(key, 0) < torch.distributed.get_world_size():
        time.sleep(POLL)


def gather(content: object) -> list:
    """What every process gives, in the order of their ranks, on the main process; an empty list on the others."""
    if not _together():
        return [content]
    meet()
    main = torch.distributed.get_rank() == 0
    found = [None] * torch.distributed.get_world_size() if main else None
    torch.distributed.gather_object(content, found)
    return found or []


def spread(content: object) -> object:
    """What the main process gives, on all of them."""
    if not _together():
        return content
    found = [content]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def together(values: torch.Tensor) -> torch.Tensor:
    """The tensors of all processes, of one shape, one after another along the batch; without gradient."""
    if not _together():
        return values
    values = values.detach().contiguous()
    found = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, values)
    return torch.cat(found)
