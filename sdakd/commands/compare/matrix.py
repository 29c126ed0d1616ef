"""The cells of a comparison, method x width x seed, and the option file of each: equal except for the method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from sdakd import __version__
from sdakd.commands.compare.config import Config, locate
from sdakd.commands.compare.data import Images
from sdakd.commands.compare.kinds import kind_of
from sdakd.commands.compare.rows import Row, look_up
from sdakd.commands.compare.teacher import open_teacher
from sdakd.compat import UserError
from sdakd.files.runs import Run, digest, key_of
from sdakd_arch.families import family_of
from sdakd_arch.weights import save_whole
from sdakd_arch.width import build, build_on_meta, discriminator_of, initialise, scale_of, student_of

SUPERVISED = frozenset({'pixel', 'perceptual'})  # terms of a first stage that rows may share
MEASURED = 30  # times in a cell that the shares of the gradient are measured


@dataclass
class Matrix:
    """Everything that the option files of cells are made from.

    Args:
        config: The comparison.
        rows: Its methods.
        images: Its data.
        output: Its folder.
    """

    config: Config
    rows: list[Row]
    images: Images
    output: Path
    stand_ins: dict[str, str] = field(default_factory=dict)
    firsts: dict[str, str] = field(default_factory=dict)  # keys of shared first stages, by their students

    def __post_init__(self) -> None:
        found = open_teacher(self.config)
        self.teacher, self.network, self.scale = found.weights, found.network, found.scale
        self.kind = kind_of(self.config, self.network)
        folder = self.config.teacher_cache
        self.cache = {'cache': str(Path(folder).expanduser().absolute())} if folder else {}
        self.teaches = {'weights': str(self.teacher), 'network': dict(self.network), **found.keys, **self.cache}
        for ratio in self.config.ratios():
            self.student(ratio)
        if self.scale and self.config.budget.crop % self.scale:
            raise UserError('budget:crop', f'{self.config.budget.crop} must be a multiple of the scale {self.scale}.')
        self.guided = [row.name for row in self.rows if _named(row.options)]

    def student(self, ratio: Fraction) -> dict:
        """Options of the student of a width: a part of the teacher's channels, or of ``student``'s.

        Raises:
            UserError: It cannot be that narrow, cannot be built, or enlarges otherwise than its teacher.
        """
        if self.config.student is None:
            return student_of(self.network, float(ratio))
        try:
            network = student_of(self.config.student, float(ratio))
            scale = scale_of(build_on_meta(network, 'student'), 'student')
        except UserError as error:
            raise error.at('student') from None
        if scale != self.scale:
            raise UserError(
                'student', f'it enlarges by {scale}, and the teacher by {self.scale}; write one of {self.scale}.'
            )
        return network

    # ------------------------------------------------------------------------------------------------ option files

    def _shared(self, iterations: int, seed: int) -> dict:
        """What all option files have."""
        budget, kind = self.config.budget, self.kind
        folders = {key: str(path) for key, path in zip(kind.folders, self.images.train, strict=True)}
        return {
            **deepcopy(kind.beside),
            **({'scale': self.scale} if self.scale else {}),
            'num_gpu': 'auto',
            'manual_seed': seed,
            'datasets': {
                'train': {
                    'name': 'train',
                    **deepcopy(kind.dataset),
                    **folders,
                    'io_backend': {'type': 'disk'},
                    'num_worker_per_gpu': budget.workers,
                    'batch_size_per_gpu': budget.batch,
                    'prefetch_mode': None,
                }
            },
            'teacher': deepcopy(self.teaches),
            'logger': {
                'print_freq': max(1, min(100, iterations // 50)),
                'save_checkpoint_freq': max(1, math.ceil(iterations / budget.checkpoints)),
                'use_tb_logger': False,
            },
        }

    def discriminator_run(self) -> Run | None:
        """The training of the teacher's discriminator, where the comparison has one and a method needs it."""
        wanted = self.config.teacher_discriminator
        if wanted is None or not self.guided:
            return None
        row = next(row for row in self.rows if row.name == self.guided[0])
        network = self._discriminator(next(iter(_named(row.options)))['network'], row.options, self.network)
        entry = {'network': network, 'real': 'gt', 'fake': ['teacher'], 'trains_student': False}
        options = self._shared(wanted.iters, self.config.seeds[0]) | {
            'discriminators': {'teacher': entry},
            'path': {'resume_state': None},
            'train': {
                'precision': self.config.budget.precision,
                **deepcopy(self.kind.train | self.kind.judged),
                'optim_d': deepcopy(self.kind.optimizers['optim_d']),
                'stages': {'discriminator': {'iters': wanted.iters, 'lr_d': wanted.lr_d, 'terms': ['gan:teacher']}},
                'gan_opt': deepcopy(row.options['train']['gan_opt']),
            },
        }
        key = self._key(options)
        return Run('teacher_discriminator', options, self.output / 'cells', self.output, wanted.iters, key,
                   'net_d_teacher_latest.pth')  # fmt: skip

    def _student(self, network: dict, start: Path, stages: dict, terms: dict) -> dict:
        """What all option files have that train a student."""
        budget = self.config.budget
        return {
            'network_g': network,
            'path': {'pretrain_network_g': str(start), 'param_key_g': 'params', 'resume_state': None},
            'train': {
                'ema_decay': budget.ema_decay,
                'precision': budget.precision,
                **deepcopy(self.kind.train),
                'optim_g': deepcopy(self.kind.optimizers['optim_g']),
                'share_freq': max(1, sum(stage['iters'] for stage in stages.values()) // MEASURED),
                'stages': stages,
                **terms,
            },
        }

    def _first(self, row: Row) -> dict | None:
        """What decides a row's first stage, where other rows may share it; None where it is the row's alone.

        It is shared if it is the budget's first stage, holds nothing that is searched, and is not all there is.
        """
        name, length = next(iter(self.config.budget.stages.items()))
        own, stage = next(iter(row.stages.items()))
        if row.own_schedule or own != name or row.iterations == length.iters or stage['iters'] < length.iters:
            return None
        if not SUPERVISED.issuperset(stage['terms']):  # adapters and discriminators have a state of their own
            return None
        # a term without a block is one that the comparison goes without
        terms = [term for term in stage['terms'] if row.options['train'].get(f'{term}_opt') is not None]
        blocks = {f'{term}_opt': row.options['train'][f'{term}_opt'] for term in terms}
        if any(key.split(':')[1] in blocks for key in row.weights if key.startswith('train:')):
            return None
        stage = {**stage, 'iters': length.iters, 'terms': terms}
        return {'stages': {name: stage}, 'terms': blocks, 'imports': row.options.get('imports')}

    def _after_first(self, row: Row) -> dict:
        """A row's stages without the one that it shares."""
        stages = deepcopy(row.stages)
        name = next(iter(stages))
        stages[name]['iters'] -= next(iter(self.config.budget.stages.values())).iters
        stages[name].pop('warmup_iter', None)
        return stages if stages[name]['iters'] else {key: stage for key, stage in stages.items() if key != name}

    def first_run(self, row: Row, ratio: Fraction, seed: int) -> Run | None:
        """The training of the first stage, once for a seed and for all rows that begin alike.

        It is named after what it is, so that other rows, or another order of them, change nothing.
        """
        wanted = self._first(row)
        if wanted is None:
            return None
        stages, terms = deepcopy(wanted['stages']), deepcopy(wanted['terms'])
        iterations = sum(stage['iters'] for stage in stages.values())
        student = self.student(ratio)
        options = self._shared(iterations, seed) | self._student(student, self.start(ratio, seed), stages, terms)
        if wanted['imports']:
            options['imports'] = deepcopy(wanted['imports'])
        self._absolute(options, f'methods:{row.method}')
        # what rows begin with: lengths and rates are the budget's, and its change trains the same one again
        of_row = [{k: v for k, v in stage.items() if k in ('terms', 'reset_optimizers')} for stage in stages.values()]
        kind = {'stages': of_row, 'terms': terms, 'imports': wanted['imports']}
        name = f'first_stage_{key_of(kind, self._digests(options))[:6]}_w{_text(ratio)}_s{seed}'
        return Run(name, options, self.output / 'cells', self.output, iterations, self._key(options))

    def first_runs(self, ratio: Fraction, seed: int) -> list[Run]:
        """:meth:`first_run` of all rows, each once."""
        found = (self.first_run(row, ratio, seed) for row in self.rows if seed in row.seeds)
        return list({run.name: run for run in found if run is not None}.values())

    def options(self, row: Row, ratio: Fraction, seed: int, factor: float) -> dict:
        """The option file of a cell without its name: terms and discriminators are the row's, all else is shared."""
        method = deepcopy(row.options)
        for key in row.weights if factor != 1 else ():
            block, last = look_up(method, key, f'methods:{row.method}:weight')
            block[last] = float(f'{_scaled(block[last], factor, last == "share"):.6g}')
        student = self.student(ratio)
        terms = {key: value for key, value in method['train'].items() if key.endswith('_opt')}
        of_file = method['teacher'].get('network') or method['network_g'], method['network_g']
        if any(_trunk(one) != _trunk(other) for one, other in zip((self.network, student), of_file, strict=True)):
            for block in terms.values():  # layers of a network of another depth: the terms know good ones themselves
                if isinstance(block, dict):
                    block.pop('layers', None)
        first = self.first_run(row, ratio, seed)
        stages = deepcopy(row.stages) if first is None else self._after_first(row)
        iterations = sum(stage['iters'] for stage in stages.values())
        start = self.start(ratio, seed) if first is None else first.result
        if first is not None:
            self.firsts[str(start)] = first.key
        options = self._shared(iterations, seed) | self._student(student, start, stages, terms)
        options['train']['optim_d'] = deepcopy(self.kind.optimizers['optim_d'])
        if any('lr_d' in stage and any(term.startswith('gan') for term in stage['terms']) for stage in stages.values()):
            options['train'] |= self.kind.judged
        if row.placebo is not None:
            options['teacher']['shuffle'] = row.placebo
            if 'cache' in options['teacher']:  # its answers are others
                options['teacher']['cache'] += f'_shuffled_{row.placebo}'
        if method.get('network_d'):
            own = method.get('path') or {}
            options['network_d'] = dict(method['network_d'])
            if own.get('pretrain_network_d'):
                options['path'] |= {key: own.get(key) for key in ('pretrain_network_d', 'param_key_d')}
            else:
                options['network_d'] = self._discriminator(method['network_d'], method, student)
        for block in ('discriminators', 'teachers', 'imports'):
            if method.get(block):
                options[block] = deepcopy(method[block])
        trained = self.discriminator_run()
        for entry in (options.get('discriminators') or {}).values():
            if trained is not None and entry.get('weights'):
                entry['weights'] = str(trained.result)
                self.stand_ins[str(trained.result)] = trained.key
            if trained is not None or not entry.get('weights'):
                entry['network'] = self._discriminator(entry['network'], method, student)
        self._absolute(options, f'methods:{row.method}')
        return options

    def _discriminator(self, network: Mapping, method: Mapping, student: Mapping) -> dict:
        """A discriminator as wide as the method's file says: as its student, as its teacher, or neither of them."""
        family, teacher = family_of(network), method['teacher'].get('network')
        if self.scale is None:  # of faces: the published one, as wide
            narrow = None if family.channels else network.get('narrow', 1)  # Real-ESRGAN's is the teacher's
            as_student = narrow == method['network_g'].get('narrow', 1) != 1
            return discriminator_of(student if as_student else self.network)
        key, width = next(iter(family.channels), 'num_feat'), family.width(network)
        if width == family_of(method['network_g']).width(method['network_g']):
            return dict(network) | {key: family_of(student).width(student)}
        if width == (family_of(teacher).width(teacher) if teacher else 64):
            return dict(network) | {key: family_of(self.network).width(self.network)}
        return dict(network)

    def _absolute(self, options: dict, where: str) -> None:
        """Finds the files that a method's options name; the process runs in another folder."""
        blocks = {f'train:{key}': block for key, block in options['train'].items()}
        for name in ('discriminators', 'teachers'):
            blocks |= {f'{name}:{key}': block for key, block in (options.get(name) or {}).items()}
        named = [(block, 'weights', key) for key, block in blocks.items() if isinstance(block, dict)]
        for block, key, at in [*named, (options['path'], 'pretrain_network_d', 'path')]:
            if isinstance(block.get(key), str) and block[key] not in self.stand_ins:
                block[key] = str(locate(block[key], f'{where}: {at}:{key}'))

    def start(self, ratio: Fraction, seed: int) -> Path:
        """The student that every method of this width and seed starts from."""
        return self.output / 'starts' / f'w{_text(ratio)}_s{seed}.pth'

    def make_start(self, ratio: Fraction, seed: int) -> None:
        path, shapes = self.start(ratio, seed), _shapes(build_on_meta(self.student(ratio), 'network_g').state_dict())
        if path.is_file() and _shapes(torch.load(path, weights_only=True)['params']) == shapes:
            return  # one of another network is of an earlier option file
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(self.student(ratio), 'network_g')
            initialise(network)
        save_whole({'params': network.state_dict()}, path)

    # ------------------------------------------------------------------------------------------------------- cells

    def run(self, row: Row, ratio: Fraction, seed: int, factor: float) -> Run:
        """The training run of a cell."""
        options = self.options(row, ratio, seed, factor)
        changed = '' if factor == 1 else f'_x{factor:g}'
        name = f'{row.name}_w{_text(ratio)}_s{seed}{changed}'
        key = self._key(options)
        iterations = sum(stage['iters'] for stage in options['train']['stages'].values())
        return Run(name, options, self.output / 'cells', self.output, iterations, key)

    def _key(self, options: Mapping) -> str:
        """The key of a run: of what decides its result, not of how often it saves and how many load its images."""
        train = {key: value for key, value in options['datasets']['train'].items() if key != 'num_worker_per_gpu'}
        decides = {key: value for key, value in options.items() if key != 'logger'} | {'datasets': {'train': train}}
        return key_of(decides, self._digests(options), (__version__, self.images.identity))

    def _digests(self, options: Mapping) -> dict[str, str]:
        """What stands for each path in a key: the content."""
        for text in _texts(options):
            if text not in self.stand_ins and Path(text).is_absolute() and Path(text).is_file():
                self.stand_ins[text] = digest(text)
        found = {str(folder): side for folder, side in zip(self.images.train, ('gt', 'lq'), strict=False)}
        if folder := options['teacher'].get('cache'):  # a placebo's lies beside the others'
            found[folder] = 'cache'
        start = options['path'].get('pretrain_network_g', '')
        return {**self.stand_ins, **found, start: self.firsts.get(start, 'start')}


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _trunk(network: Mapping) -> tuple[str, list[str] | None]:
    """What layers are named after: the architecture and the steps of its depth."""
    return network['type'], family_of(network).trunk(build_on_meta(network, 'network_g'))


def _scaled(value: float, factor: float, is_share: bool) -> float:
    """A weight times a factor, or the share whose calibrated weight is so many times larger: its odds are scaled."""
    return factor * value / (1 - value + factor * value) if is_share else value * factor


def _named(options: Mapping) -> list[dict]:
    """The discriminators of a method that start from a file."""
    return [entry for entry in (options.get('discriminators') or {}).values() if entry.get('weights')]


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def _text(ratio: Fraction) -> str:
    return str(ratio).replace('/', '-')
