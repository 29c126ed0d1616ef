"""`sdakd evaluate`: models on test sets, every metric against the ground truth and against the teacher."""

from __future__ import annotations

import argparse
import datetime
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd import __version__, compat
from sdakd.compat import UserError, near

if TYPE_CHECKING:
    from sdakd.commands.evaluate.contenders import Contender
    from sdakd.commands.evaluate.measurement import Measurement
    from sdakd.files.testsets import TestSet
    from sdakd_metrics.metrics import Metric

FACTORS = 'table_factors'


def _whole(flag: str, least: int = 0) -> Callable[[str], int]:
    """A reader of whole numbers for a flag."""

    def read(text: str) -> int:
        if not re.fullmatch(r'\d+', text) or int(text) < least:
            raise UserError(flag, f'write a whole number of at least {least}, not {text!r}.')
        return int(text)

    return read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = parser.add_argument
    add('-m', '--models', nargs='+', required=True, metavar='MODEL', help='.pth, .safetensors or .onnx, a folder of '
        'enlarged images, or bicubic; NAME=MODEL names the row')  # fmt: skip
    add('-d', '--data', nargs='+', required=True, metavar='SET', help='folder or .lmdb of HR images, HR:LR for two '
        'folders, :LR without ground truth; NAME=SET names the set')  # fmt: skip
    add('-o', '--output', required=True, help='folder for results.json, tables and images')
    add('--scale', type=_whole('--scale', 1), nargs='+', default=[4], metavar='S', help='factor between LR and HR '
        '(default: 4); several for GCFSR: a folder OUT/xS for each')  # fmt: skip
    add('--metrics', nargs='+', default=['psnr', 'ssim', 'niqe'], metavar='METRIC',
        help='psnr ssim niqe lpips fid kid fd identity (default: the first three)')  # fmt: skip
    add('--teacher', metavar='NAME', help='row that the others are also compared with (default: the first network)')
    add(
        '--crop_border',
        type=_whole('--crop_border'),
        help='border that PSNR, SSIM and NIQE leave out (default: the scale)',
    )
    add('--rgb', action='store_true', help='PSNR and SSIM on RGB instead of Y')
    add('--backbone', metavar='KIND:FILE', help='for fd: squeezenet, alexnet, vgg16, vgg19 or efficientnet_lite0 '
        'with its weights file, in the published key names; squeezenet-caffe etc. for BGR in 0..255')  # fmt: skip
    add('--distance', nargs='+', default=[], metavar='KIND:FILE', help="columns dist-KIND: difference of two images' "
        'features; vgg16, squeezenet, squeezenet-caffe or efficientnet_lite0')  # fmt: skip
    add('--face_model', metavar='FILE', help="for identity: facexlib's recognition_arcface_ir_se50.pth (default: where "
        'facexlib keeps it), or an .onnx')  # fmt: skip
    add('-t', '--tile', type=_whole('-t'), help='side of a tile in input pixels, 0 for none (default: 384 for inputs '
        'of more than 512x512 pixels)')  # fmt: skip
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda where there is one)')
    add('--noise', choices=('none', 'random', 'fixed'), default='none', help='noise that GCFSR adds: random, as in '
        'its own validation, or fixed, the same for every network (default: none)')  # fmt: skip
    add('--seed', type=_whole('--seed'), default=0, help='of the bootstrap and of random noise (default: 0)')
    add('--no_images', action='store_true', help='do not save the enlarged images (sdakd report shows them)')


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError('--device', f'{name} cannot be used here ({reason}); write cpu.') from None
    return name


def _teacher(name: str | None, contenders: list[Contender]) -> Contender | None:
    rows = {contender.name: contender for contender in contenders}
    if name is not None and name not in rows:
        raise UserError('--teacher', f'no row is called {name!r}; {near(name, rows)}.')
    networks = (row for row in contenders if row.kind in ('network', 'onnx'))
    return rows[name] if name is not None else next(networks, None)


