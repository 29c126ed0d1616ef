"""`sdakd report`: what evaluate, bench and training runs wrote, as one HTML file that needs nothing else."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd import __version__, stops
from sdakd.commands.interface import Flags, Outcome, number, whole
from sdakd.compat import UserError
from sdakd.progress import say

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from sdakd.commands.report.curves import Point, Run, Stage
    from sdakd.commands.report.data import Inputs
    from sdakd.commands.report.pictures import Gallery
    from sdakd.commands.report.svg import Curve

FEW = 30  # points of a curve that is shown as it is: a mean of so few would hide more than it shows
TEMPLATES = Path(__file__).parent / 'templates'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, report)
    wrote = 'what evaluate or bench wrote, and experiments/<name>; runs of evaluated checkpoints are found'
    add('-i', '--input', dest='folders', nargs='+', metavar='FOLDER', help=wrote)
    add('-o', '--output', metavar='FILE', help='the page, such as report.html')
    add(
        '--student',
        metavar='NAME',
        help='row that the page is about (default: the last network that is not the teacher)',
    )
    most = 'how many images to show; default: what fits into about 10 MB'
    add('--max_images', type=number, metavar='N', help=most)


def _curve(name: str, points: Sequence[Point], stages: Sequence[Stage]) -> Curve:
    from sdakd.commands.report import svg
    from sdakd.commands.report.curves import smooth, thin

    if len(points) < FEW:
        return svg.Curve(name, points)
    if name.startswith('share_'):  # measured now and then, and logged again until the next time: nothing to smooth
        return svg.Curve(name, thin(points))
    return svg.Curve(name, thin(smooth(points, stages)), thin(points))


def _groups(run: Run) -> list[dict]:
    """The plots of a run: losses, shares of the gradient, discriminators' outputs, validation metrics."""
    from sdakd.commands.report import svg

    kinds = [
        ('Losses of the student', 'l_g_', 'loss'),
        ('Shares of the gradient', 'share_', "part of the student's gradient"),
        ('Losses of the discriminators', 'l_d_', 'loss'),
        ('Outputs of the discriminators', 'out_d_', 'mean output, before the sigmoid'),
    ]
    groups = []
    for title, prefix, label in kinds:
        found = {name: points for name, points in run.series.items() if name.startswith(prefix)}
        lines = [_curve(name, points, run.stages) for name, points in found.items()]
        groups.append((title, label, lines))
    for metric in dict.fromkeys(metric for _, metric in run.validation):
        lines = [svg.Curve(of, points) for (of, name), points in run.validation.items() if name == metric]
        groups.append((f'Validation: {metric}', metric, lines))
    return [
        {
            'title': title,
            'names': [line.name for line in lines],
            'smoothed': any(line.raw for line in lines),
            'plot': svg.curves(lines, run.stages, run.last, label, f'{title} of {run.name} over iterations'),
        }
        for title, label, lines in groups
        if lines
    ]


def _trade_offs(inputs: Inputs) -> list[dict]:
    from sdakd.commands.report import svg
    from sdakd.commands.report.text import trade_offs
    from sdakd.files.intervals import FEWEST

    if inputs.evaluate is None or inputs.bench is None:
        return []
    result = []
    for label, metric, marks in trade_offs(inputs.evaluate, inputs.bench):
        better = 'higher' if metric.higher_is_better else 'lower'
        plot = svg.points(marks, 'median latency, ms', f'{metric.text}, {better} is better', f'Latency against {label}')
        size = f'{inputs.bench.size}×{inputs.bench.size}'
        caption = (
            f'{label} against latency for {size} input pixels. Bars: 95% interval of the mean (from {FEWEST} images '
            'on), 10% to 90% of the timings. Dashed: not timed.'
        )
        result.append({'label': label, 'plot': plot, 'legend': [], 'caption': caption})
    return result


def _pictures(inputs: Inputs, gallery: Gallery) -> list[dict]:
    """The gallery for the template and for the page's script, with each picture's own scores."""
    from sdakd.commands.report.pictures import in_rows
    from sdakd.commands.report.text import shown as text

    evaluate = inputs.evaluate
    result = []
    for shown in gallery.shown:
        versions = []
        for version in shown.versions:
            notes = []
            for metric, reference in evaluate.columns(shown.set):
                score = evaluate.score(version.name, shown.set, metric.name, reference)
                value = (score.per_image or {}).get(shown.name) if score else None
                if value is not None and reference != 'teacher':
                    notes.append(f'{metric.label} {text(value, metric)}' + (f' {metric.unit}' if metric.unit else ''))
            versions.append({'name': version.name, 'whole': version.whole, 'crop': version.crop, 'notes': notes})
        # three crops fit into the width of a phone; two, which are larger, do where none is left over
        rows = {'wide': in_rows(len(versions), 5), 'narrow': in_rows(len(versions), 3 if len(versions) % 2 else 2)}
        for place, version in enumerate(versions):
            begins = [kind for kind, counts in rows.items() if place in accumulate(counts, initial=0)]
            version['begins'] = ' '.join(f'begins-{kind}' for kind in begins)
        left, top, width, height = shown.region
        region = [100 * left / shown.width, 100 * top / shown.height, 100 * width / shown.width]
        region.append(100 * height / shown.height)
        result.append(
            {
                'title': f'{shown.set} / {shown.name}',
                'width': shown.width,
                'height': shown.height,
                'reduced': shown.reduced,
                'region': [round(share, 3) for share in region],
                'rows': rows,
                'versions': versions,
            }
        )
    return result


