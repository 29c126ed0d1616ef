"""Real-ESRGAN's degradation and its pool of pairs."""

from __future__ import annotations

import math

from sdakd.compat import Mistakes
from sdakd_models.scenario import Scenario

DEGRADATION = (
    'resize_prob', 'resize_range', 'gaussian_noise_prob', 'noise_range', 'poisson_scale_range', 'gray_noise_prob',
    'jpeg_range', 'second_blur_prob', 'resize_prob2', 'resize_range2', 'gaussian_noise_prob2', 'noise_range2',
    'poisson_scale_range2', 'gray_noise_prob2', 'jpeg_range2', 'gt_size',
)  # fmt: skip


def check(scenario: Scenario) -> None:
    """The degradation has all its values, and the pool holds whole batches, ``pool_reuse`` times.

    Raises:
        UserError: With the key.
    """
    opt, reuse = scenario.file, scenario.train.pool_reuse
    with Mistakes() as mistakes:
        if not scenario.degrades:
            if reuse > 1:
                sentence = "it is for Real-ESRGAN's degradation in training; leave it out for paired data."
                mistakes.add('train:pool_reuse', sentence)
            return
        for key in DEGRADATION:
            if key not in opt:
                mistakes.add(key, "the key is missing; Real-ESRGAN's degradation needs it beside model_type.")
        batch = opt['datasets'].get('train', {}).get('batch_size_per_gpu')
        queue = opt.setdefault('queue_size', 180)
        if isinstance(batch, int) and isinstance(queue, int) and batch > 0 and queue % batch:
            mistakes.add(
                'queue_size',
                f'the pair pool holds {queue} pairs, which the batch of {batch} does not divide; write '
                f'{math.ceil(queue / batch) * batch}.',
            )
        elif isinstance(queue, int) and queue % reuse:
            mistakes.add(
                'train:pool_reuse',
                f'{reuse} does not divide the pair pool (queue_size: {queue}); write a divisor of it.',
            )
        if 'gt_size' in opt:
            _check_crop(scenario, mistakes)


def _check_crop(scenario: Scenario, mistakes: Mistakes) -> None:
    crop, scale = scenario.file['gt_size'], scenario.scale
    if crop > 400 or crop % scale:
        mistakes.add('gt_size', f'write a multiple of scale {scale} up to 400, not {crop}.')
        return
    # reused pairs are larger than crops by the margin, and Real-ESRGAN's data sets give 400 pixels
    most = (400 // scale - 2 * scenario.margin) * scale
    if scenario.train.pool_reuse > 1 and crop > most:
        mistakes.add(
            'gt_size',
            f'with train:pool_reuse, crops and teacher_margin around them are cut from 400 pixels; write {most} or '
            f'less, not {crop}.',
        )
