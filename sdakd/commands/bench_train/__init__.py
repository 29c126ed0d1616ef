"""`sdakd bench train`: what a training step of an option file costs, beside BasicSR's own step of the same work."""

from __future__ import annotations

import argparse
import datetime
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdakd import __version__, compat, stops
from sdakd.commands.bench import DEVICES, device_of, processor
from sdakd.commands.bench_train.ledger import PARTS
from sdakd.commands.interface import MOST_THREADS, Flags, Outcome, number, whole
from sdakd.compat import UserError
from sdakd.progress import Progress

if TYPE_CHECKING:
    from sdakd.commands.bench_train.rows import Row

BATCHES = 4  # that take turns
MOST_ROUNDS, MOST_REUSE, MOST_BATCH, LARGEST = 10_000, 1000, 4096, 4096
HEADER = ('step', 'precision', 'with', 'ms', 'p10', 'p90', 'images/s', 'ratio', 'MiB', 'MiB ratio')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    add = Flags(parser, bench_train)
    add('-opt', help='option file of a training, or the name of one that ships')
    add('-o', '--output', help='folder for results.json and the tables (default: the screen alone)')
    add('--stages', nargs='+', metavar='STAGE', help='stages of the file (default: all)')
    precisions = (
        'values of train:precision; fp32/bf16 is train:precision fp32 with teacher:precision bf16 (default: fp32 and '
        'what the file says)'
    )
    add('--precisions', nargs='+', metavar='PRECISION', help=precisions)
    add('--reuse', nargs='+', type=number, metavar='N', help="values of train:pool_reuse (default: the file's)")
    add(
        '--cache',
        action='store_true',
        help="add rows with the teachers' answers at hand (teacher:cache; pairs)",
    )
    add('--compile', action='store_true', help='train:compile, in all rows but that of BasicSR')
    add('--breakdown', action='store_true', help='a second table: where the time of every step goes')
    add('--batch', type=number, help="images of a step (default: the file's)")
    add('--gt_size', type=number, help="side of a crop of the ground truth in pixels (default: the file's)")
    add('--no_perceptual', action='store_true', help='leave train:perceptual_opt out')
    add('-t', '--teacher', help="teacher's file (default: the option file's; random weights where it is missing)")
    add('-d', '--data', help='folder of photographs (default: images of noise)')
    add('--rounds', type=number, help='how often each row has its turn (default: {default})')
    add('--threads', type=number, help="on a processor (default: torch's choice, one per core)")
    add('--device', choices=DEVICES, help='default: cuda where there is one')
    add('--force_yml', nargs='+', metavar='KEY=VALUE', help='change values of the option file: train:ema_decay=0.99')


@dataclass
class StepTimes(Outcome):
    """What was measured.

    Args:
        section: The section ``bench_train`` of ``results.json``, see docs/performance.md; ``rows`` holds an entry per
            step, precision and use of pairs, with times in milliseconds.
        output: The folder that it was written to, or None.
    """

    section: dict
    output: Path | None

    def __str__(self) -> str:
        from sdakd.files import results

        content, cuda = self.section, self.section['device'] != 'cpu'
        text = results.table(HEADER, table_rows(content))
        if content['breakdown']:
            text += '\n' + results.table(breakdown_header(content), breakdown_rows(content))
        where = content['device'] if cuda else f'{content["cpu"]}, threads: {content["threads"]}'
        lines = [
            f'{where}; batch {content["batch"]}, crops of {content["gt_size"]}. ms: median of a step (rounds: '
            f'{content["rounds"]}), with percentiles; ratio: to {content["base"]} in {content["base_precision"]}; MiB: '
            f'growth at the peak, {"on the GPU" if cuda else "in a process of its own"}.',
            f'One process loads a batch in {content["load_ms"]:.0f} ms, beside the step, in which it is not.',
        ]
        if content['breakdown']:
            lines.append(
                'Parts of a step in ms, means. Discriminators: all that they compute, their backward passes included.'
            )
        if content['random']:
            lines.append(f'Random weights, as the files are missing: {", ".join(content["random"])}.')
        lines += [
            f'Left out: {" ".join(filter(None, (row["step"], row["precision"], row["with"])))}: {row["error"]}'
            for row in content['rows']
            if row['error']
        ]
        if self.output:
            lines.append(f'Wrote results.json and bench_train.md, .csv, .tex to {self.output}.')
        return text + ''.join(f'{line}\n' for line in lines)

    def check(self) -> None:
        if not any(row['median_ms'] for row in self.section['rows']):
            raise UserError('nothing could be measured; the reasons stand above.')


