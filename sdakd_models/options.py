"""The options that this plugin adds to a BasicSR option file: typed and described once, checked and refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from sdakd.compat import UserError, near
from sdakd_models.stages import Count, Plan, Stage

T = TypeVar('T')


class Teacher(Struct, forbid_unknown_fields=True):
    """The trained network to distil: the block ``teacher:``."""

    weights: Annotated[
        str | None, Meta(description='.pth or .safetensors file; official ones are downloaded when missing.')
    ] = None
    network: Annotated[
        dict | None, Meta(description="Its options as in network_g; told from the file's keys if absent.")
    ] = None
    param_key: Annotated[str | None, Meta(description='Key of the tensors in the file: params_ema, params.')] = None
    replace_by: Annotated[
        str | None,
        Meta(
            description='It learns along, and the student sees the best one so far by this entry of val:metrics; '
            'without weights it starts from nothing.'
        ),
    ] = None
    cache: Annotated[
        str | None,
        Meta(
            description='Folder for its answers to whole training images: made where they are missing, then read '
            'instead of running it; for paired data.'
        ),
    ] = None


class Discriminator(Struct, forbid_unknown_fields=True):
    """A further discriminator: an entry of ``discriminators:``, switched on in a stage as ``gan:<name>``."""

    network: Annotated[dict, Meta(description='Its options as in network_d.')]
    weights: Annotated[str | None, Meta(description='File to start from.')] = None
    param_key: Annotated[str | None, Meta(description='Key of the tensors in the file.')] = None
    real: Annotated[Literal['gt', 'teacher'], Meta(description='What it learns to call real.')] = 'gt'
    fake: Annotated[list[Literal['student', 'teacher']], Meta(description='Whose images it learns to call fake.')] = (
        msgspec.field(default_factory=lambda: ['student'])
    )
    learns: Annotated[bool, Meta(description='False: frozen, buffers included.')] = True
    listens: Annotated[bool, Meta(description='Whether the student is trained to please it.')] = True
    gan_opt: Annotated[dict | None, Meta(description='GAN loss; default train:gan_opt.')] = None


class Features(Struct):
    """What ``train:feature_opt`` holds besides the arguments of its loss."""

    layers: Annotated[list[str] | dict[str, str] | None, Meta(description='Taps, or student tap: teacher tap.')] = None
    hidden_ratio: Annotated[
        float, Meta(ge=0, description="Hidden width of the MLPs over the teacher's channels; 0: linear adapters.")
    ] = 1.0


class OMGD(Struct):
    """What ``train:omgd_opt`` holds besides the arguments of its loss."""

    teachers: Annotated[
        list[str], Meta(min_length=1, description='Whom the student imitates: `teacher`, entries of `teachers`.')
    ] = msgspec.field(default_factory=lambda: ['teacher'])
    layers: Annotated[
        dict[str, list[str] | dict[str, str]] | None,
        Meta(description="By teacher: taps, or student tap: teacher tap; `[]` leaves that teacher's features out."),
    ] = None


class Imitation(Struct):
    """What ``train:imitation_opt`` holds besides the arguments of its loss."""

    teachers: Annotated[
        list[str], Meta(min_length=1, description='Whose images count: `teacher`, entries of `teachers`.')
    ] = msgspec.field(default_factory=lambda: ['teacher'])


class DCD(Struct):
    """What ``train:dcd_opt`` holds besides the arguments of its loss."""

    layers: Annotated[list[str] | dict[str, str] | None, Meta(description='Taps, or student tap: teacher tap.')] = None
    discriminator: Annotated[str, Meta(description='Entry of `discriminators` that looks at the maps.')] = 'teacher'
    discriminator_layer: Annotated[str, Meta(description='Where the maps are compared in it, a tap.')] = 'conv9:input'
    teacher_connector: Annotated[
        Literal['learning', 'fixed', 'normalised'],
        Meta(
            description="The teacher's connector: learns as the student's, stays at its start, or stays but for a "
            'normalisation by the batch.'
        ),
    ] = 'learning'
    mlp: Annotated[
        bool, Meta(description="An MLP and the teacher's connector in place of the student's: modified DCD.")
    ] = False
    hidden_ratio: Annotated[
        float, Meta(ge=0, description="Hidden width of the MLPs over the teacher's channels; 0: linear.")
    ] = 1.0


class Train(Struct, forbid_unknown_fields=True):
    """The block ``train:`` without the options of the terms (``<term>_opt``)."""

    stages: Annotated[dict[str, Any], Meta(min_length=1, description='Stage by name, in order.')]
    start_stage: Annotated[str | None, Meta(description='Stage to begin with, from path:pretrain_network_g.')] = None
    ema_decay: Annotated[float, Meta(ge=0, lt=1, description='Exponential moving average of the student.')] = 0.999
    optim_g: Annotated[dict, Meta(description="Adam's values for student and adapters, without lr.")] = msgspec.field(
        default_factory=lambda: {'type': 'Adam', 'betas': [0.9, 0.99]}
    )
    optim_d: Annotated[dict, Meta(description="Adam's values for discriminators, without lr.")] = msgspec.field(
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
    fields = {field.encode_name for field in msgspec.structs.fields(struct)}
    for key in value:
        if key not in fields and struct.__struct_config__.forbid_unknown_fields:
            raise UserError(f'{where}: unknown key {key!r}; {near(str(key), fields)}.')
    for field in msgspec.structs.fields(struct):
        inner = value.get(field.encode_name)
        choices = {tag: cls for cls in _structs(field.type) if (tag := cls.__struct_config__.tag) is not None}
        if isinstance(inner, Mapping) and choices:
            if inner.get('type') not in choices:
                kind = inner.get('type')
                raise UserError(f'{where}:{field.encode_name}:type: unknown {kind!r}; {near(str(kind), choices)}.')
            known = {'type', *choices[inner['type']].__struct_fields__}
            for key in inner:
                if key not in known:
                    raise UserError(f'{where}:{field.encode_name}: unknown key {key!r}; {near(str(key), known)}.')
    try:
        return msgspec.convert(value, struct, strict=False)
    except msgspec.ValidationError as error:
        reason, _, at = str(error).replace(' | null`', '`').partition(' - at `$')
        key = at.rstrip('`').replace('[...]', '').replace('.', ':').lstrip(':')
        shown = value.get(key.split('[')[0])
        given = f', given {shown!r}' if shown is not None and 'required' not in reason else ''
        raise UserError(f'{where}{":" + key if key else ""}: {reason[0].lower()}{reason[1:]}{given}.') from None


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
    own = {field.encode_name for field in msgspec.structs.fields(Train)}
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


def read_teachers(opt: Mapping) -> dict[str, Teacher]:
    """The teachers by name: the block ``teacher:`` as ``teacher``, and the entries of ``teachers:``."""
    found = {'teacher': typed(Teacher, opt['teacher'], 'teacher')} if opt.get('teacher') else {}
    entries = opt.get('teachers') or {}
    if not isinstance(entries, Mapping):
        raise UserError('teachers: write a mapping of name and teacher here.')
    for name, entry in entries.items():
        if name in ('teacher', 'student'):
            raise UserError(f'teachers:{name}: this name is taken, choose another one.')
        found[str(name)] = typed(Teacher, entry, f'teachers:{name}')
    return found


def share_of(options: Mapping | None) -> float | None:
    """The share that a term's block asks for, None where it has a weight."""
    return (options or {}).get('share')


def check_share(options: Mapping, where: str) -> None:
    """Refuses a share that is none, and one beside a weight.

    Raises:
        UserError: With the key.
    """
    share = share_of(options)
    if share is None:
        return
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise UserError(f"{where}:share: write the term's part of the gradient, between 0 and 1, not {share!r}.")
    if 'loss_weight' in options:
        raise UserError(f'{where}: share and loss_weight are both there; keep one of them.')


def gan_term(discriminator: str) -> str:
    """The term by which a stage switches a discriminator on."""
    return 'gan' if discriminator == 'student' else f'gan:{discriminator}'


def read_discriminators(opt: Mapping) -> dict[str, Discriminator]:
    """All discriminators by name: ``network_d`` as ``student``, and the entries of ``discriminators:``."""
    path = opt.get('path') or {}
    found = {}
    if opt.get('network_d'):
        found['student'] = Discriminator(
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
        found[str(name)] = entry = typed(Discriminator, entry, f'discriminators:{name}')
        if entry.learns and not entry.fake:
            raise UserError(
                f'discriminators:{name}:fake: the list is empty, but it learns; name student or teacher, '
                'or write learns: false.'
            )
    return found
