"""One step of every stage on tiny crops before a run creates anything: what would fail after days fails at once."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from basicsr.utils import logger as basicsr_logger
from basicsr.utils.registry import MODEL_REGISTRY

from sdakd.compat import UserError, one_line
from sdakd.progress import Progress
from sdakd_arch.width import lookup
from sdakd_data.randomness import Snapshot, aside, seed_all
from sdakd_models.cast import Cast
from sdakd_models.checks.networks import check_crop
from sdakd_models.loaders import settle_workers
from sdakd_models.measured import settle_precisions
from sdakd_models.scenario import Scenario
from sdakd_models.threads import settle_threads

SIDES = (8, 16, 24, 32, 48, 64)  # of the rehearsal's crops in input pixels; the run's own crop comes last


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal shows of a run.

    Args:
        drawn: The random numbers that follow on the first step of a stage, all of which begin with the same ones.
        compares: By stage, whether feature maps are compared.
        taps: By teacher, which of its feature maps.
        pooled: Whether pairs are used several times.
        held_out: Of so many training images one is held out; 0: none.
    """

    drawn: dict[str, Snapshot]
    compares: dict[str, bool]
    taps: dict[str, list[str]]
    pooled: bool
    held_out: int = 0


def rehearse(opt: dict, cast: Cast | None = None, begins: bool = False) -> Rehearsed:
    """Builds the model of a run and makes the first step of every stage, with learning rates of 0.

    The batch is noise, of at most two images, in the smallest crops that discriminators and terms take. Nothing of the
    run changes: it builds its own model afterwards, random numbers and the logger are put back.

    Args:
        opt: The options, checked and completed.
        cast: Its networks on ``'meta'``, where there are some.
        begins: Whether the run begins after it: then the numbers of its threads and of the processes that load images,
            and what the precision ``auto`` means, are settled, see :mod:`.threads`, :mod:`.loaders` and
            :mod:`.measured`.

    Returns:
        What several students of one run must have in common.

    Raises:
        UserError: A step fails; with stage and term.
    """
    cls = lookup(MODEL_REGISTRY, opt['model_type'], 'model_type')
    with untouched(opt['num_gpu'] > 0):
        with on_one_thread():
            small = shrunk(opt, cast or Cast(Scenario.read(opt), 'meta'))
            model = cls(small)
            batch = cls.noise_batch(model.scenario, small['datasets']['train']['batch_size_per_gpu'])
            stages = list(zip(model.plan.names, model.plan.ends, model.plan.stages, strict=True))
            drawn = {}
            for name, end, stage in Progress('rehearsal', len(stages), 'stages').over(stages):
                try:
                    model.feed_data(batch)
                    seed_all(0, device=model.device)
                    model.optimize_parameters(end - stage.iters + 1)
                    drawn[name] = Snapshot(model.device)
                except UserError:
                    raise
                except Exception as error:  # of whatever a loss, a term or an architecture does
                    what = f'the term {model.at_work!r}' if model.at_work else 'the backward pass or the update'
                    raise UserError(
                        f'train:stages:{name}: a rehearsal of the first step fails in {what} '
                        f'({type(error).__name__}: {one_line(error)}); correct it, or take it out of the stage.'
                    ) from error
        if begins:
            with Progress('the best number of threads'):
                settle_threads(opt, model)
            settle_precisions(opt, model)
            with Progress('the best number of loading processes'):
                settle_workers(opt, model)
        compares = {
            name: any(model.terms[term].needs_features for term in terms if term in model.terms)
            for name, terms in model.scenario.active.items()
        }
        taps = {name: each.names for name, each in model.taps.items() if name != 'student'}
        del model
    scenario = Scenario.read(opt)
    return Rehearsed(drawn, compares, taps, scenario.train.pool_reuse > 1, scenario.held_out)


def shrunk(opt: Mapping, cast: Cast) -> dict:
    """The options of a rehearsal: paired data in the smallest crops that the networks take, on one process."""
    small = deepcopy(dict(opt))
    train = small['datasets']['train']
    train.pop('caches', None)
    small |= {'rehearsal': True, 'dist': False, 'high_order_degradation': False}
    small['logger']['print_freq'] = 1
    small['train'] |= {'net_d_reg_every': 1, 'pool_reuse': 1}
    if not cast.scenario.border:  # not even where pairs of the pool have context
        small['train']['teacher_margin'] = 0
    if (small['train'].get('micro_batch_size') or train['batch_size_per_gpu']) < train['batch_size_per_gpu']:
        small['train']['micro_batch_size'] = 1
    train['batch_size_per_gpu'] = min(2, train['batch_size_per_gpu'])
    scenario = Scenario.read(small)
    if scenario.faces:
        return small
    whole = scenario.input_crop
    for side in (*(side for side in SIDES if side < whole), whole):
        train['gt_size'] = small['gt_size'] = side * scenario.scale
        try:
            check_crop(scenario, cast)
            break
        except UserError:
            if side == whole:
                raise
    return small


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Small tensors gain nothing by more threads, which wait for each other where other programs keep cores busy."""
    most = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(most)


@contextlib.contextmanager
def untouched(cuda: bool) -> Iterator[None]:
    """Puts back what building and training a model changes outside of it; nothing is logged.

    Args:
        cuda: Whether it works on the current GPU.
    """
    logger = logging.getLogger('basicsr')
    known, disabled = dict(basicsr_logger.initialized_logger), logger.disabled
    device = torch.device('cuda', torch.cuda.current_device()) if cuda else None
    basicsr_logger.initialized_logger['basicsr'] = logger.disabled = True
    try:
        with aside(device=device):
            yield
    finally:
        logger.disabled = disabled
        basicsr_logger.initialized_logger.clear()
        basicsr_logger.initialized_logger.update(known)
        if cuda:
            gc.collect()  # hooks and networks hold each other
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
