"""Which checkpoints of a run stay on disk: the newest, the ends of stages, and the best by a validation metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct


class Best(Struct):
    """The checkpoint that is best so far: its iteration, and what the metric was there."""

    iteration: int
    metric: str
    value: float


class Kept:
    """Remembers which checkpoints a run has written; nothing else is ever removed.

    What it remembers is part of the training state. So a run that goes on from an older state leaves later checkpoints
    alone until it has written them itself, and those that a run wrote before there was such a rule stay.

    Args:
        last: How many checkpoints stay, the newest; None: all, and nothing is remembered.
        ends: The iterations at which stages end; their checkpoints stay.
    """

    def __init__(self, last: int | None, ends: Iterable[int]) -> None:
        self.last, self.ends = last, set(ends)
        self.iterations: list[int] = []  # of checkpoints that may have to go, ascending
        self.best: Best | None = None

    def add(self, iteration: int) -> list[int]:
        """Takes note of a checkpoint that is being written.

        Returns:
            Those that have to go when it is there. They are forgotten, and so are ends of stages that are old enough.
        """
        if self.last is None:
            return []
        known, spared = sorted({*self.iterations, iteration}), {self.best.iteration} if self.best else set()
        old = known[: -self.last]
        self.iterations = [*(each for each in old if each in spared), *known[-self.last :]]
        return [each for each in old if each not in spared | self.ends]

    def consider(self, iteration: int, metric: str, value: float, lower: bool) -> bool:
        """Whether a checkpoint is the best so far; a tie goes to the later one, as in BasicSR's log.

        Args:
            iteration: Of the checkpoint.
            metric: The entry of ``val:metrics``; another one than before begins anew.
            value: Of the metric.
            lower: Whether a lower value is the better one.
        """
        known = self.best.value if self.best is not None and self.best.metric == metric else None
        if value != value or (known is not None and (value > known if lower else value < known)):
            return False
        self.best = Best(iteration, metric, value)
        return True

    def state(self) -> dict:
        """What a training state keeps of it."""
        best = self.best and {name: getattr(self.best, name) for name in self.best.__struct_fields__}
        return {'iterations': list(self.iterations), 'best': best}

    def load_state(self, state: Mapping) -> None:
        """Goes on with what :meth:`state` returned; from the state of an older version, with nothing."""
        self.iterations = list(state.get('iterations', ()))
        best = state.get('best')
        self.best = Best(**best) if best else None
