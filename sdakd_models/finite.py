"""Values that are no numbers: networks that hold some are not saved, and a loss that is none is laid to its origin."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import nn

from sdakd.compat import UserError
from sdakd_arch.taps import FeatureTaps
from sdakd_arch.weights import first_not_finite
from sdakd_data.answers import Answer
from sdakd_models.cast import Cast
from sdakd_models.context import Context
from sdakd_models.players import Discriminator, Player
from sdakd_models.precision import DTYPES
from sdakd_models.scenario import Scenario
from sdakd_models.stages import Moment, Plan

DIVERGED = ', as its weights have diverged'
WILD = 1000.0  # what no image in [0, 1] comes near, be it normalised: who gives such values is about to overflow


class Trained(Protocol):
    """What is asked of the model (:class:`sdakd_models.sdakd_model.SDAKDModel`)."""

    opt: Mapping
    path: Mapping
    plan: Plan
    scenario: Scenario
    cast: Cast
    players: Sequence[Player]
    teachers: Mapping[str, nn.Module]
    discriminators: Mapping[str, Discriminator]
    taps: Mapping[str, FeatureTaps]
    answers: Mapping[str, Answer]
    sources: Sequence[str]
    pool: object | None
    last_iter: int
    lq: torch.Tensor
    gt: torch.Tensor

    def generate(self, network: nn.Module, role: str) -> torch.Tensor: ...


def check_networks(model: Trained) -> None:
    """Checks, before a checkpoint is written, that all it would hold are numbers: weights, buffers and averages.

    Raises:
        UserError: With the tensor.
    """
    networks = {f'the network {player.name}': player.bare for player in model.players}
    if model.cast.average is not None:
        networks["the student's average (params_ema)"] = model.cast.average
    networks |= {f'{each.name} as the student sees it (params_best)': each.shown for each in model.cast.cotrained}
    for what, network in networks.items():
        if (name := first_not_finite(network.state_dict().items())) is not None:
            raise UserError(
                f'{name} of {what} is not finite at iteration {model.last_iter:,d} (stage '
                f'{model.plan.at(model.last_iter).name}): lower its learning rate or set grad_clip in that stage, and '
                f'continue from the last checkpoint in {model.path.get("models")} with --auto_resume.'
            )


def blame(
    model: Trained,
    moment: Moment,
    iteration: int,
    loss: str,
    value: float,
    contexts: Mapping[str, Context],
    log: Mapping[str, torch.Tensor],
) -> UserError:
    """Says whom a loss that is no number comes from; all processes of a distributed training ask together.

    The networks have made their step by now and may be full of NaN, whoever began: what they gave before it tells.

    Args:
        model: The model.
        moment, iteration: When.
        loss, value: The loss by its name in the log, and what it is, averaged over processes.
        contexts: What ``student`` and the teachers that learn along gave.
        log: The losses of this process.
    """
    bad = {name for name, each in log.items() if not torch.isfinite(each).all()}
    found = _origin(model, bad, contexts) if bad else None
    if model.opt['dist']:
        answers: list = [None] * model.opt['world_size']
        torch.distributed.all_gather_object(answers, found)
        found = next((answer for answer in answers if answer is not None), None)
    culprit, remedy = found or ('the losses of all processes together overflow', 'lr_g')
    rehearsed = model.opt.get('rehearsal')
    if remedy in ('lr_g', 'lr_d'):
        remedy = f'lower train:stages:{moment.name}:{remedy} or set grad_clip there'
        remedy = 'correct the files that networks start from, or the term' if rehearsed else remedy
    if rehearsed:
        return UserError(
            f'train:stages:{moment.name}: the loss {loss} is {value} in a rehearsal of the first step: '
            f'{culprit.removesuffix(DIVERGED)}; {remedy}.'
        )
    return UserError(
        f'the loss {loss} became {value} at iteration {iteration:,d} (stage {moment.name}, step {moment.step:,d}): '
        f'{culprit}; {remedy}, and continue from the last checkpoint in {model.path.get("models")} with --auto_resume.'
    )


def _origin(model: Trained, bad: Collection[str], contexts: Mapping[str, Context]) -> tuple[str, str]:
    """Whom the bad losses of this process come from, and what helps: a sentence's end, or ``lr_g`` or ``lr_d``."""
    if found := _in_batch(model):
        return found
    for name in model.teachers:
        if fault := _fault(contexts['student'].made(name)):
            return _teacher(model, name, fault)
    for name, context in contexts.items():
        if fault := _fault(context.made('student')):
            who = 'the student' if name == 'student' else f'{name}, which learns along,'
            return f'what {who} makes of good images is {fault}{DIVERGED}', 'lr_g'
    for each in model.discriminators.values():
        names = {f'{name}{each.suffix}' for name in ('l_d_real', 'l_d_fake', 'l_d_r1', 'l_g_gan')}
        if any(name in names or name.startswith(f'l_t_gan_{each.name}') for name in bad):
            what = f'the discriminator {each.name} gives values that are not finite for good images'
            if each.player is None:
                return what, f'take another file for {each.facts.key("weights")}'
            return f'{what}{DIVERGED}', 'lr_d'
    return 'all images are good, and the loss itself overflows', 'lr_g'


def _fault(made: Sequence[torch.Tensor]) -> str:
    """What is wrong with an image and activations, as the end of a sentence; empty where nothing is."""
    if all(torch.isfinite(each).all() for each in made):
        most = float(made[0].detach().abs().max()) if made else 0.0
        return f'up to {most:.0e}, where images are in [0, 1]' if most > WILD else ''
    return 'not finite'


def _in_batch(model: Trained) -> tuple[str, str] | None:
    for what, images in (('input', model.lq), ('ground truth', getattr(model, 'gt', ()))):
        for number, image in enumerate(images):
            if not (fault := _fault([image])):
                continue
            if model.scenario.degrades:  # the image is unknown: those of earlier batches wait in the pool
                return f'the {what} of an image is {fault}', 'correct the options of the degradation'
            known = model.pool is None and len(model.sources) == len(images)
            which = f' of {model.sources[number]}' if known else ' of an image'
            return f'the {what}{which} is {fault}', 'correct the data set, or take the image away'
    return None


def _teacher(model: Trained, name: str, fault: str) -> tuple[str, str]:
    entry = model.scenario.teachers[name]
    what = f'what {"the teacher" if name == "teacher" else f"the teacher {name}"} makes of good images is {fault}'
    if entry.cotrain is not None:
        return f'{what}{DIVERGED}', 'lr_g'
    if name in model.answers:
        return f'{what} in the folder {entry.cache}', 'delete that folder to have it made again'
    precision = model.cast.precisions.of(name)
    if precision in DTYPES and not _fault(_in_float32(model, name)):
        return f'{what} in {precision}, and good in float32', f'write {entry.key("precision")}: fp32'
    return what, f'take another file for {entry.key("weights")}'


@torch.no_grad()
def _in_float32(model: Trained, name: str) -> list[torch.Tensor]:
    """What a teacher makes of the current batch without ``train:precision``."""
    taps = model.taps.get(name)
    model.teachers[name].float()  # the run ends
    model.autocast = nullcontext  # hides the method; the role is nothing to it
    try:
        with taps or nullcontext():
            image = model.generate(model.teachers[name], name)
        return [image, *(taps.pop().values() if taps is not None else ())]
    finally:
        del model.autocast
