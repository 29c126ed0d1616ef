"""Feature taps: the activations of a network at modules given by dotted name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.families import family_of
from sdakd_arch.foreign import Foreign


class _DeepEnough(Exception):  # noqa: N818  it is no error
    """Ends a forward pass of which nothing more is wanted."""


class FeatureTaps:
    """Records outputs or inputs of a network's modules during its next forward passes, over parts of a batch.

    A tap is a dotted module name, ``'body.5'`` (its output) or ``'conv9:input'`` (its first input: activations that a
    network computes by functional calls are honest only there). Recorded tensors are copies that keep their gradient,
    so an activation that works in place on the tapped tensor afterwards does not change what was recorded.

    The hooks sit on the modules of the given instance: build an EMA copy from options, not by ``deepcopy`` of a tapped
    network, and hand over the bare module of a ``DistributedDataParallel`` wrapper.

    Args:
        network: The network to listen to.
        names: Taps. Checked at once.
        where: File and key to name in an error.

    Raises:
        UserError: A module of that name does not exist (the message lists near names).
    """

    def __init__(self, network: nn.Module, names: Sequence[str], where: str = 'layers') -> None:
        if names:
            _refuse_foreign(network, where)
        modules = dict(network.named_modules())
        self.network, self.names = network, list(names)
        self.active = False
        self._recorded: dict[str, torch.Tensor] = {}
        self._passes: list[dict[str, torch.Tensor]] = []
        self._calls: dict[str, int] = {}  # of every tap, in the last pass to its end
        self._left: dict[str, int] | None = None  # of a pass that ends with the last of them
        self._handles = [network.register_forward_hook(self._end_pass)] if names else []
        for name in self.names:
            path, _, side = name.partition(':')
            if path not in modules or path == '':
                raise UserError(
                    f'{where}: {type(network).__name__} has no module {path!r} to tap; '
                    f'{near(path, (m for m in modules if m))}.'
                )
            if side not in ('', 'input', 'output'):
                raise UserError(f'{where}: the tap {name!r} ends in {side!r}; write {path}:input or {path}:output.')
            # an input is taken before the module runs, which may work in place on it
            if side == 'input':
                handle = modules[path].register_forward_pre_hook(partial(self._record_input, name))
            else:
                handle = modules[path].register_forward_hook(partial(self._record_output, name))
            self._handles.append(handle)

    def _record_input(self, name: str, _module, inputs) -> None:
        if self.active:
            self._record(name, inputs[0])

    def _record_output(self, name: str, _module, _inputs, output) -> None:
        if self.active:
            self._record(name, output)

    def _record(self, name: str, maps: torch.Tensor) -> None:
        self._recorded[name] = maps.clone()
        if self._left is None:
            self._calls[name] = self._calls.get(name, 0) + 1
            return
        self._left[name] -= 1
        if not any(self._left.values()):
            raise _DeepEnough

    def _end_pass(self, *_pass) -> None:
        if self.active:
            self._passes.append(self._recorded)
            self._recorded = {}

    def __enter__(self) -> FeatureTaps:
        self.active, self._calls = True, {}
        return self

    def __exit__(self, *_error) -> None:
        self.active = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Records one forward pass, which ends at the deepest tap; what it would return is lost.

        Where a pass begins and ends is known from one to its end: until there was one, this is one, too. A compiled
        network runs to its end.
        """
        if self._calls.keys() != set(self.names) or getattr(self.network, '_compiled_call_impl', None) is not None:
            with self:
                yield
            return
        self.active, self._left = True, dict(self._calls)
        try:
            try:
                yield
            except _DeepEnough:
                self._end_pass()
        finally:
            self.active, self._left = False, None

    def pop(self) -> dict[str, torch.Tensor]:
        """Hands out what the forward passes since the last call recorded, one after the other along the batch.

        By tap name; forgets it.
        """
        passes, self._passes, self._recorded = self._passes, [], {}
        if len(passes) < 2:
            return passes[0] if passes else {}
        return {name: torch.cat([each[name] for each in passes]) for name in passes[0]}

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.pop()


def recording(taps: FeatureTaps | None, whole: bool) -> AbstractContextManager:
    """What a pass runs in: it records ``taps``, if there are some, and ends with them unless it is to be ``whole``."""
    return nullcontext() if taps is None else taps if whole else taps.alone()


def _refuse_foreign(network: nn.Module, where: str) -> None:
    if isinstance(network, Foreign):
        raise UserError(
            where,
            f'{network.describe()} gives its image and no feature maps; compare images (the term output), and leave '
            'terms on feature maps out.',
        )


def default_taps(network: nn.Module, count: int = 4, where: str = 'train:feature_opt:layers') -> list[str]:
    """The taps used where the options name none: ``count`` depths, evenly spread over the network's trunk.

    The family says what the trunk is (:meth:`sdakd_arch.families.Family.trunk`). Four depths follow the papers that
    publish theirs (DCD, arXiv 2212.14169; GCC, NeurIPS 2021); SDAKD does not, so this is a choice of this project.

    Raises:
        UserError: The architecture has no default.
    """
    _refuse_foreign(network, where)
    steps = family_of(network).trunk(network)
    if not steps:
        raise UserError(f'{where}: {type(network).__name__} has no default taps, list the modules to compare.')
    count = min(count, len(steps))
    return [steps[math.ceil(len(steps) * (i + 1) / count) - 1] for i in range(count)]
