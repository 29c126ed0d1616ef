"""Progress of a comparison on stderr: a line for every cell that ended, and a bar for the whole matrix."""

from __future__ import annotations

from sdakd import progress
from sdakd.files.runs import Run


def duration(seconds: float) -> str:
    """``3 h 05 min``, ``4 min 10 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f'{whole // 3600} h {whole % 3600 // 60:02d} min'
    return f'{whole // 60} min {whole % 60:02d} s' if whole >= 60 else f'{whole} s'


class Progress:
    """A line on stderr for every cell that ended, and signs of life with the time left for the whole matrix.

    Args:
        cells: How many cells the matrix has.
        iterations: Of all of them.
    """

    def __init__(self, cells: int, iterations: int) -> None:
        self.cells, self.ended, self.seen = cells, 0, {}
        self.progress = progress.Progress(f'0/{cells} cells', iterations, 'iterations')
        self.progress.__enter__()

    def __call__(self, run: Run, event: str) -> None:
        """Takes an event of :func:`sdakd.files.runs.train_all`."""
        record = run.record
        if event == 'begun':  # what an earlier call has done is no work of this one
            self.seen[run.name] = record.iteration
            self.progress.total -= record.iteration
        elif event == 'kept':
            self._end(run, 'kept', run.iterations)
        else:
            self.progress.step(record.iteration - self.seen[run.name])
            self.seen[run.name] = record.iteration
            if event == 'done':
                memory = '' if record.peak_mib is None else f', {record.peak_mib:,.0f} MiB'
                self._end(run, f'{duration(record.seconds)}{memory}', 0)
            elif event == 'broken':
                self._end(run, f'broken: {record.reason}', run.iterations - record.iteration)

    def _end(self, run: Run, text: str, less: int) -> None:
        self.ended += 1
        self.progress.total -= less
        progress.say(f'[{self.ended}/{self.cells}] {run.name}: {text}')
        self.progress.what = f'{self.ended}/{self.cells} cells'
