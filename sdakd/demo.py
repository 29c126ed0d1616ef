"""`make demo`: the main job on real photographs, from cutting them up to a table and a picture.

The photographs ship inside scikit-image. Trained on: astronaut, coffee, rocket, hubble_deep_field, retina,
immunohistochemistry. Held out: chelsea and the left image of motorcycle.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

from sdakd import compat

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
    """Cuts the photographs into training and validation pairs, by the commands that a user would type."""
    from sdakd import cli

    cut = ['--crop_size', '160', '--step', '140']
    key = folder / 'cut.txt'
    if folder.exists() and not (key.exists() and key.read_text() == ' '.join(cut)):
        shutil.rmtree(folder)  # made by another version of this demo
    folder.mkdir(parents=True, exist_ok=True)
    key.write_text(' '.join(cut))
    photographs(folder / 'photographs')
    bicubic = ['--degradation', 'bicubic']
    jobs = [
        ['subimages', '-i', folder / 'photographs/train', '-o', folder / 'train_sub', *cut],
        ['pairs', '-i', folder / 'train_sub', '-o', folder / f'train_x{scale}', '--scale', scale, *bicubic],
        ['pairs', '-i', folder / 'photographs/val', '-o', folder / f'val_x{scale}', '--scale', scale, *bicubic],
    ]
    for job in jobs:
        status = cli.main(['prepare', *map(str, job)])
        if status:
            raise SystemExit(status)


def options(teacher: Path, teacher_network: dict, data: Path, scale: int, seed: int) -> dict:
    """The option file of the demo, ``options/demo.yml``, for the teacher at hand."""
    from sdakd_arch.width import student_of

    opt = yaml.safe_load((ROOT / 'options/demo.yml').read_text())
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
        raise SystemExit(process.returncode)
    mark.write_text(f'{key} done')
    return models


def measure(models: dict, data: Path, scale: int) -> tuple[list[dict], dict]:
    """Quality on the held-out photographs and cost of every model.

    Args:
        models: Network with its options by the name of its row; None for bicubic interpolation.
        data: Folder of the validation pairs.
        scale: Factor.

    Returns:
        A row per model (PSNR and SSIM on the Y channel without a border of ``scale`` pixels, NIQE, all by BasicSR;
        milliseconds are the median for 64x64 input pixels, models in turn), and the images by photograph and model.
    """
    import cv2
    import torch
    from basicsr.metrics import calculate_niqe, calculate_psnr, calculate_ssim
    from basicsr.utils import img2tensor, tensor2img
    from basicsr.utils.matlab_functions import imresize

    from sdakd_arch.width import cost

    rows, images = [], {}
    for name, model in models.items():
        scores = {'psnr': [], 'ssim': [], 'niqe': []}
        for path in sorted((data / 'gt').glob('*.png')):
            gt = cv2.imread(str(path))
            lq = cv2.imread(str(data / 'lq' / path.name)).astype('float32') / 255
            if model is None:
                result = (imresize(lq, scale).clip(0, 1) * 255).round().astype('uint8')
            else:
                with torch.no_grad():
                    result = tensor2img([model[0](img2tensor(lq).unsqueeze(0))])
            images.setdefault(path.stem, {'ground truth': gt})[name] = result
            scores['psnr'].append(calculate_psnr(result, gt, scale, test_y_channel=True))
            scores['ssim'].append(calculate_ssim(result, gt, scale, test_y_channel=True))
            scores['niqe'].append(float(calculate_niqe(result, scale)))
        row = {'model': name, **{metric: statistics.mean(values) for metric, values in scores.items()}}
        if model is not None:
            row['parameters'], row['macs'] = cost(model[1])
        rows.append(row)
    times: dict[str, list[float]] = {name: [] for name, model in models.items() if model is not None}
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for turn in range(13):
            for name in times:
                begin = time.perf_counter()
                models[name][0](image)
                if turn >= 3:  # the first turns warm up
                    times[name].append(1000 * (time.perf_counter() - begin))
    for row in rows:
        if row['model'] in times:
            row['milliseconds'] = statistics.median(times[row['model']])
    return rows, images


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ['| model | PSNR-Y | SSIM-Y | NIQE | parameters | GMACs | ms |', '|---|--:|--:|--:|--:|--:|--:|']
    for row in rows:
        quality = f'{row["psnr"]:.2f} | {row["ssim"]:.4f} | {row["niqe"]:.2f}'
        cost = '- | - | -'
        if 'parameters' in row:
            cost = f'{row["parameters"]:,d} | {row["macs"] / 1e9:.3f} | {row["milliseconds"]:.1f}'
        lines.append(f'| {row["model"]} | {quality} | {cost} |')
    return '\n'.join(lines)


def picture(images: dict, names: list[str], path: Path) -> None:
    """Writes one strip per photograph: the whole with its crop marked, then the crop from every model, enlarged."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=16)
    side, gap, label = 288, 8, 26
    strips = []
    for photograph, by_model in images.items():
        left, top, width, height = CROPS[photograph]
        whole = Image.fromarray(by_model['ground truth'][..., ::-1])
        ImageDraw.Draw(whole).rectangle((left, top, left + width, top + height), outline=(255, 60, 0), width=3)
        whole.thumbnail((side * 3 // 2, side))
        cells = [(photograph, whole)]
        for name in [*names, 'ground truth']:
            crop = by_model[name][top : top + height, left : left + width, ::-1]
            cells.append((name, Image.fromarray(np.ascontiguousarray(crop)).resize((side, side), Image.NEAREST)))
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
    from sdakd_arch.weights import describe, infer_network, load_into, read_weights
    from sdakd_arch.width import build, scale_of
    from sdakd_arch.zoo import ensure_file

    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    step(1, 'The teacher')
    teacher = Path(args.teacher)
    if args.teacher.startswith(('http://', 'https://')):
        teacher = out / args.teacher.rsplit('/', 1)[-1]
        ensure_file(teacher, 'TEACHER', url=args.teacher)
    teacher = teacher.resolve()
    state = read_weights(teacher, where='TEACHER')
    network = infer_network(state)
    if network is None or network['type'] == 'UNetDiscriminatorSN':
        raise compat.UserError(f'TEACHER: {teacher} is no RRDBNet or SRVGGNetCompact with PReLU; give one of these.')
    scale = scale_of(build(network, 'TEACHER'), 'TEACHER')
    say(f'{teacher.name}: {describe(network)}')

    step(2, f'Pairs from the photographs in scikit-image, x{scale}; held out: {", ".join(HELD_OUT)}')
    data = out / 'data'
    prepare(data, scale)

    opt = options(teacher, network, data, scale, args.seed)
    stages = ', '.join(f'{name} {stage["iters"]:,d}' for name, stage in opt['train']['stages'].items())
    step(3, f'Distilling a student with 1/4 of the channels (iterations: {stages})')
    sdakd = train(opt, 'demo_sdakd', out, [])
    step(4, 'The same student for the same number of steps without a teacher')
    plain = train(opt, 'demo_no_teacher', out, ['train:feature_opt=~'])

    step(5, 'Measuring on the held-out photographs')

    def load(path: Path, options: dict):
        net = build(options, str(path)).eval()
        load_into(net, read_weights(path, 'params_ema'), path, str(path))
        return net, options

    iters = [stage['iters'] for stage in opt['train']['stages'].values()]
    student = opt['network_g']
    models = {
        'bicubic': None,
        'teacher': load(teacher, network),
        'SDAKD, end of stage 2': load(sdakd / f'net_g_{sum(iters[:2])}.pth', student),
        'student without teacher': load(plain / 'net_g_latest.pth', student),
        'SDAKD student': load(sdakd / 'net_g_latest.pth', student),
    }
    rows, images = measure(models, data / f'val_x{scale}', scale)
    markdown = table(rows)
    (out / 'table.md').write_text(markdown + '\n')
    facts = {'scale': scale, 'seed': args.seed, 'teacher': describe(network), 'student': describe(student)}
    (out / 'results.json').write_text(json.dumps({**facts, 'rows': rows}, indent=2) + '\n')
    picture(images, ['bicubic', 'teacher', 'student without teacher', 'SDAKD student'], out / 'comparison.png')
    shutil.copyfile(sdakd / 'net_g_latest.pth', out / 'student.pth')
    say(f'\n{markdown}\n')
    say('PSNR and SSIM: higher is closer to the photograph. NIQE: lower looks more natural. Cost: 64x64 pixels.')
    for name in ('comparison.png', 'table.md', 'results.json', 'student.pth'):
        say(f'  {os.path.relpath(out / name)}')
    say(f'{time.time() - begun:.0f} seconds')
    return 0


if __name__ == '__main__':
    sys.exit(main())
