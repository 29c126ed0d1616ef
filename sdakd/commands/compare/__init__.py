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
    from sdakd.commands.compare.matrix import Matrix
    from sdakd.commands.compare.rows import Row
    from sdakd.commands.compare.search import Search
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


def _dry_run(matrix: Matrix, jobs: int, threads: int) -> str:
    """The matrix for people, with the time of every cell as a few of its steps foretell it."""
    from sdakd.commands.compare import rehearsal
    from sdakd.commands.compare.progress import duration
    from sdakd.commands.compare.search import factors_of
    from sdakd.commands.compare.summary import budget_line
    from sdakd.files import results

    config = matrix.config
    discriminator, rows, total, count = matrix.discriminator_run(), [], 0.0, 0
    with tempfile.TemporaryDirectory() as place:
        parsed = rehearsal.check_rows(matrix, Path(place), real_data=False)
        for name, ratio in Progress('timing', len(parsed), 'runs').over(parsed):
            seconds = rehearsal.time_row(parsed[name, ratio], threads)
            row = next((row for row in matrix.rows if row.name == name), None)
            searched = len(factors_of(config, row)) - 1 if row and ratio == config.ratios()[0] else 0
            cells = len(config.seeds) + searched
            total, count = total + cells * seconds, count + cells
            stages = parsed[name, ratio]['train']['stages'].values()
            times = [duration(seconds), duration(cells * seconds)]
            rows.append([name, str(ratio), str(cells), f'{sum(stage["iters"] for stage in stages):,d}', *times])
    text = results.table(['Method', 'Width', 'Cells', 'Iterations', 'One cell', 'All'], rows)
    text += f'{budget_line(config.budget)}\n'
    if discriminator is not None:
        text += f"The teacher's discriminator, trained before them, is not counted: {discriminator.iterations:,d}.\n"
    return text + (
        f'{count} cells, about {duration(total / jobs)} with {jobs} at a time, {threads} thread{"s" * (threads > 1)} '
        'each, by a few steps of every stage; measuring comes on top. Nothing was written.\n'
    )


def _train(matrix: Matrix, jobs: int, threads: int) -> tuple[list[Cell], list[Cell], Search]:
    """Trains what rows share, trials and cells.

    Returns:
        The cells of the tables, all cells, and what the search found.
    """
    from sdakd.commands.compare.progress import Progress
    from sdakd.commands.compare.search import choose, factors_of
    from sdakd.commands.compare.summary import Cell
    from sdakd.files.runs import train_all

    config, ratios, seeds = matrix.config, matrix.config.ratios(), matrix.config.seeds

    def cell(row: Row, ratio, seed: int, factor: float) -> Cell:
        return Cell(row, ratio, seed, factor, matrix.run(row, ratio, seed, factor))

    discriminator = matrix.discriminator_run()
    trials = [cell(row, ratios[0], seeds[0], f) for row in matrix.rows for f in factors_of(config, row)]
    shared = [run for seed in seeds for ratio in ratios for run in matrix.first_runs(ratio, seed)]
    shared += [discriminator] if discriminator else []
    others = len(ratios) * len(seeds) - 1  # of a row, beyond the one whose trial is chosen
    iterations = sum(run.iterations for run in (*shared, *(trial.run for trial in trials)))
    iterations += others * sum(cell(row, ratios[0], seeds[0], 1).run.iterations for row in matrix.rows)
    progress = Progress(len(shared) + len(trials) + others * len(matrix.rows), iterations)

    begun: set[str] = set()

    def train(cells: Sequence[Cell]) -> None:
        """What cells begin with, and then those of them whose beginning there is."""
        begin = [matrix.first_run(each.row, each.ratio, each.seed) for each in cells]
        begin = {run.name: run for run in begin if run is not None and run.name not in begun}
        begun.update(begin)
        train_all(begin.values(), jobs, threads, progress)
        ready = []
        for each in cells:
            first = matrix.first_run(each.row, each.ratio, each.seed)
            if first is None or first.done:
                ready.append(each.run)
            else:
                record = each.run.record
                record.state, record.reason = 'broken', f'its first stage, {first.name}, broke: {first.record.reason}'
        train_all(ready, jobs, threads, progress)

    try:
        train_all([discriminator] if discriminator else [], 1, threads * jobs, progress)
        train(trials)
        search = choose(config, matrix, trials)
        every = {trial.run.name: trial for trial in trials}
        final = []
        for seed in seeds:  # seed by seed: a comparison that is stopped early is one of all methods
            for ratio in ratios:
                for row in matrix.rows:
                    if row.name in search.best:
                        one = cell(row, ratio, seed, search.best[row.name])
                        final.append(every.setdefault(one.run.name, one))
            train([one for one in final if one.seed == seed and one not in trials])
    finally:
        progress.progress.close()
    return final, list(every.values()), search


