"""Keys at the top of the option file, and the values of ``train:`` that depend on machine and data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch

from sdakd.compat import Mistakes, near
from sdakd_models.scenario import Scenario

KNOWN_TOP_LEVEL = {
    'name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'datasets', 'network_g', 'network_d', 'teacher',
    'teachers', 'discriminators', 'path', 'train', 'val', 'logger', 'dist_params', 'find_unused_parameters',
    'num_threads', 'extends', 'imports',
}  # fmt: skip
SLIP = 0.85  # how much an unknown key, legal in BasicSR, looks like a known one
BLOCKS = ('datasets', 'network_g', 'network_d', 'teacher', 'path', 'val', 'logger')  # mappings, where they are there


def check_top_level(opt: Mapping) -> None:
    """Unknown keys are legal in BasicSR, but one that looks like a known one is a slip.

    Raises:
        UserError: With near names; or a block is no mapping.
    """
    with Mistakes() as mistakes:
        for key in opt:
            if key not in KNOWN_TOP_LEVEL and difflib.get_close_matches(str(key), KNOWN_TOP_LEVEL, cutoff=SLIP):
                mistakes.add(str(key), f'this key is not known; {near(str(key), KNOWN_TOP_LEVEL)}.')
        for key in BLOCKS:
            if opt.get(key) and not isinstance(opt[key], Mapping):
                mistakes.add(key, f'write a mapping of keys and values here, not {opt[key]!r}.')


def check(scenario: Scenario) -> None:
    """What ``train:`` asks for, machine and stages have.

    Raises:
        UserError: With the key.
    """
    train, total = scenario.train, scenario.plan.total_iter
    threads = scenario.file.get('num_threads', 'auto')
    with Mistakes() as mistakes:
        if threads != 'auto' and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            mistakes.add('num_threads', f'write auto or a number of threads of at least 1, not {threads!r}.')
        if train.precision == 'bf16' and scenario.file['num_gpu'] and not torch.cuda.is_bf16_supported():
            mistakes.add('train:precision', 'this GPU cannot compute in bfloat16; write fp32.')
        if train.total_iter not in (None, total) and scenario.whole:
            mistakes.add('train:total_iter', f'the stages last {total:,d} iterations; leave this key out.')
