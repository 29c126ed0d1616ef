"""`sdakd compare`: methods x widths x seeds on one teacher and data set, as runs that can be stopped and continued."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd import compat, stops
from sdakd.commands.interface import Flags, Outcome, number, whole
from sdakd.compat import UserError
from sdakd.shipped import option_file

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from sdakd.commands.compare.matrix import Matrix
    from sdakd.commands.compare.search import Search
    from sdakd.commands.compare.summary import Cell
    from sdakd.files.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, compare)
    add('-opt', dest='config', metavar='FILE', help="the comparison's YAML, or the name of one that ships")
    add('-o', '--output', metavar='FOLDER', help="folder for runs, tables and figures, instead of the YAML's")
    add('--jobs', type=number, metavar='N', help='trainings at a time, which share cores and GPUs (default: {default})')
    add('--dry_run', action='store_true', help='show cells, their time and disk, and what is missing; train nothing')
    add('--slurm', metavar='FILE.sh', help='write the comparison as a job file of SLURM, one task a training')
    add('--part', metavar='NAME', help='one part, as a job of that file does it: data, a training, search or tables')


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


def _train(matrix: Matrix, jobs: int, threads: int) -> tuple[list[Cell], list[Cell], Search]:
    """Trains what rows share, trials and cells.

    Returns:
        The cells of the tables, all cells, and what the search found.
    """
    from sdakd.commands.compare import parts
    from sdakd.commands.compare.progress import Progress
    from sdakd.commands.compare.search import choose
    from sdakd.files.runs import gpus, train_all

    config, ratios, seeds = matrix.config, matrix.config.ratios(), matrix.config.seeds
    discriminator, trials, shared = matrix.discriminator_run(), parts.trials(matrix), parts.shared(matrix)
    others = {row.name: len(ratios) * len(row.seeds) - 1 for row in matrix.rows}  # beyond the one whose trial is chosen
    iterations = sum(run.iterations for run in (*shared, *(trial.run for trial in trials)))
    iterations += sum(others[row.name] * matrix.run(row, ratios[0], seeds[0], 1).iterations for row in matrix.rows)
    progress = Progress(len(shared) + len(trials) + sum(others.values()), iterations)
    devices = gpus()

    begun: set[str] = set()

    def train(cells: Sequence[Cell]) -> None:
        """What cells begin with, and then those of them whose beginning there is."""
        begin = [(each.run.done, matrix.first_run(each.row, each.ratio, each.seed)) for each in cells]
        begin = {run.name: run for done, run in begin if run and run.name not in begun and (run.done or not done)}
        begun.update(begin)
        train_all(begin.values(), jobs, threads, progress, devices)
        ready = []
        for each in cells:
            first = matrix.first_run(each.row, each.ratio, each.seed)
            if each.run.done or first is None or first.done:
                ready.append(each.run)
            else:
                record = each.run.record
                record.state, record.reason = 'broken', f'its first stage, {first.name}, broke: {first.record.reason}'
        train_all(ready, jobs, threads, progress, devices)

    try:
        train_all([discriminator] if discriminator else [], 1, threads * jobs, progress, devices)
        train(trials)
        search = choose(config, matrix, trials)
        every = {trial.run.name: trial for trial in trials}
        final = [every.setdefault(one.run.name, one) for one in parts.finals(matrix, search.best)]
        for seed in seeds:  # seed by seed: a comparison that is stopped early is one of all methods
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
    section = measure(config, matrix, output, done, matrix.images.test, config.metrics,
                      ['bicubic', 'teacher'], config.images)  # fmt: skip
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
def compare(
    config: str | Path,
    *,
    output: str | Path | None = None,
    jobs: int = 1,
    dry_run: bool = False,
    slurm: str | Path | None = None,
    part: str | None = None,
) -> Compared:
    """Trains methods x widths x seeds on equal terms, measures them, and makes one table; goes on where it stopped.

    Args:
        config: The comparison's YAML, see docs/compare.md.
        output: Folder for runs, tables and figures; default: the YAML's.
        jobs: Trainings at a time, which share the cores, or each of which has a GPU.
        dry_run: Only say what would be trained, how long it would take, how much disk, and what is missing.
        slurm: Only write the comparison as a job file of SLURM's, here.
        part: Only do this part of it, as a job does: ``data``, a training by its name, ``search`` or ``tables``.

    Returns:
        Tables and notes; its ``check()`` raises a UserError if cells broke.

    Raises:
        UserError: A mistake in the option file or in a file that it names, found before any training.
    """
    jobs, file = whole(jobs, '--jobs', 1), option_file(str(config))
    if sum([dry_run, slurm is not None, part is not None]) > 1:
        raise UserError('--dry_run, --slurm, --part', 'each is a command of its own; give one of them.')
    threads = max(1, int(os.environ.get('OMP_NUM_THREADS') or os.cpu_count() or 1) // jobs)
    compat.import_basicsr()
    import sdakd_models  # noqa: F401  registers models and terms
    from sdakd.commands.compare import data, dry, measuring, parts
    from sdakd.commands.compare.config import read_config
    from sdakd.commands.compare.matrix import Matrix
    from sdakd.commands.compare.rows import read_rows
    from sdakd.commands.compare.slurm import write_jobs
    from sdakd.files.results import output_folder, read_results
    from sdakd.lock import alone_in

    config = read_config(file)
    folder = output or config.output
    if not folder:
        raise UserError(f'{file}: output', 'no folder is named; name one here, or give -o FOLDER.')
    place, text = Path(folder).absolute(), ''
    try:
        if dry_run:
            return Compared(dry.dry_run(config, file, place, jobs, threads), '', file)
        rows = read_rows(config, Path(file).parent)
        matrix = Matrix(config, rows, data.open_images(config), place)
        if slurm is not None:
            return Compared(write_jobs(Path(slurm), Path(file).resolve(), matrix, parts.groups(matrix)), '', file)
        if part not in (None, parts.TABLES):
            return Compared(parts.run_part(matrix, part, threads) + '\n', '', file)
        measuring.check_measures(config, matrix)
        read_results(place)
        output_folder(place)
        with alone_in(place, '-o'):
            if part is None:
                parts.prepare(matrix, jobs)
            final, every, search = parts.measured(matrix) if part else _train(matrix, jobs, threads)
            if any(cell.run.done for cell in final):
                text = _summarise(Path(file).name, matrix, final, every, search, jobs)
                text += f'Written to {folder}: comparison.md, tables, figures, results.json, report.html\n'
    except UserError as error:
        raise error.within(file) from None
    # of a row that is lost, other seeds are not begun
    shared = [run for run in parts.shared(matrix) if run.record.state != 'new']
    broken = [run for run in shared if run.record.state != 'done']  # a first stage that was removed is not needed
    broken += [cell.run for cell in every if not cell.run.done]
    return Compared(text, _broken(broken, len(every) + len(shared), search), file)


def _broken(runs: Sequence[Run], total: int, search: Search) -> str:
    """What to say of cells that broke, and of rows that are not in the tables because no trial is done or measured."""
    trained = {trial['row'] for trial in search.trials if trial['state'] == 'done'}
    unmeasured = ', '.join(row for row in search.lost if row in trained)
    if unmeasured:
        unmeasured = f'no trial of {unmeasured} has a value of the primary metric on the validation split'
    if not runs:
        again = 'give more images there, or larger ones, and give the same command again, which keeps what is trained'
        return unmeasured and f'{unmeasured}; {again}.'
    first = '; '.join(f'{run.name}: {run.record.reason.rstrip(".") or "it is not finished"}' for run in runs[:3])
    more = '; ...' if len(runs) > 3 else ''
    unfinished = ', '.join(row for row in search.lost if row not in trained)
    unfinished = unfinished and f'no trial of {unfinished} was finished'
    without = f' ({", ".join(filter(None, (unfinished, unmeasured)))})' if search.lost else ''
    return (
        f'{len(runs)} of {total} cells broke{without}: {first}{more}; mend that and give the same command again, which '
        'keeps the others.'
    )
