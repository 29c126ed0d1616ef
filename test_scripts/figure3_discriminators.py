"""Figure 3: the teacher's discriminator against the student's, on generated images.

    python test_scripts/figure3_discriminators.py -opt test_scripts/configs/figure3.yml

One row per generator (the paper has GCFSR and Real-ESRGAN). It writes figure3.pdf and .png (the image, the map of
every discriminator's outputs on it, and the densities of these outputs), figure3.json (statistics and overlaps) and a
table of it. GCFSR's discriminators give one output for an image: a row of theirs has a folder of images, which the
figure shows side by side, and every output in its image's place.
"""

from __future__ import annotations

import math
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from common import (
    PAGE,
    UserError,
    check_distinct,
    enlarge,
    main,
    new_figure,
    read_rgb,
    save_figure,
    save_json,
    save_table,
    to_uint8,
)
from msgspec import Meta, Struct, field

if TYPE_CHECKING:
    import numpy as np

WIDEST = 1024  # pixels of a row of images; a panel of the figure has some 500


class Entry(Struct, forbid_unknown_fields=True):
    """A discriminator."""

    label: str
    weights: str


class Row(Struct, forbid_unknown_fields=True):
    """A generated image and who judges it."""

    label: str
    generator: str
    input: str  # a low-resolution image, or a folder of them
    discriminators: list[Entry]
    images: Annotated[int, Meta(ge=1)] = 64  # how many of a folder to take, in the order of their names


class Config(Struct, forbid_unknown_fields=True):
    """The YAML."""

    rows: list[Row]
    output: str = ''
    log_density: bool = False  # a logarithmic axis, for distributions of very different widths
    notes: list[str] = field(default_factory=list)


