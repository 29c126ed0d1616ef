"""The rows of a benchmark: which stage, precision and use of the pool each is, and the options of its model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdakd.commands.interface import one_of
from sdakd.compat import UserError, no_file
from sdakd_data.pool import ROOM
from sdakd_models.launch import check_options
from sdakd_models.options import TeacherBlock, Train, typed
from sdakd_models.reader import read_run
from sdakd_models.scenario import FACES

LONG = 10**6  # iterations of a stage, and between two of what is done in few steps only
BEGIN = 10**4  # the step of a stage that is timed first: shares have found their weights by then
BASICSR, PLAIN = 'BasicSR', 'SDAKD without teacher'


@dataclass
class Row:
    """One way to make a step: what its model is made of, and what was found; times in seconds.

    Args:
        step: What the table calls it: BasicSR, the plain step, or a stage.
        stage: The stage's name in the options.
        precision: ``train:precision``, behind a stroke ``teacher:precision``.
        reuse: ``train:pool_reuse``.
        cache: Whether the teachers' answers are at hand.
        options: Completed options of its model.
    """

    step: str
    stage: str
    precision: str
    reuse: int
    cache: bool
    compiled: bool
    options: dict
    paying: list[float] = field(default_factory=list)  # steps for which a batch enters the pool; without one, all
    free: list[float] = field(default_factory=list)
    parts: dict[bool, list[dict[str, float]]] = field(default_factory=lambda: {True: [], False: []})  # by paying
    memory: float | None = None
    error: str | None = None

    @property
    def extras(self) -> str:
        """What distinguishes it from another row of its step and precision."""
        found = [f'reuse {self.reuse}'] if self.reuse > 1 else []
        return ', '.join([*found, *(['cache'] if self.cache else []), *(['compile'] if self.compiled else [])])

    def __str__(self) -> str:
        return ' '.join(filter(None, (self.step, self.precision, self.extras)))

    def fail(self, error: BaseException) -> None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        self.error, self.paying, self.free, self.memory = lines[0][:300], [], [], None

    def average(self, value: Any) -> float | None:
        """A statistic of a step: of those that pay and of those that do not, as often as each happens.

        Args:
            value: The statistic of a list of seconds.
        """
        if not self.paying or (self.reuse > 1 and not self.free):
            return None
        free = value(self.free) if self.free else 0.0
        return (value(self.paying) + (self.reuse - 1) * free) / self.reuse

    def breakdown(self) -> dict[str, float]:
        """Milliseconds of a step by part, means."""
        found: dict[str, float] = {}
        for pays, steps in self.parts.items():
            share = (1 if pays else self.reuse - 1) / self.reuse
            for parts in steps:
                for part, seconds in parts.items():
                    found[part] = found.get(part, 0.0) + 1e3 * seconds * share / len(steps)
        return found


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Args:
        opt: Options as they were read, with stand-ins.
        root: The folder of the runs.
        crop: Side of a crop of the ground truth.
        stages: Names of stages; None for all.
    """

    opt: Mapping
    root: Path
    file: str
    device: str
    crop: int
    stages: list[str] | None
    precisions: list[str]
    reuse: list[int]
    cache: bool
    compiled: bool

    def rows(self) -> list[Row]:
        """All rows; the first is the base of the ratios.

        Raises:
            UserError: The options are refused.
        """
        found: list[Row] = []
        plain = plain_options(self.opt)
        if plain is not None and self.opt.get('model_type') != FACES:
            from sdakd.commands.bench_train import rival

            done = self.complete(plain, 'fp32', 1)
            # on a GPU, BasicSR's convolutions have TF32 unless torch is told otherwise
            for precision in ('fp32', 'tf32') if self.device == 'cuda' else ('fp32',):
                options = rival.options(done) | {'allow_tf32': precision == 'tf32'}
                found.append(Row(BASICSR, '', precision, 1, False, False, options))
        for opt in filter(None, (plain, self.opt)):
            for precision in self.precisions:
                for reuse in self.reuse:
                    for cache in (False, True) if self.cache and opt is self.opt and reuse == 1 else (False,):
                        done = self.complete(opt, precision, reuse, cache)
                        found += [
                            Row(PLAIN if opt is plain else name, name, precision, reuse, cache, self.compiled, done)
                            for name in done['train']['stages']
                            if opt is plain or self.stages is None or name in self.stages
                        ]
        # a step of each kind comes with all its variants, in the order of the file
        names = list(dict.fromkeys(row.step for row in found))
        return sorted(found, key=lambda row: names.index(row.step))

    def complete(self, opt: Mapping, precision: str, reuse: int, cache: bool = False) -> dict:
        """Options of a variant, completed and checked."""
        opt = deepcopy(dict(opt))
        train, data = opt['train'], opt['datasets']['train']
        train['precision'], _, teacher = precision.partition('/')
        if teacher and opt.get('teacher'):
            opt['teacher']['precision'] = teacher
        if self.compiled:
            train['compile'] = True
        if cache:
            for name, entry in {'teacher': opt.get('teacher'), **(opt.get('teachers') or {})}.items():
                if entry:
                    data |= {key: False for key in ('use_hflip', 'use_rot') if key in data}  # maps cannot be flipped
                    entry['cache'] = str(self.root / 'answers' / name)
        train['pool_reuse'] = reuse
        batch = data.get('batch_size_per_gpu')
        if isinstance(batch, int) and batch > 0:
            multiple = math.lcm(batch, reuse)
            opt['queue_size'] = multiple * math.ceil(2 * batch / multiple)
        if reuse > 1 and not degrades(opt):
            opt['gt_size'], data['gt_size'] = self.crop, largest_crop(opt, [reuse])
        check_options(opt, str(self.root), self.file, rehearses=False)
        return opt


