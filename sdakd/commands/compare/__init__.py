"""`sdakd compare`: methods x widths x seeds on one teacher and data set, as runs that can be stopped and continued."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd import compat, stops
from sdakd.commands.interface import Flags, Outcome, number, whole
from sdakd.compat import UserError
from sdakd.progress import Progress
from sdakd.shipped import option_file

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from sdakd.commands.compare.config import Config
    from sdakd.commands.compare.matrix import Matrix
    from sdakd.commands.compare.rows import Row
    from sdakd.commands.compare.summary import Cell
    from sdakd.files.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, compare)
    add('-opt', dest='config', metavar='FILE', help="the comparison's YAML, or the name of one that ships")
    add('-o', '--output', metavar='FOLDER', help="folder for runs, tables and figures, instead of the YAML's")
    add('--jobs', type=number, metavar='N', help='trainings at a time, which share the cores (default: {default})')
    add('--dry_run', action='store_true', help='show the cells and what they would cost; train nothing')


@dataclass
class Compared(Outcome):
    """What came out.

    Args:
        text: Tables and notes, for people.
        broken: What to say of cells that broke, empty where none did.
        config: The comparison's file.
    """

    text: str
    broken: str
    config: str

    def __str__(self) -> str:
        return self.text

    def check(self) -> None:
        if self.broken:
            raise UserError(self.config, self.broken)


# ----------------------------------------------------- the parts -----------------------------------------------------


def _check_measures(config: Config, matrix: Matrix) -> None:
    """Opens metrics and test sets before any training."""
    from sdakd.files.testsets import open_sets
    from sdakd_metrics.metrics import Settings, open_metrics

    try:
        open_metrics(config.metrics, Settings(matrix.scale, backbone=_fd_backbone(config)))
    except UserError as error:
        raise error.at({'--backbone': 'fd_backbone'}.get(error.where, error.where.removeprefix('--'))) from None
    for name, source in matrix.images.test.items():
        try:
            open_sets([f'{name}={source}'], matrix.scale)
        except UserError as error:
            raise error.at(f'data:test:{name}') from None


def _fd_backbone(config: Config) -> str | None:
    from sdakd.commands.compare.config import locate

    if config.fd_backbone is None or ':' not in config.fd_backbone:
        return config.fd_backbone
    kind, _, file = config.fd_backbone.partition(':')
    return f'{kind}:{locate(file, "fd_backbone")}'


def _measure(
    config: Config, matrix: Matrix, folder: Path, cells: Sequence[Cell], sets: dict[str, str], metrics: Sequence[str],
    others: Sequence[str], images: bool,
) -> dict:  # fmt: skip
    """`sdakd evaluate` on the cells' students; kept where the same files were measured before.

    Returns:
        The section ``evaluate`` of the folder's results.json.
    """
    from sdakd.commands.evaluate import evaluate
    from sdakd.files.results import read_results
    from sdakd.files.runs import digest

    plain = {'teacher': str(matrix.teacher), 'bicubic': 'bicubic'}
    models = {name: plain[name] for name in others} | {cell.run.name: str(cell.run.result) for cell in cells}
    sources = {name: f'{name}={source}' for name, source in sets.items()}
    known = read_results(folder).get('evaluate') or {}
    wanted = {name: None if path == 'bicubic' else digest(path) for name, path in models.items()}
    same = {model['name']: model['sha256'] for model in known.get('models', ())} == wanted
    same = same and {s['name']: s['source'] for s in known['sets']} == sources
    if same and [metric['name'] for metric in known['metrics']] == list(dict.fromkeys(metrics)):
        return known
    evaluate(
        [f'{name}={path}' for name, path in models.items()],
        list(sources.values()),
        folder,
        scale=matrix.scale,
        metrics=metrics,
        backbone=_fd_backbone(config) if 'fd' in metrics else None,
        teacher='teacher' if 'teacher' in others else None,
        images=images,
    ).check()
    return read_results(folder)['evaluate']


def _choose(config: Config, matrix: Matrix, cells: Sequence[Cell]) -> tuple[dict[str, float], list[dict]]:
    """The factor of every row that has a finished trial: the best by the primary metric on the validation split."""
    done = [cell for cell in cells if cell.run.done]
    primary, scores = config.primary, {}
    trials = [
        {'row': cell.row.name, 'factor': cell.factor, 'value': None, 'state': cell.run.record.state} for cell in cells
    ]
    if done and len(config.search.factors) > 1:
        gt, lq = matrix.images.validation
        others = ['teacher'] if primary.against == 'teacher' else []
        section = _measure(config, matrix, matrix.output / 'validation', done, {'validation': f'{gt}:{lq}'},
                           [primary.metric], others, images=False)  # fmt: skip
        scores = {s['model']: s['mean'] for s in section['scores'] if s['reference'] in (primary.against, None)}
        sign = -1 if section['metrics'][0]['higher_is_better'] else 1
        for cell, trial in zip(cells, trials, strict=True):
            trial['value'] = scores.get(cell.run.name)
    best: dict[str, float] = {}
    for row in matrix.rows:
        tried = [c for c in done if c.row is row]
        if len(config.search.factors) > 1:
            tried = sorted((c for c in tried if scores.get(c.run.name) is not None),
                          key=lambda c: sign * scores[c.run.name])  # fmt: skip
        if tried:
            best[row.name] = tried[0].factor
    return best, trials


def _factors(config: Config, row: Row) -> list[float]:
    return list(config.search.factors) if row.weights else [1.0]


def _dry_run(matrix: Matrix, jobs: int, threads: int) -> str:
    """The matrix for people, with the time of every cell as a few of its steps foretell it."""
    from sdakd.commands.compare import rehearsal
    from sdakd.commands.compare.progress import duration
    from sdakd.commands.compare.summary import budget_line
    from sdakd.files import results

    config = matrix.config
    discriminator, rows, total, count = matrix.discriminator_run(), [], 0.0, 0
    with tempfile.TemporaryDirectory() as place:
        parsed = rehearsal.check_rows(matrix, Path(place), real_data=False)
        for row in Progress('timing', len(matrix.rows), 'methods').over(matrix.rows):
            for number, ratio in enumerate(config.ratios()):
                seconds = rehearsal.time_row(parsed[row.name, ratio], row, threads)
                cells = len(config.seeds) + (len(_factors(config, row)) - 1 if number == 0 else 0)
                total, count = total + cells * seconds, count + cells
                times = [duration(seconds), duration(cells * seconds)]
                rows.append([row.name, str(ratio), str(cells), f'{row.iterations:,d}', *times])
    text = results.table(['Method', 'Width', 'Cells', 'Iterations', 'One cell', 'All'], rows)
    text += f'{budget_line(config.budget)}\n'
    if discriminator is not None:
        text += f"The teacher's discriminator, trained before them, is not counted: {discriminator.iterations:,d}.\n"
    return text + (
        f'{count} cells, about {duration(total / jobs)} with {jobs} at a time, {threads} thread{"s" * (threads > 1)} '
        'each, by a few steps of every stage; measuring comes on top. Nothing was written.\n'
    )


def _train(matrix: Matrix, jobs: int, threads: int) -> tuple[list[Cell], list[Cell], list[dict], list[str]]:
    """Trains trials and cells.

    Returns:
        The cells of the tables, all cells, the trials of the search, and rows without any finished trial.
    """
    from sdakd.commands.compare.progress import Progress
    from sdakd.commands.compare.summary import Cell
    from sdakd.files.runs import train_all

    config, ratios, seeds = matrix.config, matrix.config.ratios(), matrix.config.seeds

    def cell(row: Row, ratio, seed: int, factor: float) -> Cell:
        return Cell(row, ratio, seed, factor, matrix.run(row, ratio, seed, factor))

    discriminator = matrix.discriminator_run()
    counts = {row.name: len(_factors(config, row)) + len(ratios) * len(seeds) - 1 for row in matrix.rows}
    iterations = sum(counts[row.name] * row.iterations for row in matrix.rows)
    iterations += discriminator.iterations if discriminator else 0
    progress = Progress(sum(counts.values()) + (discriminator is not None), iterations)
    try:
        train_all([discriminator] if discriminator else [], 1, threads * jobs, progress)
        trials = [cell(row, ratios[0], seeds[0], f) for row in matrix.rows for f in _factors(config, row)]
        train_all([trial.run for trial in trials], jobs, threads, progress)
        best, tried = _choose(config, matrix, trials)
        every = {trial.run.name: trial for trial in trials}
        final = []
        for seed in seeds:  # seed by seed: a comparison that is stopped early is one of all methods
            for ratio in ratios:
                for row in matrix.rows:
                    if row.name in best:
                        one = cell(row, ratio, seed, best[row.name])
                        final.append(every.setdefault(one.run.name, one))
        train_all([one.run for one in final if one not in trials], jobs, threads, progress)
    finally:
        progress.progress.close()
    return final, list(every.values()), tried, [row.name for row in matrix.rows if row.name not in best]


def _summarise(name: str, matrix: Matrix, final: list[Cell], every: list[Cell], tried: list[dict], jobs: int) -> str:
    """Measures the students, writes tables, figures, results.json and the page, and returns what people see of it."""
    from sdakd import __version__
    from sdakd.commands.compare import summary
    from sdakd.commands.compare.figures import draw_all
    from sdakd.commands.report import report
    from sdakd.files import results
    from sdakd.files.images import write

    config, output = matrix.config, matrix.output
    done, broken = [c for c in final if c.run.done], [c for c in every if not c.run.done]
    section = _measure(config, matrix, output, done, matrix.images.test, config.metrics, ['bicubic', 'teacher'], True)
    scores, differences = summary.over_seeds(section, done, config.reference)
    spent = summary.costs(done)
    named = {model['name']: model for model in section['models']}
    models = {(c.row.name, str(c.ratio)): named[c.run.name] for c in done}
    notes = summary.notes(matrix, section, done, broken, jobs)
    content = {
        'version': __version__,
        'options': name,
        'exploratory': [line for line in notes if line.startswith('Exploratory')],
        'notes': notes,
        'primary': {'metric': config.primary.metric, 'against': config.primary.against},
        'reference': config.reference,
        'perceptual': stand_in.backbone if (stand_in := config.stand_in()) else config.perceptual,
        'search': tried,
        'cells': [
            {'name': c.run.name, 'row': c.row.name, 'width': str(c.ratio), 'seed': c.seed, 'factor': c.factor}
            | {key: getattr(c.run.record, key) for key in c.run.record.__dataclass_fields__}
            for c in every
        ],
        'scores': scores,
        'differences': differences,
        'costs': spent,
    }
    results.write_section(output, 'compare', content)
    tables = {
        'compare_quality': ('', *summary.quality_table(section, scores, ('gt', None), ('bicubic', 'teacher'))),
        'compare_teacher': ('Compared with the images of the teacher:',
                            *summary.quality_table(section, scores, ('teacher',), ('bicubic',))),
        'compare_differences': (f'Differences to {config.reference}:', *summary.difference_table(section, differences)),
        'compare_cost': ('Training and network:', *summary.cost_table(spent, models)),
    }  # fmt: skip
    text, page = '', '# Comparison\n\n' + ''.join(f'- {line}\n' for line in notes)
    for table, (title, header, rows) in tables.items():
        if not rows:
            for kind in ('md', 'csv', 'tex'):
                (output / f'{table}.{kind}').unlink(missing_ok=True)  # of an earlier call
            continue
        results.write_tables(output, table, header, rows)
        text += (f'\n{title}\n' if title else '') + results.table(header, rows)
        page += f'\n{title}\n\n'.replace('\n\n\n', '\n') + results.table(header, rows, 'md')
    figures = draw_all(matrix, scores, spent, section)
    page += ''.join(f'\n![{path.stem}]({path.name})\n' for path in figures if path.suffix == '.png')
    write(output / 'comparison.md', page.encode())
    report([output], output / 'report.html', student=summary.best(section, config.primary, [c.run.name for c in done]))
    return text + '\n' + ''.join(f'{line}\n' for line in notes)


# ------------------------------------------------------ the command ---------------------------------------------------


@stops.leaving('give the same command again to go on')
def compare(config: str | Path, *, output: str | Path | None = None, jobs: int = 1, dry_run: bool = False) -> Compared:
    """Trains methods x widths x seeds on equal terms, measures them, and makes one table; goes on where it stopped.

    Args:
        config: The comparison's YAML, see docs/compare.md.
        output: Folder for runs, tables and figures; default: the YAML's.
        jobs: Trainings at a time, which share the cores.
        dry_run: Only say what would be trained and how long it would take.

    Returns:
        Tables and notes; its ``check()`` raises a UserError if cells broke.

    Raises:
        UserError: A mistake in the option file or in a file that it names, found before any training.
    """
    jobs, file = whole(jobs, '--jobs', 1), option_file(str(config))
    threads = max(1, int(os.environ.get('OMP_NUM_THREADS') or os.cpu_count() or 1) // jobs)
    compat.import_basicsr()
    import sdakd_models  # noqa: F401  registers models and terms
    from sdakd.commands.compare import data, rehearsal
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.matrix import Matrix
    from sdakd.commands.compare.rows import read_rows
    from sdakd.files.results import output_folder, read_results
    from sdakd.lock import alone_in

    config = read_config(file)
    folder = output or config.output
    if not folder:
        raise UserError(f'{file}: output', 'no folder is named; name one here, or give -o FOLDER.')
    place, text = Path(folder).absolute(), ''
    try:
        rows = read_rows(config, Path(file).parent)
        images, splits = data.open_images(config)
        matrix = Matrix(config, rows, images, place)
        _check_measures(config, matrix)
        if dry_run:
            return Compared(_dry_run(matrix, jobs, threads), '', file)
        read_results(place)
        output_folder(place)
        with alone_in(place, '-o'):
            data.make_pairs(config, images, splits, place, matrix.scale)
            with tempfile.TemporaryDirectory() as rehearsed:
                rehearsal.check_rows(matrix, Path(rehearsed), real_data=True)
            for ratio in config.ratios():
                for seed in config.seeds:
                    matrix.make_start(ratio, seed)
            final, every, tried, lost = _train(matrix, jobs, threads)
            if any(cell.run.done for cell in final):
                text = _summarise(Path(file).name, matrix, final, every, tried, jobs)
                text += f'Written to {folder}: comparison.md, tables, figures, results.json, report.html\n'
    except UserError as error:
        raise error.within(file) from None
    discriminator = matrix.discriminator_run()
    broken = [run for run in [discriminator, *(cell.run for cell in every)] if run is not None and not run.done]
    return Compared(text, _broken(broken, len(every) + (discriminator is not None), lost), file)


def _broken(runs: Sequence[Run], total: int, lost: Sequence[str]) -> str:
    """What to say of cells that broke, and of rows without any finished trial."""
    if not runs:
        return ''
    first = '; '.join(f'{run.name}: {run.record.reason.rstrip(".")}' for run in runs[:3])
    more = '; ...' if len(runs) > 3 else ''
    without = f' (no trial of {", ".join(lost)} was finished)' if lost else ''
    return (
        f'{len(runs)} of {total} cells broke{without}: {first}{more}; mend that and give the same command again, which '
        'keeps the others.'
    )
