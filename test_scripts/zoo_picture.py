"""README's picture: degraded photographs, what the teacher makes of them, and what the students that ship do.

    python test_scripts/zoo_picture.py -t RealESRGAN_x4plus -o docs/zoo.png

The photographs are scikit-image's (chelsea and coffee, CC0), degraded as `sdakd prepare pairs --degradation realesrgan`
does. Columns are all students of the teacher in sdakd/pretrained/zoo.json, whose megabytes and times stand below them.
Given again after a student was replaced, the picture shows the new one, and nothing else changes.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from common import ROOT, UserError, compat

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from sdakd.files.named import Cost

PARTS = {'chelsea': (60, 10), 'coffee': (150, 100)}  # of scikit-image: left and top of what is degraded
SIZE, SHOWN, SEED = 256, 60, 0  # of what is degraded, in its own pixels; of its middle that is shown, in input pixels
ZOOM, GAP, LINE = 4, 8, 24  # pixels of the sheet for one of the input; between cells; of a line of text


def degraded(folder: Path) -> dict[str, np.ndarray]:
    """The inputs by their names, uint8 BGR, made in a folder."""
    import cv2
    import skimage.data

    from sdakd.commands.prepare.pairs import pairs
    from sdakd.files.images import read_image, write_png

    for name, (left, top) in PARTS.items():
        rgb = getattr(skimage.data, name)()[top : top + SIZE, left : left + SIZE]
        write_png(folder / 'gt' / f'{name}.png', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    pairs(folder / 'gt', folder / 'pairs', degradation='realesrgan', seed=SEED, workers=1)
    return {name: read_image(folder / 'pairs/lq' / f'{name}.png') for name in PARTS}


def sheet(columns: dict[str, tuple[list[np.ndarray], str]]) -> Image.Image:
    """Columns of crops, uint8 BGR, side by side, with a title above and a line below each."""
    from PIL import Image, ImageDraw, ImageFont

    from sdakd.files.sheets import TEXT, enlarged

    side = SHOWN * ZOOM
    rows = len(next(iter(columns.values()))[0])
    whole = Image.new('RGB', (len(columns) * (side + GAP) - GAP, rows * (side + GAP) - GAP + 2 * LINE), 'white')
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=TEXT)
    for column, (title, (crops, line)) in enumerate(columns.items()):
        left = column * (side + GAP)
        pen.text((left, 2), title, fill='black', font=font)
        for row, crop in enumerate(crops):
            whole.paste(enlarged(crop, side, side), (left, LINE + row * (side + GAP)))
        pen.text((left, LINE + rows * (side + GAP) - GAP + 3), line, fill='black', font=font)
    return whole


def said(size: int, cost: Cost) -> str:
    """Megabytes of a file, and milliseconds for the input that times are measured with."""
    return f'{size / 1e6:.1f} MB' + (f', {cost.ms:.0f} ms' if cost.ms else '')


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('-t', '--teacher', required=True, metavar='MODEL', help='the teacher: its file, or its name where it is here')
    add('-o', '--output', required=True, metavar='FILE', help='the PNG')
    args = parser.parse_args()
    sys.excepthook = compat.exit_with_sentence
    compat.import_basicsr()
    sys.path.append(ROOT)
    from sdakd.commands.upscale import open_upscaler
    from sdakd.files.generators import open_network
    from sdakd.files.images import write
    from sdakd.files.named import model_file, zoo
    from sdakd.files.results import output_folder
    from sdakd_arch.zoo import MODELS, official

    output = Path(args.output)
    if output.suffix.lower() != '.png':
        raise UserError(f'-o: the picture is a PNG; write a name that ends in .png, not {output}.')
    path = model_file(args.teacher, '-t')
    opened = open_network(path, '-t')
    teacher = (official(path) or ('',))[0]
    students = {name: model for name, model in zoo().models.items() if teacher and model.teacher == teacher}
    if not students:
        known = ', '.join(dict.fromkeys(model.teacher for model in zoo().models.values() if model.teacher in MODELS))
        raise UserError(f'-t: {path} is the teacher of nothing that ships; give {known} (`sdakd fetch`).')
    shown = {teacher: (opened, said(MODELS[teacher].size, zoo().teachers[teacher]))}
    shown |= {name: (open_network(model.path), said(model.bytes, model.cost)) for name, model in students.items()}
    with tempfile.TemporaryDirectory() as folder:
        inputs = degraded(Path(folder))

    def middle(image: np.ndarray, scale: int) -> np.ndarray:
        top, left = ((length - SHOWN * scale) // 2 for length in image.shape[:2])
        return image[top : top + SHOWN * scale, left : left + SHOWN * scale]

    columns = {'photograph, degraded': ([middle(image, 1) for image in inputs.values()], '')}
    for name, (opened, line) in shown.items():
        upscaler = open_upscaler(opened)
        images = [upscaler.enhance(image)[0] for image in inputs.values()]
        columns[name] = [middle(image, opened.scale) for image in images], line
    data = io.BytesIO()
    sheet(columns).save(data, 'PNG', optimize=True)
    output_folder(output.parent)
    write(output, data.getvalue())
    sys.stdout.write(f'Written to {output}: {", ".join(columns)}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
