"""The options that this plugin adds to a BasicSR option file: typed and described once, checked and refused here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from msgspec import Meta, Struct, convert, field, structs
from msgspec import ValidationError as Invalid
from torch import nn

from sdakd.compat import UserError, near
from sdakd_arch.width import lookup
from sdakd_models.stages import Count, Plan, Stage

T = TypeVar('T')


class Block(Struct, forbid_unknown_fields=True, dict=True):
    """A block of the option file that knows its own key there."""

    where: ClassVar[str] = ''

    def key(self, name: str = '') -> str:
        """The key of the block, or of one of its entries, as errors name it: ``teacher:weights``."""
        return f'{self.where}:{name}' if name else self.where

    def error(self, sentence: str, name: str = '') -> UserError:
        """A mistake in the block, or in one of its entries."""
        return UserError(self.key(name), sentence)


class Cotrain(Block):
    """How a teacher that learns along is judged: ``cotrain:`` of a teacher."""

    metric: Annotated[str, Meta(description='Entry of `val:metrics`: the student sees the best teacher so far by it.')]


class TeacherBlock(Block):
    """The trained network to distil: the block ``teacher:``."""

    weights: Annotated[
        str | None,
        Meta(description='.pth, .safetensors or ncnn .param file; official ones are downloaded when missing.'),
    ] = None
    network: Annotated[
        dict | None, Meta(description="Its options as in network_g; told from the file's keys if absent.")
    ] = None
    param_key: Annotated[str | None, Meta(description='Key of the tensors in the file: params_ema, params.')] = None
    cotrain: Annotated[
        Cotrain | None,
        Meta(
            description='It learns along with the student, and the student sees the best one so far; without weights '
            'it starts from nothing.'
        ),
    ] = None
    cache: Annotated[
        str | None,
        Meta(
            description='Folder for its answers to whole training images: made where they are missing, then read '
            'instead of running it; for paired data.'
        ),
    ] = None


class DiscriminatorBlock(Block):
    """A further discriminator: an entry of ``discriminators:``, switched on in a stage as ``gan:<name>``."""

    network: Annotated[dict, Meta(description='Its options as in network_d.')]
    weights: Annotated[str | None, Meta(description='File to start from.')] = None
    param_key: Annotated[str | None, Meta(description='Key of the tensors in the file.')] = None
    real: Annotated[Literal['gt', 'teacher'], Meta(description='What it learns to call real.')] = 'gt'
    fake: Annotated[list[Literal['student', 'teacher']], Meta(description='Whose images it learns to call fake.')] = (
        field(default_factory=lambda: ['student'])
    )
    learns: Annotated[bool, Meta(description='False: frozen, buffers included.')] = True
    trains_student: Annotated[bool, Meta(description='Whether the student is trained to please it.')] = True
    gan_opt: Annotated[dict | None, Meta(description='GAN loss; default train:gan_opt.')] = None

    name: ClassVar[str] = ''

    def key(self, name: str = '') -> str:
        if self.name != 'student':
            return super().key(name)
        return {'weights': 'path:pretrain_network_d', 'network': 'network_d', 'gan_opt': 'train:gan_opt'}[name]

    @property
    def term(self) -> str:
        """The term by which a stage switches it on."""
        return gan_term(self.name)

    @property
    def sees_teacher(self) -> bool:
        """Whether some of its images are the teacher's: then it sees none of the border of crops."""
        return 'teacher' in (self.real, *self.fake)


class Logger(Block):
    """The block ``logger:``: BasicSR's keys, and which checkpoints a run keeps."""

    print_freq: Annotated[int, Meta(ge=1, description='Iterations between two lines of the log.')] = 100
    save_checkpoint_freq: Annotated[
        int, Meta(ge=1, description='Iterations between two checkpoints; the end of every stage is one as well.')
    ] = 5000
    use_tb_logger: Annotated[bool, Meta(description='Write TensorBoard files.')] = False
    wandb: Annotated[dict | None, Meta(description='Weights & Biases: project, resume_id.')] = None
    keep_last: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description='How many checkpoints are kept, the newest; older ones of this run go when a new one is '
            'written. Ends of stages stay. A null keeps all.'
        ),
    ] = 3
    keep_best: Annotated[
        str | bool | None,
        Meta(
            description='Entry of `val:metrics`, or true for the first of them: the checkpoint that is best by it on '
            'the first validation set stays as well.'
        ),
    ] = None


