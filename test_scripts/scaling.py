"""How the cost of a distillation grows: with width, blocks, crop, batch, images, processes, and beyond this machine.

    python test_scripts/scaling.py -o OUT                      # all axes, about ten minutes on two cores
    python test_scripts/scaling.py -o OUT --axes width crop    # these alone; others stay as OUT has them
    python test_scripts/scaling.py -o OUT --axes               # tables and plot anew, from OUT/scaling.json

Steps are those of `sdakd bench train` on the option file, without its perceptual loss and with random weights, which
change no time. `images` and `processes` start whole trainings. `count` takes no time: it counts multiply-accumulates,
parameters and the bytes that autograd keeps; the table of GPUs is computed from that by the formulas of this file and
the constants of `ASSUMED`, and is no measurement. OUT gets scaling.json, scaling.md and scaling.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from sdakd import compat  # noqa: E402
from sdakd.compat import UserError  # noqa: E402

BASE = {'width': '1/4', 'blocks': 6, 'crop': 128, 'batch': 2}
AXES = {
    'width': ('1/8', '1/4', '1/2', '1'),
    'blocks': (3, 6, 12, 23),
    'crop': (64, 96, 128, 192),
    'batch': (1, 2, 4),
}
POWERS = {'width': 2, 'blocks': 1, 'crop': 2, 'batch': 1}  # of the arithmetic
IMAGES = 100, 1000, 10_000
PROCESSES = (1, 2, 2), (2, 1, 1), (1, 2, 4), (2, 1, 2)  # processes, threads of each, batch of each
GPUS = 1, 2, 4, 8, 16, 32, 64
STAGE = 'adversarial'
FULL, FULL_CROP, FULL_BATCH = ('1/8', '1/4', '1/2'), 256, 12  # the shipped option files
ASSUMED = {
    # 1,979 TFLOP/s with sparsity, half of it without: NVIDIA H100 Tensor Core GPU datasheet, SXM; H200's is the same
    'peak_flops': 989e12,
    # of the peak: what twelve trainings that share one H200 reach (docs/performance.md); worked out in docs/scaling.md
    'utilisation': 0.04,
    'utilisation_high': 0.30,  # an assumption: wide convolutions, large batches
    'operators': 4985,  # of a step: docs/performance.md
    'seconds_per_operator': 5e-6,  # an assumption: a kernel's launch
    'gpus_per_machine': 8,
    'bandwidth_inside': 450e9,  # bytes/s and direction: NVLink 4, 900 GB/s both ways (the same datasheet)
    'bandwidth_between': 50e9,  # InfiniBand NDR, 400 Gb/s a port and GPU (NVIDIA ConnectX-7 user manual)
    'seconds_per_message': 10e-6,  # an assumption
}


# ------------------------------------------------------- the model ----------------------------------------------------


def all_reduce_bytes(gradient_bytes: float, processes: int) -> float:
    """Bytes that each of N processes sends for an average over all in a ring: 2 (N - 1) / N times its gradients."""
    return gradient_bytes * 2 * (processes - 1) / processes


def averaged_bytes(student: int, adapters: int, discriminators: int) -> int:
    """Bytes of gradients that a step averages over the processes: float32, those of discriminators twice.

    They learn in two backward passes, of real images and of fakes, and every pass ends in an average. Iterations that
    measure shares (the first 20 of a stage, few later ones) average the student's once more for every term.
    """
    return 4 * (student + adapters + 2 * discriminators)


def state_bytes(student: int, others: int, teacher: int, ema: bool = True, teacher_bytes: int = 4) -> int:
    """Bytes of what a process holds between steps.

    Weights, gradients and Adam's two moments are 16 bytes per parameter of what learns, the student's average 4 more.

    Args:
        student: Parameters of the student.
        others: Parameters of discriminators and adapters, which learn as well.
        teacher: Parameters of networks that do not learn: teachers, a perceptual backbone.
        ema: Whether there is an average.
        teacher_bytes: Per parameter of those: 4, or 2 in half precision.
    """
    return 16 * (student + others) + 4 * student * ema + teacher_bytes * teacher


def step_macs(
    student: float, teacher: float = 0, judge: float = 0, adapters: float = 0, backbone: float = 0, reuse: int = 1
) -> float:
    """Multiply-accumulates of a step from those of forward passes over its batch.

    A backward pass costs two forward passes, one where the weights have no gradient. What learns costs 3. A
    discriminator judges the output for the student (1 + 1) and learns from real and fake images (2 x 3). A perceptual
    backbone sees target and output and goes back to the output (3). The teacher's pass serves ``reuse`` steps.
    """
    return 3 * student + teacher / reuse + 8 * judge + 3 * adapters + 3 * backbone


def step_seconds(
    macs: float, gradient_bytes: float, processes: int, utilisation: float, assumed: Mapping = ASSUMED
) -> float:
    """Seconds of a step on GPUs, **modelled**: arithmetic or launches, whichever is longer, then the average over all.

    Nothing is overlapped, although DistributedDataParallel overlaps averages with the backward pass.

    Args:
        macs: Multiply-accumulates of a process's step.
        gradient_bytes: Gradients of a process.
        processes: As many GPUs.
        utilisation: Share of the peak.
    """
    arithmetic = 2 * macs / (assumed['peak_flops'] * utilisation)
    launches = assumed['operators'] * assumed['seconds_per_operator']
    inside = processes <= assumed['gpus_per_machine']
    bandwidth = assumed['bandwidth_inside' if inside else 'bandwidth_between']
    messages = 2 * (processes - 1) * assumed['seconds_per_message']
    return max(arithmetic, launches) + all_reduce_bytes(gradient_bytes, processes) / bandwidth + messages


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent of a power law through positive points: least squares in logarithms."""
    a, b = [math.log(each) for each in x], [math.log(each) for each in y]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return sum((i - mean_a) * (j - mean_b) for i, j in zip(a, b, strict=True)) / sum((i - mean_a) ** 2 for i in a)


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset and slope of a straight line, least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    gain = sum((i - mean_x) * (j - mean_y) for i, j in zip(x, y, strict=True)) / sum((i - mean_x) ** 2 for i in x)
    return mean_y - gain * mean_x, gain


