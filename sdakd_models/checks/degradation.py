"""Real-ESRGAN's degradation."""

from __future__ import annotations

from sdakd.compat import Mistakes
from sdakd_models.basicsr_options import Degradation
from sdakd_models.scenario import Scenario

DEGRADATION = tuple(key for key in Degradation.__struct_fields__ if key[-4:] != '_usm' and key[:2] not in ('qu', 'hi'))


def check(scenario: Scenario, mistakes: Mistakes) -> None:
    """The degradation has all its values, and crops fit into what the data set gives.

    Args:
        scenario: The run.
        mistakes: What was found already; takes up what is found here.
    """
    if not scenario.degrades:
        return
    for key in DEGRADATION:
        if key not in scenario.file and not mistakes.about(key):
            mistakes.add(key, "the key is missing; Real-ESRGAN's degradation needs it beside model_type.")
    if 'gt_size' in scenario.file:
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
