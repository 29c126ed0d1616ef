"""The players of a run, which learn, and its discriminators.

A network that does not learn is frozen, buffers included, and never wrapped for distributed training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from copy import deepcopy
from typing import Literal, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.spectral_norm import SpectralNorm

from sdakd_metrics.overlap import overlap
from sdakd_models.context import Context
from sdakd_models.options import DiscriminatorBlock
from sdakd_models.parts import Still, advance, mixes
from sdakd_models.precision import unscaled
from sdakd_models.processes import together
from sdakd_models.stages import Moment, Stage


def freeze(network: nn.Module) -> nn.Module:
    """Evaluation mode and no gradients: spectral norm moves its buffers in training mode even where nothing learns."""
    return network.eval().requires_grad_(False)


def settle(network: nn.Module, rounds: int = 20) -> None:
    """Power iterations of spectral norm before the first use.

    It begins with random vectors, which underestimate the norm of a layer many times: in evaluation mode, an untrained
    discriminator would answer with logits of 1e9 and more.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        return
    with torch.no_grad():
        for module in network.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):
                    for _ in range(rounds):
                        hook.compute_weight(module, do_power_iteration=True)


def r1_penalty(network: nn.Module, real: torch.Tensor) -> torch.Tensor:
    """Mean squared norm of a discriminator's gradient at real images (R1, Mescheder and others, arXiv 1801.04406).

    Args:
        network: The discriminator.
        real: Its input, ``(N, 3, H, W)``; in float32, also where the rest of the step is not.
    """
    real = real.detach().requires_grad_()
    output = network(real).sum()
    (gradient,) = torch.autograd.grad(output, real, create_graph=True)
    # distributed training waits for a gradient of every parameter, and the last bias has none of this
    return gradient.square().sum(dim=(1, 2, 3)).mean() + 0 * output


def penalise(
    net: nn.Module, real: torch.Tensor, weight: float, size: int | None, derive: Callable[[torch.Tensor], None]
) -> torch.Tensor:
    """Accumulates the gradients of :func:`r1_penalty`; it is a mean over images, and their graphs are large.

    Args:
        net: The discriminator, as it is called.
        real: Its input.
        weight: Factor of the penalty.
        size: Images at a time; None for all.
        derive: Adds the gradients of a value to those of the network.

    Returns:
        The weighted penalty, without gradient.
    """
    parts = [real] if size is None or mixes(net) else real.split(size)
    if len(parts) > 1:
        advance(net)
    state, total = Still(net) if len(parts) > 1 else nullcontext(), 0.0
    for part in parts:
        alone = isinstance(net, DistributedDataParallel) and part is not parts[-1]
        with net.no_sync() if alone else nullcontext(), state:
            value = r1_penalty(net, part) * (weight * len(part) / len(real))
            derive(value)
        total = total + value.detach()
    return total


OPTIMIZERS = {'Adam': torch.optim.Adam, 'AdamW': torch.optim.AdamW}
FUSES = torch.__version__ >= (2, 5)


def make_optimizer(parameters: Iterable[nn.Parameter], optim: Mapping) -> torch.optim.Optimizer:
    """An optimizer from the options; the rate is set before every step, from the stage.

    Where the options choose none of torch's implementations, it is the fused one, the cheapest, if this torch has it
    for the device. It equals the others up to rounding. Before torch 2.5 it refuses, on GPUs, gradients of 1x1
    convolutions whose strides differ from the weight's in dimensions of one element (pytorch's pull request 134546).
    """
    parameters = list(parameters)
    values = dict(optim)
    kind = OPTIMIZERS[values.pop('type', 'Adam')]
    if isinstance(values.get('betas'), list):  # torch refuses the 0 of GCFSR's [0, 0.992] beside a fraction
        values['betas'] = tuple(float(b) if isinstance(b, int) else b for b in values['betas'])
    # it takes a tensor's memory as it lies, with the gradient's beside it
    dense = all(torch.empty_like(each).stride() == each.stride() for each in parameters)
    if dense and FUSES and not values.keys() & {'foreach', 'fused', 'differentiable'}:
        with suppress(RuntimeError):  # of a device without it
            return kind(parameters, lr=0.0, fused=True, **values)
    return kind(parameters, lr=0.0, **values)


