"""`sdakd evaluate`: models on test sets, every metric against the ground truth and against the teacher."""

from __future__ import annotations

import argparse
import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd import __version__, compat
from sdakd.commands.interface import MOST_SEED, Flags, Outcome, number, one_of, whole
from sdakd.compat import UserError, near
from sdakd.files.limits import MAX_PIXELS, limited
from sdakd.progress import Progress, say

if TYPE_CHECKING:
    from sdakd.commands.evaluate.contenders import Contender
    from sdakd.commands.evaluate.measurement import Measurement
    from sdakd.files.testsets import TestSet
    from sdakd_metrics.metrics import Metric

FACTORS = 'table_factors'
NOISE = ('none', 'random', 'fixed')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, evaluate)
    add('-m', '--models', nargs='+', metavar='MODEL', help='.pth, .safetensors, ncnn .param or .onnx, a name of '
        '`sdakd models`, a folder of enlarged images, or bicubic; NAME=MODEL names the row')  # fmt: skip
    add('-d', '--data', nargs='+', metavar='SET', help='folder or .lmdb of HR images, HR:LR for two folders, :LR '
        'without ground truth; NAME=SET names the set')  # fmt: skip
    add('-o', '--output', required=True, help='folder for results.json, tables and images')
    add('--scale', type=number, nargs='+', metavar='S', help='factor between LR and HR (default: {default}); several '
        'for GCFSR: a folder OUT/xS for each')  # fmt: skip
    add('--metrics', nargs='+', metavar='METRIC', help='psnr ssim niqe lpips fid kid fd identity (default: {default})')
    add('--teacher', metavar='NAME', help='row that the others are also compared with (default: the first network)')
    border = 'border that PSNR, SSIM and NIQE leave out (default: the scale)'
    add('--crop_border', type=number, help=border)
    add('--rgb', action='store_true', help='PSNR and SSIM on RGB instead of Y')
    add('--backbone', metavar='KIND:FILE', help='for fd and kid: efficientnet_lite0, from its package, or '
        'squeezenet, alexnet, vgg16, vgg19 or efficientnet_lite0 with its weights file, in the published key names; '
        'squeezenet-caffe etc. for BGR in 0..255')  # fmt: skip
    add('--distance', nargs='+', metavar='KIND:FILE', help="columns dist-KIND: difference of two images' features; "
        'vgg16, squeezenet, squeezenet-caffe or efficientnet_lite0')  # fmt: skip
    add('--face_model', metavar='FILE', help="for identity: facexlib's recognition_arcface_ir_se50.pth (default: where "
        'facexlib keeps it), or an .onnx')  # fmt: skip
    add('-t', '--tile', type=number, help='side of a tile in input pixels, 0 for none (default: 384 for inputs of more '
        'than 512x512 pixels)')  # fmt: skip
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda where there is one)')
    add('--noise', choices=NOISE, help='noise that GCFSR adds: random, as in its own validation, or fixed, the same '
        'for every network (default: {default})')  # fmt: skip
    add('--seed', type=number, help='of random noise (default: {default})')
    add(
        '--max-pixels', type=number, metavar='PIXELS', help='images of more pixels are not decoded (default: {default})'
    )
    no_images = 'do not save the enlarged images (sdakd report shows them)'
    add('--no_images', dest='images', action='store_false', help=no_images)


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
    """Checks that every set has something to measure and that its images are larger than the border.

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
    from sdakd.files.images import UnusableError

    with Progress('images', sum(len(one.testset.names) for one in measurements), 'images') as progress:
        for measurement in measurements:
            progress.what = measurement.testset.name
            for name in measurement.testset.names:
                try:
                    measurement.take(name)
                except UnusableError as error:
                    measurement.unreadable.append(error.reason)
                    say(f'{measurement.testset.name}: {error.reason}; it is left out')
                progress.step()
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
        output: The folder, or None.
        sets: With LR images of this factor.
        contenders: The rows; the same in all, as is the teacher.
        teacher: The row that the others are compared with, or None.
        metrics: The columns.
        settings: What ``results.json`` says of the run: seed, noise and device.
    """

    scale: int
    output: Path | None
    sets: list[TestSet]
    contenders: list[Contender]
    teacher: Contender | None
    metrics: list[Metric]
    settings: dict

    def measure(self, images: bool) -> dict:
        """The section for ``results.json``; images are written as they are made, if they are to be written."""
        import torch

        from sdakd.commands.evaluate.measurement import Measurement

        output = self.output if images else None
        done = [Measurement(one, self.contenders, self.metrics, self.teacher, output) for one in self.sets]
        _measure(done)
        for note in (note for measurement in done for note in measurement.notes()):
            say(note)
        return {
            'version': __version__,
            'scale': self.scale,
            **self.settings,
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
            'scores': [score for one in done for score in one.scores()],
            'differences': [difference for one in done for difference in one.differences()],
            'pictures': {one.testset.name: one.pictures for one in done if one.pictures},
        }

    def tables(self, content: dict) -> dict[str, tuple[str, list[str], list[list[str]]]]:
        """Title, header and rows by the name of the file; a table without rows has nothing to say."""
        from sdakd.commands.evaluate.tables import difference_table, quality_table

        scores, differences = content['scores'], content['differences']
        return {
            'table': ('', *quality_table(scores, self.contenders, self.metrics, ('gt', None))),
            'table_teacher': (
                f'Compared with the images of {content["teacher"]}:',
                *quality_table(scores, self.contenders, self.metrics, ('teacher',)),
            ),
            'table_differences': (
                'Differences image by image, first model minus second:',
                *difference_table(differences, self.metrics),
            ),
        }

    def write(self, content: dict) -> None:
        """Writes results.json and the tables."""
        from sdakd.commands.evaluate.tables import intervals_note
        from sdakd.files import results

        results.write_section(self.output, 'evaluate', _without_infinities(content))
        for name, (_, header, rows) in self.tables(content).items():
            if rows:
                results.write_tables(self.output, name, header, rows, intervals_note([content]))
                continue
            for kind in ('md', 'csv', 'tex'):
                Path(self.output, f'{name}.{kind}').unlink(missing_ok=True)  # of an earlier run

    def text(self, content: dict) -> str:
        """The tables for the screen."""
        from sdakd.files import results

        text = ''
        for name, (title, header, rows) in self.tables(content).items():
            if name == 'table_differences':  # on screen, those to the teacher say the most
                rows = [row for row in rows if row[1].endswith(f' - {content["teacher"]}')] or rows
            if rows:
                text += (f'\n{title}\n' if title else '') + results.table(header, rows)
        return text


