"""Student, teachers and discriminators: their files are there, their sizes agree, terms can work with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from sdakd.compat import Mistakes, UserError, near, one_line
from sdakd_arch.families import family_of
from sdakd_arch.width import build, scale_of
from sdakd_arch.zoo import ensure_file
from sdakd_models.cast import Cast
from sdakd_models.checks import faces
from sdakd_models.options import DiscriminatorBlock, TeacherBlock
from sdakd_models.players import Discriminator
from sdakd_models.registry import TERMS
from sdakd_models.scenario import Scenario

SIZES = ('gt_size', 'datasets:train:gt_size', 'datasets:train:out_size', 'train:teacher_margin', 'train:pool_reuse')


def fetch(scenario: Scenario) -> None:
    """Every network that a stage needs is named, and its file is there or fetched.

    Raises:
        UserError: With the key.
    """
    with Mistakes() as mistakes:
        with mistakes.collect():
            _fetch_student(scenario)
        for teacher in scenario.teachers.values():
            with mistakes.collect():
                _fetch_teacher(scenario, teacher)
        for entry in scenario.discriminators.values():
            with mistakes.collect():
                _fetch_discriminator(scenario, entry)
        for where, network in _unused(scenario):
            with mistakes.collect(), torch.random.fork_rng([]):
                build(network, where)


def _unused(scenario: Scenario) -> Iterator[tuple[str, Mapping]]:
    """Networks of the option file that no stage needs, by key: a slip in them would be found with the stage."""
    for group, used in (('teachers', scenario.teachers), ('discriminators', scenario.discriminators)):
        entries = scenario.file.get(group)
        for name, entry in entries.items() if isinstance(entries, Mapping) else ():
            network = entry.get('network') if isinstance(entry, Mapping) else None
            if str(name) not in used and isinstance(network, Mapping) and 'width' not in network:
                yield f'{group}:{name}:network', network


def _fetch_discriminator(scenario: Scenario, entry: DiscriminatorBlock) -> None:
    alone = scenario.network_g is None and scenario.whole and not scenario.plan.trains_student
    if alone and entry.learns and 'student' in entry.fake:
        where = f'discriminators:{entry.name}:fake'
        raise UserError(where, 'it names the student, but there is no network_g.')
    if entry.weights and not (entry.name == 'student' and scenario.resumes):
        ensure_file(entry.weights, entry.key('weights'))
    elif not entry.learns and scenario.whole:
        raise entry.error('a discriminator that does not learn needs its file.', 'weights')


def _fetch_student(scenario: Scenario) -> None:
    train, path = scenario.train, scenario.path
    stages = zip(scenario.plan.names, scenario.plan.stages, strict=True)
    trains = any(stage.lr_g is not None for name, stage in stages if name in scenario.sound)
    if scenario.network_g is None:
        if trains:
            raise UserError('network_g: the key is missing.')
        if scenario.val and scenario.whole:
            raise UserError('val: there is no student (network_g) to validate, leave the block out.')
        return
    if not trains and scenario.whole:
        raise UserError('network_g: no stage trains the student; leave network_g out, or give a stage its lr_g.')
    if scenario.resumes:
        return
    if path.get('pretrain_network_g'):
        ensure_file(path['pretrain_network_g'], 'path:pretrain_network_g')
    elif scenario.plan.names[:1] != [str(name) for name in train.stages][:1]:
        raise UserError(
            'path:pretrain_network_g: name the student to begin with, because train:start_stage is '
            f'{train.start_stage!r}.'
        )


def _fetch_teacher(scenario: Scenario, teacher: TeacherBlock) -> None:
    """A teacher that learns along also needs something to be measured by."""
    metrics = scenario.val.get('metrics') or {}
    with Mistakes() as mistakes:
        if teacher.weights is not None:
            with mistakes.collect():
                ensure_file(teacher.weights, teacher.key('weights'))
        if teacher.cotrain is None:
            return
        if (metric := teacher.cotrain.metric) not in metrics:
            near_ones = near(metric, metrics) if metrics else 'there are none'
            mistakes.add(teacher.key('cotrain:metric'), f'{metric!r} is no entry of val:metrics; {near_ones}.')
        if not any(phase.startswith('val') for phase in scenario.datasets):
            sentence = 'teachers are compared on a validation set, write datasets:val.'
            mistakes.add(teacher.key('cotrain'), sentence)


def check_scales(scenario: Scenario, cast: Cast) -> None:
    """Student and teachers enlarge by the same factor, which the options receive where they do not say it."""
    opt = scenario.file
    if cast.student is not None:
        scale = scale_of(cast.student, 'network_g')
        if opt.setdefault('scale', scale) != scale:
            raise UserError(f'scale: the options say {opt["scale"]}, but network_g enlarges {scale} times.')
    for name, network in cast.teachers.items():
        teacher = scenario.teachers[name]
        faces.check_network(scenario, teacher.where, network)
        found = scale_of(network, teacher.where)
        scale = opt.setdefault('scale', found)
        if found != scale:
            other = 'the options say scale:' if cast.student is None else 'network_g'
            raise UserError(
                f'{teacher.where}: it enlarges {found} times and {other} {scale} times; student and teacher must agree.'
            )


def check_crop(scenario: Scenario, cast: Cast) -> None:
    """Discriminators and terms can work with crops of this size, and with what the margin leaves of them.

    Raises:
        UserError: With the key.
    """
    crop, scale = scenario.crop, scenario.scale
    if not isinstance(crop, int) or crop % scale:
        raise UserError(f'datasets:train:gt_size: the crop of {crop} must be a multiple of scale {scale}.')
    networks = {'network_g': cast.student} | {f'the teacher {name}': each for name, each in cast.teachers.items()}
    for who, network in networks.items():
        multiple = 1 if network is None else family_of(network).multiple(network)
        if scenario.input_crop % multiple:
            raise UserError(
                f'datasets:train:gt_size: the crop of {crop} gives inputs of {scenario.input_crop} pixels, and {who} '
                f'takes multiples of {multiple}, such as its windows; write a multiple of {multiple * scale}.'
            )
    if cast.teachers and 2 * scenario.margin >= scenario.input_crop:
        raise UserError(
            f'train:teacher_margin: a border of {scenario.margin} leaves nothing of crops of {scenario.input_crop} '
            f'input pixels; write at most {(scenario.input_crop - 1) // 2}, or raise gt_size.'
        )
    with Mistakes() as mistakes:
        for discriminator in cast.discriminators.values():
            with mistakes.collect():
                _check_discriminator(scenario, discriminator)
        for name in sorted(scenario.terms.keys() & TERMS.keys()):
            looked_at = scenario.discriminators.get(getattr(scenario.terms[name].options, 'discriminator', None))
            if looked_at is not None and mistakes.about(looked_at.key('network')):
                continue
            with mistakes.collect():
                cast.term(name).check(scenario, cast)


def _check_discriminator(scenario: Scenario, discriminator: Discriminator) -> None:
    entry, crop = discriminator.facts, scenario.crop
    side = scenario.inside * scenario.scale if entry.sees_teacher else crop
    try:
        discriminator.bare(torch.empty(1, 3, side, side, device='meta'))
    except Exception as error:  # of whatever an architecture does
        border = '' if side == crop else f', what train:teacher_margin leaves of {crop}'
        sentence = f'it does not take images of {side}x{side} pixels{border} ({one_line(error)}).'
        raise entry.error(sentence, 'network') from None


def check(scenario: Scenario, mistakes: Mistakes) -> Cast | None:
    """Builds the networks of which nothing is wrong yet; their sizes agree, and terms can work with them.

    Args:
        scenario: The run.
        mistakes: What was found already; takes up what is found here.

    Returns:
        The networks on ``'meta'``; None where one of them cannot be built.
    """
    cast = None
    with mistakes.collect() as wrong:
        cast = Cast(scenario.without(mistakes), 'meta')
    if wrong:
        with mistakes.collect():
            cast = Cast(scenario.without(mistakes), 'meta')
    if cast is None:
        return None
    scenario = cast.scenario
    with mistakes.collect() as wrong:
        check_scales(scenario, cast)
    if wrong:  # who is right is not known, and nothing is measured by it
        scenario.file.pop('scale', None)
    if 'scale' in scenario.file and not mistakes.about(*SIZES):
        with mistakes.collect():
            check_crop(scenario, cast)
    return cast