class Train(Block):
    """The block ``train:`` without the options of the terms (``<term>_opt``)."""

    stages: Annotated[dict[str, Any], Meta(min_length=1, description='Stage by name, in order.')]
    start_stage: Annotated[str | None, Meta(description='Stage to begin with, from path:pretrain_network_g.')] = None
    ema_decay: Annotated[float, Meta(ge=0, lt=1, description='Exponential moving average of the student.')] = 0.999
    optim_g: Annotated[dict, Meta(description="Adam's values for student and adapters, without lr.")] = field(
        default_factory=lambda: {'type': 'Adam', 'betas': [0.9, 0.99]}
    )
    optim_d: Annotated[dict, Meta(description="Adam's values for discriminators, without lr.")] = field(
        default_factory=lambda: {'type': 'Adam', 'betas': [0.9, 0.99]}
    )
    r1_reg_weight: Annotated[
        float, Meta(ge=0, description="Of R1, half the squared norm of discriminators' gradients at real images.")
    ] = 0.0
    net_d_reg_every: Annotated[
        int, Meta(ge=1, description='Iterations between two R1 penalties, each of which counts for all of them.')
    ] = 16
    teacher_margin: Annotated[
        Count | None,
        Meta(
            description='Input pixels at the border of what a teacher is shown where its answer is not used: it is an '
            "artefact of padding there. Terms and discriminators that see a teacher's answer to a crop leave them out, "
            'and pairs that are reused are larger by them. Default 8, or a quarter of a smaller crop; 0 for faces.',
        ),
    ] = None
    share_freq: Annotated[
        int, Meta(ge=1, description="Iterations between two measurements of the terms' shares of the gradient.")
    ] = 1000
    pool_reuse: Annotated[
        int,
        Meta(
            ge=1,
            description="How many crops are drawn of every degraded pair and of the teacher's answer to it; it divides "
            'queue_size.',
        ),
    ] = 1
    precision: Annotated[
        Literal['fp32', 'bf16'],
        Meta(
            description='Of the passes of generators, discriminators and the adapters of feature_opt; R1, losses, '
            'weights and validation are fp32 always.'
        ),
    ] = 'fp32'
    total_iter: Annotated[int | None, Meta(description='Derived from the stages; leave it out.')] = None

    def plan(self) -> Plan:
        """The stages, typed.

        Raises:
            UserError: A stage has an unknown key, a missing one or a value of the wrong kind.
        """
        stages = {str(name): typed(Stage, stage, f'train:stages:{name}') for name, stage in self.stages.items()}
        if self.start_stage is not None and self.start_stage not in stages:
            raise UserError(
                f'train:start_stage: there is no stage {self.start_stage!r}; {near(self.start_stage, stages)}.'
            )
        return Plan(stages, self.start_stage)


RENAMED = {  # keys of version 0.1.0: the new one, and what to write for an old value
    'replace_by': ('cotrain', lambda value: {'metric': value}),
    'listens': ('trains_student', lambda value: value),
}


def _structs(annotation: object) -> list[type[Struct]]:
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return [annotation]
    return [found for part in get_args(annotation) for found in _structs(part)]


