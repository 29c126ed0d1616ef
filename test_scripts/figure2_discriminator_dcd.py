"""Figure 2: what discriminators say of the images of the students that were trained with them.

    python test_scripts/figure2_discriminator_dcd.py -opt test_scripts/configs/figure2.yml

The paper compares DCD with modified DCD. Here a run is any generator with any discriminator. It writes figure2.pdf
and .png (above, the density of the outputs over all pixels, or images with GCFSR's discriminators, which give one for
each; below, the mean of every image), figure2.json (statistics, the mean of every image, the overlap of every two
distributions) and a table of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from common import (
    COLUMN,
    UserError,
    check_distinct,
    enlarge,
    main,
    new_figure,
    read_rgb,
    save_figure,
    save_json,
    save_table,
)
from msgspec import Meta, Struct, field


class Run(Struct, forbid_unknown_fields=True):
    """A student and the discriminator that judges it."""

    label: str
    generator: str
    discriminator: str


class Config(Struct, forbid_unknown_fields=True):
    """The YAML."""

    runs: list[Run]
    inputs: str  # a folder of low-resolution images
    output: str = ''
    images: Annotated[int, Meta(ge=1)] | None = None  # how many to take, in the order of their names
    log_density: bool = False  # a logarithmic axis, for distributions of very different widths
    notes: list[str] = field(default_factory=list)


def work(config: Config, folder: Path) -> list[Path]:
    """Runs every student and its discriminator over the images."""
    import numpy as np
    from discriminators import densities, draw_densities, open_discriminator, statistics, style
    from tqdm import tqdm

    from sdakd.files.generators import open_network
    from sdakd.files.images import list_images

    labels = [run.label for run in config.runs]
    check_distinct(labels, 'runs')
    names = list_images(config.inputs, 'inputs')[: config.images]
    players = {}
    for number, run in enumerate(config.runs):
        generator = open_network(run.generator, f'runs[{number}]:generator', faces=True)
        players[run.label] = generator, open_discriminator(run.discriminator, f'runs[{number}]:discriminator')
    scales = {
        f'{generator.scale} times' if generator.scale else f'to {generator.module.out_size} pixels'
        for generator, _ in players.values()
    }
    if len(scales) > 1:
        raise UserError(f'runs: the generators enlarge {" and ".join(sorted(scales))}; compare those of one kind.')

    outputs: dict[str, list] = {label: [] for label in labels}
    for name in tqdm(names, unit='image', file=sys.stderr):
        image = read_rgb(Path(config.inputs) / name, 'inputs')
        for label, (generator, discriminator) in players.items():
            outputs[label].append(discriminator(enlarge(generator, image)).ravel())
    flat = {label: np.concatenate(parts) for label, parts in outputs.items()}
    found = densities(flat)
    runs = []
    for run in config.runs:
        means = {name: float(part.mean(dtype=np.float64)) for name, part in zip(names, outputs[run.label], strict=True)}
        facts = {'label': run.label, 'generator': run.generator, 'discriminator': run.discriminator}
        facts['discriminator_network'] = players[run.label][1].network
        runs.append({**facts, 'values': flat[run.label].size, **statistics(flat[run.label]), 'image_means': means})

    figure = new_figure(COLUMN, 2.0 + 0.3 * len(labels))
    heights = {'height_ratios': [1.9, 0.2 + 0.16 * len(labels)]}
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw=heights)
    draw_densities(above, found, config.log_density)
    above.set_xlabel('')
    for number, run in enumerate(runs):
        means = list(run['image_means'].values())
        look = {'color': style(number)['color'], 'alpha': 0.5, 'markersize': 3.5, 'markeredgewidth': 0}
        below.plot(means, [number] * len(means), 'osD^v'[number % 5], **look)
        below.plot(run['mean'], number, '|', color='black', markersize=9, markeredgewidth=1.2)
    below.set_yticks([(len(labels) - 1) / 2], ['image\nmeans'])
    below.tick_params(left=False)
    below.set_ylim(len(labels) - 0.4, -0.6)
    below.set_xlabel('discriminator output (logit)')

    header = ['Run', 'Mean', 'Std', '5%', 'Median', '95%', 'Called real', *(f'Overlap with {x}' for x in labels)]
    rows = []
    for run in runs:
        numbers = [f'{run[key]:.3g}' for key in ('mean', 'std', 'p05', 'median', 'p95')]
        shared = [f'{found.overlap(run["label"], other):.3f}' for other in labels]
        rows.append([run['label'], *numbers, f'{100 * run["called_real"]:.1f}%', *shared])
    single = all(values.size == len(names) for values in flat.values())  # GCFSR's
    what = 'One logit for each' if single else 'Logits over all pixels'
    notes = [f'{what} of {len(names)} images of {config.inputs}. Called real: share above 0.']
    content = {'inputs': config.inputs, 'images': names, 'runs': runs, 'overlaps': found.overlaps()}
    return [
        *save_figure(figure, folder, 'figure2'),
        save_json({**content, 'notes': config.notes}, folder, 'figure2'),
        *save_table(header, rows, [*notes, *config.notes], folder, 'figure2'),
    ]


if __name__ == '__main__':
    sys.exit(main(__doc__, Config, work))
