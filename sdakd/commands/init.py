"""`sdakd init`: a user's own option file of Real-ESRGAN or BasicSR, turned into one that distils a teacher."""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import yaml

from sdakd import compat
from sdakd.commands.interface import Flags, Outcome
from sdakd.compat import Mistakes, UserError
from sdakd.files.option_text import OptionText
from sdakd.shipped import options_folder

SHIPPED = 'sdakd_realesrgan_x4.yml'  # what a user's file does not say: proportions of the stages, feature_opt, gan_opt
MODELS = {
    'RealESRGANModel': 'SDAKDRealESRGANModel',
    'RealESRNetModel': 'SDAKDRealESRGANModel',
    'ESRGANModel': 'SDAKDModel',
    'SRGANModel': 'SDAKDModel',
    'SRModel': 'SDAKDModel',
    'SwinIRModel': 'SDAKDModel',
}
REASONS = {  # of keys under train: that go
    'total_iter': 'the stages say how long; together they last as long',
    'net_d_iters': 'the discriminator learns once in every iteration',
    'net_d_init_iters': 'the discriminator begins with the adversarial stage',
}
WIDEST = 30  # characters of a value in the list of changes


@dataclass(frozen=True)
class Change:
    """One change.

    Args:
        key: Where, as errors name it: ``train:scheduler``.
        old, new: In short; ``none`` for a key that is not there.
        reason: Why.
    """

    key: str
    old: str
    new: str
    reason: str


@dataclass
class Made(Outcome):
    """An option file, and what was changed for it.

    Args:
        file: The file.
        changes: In the order in which they were made.
        written: False where the same file was there already.
    """

    file: Path
    changes: list[Change]
    written: bool

    def __str__(self) -> str:
        keys = [f'{change.key}:' for change in self.changes]
        turns = [f'{change.old} -> {change.new}:' for change in self.changes]
        widths = max(map(len, keys)), max(map(len, turns))
        lines = [
            f'{key:{widths[0]}} {turn:{widths[1]}} {change.reason}'
            for key, turn, change in zip(keys, turns, self.changes, strict=True)
        ]
        said = f'Wrote {self.file}' if self.written else f'{self.file} was there already'
        lines += ['', f'{said}. Everything else is as it was. To train:']
        return '\n'.join([*lines, f'  python basicsr/train.py -opt {self.file}', ''])


def init(
    source: str | os.PathLike,
    teacher: str | os.PathLike,
    width: str | float = '1/4',
    output: str | os.PathLike | None = None,
) -> Made:
    """Turns a training option file of Real-ESRGAN or BasicSR into one that distils a teacher by SDAKD.

    Data, degradation, losses, rates, validation and comments stay. The iterations are shared among three stages in the
    proportions of ``options/sdakd_realesrgan_x4.yml``, and the decay of the rates is carried into each of them.

    Args:
        source: The option file; its ``model_type`` is one of :data:`MODELS`.
        teacher: A model file, or a network that :func:`sdakd.fetch` knows by name.
        width: The student's share of the teacher's channels.
        output: The file to write; default: beside the source, under its name with ``_sdakd_1_4``.

    Raises:
        UserError: The file cannot be turned into one that trains, the teacher does not fit it, or the output is there
            and is another one. Nothing is written then.
    """
    compat.import_basicsr()
    from sdakd.files.images import write
    from sdakd_arch.width import fraction
    from sdakd_models.reader import read_merged, read_yaml

    source, ratio = Path(source), fraction(width, '-w')
    try:
        given = read_yaml(source)
    except UserError as error:
        raise error.at('--from') if error.where == '-opt' else error from None
    suffix = f'sdakd_{ratio.numerator}_{ratio.denominator}'
    target = Path(output) if output is not None else source.with_name(f'{source.stem}_{suffix}.yml')
    try:
        _check_model(given)
        path, network = _open_teacher(teacher, given.get('scale'))
        shipped = read_merged(options_folder() / SHIPPED)
        conversion = _Conversion(OptionText(source.read_text(encoding='utf-8-sig')), shipped, network, ratio)
        conversion.run(path, suffix)
        text = conversion.text.written()
        _check(conversion.text.values)
    except UserError as error:
        raise error if error.where.startswith('-') else error.within(str(source)) from None
    header = (
        f'# Distils {Path(path).name} into a student with {ratio} of its channels. Made by `sdakd init` from\n'
        f'# {source.name}.\n#\n#   python basicsr/train.py -opt {target}\n\n'
    )
    data = (header + text).encode()
    there = target.read_bytes() if target.is_file() else None
    if there != data and target.exists():
        raise UserError('-o', f'{target} is there already and is another one; remove it, or choose another name.')
    if there is None:
        write(target, data)
    return Made(target, conversion.changes, there is None)