def _facts(inputs: Inputs) -> list[tuple[str, list[tuple[str, object]]]]:
    """Versions and settings of everything that took part, without what is not known."""
    groups = []
    if (e := inputs.evaluate) is not None:
        values = [('sdakd', e.version), ('torch', e.torch), ('device', e.device), ('scale', e.scale), ('seed', e.seed)]
        groups.append(('evaluate', [*values, ('date', e.date)]))
    if (b := inputs.bench) is not None:
        values = [('sdakd', b.version), ('torch', b.torch), ('device', b.device), ('processor', b.cpu)]
        values += [('threads', b.threads), ('input', f'{b.size}\u00d7{b.size} pixels'), ('rounds', b.rounds)]
        groups.append(('bench', [*values, ('date', b.date)]))
    for run in inputs.runs:
        if run.versions:
            groups.append((run.name, list(run.versions.items())))
    groups.append(('this page', [('sdakd', __version__)]))
    return [(name, [(key, value) for key, value in values if value not in ('', None)]) for name, values in groups]


def _models(inputs: Inputs) -> list[dict]:
    from sdakd.commands.report.text import GIGA, joined_network

    sections = [section for section in (inputs.evaluate, inputs.bench) if section is not None]
    models = {model.name: model for section in reversed(sections) for model in section.models}
    order = [model.name for section in sections for model in section.models]
    return [
        {
            'name': name,
            'kind': models[name].kind,
            'network': joined_network(models[name].network),
            'parameters': f'{models[name].parameters:,d}' if models[name].parameters else '\u2013',
            'macs': f'{models[name].macs / GIGA:,.3f}' if models[name].macs else '\u2013',
            'source': models[name].source.removeprefix(f'{name}=') or '\u2013',
            'sha256': models[name].sha256 or '',
            'metadata': json.dumps(models[name].metadata, indent=2, ensure_ascii=False)
            if models[name].metadata
            else '',
        }
        for name in dict.fromkeys(order)
    ]


def _absent(inputs: Inputs, gallery: Gallery) -> list[tuple[str, str]]:
    """What the page does not show, and the command that would make it."""
    evaluate, bench = inputs.evaluate, inputs.bench
    absent = []
    if evaluate is None:
        absent.append(('Quality and pictures', 'sdakd evaluate -m teacher.pth student.pth bicubic -d Set5/HR -o OUT'))
    elif not gallery.shown:
        why = 'The pictures are missing, make them again' if gallery.missing else 'Pictures'
        absent.append((why, 'sdakd evaluate -m teacher.pth student.pth bicubic -d Set5/HR -o OUT'))
    if bench is None and not (inputs.comparison and inputs.comparison.latency):
        absent.append(
            ('Speed, and the plot of latency against quality', 'sdakd bench -m teacher.pth student.pth -o OUT')
        )
    elif bench and evaluate is not None and not any(bench.fastest(model.name) for model in evaluate.models):
        absent.append(
            (
                'The plot of latency against quality: evaluate and bench have no model of the same name in common',
                'sdakd bench -m teacher.pth student.pth -o OUT',
            )
        )
    if not any(run.series for run in inputs.runs):
        absent.append(('Training curves', 'sdakd report -i OUT experiments/<name> -o report.html'))
    return absent


def _title(inputs: Inputs, student: str | None) -> str:
    from sdakd.commands.report.text import joined

    if inputs.comparison is not None:
        rows = list(dict.fromkeys(cell.row for cell in inputs.comparison.final()))
        return f'{len(rows)} methods compared' if len(rows) > 3 else f'{joined(rows)} compared'
    source = inputs.evaluate or inputs.bench
    if source is None:
        names = [run.name for run in inputs.runs]
        return f'Training of {", ".join(names[:3])}' + (' and others' if len(names) > 3 else '')
    if source.teacher and student:
        return f'{student} compared with {source.teacher}'
    return f'{len(source.models)} models compared'