@dataclass
class Results(Outcome):
    """What was measured.

    Args:
        sections: By factor, what docs/evaluate.md says of the section ``evaluate`` of ``results.json``: ``models``,
            ``sets``, ``scores``, ``differences``, ``pictures``. PSNR of equal images is infinite here.
        output: The folder that it was written to, or None.
        images: Whether enlarged images were written.
    """

    sections: dict[int, dict]
    output: Path | None
    images: bool
    plans: list[Plan] = field(repr=False)

    def mean(self, model: str, metric: str, reference: str | None = 'gt', set: str | None = None) -> float | None:
        """The mean of a metric over the images of a set, at the first factor.

        Args:
            model, metric: Their names.
            reference: ``gt`` or ``teacher``; ignored for metrics without a reference.
            set: The name; default: the first set.
        """
        section = next(iter(self.sections.values()))
        set = set or section['sets'][0]['name']
        return next(
            (
                score['mean']
                for score in section['scores']
                if (score['model'], score['metric'], score['set']) == (model, metric, set)
                and score['reference'] in (reference, None)
            ),
            None,
        )

    def __str__(self) -> str:
        from sdakd.commands.evaluate.tables import explanation, factor_table
        from sdakd.files.results import table

        text, several, contents, plan = '', len(self.plans) > 1, list(self.sections.values()), self.plans[0]
        for one in self.plans:
            if several:
                text += f'\nx{one.scale}{f", in {one.output}" if one.output else ""}:\n'
            text += one.text(self.sections[one.scale])
        if several:
            metric, rows = factor_table(contents, plan.contenders, plan.metrics)
            text += f'\nAll factors, {metric.label}:\n{table(*rows)}'
        text += explanation(contents, plan.contenders, plan.metrics)
        if self.output is None:
            return text
        written = f'results.json, tables as .md, .csv and .tex{", images/" if self.images else ""}'
        if several:
            folders = ', '.join(one.output.name for one in self.plans)
            written = f'{FACTORS} as .md, .csv and .tex; in {folders} each {written}'
        return text + f'Written to {self.output}: {written}\n'

    def check(self) -> None:
        # one that is damaged is so at every factor
        reasons = [r for section in self.sections.values() for one in section['sets'] for r in one['unreadable']]
        unreadable = list(dict.fromkeys(reasons))
        if unreadable:
            first = '; '.join(unreadable[:3]) + ('; ...' if len(unreadable) > 3 else '')
            raise UserError(
                '-d',
                f'{len(unreadable)} images could not be used and are left out of all results ({first}); repair or '
                'remove them.',
            )


