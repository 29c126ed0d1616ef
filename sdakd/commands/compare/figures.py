"""Figures of quality against cost."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdakd.commands.compare.matrix import Matrix
from sdakd.commands.compare.summary import label_of
from sdakd.compat import UserError
from sdakd.files.images import write
from sdakd_arch.width import cost

# Okabe and Ito, "Color Universal Design" (2008); a marker and a dash belong to each colour, and beyond the seven
# colours markers and dashes go on, so that methods are told apart in grey and with every kind of colour blindness
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '<', '>', '*', 'p')
DASHES = ('-', (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
STYLE = {
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans'],
    'font.size': 8,
    'axes.titlesize': 8,
    'axes.labelsize': 8,
    'xtick.labelsize': 7,
    'ytick.labelsize': 7,
    'legend.fontsize': 7,
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'pdf.fonttype': 42,
    'savefig.dpi': 300,
}


def draw(
    panels: Mapping[str, Sequence[dict]],
    x_label: str,
    y_label: str,
    lines: Mapping[str, float | None],
    folder: Path,
    name: str,
) -> list[Path]:
    """One panel per test set: quality against cost, a marker per method and width, bars for the spread over seeds.

    Args:
        panels: By test set: entries ``row, width, x, x_sd, y, y_sd``; entries of a row are joined in their order.
        x_label, y_label: With unit, and which direction is better.
        lines: The teacher's quality by test set, where there is one.
        folder: Receives ``name.png`` (300 dpi) and ``name.pdf``.

    Returns:
        What was written.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise UserError('figures need matplotlib: pip install matplotlib.') from None
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(entry['row'] for entries in panels.values() for entry in entries))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.6, 2.6 * len(panels) + 1.6), 2.9), layout='constrained')
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        handles = {}
        for axis, (of, entries) in zip(axes, panels.items(), strict=True):
            if lines.get(of) is not None:
                handles['teacher'] = axis.axhline(lines[of], color='0.5', linewidth=0.8, linestyle=(0, (2, 2)))
            for number, row in enumerate(names):
                points = [entry for entry in entries if entry['row'] == row]
                if not points:
                    continue
                handles[row] = axis.errorbar(
                    [entry['x'] for entry in points],
                    [entry['y'] for entry in points],
                    xerr=[entry.get('x_sd') or 0 for entry in points],
                    yerr=[entry.get('y_sd') or 0 for entry in points],
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKERS[number % len(MARKERS)],
                    linestyle=DASHES[number % len(DASHES)] if len(points) > 1 else 'none',
                    markersize=4.5,
                    linewidth=1.0,
                    elinewidth=0.7,
                    capsize=1.5,
                )
            axis.set_title(of)
            axis.set_xlabel(x_label)
            axis.margins(0.12)
            axis.set_xlim(left=0)
        axes[0].set_ylabel(y_label)
        figure.legend(handles.values(), handles.keys(), loc='outside right upper')
        paths = []
        for kind, metadata in (('pdf', {'CreationDate': None}), ('png', {})):
            data = io.BytesIO()
            figure.savefig(data, format=kind, metadata=metadata)
            paths.append(folder / f'{name}.{kind}')
            write(paths[-1], data.getvalue())
    return paths


def draw_all(matrix: Matrix, scores: list[dict], spent: list[dict], section: dict) -> list[Path]:
    """Quality by the primary metric against training time and, for several widths, against the network's cost."""
    config = matrix.config
    primary = config.primary
    of_teacher = {s['set']: s['mean'] for s in section['scores'] if s['model'] == 'teacher'
                  and s['metric'] == primary.metric and s['reference'] in ('gt', None)}  # fmt: skip
    if primary.against == 'teacher' and primary.metric != 'niqe':
        of_teacher = {}
    metric = next(m for m in section['metrics'] if m['name'] == primary.metric)
    kept = [s for s in scores if s['metric'] == primary.metric and s['reference'] in (primary.against, None)]
    time = {(e['row'], e['width']): e for e in spent}
    macs = {str(ratio): _macs(matrix, ratio) / 1e9 for ratio in config.ratios()}
    training, network = {}, {}
    for s in kept:
        e = time[s['row'], s['width']]
        y = {'row': s['row'], 'width': s['width'], 'y': s['mean'], 'y_sd': s['sd']}
        sd = None if e['seconds_sd'] is None else e['seconds_sd'] / 60
        training.setdefault(s['set'], []).append(y | {'x': e['seconds'] / 60, 'x_sd': sd})
        network.setdefault(s['set'], []).append(y | {'x': macs[s['width']]})
    unit = f', {metric["unit"]}' if metric['unit'] else ''
    label = f'{label_of(config)}{unit}\n({"higher" if metric["higher_is_better"] else "lower"} is better)'
    written = []
    if training:
        written += draw(training, 'minutes of training', label, of_teacher, matrix.output, 'quality_training')
    if network and len(config.widths) > 1:
        written += draw(network, 'GMACs of the student', label, of_teacher, matrix.output, 'quality_network')
    return written


def _macs(matrix: Matrix, ratio) -> int:
    return cost(matrix.student(ratio))[1]
