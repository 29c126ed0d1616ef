"""The parts of a comparison, in the order in which they need each other; each can be a process or a job of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sdakd.commands.compare import data, rehearsal, room
from sdakd.commands.compare.matrix import Matrix
from sdakd.commands.compare.rows import Row
from sdakd.commands.compare.search import Search, choose, factors_of
from sdakd.commands.compare.summary import Cell
from sdakd.compat import UserError, near
from sdakd.files.images import write
from sdakd.files.runs import Run, digest, train_all
from sdakd.lock import alone_in

DATA, SEARCH, TABLES = 'data', 'search', 'tables'  # parts that are no trainings


def cell_of(matrix: Matrix, row: Row, ratio, seed: int, factor: float) -> Cell:
    """One cell with its run."""
    return Cell(row, ratio, seed, factor, matrix.run(row, ratio, seed, factor))


def shared(matrix: Matrix) -> list[Run]:
    """What rows share: the teacher's discriminator, and first stages."""
    found = [run] if (run := matrix.discriminator_run()) else []
    pairs = [(ratio, seed) for seed in matrix.config.seeds for ratio in matrix.config.ratios()]
    return [*found, *(run for pair in pairs for run in matrix.first_runs(*pair))]


def trials(matrix: Matrix) -> list[Cell]:
    """Every row with each factor, at the first width with the first seed."""
    config = matrix.config
    ratio, seed = config.ratios()[0], config.seeds[0]
    return [cell_of(matrix, row, ratio, seed, f) for row in matrix.rows for f in factors_of(config, row)]


def finals(matrix: Matrix, best: dict[str, float]) -> list[Cell]:
    """The cells of the tables, of rows whose factor is known, seed by seed."""
    config = matrix.config
    return [
        cell_of(matrix, row, ratio, seed, best[row.name])
        for seed in config.seeds
        for ratio in config.ratios()
        for row in matrix.rows
        if row.name in best and seed in row.seeds
    ]


def prepare(matrix: Matrix, jobs: int) -> None:
    """Makes pairs and first weights, checks every row, and sees that the disk has room.

    Raises:
        UserError: A photograph cannot be used, a row would not train, or the disk is too small.
    """
    data.make_pairs(matrix.config, matrix.images, matrix.output, matrix.scale)
    with tempfile.TemporaryDirectory() as rehearsed:
        parsed = rehearsal.check_rows(matrix, Path(rehearsed), real_data=True)
        room.check(matrix, parsed, jobs)
    for ratio in matrix.config.ratios():
        for seed in matrix.config.seeds:
            matrix.make_start(ratio, seed)


def groups(matrix: Matrix) -> dict[str, list[str]]:
    """The names of all parts, in groups that come one after the other; those of a group may run at once."""
    config, first = matrix.config, (matrix.config.ratios()[0], matrix.config.seeds[0])
    others = [
        cell_of(matrix, row, ratio, seed, 1.0).run.name
        for seed in config.seeds
        for ratio in config.ratios()
        for row in matrix.rows
        if (ratio, seed) != first and seed in row.seeds
    ]
    found = {
        DATA: [DATA],
        'shared': [run.name for run in shared(matrix)],
        'trials': [trial.run.name for trial in trials(matrix)],
        SEARCH: [SEARCH] if len(config.search.factors) > 1 else [],
        'cells': others,
        TABLES: [TABLES],
    }
    return {group: names for group, names in found.items() if names}


# ----------------------------------------------------- one part ------------------------------------------------------


def run_part(matrix: Matrix, name: str, threads: int) -> str:
    """Does one part; tables are the caller's.

    Returns:
        What to say of it.

    Raises:
        UserError: There is no such part, what it needs is not there, or its training broke.
    """
    arrays = groups(matrix)
    known = [part for names in arrays.values() for part in names]
    if name not in known:
        raise UserError('--part', f'the comparison has no part {name!r}; {near(name, known)}.')
    if name == DATA:
        with alone_in(matrix.output, '-o'):
            prepare(matrix, max(map(len, arrays.values())))  # those of an array may run at once
        return f'{name}: done'
    data.set_places(matrix.images, matrix.output)
    if missing := [start for start in _starts(matrix) if not start.is_file()]:
        raise UserError('--part', f'{missing[0]} is not there; give --part {DATA} first.')
    if name == SEARCH:
        with alone_in(matrix.output, '-o'):
            every = trials(matrix)
            check_tried(matrix, every)
            found = choose(matrix.config, matrix, every)
            write(_chosen(matrix), json.dumps({'students': _students(matrix), 'best': found.best}, indent=2).encode())
        return f'{name}: ' + ', '.join(f'{row} {factor:g}' for row, factor in found.best.items())
    run = next((run for run in shared(matrix) if run.name == name), None)
    if run is None:
        run = _cell(matrix, name)
    train_all([run], 1, threads)
    if not run.done:
        raise UserError(
            f'{run.name} broke: {run.record.reason.rstrip(".")}; mend that and give the same command again.'
        )
    return f'{name}: done'