@limited
def evaluate(
    models: Sequence[str],
    data: Sequence[str],
    output: str | Path | None = None,
    *,
    scale: int | Sequence[int] = 4,
    metrics: Sequence[str] = ('psnr', 'ssim', 'niqe'),
    teacher: str | None = None,
    crop_border: int | None = None,
    rgb: bool = False,
    backbone: str | None = None,
    distance: Sequence[str] = (),
    face_model: str | None = None,
    tile: int | None = None,
    device: str | None = None,
    noise: str = 'none',
    seed: int = 0,
    images: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Results:
    """Measures models on test sets, against the ground truth and against the teacher.

    Args:
        models: ``.pth``, ``.safetensors`` or ``.onnx`` files, names of :mod:`sdakd.files.named`, folders of images that
            something else enlarged, or ``bicubic``, each with ``NAME=`` in front where wanted.
        data: Test sets: ``HR``, ``HR:LR`` or ``:LR``, folders or LMDB databases, each with ``NAME=`` in front where
            wanted. LR images that are not given are made by MATLAB's bicubic interpolation.
        output: Folder for results.json, tables and images; None writes nothing.
        scale: Factor between LR and HR; several for GCFSR and bicubic, each then has a folder of its own.
        metrics: Of ``psnr`` (dB), ``ssim``, ``niqe``, ``lpips``, ``fid``, ``kid``, ``fd``, ``identity``.
        teacher: Name of the row that the others are also compared with; default: the first network.
        crop_border: Pixels that PSNR, SSIM and NIQE leave out at every edge; default: the scale.
        rgb: PSNR and SSIM on RGB instead of Y.
        backbone: ``KIND:FILE`` or ``efficientnet_lite0`` for ``fd`` and ``kid``; ``kid`` takes InceptionV3 without it.
        distance: ``KIND:FILE`` of each backbone whose features are compared image by image.
        face_model: File of the network for ``identity``; default: facexlib's.
        tile: Side of a tile in input pixels, 0 for none; default: 384 for inputs of more than 512x512 pixels.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; default: ``cuda`` where there is one.
        noise: What GCFSR adds: ``none``, ``random`` or ``fixed``.
        seed: Of random noise.
        images: Whether the enlarged images are written to ``output``.
        max_pixels: Images of more pixels are not decoded.

    Returns:
        All measurements; its ``check()`` raises a UserError if images could not be used.

    Raises:
        UserError: A mistake in an argument or a file, found before anything is computed.
    """
    factors = [whole(one, '--scale', 1) for one in ([scale] if isinstance(scale, int | str) else scale)]
    crop_border = None if crop_border is None else whole(crop_border, '--crop_border')
    tile, seed = None if tile is None else whole(tile, '-t'), whole(seed, '--seed', 0, MOST_SEED)
    one_of(noise, NOISE, '--noise')
    if len(set(factors)) < len(factors):
        raise UserError('--scale', f'{" ".join(map(str, factors))} names a factor twice; give each once.')
    compat.import_basicsr()
    import torch

    from sdakd.commands.evaluate.contenders import open_contenders
    from sdakd.commands.evaluate.tables import factor_table, intervals_note
    from sdakd.commands.prepare.jobs import apart
    from sdakd.files import results
    from sdakd.files.testsets import Folder, open_sets
    from sdakd_metrics.metrics import Settings, open_metrics

    device = _device(device)
    torch.backends.cudnn.allow_tf32 = False  # float32 must mean the same on a GPU as on a CPU
    several = len(factors) > 1
    sets = [open_sets(data, factor) for factor in factors]
    for testset in (testset for of_factor in sets for testset in of_factor):
        for folder in (testset.hr, testset.lr):
            if output is not None and isinstance(folder, Folder):
                apart(folder.path, str(output), '-d')
        say(testset.describe())
    contenders = open_contenders(models, None if several else factors[0], device, tile, noise, seed)
    for of_factor in sets:
        for contender in contenders:
            contender.check(of_factor)
    reference = _teacher(teacher, contenders)
    output = None if output is None else Path(output)
    plans = []
    for factor, of_factor in zip(factors, sets, strict=True):
        border = factor if crop_border is None else crop_border
        columns = open_metrics(metrics, Settings(border, rgb, backbone, device, face_model, distance))
        _check_measurable(columns, of_factor, reference is not None and len(contenders) > 1, border)
        place = output / f'x{factor}' if output and several else output
        if place:
            results.read_results(place)
        settings = {'seed': seed, 'noise': noise, 'device': device}
        plans.append(Plan(factor, place, of_factor, contenders, reference, columns, settings))
    if output:
        results.output_folder(output)
    sections: dict[int, dict] = {}
    try:
        for one in plans:
            content = one.measure(images)
            if output:
                one.write(content)
            sections[one.scale] = content
        if output and several:
            contents = list(sections.values())
            results.write_tables(
                output, FACTORS, *factor_table(contents, contenders, columns)[1], intervals_note(contents)
            )
    except KeyboardInterrupt:
        done = ', '.join(f'x{factor}' for factor in sections)
        kept = f'only the results of {done} were written' if done else 'no results were written'
        raise KeyboardInterrupt(f'{kept}; give the same command again') from None
    return Results(sections, output, images, plans)
