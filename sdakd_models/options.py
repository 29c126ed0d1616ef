"""The options that this plugin adds to a BasicSR option file: typed and described once, checked and refused here."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from msgspec import Meta, Struct, convert, field, structs
from msgspec import ValidationError as Invalid
from torch import nn

from sdakd.compat import Mistakes, UserError, gathering, meant, near, one_line
from sdakd_arch.weights import tensors_only
from sdakd_arch.width import lookup
from sdakd_models.stages import Count, Plan, Positive, Stage

T = TypeVar('T')
CHOICE = "`foreach` or `fused` choose PyTorch's implementation, by default the fused one, from torch 2.5 on."
PRECISIONS = ('fp32', 'tf32', 'bf16', 'fp16', 'auto')
NUMBER = r'^-?\d+(\.\d+)?([eE][-+]?\d+)?$'  # as text: 2e-4 is none to YAML, and is read as one


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
        dict | None, Meta(description="Its options as in network_g; without them, the file's keys tell them.")
    ] = None
    param_key: Annotated[str | None, Meta(description='Key of the tensors in the file: params_ema, params.')] = None
    cotrain: Annotated[
        Cotrain | None,
        Meta(
            description='It learns along with the student, and the student sees the best one so far; without weights '
            'it starts from nothing.'
        ),
    ] = None
    precision: Annotated[
        Literal[PRECISIONS] | None,
        Meta(description='Of its passes, where it does not learn along; default train:precision.'),
    ] = None
    cache: Annotated[
        str | None,
        Meta(
            description='Folder for its answers to whole training images: made where they are missing, then read '
            'instead of running it; for paired data.'
        ),
    ] = None
    shuffle: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(
            description='A placebo: the numbers of every tensor in the random order of this seed, with layers as large '
            'as before. What a student gains from it, it does not owe to what the teacher knows.',
        ),
    ] = None


class Selective(Block):
    """Selective activation (GCC): channels go on and off so that a discriminator keeps the balance of the teacher's."""

    against: Annotated[str, Meta(description="Entry of `discriminators` whose balance is kept: the teacher's.")] = (
        'teacher'
    )
    lr: Annotated[
        Positive,
        Meta(description='Learning rate of the numbers that stand for the channels, decaying as the stage does.'),
    ] = 1e-4
    threshold: Annotated[
        float, Meta(gt=0, lt=1, description='A channel is off where its number, 1 at first, is no larger.')
    ] = 0.5
    held_out: Annotated[
        int,
        Meta(
            ge=2,
            description='Of so many photographs, by name, one is shown to this step alone: 10 for a tenth. NAME_1 to '
            'NAME_N, and subimages NAME_s001 and so on, are one photograph.',
        ),
    ] = 10
    layers: Annotated[
        list[str] | None,
        Meta(
            description='Whose channels: convolutions, or the batch normalisations that follow them. By default all '
            'convolutions but the last.'
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
    selective: Annotated[
        Selective | None, Meta(description='Switch channels on and off, by images that are held out.')
    ] = None

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


class Wandb(Block):
    """Weights & Biases: ``wandb:`` of the logger; it takes what goes to TensorBoard."""

    project: Annotated[str | None, Meta(description='Its project; without one nothing is sent.')] = None
    resume_id: Annotated[str | None, Meta(description='The run there to continue.')] = None


class Logger(Block):
    """The block ``logger:``: BasicSR's keys, and which checkpoints a run keeps."""

    print_freq: Annotated[int, Meta(ge=1, description='Iterations between two lines of the log.')] = 100
    save_checkpoint_freq: Annotated[
        int, Meta(ge=1, description='Iterations between two checkpoints; the end of every stage is one as well.')
    ] = 5000
    use_tb_logger: Annotated[bool, Meta(description='Write TensorBoard files.')] = False
    wandb: Annotated[Wandb | None, Meta(description='Weights & Biases.')] = None
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
    optim_g: Annotated[dict, Meta(description=f"Adam's values for student and adapters, without lr. {CHOICE}")] = field(
        default_factory=lambda: {'type': 'Adam', 'betas': [0.9, 0.99]}
    )
    optim_d: Annotated[dict, Meta(description=f"Adam's values for discriminators, without lr. {CHOICE}")] = field(
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
            description="How many crops are drawn of every pair and of the teacher's answer to it; it divides "
            'queue_size.',
        ),
    ] = 1
    pool_flips: Annotated[
        bool,
        Meta(
            description='Mirror half of these crops where the data set has use_hflip and a stage compares no feature '
            'maps, besides the flips of the images themselves.'
        ),
    ] = True
    micro_batch_size: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description='How many images of the batch go through a network at once, for batches that memory does not '
            'hold: the results are those of the whole batch, within rounding. By default all.'
        ),
    ] = None
    activation_checkpointing: Annotated[
        bool,
        Meta(
            description='Keep the inputs of blocks alone for the backward pass and compute the blocks once more there: '
            'less memory, more time, the same results. For students, and discriminators of GCFSR.'
        ),
    ] = False
    precision: Annotated[
        Literal[PRECISIONS],
        Meta(
            description='Of the passes of generators, discriminators, backbones of perceptual terms and the adapters '
            'of feature_opt; R1, losses, weights and validation are fp32 always. tf32 is what torch does by itself: '
            'fp32 but for convolutions on NVIDIA GPUs; auto is measured on a CPU that has units for bf16, and is bf16 '
            'on a GPU.'
        ),
    ] = 'tf32'
    channels_last: Annotated[
        bool | None,
        Meta(description='Memory layout of networks; by default channels-last but for fp32 on a GPU.'),
    ] = None
    compile: Annotated[
        bool, Meta(description='Networks are compiled by torch.compile, which takes a minute or more at the start.')
    ] = False
    total_iter: Annotated[int | None, Meta(description='Derived from the stages; leave it out.')] = None

    @gathering
    def plan(self, *, mistakes: Mistakes) -> Plan:
        """The stages, typed.

        Raises:
            UserError: A stage has an unknown key, a missing one or a value of the wrong kind.
        """
        stages = {}
        for name, stage in self.stages.items():
            found = typed(Stage, stage, f'train:stages:{name}', mistakes=mistakes)
            stages[str(name)] = found or Stage(iters=1, terms=_names(stage))
        first = self.start_stage
        if first is not None and first not in stages:
            mistakes.add('train:start_stage', f'there is no stage {first!r}; {near(first, stages)}.')
            first = None
        return Plan(stages, first)