# ------------------------------------------------------- steps --------------------------------------------------------


def changes(width: str, blocks: int) -> list[str]:
    """What differs from the option file: depth, width of student and discriminator, four taps or fewer."""
    taps = sorted({math.ceil(blocks * quarter / 4) - 1 for quarter in range(1, 5)})
    names = ', '.join(f'body.{tap}' for tap in taps)
    return [
        f'teacher:network:num_block={blocks}', f'network_g:width={width}', f'network_d:width={width}',
        f'train:feature_opt:layers=[{names}]', 'teacher:weights=random.pth', 'train:teacher_margin=4',
    ]  # fmt: skip


def measure_axis(axis: str, args: argparse.Namespace, known: dict) -> list[dict]:
    """Rows of `sdakd bench train` at every point of an axis; ``known`` holds those of this call, by point."""
    import sdakd

    found = []
    for value in AXES[axis]:
        point = {**BASE, axis: value}
        key = tuple(point.values())
        if key not in known:
            section = sdakd.bench_train(
                args.opt, stages=[STAGE], precisions=args.precisions, breakdown=True, batch=point['batch'],
                gt_size=point['crop'], no_perceptual=True, rounds=args.rounds, threads=args.threads, device='cpu',
                force_yml=changes(point['width'], point['blocks']),
            ).section  # fmt: skip
            known[key] = {**point, 'load_ms': section['load_ms'], 'rows': section['rows']}
            known['machine'] = {name: section[name] for name in ('cpu', 'threads', 'torch', 'date', 'rounds')}
        found.append(known[key])
    return found


class Kept:
    """Bytes that autograd keeps for the backward pass, parameters left out: now, and at most so far."""

    def __init__(self, own: set[int]) -> None:
        self.own, self.uses, self.now, self.peak = own, Counter(), 0, 0

    def pack(self, tensor: Any) -> Any:
        return tensor if tensor.untyped_storage().data_ptr() in self.own else _Held(self, tensor)

    def unpack(self, held: Any) -> Any:
        return held.tensor if isinstance(held, _Held) else held


