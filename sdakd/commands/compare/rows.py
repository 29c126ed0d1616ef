"""The rows of a comparison: methods from their option files, each under the budget's schedule or one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sdakd.commands.compare.config import Config, Length, StandIn, method_file
from sdakd.commands.compare.kinds import REGULARISED, setting_of
from sdakd.compat import UserError, near
from sdakd_models.reader import read_run

FREE = ('train:', 'discriminators:', 'teachers:', 'network_d:', 'path:pretrain_network_d')  # a method's own keys
FACES_LAYER = 'final_linear.1:input'  # what the last layer of GCFSR's discriminator takes
PLACEBO = 'teacher:shuffle'  # what a row may change of the teacher that all share


@dataclass
class Row:
    """One line of the comparison: a method under a schedule.

    Args:
        name: What tables call it.
        method: The method's name.
        file: Its option file.
        options: That file's content, with the comparison's changes.
        weights: Keys of the weights that are searched.
        stages: Of this row: the terms are the method's, everything else the schedule's.
        seeds: Of the comparison's, those with which it is trained.
        own_schedule: Whether the stages are not the budget's.
    """

    name: str
    method: str
    file: Path
    options: dict
    weights: list[str]
    stages: dict[str, dict]
    seeds: list[int]
    own_schedule: bool = False

    @property
    def iterations(self) -> int:
        return sum(stage['iters'] for stage in self.stages.values())

    @property
    def placebo(self) -> int | None:
        """The seed of the teacher's shuffled weights; None where the teacher is as it is."""
        return self.options['teacher'].get('shuffle')

    def own_terms(self, reference: Row) -> set[str]:
        """The terms that this row has in some stage and the reference in none."""
        return self._terms() - reference._terms()

    def _terms(self) -> set[str]:
        return {term for stage in self.stages.values() for term in stage['terms']}


def look_up(options: Mapping, key: str, where: str) -> tuple[dict, str]:
    """The block that holds ``key`` (``train:feature_opt:loss_weight``) and the key's last part.

    Raises:
        UserError: There is no such key; with near names.
    """
    block, parts = options, key.split(':')
    for depth, part in enumerate(parts):
        if not isinstance(block, Mapping) or part not in block:
            known = block if isinstance(block, Mapping) else ()
            raise UserError(where, f'there is no {":".join(parts[: depth + 1])}; {near(part, known)}.')
        if depth == len(parts) - 1:
            return block, part
        block = block[part]
    raise AssertionError(key)


def schedule(lengths: Mapping[str, Length], stages: Mapping[str, Mapping], where: str) -> dict[str, dict]:
    """A method's stages with the lengths and rates of the budget, iteration for iteration the same for all methods.

    A stage that only the method has shares the budget's stage before it, as long as in the method's file in proportion.
    A stage that the method lacks lengthens the one after it, or the last.

    Raises:
        UserError: The method begins with a stage that the budget does not know, or has another order.
    """
    groups: dict[str, list[str]] = {}
    for name in stages:
        if name in lengths:
            groups[name] = [name]
        elif groups:
            groups[list(groups)[-1]].append(name)
        else:
            raise UserError(where, f'its first stage {name!r} is none of budget:stages; {near(name, lengths)}.')
    if [name for name in lengths if name in groups] != list(groups):
        raise UserError(where, f'its stages {", ".join(groups)} have another order than budget:stages.')
    found, carried = {}, 0
    for name, length in lengths.items():
        if name not in groups:
            carried += length.iters
            continue
        members, total = groups[name], carried + length.iters
        shares = [stages[member]['iters'] for member in members]
        ends = [round(total * sum(shares[: number + 1]) / sum(shares)) for number in range(len(shares))]
        for number, member in enumerate(members):
            iters = ends[number] - (ends[number - 1] if number else 0)
            if iters < 1:
                raise UserError(
                    where, f'nothing of the {total} iterations is left for its stage {member!r}; write more.'
                )
            stage = {'iters': iters, 'lr_g': length.lr_g, 'terms': list(stages[member]['terms'])}
            if length.lr_d is not None:
                stage['lr_d'] = length.lr_d
            if length.warmup_iter and not number:
                stage['warmup_iter'] = length.warmup_iter
            if 'reset_optimizers' in stages[member]:
                stage['reset_optimizers'] = stages[member]['reset_optimizers']
            found[member] = stage
        carried = 0
    if carried:
        found[list(found)[-1]]['iters'] += carried
    return found


