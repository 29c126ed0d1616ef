r"""Step time and peak memory of an option file at its real network sizes, stage by stage, through the literal command.

    python test_scripts/benchmark_step.py -opt options/sdakd_realesrgan_x4.yml --batch 2 --iters 6
    python test_scripts/benchmark_step.py -opt options/sdakd_gcfsr_128.yml --batch 4 --iters 6 --force_yml \
      teacher:network:narrow=1 network_g:narrow=0.25 network_d:narrow=0.25

Teachers, discriminators and VGGs have random weights and the images are noise: the time of a step does not depend on
them. The first step of every stage is left out. CPU seconds are those of the training process, which depend less on
what else the machine does; with OMP_NUM_THREADS=1 no thread waits for another.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LINE = r'iter: +([\d,]+), .*time \(data\): ([\d.]+) .*stage: \S+ (\S+) ([\d,]+)/'
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))


def make_world(folder: Path, opt: dict) -> None:
    """Writes random teachers, discriminators and VGGs, and noise images, where the run looks for them."""
    import cv2
    import numpy as np
    import torch
    from torchvision.models import vgg16, vgg19

    from sdakd_arch.width import build

    torch.manual_seed(0)
    if opt.get('teacher'):
        torch.save({'params_ema': build(opt['teacher']['network'], 'teacher').state_dict()}, folder / 'teacher.pth')
    weights = folder / 'experiments/pretrained_models'
    weights.mkdir(parents=True)
    for make, name in ((vgg19, 'vgg19-dcbb9e9d.pth'), (vgg16, 'vgg16-397923af.pth')):
        with torch.device('meta'):
            shapes = {key: value.shape for key, value in make(weights=None).state_dict().items()}
        # small enough for 19 layers; the classifier is not used: a stride of 0 stores one number
        state = {k: 0.02 * torch.randn(s) if k[0] == 'f' else torch.zeros(()).expand(s) for k, s in shapes.items()}
        torch.save(state, weights / name)
    for block in ('teachers', 'discriminators'):
        for name, entry in (opt.get(block) or {}).items():
            if entry.get('weights'):
                torch.save({'params': build(entry['network'], name).state_dict()}, folder / entry['weights'])
    (folder / 'images').mkdir()
    names = [f'{number}.png' for number in range(8)]
    size = opt['datasets']['train'].get('out_size', 400)
    for name in names:
        noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / 'images' / name), cv2.GaussianBlur(noise, (0, 0), 2))
    (folder / 'meta.txt').write_text('\n'.join(names) + '\n')


def peak_memory(pid: int) -> float:
    """Largest resident memory of a Linux process so far, GiB."""
    status = Path(f'/proc/{pid}/status').read_text(encoding='utf-8')
    return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 2**20


def cpu_seconds(pid: int) -> float:
    """Processor time that a Linux process has used so far, without its children's."""
    fields = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def weighted(value: object) -> object:
    """Options with weights in place of shares, whose search takes a pass for every term in few of a stage's steps."""
    if isinstance(value, list):
        return [weighted(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        ('loss_weight' if key == 'share' else key): 1.0 if key == 'share' else weighted(v) for key, v in value.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', required=True)
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--iters', type=int, default=6, help='iterations of each stage')
    parser.add_argument('--force_yml', nargs='+', default=[], help='further changes, as sdakd train takes them')
    args = parser.parse_args()
    import yaml

    from sdakd import compat

    compat.import_basicsr()
    from sdakd_models.reader import read_run

    opt = read_run(args.opt, args.force_yml)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_world(folder, opt)
        changes = [f'train:stages:{stage}:iters={args.iters}' for stage in opt['train']['stages']]
        changes += ['teacher:weights=teacher.pth'] if opt.get('teacher') else []
        changes += ['datasets:train:dataroot_gt=images', 'name=benchmark']
        changes += ['datasets:train:num_worker_per_gpu=1', 'logger:print_freq=1']
        changes += [f'datasets:train:batch_size_per_gpu={args.batch}']
        if 'queue_size' in opt:  # Real-ESRGAN's degradation
            changes += ['datasets:train:meta_info=meta.txt', f'queue_size={args.batch * 2}']
        changes += ['logger:use_tb_logger=false']
        file = folder / 'options.yml'
        file.write_text(yaml.safe_dump(weighted(opt), sort_keys=False))
        command = [
            sys.executable,
            '-m',
            'sdakd.cli',
            'train',
            '-opt',
            str(file),
            '--force_yml',
            *changes,
        ]
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        environment = {**os.environ, 'PYTHONPATH': path}
        streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
        lines, peaks, used = [], {}, {}
        with subprocess.Popen(command, cwd=folder, env=environment, **streams) as process:
            for line in process.stdout:
                lines.append(line)
                if found := re.search(LINE, line):
                    peaks[found[3]] = peak_memory(process.pid)
                    used.setdefault(found[3], []).append(cpu_seconds(process.pid))
    if process.returncode:
        sys.stderr.writelines(lines)
        return process.returncode
    # BasicSR logs a running mean of the time per iteration, data included
    found = re.findall(LINE, ''.join(lines))
    totals = [int(number.replace(',', '')) * float(mean) for number, mean, _, _ in found]
    steps: dict[str, list[float]] = {}
    for (_, _, stage, step), now, before in zip(found, totals, [0.0, *totals], strict=False):
        if step != '1':
            steps.setdefault(stage, []).append(now - before)
    sys.stdout.write(
        f'| stage | seconds per step (batch {args.batch}) | CPU seconds per step | peak memory so far, GiB |\n'
        '|---|--:|--:|--:|\n'
    )
    for stage, seconds in steps.items():
        cpu = (used[stage][-1] - used[stage][0]) / (len(used[stage]) - 1)
        sys.stdout.write(f'| {stage} | {statistics.median(seconds):.2f} | {cpu:.2f} | {peaks[stage]:.2f} |\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