class _Held:
    """A tensor that is kept; a memory that several hold counts once."""

    def __init__(self, book: Kept, tensor: Any) -> None:
        self.book, self.tensor = book, tensor
        storage = tensor.untyped_storage()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        if not book.uses[self.key]:
            book.now += self.size
            book.peak = max(book.peak, book.now)
        book.uses[self.key] += 1

    def __del__(self) -> None:
        self.book.uses[self.key] -= 1
        if not self.book.uses[self.key]:
            self.book.now -= self.size


def stepper_of(args: argparse.Namespace, point: Mapping, folder: Path, precision: str, perceptual: bool) -> Any:
    """A model that makes steps of the last stage, as `sdakd bench train` builds it."""
    from sdakd.commands.bench_train import rows, stand_ins
    from sdakd.commands.bench_train.steps import Stepper, load
    from sdakd.shipped import option_file

    file = option_file(args.opt)
    opt = rows.read(file, changes(point['width'], point['blocks']), None)
    rows.settle(opt, 'cpu', point['batch'], point['crop'], perceptual)
    stand_ins.random_weights(opt, folder)
    stand_ins.images(opt, folder, None, rows.largest_crop(opt, [1]))
    plan = rows.Plan(opt, folder, file, 'cpu', rows.crop_of(opt), [STAGE], [precision], [1], False, False)
    done = plan.complete(opt, precision, 1)
    return Stepper(done, STAGE, False, load(done, 2)[0])


def sizes_of(model: Any) -> dict[str, int]:
    """Parameters of a model's networks by what they are to the formulas."""
    learns = {player.name: sum(p.numel() for p in player.bare.parameters()) for player in model.players}
    student = learns.pop('g')
    judges = sum(number for name, number in learns.items() if name == 'd' or name.startswith('d_'))
    teachers = sum(p.numel() for teacher in model.teachers.values() for p in teacher.parameters())
    backbones = sum(p.numel() for each in model.cast.backbones for p in each.parameters())
    found = {'student': student, 'discriminators': judges, 'adapters': sum(learns.values()) - judges}
    return {**found, 'teachers': teachers, 'backbones': backbones}


def count(args: argparse.Namespace, point: Mapping, precision: str = 'fp32', perceptual: bool = False) -> dict:
    """Multiply-accumulates by part, parameters and kept bytes of a step; nothing depends on the machine's speed."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    from sdakd.commands.bench_train.steps import quietly

    class Counted(TorchDispatchMode):
        def __init__(self, ledger: Any) -> None:
            super().__init__()
            self.ledger, self.macs = ledger, Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if (formula := flop_registry.get(func._overloadpacket)) is not None:
                self.macs[self.ledger.parts[-1]] += formula(*args, **(kwargs or {}), out_val=out) // 2
            return out

    with tempfile.TemporaryDirectory() as temporary, quietly(False):
        stepper = stepper_of(args, point, Path(temporary), precision, perceptual)
        stepper.fill()
        model = stepper.model
        networks = [player.bare for player in model.players]
        networks += [*model.teachers.values(), *model.cast.backbones]
        kept = Kept({each.untyped_storage().data_ptr() for net in networks for each in net.parameters()})
        with stepper.watched() as ledger, Counted(ledger) as counted:
            stepper.step()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            stepper.step()
        return {**point, 'precision': precision, 'perceptual': perceptual, 'macs': dict(counted.macs),
                'parameters': sizes_of(model), 'kept_bytes': kept.peak}  # fmt: skip


def count_points(args: argparse.Namespace) -> list[dict]:
    """All points of the axes, at batch 1: what is counted is proportional to the batch."""
    points = [{**BASE, axis: value, 'batch': 1} for axis, values in AXES.items() if axis != 'batch' for value in values]
    return [count(args, point) for point in {tuple(point.values()): point for point in points}.values()]


def count_full(args: argparse.Namespace) -> list[dict]:
    """The shipped option files, by crops of 128 pixels; bytes per crop are what a second one adds."""
    found = []
    for width in FULL:
        one = {'width': width, 'blocks': 23, 'crop': 128, 'batch': 1}
        entry = {'width': width, 'kept_per_crop': {}}
        for precision in ('bf16', 'fp32'):
            first, second = (count(args, {**one, 'batch': number}, precision, True) for number in (1, 2))
            entry |= {'at': first}
            entry['kept_per_crop'][precision] = second['kept_bytes'] - first['kept_bytes']
        found.append(entry)
    return found


# ------------------------------------------------------- whole trainings ----------------------------------------------


def sent() -> int:
    """Bytes that this machine's interfaces have sent since its start (Linux)."""
    text = Path('/proc/net/dev').read_text(encoding='utf-8')
    return sum(int(line.split(':')[1].split()[8]) for line in text.splitlines()[2:])


