"""Keys at the top of the option file, and the values of ``train:`` that depend on machine and data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch

from sdakd.compat import UserError, near
from sdakd_models.scenario import Scenario

KNOWN_TOP_LEVEL = {
    'name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'datasets', 'network_g', 'network_d', 'teacher',
    'teachers', 'discriminators', 'path', 'train', 'val', 'logger', 'dist_params', 'find_unused_parameters',
    'num_threads', 'extends', 'imports',
}  # fmt: skip


def check_top_level(opt: Mapping) -> None:
    """Unknown keys are legal in BasicSR, but one that looks like a known one is a slip.

    Raises:
        UserError: With near names; or a block is no mapping.
    """
    for key in opt:
        if key not in KNOWN_TOP_LEVEL and difflib.get_close_matches(key, KNOWN_TOP_LEVEL, cutoff=0.85):
            raise UserError(f'{key}: this key is not known; {near(key, KNOWN_TOP_LEVEL)}.')
    for key in ('network_g', 'network_d', 'teacher'):
        if opt.get(key) and not isinstance(opt[key], Mapping):
            raise UserError(f'{key}: write a mapping of keys and values here, not {opt[key]!r}.')


def check(scenario: Scenario) -> None:
    """What ``train:`` asks for, machine, stages and data have.

    Raises:
        UserError: With the key.
    """
    train, total = scenario.train, scenario.plan.total_iter
    threads = scenario.file.get('num_threads', 'auto')
    if threads != 'auto' and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UserError('num_threads', f'write auto or a number of threads of at least 1, not {threads!r}.')
    if train.precision == 'bf16' and scenario.file['num_gpu'] and not torch.cuda.is_bf16_supported():
        raise train.error('this GPU cannot compute in bfloat16; write fp32.', 'precision')
    if train.total_iter not in (None, total):
        raise train.error(f'the stages last {total:,d} iterations; leave this key out.', 'total_iter')
    if train.pool_reuse > 1 and not scenario.degrades:
        sentence = "it is for Real-ESRGAN's degradation in training; leave it out for paired data."
        raise train.error(sentence, 'pool_reuse')
