"""Real-ESRGAN's degradation."""

from __future__ import annotations

from sdakd.compat import Mistakes
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
    if not scenario.degrades:
        return
    opt = scenario.file
    with Mistakes() as mistakes:
        for key in DEGRADATION:
            if key not in opt:
                mistakes.add(key, "the key is missing; Real-ESRGAN's degradation needs it beside model_type.")
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
