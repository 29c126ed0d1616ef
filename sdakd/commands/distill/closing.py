"""The end of a distillation: what the student is, as a table, a report, a picture, a card and files for others."""

from __future__ import annotations

import hashlib
import io
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdakd import __version__
from sdakd.commands.bench import bench
from sdakd.commands.evaluate import evaluate
from sdakd.commands.export import export
from sdakd.commands.report import report
from sdakd.commands.report.pictures import choose_region
from sdakd.files.generators import open_network
from sdakd.files.images import read_image, write
from sdakd.files.results import table, write_tables
from sdakd.machine import cores
from sdakd_arch.weights import describe
from sdakd_arch.zoo import LICENCE, MODELS

if TYPE_CHECKING:
    from sdakd.commands.bench import Timings
    from sdakd.commands.evaluate import Results
    from sdakd.files.generators import Opened

TEACHER, STUDENT, PLAIN, BICUBIC = 'teacher', 'student', 'student without teacher', 'bicubic'
HEADER = ['model', 'PSNR-Y to the teacher', 'PSNR-Y', 'SSIM-Y', 'NIQE', 'parameters', 'GMACs', 'ms', 'ms, fast']
SHOWN = 4  # photographs in the picture
ROUNDS = 5  # of the timing


@dataclass(frozen=True)
class Measured:
    """Quality and speed of all models.

    Args:
        quality, times: What evaluate and bench found.
        rows: Of the table whose header is :data:`HEADER`.
    """

    quality: Results
    times: Timings
    rows: list[list[str]]

    def ms(self, name: str) -> float | None:
        """Milliseconds for 64x64 pixels in PyTorch, float32."""
        runs = self.times.section['runs']
        return next((run['median_ms'] for run in runs if (run['model'], run['backend']) == (name, 'eager')), None)

    def facts(self) -> str:
        """What the student is, in a few sentences."""
        models = {model['name']: model for model in next(iter(self.quality.sections.values()))['models']}
        teacher, student, slow, fast = models[TEACHER], models[STUDENT], self.ms(TEACHER), self.ms(STUDENT)
        near, bicubic = (self.quality.mean(name, 'psnr', 'teacher') for name in (STUDENT, BICUBIC))
        faster = f'is {slow / fast:.1f} times as fast ({fast:.1f} ms for 64x64 pixels) and ' if slow and fast else ''
        return (
            f'The student {faster}has {student["parameters"]:,d} parameters, its teacher {teacher["parameters"]:,d}. '
            f"Its images are {near:.1f} dB from the teacher's; bicubic interpolation is {bicubic:.1f} dB from them."
            + ('' if near > bicubic else ' It has not learned enough yet: give it more time.')
        )


def measure(models: Mapping[str, str], held_out: Path, scale: int, results: Path) -> Measured:
    """Quality on the held-out photographs, and time in float32, which is what the table shows."""
    named = [f'{name}={source}' for name, source in models.items()]
    sets = [f'held-out={held_out / "gt"}:{held_out / "lq"}']
    quality = evaluate(named, sets, results, scale=scale, teacher=TEACHER)
    quality.check()
    networks = [model for model in named if not model.endswith('=bicubic')]
    times = bench(networks, results, backends=['eager', 'fast'], precisions=['fp32'], rounds=ROUNDS)
    ms = {(run['model'], run['backend']): run['median_ms'] for run in times.section['runs']}
    rows = []
    for model in next(iter(quality.sections.values()))['models']:
        name = model['name']
        cells = [
            (quality.mean(name, 'psnr', 'teacher'), '.2f'), (quality.mean(name, 'psnr'), '.2f'),
            (quality.mean(name, 'ssim'), '.4f'), (quality.mean(name, 'niqe'), '.2f'), (model['parameters'], ',d'),
            (model['macs'] and model['macs'] / 1e9, '.3f'),
            *((ms.get((name, backend)), '.1f') for backend in ('eager', 'fast')),
        ]  # fmt: skip
        rows.append([name, *('-' if value is None else format(value, form) for value, form in cells)])
    return Measured(quality, times, rows)


