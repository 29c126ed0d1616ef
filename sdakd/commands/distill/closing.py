"""The end of a distillation: what the student is, as a table, a report, a picture, a card and files for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from sdakd import __version__
from sdakd.commands.bench import bench
from sdakd.commands.card import card
from sdakd.commands.evaluate import evaluate
from sdakd.commands.export import export
from sdakd.commands.export.formats import texts
from sdakd.commands.report import report
from sdakd.commands.report.pictures import choose_region
from sdakd.files.generators import open_network
from sdakd.files.images import list_images, read_image, write
from sdakd.files.results import read_results, write_tables
from sdakd.files.sheets import enlarged, image_of, sheet
from sdakd.files.training import beside, training_of, values_of

if TYPE_CHECKING:
    from sdakd.commands.bench import Timings
    from sdakd.commands.evaluate import Results
    from sdakd.files.generators import Opened

TEACHER, STUDENT, PLAIN, BICUBIC = 'teacher', 'student', 'student without teacher', 'bicubic'
HEADER = ['model', 'PSNR-Y to the teacher', 'PSNR-Y', 'SSIM-Y', 'NIQE', 'parameters', 'GMACs', 'ms', 'ms, fast']
SHOWN = 4  # photographs in the picture
CARD = 2  # in the card
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


def picture(results: Path, path: Path, beside: Mapping[str, Mapping[str, np.ndarray]] | None = None) -> None:
    """Writes a strip for each of some photographs: the whole, and the part where student and teacher differ most.

    Args:
        results: The folder of what was measured.
        path: The PNG.
        beside: More columns by their titles: what else makes of the photographs, by their names, BGR.
    """
    section, side = read_results(results)['evaluate'], 288
    strips = []
    for photograph, files in list(section['pictures']['held-out'].items())[:SHOWN]:
        versions = {name: read_image(results / file) for name, file in files['models'].items()}
        versions |= {title: made[photograph] for title, made in (beside or {}).items()}
        versions['ground truth'] = read_image(results / files['gt'])
        height, width = (min(image.shape[axis] for image in versions.values()) for axis in (0, 1))
        versions = {name: np.ascontiguousarray(image[:height, :width]) for name, image in versions.items()}
        left, top, across, down = choose_region(versions[TEACHER], versions[STUDENT])
        whole = image_of(versions['ground truth'])
        box = (left, top, left + across, top + down)
        ImageDraw.Draw(whole).rectangle(box, outline=(255, 60, 0), width=3)
        whole.thumbnail((side * 3 // 2, side))
        first = Image.new('RGB', (side * 3 // 2, side), 'white')  # crops of all photographs stand in columns
        first.paste(whole)
        crops = {name: image[top : top + down, left : left + across] for name, image in versions.items()}
        strips.append([(photograph, first), *((name, enlarged(crop, side, side)) for name, crop in crops.items())])
    write(path, sheet(strips))


def shown_by(model: Opened, results: Path, inputs: Path) -> dict[str, np.ndarray]:
    """What a model makes of the photographs in :func:`picture`, by their names.

    Args:
        model: It enlarges as often as the student.
        results: The folder of what was measured.
        inputs: The folder of the reduced photographs.
    """
    from sdakd.commands.upscale import open_upscaler

    section, upscaler = read_results(results)['evaluate'], open_upscaler(model)
    files = {Path(name).stem: inputs / name for name in list_images(str(inputs))}
    names = list(section['pictures']['held-out'])[:SHOWN]
    return {name: upscaler.enhance(read_image(files[Path(name).stem]))[0] for name in names}


def write_student(folder: Path, checkpoint: Path, facts: Mapping) -> Path:
    """Writes ``student.pth``, the checkpoint, and ``student.json``, what it is and how it was trained.

    Args:
        folder: Of the distillation.
        checkpoint: Where its training has left it.
        facts: What the option file does not say; see :mod:`sdakd.files.training`.

    Returns:
        The weights' file.
    """
    opened = open_network(checkpoint)
    training = training_of(opened)
    training['facts'] = {**training.get('facts', {}), **facts}
    opened.metadata = {'training': training, 'version': __version__}
    student = folder / 'student.pth'
    said = {key: json.loads(text) for key, text in texts(opened).items()} | {'values': values_of(checkpoint)}
    write(beside(student), (json.dumps(said, indent=2) + '\n').encode())
    write(student, checkpoint.read_bytes())
    return student


def close(
    folder: Path, models: Mapping[str, str], scale: int, facts: Mapping
) -> tuple[Measured, dict[str, str], list[str]]:
    """Measures, and writes all that stays: ``student.pth``, ``export/``, tables, picture, report and card.

    Args:
        folder: Of the distillation.
        models: The rows' files by their names.
        scale: Of teacher and student.
        facts: How the student was trained, beyond what its option file says.

    Returns:
        What was measured, for each format that was not written the reason, and what the card lacks.
    """
    measured = measure(models, folder / 'data/held_out', scale, folder / 'results')
    student = write_student(folder, Path(models[STUDENT]), facts)
    write_tables(folder, 'table', HEADER, measured.rows)
    picture(folder / 'results', folder / 'comparison.png')
    report([folder / 'results'], folder / 'report.html', student=STUDENT)
    left_out = export(student, 'all', folder / 'export').left_out
    inputs = folder / 'data/held_out/lq'
    pictures = [inputs / name for name in list_images(str(inputs))[:CARD]]
    made = card(folder / 'export/student.safetensors', folder / 'card', pictures=pictures, results=folder / 'results')
    return measured, left_out, made.notes if made.license is None else []
