"""The cost table: parameters, multiply-accumulates and speed-up by width, ours beside the paper's.

    sdakd bench -m teacher.pth student_1_4.pth student_1_8.pth --size 64 -o results/bench
    python test_scripts/table_cost.py -opt test_scripts/configs/table_cost.yml

Parameters and multiply-accumulates are counted, for one RGB image of the YAML's size, without any weights. Times come
from the results.json files of `sdakd bench` that the YAML names, if any; a row's model is told by its architecture and
number of parameters, and its speed-up is the time of width 1 in plain eager float32, in the same run, over its own.
The paper's cells come from test_scripts/paper.yml; those that could not be read are empty. It writes table_cost.md,
.csv and .tex.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from common import UserError, check_distinct, fraction, main, save_table
from msgspec import Meta, Struct, field


class Generator(Struct, forbid_unknown_fields=True):
    """A family of rows: a network at full width, and the discriminator that is trained with it."""

    label: str
    network: dict
    discriminator: dict | None = None


class Timing(Struct, forbid_unknown_fields=True):
    """A pair of columns: a way of running that `sdakd bench` measured."""

    label: str
    backend: str = 'eager'
    precision: str = 'fp32'


class Config(Struct, forbid_unknown_fields=True):
    """The YAML."""

    generators: list[Generator]
    widths: list[str | int | float]
    output: str = ''
    size: Annotated[int, Meta(ge=8)] = 64
    bench: list[str] = field(default_factory=list)  # folders with a results.json
    timings: list[Timing] = field(default_factory=lambda: [Timing('eager')])
    notes: list[str] = field(default_factory=list)


class Bench:
    """One run of `sdakd bench`.

    Args:
        folder: Where its results.json is.
        size: The input size that the table is for.

    Raises:
        UserError: The file is missing or damaged, or was measured at another size.
    """

    def __init__(self, folder: str, size: int) -> None:
        from sdakd.files.results import NAME, read_results

        path = Path(folder) / NAME
        content = read_results(folder, 'run `sdakd bench` again').get('bench')
        if content is None:
            raise UserError(f'bench: {path} holds no results of bench; run `sdakd bench ... -o {folder}`.')
        try:
            self.models = [(m['name'], (m['network'] or {}).get('type'), m['parameters']) for m in content['models']]
            self.runs = {(r['model'], r['backend'], r['precision']): r['median_ms'] for r in content['runs']}
            self.machine = (
                f'{content.get("cpu") or content["device"]}, {content["threads"]} threads, torch {content["torch"]}'
            )
            measured = content['size']
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f'bench: {path} is damaged ({error!r}); run `sdakd bench` again.') from None
        if measured != size:
            raise UserError(f'bench: {path} was measured at {measured}x{measured} pixels; write size: {measured}.')

    def time(self, network: dict, parameters: int, timing: Timing) -> float | None:
        """Median milliseconds of the network; None where it was not measured."""
        for name, kind, count in self.models:
            if (kind, count) == (network['type'], parameters):
                return self.runs.get((name, timing.backend, timing.precision))
        return None


def times(benches: list[Bench], network: dict, parameters: int, teacher: tuple[dict, int], timing: Timing) -> list[str]:
    """Milliseconds and speed-up from the first run that measured this network."""
    for bench in benches:
        own = bench.time(network, parameters, timing)
        if own:
            whole = bench.time(*teacher, Timing('eager'))
            return [f'{own:.2f}', f'{whole / own:.2f}' if whole else '']
    return ['', '']


def work(config: Config, folder: Path) -> list[Path]:
    """Counts, looks up and writes."""
    from published import Published

    from sdakd_arch.width import cost, student_of

    check_distinct([generator.label for generator in config.generators], 'generators')
    check_distinct([timing.label for timing in config.timings], 'timings')
    widths = [fraction(width, f'widths[{number}]') for number, width in enumerate(config.widths)]
    check_distinct([str(width) for width in widths], 'widths')
    benches, paper = [Bench(bench, config.size) for bench in config.bench], Published('cost')

    counted = [
        'Parameters',
        'Paper: parameters',
        'GMACs',
        'Paper: GMACs',
        'Times fewer MACs',
        'Discriminator parameters',
    ]
    timed = [text for timing in config.timings for text in (f'ms, {timing.label}', f'Speed-up, {timing.label}')]
    header, rows = ['Generator', 'Width', *counted, *timed, 'Paper: speed-up'], []
    for generator in config.generators:
        whole = cost(student_of(generator.network, 1), config.size)
        for width in widths:
            network = student_of(generator.network, width)
            parameters, macs = cost(network, config.size)
            judge = student_of(generator.discriminator, width) if generator.discriminator else None
            published = [paper.cell(metric, generator.label, width) for metric in ('parameters', 'macs', 'speed-up')]
            cells = [f'{parameters:,d}', published[0], f'{macs / 1e9:.3f}', published[1], f'{whole[1] / macs:.1f}']
            cells.append(f'{cost(judge, config.size)[0]:,d}' if judge else '')
            for timing in config.timings:
                cells += times(benches, network, parameters, (generator.network, whole[0]), timing)
            rows.append([generator.label, str(width), *cells, published[2]])
    notes = [
        f'For one RGB input of {config.size}x{config.size} pixels, or one face of GCFSR. The discriminator is for '
        'training only.'
    ]
    notes += [f'Measured on {bench.machine}.' for bench in benches]
    return save_table(header, rows, [*notes, *config.notes, *paper.notes()], folder, 'table_cost')


if __name__ == '__main__':
    sys.exit(main(__doc__, Config, work))