def table_rows(content: dict) -> list[list[str]]:
    """The rows of the first table; what was not measured is a dash."""
    formats = ('median_ms', '.0f'), ('p10_ms', '.0f'), ('p90_ms', '.0f'), ('images_per_s', '.2f'), ('ratio', '.2f')
    small = any(row['median_ms'] and row['median_ms'] < 100 for row in content['rows'])
    rows = []
    for row in content['rows']:
        cells = [row['step'], row['precision'], row['with']]
        for key, style in (*formats, ('peak_memory_mib', '.0f'), ('memory_ratio', '.2f')):
            style = '.1f' if small and key.endswith('_ms') else style
            cells.append('-' if row[key] is None else format(row[key], style))
        rows.append(cells)
    return rows


def breakdown_header(content: dict) -> list[str]:
    """Columns of the second table: the parts that some step has."""
    there = {part for row in content['rows'] for part in row['breakdown_ms'] or {}}
    return ['step', 'precision', 'with', 'ms', *(part for part in PARTS if part in there)]


def breakdown_rows(content: dict) -> list[list[str]]:
    """The rows of the second table, milliseconds."""
    rows = []
    for row in content['rows']:
        if row['breakdown_ms']:
            parts = [row['breakdown_ms'].get(part, 0.0) for part in breakdown_header(content)[4:]]
            cells = [sum(parts), *parts]
            rows.append([row['step'], row['precision'], row['with'], *(f'{cell:.1f}' for cell in cells)])
    return rows


def _entry(row: Row, base: Row | None, batch: int) -> dict:
    """A row's entry in ``results.json``."""
    import numpy as np

    low, middle, high = (row.average(lambda values, q=q: 1e3 * float(np.percentile(values, q))) for q in (10, 50, 90))
    reference = base and base.average(lambda values: 1e3 * float(np.median(values)))
    return {
        'step': row.step,
        'precision': row.precision,
        'with': row.extras,
        'reuse': row.reuse,
        'cache': row.cache,
        'compile': row.compiled,
        'median_ms': middle,
        'p10_ms': low,
        'p90_ms': high,
        'images_per_s': 1e3 * batch / middle if middle else None,
        'ratio': middle / reference if middle and reference else None,
        'peak_memory_mib': row.memory,
        'memory_ratio': row.memory / base.memory if row.memory and base and base.memory else None,
        'breakdown_ms': row.breakdown() or None,
        'error': row.error,
    }


def _measure(rows: list[Row], rounds: int, breakdown: bool, cuda: bool, threads: int, folder: Path) -> float:
    """Times all rows in turn, then their memory; returns the seconds in which a process loads a batch."""
    import torch

    from sdakd.commands.bench_train.steps import Stepper, load, peak_growth, quietly, watched_step

    batches, files, loading, steppers = {}, {}, 0.0, {}
    total = len(rows) * (2 if cuda else 3) + rounds * len(rows) * (2 if cuda and breakdown else 1)
    with Progress('bench train', total, 'turns') as progress, quietly(cuda):
        for row in rows:
            data = row.options['datasets']['train']
            key = data.get('gt_size')
            if key not in batches:
                batches[key], seconds = load(row.options, BATCHES)
                loading = loading or seconds
                files[key] = folder / f'batches_{len(files)}.pt'
                torch.save(batches[key], files[key])
            progress.step(note=f'warming up {row}')
            before = torch.cuda.memory_allocated() if cuda else 0
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            try:
                steppers[id(row)] = Stepper(row.options, row.stage, row.cache, batches[key])
                steppers[id(row)].fill()
                if cuda:
                    row.memory = (torch.cuda.max_memory_allocated() - before) / 2**20
            except Exception as error:  # of whatever a loss, a compiler or a GPU does
                row.fail(error)
        shuffled = random.Random(0)

        def turns(watched: bool, timed: bool) -> None:
            for _ in range(rounds):
                for row in shuffled.sample(rows, len(rows)):
                    progress.step(note='timing')
                    turn(row, watched, timed)

        def turn(row: Row, watched: bool, timed: bool) -> None:
            try:
                for _ in range(row.reuse if row.error is None else 0):
                    step(row, watched, timed)
                while row.error is None and timed and row.reuse > 1 and not (row.paying and row.free):
                    step(row, watched, timed)  # of few rounds
            except Exception as error:
                row.fail(error)

        def step(row: Row, watched: bool, timed: bool) -> None:
            stepper = steppers[id(row)]
            pays = stepper.pays
            if watched:
                spent, parts = watched_step(stepper)
                row.parts[pays].append(parts)
            else:
                spent = stepper.step()
            if timed:
                (row.paying if pays else row.free).append(spent)

        # on a processor reading the clock costs nothing; on a GPU it waits
        turns(watched=breakdown and not cuda, timed=True)
        if breakdown and cuda:
            turns(watched=True, timed=False)
        steppers.clear()
        if not cuda:
            for row in rows:
                progress.step(note=f'memory of {row}')
                if row.error is None and not row.compiled:  # a compiler lives in the same process
                    row.memory = peak_growth(row, files[row.options['datasets']['train'].get('gt_size')], threads)
    return loading


