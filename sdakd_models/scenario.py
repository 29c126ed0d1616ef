"""What a run is, read once from its completed options and typed: stages, terms, teachers, discriminators, sizes.

Checks and model take the :class:`Scenario`; the mapping of the option file goes on to BasicSR only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import structs

from sdakd.compat import Mistakes, UserError, gathering, near
from sdakd_models.options import (
    DiscriminatorBlock,
    Logger,
    TeacherBlock,
    TermBlock,
    Train,
    gan_term,
    meant_train,
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
        sound: The stages that could be read with all their terms; a run has mistakes elsewhere.
    """

    train: Train
    plan: Plan
    active: dict[str, list[str]]
    terms: dict[str, TermBlock]
    teachers: dict[str, TeacherBlock]
    discriminators: dict[str, DiscriminatorBlock]
    network_g: dict | None
    file: Mapping
    sound: frozenset[str]

    @classmethod
    @gathering
    def read(cls, opt: Mapping, *, mistakes: Mistakes) -> Scenario:
        """Reads completed options.

        Returns:
            The run. With ``mistakes``, without the blocks that are wrong.

        Raises:
            UserError: A block has an unknown key, lacks one or has a value of the wrong kind, or a stage names a term,
                a teacher or a discriminator that is not there; each with its key.
        """
        train = read_train(opt, term_options(), mistakes=mistakes)
        plan = train.plan(mistakes=mistakes)
        options = meant_train(_mapping(opt.get('train')), term_options())
        declared = read_discriminators(opt, mistakes=mistakes)
        teachers = read_teachers(opt, mistakes=mistakes)
        active: dict[str, list[str]] = {}
        blocks: dict[str, TermBlock | None] = {}
        for name, stage in zip(plan.names, plan.stages, strict=True):
            where = f'train:stages:{name}'
            known = _known_terms(opt, stage, where, mistakes)
            active[name] = [term for term in known if options.get(f'{term}_opt', '') is not None]
            for term in active[name]:
                if term not in blocks:
                    blocks[term] = None
                    with mistakes.collect():
                        blocks[term] = _read_block(options, term, declared, where)
        terms = {term: block for term, block in blocks.items() if block is not None}
        used = {name: entry for name, entry in declared.items() if entry.term in blocks}
        needed = {teacher for block in terms.values() for teacher in teachers_of(block)}
        if any(entry.sees_teacher for entry in used.values()):
            needed.add('teacher')
        for name in sorted(needed - teachers.keys()):
            _miss_teacher(opt, name, mistakes)
        order = sorted(needed & teachers.keys(), key=lambda name: (name != 'teacher', name))
        sound = frozenset(
            name
            for name, used_terms in active.items()
            if not mistakes.about(f'train:stages:{name}') and terms.keys() >= set(used_terms)
        )
        student = dict(opt['network_g']) if opt.get('network_g') else None
        return cls(train, plan, active, terms, {name: teachers[name] for name in order}, used, student, opt, sound)

    def without(self, mistakes: Mistakes) -> Scenario:
        """The run without networks of which something is wrong, and without the terms that need one of them."""
        plain = {side: {} for side in ('optim_g', 'optim_d') if mistakes.about(f'train:{side}')}
        student = self.network_g
        if mistakes.about('network_g', 'path:pretrain_network_g') or _lacks_teacher(student):
            student = None
        teachers = {name: entry for name, entry in self.teachers.items() if not mistakes.about(entry.where)}
        discriminators = {
            name: entry
            for name, entry in self.discriminators.items()
            if not mistakes.about(entry.key('network'), entry.key('weights'), f'discriminators:{name}')
            and ('teacher' in teachers or not entry.sees_teacher)
            and not _lacks_teacher(entry.network)
        }
        terms = {
            term: block
            for term, block in self.terms.items()
            if term in TERMS
            and student is not None
            and teachers.keys() >= set(teachers_of(block))
            and getattr(block.options, 'discriminator', None) in (None, *discriminators)
        }
        gans = {entry.term for entry in discriminators.values()}
        terms |= {term: block for term, block in self.terms.items() if term in gans}
        discriminators = {name: entry for name, entry in discriminators.items() if entry.term in terms}
        return replace(
            self,
            train=structs.replace(self.train, **plain),
            network_g=student,
            teachers=teachers,
            discriminators=discriminators,
            terms=terms,
        )

    @property
    def whole(self) -> bool:
        """Whether all its stages could be read."""
        return bool(self.plan.names) and self.sound >= set(self.plan.names)

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

    @property
    def held_out(self) -> int:
        """Of so many training images one is held out, for discriminators that are activated selectively; 0: none."""
        found = [entry.selective.held_out for entry in self.discriminators.values() if entry.selective is not None]
        return min(found, default=0)

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

    def shown(self, stage: str) -> set[str]:
        """The teachers whose images something takes in a stage; of others, feature maps alone are compared."""
        active = self.active[stage]
        seen = {'teacher' for entry in self.discriminators.values() if entry.term in active and entry.sees_teacher}
        takers = (self.terms[term] for term in active if term in TERMS and TERMS[term].needs_image)
        return seen.union(*map(teachers_of, takers))

    def leaves_border(self, stage: str) -> bool:
        """Whether all terms of a stage compare with a teacher, which sees nothing of the border of crops."""
        blind = {entry.term for entry in self.discriminators.values() if entry.sees_teacher}
        return all(teachers_of(self.terms[term]) or term in blind for term in self.active[stage])