def _check_model(given: Mapping) -> None:
    kind = str(given.get('model_type'))
    if kind.startswith('SDAKD'):
        raise UserError(
            'model_type', f'{kind} is SDAKD already; change the file itself, or write one that `extends:` it.'
        )
    if kind not in MODELS:
        raise UserError('model_type', f'{kind} cannot be turned into SDAKD; these can: {", ".join(MODELS)}.')
    for key in ('datasets', 'network_g', 'train'):
        if not isinstance(given.get(key), Mapping) or not given[key]:
            raise UserError(key, 'the block is missing; give a whole option file of a training.')


def _open_teacher(teacher: str | os.PathLike, scale: object) -> tuple[str, dict]:
    """The teacher's path as the option file is to name it, and its network options."""
    from sdakd.commands.fetch import FOLDER
    from sdakd.files.generators import open_network
    from sdakd_arch.zoo import MODELS as OFFICIAL
    from sdakd_arch.zoo import ensure_file

    path = Path(teacher)
    if not path.exists() and path.name == str(teacher) and str(teacher).removesuffix('.pth') in OFFICIAL:
        path = FOLDER / f'{str(teacher).removesuffix(".pth")}.pth'
    ensure_file(path, '-t', 'name a network of `sdakd fetch`')
    if path.suffix == '.onnx':
        raise UserError('-t', f'{path} is a graph, whose layers cannot be tapped; give the .pth or .safetensors file.')
    opened = open_network(path, '-t')
    if scale is not None and opened.scale != scale:
        raise UserError('scale', f'it is {scale}, but {path} enlarges {opened.scale} times; both must agree.')
    return str(path), opened.network


def _check(values: dict) -> None:
    """What the new file says is read as a run reads it, as far as that needs no data."""
    from sdakd_models.checks import keys, stages
    from sdakd_models.reader import resolve_widths
    from sdakd_models.scenario import Scenario

    opt = deepcopy(values)
    resolve_widths(opt)
    with Mistakes() as mistakes:
        keys.settle(opt, mistakes)
    stages.check(Scenario.read(opt))


