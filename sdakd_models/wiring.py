"""How option blocks become networks and which terms a stage really has; used by the checks and by the model alike."""

from __future__ import annotations

from collections.abc import Mapping, Set

from torch import nn

from sdakd.compat import UserError
from sdakd_arch.weights import infer_network, load_into, read_weights
from sdakd_arch.width import build
from sdakd_models.options import Discriminator, gan_term, read_discriminators, read_teacher
from sdakd_models.stages import Stage
from sdakd_models.terms import TERMS


def active_terms(stage: Stage, opt: Mapping) -> list[str]:
    """The terms of a stage, less those whose options were set to null: the one-line way to go without a term."""
    return [t for t in stage.terms if not (f'{t}_opt' in opt['train'] and opt['train'][f'{t}_opt'] is None)]


def used_discriminators(opt: Mapping, terms: Set[str]) -> dict[str, Discriminator]:
    """The discriminators that some term switches on, by name."""
    return {name: entry for name, entry in read_discriminators(opt).items() if gan_term(name) in terms}


def needs_teacher(terms: Set[str], discriminators: Mapping[str, Discriminator]) -> bool:
    """Whether a term compares with the teacher, or a discriminator sees its images."""
    return any(name in TERMS and TERMS[name].needs_teacher for name in terms) or any(
        'teacher' in (entry.real, *entry.fake) for entry in discriminators.values()
    )


def teacher_network(opt: Mapping) -> nn.Module:
    """Builds the teacher with its weights, on the CPU.

    Raises:
        UserError: There is no ``teacher:`` block, its file cannot be read, or it does not fit the architecture given.
    """
    teacher = read_teacher(opt)
    if teacher is None:
        raise UserError('teacher: the block is missing, but a stage has a term that compares with a teacher.')
    state = read_weights(teacher.weights, teacher.param_key, 'teacher:weights')
    options = teacher.network or infer_network(state)
    if options is None:
        raise UserError(
            f'teacher:weights: the architecture cannot be told from the keys of {teacher.weights} '
            f'({", ".join(sorted(state)[:3])}, ...): write it as teacher:network, with the keys of network_g.'
        )
    network = build(options, 'teacher:network')
    load_into(network, state, teacher.weights, 'teacher:weights')
    return network