def train(folder: Path, opt: Mapping, processes: int = 1, threads: int = 1) -> dict:
    """Runs a training of one stage; seconds of the command and of an iteration, and bytes sent per iteration."""
    import torch
    import yaml

    name, iters = opt['name'], opt['train']['stages'][STAGE]['iters']
    file = folder / f'{name}.yml'
    file.write_text(yaml.safe_dump(json.loads(json.dumps(opt)), sort_keys=False), encoding='utf-8')
    command = [str(ROOT / 'sdakd/cli.py'), 'train', '-opt', str(file)]
    if processes > 1:
        launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
        command = [*launcher, *command, '--launcher', 'pytorch']
    environment = {'OMP_NUM_THREADS': str(threads), 'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(folder / 'cache')}
    begun, counters, lines = time.perf_counter(), {}, []
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env={**os.environ, **environment}, **streams)
    for text in process.stdout:
        lines.append(text)
        if at := re.search(r'iter:\s*([\d,]+), lr', text):
            counters[int(at[1].replace(',', ''))] = sent()
    if process.wait():
        raise UserError(f'the training {name} has failed:\n{"".join(lines[-12:])}')
    seconds = time.perf_counter() - begun
    state = torch.load(folder / f'experiments/{name}/training_states/{iters}.state', weights_only=True)
    first, last = min(counters), max(counters)
    return {
        'command_s': seconds,
        'iteration_s': state['clock']['seconds'][STAGE],
        'sent_per_iteration': (counters[last] - counters[first]) / (last - first) if last > first else None,
    }


def run_options(args: argparse.Namespace, folder: Path, width: str, blocks: int, batch: int, crop: int) -> dict:
    """Options of a training of the last stage alone, on made images."""
    from sdakd.commands.bench_train import rows, stand_ins
    from sdakd.shipped import option_file

    opt = rows.read(option_file(args.opt), changes(width, blocks), None)
    stage = {**opt['train']['stages'][STAGE], 'iters': args.iters}
    rows.settle(opt, 'cpu', batch, crop, False)
    opt['train']['stages'] = {STAGE: stage}
    opt |= {'name': 'first', 'queue_size': 2 * batch}
    feature = {key: value for key, value in opt['train']['feature_opt'].items() if key != 'share'}
    opt['train']['feature_opt'] = {**feature, 'loss_weight': 1.0}  # shares are measured in most of so few iterations
    opt['logger'] |= {'print_freq': 5, 'save_checkpoint_freq': args.iters}
    stand_ins.random_weights(opt, folder)
    return opt


def measure_processes(args: argparse.Namespace) -> list[dict]:
    """Trainings with one and two processes of Gloo; every process has one more that loads images."""
    from sdakd.commands.bench_train import rows, stand_ins

    found = []
    for processes, threads, batch in PROCESSES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            opt = run_options(args, folder, BASE['width'], BASE['blocks'], batch, BASE['crop'])
            stand_ins.images(opt, folder, None, rows.largest_crop(opt, [1]))
            opt['datasets']['train']['num_worker_per_gpu'] = 1
            times = train(folder, opt, processes, threads)
            speed = processes * batch / times['iteration_s']
            found.append({'processes': processes, 'threads': threads, 'batch': batch, **times, 'crops_per_s': speed})
    return found


