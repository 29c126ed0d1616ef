"""What makes losses that are no means over images the same for one process and for several with parts of a batch."""

from __future__ import annotations

import torch


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_of_all(values: torch.Tensor) -> torch.Tensor:
    """Means over the batches of all processes, of this one's means; their gradient is that of this one's part.

    Distributed training averages the gradients of the processes: a function of the result then has the gradient that it
    has for the whole batch.
    """
    if not _several():
        return values
    total = values.detach().clone()
    torch.distributed.all_reduce(total)
    return values + (total / torch.distributed.get_world_size() - values.detach())


def gather_of_all(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows of all processes, one after the other, without gradient; and where those of this one begin."""
    if not _several():
        return rows.detach(), 0
    found = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, rows.detach().contiguous())
    return torch.cat(found), torch.distributed.get_rank() * len(rows)
