"""Shares: how much of the student's gradient each term has, and the weights that give a term the share asked for."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping

import torch
from basicsr.utils import get_root_logger
from torch import nn

from sdakd_models.precision import unscaled
from sdakd_models.registry import TERMS
from sdakd_models.stages import Moment

WINDOW = 20  # batches whose median is a calibrated weight
QUICK = 5  # of them, while a discriminator has just begun to learn
LEAST, MOST = 0.05, 0.9  # a method's own term outside of these is named in a warning


class Shares:
    """Measures shares and calibrates weights during a run.

    With the gradient ``g_i`` of a term with its weight over all parameters of the student, of the batches of all
    processes::

        share_i = |g_i| / sum over j of |g_j|

    A term that asks for a share ``s`` gets the weight ``s / (1 - sum of all shares) * N / n``: ``n`` is the norm it has
    at weight 1, ``N`` the sum of the norms of the terms with a weight of their own, GAN losses left out. Without
    GAN losses, its share is ``s`` then. The weight is the median over :data:`WINDOW` batches of each stage: of every
    iteration at first, then of every tenth up to the 200th, because adapters that begin with random weights have other
    gradients than a little later. From then on it stays. The gradient of a discriminator grows many times while it
    learns: a GAN loss follows the last :data:`QUICK` batches up to the 2,000th iteration and takes its median there.

    Args:
        student: The student, whose parameters count.
        asked: Shares by term.
        own: Terms to warn of.
        every: Iterations between two measurements.
        processes: How many train together.
        scaler: What scales losses before they are derived; default: nothing does.
    """

    def __init__(
        self,
        student: nn.Module,
        asked: Mapping[str, float],
        own: Iterable[str],
        every: int,
        processes: int = 1,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.student, self.asked, self.own, self.every = student, dict(asked), frozenset(own), every
        self.processes, self.scaler = processes, scaler or unscaled()
        self.weights = dict.fromkeys(asked, 1.0)
        self.samples: dict[str, deque] = {term: deque(maxlen=WINDOW) for term in asked}
        self.measured: dict[str, float] = {}
        self.warned: set[tuple[str, str]] = set()

    def state(self) -> dict:
        """For the training state."""
        samples = {term: list(found) for term, found in self.samples.items()}
        return {'weights': dict(self.weights), 'samples': samples, 'measured': dict(self.measured)}

    def load_state(self, state: Mapping) -> None:
        """Brings :meth:`state` back; terms that have no share any more are passed over."""
        for term in self.asked:
            self.weights[term] = state.get('weights', {}).get(term, 1.0)
            self.samples[term] = deque(state.get('samples', {}).get(term, []), maxlen=WINDOW)
        self.measured = dict(state.get('measured', {}))

    def weight(self, term: str) -> float:
        """The factor on a term; 1 for one that has a weight of its own."""
        return self.weights.get(term, 1.0)

    def look(self, moment: Moment, current_iter: int, values: Mapping[str, torch.Tensor]) -> None:
        """Calibrates and measures where this iteration is one for it.

        Args:
            moment: Stage and step.
            current_iter: The iteration.
            values: Each term's scalar without the calibrated weight, with its graph, which stays.
        """
        step = moment.step
        if step == 1:
            self.measured = {}
            for found in self.samples.values():
                found.clear()
        asked = [term for term in values if term in self.asked]
        iters = moment.stage.iters if moment.stage.iters <= WINDOW else moment.stage.iters // 10 * 10
        last = {term: min((10 if term in TERMS else 100) * WINDOW, iters) for term in asked}
        open_ones = [term for term in asked if step <= last[term] and (step <= WINDOW or step % 10 == 0)]
        measures = step in (1, 100) or current_iter % self.every == 0
        if not open_ones and not measures:
            return
        norms = self._norms(values)
        if not all(map(math.isfinite, norms.values())):
            return  # in fp16, until the scale of the losses is found
        rest = 1 - sum(self.asked[term] for term in asked)
        reference = sum(norm for term, norm in norms.items() if term in TERMS and term not in self.asked)
        for term in open_ones:
            found, done = self.samples[term], step == last[term]
            if norms[term] > 0 and reference > 0:
                found.append(self.asked[term] / rest * reference / norms[term])
                self.weights[term] = statistics.median(list(found) if term in TERMS or done else list(found)[-QUICK:])
            if done:
                get_root_logger().info(
                    f'The share {self.asked[term]:g} of {term} is the weight {self.weights[term]:.4g} in the stage '
                    f'{moment.name} (median of {len(found)} batches).'
                )
        if measures:
            self._measure(norms, moment, current_iter)

    def _norms(self, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """The 2-norm of every term's gradient over the student's parameters, of all processes' batches together."""
        parameters = [each for each in self.student.parameters() if each.requires_grad]
        norms, scale = [], self.scaler.get_scale()
        for value in values.values():
            found = torch.autograd.grad(self.scaler.scale(value), parameters, retain_graph=True, allow_unused=True)
            flat = torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
            )
            if self.processes > 1:
                torch.distributed.all_reduce(flat)
                flat /= self.processes
            norms.append(flat.norm() / scale)
        return dict(zip(values, torch.stack(norms).tolist(), strict=True))

    def _measure(self, norms: Mapping[str, float], moment: Moment, current_iter: int) -> None:
        weighted = {term: norm * self.weight(term) for term, norm in norms.items()}
        total = sum(weighted.values())
        if not total > 0:
            return
        self.measured = {term: norm / total for term, norm in weighted.items()}
        shown = ', '.join(f'{term} {share:.1%}' for term, share in self.measured.items())
        get_root_logger().info(f"Shares of the student's gradient at iteration {current_iter:,d}: {shown}.")
        if len(self.measured) == 1 or (moment.step == 1 and moment.stage.iters > 1):
            return
        for term, share in self.measured.items():
            # where all terms are a method's own, there is nobody else to be heard
            most = MOST if any(other not in self.own for other in self.measured) else 1.0
            if term in self.own and not LEAST <= share <= most and (moment.name, term) not in self.warned:
                self.warned.add((moment.name, term))
                get_root_logger().warning(
                    f"The term {term} has {share:.1%} of the student's gradient in the stage {moment.name}: "
                    + ('the method is hardly heard' if share < LEAST else 'hardly anything else is heard')
                    + '; change its loss_weight, or write a share instead.'
                )

    def log(self) -> dict[str, float]:
        """The stage's last measurement ``share_<term>``, and ``weight_<term>`` of the terms that have a share."""
        found = {f'share_{term.replace(":", "_")}': share for term, share in self.measured.items()}
        return found | {
            f'weight_{term.replace(":", "_")}': self.weights[term] for term in self.measured if term in self.asked
        }