def measure_images(args: argparse.Namespace) -> list[dict]:
    """Starts with N pairs of small images: the first one, which decodes all, and the next one, which knows them."""
    import cv2
    import numpy as np

    from sdakd_models.basicsr_options import Degradation

    found = []
    for number in IMAGES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for side in ('gt', 'lq'):
                (folder / side).mkdir()
            noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
            noise = cv2.GaussianBlur(noise, (0, 0), 2)
            for index in range(number):
                top, left = index % 400, index // 400 * 4
                gt = noise[top : top + 96, left : left + 96]
                cv2.imwrite(str(folder / f'gt/{index:06d}.png'), gt)
                cv2.imwrite(str(folder / f'lq/{index:06d}.png'), cv2.resize(gt, (24, 24), interpolation=cv2.INTER_AREA))
            opt = run_options(args, folder, '1/8', 1, 2, 64)
            opt['model_type'] = 'SDAKDModel'
            loader = opt['datasets']['train']
            opt['datasets']['train'] = {
                'name': 'pairs', 'type': 'PairedImageDataset', 'dataroot_gt': str(folder / 'gt'),
                'dataroot_lq': str(folder / 'lq'), 'io_backend': {'type': 'disk'}, 'gt_size': 64, 'use_hflip': True,
                'use_rot': True, 'num_worker_per_gpu': 0, 'batch_size_per_gpu': loader['batch_size_per_gpu'],
            }  # fmt: skip
            opt = {key: value for key, value in opt.items() if key not in Degradation.__struct_fields__}
            first = train(folder, opt, threads=1)
            again = train(folder, {**opt, 'name': 'again'}, threads=1)
            size = sum(path.stat().st_size for path in (folder / 'cache').rglob('*') if path.is_file())
            found.append({'images': number, 'first': first, 'again': again, 'remembered_bytes': size})
    return found


# ------------------------------------------------------- tables and plot ----------------------------------------------


def row_of(point: Mapping, step: str, precision: str) -> Mapping:
    return next(row for row in point['rows'] if row['step'] == step and row['precision'] == precision)


def network_macs(content: Mapping, point: Mapping) -> float | None:
    """Multiply-accumulates of a step without the degradation of its images; None where they were not counted."""
    for counted in content.get('counts', ()):
        if all(counted[name] == point[name] for name in ('width', 'blocks', 'crop')):
            macs = sum(number for part, number in counted['macs'].items() if part != 'degradation')
            return point['batch'] * macs
    return None


def axis_values(axis: str, points: Sequence[Mapping]) -> list[float]:
    from fractions import Fraction

    return [float(Fraction(str(point[axis]))) for point in points]


