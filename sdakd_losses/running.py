"""Scales measured over the first batches of a run and fixed then: equal on all processes, steady over batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class RunningScale(nn.Module):
    """The variance or the mean square of named maps, over all elements of the first batches.

    Every process adds its own part of a batch and all know the sum, so that two processes with two images each measure
    what one process with four does. It has no parameters and no fixed shape: its state goes into the training state
    and comes back on resuming (:meth:`sdakd_models.terms.Term.state`).

    Args:
        batches: After so many calls of :meth:`update` the scales stay as they are.
        centred: Whether the mean is taken off: the variance; otherwise the mean square.
    """

    def __init__(self, batches: int = 100, centred: bool = True) -> None:
        super().__init__()
        self.batches, self.centred = batches, centred
        self.seen = 0
        self.totals: dict[str, torch.Tensor] = {}  # number of elements, their sum, the sum of their squares; float64

    @torch.no_grad()
    def update(self, maps: Mapping[str, torch.Tensor]) -> None:
        """Adds a batch of maps of any shape; does nothing once ``batches`` were seen."""
        if self.seen >= self.batches:
            return
        self.seen += 1
        sums = [
            torch.stack([each.new_tensor(each.numel(), dtype=torch.float64), *_sums(each)]) for each in maps.values()
        ]
        batch = torch.stack(sums)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(batch)
        for name, added in zip(maps, batch, strict=True):
            self.totals[name] = self.totals[name].to(added.device) + added if name in self.totals else added

    def scale(self, name: str) -> torch.Tensor:
        """The variance or mean square of a map so far, a float64 scalar."""
        count, total, squares = self.totals[name]
        mean = total / count if self.centred else 0
        return (squares / count - mean * mean).clamp_min(0)

    def get_extra_state(self) -> dict:
        return {'seen': self.seen, 'totals': {name: each.cpu() for name, each in self.totals.items()}}

    def set_extra_state(self, state: Mapping) -> None:
        self.seen, self.totals = state['seen'], dict(state['totals'])


def _sums(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return values.sum(dtype=torch.float64), values.square().sum(dtype=torch.float64)
