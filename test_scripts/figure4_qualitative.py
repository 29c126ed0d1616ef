"""Figure 4: the students of all widths beside the input, the teacher and the ground truth.

    python test_scripts/figure4_qualitative.py -opt test_scripts/configs/figure4.yml

A row per crop: the whole ground truth with the crop marked, then the crop of the input (enlarged by repeating pixels),
of every model, and of the ground truth. It writes figure4.pdf and .png, and the crops as PNG files in figure4_crops/.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from common import PAGE, UserError, check_distinct, enlarge, main, new_figure, read_rgb, save_figure, to_uint8
from msgspec import Struct

if TYPE_CHECKING:
    import numpy as np

INPUT, TRUTH = 'Input', 'Ground truth'


class Model(Struct, forbid_unknown_fields=True):
    """A column: a generator's file, or a folder of images that were enlarged before, by any network."""

    label: str
    weights: str | None = None
    images: str | None = None


class Row(Struct, forbid_unknown_fields=True):
    """A row: a low-resolution image, its ground truth, and a crop in pixels of the ground truth."""

    lq: str
    gt: str
    crop: list[int]  # left, top, width, height
    label: str = ''


class Config(Struct, forbid_unknown_fields=True):
    """The YAML."""

    rows: list[Row]
    models: list[Model]
    output: str = ''


