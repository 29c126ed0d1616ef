"""`make demo`: the main job on real photographs, from cutting them up to a table, a picture and a report.

The photographs ship inside scikit-image. Trained on: astronaut, coffee, rocket, hubble_deep_field, retina,
immunohistochemistry. Held out: chelsea and the left image of motorcycle.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

import sdakd
from sdakd import compat
from sdakd.commands.prepare.pairs import pairs
from sdakd.commands.prepare.subimages import subimages
from sdakd.commands.report import report
from sdakd.files.results import table as results_table
from sdakd.files.results import write_tables

if TYPE_CHECKING:
    from sdakd.commands.bench import Timings
    from sdakd.commands.evaluate import Results

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ('astronaut', 'coffee', 'rocket', 'hubble_deep_field', 'retina', 'immunohistochemistry')
HELD_OUT = ('chelsea', 'motorcycle')
RATIO = 1 / 4
CROPS = {'chelsea': (110, 60, 96, 96), 'motorcycle': (300, 190, 96, 96)}  # left, top, width, height, in GT pixels


def say(text: str) -> None:
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


def step(number: int, text: str) -> None:
    say(f'\n[{number}/5] {text}')


def photographs(folder: Path) -> None:
    """Writes scikit-image's photographs as PNG into ``folder/train`` and ``folder/val``."""
    import cv2
    import skimage.data

    for part, names in (('train', TRAIN), ('val', HELD_OUT)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name in names:
            path = folder / part / f'{name}.png'
            if not path.exists():
                rgb = skimage.data.stereo_motorcycle()[0] if name == 'motorcycle' else getattr(skimage.data, name)()
                cv2.imwrite(str(path), rgb[..., ::-1])


def prepare(folder: Path, scale: int) -> None:
    """Cuts the photographs into training and validation pairs, as `sdakd prepare` would."""
    cut = {'crop_size': 160, 'step': 140}
    key = folder / 'cut.txt'
    if folder.exists() and not (key.exists() and key.read_text() == str(cut)):
        shutil.rmtree(folder)  # made by another version of this demo
    folder.mkdir(parents=True, exist_ok=True)
    key.write_text(str(cut))
    photographs(folder / 'photographs')
    bicubic = {'degradation': 'bicubic', 'scale': scale}
    for made in (
        subimages(folder / 'photographs/train', folder / 'train_sub', **cut),
        pairs(folder / 'train_sub', folder / f'train_x{scale}', **bicubic),
        pairs(folder / 'photographs/val', folder / f'val_x{scale}', **bicubic),
    ):
        made.check()
        say(str(made).rstrip())


def options(teacher: Path, teacher_network: dict, data: Path, scale: int, seed: int) -> dict:
    """The option file of the demo, ``options/demo.yml``, for the teacher at hand."""
    from sdakd_arch.width import student_of
    from sdakd_models.reader import read_run

    opt = read_run(ROOT / 'options/demo.yml')
    opt.update(scale=scale, manual_seed=seed, network_g=student_of(teacher_network, RATIO))
    opt['teacher'] = {'weights': str(teacher), 'network': teacher_network}
    for phase in ('train', 'val'):
        folder = data / f'{phase}_x{scale}'
        opt['datasets'][phase].update(dataroot_gt=str(folder / 'gt'), dataroot_lq=str(folder / 'lq'))
    for metric in opt['val']['metrics'].values():
        metric['crop_border'] = scale
    return opt


def train(opt: dict, name: str, out: Path, changes: list[str]) -> Path:
    """Runs the literal command on the options, or keeps its result where nothing changed; returns the models' folder.

    A run that was interrupted is continued.
    """
    file = out / f'{name}.yml'
    text = yaml.safe_dump({**opt, 'name': name}, sort_keys=False)
    teacher = hashlib.sha256(Path(opt['teacher']['weights']).read_bytes()).hexdigest()
    key = hashlib.sha256('\n'.join([text, teacher, *changes]).encode()).hexdigest()
    mark = out / f'{name}.key'
    models = ROOT / 'experiments' / name / 'models'
    same = mark.exists() and mark.read_text().split()[0] == key
    if same and mark.read_text().endswith('done') and (models / 'net_g_latest.pth').exists():
        say(f'{name}: nothing changed, the student of the last time is kept')
        return models
    file.write_text(text)
    mark.write_text(f'{key} begun')
    command = [sys.executable, 'basicsr/train.py', '-opt', str(file)]
    if same:
        command.append('--auto_resume')
    if changes:
        command += ['--force_yml', *changes]
    say('$ ' + ' '.join(['python', *command[1:]]))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        printed = []
        for line in process.stdout:
            printed.append(line)
            text = line.split(' INFO: ')[-1].rstrip()
            # the options and the like stay in the run's log file
            if any(mark in text for mark in ('Stage ', 'stage: ', '# psnr', '# ssim')):
                say('  ' + text.strip())
    if process.returncode:
        sys.stderr.write(''.join(printed[-15:]))
        raise compat.UserError(name, 'its training broke; mend what the lines above say, then `make demo` goes on.')
    mark.write_text(f'{key} done')
    return models


def measure(models: dict[str, str], data: Path, scale: int, results: Path) -> tuple[Results, Timings]:
    """Quality on the held-out photographs and time of every model, in float32, which is what the table shows."""
    named = [f'{name}={source}' for name, source in models.items()]
    networks = [model for model in named if not model.endswith('=bicubic')]
    held_out = [f'held-out={data / "gt"}:{data / "lq"}']
    quality = sdakd.evaluate(named, held_out, results, scale=scale, teacher='teacher')
    quality.check()
    times = sdakd.bench(networks, results, backends=['eager', 'fast'], precisions=['fp32'])
    times.check()
    return quality, times


def table(quality: Results, timings: Timings) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row per model."""
    section = next(iter(quality.sections.values()))
    times = {(run['model'], run['backend']): run['median_ms'] for run in timings.section['runs']}
    header = ['model', 'PSNR-Y', 'SSIM-Y', 'NIQE', 'PSNR-Y to the teacher', 'parameters', 'GMACs', 'ms', 'ms, fast']
    columns = [('psnr', 'gt', '.2f'), ('ssim', 'gt', '.4f'), ('niqe', 'gt', '.2f'), ('psnr', 'teacher', '.2f')]
    rows = []
    for model in section['models']:
        name = model['name']
        cells = [(quality.mean(name, metric, reference), form) for metric, reference, form in columns]
        cells += [(model['parameters'], ',d'), (model['macs'] and model['macs'] / 1e9, '.3f')]
        cells += [(times.get((name, backend)), '.1f') for backend in ('eager', 'fast')]
        rows.append([name, *('-' if value is None else format(value, form) for value, form in cells)])
    return header, rows


def picture(quality: Results, names: list[str], path: Path) -> None:
    """Writes one strip per photograph: the whole with its crop marked, then the crop from every model, enlarged."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=16)
    side, gap, label = 288, 8, 26
    strips = []
    results, section = quality.output, next(iter(quality.sections.values()))
    for photograph, files in section['pictures']['held-out'].items():
        left, top, width, height = CROPS[photograph]
        box = (left, top, left + width, top + height)
        images = {name: Image.open(results / file).convert('RGB') for name, file in files['models'].items()}
        images['ground truth'] = Image.open(results / files['gt']).convert('RGB')
        whole = images['ground truth'].copy()
        ImageDraw.Draw(whole).rectangle(box, outline=(255, 60, 0), width=3)
        whole.thumbnail((side * 3 // 2, side))
        cells = [(photograph, whole)]
        for name in [*names, 'ground truth']:
            cells.append((name, images[name].crop(box).resize((side, side), Image.Resampling.NEAREST)))
        strip = Image.new('RGB', (sum(cell.width + gap for _, cell in cells), side + label), 'white')
        x = 0
        for text, cell in cells:
            strip.paste(cell, (x, label))
            ImageDraw.Draw(strip).text((x, 3), text, fill='black', font=font)
            x += cell.width + gap
        strips.append(strip)
    sheet = Image.new('RGB', (max(s.width for s in strips), sum(s.height + gap for s in strips)), 'white')
    for number, strip in enumerate(strips):
        sheet.paste(strip, (0, number * (side + label + gap)))
    sheet.save(path)


def main() -> int:
    """Runs the five steps; what is still valid from the last time is reused."""
    sys.excepthook = compat.exit_with_sentence
    parser = argparse.ArgumentParser(prog='make demo', description=__doc__)
    parser.add_argument('--teacher', default=str(ROOT / 'sdakd/pretrained/demo_teacher_x4.safetensors'))
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='demo', help='folder for data, table, picture and student')
    args = parser.parse_args()
    begun = time.time()
    compat.import_basicsr()
    from sdakd.files.generators import open_network
    from sdakd_arch.zoo import ensure_file

    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    step(1, 'The teacher')
    teacher = Path(args.teacher)
    if args.teacher.startswith(('http://', 'https://')):
        teacher = out / args.teacher.rsplit('/', 1)[-1]
        ensure_file(teacher, 'TEACHER', url=args.teacher)
    teacher = teacher.resolve()
    opened = open_network(teacher, 'TEACHER')
    network, scale = opened.network, opened.scale
    say(f'{teacher.name}: {opened.describe()}')

    step(2, f'Pairs from the photographs in scikit-image, x{scale}; held out: {", ".join(HELD_OUT)}')
    data = out / 'data'
    prepare(data, scale)

    opt = options(teacher, network, data, scale, args.seed)
    stages = ', '.join(f'{name} {stage["iters"]:,d}' for name, stage in opt['train']['stages'].items())
    step(3, f'Distilling a student with 1/4 of the channels (iterations: {stages})')
    distilled = train(opt, 'demo_sdakd', out, [])
    step(4, 'The same student for the same number of steps without a teacher')
    plain = train(opt, 'demo_no_teacher', out, ['train:feature_opt=~'])

    step(5, 'Measuring on the held-out photographs')

    iters = [stage['iters'] for stage in opt['train']['stages'].values()]
    models = {
        'bicubic': 'bicubic',
        'teacher': str(teacher),
        'SDAKD, end of stage 2': str(distilled / f'net_g_{sum(iters[:2])}.pth'),
        'student without teacher': str(plain / 'net_g_latest.pth'),
        'SDAKD student': str(distilled / 'net_g_latest.pth'),
    }
    results = out / 'results'
    quality, timings = measure(models, data / f'val_x{scale}', scale, results)
    header, rows = table(quality, timings)
    write_tables(out, 'table', header, rows)
    picture(quality, ['bicubic', 'teacher', 'student without teacher', 'SDAKD student'], out / 'comparison.png')
    shutil.copyfile(distilled / 'net_g_latest.pth', out / 'student.pth')
    report([results], out / 'report.html')
    say('\n' + results_table(header, rows))
    say('PSNR and SSIM: higher is closer to the photograph. NIQE: lower looks more natural. Cost: 64x64 pixels.')
    for name in ('report.html', 'comparison.png', 'table.md', 'results/results.json', 'student.pth'):
        say(f'  {os.path.relpath(out / name)}')
    say(f'{time.time() - begun:.0f} seconds')
    return 0


if __name__ == '__main__':
    sys.exit(main())