class _Conversion:
    """Makes the changes, and writes down why.

    Args:
        text: The user's file, which is changed.
        shipped: The option file of this project that fills in.
        teacher: The teacher's network options.
        ratio: Of the student's channels.
    """

    def __init__(self, text: OptionText, shipped: Mapping, teacher: dict, ratio: Fraction) -> None:
        self.text, self.shipped, self.teacher, self.ratio = text, shipped, teacher, ratio
        self.changes: list[Change] = []

    # each of these notes what it changes; a path is written as errors write it, train:scheduler

    def set(self, path: str, value: str, reason: str) -> None:
        keys = path.split(':')
        old = self.text.get(keys)
        self.text.set(keys, value)
        self.note(path, old, self.text.get(keys), reason)

    def remove(self, path: str, reason: str) -> None:
        keys = path.split(':')
        old = self.text.get(keys)
        self.text.remove(keys)
        self.note(path, old, None, reason)

    def add(self, path: str, value: str, reason: str, after: str | None = None, gap: bool = False) -> None:
        keys = path.split(':')
        if keys[-1] in (self.text.get(keys[:-1]) if keys[:-1] else self.text.values):  # a null stands there
            self.text.set(keys, value)
        else:
            self.text.add(keys, value, after, gap)
        self.note(path, None, self.text.get(keys), reason)

    def note(self, path: str, old: object, new: object, reason: str) -> None:
        self.changes.append(Change(path, _short(old), _short(new), reason))

    # ------------------------------------------------------------------------------------------------------- subjects

    def run(self, teacher: str, suffix: str) -> None:
        """All changes, from the top of the file to its end."""
        self.general(suffix)
        self.networks(teacher)
        self.paths()
        self.training()

    def general(self, suffix: str) -> None:
        text, kind = self.text, self.text.get(['model_type'])
        name = text.get(['name'], 'run')
        value = _yaml(f'{name}_{suffix}')
        (self.set if 'name' in text.values else self.add)('name', value, 'the folder of the run before stays as it is')
        paired = kind != 'RealESRNetModel' and text.get(['high_order_degradation'], True) is False
        kept = 'the same data' if MODELS[kind] == 'SDAKDModel' or paired else 'the same degradation'
        self.set('model_type', MODELS[kind], f'{kept}; a student learns from a teacher, in stages')
        if text.get(['num_gpu'], 'auto') not in ('auto', 0, 1):
            self.set('num_gpu', 'auto', 'what is there; several GPUs by torchrun and --launcher pytorch')
        if kind == 'RealESRNetModel':
            self.sharpening()
        for phase, options in text.get(['datasets']).items():
            if isinstance(options, Mapping) and 'use_flip' in options and 'use_hflip' not in options:
                text.rename(['datasets', phase, 'use_flip'], 'use_hflip')
                self.changes.append(
                    Change(f'datasets:{phase}', 'use_flip', 'use_hflip', "the name that BasicSR's data sets read")
                )

    def sharpening(self) -> None:
        """RealESRNetModel's one target, or the targets of RealESRGANModel."""
        pairs = self.text.get(['high_order_degradation'], True) is False  # these RealESRNetModel leaves as they are
        sharp = self.text.get(['gt_usm']) is True and not pairs
        reason = 'Real-ESRGAN has a key for each target'
        if not sharp and not pairs:
            reason = 'the target stays as it is; inputs are made of the sharpened one, as in Real-ESRGAN'
        if 'gt_usm' in self.text.values:
            given = _short(self.text.get(['gt_usm']))
            self.text.rename(['gt_usm'], 'l1_gt_usm')
            if self.text.get(['l1_gt_usm']) is not sharp:
                self.text.set(['l1_gt_usm'], str(sharp).lower())
            self.changes.append(Change('gt_usm', given, f'l1_gt_usm: {str(sharp).lower()}', reason))
        else:
            self.add('l1_gt_usm', str(sharp).lower(), reason, 'model_type')
        gan = str(self.shipped['gan_gt_usm']).lower()
        self.add('gan_gt_usm', gan, "a discriminator is shown what is not sharpened, as in Real-ESRGAN's", 'l1_gt_usm')

    def networks(self, teacher: str) -> None:
        from sdakd_arch.weights import describe

        given, width = self.text.get(['network_g']), f'{{width: {self.ratio}}}'
        self.narrowed('-w', self.teacher)
        reason = f'the teacher with {self.ratio} of its channels'
        if other := _differences(given, self.teacher):
            reason += f', where the file has {other}'
        self.set('network_g', width, reason)
        discriminator = self.text.get(['network_d'])
        if discriminator is not None:
            self.narrowed('network_d', discriminator)
            self.add('network_d:width', str(self.ratio), "the student's discriminator, at the student's ratio")
        else:
            full = self.narrowed('network_d')
            reason = f'the file has none: {full["type"]}, published for {self.teacher["type"]}, at the same ratio'
            self.add('network_d', width, reason, 'network_g', gap=True)
        value = f'\n  weights: {_yaml(teacher)}\n  network: {_yaml(self.teacher)}'
        self.text.add(['teacher'], value, 'network_d', gap=True)
        self.changes.append(Change('teacher', 'none', Path(teacher).name, f'to distil: {describe(self.teacher)}'))

    def narrowed(self, where: str, network: Mapping | None = None) -> Mapping:
        """A network that can be narrowed; without one, the discriminator of the teacher's architecture."""
        from sdakd_arch.width import discriminator_of, student_of

        try:
            network = discriminator_of(self.teacher) if network is None else network
            student_of(network, float(self.ratio))
        except UserError as error:
            raise UserError(where, str(error)) from None
        return network

    def paths(self) -> None:
        path = self.text.get(['path'])
        if not isinstance(path, Mapping):
            return
        full = 'its file is of full width, which does not fit the student'
        reasons = {
            'pretrain_network_g': full,
            'pretrain_network_d': full.replace('the student', "the student's discriminator"),
            'resume_state': 'a training of another model cannot be continued',
        }
        for key, reason in reasons.items():
            if path.get(key) is not None:
                self.set(f'path:{key}', '~', reason)
        for key in ('strict_load_g', 'strict_load_d'):
            if key in path:
                self.remove(f'path:{key}', 'files have to fit in any case')

    def training(self) -> None:
        from msgspec import structs

        from sdakd_models.options import Train
        from sdakd_models.registry import term_options

        train = self.text.get(['train'])
        stages, rates = self.stages()
        known = {each.encode_name for each in structs.fields(Train)} - {'total_iter'} | term_options().keys()
        for side in ('optim_g', 'optim_d'):
            if 'lr' in self.text.get(['train', side], {}):
                self.remove(f'train:{side}:lr', f'every stage says its own, lr_{side[-1]}')
        place = [key for key in ('ema_decay', 'optim_g', 'optim_d') if key in train]
        place = 'scheduler' if 'scheduler' in train else max(place, key=list(train).index)
        lines = ''.join(f'\n  {name}:' + ''.join(f'\n    {line}' for line in stage) for name, stage in stages.items())
        self.text.add(['train', 'stages'], lines, place, gap=place != 'scheduler')
        iters = ' + '.join(str(stage['iters']) for stage in self.text.get(['train', 'stages']).values())
        self.changes.append(Change('train:stages', 'none', iters, f"SDAKD's stages, in the proportions of {SHIPPED}"))
        for key in list(train):
            if key not in known:
                self.remove(f'train:{key}', {**REASONS, **rates}.get(key, 'no option of this project'))
        if train.get('ema_decay') is None:
            self.add('train:ema_decay', '0', 'the file averages no weights; 0.999 would be the default here', 'stages')
        feature = {key: value for key, value in self.shipped['train']['feature_opt'].items() if key != 'layers'}
        blocks = {'feature_opt': (feature, "the teacher's feature maps, at equal depths of both networks")}
        if self.text.get(['train', 'gan_opt']) is None:
            blocks['gan_opt'] = (self.shipped['train']['gan_opt'], f'the file trains without one: that of {SHIPPED}')
        for key, (block, reason) in blocks.items():
            last = [each for each in self.text.get(['train']) if each.endswith('_opt')][-1]
            self.add(f'train:{key}', _yaml(block), reason, last)

    def stages(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """The lines of every stage, and what became of the keys that told rates."""
        train, shipped = self.text.get(['train']), self.shipped['train']['stages']
        terms = {key.removesuffix('_opt') for key in ('pixel_opt', 'perceptual_opt') if train.get(key)}
        if not terms:
            raise UserError('train', 'it has neither pixel_opt nor perceptual_opt; write one of them.')
        terms |= {'feature', 'gan'}
        total = int(_number(train, 'total_iter', least=len(shipped)))
        warmup = 0 if train.get('warmup_iter') in (None, -1, 0) else int(_number(train, 'warmup_iter'))
        rate_g = _number(train, 'optim_g:lr')
        rate_d = _number(train, 'optim_d:lr') if train.get('optim_d') else None
        whole = sum(stage['iters'] for stage in shipped.values())
        found, left = {}, total
        for place, (name, stage) in enumerate(shipped.items(), start=1):
            iters = max(1, total * stage['iters'] // whole) if place < len(shipped) else left
            left -= iters
            own = rate_d is None and 'lr_d' in stage  # a stage that the file does not have
            lines = [f'iters: {iters}', f'lr_g: {_rate(stage["lr_g"] if own else rate_g)}']
            if 'lr_d' in stage:
                lines.append(f'lr_d: {_rate(stage["lr_d"] if own else rate_d)}')
            if place == 1 and warmup:
                lines.append(f'warmup_iter: {min(iters, warmup)}')
            scheduler, said = _scheduler(train.get('scheduler'), rate_g, iters, total)
            lines += [f'scheduler: {scheduler}'] if scheduler else []
            lines.append(f'terms: [{", ".join(term for term in stage["terms"] if term in terms)}]')
            found[name] = lines
        warm = f'the stage {next(iter(shipped))} has it' if warmup else 'there is none, which is the default of stages'
        return found, {'scheduler': said, 'warmup_iter': warm}


def _scheduler(given: object, rate: float, iters: int, total: int) -> tuple[str, str]:
    """A stage's scheduler, empty where its rate is constant, and what became of the file's."""
    if not isinstance(given, Mapping):
        return '', 'the rates are constant'
    kind = given.get('type')
    if kind in ('MultiStepLR', 'MultiStepRestartLR'):
        steps = [int(step) for step in given.get('milestones') or () if step < total]
        if not steps:
            return '', 'its milestones lie at the end: the rates are constant'
        steps = [max(1, round(step * iters / total)) for step in steps]
        gamma = given.get('gamma', 0.1)  # BasicSR's default
        return (
            f'{{type: MultiStepLR, milestones: {steps}, gamma: {gamma}}}',
            'in every stage, at the same fractions of its length',
        )
    if kind == 'CosineAnnealingRestartLR':
        least = f'{min(1.0, float(given.get("eta_min", 0)) / rate):.6f}'
        return f'{{type: CosineAnnealingLR, eta_min: {least}}}', 'one period in every stage; eta_min is a factor there'
    raise UserError('train:scheduler:type', f'{kind!r} is none of BasicSR; write MultiStepLR.')


def _number(train: Mapping, path: str, least: int = 0) -> int | float:
    """A positive number of the block ``train:``, whole where it is one.

    Raises:
        UserError: It is missing or none.
    """
    value: object = train
    for key in path.split(':'):
        value = value.get(key) if isinstance(value, Mapping) else None
    try:
        number = float(str(value))  # 1e-4 without a dot is text to YAML
    except ValueError:
        number = 0.0
    if number <= 0 or not least <= number < float('inf'):
        wanted = f'number of at least {least}' if least else 'positive number'
        raise UserError(f'train:{path}', f'write a {wanted}, not {_short(value)}.')
    return int(number) if number.is_integer() else number


def _rate(value: float) -> str:
    """A small number as YAML reads it: with a dot and a sign."""
    digits, _, exponent = format(Decimal(str(value)).normalize(), 'e').partition('e')
    return f'{digits if "." in digits else digits + ".0"}e{exponent}'


def _differences(given: Mapping, teacher: Mapping) -> str:
    """What a network has that the teacher has not, in short; empty where both are the same at full width."""
    from basicsr.utils.registry import ARCH_REGISTRY

    from sdakd_arch.width import lookup

    if given.get('type') != teacher['type']:
        return str(given.get('type'))
    parameters = inspect.signature(lookup(ARCH_REGISTRY, teacher['type'], 'teacher')).parameters
    defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    full = {**defaults, **teacher}
    return ', '.join(f'{key}: {value}' for key, value in {**defaults, **given}.items() if value != full.get(key))


def _yaml(value: object) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix('\n').removesuffix('\n...')


def _short(value: object) -> str:
    """A value in one line, for the list of changes."""
    if value is None:
        return 'none'
    if isinstance(value, Mapping) and 'type' in value:
        return str(value['type'])
    text = _yaml(value)
    if len(text) <= WIDEST:
        return text
    # names and paths differ at their ends
    return f'...{text[3 - WIDEST :]}' if isinstance(value, str) else f'{text[: WIDEST - 3]}...'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, init)
    add('--from', dest='source', metavar='FILE', help="a training option file of Real-ESRGAN's or BasicSR's")
    add('-t', '--teacher', metavar='MODEL', help='the network to distil: a model file, or a name of `sdakd fetch`')
    add('-w', '--width', metavar='RATIO', help="the student's share of the teacher's channels (default: {default})")
    add('-o', '--output', metavar='FILE', help='file to write (default: beside FILE, its name with _sdakd_1_4)')