def read_rows(config: Config, base: Path) -> list[Row]:
    """Reads the methods' option files.

    Args:
        base: Folder of the comparison's own file.

    Raises:
        UserError: A file is missing or damaged, or a key of the comparison is not in it.
    """
    rows, setting, faces = [], setting_of(config), config.data.faces is not None
    for name, method in config.methods.items():
        where, file = f'methods:{name}', method_file(name, method, base)
        options = read_run(file, instead=setting)
        for key in ('network_g', 'train', 'teacher'):
            if not isinstance(options.get(key), Mapping):
                raise UserError(where, f'{file} has no block {key}, as an option file of a method must.')
        if options.get('students'):
            raise UserError(where, f'{file} trains several students, and a cell is one; name a file without students.')
        if faces:
            _of_faces(options)
        for key in (*REGULARISED, 'precision'):
            if options['train'].get(key) is not None and not (faces and key in REGULARISED):
                raise UserError(where, f'{file} has train:{key}, which a comparison does not know; leave it out.')
        if options['teacher'].get('cotrain'):
            raise UserError(
                where,
                f'{file} trains its teacher along (teacher:cotrain), but all methods of a comparison share '
                'one that is finished; leave the method out.',
            )
        options['teacher']['shuffle'] = method.options.get(PLACEBO)
        for key, value in method.options.items():
            if key == PLACEBO:
                continue
            if not key.startswith(FREE) or key.startswith('train:') and not key.split(':')[1].endswith('_opt'):
                raise UserError(
                    f'{where}:options',
                    f'{key} is equal for all methods; only terms, discriminators and teachers differ.',
                )
            block, last = look_up(options, key, f'{where}:options')
            block[last] = value
        _stand_in(options, config)
        weights = [method.weight] if isinstance(method.weight, str) else list(method.weight)
        # a block that the comparison goes without is null
        weights = [key for key in weights if options['train'].get(key.split(':')[1], '') is not None]
        for key in weights:
            if key.startswith('train:gan_opt:'):
                raise UserError(
                    f'{where}:weight',
                    f'{key} is the weight of the discriminator that all methods have, equal for all: search what the '
                    'method adds to it, or write [].',
                )
            block, last = look_up(options, key, f'{where}:weight')
            if isinstance(block[last], bool) or not isinstance(block[last], int | float):
                raise UserError(f'{where}:weight', f'{key} of {file} is {block[last]!r}, no number to search around.')
        stages = schedule(config.budget.stages, options['train']['stages'], where)
        rows.append(Row(name, name, file, options, weights, stages, config.seeds[: method.seeds]))
    named = dict.fromkeys(stage for row in rows for stage in row.options['train']['stages'])
    for where, stages in (
        ('budget', config.budget.stages),
        *((f'schedules:{n}', s.stages) for n, s in config.schedules.items()),
    ):
        unknown = next((stage for stage in stages if stage not in named), None)
        if unknown is not None:
            raise UserError(f'{where}:stages:{unknown}', f'no method has a stage of this name; {near(unknown, named)}.')
    for name, entry in config.schedules.items():
        row = next(row for row in rows if row.name == entry.method)
        stages = schedule(entry.stages, row.options['train']['stages'], f'schedules:{name}')
        rows.append(Row(name, row.method, row.file, row.options, row.weights, stages, row.seeds, own_schedule=True))
    return rows


def _of_faces(options: dict) -> None:
    """What files of methods say of Real-ESRGAN's discriminators, as GCFSR's are trained and built."""
    gan = options['train'].get('gan_opt')
    for entry in (options.get('discriminators') or {}).values():
        if entry.get('gan_opt') and gan:
            entry['gan_opt'] = {**entry['gan_opt'], 'gan_type': gan['gan_type']}
    for block in options['train'].values():
        if isinstance(block, dict) and str(block.get('discriminator_layer', '')).startswith('conv'):
            block['discriminator_layer'] = FACES_LAYER


def _stand_in(options: dict, config: Config) -> None:
    """Puts the comparison's backbone into every perceptual block, or leaves all of them out."""
    if config.perceptual == 'as published':
        return
    stand_in = msgspec.to_builtins(config.stand_in())
    train = options['train']
    for key, block in train.items():
        if not isinstance(block, Mapping) or not ('backbone' in block or block.get('type') == 'PerceptualLoss'):
            continue
        if stand_in is None:
            train[key] = None
        elif block.get('type') == 'PerceptualLoss':
            train[key] = {'type': 'BackbonePerceptualLoss', **stand_in}
        else:
            own = StandIn.__struct_fields__  # what the method's file says of its own backbone
            train[key] = {k: v for k, v in block.items() if k not in own} | stand_in
