"""Checks of a run before anything is created: every mistake is found here, as one sentence, or not at all.

A subject's ``check`` raises all that it finds (:class:`sdakd.compat.Mistakes`); what depends on what is said here.
"""

from __future__ import annotations

import math
from dataclasses import replace

from sdakd.compat import Mistakes
from sdakd_metrics.set_metrics import check_set_size
from sdakd_models.cast import Cast
from sdakd_models.checks import cache, data, degradation, faces, keys, networks, pool, stages, validation
from sdakd_models.scenario import Scenario
from sdakd_models.stages import EveryOr, Plan


def check_run(opt: dict, mistakes: Mistakes, quiet: bool = False) -> Cast | None:
    """Checks completed options and, where nothing is wrong, completes what depends on data and stages (:func:`finish`).

    Args:
        opt: The options; changed in place.
        mistakes: What was found already; takes up what is found here. A check is made unless it depends on something
            that is wrong.
        quiet: Leaves the images of data sets and caches alone (for all but the main process).

    Returns:
        The networks on ``'meta'``; None where something is wrong.
    """
    scenario = Scenario.read(opt, mistakes=mistakes)
    for subject in (keys, stages):
        with mistakes.collect():
            subject.check(scenario)
    sound = frozenset(name for name in scenario.sound if not mistakes.about(f'train:stages:{name}'))
    scenario = replace(scenario, sound=sound)
    with mistakes.collect():
        networks.fetch(scenario)
    cast = None
    if scenario.model_type:
        with mistakes.collect() as unfit:
            faces.check(scenario)
        degradation.check(scenario, mistakes)
        if not mistakes.about('queue_size'):
            with mistakes.collect():
                pool.check(scenario)
        if not unfit:
            cast = networks.check(scenario, mistakes)
    with mistakes.collect():
        validation.check(scenario, mistakes)
    shallow = quiet or 'scale' not in opt
    images: dict[str, int] = {}
    for phase in scenario.datasets:
        with mistakes.collect():
            if mistakes.about(f'datasets:{phase}'):
                data.check_paths(scenario, phase)
            else:
                images[phase] = data.check(scenario, phase, shallow=shallow)
    if scenario.datasets and 'train' not in scenario.datasets and not mistakes.about('datasets:train'):
        mistakes.add('datasets:train', 'the data set to train on is missing.')
    if not mistakes.about('val'):
        for phase, number in images.items():
            with mistakes.collect():
                check_set_size(opt, phase, number)
    if cast is not None and 'train' in images:
        with mistakes.collect():
            cache.check(cast.scenario, cast, shallow=shallow)
    if mistakes.found:
        return None
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
