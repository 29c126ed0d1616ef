"""Student, teachers and discriminators: their files are there, their sizes agree, terms can work with them."""

from __future__ import annotations

import torch

from sdakd.compat import UserError, near
from sdakd_arch.width import scale_of
from sdakd_arch.zoo import ensure_file
from sdakd_models.cast import Cast
from sdakd_models.checks import faces
from sdakd_models.options import TeacherBlock
from sdakd_models.scenario import Scenario


def fetch(scenario: Scenario) -> None:
    """Every network that a stage needs is named, and its file is there or fetched.

    Raises:
        UserError: With the key.
    """
    _fetch_student(scenario)
    for teacher in scenario.teachers.values():
        _fetch_teacher(scenario, teacher)
    for name, entry in scenario.discriminators.items():
        if scenario.network_g is None and entry.learns and 'student' in entry.fake:
            raise UserError(f'discriminators:{name}:fake: it names the student, but there is no network_g.')
        if entry.weights and not (name == 'student' and scenario.resumes):
            ensure_file(entry.weights, entry.key('weights'))
        elif not entry.learns:
            raise entry.error('a discriminator that does not learn needs its file.', 'weights')


def _fetch_student(scenario: Scenario) -> None:
    trains, train, path = scenario.plan.trains_student, scenario.train, scenario.path
    if scenario.network_g is None:
        if trains:
            raise UserError('network_g: the key is missing.')
        if scenario.val:
            raise UserError('val: there is no student (network_g) to validate, leave the block out.')
        return
    if not trains:
        raise UserError('network_g: no stage trains the student; leave network_g out, or give a stage its lr_g.')
    if scenario.resumes:
        return
    if path.get('pretrain_network_g'):
        ensure_file(path['pretrain_network_g'], 'path:pretrain_network_g')
    elif train.start_stage not in (None, next(iter(train.stages))):
        raise UserError(
            'path:pretrain_network_g: name the student to begin with, because train:start_stage is '
            f'{train.start_stage!r}.'
        )


def _fetch_teacher(scenario: Scenario, teacher: TeacherBlock) -> None:
    """A teacher that learns along also needs something to be measured by."""
    if teacher.weights is not None:
        ensure_file(teacher.weights, teacher.key('weights'))
    if teacher.cotrain is None:
        return
    metric, metrics = teacher.cotrain.metric, scenario.val.get('metrics') or {}
    if metric not in metrics:
        near_ones = near(metric, metrics) if metrics else 'there are none'
        raise teacher.error(f'{metric!r} is no entry of val:metrics; {near_ones}.', 'cotrain:metric')
    if not any(phase.startswith('val') for phase in scenario.datasets):
        raise teacher.error('teachers are compared on a validation set, write datasets:val.', 'cotrain')


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
    if cast.teachers and 2 * scenario.margin >= scenario.input_crop:
        raise UserError(
            f'train:teacher_margin: a border of {scenario.margin} leaves nothing of crops of {scenario.input_crop} '
            f'input pixels; write at most {(scenario.input_crop - 1) // 2}, or raise gt_size.'
        )
    for discriminator in cast.discriminators.values():
        entry = discriminator.facts
        side = scenario.inside * scale if entry.sees_teacher else crop
        try:
            discriminator.bare(torch.empty(1, 3, side, side, device='meta'))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            border = '' if side == crop else f', what train:teacher_margin leaves of {crop}'
            raise entry.error(
                f'it does not take images of {side}x{side} pixels{border} ({reason}).', 'network'
            ) from None
    for name in sorted(cast.terms):
        cast.terms[name].check(scenario, cast)


def check(scenario: Scenario, cast: Cast) -> None:
    """Sizes agree.

    Raises:
        UserError: With the key.
    """
    check_scales(scenario, cast)
    check_crop(scenario, cast)
