"""Real-ESRGAN's degradation."""

from __future__ import annotations

from sdakd.compat import UserError
from sdakd_models.scenario import Scenario

DEGRADATION = (
    'resize_prob', 'resize_range', 'gaussian_noise_prob', 'noise_range', 'poisson_scale_range', 'gray_noise_prob',
    'jpeg_range', 'second_blur_prob', 'resize_prob2', 'resize_range2', 'gaussian_noise_prob2', 'noise_range2',
    'poisson_scale_range2', 'gray_noise_prob2', 'jpeg_range2', 'gt_size',
)  # fmt: skip


def check(scenario: Scenario) -> None:
    """The degradation has all its values, and crops fit into what the data set gives.

    Raises:
        UserError: With the key.
    """
    opt, reuse = scenario.file, scenario.train.pool_reuse
    for key in DEGRADATION:
        if key not in opt:
            raise UserError(f"{key}: the key is missing; Real-ESRGAN's degradation needs it beside model_type.")
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
