"""The number of threads of a training on the CPU: ``num_threads``, OMP_NUM_THREADS, a continued run's, or measured."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger

from sdakd_arch.threads import choose_threads, threads_of
from sdakd_models.scenario import Scenario

ROUND = 0.1  # seconds that a measured step may take before its batch is smaller than the run's


def settle_threads(opt: dict, model: BaseModel) -> None:
    """Sets the number of threads for a run that begins; what it says is kept in ``opt['threads']`` for the log.

    Args:
        opt: The completed options.
        model: The model of a rehearsal, which is thrown away: its steps on crops of the run's size are timed.
    """
    wanted = opt.get('num_threads') or 'auto'
    if wanted != 'auto':
        torch.set_num_threads(wanted)
        opt['threads'] = f'{threads_of(wanted)}, as num_threads says'
    elif not opt['num_gpu'] and not opt['path'].get('resume_state'):
        scenario, plan = Scenario.read(opt), model.plan
        end, stage = max(zip(plan.ends, plan.stages, strict=True), key=lambda each: each[1].iters)

        def step(number: int) -> None:
            model.feed_data(model.noise_batch(scenario, number))
            model.optimize_parameters(end - stage.iters + 1)

        number = 1
        if not os.environ.get('OMP_NUM_THREADS'):
            most = torch.get_num_threads()
            torch.set_num_threads(1)
            step(1)
            begun = time.perf_counter()
            step(1)
            spent = time.perf_counter() - begun
            torch.set_num_threads(most)
            number = max(1, min(int(ROUND / spent), scenario.datasets['train']['batch_size_per_gpu']))
        images = f'a step of {number} image{"s" if number > 1 else ""}'
        said: list[str] = []
        count = choose_threads(lambda: step(number), each=images, processes=opt['world_size'], say=said.append)
        if opt['dist']:  # sums of all processes are of one kind
            chosen = torch.tensor(count)
            torch.distributed.broadcast(chosen, 0)
            torch.set_num_threads(int(chosen))
        opt['threads'] = said[0]


def resume_threads(opt: Mapping, state: Mapping) -> None:
    """Gives a continued run the number of threads that it had: sums of another number differ in their last bits."""
    kept = state.get('threads')
    if kept and opt.get('num_threads', 'auto') == 'auto' and not opt['num_gpu'] and 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(kept)
        get_root_logger().info(f'{threads_of(kept)}, as before')
