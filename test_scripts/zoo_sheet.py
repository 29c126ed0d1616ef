"""A sheet of crops for looking at: a row per image, columns for the models and the ground truth, labelled, as one PNG.

    python test_scripts/zoo_sheet.py -m bicubic student.pth general=realesr-general-x4v3.pth x4plus=HELD_OUT/x4plus \\
        -d HELD_OUT/gt:HELD_OUT/lq -o sheet.png

Models and set are written as for `sdakd evaluate`; a folder of images that were made before costs no time. Without
--rows, six images of the set are shown, evenly spaced by name, each by its centre. Pixels are repeated, never
interpolated.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common import ROOT, UserError, compat

if TYPE_CHECKING:
    import numpy as np

    from sdakd.commands.evaluate.contenders import Contender
    from sdakd.files.testsets import TestSet

GAP, LINE, LETTER = 4, 20, 11  # pixels: between crops, height of a line of text, about a letter's width


def places(wanted: list[str], testset: TestSet, side: int) -> list[tuple[str, int, int]]:
    """Name, left and top of every row's crop.

    Args:
        wanted: ``NAME`` for its centre or ``NAME:LEFT,TOP``, in pixels of the enlarged image.

    Raises:
        UserError: An image that is not in the set, or a crop that leaves it.
    """
    found = []
    for text in wanted:
        name, colon, corner = text.partition(':')
        if name not in testset.names:
            raise UserError(f'--rows: {testset.name} has no image {name!r}; {compat.near(name, testset.names)}.')
        size = testset.size(name)
        if size is None:
            raise UserError(f'--rows: {name} cannot be read; leave it out.')
        if colon and not re.fullmatch(r'\d+,\d+', corner):
            raise UserError(f'--rows: write NAME or NAME:LEFT,TOP, not {text!r}.')
        left, top = map(int, corner.split(',')) if colon else ((size[1] - side) // 2, (size[0] - side) // 2)
        if min(left, top) < 0 or left + side > size[1] or top + side > size[0]:
            raise UserError(f'--rows: a crop of {side} pixels at {left},{top} leaves {name} ({size[1]}x{size[0]}).')
        found.append((name, left, top))
    return found


def draw(titles: list[str], rows: list[tuple[str, list[np.ndarray]]], zoom: int) -> np.ndarray:
    """The sheet, uint8 (H, W, 3), BGR: titles above the columns, the image's name below each row."""
    import cv2
    import numpy as np

    side = rows[0][1][0].shape[0] * zoom
    height, width = LINE + len(rows) * (side + LINE), len(titles) * (side + GAP) - GAP
    sheet = np.full((height, width, 3), 255, np.uint8)

    def write(text: str, left: int, baseline: int) -> None:
        text = text if len(text) * LETTER <= side else text[: side // LETTER - 1] + '~'
        cv2.putText(sheet, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)

    for column, title in enumerate(titles):
        write(title, column * (side + GAP), LINE - 6)
    for number, (name, crops) in enumerate(rows):
        top = LINE + number * (side + LINE)
        for column, crop in enumerate(crops):
            left = column * (side + GAP)
            sheet[top : top + side, left : left + side] = crop.repeat(zoom, 0).repeat(zoom, 1)
        write(name, 0, top + side + LINE - 6)
    return sheet


def make(
    testset: TestSet, contenders: list[Contender], rows: list[tuple[str, int, int]], side: int, zoom: int
) -> np.ndarray:
    """Enlarges what the rows show and puts the crops together; uint8 (H, W, 3), BGR.

    Raises:
        UserError: An image cannot be read.
    """
    from sdakd.files.images import UnusableError

    lines = []
    for name, left, top in rows:
        try:
            sample = testset.read(name)
            images = [contender.enlarge(testset, name, sample) for contender in contenders]
        except UnusableError as error:
            raise UserError(f'--rows: {name}: {error.reason}; leave it out.') from None
        images += [] if sample.gt is None else [sample.gt]
        lines.append((name, [image[top : top + side, left : left + side] for image in images]))
    titles = [contender.name for contender in contenders] + (['ground truth'] if testset.hr else [])
    return draw(titles, lines, zoom)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('-m', '--models', nargs='+', required=True, metavar='MODEL', help='as for `sdakd evaluate`, left to right')
    add('-d', '--data', required=True, metavar='SET', help='as for `sdakd evaluate`')
    add('-o', '--output', required=True, metavar='FILE', help='the PNG')
    add('--rows', nargs='+', metavar='NAME[:LEFT,TOP]', help='images, by their centre or by the corner of the crop')
    add('--count', type=int, default=6, help='without --rows: how many images (default: 6)')
    add('--crop', type=int, default=160, help='side of a crop in pixels of the enlarged image (default: 160)')
    add('--zoom', type=int, default=2, help='how often pixels are repeated (default: 2)')
    add('--scale', type=int, default=4, help='factor between LR and HR (default: 4)')
    args = parser.parse_args()
    sys.excepthook = compat.exit_with_sentence
    compat.import_basicsr()
    sys.path.append(ROOT)
    from sdakd.commands.evaluate.contenders import open_contenders
    from sdakd.files.images import write_png
    from sdakd.files.results import output_folder
    from sdakd.files.testsets import open_sets

    for flag in ('count', 'crop', 'zoom', 'scale'):
        if getattr(args, flag) < 1:
            raise UserError(f'--{flag}: write a whole number of at least 1, not {getattr(args, flag)}.')
    if Path(args.output).suffix.lower() != '.png':
        raise UserError(f'-o: the sheet is a PNG; write a name that ends in .png, not {args.output}.')
    (testset,) = open_sets([args.data], args.scale)
    contenders = open_contenders(args.models, args.scale, 'cpu', None)
    for contender in contenders:
        contender.check([testset])
    count = min(args.count, len(testset.names))
    spaced = [testset.names[number * len(testset.names) // count] for number in range(count)]
    rows = places(args.rows or spaced, testset, args.crop)
    output_folder(Path(args.output).parent)
    write_png(Path(args.output), make(testset, contenders, rows, args.crop, args.zoom))
    sys.stdout.write(f'Written to {args.output}: {len(rows)} rows\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