def _check_measurable(metrics: list[Metric], sets: list[TestSet], others: bool, border: int) -> None:
    """Sees that every set has something to measure and that its images are larger than the border.

    Args:
        others: Whether there is a teacher, and a row to compare with it.
    """
    for testset in sets:
        if testset.hr is None and not others and not all(metric.blind for metric in metrics):
            names = ' '.join(metric.name for metric in metrics if not metric.blind)
            raise UserError(
                '-d',
                f'{testset.name} has no ground truth, and there are no two models to compare with each other; '
                f'leave {names} out of --metrics or give HR images.',
            )
        if {'psnr', 'ssim'} & {metric.name for metric in metrics}:
            for name in testset.names:
                size = testset.size(name)
                if size and min(size) < 2 * border + 11:
                    raise UserError(
                        '-d',
                        f'{name} of {testset.name} ({size[1]}x{size[0]}) is too small for SSIM without a border of '
                        f'{border} pixels; take it out or write a smaller --crop_border.',
                    )


def _cell(metric: Metric, entry: dict | None) -> str:
    """``28.43 [25.10, 31.76]``; a dash where nothing was measured."""
    if entry is None or entry['mean'] is None:
        return '-'
    limits = f' [{metric.write(entry["low"])}, {metric.write(entry["high"])}]' if entry['low'] is not None else ''
    return metric.write(entry['mean']) + limits


