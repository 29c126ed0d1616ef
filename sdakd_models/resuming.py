"""Before a run creates anything: it takes its folder, and loads the state to go on from."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Mapping

import torch
from basicsr.utils import check_resume

from sdakd.compat import UserError
from sdakd.lock import hold
from sdakd_models.loop import Loop
from sdakd_models.manifest import check_whole, seed_of
from sdakd_models.options import read_train
from sdakd_models.processes import spread
from sdakd_models.registry import term_options
from sdakd_models.scenario import Scenario, held_out_of


def seed_for(state: str | None) -> int:
    """The seed of a run whose options leave it open: as before where it goes on, and one for all processes."""
    seed = random.randint(1, 10000)
    with contextlib.suppress(UserError):  # a damaged manifest is told where the state is loaded
        seed = (state and seed_of(state)) or seed
    return spread(seed)


def begin(opt: dict, file: str, change_stages: bool = False) -> dict | None:
    """What BasicSR's loop calls before it creates or archives anything: takes the folder, and loads the state.

    Args:
        opt: The options.
        file: Where they come from.
        change_stages: Whether the stages may be others than the run's so far.

    Raises:
        UserError: Another process trains in the folder, or the state cannot be loaded.
    """
    if opt['rank'] == 0:
        take(opt, file)
    return load_resume_state(opt, change_stages)


def take(opt: Mapping, file: str) -> None:
    """Takes the folder of a run."""
    try:
        reason = hold(opt['path']['experiments_root'])
    except UserError as error:
        raise error.within(file) from None
    if reason:
        logging.getLogger('basicsr').warning(
            f'{opt["path"]["experiments_root"]} cannot be locked ({reason}): start no other run of this name.'
        )


def load_resume_state(opt: dict, change_stages: bool = False) -> dict | None:
    """Loads the training state to continue from, on the CPU: loading it into optimizers moves it where they are.

    Args:
        opt: The completed options.
        change_stages: Whether the stages may be others than the run's so far.

    Raises:
        UserError: The file is missing, cannot be read or lies beyond the end of the run, its checkpoint is not whole,
            or the stages or the images that are held out have changed.
    """
    path = opt['path'].get('resume_state')
    if not path:
        return None
    if not os.path.isfile(path):
        raise UserError(f'path:resume_state: the file {path} does not exist.')
    check_whole(path)
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
        iteration = state['iter']
    except Exception as error:  # torch, zipfile and pickle each raise their own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f'path:resume_state: {path} cannot be read as a training state ({reason[0][:200]}); delete it to continue '
            'from the one before.'
        ) from None
    plan = read_train(opt, term_options()).plan()
    if iteration > plan.total_iter:
        raise UserError(
            f'path:resume_state: {path} is at iteration {iteration:,d}, beyond the {plan.total_iter:,d} of the stages.'
        )
    if 'plan' in state and not change_stages and (change := plan.change(state['plan'])):
        raise UserError(
            f'train:stages{change}; resume with the stages of that run, or accept the change with --change_stages.'
        )
    if state.get('held_out', held := held_out_of(opt)) != held:
        raise UserError(
            f'{_key_of_held_out(opt)}: it was {state["held_out"]} when the run began, and is {held}, so that images '
            'that are held out would have been trained on; resume with the number of that run.'
        )
    if Loop.latest is not None:
        Loop.latest.iteration, Loop.latest.epoch = iteration, state['epoch']
    check_resume(opt, iteration)
    return state


def _key_of_held_out(opt: Mapping) -> str:
    """Where a file says how many images are held out; where it could, if it does not."""
    runs = (opt.get('students') or {'': opt}).values()
    entries = [entry for each in runs for entry in Scenario.read(each).discriminators.values() if entry.selective]
    return entries[0].key('selective:held_out') if entries else 'discriminators'
