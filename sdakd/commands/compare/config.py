"""What a comparison's option file holds: typed, checked, and refused with one sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from sdakd.commands.compare import missing
from sdakd.compat import Mistakes, UserError, near
from sdakd.files.runs import ROOT
from sdakd.files.testsets import split_pair
from sdakd.shipped import find_shipped, near_shipped, shipped_files
from sdakd_arch.width import fraction
from sdakd_metrics.metrics import METRICS

Positive = Annotated[float, Meta(gt=0, le=1e9)]
Count = Annotated[int, Meta(ge=1)]
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]*')


class Pairs(Struct, forbid_unknown_fields=True):
    """Two folders of images of the same names."""

    gt: str
    lq: str


class Photographs(Struct, forbid_unknown_fields=True):
    """A folder of photographs to train on, and those to choose weights on: so many of them, or another folder.

    Pairs are made of them once, or, ``on_line``, drawn anew for every crop as in Real-ESRGAN's training.
    """

    folder: str
    validation: Count | str | None = None  # where something is searched
    degradation: Literal['bicubic', 'realesrgan'] = 'bicubic'
    on_line: bool = False
    meta_info: str | None = None  # BasicSR's list of the images in the folder that count
    queue_size: Count = 180  # pairs in the pool
    pool_reuse: Count = 1  # crops of each


class Faces(Struct, forbid_unknown_fields=True):
    """Aligned faces of the teacher's size: two folders, and the factors that training draws from."""

    train: str
    factors: Annotated[list[Annotated[int, Meta(ge=2)]], Meta(min_length=1)]  # often as they stand there
    validation: str | None = None  # where something is searched
    measured: list[Annotated[int, Meta(ge=2)]] = []  # each of them by itself; default: those of the training


class Data(Struct, forbid_unknown_fields=True):
    """``photographs``, ``faces``, or ``train`` and ``validation``; and the test sets, as ``sdakd evaluate -d``."""

    test: Annotated[dict[str, str], Meta(min_length=1)]
    photographs: Photographs | None = None
    faces: Faces | None = None
    train: Pairs | None = None
    validation: Pairs | None = None


class Length(Struct, forbid_unknown_fields=True):
    """Length and rates of a stage."""

    iters: Count
    lr_g: Positive
    lr_d: Positive | None = None
    warmup_iter: Annotated[int, Meta(ge=0)] = 0


class Budget(Struct, forbid_unknown_fields=True):
    """What is equal for all methods."""

    stages: Annotated[dict[str, Length], Meta(min_length=1)]
    batch: Count
    crop: Count | None = None  # of the ground truth; faces are whole
    workers: Count = 1
    ema_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    precision: Literal['fp32', 'tf32', 'bf16', 'fp16'] = 'tf32'
    flips: bool = True  # mirrored and turned crops; false where a teacher's cache is to hold feature maps
    checkpoints: Count = 10  # in a run: an interrupted one goes on from the last


class Method(Struct, forbid_unknown_fields=True):
    """One method: an option file, and the weights that the search scales."""

    weight: str | list[str]
    file: str | None = None
    options: dict[str, Any] = {}
    seeds: Count | None = None  # so many of the comparison's, the first ones; default: all


class Schedule(Struct, forbid_unknown_fields=True):
    """A further row: a method with stages of its own."""

    method: str
    stages: Annotated[dict[str, Length], Meta(min_length=1)]


class DiscriminatorTraining(Struct, forbid_unknown_fields=True):
    """The teacher's discriminator, trained once on the comparison's images against the teacher's."""

    iters: Count
    lr_d: Positive


class Primary(Struct, forbid_unknown_fields=True):
    """The metric that chooses weights on the validation split, and that the verdict is about."""

    metric: str
    against: Literal['gt', 'teacher'] = 'gt'
    margin: Positive | None = None  # within which two methods are called equal, in the metric's units


class Search(Struct, forbid_unknown_fields=True):
    """Factors for the weights of every method's own terms."""

    factors: Annotated[list[Positive], Meta(min_length=1)] = field(default_factory=lambda: [1.0])