def degrades(opt: Mapping) -> bool:
    """Whether inputs are made while training."""
    return 'RealESRGAN' in str(opt.get('model_type')) and opt.get('high_order_degradation', True) is not False


def crop_of(opt: Mapping) -> int:
    """Side of a crop of the ground truth, as :class:`sdakd_models.scenario.Scenario` tells it."""
    data = opt['datasets']['train']
    return opt.get('gt_size') or data.get('gt_size') or data.get('out_size') or 128


def largest_crop(opt: Mapping, reuse: list[int]) -> int:
    """Side of what the loader cuts out: pairs that are reused are larger than their crops."""
    crop, scale, margin = crop_of(opt), opt.get('scale') or 1, opt['train'].get('teacher_margin')
    if degrades(opt) or max(reuse, default=1) == 1:
        return crop
    return crop + (2 * (min(8, crop // scale // 4) if margin is None else margin) + ROOM) * scale


def read(file: str, force_yml: Iterable[str], teacher: str | None) -> dict:
    """Reads an option file.

    Args:
        file: Its path.
        force_yml: Changes.
        teacher: The file to take for the teacher's.

    Raises:
        UserError: It is none, or no training; with the file's name.
    """
    changes = list(force_yml)
    if teacher is not None:
        if reason := no_file(teacher):
            raise UserError('-t', f'the file {teacher} {reason}.')
        # as YAML writes it: a path may hold what YAML reads otherwise
        changes += [f'teacher:weights={json.dumps(teacher)}', 'teacher:param_key=~']
    opt = read_run(file, changes)
    if (lack := unusable(opt)) is not None:
        raise lack.within(file)
    return opt


def check_precisions(names: Iterable[str]) -> None:
    """Refuses what is no precision of a training or of a teacher.

    Raises:
        UserError: With near names.
    """
    for name in names:
        own, stroke, teacher = name.partition('/')
        try:
            typed(Train, {'stages': {'one': {}}, 'precision': own}, 'train')
            if stroke:
                typed(TeacherBlock, {'weights': 'one', 'precision': teacher}, 'teacher')
        except UserError as error:
            raise error.at('--precisions') from None
        except UnicodeEncodeError:
            raise UserError('--precisions', f'{name!a} is no precision.') from None


def settle(opt: dict, device: str, batch: int | None, crop: int | None, perceptual: bool) -> None:
    """Has options measure steps alone, in place: nothing is resumed, saved, validated or logged."""
    data = opt['datasets']['train']
    opt |= {'name': 'bench', 'path': {}, 'datasets': {'train': data}, 'num_gpu': int(device == 'cuda')}
    opt['logger'] = {'print_freq': LONG, 'save_checkpoint_freq': LONG, 'use_tb_logger': False}
    opt.pop('val', None)
    opt.setdefault('manual_seed', 0)
    data |= {'num_worker_per_gpu': 0, 'prefetch_mode': None, 'pin_memory': False, 'persistent_workers': False}
    if batch is not None:
        data['batch_size_per_gpu'] = batch
    if crop is not None:
        if 'gt_size' in opt or degrades(opt):
            opt['gt_size'] = crop
        data['gt_size'] = crop
    train = opt['train']
    train['share_freq'] = LONG
    train.pop('start_stage', None)
    for stage in train['stages'].values():
        if isinstance(stage, dict):
            stage['iters'] = LONG
    if not perceptual and 'perceptual_opt' in train:
        train['perceptual_opt'] = None


def plain_options(opt: Mapping) -> dict | None:
    """Options of a step without teacher: the same student, discriminator, batch and losses, but for the teacher's.

    Returns:
        The options with one stage of the terms pixel, perceptual and gan, the last two where the file has them; None
        where discriminators alone are trained.
    """
    if not opt.get('network_g'):
        return None
    plain = deepcopy(dict(opt))
    train = plain['train']
    judge = _discriminator(opt)
    losses = {'pixel': train.get('pixel_opt') or train.get('output_opt') or {'type': 'L1Loss', 'reduction': 'mean'}}
    if train.get('perceptual_opt'):
        losses['perceptual'] = train['perceptual_opt']
    if judge is not None:
        plain['network_d'], losses['gan'] = judge
    else:
        plain.pop('network_d', None)
    for key in ('teacher', 'teachers', 'discriminators'):
        plain.pop(key, None)
    for key in [key for key in train if key.endswith('_opt')]:
        del train[key]
    if opt.get('model_type') != FACES:
        train.pop('r1_reg_weight', None)  # BasicSR has none
    for term, block in losses.items():
        train[f'{term}_opt'] = {key: value for key, value in block.items() if key not in ('share', 'teachers')}
    stage = {'iters': LONG, 'lr_g': 1e-4, 'terms': list(losses)} | ({'lr_d': 1e-4} if judge else {})
    train['stages'] = {'plain': stage}
    return plain


def _discriminator(opt: Mapping) -> tuple[Mapping, Mapping] | None:
    """Network and GAN loss of the discriminator that the student has, or of the first that trains it."""
    train = opt['train']
    stages = [stage for stage in train['stages'].values() if isinstance(stage, Mapping)]
    terms = {term for stage in stages for term in stage.get('terms') or ()}
    if opt.get('network_d') and 'gan' in terms and train.get('gan_opt'):
        return opt['network_d'], train['gan_opt']
    for name, entry in (opt.get('discriminators') or {}).items():
        loss = entry.get('gan_opt') or train.get('gan_opt')
        if f'gan:{name}' in terms and entry.get('trains_student', True) and loss:
            return entry['network'], loss
    return None


def check_stages(opt: Mapping, wanted: list[str] | None) -> None:
    """Refuses stages that the file does not have.

    Raises:
        UserError: With near names.
    """
    for name in wanted or ():
        one_of(name, opt['train']['stages'], '--stages')


def unusable(opt: Mapping) -> UserError | None:
    """What options lack to be timed at all."""
    for block in (opt.get('datasets'), opt.get('train')):
        if not isinstance(block, Mapping):
            key = 'datasets' if block is opt.get('datasets') else 'train'
            return UserError(key, 'write a mapping of keys and values here.')
    if not isinstance(opt['datasets'].get('train'), Mapping):
        return UserError('datasets:train', 'the data set to train on is missing.')
    if not isinstance(opt['train'].get('stages'), Mapping) or not opt['train']['stages']:
        return UserError('train:stages', 'there is no stage to time; write one.')
    return None
