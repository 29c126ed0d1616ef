"""The processes of a distributed training: they wait for each other as long as it takes."""

from __future__ import annotations

import itertools
import time

import torch
from torch.distributed.distributed_c10d import _get_default_store as store

POLL = 0.05  # seconds between two looks at who has come

_meetings = itertools.count()  # equal on all processes: each goes through the same meetings in the same order


def meet() -> None:
    """Waits for all processes of the run; what one of them does alone before may take hours.

    A collective operation gives up after 10 minutes with NCCL and after 30 with Gloo, and the others wait in it while
    one checks data or validates. One process alone goes on at once.
    """
    if not torch.distributed.is_initialized():
        return
    key = f'sdakd/meeting/{next(_meetings)}'
    store().add(key, 1)
    while store().add(key, 0) < torch.distributed.get_world_size():
        time.sleep(POLL)


def gather(content: object) -> list:
    """What every process gives, in the order of their ranks, on the main process; an empty list on the others."""
    if not torch.distributed.is_initialized():
        return [content]
    meet()
    main = torch.distributed.get_rank() == 0
    found = [None] * torch.distributed.get_world_size() if main else None
    torch.distributed.gather_object(content, found)
    return found or []


def spread(content: object) -> object:
    """What the main process gives, on all of them."""
    if not torch.distributed.is_initialized():
        return content
    found = [content]
    torch.distributed.broadcast_object_list(found)
    return found[0]