class StandIn(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The backbone that takes the place of every method's own in perceptual terms, as their blocks write it."""

    backbone: str
    weights: str
    input: str | None = None
    units: str | None = None
    shift: int = 0


class Config(Struct, forbid_unknown_fields=True):
    """The option file of a comparison."""

    teacher: str
    data: Data
    budget: Budget
    methods: Annotated[dict[str, Method], Meta(min_length=1)]
    reference: str
    primary: Primary
    widths: Annotated[list[str | int | float], Meta(min_length=1)]
    seeds: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]
    metrics: Annotated[list[str], Meta(min_length=1)] = field(default_factory=lambda: ['psnr', 'ssim', 'niqe'])
    student: dict[str, Any] | None = None  # a network that is narrowed in the teacher's place
    search: Search = field(default_factory=Search)
    schedules: dict[str, Schedule] = {}
    teacher_discriminator: DiscriminatorTraining | None = None  # takes the place of the files that methods name
    perceptual: str | StandIn = 'as published'  # or none, or a backbone, of which KIND:FILE is the short form
    fd_backbone: str | None = None  # of fd, and of kid, which takes InceptionV3 without it
    teacher_cache: str | None = None  # a folder of the teacher's answers, the same for all cells
    images: bool = True  # whether the students' images of the test sets stay, for the report
    exploratory: str | None = None
    output: str | None = None

    @property
    def on_line(self) -> bool:
        """Whether the degradation is drawn while training."""
        return self.data.photographs is not None and self.data.photographs.on_line

    def factors(self) -> list[int]:
        """The factors at which students of faces are measured, in order; empty for others."""
        faces = self.data.faces
        return sorted(set(faces.measured or faces.factors)) if faces else []

    def ratios(self) -> list[Fraction]:
        """The widths as fractions of the teacher's channels."""
        return [fraction(width, 'widths') for width in self.widths]

    def stand_in(self) -> StandIn | None:
        """The backbone of ``perceptual``, or None where it is ``as published`` or ``none``."""
        if isinstance(self.perceptual, StandIn):
            return self.perceptual
        kind, colon, file = self.perceptual.partition(':')
        return StandIn(kind, file) if colon else None


def read_config(path: str) -> Config:
    """Reads and checks an option file; files and folders that it names are looked for later.

    Raises:
        UserError: All mistakes, each with the file's name and its key.
    """
    from sdakd_models.options import typed
    from sdakd_models.reader import read_merged

    content = read_merged(path)
    try:
        with Mistakes() as mistakes:
            for block, struct in BLOCKS.items():  # one by one, innermost first: the sentence then names where exactly
                for where, entry in _entries(content, block.split(':')):
                    if not mistakes.about(where):
                        typed(struct, entry, where, mistakes=mistakes)
            if isinstance(content.get('perceptual'), Mapping):
                typed(StandIn, content['perceptual'], 'perceptual', mistakes=mistakes)
            for field in Config.__struct_fields__[:8]:
                if field not in content:
                    mistakes.add(field, 'the key is missing.')
        if isinstance(content.get('widths'), list):
            content['widths'] = [str(width) for width in content['widths']]
        if isinstance(content.get('methods'), Mapping):
            content['methods'] = {str(name): entry for name, entry in content['methods'].items()}
        config = typed(Config, content, 'the comparison')
        _check(config)
    except UserError as error:
        raise error.within(path) from None
    return config


BLOCKS = {
    'data:photographs': Photographs,
    'data:faces': Faces,
    'data:train': Pairs,
    'data:validation': Pairs,
    'data': Data,
    'budget:stages:*': Length,
    'budget': Budget,
    'primary': Primary,
    'search': Search,
    'teacher_discriminator': DiscriminatorTraining,
    'methods:*': Method,
    'schedules:*:stages:*': Length,
    'schedules:*': Schedule,
}


def _entries(content: object, parts: list[str], at: str = '') -> Iterator[tuple[str, object]]:
    """What stands under a key, with its full name; ``*`` is every key of a mapping."""
    if not parts:
        yield at, content
    elif isinstance(content, Mapping):
        for key in content if parts[0] == '*' else {parts[0]} & content.keys():
            yield from _entries(content[key], parts[1:], f'{at}:{key}' if at else str(key))


def _distinct(values: Iterable[object], where: str) -> None:
    values = list(values)
    double = next((value for value in values if values.count(value) > 1), None)
    if double is not None:
        raise UserError(where, f'{double} stands there twice; write it once.')


def _check_data(config: Config) -> None:
    """One kind of data, and the keys that belong to it."""
    data, budget, photographs = config.data, config.budget, config.data.photographs
    pairs = [data.train is not None, data.validation is not None]
    if sum([photographs is not None, data.faces is not None, any(pairs)]) != 1 or any(pairs) != all(pairs):
        raise UserError('data', 'write either photographs, or faces, or both train and validation.')
    if (data.faces is None) == (budget.crop is None):
        fits = 'leave it out, faces are trained on whole' if data.faces else 'the key is missing'
        raise UserError('budget:crop', f'{fits}.')
    if data.faces and config.teacher_cache:
        raise UserError('teacher_cache', 'inputs of faces are made while training; leave it out.')
    held = photographs or data.faces
    if held and held.validation is None and len(config.search.factors) > 1:
        where = f'data:{"photographs" if photographs else "faces"}:validation'
        raise UserError(where, 'the search chooses weights on other images; write which, or one factor.')
    if photographs is None:
        return
    if photographs.on_line and photographs.degradation != 'realesrgan':
        raise UserError('data:photographs:on_line', "it is Real-ESRGAN's degradation; write degradation: realesrgan.")
    if photographs.on_line and config.teacher_cache:
        raise UserError('teacher_cache', 'no input comes twice where the degradation is drawn on line; leave it out.')
    own = {'meta_info': None, 'queue_size': 180, 'pool_reuse': 1}
    if not photographs.on_line and (key := next((k for k, v in own.items() if getattr(photographs, k) != v), None)):
        raise UserError(f'data:photographs:{key}', 'it belongs to on_line: true; write that, or leave it out.')
    if photographs.meta_info and isinstance(photographs.validation, int):
        sentence = 'name a folder of other photographs; crops of one photograph may stand in the list several times.'
        raise UserError('data:photographs:validation', sentence)