def mosaic(parts: list[np.ndarray], blank: float) -> np.ndarray:
    """Arrays ``(H, W)`` or ``(H, W, 3)`` side by side, row by row, in a square as far as possible.

    ``blank`` fills what is left of the last row.
    """
    import numpy as np

    side = math.ceil(math.sqrt(len(parts)))
    rows = [parts[start : start + side] for start in range(0, len(parts), side)]
    rows[-1] += [np.full_like(parts[0], blank)] * (len(rows[0]) - len(rows[-1]))
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """An image ``(H, W, 3)`` as large as a figure can show ``side`` of them in a row."""
    import cv2

    factor = max(1, side * image.shape[1] // WIDEST)
    size = image.shape[1] // factor, image.shape[0] // factor
    return image if factor == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def read_inputs(row: Row, where: str) -> dict[str, np.ndarray]:
    """The low-resolution images of a row by name, uint8 ``(h, w, 3)``.

    Raises:
        UserError: One is missing, damaged or of another size than the first.
    """
    from sdakd.files.images import list_images

    if not Path(row.input).is_dir():
        return {Path(row.input).name: read_rgb(row.input, where)}
    images = {name: read_rgb(Path(row.input) / name, where) for name in list_images(row.input, where)[: row.images]}
    first = next(iter(images.values())).shape
    for name, image in images.items():
        if image.shape != first:
            sizes = f'{image.shape[1]}x{image.shape[0]} pixels, and others {first[1]}x{first[0]}'
            raise UserError(f'{where}: {row.input}/{name} has {sizes}; give images of one size.')
    return images


def draw(figure, judged: list[tuple], log: bool) -> None:
    """Draws a row of the figure for every generated image.

    Args:
        judged: Of every row its label, the image (H, W, 3) in uint8, the logits (H, W) by discriminator, NaN where
            there is no image, and their densities.
        log: Whether the densities stand on a logarithmic axis.
    """
    import numpy as np
    from discriminators import draw_densities

    columns = max(len(maps) for _, _, maps, _ in judged)
    grid = figure.subfigures(len(judged), 2, squeeze=False, width_ratios=[columns + 1, 1.6])
    for (left, right), (label, image, maps, found) in zip(grid, judged, strict=True):
        picture, *panels = left.subplots(1, columns + 1)
        picture.imshow(image)
        picture.set_title(textwrap.fill(label, 20))
        # one scale for the maps of a row, with undecided in its middle, that a few pixels cannot stretch
        limit = float(np.nanquantile(np.abs(np.concatenate([one.ravel() for one in maps.values()])), 0.99)) or 1.0
        for panel, (name, logits) in zip(panels, maps.items(), strict=False):
            shown = panel.imshow(logits, cmap='PuOr', vmin=-limit, vmax=limit)
            panel.set_title(textwrap.fill(name, 20))
        for panel in (picture, *panels):
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[:].set_visible(False)
        for panel in panels[len(maps) :]:
            panel.set_visible(False)
        place = {'location': 'bottom', 'fraction': 0.06, 'pad': 0.03, 'aspect': 50, 'shrink': 0.6, 'extend': 'both'}
        bar = left.colorbar(shown, ax=[picture, *panels], **place)
        bar.set_label('generated  \N{LEFTWARDS ARROW}  output (logit)  \N{RIGHTWARDS ARROW}  real', fontsize=7)
        bar.ax.tick_params(labelsize=6)
        bar.outline.set_linewidth(0.4)
        draw_densities(right.subplots(), found, log)


def work(config: Config, folder: Path) -> list[Path]:
    """Generates every row's image and asks its discriminators."""
    import numpy as np
    from discriminators import densities, open_discriminator, statistics
    from tqdm import tqdm

    from sdakd.files.generators import open_network

    check_distinct([row.label for row in config.rows], 'rows')
    players = []
    for number, row in enumerate(config.rows):
        where = f'rows[{number}]'
        check_distinct([entry.label for entry in row.discriminators], f'{where}:discriminators')
        generator = open_network(row.generator, f'{where}:generator', faces=True)
        images = read_inputs(row, f'{where}:input')
        entries = enumerate(row.discriminators)
        judges = {e.label: open_discriminator(e.weights, f'{where}:discriminators[{n}]:weights') for n, e in entries}
        players.append((row, generator, images, judges))

    judged, content, lines = [], [], []
    for row, generator, images, judges in players:
        shown, outputs = [], {label: [] for label in judges}
        for image in tqdm(images.values(), unit='image', file=sys.stderr, disable=len(images) == 1):
            generated = enlarge(generator, image)
            shown.append(shrink(to_uint8(generated), math.ceil(math.sqrt(len(images)))))
            for label, judge in judges.items():
                outputs[label].append(judge(generated))
        flat = {label: np.concatenate([logits.ravel() for logits in parts]) for label, parts in outputs.items()}
        found = densities(flat)
        maps = {label: mosaic(parts, np.nan) for label, parts in outputs.items()}
        judged.append((row.label, mosaic(shown, 255), maps, found))
        facts = {'label': row.label, 'generator': row.generator, 'input': row.input, 'images': list(images)}
        facts['discriminators'] = []
        for entry in row.discriminators:
            numbers = statistics(flat[entry.label])
            network = judges[entry.label].network
            facts['discriminators'].append(
                {'label': entry.label, 'weights': entry.weights, 'network': network, **numbers}
            )
            cells = [f'{numbers[key]:.3g}' for key in ('mean', 'std', 'p05', 'median', 'p95')]
            first = row.discriminators[0].label
            cells += [f'{100 * numbers["called_real"]:.1f}%', f'{found.overlap(first, entry.label):.3f}']
            lines.append([row.label, entry.label, *cells])
        content.append({**facts, 'overlaps': found.overlaps()})

    columns = max(len(maps) for _, _, maps, _ in judged)
    width = PAGE / (columns + 2.6)  # of a picture, in inches
    heights = [width * image.shape[0] / image.shape[1] + 0.85 for _, image, _, _ in judged]
    figure = new_figure(PAGE, sum(max(height, 1.8) for height in heights))
    draw(figure, judged, config.log_density)
    header = ['Image', 'Discriminator', 'Mean', 'Std', '5%', 'Median', '95%', 'Called real', 'Overlap with the first']
    notes = [
        "Logits over all pixels of a row's generated images, or one for each with GCFSR's. Called real: share above 0.",
        *config.notes,
    ]
    return [
        *save_figure(figure, folder, 'figure3'),
        save_json({'rows': content, 'notes': config.notes}, folder, 'figure3'),
        *save_table(header, lines, notes, folder, 'figure3'),
    ]


if __name__ == '__main__':
    sys.exit(main(__doc__, Config, work))
