r"""What a teacher costs: steps with a cache of its answers, with reused pairs and plain, beside a GAN without teacher.

    python test_scripts/benchmark_teacher.py --teacher RealESRGAN_x4plus.pth --photographs FOLDER --precision fp32 bf16

The student is RRDBNet with 23 blocks and a quarter of the channels of RealESRGAN_x4plus, without a perceptual term. All
variants take turns in one process. Where pairs are reused, a turn is as many steps as a pair is used, because some of
them pay for a batch and others do not. What the data loader does in other processes is left out, degradation is not.
Times are means over all turns; ratios are those to the GAN without teacher on the same kind of data.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from sdakd import compat  # noqa: E402

compat.import_basicsr()

import torch  # noqa: E402
from basicsr.data import build_dataset  # noqa: E402

import sdakd_models  # noqa: E402, F401  it registers models
from sdakd_models import launch  # noqa: E402
from sdakd_models.reader import read_run  # noqa: E402

REUSE = 4
GAN, IMAGE, FEATURE = ['pixel', 'gan'], ['output', 'gan'], ['pixel', 'feature']
# name -> terms, whether Real-ESRGAN degrades, how often a pair is used, whether the teacher's images are at hand
VARIANTS = {
    'GAN without teacher': (GAN, True, 1, False),
    'SDAKD stage 2': (FEATURE, True, 1, False),
    'SDAKD stage 3': ([*FEATURE, 'gan'], True, 1, False),
    f'GAN without teacher, reuse {REUSE}': (GAN, True, REUSE, False),
    f'SDAKD stage 2, reuse {REUSE}': (FEATURE, True, REUSE, False),
    f'SDAKD stage 3, reuse {REUSE}': ([*FEATURE, 'gan'], True, REUSE, False),
    'GAN without teacher, pairs': (GAN, False, 1, False),
    "teacher's image and GAN, pairs": (IMAGE, False, 1, False),
    "teacher's image and GAN, pairs and cache": (IMAGE, False, 1, True),
    'SDAKD stage 3, pairs': ([*FEATURE, 'gan'], False, 1, False),
}
BASES = {True: 'GAN without teacher', False: 'GAN without teacher, pairs'}


def options(args: argparse.Namespace, terms: list[str], degrades: bool, reuse: int, precision: str) -> dict:
    """The option file of a variant: one stage that lasts."""
    opt = read_run(ROOT / 'options/zoo/sdakd_x4plus_rrdbnet_1_4.yml')
    train = opt['train']
    loss = {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}
    opt['train'] = {
        'stages': {'only': {'iters': 10**6, 'lr_g': 1e-4, 'lr_d': 1e-4, 'terms': terms}},
        'pixel_opt': loss,
        'output_opt': loss,
        'feature_opt': {key: value for key, value in train['feature_opt'].items() if key != 'share'},
        'gan_opt': {'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
        'teacher_margin': 8,
        'pool_reuse': reuse,
        'precision': precision,
        'share_freq': 10**6,
    }
    if 'gan' not in terms:
        del opt['network_d'], opt['train']['stages']['only']['lr_d']
    opt['teacher']['weights'] = args.teacher
    opt['high_order_degradation'] = degrades
    names = Path(args.folder, 'list.txt')
    opt['datasets']['train'] |= {'dataroot_gt': args.photographs, 'meta_info': str(names), 'num_worker_per_gpu': 0}
    opt['datasets']['train']['batch_size_per_gpu'] = args.batch
    opt |= {'gt_size': args.gt_size, 'queue_size': 4 * args.batch}
    opt['datasets']['train']['gt_size'] = args.gt_size
    return opt


def build(args: argparse.Namespace, opt: dict):
    """The model and the completed options."""
    from basicsr.models import build_model

    opt = yaml.safe_load(yaml.safe_dump(opt))
    launch.check_options(opt, args.folder, 'run.yml')
    return build_model(opt), opt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--teacher', required=True)
    parser.add_argument('--photographs', required=True, help='folder of at least 8 photographs')
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--gt_size', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--precision', nargs='+', choices=('fp32', 'bf16'), default=['fp32'])
    args = parser.parse_args()
    args.photographs, args.teacher = (str(Path(path).resolve()) for path in (args.photographs, args.teacher))
    with tempfile.TemporaryDirectory() as args.folder:
        names = sorted(path.name for path in Path(args.photographs).iterdir() if path.suffix != '.txt')[:16]
        Path(args.folder, 'list.txt').write_text('\n'.join(names) + '\n', encoding='utf-8')
        for precision in args.precision:
            measure(args, precision)
    return 0


def measure(args: argparse.Namespace, precision: str) -> None:
    models, data, times = {}, {}, {name: [] for name in VARIANTS}
    for name, (terms, degrades, reuse, cached) in VARIANTS.items():
        model, opt = build(args, options(args, terms, degrades, reuse, precision))
        models[name] = (model, reuse)
        if degrades not in data:
            dataset = build_dataset(opt['datasets']['train'])
            rows = [dataset[number] for number in range(args.batch)]
            keys = [key for key, value in rows[0].items() if torch.is_tensor(value)]
            data[True] = {key: torch.stack([row[key] for row in rows]) for key in keys}
            gt = data[True]['gt'][..., : args.gt_size, : args.gt_size].contiguous()
            data[False] = {'gt': gt, 'lq': torch.nn.functional.avg_pool2d(gt, 4)}
        model.batch = data[degrades] | ({'answer//teacher': data[False]['gt']} if cached else {})
    steps = dict.fromkeys(models, 0)

    def turn(name: str) -> float:
        model, reuse = models[name]
        begun = time.perf_counter()
        for _ in range(reuse):
            steps[name] += 1
            model.feed_data(model.batch)
            model.optimize_parameters(steps[name] + 200)  # past the iterations that measure shares
        if model.device.type == 'cuda':
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / reuse

    for name, (_, reuse) in models.items():
        for _ in range(6 if reuse > 1 else 2):  # fills the pool
            turn(name)
    for _ in range(args.rounds):
        order = list(VARIANTS)
        random.shuffle(order)
        for name in order:
            times[name].append(turn(name))
    print(f'\n{precision}, batch {args.batch}, gt {args.gt_size}, means of {args.rounds} turns\n')
    print('| step | seconds | GAN on the same data = 1 |\n|---|--:|--:|')
    means = {name: statistics.fmean(found) for name, found in times.items()}
    for name, (_, degrades, _, _) in VARIANTS.items():
        print(f'| {name} | {means[name]:.2f} | {means[name] / means[BASES[degrades]]:.2f} |')


if __name__ == '__main__':
    sys.exit(main())