def tables(content: Mapping) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of every table that the content has figures for."""
    for axis in AXES:
        points = content.get(axis)
        if not points:
            continue
        for precision in dict.fromkeys(row['precision'] for row in points[0]['rows'] if row['step'] == STAGE):
            header = [axis, 'GMACs', 'ms', 'without teacher, ms', 'GMAC/s', 'crops/s', 'MiB']
            header += ['student', 'backward', 'teacher', 'discriminator', 'degradation']
            rows = []
            for point in points:
                row, plain = row_of(point, STAGE, precision), row_of(point, 'SDAKD without teacher', precision)
                parts = row['breakdown_ms']
                macs = (network_macs(content, point) or math.nan) / 1e9
                cells = [macs, row['median_ms'], plain['median_ms']]
                cells += [1e3 * macs / row['median_ms'], row['images_per_s'], row['peak_memory_mib']]
                names = 'student forward', 'backward', 'teacher forward', 'discriminators', 'degradation'
                cells += [parts.get(name, 0.0) for name in names]
                rows.append([str(point[axis]), *(f'{cell:,.2f}' if cell < 10 else f'{cell:,.0f}' for cell in cells)])
            fits = exponents(content, axis, precision)
            cells = ['exponent', fits['GMACs'], fits['step'], fits['plain'], '', '', fits['MiB']]
            rows.append([*cells, *fits['parts']])
            lines = straight(axis, points, precision)
            rows.append(['line', '', *lines[:2], '', '', lines[2], *[''] * len(fits['parts'])])
            yield f'{axis}, {precision}', header, rows
    if content.get('images'):
        header = ['pairs', 'first start, s', 'next start, s', 'iteration, ms', 'remembered, KiB']
        rows = []
        for entry in content['images']:
            starts = [f'{start_seconds(entry[which], content["iters"]):.1f}' for which in ('first', 'again')]
            cells = [f'{1e3 * entry["again"]["iteration_s"]:.1f}', f'{entry["remembered_bytes"] / 1024:.0f}']
            rows.append([f'{entry["images"]:,}', *starts, *cells])
        yield 'images', header, rows
    if content.get('processes'):
        header = ['processes', 'threads', 'batch of each', 'iteration, ms', 'crops/s']
        header += ['sent by each per iteration, MB', 'by the formula, MB']
        rows = []
        for entry in content['processes']:
            number = entry['processes']
            formula = all_reduce_bytes(content['gradient_bytes'], number) / 1e6
            measured = entry['sent_per_iteration'] / number / 1e6 if number > 1 else 0.0
            cells = [str(number), str(entry['threads']), str(entry['batch']), f'{1e3 * entry["iteration_s"]:.0f}']
            rows.append([*cells, f'{entry["crops_per_s"]:.2f}', f'{measured:.3f}', f'{formula:.3f}'])
        yield 'processes', header, rows
    if content.get('count'):
        yield 'full size: counted', *full_table(content['count'])
        yield 'GPUs: modelled', *gpu_table(content['count'])


def start_seconds(times: Mapping, iters: int) -> float:
    """Seconds of a command without its iterations."""
    return times['command_s'] - iters * times['iteration_s']


def exponents(content: Mapping, axis: str, precision: str) -> dict:
    """Exponents of the growth along an axis."""
    points = content[axis]
    x = axis_values(axis, points)
    rows = [row_of(point, STAGE, precision) for point in points]
    plain = [row_of(point, 'SDAKD without teacher', precision)['median_ms'] for point in points]

    def fit(values: Sequence[float | None]) -> str:
        return f'{slope(x, values):.2f}' if all(values) else '-'

    names = 'student forward', 'backward', 'teacher forward', 'discriminators', 'degradation'
    return {
        'GMACs': fit([network_macs(content, point) for point in points]),
        'step': fit([row['median_ms'] for row in rows]),
        'plain': fit(plain),
        'MiB': fit([row['peak_memory_mib'] for row in rows]),
        'parts': [fit([row['breakdown_ms'].get(name) for row in rows]) for name in names],
    }


def straight(axis: str, points: Sequence[Mapping], precision: str) -> list[str]:
    """`a + b r` of ms, ms without teacher and MiB, r being the arithmetic relative to that of :data:`BASE`."""
    base = axis_values(axis, [BASE])[0]
    x = [(value / base) ** POWERS[axis] for value in axis_values(axis, points)]
    rows = [row_of(point, STAGE, precision) for point in points]
    plain = [row_of(point, 'SDAKD without teacher', precision)['median_ms'] for point in points]
    found = []
    for values in ([row['median_ms'] for row in rows], plain, [row['peak_memory_mib'] for row in rows]):
        found.append('{:.0f} + {:.0f} r'.format(*line(x, values)) if all(values) else '-')
    return found


def full_sizes(entry: Mapping, crop: int = FULL_CROP) -> dict:
    """Of a shipped option file: multiply-accumulates, gradients, state and kept bytes, scaled to another crop."""
    area, parameters = (crop / entry['at']['crop']) ** 2, entry['at']['parameters']
    learn = parameters['student'] + parameters['discriminators'] + parameters['adapters']
    others, still = learn - parameters['student'], parameters['teachers'] + parameters['backbones']
    macs = entry['at']['macs']
    return {
        'macs': area * sum(macs.values()),
        'teacher': area * macs.get('teacher forward', 0),
        'backbone': area * macs.get('perceptual loss', 0),
        'learns': learn,
        'gradients': averaged_bytes(parameters['student'], parameters['adapters'], parameters['discriminators']),
        'state': state_bytes(parameters['student'], others, still),
        'kept': {precision: area * value for precision, value in entry['kept_per_crop'].items()},
    }


def full_table(entries: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    header = ['width', 'learns, M', 'averaged, MB', 'GMACs a crop', 'teacher %', 'state, MiB']
    header += ['kept a crop, fp32, MiB', 'bf16, MiB', f'batch {FULL_BATCH}, bf16, GiB']
    rows = []
    for entry in entries:
        full = full_sizes(entry)
        kept = [full['kept'][precision] / 2**20 for precision in ('fp32', 'bf16')]
        total = (full['state'] + FULL_BATCH * full['kept']['bf16']) / 2**30
        cells = [full['learns'] / 1e6, full['gradients'] / 1e6, full['macs'] / 1e9]
        cells += [100 * full['teacher'] / full['macs'], full['state'] / 2**20, *kept, total]
        rows.append([entry['width'], *(f'{cell:.2f}' if cell < 10 else f'{cell:,.0f}' for cell in cells)])
    return header, rows


def gpu_table(entries: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Modelled steps of the 1/4 student, and the time of a billion crops."""
    header = ['GPUs', 'all-reduce, MB a GPU', 'ms of it', 'step, ms', 'crops/s']
    header += ['hours for 10 M crops', 'days for 1,000 M crops']
    full = full_sizes(next(entry for entry in entries if entry['width'] == '1/4'))
    rows = []
    for number in GPUS:
        seconds = [modelled(full, number, ASSUMED[key]) for key in ('utilisation', 'utilisation_high')]
        reduced = 1e3 * (seconds[0] - modelled(full, 1, ASSUMED['utilisation']))
        speeds = [number * FULL_BATCH / each for each in seconds]
        cells = [str(number), f'{all_reduce_bytes(full["gradients"], number) / 1e6:.1f}', f'{reduced:.2f}']
        cells += [' to '.join(f'{1e3 * each:.0f}' for each in seconds), ' to '.join(f'{each:,.0f}' for each in speeds)]
        for crops, unit in ((1e7, 3600), (1e9, 86400)):
            cells.append(
                ' to '.join(f'{crops / each / unit:{".0f" if crops / each / unit >= 10 else ".2g"}}' for each in speeds)
            )
        rows.append(cells)
    return header, rows