@stops.leaving('nothing was written; give the same command again')
def bench_train(
    opt: str | Path,
    output: str | Path | None = None,
    *,
    stages: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    reuse: Sequence[int] | None = None,
    cache: bool = False,
    compile: bool = False,
    breakdown: bool = False,
    batch: int | None = None,
    gt_size: int | None = None,
    no_perceptual: bool = False,
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    rounds: int = 10,
    threads: int | None = None,
    device: str | None = None,
    force_yml: Sequence[str] | None = None,
) -> StepTimes:
    """Measures what a training step costs: time and memory of every stage, beside BasicSR's own step.

    Args:
        opt: Option file of a training, or the name of one that ships. Its images are not used; where files of weights
            are missing, random ones take their place, which changes no time.
        output: Folder for results.json and the tables; None writes nothing.
        stages: Of the file; default: all.
        precisions: Values of ``train:precision``, behind a stroke one of ``teacher:precision``; default: ``fp32`` and
            the file's.
        reuse: Values of ``train:pool_reuse``; default: the file's. A turn is as many steps.
        cache: Adds rows with the teachers' answers at hand, for pairs.
        compile: ``train:compile`` in all rows but that of BasicSR.
        breakdown: Whether parts of a step are timed as well.
        batch, gt_size: Images of a step and the side of their crops in pixels; default: the file's.
        no_perceptual: Leaves ``train:perceptual_opt`` out.
        teacher: The teacher's file, in the place of the option file's.
        data: Folder of photographs; default: noise.
        rounds: How often each row has its turn.
        threads: On a processor; default: torch's choice. torch keeps it afterwards.
        device: ``cpu`` or ``cuda``; default: ``cuda`` where there is one.
        force_yml: Changes of the option file, ``key:key=value``.

    Returns:
        All measurements. A row that fails has its reason in ``error``.

    Raises:
        UserError: A mistake in the arguments or in the option file, or an output that cannot be written.
    """
    rounds = whole(rounds, '--rounds', 1, MOST_ROUNDS)
    threads = None if threads is None else whole(threads, '--threads', 1, MOST_THREADS)
    batch = None if batch is None else whole(batch, '--batch', 1, MOST_BATCH)
    gt_size = None if gt_size is None else whole(gt_size, '--gt_size', 1, LARGEST)
    reuse = [whole(value, '--reuse', 1, MOST_REUSE) for value in reuse or ()]
    compat.import_basicsr()
    import torch

    from sdakd.commands.bench_train import rows as rows_of
    from sdakd.commands.bench_train import stand_ins
    from sdakd.files import results
    from sdakd.option_files import option_file

    device = device_of(device)
    rows_of.check_precisions(precisions or ())
    file = option_file(str(opt))
    options = rows_of.read(file, force_yml or (), None if teacher is None else str(teacher))
    rows_of.check_stages(options, stages)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            rows_of.settle(options, device, batch, gt_size, not no_perceptual)
            random_ones = stand_ins.random_weights(options, folder)
            crop = rows_of.crop_of(options)
            stand_ins.images(options, folder, None if data is None else str(data), rows_of.largest_crop(options, reuse))
            own = options['train'].get('precision', 'fp32')
            plan = rows_of.Plan(
                options, folder, file, device, crop, None if stages is None else list(stages),
                list(precisions or dict.fromkeys(['fp32', own])), reuse or [options['train'].get('pool_reuse', 1)],
                cache, compile,
            )  # fmt: skip
            rows = plan.rows()
        except UserError as error:
            raise error.within(file) if not error.where.startswith('-') else error from None
        if output is not None:
            results.output_folder(output)
            results.read_results(output)  # a damaged one shall not spoil the end
        begun = datetime.datetime.now()
        loading = _measure(rows, rounds, breakdown, device == 'cuda', threads, folder)
    base = next((row for row in rows if row.error is None), None)
    content = {
        'version': __version__,
        'device': torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
        'cpu': processor(),
        'threads': threads,
        'torch': torch.__version__,
        'options': Path(file).name,
        'batch': options['datasets']['train']['batch_size_per_gpu'],
        'gt_size': crop,
        'rounds': rounds,
        'date': begun.isoformat(timespec='seconds'),
        'base': base.step if base else None,
        'base_precision': base.precision if base else None,
        'load_ms': 1e3 * loading,
        'random': random_ones,
        'breakdown': breakdown,
    }
    content['rows'] = [_entry(row, base, content['batch']) for row in rows]
    if output is not None:
        results.write_section(output, 'bench_train', content)
        results.write_tables(output, 'bench_train', HEADER, table_rows(content))
        if breakdown:
            results.write_tables(output, 'bench_train_parts', breakdown_header(content), breakdown_rows(content))
    return StepTimes(content, None if output is None else Path(output))