def _check(config: Config) -> None:
    """What the types cannot say."""
    _check_data(config)
    _distinct(config.ratios(), 'widths')
    _distinct(config.seeds, 'seeds')
    _distinct(config.search.factors, 'search:factors')
    for name in (*config.methods, *config.schedules):
        if not NAME.fullmatch(name):
            raise UserError(
                'methods', f'{name!r} cannot name files; write letters, digits, dots, hyphens, underscores.'
            )
        if name.startswith(('first_stage', 'teacher_discriminator')):
            raise UserError('methods', f'{name} is the name of what methods share; choose another one.')
    for name, schedule in config.schedules.items():
        if name in config.methods:
            raise UserError(f'schedules:{name}', 'a method has this name; choose another one.')
        if schedule.method not in config.methods:
            raise UserError(
                f'schedules:{name}:method',
                f'no method is called {schedule.method!r}; {near(schedule.method, config.methods)}.',
            )
    for name, method in config.methods.items():
        if method.seeds is not None and method.seeds > len(config.seeds):
            raise UserError(f'methods:{name}:seeds', f'there are {len(config.seeds)} seeds, not {method.seeds}.')
    rows = (*config.methods, *config.schedules)
    if config.reference not in rows:
        raise UserError('reference', f'no method is called {config.reference!r}; {near(config.reference, rows)}.')
    for where, name in (('primary:metric', config.primary.metric), *(('metrics', name) for name in config.metrics)):
        if name not in METRICS:
            raise UserError(where, f'there is no metric {name!r}; {near(name, METRICS)}.')
    if config.primary.metric not in config.metrics:
        raise UserError('primary:metric', f'{config.primary.metric} is not among the metrics; add it there.')
    if config.fd_backbone is None and 'fd' in config.metrics:
        raise UserError('fd_backbone', 'name it, as KIND:FILE or efficientnet_lite0, because fd is among the metrics.')
    if config.fd_backbone is not None and not {'fd', 'kid'} & set(config.metrics):
        raise UserError('fd_backbone', 'leave it out, or write fd or kid among the metrics, which use it.')
    perceptual = config.perceptual
    if isinstance(perceptual, str) and perceptual not in ('as published', 'none') and ':' not in perceptual:
        raise UserError(
            'perceptual', f'write as published, none, or KIND:FILE such as squeezenet:FILE, not {perceptual!r}.'
        )
    if stand_in := config.stand_in():
        from sdakd_arch.backbones import check_backbone

        check_backbone(msgspec.to_builtins(stand_in), 'perceptual')


def locate(path: str, where: str, folder: bool = False) -> Path:
    """The absolute path of what an option file names: from the current folder, or from the checkout of this project.

    Raises:
        UserError: There is neither; an official weights file is fetched where the machine is online. In a dry run
            (:mod:`.missing`), what is missing is noted, and nothing is fetched.
    """
    from sdakd_arch.zoo import ensure_file

    given = Path(os.path.expanduser(path))
    for found in (given.absolute(), ROOT / given):
        if found.is_dir() if folder else found.is_file():
            return found
    if folder:
        missing.note(where, missing.folder_to_get(path))
    elif missing.noting():
        missing.note(where, missing.how_to_get(given.absolute()))
    else:
        ensure_file(given.absolute(), where)
    return given.absolute()


def locate_set(source: str, where: str) -> str:
    """A test set as ``sdakd evaluate -d`` takes it, ``HR`` or ``HR:LR``, with absolute paths."""
    gt, colon, lq = (source, '', '') if (ROOT / source).exists() else split_pair(source)
    return colon.join(str(locate(part, where, folder=True)) if part else '' for part in (gt, lq)[: 1 + len(colon)])


def method_file(name: str, method: Method, base: Path) -> Path:
    """The option file of a method: its ``file`` beside the comparison's or that ships, or its namesake that does.

    Raises:
        UserError: There is none.
    """
    if method.file is not None:
        beside = base / method.file
        found = beside if beside.is_file() else find_shipped(method.file)
        if found is None:
            sentence = f'{beside} does not exist, and none of this name ships; {near_shipped(method.file)}.'
            raise UserError(f'methods:{name}:file', sentence)
        return found
    known = {path.stem: path for each, path in shipped_files().items() if each.startswith('methods/')}
    if name not in known:
        raise UserError(f'methods:{name}', f'there is no method of this name; {near(name, known)}.')
    return known[name]