def modelled(full: Mapping, processes: int, utilisation: float) -> float:
    return step_seconds(FULL_BATCH * full['macs'], full['gradients'], processes, utilisation)


STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1b232b } .title { font-weight: 600; font-size: 15px }
  .card { fill: #fff } .grid { stroke: #dde3e8; fill: none } .axis { stroke: #5b6b7b; fill: none }
  .line { fill: none; stroke-width: 1.8 } .rule { fill: none; stroke: #8a949e; stroke-dasharray: 5 4 }
  .c0 { stroke: #1b232b } .c1 { stroke: #1f6fc0 } .c2 { stroke: #4f8a2b } .c3 { stroke: #c0661f }
  .dot { fill: #fff; stroke-width: 1.8 } .model { stroke-dasharray: 2 3 }
"""


def plot(content: Mapping) -> str:
    """All axes in one drawing, logarithmic; dashed grey: proportional to the arithmetic; dotted: modelled."""
    from markupsafe import Markup

    from sdakd.commands.report.svg import Axis, Canvas

    wide, high, panels = 330, 250, []

    def panel(
        title: str, x_label: str, y_label: str, lines: list, power: float | None, of: int = 0, model: bool = False
    ) -> None:
        every_x = [value for _, xs, _ in lines for value in xs]
        every_y = [value for _, _, ys in lines for value in ys]
        x = Axis(min(every_x) / 1.15, max(every_x) * 1.15, 58, wide - 16, True, 4)
        y = Axis(min(every_y) / 1.4, max(every_y) * 1.5, high - 46, 44 + 15 * math.ceil(len(lines) / 2), True)
        canvas = Canvas(wide, high, x, y, x_label, '')
        canvas.axes()
        canvas.put('<text class="title" x="4" y="16">{}</text>', f'{title}, {y_label}')
        if power is not None:
            _, xs, ys = lines[of]
            start = ys[-1] * (xs[0] / xs[-1]) ** power
            low = max(start, y.low)
            left = xs[-1] * (low / ys[-1]) ** (1 / power)
            canvas.put('<path class="rule" d="M{} {}L{} {}"/>', x(left), y(low), x(xs[-1]), y(ys[-1]))
        for index, (name, xs, ys) in enumerate(lines):
            steps = ' '.join(f'{x(a)} {y(b)}' for a, b in zip(xs, ys, strict=True))
            canvas.put('<path class="line c{}{}" d="M{}"/>', index, ' model' if model else '', steps)
            for a, b in zip(xs, ys, strict=True):
                canvas.put('<circle class="dot c{}" cx="{}" cy="{}" r="3"/>', index, x(a), y(b))
            at = 8 + (index % 2) * 165, 36 + index // 2 * 15
            canvas.put('<path class="line c{}{}" d="M{} {}h18"/>', index, ' model' if model else '', at[0], at[1] - 4)
            canvas.put('<text x="{}" y="{}">{}</text>', at[0] + 23, at[1], name)
        panels.append(Markup('').join(canvas.parts))

    # what the whole step would be proportional to
    for axis, power in POWERS.items():
        if points := content.get(axis):
            x, rows = axis_values(axis, points), [row_of(point, STAGE, 'fp32') for point in points]
            parts = {'student, backward': ('student forward', 'backward'), 'teacher': ('teacher forward',)}
            parts['discriminator'] = ('discriminators',)
            lines = [('step', x, [row['median_ms'] for row in rows])]
            for name, own in parts.items():
                lines.append((name, x, [sum(row['breakdown_ms'].get(each, 0) for each in own) for row in rows]))
            panel(axis, axis, 'ms', lines, power, of=1 if axis == 'width' else 0)  # the teacher knows no width
    if entries := content.get('images'):
        x = [entry['images'] for entry in entries]
        lines = [
            (name, x, [start_seconds(entry[which], content['iters']) for entry in entries])
            for name, which in (('first start', 'first'), ('next start', 'again'))
        ]
        lines.append(('iteration', x, [entry['again']['iteration_s'] for entry in entries]))
        panel('images', 'pairs', 's', lines, None)
    if content.get('count'):
        full = full_sizes(next(entry for entry in content['count'] if entry['width'] == '1/4'))
        lines = []
        for share in (ASSUMED['utilisation'], ASSUMED['utilisation_high']):
            speeds = [n * FULL_BATCH / modelled(full, n, share) for n in GPUS]
            lines.append((f'{share:.0%} of the peak', list(GPUS), speeds))
        panel('GPUs, modelled', 'GPUs', 'crops/s', lines, 1, model=True)
    across = 3
    width, height = across * (wide + 14), math.ceil(len(panels) / across) * (high + 14)
    body = ''.join(
        f'<g transform="translate({index % across * (wide + 14) + 7} {index // across * (high + 14) + 7})">{each}</g>\n'
        for index, each in enumerate(panels)
    )
    head = '<title>How the cost of a distillation grows</title>'
    card = f'<rect class="card" width="{width}" height="{height}"/>'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
    return f'{start}\n{head}\n<style>{STYLE}</style>\n{card}\n{body}</svg>\n'


def markdown(content: Mapping) -> str:
    from sdakd.files.results import table

    return '\n'.join(f'## {title}\n\n{table(header, rows, "md")}' for title, header, rows in tables(content))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*AXES, 'images', 'processes', 'count']
    parser.add_argument('-opt', default='sdakd_realesrgan_x4', help='option file of a training (default: %(default)s)')
    parser.add_argument('-o', '--output', required=True, metavar='FOLDER')
    parser.add_argument('--axes', nargs='*', choices=every, default=every, help='what to measure (default: all)')
    parser.add_argument('--rounds', type=int, default=3, help='turns of every row (default: %(default)s)')
    parser.add_argument('--precisions', nargs='+', default=['fp32'], help='of steps (default: fp32)')
    parser.add_argument('--threads', type=int, default=2, help='of steps (default: %(default)s)')
    parser.add_argument('--iters', type=int, default=40, help='of whole trainings (default: %(default)s)')
    args = parser.parse_args()
    sys.excepthook = compat.exit_with_sentence
    compat.import_basicsr()
    from sdakd.files.results import output_folder

    folder = output_folder(args.output)
    file, known = folder / 'scaling.json', {}
    content = json.loads(file.read_text(encoding='utf-8')) if file.is_file() else {}
    for axis in args.axes:
        begun = time.perf_counter()
        if axis in AXES:
            content[axis] = measure_axis(axis, args, known)
            content['machine'] = known['machine']
        elif axis == 'images':
            content |= {'images': measure_images(args), 'iters': args.iters}
        elif axis == 'processes':
            sizes = count(args, {**BASE, 'batch': 1})['parameters']
            averaged = averaged_bytes(sizes['student'], sizes['adapters'], sizes['discriminators'])
            content |= {'processes': measure_processes(args), 'gradient_bytes': averaged}
        else:
            content |= {'counts': count_points(args), 'count': count_full(args)}
        file.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
        print(f'{axis}: {time.perf_counter() - begun:.0f} s', flush=True)
    text = markdown(content)
    (folder / 'scaling.md').write_text(text, encoding='utf-8')
    (folder / 'scaling.svg').write_text(plot(content), encoding='utf-8')
    print(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
