"""Real-ESRGAN's degradation and its pool of pairs."""

from __future__ import annotations

import math

from sdakd.compat import UserError
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
    for key in DEGRADATION:
        if key not in opt:
            raise UserError(f"{key}: the key is missing; Real-ESRGAN's degradation needs it beside model_type.")
    batch = opt['datasets'].get('train', {}).get('batch_size_per_gpu')
    queue = opt.setdefault('queue_size', 180)
    if isinstance(batch, int) and isinstance(queue, int) and batch > 0 and queue % batch:
        raise UserError(
            f'queue_size: the pair pool holds {queue} pairs, which the batch of {batch} does not divide; write '
            f'{math.ceil(queue / batch) * batch}.'
        )
    if isinstance(queue, int) and queue % reuse:
        raise UserError(
            f'train:pool_reuse: {reuse} does not divide the pair pool (queue_size: {queue}); write a divisor of it.'
        )
    crop, scale = opt['gt_size'], opt['scale']
    if crop > 400 or crop % scale:
        raise UserError(f'gt_size: write a multiple of scale {scale} up to 400, not {crop}.')
    # reused pairs are larger than crops by the margin, and Real-ESRGAN's data sets give 400 pixels
    most = (400 // scale - 2 * scenario.margin) * scale
    if reuse > 1 and crop > most:
        raise UserError(
            f'gt_size: with train:pool_reuse, crops and teacher_margin around them are cut from 400 pixels; write '
            f'{most} or less, not {crop}.'
        )
