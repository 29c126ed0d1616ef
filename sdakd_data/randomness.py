"""The random numbers of a process: Python's, NumPy's and torch's generators, taken, put back and set aside."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch


def random_state(device: torch.device | None = None) -> dict:
    """What the global generators will draw next, as plain values and tensors.

    Args:
        device: A GPU whose generator counts as well.
    """
    version, numbers, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    inner = {**state['state'], 'key': state['state']['key'].tolist()}
    found = {
        'python': {'version': version, 'numbers': list(numbers), 'gauss': gauss},
        'numpy': {**state, 'state': inner},
        'torch': torch.get_rng_state(),
    }
    if device is not None and device.type == 'cuda':
        found['cuda'] = torch.cuda.get_rng_state(device)
    return found


def set_random_state(state: Mapping, device: torch.device | None = None) -> None:
    """Has the global generators go on as they were when :func:`random_state` was called."""
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['numbers']), python['gauss']))
    np.random.set_state({**numpy, 'state': {**numpy['state'], 'key': np.array(numpy['state']['key'], np.uint32)}})
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and device is not None and device.type == 'cuda':
        torch.cuda.set_rng_state(state['cuda'], device)


def seed_all(*facts: int, device: torch.device | None = None) -> None:
    """Seeds the global generators by non-negative whole numbers: other facts, independent numbers."""
    words = np.random.SeedSequence(facts).generate_state(8)
    random.seed(int.from_bytes(words[:4].tobytes(), 'little'))
    np.random.seed(words[4:6])
    seed = int(words[6]) << 31 ^ int(words[7])
    torch.default_generator.manual_seed(seed)  # torch.manual_seed() would seed GPUs as well, from loaders' workers too
    if device is not None and device.type == 'cuda':
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class Snapshot:
    """What the global generators will draw next, for this process only; see :func:`random_state` for files.

    Args:
        device: A GPU whose generator counts as well.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device if device is not None and device.type == 'cuda' else None
        self.python, self.numpy, self.torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(self.device) if self.device is not None else None

    def put_back(self) -> None:
        """Has the generators go on from here."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    def equals(self, other: Snapshot) -> bool:
        """Whether the same numbers follow."""
        same = self.python == other.python and torch.equal(self.torch, other.torch)
        same = same and all(np.array_equal(one, two) for one, two in zip(self.numpy, other.numpy, strict=True))
        return same and (self.cuda is None or torch.equal(self.cuda, other.cuda))


@contextlib.contextmanager
def aside(*facts: int, device: torch.device | None = None) -> Iterator[None]:
    """What draws random numbers inside changes none of those that are drawn afterwards.

    Args:
        facts: Seed the generators inside; without any, they go on as they are.
        device: A GPU whose generator counts as well.
    """
    before = Snapshot(device)
    try:
        if facts:
            seed_all(*facts, device=device)
        yield
    finally:
        before.put_back()
