"""Where the time of a training step goes: functions are wrapped, and a clock is read when one begins and ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdakd_models.sdakd_model import SDAKDModel

OTHER = 'other'
PARTS = (
    'degradation', 'student forward', 'teacher forward', 'feature losses', 'perceptual loss', 'pixel loss', 'backward',
    'discriminators', 'EMA', 'optimizers', 'logging', OTHER,
)  # fmt: skip


class Ledger:
    """Books what passes on the innermost of the parts that are at work, so that the parts add up to the whole.

    Args:
        clock: Tells seconds. On a GPU it waits for all that was asked of it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.parts, self.seconds = clock, [OTHER], Counter()
        self.since = clock()
        self._undo: list[Callable[[], None]] = []

    def settle(self) -> None:
        """Books the time since the last change of parts."""
        now = self.clock()
        self.seconds[self.parts[-1]] += now - self.since
        self.since = now

    def forget(self) -> None:
        """Begins anew."""
        self.seconds.clear()
        self.since = self.clock()

    def watch(self, owner: object, method: str, part: str | Callable[..., str]) -> None:
        """Books what a method does as a part, named or told from its arguments, until :meth:`close`."""
        inner, own = getattr(owner, method), vars(owner).get(method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            self.settle()
            self.parts.append(part if isinstance(part, str) else part(*args))
            try:
                return inner(*args, **kwargs)
            finally:
                self.settle()
                self.parts.pop()

        setattr(owner, method, outer)
        self._undo.append(lambda: setattr(owner, method, own) if own is not None else delattr(owner, method))

    def watch_class(self, thing: object, part: str) -> None:
        """Books what calling a thing does as a part; its class alone tells what a call is."""
        kind = type(thing)
        thing.__class__ = type(kind.__name__, (kind,), {'__call__': kind.__call__, '__module__': kind.__module__})
        self._undo.append(lambda: setattr(thing, '__class__', kind))
        self.watch(type(thing), '__call__', part)

    def close(self) -> None:
        """Puts everything back that was wrapped."""
        while self._undo:
            self._undo.pop()()


def watch_backward(ledger: Ledger, part: Callable[..., str]) -> None:
    """Books backward passes, whoever asks for them."""
    import torch

    ledger.watch(torch.Tensor, 'backward', part)


def watch_sdakd(ledger: Ledger, model: SDAKDModel) -> None:
    """Watches a step of this plugin's models. What its discriminators do, backward passes included, is theirs."""
    from sdakd_models.players import Discriminator

    def whose(network: object, *_: object) -> str:
        if ledger.parts[-1] == 'discriminators':
            return 'discriminators'
        teachers = (*model.teachers.values(), *(each.player.net for each in model.cotrained))
        return 'teacher forward' if any(network is teacher for teacher in teachers) else 'student forward'

    def kind(term: object) -> str:
        if term.needs_features:
            return 'feature losses'
        return 'perceptual loss' if term.name in ('perceptual', 'imitation') else 'pixel loss'

    ledger.watch(model, 'feed_data', 'degradation')
    ledger.watch(model, 'run', whose)
    ledger.watch(model, 'model_ema', 'EMA')
    for method in ('_report', 'settle'):
        ledger.watch(model, method, 'logging')
    for term in model.terms.values():
        ledger.watch_class(term, kind(term))
    for player in model.players:
        ledger.watch(player, 'step', 'optimizers')
    for method in ('student_loss', 'learn', 'diagnose'):
        ledger.watch(Discriminator, method, 'discriminators')
    watch_backward(ledger, lambda *_: 'discriminators' if ledger.parts[-1] == 'discriminators' else 'backward')


def watch_basicsr(ledger: Ledger, model: Any) -> None:
    """Watches a step of BasicSR's models in the same parts."""
    has_judge, first = getattr(model, 'net_d', None) is not None, [True]

    def feed(*_: object) -> str:
        first[0] = True
        return 'degradation'

    def backward(*_: object) -> str:  # the generator's comes first
        generator, first[0] = first[0], False
        return 'backward' if generator else 'discriminators'

    ledger.watch(model, 'feed_data', feed)
    ledger.watch(model.net_g, 'forward', 'student forward')
    for loss, part in (('cri_pix', 'pixel loss'), ('cri_perceptual', 'perceptual loss'), ('cri_gan', 'discriminators')):
        if getattr(model, loss, None) is not None:
            ledger.watch(getattr(model, loss), 'forward', part)
    if has_judge:
        ledger.watch(model.net_d, 'forward', 'discriminators')
    for optimizer in model.optimizers:
        for method in ('step', 'zero_grad'):
            ledger.watch(optimizer, method, 'optimizers')
    ledger.watch(model, 'model_ema', 'EMA')
    ledger.watch(model, 'reduce_loss_dict', 'logging')
    watch_backward(ledger, backward)