def _begins(matrix: Matrix, cell: Cell) -> list[Run]:
    """What a cell begins with."""
    needed = [matrix.first_run(cell.row, cell.ratio, cell.seed)]
    needed += [matrix.discriminator_run()] if cell.row.name in matrix.guided else []
    return [run for run in needed if run is not None]


def check_tried(matrix: Matrix, every: Sequence[Cell]) -> None:
    """Checks that a search chooses among all trials: those that broke, or whose beginning did, are lost.

    Raises:
        UserError: One was not trained yet, or not to its end.
    """
    if len(matrix.config.search.factors) == 1:
        return

    def lost(run: Run) -> bool:
        return run.record.state == 'broken'

    waiting = [
        trial.run.name
        for trial in every
        if not trial.run.done and not lost(trial.run) and not any(map(lost, _begins(matrix, trial)))
    ]
    if waiting:
        several = len(waiting) > 1
        raise UserError(
            '--part',
            f'{len(waiting)} of {len(every)} trials {"are" if several else "is"} not finished '
            f'({", ".join(waiting[:3])}{", ..." if len(waiting) > 3 else ""}), and the factors of the weights are '
            f'chosen among all of them: there is no verdict yet; give --part {waiting[0]} first.',
        )


def _starts(matrix: Matrix) -> list[Path]:
    return [matrix.start(ratio, seed) for ratio in matrix.config.ratios() for seed in matrix.config.seeds]


def _cell(matrix: Matrix, name: str) -> Run:
    """The run of a trial, or of a cell with the factor that the search has chosen.

    Raises:
        UserError: What it begins with, or the search, is not there yet.
    """
    every, config = trials(matrix), matrix.config
    found = next((trial for trial in every if trial.run.name == name), None)
    if found is None:
        row, ratio, seed = next(
            (row, ratio, seed)
            for seed in config.seeds
            for ratio in config.ratios()
            for row in matrix.rows
            if seed in row.seeds and cell_of(matrix, row, ratio, seed, 1.0).run.name == name
        )
        check_tried(matrix, every)
        best = _best(matrix)
        if row.name not in best:
            raise UserError('--part', f'no trial of {row.name} was finished; see their logs in {matrix.output}/cells.')
        found = cell_of(matrix, row, ratio, seed, best[row.name])
    if found.run.done:
        return found.run
    lacking = next((run for run in _begins(matrix, found) if not run.done), None)
    if lacking is not None:
        raise UserError('--part', f'{name} begins with {lacking.name}, which is not done; give --part {lacking.name}.')
    return found.run


def _chosen(matrix: Matrix) -> Path:
    return matrix.output / 'validation' / 'chosen.json'


def _students(matrix: Matrix) -> dict[str, str]:
    return {trial.run.name: digest(trial.run.result) for trial in trials(matrix) if trial.run.done}


def _best(matrix: Matrix) -> dict[str, float]:
    """The factor of every row, as the part ``search`` has chosen it.

    Raises:
        UserError: It has not, or trials were trained since.
    """
    if len(matrix.config.search.factors) == 1:
        return {row.name: factors_of(matrix.config, row)[0] for row in matrix.rows}
    try:
        content = json.loads(_chosen(matrix).read_text(encoding='utf-8'))
        if content['students'] == _students(matrix):
            return dict(content['best'])
    except (OSError, ValueError, KeyError):
        pass
    raise UserError('--part', f'the factors of the weights are not chosen yet; give --part {SEARCH} first.')


def measured(matrix: Matrix) -> tuple[list[Cell], list[Cell], Search]:
    """The cells of the tables, all cells, and the search, of what is trained; trains nothing.

    Raises:
        UserError: A trial is not finished: the search would choose among the others.
    """
    data.set_places(matrix.images, matrix.output)
    every = {trial.run.name: trial for trial in trials(matrix)}
    check_tried(matrix, list(every.values()))
    found = choose(matrix.config, matrix, list(every.values()))
    final: Sequence[Cell] = [every.setdefault(cell.run.name, cell) for cell in finals(matrix, found.best)]
    return list(final), list(every.values()), found