def _summarise(name: str, matrix: Matrix, final: list[Cell], every: list[Cell], search: Search, jobs: int) -> str:
    """Measures the students, writes tables, figures, results.json and the page, and returns what people see of it."""
    from sdakd import __version__
    from sdakd.commands.compare import gates, summary
    from sdakd.commands.compare.figures import draw_all
    from sdakd.commands.compare.measuring import latencies, measure, without_short
    from sdakd.commands.report import report
    from sdakd.files import results
    from sdakd.files.images import write

    config, output = matrix.config, matrix.output
    done, broken = [c for c in final if c.run.done], [c for c in every if not c.run.done]
    section = measure(config, matrix, output, done, matrix.images.test, config.metrics, ['bicubic', 'teacher'], True)
    section, short = without_short(section)
    scores, differences = summary.over_seeds(section, done, config.reference)
    spent = summary.costs(done)
    latency, timed = latencies(matrix, done)
    named = {model['name']: model for model in section['models']}
    models = {(c.row.name, str(c.ratio)): named[c.run.name] for c in done}
    reference = next(row for row in matrix.rows if row.name == config.reference)
    looked = gates.look(config.primary, reference, done, section, differences)
    label = summary.label_of(config)
    placebos = {row.name for row in matrix.rows if row.placebo is not None}  # which have their gate
    judged = [difference for difference in differences if difference['a'] not in placebos]
    says = [gates.verdict(config.primary, label, looked, search.edge, section, judged), *map(str, looked)]
    notes = summary.notes(matrix, section, done, broken, search.edge, jobs) + short + [f'Latency: {timed}.']
    content = {
        'version': __version__,
        'options': name,
        'exploratory': [line for line in notes if line.startswith('Exploratory')],
        'notes': notes,
        'primary': {'metric': config.primary.metric, 'against': config.primary.against},
        'reference': config.reference,
        'perceptual': stand_in.backbone if (stand_in := config.stand_in()) else config.perceptual,
        'verdict': says[0],
        'gates': [{'name': gate.name, 'open': gate.open, 'text': gate.text} for gate in looked],
        'search': search.trials,
        'edge': search.edge,
        'cells': [
            {'name': c.run.name, 'row': c.row.name, 'width': str(c.ratio), 'seed': c.seed, 'factor': c.factor}
            | {key: getattr(c.run.record, key) for key in c.run.record.__dataclass_fields__}
            for c in every
        ],
        'scores': scores,
        'differences': differences,
        'costs': spent,
        'latency': latency,
        'timed': timed,
    }
    results.write_section(output, 'compare', content)
    tables = {
        'compare_quality': ('', *summary.quality_table(section, scores, ('gt', None), ('bicubic', 'teacher'))),
        'compare_teacher': ('Compared with the images of the teacher:',
                            *summary.quality_table(section, scores, ('teacher',), ('bicubic',))),
        'compare_differences': (f'Differences to {config.reference}:', *summary.difference_table(section, differences)),
        'compare_cost': ('Training and network:', *summary.cost_table(spent, models, latency)),
    }  # fmt: skip
    text = '\n'.join(['', *says, ''])
    page = f'# Comparison\n\n**{says[0]}**\n\n' + ''.join(f'- {line}\n' for line in (*says[1:], *notes))
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
    from sdakd.commands.compare import data, measuring, rehearsal
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
        measuring.check_measures(config, matrix, splits)
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
            final, every, search = _train(matrix, jobs, threads)
            if any(cell.run.done for cell in final):
                text = _summarise(Path(file).name, matrix, final, every, search, jobs)
                text += f'Written to {folder}: comparison.md, tables, figures, results.json, report.html\n'
    except UserError as error:
        raise error.within(file) from None
    shared = [run for ratio in config.ratios() for seed in config.seeds for run in matrix.first_runs(ratio, seed)]
    shared += [run] if (run := matrix.discriminator_run()) else []
    shared = [run for run in shared if run.record.state != 'new']  # of a row that is lost, other seeds are not begun
    broken = [run for run in [*shared, *(cell.run for cell in every)] if not run.done]
    return Compared(text, _broken(broken, len(every) + len(shared), search.lost), file)


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
