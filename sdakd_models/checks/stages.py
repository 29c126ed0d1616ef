"""Stages and optimizers: somebody learns in every stage, at a rate, from terms that fit together."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from sdakd.compat import Mistakes, UserError, near, one_line
from sdakd_models.options import DiscriminatorBlock, Train, gan_term
from sdakd_models.players import OPTIMIZERS, make_optimizer
from sdakd_models.registry import TERMS
from sdakd_models.scenario import Scenario
from sdakd_models.stages import Stage


def check(scenario: Scenario) -> None:
    """All stages and both optimizers.

    Raises:
        UserError: With the key.
    """
    with Mistakes() as mistakes:
        for name, stage in zip(scenario.plan.names, scenario.plan.stages, strict=True):
            if name in scenario.sound:
                with mistakes.collect():
                    _check_stage(scenario, stage, scenario.active[name], f'train:stages:{name}')
        with mistakes.collect():
            check_optimizers(scenario.train)


def _check_stage(scenario: Scenario, stage: Stage, active: list[str], where: str) -> None:
    if any(stage.terms.count(term) > 1 for term in stage.terms):
        raise UserError(f'{where}:terms: a term stands twice in {stage.terms}.')
    for term in active:
        which = getattr(scenario.terms[term].options, 'discriminator', None)
        if which is not None and gan_term(which) not in active:
            raise UserError(
                f'{where}:terms: the term {term!r} looks into the discriminator {which!r}, which is not on in this '
                f'stage; add {gan_term(which)!r}.'
            )
    for entry in scenario.discriminators.values():
        if entry.term in active and entry.selective is not None:
            _check_selective(scenario, entry, active, where)
    _check_shares(scenario, stage, active, where)
    on = [entry for entry in scenario.discriminators.values() if entry.term in active]
    training = [term for term in active if term in TERMS] + [entry.term for entry in on if entry.trains_student]
    learning = [entry.term for entry in on if entry.learns]
    if not training and stage.lr_g is not None:
        raise UserError(
            f'{where}:terms: no term is left that trains the student; where only discriminators learn, leave lr_g out.'
        )
    if training and stage.lr_g is None:
        raise UserError(f'{where}:lr_g: the key is missing, but a term trains the student ({training[0]}).')
    if learning and stage.lr_d is None:
        raise UserError(f'{where}:lr_d: the key is missing, but a discriminator learns in this stage ({learning[0]}).')
    if not training and not learning:
        raise UserError(f'{where}:terms: no term is left that trains the student or a discriminator.')


def _check_selective(scenario: Scenario, entry: DiscriminatorBlock, active: list[str], where: str) -> None:
    against = entry.selective.against
    if not entry.learns or 'student' not in entry.fake:
        raise entry.error('it balances a discriminator that learns from the student; leave it out here.', 'selective')
    if entry.fake != ['student']:
        raise entry.error("its channels are chosen by the student's images alone; write [student].", 'fake')
    if scenario.faces:
        raise entry.error('no face is held out from a training; leave it out here.', 'selective')
    if against == entry.name:
        raise entry.error('this is the discriminator itself; name that of the teacher.', 'selective:against')
    if gan_term(against) not in active:
        raise UserError(
            f'{where}:terms',
            f'{entry.term!r} keeps the balance of the discriminator {against!r} ({entry.key("selective:against")}), '
            f'which is not on in this stage; add {gan_term(against)!r}.',
        )
    if len({each.selective.held_out for each in scenario.discriminators.values() if each.selective}) > 1:
        raise entry.error('another discriminator holds out other images; write the same number.', 'selective:held_out')


def _check_shares(scenario: Scenario, stage: Stage, active: list[str], where: str) -> None:
    """The shares of a stage leave something, and have something to be measured against."""
    asked = {term: scenario.shares[term] for term in active if term in scenario.shares}
    if not asked or stage.lr_g is None:
        return
    if sum(asked.values()) >= 1:
        total = sum(asked.values())
        raise UserError(f'{where}:terms: the shares of {", ".join(asked)} add up to {total:g}; keep them below 1.')
    if not any(term in TERMS and term not in asked for term in active):
        raise UserError(
            f'{where}:terms: the share of {next(iter(asked))} is measured against terms that have a loss_weight, GAN '
            'losses left out, and this stage has none; give another term a loss_weight.'
        )


def check_optimizers(train: Train) -> None:
    """Type and values of the optimizers, by building them."""
    with Mistakes() as mistakes:
        for key in ('optim_g', 'optim_d'):
            kind = getattr(train, key).get('type', 'Adam')
            if not isinstance(kind, str) or kind not in OPTIMIZERS:
                mistakes.add(f'train:{key}:type', f'{kind!r} is not offered, write Adam or AdamW.')
                continue
            known = {'type', *inspect.signature(OPTIMIZERS[kind]).parameters} - {'params', 'lr'}
            slips = [name for name in getattr(train, key) if name not in known]
            for name in slips:
                mistakes.add(f'train:{key}', f'{kind} takes no {name!r}; {near(str(name), known)}.')
            if slips:
                continue
            try:
                make_optimizer([nn.Parameter(torch.zeros(1))], getattr(train, key)).step()
            except Exception as error:  # each value fails in its own way
                mistakes.add(f'train:{key}', f'{one_line(error)}.')