class Player:
    """A network with its optimizer and the terms that make it learn.

    Args:
        name: Label of its checkpoint, ``net_<name>_<iteration>.pth``.
        net: The network as it is called: on its device, wrapped for distributed training where needed.
        bare: The same without wrapper.
        side: Whose learning rate applies: the generator's (``g``) or the discriminators' (``d``).
        terms: It learns in the stages where one of these terms is on; empty for every stage.
        optim: Type and values of its optimizer, without the rate.
        scaler: What scales its losses, and takes that back before a step; default: nothing does.
        lr: A rate of its own in the place of the stages', which decays as theirs.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        bare: nn.Module,
        side: Literal['g', 'd'],
        terms: Iterable[str],
        optim: Mapping,
        scaler: torch.amp.GradScaler | None = None,
        lr: float | None = None,
    ) -> None:
        self.name, self.net, self.bare, self.side, self.terms = name, net, bare, side, tuple(terms)
        self.lr = lr
        self.optimizer, self.scaler = make_optimizer(bare.parameters(), optim), scaler or unscaled()

    def learns_in(self, stage: Stage) -> bool:
        if (stage.lr_g if self.side == 'g' else stage.lr_d) is None:
            return False
        return not self.terms or any(term in stage.terms for term in self.terms)

    def forget(self) -> None:
        """Drops the optimizer's moments."""
        self.optimizer.state.clear()

    def load_optimizer(self, state: Mapping) -> None:
        """Goes on with what ``optimizer.state_dict()`` returned, by this optimizer's own implementation.

        The state may come from another one, from another device, or from a network whose memory had another layout,
        channels first or last, which fused implementations do not look at.
        """
        here = [{key: own[key] for key in ('foreach', 'fused') if key in own} for own in self.optimizer.param_groups]
        groups = [{**saved, **own} for saved, own in zip(state['param_groups'], here, strict=True)]
        self.optimizer.load_state_dict(deepcopy({**state, 'param_groups': groups}))
        for parameter, moments in self.optimizer.state.items():
            for key, value in moments.items():
                if torch.is_tensor(value) and value.shape == parameter.shape and value.dim():
                    moments[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group['lr'] = rate

    def derive(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss to those of its parameters."""
        self.scaler.scale(loss).backward()

    def step(self, grad_clip: float | None) -> None:
        """Applies the gradients, limited to the 2-norm ``grad_clip``, and clears them."""
        if any(parameter.grad is not None for parameter in self.bare.parameters()):
            if grad_clip is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.bare.parameters(), grad_clip)
            self.scaler.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)


class Chooser(Protocol):
    """What trains the channel masks of a discriminator (:class:`sdakd_models.selection.Selection`)."""

    def learn(self, context: Context, moment: Moment) -> dict[str, torch.Tensor]: ...


class Discriminator:
    """A discriminator: what is real to it, whose images are fake, whether it learns and whether it trains the student.

    SDAKD's student discriminator is the one called ``student``: ground truth against the student's images.

    Args:
        name: ``student`` for ``network_d``, otherwise its key under ``discriminators:``.
        facts: Its entry of the options.
        loss: Its GAN loss; ``loss_weight`` counts for the student only.
        bare: The network on its device.
        player: The player that trains it, or None when it is frozen.

    Attributes:
        selection: What chooses its channels, where it is activated selectively.
    """

    selection: Chooser | None = None

    def __init__(
        self, name: str, facts: DiscriminatorBlock, loss: nn.Module, bare: nn.Module, player: Player | None
    ) -> None:
        self.name, self.facts, self.loss, self.bare, self.player = name, facts, loss, bare, player
        self.term = facts.term
        self.suffix = '' if name == 'student' else f'_{name}'
        if player is not None:
            settle(bare)

    def student_loss(self, context: Context) -> dict[str, torch.Tensor]:
        """The student's GAN loss, where the discriminator trains the student."""
        if not self.facts.trains_student:
            return {}
        return {f'gan{self.suffix}': self.generator_loss(context, 'student')}

    def generator_loss(self, context: Context, who: str) -> torch.Tensor:
        """A generator's GAN loss. It leaves the discriminator's gradients alone.

        Where the generator's images are none of the fakes, the buffers do not move either (updating-freezing of CRD).

        Args:
            context: One whose author is the generator.
            who: ``student``, or the name of a teacher that learns.
        """
        self.bare.requires_grad_(False)
        self.bare.train(self.player is not None and who in self.facts.fake)
        return self.loss(context.run(self.bare, self.shown(context, context.student)), True, is_disc=False)

    def shown(self, context: Context, image: torch.Tensor) -> torch.Tensor:
        """An image as the discriminator sees it: without the border where some of its images are the teacher's."""
        return context.inside(image) if self.facts.sees_teacher else image

    def real(self, context: Context) -> torch.Tensor:
        """The images that it learns to call real: the ground truth's or the teacher's."""
        return context.target('gan') if self.facts.real == 'gt' else context.teacher

    def learn(
        self, context: Context, teacher: Context | None = None, r1_weight: float = 0.0
    ) -> dict[str, torch.Tensor]:
        """Accumulates the discriminator's gradients: the loss on real images plus the mean loss over its fakes.

        Args:
            context: The student's.
            teacher: The teacher's context, where the teacher learns along: its images are then those of the copy in
                training, not of the copy that the student sees.
            r1_weight: What the penalty of :func:`r1_penalty` is multiplied by; 0 leaves it out.
        """
        if self.player is None:
            return {}
        self.bare.requires_grad_(True).train()
        net, log = self.player.net, {}
        real = self.shown(context, self.real(context))
        images = {
            'student': lambda: context.student,
            'teacher': lambda: context.teacher if teacher is None else teacher.student,
        }
        # two backward passes, as distributed training and spectral norm's moving buffers want it
        verdict = context.run(net, real)
        loss = self.loss(verdict, True, is_disc=True)
        self.player.derive(loss)
        log[f'l_d_real{self.suffix}'], log[f'out_d_real{self.suffix}'] = loss, verdict.detach().mean()
        if r1_weight:
            log[f'l_d_r1{self.suffix}'] = penalise(
                net, context.as_input(real), r1_weight, context.micro_batch, self.player.derive
            )
        losses, verdicts = [], []
        for name in self.facts.fake:
            verdict = context.run(net, self.shown(context, images[name]().detach()))
            loss = self.loss(verdict, False, is_disc=True) / len(self.facts.fake)
            self.player.derive(loss)
            losses.append(loss.detach())
            verdicts.append(verdict.detach().mean())
        log[f'l_d_fake{self.suffix}'] = torch.stack(losses).sum()
        log[f'out_d_fake{self.suffix}'] = torch.stack(verdicts).mean()
        return log

    def diagnose(self, context: Context) -> dict[str, torch.Tensor]:
        """Where the teacher's images are the real ones: how much its outputs on them and on the ground truth overlap.

        Where they do not (AKDG's finding at small batches), it leads the student away from the ground truth. Nothing
        moves: the passes are those of evaluation mode.
        """
        if self.player is None or self.facts.real != 'teacher':
            return {}
        self.bare.eval()
        with torch.no_grad():
            images = (self.shown(context, image) for image in (context.teacher, context.target('gan')))
            teacher, real = (together(context.run(self.bare, image)) for image in images)
        return {f'out_d_overlap{self.suffix}': overlap(teacher, real)}