def build_page(inputs: Inputs, max_images: int | None = None, student: str | None = None) -> tuple[str, Gallery]:
    """The page of everything that was gathered.

    Args:
        inputs: See :func:`sdakd.commands.report.data.gather`.
        max_images, student: See the flags.

    Returns:
        The HTML text and the :class:`sdakd.commands.report.pictures.Gallery` in it.
    """
    import jinja2
    from markupsafe import Markup

    from sdakd.commands.report import comparison, text
    from sdakd.commands.report.pictures import QUALITY, Gallery, gallery
    from sdakd.files.intervals import FEWEST

    student, compared, trade_offs, names = inputs.student(student), None, _trade_offs(inputs), {}
    if inputs.comparison is not None and inputs.evaluate is not None:
        view = comparison.view_of(inputs.evaluate, inputs.comparison, inputs.runs)
        compared = comparison.context(view, inputs.comparison, inputs.evaluate)
        trade_offs = comparison.trade_offs(view, inputs.comparison)
        student = comparison.shown_as(student, view, inputs.comparison)
        names = view.labels
        inputs = replace(inputs, evaluate=view.evaluate, runs=list(view.runs.values()))
    evaluate, bench = inputs.evaluate, inputs.bench
    pair = inputs.teacher, student
    pictures = gallery(evaluate, inputs.folder, max_images, pair) if evaluate else Gallery()
    shown, differences = _pictures(inputs, pictures), text.differences(evaluate) if evaluate else []
    script = (TEMPLATES / 'report.js').read_text(encoding='utf-8')
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template('report.html').render(
        title=_title(inputs, pair[1]),
        script=Markup(script),  # both are files of this package, without anything of a user's
        style=Markup((TEMPLATES / 'report.css').read_text(encoding='utf-8')),
        script_hash=digest,
        evaluate=evaluate,
        bench=bench,
        compared=compared,
        answer=None if compared else text.answer(evaluate, bench, pair[1]),
        quality=text.quality(evaluate) if evaluate else [],
        differences=differences,
        marked=any(cell.kind for table in differences for _, row in table.rows for cell in row),
        timings=text.timings(bench) if bench else [],
        left_out=text.left_out(bench) if bench else [],
        trade_offs=trade_offs,
        pictures=shown,
        data={
            'pair': pair,
            'pictures': [
                {
                    **picture,
                    'versions': [
                        {k: v for k, v in version.items() if k in ('name', 'whole', 'notes')}
                        for version in picture['versions']
                    ],
                }
                for picture in shown
            ],
        },
        total=pictures.total,
        missing=pictures.missing,
        quality_of_pictures=QUALITY,
        pair=pair,
        fewest=FEWEST,
        runs=[{'name': names.get(run.name, run.name), 'run': run, 'groups': _groups(run)} for run in inputs.runs],
        models=_models(inputs),
        facts=_facts(inputs),
        absent=_absent(inputs, pictures),
    )
    return page, pictures


def _check(output: Path) -> None:
    from sdakd.files.results import output_folder

    if output.suffix.lower() not in ('.html', '.htm'):
        raise UserError('-o', f'{output} is no name of a page; give one that ends in .html.')
    if output.is_dir():
        raise UserError('-o', f'{output} is a folder; give the name of a file.')
    output_folder(output.parent)


@dataclass
class Report(Outcome):
    """What was written.

    Args:
        file: The page.
        text: What is on it, in words.
    """

    file: Path
    text: str

    def __str__(self) -> str:
        return f'{self.file}: {self.text}\n'


@stops.leaving('nothing was written; give the same command again')
def report(
    folders: Sequence[str | Path], output: str | Path, *, max_images: int | None = None, student: str | None = None
) -> Report:
    """Puts results and training curves into one HTML file that needs nothing else.

    Args:
        folders: What evaluate or bench wrote, and ``experiments/<name>``; runs of evaluated checkpoints are found.
        output: The page, ``.html``.
        max_images: How many images to show; default: what fits into about 10 MB.
        student: Name of the row that the page is about; default: the last network that is not the teacher.

    Raises:
        UserError: An input that holds nothing or is damaged, or an output that cannot be written.
    """
    from sdakd.commands.report.data import gather
    from sdakd.files import images

    inputs, output = gather(list(map(Path, folders))), Path(output)
    max_images = None if max_images is None else whole(max_images, '--max_images', 1)
    inputs.student(student)
    _check(output)
    page, gallery = build_page(inputs, max_images, student)
    for entry in gallery.missing:
        say(f'{entry}; the page goes without it.')
    data = page.encode()
    images.write(output, data)
    sections = [name for name in ('evaluate', 'bench') if getattr(inputs, name) is not None]
    sections += [f'run {entry.name}' for entry in inputs.runs]
    count = f', {len(gallery.shown)} of {gallery.total} images' if gallery.total else ''
    return Report(output, f'{", ".join(sections)}{count}, {len(data) / 1e6:.1f} MB')
