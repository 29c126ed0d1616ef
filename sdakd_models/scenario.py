"""What a run is, read once from its completed options and typed: stages, terms, teachers, discriminators, sizes.

Checks and model take the :class:`Scenario`; the mapping of the option file goes on to BasicSR only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdakd.compat import UserError, near
from sdakd_models.options import (
    DiscriminatorBlock,
    Logger,
    TeacherBlock,
    TermBlock,
    Train,
    gan_term,
    read_discriminators,
    read_teachers,
    read_term,
    read_train,
    typed,
)
from sdakd_models.registry import TERMS, term_options
from sdakd_models.stages import Plan, Stage

FACES = 'SDAKDGCFSRModel'


@dataclass(frozen=True)
class Scenario:
    """A run.

    Attributes:
        train: The block ``train:`` without the blocks of terms.
        plan: Its stages.
        active: The terms that are on, by stage: those that it names, less those whose block is null.
        terms: The blocks of the terms of all stages, by term; ``gan`` and ``gan:<name>`` are among them.
        teachers: The teachers that a term compares with or whose images a discriminator sees, by name.
        discriminators: Those that some stage switches on, by name.
        network_g: The student's options; None where discriminators alone are trained.
        file: The completed options, for what is BasicSR's: data sets, paths, validation, logger, degradation.
    """

    train: Train
    plan: Plan
    active: dict[str, list[str]]
    terms: dict[str, TermBlock]
    teachers: dict[str, TeacherBlock]
    discriminators: dict[str, DiscriminatorBlock]
    network_g: dict | None
    file: Mapping

    @classmethod
    def read(cls, opt: Mapping) -> Scenario:
        """Reads completed options.

        Raises:
            UserError: A block has an unknown key, lacks one or has a value of the wrong kind, or a stage names a term,
                a teacher or a discriminator that is not there; with the key.
        """
        train = read_train(opt, term_options())
        plan = train.plan()
        declared, teachers = read_discriminators(opt), read_teachers(opt)
        active, blocks = {}, {}
        for name, stage in zip(plan.names, plan.stages, strict=True):
            where = f'train:stages:{name}'
            _check_names(stage, declared, where)
            active[name] = [term for term in stage.terms if opt['train'].get(f'{term}_opt', '') is not None]
            for term in active[name]:
                blocks[term] = blocks.get(term) or _read_block(opt, term, declared, where)
        used = {name: entry for name, entry in declared.items() if entry.term in blocks}
        needed = {teacher for term, block in blocks.items() for teacher in teachers_of(block)}
        if any(entry.sees_teacher for entry in used.values()):
            needed.add('teacher')
        for name in needed - teachers.keys():
            where = 'teacher' if name == 'teacher' else f'teachers:{name}'
            raise UserError(f'{where}: the block is missing, but a stage has a term that compares with a teacher.')
        order = sorted(needed, key=lambda name: (name != 'teacher', name))
        student = dict(opt['network_g']) if opt.get('network_g') else None
        return cls(train, plan, active, blocks, {name: teachers[name] for name in order}, used, student, opt)

    # --------------------------------------------------------------------------------------------------- what it is

    @property
    def datasets(self) -> Mapping:
        return self.file['datasets']

    @property
    def path(self) -> Mapping:
        return self.file.get('path') or {}

    @property
    def val(self) -> Mapping:
        return self.file.get('val') or {}

    @property
    def logger(self) -> Logger:
        return typed(Logger, self.file.get('logger') or {}, 'logger')

    @property
    def val_freq(self) -> int | None:
        """Iterations between two validations; None: there is none."""
        sets = any(phase.startswith('val') for phase in self.datasets)
        return self.val.get('val_freq') if sets else None

    @property
    def best_by(self) -> str | None:
        """The entry of ``val:metrics`` by which ``logger:keep_best`` keeps the best checkpoint."""
        wanted = self.logger.keep_best
        return next(iter(self.val.get('metrics') or ()), None) if wanted is True else wanted or None

    @property
    def model_type(self) -> str:
        return self.file['model_type']

    @property
    def faces(self) -> bool:
        """Whole faces of one size, without borders."""
        return self.model_type == FACES

    @property
    def degrades(self) -> bool:
        """Whether inputs are made while training, by Real-ESRGAN's degradation."""
        return 'RealESRGAN' in self.model_type and self.file.get('high_order_degradation', True)

    @property
    def root(self) -> Path:
        """The folder that holds ``experiments/``."""
        return Path(self.path['experiments_root']).parents[1]

    @property
    def resumes(self) -> bool:
        return bool(self.path.get('resume_state'))

    @property
    def scale(self) -> int:
        return self.file.get('scale') or 1

    # ------------------------------------------------------------------------------------------------ sizes of crops

    @property
    def crop(self) -> int:
        """Side of a training crop of the ground truth in pixels."""
        train = self.datasets.get('train', {})
        return self.file.get('gt_size') or train.get('gt_size') or train.get('out_size') or 128

    @property
    def input_crop(self) -> int:
        """Side of a training crop in input pixels."""
        return self.crop // self.scale

    @property
    def margin(self) -> int:
        """``train:teacher_margin``, or its default; whole faces have no border."""
        if self.train.teacher_margin is not None:
            return self.train.teacher_margin
        return 0 if self.faces else min(8, self.input_crop // 4)

    @property
    def border(self) -> int:
        """Input pixels that comparisons with teachers leave out: the margin, unless all their answers have context.

        They have it where they come from a cache of whole images, or from pairs of the pool, which are larger than
        crops by the margin. The student's own border is trained only then, or by terms that look at no teacher.
        """
        entries = self.teachers.values()
        pooled = self.train.pool_reuse > 1 and not any(entry.cotrain for entry in entries)
        return 0 if pooled or (entries and all(entry.cache for entry in entries)) else self.margin

    @property
    def inside(self) -> int:
        """Side in input pixels of what comparisons with a teacher see of a crop."""
        return self.input_crop - 2 * self.border if self.teachers else self.input_crop

    # ---------------------------------------------------------------------------------------------------------- terms

    @property
    def shares(self) -> dict[str, float]:
        """The shares of the gradient that terms ask for, by term."""
        return {term: block.share for term, block in self.terms.items() if block.share is not None}

    @property
    def own_terms(self) -> set[str]:
        """The terms that make a method what it is: those that need a teacher, all discriminators but the student's."""
        own = {term for term, block in self.terms.items() if teachers_of(block)}
        return own | {entry.term for name, entry in self.discriminators.items() if name != 'student'}

    def leaves_border(self, stage: str) -> bool:
        """Whether all terms of a stage compare with a teacher, which sees nothing of the border of crops."""
        blind = {entry.term for entry in self.discriminators.values() if entry.sees_teacher}
        return all(teachers_of(self.terms[term]) or term in blind for term in self.active[stage])


def teachers_of(block: TermBlock) -> Iterable[str]:
    """The teachers that a term compares with: its option ``teachers``, or ``teacher`` where it needs one."""
    if block.name not in TERMS or not TERMS[block.name].needs_teacher:
        return ()
    return getattr(block.options, 'teachers', ('teacher',))


def _check_names(stage: Stage, declared: Mapping[str, DiscriminatorBlock], where: str) -> None:
    """The terms of a stage and their discriminators exist."""
    for term in stage.terms:
        kind, _, which = term.partition(':')
        which = which or 'student'
        if kind == 'gan' and which not in declared:
            need = 'network_d' if which == 'student' else f'discriminators:{which}'
            raise UserError(
                f'{where}:terms: the term {term!r} needs the discriminator {which!r}, which is not defined: write '
                f'{need}, or take the term out.'
            )
        if kind != 'gan' and term not in TERMS:
            known = {*TERMS, *map(gan_term, {'student', *declared})}
            raise UserError(f'{where}:terms: unknown term {term!r}; {near(term, known)}.')


def _read_block(opt: Mapping, term: str, declared: Mapping[str, DiscriminatorBlock], where: str) -> TermBlock:
    """The block of a term, which a stage has."""
    if term in TERMS:
        key, own = f'train:{TERMS[term].option}', (TERMS[term].Options,)
        options = opt['train'].get(TERMS[term].option)
    else:
        entry = declared[term.partition(':')[2] or 'student']
        key, own = (entry.key('gan_opt') if entry.gan_opt else 'train:gan_opt'), ()
        options = entry.gan_opt or opt['train'].get('gan_opt')
    if options is None:
        raise UserError(f'{key}: the block is missing, but {where} has the term {term!r}.')
    return read_term(term, options, key, *own)