def _names(stage: object) -> list[str]:
    """The terms of a stage that cannot be read, as far as they can be told."""
    terms = stage.get('terms') if isinstance(stage, Mapping) else None
    return [term for term in terms if isinstance(term, str)] if isinstance(terms, list) else []


RENAMED = {  # keys of version 0.1.0: the new one, and what to write for an old value
    'replace_by': ('cotrain', lambda value: {'metric': value}),
    'listens': ('trains_student', lambda value: value),
}


def _structs(annotation: object) -> list[type[Struct]]:
    """The structs that a value may be; not those inside of lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        return [annotation]
    if get_origin(annotation) not in (Annotated, Union, UnionType):
        return []
    return [found for part in get_args(annotation) for found in _structs(part)]


@gathering
def typed(struct: type[T], value: object, where: str, *, mistakes: Mistakes) -> T | None:
    """Turns a mapping of the option file into ``struct``; numbers written as text (``2e-4``) become numbers.

    Returns:
        The struct. With ``mistakes``, wrong values have their defaults; None where one without a default is wrong.

    Raises:
        UserError: Unknown keys (with near names), missing keys, values of the wrong kind; each names its place.
    """
    if not isinstance(value, Mapping):
        mistakes.add(where, f'write a mapping of keys and values here, not {value!r}.')
        return None
    fields = {each.encode_name: each for each in structs.fields(struct)}
    before = len(mistakes.found)
    value = _known(struct, value, fields, where, mistakes)
    right = {key: given for key, given in value.items() if key not in fields}  # such as the tag
    for name, each in fields.items():
        if name in value:
            with mistakes.collect():
                right[name] = _read(each.type, value[name], f'{where}:{name}' if where else name)
        elif each.required:
            mistakes.add(where, f'object missing required field `{name}`.')
    if len(mistakes.found) > before and any(each.required and name not in right for name, each in fields.items()):
        return None
    try:
        found = convert(right, struct, strict=False)
    except Invalid as error:  # of what concerns several fields
        mistakes.add(where, f'{_lower(str(error))}.')
        return None
    if isinstance(found, Block):
        found.where = where
    return found


def _known(struct: type, value: Mapping, fields: Mapping, where: str, mistakes: Mistakes) -> Mapping:
    """The value without unknown keys; what they are meant to say is there."""
    found, strict = dict(value), struct.__struct_config__.forbid_unknown_fields
    for key in value:
        new, translate = RENAMED.get(key, (None, None))
        if key not in fields and new in fields:
            now = translate(found.pop(key))
            found.setdefault(new, now)
            mistakes.add(f'{where}:{key}', f'this key is called {new} now; write {new}: {_yaml(now)}.')
        elif key not in fields and strict:
            mistakes.add(where, unknown(key, fields))
    return meant(found, fields) if strict else found


# what other projects call gradient accumulation, where their batch is that of a part
ACCUMULATION = ('accum_iter', 'accumulate', 'accumulation_steps', 'gradient_accumulation_steps')


def unknown(key: object, known: Iterable[str]) -> str:
    """What is said of an unknown key."""
    if key in ACCUMULATION:
        return (
            f'there is no {key}; write the images of a whole step as batch_size_per_gpu, and how many of them go '
            'through a network at once as train:micro_batch_size.'
        )
    return f'unknown key {key!r}; {near(str(key), known)}.'


def _read(kind: object, value: object, where: str) -> object:
    """The value of a key, which is of its kind; a numeral in text is the number.

    Raises:
        UserError: It is of another kind, out of bounds, or against the rule of its kind (:func:`rule`).
    """
    inner = _structs(kind)
    choices = {tag: cls for cls in inner if (tag := cls.__struct_config__.tag) is not None}
    if isinstance(value, Mapping) and len(inner) == 1 and not choices:
        typed(inner[0], value, where)
    elif isinstance(value, Mapping) and choices:
        given = value.get('type')
        if not isinstance(given, str) or given not in choices:
            raise UserError(f'{where}:type', f'unknown {given!r}; {near(str(given), choices)}.')
        known = {'type', *choices[given].__struct_fields__}
        with Mistakes() as mistakes:
            for key in value:
                if key not in known:
                    mistakes.add(where, f'unknown key {key!r}; {near(str(key), known)}.')
    try:
        value, found = _converted(value, kind)
    except Invalid as error:
        reason, _, at = str(error).replace(' | null`', '`').partition(' - at `$')
        at = at.rstrip('`').replace('[...]', '').replace('.', ':')
        if reason.startswith('Invalid enum value'):
            known = near(reason.split()[-1].strip("'"), _choices(kind))
            raise UserError(f'{where}{at}', f'{_lower(reason)}; {known}{"" if known[-1] == "?" else "."}') from None
        shown = value is not None and ':' not in at and 'required' not in reason
        raise UserError(f'{where}{at}', f'{_lower(reason)}{f", given {value!r}" if shown else ""}.') from None
    if not is_finite(found):
        entries = found.items() if isinstance(found, Mapping) else ()
        key, wrong = next(((f':{key}', inner) for key, inner in entries if not is_finite(inner)), ('', value))
        raise UserError(f'{where}{key}', f'write finite numbers, not {wrong!r}.')
    for check in _rules(kind) if found is not None else ():
        if sentence := check(found):
            raise UserError(where, f'{sentence}, not {value!r}.')
    return value


def _choices(kind: object) -> list[object]:
    """The values of the literals in a kind."""
    parts = get_args(kind)
    return list(parts) if get_origin(kind) is Literal else [value for part in parts for value in _choices(part)]


def _converted(value: object, kind: object) -> tuple[object, object]:
    """The value, with numbers for numerals where only they will do (5e3 is a whole number), and what it is typed."""
    try:
        return value, convert(value, kind, strict=False)
    except Invalid as error:
        with contextlib.suppress(Invalid):
            number = numeral(value)
            return number, convert(number, kind, strict=False)
        raise error from None


def rule(check: Callable[[Any], str | None]) -> Meta:
    """What values of a kind must be besides kind and bounds; ``check`` says what to write instead, or nothing."""
    return Meta(extra={'rule': check})


def _rules(kind: object) -> Iterator[Callable[[Any], str | None]]:
    for part in get_args(kind):
        if isinstance(part, Meta):
            yield from (part.extra or {}).values()
        elif type(None) in get_args(kind):
            yield from _rules(part)


def numeral(value: object) -> object:
    """The number that a text such as ``5e3`` stands for, in lists as well; any other value as it is."""
    if isinstance(value, list):
        return [numeral(entry) for entry in value]
    return float(value) if isinstance(value, str) and re.match(NUMBER, value) else value


def is_finite(value: object) -> bool:
    """Whether neither a NaN nor an infinity is in a value or its lists; mappings in mappings are read by themselves."""
    if isinstance(value, Mapping):
        return all(is_finite(inner) for inner in value.values() if not isinstance(inner, Mapping))
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


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


MOVED = {'scheduler', 'warmup_iter', 'lr', 'lr_g', 'lr_d', 'grad_clip'}  # from train: to its stages


@gathering
def read_train(opt: Mapping, term_options: Mapping[str, str], *, mistakes: Mistakes) -> Train:
    """The typed block ``train:``.

    Args:
        opt: The whole options.
        term_options: Known keys of terms' options, to whoever owns them.

    Raises:
        UserError: See :func:`typed`.
    """
    train = opt.get('train')
    if not isinstance(train, Mapping):
        mistakes.add('train', 'the block is missing; it holds the stages and the options of the terms.')
        return Train(stages={})
    own = {each.encode_name for each in structs.fields(Train)}
    for key in train:
        if key in MOVED:
            mistakes.add(f'train:{key}', 'this belongs to each stage, write it under train:stages:<name>.')
        elif key not in own and key not in term_options:
            mistakes.add('train', unknown(key, own | set(term_options)))
    train = meant_train(train, term_options)
    for side in ('optim_g', 'optim_d'):
        if isinstance(train.get(side), Mapping) and 'lr' in train[side]:
            mistakes.add(
                f'train:{side}:lr',
                f'the learning rate belongs to each stage (train:stages:<name>:lr_{side[-1]}).',
            )
            train[side] = {key: value for key, value in train[side].items() if key != 'lr'}
        if isinstance(train.get(side), Mapping):
            train[side] = {key: numeral(value) for key, value in train[side].items()}
    own_values = {key: value for key, value in train.items() if key in own}
    if isinstance(train.get('stages'), Mapping):  # YAML reads a stage called 1 as a number
        own_values['stages'] = {str(name): stage for name, stage in train['stages'].items()}
    return typed(Train, own_values, 'train', mistakes=mistakes) or Train(stages={})


def meant_train(train: Mapping, term_options: Iterable[str]) -> dict:
    """The block ``train:`` with its keys as they are meant."""
    return meant(train, {*(each.encode_name for each in structs.fields(Train)), *term_options, *MOVED})


@gathering
def read_teachers(opt: Mapping, *, mistakes: Mistakes) -> dict[str, TeacherBlock]:
    """The teachers by name: the block ``teacher:`` as ``teacher``, and the entries of ``teachers:``."""
    found = {}
    if opt.get('teacher'):
        found['teacher'] = typed(TeacherBlock, opt['teacher'], 'teacher', mistakes=mistakes)
    entries = opt.get('teachers') or {}
    if not isinstance(entries, Mapping):
        mistakes.add('teachers', 'write a mapping of name and teacher here.')
        entries = {}
    for name, entry in entries.items():
        if name in ('teacher', 'student'):
            mistakes.add(f'teachers:{name}', 'this name is taken, choose another one.')
        else:
            found[str(name)] = typed(TeacherBlock, entry, f'teachers:{name}', mistakes=mistakes)
    return {name: entry for name, entry in found.items() if entry is not None}


def gan_term(discriminator: str) -> str:
    """The term by which a stage switches a discriminator on."""
    return 'gan' if discriminator == 'student' else f'gan:{discriminator}'


@gathering
def read_discriminators(opt: Mapping, *, mistakes: Mistakes) -> dict[str, DiscriminatorBlock]:
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
        mistakes.add('discriminators', 'write a mapping of name and discriminator here.')
        entries = {}
    for name, block in entries.items():
        if name == 'student':
            mistakes.add('discriminators:student', 'this name belongs to network_d, choose another one.')
            continue
        entry = typed(DiscriminatorBlock, block, f'discriminators:{name}', mistakes=mistakes)
        if entry is None:
            continue
        found[str(name)] = entry
        if entry.learns and not entry.fake:
            mistakes.add(
                entry.key('fake'),
                'the list is empty, but it learns; name student or teacher, or write learns: false.',
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
            with tensors_only(self.where):  # BasicSR's perceptual loss loads its VGG itself
                return build_loss(deepcopy(self.loss)).to(device)
        except UserError:
            raise
        except Exception as error:  # of whatever a loss does with its arguments
            # a loss that says which argument it refuses begins with its name
            gap = '' if re.match(r'\w+(, \w+)*: ', str(error)) else ' '
            raise UserError(f'{self.where}:{gap}{one_line(error)}.') from None


def wrong_argument(parameter: inspect.Parameter, value: object) -> str | None:
    """What must be written for an argument of a loss or a metric, as its default or annotation tells; else None."""
    default, name = parameter.default, parameter.name
    if value is None and default is None:
        return None
    kind = {'bool': bool, 'int': int, 'float': float, 'str': str}.get(parameter.annotation, parameter.annotation)
    if kind not in (bool, int, float, str) and isinstance(default, bool | int | float | str):
        kind = float if type(default) is int else type(default)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == 'crop_border':  # BasicSR does not say its kind
        return None if number and isinstance(value, int) and value >= 0 else 'write a whole number of at least 0'
    if kind is bool:
        return None if isinstance(value, bool) else 'write true or false'
    if kind is int:
        return None if number and isinstance(value, int) else 'write a whole number'
    if kind is str:
        return None if isinstance(value, str) else 'write text'
    if kind is float and not number:
        return 'write a number (2.0e-4 needs dot and sign in YAML)'
    if name.endswith('weight') and number and value < 0:
        return 'write a number of at least 0'
    return None if is_finite(value) else 'write finite numbers'


def read_term(name: str, value: object, where: str, own: type[Block] = Block) -> TermBlock:
    """Reads the block of a term: its loss is known and takes these arguments, its own options are typed.

    Raises:
        UserError: With near names.
    """
    if not isinstance(value, Mapping) or 'type' not in value:
        raise UserError(where, 'write the loss as a mapping with its type, for example {type: L1Loss}.')
    parameters = dict(inspect.signature(lookup(LOSS_REGISTRY, value['type'], f'{where}:type').__init__).parameters)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    options = {each.encode_name for each in structs.fields(own)}
    known = (parameters.keys() - {'self'}) | {'share'} | options
    share = value.get('share')
    with Mistakes() as mistakes:
        for key, given in value.items():
            if key not in known | {'type'} and not takes_any:
                mistakes.add(where, f'{value["type"]} takes no {key!r}; {near(key, known)}.')
            argument = parameters.get(key) if key not in options else None
            if argument is not None and (fault := wrong_argument(argument, given)):
                mistakes.add(f'{where}:{key}', f'{fault}, not {given!r}.')
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1):
            sentence = f"write the term's part of the gradient, between 0 and 1, not {share!r}."
            mistakes.add(f'{where}:share', sentence)
        if share is not None and 'loss_weight' in value:
            mistakes.add(where, 'share and loss_weight are both there; keep one of them.')
        loss = {key: given for key, given in value.items() if key not in options | {'share'}}
        own_values = {key: value[key] for key in value if key in options}
        return TermBlock(name, where, loss, share, typed(own, own_values, where, mistakes=mistakes))