def quality_table(
    scores: Sequence[dict], contenders: Sequence[Contender], metrics: Sequence[Metric], references: tuple
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row per set and model, means with their intervals against one of ``references``."""
    found = {(s['set'], s['model'], s['metric']): s for s in scores if s['reference'] in references}
    columns = [metric for metric in metrics if any(key[2] == metric.name for key in found)]
    rows = []
    for name in dict.fromkeys(s['set'] for s in scores):
        for row in contenders:
            cells = [_cell(metric, found.get((name, row.name, metric.name))) for metric in columns]
            if set(cells) - {'-'}:
                parameters = '-' if row.parameters is None else f'{row.parameters:,d}'
                macs = '-' if row.macs is None else f'{row.macs / 1e9:.3f}'
                rows.append([name, row.name, parameters, macs, *cells])
    return ['Set', 'Model', 'Parameters', 'GMACs', *(metric.label for metric in columns)], rows


def difference_table(differences: Sequence[dict], metrics: Sequence[Metric]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row per set, pair of models and reference; blind metrics stand with the ground truth."""
    found = {(d['set'], d['a'], d['b'], d['reference'] or 'gt', d['metric']): d for d in differences}
    columns = [metric for metric in metrics if any(key[4] == metric.name for key in found)]
    rows = []
    for key in dict.fromkeys(key[:4] for key in found):
        cells = [_cell(metric, found.get((*key, metric.name))) for metric in columns]
        against = 'teacher' if key[3] == 'teacher' else 'ground truth'
        rows.append([key[0], f'{key[1]} - {key[2]}', against, *cells])
    return ['Set', 'Difference', 'Measured against', *(metric.label for metric in columns)], rows


def _without_infinities(content):
    """The same with None for infinite numbers, which JSON cannot express."""
    if isinstance(content, dict):
        return {key: _without_infinities(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_infinities(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _measure(measurements: Sequence[Measurement]) -> None:
    """Goes through all sets, one image at a time; an unusable image is named at once.

    Raises:
        UserError: No image could be used.
    """
    from tqdm import tqdm

    from sdakd.files.images import UnusableError

    with tqdm(total=sum(len(one.testset.names) for one in measurements), unit='image') as bar:
        for measurement in measurements:
            bar.set_description(measurement.testset.name)
            for name in measurement.testset.names:
                try:
                    measurement.take(name)
                except UnusableError as error:
                    measurement.unreadable.append(error.reason)
                    tqdm.write(f'{measurement.testset.name}: {error.reason}; it is left out', file=sys.stderr)
                bar.update()
    for measurement in measurements:
        if not measurement.measured:
            raise UserError(
                '-d',
                f'none of the {len(measurement.testset.names)} images of {measurement.testset.name} could be used '
                f'({measurement.unreadable[0]}); nothing was written.',
            )


@dataclass
class Plan:
    """What is measured at one factor, and where its results go.

    Args:
        scale: The factor.
        output: The folder.
        sets: With LR images of this factor.
        contenders: The rows; the same in all, as is the teacher.
        teacher: The row that the others are compared with, or None.
        metrics: The columns.
    """

    scale: int
    output: Path
    sets: list[TestSet]
    contenders: list[Contender]
    teacher: Contender | None
    metrics: list[Metric]

    def measure(self, args: argparse.Namespace) -> dict:
        """The section for ``results.json``; images are written as they are made."""
        import torch

        from sdakd.commands.evaluate.measurement import Measurement

        images = None if args.no_images else self.output
        done = [Measurement(one, self.contenders, self.metrics, self.teacher, images) for one in self.sets]
        _measure(done)
        for note in (note for measurement in done for note in measurement.notes()):
            sys.stderr.write(note + '\n')
        return {
            'version': __version__,
            'scale': self.scale,
            'seed': args.seed,
            'noise': args.noise,
            'device': args.device,
            'torch': torch.__version__,
            'date': datetime.datetime.now().isoformat(timespec='seconds'),
            'models': [contender.facts() for contender in self.contenders],
            'teacher': self.teacher and self.teacher.name,
            'sets': [
                {
                    'name': one.testset.name,
                    'source': one.testset.source,
                    'images': one.measured,
                    'unreadable': one.unreadable,
                }
                for one in done
            ],
            'metrics': [metric.facts() for metric in self.metrics],
            'scores': [score for one in done for score in one.scores(args.seed)],
            'differences': [difference for one in done for difference in one.differences(args.seed)],
            'pictures': {one.testset.name: one.pictures for one in done if one.pictures},
        }

    def write(self, content: dict) -> None:
        """Writes results.json and the tables, and shows the tables."""
        from sdakd.files import results

        teacher = content['teacher']
        tables = {
            'table': ('', *quality_table(content['scores'], self.contenders, self.metrics, ('gt', None))),
            'table_teacher': (
                f'Compared with the images of {teacher}:',
                *quality_table(content['scores'], self.contenders, self.metrics, ('teacher',)),
            ),
            'table_differences': (
                'Differences image by image, first model minus second:',
                *difference_table(content['differences'], self.metrics),
            ),
        }
        results.write_section(self.output, 'evaluate', _without_infinities(content))
        for name, (title, header, rows) in tables.items():
            if not rows:
                for kind in ('md', 'csv', 'tex'):
                    Path(self.output, f'{name}.{kind}').unlink(missing_ok=True)  # of an earlier run
                continue
            results.write_tables(self.output, name, header, rows)
            if name == 'table_differences':  # on screen, those to the teacher say the most
                rows = [row for row in rows if row[1].endswith(f' - {teacher}')] or rows
            sys.stdout.write(f'\n{title}\n'.lstrip('\n' if not title else '') + results.table(header, rows))


def _explain(contenders: Sequence[Contender], metrics: Sequence[Metric]) -> None:
    """Says how the tables on screen are to be read."""
    for better, names in (
        ('Higher is better', [metric.label for metric in metrics if metric.higher_is_better]),
        ('Lower is better', [metric.label for metric in metrics if not metric.higher_is_better]),
    ):
        if names:
            sys.stdout.write(f'{better}: {", ".join(names)}. ')
    faces = '; GCFSR: for one face' if any(getattr(row, 'faces', False) for row in contenders) else ''
    sys.stdout.write(f'In brackets: 95% bootstrap intervals over images. GMACs: for 64x64 input pixels{faces}.\n')


def factor_table(plans: Sequence[Plan], contents: Sequence[dict]) -> tuple[Metric, list[str], list[list[str]]]:
    """The metric, header and rows of the table of all factors: a row per set and model, a column per factor.

    The metric is FID where it was measured, else the first; against the ground truth, where it has a reference.
    """
    metrics = plans[0].metrics
    metric = next((one for one in metrics if one.name == 'fid'), metrics[0])
    found = {
        (content['scale'], s['set'], s['model']): s
        for content in contents
        for s in content['scores']
        if s['metric'] == metric.name and s['reference'] in ('gt', None)
    }
    rows = []
    for name in (testset.name for testset in plans[0].sets):
        for row in plans[0].contenders:
            rows.append([name, row.name, *(_cell(metric, found.get((one.scale, name, row.name))) for one in plans)])
    return metric, ['Set', 'Model', *(f'{metric.label} x{one.scale}' for one in plans)], rows


def _plans(args: argparse.Namespace) -> list[Plan]:
    """Opens and checks everything, for all factors.

    Raises:
        UserError: A mistake on the command line or in a file.
    """
    from sdakd.commands.evaluate.contenders import open_contenders
    from sdakd.files.results import read_results
    from sdakd.files.testsets import open_sets
    from sdakd_metrics.metrics import Settings, open_metrics

    scales = args.scale
    if len(set(scales)) < len(scales):
        raise UserError('--scale', f'{" ".join(map(str, scales))} names a factor twice; give each once.')
    sets = [open_sets(args.data, scale) for scale in scales]
    scale = scales[0] if len(scales) == 1 else None
    contenders = open_contenders(args.models, scale, args.device, args.tile, args.noise, args.seed)
    for of_factor in sets:
        for contender in contenders:
            contender.check(of_factor)
    teacher = _teacher(args.teacher, contenders)
    plans = []
    for scale, of_factor in zip(scales, sets, strict=True):
        border = scale if args.crop_border is None else args.crop_border
        metrics = open_metrics(
            args.metrics,
            Settings(border, args.rgb, args.backbone, args.device, args.face_model, args.distance),
        )
        _check_measurable(metrics, of_factor, teacher is not None and len(contenders) > 1, border)
        output = Path(args.output) if len(scales) == 1 else Path(args.output, f'x{scale}')
        read_results(output)
        plans.append(Plan(scale, output, of_factor, contenders, teacher, metrics))
    return plans


def run(args: argparse.Namespace) -> int:
    """Measures and writes.

    Returns:
        0, or 130 when it was interrupted.

    Raises:
        UserError: A mistake on the command line or in a file, found before anything is computed; or, after everything
            else was written, images that could not be used.
    """
    compat.import_basicsr()
    import torch

    from sdakd.files import results

    args.device = _device(args.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 must mean the same on a GPU as on a CPU
    plans = _plans(args)
    output = results.output_folder(args.output)
    several = len(plans) > 1
    contents: list[dict] = []
    try:
        for one in plans:
            content = one.measure(args)
            if several:
                sys.stdout.write(f'\nx{one.scale}, in {one.output}:\n')
            one.write(content)
            contents.append(content)
        if several:
            metric, header, rows = factor_table(plans, contents)
            results.write_tables(output, FACTORS, header, rows)
            sys.stdout.write(f'\nAll factors, {metric.label}:\n{results.table(header, rows)}')
        _explain(plans[0].contenders, plans[0].metrics)
    except OSError as error:
        raise UserError(
            '-o',
            f'{error.filename or output} cannot be written ({error.strerror or error}); mend that and give the '
            'same command again.',
        ) from None
    except KeyboardInterrupt:
        done = ', '.join(f'x{content["scale"]}' for content in contents)
        written = f'only the results of {done} were written' if contents else 'no results were written'
        sys.stderr.write(f'\nInterrupted: {written}.\n')
        return 130
    extra = '' if args.no_images else ', images/'
    written = f'results.json, tables as .md, .csv and .tex{extra}'
    if several:
        folders = ', '.join(one.output.name for one in plans)
        written = f'{FACTORS} as .md, .csv and .tex; in {folders} each {written}'
    sys.stdout.write(f'Written to {output}: {written}\n')
    unreadable: list[str] = []
    for content in contents:  # one that is damaged is so at every factor
        unreadable += [reason for one in content['sets'] for reason in one['unreadable'] if reason not in unreadable]
    if unreadable:
        first = '; '.join(unreadable[:3]) + ('; ...' if len(unreadable) > 3 else '')
        raise UserError(
            '-d',
            f'{len(unreadable)} images could not be used and are left out of all results ({first}); repair or '
            'remove them.',
        )
    return 0
