"""The pool of pairs: its size, and the sizes of the pairs in it."""

from __future__ import annotations

import math

from sdakd.compat import Mistakes
from sdakd_data.pool import ROOM
from sdakd_models.scenario import Scenario


def check(scenario: Scenario) -> None:
    """The pool holds whole batches, ``pool_reuse`` times, and its pairs are larger than a crop by the margin.

    Raises:
        UserError: With the key.
    """
    opt, train, reuse = scenario.file, scenario.datasets.get('train', {}), scenario.train.pool_reuse
    if not scenario.degrades and reuse == 1:
        return
    batch, queue = train.get('batch_size_per_gpu'), opt.setdefault('queue_size', 180)
    with Mistakes() as mistakes:
        if isinstance(batch, int) and isinstance(queue, int) and batch > 0 and queue % batch:
            mistakes.add(
                'queue_size',
                f'the pair pool holds {queue} pairs, which the batch of {batch} does not divide; write '
                f'{math.ceil(queue / batch) * batch}.',
            )
        elif isinstance(queue, int) and queue % reuse:
            mistakes.add(
                'train:pool_reuse',
                f'{reuse} does not divide the pair pool (queue_size: {queue}); write a divisor of it.',
            )
        if scenario.degrades or reuse == 1:
            return
        for unfit, reason in (
            (scenario.faces, 'faces have no crops'),
            (any(entry.cache for entry in scenario.teachers.values()), 'teacher:cache has whole images already'),
        ):
            if unfit:
                mistakes.add('train:pool_reuse', f'{reason}; leave this key out.')
                return
        side = scenario.crop + (2 * scenario.margin + ROOM) * scenario.scale
        given = train.get('gt_size')
        if 'gt_size' not in opt or not isinstance(given, int) or given < side:
            mistakes.add(
                'datasets:train:gt_size',
                'with train:pool_reuse, pairs are larger than the crops that are drawn of them by teacher_margin and '
                f'{ROOM} input pixels; write {side} here, and the crop of {scenario.crop} as gt_size beside '
                'model_type.',
            )