def typed(struct: type[T], value: object, where: str) -> T:
    """Turns a mapping of the option file into ``struct``; numbers written as text (``2e-4``) become numbers.

    Raises:
        UserError: Unknown key (with near names), missing key, or a value of the wrong kind; names ``where``.
    """
    if not isinstance(value, Mapping):
        raise UserError(f'{where}: write a mapping of keys and values here, not {value!r}.')
    fields = {each.encode_name: each for each in structs.fields(struct)}
    for key in value:
        if key not in fields and key in RENAMED and RENAMED[key][0] in fields:
            new, translate = RENAMED[key]
            raise UserError(
                f'{where}:{key}: this key is called {new} now; write {new}: {_yaml(translate(value[key]))}.'
            )
        if key not in fields and struct.__struct_config__.forbid_unknown_fields:
            raise UserError(f'{where}: unknown key {key!r}; {near(str(key), fields)}.')
    for name, each in fields.items():
        inner = value.get(name)
        choices = {tag: cls for cls in _structs(each.type) if (tag := cls.__struct_config__.tag) is not None}
        if isinstance(inner, Mapping) and choices:
            if inner.get('type') not in choices:
                kind = inner.get('type')
                raise UserError(f'{where}:{name}:type: unknown {kind!r}; {near(str(kind), choices)}.')
            known = {'type', *choices[inner['type']].__struct_fields__}
            for key in inner:
                if key not in known:
                    raise UserError(f'{where}:{name}: unknown key {key!r}; {near(str(key), known)}.')
    try:
        found = convert(value, struct, strict=False)
    except Invalid as error:
        reason, _, at = str(error).replace(' | null`', '`').partition(' - at `$')
        key = at.rstrip('`').replace('[...]', '').replace('.', ':').lstrip(':')
        shown = value.get(key.split('[')[0])
        given = f', given {shown!r}' if shown is not None and 'required' not in reason else ''
        raise UserError(f'{where}{":" + key if key else ""}: {reason[0].lower()}{reason[1:]}{given}.') from None
    if isinstance(found, Block):
        found.where = where
    return found


def _yaml(value: object) -> str:
    if isinstance(value, Mapping):
        return '{' + ', '.join(f'{key}: {_yaml(inner)}' for key, inner in value.items()) + '}'
    return str(value).lower() if isinstance(value, bool) else str(value)


def modernise(opt: dict) -> list[str]:
    """Gives the keys of version 0.1.0 their names of today, in place; returns the old ones that were found."""
    blocks = {'teacher': opt.get('teacher')}
    for group in ('teachers', 'discriminators'):
        if isinstance(opt.get(group), Mapping):
            blocks |= {f'{group}:{name}': entry for name, entry in opt[group].items()}
    found = []
    for where, block in blocks.items():
        for old in RENAMED.keys() & block.keys() if isinstance(block, dict) else ():
            new, translate = RENAMED[old]
            value = block.pop(old)
            if value is not None:
                block[new] = translate(value)
            found.append(f'{where}:{old}')
    return found


def read_train(opt: Mapping, term_options: Mapping[str, str]) -> Train:
    """The typed block ``train:``.

    Args:
        opt: The whole options.
        term_options: Known keys of terms' options, to whoever owns them.

    Raises:
        UserError: See :func:`typed`.
    """
    train = opt.get('train')
    if not isinstance(train, Mapping):
        raise UserError('train: the block is missing; it holds the stages and the options of the terms.')
    own = {each.encode_name for each in structs.fields(Train)}
    moved = {'scheduler', 'warmup_iter', 'lr', 'lr_g', 'lr_d', 'grad_clip'}
    for key in train:
        if key in moved:
            raise UserError(f'train:{key}: this belongs to each stage, write it under train:stages:<name>.')
        if key not in own and key not in term_options:
            raise UserError(f'train: unknown key {key!r}; {near(str(key), own | set(term_options))}.')
    for side in ('optim_g', 'optim_d'):
        if 'lr' in (train.get(side) or {}):
            raise UserError(
                f'train:{side}:lr: the learning rate belongs to each stage (train:stages:<name>:lr_{side[-1]}).'
            )
    own_values = {key: value for key, value in train.items() if key in own}
    if isinstance(train.get('stages'), Mapping):  # YAML reads a stage called 1 as a number
        own_values['stages'] = {str(name): stage for name, stage in train['stages'].items()}
    return typed(Train, own_values, 'train')


