"""How option blocks become networks and which terms a stage really has; used by the checks and by the model alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from torch import nn

from sdakd.compat import UserError
from sdakd_arch.weights import infer_network, load_into, read_weights
from sdakd_arch.width import build, initialise
from sdakd_models.options import Discriminator, gan_term, read_discriminators, read_teachers, share_of
from sdakd_models.stages import Stage
from sdakd_models.terms import TERMS


def active_terms(stage: Stage, opt: Mapping) -> list[str]:
    """The terms of a stage, less those whose options were set to null: the one-line way to go without a term."""
    return [t for t in stage.terms if not (f'{t}_opt' in opt['train'] and opt['train'][f'{t}_opt'] is None)]


def used_discriminators(opt: Mapping, terms: Set[str]) -> dict[str, Discriminator]:
    """The discriminators that some term switches on, by name."""
    return {name: entry for name, entry in read_discriminators(opt).items() if gan_term(name) in terms}


def needed_teachers(opt: Mapping, terms: Set[str], discriminators: Mapping[str, Discriminator]) -> list[str]:
    """Names of the teachers that a term compares with, or whose images a discriminator sees."""
    found = {name for term in terms if term in TERMS for name in TERMS[term].teachers(opt['train'][TERMS[term].option])}
    if any('teacher' in (entry.real, *entry.fake) for entry in discriminators.values()):
        found.add('teacher')
    return sorted(found, key=lambda name: (name != 'teacher', name))


def crop_of(opt: Mapping) -> int:
    """Side of a training crop of the ground truth in pixels."""
    train = opt['datasets'].get('train', {})
    return opt.get('gt_size') or train.get('gt_size') or train.get('out_size') or 128


def margin_of(opt: Mapping, crop: int) -> int:
    """``train:teacher_margin`` for a crop of so many input pixels, or its default; whole faces have no border."""
    margin = opt['train'].get('teacher_margin')
    if margin is not None:
        return int(margin)
    return 0 if opt['model_type'] == 'SDAKDGCFSRModel' else min(8, crop // 4)


def border_of(opt: Mapping, crop: int, teachers: Iterable[str]) -> int:
    """Input pixels that comparisons with these teachers leave out: the margin, unless all their answers have context.

    They have it where they come from a cache of whole images, or from pairs of the pool, which are larger than crops by
    the margin. The student's own border is trained only then, or by terms that look at no teacher.
    """
    entries = read_teachers(opt)
    found = [entries[name] for name in teachers if name in entries]
    pooled = int(opt['train'].get('pool_reuse', 1)) > 1 and not any(entry.replace_by for entry in found)
    return 0 if pooled or (found and all(entry.cache for entry in found)) else margin_of(opt, crop)


def shares_of(opt: Mapping, terms: Iterable[str]) -> dict[str, float]:
    """The shares that the blocks of terms ask for, by term."""
    found = {}
    for term in terms:
        if term in TERMS:
            options = opt['train'].get(TERMS[term].option)
        else:
            entry = read_discriminators(opt).get(term.partition(':')[2] or 'student')
            options = entry and (entry.gan_opt or opt['train'].get('gan_opt'))
        if (share := share_of(options)) is not None:
            found[term] = share
    return found


def teacher_network(opt: Mapping, name: str = 'teacher') -> nn.Module:
    """Builds a teacher with its weights, on the CPU.

    Raises:
        UserError: It has no block, its file cannot be read, or it does not fit the architecture given.
    """
    teachers = read_teachers(opt)
    where = 'teacher' if name == 'teacher' else f'teachers:{name}'
    if name not in teachers:
        raise UserError(f'{where}: the block is missing, but a stage has a term that compares with a teacher.')
    teacher = teachers[name]
    if teacher.weights is None:
        if teacher.network is None or teacher.replace_by is None:
            raise UserError(
                f'{where}:weights: the key is missing; name the trained network (a teacher that learns along, with '
                'replace_by, may start from nothing: then write its network).'
            )
        network = build(teacher.network, f'{where}:network')
        initialise(network)
        return network
    state = read_weights(teacher.weights, teacher.param_key, f'{where}:weights')
    options = teacher.network or infer_network(state)
    if options is None:
        raise UserError(
            f'{where}:weights: the architecture cannot be told from the keys of {teacher.weights} '
            f'({", ".join(sorted(state)[:3])}, ...): write it as {where}:network, with the keys of network_g.'
        )
    network = build(options, f'{where}:network')
    load_into(network, state, teacher.weights, f'{where}:weights')
    return network