def held_out_of(opt: Mapping) -> int:
    """What a run of one student or of several holds out of its training images; see :attr:`Scenario.held_out`."""
    return max(Scenario.read(each).held_out for each in (opt.get('students') or {'': opt}).values())


def teachers_of(block: TermBlock) -> Iterable[str]:
    """The teachers that a term compares with: its option ``teachers``, or ``teacher`` where it needs one."""
    if block.name not in TERMS or not TERMS[block.name].needs_teacher:
        return ()
    return getattr(block.options, 'teachers', ('teacher',))


def _mapping(value: object) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def _lacks_teacher(network: object) -> bool:
    """Whether a network's width is still there, for want of a teacher to narrow."""
    return 'width' in _mapping(network) and 'type' not in _mapping(network)


def _miss_teacher(opt: Mapping, name: str, mistakes: Mistakes) -> None:
    """A teacher that a stage needs is not there, unless that follows from something else that is wrong."""
    where = 'teacher' if name == 'teacher' else f'teachers:{name}'
    unreadable = name != 'teacher' and not isinstance(opt.get('teachers') or {}, Mapping)
    # a width that lacks its teacher has said so
    if not unreadable and not mistakes.about(where, 'network_g:width', 'network_d:width'):
        mistakes.add(where, 'the block is missing, but a stage has a term that compares with a teacher.')


def _known_terms(opt: Mapping, stage: Stage, where: str, mistakes: Mistakes) -> list[str]:
    """The terms of a stage that exist, with their discriminators."""
    entries = opt.get('discriminators') or {}
    declared = {str(name) for name in entries} if isinstance(entries, Mapping) else None
    found = []
    for term in stage.terms:
        kind, _, which = term.partition(':')
        which = which or 'student'
        need = 'network_d' if which == 'student' else f'discriminators:{which}'
        there = opt.get('network_d') if which == 'student' else declared is None or which in declared
        if kind == 'gan' and not there and not mistakes.about(need):
            mistakes.add(
                f'{where}:terms',
                f'the term {term!r} needs the discriminator {which!r}, which is not defined: write {need}, or take '
                'the term out.',
            )
        elif kind != 'gan' and term not in TERMS:
            known = {*TERMS, *map(gan_term, {'student', *(declared or ())})}
            mistakes.add(f'{where}:terms', f'unknown term {term!r}; {near(term, known)}.')
        else:
            found.append(term)
    return found


def _read_block(
    options: Mapping, term: str, declared: Mapping[str, DiscriminatorBlock], where: str
) -> TermBlock | None:
    """The block of a term, which a stage has; None where its discriminator could not be read."""
    if term in TERMS:
        key, own = f'train:{TERMS[term].option}', (TERMS[term].Options,)
        block = options.get(TERMS[term].option)
    else:
        entry = declared.get(term.partition(':')[2] or 'student')
        if entry is None:
            return None
        key, own = (entry.key('gan_opt') if entry.gan_opt else 'train:gan_opt'), ()
        block = entry.gan_opt or options.get('gan_opt')
    if block is None:
        raise UserError(key, f'the block is missing, but {where} has the term {term!r}.')
    return read_term(term, block, key, *own)
