"""Checks of a run before anything is created: every mistake is found here, as one sentence, or not at all.

A subject's ``check`` raises all that it finds (:class:`sdakd.compat.Mistakes`); what depends on what is said here.
"""

from __future__ import annotations

from dataclasses import replace

from sdakd.compat import Mistakes
from sdakd_metrics.set_metrics import check_set_size
from sdakd_models.cast import Cast
from sdakd_models.checks import cache, data, degradation, disk, faces, keys, loading, networks, pool, stages, validation
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
    if 'train' in images and images['train'] < scenario.held_out:
        entry = next(entry for entry in scenario.discriminators.values() if entry.selective is not None)
        mistakes.add(
            entry.key('selective:held_out'),
            f'one of every {scenario.held_out} training images is held out, of {images["train"]} in all; write a '
            'smaller number.',
        )
    if not mistakes.about('val'):
        for phase, number in images.items():
            with mistakes.collect():
                check_set_size(opt, phase, number)
    if cast is not None and 'train' in images:
        with mistakes.collect():
            cache.check(cast.scenario, cast, shallow=shallow)
    if mistakes.found:
        return None
    with mistakes.collect():
        opt['room'] = disk.check(cast)
    if not quiet:
        with mistakes.collect():
            loading.check(scenario)
    finish(opt, scenario.plan)
    return cast


def finish(opt: dict, plan: Plan) -> None:
    """Completes what BasicSR's loop reads: total length and ends of stages."""
    opt['train']['total_iter'] = plan.total_iter
    logger = opt['logger']
    logger['save_checkpoint_freq'] = EveryOr(logger['save_checkpoint_freq'], plan.ends)
    if opt.get('val'):
        # the loop validates once more after the last iteration
        opt['val']['val_freq'] = EveryOr(opt['val']['val_freq'], plan.ends[:-1])