def picture(measured: Measured, path: Path) -> None:
    """Writes a strip for each of some photographs: the whole, and the part where student and teacher differ most."""
    results, section = measured.quality.output, next(iter(measured.quality.sections.values()))
    font, side, gap, label = ImageFont.load_default(size=16), 288, 8, 26
    strips = []
    for photograph, files in list(section['pictures']['held-out'].items())[:SHOWN]:
        versions = {name: read_image(results / file) for name, file in files['models'].items()}
        versions['ground truth'] = read_image(results / files['gt'])
        height, width = (min(image.shape[axis] for image in versions.values()) for axis in (0, 1))
        versions = {name: np.ascontiguousarray(image[:height, :width]) for name, image in versions.items()}
        left, top, across, down = choose_region(versions[TEACHER], versions[STUDENT])
        whole = Image.fromarray(versions['ground truth'][..., ::-1])
        box = (left, top, left + across, top + down)
        ImageDraw.Draw(whole).rectangle(box, outline=(255, 60, 0), width=3)
        whole.thumbnail((side * 3 // 2, side))
        first = Image.new('RGB', (side * 3 // 2, side), 'white')  # crops of all photographs stand in columns
        first.paste(whole)
        cells = [(photograph, first)]
        for name, image in versions.items():
            crop = cv2.resize(
                image[top : top + down, left : left + across], (side, side), interpolation=cv2.INTER_NEAREST
            )
            cells.append((name, Image.fromarray(crop[..., ::-1])))
        strip = Image.new('RGB', (sum(cell.width + gap for _, cell in cells), side + label), 'white')
        x = 0
        for text, cell in cells:
            strip.paste(cell, (x, label))
            ImageDraw.Draw(strip).text((x, 3), text, fill='black', font=font)
            x += cell.width + gap
        strips.append(strip)
    sheet = Image.new('RGB', (max(strip.width for strip in strips), len(strips) * (side + label + gap)), 'white')
    for number, strip in enumerate(strips):
        sheet.paste(strip, (0, number * (side + label + gap)))
    data = io.BytesIO()
    sheet.save(data, 'PNG')
    write(path, data.getvalue())


def card(path: Path, teacher: Opened, student: Opened, measured: Measured, training: str, held_out: int) -> None:
    """Writes the model card."""
    digest = hashlib.sha256(teacher.path.read_bytes()).hexdigest()
    known = teacher.path.stem.removesuffix('_fp16') in MODELS
    licence = (
        f"The teacher is Real-ESRGAN's, {LICENCE}; its licence goes with the student."
        if known
        else 'Licences of the teacher and of the photographs apply to a student: look both up before you share it.'
    )
    text = f"""# {student.path.stem}: a student of {teacher.path.name}

{describe(student.network)}, which enlarges {student.scale} times. {measured.facts()}

| | |
|---|---|
| teacher | `{teacher.path.name}`, {teacher.describe()}, SHA-256 `{digest}` |
| training | {training} |
| measured on | {held_out} photographs that were held out; {platform.machine()} with {cores()} cores |
| made with | `sdakd distill` {__version__}; all options are in `distill.yml` |

## Results

{table(HEADER, measured.rows, 'md')}
PSNR to the teacher: higher is closer to its images. PSNR and SSIM: higher is closer to the photograph. NIQE: lower
looks more natural. GMACs and milliseconds: for 64x64 pixels of input, float32; `sdakd upscale` runs the fast backend.

## Use

    sdakd upscale -m {student.path.name} -i photographs -o enlarged

`{student.path.name}` is a checkpoint of BasicSR (`params_ema`), which Real-ESRGAN's `RealESRGANer` and spandrel
open as well; `export/` has it for other programs.

## Limits

It imitates its teacher on inputs like those it was trained on, as closely as the table says, and has seen no others. A
longer training on more photographs brings it closer.

{licence}
"""
    write(path, text.encode())


def close(
    folder: Path, models: Mapping[str, str], teacher: Opened, training: str, held_out: int
) -> tuple[Measured, dict[str, str]]:
    """Measures, and writes all that stays: ``student.pth``, ``export/``, tables, picture, report and card.

    Args:
        folder: Of the distillation.
        models: The rows' files by their names.
        teacher: The teacher.
        training: How the student was trained, for the card.
        held_out: The number of photographs to measure on.

    Returns:
        What was measured, and for each format that was not written the reason.
    """
    measured = measure(models, folder / 'data/held_out', teacher.scale, folder / 'results')
    student = folder / 'student.pth'
    write(student, Path(models[STUDENT]).read_bytes())
    write_tables(folder, 'table', HEADER, measured.rows)
    picture(measured, folder / 'comparison.png')
    report([folder / 'results'], folder / 'report.html', student=STUDENT)
    card(folder / 'MODEL_CARD.md', teacher, open_network(student, '-m'), measured, training, held_out)
    return measured, export(student, 'all', folder / 'export').left_out
