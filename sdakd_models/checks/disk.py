"""Room for the checkpoints of a run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from sdakd.compat import UserError
from sdakd_data.pool import ROOM
from sdakd_models.cast import Cast
from sdakd_models.scenario import Scenario

FLOAT = 4  # bytes
MOMENTS = 2  # of Adam, for every weight
POOLS = 2  # that stay, those of the newest checkpoints


def check(cast: Cast) -> str:
    """There is room for two checkpoints; says how much all of them take that stay.

    Raises:
        UserError: There is not.
    """
    scenario = cast.scenario
    one, pool = networks_of(cast), pool_of(cast)
    number = number_of(scenario)
    folder = Path(scenario.path['experiments_root'])
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    least, most = 2 * (one + pool), most_of(cast)
    if free < least:
        raise UserError(
            'path:experiments_root',
            f'two checkpoints take {size(least)}, and the disk of {there} has {size(free)} left; make room, or train '
            'in another folder.',
        )
    short = ', which is MORE THAN THERE IS' if most > free else ''
    kept = f'{number} that stay' if number > 1 else 'it'
    return f'A checkpoint takes about {size(one + pool)}, {kept} {size(most)} of {size(free)} on this disk{short}.'


def number_of(scenario: Scenario) -> int:
    """How many checkpoints of a run stay."""
    every, last = int(scenario.logger.save_checkpoint_freq), scenario.logger.keep_last
    ends = set(scenario.plan.ends)
    number = len({*range(every, scenario.plan.total_iter + 1, every), *ends})
    return number if last is None else min(number, last + len(ends) + (scenario.best_by is not None))


def most_of(cast: Cast) -> int:
    """Bytes of all checkpoints that stay while a run lasts."""
    number = number_of(cast.scenario)
    return number * networks_of(cast) + min(number, POOLS) * pool_of(cast)


def networks_of(cast: Cast) -> int:
    """Bytes of all players with their copies and optimizers."""
    copies = {player.name: 1 for player in cast.players}
    if cast.average is not None:
        copies['g'] = 2
    copies |= {teacher.player.name: 2 for teacher in cast.cotrained}
    return sum(
        FLOAT * (copies[player.name] + MOMENTS) * sum(each.numel() for each in player.bare.parameters())
        for player in cast.players
    )


def pool_of(cast: Cast) -> int:
    """Bytes of the pairs that wait, 8 bits a value, and of what teachers have made of them."""
    scenario = cast.scenario
    reuses = scenario.train.pool_reuse > 1
    if not reuses and not scenario.degrades:
        return 0
    side = scenario.input_crop + (2 * scenario.margin + ROOM if reuses else 0)
    pixels = 3 * side**2
    pair = pixels * (1 + scenario.scale**2)
    if reuses:
        pair += FLOAT * pixels * scenario.scale**2 * len(cast.teachers)
    return pair * scenario.file['queue_size']


def size(count: float) -> str:
    """Bytes in words, ``3.4 GiB``."""
    power = min(3, int(math.log2(max(count, 1))) // 10)
    value = count / 1024**power
    return f'{value:,.{int(value < 10 and power > 0)}f} {("bytes", "KiB", "MiB", "GiB")[power]}'
