"""Work that runs beside the main thread: what is read ahead of it, and what is written behind it.

Between them are queues of a few items, so that memory stays bounded. An error in a thread is raised where its results
are taken or its work is given.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar('T')
MOMENT = 0.1  # seconds between two looks at whether everything is given up
LAST = 19  # the lowest priority of Linux
PARTING = 10.0  # seconds that a thread gets to end when everything is given up


def _give_way() -> None:
    """Lets other threads go first, where threads have a priority each; those that this one starts inherit it.

    The threads of a network wait for each other in every layer: one that shares its core with an encoder would keep all
    of them waiting. Who writes gets its turn when the queue is full.
    """
    if hasattr(os, 'setpriority') and sys.platform == 'linux':  # elsewhere it is the whole process's
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LAST)


class _Lane(ABC):
    """A thread with a queue that can be given up."""

    def __init__(self, name: str, room: int) -> None:
        self.queue: queue.Queue = queue.Queue(room)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        _give_way()
        self._work()

    @abstractmethod
    def _work(self) -> None:
        """What the thread does."""

    def _put(self, item: object) -> bool:
        while not self.stopped.is_set():
            with contextlib.suppress(queue.Full):
                self.queue.put(item, timeout=MOMENT)
                return True
        return False

    def _get(self) -> object:
        while not self.stopped.is_set():
            with contextlib.suppress(queue.Empty):
                return self.queue.get(timeout=MOMENT)
        return None


class Ahead(_Lane, Generic[T]):
    """Iterates in a thread of its own, at most ``room`` items ahead of who takes them; used in a ``with``.

    Args:
        items: What is taken, and None wherever there is nothing to take but the thread may end.
        room: Most items that wait.
        parting: Seconds that the thread gets to end when everything is given up.
    """

    def __init__(self, items: Iterable[T | None], room: int, parting: float = PARTING) -> None:
        super().__init__('reading', room)
        self.items, self.parting = items, parting

    def _work(self) -> None:
        try:
            for item in self.items:
                if self.stopped.is_set() or (item is not None and not self._put((item, None))):
                    return
            self._put((None, None))
        except BaseException as error:
            self._put((None, error))

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self.queue.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def __enter__(self) -> Ahead[T]:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join(self.parting)  # it may wait for a pipe without end


class Behind(_Lane, Generic[T]):
    """Calls a function in a thread of its own, with at most ``room`` items waiting; used in a ``with``.

    At the end of the block everything given is done, unless an error ends it.
    """

    def __init__(self, function: Callable[[T], object], room: int) -> None:
        super().__init__('writing', room)
        self.function, self.error = function, None

    def _work(self) -> None:
        while (item := self._get()) is not None:
            try:
                self.function(item)
            except BaseException as error:
                self.error = error
                self.stopped.set()

    def give(self, item: T) -> None:
        """Has an item worked on; waits while too many do."""
        if not self._put(item) and self.error is not None:
            raise self.error

    def __enter__(self) -> Behind[T]:
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._put(None)
                while self.thread.is_alive():
                    self.thread.join(MOMENT)  # a signal is heard meanwhile
                if self.error is not None:
                    raise self.error
        finally:
            self.stopped.set()
            self.thread.join(PARTING)