def read_teachers(opt: Mapping) -> dict[str, TeacherBlock]:
    """The teachers by name: the block ``teacher:`` as ``teacher``, and the entries of ``teachers:``."""
    found = {'teacher': typed(TeacherBlock, opt['teacher'], 'teacher')} if opt.get('teacher') else {}
    entries = opt.get('teachers') or {}
    if not isinstance(entries, Mapping):
        raise UserError('teachers: write a mapping of name and teacher here.')
    for name, entry in entries.items():
        if name in ('teacher', 'student'):
            raise UserError(f'teachers:{name}: this name is taken, choose another one.')
        found[str(name)] = typed(TeacherBlock, entry, f'teachers:{name}')
    return found


def gan_term(discriminator: str) -> str:
    """The term by which a stage switches a discriminator on."""
    return 'gan' if discriminator == 'student' else f'gan:{discriminator}'


def read_discriminators(opt: Mapping) -> dict[str, DiscriminatorBlock]:
    """All discriminators by name: ``network_d`` as ``student``, and the entries of ``discriminators:``."""
    path = opt.get('path') or {}
    found = {}
    if opt.get('network_d'):
        found['student'] = DiscriminatorBlock(
            network=dict(opt['network_d']),
            weights=path.get('pretrain_network_d'),
            param_key=path.get('param_key_d'),
        )
    entries = opt.get('discriminators') or {}
    if not isinstance(entries, Mapping):
        raise UserError('discriminators: write a mapping of name and discriminator here.')
    for name, entry in entries.items():
        if name == 'student':
            raise UserError('discriminators:student: this name belongs to network_d, choose another one.')
        found[str(name)] = entry = typed(DiscriminatorBlock, entry, f'discriminators:{name}')
        if entry.learns and not entry.fake:
            raise entry.error(
                'the list is empty, but it learns; name student or teacher, or write learns: false.', 'fake'
            )
    for name, entry in found.items():
        entry.name = name
    return found


@dataclass(frozen=True)
class TermBlock:
    """The block of a term: a loss with its arguments, and what the term adds to them.

    Attributes:
        name: The term.
        where: Key of the block.
        loss: Type and arguments of the loss, as BasicSR's ``build_loss`` takes them.
        share: The part of the gradient that the term asks for in the place of a weight.
        options: The term's own options.
    """

    name: str
    where: str
    loss: dict
    share: float | None
    options: Block

    def build(self, device: torch.device) -> nn.Module:
        """The loss.

        Raises:
            UserError: It refuses its arguments.
        """
        try:
            return build_loss(deepcopy(self.loss)).to(device)
        except (TypeError, ValueError) as error:
            # a loss that says which argument it refuses begins with its name
            gap = '' if re.match(r'\w+(, \w+)*: ', str(error)) else ' '
            raise UserError(f'{self.where}:{gap}{error}.') from None


def read_term(name: str, value: object, where: str, own: type[Block] = Block) -> TermBlock:
    """Reads the block of a term: its loss is known and takes these arguments, its own options are typed.

    Raises:
        UserError: With near names.
    """
    if not isinstance(value, Mapping) or 'type' not in value:
        raise UserError(f'{where}: write the loss as a mapping with its type, for example {{type: L1Loss}}.')
    parameters = dict(inspect.signature(lookup(LOSS_REGISTRY, value['type'], f'{where}:type').__init__).parameters)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    options = {each.encode_name for each in structs.fields(own)}
    known = (parameters.keys() - {'self'}) | {'share'} | options
    for key, given in value.items():
        if key not in known | {'type'} and not takes_any:
            raise UserError(f'{where}: {value["type"]} takes no {key!r}; {near(key, known)}.')
        number = key in parameters and isinstance(parameters[key].default, float)
        if (
            number
            and key not in options
            and (isinstance(given, bool) or not isinstance(given, (int, float, type(None))))
        ):
            raise UserError(f'{where}:{key}: write a number (2.0e-4 needs dot and sign in YAML), not {given!r}.')
    share = value.get('share')
    if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1):
        raise UserError(f"{where}:share: write the term's part of the gradient, between 0 and 1, not {share!r}.")
    if share is not None and 'loss_weight' in value:
        raise UserError(f'{where}: share and loss_weight are both there; keep one of them.')
    loss = {key: given for key, given in value.items() if key not in options | {'share'}}
    return TermBlock(name, where, loss, share, typed(own, {key: value[key] for key in value if key in options}, where))