def read_row(row: Row, where: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Input, ground truth (cut to a multiple of the input's size) and the factor between them.

    Raises:
        UserError: They do not belong together, or the crop leaves the image.
    """
    lq, gt = read_rgb(row.lq, f'{where}:lq'), read_rgb(row.gt, f'{where}:gt')
    scale = gt.shape[0] // lq.shape[0]
    if scale < 1 or (gt.shape[0] // scale, gt.shape[1] // scale) != lq.shape[:2]:
        raise UserError(
            f'{where}: {row.gt} has {gt.shape[1]}x{gt.shape[0]} pixels and {row.lq} {lq.shape[1]}x{lq.shape[0]}; '
            'give an input that is a whole number of times smaller.'
        )
    gt = gt[: lq.shape[0] * scale, : lq.shape[1] * scale]
    if len(row.crop) != 4:
        raise UserError(f'{where}:crop: write four whole numbers, [left, top, width, height], not {row.crop}.')
    left, top, width, height = row.crop
    if min(left, top) < 0 or min(width, height) < 1 or left + width > gt.shape[1] or top + height > gt.shape[0]:
        raise UserError(f'{where}:crop: {row.crop} leaves the image of {gt.shape[1]}x{gt.shape[0]} pixels.')
    return lq, gt, scale


def made_before(folder: str, row: Row, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The image of a folder that has the name of the row's ground truth or input.

    Raises:
        UserError: There is none, or it has another size.
    """
    from sdakd.files.images import list_images, stem

    wanted = {Path(row.gt).stem, Path(row.lq).stem}
    names = [name for name in list_images(folder, where) if Path(stem(name)).name in wanted]
    if len(names) != 1:
        raise UserError(f'{where}: {folder} holds {len(names)} images called {" or ".join(sorted(wanted))}, not one.')
    image = read_rgb(Path(folder) / names[0], where)
    if image.shape != shape:
        sizes = f'{image.shape[1]}x{image.shape[0]} pixels, not {shape[1]}x{shape[0]} as the ground truth'
        raise UserError(f'{where}: {names[0]} in {folder} has {sizes}.')
    return image


def draw(cells: list[list[tuple[str, np.ndarray]]], rows: list[Row]):
    """The figure: of every row the whole image, then labelled crops."""
    import matplotlib.patches

    columns = len(cells[0])
    gap = 0.04  # inches
    # as high as the crops beside it where that does not make it much wider than them
    shapes = [line[0][1].shape for line in cells]
    wide = max(shape[1] / shape[0] * row.crop[3] / row.crop[2] for row, shape in zip(rows, shapes, strict=True))
    first = min(max(wide, 1.0), 1.6)  # width of the whole image, relative to a crop's
    width = (PAGE - 0.05 - gap * columns) / (columns - 1 + first)
    heights = [width * row.crop[3] / row.crop[2] for row in rows]
    figure = new_figure(PAGE, sum(heights) + gap * (len(rows) - 1) + 0.24 + 0.17 * sum(bool(row.label) for row in rows))
    figure.get_layout_engine().set(w_pad=gap / 2, h_pad=gap / 2, wspace=0, hspace=0)
    ratios = {'width_ratios': [first] + [1] * (columns - 1), 'height_ratios': heights}
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=ratios)
    for number, (row, line, axes) in enumerate(zip(rows, cells, grid, strict=True)):
        for (label, image), axis in zip(line, axes, strict=True):
            axis.imshow(image, interpolation='nearest')
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            axis.set_anchor('N')
            if number == 0:
                axis.set_title(textwrap.fill(label, 16), pad=3)
        left, top, crop_width, crop_height = row.crop
        for colour, line_width in (('white', 2.0), ('#D55E00', 1.0)):  # seen on dark and on light pictures
            box = {'edgecolor': colour, 'linewidth': line_width, 'fill': False}
            axes[0].add_patch(matplotlib.patches.Rectangle((left, top), crop_width, crop_height, **box))
        axes[0].set_xlabel(row.label, labelpad=2)
    return figure


def work(config: Config, folder: Path) -> list[Path]:
    """Enlarges every row's input with every model and cuts the crops."""
    from sdakd.files.generators import open_network
    from sdakd.files.images import write_png

    labels = [INPUT, *(model.label for model in config.models), TRUTH]
    check_distinct(labels, 'models')
    check_distinct([f'{row.gt}, crop {row.crop}' for row in config.rows], 'rows')
    rows = [read_row(row, f'rows[{number}]') for number, row in enumerate(config.rows)]
    networks, images = {}, {}
    for number, model in enumerate(config.models):
        where = f'models[{number}]'
        if (model.weights is None) == (model.images is None):
            raise UserError(f'{where}: give either weights, a generator, or images, a folder.')
        if model.images is not None:
            for row, (_, gt, _) in zip(config.rows, rows, strict=True):
                images[model.label, row.lq, row.gt] = made_before(model.images, row, gt.shape, f'{where}:images')
            continue
        networks[model.label] = opened = open_network(model.weights, f'{where}:weights')
        for place, (_, _, scale) in enumerate(rows):
            if opened.scale != scale:
                raise UserError(
                    f'{where}:weights: {model.weights} enlarges {opened.scale} times, and the ground truth of '
                    f'rows[{place}] is {scale} times as large as its input.'
                )

    cells, crops = [], folder / 'figure4_crops'
    for number, (row, (lq, gt, scale)) in enumerate(zip(config.rows, rows, strict=True)):
        for label, network in networks.items():
            if (label, row.lq, row.gt) not in images:
                images[label, row.lq, row.gt] = to_uint8(enlarge(network, lq))
        pixels = lq.repeat(scale, axis=0).repeat(scale, axis=1)
        wholes = [pixels, *(images[label, row.lq, row.gt] for label in labels[1:-1]), gt]
        left, top, width, height = row.crop
        line = [('Image', gt)]
        for label, whole in zip(labels, wholes, strict=True):
            crop = whole[top : top + height, left : left + width]
            line.append((label, crop))
            name = re.sub(r'[^\w.-]+', '_', label).strip('_')
            write_png(crops / f'{number + 1}_{Path(row.gt).stem}_{name}.png', crop[..., ::-1])
        cells.append(line)
    return [*save_figure(draw(cells, config.rows), folder, 'figure4'), crops]


if __name__ == '__main__':
    sys.exit(main(__doc__, Config, work))
