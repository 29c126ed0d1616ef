"""Checks of a run before anything is created: every mistake is found here, as one sentence, or not at all."""

from __future__ import annotations

import math

from sdakd.compat import UserError
from sdakd_metrics.set_metrics import check_set_size
from sdakd_models.cast import Cast
from sdakd_models.checks import cache, data, degradation, faces, keys, networks, pool, stages, validation
from sdakd_models.scenario import Scenario
from sdakd_models.stages import EveryOr, Plan


def check_run(opt: dict, quiet: bool = False) -> Cast:
    """Checks completed options and completes what depends on data and stages (see :func:`finish`).

    Args:
        opt: The options; changed in place.
        quiet: Leaves the images of data sets and caches alone (for all but the main process).

    Returns:
        The networks on ``'meta'``.

    Raises:
        UserError: The first mistake found.
    """
    keys.check_top_level(opt)
    scenario = Scenario.read(opt)
    for subject in (keys, stages, faces):
        subject.check(scenario)
    networks.fetch(scenario)
    cast = Cast(scenario, 'meta')
    networks.check(scenario, cast)
    validation.check(scenario)
    if scenario.degrades:
        degradation.check(scenario)
    pool.check(scenario)
    images = {phase: data.check(scenario, phase, shallow=quiet) for phase in scenario.datasets}
    if 'train' not in images:
        raise UserError('datasets:train: the data set to train on is missing.')
    for phase, number in images.items():
        check_set_size(opt, phase, number)
    cache.check(scenario, cast, shallow=quiet)
    finish(opt, scenario.plan, images['train'])
    return cast


def finish(opt: dict, plan: Plan, images: int) -> None:
    """Completes what BasicSR's loop reads: total length, ends of stages, and a data length that lasts.

    BasicSR drops the last incomplete batch but counts it as an iteration, and stops early in silence: 200 images in
    batches of 16 end after 1,128 of 1,200 iterations. With an enlarged data set that batches divide, none is dropped.
    """
    train = opt['datasets']['train']
    batch = train['batch_size_per_gpu'] * opt['world_size']
    ratio = train.get('dataset_enlarge_ratio', 1)
    divisor = batch // math.gcd(images, batch)
    train['dataset_enlarge_ratio'] = max(1, math.ceil(ratio / divisor)) * divisor
    opt['train']['total_iter'] = plan.total_iter
    logger = opt['logger']
    logger['save_checkpoint_freq'] = EveryOr(logger['save_checkpoint_freq'], plan.ends)
    if opt.get('val'):
        # the loop validates once more after the last iteration
        opt['val']['val_freq'] = EveryOr(opt['val']['val_freq'], plan.ends[:-1])
